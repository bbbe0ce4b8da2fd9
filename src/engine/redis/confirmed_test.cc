#include "engine/redis/confirmed.h"

#include <gtest/gtest.h>

namespace larder::engine::redis {
namespace {

TEST(Confirmed, WhatWasAppliedLongEnoughAgo) {
  Confirmed confirmed;
  TimeUs now = 1'000 * kSecond;
  for (std::uint64_t position = 1; position <= 100; ++position) {
    confirmed.note(now, position);
    now += 100 * kMillisecond;
  }
  EXPECT_EQ(confirmed.position(), 0U);
  confirmed.note(now, 101);
  EXPECT_EQ(confirmed.position(), 1U);
  confirmed.note(now + kSecond, 102);
  EXPECT_EQ(confirmed.position(), 11U) << "one a second is remembered";
  confirmed.note(now + 60 * kSecond, 103);
  EXPECT_EQ(confirmed.position(), 102U);
}

TEST(Confirmed, WhatWasLostCountsNoMore) {
  Confirmed confirmed;
  const TimeUs start = 1'000 * kSecond;
  confirmed.note(start, 10);
  confirmed.note(start + 11 * kSecond, 20);
  EXPECT_EQ(confirmed.position(), 10U);
  confirmed.note(start + 12 * kSecond, 15);  // it has failed over
  confirmed.note(start + 21 * kSecond, 30);
  EXPECT_EQ(confirmed.position(), 10U);
  confirmed.note(start + 22 * kSecond, 31);
  EXPECT_EQ(confirmed.position(), 15U);
  confirmed.hold();
  confirmed.note(start + 40 * kSecond, 40);
  EXPECT_EQ(confirmed.position(), 15U);
  confirmed.reset();
  EXPECT_EQ(confirmed.position(), 0U);
}

}  // namespace
}  // namespace larder::engine::redis
