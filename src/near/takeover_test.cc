// What survives a node: through shared memory, through a file, and in the middle of a change.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/random.h"
#include "near/store_testing.h"

namespace larder::near {
namespace {

using Trust = Store::Trust;

class Takeover : public testing::Test {
 protected:
  Takeover() : name_("test-" + std::to_string(getpid()) + "-" + std::to_string(++counter_)) {
    folder_ = std::filesystem::temp_directory_path() / name_;
    std::filesystem::create_directory(folder_);
  }
  ~Takeover() override {
    shm_unlink(shared_object(name_).c_str());
    std::filesystem::remove_all(folder_);
  }

  std::unique_ptr<Store> open(const Options& options, std::uint64_t fingerprint = 1) {
    Result<Arena> arena = Arena::open_shared(name_, options.shape(fingerprint));
    EXPECT_TRUE(arena.has_value()) << to_string(arena.error());
    found_ = arena->found();
    return std::make_unique<Store>(options, std::move(*arena));
  }
  Store::Restored take_over(Store& store, DurationUs shift = 0) {
    return store.take_over(kStart + shift, anchor_ + shift, [](std::uint16_t cache) {
      return cache == 2 ? Trust::revalidate : cache == 3 ? Trust::drop : Trust::full;
    });
  }
  void fill_some(Store& store) {
    ASSERT_EQ(put_now(store, "plain", "p"), Refusal::none);
    ASSERT_EQ(put_now(store, "ending", "e", kStart + kSecond), Refusal::none);
    ASSERT_EQ(put_now(store, "ended", "x", kStart - 1), Refusal::none);
    Meta meta = declared(kStart + 10 * kSecond);
    meta.as_of = kStart - 5;
    meta.ttl_us = 77;
    ASSERT_EQ(fill_now(store, "declared", "d", meta, {hash_bytes("tag")}), Refusal::none);
    ASSERT_EQ(fill_now(store, "fed", "f", declared(kNever, 2)), Refusal::none);
    ASSERT_EQ(fill_now(store, "dropped", "g", declared(kNever, 3)), Refusal::none);
    ASSERT_EQ(fill_now(store, "void", "v", declared(kNever, 1)), Refusal::none);
    store.invalidate(hash_bytes("void"), "void", true);
  }
  void expect_some(Store& store, DurationUs shift = 0) {
    const TimeUs now = kStart + shift;
    EXPECT_EQ(valid(store, "plain", now), "p");
    EXPECT_EQ(valid(store, "ending", now + kSecond - 1), "e");
    EXPECT_FALSE(look(store, "ending", now + kSecond));
    EXPECT_FALSE(look(store, "ended", now));
    const auto seen = look(store, "declared", now);
    ASSERT_TRUE(seen);
    EXPECT_EQ(seen->value, "d");
    EXPECT_FALSE(seen->is_void);
    EXPECT_EQ(seen->meta.as_of, now - 5);
    EXPECT_EQ(seen->meta.ttl_us, 77);
    EXPECT_EQ(seen->meta.soft_expiry, now + 10 * kSecond);
    EXPECT_EQ(seen->meta.tag_count, 1);
    ASSERT_TRUE(look(store, "fed", now));
    EXPECT_TRUE(look(store, "fed", now)->is_void) << "its guarantee cannot be shown";
    EXPECT_FALSE(look(store, "dropped", now));
    ASSERT_TRUE(look(store, "void", now));
    EXPECT_TRUE(look(store, "void", now)->is_void);
    EXPECT_EQ(store.verify(), "");
    store.invalidate_tag(hash_bytes("tag"));
    EXPECT_TRUE(look(store, "declared", now)->is_void);
  }

