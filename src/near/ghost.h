// Remembers the hashes of entries that were evicted from the small queue: 16 bits of each, in rows
// of 31 where the newest overwrites the oldest. 64 bytes a row, so one cache line a question.
//
// A view over memory of the caller, which may be shared memory: no pointers in it. Says "yes" to
// about 31 in 65,536 hashes that it never saw. Not thread-safe. Zeroed memory is an empty ghost.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/hash.h"

namespace larder::near {

struct alignas(64) GhostRow {
  static constexpr unsigned kWays = 31;

  std::array<std::uint16_t, kWays> prints;  // 0: nothing
  std::uint16_t next;                       // which one is overwritten next, below kWays
};
static_assert(sizeof(GhostRow) == 64);

class Ghost {
 public:
  Ghost() = default;  // remembers nothing
  explicit Ghost(std::span<GhostRow> rows) : rows_(rows) {}

  // How many rows remember about `entries`.
  static constexpr std::size_t rows_for(std::uint64_t entries) {
    return static_cast<std::size_t>((entries + GhostRow::kWays - 1) / GhostRow::kWays);
  }

  void remember(Hash hash) {
    if (rows_.empty()) return;
    const std::uint64_t mixed = mix64(hash);
    GhostRow& row = row_of(mixed);
    const unsigned way = row.next % GhostRow::kWays;  // memory from outside is not trusted
    row.prints[way] = print_of(mixed);
    row.next = static_cast<std::uint16_t>((way + 1) % GhostRow::kWays);
  }

  // Was it there? It is not any more.
  bool forget(Hash hash) {
    if (rows_.empty()) return false;
    const std::uint64_t mixed = mix64(hash);
    GhostRow& row = row_of(mixed);
    const std::uint16_t print = print_of(mixed);
    for (std::uint16_t& old : row.prints)
      if (old == print) {
        old = 0;
        return true;
      }
    return false;
  }

 private:
  GhostRow& row_of(std::uint64_t mixed) const {
    return rows_[static_cast<std::size_t>((static_cast<unsigned __int128>(mixed) * rows_.size()) >>
                                          64)];
  }
  // From the other end than the row, and never 0.
  static std::uint16_t print_of(std::uint64_t mixed) {
    const auto print = static_cast<std::uint16_t>(mixed);
    return print != 0 ? print : std::uint16_t{1};
  }

  std::span<GhostRow> rows_;
};

}  // namespace larder::near
