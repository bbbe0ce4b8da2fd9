// A whole node under seeded chaos: real read, write and invalidation paths, near store and embedded
// engine; virtual time; a source that fails. Every answer is checked against what really happened.
//
// LARDER_SIM_SEED=n runs one seed, LARDER_SIM_RUNS=n so many (default 60; 8 under a sanitizer). A
// failure prints its seed.
#include "cache/node.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "engine/embedded/embedded.h"
#include "sim.h"

namespace larder::sim {
namespace {

using cache::Node;

struct Scenario {
  cache::Consistency consistency = cache::Consistency::eventual;
  Faults faults;
  policy::Rules rules;  // negative controls
  bool feed = true;
  bool snapshots = true;
  bool tagged = false;
  bool keeps_stale = false;
  bool refresh_ahead = false;
  bool audits = false;
};

struct Report {
  std::string violation;  // the first
  std::size_t reads = 0, hits = 0, stale = 0, errors = 0, writes = 0, loads = 0;
  cache::AuditReport audit;
};

// As at work, but for the times.
cache::AuditSpec audit_of(const Scenario& scenario) {
  return {.enabled = scenario.audits,
          .rate = 500,
          .delay_us = 100 * kMillisecond,
          .recheck_us = {150 * kMillisecond, 400 * kMillisecond, 900 * kMillisecond}};
}

cache::CacheSpec spec_of(const Scenario& scenario) {
  cache::CacheSpec spec{.name = "row",
                        .key = *policy::KeyPattern::parse("row:{id:int}"),
                        .source = "fake",
                        .load = "SELECT v FROM row WHERE id = :id",
                        .store = "UPDATE row SET v = :value WHERE id = :id",
                        .remove = {},
                        .increment = {},
                        .warm = {}};
  spec.result = source::ResultShape::value;
  spec.write = cache::WriteMode::through;
  spec.ttl_us = 2 * kSecond;
  spec.jitter = 0.2;
  spec.negative_ttl_us = 200 * kMillisecond;
  spec.load_timeout_us = 500 * kMillisecond;
  spec.consistency = scenario.consistency;
  spec.bound_us = kSecond;
  spec.refresh_ahead = scenario.refresh_ahead;
  if (scenario.keeps_stale) {
    spec.stale_if_error_us = 60 * kSecond;
    spec.stale_while_revalidate_us = kSecond;
    spec.soft_timeout_us = 5 * kMillisecond;
  }
  spec.depends_on = {{"row", {{"id", "id"}}}};
  if (scenario.tagged) spec.tags = {{"group:{g}", {"group:", ""}, {"g"}}};
  return spec;
}

// One run: clients read and write, others write behind Larder's back, for some seconds of its time.
class Run {
 public:
  Run(std::uint64_t seed, const Scenario& scenario)
      : scenario_(scenario),
        random_(seed),
        source_(loop_, random_, scenario.faults, scenario.feed, scenario.snapshots),
        store_({.capacity_bytes = 256 << 10,
                .shards = 2,
                .partitions = 4,
                .tag_slots = 64,
                .rules = scenario.rules}),
        engine_(store_, {.sources = 1, .tombstone_slots = 64, .rules = scenario.rules}),
        node_({.caches = {spec_of(scenario)},
               .source_names = {"fake"},
               .sources = {&source_},
               .near = &store_,
               .engine = &engine_,
               .metrics = &metrics_,
               .seed = seed,
               .audit = audit_of(scenario)}) {
    for (std::int64_t id = 0; id < kRows; ++id) source_.insert(id);
  }

  Report go() {
    node_.start();
    for (int i = 0; i < 12; ++i) clients_.spawn(reader());
    for (int i = 0; i < 3; ++i) clients_.spawn(writer());
    for (int i = 0; i < 2; ++i) clients_.spawn(foreign());
    clients_.spawn(saboteur());
    clients_.spawn(conductor());
    if (!loop_.run()) note("the loop never came to rest");
    if (!ended_) note("clients hang");
    report_.loads = source_.loads;
    report_.audit = node_.audited(loop_.now_us());
    return report_;
  }

 private:
  static constexpr std::int64_t kRows = 6;
  static constexpr DurationUs kLength = 4 * kSecond;

