#include "near/store.h"

#include <gmock/gmock.h>

#include <map>
#include <set>

#include "base/random.h"
#include "near/store_testing.h"

namespace larder::near {
namespace {

using testing::ElementsAre;

TEST(Store, AnswersWhatWasFilledUntilItIsUseless) {
  Store store(small_options());
  EXPECT_FALSE(look(store, "k"));
  const Meta meta{.cache_id = 7,
                  .alone = true,
                  .load_us = 12,
                  .ttl_us = 34,
                  .as_of = 56,
                  .soft_expiry = kStart + 10,
                  .useless_at = kStart + 20};
  EXPECT_EQ(fill_now(store, "k", "v", meta), Refusal::none);
  const auto seen = look(store, "k", kStart + 19);
  ASSERT_TRUE(seen);
  EXPECT_EQ(seen->value, "v");
  EXPECT_FALSE(seen->is_void);
  EXPECT_EQ(seen->meta.cache_id, 7);
  EXPECT_TRUE(seen->meta.alone);
  EXPECT_FALSE(seen->meta.negative);
  EXPECT_EQ(seen->meta.load_us, 12U);
  EXPECT_EQ(seen->meta.ttl_us, 34);
  EXPECT_EQ(seen->meta.as_of, 56);
  EXPECT_EQ(seen->meta.soft_expiry, kStart + 10);
  EXPECT_EQ(seen->meta.useless_at, kStart + 20);
  EXPECT_EQ(store.stats().entries, 1U);
  EXPECT_FALSE(look(store, "k", kStart + 20));
  EXPECT_EQ(store.expire(kStart + 20 + kSecond, 16).entries, 1U);
  EXPECT_EQ(store.stats().entries, 0U);
  EXPECT_EQ(store.stats().expirations, 1U);
}

TEST(Store, KeepsEmptyKeysAndValuesAndBinaryOnes) {
  Store store(small_options());
  EXPECT_EQ(fill_now(store, "", ""), Refusal::none);
  EXPECT_EQ(valid(store, ""), "");
  const std::string key("a\0b", 3);
  EXPECT_EQ(put_now(store, key, std::string(3, '\0')), Refusal::none);
  EXPECT_EQ(valid(store, key), std::string(3, '\0'));
  EXPECT_FALSE(look(store, "a"));
}

// ---- tickets ----

TEST(StoreTickets, AnInvalidationVoidsThemPresentOrNot) {
  Store store(small_options());
  const Hash hash = hash_bytes("k");
  const policy::Ticket ticket = store.ticket(hash);
  EXPECT_FALSE(store.invalidate(hash, "k", false)) << "nothing was there";
  EXPECT_EQ(store.fill(ticket, "k", hash, "old", declared(), {}), Refusal::ticket);
  EXPECT_FALSE(look(store, "k"));
  EXPECT_EQ(fill_now(store, "k", "new"), Refusal::none);
  const policy::Ticket second = store.ticket(hash);
  EXPECT_TRUE(store.invalidate(hash, "k", false));
  EXPECT_FALSE(store.invalidate(hash, "k", false));
  EXPECT_EQ(store.fill(second, "k", hash, "old", declared(), {}), Refusal::ticket);
}

TEST(StoreTickets, AFillVoidsNoTicket) {
  Store store(small_options());
  const Hash hash = hash_bytes("k");
  const policy::Ticket ticket = store.ticket(hash);
  EXPECT_EQ(fill_now(store, "k", "one"), Refusal::none);
  EXPECT_EQ(store.fill(ticket, "k", hash, "two", declared(), {}), Refusal::none);
  EXPECT_EQ(valid(store, "k"), "two");
}

TEST(StoreTickets, ResetsVoidEntriesAndTicketsOfTheirPartition) {
  Store store(small_options());
  std::string other = "other";
  const Hash hash = hash_bytes("k");
  while (store.partition_of(hash_bytes(other)) == store.partition_of(hash)) other += "x";
  const policy::Ticket ticket = store.ticket(hash);
  ASSERT_EQ(fill_now(store, "k", "v"), Refusal::none);
  ASSERT_EQ(fill_now(store, other, "v"), Refusal::none);
  ASSERT_EQ(put_now(store, "plain", "v"), Refusal::none);
  store.reset(store.partition_of(hash));
  EXPECT_TRUE(look(store, "k")->is_void);
  EXPECT_EQ(valid(store, other), "v");
  EXPECT_EQ(store.fill(ticket, "k", hash, "old", declared(), {}), Refusal::epoch);
  store.reset_all();
  EXPECT_EQ(valid(store, other), "-");
  EXPECT_EQ(valid(store, "plain"), "v") << "set under no ticket";
}

TEST(StoreTickets, TagsVoidWhatWasFilledUnderEarlierTickets) {
  Store store(small_options());
  const Hash tag = hash_bytes("category:1");
  const std::vector<Hash> tags{hash_bytes("category:2"), tag};
  const Hash hash = hash_bytes("k");
  const policy::Ticket early = store.ticket(hash);
  ASSERT_EQ(fill_now(store, "k", "v", declared(), tags), Refusal::none);
  ASSERT_EQ(fill_now(store, "untagged", "v"), Refusal::none);
  EXPECT_EQ(look(store, "k")->meta.tag_count, 2);
  store.invalidate_tag(tag);
  EXPECT_TRUE(look(store, "k")->is_void);
  EXPECT_EQ(valid(store, "untagged"), "v");
  EXPECT_EQ(fill_now(store, "k", "new", declared(), tags), Refusal::none);
  EXPECT_EQ(store.fill(early, "k", hash, "old", declared(), tags), Refusal::tag);
  EXPECT_EQ(valid(store, "k"), "new") << "a void fill must not displace a valid one";
}

TEST(StoreTickets, NegativeControls) {
  const Hash hash = hash_bytes("k");
  const Hash tag = hash_bytes("t");
  {
    Options options = small_options();
    options.rules.ticket = false;
    Store store(options);
    const policy::Ticket ticket = store.ticket(hash);
    store.invalidate(hash, "k", false);
    EXPECT_EQ(store.fill(ticket, "k", hash, "stale", declared(), {}), Refusal::none);
    EXPECT_EQ(valid(store, "k"), "stale");
  }
  {
    Options options = small_options();
    options.rules.generation = false;
    Store store(options);
    const policy::Ticket ticket = store.ticket(hash);
    store.reset_all();
    EXPECT_EQ(store.fill(ticket, "k", hash, "stale", declared(), {}), Refusal::none);
    store.reset_all();
    EXPECT_EQ(valid(store, "k"), "stale");
  }
  {
    Options options = small_options();
    options.rules.tag_stamp = false;
    Store store(options);
    const policy::Ticket ticket = store.ticket(hash);
    store.invalidate_tag(tag);
    EXPECT_EQ(store.fill(ticket, "k", hash, "stale", declared(), {&tag, 1}), Refusal::none);
    EXPECT_EQ(valid(store, "k"), "stale");
  }
}

TEST(StoreTickets, ClearVoidsThem) {
  Store store(small_options());
  const Hash hash = hash_bytes("k");
  for (const bool cleared : {false, true}) {
    const policy::Ticket ticket = store.ticket(hash);
    store.clear(cleared);
    EXPECT_EQ(store.fill(ticket, "k", hash, "v", declared(), {}), Refusal::ticket);
  }
}

TEST(Store, KeepsInvalidatedValuesForErrorsUntilTheyAreUseless) {
  Store store(small_options());
  const Hash hash = hash_bytes("k");
  ASSERT_EQ(fill_now(store, "k", "v", declared(kStart + 10)), Refusal::none);
  EXPECT_TRUE(store.invalidate(hash, "k", true));
  EXPECT_TRUE(look(store, "k")->is_void);
  EXPECT_EQ(look(store, "k")->value, "v");
  EXPECT_FALSE(store.invalidate(hash, "k", true)) << "void already";
  EXPECT_FALSE(look(store, "k", kStart + 10));
  Meta negative = declared();
  negative.negative = true;
  ASSERT_EQ(fill_now(store, "k", "", negative), Refusal::none);
  EXPECT_TRUE(store.invalidate(hash, "k", true));
  EXPECT_FALSE(look(store, "k")) << "\"no such row\" is not kept";
}

// ---- life ----

TEST(Store, TouchSlidesTheEndOfLifeAndRevivesNothing) {
  Store store(small_options());
  Meta meta = declared();
  meta.ttl_us = 100;
  meta.soft_expiry = kStart + 100;
  meta.useless_at = kStart + 150;
  ASSERT_EQ(fill_now(store, "k", "v", meta), Refusal::none);
  const Hash hash = hash_bytes("k");
  store.touch("k", hash, kStart + 60);
  EXPECT_EQ(look(store, "k")->meta.soft_expiry, kStart + 160);
  EXPECT_EQ(look(store, "k")->meta.useless_at, kStart + 210) << "the grace stays";
  store.touch("k", hash, kStart + 160);
  EXPECT_EQ(look(store, "k")->meta.soft_expiry, kStart + 160) << "late";
  store.touch("absent", hash_bytes("absent"), kStart);
}

TEST(Store, SetExpiry) {
  Store store(small_options());
  const Hash hash = hash_bytes("k");
  EXPECT_FALSE(store.set_expiry("k", hash, kStart, 5, 5));
  ASSERT_EQ(fill_now(store, "k", "v"), Refusal::none);
  EXPECT_TRUE(store.set_expiry("k", hash, kStart, kStart + 1, kStart + 2));
  EXPECT_EQ(look(store, "k")->meta.soft_expiry, kStart + 1);
  EXPECT_FALSE(look(store, "k", kStart + 2));
  ASSERT_EQ(fill_now(store, "k", "v"), Refusal::none);
  store.invalidate(hash, "k", true);
  EXPECT_FALSE(store.set_expiry("k", hash, kStart, kNever, kNever)) << "void";
}

TEST(Store, ExpiryDropsWhatNobodyLooksUpWithinASecond) {
  Store store(small_options());
  for (int i = 0; i < 1000; ++i)
    ASSERT_EQ(put_now(store, std::to_string(i), "v", i % 2 != 0 ? kNever : kStart + 1),
              Refusal::none);
  std::size_t dropped = 0;
  for (bool more = true; more;) {
    const Store::Expired expired = store.expire(kStart + kSecond / 2, 16);
    dropped += expired.entries;
    more = expired.more;
  }
  EXPECT_EQ(dropped, 500U);
  EXPECT_EQ(store.stats().entries, 500U);
  EXPECT_EQ(store.stats().expirations, 500U);
}

// Years of ends of life, in steps of all sizes: nothing is dropped early, nothing is left for long.
TEST(Store, ExpiryKeepsTimeOverAllLevelsOfItsWheel) {
  Store store(small_options());
  Random random(9);
  std::map<std::string, TimeUs> ends;
  TimeUs now = 1'700'000'000 * kSecond;
  store.expire(now, 1);
  const std::array<DurationUs, 6> lives{kSecond,
                                        30 * kSecond,
                                        3600 * kSecond,
                                        86'400 * kSecond,
                                        40LL * 86'400 * kSecond,
                                        400LL * 86'400 * kSecond};
  for (int i = 0; i < 3000; ++i) {
    const std::string key = std::to_string(i);
    const auto life = static_cast<std::uint64_t>(lives[random.below(lives.size())]);
    ends[key] = now + static_cast<TimeUs>(random.below(life)) + 1;
    ASSERT_EQ(put_now(store, key, "v", ends[key]), Refusal::none);
    const auto step = static_cast<std::uint64_t>(lives[random.below(i % 50 == 0 ? 5 : 2)]);
    now += static_cast<TimeUs>(random.below(step));
    int calls = 0;
    while (store.expire(now, 64).more) ASSERT_LT(++calls, 10'000);
    std::uint64_t alive = 0;
    std::uint64_t ending = 0;
    for (const auto& [name, end] : ends) {
      if (end > now) ++alive;
      if (end <= now && end > now - kSecond / 2) ++ending;
    }
    ASSERT_GE(store.stats().entries, alive);
    ASSERT_LE(store.stats().entries, alive + ending) << "half a second late";
  }
}

TEST(Store, CountAndClearTellPlainFromDeclared) {
  Store store(small_options());
  for (int i = 0; i < 50; ++i)
    ASSERT_EQ(put_now(store, "p" + std::to_string(i), "v"), Refusal::none);
  for (int i = 0; i < 30; ++i)
    ASSERT_EQ(fill_now(store, "d" + std::to_string(i), "v", declared(kNever, 1 + i % 2)),
              Refusal::none);
  EXPECT_EQ(store.count(0, kStart), 50U);
  EXPECT_EQ(store.count(1, kStart), 15U);
  store.clear(false);
  EXPECT_EQ(store.count(0, kStart), 0U);
  EXPECT_EQ(store.count(2, kStart), 15U);
  store.clear(true);
  EXPECT_EQ(store.stats().entries, 0U);
}

// ---- bytes ----

TEST(StoreBytes, NeverMoreThanCapacityUnderChurn) {
  for (const bool evict_plain : {true, false}) {
    Options options = small_options();
    options.capacity_bytes = 1 << 20;
    options.evict_plain = evict_plain;
    Store store(options);
    Random random(5);
    std::size_t refused = 0;
    for (int i = 0; i < 40'000; ++i) {
      const std::string key = "key" + std::to_string(random.below(5000));
      const std::string value(random.below(random.chance(0.05) ? 20'000 : 400), 'v');
      const Refusal refusal =
          random.chance(0.5) ? put_now(store, key, value) : fill_now(store, key, value);
      if (refusal == Refusal::none)
        ASSERT_TRUE(valid(store, key) == value) << key;
      else
        refused += refusal == Refusal::not_worth ? 0 : 1;
      if (i % 5 == 0) erase_now(store, "key" + std::to_string(random.below(5000)));
      ASSERT_LE(store.stats().bytes, options.capacity_bytes);
      if (i % 100 == 0) ASSERT_EQ(store.verify(), "") << i;
    }
    EXPECT_GT(store.stats().evictions, 0U);
    EXPECT_EQ(refused > 0, !evict_plain);
    EXPECT_GT(store.stats().bytes, options.capacity_bytes / 2) << "and it is used";
  }
}

TEST(StoreBytes, PinnedPlainKeysAreNeverEvictedButCanBeReplaced) {
  Options options = small_options();
  options.evict_plain = false;
  options.capacity_bytes = 1 << 20;
  Store store(options);
  std::vector<std::string> keys;
  for (int i = 0, refused = 0; refused < 1000; ++i) {
    keys.push_back(std::to_string(i));
    if (put_now(store, keys.back(), std::string(1000, 'a')) == Refusal::none) continue;
    keys.pop_back();
    ++refused;
  }
  EXPECT_EQ(put_now(store, "one more", std::string(3000, 'a')), Refusal::no_room);
  EXPECT_EQ(store.stats().evictions, 0U);
  for (const std::string& key : keys) {
    ASSERT_TRUE(valid(store, key) == std::string(1000, 'a'));
    ASSERT_EQ(put_now(store, key, std::string(1000, 'b')), Refusal::none);
    ASSERT_EQ(put_now(store, key, std::string(300, 'c')), Refusal::none) << "smaller, moved";
    ASSERT_EQ(put_now(store, key, std::string(1000, 'd')), Refusal::none) << "and back";
  }
}

TEST(StoreBytes, ExpiredPinnedKeysMakeRoom) {
  Options options{.capacity_bytes = 64 << 10, .shards = 1, .evict_plain = false};
  Store store(options);
  int stored = 0;
  while (put_now(store, std::to_string(stored), std::string(1000, 'a'), kStart) == Refusal::none)
    ++stored;
  store.expire(kStart + kSecond, 1);  // tells the shard what time it is
  EXPECT_EQ(put_now(store, "new", std::string(1000, 'b')), Refusal::none);
}

TEST(StoreBytes, TooLargeLeavesTheOldValue) {
  Store store(small_options());
  ASSERT_EQ(put_now(store, "k", "v"), Refusal::none);
  const std::string huge(store.max_entry_bytes(), 'x');
  EXPECT_EQ(put_now(store, "k", huge), Refusal::too_large);
  EXPECT_EQ(fill_now(store, "k", huge), Refusal::too_large);
  EXPECT_EQ(valid(store, "k"), "v");
  EXPECT_EQ(store.stats().too_large, 2U);
  const std::vector<Hash> tags(256, 1);
  EXPECT_EQ(fill_now(store, "k", "v", declared(), tags), Refusal::too_large);
}

TEST(StoreBytes, OneGiantDoesNotDriveOutManyUnlessItIsAskedForAgain) {
  Options options{.capacity_bytes = 1 << 20, .shards = 1};
  Store store(options);
  for (int round = 0; round < 3; ++round)
    for (int i = 0; i < 12'000; ++i)
      if (valid(store, std::to_string(i)) == "-")
        fill_now(store, std::to_string(i), std::string(100, 'v'));
  const std::string giant(60'000, 'g');
  EXPECT_EQ(fill_now(store, "giant", giant), Refusal::not_worth);
  EXPECT_FALSE(look(store, "giant"));
  EXPECT_EQ(put_now(store, "set", giant), Refusal::none) << "what a client has set is stored";
  EXPECT_EQ(valid(store, "set"), giant);
  int refused = 1;
  while (refused < 1000 && fill_now(store, "giant", giant) == Refusal::not_worth) ++refused;
  EXPECT_LT(refused, 1000) << "what is asked for again and again is worth it in the end";
}

TEST(StoreBytes, AGiantThatIsSetTakesNoMoreThanItsRoom) {
  for (const std::size_t small : {8U, 100U, 1000U}) {
    Options options{.capacity_bytes = 8 << 20, .shards = 1};
    Store store(options);
    for (int i = 0; store.stats().evictions == 0; ++i)
      ASSERT_EQ(put_now(store, std::to_string(i), std::string(small, 's')), Refusal::none);
    const std::uint64_t before = store.stats().entries;
    for (int i = 0; i < 3; ++i) {
      const std::string giant(900'000, 'g');
      ASSERT_EQ(put_now(store, "giant" + std::to_string(i), giant), Refusal::none) << small;
      EXPECT_TRUE(valid(store, "giant" + std::to_string(i)) == giant);
      ASSERT_EQ(store.verify(), "");
    }
    EXPECT_GT(store.stats().entries, before / 3) << "of entries of " << small;
  }
}

TEST(StoreBytes, WhatIsReadStays) {
  Options options{.capacity_bytes = 256 << 10, .shards = 1};
  Store store(options);
  for (int i = 0; i < 50; ++i) fill_now(store, "hot" + std::to_string(i), std::string(100, 'h'));
  for (int i = 0; i < 20'000; ++i) {
    fill_now(store, "cold" + std::to_string(i), std::string(100, 'c'));
    look(store, "hot" + std::to_string(i % 50));
  }
  int left = 0;
  for (int i = 0; i < 50; ++i) left += look(store, "hot" + std::to_string(i)) ? 1 : 0;
  EXPECT_EQ(left, 50);
}

TEST(StoreBytes, WhatIsOnlyPeekedAtGoesAsIfNobodyHadLooked) {
  Options options{.capacity_bytes = 256 << 10, .shards = 1};
  Store store(options);
  for (int i = 0; i < 50; ++i) fill_now(store, "seen" + std::to_string(i), std::string(100, 's'));
  const auto peek = [&](std::string_view key, TimeUs now = kStart) {
    std::string value = "-";
    const bool visited = store.peek(key, hash_bytes(key), now, [&](const View& view) {
      EXPECT_EQ(view.key, key);
      value = view.is_void ? "void" : std::string(view.value);
    });
    EXPECT_EQ(visited, value != "-");
    return value;
  };
  EXPECT_EQ(peek("seen1"), std::string(100, 's'));
  EXPECT_EQ(peek("absent"), "-");
  for (int i = 0; i < 20'000; ++i) {
    fill_now(store, "cold" + std::to_string(i), std::string(100, 'c'));
    peek("seen" + std::to_string(i % 50));
  }
  for (int i = 0; i < 50; ++i) EXPECT_EQ(peek("seen" + std::to_string(i)), "-");
  fill_now(store, "k", "v", declared(kStart + 10));
  EXPECT_EQ(peek("k", kStart + 10), "-") << "useless";
  EXPECT_EQ(peek("k"), "v") << "and it was not dropped";
  store.invalidate(hash_bytes("k"), "k", true);
  EXPECT_EQ(peek("k"), "void");
  EXPECT_EQ(store.verify(), "");
}

TEST(StoreBytes, VoidAndExpiredEntriesGoFirst) {
  Options options{.capacity_bytes = 256 << 10, .shards = 1};
  Store store(options);
  const Hash tag = hash_bytes("t");
  int stored = 0;
  for (; store.stats().evictions == 0; ++stored)
    fill_now(store, std::to_string(stored), std::string(100, 'v'), declared(),
             stored % 2 != 0 ? std::vector<Hash>{} : std::vector<Hash>{tag});
  for (int i = 0; i < stored; ++i) look(store, std::to_string(i));  // all are marked as used
  store.invalidate_tag(tag);
  int valid_before = 0;
  for (int i = 0; i < stored; ++i) valid_before += valid(store, std::to_string(i)) != "-";
  for (int i = 0; i < stored / 4; ++i)
    fill_now(store, "n" + std::to_string(i), std::string(100, 'n'));
  int valid_after = 0;
  for (int i = 0; i < stored; ++i) valid_after += valid(store, std::to_string(i)) != "-";
  EXPECT_GE(valid_after, valid_before * 95 / 100) << "of " << valid_before;
}

// ---- scan ----

TEST(StoreScan, MeetsWhatIsThereAllTheTimeWhileTheIndexGrows) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Random random(seed);
    Options options = small_options();
    options.capacity_bytes = 64 << 20;
    Store store(options);
    std::set<std::string> stays;
    const auto count = 1 + random.below(500);
    for (std::uint64_t i = 0; i < count; ++i) {
      stays.insert("s" + std::to_string(i));
      ASSERT_EQ(put_now(store, "s" + std::to_string(i), "v"), Refusal::none);
    }
    std::set<std::string> met;
    std::uint64_t cursor = 0;
    std::uint64_t added = 0;
    do {
      cursor = store.scan(cursor, 1 + static_cast<unsigned>(random.below(8)), kStart,
                          [&](const View& view) { met.emplace(view.key); });
      const auto more = random.below(200);
      for (std::uint64_t i = 0; i < more && added < 20'000; ++i)
        ASSERT_EQ(put_now(store, "n" + std::to_string(added++), "v"), Refusal::none);
      if (added > 0) erase_now(store, "n" + std::to_string(random.below(added)));
    } while (cursor != 0);
    for (const std::string& key : stays) ASSERT_TRUE(met.contains(key)) << key << " seed " << seed;
  }
}

TEST(StoreScan, TakesAnyCursorAndSkipsWhatIsUseless) {
  Store store(small_options());
  ASSERT_EQ(put_now(store, "a", "v"), Refusal::none);
  ASSERT_EQ(put_now(store, "b", "v", kStart), Refusal::none);
  std::set<std::string> met;
  const auto visit = [&](const View& view) { met.emplace(view.key); };
  EXPECT_EQ(store.scan(0, 1 << 20, kStart, visit), 0U);
  EXPECT_THAT(met, ElementsAre("a"));
  Random random(3);
  for (int i = 0; i < 1000; ++i) {
    std::uint64_t cursor = random.next();
    for (int steps = 0; cursor != 0; ++steps) {
      ASSERT_LT(steps, 100'000);
      cursor = store.scan(cursor, 7, kStart, visit);
    }
  }
  store.scan(0, 0, kStart, visit);
}

// ---- several at once ----

TEST(StoreLocked, SeesPlainKeysOnly) {
  Store store(small_options());
  ASSERT_EQ(fill_now(store, "declared", "v"), Refusal::none);
  ASSERT_EQ(put_now(store, "plain", "v"), Refusal::none);
  Meta leased{};
  const Hash tag = hash_bytes("t");
  ASSERT_EQ(fill_now(store, "leased", "v", leased, {tag}), Refusal::none);
  {
    Store::Locked locked(store);
    EXPECT_EQ(locked.find("declared", hash_bytes("declared"), kStart), nullptr);
    EXPECT_FALSE(locked.erase("declared", hash_bytes("declared")));
    EXPECT_FALSE(locked.set_expiry("declared", hash_bytes("declared"), 1));
    ASSERT_NE(locked.find("plain", hash_bytes("plain"), kStart), nullptr);
    EXPECT_EQ(locked.find("plain", hash_bytes("plain"), kStart)->value, "v");
    EXPECT_NE(locked.find("leased", hash_bytes("leased"), kStart), nullptr);
  }
  store.invalidate_tag(tag);
  Store::Locked locked(store);
  EXPECT_EQ(locked.find("leased", hash_bytes("leased"), kStart), nullptr);
  EXPECT_FALSE(locked.erase("leased", hash_bytes("leased")));
}

TEST(StoreLocked, TheVersionChangesWithEveryChange) {
  Options options = small_options();
  Store store(options);
  const Hash hash = hash_bytes("k");
  std::set<std::uint64_t> versions;
  const auto version = [&](TimeUs now = kStart) {
    Store::Locked locked(store, {&hash, 1});
    return locked.version("k", hash, now);
  };
  EXPECT_TRUE(versions.insert(version()).second);
  EXPECT_FALSE(versions.insert(version()).second);
  put_now(store, "k", "one");
  EXPECT_TRUE(versions.insert(version()).second);
  put_now(store, "k", "one");
  EXPECT_TRUE(versions.insert(version()).second) << "the same value, set again";
  look(store, "k");
  EXPECT_FALSE(versions.insert(version()).second) << "read";
  {
    Store::Locked locked(store, {&hash, 1});
    EXPECT_TRUE(locked.set_expiry("k", hash, kStart + 10));
  }
  EXPECT_TRUE(versions.insert(version()).second);
  EXPECT_TRUE(versions.insert(version(kStart + 10)).second) << "expired";
  put_now(store, "k", "one");
  EXPECT_TRUE(versions.insert(version()).second);
  erase_now(store, "k");
  EXPECT_TRUE(versions.insert(version()).second);
  store.clear(false);
  EXPECT_TRUE(versions.insert(version()).second);
}

TEST(StoreLocked, PutAndEraseVoidTickets) {
  Store store(small_options());
  const Hash hash = hash_bytes("k");
  policy::Ticket ticket = store.ticket(hash);
  put_now(store, "k", "newer");
  EXPECT_EQ(store.fill(ticket, "k", hash, "older", Meta{}, {}), Refusal::ticket);
  ticket = store.ticket(hash);
  erase_now(store, "k");
  EXPECT_EQ(store.fill(ticket, "k", hash, "older", Meta{}, {}), Refusal::ticket);
  ticket = store.ticket(hash);
  erase_now(store, "k");  // absent by now
  EXPECT_EQ(store.fill(ticket, "k", hash, "older", Meta{}, {}), Refusal::ticket);
  ticket = store.ticket(hash);
  store.erase("k", hash);  // by hand: voids nothing
  EXPECT_EQ(store.fill(ticket, "k", hash, "older", Meta{}, {}), Refusal::none);
}

TEST(StoreLocked, ScansAndClearsUnderItsLocks) {
  Store store(small_options());
  for (int i = 0; i < 100; ++i) put_now(store, std::to_string(i), "v");
  Store::Locked locked(store);
  std::set<std::string> met;
  const auto visit = [&](const View& view) { met.emplace(view.key); };
  std::uint64_t cursor = 0;
  do cursor = locked.scan(cursor, 3, kStart, visit);
  while (cursor != 0);
  EXPECT_EQ(met.size(), 100U);
  locked.clear(false);
  met.clear();
  EXPECT_EQ(locked.scan(0, 1 << 20, kStart, visit), 0U);
  EXPECT_TRUE(met.empty());
}

}  // namespace
}  // namespace larder::near
