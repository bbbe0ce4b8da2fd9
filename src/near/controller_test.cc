#include "near/controller.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <set>
#include <vector>

#include "base/random.h"

namespace larder::near {
namespace {

Hash hash_of(std::uint64_t key) { return mix64(key + 0x9e3779b97f4a7c15ULL); }

// Keys with the popularity of rank^-exponent.
class Zipf {
 public:
  Zipf(std::size_t keys, double exponent) {
    double sum = 0;
    for (std::size_t i = 1; i <= keys; ++i) {
      sum += std::pow(static_cast<double>(i), -exponent);
      sums_.push_back(sum);
    }
  }
  std::uint64_t draw(Random& random) const {
    return static_cast<std::uint64_t>(
        std::ranges::lower_bound(sums_, random.unit() * sums_.back()) - sums_.begin());
  }

 private:
  std::vector<double> sums_;
};

struct Course {
  std::vector<Tuning> decisions;
  std::uint64_t recorded = 0;
};

Course run(Controller& controller, std::uint64_t requests,
           const std::function<std::uint64_t(std::uint64_t)>& key_at) {
  Course course;
  for (std::uint64_t i = 0; i < requests; ++i) {
    const Hash hash = hash_of(key_at(i));
    if (!controller.sampled(hash)) continue;
    ++course.recorded;
    controller.record(hash, 1, 1);
    if (const auto tuning = controller.decide()) course.decisions.push_back(*tuning);
  }
  return course;
}

TEST(Controller, BeginsWithTheDefault) {
  Controller controller({.capacity = 1000});
  EXPECT_EQ(controller.current(), Tuning{});
  EXPECT_FALSE(controller.decide());
}

TEST(Controller, LearnsThatPopularityIsStable) {
  Controller controller({.capacity = 20000});
  const Zipf zipf(100000, 0.8);
  Random random(1);
  const Course course = run(controller, 3'000'000, [&](auto) { return zipf.draw(random); });
  EXPECT_EQ(controller.current(), Controller::kCandidates[1]);
  EXPECT_LE(course.decisions.size(), 3U);
}

TEST(Controller, LearnsThatWhatWasUsedLatelyIsUsedAgain) {
  Controller controller({.capacity = 20000});
  Random random(2);
  // A hot set that moves on, a little larger than the small queue would be by default.
  const Course course = run(controller, 2'000'000, [&](std::uint64_t i) {
    return random.below(5) == 0 ? (1 << 30) + random.below(1 << 28) : i / 10 + random.below(8000);
  });
  EXPECT_EQ(controller.current(), Controller::kCandidates[3]);
  EXPECT_LE(course.decisions.size(), 3U);
}

TEST(Controller, ChangesItsMindWhenTheWorkloadChanges) {
  Controller controller({.capacity = 20000});
  const Zipf zipf(100000, 0.8);
  Random random(3);
  run(controller, 2'000'000, [&](auto) { return zipf.draw(random); });
  EXPECT_EQ(controller.current(), Controller::kCandidates[1]);
  run(controller, 4'000'000, [&](std::uint64_t i) {
    return random.below(5) == 0 ? (1 << 30) + random.below(1 << 28)
                                : (1 << 20) + i / 10 + random.below(8000);
  });
  EXPECT_EQ(controller.current(), Controller::kCandidates[3]);
}

TEST(Controller, NoiseDoesNotMoveIt) {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    Controller controller({.capacity = 10000});
    Random random(seed);
    // All keys alike: every policy hits one in ten.
    const Course course = run(controller, 1'000'000, [&](auto) { return random.below(100000); });
    EXPECT_LE(course.decisions.size(), 1U) << seed;
  }
}

TEST(Controller, WithoutEvictionsThereIsNothingToDecide) {
  Controller controller({.capacity = 10000});
  Random random(5);
  const Course course = run(controller, 500'000, [&](auto) { return random.below(5000); });
  EXPECT_TRUE(course.decisions.empty());
}

TEST(Controller, ASmallCacheStaysAsItIs) {
  Controller controller({.capacity = 1000, .least_shift = 4});
  const Zipf zipf(10000, 0.8);
  Random random(6);
  const Course course = run(controller, 1'000'000, [&](auto) { return zipf.draw(random); });
  EXPECT_TRUE(course.decisions.empty());
  EXPECT_GT(course.recorded, 0U);
}

TEST(Controller, TheSampleFitsTheCache) {
  for (const std::uint64_t capacity : {1000U, 30000U, 1000000U}) {
    Controller controller({.capacity = capacity, .max_entries = 1024, .least_shift = 0});
    Random random(7);
    run(controller, 4 * capacity + 100000, [&](auto) { return random.below(2 * capacity); });
    const double entries = static_cast<double>(capacity) / (1ULL << controller.shift());
    EXPECT_LE(entries, 1024);
    EXPECT_GE(entries, 250);
    unsigned sampled = 0;
    for (std::uint64_t key = 0; key < 1 << 20; ++key) sampled += controller.sampled(hash_of(key));
    const double expected = static_cast<double>(1 << 20) / (1ULL << controller.shift());
    EXPECT_NEAR(sampled, expected, 6 * std::sqrt(expected));
  }
}

TEST(Controller, TheSampleGrowsWhenEntriesBecomeHeavier) {
  Controller controller({.capacity = 1'000'000, .max_entries = 1024, .least_shift = 0});
  Random random(8);
  const auto use = [&](std::uint32_t weight) {
    for (int i = 0; i < 3'000'000; ++i)
      controller.record(hash_of(random.below(10'000'000 / weight) + weight * (1ULL << 32)), weight,
                        1);
  };
  use(10);
  const unsigned before = controller.shift();
  use(200);
  EXPECT_LE(controller.shift(), before - 2);
}

TEST(Controller, MemoryIsKnownFromTheBeginning) {
  Controller small({.capacity = 1000});
  Controller large({.capacity = 1ULL << 40});
  EXPECT_EQ(small.bytes(), large.bytes());
  EXPECT_LT(small.bytes(), 200U << 10);
  const std::size_t before = large.bytes();
  Random random(9);
  for (int i = 0; i < 1'000'000; ++i) large.record(random.next(), 100, 1);
  EXPECT_EQ(large.bytes(), before);
  EXPECT_LT(Controller({.capacity = 1000, .max_entries = 512}).bytes(), small.bytes());
}

TEST(Controller, WhatIsNotSampledIsNotRecorded) {
  Controller controller({.capacity = 100, .least_shift = 31});
  Random random(10);
  for (int i = 0; i < 100'000; ++i) controller.record(random.next(), 1, 1);
  EXPECT_EQ(controller.shift(), 31U);
  EXPECT_FALSE(controller.decide());
}

TEST(Controller, ExtremesDoNoHarm) {
  for (const std::uint64_t capacity :
       {std::uint64_t{0}, std::uint64_t{1}, std::numeric_limits<std::uint64_t>::max()}) {
    Controller controller({.capacity = capacity, .shards = 0, .max_entries = 0, .least_shift = 0});
    Random random(11);
    const std::uint32_t extremes[] = {0, 1, 100, std::numeric_limits<std::uint32_t>::max()};
    for (int i = 0; i < 300'000; ++i)
      controller.record(hash_of(random.below(5000)), extremes[random.below(4)],
                        extremes[random.below(4)]);
  }
}

// A key's weight and cost may change between two requests; those of a miniature do not.
TEST(Controller, WeightsThatChangeDoNoHarm) {
  Controller controller({.capacity = 50000, .least_shift = 0});
  Random random(12);
  for (int i = 0; i < 500'000; ++i)
    controller.record(hash_of(random.below(3000)), static_cast<std::uint32_t>(random.below(300)),
                      static_cast<std::uint32_t>(random.below(1000)));
  EXPECT_LE(controller.shift(), 2U);
}

}  // namespace
}  // namespace larder::near
