#include "feed/pending.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace larder::feed {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

Event key(const std::string& text) { return {{text}, {}}; }

TEST(Pending, EqualKeysWaitOnce) {
  Pending pending(10, 1000);
  EXPECT_TRUE(pending.empty());
  for (int i = 0; i < 100; ++i) {
    EXPECT_TRUE(pending.add(key("a")));
    EXPECT_TRUE(pending.add({{"b"}, {"b"}}));
  }
  EXPECT_EQ(pending.size(), 3U);
  const Pending::Batch batch = pending.take(10);
  EXPECT_FALSE(batch.everything);
  EXPECT_THAT(batch.keys, UnorderedElementsAre("a", "b"));
  EXPECT_THAT(batch.tags, ElementsAre("b"));
  EXPECT_EQ(batch.events, 200U);
  EXPECT_TRUE(pending.empty());
}

TEST(Pending, WhatIsTakenWaitsAgain) {
  Pending pending(10, 1000);
  pending.add(key("a"));
  pending.take(10);
  pending.add(key("a"));
  EXPECT_THAT(pending.take(10).keys, ElementsAre("a"));
}

TEST(Pending, TakesAtMostSoMany) {
  Pending pending(100, 1000);
  for (int i = 0; i < 10; ++i) pending.add({{"k" + std::to_string(i)}, {"t" + std::to_string(i)}});
  std::size_t keys = 0;
  std::size_t tags = 0;
  std::uint64_t events = 0;
  for (int i = 0; i < 7; ++i) {
    EXPECT_EQ(events, 0U);  // not before the last of them is taken
    const Pending::Batch batch = pending.take(3);
    EXPECT_LE(batch.keys.size() + batch.tags.size(), 3U);
    keys += batch.keys.size();
    tags += batch.tags.size();
    events += batch.events;
  }
  EXPECT_EQ(keys, 10U);
  EXPECT_EQ(tags, 10U);
  EXPECT_EQ(events, 10U);
  EXPECT_TRUE(pending.empty());
}

TEST(Pending, OverflowIsEverything) {
  Pending pending(2, 1000);
  EXPECT_TRUE(pending.add(key("a")));
  EXPECT_TRUE(pending.add(key("b")));
  EXPECT_TRUE(pending.add(key("b")));
  EXPECT_FALSE(pending.add(key("c")));
  EXPECT_FALSE(pending.empty());
  EXPECT_TRUE(pending.add(key("d")));  // among everything
  Pending::Batch batch = pending.take(10);
  EXPECT_TRUE(batch.everything);
  EXPECT_THAT(batch.keys, IsEmpty());
  EXPECT_EQ(batch.events, 5U);
  EXPECT_TRUE(pending.empty());
  // And then as before.
  EXPECT_TRUE(pending.add(key("e")));
  batch = pending.take(10);
  EXPECT_FALSE(batch.everything);
  EXPECT_THAT(batch.keys, ElementsAre("e"));
}

TEST(Pending, BytesAreBoundedToo) {
  Pending pending(1000, 10);
  EXPECT_TRUE(pending.add(key("12345")));
  EXPECT_TRUE(pending.add({{}, {"67890"}}));
  EXPECT_FALSE(pending.add(key("x")));
  EXPECT_TRUE(pending.take(10).everything);
  EXPECT_TRUE(pending.add(key("1234567890")));  // what was taken weighs nothing
}

TEST(Pending, EverythingTakesThePlaceOfWhatWaits) {
  Pending pending(10, 1000);
  pending.add(key("a"));
  pending.everything();
  pending.everything();
  const Pending::Batch batch = pending.take(10);
  EXPECT_TRUE(batch.everything);
  EXPECT_EQ(batch.events, 1U);
  EXPECT_THAT(batch.keys, IsEmpty());
  EXPECT_TRUE(pending.empty());
}

}  // namespace
}  // namespace larder::feed
