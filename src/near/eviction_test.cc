#include "near/eviction.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/random.h"

namespace larder::near {
namespace {

struct Slot {
  Link link{};
  std::uint32_t weight = 1;
  std::uint32_t cost = 1;
  Hash hash = 0;
  std::uint8_t queue = 0;
  bool dead = false;
};

struct Slots {
  std::vector<Slot>* slots;

  Slot& at(Ref ref) { return (*slots)[ref]; }
  Link& link(Ref ref) { return at(ref).link; }
  unsigned queue(Ref ref) { return at(ref).queue; }
  void set_queue(Ref ref, unsigned queue) { at(ref).queue = static_cast<std::uint8_t>(queue); }
  std::uint32_t weight(Ref ref) { return at(ref).weight; }
  std::uint32_t cost(Ref ref) { return at(ref).cost; }
  Hash hash(Ref ref) { return at(ref).hash; }
  bool dead(Ref ref) { return at(ref).dead; }
};

class EvictionTest : public testing::Test {
 protected:
  explicit EvictionTest(std::uint64_t capacity = 100) : slots_(4096), ghost_(8) {
    init_eviction(state_, capacity);
  }

  Eviction<Slots> policy() { return {Slots{&slots_}, state_, Ghost(ghost_)}; }

  // A new entry, admitted; its hash is that of its number.
  Ref add(Ref ref, std::uint32_t weight = 1, std::uint32_t cost = 1) {
    make(ref, weight, cost);
    policy().admit(ref, slots_[ref].hash);
    return ref;
  }
  void make(Ref ref, std::uint32_t weight = 1, std::uint32_t cost = 1) {
    slots_[ref] = {.weight = weight, .cost = cost, .hash = hash_bytes("k", ref)};
  }
  void hit(Ref ref, unsigned times = 1) {
    while (times-- > 0) touch(slots_[ref].link);
  }

  std::vector<Ref> members(unsigned queue) {
    std::vector<Ref> result;
    policy().for_each(queue, [&](Ref ref) { result.push_back(ref); });
    return result;
  }
  std::vector<Ref> main_members() {
    std::vector<Ref> result;
    for (unsigned queue = kMainQueue; queue < kQueues; ++queue)
      policy().for_each(queue, [&](Ref ref) { result.push_back(ref); });
    return result;
  }

  // What must hold after every step.
  void check(std::size_t expected_entries) {
    std::size_t entries = 0;
    std::size_t in_main = 0;
    std::uint64_t main_weight = 0;
    for (unsigned number = 0; number < kQueues; ++number) {
      const EvictionState::Queue& queue = state_.queues[number];
      std::uint64_t weight = 0;
      std::uint32_t count = 0;
      Ref older = kNoRef;
      for (Ref ref = queue.oldest; ref != kNoRef; ref = slots_[ref].link.newer) {
        ASSERT_EQ(slots_[ref].queue, number);
        ASSERT_EQ(slots_[ref].link.older, older);
        weight += slots_[ref].weight;
        older = ref;
        ASSERT_LE(++count, slots_.size());
      }
      ASSERT_EQ(queue.newest, older);
      ASSERT_EQ(queue.count, count);
      ASSERT_EQ(queue.weight, weight);
      entries += count;
      if (number < kMainQueue) continue;
      in_main += count;
      main_weight += weight;
      ASSERT_EQ((state_.occupied >> (number - kMainQueue)) & 1, count > 0 ? 1U : 0U);
    }
    ASSERT_EQ(entries, expected_entries);
    ASSERT_EQ(state_.main_count, in_main);
    ASSERT_EQ(state_.main_weight, main_weight);
  }

