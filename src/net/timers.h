// The timers of one loop: a binary heap by time. Pure; not thread-safe.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/loop.h"

namespace larder::net {

class Timers {
 public:
  // O(log n); allocates only when there are more timers than ever before.
  TimerId add(TimeUs at, Callback callback);

  // O(log n). Ignores ids that are not there (any more), and 0.
  void cancel(TimerId timer);

  // kNever if there is none.
  TimeUs next() const { return heap_.empty() ? kNever : heap_.front().at; }
  std::size_t size() const { return heap_.size(); }

  // A mark for take_due: all timers added so far.
  std::uint64_t mark() const { return added_; }

  // Takes out the earliest timer (of equal ones the oldest) that is due at `now`; an empty function
  // if there is none, or if it was added after `mark`: so a timer that sets itself again for now
  // cannot hold up the loop.
  Callback take_due(TimeUs now, std::uint64_t mark);

 private:
  struct Entry {
    TimeUs at;
    std::uint64_t number;  // order of adding
    std::uint32_t slot;
    bool operator<(const Entry& other) const {
      return at != other.at ? at < other.at : number < other.number;
    }
  };
  struct Slot {
    std::uint32_t generation = 0;  // half of the id: tells a used slot from its earlier tenants
    std::uint32_t index = kFree;   // into heap_
    Callback callback;
  };
  static constexpr std::uint32_t kFree = UINT32_MAX;

  void place(std::uint32_t index, Entry entry);
  void rise(std::uint32_t index, Entry entry);
  void sink(std::uint32_t index, Entry entry);
  Callback remove(std::uint32_t index);

  std::vector<Entry> heap_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_;
  std::uint64_t added_ = 0;
};

}  // namespace larder::net
