// A node: the read path, the write path and the invalidation path over a near tier, an engine and
// sources. Composition only; each decision is made in policy/, each tier does its own work.
//
// Thread-safe: called from any loop of the program. Calls suspend where they return a Task, and
// resume on the caller's loop. Errors are Results; a miss ("no such row") is a value.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "base/task.h"
#include "cache/audit.h"
#include "cache/spec.h"
#include "engine/engine.h"
#include "journal/journal.h"
#include "near/store.h"
#include "obs/metrics.h"
#include "source/source.h"

namespace larder::cache {

// journal: a write that was acknowledged and is not in the database yet.
enum class Tier : std::uint8_t { near, engine, source, stale, journal };
std::string_view to_string(Tier tier);

struct Reading {
  bool found = false;  // false: the source has no such row
  std::string value;
  Tier tier = Tier::source;
  DurationUs age_us = 0;  // since the source showed this value (as-of)
  DurationUs ttl_us = 0;  // left of its life; 0 if it is late or was not stored
  policy::Refusal not_stored = policy::Refusal::none;  // why a load was served without being stored
};

// What EXISTS and TTL want to know of a declared key; nothing is loaded.
struct Held {
  bool negative = false;
  DurationUs ttl_us = 0;  // until its soft expiry
};

struct WriteOp {
  enum class Kind : std::uint8_t { set, remove, increment };
  Kind kind = Kind::set;
  std::string key;
  std::string value;                 // set: a JSON object, or the bytes for result = "value"
  std::int64_t delta = 0;            // increment
  std::optional<DurationUs> ttl_us;  // set: the life of the entry only
};

struct Written {
  std::int64_t affected = 0;  // rows
  std::string value;          // increment: the new value
};

struct Warmed {
  std::uint64_t keys = 0;
  std::uint64_t failed = 0;
  DurationUs took_us = 0;
};

// Ordered name/value pairs for LARDER.EXPLAIN and the API: texts ready to print.
using Explanation = std::vector<std::pair<std::string, std::string>>;

// Everything that a node is made of. The pointed-to objects outlive the node.
struct Parts {
  std::vector<CacheSpec> caches;
  std::vector<std::string> source_names;  // parallel to sources
  std::vector<source::Source*> sources;
  near::Store* near = nullptr;
  engine::Engine* engine = nullptr;
  journal::Journal* journal = nullptr;  // where a cache has write = "behind"
  obs::Registry* metrics = nullptr;
  std::uint64_t seed = 0;             // dice of jitter and XFetch
  std::size_t max_flights = 100'000;  // loads under way; beyond: -LARDER_OVERLOADED
  std::size_t max_waiters = 100'000;  // readers that wait for them
  AuditSpec audit = {.enabled = false};
  // One line for the operator. From any loop; must not suspend or call the node. May be empty.
  std::function<void(std::string)> log = {};
  // Called after keys became void (`everything`: tags, caches, resets), and after a load brought
  // what may be newer than what was handed out before. From any loop; must not suspend or call the
  // node. May be empty.
  std::function<void(std::span<const std::string> keys, bool everything)> on_invalidated;
};

class Auditor;
class WriteBehind;

class Node {
 public:
  // What load statements and watched tables the sources of these caches must be made with, by name
  // of source; ids are the ones that Node uses.
  static std::vector<source::LoadStatement> load_statements(const std::vector<CacheSpec>& caches,
                                                            std::string_view source);
  static std::vector<source::WatchedTable> watched_tables(const std::vector<CacheSpec>& caches,
                                                          std::string_view source);

  explicit Node(Parts parts);
  ~Node();  // REQUIRES: stopped, if it was started

  // Starts the feeds on the current loop.
  void start();
  // Returns when every source has told which of the writes that waited in the journal at the start
  // it has already, or does not answer.
  Task<void> recovered(TimeUs deadline);
  // Long operations (warm) end at their next step. Thread-safe.
  void drain();
  // Takes what waits in the journal to the database, until `flush_until`; ends feeds and background
  // loads, and waits for them.
  Task<void> stop(TimeUs flush_until = 0);

  // Tells other processes that read the near tier how far they may go (near::Store::publish_cache).
  void publish_near() const;

  // ---- which cache? ----

