// The fill protocol as scripts (design section 3): what each step sends to the engine and what its
// answer means. No I/O: a step is the text of a script with its keys and arguments, and a decoder.
//
// All coordination state of one (source, partition) is one hash, so that it is lost whole or not at
// all; beside it lie the stream of its recent messages, the entries and the tickets. Each step is
// one script, hence atomic. protocol_test.cc walks through every rule on a real server.
//
// Numbers of transactions must stay below 2^53: Lua counts in doubles. Positions of the feed and
// identities of a source are text there, and may be any.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "policy/fill_rules.h"
#include "policy/follower.h"
#include "policy/snapshot.h"
#include "wire/resp.h"

namespace larder::engine::redis {

// ---- names ----

// The names of one (source, partition) in the engine. All share one slot: the partition's hash tag,
// chosen so that partition p of P lies in the p-th of P equal ranges of slots.
class Names {
 public:
  // `sharded`: messages go by SPUBLISH (a cluster of Redis 7 or Valkey).
  Names(std::string_view name_space, std::string_view source, unsigned partition,
        unsigned partitions, bool sharded = false);
  const std::string& state() const { return state_; }
  const std::string& stream() const { return stream_; }
  const std::string& channel() const { return channel_; }
  // Who holds it is the node whose feed of the source counts. REQUIRES: partition 0.
  std::string lease() const { return prefix_ + "f:" + source_; }
  // `schema`: the cache's name and a hash of its key pattern and load: versions of a service whose
  // rows differ never meet.
  std::string entry(std::string_view schema, std::string_view key) const;
  std::string ticket(std::string_view schema, std::string_view key) const;
  std::uint32_t slot() const { return slot_; }
  std::string_view publish() const { return sharded_ ? "SPUBLISH" : "PUBLISH"; }

