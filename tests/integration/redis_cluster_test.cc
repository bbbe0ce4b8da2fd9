// A client of a real cluster of six: slots move under it, primaries die, and nothing is lost.
#include <fmt/format.h>

#include "deployments.h"

namespace larder::engine::redis {
namespace {

struct Listener final : Subscriber {
  void on_message(std::string_view, std::string_view) override { ++messages; }
  void on_subscribed(std::string_view) override { ++subscribed; }
  void on_lost(std::string_view) override { ++lost; }
  std::atomic<int> messages = 0, subscribed = 0, lost = 0;
};

// Counters that are incremented until `stop`.
struct Load {
  std::atomic<bool> stop = false;
  std::atomic<int> running = 0;
  std::atomic<int> errors = 0;
  std::mutex mutex;
  std::string first_error;
  std::map<std::string, int> done;

  static Task<void> run(Client& client, Load& load, std::string key, bool repeatable) {
    int done = 0;
    for (; !load.stop; ++done) {
      auto answer = co_await client.call({.slot = slot_of(key), .repeatable = repeatable},
                                         {"INCR", key}, TestUse::soon());
      if (answer && answer->bytes.starts_with(':')) continue;
      --done;
      ++load.errors;
      const std::lock_guard lock(load.mutex);
      if (load.first_error.empty()) {
        load.first_error = answer ? answer->bytes : to_string(answer.error());
      }
    }
    const std::lock_guard lock(load.mutex);
    load.done[key] += done;
    --load.running;
  }
};

class ClusterTest : public ::testing::Test, protected RedisCluster {
 protected:
  static void SetUpTestSuite() { start(); }
  static void TearDownTestSuite() { stop(); }
  void SetUp() override {
    if (nodes_.empty()) GTEST_SKIP() << "redis-server is missing";
    ASSERT_TRUE(eventually(healthy)) << nodes_[0]->call({"CLUSTER", "NODES"});
  }
  static void start_load(TestUse& use, Load& load, bool repeatable) {
    for (unsigned loop = 0; loop < 2; ++loop) {
      use.runtime().call(
          [&] {
            for (int i = 0; i < 30; ++i) {
              ++load.running;
              std::string key = fmt::format("{{t{}}}:{}", i % 10, 10 * loop + i / 10u);
              use.runtime().group().spawn(Load::run(*use, load, std::move(key), repeatable));
            }
          },
          loop);
    }
  }
  static int sum_of(TestUse& use, const std::string& key) {
    const std::string text = use.text({"GET", key}, {.slot = slot_of(key)});
    const std::size_t at = text.find('\n');
    return at == std::string::npos || !text.starts_with('$') ? -1 : std::stoi(text.substr(at + 1));
  }
};

TEST_F(ClusterTest, FindsEverySlotFromAnyNode) {
  TestUse use(url(), 2);
  for (int i = 0; i < 60; ++i) {
    const std::string key = "key" + std::to_string(i);
    ASSERT_EQ(use.text({"SET", key, key}, {.slot = slot_of(key)}, i % 2u), "+OK\r\n");
  }
  EXPECT_TRUE(use->cluster());
  EXPECT_TRUE(use->sharded_channels());
  ASSERT_TRUE(eventually([&] {
    const auto nodes = use->nodes();
    return nodes.size() == 6 && std::ranges::all_of(nodes, &ServerInfo::up);
  }));
  EXPECT_TRUE(use->up());
  EXPECT_EQ(std::ranges::count_if(use->nodes(), &ServerInfo::primary), 3);
  int keys = 0;
  for (const ServerInfo& node : use->nodes()) {
    if (!node.primary) continue;
    const std::string size = use.text({"DBSIZE"}, {.node = node.address});
    ASSERT_TRUE(size.starts_with(':')) << size;
    keys += std::stoi(size.substr(1));
  }
  EXPECT_EQ(keys, 60);
  EXPECT_EQ(use.text({"PING"}), "+PONG\r\n");
  // Its own error is the command's, not the way's.
  EXPECT_TRUE(use.text({"MGET", "a", "b"}, {.slot = slot_of("a")}).starts_with("-CROSSSLOT"));
}

TEST_F(ClusterTest, ReplicasAnswerReads) {
  TestUse use(url());
  ASSERT_EQ(use.text({"SET", "r", "v"}, {.slot = slot_of("r")}), "+OK\r\n");
  ASSERT_TRUE(eventually([&] {
    const auto nodes = use->nodes();
    return std::ranges::all_of(nodes, &ServerInfo::up);
  }));
  const auto reads = [&] {
    int all = 0;
    for (std::size_t i = 3; i < 6; ++i) {
      const std::string stats = nodes_[i]->call({"INFO", "commandstats"});
      const std::size_t at = stats.find("cmdstat_get:calls=");
      if (at != std::string::npos) all += std::stoi(stats.substr(at + 18));
    }
    return all;
  };
  const Route route{.slot = slot_of("r"), .replica = true};
  ASSERT_TRUE(eventually([&] { return use.text({"GET", "r"}, route) == "$1\r\nv\r\n"; }));
  const int before = reads();
  for (int i = 0; i < 20; ++i) ASSERT_EQ(use.text({"GET", "r"}, route), "$1\r\nv\r\n");
  EXPECT_EQ(reads() - before, 20);
}

TEST_F(ClusterTest, SlotsMoveUnderLoadWithoutAnErrorOrALostIncrement) {
  TestUse use(url(), 2);
  Load load;
  start_load(use, load, false);
  ASSERT_TRUE(eventually([&] { return use->up(); }));
  Listener listener;
  use->subscribe({"{t0}", "{t1}", "{t2}"}, true, listener);
  ASSERT_TRUE(eventually([&] { return listener.subscribed == 3; }));
  // There and back again, all slots of the load.
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 10; ++i) {
      const std::uint32_t slot = slot_of("t" + std::to_string(i));
      const std::size_t from = owner_of(slot);
      ASSERT_LT(from, 3u);
      ASSERT_NO_FATAL_FAILURE(move(slot, from, (from + 1) % 3));
    }
  }
  load.stop = true;
  ASSERT_TRUE(eventually([&] { return load.running == 0; }));
  EXPECT_EQ(load.errors, 0) << load.first_error;
  int all = 0;
  for (const auto& [key, done] : load.done) {
    EXPECT_EQ(sum_of(use, key), done) << key;
    all += done;
  }
  EXPECT_GT(all, 1000);
  // The subscription has followed its slots.
  ASSERT_TRUE(eventually(
      [&] { return listener.subscribed >= 6 && listener.lost + 3 == listener.subscribed; }));
  for (const std::string channel : {"{t0}", "{t1}", "{t2}"}) {
    const int before = listener.messages;
    ASSERT_TRUE(eventually([&] {
      return use.text({"SPUBLISH", channel, "m"}, {.slot = slot_of(channel)}) == ":1\r\n";
    }));
    ASSERT_TRUE(eventually([&] { return listener.messages == before + 1; }));
  }
}

