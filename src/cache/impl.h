// What the paths of a node share. Private to cache/.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/random.h"
#include "base/sync.h"
#include "cache/flights.h"
#include "cache/guarantee.h"
#include "cache/node.h"
#include "cache/recent_events.h"
#include "cache/write_behind.h"
#include "policy/freshness.h"
#include "policy/own_writes.h"
#include "policy/succession.h"
#include "source/sql_text.h"

namespace larder::cache {

enum class Op : std::uint8_t { get, set, del, incr };
inline constexpr std::size_t kOps = 4;
inline constexpr std::size_t kTiers = 6;  // Tier's five, and error
inline constexpr std::size_t kErrorTier = 5;

// The series of one cache, made at start.
struct CacheMetrics {
  struct Pair {
    obs::Counter* requests = nullptr;
    obs::Histogram* seconds = nullptr;
  };
  std::array<std::array<Pair, kTiers>, kOps> by_op_tier;
  std::array<obs::Counter*, 2> stale_served{};                   // ttl, error
  std::array<obs::Counter*, policy::kRefusals> fills_refused{};  // by policy::Refusal
  obs::Counter* fills = nullptr;
  obs::Counter* early_refreshes = nullptr;
};

struct SourceRuntime {
  std::string name;
  source::Source* source = nullptr;
  // Every change committed before it is void here: of the whole source, or for each partition of a
  // shared engine (then the first is not used).
  std::atomic<TimeUs> heartbeat{0};
  std::span<const std::atomic<TimeUs>> heartbeats;
  TimeUs heartbeat_of(std::string_view key) const {
    if (heartbeats.empty()) return heartbeat.load(std::memory_order_acquire);
    const auto count = static_cast<unsigned>(heartbeats.size());
    return heartbeats[engine::partition_of(key, count)].load(std::memory_order_acquire);
  }
  TimeUs oldest_heartbeat() const {
    TimeUs oldest = heartbeats.empty() ? heartbeat.load(std::memory_order_acquire) : kNever;
    for (const auto& one : heartbeats)
      oldest = std::min(oldest, one.load(std::memory_order_acquire));
    return oldest;
  }
  policy::OwnWrites own;  // of a source whose feed echoes them
  bool echoes() const {
    const source::Capabilities& can = source->capabilities();
    return can.feed && can.echoes && heartbeats.empty();
  }
  obs::Counter* invalidations = nullptr;  // through its feed
  obs::Histogram* lag = nullptr;
  Mutex epoch_mutex;
  policy::Succession succession LARDER_GUARDED_BY(epoch_mutex);
  // One is beginning; who has an answer of any waits for that.
  std::shared_ptr<Waiters> beginning LARDER_GUARDED_BY(epoch_mutex);
  std::atomic<std::uint64_t> incarnation{0};  // the present one, and when it was last heard of
  std::atomic<TimeUs> heard_at{0};
};

// A dependency that does not name all key parameters: entries bear a tag for it.
struct PartialDependency {
  std::uint32_t watched_id;
  std::vector<int> params;  // of the key, in the order of the watched columns
};

struct CacheRuntime {
  CacheSpec spec;
  std::uint16_t id = 0;  // near::Meta::cache_id
  unsigned source = 0;   // index
  std::string schema;    // in a shared engine: its name, and a hash of key pattern and load
  policy::FreshnessRules rules;
  Guarantee guarantee;
  bool keeps_for_error = false;
  std::string cache_tag;  // every entry bears it: voids the whole cache
  std::vector<PartialDependency> partial;
  // The placeholders of the statements, each once.
  std::vector<std::string> load_names, store_names, remove_names, increment_names;
  CacheMetrics metrics;

