#include "policy/succession.h"

#include <gtest/gtest.h>

namespace larder::policy {
namespace {

constexpr TimeUs kStart = 100 * kSecond;

TEST(Succession, TheFirstAndAnyNewOneAreBelievedAtOnce) {
  Succession order;
  EXPECT_EQ(order.present(), 0u);
  EXPECT_TRUE(order.follows(1, kStart, 0, kStart));
  order.begin(1, kStart);
  EXPECT_EQ(order.present(), 1u);
  EXPECT_TRUE(order.follows(2, kStart + 1, kStart + 2, kStart + 2));
}

TEST(Succession, ALateAnswerOfTheOldOneIsNotAnotherOne) {
  Succession order;
  order.begin(1, kStart);
  order.begin(2, kStart + kSecond);
  EXPECT_FALSE(order.follows(1, kStart + kSecond, kStart + kSecond, kStart + 10 * kSecond));
  // Nor is one that was asked for before, of whatever incarnation.
  EXPECT_FALSE(order.follows(3, kStart, kStart + kSecond, kStart + 10 * kSecond));
}

TEST(Succession, TheOldOneComesBackWhenThePresentOneIsSilent) {
  Succession order;
  order.begin(1, kStart);
  order.begin(2, kStart + kSecond);
  const TimeUs heard = kStart + 5 * kSecond;
  const TimeUs asked = heard + 1;
  EXPECT_FALSE(order.follows(1, asked, heard, heard + Succession::kSilence - 1));
  EXPECT_TRUE(order.follows(1, asked, heard, heard + Succession::kSilence));
  order.begin(1, heard + Succession::kSilence);
  EXPECT_EQ(order.present(), 1u);
  EXPECT_FALSE(order.follows(2, kNever, heard + Succession::kSilence, heard + kSecond + 1));
}

TEST(Succession, OfManyThatWereReplacedTheOldestAreForgotten) {
  Succession order;
  const auto last = static_cast<std::uint64_t>(Succession::kMostReplaced) + 2;
  for (std::uint64_t id = 1; id <= last; ++id) order.begin(id, kStart);
  EXPECT_TRUE(order.follows(1, kStart + 1, kStart, kStart + 1));
  EXPECT_FALSE(order.follows(2, kStart + 1, kStart, kStart + 1));
}

}  // namespace
}  // namespace larder::policy
