// The feeder against a real server that falls back: whatever a partition has forgotten of the log
// is told to it again.
#include "engine/redis/feeder.h"

#include <gtest/gtest.h>

#include "base/random.h"
#include "engine/redis/client_testing.h"
#include "engine/redis/engine.h"

namespace larder::engine::redis {
namespace {

constexpr unsigned kPartitions = 4;
constexpr std::uint64_t kLogEnd = 1'000;
constexpr std::uint64_t kSource = 77;

// The transaction at each position of the log changes one key.
std::string key_at(std::uint64_t position) { return "k:" + std::to_string(position); }
policy::TxnId x_at(std::uint64_t position) { return 1'000 + position; }

class FeederTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (real::find_redis().empty()) GTEST_SKIP() << "redis-server is missing";
    server_.start();
    start_engine();
  }
  void start_engine() {
    use_ = std::make_unique<TestUse>("redis://" + server_.address());
    engine_ = std::make_unique<RedisEngine>(
        **use_, near_,
        RedisEngine::Options{.partitions = kPartitions, .sources = {"shop"}, .beat_us = 1});
    Hooks hooks;
    hooks.schema_of = [](std::string_view) { return std::string_view("schema"); };
    hooks.keeps_for_error = [](std::string_view) { return false; };
    hooks.voided = [](const Hooks::Voided&) {};
    hooks.sources = {{.name = "shop", .feeds = true}};
    use_->runtime().call([&] { engine_->start(use_->runtime().group(), std::move(hooks)); });
  }
  void TearDown() override {
    if (engine_) stop_engine();
  }
  void stop_engine() {
    use_->runtime().await<bool>([&] { return stop(*engine_); });
    use_->down();
    engine_.reset();
  }
  static Task<bool> stop(RedisEngine& engine) {
    co_await engine.stop();
    co_return true;
  }

  Result<FeedOrder> feed(FeedBatch batch) {
    batch.source_id = kSource;
    return use_->runtime().await<Result<FeedOrder>>(
        [&] { return engine_->feed(0, std::move(batch)); });
  }
  // What a source does: obeys, and goes on from where it is told.
  void go_on(Random& random) {
    FeedBatch batch{.from = at_, .to = at_};
    if (new_epoch_) {
      batch.floor = x_at(at_);
    } else {
      batch.to = std::min(kLogEnd, at_ + 1 + random.below(6));
      for (std::uint64_t i = at_ + 1; i <= batch.to; ++i)
        batch.changes.push_back(
            {.source = 0, .x = x_at(i), .source_id = kSource, .keys = {key_at(i)}, .tags = {}});
    }
    const std::uint64_t to = batch.to;
    end_ = std::max(end_, to);
    if (to == end_ && random.below(2) == 0) batch.heartbeat = monotonic_now_us();
    const auto order = feed(std::move(batch));
    ASSERT_TRUE(order) << to_string(order.error());
    new_epoch_ = order->new_epoch;
    EXPECT_LE(order->go_on_from, to);
    at_ = order->go_on_from;
  }

  Names names(unsigned partition) const { return {"larder", "shop", partition, kPartitions}; }
  // A replica that is promoted holds a prefix of what its primary had.
  void remember(unsigned partition) {
    prefix_[partition] = Prefix{dump(names(partition).state()), dump(names(partition).stream())};
  }
  void fall_back(unsigned partition) {
    if (!prefix_[partition]) return;
    restore(names(partition).state(), prefix_[partition]->state);
    restore(names(partition).stream(), prefix_[partition]->stream);
  }
  std::string dump(const std::string& key) const {
    return real::parse(server_.call({"DUMP", key})).text;
  }
  void restore(const std::string& key, const std::string& was) const {
    if (was.empty())
      server_.call({"DEL", key});
    else
      EXPECT_EQ(server_.call({"RESTORE", key, "0", was, "REPLACE"}), "+OK\r\n");
  }
  // Is a fill refused whose load has not seen what the log has at this position?
  bool knows(std::uint64_t position) const {
    const unsigned partition = partition_of(key_at(position), kPartitions);
    const auto field = [&](const std::string& name) {
      return real::parse(server_.call({"HGET", names(partition).state(), name})).text;
    };
    const std::string floor = field("F");
    return field("k:" + key_at(position)).ends_with(";" + std::to_string(x_at(position))) ||
           (!floor.empty() && std::stoull(floor) >= x_at(position));
  }

  struct Prefix {
    std::string state, stream;  // as DUMP gives them; "" = it is not there
  };
  TestServer server_;
  near::Store near_{{.capacity_bytes = 16 << 20}};
  std::unique_ptr<TestUse> use_;
  std::unique_ptr<RedisEngine> engine_;
  std::uint64_t at_ = 10;  // what changed before is below the floor
  std::uint64_t end_ = 0;  // of the log
  bool new_epoch_ = false;
  std::array<std::optional<Prefix>, kPartitions> prefix_;
};

TEST_P(FeederTest, WhatAPartitionForgetsIsToldAgain) {
  Random random(static_cast<std::uint64_t>(GetParam()));
  const std::uint64_t first = at_;
  for (int round = 0; round < 20'000 && at_ < kLogEnd; ++round) {
    ASSERT_NO_FATAL_FAILURE(go_on(random));
    const auto dice = random.below(10);
    const auto partition = static_cast<unsigned>(random.below(kPartitions));
    if (dice < 6) remember(partition);
    if (dice >= 6) fall_back(partition);
  }
  // Whatever has fallen back since shows at the next heartbeat.
  for (int round = 0; round < 2'000; ++round) {
    if (at_ < kLogEnd) {
      ASSERT_NO_FATAL_FAILURE(go_on(random));
      continue;
    }
    FeedBatch beat{.from = at_, .to = at_, .heartbeat = monotonic_now_us()};
    const auto order = feed(std::move(beat));
    ASSERT_TRUE(order) << to_string(order.error());
    at_ = order->go_on_from;
    ASSERT_FALSE(order->new_epoch);
    if (at_ == kLogEnd) break;
  }
  EXPECT_EQ(at_, kLogEnd);
  for (std::uint64_t i = first + 1; i <= kLogEnd; ++i) EXPECT_TRUE(knows(i)) << i;
}

// A database that was put back has an older log: what it numbers from now on is news.
TEST_P(FeederTest, AnOlderLogBeginsAnEpoch) {
  Random random(static_cast<std::uint64_t>(GetParam()));
  while (at_ < 100) ASSERT_NO_FATAL_FAILURE(go_on(random));
  stop_engine();
  start_engine();
  at_ = end_ = 20;
  FeedBatch first{.from = at_, .to = at_, .heartbeat = monotonic_now_us()};
  auto order = feed(std::move(first));
  ASSERT_TRUE(order) << to_string(order.error());
  EXPECT_FALSE(order->new_epoch) << "it may have been read while another node fed";
  FeedBatch second{.from = at_, .to = at_, .heartbeat = monotonic_now_us()};
  order = feed(std::move(second));
  ASSERT_TRUE(order) << to_string(order.error());
  EXPECT_TRUE(order->new_epoch);
  new_epoch_ = true;
  while (at_ < 60) ASSERT_NO_FATAL_FAILURE(go_on(random));
  for (std::uint64_t i = 21; i <= 60; ++i) EXPECT_TRUE(knows(i)) << i;
}

INSTANTIATE_TEST_SUITE_P(Seeds, FeederTest, testing::Range(1, 3));

}  // namespace
}  // namespace larder::engine::redis
