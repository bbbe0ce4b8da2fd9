// Against a real server: what a feed of a stream does through restarts, trims and broken keys.
#include "feed/stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/redis_process.h"
#include "feed/feed_testing.h"
#include "net/net_testing.h"

namespace larder::feed {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

class StreamTest : public engine::real::WithRedis<testing::Test> {
 protected:
  StreamTest() { spec_.stream = "s"; }
  void SetUp() override {
    WithRedis::SetUp();
    if (server_ == nullptr) return;
    client_ = std::make_unique<PlainClient>(*runtime_, "unix:" + server_->path());
  }
  void TearDown() override { stop(); }

  // One life of the feed, with deeds of its own.
  void start() {
    deeds_ = std::make_unique<Deeds>();
    group_ = std::make_unique<TaskGroup>();
    feed_ = std::make_unique<StreamFeed>(spec_, "ns:feed:events", *client_, deeds_->actions(),
                                         metrics_, [this](std::string line) {
                                           const std::scoped_lock lock(lines_mutex_);
                                           lines_.push_back(std::move(line));
                                           said_.notify_all();
                                         });
    runtime_.call([this] { group_->spawn(feed_->run(*group_)); });
  }
  void stop() {
    if (!feed_) return;
    runtime_.await<bool>([this] { return end(); });
    feed_.reset();
  }
  Task<bool> end() {
    group_->stop();
    feed_->wake();
    co_await group_->join();
    co_return true;
  }
  // "*" as an id: the server's own.
  void add(const std::string& id, const std::string& stream_id = "*") {
    ASSERT_THAT(redis_->call({"XADD", "s", stream_id, "type", "user", "id", id}), StartsWith("$"));
  }
  void add_many(int from, int to) {
    for (int i = from; i <= to; ++i) add(std::to_string(i));
  }
  std::string position() {
    const auto reply = engine::real::parse(redis_->call({"GET", "ns:feed:events"}));
    return reply.text;
  }
  std::string last_id() {
    const auto state = stream_state(engine::real::parse(redis_->call({"XINFO", "STREAM", "s"})));
    return state ? to_string(state->last) : "?";
  }
  // Everything that a feed does at its very first start.
  void begin() {
    start();
    ASSERT_TRUE(deeds_->wait_for_everything(1));
    stop();
  }
  std::uint64_t events(std::string_view result) {
    return counted(metrics_, "larder_feed_events_total", result);
  }

