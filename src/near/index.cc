#include "near/index.h"

#include "base/error.h"

namespace larder::near {

void Index::set_tag(Bucket& bucket, unsigned slot, std::uint8_t tag) {
  auto& word = slot < 8 ? bucket.tags : bucket.rest;
  const unsigned shift = slot % 8 * 8;
  const std::uint64_t old = word.load(std::memory_order_relaxed);
  word.store((old & ~(0xffULL << shift)) | std::uint64_t{tag} << shift, std::memory_order_release);
}

std::uint8_t Index::tag_at(const Bucket& bucket, unsigned slot) {
  const auto& word = slot < 8 ? bucket.tags : bucket.rest;
  return static_cast<std::uint8_t>(word.load(std::memory_order_relaxed) >> (slot % 8 * 8));
}

void Index::set_overflow(Bucket& bucket, Ref block) {
  const std::uint64_t old = bucket.rest.load(std::memory_order_relaxed);
  bucket.rest.store((old & 0xffffffffULL) | std::uint64_t{block} << 32, std::memory_order_release);
}

void Index::put(Bucket& bucket, unsigned slot, std::uint8_t tag, Ref ref) {
  set_tag(bucket, slot, tag);
  bucket.refs[slot].store(ref, std::memory_order_release);
}

Index::Place Index::place_of(Bucket& head, Ref ref) const {
  Bucket* before = nullptr;
  for (Bucket* bucket = &head;;) {
    for (unsigned slot = 0; slot < Bucket::kSlots; ++slot)
      if (bucket->refs[slot].load(std::memory_order_relaxed) == ref) return {bucket, slot, before};
    const Ref next = bucket->overflow();
    LARDER_ASSERT(next != kNoRef);  // the caller says that it is there
    before = bucket;
    bucket = &overflow_at(next);
  }
}

Index::Place Index::last_of(Bucket& head) const {
  Bucket* before = nullptr;
  Bucket* bucket = &head;
  for (Ref next = bucket->overflow(); next != kNoRef; next = bucket->overflow()) {
    before = bucket;
    bucket = &overflow_at(next);
  }
  unsigned slot = Bucket::kSlots;
  while (slot > 0 && bucket->refs[slot - 1].load(std::memory_order_relaxed) == kNoRef) --slot;
  return {bucket, slot - 1, before};
}

// The gap is filled from the chain's end, so that only its last bucket has free slots.
Ref Index::take(Bucket& head, const Place& place) {
  const Place last = last_of(head);
  const Ref moved = last.bucket->refs[last.slot].load(std::memory_order_relaxed);
  if (place.bucket != last.bucket || place.slot != last.slot)
    put(*place.bucket, place.slot, tag_at(*last.bucket, last.slot), moved);
  last.bucket->refs[last.slot].store(kNoRef, std::memory_order_release);
  if (last.slot > 0 || last.before == nullptr) return kNoRef;
  const Ref block = last.before->overflow();
  set_overflow(*last.before, kNoRef);
  --state_->overflows;
  return block;
}

bool Index::has_slot(Hash hash) const { return last_of(home(hash)).slot + 1 < Bucket::kSlots; }

void Index::add_overflow(Hash hash, Ref block) {
  Bucket& fresh = overflow_at(block);
  zero_words(reinterpret_cast<char*>(&fresh), sizeof fresh);
  Bucket& head = home(hash);
  const Change change(head);
  set_overflow(*last_of(head).bucket, block);
  ++state_->overflows;
}

void Index::insert(Hash hash, Ref ref) {
  Bucket& head = home(hash);
  const Change change(head);
  const Place last = last_of(head);
  put(*last.bucket, last.slot + 1, tag_of(hash), ref);
}

void Index::replace(Hash hash, Ref old, Ref fresh) {
  Bucket& head = home(hash);
  const Change change(head);
  const Place place = place_of(head, old);
  place.bucket->refs[place.slot].store(fresh, std::memory_order_release);
}

Ref Index::remove(Hash hash, Ref ref) {
  Bucket& head = home(hash);
  const Change change(head);
  return take(head, place_of(head, ref));
}

std::uint32_t Index::segment_units() const {
  const std::size_t count = std::size_t{1} << state_->segment_shift;
  return Heap::units_for(kGranule + alignof(Bucket) + count * (sizeof(Bucket) + sizeof(Timer)));
}

void Index::add_segment(Ref block) {
  const std::size_t count = std::size_t{1} << state_->segment_shift;
  // The block's first word is the heap's; buckets begin at a cache line.
  const Ref first = (block + 1 + 7) & ~Ref{7};
  zero_words(base_ + std::uint64_t{first} * kGranule, count * (sizeof(Bucket) + sizeof(Timer)));
  directory_[buckets() >> state_->segment_shift].store(first, std::memory_order_release);
}

}  // namespace larder::near
