// The index of one shard: cache-line buckets that share out the hashes evenly, and in their order.
// It grows by a quarter at a time, into a second table that takes over the hashes from below, a
// bucket with each insertion: so it never pauses, and buckets are as full as each other at any
// time.
//
// A bucket holds ten entries as a byte of their hash (the tag) and a 32-bit Ref, and a control
// word: the version that tickets name (raised by each invalidation of a key of this bucket, there
// or not) and a sequence number, odd while the bucket is being changed. What does not fit goes to
// overflow buckets, which are blocks of the heap.
//
// Readers need no lock: find() reads tags and refs, compares keys, and when it finds nothing proves
// by the sequence number and the state of growth that nothing moved meanwhile. They must be pinned
// (pins.h), or copy and validate (reader.h). Changes are made under the shard's lock.
//
// A view over shared memory: no pointers in what is stored.
#pragma once

#include <immintrin.h>

#include <atomic>
#include <bit>
#include <cstdint>
#include <span>

#include "base/hash.h"
#include "near/entry.h"
#include "near/heap.h"

namespace larder::near {

// In segments at cache lines; overflow buckets where their block happens to be.
struct Bucket {
  static constexpr std::size_t kLine = 64;
  static constexpr unsigned kSlots = 10;

  std::atomic<std::uint64_t> control;  // version << 32 | sequence
  std::atomic<std::uint64_t> tags;     // of the first eight slots, a byte each
  std::atomic<std::uint64_t> rest;     // overflow << 32 | tags of the other two
  std::array<std::atomic<Ref>, kSlots> refs;

  Ref overflow() const { return static_cast<Ref>(rest.load(std::memory_order_acquire) >> 32); }
};
static_assert(sizeof(Bucket) == 64);

struct IndexState {
  // Number of the current table << 33 | boundary: hashes (their low 32 bits) below it have moved to
  // the next table. The tables take turns in two places.
  std::atomic<std::uint64_t> growth;
  std::array<std::atomic<std::uint32_t>, 2> buckets;  // of the table in each place
  std::uint32_t target;                               // buckets of the next table; 0: not growing
  std::uint32_t overflows;                            // how many overflow buckets there are

  static constexpr std::uint64_t kBoundary = (1ULL << 33) - 1;
  // The number of the table that holds the bucket of this hash, as of `growth`: the bucket stays
  // where it is for as long as this stays the same.
  static std::uint64_t table(std::uint64_t growth, Hash hash) {
    const bool moved = (hash & 0xffffffffULL) < (growth & kBoundary);
    return (growth >> 33) + (moved ? 1 : 0);
  }
  // In which of the two places it is.
  static unsigned place(std::uint64_t growth, Hash hash) {
    return static_cast<unsigned>(table(growth, hash)) & 1;
  }
  static std::uint32_t number(Hash hash, std::uint32_t buckets) {
    return static_cast<std::uint32_t>((hash & 0xffffffffULL) * buckets >> 32);
  }
  // The first hash of a bucket; 2^32 for the one after the last.
  static std::uint64_t first_hash(std::uint32_t number, std::uint32_t buckets) {
    return ((std::uint64_t{number} << 32) + buckets - 1) / buckets;
  }
};

// Which bucket: the number within its table, and in the highest bit, the table's place.
using BucketId = std::uint32_t;

// A bucket's place in the expiry wheel (expiry.h), kept beside the buckets of its segment.
struct Timer {
  std::uint32_t next;  // BucketIds, plus 1
  std::uint32_t prev;
  std::uint32_t slot;  // plus 1; 0: in none
};

class Index {
 public:
  static constexpr double kLoad = 8.5;         // entries a bucket beyond which it grows
  static constexpr std::uint32_t kGrowth = 4;  // by one in so many
  static constexpr BucketId kPlace = 1U << 31;
  static constexpr unsigned kSegmentShift = 5;  // a segment has 32 buckets

  // `directory`: first buckets of segments, `max_segments` for each of the two places.
  Index(char* base, IndexState& state, std::atomic<Ref>* directory, std::uint32_t max_segments)
      : base_(base), state_(&state), directory_(directory), max_segments_(max_segments) {}

  // ---- addresses ----

  // The lowest 32 bits of a hash choose the bucket, the next 8 are the tag.
  static std::uint8_t tag_of(Hash hash) { return static_cast<std::uint8_t>(hash >> 32); }

