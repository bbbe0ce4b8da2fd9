// Plain keys on a real cluster of three behind Larder, which looks like one server.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/redis/client_testing.h"
#include "server/instance.h"
#include "server/test_client.h"

namespace larder::server {
namespace {

using engine::redis::eventually;
using engine::redis::free_port;
using engine::redis::slot_of;
using engine::redis::TestServer;
using testing::HasSubstr;
using testing::StartsWith;
using Words = std::vector<std::string>;

class PassingClusterTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (engine::real::find_redis().empty()) return;
    std::vector<int> buses;
    for (int i = 0; i < 3; ++i) {
      const int bus = free_port();
      nodes_.push_back(std::make_unique<TestServer>(
          Words{"--cluster-enabled", "yes", "--cluster-port", std::to_string(bus)}));
      ASSERT_NO_FATAL_FAILURE(nodes_.back()->start());
      ASSERT_EQ(nodes_.back()->call({"CLUSTER", "SET-CONFIG-EPOCH", std::to_string(i + 1)}),
                "+OK\r\n");
      for (std::size_t other = 0; other < buses.size(); ++other)
        ASSERT_EQ(nodes_.back()->call({"CLUSTER", "MEET", "127.0.0.1",
                                       std::to_string(nodes_[other]->port()),
                                       std::to_string(buses[other])}),
                  "+OK\r\n");
      buses.push_back(bus);
    }
    const std::array<int, 4> bounds = {0, 5461, 10923, 16384};
    for (std::size_t i = 0; i < 3; ++i)
      ASSERT_EQ(nodes_[i]->call({"CLUSTER", "ADDSLOTSRANGE", std::to_string(bounds[i]),
                                 std::to_string(bounds[i + 1] - 1)}),
                "+OK\r\n");
    ASSERT_TRUE(eventually([] {
      return std::ranges::all_of(nodes_, [](const auto& node) {
        const std::string info = node->call({"CLUSTER", "INFO"});
        return info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384");
      });
    }));
  }
  static void TearDownTestSuite() { nodes_.clear(); }
  void SetUp() override {
    if (nodes_.empty()) GTEST_SKIP() << "redis-server is missing";
    for (const auto& node : nodes_) node->call({"FLUSHALL"});
    config::Config config;
    config.node.listen = {"127.0.0.1:0"};
    config.node.admin = "";
    config.node.threads = 2;
    config.near.capacity_bytes = 64 << 20;
    config.engine.url = "redis+cluster://" + nodes_[0]->address();
    config.plain.near = {"s:"};
    auto started = Instance::start(config);
    ASSERT_TRUE(started) << to_string(started.error());
    instance_ = std::move(*started);
    ASSERT_TRUE(eventually([&] {
      return instance_->metrics().prometheus().find("larder_plain_near_up 1") != std::string::npos;
    }));
  }
  std::string address() const { return instance_->addresses().front(); }
  // Where a key lies.
  static const TestServer& owner(const std::string& key) {
    const std::uint32_t slot = slot_of(key);
    return *nodes_[slot <= 5460 ? 0 : slot <= 10922 ? 1 : 2];
  }

  static inline std::vector<std::unique_ptr<TestServer>> nodes_;
  std::unique_ptr<Instance> instance_;
};

TEST_F(PassingClusterTest, CommandsOnManyKeysAreSplit) {
  TestClient c(address());
  Words mset{"MSET"};
  Words mget{"MGET"};
  Words del{"DEL"};
  Words exists{"EXISTS"};
  std::string values = "[";
  for (int i = 0; i < 50; ++i) {
    const std::string key = "k" + std::to_string(i);
    mset.insert(mset.end(), {key, std::to_string(i)});
    mget.push_back(key);
    del.push_back(key);
    exists.insert(exists.end(), {key, key});
    values += (i > 0 ? ", " : "") + std::to_string(i);
  }
  EXPECT_EQ(c.text(mset), "OK");
  EXPECT_EQ(c.text(mget), values + "]");
  EXPECT_EQ(c.text(exists), "(int) 100");
  EXPECT_EQ(c.text({"DBSIZE"}), "(int) 50");
  EXPECT_EQ(owner("k1").call({"GET", "k1"}), "$1\r\n1\r\n");
  EXPECT_EQ(c.text(del), "(int) 50");
  EXPECT_EQ(c.text({"MSET", "a"}), "-ERR wrong number of arguments for 'mset' command");
  EXPECT_THAT(c.text({"MSET", "a", "1", "b"}), StartsWith("-ERR wrong number"));
  EXPECT_EQ(c.text({"MGET", "none1", "none2"}), "[(nil), (nil)]");
}

