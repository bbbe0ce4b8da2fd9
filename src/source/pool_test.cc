#include "source/pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "source/testing.h"

namespace larder::source {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::RuntimeLoop;
using testing::TestLoop;

struct Fake {
  int number = 0;
  Loop* home = nullptr;
  bool is_broken = false;
  bool is_stale = false;
  int* alive = nullptr;

  Fake(int number, int& alive) : number(number), home(Loop::current()), alive(&alive) { ++alive; }
  ~Fake() { --*alive; }
  Fake(const Fake&) = delete;
  Fake& operator=(const Fake&) = delete;
  Loop& loop() const { return *home; }
  bool broken() const { return is_broken || is_stale; }
  bool stale() { return broken(); }
};
using FakePool = Pool<Fake>;
using Lease = FakePool::Lease;

class PoolTest : public ::testing::Test {
 protected:
  FakePool make(std::size_t most, std::size_t queue = 100) {
    return FakePool({.name = "shop", .most = most, .queue = queue, .seed = 7},
                    [this](TimeUs) { return open(*this); });
  }
  static Task<Result<std::unique_ptr<Fake>>> open(PoolTest& self) {
    ++self.attempts_;
    if (self.hold_) co_await self.hold_->wait();
    if (self.down_) co_return fail(ErrorCode::source_down, "refused");
    co_return std::make_unique<Fake>(++self.opened_, self.alive_);
  }
  static TimeUs soon() { return monotonic_now_us() + 20 * kSecond; }

  Result<Lease> take(FakePool& pool, TimeUs deadline = soon()) {
    return loop_.run(pool.take(deadline));
  }
  // Takes one, keeps it until `until`, notes when it had it.
  static Task<void> use(PoolTest& self, FakePool& pool, int who, Waiters* until) {
    auto lease = co_await pool.take(soon());
    self.order_.push_back(lease ? who : -who);
    if (!lease) self.errors_.push_back(lease.error().message);
    if (lease && until) co_await until->wait();
  }

