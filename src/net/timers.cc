#include "net/timers.h"

namespace larder::net {

TimerId Timers::add(TimeUs at, Callback callback) {
  std::uint32_t slot = 0;
  if (free_.empty()) {
    slot = static_cast<std::uint32_t>(slots_.size());
    slots_.emplace_back();
  } else {
    slot = free_.back();
    free_.pop_back();
  }
  Slot& taken = slots_[slot];
  ++taken.generation;
  if (taken.generation == 0) taken.generation = 1;  // no id is 0
  taken.callback = std::move(callback);
  heap_.emplace_back();
  rise(static_cast<std::uint32_t>(heap_.size() - 1), {at, ++added_, slot});
  return std::uint64_t{taken.generation} << 32 | slot;
}

void Timers::cancel(TimerId timer) {
  const auto slot = static_cast<std::uint32_t>(timer);
  if (timer == 0 || slot >= slots_.size()) return;
  const Slot& found = slots_[slot];
  if (found.generation != timer >> 32 || found.index == kFree) return;
  // What the callback owns is destroyed last, when the heap is whole again: it may cancel others.
  const Callback dropped = remove(found.index);
}

Callback Timers::take_due(TimeUs now, std::uint64_t mark) {
  if (heap_.empty() || heap_.front().at > now || heap_.front().number > mark) return {};
  return remove(0);
}

Callback Timers::remove(std::uint32_t index) {
  Slot& slot = slots_[heap_[index].slot];
  Callback callback = std::exchange(slot.callback, {});
  slot.index = kFree;
  free_.push_back(heap_[index].slot);
  const Entry last = heap_.back();
  heap_.pop_back();
  if (index < heap_.size()) {
    if (index > 0 && last < heap_[(index - 1) / 2])
      rise(index, last);
    else
      sink(index, last);
  }
  return callback;
}

void Timers::place(std::uint32_t index, Entry entry) {
  heap_[index] = entry;
  slots_[entry.slot].index = index;
}

void Timers::rise(std::uint32_t index, Entry entry) {
  while (index > 0 && entry < heap_[(index - 1) / 2]) {
    place(index, heap_[(index - 1) / 2]);
    index = (index - 1) / 2;
  }
  place(index, entry);
}

void Timers::sink(std::uint32_t index, Entry entry) {
  const auto size = static_cast<std::uint32_t>(heap_.size());
  for (;;) {
    std::uint32_t child = 2 * index + 1;
    if (child >= size) break;
    if (child + 1 < size && heap_[child + 1] < heap_[child]) ++child;
    if (!(heap_[child] < entry)) break;
    place(index, heap_[child]);
    index = child;
  }
  place(index, entry);
}

}  // namespace larder::net
