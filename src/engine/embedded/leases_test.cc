#include "engine/embedded/leases.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <map>

#include "base/hash.h"
#include "base/loop.h"
#include "base/task.h"
#include "engine/embedded/plain.h"

namespace larder::engine {
namespace {

using Kind = Lease::Kind;

// One thread; a clock that moves only when told.
class HandLoop final : public Loop {
 public:
  HandLoop() { set_current(this); }
  ~HandLoop() override { set_current(nullptr); }
  void post(Callback callback) override { queue_.push_back(std::move(callback)); }
  TimerId call_at(TimeUs at, Callback callback) override {
    timers_.emplace(std::pair(at, ++last_), std::move(callback));
    return last_;
  }
  void cancel(TimerId timer) override {
    std::erase_if(timers_, [&](const auto& entry) { return entry.first.second == timer; });
  }
  TimeUs now_us() const override { return now_; }
  std::size_t timers() const { return timers_.size(); }

  void run() {
    while (!queue_.empty()) {
      Callback callback = std::move(queue_.front());
      queue_.pop_front();
      callback();
    }
  }
  void advance(DurationUs us) {
    now_ += us;
    while (!timers_.empty() && timers_.begin()->first.first <= now_) {
      Callback callback = std::move(timers_.begin()->second);
      timers_.erase(timers_.begin());
      callback();
      run();
    }
  }

 private:
  std::deque<Callback> queue_;
  std::map<std::pair<TimeUs, TimerId>, Callback> timers_;
  TimerId last_ = 0;
  TimeUs now_ = 1'000'000'000'000;
};

class LeasesTest : public testing::Test {
 protected:
  void TearDown() override {
    // Whoever still waits is released by the end of the leases.
    for (int i = 0; i < 2000 && group_.running() > 0; ++i) loop_.advance(kSecond);
    EXPECT_EQ(group_.running(), 0U);
  }

  static Task<void> ask(Leases& leases, std::string key, DurationUs wait_us,
                        std::shared_ptr<std::optional<Result<Lease>>> out) {
    Result<Lease> lease = co_await leases.lease(std::move(key), wait_us);
    *out = std::move(lease);
  }
  using Pending = std::shared_ptr<std::optional<Result<Lease>>>;
  Pending start(const std::string& key, DurationUs wait_us) {
    auto out = std::make_shared<std::optional<Result<Lease>>>();
    group_.spawn(ask(leases_, key, wait_us, out));
    loop_.run();
    return out;
  }
  Lease now(const std::string& key) {
    const Pending out = start(key, 0);
    EXPECT_TRUE(out->has_value());
    return (*out)->value();
  }
  std::string command(std::initializer_list<std::string_view> args) {
    std::string text;
    wire::Writer out(text);
    PlainCommands(store_).run(*PlainCommands::find(*args.begin()), Args(args.begin(), args.size()),
                              loop_.now_us(), out);
    return text;
  }
  Result<bool> fill(const std::string& key, const Lease& lease, const std::string& value,
                    const std::vector<std::string>& tags = {}) {
    auto result = leases_.fill(key, lease.text, value, loop_.now_us(), kNever, tags);
    loop_.run();
    return result;
  }