  BucketId id_of(Hash hash) const {
    const unsigned place = IndexState::place(state_->growth.load(std::memory_order_relaxed), hash);
    return IndexState::number(hash, state_->buckets[place].load(std::memory_order_relaxed)) |
           (place != 0 ? kPlace : 0);
  }
  Bucket& bucket(BucketId id) const {
    return reinterpret_cast<Bucket*>(segment(id))[id & ((1U << kSegmentShift) - 1)];
  }
  Bucket& home(Hash hash) const { return bucket(id_of(hash)); }
  Timer& timer(BucketId id) const {
    const std::uint32_t count = 1U << kSegmentShift;
    return reinterpret_cast<Timer*>(segment(id) + count * sizeof(Bucket))[id & (count - 1)];
  }
  Entry at(Ref ref) const { return Entry(base_ + std::uint64_t{ref} * kGranule); }
  // An overflow bucket lies behind what limbo needs of its block.
  Bucket& overflow_at(Ref block) const {
    return *reinterpret_cast<Bucket*>(at(block).block() + kOverflowOffset);
  }

  // The buckets in the order of their hashes: the one that holds `hash` (below 2^32) now, and in
  // `next` the hash at which the one after it begins; 2^32 at the end.
  BucketId id_at(std::uint64_t hash, std::uint64_t& next) const;

  // ---- looking ----

  // The entry of this key, or kNoRef. With `proven` set to false: perhaps it is there, ask again
  // (something moved). Lock-free; REQUIRES: pinned, or the lock is held (then it is proven).
  // `exclusive`: not zero while several steps are one; then nothing is proven either.
  [[gnu::always_inline]] Ref find(std::string_view key, Hash hash, bool& proven,
                                  const std::atomic<std::uint32_t>* exclusive = nullptr) const {
    const std::uint64_t growth = state_->growth.load(std::memory_order_acquire);
    const unsigned place = IndexState::place(growth, hash);
    const std::uint32_t number =
        IndexState::number(hash, state_->buckets[place].load(std::memory_order_acquire));
    const Ref first = directory_[place * max_segments_ + (number >> kSegmentShift)].load(
        std::memory_order_acquire);
    if (first == kNoRef) [[unlikely]] {  // a table that began after we looked at its number
      proven = false;
      return kNoRef;
    }
    const Bucket& head = reinterpret_cast<const Bucket*>(
        base_ + std::uint64_t{first} * kGranule)[number & ((1U << kSegmentShift) - 1)];
    const std::uint64_t control = head.control.load(std::memory_order_acquire);
    for (const Bucket* bucket = &head;;) {
      const std::uint64_t rest = bucket->rest.load(std::memory_order_acquire);
      for (unsigned match =
               matches(bucket->tags.load(std::memory_order_acquire), rest, tag_of(hash));
           match != 0; match &= match - 1)
        if (const Ref ref = compare(*bucket, static_cast<unsigned>(std::countr_zero(match)), key))
          return ref;
      const auto next = static_cast<Ref>(rest >> 32);
      if (next == kNoRef) break;
      bucket = &overflow_at(next);
    }
    // This first: if the step is over by now, the next look at the control word shows it.
    const bool alone = exclusive == nullptr || exclusive->load(std::memory_order_acquire) == 0;
    proven = alone && (control & 1) == 0 &&
             head.control.load(std::memory_order_relaxed) == control &&
             state_->growth.load(std::memory_order_relaxed) == growth;
    return kNoRef;
  }

  // Calls visit(ref) for each entry that may have this hash: rarely for others, too. As find().
  template <class Visit>
  void each_like(Hash hash, Visit&& visit) const {
    const std::uint64_t growth = state_->growth.load(std::memory_order_acquire);
    const unsigned place = IndexState::place(growth, hash);
    const std::uint32_t number =
        IndexState::number(hash, state_->buckets[place].load(std::memory_order_acquire));
    const Ref first = directory_[place * max_segments_ + (number >> kSegmentShift)].load(
        std::memory_order_acquire);
    if (first == kNoRef) return;
    for (const Bucket* bucket = &reinterpret_cast<const Bucket*>(
             base_ + std::uint64_t{first} * kGranule)[number & ((1U << kSegmentShift) - 1)];
         ;) {
      for (unsigned slot = 0; slot < Bucket::kSlots; ++slot)
        if (const Ref ref = bucket->refs[slot].load(std::memory_order_acquire);
            ref != kNoRef && tag_at(*bucket, slot) == tag_of(hash))
          visit(ref);
      const Ref next = bucket->overflow();
      if (next == kNoRef) return;
      bucket = &overflow_at(next);
    }
  }

