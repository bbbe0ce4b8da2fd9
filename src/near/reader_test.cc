// The reader of other processes, here over the same process's memory: it answers what the node
// would answer as fresh, and nothing else.
#include "near/reader.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "near/shard.h"
#include "near/store_testing.h"

namespace larder::near {
namespace {

constexpr DurationUs kLease = 10 * kSecond;

// A store over private memory, which the test's reader looks at.
class Published {
 public:
  explicit Published(const Options& options = small_options())
      : Published(options, *Arena::make_private(options.shape())) {}

  Store store;
  ArenaHeader& header;
  std::span<CacheSlot> caches;
  std::span<const char> memory;

  Reader reader(TimeUs now = kStart) const { return *Reader::over(memory, {.now = now}); }
  // "+value", or the answer in a word.
  std::string get(std::string_view key, TimeUs now = kStart, std::size_t room = 4096) const;

 private:
  Published(const Options& options, Arena arena)
      : Published(options, arena.header(), arena.caches(), {arena.base(), arena.bytes()},
                  std::move(arena)) {}
  Published(const Options& options, ArenaHeader& head, std::span<CacheSlot> slots,
            std::span<const char> bytes, Arena arena)
      : store(options, std::move(arena)), header(head), caches(slots), memory(bytes) {
    store.publish(kStart, kLease, 0);
    store.publish_cache(1, true, 0, 0);
  }
};

std::string word_of(Answer answer) {
  switch (answer) {
    case Answer::found: return "found";
    case Answer::absent: return "absent";
    case Answer::miss: return "miss";
    case Answer::too_small: return "too_small";
    case Answer::node_down: return "node_down";
    case Answer::restarted: return "restarted";
    case Answer::corrupt: return "corrupt";
  }
  return "?";
}

std::string get_with(const Reader& reader, std::string_view key, std::size_t room = 4096) {
  std::string buffer(room, '?');
  const Reader::Read read = reader.get(key, buffer.data(), room);
  if (read.answer == Answer::found) return "+" + buffer.substr(0, read.size);
  return word_of(read.answer);
}

std::string Published::get(std::string_view key, TimeUs now, std::size_t room) const {
  return get_with(reader(now), key, room);
}

// ---- what is answered ----

TEST(Reader, AnswersWhatTheNodeHolds) {
  Published node;
  EXPECT_EQ(node.get("key"), "miss");
  fill_now(node.store, "key", "value");
  EXPECT_EQ(node.get("key"), "+value");
  EXPECT_EQ(node.get("kez"), "miss");
  fill_now(node.store, "key", "another");
  EXPECT_EQ(node.get("key"), "+another");
  put_now(node.store, "plain", "text");
  EXPECT_EQ(node.get("plain"), "+text");
  put_now(node.store, "empty", "");
  EXPECT_EQ(node.get("empty"), "+");
  erase_now(node.store, "plain");
  EXPECT_EQ(node.get("plain"), "miss");
}

TEST(Reader, SaysWhatTheSourceDoesNotHave) {
  Published node;
  Meta negative = declared();
  negative.negative = true;
  fill_now(node.store, "none", "", negative);
  EXPECT_EQ(node.get("none"), "absent");
}

TEST(Reader, SaysWhatRoomAValueTakes) {
  Published node;
  put_now(node.store, "key", "0123456789");
  std::array<char, 10> buffer{};
  const Reader reader = node.reader();
  for (std::size_t room = 0; room < 10; ++room) {
    const Reader::Read read = reader.get("key", buffer.data(), room);
    EXPECT_EQ(read.answer, Answer::too_small);
    EXPECT_EQ(read.size, 10U);
  }
  EXPECT_EQ(buffer, (std::array<char, 10>{}));  // nothing was written
  EXPECT_EQ(reader.get("key", buffer.data(), 10).answer, Answer::found);
  EXPECT_EQ(std::string_view(buffer.data(), 10), "0123456789");
}

TEST(Reader, CopiesEveryLengthFromEveryPlace) {
  Published node;
  for (std::size_t key_size = 0; key_size < 20; ++key_size) {
    const std::string key(key_size, 'k');
    for (std::size_t size = 0; size < 40; ++size) {
      std::string value;
      for (std::size_t i = 0; i < size; ++i) value.push_back(static_cast<char>('a' + (i * 7) % 26));
      ASSERT_EQ(put_now(node.store, key, value), Refusal::none);
      ASSERT_EQ(node.get(key, kStart, size), "+" + value);
      ASSERT_EQ(fill_now(node.store, key, value), Refusal::none);
      ASSERT_EQ(node.get(key, kStart, size), "+" + value);
    }
  }
}

TEST(Reader, FindsEverythingAsTheIndexGrows) {
  Published node;
  std::size_t entries = 0;
  for (; node.store.stats().evictions == 0; ++entries) {
    const std::string number = std::to_string(entries);
    ASSERT_EQ(put_now(node.store, "key:" + number, "value:" + number), Refusal::none);
    if (std::has_single_bit(entries))
      for (std::size_t i = 0; i <= entries; ++i)
        ASSERT_EQ(node.get("key:" + std::to_string(i)), "+value:" + std::to_string(i));
  }
  EXPECT_GT(entries, 10'000U);
}

TEST(Reader, ReadsTheLargestValue) {
  Published node;
  const std::string value(node.store.max_entry_bytes() - 100, 'v');
  ASSERT_EQ(put_now(node.store, "key", value), Refusal::none);
  EXPECT_EQ(node.get("key", kStart, value.size()), "+" + value);
}

// ---- freshness ----

TEST(Reader, AnswersNothingThatWasInvalidated) {
  Published node;
  fill_now(node.store, "key", "value");
  node.store.invalidate(hash_bytes("key"), "key", false);
  EXPECT_EQ(node.get("key"), "miss");
  fill_now(node.store, "key", "value");
  node.store.invalidate(hash_bytes("key"), "key", true);  // kept for errors
  EXPECT_EQ(node.get("key"), "miss");
}

TEST(Reader, AnswersNothingWhoseTagWasInvalidated) {
  Published node;
  const std::vector<Hash> tags{hash_bytes("a"), hash_bytes("b"), hash_bytes("c")};
  fill_now(node.store, "tagged", "value", declared(), tags);
  fill_now(node.store, "other", "value", declared(), {hash_bytes("d")});
  EXPECT_EQ(node.get("tagged"), "+value");
  node.store.invalidate_tag(hash_bytes("b"));
  EXPECT_EQ(node.get("tagged"), "miss");
  EXPECT_EQ(node.get("other"), "+value");
  fill_now(node.store, "tagged", "newer", declared(), tags);
  EXPECT_EQ(node.get("tagged"), "+newer");
}

TEST(Reader, KnowsAllTheTagsThatAnEntryMayHave) {
  Published node;
  std::vector<Hash> tags;
  for (Hash i = 0; i < 255; ++i) tags.push_back(i);
  fill_now(node.store, "key", "value", declared(), tags);
  EXPECT_EQ(node.get("key"), "+value");
  node.store.invalidate_tag(254);
  EXPECT_EQ(node.get("key"), "miss");
}

TEST(Reader, AnswersNothingOfAPartitionThatWasReset) {
  Published node;
  fill_now(node.store, "key", "value");
  node.store.reset(node.store.partition_of(hash_bytes("key")) ^ 1);
  EXPECT_EQ(node.get("key"), "+value");
  node.store.reset(node.store.partition_of(hash_bytes("key")));
  EXPECT_EQ(node.get("key"), "miss");
}

TEST(Reader, LeavesWhatIsLateToTheNode) {
  Published node;
  Meta meta = declared(kStart + 1000);
  meta.as_of = kStart;
  meta.useless_at = kStart + kSecond;  // stale-while-revalidate
  fill_now(node.store, "key", "value", meta);
  put_now(node.store, "plain", "text", kStart + 1000);
  for (const std::string key : {"key", "plain"}) {
    EXPECT_EQ(node.get(key, kStart + 999)[0], '+');
    EXPECT_EQ(node.get(key, kStart + 1000), "miss");
  }
}

TEST(Reader, KeepsToTheBoundOfACache) {
  Published node;
  Meta meta = declared();
  meta.as_of = kStart;
  fill_now(node.store, "key", "value", meta);
  node.store.publish_cache(1, true, 1000, 0);
  EXPECT_EQ(node.get("key", kStart + 1000), "+value");
  EXPECT_EQ(node.get("key", kStart + 1001), "miss");
  node.store.publish_cache(1, true, 1000, kStart + 500);
  EXPECT_EQ(node.get("key", kStart + 1500), "+value");
  EXPECT_EQ(node.get("key", kStart + 1501), "miss");
}

TEST(Reader, AnswersReadableCachesOnly) {
  Published node;
  fill_now(node.store, "key", "value");
  fill_now(node.store, "undeclared", "value", declared(kNever, 2));
  fill_now(node.store, "beyond", "value", declared(kNever, 60'000));
  fill_now(node.store, "plain", "value", declared(kNever, 0));
  EXPECT_EQ(node.get("undeclared"), "miss");
  EXPECT_EQ(node.get("beyond"), "miss");
  EXPECT_EQ(node.get("plain"), "+value");
  node.store.publish_cache(1, false, 0, 0);
  EXPECT_EQ(node.get("key"), "miss");
  node.store.publish_cache(1, true, 0, 0);
  EXPECT_EQ(node.get("key"), "+value");
}

// ---- the node's life ----

TEST(Reader, AnswersNothingWithoutTheNodesLease) {
  Published node;
  put_now(node.store, "key", "value");
  EXPECT_EQ(node.get("key", kStart + kLease), "+value");
  EXPECT_EQ(node.get("key", kStart + kLease + 1), "node_down");
  EXPECT_EQ(node.get("unknown", kStart + kLease + 1), "node_down");
  EXPECT_EQ(node.reader(kStart + 1).lease_left(), kLease - 1);
  node.store.publish(kStart + kLease, kLease, 0);
  EXPECT_EQ(node.get("key", kStart + kLease + 1), "+value");
  node.store.close_shared();
  EXPECT_EQ(node.get("key"), "node_down");
}

TEST(Reader, TellsOneLifeOfTheNodeFromAnother) {
  Published node;
  put_now(node.store, "key", "value");
  const Reader reader = node.reader();
  node.header.state.store(ArenaHeader::State::building);
  node.header.instance.fetch_add(1);
  EXPECT_EQ(get_with(reader, "key"), "node_down");
  EXPECT_EQ(Reader::over(node.memory).error(), Reader::Unfit::being_made);
  node.header.state.store(ArenaHeader::State::serving);
  EXPECT_EQ(get_with(reader, "key"), "restarted");
  EXPECT_EQ(get_with(reader, "key"), "restarted");
  EXPECT_EQ(node.get("key"), "+value");
  node.header.state.store(ArenaHeader::State::gone);
  EXPECT_EQ(get_with(reader, "key"), "node_down");
}

TEST(Reader, GoesByTheClockThatTheNodePublishes) {
  Published node;
  const TimeUs now = monotonic_now_us();
  node.store.publish(now, kLease, clock_anchor_us());
  const Reader reader = *Reader::over(node.memory);
  EXPECT_GE(reader.now(), now);
  EXPECT_GT(reader.lease_left(), 0);
  // An hour, and less than what the coarse clock may be behind: both are answered.
  put_now(node.store, "key", "value", now + 3600 * kSecond);
  EXPECT_EQ(get_with(reader, "key"), "+value");
  put_now(node.store, "gone", "value", now);
  EXPECT_EQ(get_with(reader, "gone"), "miss");
  node.store.publish(now, -1, clock_anchor_us());
  EXPECT_EQ(get_with(reader, "key"), "node_down");
}

// ---- proof ----

// The word of the bucket in which a key lives.
std::atomic<std::uint64_t>& control_of(const Published& node, std::string_view key) {
  const Hash hash = hash_bytes(key);
  const auto& fixed = node.header.fixed;
  const ArenaLayout layout = *ArenaLayout::of(fixed);
  char* const shard = const_cast<char*>(node.memory.data()) + layout.shards_at +
                      ((hash >> 58) & (fixed.shards - 1)) * fixed.shard_bytes;
  auto& state = *reinterpret_cast<ShardState*>(shard);
  const Index index(shard, state.index,
                    reinterpret_cast<std::atomic<Ref>*>(shard + layout.directory_at),
                    layout.max_segments);
  return index.home(hash).control;
}

TEST(Reader, AnswersNothingOutOfABucketThatIsBeingChanged) {
  Published node;
  put_now(node.store, "key", "value");
  control_of(node, "key").fetch_add(1);
  EXPECT_EQ(node.get("key"), "miss");
  const Reader careless = *Reader::over(node.memory, {.validate = false, .now = kStart});
  EXPECT_EQ(get_with(careless, "key"), "+value");  // the negative control
  control_of(node, "key").fetch_add(1);
  EXPECT_EQ(node.get("key"), "+value");
}

TEST(Reader, WaitsForNobodyWhoChangesSeveralKeys) {
  Published node;
  put_now(node.store, "key", "value");
  const std::array keys{hash_bytes("key"), hash_bytes("other")};
  {
    Store::Locked locked(node.store, keys);
    ASSERT_EQ(locked.put("other", keys[1], "value", kNever), Refusal::none);
    EXPECT_EQ(node.get("key"), "miss");
  }
  EXPECT_EQ(node.get("key"), "+value");
}

TEST(Reader, CountsHitsUntilTheEntrysCounterIsFull) {
  Published node;
  put_now(node.store, "key", "value");
  const Reader reader = node.reader();
  std::array<char, 16> buffer{};
  for (unsigned i = 0; i < kMaxHits; ++i) {
    const Reader::Read read = reader.get("key", buffer.data(), buffer.size());
    EXPECT_TRUE(read.counts);
    node.store.count_hit(read.hash);
  }
  EXPECT_FALSE(reader.get("key", buffer.data(), buffer.size()).counts);
  EXPECT_FALSE(reader.get("unknown", buffer.data(), buffer.size()).counts);
}

// ---- the node and its readers say the same ----

// What the node would answer as fresh.
std::string asked(Published& node, std::string_view key, TimeUs now) {
  std::string answer = "miss";
  node.store.lookup(key, hash_bytes(key), now, [&](const View& view) {
    const Meta& meta = view.meta;
    DurationUs bound = 0;
    TimeUs heartbeat = 0;
    if (meta.cache_id != 0) {
      const CacheSlot& slot = node.caches[meta.cache_id - 1U];
      if (slot.readable.load() == 0) return;
      bound = slot.bound.load();
      heartbeat = slot.heartbeat.load();
    }
    const auto freshness = policy::decide({.now = now,
                                           .as_of = meta.as_of,
                                           .soft_expiry = meta.soft_expiry,
                                           .is_void = view.is_void,
                                           .heartbeat = heartbeat},
                                          {.bound_us = bound});
    if (freshness != policy::Freshness::fresh) return;
    answer = meta.negative ? "absent" : "+" + std::string(view.value);
  });
  return answer;
}

class Agreement : public testing::TestWithParam<unsigned> {};

TEST_P(Agreement, OfReaderAndNode) {
  std::mt19937 random(GetParam());
  const auto below = [&](unsigned n) { return static_cast<unsigned>(random() % n); };
  Published node({.capacity_bytes = 1 << 20, .shards = 2, .partitions = 4, .tag_slots = 64});
  TimeUs now = kStart;
  std::map<std::string, int> answers;
  for (int step = 0; step < 30'000; ++step) {
    const std::string key = "key:" + std::to_string(below(3000));
    const Hash hash = hash_bytes(key);
    now += below(200);
    switch (below(16)) {
      case 0: node.store.invalidate(hash, key, below(2) == 0); break;
      case 1:
        if (below(50) == 0) node.store.invalidate_tag(below(64));
        break;
      case 2:
        if (below(200) == 0) node.store.reset(below(4));
        break;
      case 3: node.store.expire(now, 16); break;
      case 4:
        node.store.publish_cache(static_cast<std::uint16_t>(1 + below(3)), below(4) != 0,
                                 below(2) * 200'000, below(2) == 0 ? 0 : now - below(400'000));
        break;
      case 5: put_now(node.store, key, std::string(below(300), 'p'), now + below(2'000'000)); break;
      case 6: node.store.set_expiry(key, hash, now, now + below(100'000), now + 200'000); break;
      case 7: node.store.touch(key, hash, now); break;
      default: {
        Meta meta{.cache_id = static_cast<std::uint16_t>(below(4)),
                  .negative = below(10) == 0,
                  .ttl_us = 50'000,
                  .as_of = now - below(100'000),
                  .soft_expiry = now + below(2'000'000)};
        meta.useless_at = meta.soft_expiry + below(500'000);
        std::vector<Hash> tags(below(4));
        for (Hash& tag : tags) tag = below(64);
        fill_now(node.store, key, std::string(meta.negative ? 0 : below(500), 'v'), meta, tags);
      }
    }
    node.store.publish(now, kLease, 0);
    for (int i = 0; i < 3; ++i) {
      const std::string wanted = "key:" + std::to_string(below(3000));
      const std::string expected = asked(node, wanted, now);
      ASSERT_EQ(node.get(wanted, now), expected) << wanted << " at step " << step;
      ++answers[expected.substr(0, 1)];
    }
  }
  EXPECT_EQ(node.store.verify(), "");
  EXPECT_GT(answers["+"], 5000);
  EXPECT_GT(answers["a"], 500);
  EXPECT_GT(answers["m"], 5000);
}

INSTANTIATE_TEST_SUITE_P(Seeds, Agreement, testing::Values(1, 2, 3));

// ---- what cannot be ----

// A copy of an arena in memory of just its size, to be damaged.
class Damaged {
 public:
  explicit Damaged(const Published& node) : size_(node.memory.size()) {
    void* bytes = nullptr;
    if (posix_memalign(&bytes, 64, size_) != 0) std::abort();
    bytes_.reset(static_cast<char*>(bytes));
    std::memcpy(bytes, node.memory.data(), size_);
  }
  template <class T>
  T& at(std::uint64_t offset) {
    return *reinterpret_cast<T*>(bytes_.get() + offset);
  }
  ArenaHeader& header() { return at<ArenaHeader>(0); }
  std::span<const char> span(std::size_t less = 0) const { return {bytes_.get(), size_ - less}; }

 private:
  struct Free {
    void operator()(char* bytes) const { std::free(bytes); }
  };
  std::unique_ptr<char, Free> bytes_;
  std::size_t size_;
};

TEST(Reader, RefusesWhatIsNoArena) {
  const Published node;
  const auto refused = [](std::span<const char> memory) {
    const auto reader = Reader::over(memory);
    return reader ? -1 : static_cast<int>(reader.error());
  };
  constexpr int kMade = static_cast<int>(Reader::Unfit::being_made);
  constexpr int kVersion = static_cast<int>(Reader::Unfit::other_version);
  constexpr int kCorrupt = static_cast<int>(Reader::Unfit::corrupt);
  EXPECT_EQ(refused(Damaged(node).span()), -1);
  EXPECT_EQ(refused({}), kMade);
  EXPECT_EQ(refused(Damaged(node).span(1)), kCorrupt);  // cut short
  Damaged one(node);
  one.header().fixed.magic ^= 1;
  EXPECT_EQ(refused(one.span()), kCorrupt);
  Damaged two(node);
  two.header().fixed.layout += 1;
  EXPECT_EQ(refused(two.span()), kVersion);
  Damaged three(node);
  three.header().fixed.shard_bytes *= 2;
  EXPECT_EQ(refused(three.span()), kCorrupt);
  three.header().checksum = checksum_of(three.header().fixed);
  EXPECT_EQ(refused(three.span()), kCorrupt);
  three.header().fixed.bytes *= 2;
  three.header().checksum = checksum_of(three.header().fixed);
  EXPECT_EQ(refused(three.span()), kCorrupt);
  Damaged four(node);
  four.header().state.store(ArenaHeader::State::building);
  EXPECT_EQ(refused(four.span()), kMade);
  const std::array<char, 4096> zeros{};
  EXPECT_EQ(refused(zeros), kMade);
}

TEST(Reader, SaysCorruptAndStaysInside) {
  Published node({.capacity_bytes = 1 << 20, .shards = 1, .partitions = 1, .tag_slots = 64});
  fill_now(node.store, "key", "value", declared(), {1, 2, 3});
  const ArenaLayout layout = *ArenaLayout::of(node.header.fixed);
  const std::uint64_t shard = layout.shards_at;
  const std::uint64_t control = static_cast<std::uint64_t>(
      reinterpret_cast<char*>(&control_of(node, "key")) - node.memory.data());
  const auto get = [](const Damaged& damaged) {
    return get_with(*Reader::over(damaged.span(), {.now = kStart}), "key");
  };
  const auto slot_at = [&] {
    std::uint64_t at = control + offsetof(Bucket, refs);
    while (*reinterpret_cast<const Ref*>(node.memory.data() + at) == kNoRef) at += sizeof(Ref);
    return at;
  };
  EXPECT_EQ(get(Damaged(node)), "+value");
  const std::uint64_t entry =
      shard + *reinterpret_cast<const Ref*>(node.memory.data() + slot_at()) * kGranule;

  for (const Ref wrong :
       {Ref{1}, Ref{UINT32_MAX}, static_cast<Ref>(node.header.fixed.shard_bytes / kGranule - 1)}) {
    Damaged damaged(node);
    damaged.at<Ref>(slot_at()) = wrong;
    EXPECT_EQ(get(damaged), "corrupt") << wrong;
  }
  for (const std::uint32_t buckets : {0U, UINT32_MAX}) {
    Damaged damaged(node);
    damaged.at<std::uint32_t>(shard + offsetof(IndexState, buckets)) = buckets;
    EXPECT_EQ(get(damaged), "corrupt");
  }
  {
    Damaged damaged(node);
    damaged.at<Ref>(shard + layout.directory_at) = UINT32_MAX;
    EXPECT_EQ(get(damaged), "corrupt");
  }
  {
    Damaged damaged(node);  // a value that ends outside
    damaged.at<std::uint64_t>(entry) |= kMaxValueBytes << bits::kValueShift;
    EXPECT_EQ(get(damaged), "corrupt");
  }
  {
    Damaged damaged(node);  // another number of tags: the key lies elsewhere then
    damaged.at<std::uint64_t>(entry + 24) |= 0xffULL << Entry::kTagCountShift;
    EXPECT_EQ(get(damaged), "miss");
  }
  {
    Damaged damaged(node);  // tags that do not exist count as others
    damaged.at<std::uint32_t>(entry + Entry::kFilledText + 8) = UINT32_MAX;
    EXPECT_EQ(get(damaged), "+value");
  }
  {
    Damaged damaged(node);  // a chain that leads back to itself, or out
    const std::uint64_t tags = control + offsetof(Bucket, tags);
    const std::uint64_t rest = control + offsetof(Bucket, rest);
    damaged.at<std::uint64_t>(tags) = ~damaged.at<std::uint64_t>(tags);
    damaged.at<std::uint64_t>(rest) =
        std::uint64_t{(control - shard - Index::kOverflowOffset) / kGranule} << 32;
    EXPECT_EQ(get(damaged), "miss");
    damaged.at<std::uint64_t>(rest) = std::uint64_t{UINT32_MAX} << 32;
    EXPECT_EQ(get(damaged), "corrupt");
  }
  {
    Damaged damaged(node);  // times at the ends of what can be written
    for (const std::int64_t time : {INT64_MIN, INT64_MAX}) {
      damaged.header().clock_anchor_us.store(time);
      damaged.at<CacheSlot>(layout.caches_at).bound.store(time);
      damaged.at<CacheSlot>(layout.caches_at).heartbeat.store(time);
      const Reader reader = *Reader::over(damaged.span());
      EXPECT_NE(get_with(reader, "key"), "corrupt");
      EXPECT_NE(reader.lease_left(), kNever);
    }
  }
}

}  // namespace
}  // namespace larder::near
