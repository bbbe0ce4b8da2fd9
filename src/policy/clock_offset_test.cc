#include "policy/clock_offset.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace larder::policy {
namespace {

TEST(ClockOffset, KeepsTheNarrowestProofUntilItsAgeHasMadeItWider) {
  ClockOffset offset;
  EXPECT_FALSE(offset.known());
  offset.observe(1'000, 501'500, 2'000);  // theirs - ours in [499'500, 500'500]
  ASSERT_TRUE(offset.known());
  EXPECT_EQ(offset.width(2'000), 1'000);
  EXPECT_EQ(offset.to_ours(501'500, 2'000), 1'000);
  EXPECT_EQ(offset.to_theirs(2'000, 2'000), 501'500);
  offset.observe(2'000, 509'000, 12'000);  // worse
  EXPECT_EQ(offset.to_ours(501'500, 2'000), 1'000);
  const TimeUs later = 2'000 + 10'000 * ClockOffset::kDrift;
  offset.observe(later, later + 500'000, later + 10'000);  // worse than it was, better than it is
  EXPECT_EQ(offset.width(later + 10'000), 10'000);
  offset.observe(later, 0, later - 1);  // no round trip
  EXPECT_EQ(offset.width(later + 10'000), 10'000);
  offset.forget();
  EXPECT_FALSE(offset.known());
}

TEST(ClockOffset, NoticesThatTheOtherClockWasSet) {
  ClockOffset offset;
  offset.observe(1'000, 501'500, 2'000);
  offset.observe(5'000, 9'007'000, 9'000);
  EXPECT_EQ(offset.to_ours(9'007'000, 9'000), 5'000);
}

// Whatever the delays and the drift, a translated time is never later than the truth, and by no
// more than the uncertainty too early.
TEST(ClockOffset, TranslatesToTheOlderSide) {
  Random random(7);
  for (int round = 0; round < 200; ++round) {
    ClockOffset offset;
    const double rate = 1.0 + (static_cast<double>(random.next() % 201) - 100.0) * 1e-6;
    const auto shift = static_cast<DurationUs>(random.next() % 2'000'000'000) - 1'000'000'000;
    const auto theirs = [&](TimeUs ours) {
      return static_cast<TimeUs>(static_cast<double>(ours) * rate) + shift;
    };
    TimeUs now = 1'000;
    for (int step = 0; step < 50; ++step) {
      const TimeUs sent = now;
      const TimeUs answered = sent + static_cast<TimeUs>(random.next() % 5'000);
      const TimeUs received = answered + static_cast<TimeUs>(random.next() % 5'000);
      offset.observe(sent, theirs(answered), received);
      now = received + static_cast<TimeUs>(random.next() % 10'000'000);
      const TimeUs moment = now - static_cast<TimeUs>(random.next() % 1'000'000);
      const DurationUs width = offset.width(now) + 1'000;  // drift between moment and now
      ASSERT_LE(offset.to_ours(theirs(moment), now), moment + 1);
      ASSERT_GE(offset.to_ours(theirs(moment), now), moment - width);
      ASSERT_LE(offset.to_theirs(moment, now), theirs(moment) + 1);
      ASSERT_GE(offset.to_theirs(moment, now), theirs(moment) - width);
    }
  }
}

}  // namespace
}  // namespace larder::policy
