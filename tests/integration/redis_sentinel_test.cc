// A client behind three real Sentinels: it finds the primary, follows a failover, and is not taken
// in by a primary that comes back.
#include "deployments.h"

namespace larder::engine::redis {
namespace {

class SentinelTest : public ::testing::Test, protected RedisSentinels {
 protected:
  static void SetUpTestSuite() { start(); }
  static void TearDownTestSuite() { stop(); }
  void SetUp() override {
    if (servers_.empty()) GTEST_SKIP() << "redis-server is missing";
    ASSERT_EQ(sentinels_.size(), 3u);
  }

  static std::string primary_of(Client& client) {
    for (const ServerInfo& node : client.nodes()) {
      if (node.primary) return node.address;
    }
    return {};
  }
};

TEST_F(SentinelTest, FindsThePrimaryAndItsReplicasThroughAnySentinel) {
  TestUse use(url(1, "127.0.0.1:" + std::to_string(free_port())), 2);  // the first is dead
  EXPECT_EQ(use.text({"SET", "k", "v"}), "+OK\r\n");
  EXPECT_EQ(primary_of(*use), servers_[0]->address());
  EXPECT_EQ(use->nodes().size(), 3u);
  ASSERT_TRUE(eventually([&] {
    const auto nodes = use->nodes();
    return std::ranges::all_of(nodes, &ServerInfo::up);
  }));
  // Reads that may come from a replica do, and see what was written before, sooner or later.
  const auto reads = [&](const std::unique_ptr<TestServer>& server) {
    const std::string stats = server->call({"INFO", "commandstats"});
    const std::size_t at = stats.find("cmdstat_get:calls=");
    return at == std::string::npos ? 0 : std::stoi(stats.substr(at + 18));
  };
  for (unsigned i = 0; i < 40; ++i) {
    ASSERT_TRUE(eventually(
        [&] { return use.text({"GET", "k"}, {.replica = true}, i % 2) == "$1\r\nv\r\n"; }));
  }
  EXPECT_GT(reads(servers_[1]) + reads(servers_[2]), 30);
  EXPECT_EQ(use.text({"PING"}, {.node = servers_[1]->address()}), "+PONG\r\n");
  EXPECT_TRUE(use.text({"SET", "k", "v"}, {.node = servers_[1]->address()}).contains("READONLY"));
  EXPECT_TRUE(use.text({"PING"}, {.node = "127.0.0.1:1"}).contains("no server"));
}

TEST_F(SentinelTest, AnUnknownNameSaysSo) {
  TestUse use("redis+sentinel://" + sentinels_[0]->address() + "/nonsense");
  const auto refused = use.call({"PING"}, {}, 0, monotonic_now_us() + 5 * kSecond);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::engine_down);
  EXPECT_TRUE(refused.error().message.contains("name of the primary")) << refused.error().message;
  EXPECT_FALSE(use->up());
}

// The order of a planned change: the old primary stays, and is made a replica.
TEST_F(SentinelTest, APrimaryThatBecomesAReplicaIsLeft) {
  TestUse use(url(3));
  ASSERT_EQ(use.text({"SET", "k", "0"}), "+OK\r\n");
  TestServer& was = primary();
  const std::string old = primary_of(*use);
  EXPECT_EQ(old, was.address());
  ASSERT_EQ(sentinels_[0]->call({"SENTINEL", "FAILOVER", "shop"}), "+OK\r\n");
  int errors = 0;
  ASSERT_TRUE(eventually([&] {
    // Repeatable: what was under way when the old primary cut its clients off is sent again.
    if (use.text({"SET", "k", "1"}, {.repeatable = true}) != "+OK\r\n") ++errors;
    return primary_of(*use) != old;
  }));
  EXPECT_EQ(errors, 0);
  EXPECT_EQ(use.text({"SET", "k", "2"}), "+OK\r\n");
  ASSERT_TRUE(eventually([&] { return was.call({"GET", "k"}) == "$1\r\n2\r\n"; }));
}

TEST_F(SentinelTest, FollowsAFailoverAndIsNotTakenInByAPrimaryThatComesBack) {
  struct Listener final : Subscriber {
    void on_message(std::string_view, std::string_view) override { ++messages; }
    void on_subscribed(std::string_view) override { ++subscribed; }
    void on_lost(std::string_view) override { ++lost; }
    std::atomic<int> messages = 0, subscribed = 0, lost = 0;
  } listener;
  TestUse use(url(1), 2);
  use->subscribe({"news"}, false, listener);
  ASSERT_TRUE(eventually([&] { return listener.subscribed == 1; }));
  ASSERT_EQ(use.text({"SET", "before", "v"}, {}, 1), "+OK\r\n");
  ASSERT_TRUE(use.text({"WAIT", "2", "5000"}).contains("2"));
  const std::string old = primary_of(*use);
  TestServer& was = primary();
  was.kill();
  // One call is enough: it waits for the new primary.
  const auto written = use.call({"SET", "after", "v"}, {.repeatable = true}, 0);
  ASSERT_TRUE(written) << to_string(written.error());
  EXPECT_EQ(written->bytes, "+OK\r\n");
  EXPECT_NE(primary_of(*use), old);
  EXPECT_EQ(use.text({"GET", "before"}, {}, 1), "$1\r\nv\r\n");
  ASSERT_TRUE(eventually([&] { return listener.subscribed == 2 && listener.lost == 1; }));
  EXPECT_EQ(use.text({"PUBLISH", "news", "m"}), ":1\r\n");
  ASSERT_TRUE(eventually([&] { return listener.messages == 1; }));

  // It comes back, and believes for a while that it is the primary.
  ASSERT_NO_FATAL_FAILURE(was.start());
  for (int i = 0; i < 50; ++i) {
    ASSERT_EQ(use.text({"SET", "n" + std::to_string(i), "v"}), "+OK\r\n");
    ASSERT_NE(primary_of(*use), old);
  }
  ASSERT_TRUE(eventually(
      [&] { return was.call({"INFO", "replication"}).contains("master_link_status:up"); }));
  ASSERT_TRUE(eventually([&] { return was.call({"GET", "n49"}) == "$1\r\nv\r\n"; }));
}

}  // namespace
}  // namespace larder::engine::redis
