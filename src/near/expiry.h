// When to look at which bucket of the index for entries whose life has ended: a hierarchical timer
// wheel (Varghese and Lauck, SOSP 1987) of buckets, not of entries. Each bucket is in it at most
// once, under the earliest end of life among its entries, or earlier.
//
// So nothing is to be unlinked when an entry goes, an entry costs 1.5 bytes, and nothing but what
// is due is ever looked at. Links are names of buckets in memory that may be shared. Not
// thread-safe: under the shard's lock.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "base/clock.h"
#include "near/index.h"

namespace larder::near {

struct WheelState {
  static constexpr unsigned kLevels = 4;
  static constexpr unsigned kSlots = 64;

  std::int64_t tick;  // everything due up to here has been taken out
  std::array<std::uint64_t, kLevels> occupied;
  std::array<std::array<std::uint32_t, kSlots>, kLevels> heads;  // BucketIds, plus 1
};

class Wheel {
 public:
  static constexpr unsigned kTickShift = 17;  // a tick is 131 ms
  static constexpr DurationUs kTick = DurationUs{1} << kTickShift;

  Wheel(WheelState& state, Index index) : state_(state), index_(index) {}

  // Looks at the bucket at `when` or up to a tick later. Nothing changes if it is to be looked at
  // earlier anyway. What is farther away than the wheel reaches (24 days) is looked at then.
  void schedule(BucketId bucket, TimeUs when) {
    if (when == kNever) return;
    const std::int64_t due = std::max(tick_of(when) + 1, state_.tick + 1);
    Timer& timer = index_.timer(bucket);
    if (timer.slot != 0) {
      if (due_of(timer.slot - 1) <= due) return;
      unlink(bucket);
    }
    insert(bucket, due);
  }

  void cancel(BucketId bucket) {
    if (index_.timer(bucket).slot != 0) unlink(bucket);
  }

  // Takes out the next bucket that is due by `now`; false if there is none. Whoever takes it
  // schedules it again if any of its entries has an end. Cost: O(1), amortised over ticks; a wheel
  // that was left alone for hours catches up by at most a few hundred steps.
  bool next_due(TimeUs now, BucketId& bucket) {
    const std::int64_t until = tick_of(now);
    while (state_.tick <= until) {
      // What begins at this tick, on whatever level: it is due now, or is looked at once too early.
      for (unsigned level = 0; level < WheelState::kLevels; ++level) {
        if ((state_.tick & ((std::int64_t{1} << shift_of(level)) - 1)) != 0) break;
        const auto slot =
            static_cast<unsigned>((state_.tick >> shift_of(level)) & (WheelState::kSlots - 1));
        if (const std::uint32_t head = state_.heads[level][slot]; head != 0) {
          bucket = head - 1;
          unlink(bucket);
          return true;
        }
      }
      if (state_.tick == until) return false;
      advance(until);
    }
    return false;
  }

  bool is_ahead_of(TimeUs now) const { return state_.tick > tick_of(now) + 1; }

  // REQUIRES: nothing is scheduled, or all Timers are cleared too.
  void start(TimeUs now) {
    state_ = WheelState{};
    state_.tick = tick_of(now);
  }

 private:
  static std::int64_t tick_of(TimeUs time) { return time >> kTickShift; }
  static constexpr unsigned kTop = WheelState::kLevels - 1;
  static constexpr unsigned shift_of(unsigned level) { return 6 * level; }

  void insert(BucketId bucket, std::int64_t due) {
    // The highest level has no turns: it goes round, and what it holds is less than a round away.
    due =
        std::min(due, ((state_.tick >> shift_of(kTop)) + WheelState::kSlots - 1) << shift_of(kTop));
    unsigned level = 0;
    // The lowest level at which due and now are in the same turn.
    while (level + 1 < WheelState::kLevels &&
           (due >> shift_of(level + 1)) != (state_.tick >> shift_of(level + 1)))
      ++level;
    const auto slot = static_cast<unsigned>((due >> shift_of(level)) & (WheelState::kSlots - 1));
    std::uint32_t& head = state_.heads[level][slot];
    Timer& timer = index_.timer(bucket);
    timer = {.next = head, .prev = 0, .slot = level * WheelState::kSlots + slot + 1};
    if (head != 0) index_.timer(head - 1).prev = bucket + 1;
    head = bucket + 1;
    state_.occupied[level] |= 1ULL << slot;
  }

  void unlink(BucketId bucket) {
    Timer& timer = index_.timer(bucket);
    const unsigned level = (timer.slot - 1) / WheelState::kSlots;
    const unsigned slot = (timer.slot - 1) % WheelState::kSlots;
    if (timer.next != 0) index_.timer(timer.next - 1).prev = timer.prev;
    if (timer.prev != 0) {
      index_.timer(timer.prev - 1).next = timer.next;
    } else {
      state_.heads[level][slot] = timer.next;
      if (timer.next == 0) state_.occupied[level] &= ~(1ULL << slot);
    }
    timer = {};
  }

  // The first tick of an occupied slot.
  std::int64_t due_of(unsigned number) const {
    const unsigned level = number / WheelState::kSlots;
    const std::int64_t here = state_.tick >> shift_of(level);
    const std::int64_t ahead =
        (std::int64_t{number % WheelState::kSlots} - here) & (WheelState::kSlots - 1);
    return (here + ahead) << shift_of(level);
  }

  // To the next tick at which anything begins on any level, at most to `until`.
  void advance(std::int64_t until) {
    std::int64_t next = until;
    for (unsigned level = 0; level < WheelState::kLevels; ++level) {
      const auto here =
          static_cast<unsigned>((state_.tick >> shift_of(level)) & (WheelState::kSlots - 1));
      const std::uint64_t ahead =
          std::rotr(state_.occupied[level], static_cast<int>(here)) & ~std::uint64_t{1};
      if (ahead == 0) continue;
      const std::int64_t steps = std::countr_zero(ahead);
      next = std::min(next, ((state_.tick >> shift_of(level)) + steps) << shift_of(level));
    }
    state_.tick = next;
  }

  WheelState& state_;
  Index index_;
};

}  // namespace larder::near