TEST_F(ClusterTest, CommandsOfSeveralKeysWaitForTheirSlotToArrive) {
  TestUse use(url());
  const std::uint32_t slot = slot_of("m");
  const std::size_t from = owner_of(slot);
  const std::size_t to = (from + 1) % 3;
  const Route route{.slot = slot};
  ASSERT_EQ(use.text({"MSET", "{m}1", "a", "{m}2", "b"}, route), "+OK\r\n");
  const std::string text = std::to_string(slot);
  ASSERT_EQ(nodes_[to]->call({"CLUSTER", "SETSLOT", text, "IMPORTING", ids_[from]}), "+OK\r\n");
  ASSERT_EQ(nodes_[from]->call({"CLUSTER", "SETSLOT", text, "MIGRATING", ids_[to]}), "+OK\r\n");
  const std::string port = std::to_string(nodes_[to]->port());
  ASSERT_EQ(nodes_[from]->call({"MIGRATE", "127.0.0.1", port, "{m}1", "0", "5000"}), "+OK\r\n");
  // One key here, one there: nobody can answer now, and the server says so at the deadline.
  const auto split =
      use.call({"MGET", "{m}1", "{m}2"}, route, 0, monotonic_now_us() + 300 * kMillisecond);
  ASSERT_TRUE(split) << to_string(split.error());
  EXPECT_TRUE(split->bytes.starts_with("-TRYAGAIN")) << split->bytes;
  EXPECT_EQ(use.text({"GET", "{m}1"}, route), "$1\r\na\r\n");
  EXPECT_EQ(use.text({"GET", "{m}2"}, route), "$1\r\nb\r\n");
  std::promise<std::string> whole;
  struct Ask {
    static Task<void> run(Client& client, Route route, std::promise<std::string>& to) {
      auto answer =
          co_await client.call(std::move(route), {"MGET", "{m}1", "{m}2"}, TestUse::soon());
      to.set_value(answer ? answer->bytes : to_string(answer.error()));
    }
  };
  use.runtime().call([&] { use.runtime().group().spawn(Ask::run(*use, route, whole)); });
  ASSERT_EQ(nodes_[from]->call({"MIGRATE", "127.0.0.1", port, "{m}2", "0", "5000"}), "+OK\r\n");
  for (const std::size_t node : {to, from}) {
    ASSERT_EQ(nodes_[node]->call({"CLUSTER", "SETSLOT", text, "NODE", ids_[to]}), "+OK\r\n");
  }
  EXPECT_EQ(whole.get_future().get(), "*2\r\n$1\r\na\r\n$1\r\nb\r\n");
}

