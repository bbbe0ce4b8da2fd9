// Plain keys on a real Redis behind Larder: what comes back is what Redis says, byte for byte.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/redis/client_testing.h"
#include "server/instance.h"
#include "server/test_client.h"

namespace larder::server {
namespace {

using engine::redis::eventually;
using engine::redis::TestServer;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;
using testing::UnorderedElementsAre;
using Words = std::vector<std::string>;

class PassingTest : public testing::Test {
 protected:
  void SetUp() override {
    if (engine::real::find_redis().empty()) GTEST_SKIP() << "redis-server is missing";
    redis_.start();
    start();
  }
  void start(const std::function<void(config::Config&)>& change = {}) {
    instance_.reset();
    config::Config config;
    config.node.listen = {"127.0.0.1:0"};
    config.node.admin = "";
    config.node.threads = 2;
    config.near.capacity_bytes = 64 << 20;
    config.engine.url = "redis://" + redis_.address();
    config.plain.timeout_us = 10 * kSecond;
    if (change) change(config);
    auto started = Instance::start(config);
    ASSERT_TRUE(started) << to_string(started.error());
    instance_ = std::move(*started);
  }
  std::string address() const { return instance_->addresses().front(); }
  // Straight on the engine.
  std::string raw(const Words& words) const { return redis_.call(words); }
  // How often the engine has run a command.
  int calls(const std::string& command) const {
    const std::string stats = raw({"INFO", "commandstats"});
    const std::size_t at = stats.find("cmdstat_" + command + ":calls=");
    return at == std::string::npos ? 0 : std::stoi(stats.substr(at + command.size() + 15));
  }

