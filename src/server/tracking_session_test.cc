// CLIENT TRACKING over real sockets: the same scripts against a real redis-server give the same
// bytes, answer for answer and push for push.
#include <gtest/gtest.h>

#include <map>

#include "engine/redis_process.h"
#include "server/instance.h"
#include "server/test_client.h"

namespace larder::server {
namespace {

using engine::real::Words;

// One step of a script: a client's command, or, without one, a look at what was pushed to it.
struct Step {
  std::string client;
  Words command;
};

class Wire {
 public:
  virtual ~Wire() = default;
  virtual std::string call(const Words& words) = 0;
  virtual std::string receive() = 0;
};

class LarderWire final : public Wire {
 public:
  explicit LarderWire(const std::string& address) : client_(address) {}
  std::string call(const Words& words) override {
    client_.send(words);
    return receive();
  }
  std::string receive() override {
    const auto reply = client_.receive();
    return reply.text == "closed" ? "(closed)" : client_.last_raw();
  }

 private:
  TestClient client_;
};

class RedisWire final : public Wire {
 public:
  explicit RedisWire(const engine::real::RedisServer& server) : connection_(server) {}
  std::string call(const Words& words) override { return connection_.call(words); }
  std::string receive() override { return connection_.receive(); }

 private:
  engine::real::Connection connection_;
};

// Runs a script; each line of the result is who got what. Clients speak RESP3 unless their name
// begins with "2". "$id:b" in a command is the id of client b.
template <class Connect>
std::vector<std::string> run_script(const std::vector<Step>& script, const Connect& connect) {
  std::map<std::string, std::unique_ptr<Wire>> clients;
  std::map<std::string, std::string> ids;
  const auto client = [&](const std::string& name) -> Wire& {
    auto& wire = clients[name];
    if (wire != nullptr) return *wire;
    wire = connect();
    ids[name] = wire->call({"CLIENT", "ID"}).substr(1);
    ids[name].resize(ids[name].find('\r'));
    if (!name.starts_with('2')) wire->call({"HELLO", "3"});
    return *wire;
  };
  std::vector<std::string> lines;
  for (const Step& step : script) client(step.client);
  for (const Step& step : script) {
    Wire& wire = client(step.client);
    if (step.command == Words{"leave"}) {
      clients.erase(step.client);
      continue;
    }
    if (!step.command.empty()) {
      Words command = step.command;
      for (std::string& word : command)
        if (word.starts_with("$id:")) word = ids[word.substr(4)];
      std::string said;
      for (const std::string& word : step.command) said += " " + word;
      lines.push_back(step.client + said + " -> " + wire.call(command));
      continue;
    }
    std::string got = wire.call({"PING"});
    while (!got.starts_with("+PONG") && !got.starts_with("*2\r\n$4\r\npong") &&
           !got.starts_with("(closed)")) {
      lines.push_back(step.client + " is pushed " + got);
      got = wire.receive();
    }
    lines.push_back(step.client + " has no more");
  }
  return lines;
}

class TrackingSessionTest : public engine::real::WithRedis<testing::Test> {
 protected:
  void SetUp() override {
    WithRedis::SetUp();
    start();
  }
  void start(std::uint64_t max_tracked = 1'000'000, std::uint64_t max_output = 32 << 20) {
    config::Config config;
    config.node.listen = {"127.0.0.1:0"};
    config.node.admin = "";
    config.node.threads = 2;
    config.node.max_tracked_keys = max_tracked;
    config.node.max_output_bytes = max_output;
    config.near.capacity_bytes = 64 << 20;
    auto started = Instance::start(config);
    ASSERT_TRUE(started) << to_string(started.error());
    instance_ = std::move(*started);
  }
  std::string address() const { return instance_->addresses().front(); }
  void same(const std::vector<Step>& script) {
    if (server_ == nullptr) return;
    const auto of_redis = run_script(script, [] { return std::make_unique<RedisWire>(*server_); });
    const auto of_larder =
        run_script(script, [this] { return std::make_unique<LarderWire>(address()); });
    EXPECT_EQ(of_larder, of_redis);
  }

