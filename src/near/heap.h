// The allocator of one shard: variable blocks in one fixed region, good fit in constant time, free
// neighbours joined at once (TLSF: Masmano, Ripoll, Crespo, Real, ECRTS 2004; boundary tags:
// Knuth). A block costs nothing beside rounding to 8 bytes, since an entry's first word tells its
// size.
//
// A view over shared memory: no pointers in HeapState. Not thread-safe: under the shard's lock.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "near/entry.h"
#include "near/ref.h"

namespace larder::near {

struct HeapState {
  static constexpr unsigned kFirst = 28;   // powers of two of units, from 2^4 on; below: class 0
  static constexpr unsigned kSecond = 16;  // and each in so many steps

  Ref first;
  Ref end;  // an empty block that is never free: nothing is joined beyond it
  std::uint32_t free_units;
  std::uint32_t first_bitmap;
  std::array<std::uint16_t, kFirst> second_bitmap;
  std::array<std::array<Ref, kSecond>, kFirst> heads;
};

class Heap {
 public:
  // Blocks of a region are named by their distance from `base` in units of kGranule.
  Heap(char* base, HeapState& state) : base_(base), state_(state) {}

  // Makes all from `first` up to `end` one free block. `first` is at least 1.
  void init(Ref first, Ref end);

  // A block of at least `units` (and at most kMinBlockUnits - 1 more), or kNoRef. It counts as a
  // raw block until its first word is written anew (keep bits::kPrevFree then). Constant time: a
  // block of just the right size may be missed among many that are a little smaller, unless
  // `thorough`.
  Ref allocate(std::uint32_t units, bool thorough = false);
  void release(Ref block);

  std::uint32_t units(Ref block) const;  // of any block
  Ref next(Ref block) const { return block + units(block); }
  Entry at(Ref block) const { return Entry(base_ + std::uint64_t{block} * kGranule); }
  std::uint32_t free_units() const { return state_.free_units; }
  Ref first() const { return state_.first; }
  Ref end() const { return state_.end; }

  // Takes a free block out of what allocate() chooses from, and gives it back: for compaction.
  void withhold(Ref block) { unlink(block); }
  void restore(Ref block) { link(block, units(block)); }

  // Some of the largest free blocks; how many.
  unsigned largest_free(std::span<Ref> blocks) const;

 private:
  struct Class {
    unsigned first;
    unsigned second;
  };
  static Class class_of(std::uint32_t units);
  Ref find(std::uint32_t units, bool thorough) const;
  void link(Ref block, std::uint32_t units);
  void unlink(Ref block);
  void mark_free(Ref block, std::uint32_t units);
  void set_prev_free(Ref block, bool free) const { at(block).set_bits(bits::kPrevFree, free); }
  // A free block's list, and its size once more in its last bytes, for the block after it.
  std::uint32_t load(Ref block, std::size_t offset) const {
    return load_word<std::uint32_t>(at(block).block() + offset);
  }
  void store(Ref block, std::size_t offset, std::uint32_t value) const {
    store_word(at(block).block() + offset, value);
  }

  char* base_;
  HeapState& state_;
};

}  // namespace larder::near
