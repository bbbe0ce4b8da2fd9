// What a near tier knows of one partition of the engine: how far it has followed the partition's
// changes, and in which history. Decides, for each message, whether to apply it, and, for each
// answer of the engine, whether it may be installed (design sections 2 and 3). Pure: no clock, no
// I/O; not thread-safe, its owner locks.
//
// Why an answer needs more than the key's ticket: it may have left the engine before a change that
// this near tier has applied already. Within one history `n` orders the two; between histories
// nothing does, so another history empties the partition.
#pragma once

#include <cstdint>
#include <string>

namespace larder::policy {

// How far the changes of a partition have come, and in which history. `replid` is the replication
// id of the server that said so: after a failover it is another one. `epoch` is opaque: compare for
// equality only; "" = the engine has no state (fresh, flushed, evicted).
struct Position {
  std::string replid;
  std::string epoch;
  std::uint64_t n = 0;
  bool has_state() const { return !epoch.empty(); }
  bool same_history(const Position& other) const {
    return epoch == other.epoch && replid == other.replid;
  }
  friend bool operator==(const Position&, const Position&) = default;
};

class Follower {
 public:
  // For negative controls in tests only: each `false` leaves one rule out.
  struct Rules {
    bool history = true;     // compare replid and epoch
    bool gap = true;         // notice a missing n
    bool generation = true;  // a reset voids the answers that are on their way
    bool order = true;       // an answer must not be older than what was applied
  };

  enum class Verdict : std::uint8_t {
    apply,      // void what the change names (a heartbeat: nothing is missing)
    duplicate,  // it was applied before (a heartbeat: of an earlier n; it still holds)
    gap,        // changes are missing: fetch those after position().n, give each to on_change(), or
                // reset() when they are gone. The change itself is to be found among them. While
                // !known(): the engine has no state, there is nothing to fetch
    reset,      // another history: the follower has reset itself. Drop all entries of the partition
  };

  Follower() = default;
  explicit Follower(const Rules& rules) : rules_(rules) {}

  // A change, from the channel or from the history. While the position is unknown the verdict is
  // `apply` and the position stays unknown: to void is always safe. (Such a change may come again:
  // the answer that sets the position may be older.)
  Verdict on_change(const Position& message);

  // "The last change was number n": a heartbeat, the message of a new epoch, or a reading. Sets the
  // position if it is unknown. What a heartbeat promises counts on apply and duplicate only.
  Verdict on_heartbeat(const Position& said);

  // May an answer of the engine be installed, or what the engine stored for a fill? `generation`
  // is generation() as it was before the question was sent; the near tier's own ticket for the key
  // must hold besides. Sets the position if it is unknown. An answer from another history that was
  // asked for after the last reset resets (`false`, and generation() has moved: drop all entries).
  bool may_install(const Position& answer, std::uint64_t generation);

  // History that is gone, silence beyond the bound, a resize: the position is unknown and whatever
  // is on its way will not be installed. The caller drops the entries of the partition.
  //
  // Loss of the subscription alone needs no reset: read the position after subscribing again and
  // give it to on_heartbeat(), which says whether anything was missed.
  void reset();

  bool known() const { return known_; }
  const Position& position() const { return position_; }  // REQUIRES: known()
  std::uint64_t generation() const { return generation_; }

 private:
  bool other_history(const Position& p) const;
  void adopt(const Position& p);

  Rules rules_;
  bool known_ = false;
  Position position_;
  std::uint64_t generation_ = 0;
};

}  // namespace larder::policy