  std::unique_ptr<Instance> instance_;
};

TEST_F(TrackingSessionTest, ErrorsAreRedisErrors) {
  same({{"a", {"CLIENT", "TRACKING"}},
        {"a", {"CLIENT", "TRACKING", "MAYBE"}},
        {"a", {"CLIENT", "TRACKING", "ON", "WHAT"}},
        {"a", {"CLIENT", "TRACKING", "ON", "PREFIX"}},
        {"a", {"CLIENT", "TRACKING", "ON", "PREFIX", "a"}},
        {"a", {"CLIENT", "TRACKING", "ON", "REDIRECT"}},
        {"a", {"CLIENT", "TRACKING", "ON", "REDIRECT", "x"}},
        {"a", {"CLIENT", "TRACKING", "ON", "REDIRECT", "999999"}},
        {"b", {"PING"}},
        {"a", {"CLIENT", "TRACKING", "ON", "REDIRECT", "$id:b", "REDIRECT", "$id:b"}},
        {"a", {"CLIENT", "TRACKING", "ON", "BCAST", "OPTIN"}},
        {"a", {"CLIENT", "TRACKING", "ON", "OPTIN", "OPTOUT"}},
        {"a", {"CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "ab", "PREFIX", "abc"}},
        {"a", {"CLIENT", "CACHING", "YES"}},
        {"a", {"CLIENT", "CACHING"}},
        {"a", {"CLIENT", "GETREDIR"}},
        {"a", {"CLIENT", "TRACKINGINFO"}},
        {"a", {"CLIENT", "TRACKING", "ON", "OPTIN"}},
        {"a", {"CLIENT", "CACHING", "MAYBE"}},
        {"a", {"CLIENT", "CACHING", "NO"}},
        {"a", {"CLIENT", "CACHING", "YES"}},
        {"a", {"CLIENT", "TRACKINGINFO"}},
        {"a", {"CLIENT", "TRACKING", "ON", "OPTOUT"}},
        {"a", {"CLIENT", "TRACKING", "ON", "BCAST"}},
        {"a", {"CLIENT", "GETREDIR"}},
        {"a", {"CLIENT", "TRACKING", "OFF"}},
        {"a", {"CLIENT", "TRACKING", "OFF"}},
        {"a", {"CLIENT", "TRACKING", "ON", "OPTOUT", "NOLOOP"}},
        {"a", {"CLIENT", "CACHING", "YES"}},
        {"a", {"CLIENT", "CACHING", "NO"}},
        {"a", {"CLIENT", "TRACKINGINFO"}},
        {"a", {"CLIENT", "TRACKING", "OFF"}},
        {"a", {"CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "ab", "PREFIX", "x"}},
        {"a", {"CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "a"}},
        {"a", {"CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "abc"}},
        {"a", {"CLIENT", "TRACKING", "ON"}},
        {"a", {"RESET"}},
        {"a", {"CLIENT", "TRACKINGINFO"}}});
}

TEST_F(TrackingSessionTest, WhoHasReadIsTold) {
  same({{"a", {"CLIENT", "TRACKING", "ON"}},
        {"b", {"MSET", "x", "1", "y", "2", "z", "3"}},
        {"a", {"GET", "x"}},
        {"a", {"MGET", "y", "none"}},
        {"b", {"SET", "x", "2"}},
        {"a", {}},
        {"b", {"SET", "x", "3"}},  // it has not read it since
        {"b", {"SET", "z", "3"}},  // nor ever
        {"a", {}},
        {"b", {"DEL", "y", "nobody"}},
        {"b", {"SET", "none", "now"}},
        {"a", {}},
        {"a", {"STRLEN", "x"}},
        {"b", {"APPEND", "x", "!"}},
        {"a", {}},
        {"a", {"EXISTS", "x"}},
        {"b", {"EXPIRE", "x", "100"}},
        {"a", {}},
        {"a", {"GET", "x"}},
        {"b", {"SETNX", "x", "1"}},
        {"b", {"PERSIST", "nobody"}},
        {"b", {"GETEX", "x"}},
        {"b", {"INCR", "x"}},
        {"a", {}},
        {"b", {"RENAME", "x", "w"}},
        {"a", {}},
        {"a", {"GET", "w"}},
        {"b", {"GETDEL", "w"}},
        {"a", {}},
        {"a", {"GET", "z"}},
        {"a", {"CLIENT", "TRACKING", "OFF"}},
        {"b", {"SET", "z", "4"}},
        {"a", {}}});
}

TEST_F(TrackingSessionTest, OwnWritesAreToldBehindTheirAnswer) {
  same({{"a", {"CLIENT", "TRACKING", "ON"}},
        {"a", {"GET", "x"}},
        {"a", {"SET", "x", "1"}},
        {"a", {}},
        {"a", {"MGET", "x", "y"}},
        {"a", {"MSET", "x", "1"}},
        {"a", {}},
        {"a", {"FLUSHALL"}},
        {"a", {}},
        {"a", {"CLIENT", "TRACKING", "OFF"}},
        {"a", {"CLIENT", "TRACKING", "ON", "NOLOOP"}},
        {"a", {"GET", "x"}},
        {"a", {"SET", "x", "1"}},
        {"a", {}},
        {"a", {"GET", "x"}},
        {"b", {"SET", "x", "2"}},
        {"a", {}}});
}

TEST_F(TrackingSessionTest, FlushesAreTold) {
  same({{"a", {"CLIENT", "TRACKING", "ON"}},
        {"c", {"CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "p"}},
        {"a", {"GET", "x"}},
        {"b", {"FLUSHDB"}},
        {"a", {}},
        {"c", {}},
        {"b", {"SET", "x", "1"}},
        {"a", {}}});
}

TEST_F(TrackingSessionTest, BroadcastsByPrefix) {
  same({{"a", {"CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "user:", "PREFIX", "s:"}},
        {"c", {"CLIENT", "TRACKING", "ON", "BCAST", "NOLOOP"}},
        {"a", {"CLIENT", "TRACKINGINFO"}},
        {"b", {"SET", "user:1", "1"}},
        {"a", {}},
        {"c", {}},
        {"b", {"SET", "other", "1"}},
        {"a", {}},
        {"c", {}},
        {"c", {"SET", "user:2", "1"}},
        {"c", {}},
        {"a", {}},
        {"a", {"SET", "s:1", "own"}},
        {"a", {}}});
}

TEST_F(TrackingSessionTest, OptinAndOptout) {
  same({{"a", {"CLIENT", "TRACKING", "ON", "OPTIN"}},
        {"a", {"GET", "x"}},
        {"a", {"CLIENT", "CACHING", "YES"}},
        {"a", {"CLIENT", "ID", "x"}},
        {"a", {"GET", "y"}},
        {"a", {"GET", "z"}},
        {"b", {"MSET", "x", "1", "y", "1", "z", "1"}},
        {"a", {}},
        {"a", {"CLIENT", "CACHING", "YES"}},
        {"a", {"MULTI"}},
        {"a", {"GET", "x"}},
        {"a", {"GET", "y"}},
        {"a", {"EXEC"}},
        {"a", {"GET", "z"}},
        {"b", {"SET", "x", "1"}},
        {"b", {"SET", "y", "1"}},
        {"b", {"SET", "z", "1"}},
        {"a", {}},
        {"a", {"CLIENT", "TRACKING", "OFF"}},
        {"a", {"CLIENT", "TRACKING", "ON", "OPTOUT"}},
        {"a", {"CLIENT", "CACHING", "NO"}},
        {"a", {"GET", "x"}},
        {"a", {"GET", "y"}},
        {"b", {"SET", "x", "1"}},
        {"b", {"SET", "y", "1"}},
        {"a", {}}});
}

TEST_F(TrackingSessionTest, TransactionsReadAndWrite) {
  same({{"a", {"CLIENT", "TRACKING", "ON"}},
        {"a", {"MULTI"}},
        {"a", {"GET", "x"}},
        {"a", {"EXEC"}},
        {"b", {"MULTI"}},
        {"b", {"SET", "x", "1"}},
        {"a", {}},
        {"b", {"EXEC"}},
        {"a", {}},
        {"a", {"GET", "x"}},
        {"b", {"WATCH", "w"}},
        {"c", {"SET", "w", "1"}},
        {"b", {"MULTI"}},
        {"b", {"SET", "x", "2"}},
        {"b", {"EXEC"}},
        {"a", {}}});
}

TEST_F(TrackingSessionTest, Resp2IsToldThroughAnotherConnection) {
  same({{"2b", {"SUBSCRIBE", "__redis__:invalidate"}},
        {"2a", {"CLIENT", "TRACKING", "ON", "REDIRECT", "$id:2b"}},
        {"2a", {"GET", "x"}},
        {"c", {"SET", "x", "1"}},
        {"2b", {}},
        {"2a", {}},
        {"2a", {"GET", "x"}},
        {"2a", {"SET", "x", "2"}},
        {"2a", {}},
        {"2b", {}},
        // To a client that does not listen, nothing can be sent.
        {"2b", {"UNSUBSCRIBE"}},
        {"2a", {"GET", "x"}},
        {"c", {"SET", "x", "3"}},
        {"2b", {}},
        // Nor to one that cannot hear at all.
        {"2d", {"CLIENT", "TRACKING", "ON"}},
        {"2d", {"GET", "x"}},
        {"c", {"SET", "x", "4"}},
        {"2d", {}}});
}

TEST_F(TrackingSessionTest, Resp3Redirects) {
  same({{"a", {"CLIENT", "TRACKING", "ON", "REDIRECT", "$id:b"}},
        {"a", {"GET", "x"}},
        {"c", {"SET", "x", "1"}},
        {"b", {}},
        {"a", {}}});
}

TEST_F(TrackingSessionTest, ARedirectionThatIsGoneIsTold) {
  const auto script = [&](Wire& a, std::unique_ptr<Wire> b, Wire& c) {
    b->call({"HELLO", "3"});
    a.call({"HELLO", "3"});
    std::string id = b->call({"CLIENT", "ID"}).substr(1);
    id.resize(id.find('\r'));
    EXPECT_EQ(a.call({"CLIENT", "TRACKING", "ON", "REDIRECT", id}), "+OK\r\n");
    EXPECT_EQ(a.call({"CLIENT", "GETREDIR"}), ":" + id + "\r\n");
    b.reset();
    // Until the server has noticed.
    while (c.call({"CLIENT", "LIST", "ID", id}).size() > 12) {
    }
    a.call({"GET", "x"});
    c.call({"SET", "x", "1"});
    EXPECT_EQ(a.call({"PING"}), ">2\r\n$21\r\ntracking-redir-broken\r\n:" + id + "\r\n");
    EXPECT_EQ(a.receive(), "+PONG\r\n");
    return a.call({"CLIENT", "TRACKINGINFO"}).substr(0, 80);
  };
  LarderWire a(address());
  LarderWire c(address());
  const std::string info = script(a, std::make_unique<LarderWire>(address()), c);
  EXPECT_NE(info.find("broken_redirect"), std::string::npos) << info;
  if (server_ == nullptr) return;
  RedisWire real_a(*server_);
  RedisWire real_c(*server_);
  script(real_a, std::make_unique<RedisWire>(*server_), real_c);
}

// The next push, whenever it comes.
TEST_F(TrackingSessionTest, TheEndOfALifeIsTold) {
  LarderWire a(address());
  LarderWire b(address());
  LarderWire c(address());
  a.call({"HELLO", "3"});
  c.call({"HELLO", "3"});
  b.call({"SET", "x", "1", "PX", "30"});
  b.call({"SET", "p:1", "1", "PX", "30"});
  a.call({"CLIENT", "TRACKING", "ON"});
  c.call({"CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "p:"});
  a.call({"GET", "x"});
  c.call({"GET", "p:1"});
  EXPECT_EQ(a.receive(), ">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nx\r\n");
  EXPECT_EQ(a.call({"GET", "x"}), "_\r\n");
  EXPECT_EQ(c.receive(), ">2\r\n$10\r\ninvalidate\r\n*1\r\n$3\r\np:1\r\n");
}

TEST_F(TrackingSessionTest, AFullTableTellsWhatItForgets) {
  start(5);
  LarderWire a(address());
  LarderWire b(address());
  a.call({"HELLO", "3"});
  a.call({"CLIENT", "TRACKING", "ON"});
  std::set<std::string> held;
  std::string got;
  for (int i = 0; i < 20; ++i) {
    const std::string key = "k" + std::to_string(10 + i);
    got = a.call({"GET", key});
    EXPECT_EQ(got, "_\r\n");
    held.insert(key);
    for (got = a.call({"PING"}); got != "+PONG\r\n"; got = a.receive()) {
      ASSERT_TRUE(got.starts_with(">2\r\n$10\r\ninvalidate\r\n*1\r\n$3\r\n")) << got;
      EXPECT_EQ(held.erase(got.substr(got.size() - 5, 3)), 1U);
    }
    EXPECT_LE(held.size(), 5U);
  }
  EXPECT_NE(instance_->metrics().prometheus().find("larder_tracked_keys 5"), std::string::npos);
  for (const std::string& key : held) {
    b.call({"SET", key, "1"});
    EXPECT_NE(a.call({"PING"}), "+PONG\r\n") << key << " was forgotten without a word";
    a.receive();
  }
}

// An invalidation is never lost in silence: who does not take them loses the connection.
TEST_F(TrackingSessionTest, WhoDoesNotTakeItsPushesIsClosed) {
  start(1'000, 64 << 10);
  LarderWire a(address());
  TestClient b(address());
  a.call({"HELLO", "3"});
  a.call({"CLIENT", "TRACKING", "ON", "BCAST"});
  constexpr std::string_view kDropped = "larder_clients_dropped_total{reason=\"slow_tracking\"} 1";
  const std::string name(8 << 10, 'k');
  int written = 0;
  while (instance_->metrics().prometheus().find(kDropped) == std::string::npos) {
    ASSERT_LT(++written, 20'000);
    b.text({"SET", name + std::to_string(written % 10), "v"});
  }
  std::string got;
  while (got != "(closed)") got = a.receive();
  EXPECT_EQ(b.text({"PING"}), "PONG");
}

TEST_F(TrackingSessionTest, ClientsShowWhatTheyTrack) {
  LarderWire a(address());
  LarderWire b(address());
  b.call({"CLIENT", "TRACKING", "ON", "BCAST"});
  EXPECT_NE(a.call({"CLIENT", "LIST"}).find(" flags=tB "), std::string::npos);
  EXPECT_NE(a.call({"INFO", "clients"}).find("tracking_clients:1\r\n"), std::string::npos);
  b.call({"RESET"});
  EXPECT_NE(a.call({"INFO", "clients"}).find("tracking_clients:0\r\n"), std::string::npos);
  EXPECT_EQ(a.call({"CONFIG", "GET", "tracking-table-*"}),
            "*2\r\n$23\r\ntracking-table-max-keys\r\n$7\r\n1000000\r\n");
}

// Nobody who has read an old value is left without a push, whatever the threads do.
TEST_F(TrackingSessionTest, NoOldValueIsKeptUnderLoad) {
  constexpr int kWrites = 3'000;
  LarderWire a(address());
  a.call({"HELLO", "3"});
  a.call({"CLIENT", "TRACKING", "ON"});
  std::thread writer([this] {
    LarderWire w(address());
    for (int i = 1; i <= kWrites; ++i) w.call({"SET", "k", std::to_string(i)});
  });
  std::string cached;  // as a client library does
  const auto take = [&](const std::string& got) {
    if (got.starts_with('>')) cached.clear();
    return got.starts_with('>');
  };
  for (;;) {
    std::string got = a.call({"GET", "k"});
    while (take(got)) got = a.receive();
    cached = got;
    if (got.find("\r\n" + std::to_string(kWrites) + "\r\n") != std::string::npos) break;
  }
  writer.join();
  for (std::string got = a.call({"PING"}); got != "+PONG\r\n"; got = a.receive()) take(got);
  EXPECT_TRUE(cached.empty() || cached.find(std::to_string(kWrites)) != std::string::npos);
}

}  // namespace
}  // namespace larder::server
