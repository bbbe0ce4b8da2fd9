// Four nodes on what a fleet runs on: a Redis Cluster whose slots move and whose primaries die, a
// primary behind Sentinels, Valkey. The checker is that of fleet_test.cc.
#include "deployments.h"
#include "fleet.h"

namespace larder::server {
namespace {

using engine::redis::RedisCluster;
using engine::redis::RedisSentinels;

class OnCluster : public Chaos {
 protected:
  static void SetUpTestSuite() { RedisCluster::start(); }
  static void TearDownTestSuite() { RedisCluster::stop(); }
  void SetUp() override {
    if (RedisCluster::nodes_.empty()) GTEST_SKIP() << "redis-server is missing";
    Chaos::SetUp();
    ASSERT_TRUE(engine::redis::eventually(RedisCluster::healthy));
    start_nodes(4, {}, RedisCluster::url());
  }
};

TEST_F(OnCluster, SlotsMove) {
  run(true, [] {
    // Of every partition the slots of which one of the primaries has.
    for (unsigned partition = 0; partition < 6; ++partition) {
      const engine::redis::Names names("larder", "shop", partition, 16);
      const std::size_t from = RedisCluster::owner_of(names.slot());
      RedisCluster::move(names.slot(), from, (from + 1) % 3);
      pass(100);
    }
    pass(500);
  });
  expect_coherent();
  EXPECT_GT(load_->counts.near.load(), 0U);
}

TEST_F(OnCluster, APrimaryDiesAndItsReplicaGoesOn) {
  std::size_t dies = 0;
  run(false, [&] {
    pass(500);
    dies = RedisCluster::owner_of(engine::redis::Names("larder", "shop", 3, 16).slot());
    RedisCluster::nodes_[dies]->kill();
    pass(4'000);
  });
  RedisCluster::nodes_[dies]->start();
  expect_coherent();
}

class BehindSentinels : public Chaos {
 protected:
  static void SetUpTestSuite() { RedisSentinels::start(); }
  static void TearDownTestSuite() { RedisSentinels::stop(); }
  void SetUp() override {
    if (RedisSentinels::servers_.empty()) GTEST_SKIP() << "redis-server is missing";
    Chaos::SetUp();
    start_nodes(4, {}, RedisSentinels::url(3));
  }
};

TEST_F(BehindSentinels, ThePrimaryDies) {
  engine::redis::TestServer* was = nullptr;
  run(false, [&] {
    pass(500);
    was = &RedisSentinels::primary();
    was->kill();
    pass(3'500);
    was->start();  // and believes for a while that it is the primary
    pass(500);
  });
  expect_coherent();
}

TEST_F(FleetTest, NodesSpeakTlsToTheirEngine) {
  if (!engine::redis::Certificates::can_be_made()) GTEST_SKIP() << "openssl is missing";
  const engine::redis::Certificates certificates;
  ASSERT_TRUE(certificates.make());
  engine::redis::TestServer engine(certificates.server_words(), true);
  engine.start();
  start_nodes(
      2, {},
      "rediss://localhost:" + std::to_string(engine.port()) + "/0?ca=" + (certificates / "ca.crt"));
  get_from(0, "b:5", "near");
  get_from(1, "b:5", "near");
  TestClient writer(address(0));
  EXPECT_EQ(writer.text({"SET", "b:5", R"({"v":42})"}), "OK");
  TestClient other(address(1));
  EXPECT_TRUE(engine::redis::eventually([&] { return version_in(get(other, "b:5").value) == 42; }));
  EXPECT_EQ(writer.text({"LPUSH", "plain", "x"}), "(int) 1");
  nodes_.clear();
}

TEST_F(Chaos, OnValkey) {
  const std::string valkey = "/usr/bin/valkey-server";
  if (access(valkey.c_str(), X_OK) != 0) GTEST_SKIP() << "valkey-server is missing";
  start_engine({}, valkey);
  ASSERT_THAT(engine_->call({"INFO", "server"}).text, testing::HasSubstr("valkey_version:8."));
  start_nodes(4);
  run(true, [&] {
    pass(800);
    engine_->call({"SCRIPT", "FLUSH"});
    engine_->call({"CLIENT", "KILL", "TYPE", "pubsub"});
    pass(400);
  });
  expect_coherent();
  EXPECT_EQ(load_->counts.errors.load(), 0U);
  EXPECT_GT(load_->counts.engine.load(), 0U);
}

}  // namespace
}  // namespace larder::server
