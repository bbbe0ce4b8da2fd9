#include "near/heap.h"

#include <bit>

#include "base/error.h"

namespace larder::near {
namespace {

constexpr std::size_t kNext = 8;
constexpr std::size_t kPrev = 12;
constexpr unsigned kLooks = 8;  // blocks of the exact class that are tried before a larger class

}  // namespace

Heap::Class Heap::class_of(std::uint32_t units) {
  if (units < HeapState::kSecond) return {0, units};
  const auto power = static_cast<unsigned>(std::bit_width(units)) - 1;  // at least 4
  return {power - 3, (units >> (power - 4)) & (HeapState::kSecond - 1)};
}

void Heap::init(Ref first, Ref end) {
  state_ = HeapState{};
  state_.first = first;
  state_.end = end - 1;
  LARDER_ASSERT(first >= 1 && state_.end >= first + kMinBlockUnits);
  at(state_.end).bits().store(1ULL << bits::kUnitsShift, std::memory_order_relaxed);
  mark_free(first, state_.end - first);
}

std::uint32_t Heap::units(Ref block) const {
  const Entry entry = at(block);
  const std::uint64_t word = entry.load_bits();
  if ((word & bits::kEntry) == 0) return static_cast<std::uint32_t>(word >> bits::kUnitsShift);
  return entry.block_units(word);
}

void Heap::link(Ref block, std::uint32_t units) {
  const auto [first, second] = class_of(units);
  Ref& head = state_.heads[first][second];
  store(block, kNext, head);
  store(block, kPrev, kNoRef);
  if (head != kNoRef) store(head, kPrev, block);
  head = block;
  state_.first_bitmap |= 1U << first;
  state_.second_bitmap[first] |= static_cast<std::uint16_t>(1U << second);
  state_.free_units += units;
}

void Heap::unlink(Ref block) {
  const std::uint32_t size = units(block);
  const auto [first, second] = class_of(size);
  const Ref next = load(block, kNext);
  const Ref prev = load(block, kPrev);
  if (next != kNoRef) store(next, kPrev, prev);
  if (prev != kNoRef) {
    store(prev, kNext, next);
  } else {
    state_.heads[first][second] = next;
    if (next == kNoRef) {
      state_.second_bitmap[first] &= static_cast<std::uint16_t>(~(1U << second));
      if (state_.second_bitmap[first] == 0) state_.first_bitmap &= ~(1U << first);
    }
  }
  state_.free_units -= size;
}

// REQUIRES: the block before is not free.
void Heap::mark_free(Ref block, std::uint32_t size) {
  at(block).bits().store(bits::kFree | std::uint64_t{size} << bits::kUnitsShift,
                         std::memory_order_relaxed);
  store(block, size * kGranule - sizeof(std::uint32_t), size);
  set_prev_free(block + size, true);
  link(block, size);
}

Ref Heap::find(std::uint32_t size, bool thorough) const {
  auto [first, second] = class_of(size);
  if (first >= HeapState::kFirst) return kNoRef;
  Ref block = state_.heads[first][second];
  for (unsigned i = 0; i < kLooks && block != kNoRef; ++i, block = load(block, kNext))
    if (units(block) >= size) return block;
  // Any block of any larger class fits.
  std::uint32_t seconds = state_.second_bitmap[first] & (~0U << second << 1);
  if (seconds == 0) {
    const std::uint32_t firsts = state_.first_bitmap & (~0U << first << 1);
    if (firsts == 0) {
      while (thorough && block != kNoRef && units(block) < size) block = load(block, kNext);
      return thorough ? block : kNoRef;
    }
    first = static_cast<unsigned>(std::countr_zero(firsts));
    seconds = state_.second_bitmap[first];
  }
  return state_.heads[first][static_cast<unsigned>(std::countr_zero(seconds))];
}

Ref Heap::allocate(std::uint32_t size, bool thorough) {
  const Ref block = find(size, thorough);
  if (block == kNoRef) return kNoRef;
  const std::uint32_t whole = units(block);
  unlink(block);
  std::uint32_t taken = whole;
  if (whole - size >= kMinBlockUnits) {
    taken = size;
    mark_free(block + size, whole - size);
  } else {
    set_prev_free(block + whole, false);
  }
  at(block).bits().store(std::uint64_t{taken} << bits::kUnitsShift, std::memory_order_relaxed);
  return block;
}

unsigned Heap::largest_free(std::span<Ref> blocks) const {
  unsigned count = 0;
  for (unsigned first = HeapState::kFirst; first-- > 0 && count < blocks.size();)
    for (unsigned second = HeapState::kSecond; second-- > 0;)
      for (Ref block = state_.heads[first][second]; block != kNoRef; block = load(block, kNext)) {
        if (count == blocks.size()) return count;
        blocks[count++] = block;
      }
  return count;
}

void Heap::release(Ref block) {
  std::uint32_t size = units(block);
  if (const Ref after = block + size; (at(after).load_bits() & bits::kFree) != 0) {
    unlink(after);
    size += units(after);
  }
  if ((at(block).load_bits() & bits::kPrevFree) != 0) {
    const std::uint32_t before =
        load_word<std::uint32_t>(at(block).block() - sizeof(std::uint32_t));
    block -= before;
    unlink(block);
    size += before;
  }
  mark_free(block, size);
}

}  // namespace larder::near