  HandLoop loop_;
  near::Store store_{{.capacity_bytes = 4 << 20}};
  Leases leases_{store_,
                 {.lease_us = 10 * kSecond, .max_leases = 100, .max_waiters = 5, .seed = 1}};
  TaskGroup group_;
};

TEST_F(LeasesTest, OneLoadsTheOthersAreTold) {
  const Lease lease = now("k");
  EXPECT_EQ(lease.kind, Kind::ticket);
  EXPECT_EQ(lease.text.size(), 32U);
  EXPECT_EQ(now("k").kind, Kind::busy);
  EXPECT_EQ(now("other").kind, Kind::ticket);
  EXPECT_EQ(leases_.count(), 2U);
  EXPECT_EQ(fill("k", lease, "v"), true);
  EXPECT_EQ(leases_.count(), 1U);
  EXPECT_EQ(now("k").kind, Kind::value);
  EXPECT_EQ(now("k").text, "v");
  EXPECT_EQ(command({"GET", "k"}), "$1\r\nv\r\n");
  EXPECT_EQ(fill("k", lease, "again"), false) << "once";
}

TEST_F(LeasesTest, WaitersGetTheFill) {
  const Lease lease = now("k");
  const Pending one = start("k", 5 * kSecond);
  const Pending two = start("k", 5 * kSecond);
  EXPECT_FALSE(one->has_value());
  EXPECT_EQ(fill("k", lease, "v"), true);
  ASSERT_TRUE(one->has_value() && two->has_value());
  EXPECT_EQ((*one)->value().text, "v");
  EXPECT_EQ((*two)->value().kind, Kind::value);
  EXPECT_EQ(loop_.timers(), 0U);
}

TEST_F(LeasesTest, WaitersAreToldBusyWhenTheirTimeIsUp) {
  now("k");
  const Pending one = start("k", kSecond);
  loop_.advance(kSecond - 1);
  EXPECT_FALSE(one->has_value());
  loop_.advance(1);
  ASSERT_TRUE(one->has_value());
  EXPECT_EQ((*one)->value().kind, Kind::busy);
}

TEST_F(LeasesTest, TheNextWaiterLoadsWhenTheHolderIsGone) {
  const Lease lost = now("k");
  const Pending one = start("k", 60 * kSecond);
  const Pending two = start("k", 60 * kSecond);
  loop_.advance(10 * kSecond);
  ASSERT_TRUE(one->has_value());
  EXPECT_EQ((*one)->value().kind, Kind::ticket);
  EXPECT_FALSE(two->has_value()) << "waits for the new holder";
  EXPECT_EQ(fill("k", lost, "late"), false);
  EXPECT_EQ(fill("k", (*one)->value(), "v"), true);
  ASSERT_TRUE(two->has_value());
  EXPECT_EQ((*two)->value().text, "v");
}

TEST_F(LeasesTest, ALateFillIsRefusedEvenIfNobodyAskedSince) {
  const Lease lease = now("k");
  loop_.advance(10 * kSecond);
  EXPECT_EQ(fill("k", lease, "late"), false);
  EXPECT_EQ(now("k").kind, Kind::ticket);
}

TEST_F(LeasesTest, AnyChangeOfTheKeyVoidsTheLease) {
  const Lease by_set = now("k");
  command({"SET", "k", "newer"});
  EXPECT_EQ(fill("k", by_set, "older"), false);
  EXPECT_EQ(now("k").text, "newer");
  command({"DEL", "k"});
  const Lease by_del = now("k");
  command({"DEL", "k"});
  const Lease next = now("k");
  EXPECT_EQ(next.kind, Kind::ticket) << "the void one does not block";
  EXPECT_EQ(fill("k", by_del, "older"), false);
  EXPECT_EQ(fill("k", next, "v"), true);
  command({"FLUSHALL"});
  const Lease by_flush = now("k");
  command({"FLUSHALL"});
  EXPECT_EQ(fill("k", by_flush, "older"), false);
}

TEST_F(LeasesTest, ARefusedFillLetsTheNextOneLoad) {
  const Lease lease = now("k");
  const Pending waiter = start("k", 60 * kSecond);
  command({"DEL", "k"});
  EXPECT_EQ(fill("k", lease, "older"), false);
  ASSERT_TRUE(waiter->has_value());
  EXPECT_EQ((*waiter)->value().kind, Kind::ticket);
}

TEST_F(LeasesTest, TagsVoidWhatWasFilled) {
  const Lease lease = now("k");
  ASSERT_EQ(fill("k", lease, "v", {"a", "b"}), true);
  store_.invalidate_tag(hash_bytes("b"));
  EXPECT_EQ(command({"GET", "k"}), "$-1\r\n");
  const Lease again = now("k");
  EXPECT_EQ(again.kind, Kind::ticket);
  store_.invalidate_tag(hash_bytes("a"));
  EXPECT_EQ(fill("k", again, "older", {"a"}), false);
}

TEST_F(LeasesTest, ExpiryIsThatOfTheFill) {
  const Lease lease = now("k");
  ASSERT_TRUE(
      leases_.fill("k", lease.text, "v", loop_.now_us(), loop_.now_us() + kSecond, {}).value());
  EXPECT_EQ(command({"PTTL", "k"}), ":1000\r\n");
  loop_.advance(kSecond);
  EXPECT_EQ(now("k").kind, Kind::ticket);
}

TEST_F(LeasesTest, WrongTicketsStoreNothingAndEndNothing) {
  const Lease lease = now("k");
  for (const std::string& wrong : {std::string(), std::string(32, '0'), lease.text + "0"})
    EXPECT_EQ(leases_.fill("k", wrong, "v", loop_.now_us(), kNever, {}), false);
  EXPECT_EQ(leases_.fill("other", lease.text, "v", loop_.now_us(), kNever, {}), false);
  EXPECT_EQ(fill("k", lease, "v"), true);
}

TEST_F(LeasesTest, SaysWhatDoesNotFit) {
  const Lease lease = now("k");
  const auto result = fill("k", lease, std::string(1 << 20, 'x'));
  ASSERT_FALSE(result);
  EXPECT_THAT(result.error().message, testing::HasSubstr("raise [near] capacity"));
  const auto tags = fill("k", now("k"), "v", std::vector<std::string>(300, "t"));
  ASSERT_FALSE(tags);
  EXPECT_EQ(tags.error().message, "300 tags, at most 255");
}

TEST_F(LeasesTest, BothBoundsHold) {
  for (int i = 0; i < 100; ++i) EXPECT_EQ(now(std::to_string(i)).kind, Kind::ticket);
  const Pending refused = start("one more", 0);
  ASSERT_TRUE(refused->has_value());
  EXPECT_EQ((*refused)->error().code, ErrorCode::overloaded);
  std::vector<Pending> waiters;
  waiters.reserve(5);
  for (int i = 0; i < 5; ++i) waiters.push_back(start("0", kSecond));
  const Pending crowded = start("0", kSecond);
  ASSERT_TRUE(crowded->has_value());
  EXPECT_EQ((*crowded)->error().code, ErrorCode::overloaded);
  loop_.advance(kSecond);
  EXPECT_EQ(start("0", kSecond)->has_value(), false) << "their places are free again";
  loop_.advance(10 * kSecond);
  EXPECT_EQ(now("one more").kind, Kind::ticket) << "leases that are over do not count";
}

}  // namespace
}  // namespace larder::engine
