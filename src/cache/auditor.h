// Compares what the tiers would answer with what the source says: by itself at a low rate, and when
// it is asked. policy/audit.h decides what that means; ADR 11 says why it is so. Private to cache/.
//
// Thread-safe. The background and one caller at most look at the same time; each look loads up to
// kBatch rows by one query of a source, under the cache's load_timeout. Nothing of it runs outside
// of the node's task group and its callers. Memory: bounded by kMostChanges, kMostSuspects and
// kMostFindings.
#pragma once

#include <array>
#include <atomic>
#include <boost/json/fwd.hpp>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "base/random.h"
#include "base/sync.h"
#include "cache/audit.h"
#include "cache/impl.h"
#include "policy/audit.h"
#include "resilience/backoff.h"

namespace larder::cache {

boost::json::object json_of(const AuditReport& report);

class Auditor {
 public:
  // The node outlives it.
  Auditor(Node::Impl& node, AuditSpec spec, std::uint64_t seed);
  ~Auditor();
  Auditor(const Auditor&) = delete;
  Auditor& operator=(const Auditor&) = delete;

  // A change made the key void: it is looked at `delay` later, if there is room. Cost: a lock.
  void changed(std::string_view key, Hash hash, TimeUs at, std::string_view feed);

  // The background; ends when the node's group stops.
  Task<void> run();

  // As Node::audit.
  Task<Result<AuditReport>> audit(std::uint64_t most);
  AuditReport report(TimeUs now) const;

  static constexpr std::string_view kFeed = "audit";  // what its repairs are called

 private:
  static constexpr std::size_t kBatch = 64;
  static constexpr std::size_t kMostChanges = 8192;
  static constexpr std::size_t kMostSuspects = 256;
  static constexpr std::size_t kMostFindings = 32;

  enum Where : std::uint8_t { kNear, kEngine };
  using Held = std::array<std::optional<policy::AuditEntry>, 2>;  // by Where

  struct Target {
    unsigned cache = 0;
    std::string key;
    Hash hash = 0;
  };
  // A key whose entry differed, in the tiers that are set.
  struct Suspect {
    Target target;
    Held held;
    TimeUs first_seen = 0;
    // As they were known before the entry was seen for the last time.
    std::vector<policy::ProtocolEvent> steps;
    TimeUs heartbeat = 0;
    unsigned looks = 1;
    unsigned counted = 0;  // of the ages
    bool violated = false;
    std::uint64_t finding = 0;  // its number; 0: none yet
    TimeUs due = kNever;
  };
  // A key of which some tier does not say what the source says.
  struct Doubt {
    Target target;
    Held before;
    policy::AuditRow row;
  };
  struct Looked {
    std::vector<Suspect> differ;
    std::optional<Error> failed;  // the source did not answer
  };
  struct Metrics {
    obs::Counter* checked = nullptr;
    std::vector<obs::Counter*> stale;  // by age
    obs::Counter* violations = nullptr;
    obs::Counter* repaired = nullptr;
    obs::Counter* skipped = nullptr;
    std::unique_ptr<obs::Counter> moved;  // no series: nothing to be alarmed about
  };
  struct SourcePause {
    resilience::Backoff backoff;
    TimeUs until = 0;
  };
  struct Finding {
    std::uint64_t number = 0;
    AuditFinding what;
  };
  // What one run counts, beside the metrics.
  using Tally = std::vector<AuditCounts>;