  static std::uint32_t version(const Bucket& bucket) {
    return static_cast<std::uint32_t>(bucket.control.load(std::memory_order_acquire) >> 32);
  }

  // ---- changing, under the lock ----

  // Every ticket for a key of this bucket is void.
  static void bump(Bucket& bucket) {
    bucket.control.store(bucket.control.load(std::memory_order_relaxed) + (1ULL << 32),
                         std::memory_order_release);
  }

  // The bucket may be changed during the life of this.
  class Change {
   public:
    explicit Change(Bucket& bucket) : bucket_(bucket) { step(); }
    ~Change() { step(); }
    Change(const Change&) = delete;
    Change& operator=(const Change&) = delete;

   private:
    void step() {
      const std::uint64_t old = bucket_.control.load(std::memory_order_relaxed);
      // The sequence wraps without touching the version.
      bucket_.control.store((old & ~0xffffffffULL) | static_cast<std::uint32_t>(old + 1),
                            std::memory_order_release);
      std::atomic_thread_fence(std::memory_order_release);
    }
    Bucket& bucket_;
  };

  // Is there a free slot in the chain of this hash?
  bool has_slot(Hash hash) const;
  // Puts a block of kOverflowUnits at the end of the chain.
  void add_overflow(Hash hash, Ref block);
  // REQUIRES: has_slot().
  void insert(Hash hash, Ref ref);
  // REQUIRES: `old` is there.
  void replace(Hash hash, Ref old, Ref fresh);
  // REQUIRES: it is there. The overflow block that has become empty, or kNoRef.
  Ref remove(Hash hash, Ref ref);

  // Calls visit(ref) for each entry of the bucket's chain, until it returns false.
  template <class Visit>
  void each(const Bucket& head, Visit&& visit) const {
    for (const Bucket* bucket = &head;;) {
      for (const auto& slot : bucket->refs)
        if (const Ref ref = slot.load(std::memory_order_relaxed); ref != kNoRef)
          if (!visit(ref)) return;
      const Ref next = bucket->overflow();
      if (next == kNoRef) return;
      bucket = &overflow_at(next);
    }
  }

  // ---- growing, under the lock ----

  // Begins with so many segments, all of which are to be added next.
  void start(std::uint32_t segments);
  bool is_growing() const { return state_->target != 0; }
  bool wants_to_grow(std::uint64_t entries) const {
    return static_cast<double>(entries) > static_cast<double>(buckets()) * kLoad &&
           next_size() <= std::uint64_t{max_segments_} << kSegmentShift;
  }
  void begin_growth();

  // The bucket whose entries move next, and the buckets they move to: all that hold its hashes.
  struct Step {
    BucketId from;
    BucketId to_first;  // ids in a row
    BucketId to_last;
    std::uint64_t boundary;  // when it is done
  };
  Step next_step() const;
  bool has_segment(BucketId id) const {
    return directory_[slot_of(id)].load(std::memory_order_relaxed) != kNoRef;
  }
  std::uint32_t segment_units() const;
  // REQUIRES: !has_segment(id).
  void add_segment(BucketId id, Ref block);
  BucketId id_in_next(Hash hash) const {
    return IndexState::number(hash, state_->target) | (current() == 0 ? kPlace : 0);
  }
  // How many overflow blocks so many more entries would take.
  std::size_t overflows_for(BucketId id, std::size_t more) const;
  // Tickets for keys that come to this bucket stay void if they are.
  static void raise_version(Bucket& bucket, std::uint32_t least);
  // A copy of an entry for its new bucket; has_slot_in() first. Nobody looks there yet.
  bool has_slot_in(BucketId id) const { return last_of(bucket(id)).slot + 1 < Bucket::kSlots; }
  void add_overflow_to(BucketId id, Ref block);
  void insert_into(BucketId id, Hash hash, Ref ref);
  // From here on all look in the new buckets. Calls freed(block) for what the old table does not
  // need any more.
  template <class Freed>
  void finish(const Step& step, Freed&& freed);

  // ---- moving, under the lock: for compaction ----

  // Copies a segment or an overflow bucket into another block of the same size, and has everybody
  // look there from now on. False if nobody knows the block.
  bool move_segment(Ref block, Ref fresh);
  bool move_overflow(Ref block, Ref fresh, Hash of_an_entry);
  // Some entry of an overflow bucket.
  Ref entry_of_overflow(Ref block) const {
    return overflow_at(block).refs[0].load(std::memory_order_relaxed);
  }