TEST_F(PassingClusterTest, TheRestOfThemIsCrossslot) {
  TestClient c(address());
  const std::string crossslot = "-CROSSSLOT Keys in request don't hash to the same slot";
  EXPECT_EQ(c.text({"RENAME", "a", "b"}), crossslot);
  EXPECT_EQ(c.text({"SUNION", "a", "b"}), crossslot);
  EXPECT_EQ(c.text({"EVAL", "return 1", "2", "a", "b"}), crossslot);
  EXPECT_EQ(c.text({"SADD", "{t}a", "1"}), "(int) 1");
  EXPECT_EQ(c.text({"SUNION", "{t}a", "{t}b"}), "[1]");
  EXPECT_EQ(c.text({"SELECT", "1"}), "-ERR SELECT is not allowed in cluster mode");
}

TEST_F(PassingClusterTest, WalksGoOverAllServers) {
  TestClient c(address());
  std::set<std::string> all;
  for (int i = 0; i < 300; ++i) {
    const std::string key = "k" + std::to_string(i);
    EXPECT_EQ(c.text({"SET", key, "v"}), "OK");
    all.insert(key);
  }
  const std::string own = "larder:{0.7}:s:shop";
  owner(own).call({"SET", own, "state"});
  std::set<std::string> seen;
  std::string cursor = "0";
  do {
    const auto page = c.call({"SCAN", cursor, "COUNT", "20"});
    cursor = page.elements.at(0).text;
    for (const auto& key : page.elements.at(1).elements) seen.insert(key.text);
  } while (cursor != "0");
  EXPECT_EQ(seen, all);
  seen.clear();
  for (const auto& key : c.call({"KEYS", "*"}).elements) seen.insert(key.text);
  EXPECT_EQ(seen, all);
  seen.clear();
  for (int i = 0; i < 30; ++i) seen.insert(owner(c.text({"RANDOMKEY"})).address());
  EXPECT_EQ(seen.size(), 3U);
  EXPECT_EQ(c.text({"FLUSHALL"}), "OK");
  EXPECT_EQ(c.text({"KEYS", "*"}), "[]");
  EXPECT_EQ(owner(own).call({"GET", own}), "$5\r\nstate\r\n");
}

TEST_F(PassingClusterTest, StatesLiveOnTheSlotsServer) {
  TestClient c(address());
  for (const std::string tag : {"{a}", "{b}", "{c}", "{d}"}) {
    EXPECT_EQ(c.text({"WATCH", tag + "w"}), "OK");
    c.text({"MULTI"});
    c.text({"SET", tag + "x", "1"});
    c.text({"LPUSH", tag + "l", "job"});
    EXPECT_EQ(c.text({"EXEC"}), "[OK, (int) 1]");
    EXPECT_EQ(c.text({"BLPOP", tag + "l", "0"}), "[" + tag + "l, job]");
    EXPECT_EQ(c.text({"EVAL", "return redis.call('get', KEYS[1])", "1", tag + "x"}), "1");
  }
  c.text({"MULTI"});
  c.text({"SET", "a", "1"});
  c.text({"SET", "b", "1"});
  EXPECT_THAT(c.text({"EXEC"}), HasSubstr("CROSSSLOT"));
  EXPECT_EQ(c.text({"SUBSCRIBE", "news"}), "[subscribe, news, (int) 1]");
  TestClient publisher(address());
  publisher.text({"PUBLISH", "news", "hello"});
  EXPECT_EQ(TestClient::to_text(c.receive()), "[message, news, hello]");
}

TEST_F(PassingClusterTest, APipelineOverAllServersKeepsItsOrder) {
  TestClient c(address());
  std::string all;
  for (int i = 0; i < 1'000; ++i)
    all += TestClient::encode({"SET", "k" + std::to_string(i), "v"}) +
           TestClient::encode({"STRLEN", "k" + std::to_string(i)}) +
           TestClient::encode({"ECHO", std::to_string(i)});
  std::thread sender([&] { c.send_raw(all); });
  for (int i = 0; i < 1'000; ++i) {
    EXPECT_EQ(TestClient::to_text(c.receive()), "OK");
    EXPECT_EQ(TestClient::to_text(c.receive()), "(int) 1");
    EXPECT_EQ(TestClient::to_text(c.receive()), std::to_string(i));
  }
  sender.join();
}

TEST_F(PassingClusterTest, ChangesAreToldByAllServers) {
  TestClient c(address());
  TestClient a(address());
  a.call({"HELLO", "3"});
  EXPECT_EQ(a.text({"CLIENT", "TRACKING", "ON"}), "OK");
  for (int i = 0; i < 20; ++i) {
    const std::string key = "s:" + std::to_string(i);
    owner(key).call({"SET", key, "old"});
    EXPECT_TRUE(eventually([&] { return c.text({"GET", key}) == "old"; }));
    EXPECT_EQ(a.text({"GET", key}), "old");
    owner(key).call({"SET", key, "new"});
    EXPECT_EQ(TestClient::to_text(a.receive()), "[invalidate, [" + key + "]]");
    EXPECT_TRUE(eventually([&] { return c.text({"GET", key}) == "new"; }));
  }
}

}  // namespace
}  // namespace larder::server
