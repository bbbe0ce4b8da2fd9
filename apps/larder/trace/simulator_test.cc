// The simulators of known policies against the plainest possible models of them, and all of them
// against what no policy can do.
#include "trace/simulator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <vector>

#include "base/random.h"

namespace larder::trace {
namespace {

struct Access {
  std::uint32_t key;
  std::uint32_t weight;
};
using Trace = std::vector<Access>;

std::uint64_t misses(std::string_view policy, const Trace& trace, std::uint64_t capacity,
                     Unit unit = Unit::entries) {
  const auto simulator = find_policy(policy)->make(capacity, unit);
  for (const Access& access : trace) simulator->access(access.key, access.weight);
  return simulator->misses();
}

Trace keys(const std::vector<std::uint32_t>& sequence) {
  Trace trace;
  for (const std::uint32_t key : sequence) trace.push_back({key, 1});
  return trace;
}

// Popular keys come more often; every key has one weight, and new numbers come in order.
Trace random_trace(std::uint64_t seed, std::size_t length, std::uint32_t universe,
                   std::uint32_t max_weight) {
  Random random(seed);
  std::map<std::uint64_t, std::uint32_t> numbers;
  Trace trace;
  for (std::size_t i = 0; i < length; ++i) {
    const std::uint64_t drawn = std::min(random.below(universe), random.below(universe));
    const auto number =
        numbers.try_emplace(drawn, static_cast<std::uint32_t>(numbers.size())).first->second;
    trace.push_back({number, 1 + static_cast<std::uint32_t>(mix64(number + seed) % max_weight)});
  }
  return trace;
}

// ---- models: one list from newest to oldest, searched from the front ----

struct Item {
  std::uint32_t key;
  std::uint32_t weight;
  unsigned mark = 0;
};
using Items = std::deque<Item>;

std::uint64_t weight_of(const Items& items) {
  std::uint64_t sum = 0;
  for (const Item& item : items) sum += item.weight;
  return sum;
}
Items::iterator find(Items& items, std::uint32_t key) {
  return std::ranges::find(items, key, &Item::key);
}

std::uint64_t model_fifo_or_lru(const Trace& trace, std::uint64_t capacity, bool lru) {
  Items items;
  std::uint64_t misses = 0;
  for (const auto& [key, weight] : trace) {
    const auto found = find(items, key);
    if (found != items.end()) {
      const Item item = *found;
      if (lru) {
        items.erase(found);
        items.push_front(item);
      }
      continue;
    }
    ++misses;
    if (weight > capacity) continue;
    while (weight_of(items) + weight > capacity) items.pop_back();
    items.push_front({key, weight});
  }
  return misses;
}

std::uint64_t model_sieve(const Trace& trace, std::uint64_t capacity) {
  Items items;
  std::int64_t hand = -1;  // position from the oldest; -1: begins there
  std::uint64_t misses = 0;
  const auto from_oldest = [&](std::int64_t at) {
    return items.end() - 1 - static_cast<std::ptrdiff_t>(at);
  };
  for (const auto& [key, weight] : trace) {
    const auto found = find(items, key);
    if (found != items.end()) {
      found->mark = 1;
      continue;
    }
    ++misses;
    if (weight > capacity) continue;
    while (weight_of(items) + weight > capacity) {
      std::int64_t at = hand < 0 ? 0 : hand;
      while (from_oldest(at)->mark == 1) {
        from_oldest(at)->mark = 0;
        if (++at == static_cast<std::int64_t>(items.size())) at = 0;
      }
      items.erase(from_oldest(at));
      hand = at < static_cast<std::int64_t>(items.size()) ? at : -1;
    }
    items.push_front({key, weight});
  }
  return misses;
}

std::uint64_t model_s3_fifo(const Trace& trace, std::uint64_t capacity) {
  const std::uint64_t small_capacity = std::max<std::uint64_t>(capacity / 10, 1);
  Items small;
  Items main;
  Items ghost;
  std::uint64_t misses = 0;
  const auto evict = [&] {
    if (weight_of(main) > capacity - small_capacity || small.empty()) {
      while (true) {
        Item item = main.back();
        main.pop_back();
        if (item.mark == 0) return;
        item.mark = std::min(item.mark, 3U) - 1;
        main.push_front(item);
      }
    }
    while (!small.empty()) {
      const Item item = small.back();
      small.pop_back();
      if (item.mark > 1) {
        main.push_front({item.key, item.weight});
        continue;
      }
      ghost.push_front(item);
      while (weight_of(ghost) > capacity * 9 / 10) ghost.pop_back();
      return;
    }
  };
  for (const auto& [key, weight] : trace) {
    if (const auto found = find(small, key); found != small.end()) {
      ++found->mark;
    } else if (const auto kept = find(main, key); kept != main.end()) {
      ++kept->mark;
    } else {
      ++misses;
      if (weight > capacity) continue;
      const auto known = find(ghost, key);
      const bool to_main = known != ghost.end();
      if (to_main) ghost.erase(known);
      while (weight_of(small) + weight_of(main) + weight > capacity) evict();
      (to_main ? main : small).push_front({key, weight});
    }
  }
  return misses;
}

TEST(Simulators, AgreeWithTheirModels) {
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    const std::uint32_t max_weight = seed % 2 == 0 ? 1 : 20;
    const Trace trace = random_trace(seed, 3000, 60 + 10 * (seed % 7), max_weight);
    const Unit unit = max_weight == 1 ? Unit::entries : Unit::bytes;
    const std::uint64_t capacity = (10 + seed) * max_weight / 2 + 1;
    SCOPED_TRACE(seed);
    EXPECT_EQ(misses("fifo", trace, capacity, unit), model_fifo_or_lru(trace, capacity, false));
    EXPECT_EQ(misses("lru", trace, capacity, unit), model_fifo_or_lru(trace, capacity, true));
    EXPECT_EQ(misses("sieve", trace, capacity, unit), model_sieve(trace, capacity));
    EXPECT_EQ(misses("s3-fifo", trace, capacity, unit), model_s3_fifo(trace, capacity));
  }
}

TEST(Simulators, KnownSequences) {
  // The textbook's: three frames, nine misses of FIFO and seven of OPT; four frames are worse.
  const Trace belady = keys({0, 1, 2, 3, 0, 1, 4, 0, 1, 2, 3, 4});
  EXPECT_EQ(misses("fifo", belady, 3), 9U);
  EXPECT_EQ(misses("fifo", belady, 4), 10U);
  EXPECT_EQ(misses("lru", belady, 3), 10U);
  EXPECT_EQ(misses("lru", belady, 4), 8U);
  EXPECT_EQ(misses("opt", belady, 3), 7U);
  EXPECT_EQ(misses("opt", belady, 4), 6U);
  // A loop one longer than the cache: LRU never hits.
  Trace loop;
  for (std::uint32_t i = 0; i < 100; ++i) loop.push_back({i % 5, 1});
  EXPECT_EQ(misses("lru", loop, 4), 100U);
  EXPECT_EQ(misses("opt", loop, 4), 5U + 95U / 4U);
}

TEST(Simulators, NobodyBeatsTheBounds) {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    const bool bytes = seed % 2 == 0;
    const Trace trace = random_trace(seed, 5000, 300, bytes ? 50 : 1);
    const std::uint64_t capacity = bytes ? 1500 : 60;
    const Unit unit = bytes ? Unit::bytes : Unit::entries;
    std::set<std::uint32_t> unique;
    for (const Access& access : trace) unique.insert(access.key);
    const std::uint64_t bound = misses("pfoo-l", trace, capacity, unit);
    EXPECT_GE(bound, unique.size());
    for (const Policy& policy : policies()) {
      if (!(bytes ? policy.for_bytes : policy.for_entries)) continue;
      const std::uint64_t its = misses(policy.name, trace, capacity, unit);
      EXPECT_GE(its, bound) << policy.name;
      EXPECT_LE(its, trace.size()) << policy.name;
      if (!bytes && policy.name != "pfoo-l")
        EXPECT_GE(its, misses("opt", trace, capacity)) << policy.name;
    }
  }
}

