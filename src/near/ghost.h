// Remembers the hashes of entries that were evicted, and about how often each was used: 13 bits of
// the hash and the logarithm of the frequency, in rows of 31. 64 bytes a row, so a question costs
// one cache line.
//
// The newest overwrites the oldest of its row, except that what was used more than once is passed
// over for half of its frequency. So one-hit wonders do not wash out the memory of the others, and
// what is not used any more is forgotten in the end.
//
// A view over memory of the caller, which may be shared memory: no pointers in it. Says "yes" to
// about 31 in 8,192 hashes that it never saw. Not thread-safe. Zeroed memory is an empty ghost.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/hash.h"

namespace larder::near {

struct alignas(64) GhostRow {
  static constexpr unsigned kWays = 31;

  std::array<std::uint16_t, kWays> prints;  // 0: nothing. Low 13 bits of the hash, 3 of log2(F)
  std::uint16_t next;                       // which one is overwritten next, below kWays
};
static_assert(sizeof(GhostRow) == 64);

class Ghost {
 public:
  static constexpr unsigned kMaxFrequency = 128;

  Ghost() = default;  // remembers nothing
  explicit Ghost(std::span<GhostRow> rows) : rows_(rows) {}

  // How many rows remember about `entries`.
  static constexpr std::size_t rows_for(std::uint64_t entries) {
    return static_cast<std::size_t>((entries + GhostRow::kWays - 1) / GhostRow::kWays);
  }

  // What is remembered already is changed. `noise` is another number every time.
  // REQUIRES: frequency > 0.
  void remember(Hash hash, unsigned frequency, std::uint64_t noise) {
    if (rows_.empty()) return;
    const std::uint64_t mixed = mix64(hash);
    GhostRow& row = row_of(mixed);
    const std::uint16_t print = print_of(mixed);
    const unsigned next = row.next % GhostRow::kWays;  // memory from outside is not trusted
    const auto found =
        static_cast<std::uint16_t>(print | rounded_log(frequency, mixed + noise) << kPrintBits);
    if (std::uint16_t* old = find(row, print)) {
      *old = found;
      return;
    }
    unsigned way = next;
    for (unsigned passed = 0; passed < kMaxPassed && (row.prints[way] >> kPrintBits) > 0;
         ++passed) {
      row.prints[way] = static_cast<std::uint16_t>(row.prints[way] - (1U << kPrintBits));
      way = (way + 1) % GhostRow::kWays;
    }
    row.prints[way] = found;
    row.next = static_cast<std::uint16_t>((way + 1) % GhostRow::kWays);
  }

  // About the frequency that was remembered; 0 if nothing was.
  unsigned recall(Hash hash) const {
    if (rows_.empty()) return 0;
    const std::uint64_t mixed = mix64(hash);
    const std::uint16_t* found = find(row_of(mixed), print_of(mixed));
    return found != nullptr ? 1U << (*found >> kPrintBits) : 0;
  }

  // The same, and it is not remembered any more.
  unsigned take(Hash hash) {
    if (rows_.empty()) return 0;
    const std::uint64_t mixed = mix64(hash);
    std::uint16_t* found = find(row_of(mixed), print_of(mixed));
    if (found == nullptr) return 0;
    const unsigned frequency = 1U << (*found >> kPrintBits);
    *found = 0;
    return frequency;
  }

 private:
  static constexpr unsigned kPrintBits = 13;
  static constexpr unsigned kMaxLog = 7;
  static constexpr unsigned kMaxPassed = 4;

  GhostRow& row_of(std::uint64_t mixed) const {
    return rows_[static_cast<std::size_t>((static_cast<unsigned __int128>(mixed) * rows_.size()) >>
                                          64)];
  }
  // From the other end than the row, and never 0.
  static std::uint16_t print_of(std::uint64_t mixed) {
    const auto print = static_cast<std::uint16_t>(mixed & ((1U << kPrintBits) - 1));
    return print != 0 ? print : std::uint16_t{1};
  }
  // Without a branch in the loop: it becomes a few vector instructions.
  static std::uint16_t* find(GhostRow& row, std::uint16_t print) {
    std::uint32_t ways = 0;
    for (unsigned way = 0; way < GhostRow::kWays; ++way)
      ways |= std::uint32_t{(row.prints[way] & ((1U << kPrintBits) - 1)) == print} << way;
    return ways != 0 ? &row.prints[static_cast<unsigned>(std::countr_zero(ways))] : nullptr;
  }
  // log2, rounded up or down so that the mean is right (Morris, 1978); else 3 + 1 would be 3 again.
  static unsigned rounded_log(unsigned frequency, std::uint64_t noise) {
    const unsigned log = std::min(static_cast<unsigned>(std::bit_width(frequency)) - 1, kMaxLog);
    const unsigned rest = frequency - (1U << log);
    const bool up = (mix64(noise) & ((1U << log) - 1)) < rest;
    return std::min(log + (up ? 1 : 0), kMaxLog);
  }

  std::span<GhostRow> rows_;
};

}  // namespace larder::near
