#include "resilience/backoff.h"

#include <gtest/gtest.h>

#include <set>

namespace larder::resilience {
namespace {

TEST(Backoff, DoublesUpToItsBound) {
  Random random(1);
  for (int round = 0; round < 100; ++round) {
    Backoff backoff({.first_us = 1000, .most_us = 6000});
    for (const DurationUs step : {1000, 2000, 4000, 6000, 6000, 6000}) {
      const DurationUs pause = backoff.next(random);
      EXPECT_GE(pause, step / 2);
      EXPECT_LE(pause, step);
    }
    EXPECT_EQ(backoff.attempts(), 6u);
    backoff.reset();
    EXPECT_EQ(backoff.attempts(), 0u);
    EXPECT_LE(backoff.next(random), 1000);
  }
}

TEST(Backoff, PartsThoseWhoFailedTogether) {
  std::set<DurationUs> pauses;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    Random random(seed);
    Backoff backoff({.first_us = 1'000'000, .most_us = 1'000'000});
    pauses.insert(backoff.next(random));
  }
  EXPECT_GT(pauses.size(), 95u);
  EXPECT_GT(*pauses.rbegin() - *pauses.begin(), 400'000) << "over the whole upper half";
}

TEST(Backoff, SmallAndHugeBounds) {
  Random random(7);
  Backoff none({.first_us = 0, .most_us = 0});
  EXPECT_EQ(none.next(random), 0);
  EXPECT_EQ(none.next(random), 0);
  Backoff one({.first_us = 1, .most_us = 1});
  EXPECT_LE(one.next(random), 1);
  Backoff less({.first_us = 100, .most_us = 10});
  EXPECT_LE(less.next(random), 10);
  Backoff huge({.first_us = kNever / 2 + 1, .most_us = kNever});
  EXPECT_GT(huge.next(random), 0);
  EXPECT_GT(huge.next(random), 0);
}

}  // namespace
}  // namespace larder::resilience