  std::vector<Slot> slots_;
  std::vector<GhostRow> ghost_;
  EvictionState state_;
};

TEST_F(EvictionTest, NothingIsThereToEvict) { EXPECT_EQ(policy().evict(), kNoRef); }

TEST_F(EvictionTest, WithoutHitsItIsFirstInFirstOut) {
  for (Ref ref = 1; ref <= 100; ++ref) add(ref);
  for (Ref ref = 1; ref <= 100; ++ref) EXPECT_EQ(policy().evict(), ref);
  EXPECT_EQ(policy().evict(), kNoRef);
}

TEST_F(EvictionTest, WhatWasHitGoesFromTheSmallQueueToTheMainPart) {
  for (Ref ref = 1; ref <= 20; ++ref) add(ref);
  hit(1);
  hit(2);
  EXPECT_EQ(policy().evict(), 3U);
  EXPECT_EQ(main_members(), (std::vector<Ref>{1, 2}));
  check(19);
}

TEST_F(EvictionTest, WhatTheGhostRemembersNeedsNoHit) {
  for (Ref ref = 1; ref <= 20; ++ref) add(ref);
  EXPECT_EQ(policy().evict(), 1U);
  add(1);
  EXPECT_EQ(slots_[1].link.frequency, 2);
  for (Ref ref = 2; ref <= 11; ++ref) EXPECT_EQ(policy().evict(), ref);
  for (Ref ref = 21; ref <= 31; ++ref) add(ref);
  for (Ref ref = 12; ref <= 20; ++ref) EXPECT_EQ(policy().evict(), ref);
  EXPECT_EQ(policy().evict(), 21U);
  EXPECT_EQ(main_members(), std::vector<Ref>{1});
}

TEST_F(EvictionTest, ForgetsWhatItHasBroughtBack) {
  for (Ref ref = 1; ref <= 20; ++ref) add(ref);
  EXPECT_EQ(policy().evict(), 1U);
  add(1);
  policy().remove(1);
  add(1);  // remove() tells the ghost nothing
  EXPECT_EQ(slots_[1].link.frequency, 1);
}

TEST_F(EvictionTest, VictimsOfTheMainPartComeBackWithTheirFrequency) {
  for (Ref ref = 1; ref <= 20; ++ref) {
    add(ref);
    hit(ref, 3);
  }
  const Ref victim = policy().evict();
  EXPECT_EQ(victim, 1U);
  add(1);
  EXPECT_EQ(slots_[1].link.frequency, 5);
}

TEST_F(EvictionTest, LightEntriesNeedNoHitWhenTheMainPartIsHeavy) {
  for (Ref ref = 1; ref <= 5; ++ref) {
    add(ref, 30);
    hit(ref);
  }
  for (Ref ref = 6; ref <= 17; ++ref) add(ref);
  EXPECT_EQ(policy().evict(), 1U);
  EXPECT_EQ(main_members().size(), 6U);
  EXPECT_EQ(slots_[6].queue, kMainQueue - kLeastExponent);
}

TEST_F(EvictionTest, HeavyOnesHaveToComeAgainAndAgain) {
  init_eviction(state_, 4000);
  for (Ref ref = 1; ref <= 2000; ++ref) {
    add(ref);
    hit(ref);
  }
  policy().evict();
  EXPECT_TRUE(policy().welcome(hash_bytes("light", 0), 8, 1)) << "not 8 times the mean";
  EXPECT_FALSE(policy().welcome(hash_bytes("heavy", 0), 64, 1));
  EXPECT_TRUE(policy().welcome(hash_bytes("dear", 0), 64, 1000));
  int times = 1;
  while (!policy().welcome(hash_bytes("heavy", 0), 64, 1)) ASSERT_LT(++times, 1000);
  EXPECT_GT(times, 10);
  times = 1;
  while (!policy().welcome(hash_bytes("heaviest", 0), 3000, 1)) ASSERT_LT(++times, 1000);
  EXPECT_GT(times, 20);
}

TEST_F(EvictionTest, HitsSaturate) {
  add(1);
  hit(1, 1000);
  EXPECT_EQ(slots_[1].link.hits, kMaxHits);
}

TEST_F(EvictionTest, TheMainPartKeepsWhatIsUsedMoreAWeight) {
  // All in the main part, with two hits each.
  for (Ref ref = 1; ref <= 30; ++ref) {
    add(ref, ref % 3 == 0 ? 64 : 1);
    hit(ref, 2);
  }
  for (int i = 0; i < 10; ++i) EXPECT_EQ(policy().evict() % 3, 0U);
  check(20);
}

TEST_F(EvictionTest, ADearLoadWeighsAsMuchAsManyHits) {
  for (Ref ref = 1; ref <= 20; ++ref) {
    add(ref, 1, ref == 7 ? 1000 : 1);
    hit(ref);
  }
  // Ten stay in the small queue, ten go to the main part; there it is the last one.
  for (int i = 0; i < 9; ++i) EXPECT_NE(policy().evict(), 7U);
  EXPECT_EQ(main_members(), std::vector<Ref>{7});
}

TEST_F(EvictionTest, NoPriorityLastsForEver) {
  add(1, 1);
  hit(1, 3);
  for (Ref ref = 2; ref <= 50; ++ref) add(ref);
  while (main_members().empty()) policy().evict();
  // Everything from here on is hit once, so it passes through the main part.
  bool gone = false;
  Ref next = 51;
  for (int i = 0; i < 2000 && !gone; ++i, ++next) {
    add(next);
    hit(next);
    gone = policy().evict() == 1U;
  }
  EXPECT_TRUE(gone);
}

TEST_F(EvictionTest, PinnedEntriesStay) {
  make(1);
  policy().pin(1);
  add(2);
  EXPECT_TRUE(policy().pinned(1));
  EXPECT_FALSE(policy().pinned(2));
  EXPECT_EQ(policy().evict(), 2U);
  EXPECT_EQ(policy().evict(), kNoRef);
  check(1);
}

TEST_F(EvictionTest, TheEntryToKeepIsNeverTheVictim) {
  add(1);
  EXPECT_EQ(policy().evict(1), kNoRef);
  add(2);
  EXPECT_EQ(policy().evict(1), 2U);
  hit(1);
  for (Ref ref = 3; ref <= 15; ++ref) add(ref);
  // Now 1 is in the main part, and the oldest there.
  EXPECT_EQ(policy().evict(), 3U);
  EXPECT_EQ(main_members(), std::vector<Ref>{1});
  for (Ref ref = 4; ref <= 15; ++ref) EXPECT_EQ(policy().evict(1), ref);
  EXPECT_EQ(policy().evict(1), kNoRef);
  EXPECT_EQ(policy().evict(), 1U);
}

TEST_F(EvictionTest, ANewBlockTakesTheOldOnesPlace) {
  for (Ref ref = 1; ref <= 20; ++ref) add(ref);
  make(100);
  policy().replace(1, 100);
  check(20);
  EXPECT_EQ(members(kSmallQueue).front(), 100U);
  EXPECT_EQ(slots_[100].link.hits, 1);
  EXPECT_EQ(policy().evict(), 2U);  // 100 was used
}

TEST_F(EvictionTest, AMovedEntryKeepsItsPlace) {
  for (Ref ref = 1; ref <= 3; ++ref) add(ref);
  for (const Ref ref : {1U, 2U, 3U}) {
    slots_[100 + ref] = slots_[ref];
    slots_[ref] = {};
    policy().moved(ref, 100 + ref);
  }
  check(3);
  EXPECT_EQ(members(kSmallQueue), (std::vector<Ref>{101, 102, 103}));
}

TEST_F(EvictionTest, TheDeadGoWhenItIsTheirTurnHitOrNot) {
  for (Ref ref = 1; ref <= 20; ++ref) add(ref);
  hit(1, 3);
  slots_[1].dead = true;
  EXPECT_EQ(policy().evict(), 1U);
  add(1);
  EXPECT_EQ(slots_[1].link.frequency, 1) << "the ghost remembered it";
}

TEST_F(EvictionTest, QueuesCanBeMadeAnew) {
  for (Ref ref = 1; ref <= 40; ++ref) {
    add(ref, 1 + ref % 5);
    hit(ref, ref % 3);
  }
  for (int i = 0; i < 10; ++i) policy().evict();
  std::array<std::vector<Ref>, kQueues> before;
  for (unsigned queue = 0; queue < kQueues; ++queue) before[queue] = members(queue);
  init_eviction(state_, 100);
  for (unsigned queue = 0; queue < kQueues; ++queue)
    for (const Ref ref : before[queue]) policy().relink(ref, queue);
  check(30);
  for (unsigned queue = 0; queue < kQueues; ++queue) EXPECT_EQ(members(queue), before[queue]);
}

TEST_F(EvictionTest, TheSmallShareIsThatOfTheTuning) {
  for (Ref ref = 1; ref <= 90; ++ref) {
    add(ref);
    hit(ref);
  }
  for (int i = 0; i < 3; ++i) policy().evict();
  EXPECT_EQ(members(kSmallQueue).size(), 10U);
  Tuning tuning;
  tuning.small_percent = 5;
  policy().tune(tuning);
  policy().evict();
  EXPECT_EQ(members(kSmallQueue).size(), 5U);
}

TEST_F(EvictionTest, AnEvictionLooksAtABoundedNumberOfEntries) {
  for (Ref ref = 1; ref <= 4000; ++ref) {
    add(ref);
    hit(ref);
  }
  policy().evict();
  EXPECT_LE(main_members().size(), Eviction<Slots>::kMaxSteps + 1);
}

TEST_F(EvictionTest, ExtremeWeightsAndCostsHaveAQueue) {
  Ref ref = 0;
  for (const std::uint32_t weight : {1U, 2U, 1U << 27, ~0U})
    for (const std::uint32_t cost : {1U, 1000U, ~0U}) {
      add(++ref, weight, cost);
      slots_[ref].link.frequency = 0xffff;
      hit(ref, 3);
    }
  policy().tune({.small_percent = 0});
  for (Ref left = ref; left > 0; --left) {
    check(left);
    EXPECT_NE(policy().evict(), kNoRef);
  }
}

// Everything at once against what must always hold, with the priorities wrapping on the way.
TEST_F(EvictionTest, RandomUseKeepsItsInvariants) {
  Random random(7);
  init_eviction(state_, 2000);
  state_.inflation = ~std::uint64_t{0} - 1000;
  std::vector<Ref> here;
  std::vector<Ref> free;
  for (Ref ref = 1; ref < 1000; ++ref) free.push_back(ref);
  const auto take_out = [&](Ref ref) {
    std::erase(here, ref);
    free.push_back(ref);
  };
  for (int step = 0; step < 30000; ++step) {
    const auto any = [&] { return here[random.below(here.size())]; };
    const std::uint64_t choice = random.below(100);
    if (here.size() < 2 || (choice < 40 && !free.empty())) {
      const Ref ref = free.back();
      free.pop_back();
      make(ref, static_cast<std::uint32_t>(1 + random.below(50)));
      slots_[ref].hash = mix64(random.below(500));
      slots_[ref].dead = random.below(50) == 0;
      if (random.below(100) == 0)
        policy().pin(ref);
      else
        policy().admit(ref, slots_[ref].hash);
      here.push_back(ref);
    } else if (choice < 60) {
      hit(any());
    } else if (choice < 65) {
      const Ref ref = any();
      policy().remove(ref);
      take_out(ref);
    } else if (choice < 70 && !free.empty()) {
      const Ref old = any();
      const Ref fresh = free.back();
      free.pop_back();
      make(fresh, static_cast<std::uint32_t>(1 + random.below(50)));
      policy().replace(old, fresh);
      here.push_back(fresh);
      take_out(old);
    } else if (choice < 72) {
      policy().tune({.small_percent = static_cast<std::uint8_t>(random.below(101)),
                     .promote_all = random.below(2) == 0});
    } else if (choice < 75) {
      policy().welcome(mix64(random.below(500)), static_cast<std::uint32_t>(random.below(500)), 1);
    } else {
      const Ref keep = random.below(2) == 0 ? any() : kNoRef;
      const Ref victim = policy().evict(keep);
      if (victim == kNoRef) continue;
      ASSERT_NE(victim, keep);
      ASSERT_NE(std::ranges::find(here, victim), here.end());
      ASSERT_FALSE(policy().pinned(victim));
      take_out(victim);
    }
    if (step % 16 == 0) ASSERT_NO_FATAL_FAILURE(check(here.size())) << "step " << step;
  }
}

TEST_F(EvictionTest, HitsNeedNoLock) {
  for (Ref ref = 1; ref <= 100; ++ref) add(ref);
  std::jthread reader([this](const std::stop_token& stop) {
    for (Ref ref = 1; !stop.stop_requested(); ref = ref % 200 + 1) touch(slots_[ref].link);
  });
  for (Ref i = 0; i < 20000; ++i) {
    const Ref victim = policy().evict();
    ASSERT_NE(victim, kNoRef);
    policy().admit(victim, hash_bytes("k", i));
  }
  reader.request_stop();
  reader.join();
  check(100);
}

TEST(Ghost, RemembersAboutAsManyAsItHasRoomFor) {
  std::vector<GhostRow> rows(Ghost::rows_for(3100));
  EXPECT_EQ(rows.size(), 100U);
  Ghost ghost(rows);
  for (std::uint64_t i = 0; i < 10000; ++i) ghost.remember(mix64(i), 1, i);
  unsigned recent = 0;
  for (std::uint64_t i = 8000; i < 10000; ++i) recent += ghost.take(mix64(i));
  EXPECT_GT(recent, 1900U);
  unsigned old = 0;
  for (std::uint64_t i = 0; i < 4000; ++i) old += ghost.take(mix64(i));
  EXPECT_LT(old, 100U);
}

TEST(Ghost, TakesOnce) {
  std::vector<GhostRow> rows(1);
  Ghost ghost(rows);
  ghost.remember(5, 4, 1);
  EXPECT_EQ(ghost.recall(5), 4U);
  EXPECT_EQ(ghost.recall(6), 0U);
  EXPECT_EQ(ghost.take(5), 4U);
  EXPECT_EQ(ghost.take(5), 0U);
  EXPECT_EQ(ghost.recall(5), 0U);
}

TEST(Ghost, RemembersOneKeyOnce) {
  std::vector<GhostRow> rows(1);
  Ghost ghost(rows);
  ghost.remember(5, 1, 1);
  ghost.remember(5, 64, 1);
  EXPECT_EQ(ghost.take(5), 64U);
  EXPECT_EQ(ghost.take(5), 0U);
}

TEST(Ghost, FrequenciesAreRightInTheMean) {
  std::vector<GhostRow> rows(100);
  for (const unsigned frequency : {1U, 2U, 3U, 5U, 11U, 100U, 128U}) {
    Ghost ghost(rows);
    double sum = 0;
    for (std::uint64_t i = 0; i < 20000; ++i) {
      ghost.remember(mix64(i), frequency, i);
      sum += ghost.take(mix64(i));
    }
    EXPECT_NEAR(sum / 20000, frequency, frequency * 0.02);
  }
  Ghost ghost(rows);
  ghost.remember(1, 60000, 1);
  EXPECT_EQ(ghost.take(1), Ghost::kMaxFrequency);
}

TEST(Ghost, OneHitWondersDoNotWashOutTheRest) {
  std::vector<GhostRow> rows(100);
  Ghost ghost(rows);
  for (std::uint64_t i = 0; i < 300; ++i) ghost.remember(mix64(i), 16, i);
  for (std::uint64_t i = 1000; i < 7000; ++i) ghost.remember(mix64(i), 1, i);
  unsigned left = 0;
  for (std::uint64_t i = 0; i < 300; ++i) left += ghost.recall(mix64(i)) > 0 ? 1 : 0;
  EXPECT_GT(left, 250U);
  for (std::uint64_t i = 10000; i < 40000; ++i) ghost.remember(mix64(i), 1, i);
  left = 0;
  for (std::uint64_t i = 0; i < 300; ++i) left += ghost.recall(mix64(i)) > 0 ? 1 : 0;
  EXPECT_LT(left, 10U);
}

TEST(Ghost, WithoutMemoryItRemembersNothing) {
  Ghost ghost;
  ghost.remember(5, 1, 1);
  EXPECT_EQ(ghost.recall(5), 0U);
  EXPECT_EQ(ghost.take(5), 0U);
}

TEST(Ghost, IsNotConfusedByGarbage) {
  std::vector<GhostRow> rows(1);
  rows[0].prints.fill(0xffff);
  rows[0].next = 0xffff;
  Ghost ghost(rows);
  ghost.remember(5, 1, 1);
  EXPECT_EQ(ghost.take(5), 1U);
  EXPECT_LT(rows[0].next, GhostRow::kWays);
}

}  // namespace
}  // namespace larder::near