 private:
  std::string prefix_, source_, state_, stream_, channel_;
  std::uint32_t slot_ = 0;
  bool sharded_;
};

// ---- common ----

using Position = policy::Position;

struct Step {
  std::string_view script;  // its text: a constant
  std::vector<std::string> keys;
  std::vector<std::string> args;
};

// An entry as the engine holds it. Times are the engine's own clock (TIME), in microseconds.
struct StoredEntry {
  policy::Snapshot snapshot;  // what its load had seen
  bool negative = false;
  std::uint32_t load_us = 0;
  DurationUs ttl_us = 0;
  TimeUs as_of = 0;
  TimeUs soft_expiry = 0;
  TimeUs useless_at = 0;
  std::vector<std::string> tags;
  std::string value;
};

// ---- miss(k): lookup of keys of one partition ----

struct LookupKey {
  std::string_view schema;
  std::string_view key;
  std::string_view token;     // random, unique: becomes the ticket if there is one to give
  bool wants_ticket = false;  // a reload ahead of time: give a ticket although there is an entry
  bool waits = true;          // on busy, wake whoever waits: the fill is to be published
};

struct KeyAnswer {
  enum class Kind : std::uint8_t {
    no_state,  // no epoch: no hits, no tickets. Load without storing
    hit,       // entry: valid and within its TTL
    ticket,    // the caller loads; `entry`, if there is one, is late (its TTL has passed) or, with
               // wants_ticket, still good
    busy,      // somebody else loads; likewise
  };
  Kind kind = Kind::no_state;
  std::optional<StoredEntry> entry;
  DurationUs ticket_us = 0;  // busy: until the holder's ticket ends by itself
};

struct LookupAnswer {
  Position position;
  TimeUs heartbeat = 0;          // H: all changes committed before this are in the history up to n
  TimeUs engine_now = 0;         // TIME
  std::vector<KeyAnswer> found;  // parallel to the keys
};

// `ticket_us` 0: only to look. Nothing is written; what is no hit is answered as no_state.
Step lookup_step(const Names& names, const std::vector<LookupKey>& keys, DurationUs ticket_us);
Result<LookupAnswer> lookup_answer(const wire::Reply& reply);

// ---- fill(ticket, entry) ----

struct FillRequest {
  std::string_view schema;
  std::string_view key;
  std::string_view token;
  std::string_view epoch;  // that came with the ticket
  StoredEntry entry;       // entry.snapshot.source_id: the identity of the source
};

struct FillAnswer {
  Position position;
  policy::Refusal refusal = policy::Refusal::none;
};

Step fill_step(const Names& names, const FillRequest& request);
Result<FillAnswer> fill_answer(const wire::Reply& reply);

// ---- invalidate ----

// How x is to be understood.
enum class TxnRule : std::uint8_t {
  exact,    // x is a transaction: fills need it visible
  below,    // x was allocated after the change: fills need x < xmin
  tickets,  // there is no x: tickets, and entries whose ticket is older, are void
};

struct Invalidation {
  struct Key {
    std::string text;
    std::vector<std::string> schemas;  // whose entries of the key go; several versions may live
  };
  std::vector<Key> keys;  // of this partition
  std::vector<std::string> tags;
  policy::TxnId x = 0;
  TxnRule rule = TxnRule::exact;
  std::uint64_t source_id = 0;  // x belongs to this incarnation; 0: the present one
};

// How much is kept; the defaults suit a partition of a large deployment.
struct Bounds {
  unsigned stream = 10'000;          // messages for repair
  unsigned tombstones = 2'000;       // beyond: trimmed below the feed's xmin
  unsigned most_tombstones = 4'000;  // beyond: trimmed whatever it costs in refused fills
};

// The first write needs no memory, so that it works at maxmemory. An x that T[key] has already (the
// writer came before the feed) gives no new number and no message, and leaves the entries that have
// seen it.
Step invalidate_step(const Names& names, std::vector<Invalidation> changes,
                     const Bounds& bounds = {});

// The feed's: compares A with `expected`, applies `changes` in order, sets A = `position` and, if
// it is not 0, H = `heartbeat`, in one step. On a mismatch nothing happens, and `applied` is false.
struct FeedStep {
  std::uint64_t expected = 0;
  std::uint64_t position = 0;
  TimeUs heartbeat = 0;         // by the engine's clock
  std::uint64_t source_id = 0;  // another one than the hash's: mismatch
  policy::TxnId xmin = 0;       // T may be trimmed below it; 0: unknown
  TimeUs committed_at = 0;      // of the earliest change, for the followers' lag; 0: unknown
  std::vector<Invalidation> changes;
};
Step feed_step(const Names& names, const FeedStep& feed, const Bounds& bounds = {});

struct ChangeAnswer {  // of both
  Position position;
  bool applied = true;
  std::uint64_t feed_position = 0;  // A now
  std::uint64_t source_id = 0;      // of the hash
  TimeUs engine_now = 0;
};
Result<ChangeAnswer> change_answer(const wire::Reply& reply);

// What there is: position, A, source, H; nothing is changed.
Step read_step(const Names& names);
struct StateAnswer {
  Position position;
  std::uint64_t feed_position = 0;
  std::uint64_t source_id = 0;
  TimeUs heartbeat = 0;
  TimeUs engine_now = 0;
};
Result<StateAnswer> state_answer(const wire::Reply& reply);

// ---- a new epoch ----

// (1) Replaces the hash by one that holds only `mark`; invalidations record T again from here.
// `source_id`: the incarnation that the epoch is to be of, so that an x of another one is not
// recorded (it would refuse fills until it is trimmed); 0: not known, all are.
Step epoch_begin_step(const Names& names, std::string_view mark, std::uint64_t source_id = 0);
// (3) If that mark is still there, and of no other incarnation: writes e (new, never used before),
// F, A, the source's identity and H, keeping T; deletes the stream; tells the near tiers. applied =
// false: start again.
struct NewEpoch {
  std::string_view mark;
  std::string_view epoch;  // random and unique
  policy::TxnId floor = 0;
  std::uint64_t feed_position = 0;
  std::uint64_t source_id = 0;
  TimeUs heartbeat = 0;
};
Step epoch_write_step(const Names& names, const NewEpoch& epoch);  // ChangeAnswer

// ---- messages: published on the channel, and kept in the stream ----

struct Message {
  enum class Kind : std::uint8_t {
    change,     // in the history: position.n is its number
    heartbeat,  // position.n: of the last change before it
    filled,     // wakes those who wait for `keys`; beside the history
    epoch,      // a new epoch has begun
  };
  Kind kind = Kind::change;
  Position position;
  TimeUs heartbeat = 0;
  TimeUs committed_at = 0;
  policy::TxnId x = 0;
  std::vector<std::string> keys;
  std::vector<std::string> tags;
};
Result<Message> parse_message(std::string_view text);

// The changes after n, for repair: an array of messages; fewer than asked for if history is gone.
Step history_step(const Names& names, std::uint64_t after, unsigned most);
Result<std::vector<Message>> history_answer(const wire::Reply& reply);

}  // namespace larder::engine::redis
