#include "net/timers.h"

#include <gtest/gtest.h>

#include <map>

#include "base/random.h"

namespace larder::net {
namespace {

// Runs all that is due, in order.
void fire(Timers& timers, TimeUs now) {
  const std::uint64_t mark = timers.mark();
  for (Callback due = timers.take_due(now, mark); due; due = timers.take_due(now, mark)) due();
}

TEST(Timers, FireInOrderOfTimeThenOfAdding) {
  Timers timers;
  std::string seen;
  timers.add(20, [&] { seen += 'c'; });
  timers.add(10, [&] { seen += 'a'; });
  timers.add(20, [&] { seen += 'd'; });
  timers.add(15, [&] { seen += 'b'; });
  EXPECT_EQ(timers.next(), 10);
  fire(timers, 9);
  EXPECT_EQ(seen, "");
  fire(timers, 15);
  EXPECT_EQ(seen, "ab");
  fire(timers, 100);
  EXPECT_EQ(seen, "abcd");
  EXPECT_EQ(timers.next(), kNever);
}

TEST(Timers, CancelledNeverFire) {
  Timers timers;
  std::string seen;
  const TimerId a = timers.add(10, [&] { seen += 'a'; });
  const TimerId b = timers.add(10, [&] { seen += 'b'; });
  timers.cancel(a);
  timers.cancel(a);
  timers.cancel(0);
  timers.cancel(12345);
  fire(timers, 10);
  EXPECT_EQ(seen, "b");
  // The id of one that ran does not reach the timer that has its place now.
  timers.add(20, [&] { seen += 'c'; });
  timers.cancel(b);
  timers.cancel(a);
  fire(timers, 20);
  EXPECT_EQ(seen, "bc");
}

TEST(Timers, OneThatSetsItselfAgainWaitsForTheNextTurn) {
  Timers timers;
  int fired = 0;
  std::function<void()> again = [&] {
    ++fired;
    timers.add(0, [&] { again(); });
  };
  timers.add(0, [&] { again(); });
  fire(timers, 5);
  EXPECT_EQ(fired, 1);
  fire(timers, 5);
  EXPECT_EQ(fired, 2);
}

TEST(Timers, ACallbackMayCancelAnother) {
  Timers timers;
  int fired = 0;
  TimerId second = 0;
  timers.add(1, [&] { timers.cancel(second); });
  second = timers.add(1, [&] { ++fired; });
  fire(timers, 1);
  EXPECT_EQ(fired, 0);
}

TEST(Timers, AgreeWithAModel) {
  Random random(3);
  Timers timers;
  std::map<std::pair<TimeUs, int>, TimerId> model;
  std::vector<int> fired;
  int added = 0;
  for (TimeUs now = 0; now < 5'000; ++now) {
    for (std::uint64_t n = random.below(4); n > 0; --n) {
      const TimeUs at = now + static_cast<TimeUs>(random.below(200));
      const int number = ++added;
      model[{at, number}] = timers.add(at, [&fired, number] { fired.push_back(number); });
    }
    if (!model.empty() && random.chance(0.7)) {
      auto it = model.lower_bound({now + static_cast<TimeUs>(random.below(200)), 0});
      if (it != model.end()) {
        timers.cancel(it->second);
        model.erase(it);
      }
    }
    fired.clear();
    fire(timers, now);
    std::vector<int> expected;
    while (!model.empty() && model.begin()->first.first <= now) {
      expected.push_back(model.begin()->first.second);
      model.erase(model.begin());
    }
    ASSERT_EQ(fired, expected);
    ASSERT_EQ(timers.size(), model.size());
    ASSERT_EQ(timers.next(), model.empty() ? kNever : model.begin()->first.first);
  }
}

}  // namespace
}  // namespace larder::net