  // What the engine has to know of it.
  engine::Cache in_engine() const {
    return {.source = source,
            .near_id = id,
            .near = spec.near && !rules.strong,
            .schema = schema,
            .bound_us = rules.bound_us};
  }
};

// A watched table's change, and what it means for one cache.
struct DependencyTarget {
  unsigned cache = 0;
  bool full = false;                 // names all parameters: changes one key
  std::vector<int> column_of_param;  // full: for each key parameter, the watched column
};

// What is to be written: operations of one transaction, checked.
struct WritePlan {
  unsigned source = 0;
  bool behind = false;
  DurationUs timeout = 0;
  std::vector<unsigned> caches;               // of each operation
  std::vector<source::Statement> statements;  // of each operation
};
Error changed_nothing(std::string_view key, bool increments);

// What a flight brings home.
struct Outcome {
  Result<std::shared_ptr<const Reading>> reading = fail(ErrorCode::internal, "not loaded");
};
using LoadFlights = Flights<Outcome>;
using LoadFlight = LoadFlights::Pointer;

struct Node::Impl {
  explicit Impl(Parts given);
  ~Impl();

  // ---- read path (read_path.cc) ----
  // What the near tier says of a key.
  struct NearReading {
    policy::Freshness freshness = policy::Freshness::unusable;
    std::optional<Reading> reading;  // of an entry that is there, fit or not
  };
  // What is known of the source at this moment: nothing, that it is slow, that it failed.
  enum class SourceState : std::uint8_t { unknown, slow, failed };
  NearReading read_near(const CacheRuntime& cache, std::string_view key, Hash hash, TimeUs now,
                        SourceState source);
  policy::Freshness judge(const CacheRuntime& cache, const near::View& view, TimeUs now,
                          SourceState source) const;
  policy::Freshness judge_found(const CacheRuntime& cache, const engine::Found& found,
                                TimeUs now) const;
  void refresh_in_background(unsigned cache, std::string_view key, Hash hash);
  // A flight's way: engine, and if that has nothing to answer with, the source.
  Task<void> load(unsigned cache, std::vector<LoadFlight> flights);
  Task<void> look_again(unsigned cache, LoadFlight flight, engine::Found busy);
  Task<void> load_from_source(unsigned cache, std::vector<LoadFlight> flights);
  Task<void> give_up(unsigned cache, LoadFlight flight, Error error);
  Task<void> release(unsigned cache, LoadFlight flight, engine::Ticket ticket);
  bool answer_from_engine(unsigned cache, const LoadFlight& flight, engine::Found& found);
  void finish(const LoadFlight& flight, Result<std::shared_ptr<const Reading>> reading);
  // Joins or starts the flight of a read.
  LoadFlights::Joined join(const CacheRuntime& cache, std::string_view key, Hash hash);
  // In the node's group: whoever waits may leave, the load goes on.
  void start_load(unsigned cache, std::vector<LoadFlight> flights);
  // Loads what was written, and stores it; `ttl_us` is parallel to `keys`.
  Task<void> refill(unsigned cache, std::vector<std::string> keys,
                    std::vector<std::optional<DurationUs>> ttl_us);
  Task<void> settle(unsigned cache, LoadFlight flight, Result<source::Row> row,
                    const source::Loaded& loaded);
  // What a replica has said will not do: the source itself is asked.
  Task<void> ask_again(unsigned cache, LoadFlight flight, bool has_ticket);
  Task<void> drop(const CacheRuntime& cache, LoadFlight flight);
  Task<Result<Reading>> await_flight(unsigned cache, LoadFlight flight, TimeUs began);
  Result<Reading> after_failure(const CacheRuntime& cache, std::string_view key, Hash hash,
                                Error error);
  std::vector<std::string> tags_of(const CacheRuntime& cache,
                                   const std::vector<std::string_view>& params,
                                   const std::vector<std::optional<std::string>>& tag_values) const;
  source::Params params_of(const CacheRuntime& cache,
                           const std::vector<std::string_view>& params) const;
  void count(const CacheRuntime& cache, Op op, std::size_t tier, DurationUs took_us) const;

  // ---- write path (write_path.cc) ----
  // Checks all, and says what is to be run.
  Result<WritePlan> plan(const std::vector<WriteOp>& ops) const;
  Result<source::Statement> statement_of(const CacheRuntime& cache, const WriteOp& op,
                                         const std::vector<std::string_view>& params) const;
  Task<Result<std::vector<Written>>> write_through(const WritePlan& plan,
                                                   const std::vector<WriteOp>& ops);
  // Voids what the transaction has changed, and `keys`, and commits it. `told_later`: go on if the
  // engine does not answer. After an error the outcome may be unknown.
  Task<Result<void>> commit(unsigned source, source::Transaction& transaction,
                            std::vector<std::string> keys, bool told_later);
  void count_write(const WritePlan& plan, const std::vector<WriteOp>& ops, std::size_t tier,
                   TimeUs began) const;