TEST(Simulators, WhatFitsMissesOnlyOnce) {
  const Trace trace = random_trace(5, 20000, 500, 1);
  std::set<std::uint32_t> unique;
  for (const Access& access : trace) unique.insert(access.key);
  for (const Policy& policy : policies())
    EXPECT_EQ(misses(policy.name, trace, 500), unique.size()) << policy.name;
}

TEST(Simulators, WhatIsLargerThanTheCacheIsNotStored) {
  Trace trace;
  for (int i = 0; i < 10; ++i) {
    trace.push_back({0, 1000});
    trace.push_back({1, 10});
  }
  for (const Policy& policy : policies()) {
    if (!policy.for_bytes) continue;
    EXPECT_EQ(misses(policy.name, trace, 100, Unit::bytes), 11U) << policy.name;
  }
}

TEST(Simulators, ACacheOfOneEntryWorks) {
  const Trace trace = random_trace(9, 2000, 20, 1);
  for (const Policy& policy : policies())
    EXPECT_LE(misses(policy.name, trace, 1), trace.size()) << policy.name;
}

// ---- Larder's own: what it promises ----

TEST(Larder, AScanDoesNotWashOutWhatIsUsed) {
  Trace trace;
  Random random(3);
  std::uint32_t next = 900;
  for (std::uint32_t key = 0; key < 900; ++key) trace.push_back({key, 1});
  for (int round = 0; round < 20; ++round) {
    for (int i = 0; i < 5000; ++i)
      trace.push_back({static_cast<std::uint32_t>(random.below(900)), 1});
    for (int i = 0; i < 3000; ++i) trace.push_back({next++, 1});
  }
  constexpr std::uint64_t kScanned = 60000;
  EXPECT_LT(misses("larder-fixed", trace, 1000) - kScanned, 2500U);
  EXPECT_GT(misses("lru", trace, 1000) - kScanned, 15000U);
}

TEST(Larder, SmallValuesAreWorthMore) {
  const Trace trace = random_trace(11, 50000, 2000, 400);
  const std::uint64_t capacity = 60000;
  const auto its = static_cast<double>(misses("larder-fixed", trace, capacity, Unit::bytes));
  for (const char* other : {"fifo", "lru", "clock", "sieve", "s3-fifo", "2q", "w-tinylfu"})
    EXPECT_LT(its, 0.9 * static_cast<double>(misses(other, trace, capacity, Unit::bytes))) << other;
}

TEST(Larder, AHotSetThatMovesIsFollowed) {
  Trace trace;
  Random random(4);
  for (std::uint32_t step = 0; step < 200; ++step)
    for (int i = 0; i < 1000; ++i)
      trace.push_back({step * 20 + static_cast<std::uint32_t>(random.below(800)), 1});
  const auto its = static_cast<double>(misses("larder-fixed", trace, 1000));
  EXPECT_LT(its, 2.0 * static_cast<double>(misses("lru", trace, 1000)));
}

}  // namespace
}  // namespace larder::trace
