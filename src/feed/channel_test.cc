#include "feed/channel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "feed/feed_testing.h"
#include "net/net_testing.h"

namespace larder::feed {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string event(std::string_view id) { return fmt::format(R"({{"type":"user","id":"{}"}})", id); }

class ChannelTest : public testing::Test {
 protected:
  ChannelTest() {
    spec_.channel = "news";
    spec_.queue = 5;
  }
  void TearDown() override { stop(); }

  void start() {
    feed_ = std::make_unique<ChannelFeed>(spec_, client_, deeds_.actions(), metrics_,
                                          [this](std::string line) {
                                            const std::scoped_lock lock(lines_mutex_);
                                            lines_.push_back(std::move(line));
                                          });
    runtime_.call([this] { group_.spawn(feed_->run(group_)); });
  }
  // Subscribed, and what that means is done.
  void start_and_subscribe() {
    start();
    runtime_.call([this] { client_.subscriber->on_subscribed("news"); });
    ASSERT_TRUE(deeds_.wait_for_everything(1));
  }
  void say(const std::vector<std::string>& messages) {
    runtime_.call([&] {
      for (const std::string& message : messages) client_.subscriber->on_message("news", message);
    });
  }
  void stop() {
    if (!feed_) return;
    runtime_.await<bool>([this] { return end(); });
    feed_.reset();
  }
  Task<bool> end() {
    group_.stop();
    feed_->wake();
    co_await group_.join();
    co_return true;
  }
  std::uint64_t events(std::string_view result) {
    return counted(metrics_, "larder_feed_events_total", result);
  }
  std::uint64_t everythings(std::string_view reason) {
    return counted(metrics_, "larder_feed_everything_total", reason);
  }