  // ---- write-behind (write_behind.cc) ----
  // What readers of the key get while its write waits in the journal.
  std::optional<Reading> waiting_write(const CacheRuntime& cache, std::string_view key,
                                       Hash hash) const;
  Quick read_waiting(std::string_view key, Hash hash, TimeUs now,
                     void (*on_value)(void*, std::string_view), void* context) const;

  // ---- invalidation path (invalidation.cc) ----
  Task<Result<void>> invalidate(std::vector<engine::Change> changes, std::string_view feed);
  bool keeps_for_error(std::string_view key) const;
  struct Voided {
    std::span<const std::string> keys;
    std::span<const std::string> tags;
    policy::TxnId x = 0;
    std::uint64_t source_id = 0;  // 0: unknown
    TimeUs began = 0;
    bool confirmed = true;  // by the engine
  };
  void close_flights(const Voided& what, std::string_view feed);
  Task<Result<source::FeedOrder>> apply(unsigned source, source::ChangeBatch batch);
  Task<Result<source::FeedOrder>> apply_here(unsigned source, source::ChangeBatch batch);
  // One for each transaction, in order.
  std::vector<engine::Change> changes_of(unsigned source,
                                         std::span<const source::RowChange> changes) const;
  engine::Hooks hooks();
  // The source has answered as incarnation `source_id` what it was asked at `asked`. Returns when
  // the present incarnation has begun: this one, unless it is late (see policy::Succession).
  Task<void> begin_incarnation(unsigned source, std::uint64_t source_id, TimeUs asked);
  Task<Result<void>> void_source(unsigned source, std::string_view feed, policy::TxnId floor = 0);
  obs::Counter& invalidations(std::string_view feed);

  TimeUs now() const { return Loop::current()->now_us(); }
  double dice() const;
  const CacheRuntime* by_name(std::string_view name) const;
  // By the key's prefix; -1: none.
  int cache_of(std::string_view key) const;
  void tell(std::span<const std::string> keys, bool everything) const {
    if (on_invalidated) on_invalidated(keys, everything);
  }

  std::vector<std::unique_ptr<CacheRuntime>> caches;
  std::vector<CacheSpec> specs;
  std::vector<std::unique_ptr<SourceRuntime>> sources;
  std::vector<std::vector<DependencyTarget>> targets;  // by watched id
  std::vector<std::pair<std::string, int>> prefixes;   // sorted
  near::Store& near;
  engine::Engine& engine;
  obs::Registry& metrics;
  LoadFlights flights;
  std::atomic<std::size_t> waiting{0};
  const std::size_t max_waiters;
  const std::function<void(std::span<const std::string>, bool)> on_invalidated;
  const std::function<void(std::string)> log;
  RecentEvents events;
  mutable std::atomic<std::uint64_t> dice_count;
  std::atomic<bool> draining{false};
  TaskGroup group;
  std::unique_ptr<Auditor> auditor;
  std::unique_ptr<WriteBehind> behind;  // null: no cache has write = "behind"
};

// Watched tables and which dependencies each of them serves; ids are dense over all caches.
struct Watching {
  source::WatchedTable table;
  std::string source;
  std::vector<std::pair<unsigned, unsigned>> served;  // cache, index of dependency
};
std::vector<Watching> watch_list(const std::vector<CacheSpec>& caches);

Error bad_key_of(const CacheSpec& cache, std::string_view key);

// As people read it: an age needs no microseconds behind its seconds.
std::string duration(DurationUs us);

inline constexpr char kFieldSeparator = '\x1f';
std::string partial_tag(std::uint32_t watched_id, const CacheSpec& cache,
                        const std::vector<std::string_view>& values);

}  // namespace larder::cache
