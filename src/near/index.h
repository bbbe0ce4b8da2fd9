// The index of one shard: cache-line buckets, found by linear hashing (Litwin, VLDB 1980), so that
// it grows by one bucket at a time and never pauses.
//
// A bucket holds ten entries as a byte of their hash (the tag) and a 32-bit Ref, and a control
// word: the version that tickets name (raised by each invalidation of a key of this bucket, there
// or not) and a sequence number, odd while the bucket is being changed. What does not fit goes to
// overflow buckets, which are blocks of the heap.
//
// Readers need no lock: find() reads tags and refs, compares keys, and when it finds nothing proves
// by the sequence number and the number of buckets that nothing moved meanwhile. They must be
// pinned (pins.h), or copy and validate (reader.h). Changes are made under the shard's lock.
//
// A view over shared memory: no pointers in what is stored.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <span>

#include "base/hash.h"
#include "near/entry.h"
#include "near/heap.h"

namespace larder::near {

struct alignas(64) Bucket {
  static constexpr unsigned kSlots = 10;

  std::atomic<std::uint64_t> control;  // version << 32 | sequence
  std::atomic<std::uint64_t> tags;     // of the first eight slots, a byte each
  std::atomic<std::uint64_t> rest;     // overflow << 32 | tags of the other two
  std::array<std::atomic<Ref>, kSlots> refs;

  Ref overflow() const { return static_cast<Ref>(rest.load(std::memory_order_acquire) >> 32); }
};
static_assert(sizeof(Bucket) == 64);

struct IndexState {
  std::atomic<std::uint32_t> buckets;
  std::uint32_t segment_shift;  // a segment has 1 << this buckets
  std::uint32_t max_segments;   // what the directory has room for
  std::uint32_t overflows;      // how many overflow buckets there are
};

// A bucket's place in the expiry wheel (expiry.h), kept beside the buckets of its segment.
struct Timer {
  std::uint32_t next;  // numbers of buckets, plus 1
  std::uint32_t prev;
  std::uint32_t slot;  // plus 1; 0: in none
};

class Index {
 public:
  static constexpr unsigned kLoad = 9;  // entries a bucket beyond which it grows

  Index(char* base, IndexState& state, std::atomic<Ref>* directory)
      : base_(base), state_(&state), directory_(directory) {}

  // ---- addresses ----

  // The lowest 32 bits of a hash choose the bucket, the next 8 are the tag.
  static std::uint32_t address(Hash hash, std::uint32_t buckets) {
    const std::uint32_t mask = std::bit_ceil(buckets) - 1;
    const std::uint32_t wide = static_cast<std::uint32_t>(hash) & mask;
    return wide < buckets ? wide : wide & (mask >> 1);
  }
  static std::uint8_t tag_of(Hash hash) { return static_cast<std::uint8_t>(hash >> 32); }

  std::uint32_t buckets() const { return state_->buckets.load(std::memory_order_acquire); }
  Bucket& bucket(std::uint32_t number) const {
    const std::uint32_t mask = (1U << state_->segment_shift) - 1;
    return reinterpret_cast<Bucket*>(segment(number >> state_->segment_shift))[number & mask];
  }
  Bucket& home(Hash hash) const { return bucket(address(hash, buckets())); }
  Timer& timer(std::uint32_t number) const {
    const std::uint32_t count = 1U << state_->segment_shift;
    return reinterpret_cast<Timer*>(segment(number >> state_->segment_shift) +
                                    count * sizeof(Bucket))[number & (count - 1)];
  }
  Entry at(Ref ref) const { return Entry(base_ + std::uint64_t{ref} * kGranule); }
  // An overflow bucket lies behind what limbo needs of its block.
  Bucket& overflow_at(Ref block) const {
    return *reinterpret_cast<Bucket*>(at(block).block() + kOverflowOffset);
  }

  // ---- looking ----

  // The entry of this key, or kNoRef. With `proven` set to false: perhaps it is there, ask again
  // (something moved). Lock-free; REQUIRES: pinned, or the lock is held (then it is proven).
  Ref find(std::string_view key, Hash hash, bool& proven) const {
    const std::uint32_t count = buckets();
    const Bucket& head = bucket(address(hash, count));
    const std::uint64_t control = head.control.load(std::memory_order_acquire);
    const std::uint64_t tags = 0x0101010101010101ULL * tag_of(hash);
    for (const Bucket* bucket = &head;;) {
      const std::uint64_t rest = bucket->rest.load(std::memory_order_acquire);
      for (std::uint64_t match = matches(bucket->tags.load(std::memory_order_acquire), tags);
           match != 0; match &= match - 1)
        if (const Ref ref =
                compare(*bucket, static_cast<unsigned>(std::countr_zero(match)) / 8, key))
          return ref;
      for (std::uint64_t match = matches(rest, tags) & 0x8080; match != 0; match &= match - 1)
        if (const Ref ref =
                compare(*bucket, 8 + static_cast<unsigned>(std::countr_zero(match)) / 8, key))
          return ref;
      const auto next = static_cast<Ref>(rest >> 32);
      if (next == kNoRef) break;
      bucket = &overflow_at(next);
    }
    proven = (control & 1) == 0 && head.control.load(std::memory_order_relaxed) == control &&
             state_->buckets.load(std::memory_order_relaxed) == count;
    return kNoRef;
  }

