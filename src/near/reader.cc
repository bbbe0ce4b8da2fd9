#include "near/reader.h"

#include <emmintrin.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <bit>

#include "near/words.h"
#include "policy/fill_rules.h"

// The way of a hit is one function: it has to fit into what the processor looks ahead.
#define INLINE [[gnu::always_inline]] inline

namespace larder::near {
namespace {

constexpr TimeUs kFarTime = TimeUs{1} << 57;  // beyond what entries can say
// The coarse clock is a few milliseconds behind, more if the host is short of processors. What is
// fine by this much more is fine; else the exact clock is asked, which costs ten times as much.
constexpr DurationUs kCoarseSlack = 250 * kMillisecond;
constexpr unsigned kPause = 16;

TimeUs steady_us(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return TimeUs{now.tv_sec} * kSecond + now.tv_nsec / 1000;
}

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A bit for each of a bucket's ten tags that is equal.
unsigned equal_tags(std::uint64_t tags, std::uint64_t rest, std::uint8_t wanted) {
  const __m128i all =
      _mm_set_epi64x(static_cast<std::int64_t>(rest), static_cast<std::int64_t>(tags));
  const __m128i equal = _mm_cmpeq_epi8(all, _mm_set1_epi8(static_cast<char>(wanted)));
  return static_cast<unsigned>(_mm_movemask_epi8(equal)) & ((1U << Bucket::kSlots) - 1);
}

Entry entry_at(const char* block) { return Entry(const_cast<char*>(block)); }

const std::atomic<std::uint64_t>& control_of(const char* bucket) {
  return *reinterpret_cast<const std::atomic<std::uint64_t>*>(bucket);
}

// A bucket's words, at whatever multiple of eight it begins.
constexpr std::size_t kTags = offsetof(Bucket, tags);
constexpr std::size_t kRest = offsetof(Bucket, rest);
constexpr std::size_t kRefs = offsetof(Bucket, refs);
static_assert(offsetof(Bucket, control) == 0);

}  // namespace

Reader::Reader(const char* base, const ArenaHeader::Fixed& fixed, const ArenaLayout& layout,
               std::uint64_t instance, const ReaderRules& rules)
    : base_(base),
      shards_(base + layout.shards_at),
      partitions_(reinterpret_cast<const Partition*>(base + layout.partitions_at)),
      caches_(reinterpret_cast<const CacheSlot*>(base + layout.caches_at)),
      tag_stamps_(reinterpret_cast<const std::atomic<std::uint64_t>*>(base + layout.tags_at)),
      shard_mask_(fixed.shards - 1),
      partition_mask_(fixed.partitions - 1),
      shard_bytes_(fixed.shard_bytes),
      max_buckets_(std::uint64_t{layout.max_segments} << Index::kSegmentShift),
      instance_(instance),
      fixed_(fixed),
      layout_(layout),
      rules_(rules) {}

std::expected<Reader, Reader::Unfit> Reader::over(std::span<const char> memory,
                                                  const ReaderRules& rules) {
  if (memory.size() < sizeof(ArenaHeader)) return std::unexpected(Unfit::being_made);
  const auto& header = *reinterpret_cast<const ArenaHeader*>(memory.data());
  const std::uint64_t instance = header.instance.load(std::memory_order_acquire);
  ArenaHeader::Fixed fixed{};
  load_bytes(reinterpret_cast<char*>(&fixed), memory.data() + offsetof(ArenaHeader, fixed),
             sizeof fixed);
  const auto checksum = load_word<std::uint64_t>(memory.data() + offsetof(ArenaHeader, checksum));
  // A node that takes over an earlier life's arena writes its header anew.
  std::atomic_thread_fence(std::memory_order_acquire);
  if (header.state.load(std::memory_order_relaxed) == ArenaHeader::State::building ||
      header.instance.load(std::memory_order_relaxed) != instance)
    return std::unexpected(Unfit::being_made);
  if (fixed.magic != ArenaHeader::kMagic) return std::unexpected(Unfit::corrupt);
  if (fixed.layout != ArenaHeader::kLayout) return std::unexpected(Unfit::other_version);
  if (checksum != checksum_of(fixed)) return std::unexpected(Unfit::corrupt);
  const auto layout = ArenaLayout::of(fixed);
  if (!layout || fixed.bytes > memory.size()) return std::unexpected(Unfit::corrupt);
  return Reader(memory.data(), fixed, *layout, instance, rules);
}

// ---- time ----

// Anything may stand in the arena. A time that cannot be is one at which nothing is fresh.
INLINE TimeUs Reader::node_time(TimeUs steady) const {
  if (rules_.now != 0) return rules_.now;
  const auto anchor =
      static_cast<std::uint64_t>(header().clock_anchor_us.load(std::memory_order_relaxed));
  const std::uint64_t time = static_cast<std::uint64_t>(steady) + anchor;
  return time < kFarTime ? static_cast<TimeUs>(time) : kFarTime;
}

TimeUs Reader::now() const { return node_time(steady_us(CLOCK_MONOTONIC)); }

DurationUs Reader::lease_left() const {
  TimeUs until = kFarTime;
  for (std::uint32_t i = 0; i < fixed_.partitions; ++i)
    until =
        std::min(until, partition_of(Hash{i} << 48).valid_until.load(std::memory_order_acquire));
  return std::max(until, TimeUs{0}) - now();
}

INLINE bool Reader::met(const Terms& terms, TimeUs now) {
  policy::Freshness freshness{};
  [[clang::always_inline]] freshness = policy::decide({.now = now,
                                                       .as_of = terms.as_of,
                                                       .soft_expiry = terms.soft_expiry,
                                                       .heartbeat = terms.heartbeat},
                                                      {.bound_us = terms.bound});
  return freshness == policy::Freshness::fresh;
}

// ---- looking ----

// The bucket, or null if its place cannot be.
INLINE const char* Reader::bucket_at(const char* shard, std::uint64_t growth, Hash hash) const {
  const auto& index = reinterpret_cast<const ShardState*>(shard)->index;
  const unsigned place = IndexState::place(growth, hash);
  const std::uint32_t buckets = index.buckets[place].load(std::memory_order_acquire);
  if (buckets == 0 || buckets > max_buckets_) return nullptr;
  const std::uint32_t number = IndexState::number(hash, buckets);
  const auto* const directory =
      reinterpret_cast<const std::atomic<Ref>*>(shard + layout_.directory_at);
  const Ref segment =
      directory[place * layout_.max_segments + (number >> Index::kSegmentShift)].load(
          std::memory_order_acquire);
  const std::uint32_t mask = (1U << Index::kSegmentShift) - 1;
  const std::uint64_t at =
      std::uint64_t{segment} * kGranule + (number & mask) * std::uint64_t{sizeof(Bucket)};
  return segment != kNoRef && within(at, sizeof(Bucket)) ? shard + at : nullptr;
}

// Where the text of other entries than a cache's without tags begins. False: that cannot be.
[[gnu::noinline]] bool Reader::shape_of(const char* block, std::uint64_t room, Look& look) const {
  if (!Entry::is_filled(look.word)) {
    look.text = (look.word & bits::kExpires) != 0 ? Entry::kExpiringText : Entry::kPlainText;
    return true;
  }
  if (room < Entry::kFilledText) return false;
  look.tags = static_cast<std::uint32_t>(entry_at(block).tag_count(look.word));
  look.text = Entry::tags_offset(look.tags);
  return true;
}

// Does this entry bear the key? Sets `look` if it does, or if the entry cannot be.
INLINE bool Reader::look_at(std::string_view key, const char* shard, Ref ref, Look& look) const {
  const std::uint64_t at = std::uint64_t{ref} * kGranule;
  if (at < layout_.heap_at || !within(at, kMinBlockUnits * kGranule)) return look.malformed = true;
  const char* const block = shard + at;
  // A small value is on its way while the first line still is; wherever that is, it does no harm.
  __builtin_prefetch(block + Bucket::kLine);
  __builtin_prefetch(block + 2 * Bucket::kLine);
  look.word = entry_at(block).load_bits();
  if (Entry::key_size(look.word) != key.size()) return false;
  look.text = Entry::kFilledText;  // branches, which are foreseen, and no choice of data
  if ((look.word & (bits::kFilled | bits::kTagged)) != bits::kFilled) [[unlikely]]
    if (!shape_of(block, shard_bytes_ - at, look)) return look.malformed = true;
  if (!within(at, look.text + key.size() + Entry::value_size(look.word)))
    return look.malformed = true;
  if (!equal_bytes(block + look.text, key.data(), key.size())) return false;
  look.block = block;
  return true;
}

INLINE Reader::Look Reader::look_for(std::string_view key, Hash hash, const char* shard,
                                     const char* home) const {
  Look look;
  const char* bucket = home;
  for (unsigned length = 0; length < kMaxChain; ++length) {
    const auto tags = load_word<std::uint64_t>(bucket + kTags);
    const auto rest = load_word<std::uint64_t>(bucket + kRest);
    for (unsigned match = equal_tags(tags, rest, Index::tag_of(hash)); match != 0;
         match &= match - 1) {
      const auto slot = static_cast<unsigned>(std::countr_zero(match));
      const auto ref = load_word<Ref>(bucket + kRefs + slot * sizeof(Ref));
      if (ref != kNoRef && look_at(key, shard, ref, look)) return look;
    }
    const auto next = static_cast<Ref>(rest >> 32);
    if (next == kNoRef) return look;
    const std::uint64_t at = std::uint64_t{next} * kGranule + Index::kOverflowOffset;
    if (!within(at, sizeof(Bucket))) {
      look.malformed = true;
      return look;
    }
    bucket = shard + at;
  }
  return look;  // such a chain is not worth the walk: a miss
}

// ---- what may be answered ----

[[gnu::noinline]] bool Reader::tags_are_void(const Look& look) const {
  const Entry entry = entry_at(look.block);
  std::array<std::uint64_t, 255> seen;  // NOLINT: only what is written is read
  for (std::uint32_t i = 0; i < look.tags; ++i) {
    const std::uint32_t slot = entry.tag_slot(i) & (fixed_.tag_slots - 1);
    seen[i] = tag_stamps_[slot].load(std::memory_order_acquire);
  }
  return policy::is_void(0, entry.stamp(), 0, std::span(seen.data(), look.tags));
}

// As Store::is_void, out of the arena alone.
INLINE bool Reader::is_void(const Look& look, Hash hash) const {
  const auto generation =
      static_cast<std::uint32_t>(partition_of(hash).generation.load(std::memory_order_acquire));
  return policy::is_void(entry_at(look.block).generation(), 0, generation, {}) ||
         (look.tags > 0 && tags_are_void(look));
}

INLINE Reader::Terms Reader::terms_of(const Look& look, Hash hash) const {
  Terms terms;
  const Entry entry = entry_at(look.block);
  if ((look.word & bits::kVoided) != 0) return terms;
  if (!Entry::is_filled(look.word)) {
    terms.answerable = true;
    terms.soft_expiry = entry.useless_at(look.word);
    return terms;
  }
  if (is_void(look, hash)) return terms;
  terms.as_of = entry.as_of();
  terms.soft_expiry = Entry::soft_expiry_of(terms.as_of, entry.life());
  if (const std::uint16_t cache = entry.filled_cache_id(); cache != 0) {
    if (cache > fixed_.caches) return terms;
    const CacheSlot& slot = caches_[cache - 1];
    if (slot.readable.load(std::memory_order_acquire) == 0) return terms;
    terms.bound = slot.bound.load(std::memory_order_acquire);
    if (terms.bound != 0) {
      terms.bound = std::clamp<DurationUs>(terms.bound, 0, kFarTime);
      terms.heartbeat = slot.heartbeat.load(std::memory_order_acquire);
    }
  }
  terms.answerable = true;
  return terms;
}

// ---- the read ----

INLINE bool Reader::holds(const Proof& proof) const {
  // Nothing that was read before this is read after it.
  std::atomic_thread_fence(std::memory_order_acquire);
  const std::uint64_t growth = proof.growth->load(std::memory_order_relaxed);
  return proof.control->load(std::memory_order_relaxed) == proof.control_was &&
         static_cast<std::uint64_t>(saved_at()) - static_cast<std::uint64_t>(proof.saved_at) <
             kLongestCopy &&
         (growth == proof.growth_was || IndexState::table(growth, proof.hash) ==
                                            IndexState::table(proof.growth_was, proof.hash)) &&
         same_life();
}

// False: something moved, try again.
INLINE bool Reader::try_get(std::string_view key, char* buffer, std::size_t capacity,
                            Read& read) const {
  read.answer = Answer::node_down;
  read.counts = false;
  if (!same_life()) {
    if (state() == ArenaHeader::State::serving) read.answer = Answer::restarted;
    return true;
  }
  const char* const shard = shard_of(read.hash);
  const auto& shard_state = *reinterpret_cast<const ShardState*>(shard);
  const std::uint32_t exclusive = shard_state.exclusive.load(std::memory_order_acquire);
  const std::uint64_t growth = shard_state.index.growth.load(std::memory_order_acquire);
  const char* const home = bucket_at(shard, growth, read.hash);
  if (home == nullptr) {
    read.answer = Answer::corrupt;
    return same_life() && shard_state.index.growth.load(std::memory_order_acquire) == growth;
  }
  __builtin_prefetch(home);
  // While the bucket is on its way. Time only ever takes away: what may be answered a little later
  // may be answered now; so a coarse clock does for most.
  const TimeUs saved_at_was = saved_at();
  const TimeUs valid_until = partition_of(read.hash).valid_until.load(std::memory_order_acquire);
  const TimeUs later = node_time(steady_us(CLOCK_MONOTONIC_COARSE) + kCoarseSlack);
  if (valid_until < later && valid_until < now()) return true;

  const std::atomic<std::uint64_t>& control = control_of(home);
  const Proof proof{.saved_at = saved_at_was,
                    .control = &control,
                    .control_was = control.load(std::memory_order_acquire),
                    .growth = &shard_state.index.growth,
                    .growth_was = growth,
                    .hash = read.hash};
  if (exclusive != 0 || (rules_.validate && (proof.control_was & 1) != 0)) return false;
  const Look look = look_for(key, read.hash, shard, home);
  Terms terms;
  bool counts = false;
  if (look.block != nullptr) {
    terms = terms_of(look, read.hash);
    read.size = Entry::value_size(look.word);
    if (terms.answerable && read.size <= capacity)
      load_bytes(buffer, look.block + look.text + key.size(), read.size);
    counts = load_word<std::uint8_t>(look.block + offsetof(Link, hits) + sizeof(std::uint64_t)) <
             kMaxHits;
  }
  if (rules_.validate && !holds(proof)) return false;

  read.answer = look.malformed ? Answer::corrupt : Answer::miss;
  if (!terms.answerable || !(met(terms, later) || met(terms, now()))) return true;
  read.counts = counts;
  read.answer = read.size > capacity ? Answer::too_small : Answer::found;
  if ((look.word & bits::kNegative) != 0) read.answer = Answer::absent;
  return true;
}

Reader::Read Reader::get(std::string_view key, char* buffer, std::size_t capacity) const {
  Read read{.hash = hash_bytes(key, fixed_.hash_seed)};
  if (try_get(key, buffer, capacity, read)) [[likely]]
    return read;
  return get_again(key, buffer, capacity, read.hash);
}

[[gnu::noinline]] Reader::Read Reader::get_again(std::string_view key, char* buffer,
                                                 std::size_t capacity, Hash hash) const {
  Read read{.hash = hash};
  for (unsigned attempt = 1; attempt < kAttempts; ++attempt) {
    for (unsigned i = 0; i < kPause << std::min(attempt, 4U); ++i) relax();
    if (try_get(key, buffer, capacity, read)) return read;
  }
  read.answer = Answer::miss;
  return read;
}

}  // namespace larder::near