  struct Route {
    int cache = -1;  // index into caches(); -1: a plain key
    policy::Match match = policy::Match::no;
  };
  Route route(std::string_view key) const;
  const std::vector<CacheSpec>& caches() const;
  // The error of a key whose route says bad_part.
  Error bad_key(const Route& route, std::string_view key) const;

  // ---- reading ----

  enum class Quick : std::uint8_t {
    hit,     // on_value was called with the value
    absent,  // a fresh "no such row"
    miss,  // nothing can be said without suspending: route() the key, then get() if it is declared
  };
  // The near hit, without suspending; also for plain keys that the near tier holds. `on_value` is
  // called under a shard's lock: copy and return. Starts a refresh in the background where due.
  // REQUIRES: hash == hash_bytes(key). Cost of a hit: one lock, one probe, two relaxed adds.
  template <class OnValue>
  Quick read_now(std::string_view key, Hash hash, TimeUs now, OnValue&& on_value) {
    return read_now(
        key, hash, now,
        [](void* context, std::string_view value) {
          (*static_cast<std::remove_reference_t<OnValue>*>(context))(value);
        },
        const_cast<void*>(static_cast<const void*>(&on_value)));
  }

  // Read-through of one declared key; of many with one load for each cache.
  // Errors: bad_key, source_down, source_refused, timeout, overloaded, too_large.
  Task<Result<Reading>> get(std::string key);
  Task<std::vector<Result<Reading>>> get_many(std::vector<std::string> keys);

  // What the near tier holds of a declared key.
  std::optional<Held> held(std::string_view key, TimeUs now);
  // Shortens or prolongs the life of an entry. False if it is not held.
  bool set_ttl(std::string_view key, TimeUs now, DurationUs ttl_us);

  // ---- writing: all operations in one transaction of one source ----

  // Nothing is written unless all are. Errors beside those of get: read_only, bad_value, syntax
  // (keys of two sources).
  Task<Result<std::vector<Written>>> write(std::vector<WriteOp> ops);

  // ---- invalidating ----

  Task<Result<std::int64_t>> invalidate_keys(std::vector<std::string> keys, std::string_view feed);
  Task<Result<std::int64_t>> invalidate_tags(std::vector<std::string> tags, std::string_view feed);
  // false: no cache of that name.
  Task<Result<bool>> invalidate_cache(std::string name, std::string_view feed);
  // Voids every declared entry (FLUSHDB, FLUSHALL).
  Task<Result<void>> invalidate_all(std::string_view feed);

  // ---- the journal of write = "behind" ----

  // A JSON object: what waits, and for how long; why it is not flushed.
  std::string journal_json(TimeUs now) const;
  // A JSON array of what the databases refused, oldest first. Errors: unsupported, those of get.
  Task<Result<std::string>> dead_letters(std::uint64_t most);
  // Writes again what a database refused as write `seq`, or forgets it; in one transaction.
  // Errors: bad_key (there is no such dead letter), bad_value (its key was written since), those of
  // write.
  Task<Result<void>> replay_dead_letter(std::uint64_t seq);
  Task<Result<void>> drop_dead_letter(std::uint64_t seq);

  // ---- operating ----

  // Loads anew whatever is held, and stores it.
  Task<Result<Reading>> refresh(std::string key);
  // Loads up to `limit` keys that the cache's `warm` statement gives.
  Task<Result<Warmed>> warm(std::string cache, std::uint64_t limit);
  Explanation explain(std::string_view key, TimeUs now);
  // "bounded:1s; rests on ...": the guarantee of each cache, for explain, config check and the API.
  std::string guarantee(std::size_t cache) const;
  // Compares up to `most` of the entries that are held with their sources, and repairs what differs
  // twice within a second or so. Errors: overloaded (one is under way), cancelled. What a source
  // does not answer is counted in the report.
  Task<Result<AuditReport>> audit(std::uint64_t most);
  // All that was audited since the start.
  AuditReport audited(TimeUs now) const;
  // A JSON object for /api/v1/status.
  std::string status_json(TimeUs now) const;

 private:
  friend class Auditor;  // they are parts of the node, in files of their own
  friend class WriteBehind;
  friend class Flusher;
  Quick read_now(std::string_view key, Hash hash, TimeUs now,
                 void (*on_value)(void*, std::string_view), void* context);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace larder::cache