  // Calls visit(ref) for each entry that may have this hash: rarely for others, too. As find().
  template <class Visit>
  void each_like(Hash hash, Visit&& visit) const {
    for (const Bucket* bucket = &home(hash);;) {
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

  bool wants_to_grow(std::uint64_t entries) const {
    return entries > std::uint64_t{buckets()} * kLoad &&
           (buckets() >> state_->segment_shift) < state_->max_segments;
  }
  // Is there no segment yet for the next bucket? Then add_segment() first.
  bool needs_segment() const {
    return directory_[buckets() >> state_->segment_shift].load(std::memory_order_relaxed) == kNoRef;
  }
  std::uint32_t segment_units() const;
  void add_segment(Ref block);
  // The bucket that the next one is split from.
  std::uint32_t split_from() const {
    const std::uint32_t count = buckets();
    return count - std::bit_floor(count);
  }
  // Adds a bucket, and moves to it the entries for which moves(ref) is true. `spare` are blocks of
  // kOverflowUnits that may be needed, at least moving / kSlots of them; returns how many were
  // used. Blocks that have become empty are given to freed(block).
  template <class Moves, class Freed>
  unsigned split(std::span<const Ref> spare, Moves&& moves, Freed&& freed);

  static constexpr std::size_t kOverflowOffset = 24;
  static constexpr std::uint32_t kOverflowUnits = (kOverflowOffset + sizeof(Bucket)) / kGranule;

 private:
  char* segment(std::uint32_t number) const {
    return base_ + std::uint64_t{directory_[number].load(std::memory_order_acquire)} * kGranule;
  }
  // A bit in each byte that is equal; perhaps in one above such a byte, too.
  static std::uint64_t matches(std::uint64_t tags, std::uint64_t wanted) {
    const std::uint64_t different = tags ^ wanted;
    return (different - 0x0101010101010101ULL) & ~different & 0x8080808080808080ULL;
  }
  Ref compare(const Bucket& bucket, unsigned slot, std::string_view key) const {
    const Ref ref = bucket.refs[slot].load(std::memory_order_acquire);
    if (ref == kNoRef) return kNoRef;
    const Entry entry = at(ref);
    const std::uint64_t word = entry.load_bits();
    return Entry::key_size(word) == key.size() && entry.key(word) == key ? ref : kNoRef;
  }
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
  void insert_into(Bucket& head, std::uint8_t tag, Ref ref);

  char* base_;
  IndexState* state_;
  std::atomic<Ref>* directory_;
};

template <class Moves, class Freed>
unsigned Index::split(std::span<const Ref> spare, Moves&& moves, Freed&& freed) {
  const std::uint32_t number = buckets();
  Bucket& from = bucket(split_from());
  Bucket& to = bucket(number);
  unsigned used = 0;
  to.control.store(std::uint64_t{version(from)} << 32, std::memory_order_relaxed);
  const Change change(from);
  const Change other(to);
  // First all are in both, then the new number of buckets counts, then they leave the old one: a
  // reader who finds nothing has seen a step, and asks again.
  unsigned in_last = 0;
  Bucket* last = &to;
  for (const Bucket* bucket = &from;;) {
    for (unsigned slot = 0; slot < Bucket::kSlots; ++slot) {
      const Ref ref = bucket->refs[slot].load(std::memory_order_relaxed);
      if (ref == kNoRef || !moves(ref)) continue;
      if (in_last == Bucket::kSlots) {
        set_overflow(*last, spare[used]);
        last = &overflow_at(spare[used++]);
        in_last = 0;
      }
      put(*last, in_last++, tag_at(*bucket, slot), ref);
    }
    const Ref next = bucket->overflow();
    if (next == kNoRef) break;
    bucket = &overflow_at(next);
  }
  state_->overflows += used;
  state_->buckets.store(number + 1, std::memory_order_release);
  each(to, [&](Ref ref) {
    if (const Ref block = take(from, place_of(from, ref)); block != kNoRef) freed(block);
    return true;
  });
  return used;
}

}  // namespace larder::near
