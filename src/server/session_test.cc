// Sessions over real sockets, plain keys only. What is compared are the very bytes and texts that
// redis-server 7.0.15 gives (declared keys: tests/integration/server_test.cc).
#include "server/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/instance.h"
#include "server/test_client.h"

namespace larder::server {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

config::Config plain_config() {
  config::Config config;
  config.node.listen = {"127.0.0.1:0"};
  config.node.admin = "127.0.0.1:0";
  config.node.threads = 2;
  config.near.capacity_bytes = 256 << 20;
  return config;
}

class SessionTest : public testing::Test {
 protected:
  void start(config::Config config = plain_config()) {
    auto started = Instance::start(config);
    ASSERT_TRUE(started) << to_string(started.error());
    instance_ = std::move(*started);
  }
  void SetUp() override { start(); }
  std::string address() const { return instance_->addresses().front(); }

  std::unique_ptr<Instance> instance_;
};

TEST_F(SessionTest, AnswersTheBasics) {
  TestClient c(address());
  EXPECT_EQ(c.text({"PING"}), "PONG");
  EXPECT_EQ(c.text({"ping", "x"}), "x");
  EXPECT_EQ(c.text({"ECHO", "hi"}), "hi");
  EXPECT_EQ(c.text({"SET", "k", "v"}), "OK");
  EXPECT_EQ(c.text({"GET", "k"}), "v");
  EXPECT_EQ(c.text({"get", "none"}), "(nil)");
  EXPECT_EQ(c.text({"INCR", "n"}), "(int) 1");
  EXPECT_EQ(c.text({"MGET", "k", "none", "n"}), "[v, (nil), 1]");
  EXPECT_EQ(c.text({"SELECT", "0"}), "OK");
  EXPECT_EQ(c.text({"SELECT", "1"}), "-ERR DB index is out of range");
  EXPECT_EQ(c.text({"QUIT"}), "OK");
  EXPECT_EQ(c.read_to_end(), "");
}

TEST_F(SessionTest, ErrorsAreRedisErrors) {
  TestClient c(address());
  EXPECT_EQ(c.text({"foo", "a", "b"}),
            "-ERR unknown command 'foo', with args beginning with: 'a' 'b' ");
  EXPECT_EQ(c.text({"foo"}), "-ERR unknown command 'foo', with args beginning with: ");
  EXPECT_EQ(
      c.text({"foo", std::string(200, 'x'), "b"}),
      "-ERR unknown command 'foo', with args beginning with: '" + std::string(128, 'x') + "' ");
  EXPECT_EQ(c.text({"GET"}), "-ERR wrong number of arguments for 'get' command");
  EXPECT_EQ(c.text({"get", "a", "b"}), "-ERR wrong number of arguments for 'get' command");
  EXPECT_EQ(c.text({"CLIENT"}), "-ERR wrong number of arguments for 'client' command");
  EXPECT_EQ(c.text({"CLIENT", "FOO"}), "-ERR unknown subcommand 'FOO'. Try CLIENT HELP.");
  EXPECT_EQ(c.text({"client", "id", "x"}),
            "-ERR wrong number of arguments for 'client|id' command");
  EXPECT_EQ(c.text({"CONFIG", "GET"}), "-ERR wrong number of arguments for 'config|get' command");
  EXPECT_EQ(c.text({"AUTH", "x"}),
            "-ERR AUTH <password> called without any password configured for the default user. Are "
            "you sure your configuration is correct?");
  EXPECT_EQ(c.text({"AUTH", "a", "b"}),
            "-WRONGPASS invalid username-password pair or user is disabled.");
  EXPECT_EQ(c.text({"HELLO", "4"}), "-NOPROTO unsupported protocol version");
  EXPECT_EQ(c.text({"HELLO", "a"}), "-ERR Protocol version is not an integer or out of range");
  EXPECT_EQ(c.text({"HELLO", "3", "FOO"}), "-ERR Syntax error in HELLO option 'FOO'");
  EXPECT_EQ(c.text({"READONLY"}), "-ERR This instance has cluster support disabled");
}

TEST_F(SessionTest, HelloChangesTheProtocol) {
  TestClient c(address());
  EXPECT_THAT(c.text({"HELLO"}),
              StartsWith("[server, redis, version, 7.4.0, proto, (int) 2, id, "));
  EXPECT_EQ(c.text({"GET", "none"}), "(nil)");
  EXPECT_EQ(c.last_raw(), "$-1\r\n");
  EXPECT_THAT(c.text({"HELLO", "3", "SETNAME", "me"}), HasSubstr("proto, (int) 3"));
  EXPECT_THAT(c.last_raw(), StartsWith("%7\r\n"));
  EXPECT_EQ(c.text({"GET", "none"}), "(nil)");
  EXPECT_EQ(c.last_raw(), "_\r\n");
  EXPECT_EQ(c.text({"CLIENT", "GETNAME"}), "me");
  EXPECT_EQ(c.text({"RESET"}), "RESET");
  EXPECT_EQ(c.text({"GET", "none"}), "(nil)");
  EXPECT_EQ(c.last_raw(), "$-1\r\n");
}

TEST_F(SessionTest, ProtocolErrorsCloseOneConnectionOnly) {
  TestClient witness(address());
  EXPECT_EQ(witness.text({"SET", "k", "v"}), "OK");
  const std::pair<std::string, std::string> cases[] = {
      {"*1\r\n$a\r\n", "-ERR Protocol error: invalid bulk length\r\n"},
      {"*x\r\n", "-ERR Protocol error: invalid multibulk length\r\n"},
      {"*1\r\n+a\r\n", "-ERR Protocol error: expected '$', got '+'\r\n"},
      {"GET \"a\r\n", "-ERR Protocol error: unbalanced quotes in request\r\n"},
      // What came before the garbage is answered.
      {"PING\r\n*1\r\n$-5\r\n", "+PONG\r\n-ERR Protocol error: invalid bulk length\r\n"},
      {std::string(70'000, 'A'), "-ERR Protocol error: too big inline request\r\n"},
  };
  for (const auto& [garbage, answer] : cases) {
    TestClient c(address());
    c.send_raw(garbage);
    EXPECT_EQ(c.read_to_end(), answer);
    EXPECT_EQ(witness.text({"GET", "k"}), "v");
  }
}

TEST_F(SessionTest, ALongPipelineKeepsItsOrder) {
  TestClient c(address());
  constexpr int kCommands = 10'000;
  std::string all;
  for (int i = 0; i < kCommands; ++i) {
    all += TestClient::encode({"SET", "p:" + std::to_string(i % 100), std::to_string(i)});
    all += TestClient::encode({"GET", "p:" + std::to_string(i % 100)});
  }
  std::thread sender([&] { c.send_raw(all); });
  for (int i = 0; i < kCommands; ++i) {
    ASSERT_EQ(TestClient::to_text(c.receive()), "OK");
    ASSERT_EQ(TestClient::to_text(c.receive()), std::to_string(i));
  }
  sender.join();
}

TEST_F(SessionTest, LargeValuesGrowTheBuffersAndPass) {
  TestClient c(address());
  for (const std::size_t size : {15'000UL, 16'384UL, 100'000UL, 1UL << 20}) {
    const std::string value(size, 'v');
    ASSERT_EQ(c.text({"SET", "big", value}), "OK") << size;
    ASSERT_TRUE(c.text({"GET", "big"}) == value) << size;
    ASSERT_EQ(c.text({"PING"}), "PONG");
  }
}

TEST_F(SessionTest, AClientThatDoesNotReadIsNotReadFrom) {
  TestClient slow(address());
  TestClient other(address());
  const std::string value(64 << 10, 'v');
  ASSERT_EQ(other.text({"SET", "v", value}), "OK");
  // 64 MiB of answers: more than the sockets and the soft limit take.
  constexpr int kRequests = 1024;
  std::string requests;
  for (int i = 0; i < kRequests; ++i) requests += TestClient::encode({"GET", "v"});
  std::thread sender([&] { slow.send_raw(requests); });
  EXPECT_EQ(other.text({"PING"}), "PONG");
  for (int i = 0; i < kRequests; ++i)
    ASSERT_TRUE(TestClient::to_text(slow.receive()) == value) << i;
  sender.join();
}

TEST_F(SessionTest, ClientReplyOffAndSkip) {
  TestClient c(address());
  c.send({"CLIENT", "REPLY", "OFF"});
  c.send({"SET", "k", "1"});
  c.send({"GET", "k"});
  c.send({"CLIENT", "REPLY", "ON"});
  EXPECT_EQ(TestClient::to_text(c.receive()), "OK");
  c.send({"CLIENT", "REPLY", "SKIP"});
  c.send({"GET", "k"});
  EXPECT_EQ(c.text({"PING"}), "PONG");
  EXPECT_EQ(c.text({"GET", "k"}), "1");
}

TEST_F(SessionTest, ClientsCanBeListedAndKilled) {
  TestClient a(address());
  TestClient b(address());
  EXPECT_EQ(a.text({"CLIENT", "SETNAME", "first"}), "OK");
  EXPECT_EQ(a.text({"CLIENT", "SETNAME", "a b"}),
            "-ERR Client names cannot contain spaces, newlines or special characters.");
  const std::string id = std::to_string(a.call({"CLIENT", "ID"}).integer);
  EXPECT_THAT(b.text({"CLIENT", "LIST"}), HasSubstr("id=" + id + " "));
  EXPECT_THAT(b.text({"CLIENT", "LIST"}), HasSubstr("name=first"));
  EXPECT_EQ(b.text({"CLIENT", "KILL", "1.2.3.4:5"}), "-ERR No such client");
  EXPECT_EQ(b.text({"CLIENT", "KILL", "ID", "999999"}), "(int) 0");
  EXPECT_EQ(b.text({"CLIENT", "KILL", "ID", id}), "(int) 1");
  EXPECT_EQ(a.read_to_end(), "");
  EXPECT_EQ(b.text({"PING"}), "PONG");
}

TEST_F(SessionTest, TransactionsAreRedisTransactions) {
  TestClient c(address());
  EXPECT_EQ(c.text({"EXEC"}), "-ERR EXEC without MULTI");
  EXPECT_EQ(c.text({"DISCARD"}), "-ERR DISCARD without MULTI");
  EXPECT_EQ(c.text({"MULTI"}), "OK");
  EXPECT_EQ(c.text({"MULTI"}), "-ERR MULTI calls can not be nested");
  EXPECT_EQ(c.text({"WATCH", "a"}), "-ERR WATCH inside MULTI is not allowed");
  EXPECT_EQ(c.text({"SET", "a", "b"}), "QUEUED");
  EXPECT_EQ(c.text({"GET", "a"}), "QUEUED");
  EXPECT_EQ(c.text({"INCR", "a"}), "QUEUED");
  EXPECT_EQ(c.text({"EXEC"}), "[OK, b, -ERR value is not an integer or out of range]");
  EXPECT_EQ(c.text({"MULTI"}), "OK");
  EXPECT_THAT(c.text({"foo"}), StartsWith("-ERR unknown command"));
  EXPECT_EQ(c.text({"EXEC"}), "-EXECABORT Transaction discarded because of previous errors.");
  EXPECT_EQ(c.text({"MULTI"}), "OK");
  EXPECT_EQ(c.text({"SET", "a", "never"}), "QUEUED");
  EXPECT_EQ(c.text({"DISCARD"}), "OK");
  EXPECT_EQ(c.text({"GET", "a"}), "b");
  // Commands of the session, between plain ones, keep their places.
  EXPECT_EQ(c.text({"MULTI"}), "OK");
  EXPECT_EQ(c.text({"SET", "x", "1"}), "QUEUED");
  EXPECT_EQ(c.text({"PING"}), "QUEUED");
  EXPECT_EQ(c.text({"INCR", "x"}), "QUEUED");
  EXPECT_EQ(c.text({"ECHO", "e"}), "QUEUED");
  EXPECT_EQ(c.text({"EXEC"}), "[OK, PONG, (int) 2, e]");
}

TEST_F(SessionTest, OneAnswerHasALimit) {
  TestClient c(address());
  const std::string value(1 << 20, 'v');
  ASSERT_EQ(c.text({"SET", "v", value}), "OK");
  std::vector<std::string> mget(601, "v");
  mget[0] = "MGET";
  EXPECT_THAT(c.text(mget), StartsWith("-LARDER_OVERLOADED the answer would be larger than"));
  c.text({"MULTI"});
  for (int i = 0; i < 600; ++i) c.text({"GET", "v"});
  EXPECT_THAT(c.text({"EXEC"}), StartsWith("-LARDER_OVERLOADED"));
  EXPECT_EQ(c.text({"PING"}), "PONG");
  EXPECT_EQ(c.text({"EXEC"}), "-ERR EXEC without MULTI");
}

TEST_F(SessionTest, WatchSeesTheChangesOfOthers) {
  TestClient a(address());
  TestClient b(address());
  a.text({"SET", "w", "1"});
  EXPECT_EQ(a.text({"WATCH", "w"}), "OK");
  EXPECT_EQ(b.text({"SET", "w", "2"}), "OK");
  EXPECT_EQ(a.text({"MULTI"}), "OK");
  EXPECT_EQ(a.text({"SET", "w", "3"}), "QUEUED");
  EXPECT_EQ(a.text({"EXEC"}), "(nil)");
  EXPECT_EQ(a.last_raw(), "*-1\r\n");
  EXPECT_EQ(a.text({"GET", "w"}), "2");
  EXPECT_EQ(a.text({"WATCH", "w"}), "OK");
  EXPECT_EQ(a.text({"UNWATCH"}), "OK");
  EXPECT_EQ(b.text({"SET", "w", "4"}), "OK");
  EXPECT_EQ(a.text({"MULTI"}), "OK");
  EXPECT_EQ(a.text({"SET", "w", "5"}), "QUEUED");
  EXPECT_EQ(a.text({"EXEC"}), "[OK]");
}

TEST_F(SessionTest, ChannelsInResp2) {
  TestClient s(address());
  TestClient p(address());
  s.send({"SUBSCRIBE", "a", "b"});
  EXPECT_EQ(TestClient::to_text(s.receive()), "[subscribe, a, (int) 1]");
  EXPECT_EQ(TestClient::to_text(s.receive()), "[subscribe, b, (int) 2]");
  EXPECT_EQ(s.text({"PSUBSCRIBE", "a*"}), "[psubscribe, a*, (int) 3]");
  EXPECT_EQ(
      s.text({"GET", "x"}),
      "-ERR Can't execute 'get': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET "
      "are allowed in this context");
  EXPECT_EQ(s.text({"PING"}), "[pong, ]");
  EXPECT_EQ(p.text({"PUBLISH", "a", "hi"}), "(int) 2");
  EXPECT_EQ(TestClient::to_text(s.receive()), "[message, a, hi]");
  EXPECT_EQ(TestClient::to_text(s.receive()), "[pmessage, a*, a, hi]");
  EXPECT_EQ(p.text({"PUBLISH", "none", "hi"}), "(int) 0");
  EXPECT_EQ(p.text({"PUBSUB", "NUMSUB", "a", "zz"}), "[a, (int) 1, zz, (int) 0]");
  EXPECT_EQ(p.text({"PUBSUB", "NUMPAT"}), "(int) 1");
  EXPECT_EQ(p.text({"PUBSUB", "CHANNELS", "b*"}), "[b]");
  s.send({"UNSUBSCRIBE"});
  EXPECT_EQ(TestClient::to_text(s.receive()), "[unsubscribe, a, (int) 2]");
  EXPECT_EQ(TestClient::to_text(s.receive()), "[unsubscribe, b, (int) 1]");
  EXPECT_EQ(s.text({"PUNSUBSCRIBE"}), "[punsubscribe, a*, (int) 0]");
  EXPECT_EQ(s.text({"UNSUBSCRIBE"}), "[unsubscribe, (nil), (int) 0]");
  EXPECT_EQ(s.text({"GET", "x"}), "(nil)");
}

TEST_F(SessionTest, PushesOfResp3NeverComeInsideAnAnswer) {
  TestClient s(address());
  TestClient p(address());
  s.text({"HELLO", "3"});
  EXPECT_EQ(s.text({"SUBSCRIBE", "news"}), "[subscribe, news, (int) 1]");
  constexpr int kRounds = 2'000;
  std::thread publisher([&] {
    for (int i = 0; i < kRounds; ++i) p.text({"PUBLISH", "news", std::to_string(i)});
  });
  int answers = 0;
  int messages = 0;
  std::thread asker([&] {
    for (int i = 0; i < kRounds; ++i) s.send({"MGET", "a", "b", "c"});
  });
  while (answers < kRounds || messages < kRounds) {
    const wire::Reply reply = s.receive();
    if (reply.type == wire::Reply::Type::push) {
      ASSERT_EQ(TestClient::to_text(reply), "[message, news, " + std::to_string(messages) + "]");
      ++messages;
    } else {
      ASSERT_EQ(TestClient::to_text(reply), "[(nil), (nil), (nil)]");
      ++answers;
    }
  }
  publisher.join();
  asker.join();
}

TEST_F(SessionTest, ASubscriberThatDoesNotReadIsDropped) {
  config::Config config = plain_config();
  config.node.max_output_bytes = 1 << 20;
  start(config);
  TestClient s(address());
  TestClient p(address());
  EXPECT_EQ(s.text({"SUBSCRIBE", "flood"}), "[subscribe, flood, (int) 1]");
  const std::string message(64 << 10, 'm');
  // The kernel's buffers take some; then the limit counts. It ends when nobody is there any more.
  bool gone = false;
  for (int i = 0; i < 10'000 && !gone; ++i)
    gone = p.call({"PUBLISH", "flood", message}).integer == 0;
  EXPECT_TRUE(gone);
  EXPECT_THAT(instance_->metrics().prometheus(),
              HasSubstr("larder_clients_dropped_total{reason=\"slow_subscriber\"} 1"));
}

TEST_F(SessionTest, PasswordIsAskedForAsRedisDoes) {
  config::Config config = plain_config();
  config.node.requirepass = "s3";
  start(config);
  TestClient c(address());
  EXPECT_EQ(c.text({"GET", "a"}), "-NOAUTH Authentication required.");
  EXPECT_EQ(c.text({"PING"}), "-NOAUTH Authentication required.");
  EXPECT_THAT(c.text({"HELLO", "3"}), StartsWith("-NOAUTH HELLO must be called with"));
  EXPECT_THAT(c.text({"foo"}), StartsWith("-ERR unknown command 'foo'"));
  EXPECT_EQ(c.text({"AUTH", "x"}),
            "-WRONGPASS invalid username-password pair or user is disabled.");
  EXPECT_EQ(c.text({"AUTH", "s3"}), "OK");
  EXPECT_EQ(c.text({"GET", "a"}), "(nil)");
  EXPECT_EQ(c.text({"RESET"}), "RESET");
  EXPECT_EQ(c.text({"GET", "a"}), "-NOAUTH Authentication required.");
  EXPECT_THAT(c.text({"HELLO", "3", "AUTH", "default", "s3"}), HasSubstr("proto, (int) 3"));
  EXPECT_EQ(c.text({"GET", "a"}), "(nil)");
  // Large requests only after login.
  EXPECT_EQ(c.text({"SET", "big", std::string(100'000, 'v')}), "OK");
  TestClient stranger(address());
  stranger.send_raw("*1\r\n$20000\r\n");
  EXPECT_THAT(stranger.read_to_end(), StartsWith("-ERR Protocol error"));
}

TEST_F(SessionTest, TellsAboutItself) {
  TestClient c(address());
  const std::string info = c.text({"INFO"});
  for (const char* expected : {"# Server", "redis_version:7.4.0", "larder_version:", "loading:0",
                               "role:master", "cluster_enabled:0", "connected_clients:1"})
    EXPECT_THAT(info, HasSubstr(expected));
  EXPECT_EQ(c.text({"INFO", "cluster"}), "# Cluster\r\ncluster_enabled:0\r\n");
  EXPECT_THAT(c.text({"CONFIG", "GET", "maxmemory"}), "[maxmemory, 268435456]");
  EXPECT_EQ(c.text({"CONFIG", "GET", "save", "appendonly"}), "[appendonly, no, save, ]");
  EXPECT_THAT(c.text({"CONFIG", "SET", "maxmemory", "1"}), HasSubstr("TOML"));
  EXPECT_EQ(c.text({"CLUSTER", "KEYSLOT", "foo"}), "(int) 12182");
  EXPECT_EQ(c.text({"CLUSTER", "KEYSLOT", "{user1000}.following"}), "(int) 3443");
  EXPECT_THAT(c.text({"CLUSTER", "SLOTS"}), StartsWith("[[(int) 0, (int) 16383, [127.0.0.1, "));
  EXPECT_GT(c.call({"COMMAND", "COUNT"}).integer, 60);
  EXPECT_EQ(c.text({"COMMAND", "GETKEYS", "MSET", "a", "1", "b", "2"}), "[a, b]");
  EXPECT_THAT(c.text({"COMMAND", "INFO", "get", "nope"}),
              StartsWith("[[get, (int) 2, [readonly], (int) 1, (int) 1, (int) 1, "));
}

TEST_F(SessionTest, LeasesOverTheWire) {
  TestClient a(address());
  TestClient b(address());
  const wire::Reply ticket = a.call({"LARDER.LEASE", "k"});
  ASSERT_EQ(ticket.elements.size(), 2U);
  ASSERT_EQ(ticket.elements[0].text, "ticket");
  EXPECT_EQ(b.text({"LARDER.LEASE", "k"}), "[busy, (nil)]");
  b.send({"LARDER.LEASE", "k", "WAIT", "30000"});
  EXPECT_EQ(a.text({"LARDER.FILL", "k", ticket.elements[1].text, "v", "EX", "60"}), "(int) 1");
  EXPECT_EQ(TestClient::to_text(b.receive()), "[value, v]");
  EXPECT_EQ(a.text({"GET", "k"}), "v");
  const wire::Reply second = a.call({"LARDER.LEASE", "raced"});
  EXPECT_EQ(b.text({"SET", "raced", "newer"}), "OK");
  EXPECT_EQ(a.text({"LARDER.FILL", "raced", second.elements[1].text, "older"}), "(int) 0");
  EXPECT_EQ(a.text({"GET", "raced"}), "newer");
  EXPECT_THAT(a.text({"LARDER.GET", "k"}), HasSubstr("needs a declared key"));
  EXPECT_THAT(a.text({"LARDER.STOCK", "GET", "k"}), HasSubstr("not in this version"));
}

TEST_F(SessionTest, StopsWhileClientsAreConnected) {
  TestClient idle(address());
  TestClient waiting(address());
  EXPECT_EQ(idle.text({"PING"}), "PONG");
  waiting.call({"LARDER.LEASE", "k"});
  waiting.send({"LARDER.LEASE", "k", "WAIT", "60000"});
  instance_->request_stop();
  instance_->wait();
  EXPECT_EQ(idle.read_to_end(), "");
}

}  // namespace
}  // namespace larder::server