  static std::string key_of(std::int64_t id) { return "row:" + std::to_string(id); }
  std::int64_t any_row() {
    return static_cast<std::int64_t>(random_.chance(0.5) ? 0 : random_.below(kRows));
  }
  bool over() const { return loop_.now_us() >= end_; }
  void note(std::string what) {
    if (report_.violation.empty()) report_.violation = std::move(what);
  }

  Task<void> reader() {
    while (!over()) {
      co_await delay(static_cast<DurationUs>(random_.below(2'000)));
      const std::int64_t id = any_row();
      const TimeUs began = loop_.now_us();
      const policy::TxnId least = source_.processed_version(id);
      const policy::TxnId in_bound = source_.committed_before(id, began - kSecond);
      std::string key = key_of(id);
      // Most clients come by the short way first, as the server does.
      std::optional<std::string> quick;
      const Node::Quick found = node_.read_now(key, hash_bytes(key), began,
                                               [&](std::string_view value) { quick = value; });
      cache::Reading reading;
      ++report_.reads;
      if (found == Node::Quick::hit) {
        reading = {.found = true, .value = *quick, .tier = cache::Tier::near};
      } else {
        Result<cache::Reading> answer = co_await node_.get(std::move(key));
        if (!answer) {
          ++report_.errors;
          continue;
        }
        reading = *answer;
      }
      if (!reading.found) {
        note("a row vanished");
        continue;
      }
      const policy::TxnId shown = std::stoull(reading.value);
      report_.hits += reading.tier == cache::Tier::near;
      report_.stale += reading.tier == cache::Tier::stale;
      if (shown > source_.version(id)) note("a value from the future");
      const bool strong = scenario_.consistency == cache::Consistency::strong;
      if (reading.tier == cache::Tier::stale) {
        if (strong) note("a strong cache served a late value");
        // Invalidated values serve only when the source fails.
        if (shown < least && !scenario_.faults.fails_loads())
          note("an invalidated value was served although no load failed");
        continue;
      }
      if (shown < least)
        note("row " + std::to_string(id) + " shows " + std::to_string(shown) + " although " +
             std::to_string(least) + " was processed before the read began, tier " +
             std::string(to_string(reading.tier)));
      if (scenario_.consistency == cache::Consistency::bounded && shown < in_bound)
        note("row " + std::to_string(id) + " is staler than its bound");
    }
  }

  Task<void> writer() {
    while (!over()) {
      co_await delay(static_cast<DurationUs>(random_.below(60'000)));
      const std::int64_t id = any_row();
      std::string token = "w" + std::to_string(++tokens_);
      std::vector<cache::WriteOp> ops{{.key = key_of(id), .value = token}};
      Result<std::vector<cache::Written>> done = co_await node_.write(std::move(ops));
      if (!done) continue;  // not acknowledged: nothing is promised
      ++report_.writes;
      const policy::TxnId x = source_.written_by(token);
      if (x == 0) note("acknowledged, but never committed");
      source_.processed(id, x);
    }
  }

  Task<void> foreign() {
    while (!over()) {
      co_await delay(static_cast<DurationUs>(random_.below(120'000)));
      const std::int64_t id = any_row();
      co_await source_.foreign_write(id);
    }
  }

  // Evicts, invalidates, refreshes: none of it may ever harm.
  Task<void> saboteur() {
    while (!over()) {
      co_await delay(static_cast<DurationUs>(random_.below(100'000)));
      std::string key = key_of(any_row());
      switch (random_.below(5)) {
        case 0: store_.erase(key, hash_bytes(key)); break;
        case 1: {
          std::vector<std::string> keys{std::move(key)};
          Result<std::int64_t> done = co_await node_.invalidate_keys(std::move(keys), "call");
          if (!done) note("an invalidation failed");
          break;
        }
        case 2: {
          std::vector<std::string> tags{"group:1"};
          Result<std::int64_t> done = co_await node_.invalidate_tags(std::move(tags), "call");
          if (!done) note("an invalidation failed");
          break;
        }
        case 3: {
          Result<cache::Reading> done = co_await node_.refresh(std::move(key));
          report_.errors += !done;
          break;
        }
        default: store_.reset_all();
      }
    }
  }

  Task<void> conductor() {
    co_await delay(kLength + 3 * kSecond);
    co_await node_.stop();
    ended_ = clients_.running() == 1;
  }

  Scenario scenario_;
  SimLoop loop_;
  Random random_;
  FakeSource source_;
  obs::Registry metrics_;
  near::Store store_;
  engine::Embedded engine_;
  Node node_;
  TaskGroup clients_;
  TimeUs end_ = loop_.now_us() + kLength;
  bool ended_ = false;
  std::uint64_t tokens_ = 0;
  Report report_;
};

#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr std::uint64_t kDefaultRuns = 8;
#else
constexpr std::uint64_t kDefaultRuns = 60;
#endif

std::vector<std::uint64_t> seeds() {
  if (const char* one = std::getenv("LARDER_SIM_SEED")) return {std::strtoull(one, nullptr, 10)};
  const char* runs = std::getenv("LARDER_SIM_RUNS");
  const std::uint64_t count = runs ? std::strtoull(runs, nullptr, 10) : kDefaultRuns;
  std::vector<std::uint64_t> list;
  for (std::uint64_t i = 1; i <= count; ++i) list.push_back(i);
  return list;
}

const Faults kAllFaults{.load_fails = 0.05,
                        .load_hangs = 0.01,
                        .commit_fails = 0.1,
                        .feed_stalls = 0.01,
                        .feed_forgets = 0.05,
                        .replaced = 0.02};

void expect_clean(const Scenario& scenario, const char* name) {
  Report total;
  for (const std::uint64_t seed : seeds()) {
    const Report report = Run(seed, scenario).go();
    ASSERT_EQ(report.violation, "") << name << ", LARDER_SIM_SEED=" << seed;
    total.reads += report.reads;
    total.hits += report.hits;
    total.stale += report.stale;
    total.errors += report.errors;
    total.writes += report.writes;
    total.loads += report.loads;
  }
  std::printf(
      "%-28s seeds %zu: %zu reads, %zu near hits, %zu loads, %zu writes, %zu stale, %zu errors\n",
      name, seeds().size(), total.reads, total.hits, total.loads, total.writes, total.stale,
      total.errors);
  EXPECT_GT(total.hits, total.reads / 4) << "the cache did not cache";
  EXPECT_GT(total.writes, 0u);
}

TEST(NodeSimulation, EventualWithFeed) { expect_clean({}, "eventual, feed"); }
TEST(NodeSimulation, EventualUnderFaults) {
  expect_clean({.faults = kAllFaults, .tagged = true, .keeps_stale = true, .refresh_ahead = true},
               "eventual, all faults");
}
TEST(NodeSimulation, SlowButNotFailing) {
  expect_clean({.faults = {.commit_fails = 0.1, .feed_stalls = 0.01}, .keeps_stale = true},
               "eventual, slow source");
}
TEST(NodeSimulation, BoundedUnderFaults) {
  expect_clean({.consistency = cache::Consistency::bounded, .faults = kAllFaults, .tagged = true},
               "bounded, all faults");
}
TEST(NodeSimulation, BoundedWithoutFeed) {
  expect_clean(
      {.consistency = cache::Consistency::bounded, .faults = {.load_fails = 0.05}, .feed = false},
      "bounded, no feed");
}
TEST(NodeSimulation, StrongUnderFaults) {
  expect_clean(
      {.consistency = cache::Consistency::strong, .faults = kAllFaults, .keeps_stale = true},
      "strong, all faults");
}

TEST(NodeSimulation, SourceWithoutSnapshots) {
  expect_clean({.faults = {.load_fails = 0.05, .feed_stalls = 0.01}, .snapshots = false},
               "no snapshots");
}

// With a safety step switched off the same checker must object, in some seed of many.
void expect_caught(Scenario scenario, const char* name) {
  for (std::uint64_t seed = 1; seed <= 500; ++seed) {
    const Report report = Run(seed, scenario).go();
    if (report.violation.empty()) continue;
    std::printf("%-28s caught with seed %llu: %s\n", name, static_cast<unsigned long long>(seed),
                report.violation.c_str());
    return;
  }
  ADD_FAILURE() << name << " went unnoticed";
}

TEST(NodeSimulation, CatchesMissingTombstones) {
  expect_caught({.rules = {.tombstone = false}}, "no tombstones");
}
TEST(NodeSimulation, CatchesMissingTickets) {
  expect_caught({.rules = {.ticket = false}, .snapshots = false}, "no tickets");
}
TEST(NodeSimulation, CatchesMissingStamps) {
  expect_caught({.faults = {.feed_forgets = 0.3}, .rules = {.tag_stamp = false}}, "no tag stamps");
}

// ---- the auditor, on the same worlds ----

// With all rules on, whatever fails and whoever writes: nothing is against the guarantee.
void expect_audits_clean(const Scenario& scenario, const char* name) {
  std::uint64_t checked = 0;
  std::uint64_t on_the_way = 0;
  std::vector<std::uint64_t> all = seeds();
  if (all.size() > 1) all.resize((all.size() + 2) / 3);
  for (const std::uint64_t seed : all) {
    const Report report = Run(seed, scenario).go();
    ASSERT_EQ(report.violation, "") << name << ", LARDER_SIM_SEED=" << seed;
    const cache::AuditCounts& counts = report.audit.caches[0];
    ASSERT_EQ(counts.violations, 0u)
        << name << ", LARDER_SIM_SEED=" << seed << ": " << cache::to_json(report.audit);
    checked += counts.checked;
    on_the_way += counts.stale[0];
    if (!scenario.feed || scenario.faults.feed_stalls > 0) continue;
    ASSERT_EQ(counts.stale[1], 0u) << name << ", LARDER_SIM_SEED=" << seed;
    ASSERT_EQ(counts.repaired, 0u) << name << ", LARDER_SIM_SEED=" << seed;
  }
  std::printf("%-28s %llu checked, %llu differed and may\n", name,
              static_cast<unsigned long long>(checked),
              static_cast<unsigned long long>(on_the_way));
  EXPECT_GT(checked, 10 * all.size());
}

TEST(NodeAudit, FindsNothingWithAFeed) { expect_audits_clean({.audits = true}, "audit: feed"); }
TEST(NodeAudit, FindsNothingUnderFaults) {
  expect_audits_clean({.faults = kAllFaults,
                       .tagged = true,
                       .keeps_stale = true,
                       .refresh_ahead = true,
                       .audits = true},
                      "audit: all faults");
}
TEST(NodeAudit, FindsNothingAgainstABound) {
  expect_audits_clean({.consistency = cache::Consistency::bounded,
                       .faults = kAllFaults,
                       .tagged = true,
                       .audits = true},
                      "audit: bounded, all faults");
}
TEST(NodeAudit, FindsNothingAgainstATtl) {
  expect_audits_clean({.faults = {.load_fails = 0.05}, .feed = false, .audits = true},
                      "audit: no feed");
}
TEST(NodeAudit, FindsNothingWithoutSnapshots) {
  expect_audits_clean({.faults = {.load_fails = 0.05}, .snapshots = false, .audits = true},
                      "audit: no snapshots");
}

// With a rule left out it finds what is stale, says why, and repairs it.
void expect_audit_catches(const Scenario& scenario, std::string_view cause, const char* name) {
  for (std::uint64_t seed = 1; seed <= 500; ++seed) {
    const Report report = Run(seed, scenario).go();
    for (const cache::AuditFinding& found : report.audit.findings) {
      if (!found.violation || found.cause.find(cause) == std::string::npos) continue;
      EXPECT_EQ(found.repair, "done");
      EXPECT_GT(report.audit.caches[0].repaired, 0u);
      EXPECT_FALSE(found.steps.empty());
      std::printf("%-28s caught with seed %llu: %s, %s\n", name,
                  static_cast<unsigned long long>(seed), found.key.c_str(), found.cause.c_str());
      return;
    }
  }
  ADD_FAILURE() << name << ": the auditor did not notice";
}

TEST(NodeAudit, CatchesMissingTombstones) {
  expect_audit_catches({.rules = {.tombstone = false}, .audits = true}, "did not see a change",
                       "audit: no tombstones");
}
TEST(NodeAudit, CatchesMissingTickets) {
  expect_audit_catches({.rules = {.ticket = false}, .snapshots = false, .audits = true},
                       "loaded before an invalidation", "audit: no tickets");
}
TEST(NodeAudit, CatchesMissingStamps) {
  expect_audit_catches(
      {.faults = {.feed_forgets = 0.3}, .rules = {.tag_stamp = false}, .audits = true},
      "loaded before an invalidation", "audit: no tag stamps");
}

}  // namespace
}  // namespace larder::sim