  Spec spec_ = user_spec();
  obs::Registry metrics_;
  net::TestRuntime runtime_;
  std::unique_ptr<PlainClient> client_;
  std::unique_ptr<Deeds> deeds_;
  std::unique_ptr<TaskGroup> group_;
  std::unique_ptr<StreamFeed> feed_;
  std::mutex lines_mutex_;
  std::condition_variable said_;
  std::vector<std::string> lines_;
};

TEST_F(StreamTest, BeginsAtTheEndAndAppliesWhatComes) {
  add("old");
  start();
  ASSERT_TRUE(deeds_->wait_for_everything(1));
  add("1");
  ASSERT_TRUE(deeds_->wait_for_keys({"user:1"}));
  add("2");
  ASSERT_TRUE(deeds_->wait_for_keys({"user:2"}));
  stop();
  EXPECT_THAT(deeds_->keys, ElementsAre("user:1", "user:2"));
  EXPECT_EQ(deeds_->everythings, 1);
  EXPECT_EQ(position(), last_id() + " 3");
  EXPECT_EQ(events("applied"), 2U);
}

TEST_F(StreamTest, ARestartGoesOnWhereItEnded) {
  begin();
  add_many(1, 3);
  start();
  ASSERT_TRUE(deeds_->wait_for_keys({"user:1", "user:2", "user:3"}));
  stop();
  EXPECT_EQ(deeds_->everythings, 0);
  add("4");
  start();
  ASSERT_TRUE(deeds_->wait_for_keys({"user:4"}));
  stop();
  EXPECT_THAT(deeds_->keys, ElementsAre("user:4"));
  EXPECT_EQ(deeds_->everythings, 0);
}

TEST_F(StreamTest, ManyEntriesInBatches) {
  begin();
  for (int i = 0; i < 2499; ++i) add(std::to_string(i % 1200));
  add("last");
  start();
  ASSERT_TRUE(deeds_->wait_for_keys({"user:1199", "user:last"}));
  stop();
  EXPECT_EQ(deeds_->everythings, 0);
  EXPECT_EQ(deeds_->applications, 3);
  EXPECT_EQ(events("applied"), 2500U);
  EXPECT_EQ(position(), last_id() + " 2500");
}

TEST_F(StreamTest, WhatWasTrimmedAwayBeforeItWasReadVoidsEverything) {
  begin();
  add_many(1, 10);
  redis_->call({"XTRIM", "s", "MAXLEN", "3"});
  start();
  ASSERT_TRUE(deeds_->wait_for_keys({"user:8", "user:9", "user:10"}));
  stop();
  EXPECT_EQ(deeds_->everythings, 1);
  EXPECT_EQ(counted(metrics_, "larder_feed_everything_total", "missed"), 1U);
  // What was read may go.
  redis_->call({"XTRIM", "s", "MAXLEN", "0"});
  add("11");
  start();
  ASSERT_TRUE(deeds_->wait_for_keys({"user:11"}));
  stop();
  EXPECT_EQ(deeds_->everythings, 0);
}

TEST_F(StreamTest, AStreamThatWasReplacedVoidsEverything) {
  add("old", "5000000000000-0");
  begin();
  redis_->call({"DEL", "s"});
  add("1", "7-0");
  start();
  ASSERT_TRUE(deeds_->wait_for_keys({"user:1"}));
  stop();
  EXPECT_EQ(deeds_->everythings, 1);
  EXPECT_EQ(position(), "7-0 1");
}

TEST_F(StreamTest, TheStoredPositionOnlyGrows) {
  begin();
  redis_->call({"SET", "ns:feed:events", "9999999999999-5 77"});
  // Another node is further on; this one begins there too, and its stream has begun anew.
  add("1");
  start();
  ASSERT_TRUE(deeds_->wait_for_everything(1));
  ASSERT_TRUE(deeds_->wait_for_keys({"user:1"}));
  // While it runs, another one gets ahead: it does not put that back.
  redis_->call({"SET", "ns:feed:events", "9999999999999-5 77"});
  add("2");
  ASSERT_TRUE(deeds_->wait_for_keys({"user:2"}));
  add("3");
  ASSERT_TRUE(deeds_->wait_for_keys({"user:3"}));
  stop();
  EXPECT_EQ(position(), "9999999999999-5 77");
}

TEST_F(StreamTest, MalformedEntriesAreCounted) {
  begin();
  redis_->call({"XADD", "s", "*", "type", "user", "name", "x"});
  redis_->call({"XADD", "s", "*", "type", "order", "id", "1"});
  add("1");
  start();
  ASSERT_TRUE(deeds_->wait_for_keys({"user:1"}));
  stop();
  EXPECT_EQ(events("malformed"), 1U);
  EXPECT_EQ(events("ignored"), 1U);
  EXPECT_EQ(events("applied"), 1U);
}

TEST_F(StreamTest, AFieldMayHoldJson) {
  spec_.field = "data";
  begin();
  redis_->call({"XADD", "s", "*", "data", R"({"type":"user","id":7})", "id", "8"});
  redis_->call({"XADD", "s", "*", "datum", R"({"type":"user","id":9})"});
  add("10");
  redis_->call({"XADD", "s", "*", "x", "y", "data", R"({"type":"user","id":11})"});
  start();
  ASSERT_TRUE(deeds_->wait_for_keys({"user:7", "user:11"}));
  stop();
  EXPECT_THAT(deeds_->keys, ElementsAre("user:11", "user:7"));  // sorted: of one batch
  EXPECT_EQ(events("malformed"), 2U);
}

TEST_F(StreamTest, WhatIsNotAppliedIsNotPassed) {
  begin();
  add("0");
  start();
  ASSERT_TRUE(deeds_->wait([](Deeds& d) { return d.applications == 1; }));
  const std::string before = last_id() + " 1";
  for (int i = 0; i < 2000 && position() != before; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  ASSERT_EQ(position(), before);
  deeds_->hold();
  add("1");
  ASSERT_TRUE(deeds_->wait([](Deeds& d) { return d.applications == 2; }));
  EXPECT_EQ(position(), before);
  deeds_->fail_next(1);
  deeds_->release();
  ASSERT_TRUE(deeds_->wait([](Deeds& d) { return d.applications == 3; }));
  stop();
  EXPECT_EQ(position(), last_id() + " 2");
}

TEST_F(StreamTest, AnotherTypeIsWaitedOut) {
  begin();
  redis_->call({"SET", "s", "no stream"});
  start();
  {
    std::unique_lock lock(lines_mutex_);
    ASSERT_TRUE(said_.wait_for(lock, std::chrono::seconds(60), [this] { return !lines_.empty(); }));
    EXPECT_THAT(lines_.back(), HasSubstr("stream s cannot be read now"));
  }
  redis_->call({"DEL", "s"});
  add("1");
  ASSERT_TRUE(deeds_->wait_for_keys({"user:1"}));
  stop();
}

TEST_F(StreamTest, APositionThatIsNoneBeginsAnew) {
  redis_->call({"SET", "ns:feed:events", "garbage"});
  start();
  ASSERT_TRUE(deeds_->wait_for_everything(1));
  add("1");
  ASSERT_TRUE(deeds_->wait_for_keys({"user:1"}));
  stop();
  EXPECT_EQ(position(), last_id() + " 1");
}

}  // namespace
}  // namespace larder::feed