  static inline int counter_ = 0;
  const std::int64_t anchor_ = 5'000'000;
  std::string name_;
  std::filesystem::path folder_;
  bool found_ = false;
};

TEST_F(Takeover, ANodeFindsWhatTheLastOneLeftInSharedMemory) {
  {
    auto store = open(small_options());
    EXPECT_FALSE(found_);
    store->publish(kStart, kSecond, anchor_);
    fill_some(*store);
  }
  auto store = open(small_options());
  EXPECT_TRUE(found_);
  const Store::Restored restored = take_over(*store);
  EXPECT_EQ(restored.entries, 3U);
  EXPECT_EQ(restored.to_revalidate, 2U);
  EXPECT_EQ(restored.dropped, 2U);
  expect_some(*store);
}

TEST_F(Takeover, TimesAreMovedOntoTheNewClock) {
  {
    auto store = open(small_options());
    store->publish(kStart, kSecond, anchor_);
    fill_some(*store);
  }
  auto store = open(small_options());
  take_over(*store, 3600 * kSecond);
  expect_some(*store, 3600 * kSecond);
}

TEST_F(Takeover, AnotherConfigurationBeginsEmptyAndTellsReaders) {
  auto first = open(small_options());
  fill_some(*first);
  Result<Arena> second = Arena::open_shared(name_, small_options().shape(1));
  ASSERT_FALSE(second.has_value()) << "it belongs to a running node";
  EXPECT_NE(second.error().message.find("another running node"), std::string::npos);
  first.reset();

  const int old = shm_open(shared_object(name_).c_str(), O_RDONLY, 0);
  void* mapped = mmap(nullptr, sizeof(ArenaHeader), PROT_READ, MAP_SHARED, old, 0);
  ASSERT_NE(mapped, MAP_FAILED);
  auto store = open(small_options(), 2);
  EXPECT_FALSE(found_);
  EXPECT_EQ(store->stats().entries, 0U);
  EXPECT_EQ(static_cast<ArenaHeader*>(mapped)->state.load(), ArenaHeader::State::gone);
  munmap(mapped, sizeof(ArenaHeader));
  close(old);
}

TEST_F(Takeover, WhatAResetVoidedStaysVoidInASnapshot) {
  const std::string path = folder_ / "near.snapshot";
  const auto all = [](std::uint16_t) { return Trust::full; };
  Store first(small_options());
  ASSERT_EQ(fill_now(first, "void", "v"), Refusal::none);
  first.reset_all();
  ASSERT_EQ(fill_now(first, "valid", "v"), Refusal::none);
  ASSERT_TRUE(first.save(path, kStart).has_value());
  Store second(small_options());
  ASSERT_TRUE(second.load(path, kStart, all).has_value());
  EXPECT_EQ(valid(second, "valid"), "v");
  EXPECT_EQ(valid(second, "void"), "-");
}

TEST_F(Takeover, PlainKeysThatAreNeverEvictedAllSurvive) {
  Options options{.capacity_bytes = 512 << 10, .shards = 1, .evict_plain = false};
  std::vector<std::string> keys;
  {
    auto store = open(options);
    store->publish(kStart, kSecond, anchor_);
    while (put_now(*store, std::to_string(keys.size()), std::string(keys.size() % 300, 'p')) ==
           Refusal::none)
      keys.push_back(std::to_string(keys.size()));
    // A store that is full to the last byte may lose a few, since they come in another order.
    for (std::size_t i = keys.size() / 20; i > 0; --i) {
      EXPECT_TRUE(erase_now(*store, keys.back()));
      keys.pop_back();
    }
  }
  auto store = open(options);
  take_over(*store);
  std::size_t lost = 0;
  for (const std::string& key : keys) lost += look(*store, key) ? 0 : 1;
  EXPECT_EQ(lost, 0U) << "of " << keys.size();
}

TEST_F(Takeover, NamesAndSizesThatCannotBeAreErrors) {
  EXPECT_FALSE(Arena::open_shared("no/slashes", small_options().shape()).has_value());
  EXPECT_FALSE(Arena::open_shared("", small_options().shape()).has_value());
  Options tiny = small_options();
  tiny.capacity_bytes = 4096;
  EXPECT_FALSE(Arena::make_private(tiny.shape()).has_value());
  Options huge = small_options();
  huge.capacity_bytes = 1ULL << 50;
  EXPECT_FALSE(Arena::open_shared(name_, huge.shape()).has_value());
}

// A kill leaves the bytes as they are at that instant. Here, of thousands of such instants: a copy
// of the arena after each step of a store that is written to, with random words of it overwritten.
TEST_F(Takeover, WhateverIsLeftNothingIsTornAndNothingCrashes) {
  Options options{.capacity_bytes = 256 << 10, .shards = 1, .partitions = 8, .tag_slots = 64};
  Random random(11);
  for (int round = 0; round < 60; ++round) {
    {
      auto store = open(options);
      if (found_) take_over(*store);
      store->publish(kStart, kSecond, anchor_);
      for (int i = 0; i < 400; ++i) {
        const std::string key = "key" + std::to_string(random.below(300));
        const std::string value = key + std::string(random.below(2000), '.');
        if (random.chance(0.5))
          put_now(*store, key, value);
        else
          fill_now(*store, key, value, declared(), {random.next(), random.next()});
      }
    }
    // Damage: what a crash cannot do, but a broken disk or a hostile neighbour can.
    const int fd = shm_open(shared_object(name_).c_str(), O_RDWR, 0);
    auto* bytes = static_cast<char*>(
        mmap(nullptr, options.capacity_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    ASSERT_NE(bytes, MAP_FAILED);
    for (int i = 0; round % 2 != 0 && i < 50; ++i) {
      const auto at = 8 * (64 + random.below(options.capacity_bytes / 8 - 64));
      const std::uint64_t noise = random.chance(0.5) ? random.next() : random.below(1 << 16);
      std::memcpy(bytes + at, &noise, sizeof noise);
    }
    munmap(bytes, options.capacity_bytes);
    close(fd);
    auto store = open(options);
    ASSERT_TRUE(found_);
    take_over(*store);
    ASSERT_EQ(store->verify(), "");
    if (round % 2 != 0) {
      store->clear(false);
      store->clear(true);
      continue;
    }
    EXPECT_GT(store->stats().entries, 50U);
    store->scan(0, 1 << 20, kStart,
                [&](const View& view) { EXPECT_TRUE(view.value.starts_with(view.key)) << "torn"; });
  }
}

TEST_F(Takeover, ASnapshotDoesTheSameOnceAndIsCheckedFirst) {
  const std::string path = folder_ / "near.snapshot";
  const auto trust = [](std::uint16_t cache) {
    return cache == 2 ? Trust::revalidate : cache == 3 ? Trust::drop : Trust::full;
  };
  Store first(small_options());
  fill_some(first);
  ASSERT_TRUE(first.save(path, kStart).has_value());
  {
    Store second(small_options());
    const auto restored = second.load(path, kStart, trust);
    ASSERT_TRUE(restored.has_value()) << to_string(restored.error());
    EXPECT_EQ(restored->entries, 3U);
    expect_some(second);
    EXPECT_FALSE(std::filesystem::exists(path)) << "it is used once";
    EXPECT_EQ(second.load(path, kStart, trust)->entries, 0U);
  }
  const auto refused = [&](const Options& options, TimeUs now) {
    Store other(options);
    const auto loaded = other.load(path, now, trust);
    EXPECT_EQ(other.verify(), "");
    return !loaded.has_value();
  };
  ASSERT_TRUE(first.save(path, kStart).has_value());
  EXPECT_TRUE(refused(small_options(), kStart - 1)) << "the clock was set back";
  ASSERT_TRUE(first.save(path, kStart).has_value());
  Options wider = small_options();
  wider.partitions = 16;
  EXPECT_TRUE(refused(wider, kStart)) << "another configuration";
  for (const std::uintmax_t keep : {0U, 10U, 500U, 100'000U, 3'000'000U}) {
    ASSERT_TRUE(first.save(path, kStart).has_value());
    std::filesystem::resize_file(path, keep);
    EXPECT_TRUE(refused(small_options(), kStart)) << "cut to " << keep;
  }
  for (const int at : {3, 20, 5000, 200'000, 2'000'000}) {
    ASSERT_TRUE(first.save(path, kStart).has_value());
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(at);
    const char flipped = static_cast<char>(file.get() ^ 1);
    file.seekp(at);
    file.put(flipped);
    file.close();
    EXPECT_TRUE(refused(small_options(), kStart)) << "a bit at " << at;
  }
  EXPECT_FALSE(first.save(folder_ / "no" / "folder", kStart).has_value());
}

}  // namespace
}  // namespace larder::near
