// An engine: where nodes share entries and coordinate. One narrow interface; what an engine cannot
// do is data (Capabilities).
//
// It speaks the three verbs: lookup gives an entry, or a ticket on a miss; fill stores under it;
// invalidate voids. An engine keeps the near tier coherent with itself: what it answers or stores
// it installs there, what becomes void it voids there.
//
// Thread-safe; calls suspend and resume on the caller's loop.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "base/task.h"
#include "near/store.h"
#include "policy/fill_rules.h"

namespace larder::engine {

struct Capabilities {
  std::string kind;                   // "embedded", "redis"
  bool entries_live_in_near = false;  // a stored entry is in the near tier already: it is held once
  // Other nodes fill and invalidate too. Then a strong cache has to ask for every read, feeds go
  // through feed(), and a source's incarnations are the feed's business.
  bool shared = false;
  // shared: for each source, for each partition (partition_of): every change committed before this
  // time has been applied to the near tier; 0 = nothing is known.
  std::vector<std::span<const std::atomic<TimeUs>>> heartbeats = {};
};

// Partition of a key, the same on every node: an unkeyed hash.
unsigned partition_of(std::string_view key, unsigned partitions);

struct Key {
  std::string_view text;
  Hash hash;  // hash_bytes(text)
};

// Whose keys are meant.
struct Cache {
  unsigned source = 0;        // index
  std::uint16_t near_id = 0;  // near::Meta::cache_id
  bool near = true;           // the near tier may hold its entries
  std::string_view schema;    // name, and a hash of key pattern and load: versions whose rows
                              // differ never meet
  DurationUs bound_us = 0;    // of consistency = "bounded:<time>"; 0: none
};

// The right to fill one key. Opaque but for near.
struct Ticket {
  policy::Ticket near;           // the near tier's own
  std::uint64_t generation = 0;  // of what is known of the key's partition
  std::string token;             // a shared engine's; "": it gave none
  std::string epoch;
  bool near_only = false;  // the engine is down: what is loaded may be held here, for one bound
};

struct Lookup {
  Cache cache;
  std::vector<Key> keys;
  bool reload = false;       // give a ticket although there is an entry
  bool peek = false;         // only say what would be hit: give no ticket, install nothing
  DurationUs ticket_us = 0;  // after this time somebody else may load
  TimeUs deadline = kNever;  // after it, no answer is worth having
};

struct Found {
  enum class Kind : std::uint8_t {
    hit,     // meta, value
    ticket,  // load and fill(), or release(). meta, value: of an entry that is late, if has_value
    busy,    // somebody else loads; look again when `filled` is notified, at the latest at `until`
  };
  Kind kind = Kind::ticket;
  Ticket ticket;
  bool has_value = false;
  near::Meta meta;
  std::string value;
  TimeUs heartbeat = 0;  // every change committed before this has been seen by what was found
  std::shared_ptr<Waiters> filled;
  TimeUs until = 0;
};

// The unit of invalidation: what transaction x of a source changed.
struct Change {
  unsigned source = 0;  // index of the source that x belongs to
  policy::TxnId x = 0;  // 0: a call or an event without one; then the tickets are the safety
  std::uint64_t source_id = 0;  // the incarnation that x belongs to; 0: the present one
  std::vector<std::string> keys;
  std::vector<std::string> tags;
  std::vector<bool> keep_for_error = {};  // parallel to keys, or empty: keep it for stale-if-error
};

struct Fill {
  Cache cache;
  Key key;
  const Ticket& ticket;
  const policy::Snapshot& snapshot;
  std::string_view value;
  near::Meta meta;
  std::span<const std::string> tags;
  TimeUs deadline = kNever;
};

// What a feed has read of its source's log: everything in (from, to].
struct FeedBatch {
  std::uint64_t from = 0;
  std::uint64_t to = 0;
  std::uint64_t source_id = 0;
  std::vector<Change> changes;  // in order
  bool everything = false;      // the log does not reach back to `from`
  TimeUs heartbeat = 0;         // every change committed before this is in (.., to]; 0: unknown
  TimeUs committed_at = 0;      // of the earliest change; 0: unknown
  policy::TxnId xmin = 0;       // every transaction below it has ended; 0: unknown
  std::optional<policy::TxnId> floor;  // the answer to FeedOrder::new_epoch
};

// What the feed has to do next.
struct FeedOrder {
  std::uint64_t go_on_from = 0;  // deliver what comes after this position
  // First read the log's end, then make sure that no transaction up to some number can still be
  // running, and deliver both as `to` and `floor`.
  bool new_epoch = false;
  // What lies up to here will not be asked for again, also if the engine loses the last things that
  // it was told (it fails over to a replica that is behind).
  std::uint64_t confirm_up_to = 0;
};

// What an engine asks the node above it, and tells it. Called from any loop; nothing suspends.
struct Hooks {
  std::function<std::string_view(std::string_view key)> schema_of;  // "": no cache declares it
  std::function<bool(std::string_view key)> keeps_for_error;
  struct Voided {
    unsigned source = 0;
    std::span<const std::string> keys;
    std::span<const std::string> tags;
    bool everything = false;  // of the source; keys and tags are empty
    policy::TxnId x = 0;
    DurationUs lag_us = 0;  // since the change was committed; 0: unknown
  };
  // Other nodes or the feed changed this; the near tier knows already.
  std::function<void(const Voided&)> voided;
  struct Source {
    std::string name;
    bool feeds = false;       // its feed calls feed()
    DurationUs bound_us = 0;  // the smallest of its bounded caches; 0: none
  };
  std::vector<Source> sources;
};

class Engine {
 public:
  virtual ~Engine() = default;
  virtual const Capabilities& capabilities() const = 0;

  // What there is of the keys, parallel to them. What is found is in the near tier afterwards,
  // where the cache allows that. When the engine is down, or has lost its state: tickets with
  // which a load is served and hardly stored. With `peek` what is not hit is a ticket that is none.
  // Cost: one round trip for each partition, all at once.
  virtual Task<std::vector<Found>> lookup(Lookup lookup) = 0;

  // Stores unless the rules refuse; the refusal is a value. Either way the ticket has ended.
  virtual Task<policy::Refusal> fill(Fill fill) = 0;

  // Ends a ticket under which nothing will be filled, so that others need not wait for its time.
  virtual Task<void> release(Cache cache, Key key, Ticket ticket) = 0;

  // Voids entries and tickets; when it returns without an error, no reader of this engine gets them
  // any more. After an error at least this node's own readers do not.
  virtual Task<Result<void>> invalidate(std::vector<Change> changes) = 0;

  // The source is now incarnation `source_id`: what was filled from another one is void.
  // REQUIRES: !shared.
  virtual Task<Result<void>> new_epoch(unsigned source, std::uint64_t source_id) = 0;

  // Applies what a source's feed delivers. Returns only when this node is the one whose feed
  // counts; until then it waits. Errors: engine_down; deliver it again. REQUIRES: shared.
  virtual Task<Result<FeedOrder>> feed(unsigned source, FeedBatch batch) = 0;

  // Follows what others do until `group` is stopping. Once, before any lookup.
  virtual void start(TaskGroup& group, Hooks hooks) = 0;
};

}  // namespace larder::engine