  int attempts_ = 0, opened_ = 0, alive_ = 0;
  TestLoop loop_;  // after what its last callbacks touch
  bool down_ = false;
  std::unique_ptr<Waiters> hold_;
  std::vector<int> order_;
  std::vector<std::string> errors_;
};

TEST_F(PoolTest, OpensWhatIsNeededAndNoMore) {
  {
    FakePool pool = make(2);
    {
      auto first = take(pool);
      ASSERT_TRUE(first);
      EXPECT_EQ((*first)->number, 1);
    }
    auto again = take(pool);
    EXPECT_EQ((*again)->number, 1);
    auto second = take(pool);
    EXPECT_EQ((*second)->number, 2);
    EXPECT_EQ(pool.open_connections(), 2U);
    const auto third = take(pool, monotonic_now_us() + kMillisecond);
    ASSERT_FALSE(third);
    EXPECT_EQ(third.error().code, ErrorCode::timeout);
    EXPECT_THAT(third.error().message, HasSubstr("raise its pool"));
    EXPECT_EQ(pool.waiting(), 0U);
  }
  // Those that lay idle are closed on their loop.
  loop_.run_until([&] { return alive_ == 0; });
}

TEST_F(PoolTest, WhoWaitsIsServedInOrder) {
  FakePool pool = make(1);
  Waiters first_done;
  TaskGroup group;
  for (int who = 1; who <= 4; ++who)
    loop_.spawn(group, use(*this, pool, who, who == 1 ? &first_done : nullptr));
  EXPECT_THAT(order_, ElementsAre(1));
  EXPECT_EQ(pool.waiting(), 3U);
  first_done.notify();
  loop_.run_until([&] { return group.running() == 0; });
  EXPECT_THAT(order_, ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(opened_, 1);
}

TEST_F(PoolTest, TheQueueIsBounded) {
  FakePool pool = make(1, 2);
  Waiters done;
  TaskGroup group;
  for (int who = 1; who <= 4; ++who) loop_.spawn(group, use(*this, pool, who, &done));
  EXPECT_THAT(order_, ElementsAre(1, -4));
  EXPECT_THAT(errors_, ElementsAre(HasSubstr("2 wait already for one of its 1 connections")));
  done.notify();
  loop_.run_until([&] { return group.running() == 0; });
  EXPECT_THAT(order_, ElementsAre(1, -4, 2, 3));
}

TEST_F(PoolTest, ABrokenOneIsReplacedForWhoWaits) {
  FakePool pool = make(1);
  auto first = take(pool);
  ASSERT_TRUE(first);
  TaskGroup group;
  loop_.spawn(group, use(*this, pool, 2, nullptr));
  (*first)->is_broken = true;
  first->give_back();
  loop_.run_until([&] { return group.running() == 0; });
  EXPECT_THAT(order_, ElementsAre(2));
  EXPECT_EQ(opened_, 2);
  loop_.run_until([&] { return alive_ == 1; });
}

TEST_F(PoolTest, WhatTheServerClosedWhileItLayIdleIsNotUsed) {
  FakePool pool = make(2);
  Fake* one = nullptr;
  {
    auto first = take(pool);
    auto second = take(pool);
    one = &**first;
    (*second)->is_stale = false;
  }
  one->is_stale = true;
  auto a = take(pool);
  auto b = take(pool);
  ASSERT_TRUE(a && b);
  EXPECT_FALSE((*a)->broken());
  EXPECT_FALSE((*b)->broken());
  EXPECT_EQ(opened_, 3);
}

TEST_F(PoolTest, AServerThatIsDownCostsNoTimeAndIsNotFlooded) {
  FakePool pool = make(4);
  down_ = true;
  EXPECT_EQ(take(pool).error().message, "refused");
  for (int i = 0; i < 100; ++i) EXPECT_EQ(take(pool).error().code, ErrorCode::source_down);
  EXPECT_LT(attempts_, 50);  // the pauses grow from 5 ms: a hundred calls take far less
  // One at a time finds out.
  const int before = attempts_;
  hold_ = std::make_unique<Waiters>();
  TaskGroup group;
  while (attempts_ == before)  // until the pause has passed, and somebody tries
    loop_.spawn(group, use(*this, pool, 1, nullptr));
  const std::size_t failed = order_.size();
  for (int i = 0; i < 10; ++i) loop_.spawn(group, use(*this, pool, 2, nullptr));
  EXPECT_EQ(attempts_, before + 1);
  EXPECT_EQ(order_.size(), failed + 10);
  down_ = false;
  hold_->notify();
  loop_.run_until([&] { return group.running() == 0; });
  EXPECT_EQ(order_.back(), 1);
  hold_.reset();
  EXPECT_TRUE(take(pool));
}

TEST_F(PoolTest, WhoWaitsIsToldThatTheServerHasGone) {
  FakePool pool = make(1);
  auto first = take(pool);
  ASSERT_TRUE(first);
  TaskGroup group;
  for (int who = 1; who <= 3; ++who) loop_.spawn(group, use(*this, pool, who, nullptr));
  down_ = true;
  (*first)->is_broken = true;
  first->give_back();
  loop_.run_until([&] { return group.running() == 0; });
  EXPECT_THAT(order_, ElementsAre(-1, -2, -3));
  EXPECT_EQ(attempts_, 2);
}

struct OnTwoLoops {
  Loop* had = nullptr;
  Loop* own = nullptr;
  int number = 0;
};

Task<OnTwoLoops> take_on(FakePool& pool, Loop& loop) {
  co_await resume_on(loop);
  auto lease = co_await pool.take(monotonic_now_us() + 20 * kSecond);
  OnTwoLoops out{.had = Loop::current(), .own = &(*lease)->loop(), .number = (*lease)->number};
  lease->give_back();
  co_await resume_on(loop);
  co_return out;
}

TEST(PoolLoops, AConnectionIsUsedWhereItLives) {
  int alive = 0, opened = 0;
  RuntimeLoop loops(2);
  struct Opener {
    static Task<Result<std::unique_ptr<Fake>>> open(int& opened, int& alive) {
      co_return std::make_unique<Fake>(++opened, alive);
    }
  };
  FakePool pool({.name = "shop", .most = 2, .seed = 7},
                [&](TimeUs) { return Opener::open(opened, alive); });
  for (int round = 0; round < 2; ++round)
    for (unsigned i = 0; i < 2; ++i) {
      const OnTwoLoops one = loops.run(take_on(pool, loops.loop(i)));
      EXPECT_EQ(one.had, &loops.loop(i));
      EXPECT_EQ(one.own, &loops.loop(i));
      EXPECT_EQ(one.number, static_cast<int>(i) + 1);
    }
  // With all open, one of another loop serves too.
  auto held = loops.run(pool.take(monotonic_now_us() + 20 * kSecond));
  EXPECT_EQ((*held)->number, 1);
  const OnTwoLoops other = loops.run(take_on(pool, loops.loop(0)));
  EXPECT_EQ(other.number, 2);
  EXPECT_EQ(other.had, &loops.loop(1));
  EXPECT_EQ(opened, 2);
}

}  // namespace
}  // namespace larder::source
