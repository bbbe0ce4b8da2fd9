#include "near/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <set>
#include <string>
#include <thread>

#include "base/random.h"

namespace larder::near {
namespace {

using policy::Refusal;
using testing::ElementsAre;
using testing::UnorderedElementsAre;

constexpr TimeUs kStart = 1'000'000;

Options small_options() {
  return {.capacity_bytes = 4 << 20, .shards = 4, .partitions = 8, .tag_slots = 256};
}

Meta declared(TimeUs useless_at = kNever, std::uint16_t cache_id = 1) {
  return {.cache_id = cache_id, .soft_expiry = useless_at, .useless_at = useless_at};
}

struct Seen {
  std::string value;
  bool is_void = false;
  Meta meta;
  std::uint64_t version = 0;
};

std::optional<Seen> look(Store& store, std::string_view key, TimeUs now = kStart) {
  std::optional<Seen> seen;
  const bool visited = store.lookup(key, hash_bytes(key), now, [&](const View& view) {
    EXPECT_EQ(view.key, key);
    seen = Seen{std::string(view.value), view.is_void, view.meta, view.version};
  });
  EXPECT_EQ(visited, seen.has_value());
  return seen;
}

// The value that a reader may use.
std::string valid(Store& store, std::string_view key, TimeUs now = kStart) {
  const auto seen = look(store, key, now);
  return seen && !seen->is_void ? seen->value : "-";
}

Refusal fill_now(Store& store, std::string_view key, std::string_view value,
                 const Meta& meta = declared(), std::vector<Hash> tags = {}) {
  const Hash hash = hash_bytes(key);
  return store.fill(store.ticket(hash), key, hash, value, meta, tags);
}

Refusal put_now(Store& store, std::string_view key, std::string_view value,
                TimeUs expiry = kNever) {
  const Hash hash = hash_bytes(key);
  Store::Locked locked(store, {&hash, 1});
  return locked.put(key, hash, value, expiry);
}

bool erase_now(Store& store, std::string_view key) {
  const Hash hash = hash_bytes(key);
  Store::Locked locked(store, {&hash, 1});
  return locked.erase(key, hash);
}

TEST(Store, AnswersWhatWasFilledUntilItIsUseless) {
  Store store(small_options());
  EXPECT_FALSE(look(store, "k"));
  const Meta meta{.cache_id = 7,
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
  EXPECT_EQ(seen->meta.load_us, 12U);
  EXPECT_EQ(seen->meta.ttl_us, 34);
  EXPECT_EQ(seen->meta.as_of, 56);
  EXPECT_EQ(seen->meta.soft_expiry, kStart + 10);
  EXPECT_EQ(seen->meta.useless_at, kStart + 20);
  EXPECT_EQ(store.stats().entries, 1U);
  EXPECT_FALSE(look(store, "k", kStart + 20));
  EXPECT_EQ(store.stats().entries, 0U) << "dropped when met";
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

TEST(Store, EachValueHasItsOwnVersion) {
  Store store(small_options());
  std::set<std::uint64_t> versions;
  for (int i = 0; i < 100; ++i) {
    const std::string key = std::to_string(i % 10);
    ASSERT_EQ(i % 2 != 0 ? fill_now(store, key, "v") : put_now(store, key, "v"), Refusal::none);
    EXPECT_TRUE(versions.insert(look(store, key)->version).second);
  }
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

TEST(Store, SweepDropsWhatNobodyLooksUp) {
  Store store(small_options());
  for (int i = 0; i < 1000; ++i)
    ASSERT_EQ(put_now(store, std::to_string(i), "v", i % 2 != 0 ? kNever : kStart + 1),
              Refusal::none);
  std::size_t dropped = 0;
  for (int i = 0; i < 1000 && dropped < 500; ++i) dropped += store.sweep(kStart + 1, 16);
  EXPECT_EQ(dropped, 500U);
  EXPECT_EQ(store.stats().entries, 500U);
  EXPECT_EQ(store.stats().expirations, 500U);
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
        ASSERT_EQ(valid(store, key), value);
      else
        ++refused;
      if (i % 5 == 0) erase_now(store, "key" + std::to_string(random.below(5000)));
      ASSERT_LE(store.stats().bytes, options.capacity_bytes);
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
  for (int i = 0, refused = 0; refused < 100; ++i) {
    keys.push_back(std::to_string(i));
    if (put_now(store, keys.back(), std::string(1000, 'a')) == Refusal::none) continue;
    keys.pop_back();
    ++refused;
  }
  EXPECT_EQ(put_now(store, "one more", std::string(3000, 'a')), Refusal::no_room);
  EXPECT_EQ(store.stats().evictions, 0U);
  for (const std::string& key : keys) {
    ASSERT_EQ(valid(store, key), std::string(1000, 'a'));
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
  EXPECT_FALSE(look(store, "absent", kStart + 1));  // tells the shard what time it is
  EXPECT_EQ(put_now(store, "new", std::string(1000, 'b')), Refusal::none);
}

TEST(StoreBytes, TooLargeLeavesTheOldValue) {
  Store store(small_options());
  ASSERT_EQ(put_now(store, "k", "v"), Refusal::none);
  const std::string huge(store.max_entry_bytes(), 'x');
  EXPECT_EQ(put_now(store, "k", huge), Refusal::too_large);
  EXPECT_EQ(fill_now(store, "k", huge), Refusal::too_large);
  EXPECT_EQ(valid(store, "k"), "v");
  const std::vector<Hash> tags(256, 1);
  EXPECT_EQ(fill_now(store, "k", "v", declared(), tags), Refusal::too_large);
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
  EXPECT_EQ(valid_after, valid_before);
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
  options.version_slots = 1;  // the worst case: all share it
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

// ---- against a model ----

// What the store must hold if nothing is evicted.
class Model {
 public:
  struct Entry {
    std::string value;
    TimeUs useless_at = kNever;
    bool filled = false;
    bool is_void = false;
    std::uint16_t cache_id = 0;
    std::vector<Hash> tags;
  };

  const Entry* find(const std::string& key, TimeUs now) {
    const auto found = entries.find(key);
    if (found == entries.end()) return nullptr;
    if (found->second.useless_at <= now) {
      entries.erase(found);
      return nullptr;
    }
    return &found->second;
  }
  void void_if(const std::function<bool(const std::string&, const Entry&)>& which) {
    for (auto& [key, entry] : entries)
      if (entry.filled && which(key, entry)) entry.is_void = true;
  }

  std::map<std::string, Entry> entries;
};

class Walk {
 public:
  Walk(std::uint64_t seed, std::uint64_t capacity_bytes, bool may_evict)
      : random_(seed), may_evict_(may_evict), store_([&] {
          Options options = small_options();
          options.capacity_bytes = capacity_bytes;
          return options;
        }()) {}

  void run(int steps) {
    for (int i = 0; i < steps && !testing::Test::HasFatalFailure(); ++i) {
      now_ += static_cast<TimeUs>(random_.below(3));
      step();
      ASSERT_LE(store_.stats().bytes, store_.capacity_bytes());
    }
    for (int i = 0; i < kKeys; ++i) check(key(i));
  }

 private:
  static constexpr int kKeys = 300;
  static constexpr int kTags = 5;
  static std::string key(std::uint64_t i) { return "key:" + std::to_string(i); }
  static Hash tag(std::uint64_t i) { return i; }  // as it is: no two share a slot
  std::string any_key() { return key(random_.below(kKeys)); }
  TimeUs any_expiry() {
    return random_.chance(0.5) ? kNever : now_ + static_cast<TimeUs>(random_.below(2000));
  }
  std::string any_value() {
    return std::to_string(random_.next()) + std::string(random_.below(200), '.');
  }

  void step() {
    const std::string k = any_key();
    const Hash hash = hash_bytes(k);
    switch (random_.below(20)) {
      case 0:
      case 1:
      case 2: return fill(k, hash);
      case 3:
      case 4: return put(k, hash);
      case 5: {
        const bool was = erase_at_now(k, hash);
        const Model::Entry* entry = model_.find(k, now_);
        if (!may_evict_) ASSERT_EQ(was, entry && !entry->cache_id && !entry->is_void);
        if (entry && entry->cache_id == 0) model_.entries.erase(k);
        return;
      }
      case 6:
      case 7: {
        const bool keep = random_.chance(0.5);
        store_.invalidate(hash, k, keep);
        if (const Model::Entry* entry = model_.find(k, now_); entry && keep && entry->filled)
          model_.entries[k].is_void = true;
        else
          model_.entries.erase(k);
        return;
      }
      case 8: {
        if (random_.chance(0.8)) return;
        const Hash t = tag(random_.below(kTags));
        store_.invalidate_tag(t);
        model_.void_if([&](const auto&, const Model::Entry& entry) {
          return std::ranges::find(entry.tags, t) != entry.tags.end();
        });
        return;
      }
      case 9: {
        if (random_.chance(0.9)) return;
        const auto p = static_cast<unsigned>(random_.below(8));
        store_.reset(p);
        model_.void_if([&](const std::string& key, const Model::Entry&) {
          return store_.partition_of(hash_bytes(key)) == p;
        });
        return;
      }
      case 10: {
        if (random_.chance(0.98)) return;
        const bool which = random_.chance(0.5);
        store_.clear(which);
        std::erase_if(model_.entries,
                      [&](const auto& e) { return (e.second.cache_id != 0) == which; });
        return;
      }
      case 11: {
        const TimeUs expiry = any_expiry();
        const Model::Entry* entry = model_.find(k, now_);
        const bool done = store_.set_expiry(k, hash, now_, expiry, expiry);
        if (!may_evict_) ASSERT_EQ(done, entry && !entry->is_void);
        if (entry && !entry->is_void) model_.entries[k].useless_at = expiry;
        return;
      }
      case 12: store_.sweep(now_, 5); return;
      default: return check(k);
    }
  }

  bool erase_at_now(const std::string& k, Hash hash) {
    Store::Locked locked(store_, {&hash, 1});
    locked.find(k, hash, now_);
    return locked.erase(k, hash);
  }

  void fill(const std::string& k, Hash hash) {
    std::vector<Hash> tags;
    for (std::uint64_t i = random_.below(3); i > 0; --i) tags.push_back(tag(random_.below(kTags)));
    const policy::Ticket ticket = store_.ticket(hash);
    const bool raced = random_.chance(0.2);
    if (raced) {
      store_.invalidate(hash, k, false);
      model_.entries.erase(k);
    }
    const auto id = static_cast<std::uint16_t>(random_.below(3));
    const TimeUs expiry = any_expiry();
    const std::string value = any_value();
    const Refusal refusal = store_.fill(ticket, k, hash, value, declared(expiry, id), tags);
    ASSERT_EQ(refusal, raced ? Refusal::ticket : Refusal::none);
    if (!raced) model_.entries[k] = {value, expiry, true, false, id, tags};
  }

  void put(const std::string& k, Hash hash) {
    const std::string value = any_value();
    const TimeUs expiry = any_expiry();
    Store::Locked locked(store_, {&hash, 1});
    ASSERT_EQ(locked.put(k, hash, value, expiry), Refusal::none);
    model_.entries[k] = {value, expiry, false, false, 0, {}};
  }

  void check(const std::string& k) {
    const Model::Entry* entry = model_.find(k, now_);
    const auto seen = look(store_, k, now_);
    if (!seen) {
      if (!may_evict_) ASSERT_EQ(entry, nullptr) << k;
      return;
    }
    ASSERT_NE(entry, nullptr) << k;
    ASSERT_EQ(seen->value, entry->value);
    ASSERT_EQ(seen->is_void, entry->is_void);
    ASSERT_EQ(seen->meta.useless_at, entry->useless_at);
    ASSERT_EQ(seen->meta.cache_id, entry->cache_id);
  }

  Random random_;
  bool may_evict_;
  TimeUs now_ = kStart;
  Store store_;
  Model model_;
};

TEST(StoreModel, HoldsExactlyWhatItShould) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    Walk(seed, 4 << 20, false).run(5000);
    if (HasFatalFailure()) return;
  }
}

TEST(StoreModel, EvictsButNeverLies) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    Walk(seed, 32 << 10, true).run(5000);
    if (HasFatalFailure()) return;
  }
}

// ---- threads ----

std::string sealed(std::string_view key, std::uint64_t n, std::size_t padding) {
  std::string text = std::string(key) + "|" + std::to_string(n) + "|" + std::string(padding, '.');
  return text + "|" + std::to_string(hash_bytes(text, 1));
}

bool is_sealed(const View& view) {
  const std::size_t bar = view.value.rfind('|');
  if (bar == std::string_view::npos || !view.value.starts_with(view.key)) return false;
  return view.value.substr(bar + 1) == std::to_string(hash_bytes(view.value.substr(0, bar), 1));
}

TEST(StoreThreads, ValuesAreWholeAndTheBoundHolds) {
  Options options = small_options();
  options.capacity_bytes = 512 << 10;
  Store store(options);
  constexpr int kSteps = 20'000;
  std::atomic<int> broken{0};
  const auto work = [&](std::uint64_t seed) {
    Random random(seed);
    const auto verify = [&](const View& view) { broken += is_sealed(view) ? 0 : 1; };
    for (int i = 0; i < kSteps; ++i) {
      const std::string key = "key" + std::to_string(random.below(2000));
      const Hash hash = hash_bytes(key);
      const std::string value = sealed(key, random.next(), random.below(500));
      const TimeUs now = kStart + i;
      switch (random.below(12)) {
        case 0: store.fill(store.ticket(hash), key, hash, value, declared(now + 5000), {}); break;
        case 1: put_now(store, key, value); break;
        case 2: store.invalidate(hash, key, random.chance(0.5)); break;
        case 3: store.invalidate_tag(random.next()); break;
        case 4: store.touch(key, hash, now); break;
        case 5: store.sweep(now, 8); break;
        case 6: store.scan(random.next(), 8, now, verify); break;
        case 7: {
          if (i % 64 == 0) store.reset(static_cast<unsigned>(random.below(8)));
          if (store.stats().bytes > options.capacity_bytes) ++broken;
          break;
        }
        default: store.lookup(key, hash, now, verify); break;
      }
    }
  };
  std::vector<std::jthread> threads;
  for (std::uint64_t i = 1; i <= 4; ++i) threads.emplace_back(work, i);
  threads.clear();
  EXPECT_EQ(broken, 0);
}

// The rule that everything rests on: after an invalidation has returned, no reader gets a value
// from before it, however loads and fills are delayed.
TEST(StoreThreads, NoReaderGetsWhatWasInvalidatedBefore) {
  enum How : std::uint8_t { by_key, by_tag, by_reset };
  for (const How how : {by_key, by_tag, by_reset}) {
    Store store(small_options());
    constexpr int kKeys = 4;
    std::array<std::atomic<std::uint64_t>, kKeys> source{};  // the truth
    std::array<std::atomic<std::uint64_t>, kKeys>
        confirmed{};  // of which invalidations have returned
    std::atomic<std::uint64_t> stale{0};
    std::atomic<bool> stop{false};
    std::vector<std::string> names;
    for (int i = 0; i < kKeys; ++i) names.push_back("key" + std::to_string(i));
    const auto write = [&](std::uint64_t seed) {
      Random random(seed);
      for (int i = 0; i < 20'000; ++i) {
        const auto k = random.below(kKeys);
        const std::uint64_t value = source[k].fetch_add(1) + 1;
        const Hash hash = hash_bytes(names[k]);
        if (how == by_key) store.invalidate(hash, names[k], random.chance(0.5));
        if (how == by_tag) store.invalidate_tag(hash);
        if (how == by_reset) store.reset(store.partition_of(hash));
        std::uint64_t seen = confirmed[k].load();
        while (seen < value && !confirmed[k].compare_exchange_weak(seen, value)) {
        }
      }
    };
    const auto read = [&](std::uint64_t seed) {
      Random random(seed);
      while (!stop) {
        const auto k = random.below(kKeys);
        const Hash hash = hash_bytes(names[k]);
        const std::uint64_t floor = confirmed[k].load();
        bool hit = false;
        store.lookup(names[k], hash, kStart, [&](const View& view) {
          if (view.is_void) return;
          hit = true;
          if (std::stoull(std::string(view.value)) < floor) ++stale;
        });
        if (hit) continue;
        const policy::Ticket ticket = store.ticket(hash);
        const std::uint64_t loaded = source[k].load();
        if (random.chance(0.3)) std::this_thread::yield();
        store.fill(ticket, names[k], hash, std::to_string(loaded), declared(), {&hash, 1});
      }
    };
    std::vector<std::jthread> readers;
    for (std::uint64_t i = 0; i < 3; ++i) readers.emplace_back(read, 10 + i);
    {
      std::jthread one(write, 1);
      std::jthread two(write, 2);
    }
    stop = true;
    readers.clear();
    EXPECT_EQ(stale, 0U) << static_cast<int>(how);
  }
}

TEST(StoreThreads, LockedIsSeenWholeOrNotAtAll) {
  Store store(small_options());
  const std::array<std::string, 3> keys{"a", "b", "c"};
  std::array<Hash, 3> hashes{};
  for (std::size_t i = 0; i < 3; ++i) hashes[i] = hash_bytes(keys[i]);
  std::atomic<int> torn{0};
  const auto work = [&](std::uint64_t seed) {
    Random random(seed);
    for (int i = 0; i < 5000; ++i) {
      Store::Locked locked(store, hashes);
      std::set<std::string> values;
      for (std::size_t k = 0; k < 3; ++k) {
        const View* view = locked.find(keys[k], hashes[k], kStart);
        values.insert(view != nullptr ? std::string(view->value) : "-");
      }
      if (values.size() != 1) ++torn;
      const std::string next = std::to_string(random.next());
      for (std::size_t k = 0; k < 3; ++k) locked.put(keys[k], hashes[k], next, kNever);
    }
  };
  std::vector<std::jthread> threads;
  for (std::uint64_t i = 1; i <= 4; ++i) threads.emplace_back(work, i);
  threads.clear();
  EXPECT_EQ(torn, 0);
}

}  // namespace
}  // namespace larder::near