  bool audits(unsigned cache) const { return !metrics_[cache].stale.empty(); }
  DurationUs tolerance(Where where) const;
  // ---- one look ----
  void peek_near(const CacheRuntime& cache, const std::vector<Target>& targets,
                 std::vector<Held>& held) const;
  Task<void> peek_engine(const CacheRuntime& cache, const std::vector<Target>& targets,
                         std::vector<Held>& held) const;
  Task<std::vector<Held>> peek(const CacheRuntime& cache, const std::vector<Target>& targets) const;
  Task<Result<std::vector<std::optional<policy::AuditRow>>>> rows_of(
      unsigned cache, const std::vector<Target>& targets);
  Task<std::vector<Suspect>> see_again(unsigned cache, std::vector<Doubt> doubts, bool first,
                                       Tally* tally);
  // `first`: it counts as a check. All targets are of that cache; at most kBatch.
  Task<Looked> look(unsigned cache, std::vector<Target> targets, bool first, Tally* tally);
  // What a look that saw it differ means: counts, repairs, tells. The suspect, if it is to be
  // looked at again when it is due.
  Task<std::optional<Suspect>> conclude(Suspect suspect, Tally* tally);
  Task<std::string> repair(const Suspect& suspect);
  void tell(Suspect& suspect, AuditFinding found);
  AuditFinding finding_of(const Suspect& suspect, const policy::AuditDecision& decision) const;
  std::vector<policy::ProtocolEvent> steps_of(const Target& target) const;
  void keep(Suspect suspect);

  // ---- many ----
  Task<std::vector<Suspect>> look_at(std::vector<Target> targets, Tally* tally);
  // Those of them that differ still.
  Task<std::vector<Suspect>> look_again(std::vector<Suspect> suspects, Tally* tally);
  Task<void> work(TimeUs now, std::size_t most);

  // ---- which keys ----
  // Declared entries of a few buckets. True: the cursor has come to the end of the store.
  bool scan(std::deque<Target>& into);
  Task<std::vector<Target>> gather(std::size_t most);
  std::vector<Target> sample(std::size_t most, TimeUs now);
  std::vector<Target> changes_due(TimeUs now, std::size_t most);
  std::vector<Suspect> suspects_due(TimeUs now);
  TimeUs next_suspect() const;
  // Is the key followed already, or its source left alone for now?
  bool skips(const Target& target, TimeUs now) const;
  void source_answered(unsigned cache, const std::optional<Error>& failed);
  void add(unsigned cache, obs::Counter& counter, std::uint64_t AuditCounts::* field,
           Tally* tally) const;
  Tally no_counts() const;
  std::vector<std::string> age_names() const;

  Node::Impl& node_;
  const AuditSpec spec_;
  const bool engine_holds_;  // entries beside those of the near tier
  std::vector<DurationUs> ages_;
  std::vector<Metrics> metrics_;  // by cache; none of a cache that is not audited
  std::atomic<std::uint64_t> cursor_{0};
  std::atomic<bool> asked_{false};  // an audit on demand is under way
  std::atomic<std::uint64_t> dropped_{0};

  struct Change {
    std::string key;
    Hash hash = 0;
    TimeUs due = 0;
  };
  std::size_t most_changes_ = 0;
  mutable Mutex mutex_;
  std::deque<Change> changes_ LARDER_GUARDED_BY(mutex_);        // in order of due
  std::unordered_set<Hash> waiting_ LARDER_GUARDED_BY(mutex_);  // their keys
  std::deque<Target> sampled_ LARDER_GUARDED_BY(mutex_);        // the rest of a bucket
  TimeUs turn_began_ LARDER_GUARDED_BY(mutex_) = 0;             // of the cursor through the store
  std::vector<Suspect> suspects_ LARDER_GUARDED_BY(mutex_);
  std::deque<Finding> findings_ LARDER_GUARDED_BY(mutex_);
  std::uint64_t numbers_ LARDER_GUARDED_BY(mutex_) = 0;        // of findings
  std::vector<SourcePause> pauses_ LARDER_GUARDED_BY(mutex_);  // by source
  Random random_ LARDER_GUARDED_BY(mutex_);
  std::string problem_ LARDER_GUARDED_BY(mutex_);
  TimeUs logged_at_ LARDER_GUARDED_BY(mutex_) = 0;
  std::uint64_t unlogged_ LARDER_GUARDED_BY(mutex_) = 0;
};

}  // namespace larder::cache