  static constexpr std::size_t kOverflowOffset = 24;
  static constexpr std::uint32_t kOverflowUnits = (kOverflowOffset + sizeof(Bucket)) / kGranule;

 private:
  std::uint32_t buckets() const { return state_->buckets[current()].load(); }
  unsigned current() const {
    return static_cast<unsigned>(state_->growth.load(std::memory_order_relaxed) >> 33) & 1;
  }
  std::uint64_t next_size() const {
    return std::uint64_t{buckets()} + std::max(buckets() / kGrowth, 1U << kSegmentShift);
  }
  std::size_t slot_of(BucketId id) const {
    return ((id & kPlace) != 0 ? max_segments_ : 0) + ((id & ~kPlace) >> kSegmentShift);
  }
  char* segment(BucketId id) const {
    return base_ +
           std::uint64_t{directory_[slot_of(id)].load(std::memory_order_acquire)} * kGranule;
  }
  // A bit for each of the ten tags that is equal.
  static unsigned matches(std::uint64_t tags, std::uint64_t rest, std::uint8_t wanted) {
    const __m128i all =
        _mm_set_epi64x(static_cast<std::int64_t>(rest), static_cast<std::int64_t>(tags));
    const __m128i equal = _mm_cmpeq_epi8(all, _mm_set1_epi8(static_cast<char>(wanted)));
    return static_cast<unsigned>(_mm_movemask_epi8(equal)) & ((1U << Bucket::kSlots) - 1);
  }
  Ref compare(const Bucket& bucket, unsigned slot, std::string_view key) const {
    const Ref ref = bucket.refs[slot].load(std::memory_order_acquire);
    if (ref == kNoRef) return kNoRef;
    const Entry entry = at(ref);
    const std::uint64_t word = entry.load_bits();
    return Entry::key_size(word) == key.size() &&
                   same_bytes(entry.block() + entry.text_offset(word), key.data(), key.size())
               ? ref
               : kNoRef;
  }
  static Ref first_bucket(Ref block);
  static void set_tag(Bucket& bucket, unsigned slot, std::uint8_t tag);
  static std::uint8_t tag_at(const Bucket& bucket, unsigned slot);
  static void set_overflow(Bucket& bucket, Ref block);
  static void put(Bucket& bucket, unsigned slot, std::uint8_t tag, Ref ref);
  struct Place {
    Bucket* bucket = nullptr;
    unsigned slot = 0;
    Bucket* before = nullptr;  // in the chain
  };
  Place place_of(Bucket& head, Ref ref) const;
  Place last_of(Bucket& head) const;
  // Takes a slot out of a chain; the overflow block that has become empty, or kNoRef.
  Ref take(Bucket& head, const Place& place);

  char* base_;
  IndexState* state_;
  std::atomic<Ref>* directory_;
  std::uint32_t max_segments_;
};

template <class Freed>
void Index::finish(const Step& step, Freed&& freed) {
  // Readers who looked at the old bucket before this still find there what was in it then: it stays
  // as it is until they have let go.
  state_->growth.store(
      (state_->growth.load(std::memory_order_relaxed) & ~IndexState::kBoundary) | step.boundary,
      std::memory_order_release);
  for (Ref next = bucket(step.from).overflow(); next != kNoRef;) {
    const Ref block = next;
    next = overflow_at(block).overflow();
    --state_->overflows;
    freed(block);
  }
  const std::uint32_t number = step.from & ~kPlace;
  const bool last = step.boundary == 1ULL << 32;
  const std::uint32_t in_segment = (1U << kSegmentShift) - 1;
  if (last || (number & in_segment) == in_segment) {
    // Its block begins a little before its first bucket.
    auto& slot = directory_[slot_of(step.from)];
    const auto* first = reinterpret_cast<const std::uint64_t*>(
        base_ + std::uint64_t{slot.load(std::memory_order_relaxed)} * kGranule);
    freed(static_cast<Ref>(first[-1]));
    slot.store(kNoRef, std::memory_order_release);
  }
  if (!last) return;
  const std::uint64_t table = (state_->growth.load(std::memory_order_relaxed) >> 33) + 1;
  state_->target = 0;
  state_->growth.store(table << 33, std::memory_order_release);
}

}  // namespace larder::near