  Spec spec_ = user_spec();
  obs::Registry metrics_;
  Deeds deeds_;
  net::TestRuntime runtime_;
  PlainClient client_{*runtime_, ""};
  TaskGroup group_;
  std::unique_ptr<ChannelFeed> feed_;
  std::mutex lines_mutex_;
  std::vector<std::string> lines_;
};

TEST_F(ChannelTest, AppliesWhatIsSaid) {
  start_and_subscribe();
  EXPECT_THAT(client_.subscribed, ElementsAre("news"));
  EXPECT_EQ(everythings("subscribed"), 1U);
  say({event("1")});
  ASSERT_TRUE(deeds_.wait_for_keys({"user:1"}));
  say({event("2"), event("3")});
  ASSERT_TRUE(deeds_.wait_for_keys({"user:2", "user:3"}));
  EXPECT_THAT(metrics_.prometheus(), HasSubstr("larder_feed_up{feed=\"events\"} 1"));
  stop();
  EXPECT_EQ(client_.subscriber, nullptr);
  EXPECT_EQ(events("applied"), 3U);
  EXPECT_EQ(deeds_.everythings, 1);
  EXPECT_THAT(metrics_.prometheus(), Not(HasSubstr("larder_feed_up")));
}

TEST_F(ChannelTest, CountsAndSurvivesWhatIsNotForIt) {
  start_and_subscribe();
  say({R"({"type":"order","id":"1"})", "nonsense", "", R"({"type":"user"})",
       R"({"type":"user","id":null})", std::string(spec_.max_event_bytes + 1, ' '), event("1")});
  ASSERT_TRUE(deeds_.wait_for_keys({"user:1"}));
  stop();
  EXPECT_EQ(events("ignored"), 1U);
  EXPECT_EQ(events("malformed"), 5U);
  EXPECT_EQ(events("applied"), 1U);
  EXPECT_EQ(lines_.size(), 1U) << "one line for all of them";
  EXPECT_THAT(lines_.at(0), HasSubstr("feed events: an event is malformed: it is not JSON"));
}

TEST_F(ChannelTest, AKeyThatNoCacheDeclaresIsMalformed) {
  spec_.rule.key = *Template::parse("{id}");
  start_and_subscribe();
  say({event("order:1"), event("user:1")});
  ASSERT_TRUE(deeds_.wait_for_keys({"user:1"}));
  stop();
  EXPECT_EQ(events("malformed"), 1U);
  EXPECT_THAT(deeds_.keys, ElementsAre("user:1"));
}

TEST_F(ChannelTest, EqualKeysThatWaitAreAppliedOnce) {
  start_and_subscribe();
  deeds_.hold();
  say({event("1")});
  ASSERT_TRUE(deeds_.wait([](Deeds& d) { return d.applications == 1; }));
  for (int i = 0; i < 100; ++i) say({event("1"), event("2")});
  deeds_.release();
  ASSERT_TRUE(deeds_.wait_for_keys({"user:2"}));
  stop();
  // The first one, and then again what was said while it was being applied.
  EXPECT_EQ(std::ranges::count(deeds_.keys, "user:1"), 2);
  EXPECT_EQ(std::ranges::count(deeds_.keys, "user:2"), 1);
  EXPECT_EQ(events("applied"), 201U);
  EXPECT_EQ(deeds_.everythings, 1);
}

TEST_F(ChannelTest, OverflowMakesEverythingVoid) {
  start_and_subscribe();
  deeds_.hold();
  say({event("0")});
  ASSERT_TRUE(deeds_.wait([](Deeds& d) { return d.applications == 1; }));
  for (int i = 1; i <= 6; ++i) say({event(std::to_string(i))});
  deeds_.release();
  ASSERT_TRUE(deeds_.wait_for_everything(2));
  say({event("7")});
  ASSERT_TRUE(deeds_.wait_for_keys({"user:7"}));
  stop();
  EXPECT_EQ(everythings("overflow"), 1U);
  EXPECT_THAT(deeds_.keys, ElementsAre("user:0", "user:7"));
  EXPECT_EQ(events("applied"), 8U);
}

TEST_F(ChannelTest, ALostSubscriptionMakesEverythingVoidAndAgainWhenItIsBack) {
  start_and_subscribe();
  runtime_.call([this] { client_.subscriber->on_lost("news"); });
  ASSERT_TRUE(deeds_.wait_for_everything(2));
  EXPECT_THAT(metrics_.prometheus(), HasSubstr("larder_feed_up{feed=\"events\"} 0"));
  runtime_.call([this] { client_.subscriber->on_subscribed("news"); });
  ASSERT_TRUE(deeds_.wait_for_everything(3));
  say({event("1")});
  ASSERT_TRUE(deeds_.wait_for_keys({"user:1"}));
  stop();
  EXPECT_EQ(everythings("lost"), 1U);
  EXPECT_EQ(everythings("subscribed"), 2U);
}

TEST_F(ChannelTest, WhatFailsIsDoneAgain) {
  start();
  deeds_.fail_next(2);
  runtime_.call([this] { client_.subscriber->on_subscribed("news"); });
  ASSERT_TRUE(deeds_.wait_for_everything(1));
  deeds_.fail_next(2);
  say({event("1")});
  ASSERT_TRUE(deeds_.wait_for_keys({"user:1"}));
  stop();
  EXPECT_EQ(events("applied"), 1U);
  EXPECT_EQ(everythings("subscribed"), 1U);
}

TEST_F(ChannelTest, StopsWhileItTriesAgain) {
  start();
  deeds_.fail_next(1'000'000);
  runtime_.call([this] { client_.subscriber->on_subscribed("news"); });
  say({event("1")});
  stop();
  EXPECT_EQ(deeds_.everythings, 0);
  EXPECT_EQ(events("applied"), 0U);
}

TEST(SayRarely, SaysHowOftenItWasNotSaid) {
  std::vector<std::string> lines;
  SayRarely say([&](std::string line) { lines.push_back(std::move(line)); }, 10);
  say(100, "a");
  say(105, "b");
  say(109, "c");
  say(110, "d");
  say(120, "e");
  EXPECT_THAT(lines, ElementsAre("a", "d (and 2 more since the last such line)", "e"));
  SayRarely({})(1, "nobody listens");
}

}  // namespace
}  // namespace larder::feed