// Callers whose commands may run twice see no error. (What the primary had acknowledged and not yet
// replicated is lost: that is how Redis replicates, and why nothing here counts.)
TEST_F(ClusterTest, APrimaryDiesAndItsReplicaGoesOn) {
  TestUse use(url(), 2);
  Load load;
  start_load(use, load, true);
  Listener listener;
  use->subscribe({"{t0}", "{t1}", "{t2}", "{t3}"}, true, listener);
  ASSERT_TRUE(eventually([&] { return listener.subscribed == 4 && use->up(); }));
  const std::uint32_t slot = slot_of("t0");
  const std::size_t dies = owner_of(slot);
  const std::string address = nodes_[dies]->address();
  nodes_[dies]->kill();
  // One call is enough: it waits for the failover.
  const auto after = use.call({"SET", "{t0}after", "v"}, {.slot = slot, .repeatable = true});
  ASSERT_TRUE(after) << to_string(after.error());
  EXPECT_EQ(after->bytes, "+OK\r\n");
  ASSERT_TRUE(eventually(
      [&] { return use->up() && listener.lost >= 1 && listener.subscribed == 4 + listener.lost; }));
  ASSERT_TRUE(
      eventually([&] { return use.text({"SPUBLISH", "{t0}", "m"}, {.slot = slot}) == ":1\r\n"; }));
  ASSERT_TRUE(eventually([&] { return listener.messages >= 1; }));
  load.stop = true;
  ASSERT_TRUE(eventually([&] { return load.running == 0; }));
  EXPECT_EQ(load.errors, 0) << load.first_error;
  // It comes back as a replica of its replica.
  ASSERT_NO_FATAL_FAILURE(nodes_[dies]->start());
  ASSERT_TRUE(eventually([&] {
    const auto nodes = use->nodes();
    return nodes.size() == 6 && std::ranges::all_of(nodes, [&](const ServerInfo& node) {
             return node.up && (node.address != address || !node.primary);
           });
  }));
}

// Its connections stay open and say nothing: callers leave at their deadlines, and the map tells
// the next ones where to go.
TEST_F(ClusterTest, AFrozenPrimaryIsLeft) {
  TestUse use(url(), 2);
  const std::uint32_t slot = slot_of("frozen");
  const Route route{.slot = slot};
  ASSERT_EQ(use.text({"SET", "frozen", "0"}, route), "+OK\r\n");
  const std::size_t frozen = owner_of(slot);
  nodes_[frozen]->freeze();
  const bool went_on = eventually([&] {
    const auto answer =
        use.call({"SET", "frozen", "1"}, route, 1, monotonic_now_us() + 100 * kMillisecond);
    return answer && answer->bytes == "+OK\r\n";
  });
  nodes_[frozen]->thaw();
  ASSERT_TRUE(went_on);
  // What it had been sent while it was frozen must not come to anything, now that it is a replica.
  ASSERT_TRUE(eventually(healthy));
  EXPECT_EQ(use.text({"GET", "frozen"}, route), "$1\r\n1\r\n");
}

// Callers wait for a connection to it that never comes, when the map says that another one has its
// slots: they go there.
TEST_F(ClusterTest, WhoWaitsForAServerThatIsReplacedFindsTheNewOne) {
  TestUse use(url(), 2);
  ASSERT_TRUE(eventually([&] { return use->nodes().size() == 6; }));  // it knows the map
  const std::uint32_t slot = slot_of("t0");
  const std::size_t frozen = owner_of(slot);
  nodes_[frozen]->freeze();  // before anybody has connected to it
  Load load;
  start_load(use, load, true);
  const auto after = use.call({"SET", "{t0}after", "v"}, {.slot = slot, .repeatable = true});
  load.stop = true;
  EXPECT_TRUE(eventually([&] { return load.running == 0; }));
  nodes_[frozen]->thaw();
  ASSERT_TRUE(after) << to_string(after.error());
  EXPECT_EQ(after->bytes, "+OK\r\n");
  EXPECT_EQ(load.errors, 0) << load.first_error;
}

// Before Redis 7: channels belong to no slot, and PUBLISH reaches every server.
TEST_F(ClusterTest, WithoutShardedChannelsAnyServerWillDo) {
  TestServer old({"--cluster-enabled", "yes", "--cluster-port", std::to_string(free_port()),
                  "--rename-command", "SSUBSCRIBE", "", "--rename-command", "SPUBLISH", ""});
  ASSERT_NO_FATAL_FAILURE(old.start());
  ASSERT_EQ(old.call({"CLUSTER", "ADDSLOTSRANGE", "0", "16383"}), "+OK\r\n");
  ASSERT_TRUE(eventually([&] { return old.call({"CLUSTER", "INFO"}).contains("state:ok"); }));
  TestUse use("redis+cluster://" + old.address(), 2);
  Listener listener;
  use->subscribe({"a", "b"}, true, listener);
  ASSERT_TRUE(eventually([&] { return listener.subscribed == 2; }));
  EXPECT_FALSE(use->sharded_channels());
  EXPECT_EQ(use.text({"PUBLISH", "b", "m"}), ":1\r\n");
  ASSERT_TRUE(eventually([&] { return listener.messages == 1; }));
}

TEST_F(ClusterTest, SaysWhatIsWrongWithAServerThatIsNoCluster) {
  TestServer alone;
  ASSERT_NO_FATAL_FAILURE(alone.start());
  TestUse use("redis+cluster://" + alone.address());
  const auto refused = use.call({"PING"});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::engine_down);
  EXPECT_TRUE(refused.error().message.contains("cluster support disabled"))
      << refused.error().message;
}

}  // namespace
}  // namespace larder::engine::redis
