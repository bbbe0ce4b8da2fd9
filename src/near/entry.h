// An entry as it lies in the arena: one block, whose first word says what it is.
//
//     0  bits         sizes, flags, queue (below); for the allocator, too
//     8  Link         what the eviction policy keeps
//    20  text         of a plain key that does not expire: key, value
//
//    20  generation   u32; of a filled entry: of its ticket (low half). Unused if merely expiring
//    24  when         of a filled entry: as-of; of an expiring plain key: the end of its life
//    32  text         of a plain key that expires
//
//    32  life         two spans from as-of: to the end of use, to the end of the TTL
//    40  ttl          a span
//    44  cache        u16
//    46  load         u16, what the load took
//    48  text         if it has no tags
//    48  stamp        u64, of the ticket; then u32 a tag's slot; then the text
//
// All multiples of 8 where 8 bytes are read at once. Nothing but `life`, `when` of a plain key, the
// bits and the Link changes once the entry is in the index; all are written and read atomically, so
// that a reader in another process sees words, never halves of them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <string_view>

#include "base/clock.h"
#include "near/eviction.h"
#include "near/words.h"

namespace larder::near {

inline constexpr std::size_t kGranule = 8;          // blocks begin at multiples of it
inline constexpr std::uint32_t kMinBlockUnits = 3;  // what a free block needs for itself

// ---- the first word ----

namespace bits {
inline constexpr std::uint64_t kPrevFree = 1 << 0;  // the block before this one is free
inline constexpr std::uint64_t kEntry = 1 << 1;
inline constexpr std::uint64_t kFree = 1 << 2;
inline constexpr std::uint64_t kLimbo = 1 << 3;  // out of the index; a pinned reader may look at it
inline constexpr std::uint64_t kFilled = 1 << 4;
inline constexpr std::uint64_t kVoided = 1 << 5;  // invalidated by key and kept for errors
inline constexpr std::uint64_t kNegative = 1 << 6;
inline constexpr std::uint64_t kExpires = 1 << 7;  // a plain key with an end of life
inline constexpr std::uint64_t kAlone = kExpires;  // of a filled entry: Meta::alone
inline constexpr unsigned kQueueShift = 8;         // 6 bits
inline constexpr unsigned kSlackShift = 14;        // 2 bits: units too many in the block
inline constexpr unsigned kKeyShift = 16;          // 20 bits
inline constexpr unsigned kValueShift = 36;        // 27 bits
inline constexpr std::uint64_t kTagged = 1ULL << 63;
inline constexpr std::uint64_t kSegment = 1 << 8;   // of blocks that are no entries: of the index
inline constexpr std::uint64_t kOverflow = 1 << 9;  // an overflow bucket
inline constexpr unsigned kUnitsShift = 32;         // of blocks that are no entries: their size
}  // namespace bits

inline constexpr std::size_t kMaxKeyBytes = (1U << 20) - 1;
inline constexpr std::size_t kMaxValueBytes = (1U << 27) - 1;

// ---- spans of time in 32 bits ----

// Exact to the microsecond up to 17 minutes, to the millisecond up to 12 days, to the second up to
// 34 years, then to the minute; rounded down, so that nothing lives longer for it.
class Span {
 public:
  static constexpr std::uint32_t kForever = UINT32_MAX;

  static constexpr std::uint32_t encode(DurationUs us) {
    if (us < 0) us = 0;
    for (std::uint32_t unit = 0; unit < kUnits.size(); ++unit)
      if (const DurationUs count = us / kUnits[unit]; count < kLimit)
        return (unit << kShift) | static_cast<std::uint32_t>(count);
    return kForever;
  }
  static constexpr DurationUs decode(std::uint32_t span) {
    if (span == kForever) return kNever;
    return static_cast<DurationUs>(span & (kLimit - 1)) * kUnits[span >> kShift];
  }

 private:
  static constexpr unsigned kShift = 30;
  static constexpr DurationUs kLimit = 1 << kShift;
  static constexpr std::array<DurationUs, 4> kUnits{1, kMillisecond, kSecond, 64 * kSecond};
};

// What a load took, to one part in 2,048: 11 bits of mantissa, 5 of exponent.
constexpr std::uint16_t encode_load(std::uint32_t us) {
  const unsigned exponent = us < 2048 ? 0 : static_cast<unsigned>(std::bit_width(us)) - 11;
  return static_cast<std::uint16_t>((exponent << 11) | (us >> exponent));
}
constexpr std::uint32_t decode_load(std::uint16_t load) {
  return static_cast<std::uint32_t>(load & 2047) << (load >> 11);
}

// ---- the block ----

constexpr std::uint32_t units_for(std::size_t bytes) {
  return std::max(static_cast<std::uint32_t>((bytes + kGranule - 1) / kGranule), kMinBlockUnits);
}

// A block's address, with its layout. A value: copy it. Knows nothing of validity.
class Entry {
 public:
  static constexpr std::size_t kPlainText = 20;
  static constexpr std::size_t kExpiringText = 32;
  static constexpr std::size_t kFilledText = 48;

  explicit Entry(char* block) : block_(block) {}