  TestServer redis_;
  std::unique_ptr<Instance> instance_;
};

std::string raw_answer(TestClient& client, const Words& words) {
  const auto reply = client.call(words);
  return reply.text == "closed" ? "(closed)" : client.last_raw();
}

// Every line is sent to Larder, and to a Redis of its own.
TEST_F(PassingTest, AnswersAreTheEnginesOwn) {
  TestServer other;
  other.start();
  const std::vector<Words> script = {
      {"SET", "s", "v"},
      {"GET", "s"},
      {"GET", "none"},
      {"SET", "s", "w", "GET"},
      {"INCR", "n"},
      {"LPUSH", "l", "a", "b", "c"},
      {"LRANGE", "l", "0", "-1"},
      {"LPOP", "l", "2"},
      {"HSET", "h", "f", "1", "g", "2"},
      {"HGETALL", "h"},
      {"HINCRBY", "h", "f", "4"},
      {"SADD", "t", "x"},
      {"SMEMBERS", "t"},
      {"ZADD", "z", "1.5", "a", "2", "b"},
      {"ZRANGE", "z", "0", "-1", "WITHSCORES"},
      {"ZSCORE", "z", "a"},
      {"ZUNIONSTORE", "zz", "2", "z", "z"},
      {"ZUNION", "1", "zz", "WITHSCORES"},
      {"XADD", "x", "1-1", "f", "v"},
      {"XREAD", "STREAMS", "x", "0"},
      {"XINFO", "STREAM", "nox"},
      {"XRANGE", "x", "-", "+"},
      {"SORT", "l", "ALPHA"},
      {"SORT", "l", "ALPHA", "STORE", "l2"},
      {"EVAL", "return {KEYS[1], ARGV[1], redis.call('get', KEYS[1])}", "1", "s", "y"},
      {"EVAL", "return 1", "0"},
      {"EVALSHA", "0000000000000000000000000000000000000000", "0"},
      {"OBJECT", "ENCODING", "s"},
      {"OBJECT", "NOSUCH", "s"},
      {"TYPE", "z"},
      {"GEOADD", "g", "1", "1", "p"},
      {"GEORADIUS", "g", "1", "1", "10", "km"},
      {"PFADD", "p", "a"},
      {"PFCOUNT", "p"},
      {"BITCOUNT", "s"},
      {"COPY", "s", "s2"},
      {"RENAME", "s2", "s3"},
      {"EXISTS", "s", "s3", "none"},
      {"MGET", "s", "none", "n"},
      {"MSET", "a", "1", "b", "2"},
      {"DEL", "a", "b", "none"},
      {"EXPIRE", "s", "100"},
      {"TTL", "s"},
      {"PERSIST", "s"},
      {"LPUSH", "s", "x"},
      {"GET", "l"},
      {"GET"},
      {"LPUSH", "l"},
      {"SET", "s", "v", "NOSUCH"},
      {"BLPOP", "l", "1"},
      {"BLPOP", "empty", "0.01"},
      {"DUMP", "none"},
      {"PUBLISH", "c", "m"},
      {"SCRIPT", "EXISTS", "x"},
      {"DBSIZE"},
      {"COMMAND", "COUNT"},
      {"MEMORY", "USAGE", "none"},
      {"GETEX", "s", "PERSIST"},
      {"MSET", "a"},
      {"MSETNX", "a", "1", "s", "1"},
      {"SUBSTR", "s", "0", "1"},
      {"ECHO", "e"}};
  for (const int protocol : {2, 3}) {
    TestClient larder(address());
    TestClient real(other.address());
    raw({"FLUSHALL"});
    other.call({"FLUSHALL"});
    for (TestClient* client : {&larder, &real}) client->call({"HELLO", std::to_string(protocol)});
    for (const Words& words : script)
      EXPECT_EQ(raw_answer(larder, words), raw_answer(real, words))
          << testing::PrintToString(words) << " in protocol " << protocol;
  }
}

TEST_F(PassingTest, UnknownCommandsAreUnknown) {
  TestClient c(address());
  EXPECT_EQ(c.text({"NOSUCH", "a"}),
            "-ERR unknown command 'NOSUCH', with args beginning with: 'a' ");
  EXPECT_THAT(c.text({"PSYNC", "?", "-1"}), HasSubstr("does not pass"));
  EXPECT_EQ(c.text({"PING"}), "PONG");
}

TEST_F(PassingTest, APipelineKeepsItsOrder) {
  TestClient c(address());
  std::string all;
  constexpr int kCommands = 5'000;
  for (int i = 0; i < kCommands; ++i) {
    all += TestClient::encode({"RPUSH", "l", std::to_string(i)});
    if (i % 7 == 0) all += TestClient::encode({"PING", std::to_string(i)});
    if (i % 11 == 0) all += TestClient::encode({"LPUSH", "l"});
  }
  std::thread sender([&] { c.send_raw(all); });
  for (int i = 0; i < kCommands; ++i) {
    EXPECT_EQ(TestClient::to_text(c.receive()), "(int) " + std::to_string(i + 1));
    if (i % 7 == 0) EXPECT_EQ(TestClient::to_text(c.receive()), std::to_string(i));
    if (i % 11 == 0)
      EXPECT_EQ(TestClient::to_text(c.receive()),
                "-ERR wrong number of arguments for 'lpush' command");
  }
  sender.join();
}

// One after another they would be a read of the engine's each.
TEST_F(PassingTest, APipelineIsInTheAirTogether) {
  constexpr int kCommands = 500;
  TestClient c(address());
  EXPECT_EQ(c.text({"LLEN", "l"}), "(int) 0");
  const auto reads = [&] {
    const std::string stats = raw({"INFO", "stats"});
    constexpr std::string_view name = "total_reads_processed:";
    return std::stoi(stats.substr(stats.find(name) + name.size()));
  };
  const int before = reads();
  std::string all;
  for (int i = 0; i < kCommands; ++i) all += TestClient::encode({"RPUSH", "l", "x"});
  c.send_raw(all);
  for (int i = 0; i < kCommands; ++i)
    EXPECT_EQ(TestClient::to_text(c.receive()), "(int) " + std::to_string(i + 1));
  EXPECT_LT(reads() - before, kCommands / 2);
}

TEST(SentOrder, AWriteBehindOvertakesWhatMayShareItsKeys) {
  using Keys = std::vector<std::string>;
  const auto overtaken = [](const Keys& first, bool first_writes, const Keys& second,
                            bool second_writes) {
    SentOrder order;
    const std::vector<std::string_view> keys(first.begin(), first.end());
    const std::vector<std::string_view> later_keys(second.begin(), second.end());
    const auto place = order.add(keys, first_writes);
    const auto later = order.add(later_keys, second_writes);
    EXPECT_FALSE(order.overtaken(later));
    return order.overtaken(place);
  };
  for (const bool writes : {false, true}) {
    EXPECT_TRUE(overtaken({"a"}, writes, {"a"}, true));
    EXPECT_FALSE(overtaken({"a"}, writes, {"a"}, false));
    int others = 0;  // the hash has another seed in each process
    for (int i = 0; i < 100; ++i)
      others += overtaken({"a"}, writes, {"b" + std::to_string(i)}, true);
    EXPECT_LT(others, 50);
    EXPECT_TRUE(overtaken({"a"}, writes, {"b", "c"}, true));
    EXPECT_TRUE(overtaken({"a", "b"}, writes, {"c"}, true));
    EXPECT_TRUE(overtaken({}, writes, {"a"}, true));
    EXPECT_FALSE(overtaken({}, writes, {"a", "b"}, false));
  }
}

// The engine refuses for a moment. What a later write overtook is not sent again.
TEST_F(PassingTest, APipelineKeepsItsOrderWhileTheEngineRefuses) {
  raw({"CONFIG", "SET", "replica-serve-stale-data", "no"});
  raw({"REPLICAOF", "127.0.0.1", std::to_string(engine::redis::free_port())});
  TestClient c(address());
  c.send_raw(TestClient::encode({"GET", "a"}) + TestClient::encode({"SET", "a", "1"}) +
             TestClient::encode({"GET", "b"}));
  const auto refused = [&](const std::string& command, int wanted) {
    const std::string stats = raw({"INFO", "commandstats"});
    const std::size_t line = stats.find("cmdstat_" + command + ":");
    if (line == std::string::npos) return false;
    constexpr std::string_view name = "rejected_calls=";
    return std::stoi(stats.substr(stats.find(name, line) + name.size())) >= wanted;
  };
  ASSERT_TRUE(eventually([&] { return refused("get", 2) && refused("set", 1); }));
  raw({"REPLICAOF", "NO", "ONE"});
  EXPECT_THAT(TestClient::to_text(c.receive()), StartsWith("-MASTERDOWN"));
  EXPECT_THAT(TestClient::to_text(c.receive()), StartsWith("-READONLY"));
  EXPECT_EQ(TestClient::to_text(c.receive()), "(nil)");
}

TEST_F(PassingTest, RepliesThatAreNotWanted) {
  TestClient c(address());
  c.send({"CLIENT", "REPLY", "OFF"});
  c.send({"SET", "k", "1"});
  c.send({"CLIENT", "REPLY", "ON"});
  EXPECT_EQ(TestClient::to_text(c.receive()), "OK");
  EXPECT_EQ(c.text({"GET", "k"}), "1");
}

TEST_F(PassingTest, Transactions) {
  TestClient c(address());
  EXPECT_EQ(c.text({"MULTI"}), "OK");
  EXPECT_EQ(c.text({"SET", "k", "1"}), "QUEUED");
  EXPECT_EQ(c.text({"LPUSH", "l", "a"}), "QUEUED");
  EXPECT_EQ(c.text({"LPUSH", "k", "a"}), "QUEUED");
  EXPECT_EQ(raw({"GET", "k"}), "$-1\r\n");
  EXPECT_EQ(c.text({"EXEC"}),
            "[OK, (int) 1, -WRONGTYPE Operation against a key holding the wrong kind of value]");
  EXPECT_EQ(c.text({"MULTI"}), "OK");
  EXPECT_EQ(c.text({"LPUSH", "l"}), "-ERR wrong number of arguments for 'lpush' command");
  EXPECT_THAT(c.text({"EXEC"}), StartsWith("-EXECABORT"));
  EXPECT_EQ(c.text({"MULTI"}), "OK");
  EXPECT_EQ(c.text({"EXEC"}), "[]");

  EXPECT_EQ(c.text({"WATCH", "k"}), "OK");
  raw({"SET", "k", "foreign"});
  c.text({"MULTI"});
  c.text({"SET", "k", "mine"});
  EXPECT_EQ(c.text({"EXEC"}), "(nil)");
  EXPECT_EQ(c.text({"GET", "k"}), "foreign");
  // A watch is over after EXEC, UNWATCH and DISCARD.
  for (const Words& end : {Words{"UNWATCH"}, Words{"DISCARD"}, Words{"EXEC"}}) {
    EXPECT_EQ(c.text({"WATCH", "k"}), "OK");
    if (end[0] != "UNWATCH") c.text({"MULTI"});
    c.text(end);
    raw({"SET", "k", "foreign"});
    c.text({"MULTI"});
    c.text({"SET", "k", end[0]});
    EXPECT_EQ(c.text({"EXEC"}), "[OK]");
  }
  EXPECT_TRUE(eventually([&] {
    return instance_->metrics().prometheus().find("larder_engine_dedicated_connections 0") !=
           std::string::npos;
  })) << "a connection was not given back";
}

TEST_F(PassingTest, WaitingCommandsDoNotHoldUpOthers) {
  TestClient waiter(address());
  TestClient c(address());
  waiter.send({"BLPOP", "q", "0"});
  EXPECT_TRUE(eventually(
      [&] { return raw({"INFO", "clients"}).find("blocked_clients:1") != std::string::npos; }));
  for (int i = 0; i < 10; ++i) EXPECT_EQ(c.text({"SET", "k", "v"}), "OK");
  EXPECT_EQ(c.text({"RPUSH", "q", "job"}), "(int) 1");
  EXPECT_EQ(TestClient::to_text(waiter.receive()), "[q, job]");
  {
    TestClient leaves(address());
    leaves.send({"BLPOP", "q", "0"});
    EXPECT_TRUE(eventually(
        [&] { return raw({"INFO", "clients"}).find("blocked_clients:1") != std::string::npos; }));
  }
  EXPECT_TRUE(eventually([&] {
    return raw({"INFO", "clients"}).find("blocked_clients:0") != std::string::npos;
  })) << "a client that has left still waits on the engine";
  EXPECT_EQ(c.text({"XADD", "x", "1-1", "f", "v"}), "1-1");
  EXPECT_EQ(c.text({"XREAD", "BLOCK", "10", "STREAMS", "x", "$"}), "(nil)");
}

TEST_F(PassingTest, ChannelsAreTheEngines) {
  for (const char* protocol : {"2", "3"}) {
    TestClient c(address());
    c.call({"HELLO", protocol});
    EXPECT_EQ(c.text({"SUBSCRIBE", "a", "b"}), "[subscribe, a, (int) 1]");
    EXPECT_EQ(TestClient::to_text(c.receive()), "[subscribe, b, (int) 2]");
    EXPECT_EQ(c.text({"PSUBSCRIBE", "p*"}), "[psubscribe, p*, (int) 3]");
    EXPECT_EQ(raw({"PUBLISH", "a", "one"}), ":1\r\n");
    EXPECT_EQ(TestClient::to_text(c.receive()), "[message, a, one]");
    TestClient publisher(address());
    EXPECT_EQ(publisher.text({"PUBLISH", "px", "two"}), "(int) 1");
    EXPECT_EQ(TestClient::to_text(c.receive()), "[pmessage, p*, px, two]");
    EXPECT_THAT(publisher.text({"PUBSUB", "CHANNELS"}), HasSubstr("a"));
    if (*protocol == '2') {
      EXPECT_THAT(c.text({"GET", "k"}), HasSubstr("only (P|S)SUBSCRIBE"));
      EXPECT_EQ(c.text({"PING"}), "[pong, ]");
    } else {
      EXPECT_EQ(c.text({"GET", "k"}), "(nil)");
    }
    EXPECT_THAT(c.text({"UNSUBSCRIBE"}), testing::MatchesRegex(".unsubscribe, ., .int. 2."));
    EXPECT_THAT(TestClient::to_text(c.receive()), StartsWith("[unsubscribe, "));
    EXPECT_EQ(c.text({"PUNSUBSCRIBE", "p*"}), "[punsubscribe, p*, (int) 0]");
    EXPECT_EQ(c.text({"UNSUBSCRIBE"}), "[unsubscribe, (nil), (int) 0]");
    EXPECT_EQ(c.text({"GET", "k"}), "(nil)");
  }
  TestClient c(address());
  EXPECT_EQ(c.text({"SUBSCRIBE", "a"}), "[subscribe, a, (int) 1]");
  redis_.kill();
  EXPECT_EQ(c.read_to_end(), "") << "who may miss messages is cut off";
}

TEST_F(PassingTest, MonitorShowsTheEngine) {
  TestClient c(address());
  EXPECT_EQ(c.text({"MONITOR"}), "OK");
  raw({"SET", "seen", "1"});
  std::string line;
  while (line.find("\"seen\"") == std::string::npos && line != "-closed")
    line = TestClient::to_text(c.receive());
  EXPECT_THAT(line, HasSubstr("\"SET\" \"seen\" \"1\""));
}

TEST_F(PassingTest, AnotherDatabase) {
  TestClient c(address());
  TestClient other(address());
  EXPECT_EQ(c.text({"SET", "k", "zero"}), "OK");
  EXPECT_EQ(c.text({"SELECT", "99"}), "-ERR DB index is out of range");
  EXPECT_EQ(c.text({"SELECT", "1"}), "OK");
  EXPECT_EQ(c.text({"GET", "k"}), "(nil)");
  EXPECT_EQ(c.text({"SET", "k", "one"}), "OK");
  EXPECT_EQ(other.text({"GET", "k"}), "zero");
  c.text({"MULTI"});
  c.text({"GET", "k"});
  EXPECT_EQ(c.text({"EXEC"}), "[one]");
  EXPECT_EQ(c.text({"GET", "k"}), "one");
  EXPECT_EQ(c.text({"WATCH", "k"}), "OK");
  c.text({"MULTI"});
  EXPECT_EQ(c.text({"DISCARD"}), "OK");
  EXPECT_EQ(c.text({"SET", "k", "two"}), "OK");
  c.text({"MULTI"});
  c.text({"GET", "k"});
  EXPECT_EQ(c.text({"EXEC"}), "[two]") << "DISCARD has ended the watch";
  EXPECT_THAT(c.text({"HELLO", "3"}), HasSubstr("cannot change"));
  EXPECT_EQ(c.text({"FLUSHDB"}), "OK");
  EXPECT_EQ(c.text({"GET", "k"}), "(nil)");
  EXPECT_EQ(c.text({"SELECT", "0"}), "OK");
  EXPECT_EQ(c.text({"GET", "k"}), "zero");
}

TEST_F(PassingTest, LardersOwnKeysAreHidden) {
  const std::string own = "larder:{0.7}:s:shop";
  raw({"SET", own, "state"});
  TestClient c(address());
  EXPECT_EQ(c.text({"MSET", "a", "1", "b", "2"}), "OK");
  EXPECT_THAT(c.text({"GET", own}), HasSubstr("Larder's own"));
  EXPECT_THAT(c.text({"DEL", "a", own}), HasSubstr("Larder's own"));
  EXPECT_THAT(c.text({"EVAL", "return 1", "1", own}), HasSubstr("Larder's own"));
  c.text({"MULTI"});
  EXPECT_THAT(c.text({"GET", own}), HasSubstr("Larder's own"));
  EXPECT_THAT(c.text({"EXEC"}), StartsWith("-EXECABORT"));
  const auto keys = c.call({"KEYS", "*"});
  std::vector<std::string> names;
  for (const auto& key : keys.elements) names.push_back(key.text);
  EXPECT_THAT(names, UnorderedElementsAre("a", "b"));
  names.clear();
  std::string cursor = "0";
  do {
    const auto page = c.call({"SCAN", cursor, "COUNT", "1"});
    cursor = page.elements.at(0).text;
    for (const auto& key : page.elements.at(1).elements) names.push_back(key.text);
  } while (cursor != "0");
  EXPECT_THAT(names, UnorderedElementsAre("a", "b"));
  for (int i = 0; i < 20; ++i) EXPECT_THAT(c.text({"RANDOMKEY"}), Not(StartsWith("larder")));
  EXPECT_EQ(c.text({"SCAN", "x"}), "-ERR invalid cursor");
  for (const std::string command : {"SHUTDOWN", "FAILOVER"})
    EXPECT_THAT(c.text({command}), HasSubstr("does not pass through Larder")) << command;
  EXPECT_EQ(c.text({"FLUSHALL"}), "OK");
  EXPECT_EQ(raw({"KEYS", "*"}), "*1\r\n$" + std::to_string(own.size()) + "\r\n" + own + "\r\n");
  EXPECT_EQ(c.text({"RANDOMKEY"}), "(nil)");
}

TEST_F(PassingTest, AnEngineThatIsDownIsAnError) {
  TestClient c(address());
  EXPECT_EQ(c.text({"SET", "k", "v"}), "OK");
  redis_.kill();
  EXPECT_THAT(c.text({"GET", "k"}), StartsWith("-LARDER_ENGINE_DOWN"));
  EXPECT_THAT(c.text({"LPUSH", "l", "x"}), StartsWith("-LARDER_"));
  EXPECT_EQ(c.text({"PING"}), "PONG");
  redis_.start();
  EXPECT_TRUE(eventually([&] { return c.text({"SET", "k", "v"}) == "OK"; }));
}

TEST_F(PassingTest, ClientsThatTrackAreToldOfForeignChanges) {
  TestClient a(address());
  TestClient b(address());
  a.call({"HELLO", "3"});
  EXPECT_EQ(a.text({"CLIENT", "TRACKING", "ON"}), "OK");
  EXPECT_EQ(a.text({"GET", "k"}), "(nil)");
  EXPECT_EQ(a.text({"HGETALL", "h"}), "[]");
  raw({"SET", "k", "straight"});
  EXPECT_EQ(TestClient::to_text(a.receive()), "[invalidate, [k]]");
  EXPECT_EQ(b.text({"HSET", "h", "f", "1"}), "(int) 1");
  EXPECT_EQ(TestClient::to_text(a.receive()), "[invalidate, [h]]");
  raw({"SET", "k", "not read since"});
  EXPECT_EQ(a.text({"GET", "k"}), "not read since");
  raw({"PEXPIRE", "k", "20"});
  EXPECT_EQ(TestClient::to_text(a.receive()), "[invalidate, [k]]");
  EXPECT_EQ(a.text({"GET", "other"}), "(nil)");
  raw({"FLUSHALL"});
  std::string last;
  while (last != "[invalidate, (nil)]" && last != "-closed")
    last = TestClient::to_text(a.receive());
  EXPECT_EQ(last, "[invalidate, (nil)]");

  TestClient c(address());
  TestClient to(address());
  const std::string id = std::to_string(to.call({"CLIENT", "ID"}).integer);
  EXPECT_EQ(to.text({"SUBSCRIBE", "__redis__:invalidate"}),
            "[subscribe, __redis__:invalidate, (int) 1]");
  EXPECT_EQ(c.text({"CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "s:", "REDIRECT", id}), "OK");
  raw({"SET", "s:1", "x"});
  EXPECT_EQ(TestClient::to_text(to.receive()), "[message, __redis__:invalidate, [s:1]]");
  // While changes may be missed nobody is to rely on what he holds.
  a.text({"GET", "k"});
  redis_.kill();
  last.clear();
  while (last != "[invalidate, (nil)]" && last != "-closed")
    last = TestClient::to_text(a.receive());
  EXPECT_EQ(last, "[invalidate, (nil)]");
}

class NearPlainTest : public PassingTest {
 protected:
  void SetUp() override {
    PassingTest::SetUp();
    if (IsSkipped()) return;
    start([](config::Config& config) {
      config.plain.near = {"session:", "s:"};
      config.plain.near_bound_us = 300 * kMillisecond;
    });
    ASSERT_TRUE(near_up());
  }
  bool near_up(bool up = true) {
    return eventually([&] {
      return instance_->metrics().prometheus().find(
                 "larder_plain_near_up " + std::string(up ? "1" : "0")) != std::string::npos;
    });
  }
};

TEST_F(NearPlainTest, AHitDoesNotReachTheEngine) {
  TestClient c(address());
  raw({"MSET", "session:1", "one", "s:2", "two", "other", "x"});
  EXPECT_EQ(c.text({"GET", "session:1"}), "one");
  EXPECT_EQ(c.text({"MGET", "session:1", "s:2"}), "[one, two]");
  const int gets = calls("get");
  const int mgets = calls("mget");
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(c.text({"GET", "session:1"}), "one");
    EXPECT_EQ(c.text({"MGET", "s:2", "session:1"}), "[two, one]");
  }
  EXPECT_EQ(calls("get"), gets);
  EXPECT_EQ(calls("mget"), mgets);
  EXPECT_EQ(c.text({"GET", "other"}), "x");
  EXPECT_EQ(c.text({"GET", "other"}), "x");
  EXPECT_EQ(calls("get"), gets + 2);
  // In a pipeline, too, and in its place.
  c.send_raw(TestClient::encode({"GET", "other"}) + TestClient::encode({"GET", "session:1"}) +
             TestClient::encode({"GET", "other"}) + TestClient::encode({"GET", "s:2"}));
  for (const char* value : {"x", "one", "x", "two"})
    EXPECT_EQ(TestClient::to_text(c.receive()), value);
  EXPECT_EQ(calls("get"), gets + 4);
}

TEST_F(NearPlainTest, ForeignChangesAreSeen) {
  TestClient c(address());
  for (int i = 0; i < 20; ++i) {
    const std::string value = std::to_string(i);
    raw({"SET", "s:k", value});
    EXPECT_TRUE(eventually([&] { return c.text({"GET", "s:k"}) == value; }));
    EXPECT_EQ(c.text({"GET", "s:k"}), value);
  }
  raw({"DEL", "s:k"});
  EXPECT_TRUE(eventually([&] { return c.text({"GET", "s:k"}) == "(nil)"; }));
  raw({"SET", "s:k", "v"});
  EXPECT_TRUE(eventually([&] { return c.text({"GET", "s:k"}) == "v"; }));
  raw({"FLUSHALL"});
  EXPECT_TRUE(eventually([&] { return c.text({"GET", "s:k"}) == "(nil)"; }));
}

TEST_F(NearPlainTest, OwnWritesAreReadAtOnce) {
  TestClient c(address());
  for (int i = 0; i < 200; ++i) {
    const std::string value = std::to_string(i);
    EXPECT_EQ(c.text({"SET", "s:k", value}), "OK");
    EXPECT_EQ(c.text({"GET", "s:k"}), value);
    EXPECT_EQ(c.text({"EVAL", "return redis.call('append', KEYS[1], '!')", "1", "s:k"}),
              "(int) " + std::to_string(value.size() + 1));
    EXPECT_EQ(c.text({"GET", "s:k"}), value + "!");
    c.text({"MULTI"});
    c.text({"SET", "s:k", "m" + value});
    c.text({"EXEC"});
    EXPECT_EQ(c.text({"GET", "s:k"}), "m" + value);
  }
  EXPECT_EQ(c.text({"FLUSHALL"}), "OK");
  EXPECT_EQ(c.text({"GET", "s:k"}), "(nil)");
}

TEST_F(NearPlainTest, LivesAreTheEngines) {
  TestClient c(address());
  raw({"SET", "s:k", "v", "PX", "150"});
  EXPECT_EQ(c.text({"GET", "s:k"}), "v");
  EXPECT_TRUE(eventually([&] { return c.text({"GET", "s:k"}) == "(nil)"; }));
}

// An engine that is silent cannot tell: after the bound nothing is answered from memory.
TEST_F(NearPlainTest, NothingIsHeldWhileTheEngineIsSilent) {
  start([](config::Config& config) {
    config.plain.near = {"s:"};
    config.plain.near_bound_us = 300 * kMillisecond;
    config.plain.timeout_us = 200 * kMillisecond;
  });
  ASSERT_TRUE(near_up());
  TestClient c(address());
  raw({"SET", "s:k", "old"});
  EXPECT_TRUE(eventually([&] { return c.text({"GET", "s:k"}) == "old"; }));
  redis_.freeze();
  EXPECT_TRUE(near_up(false));
  EXPECT_THAT(c.text({"GET", "s:k"}), StartsWith("-LARDER_"));
  redis_.thaw();
  EXPECT_TRUE(near_up());
  EXPECT_TRUE(eventually([&] { return c.text({"GET", "s:k"}) == "old"; }));
  // A change while the connection is lost: killed on the engine's side, and written in one step.
  for (int i = 0; i < 10; ++i) {
    raw({"EVAL", "redis.call('set', KEYS[1], ARGV[1])", "1", "s:k", "a" + std::to_string(i)});
    raw({"CLIENT", "KILL", "TYPE", "normal"});
    raw({"SET", "s:k", "b" + std::to_string(i)});
    EXPECT_TRUE(eventually([&] { return c.text({"GET", "s:k"}) == "b" + std::to_string(i); }));
  }
}

// Many readers beside foreign writers: at the end nobody holds an old value.
TEST_F(NearPlainTest, NobodyHoldsAnOldValueUnderLoad) {
  constexpr int kWrites = 2'000;
  std::atomic<bool> done = false;
  std::vector<std::jthread> readers;
  for (int i = 0; i < 3; ++i)
    readers.emplace_back([&] {
      TestClient c(address());
      while (!done) {
        const auto got = c.call({"GET", "s:n"});
        EXPECT_NE(got.type, TestClient::Reply::Type::error) << got.text;
      }
    });
  TestClient writer(redis_.address());
  for (int i = 1; i <= kWrites; ++i) writer.call({"SET", "s:n", std::to_string(i)});
  TestClient c(address());
  EXPECT_TRUE(eventually([&] { return c.text({"GET", "s:n"}) == std::to_string(kWrites); }));
  done = true;
  readers.clear();
  EXPECT_EQ(c.text({"GET", "s:n"}), std::to_string(kWrites));
}

}  // namespace
}  // namespace larder::server
