// The rules of the fill protocol as pure functions: when is a ticket void, when may a loaded value
// be stored, when does a stored one still count. Everybody who holds state asks here; tests/sim
// explores the same functions exhaustively, with each rule left out as a negative control.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "policy/snapshot.h"

namespace larder::policy {

// The right to fill one key, given on a miss. Void after any invalidation of the key (the version
// of its index bucket moved), of its partition (the generation moved), or of one of the entry's
// tags (which bear a later stamp than the ticket).
struct Ticket {
  std::uint64_t version = 0;     // of the key's index bucket
  std::uint64_t generation = 0;  // of the key's partition
  std::uint64_t stamp = 0;       // of the tag clock when the ticket was given
  friend bool operator==(const Ticket&, const Ticket&) = default;
};

enum class Refusal : std::uint8_t {
  none,
  no_state,      // the engine has lost its coordination state
  ticket,        // an invalidation came since the miss
  epoch,         // the partition was reset since the miss
  source,        // the load came from another incarnation of the source
  tombstone,     // a transaction that changed the key is not visible in the load
  tag,           // the same for one of the entry's tags
  too_large,     // over max_value or an eighth of a shard
  key_mismatch,  // the row's key columns do not render back to the key
  no_room,       // the memory bound, and nothing to evict
  later,         // what is stored comes from a later load
  not_worth,     // it is so large that it would drive out many that are worth more
  floor,         // transactions that the engine remembers no more may be missing in the load
};
inline constexpr std::size_t kRefusals = 13;  // how many there are
std::string_view to_string(Refusal refusal);

// For negative controls in tests only: each `false` leaves one rule out.
struct Rules {
  bool ticket = true;
  bool generation = true;
  bool source = true;
  bool tombstone = true;
  bool tag_tombstone = true;
  bool tag_stamp = true;
  bool later = true;
};

struct FillCheck {
  Ticket ticket;             // as given on the miss
  Ticket now;                // what a ticket for the key would be now
  const Snapshot& snapshot;  // what the load has seen
  std::uint64_t source_id;   // the incarnation that the coordination state belongs to
  // The highest number of a transaction known to have changed the key; 0 = none. Numbers are not
  // commit order, so the load must have seen the end of every transaction up to it.
  TxnId key_tombstone;
  std::span<const TxnId> tag_tombstones;  // likewise for each tag of the entry
};

// May the loaded value be stored? Cost: a few compares.
Refusal judge_fill(const FillCheck& check, const Rules& rules = {});

// May a near tier still install under `ticket`, given what a ticket would be now? (The part of
// judge_fill that needs no knowledge of the source.)
Refusal judge_install(const Ticket& ticket, const Ticket& now, const Rules& rules = {});

// Is a stored entry void? `generation` and `stamp` are those of the ticket under which it was
// filled.
inline bool is_void(std::uint64_t generation, std::uint64_t stamp, std::uint64_t current_generation,
                    std::span<const std::uint64_t> tag_stamps, const Rules& rules = {}) {
  if (rules.generation && generation != current_generation) return true;
  if (rules.tag_stamp)
    for (const std::uint64_t tag : tag_stamps)
      if (tag > stamp) return true;
  return false;
}

}  // namespace larder::policy