  char* block() const { return block_; }
  std::atomic_ref<std::uint64_t> bits() const {
    return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(block_));
  }
  std::uint64_t load_bits() const { return bits().load(std::memory_order_relaxed); }
  void set_bits(std::uint64_t mask, bool on) const {
    const std::uint64_t old = load_bits();
    bits().store(on ? old | mask : old & ~mask, std::memory_order_relaxed);
  }
  Link& link() const { return *reinterpret_cast<Link*>(block_ + 8); }

  // ---- out of the first word ----

  static std::size_t key_size(std::uint64_t word) {
    return (word >> bits::kKeyShift) & kMaxKeyBytes;
  }
  static std::size_t value_size(std::uint64_t word) {
    return (word >> bits::kValueShift) & kMaxValueBytes;
  }
  static unsigned queue(std::uint64_t word) { return (word >> bits::kQueueShift) & 63; }
  static bool is_filled(std::uint64_t word) { return (word & bits::kFilled) != 0; }

  // Where the key begins. Reads the number of tags, if there are any.
  std::size_t text_offset(std::uint64_t word) const {
    if (!is_filled(word)) return (word & bits::kExpires) != 0 ? kExpiringText : kPlainText;
    return (word & bits::kTagged) != 0 ? tags_offset(tag_count(word)) : kFilledText;
  }
  static std::size_t tags_offset(std::size_t tags) {
    return tags == 0 ? kFilledText : kFilledText + 8 + tags * sizeof(std::uint32_t);
  }

  std::string_view key(std::uint64_t word) const {
    return {block_ + text_offset(word), key_size(word)};
  }
  std::string_view value(std::uint64_t word) const {
    return {block_ + text_offset(word) + key_size(word), value_size(word)};
  }

  // What the block has to hold, in whole units, and what it has.
  std::uint32_t needed_units(std::uint64_t word) const {
    return units_for(text_offset(word) + key_size(word) + value_size(word));
  }
  std::uint32_t block_units(std::uint64_t word) const {
    return needed_units(word) + static_cast<std::uint32_t>((word >> bits::kSlackShift) & 3);
  }

  // ---- fields ----

  std::uint32_t generation() const { return load_word<std::uint32_t>(block_ + 20); }
  std::uint64_t when() const { return load_word<std::uint64_t>(block_ + 24); }
  std::uint64_t life() const { return load_word<std::uint64_t>(block_ + 32); }
  std::uint32_t ttl() const { return load_word<std::uint32_t>(block_ + 40); }
  std::uint16_t filled_cache_id() const { return load_word<std::uint16_t>(block_ + 44); }
  std::uint16_t load_took() const { return load_word<std::uint16_t>(block_ + 46); }
  std::uint64_t stamp() const { return load_word<std::uint64_t>(block_ + 48); }
  std::uint32_t tag_slot(std::size_t i) const {
    return load_word<std::uint32_t>(block_ + kFilledText + 8 + i * sizeof(std::uint32_t));
  }
  std::size_t tag_count(std::uint64_t word) const {
    return (word & bits::kTagged) != 0 ? when() >> kTagCountShift : 0;
  }
  std::uint16_t cache_id(std::uint64_t word) const {
    return is_filled(word) ? filled_cache_id() : std::uint16_t{0};
  }

  // ---- times ----

  TimeUs as_of() const { return decode_time(when()); }
  static TimeUs useless_at_of(TimeUs as_of, std::uint64_t life) {
    return saturating_add(as_of, Span::decode(static_cast<std::uint32_t>(life)));
  }
  static TimeUs soft_expiry_of(TimeUs as_of, std::uint64_t life) {
    return saturating_add(as_of, Span::decode(static_cast<std::uint32_t>(life >> 32)));
  }
  static std::uint64_t life_of(TimeUs as_of, TimeUs soft_expiry, TimeUs useless_at) {
    return std::uint64_t{span_from(as_of, soft_expiry)} << 32 | span_from(as_of, useless_at);
  }
  TimeUs useless_at(std::uint64_t word) const {
    if (is_filled(word)) return useless_at_of(as_of(), life());
    return (word & bits::kExpires) != 0 ? decode_time(when()) : kNever;
  }
  void set_life(std::uint64_t life) const { store_word(block_ + 32, life); }
  void set_when(std::uint64_t when) const { store_word(block_ + 24, when); }

  // 56 bits of a time (to the year 4253), above which there is room for a byte.
  static constexpr unsigned kTagCountShift = 56;
  static constexpr std::uint64_t encode_time(TimeUs time) {
    return static_cast<std::uint64_t>(time == kNever ? kFarAway
                                                     : std::clamp<TimeUs>(time, 0, kFarAway - 1));
  }
  static constexpr TimeUs decode_time(std::uint64_t word) {
    const auto time = static_cast<TimeUs>(word & ((1ULL << kTagCountShift) - 1));
    return time == kFarAway ? kNever : time;
  }

 private:
  static constexpr TimeUs kFarAway = (1LL << kTagCountShift) - 1;

  static std::uint32_t span_from(TimeUs from, TimeUs to) {
    return to == kNever ? Span::kForever : Span::encode(to - from);
  }

  char* block_;
};

}  // namespace larder::near
