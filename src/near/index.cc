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

bool Index::has_slot(Hash hash) const { return has_slot_in(id_of(hash)); }

void Index::add_overflow(Hash hash, Ref block) { add_overflow_to(id_of(hash), block); }

void Index::insert(Hash hash, Ref ref) { insert_into(id_of(hash), hash, ref); }

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

// ---- growing ----

// In front of the first bucket: the heap's first word, what limbo keeps in a block (both are
// overwritten while readers may still look at the buckets), and the number of the block.
std::uint32_t Index::segment_units() const {
  const std::size_t count = std::size_t{1} << kSegmentShift;
  return units_for(kOverflowOffset + kGranule + Bucket::kLine +
                   count * (sizeof(Bucket) + sizeof(Timer)));
}

Ref Index::first_bucket(Ref block) {
  constexpr auto kLine = static_cast<Ref>(alignof(Bucket) / kGranule);
  return (block + kOverflowOffset / kGranule + 1 + kLine - 1) / kLine * kLine;
}

// First the directory, then the growth: whoever has read the old place after that has no proof.
bool Index::move_segment(Ref block, Ref fresh) {
  const Ref first = first_bucket(block);
  for (std::size_t i = 0; i < 2 * std::size_t{max_segments_}; ++i) {
    if (directory_[i].load(std::memory_order_relaxed) != first) continue;
    const std::size_t count = std::size_t{1} << kSegmentShift;
    const Ref to = first_bucket(fresh);
    const char* const from_bytes = base_ + std::uint64_t{first} * kGranule;
    char* const to_bytes = base_ + std::uint64_t{to} * kGranule;
    for (std::size_t at = 0; at < count * (sizeof(Bucket) + sizeof(Timer)); at += kGranule)
      store_word(to_bytes + at, load_word<std::uint64_t>(from_bytes + at));
    store_word<std::uint64_t>(to_bytes - kGranule, fresh);
    this->at(fresh).set_bits(bits::kSegment, true);
    directory_[i].store(to, std::memory_order_release);
    state_->growth.store(state_->growth.load(std::memory_order_relaxed) + (2ULL << 33),
                         std::memory_order_release);
    return true;
  }
  return false;
}

bool Index::move_overflow(Ref block, Ref fresh, Hash of_an_entry) {
  Bucket& head = home(of_an_entry);
  Bucket* before = &head;
  while (before->overflow() != kNoRef && before->overflow() != block)
    before = &overflow_at(before->overflow());
  if (before->overflow() == kNoRef) return false;
  const Change change(head);
  const char* const from = reinterpret_cast<const char*>(&overflow_at(block));
  char* const to = reinterpret_cast<char*>(&overflow_at(fresh));
  for (std::size_t at = 0; at < sizeof(Bucket); at += kGranule)
    store_word(to + at, load_word<std::uint64_t>(from + at));
  this->at(fresh).set_bits(bits::kOverflow, true);
  set_overflow(*before, fresh);
  return true;
}

void Index::add_segment(BucketId id, Ref block) {
  const std::size_t count = std::size_t{1} << kSegmentShift;
  const Ref first = first_bucket(block);
  char* const at = base_ + std::uint64_t{first} * kGranule;
  this->at(block).set_bits(bits::kSegment, true);
  zero_words(at, count * (sizeof(Bucket) + sizeof(Timer)));
  store_word<std::uint64_t>(at - kGranule, block);
  directory_[slot_of(id)].store(first, std::memory_order_release);
}

void Index::start(std::uint32_t segments) {
  state_->target = 0;
  state_->overflows = 0;
  state_->buckets[0].store(segments << kSegmentShift, std::memory_order_relaxed);
  state_->buckets[1].store(0, std::memory_order_relaxed);
  state_->growth.store(0, std::memory_order_release);
}

void Index::begin_growth() {
  const unsigned next = current() ^ 1;
  state_->target = static_cast<std::uint32_t>(next_size());
  // Of the place's last table nothing is left but stale numbers of its segments.
  for (std::uint32_t i = 0; i < max_segments_; ++i)
    directory_[next * max_segments_ + i].store(kNoRef, std::memory_order_relaxed);
  state_->buckets[next].store(state_->target, std::memory_order_release);
}

Index::Step Index::next_step() const {
  const unsigned old = current();
  const std::uint32_t count = buckets();
  const std::uint64_t boundary =
      state_->growth.load(std::memory_order_relaxed) & IndexState::kBoundary;
  const std::uint32_t from = IndexState::number(boundary, count);
  const std::uint64_t end = IndexState::first_hash(from + 1, count);
  return {.from = from | (old != 0 ? kPlace : 0),
          .to_first = IndexState::number(boundary, state_->target) | (old == 0 ? kPlace : 0),
          .to_last = IndexState::number(end - 1, state_->target) | (old == 0 ? kPlace : 0),
          .boundary = end};
}

std::size_t Index::overflows_for(BucketId id, std::size_t more) const {
  const std::size_t room = Bucket::kSlots - (last_of(bucket(id)).slot + 1);
  return more <= room ? 0 : (more - room + Bucket::kSlots - 1) / Bucket::kSlots;
}

void Index::raise_version(Bucket& bucket, std::uint32_t least) {
  const std::uint64_t old = bucket.control.load(std::memory_order_relaxed);
  if (old >> 32 < least)
    bucket.control.store((old & 0xffffffffULL) | std::uint64_t{least} << 32,
                         std::memory_order_release);
}

void Index::add_overflow_to(BucketId id, Ref block) {
  Bucket& fresh = overflow_at(block);
  zero_words(reinterpret_cast<char*>(&fresh), sizeof fresh);
  Bucket& head = bucket(id);
  const Change change(head);
  set_overflow(*last_of(head).bucket, block);
  at(block).set_bits(bits::kOverflow, true);
  ++state_->overflows;
}

void Index::insert_into(BucketId id, Hash hash, Ref ref) {
  Bucket& head = bucket(id);
  const Change change(head);
  const Place last = last_of(head);
  put(*last.bucket, last.slot + 1, tag_of(hash), ref);
}

BucketId Index::id_at(std::uint64_t hash, std::uint64_t& next) const {
  const std::uint64_t growth = state_->growth.load(std::memory_order_relaxed);
  const unsigned place = IndexState::place(growth, hash);
  const std::uint32_t count = state_->buckets[place].load(std::memory_order_relaxed);
  const std::uint32_t number = IndexState::number(hash, count);
  next = IndexState::first_hash(number + 1, count);
  // The new table's bucket at the boundary has only what is below it yet.
  const std::uint64_t boundary = growth & IndexState::kBoundary;
  if (hash < boundary) next = std::min(next, boundary);
  return number | (place != 0 ? kPlace : 0);
}

}  // namespace larder::near
