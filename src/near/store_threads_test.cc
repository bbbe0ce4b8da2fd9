// Many threads at once; meant to be run under ThreadSanitizer too.
#include <array>
#include <atomic>
#include <set>
#include <thread>

#include "base/random.h"
#include "near/store_testing.h"

namespace larder::near {
namespace {

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
        case 5: store.expire(now, 8); break;
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
  threads.reserve(4);
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
    names.reserve(kKeys);
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
    readers.reserve(3);
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
  threads.reserve(4);
  for (std::uint64_t i = 1; i <= 4; ++i) threads.emplace_back(work, i);
  threads.clear();
  EXPECT_EQ(torn, 0);
}

// Readers without a lock see a step that changes several keys wholly or not at all: whoever has
// seen the new value of the first does not see the old one of the second.
TEST(StoreThreads, ReadersSeeNoHalfOfAStep) {
  Store store(small_options());
  const std::array<std::string, 2> keys{"first", "second"};
  const std::array<Hash, 2> hashes{hash_bytes("first"), hash_bytes("second")};
  const auto write = [&](std::uint64_t n) {
    Store::Locked locked(store, hashes);
    for (std::size_t k = 0; k < 2; ++k) locked.put(keys[k], hashes[k], std::to_string(n), kNever);
  };
  write(0);
  std::atomic<bool> stop{false};
  std::atomic<int> halves{0};
  const auto number = [&](std::size_t k) {
    std::uint64_t n = 0;
    EXPECT_TRUE(store.lookup(keys[k], hashes[k], kStart, [&](const View& view) {
      n = std::stoull(std::string(view.value));
    })) << "a key that is replaced is never absent";
    return n;
  };
  {
    std::vector<std::jthread> readers;
    readers.reserve(2);
    for (int i = 0; i < 2; ++i)
      readers.emplace_back([&] {
        while (!stop) {
          const std::uint64_t first = number(0);
          if (number(1) < first) ++halves;
        }
      });
    for (std::uint64_t n = 1; n < 30'000; ++n) write(n);
    stop = true;
  }
  EXPECT_EQ(halves, 0);
}

}  // namespace
}  // namespace larder::near
