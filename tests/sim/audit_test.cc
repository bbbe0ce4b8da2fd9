// The auditor in virtual time: what it finds and repairs, what it must not take for stale, when it
// looks again, and how little it asks of a source that fails. Seeded chaos with the auditor running
// is in node_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cache/node.h"
#include "cache/recent_events.h"
#include "engine/embedded/embedded.h"
#include "scripted.h"

namespace larder::sim {
namespace {

using cache::AuditReport;
using cache::Node;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr DurationUs kMinute = 60 * kSecond;

// An engine that may lose what it is told: silently, or with an error.
class LosingEngine final : public engine::Engine {
 public:
  explicit LosingEngine(near::Store& store)
      : inner_(store, {.sources = 1, .tombstone_slots = 64}) {}
  const engine::Capabilities& capabilities() const override { return inner_.capabilities(); }
  Task<std::vector<engine::Found>> lookup(engine::Lookup lookup) override {
    return inner_.lookup(std::move(lookup));
  }
  Task<policy::Refusal> fill(engine::Fill fill) override { return inner_.fill(std::move(fill)); }
  Task<void> release(engine::Cache cache, engine::Key key, engine::Ticket ticket) override {
    return inner_.release(cache, key, std::move(ticket));
  }
  Task<Result<void>> invalidate(std::vector<engine::Change> changes) override {
    if (refuses) co_return fail(ErrorCode::engine_down, "away", "engine");
    if (loses) co_return Result<void>{};
    Result<void> done = co_await inner_.invalidate(std::move(changes));
    co_return done;
  }
  Task<Result<void>> new_epoch(unsigned source, std::uint64_t source_id) override {
    return inner_.new_epoch(source, source_id);
  }
  Task<Result<engine::FeedOrder>> feed(unsigned source, engine::FeedBatch batch) override {
    return inner_.feed(source, std::move(batch));
  }
  void start(TaskGroup& group, engine::Hooks hooks) override {
    inner_.start(group, std::move(hooks));
  }
  bool loses = false;
  bool refuses = false;

 private:
  engine::Embedded inner_;
};

struct Audits : testing::Test {
  static cache::CacheSpec basic() {
    cache::CacheSpec spec{.name = "p",
                          .key = *policy::KeyPattern::parse("p:{id:int}"),
                          .source = "s",
                          .load = "SELECT v FROM p WHERE id = :id",
                          .store = "UPDATE p SET v = :value WHERE id = :id",
                          .remove = {},
                          .increment = {},
                          .warm = {}};
    spec.result = source::ResultShape::value;
    spec.write = cache::WriteMode::around;
    spec.ttl_us = 24 * 3600 * kSecond;
    spec.negative_ttl_us = 3600 * kSecond;
    spec.load_timeout_us = 500 * kMillisecond;
    spec.depends_on = {{"p", {{"id", "id"}}}};
    return spec;
  }
  static cache::AuditSpec only_when_asked() { return {.enabled = false}; }

  // Scenes do not capture: they are coroutines.
  void play(cache::AuditSpec audit, Task<void> (*scene)(Audits&),
            std::vector<cache::CacheSpec> caches = {basic()}) {
    engine.emplace(store);
    node.emplace(cache::Parts{.caches = std::move(caches),
                              .source_names = {"s"},
                              .sources = {&source},
                              .near = &store,
                              .engine = &*engine,
                              .metrics = &metrics,
                              .seed = 1,
                              .audit = std::move(audit),
                              .log = [this](std::string line) { log += line + '\n'; }});
    node->start();
    bool ended = false;
    TaskGroup group;
    group.spawn(whole(scene, ended));
    ASSERT_TRUE(loop.run());
    ASSERT_TRUE(ended) << "the scene hangs";
    node.reset();
    engine.reset();
  }
  Task<void> whole(Task<void> (*scene)(Audits&), bool& ended) {
    co_await scene(*this);
    co_await node->stop();
    ended = true;
  }

  Task<std::string> get(std::string key) {
    const Result<cache::Reading> reading = co_await node->get(std::move(key));
    if (!reading) co_return std::string(error_prefix(reading.error().code));
    co_return reading->found ? reading->value : "none";
  }
  Task<AuditReport> audit(std::uint64_t most = 100) {
    Result<AuditReport> report = co_await node->audit(most);
    EXPECT_TRUE(report.has_value()) << (report ? "" : to_string(report.error()));
    co_return report ? std::move(*report) : AuditReport{};
  }
  AuditReport total() { return node->audited(loop.now_us()); }
  // A row changes; whether anybody is told is another matter.
  void change(const std::string& id, const std::string& value) {
    source.rows[id] = value;
    ++source.seq;
  }
  Task<void> told(std::string id) {
    source::ChangeBatch batch;
    batch.source_id = source.source_id;
    batch.changes.push_back({0, {std::move(id)}, source.seq});
    batch.heartbeat = loop.now_us();
    const Result<source::FeedOrder> applied = co_await source.sink(std::move(batch));
    EXPECT_TRUE(applied.has_value());
  }

  SimLoop loop;
  ScriptedSource source;
  obs::Registry metrics;
  near::Store store{{.capacity_bytes = 1 << 20, .shards = 2, .tag_slots = 1024}};
  std::optional<LosingEngine> engine;
  std::optional<Node> node;
  std::string log;
  int kind = 0;  // of what happens, in BenignRaces
  std::string row;
};

// ---- no false alarms ----

enum Happens {
  kToldAtOnce,
  kToldLater,
  kDeleted,
  kThereAndBack,
  kWritten,
  kInvalidated,
  kRefreshed,
  kEvicted,
  kReset,
  kKinds
};

Task<void> happen(Audits& t, int kind, std::string id, DurationUs after) {
  co_await delay(after);
  std::vector<std::string> keys{"p:" + id};
  switch (kind) {
    case kToldAtOnce:
      t.change(id, "v2");
      co_await t.told(std::move(id));
      break;
    case kToldLater:
      t.change(id, "v2");
      co_await delay(30 * kMillisecond);
      co_await t.told(std::move(id));
      break;
    case kDeleted:
      t.source.rows.erase(id);
      ++t.source.seq;
      co_await delay(kMillisecond);
      co_await t.told(std::move(id));
      break;
    case kThereAndBack:
      t.change(id, "v2");
      co_await delay(300);
      t.change(id, "v1");
      co_await delay(kMillisecond);
      co_await t.told(std::move(id));
      break;
    case kWritten: {
      t.row = id;
      t.source.at_commit = [&t] { t.source.rows[t.row] = "v3"; };
      std::vector<cache::WriteOp> ops{{.key = std::move(keys[0]), .value = "v3"}};
      const auto done = co_await t.node->write(std::move(ops));
      EXPECT_TRUE(done.has_value());
      break;
    }
    case kInvalidated: {
      const auto done = co_await t.node->invalidate_keys(std::move(keys), "call");
      EXPECT_TRUE(done.has_value());
      break;
    }
    case kRefreshed: {
      const auto done = co_await t.node->refresh(std::move(keys[0]));
      EXPECT_TRUE(done.has_value());
      break;
    }
    case kEvicted: t.store.erase(keys[0], hash_bytes(keys[0])); break;
    default: t.store.reset_all();
  }
}

// Everything that may happen to a key, at every moment of a look: before, between and after what
// the look reads. The entry is read again meanwhile by somebody else, too.
Task<void> every_race(Audits& t) {
  int id = 0;
  for (int kind = 0; kind < kKinds; ++kind)
    for (DurationUs at = 0; at <= 3'000; at += 100)
      for (const bool read_again : {false, true}) {
        const std::string text = std::to_string(++id);
        t.source.rows[text] = "v1";
        const std::string first = co_await t.get("p:" + text);
        EXPECT_EQ(first, "v1");
        TaskGroup others;
        others.spawn(happen(t, kind, text, at));
        co_await delay(kMillisecond);  // so that it may also happen before
        if (read_again) {
          const std::string now = co_await t.get("p:" + text);
          EXPECT_NE(now, "");
        }
        const AuditReport report = co_await t.audit();
        EXPECT_EQ(report.caches[0].violations, 0u) << "kind " << kind << " at " << at;
        EXPECT_EQ(report.caches[0].repaired, 0u) << "kind " << kind << " at " << at;
        others.stop();
        co_await others.join();
        const std::string last = co_await t.get("p:" + text);
        const auto row = t.source.rows.find(text);
        EXPECT_EQ(last, row == t.source.rows.end() ? "none" : row->second);
        t.store.erase("p:" + text, hash_bytes("p:" + text));
      }
  // Some were seen while they were on their way: that is age 0, and no violation.
  EXPECT_GT(t.total().caches[0].stale[0], 0u);
  EXPECT_EQ(t.total().caches[0].stale[1], 0u);
  EXPECT_GT(t.total().caches[0].moved, 0u);
  EXPECT_EQ(t.total().caches[0].violations, 0u);
  EXPECT_EQ(t.total().caches[0].repaired, 0u);
}

TEST_F(Audits, BenignRaces) { play(only_when_asked(), every_race); }

TEST_F(Audits, BenignRacesOfASourceThatAnswersLate) {
  source.answers_late = true;
  play(only_when_asked(), every_race);
}

TEST_F(Audits, BenignRacesWithTheBackgroundAtWork) {
  play({.rate = 1000, .delay_us = 10 * kMillisecond, .recheck_us = {100 * kMillisecond}},
       every_race);
}

// ---- what it finds ----

TEST_F(Audits, WithoutAFeedAnOldEntryIsAllowedAndRepaired) {
  source.capabilities_.feed = false;
  play(only_when_asked(), [](Audits& t) -> Task<void> {
    for (const char* id : {"1", "2", "3"}) {
      t.source.rows[id] = "old";
      co_await t.get(std::string("p:") + id);
    }
    t.change("2", "new");
    AuditReport report = co_await t.audit();
    EXPECT_EQ(report.caches[0].checked, 3u);
    EXPECT_EQ(report.caches[0].stale[0], 1u);
    EXPECT_EQ(report.caches[0].stale[1], 0u);
    EXPECT_EQ(report.caches[0].violations, 0u);
    EXPECT_EQ(report.caches[0].repaired, 1u);
    EXPECT_EQ(report.findings.size(), 1u);
    if (report.findings.size() == 1) {
      EXPECT_EQ(report.findings[0].key, "p:2");
      EXPECT_EQ(report.findings[0].tiers, "near");
      EXPECT_EQ(report.findings[0].repair, "done");
      EXPECT_THAT(report.findings[0].cause, HasSubstr("no feed"));
      EXPECT_THAT(report.findings[0].steps, Contains(HasSubstr("stored")));
    }
    EXPECT_THAT(t.log, HasSubstr("audit: p:2 (cache p, near) is not what its source says"));
    const std::string now = co_await t.get("p:2");
    EXPECT_EQ(now, "new");
    report = co_await t.audit();
    EXPECT_EQ(report.caches[0].checked, 3u);
    EXPECT_EQ(report.caches[0].stale[0], 0u);
    EXPECT_TRUE(report.findings.empty());
    EXPECT_EQ(t.total().findings.size(), 1u);
    EXPECT_EQ(t.total().caches[0].checked, 6u);
  });
}

TEST_F(Audits, AChangeThatTheFeedDoesNotTellIsAViolation) {
  play(only_when_asked(), [](Audits& t) -> Task<void> {
    t.source.rows["7"] = "old";
    co_await t.get("p:7");
    t.change("7", "new");
    const AuditReport report = co_await t.audit();
    EXPECT_EQ(report.caches[0].violations, 1u);
    EXPECT_EQ(report.caches[0].repaired, 1u);
    EXPECT_EQ(report.findings.size(), 1u);
    if (!report.findings.empty()) EXPECT_THAT(report.findings[0].cause, HasSubstr("depends_on"));
    const std::string now = co_await t.get("p:7");
    EXPECT_EQ(now, "new");
  });
}

TEST_F(Audits, AFeedThatIsSilentPromisesNothing) {
  play(only_when_asked(), [](Audits& t) -> Task<void> {
    t.source.rows["7"] = "old";
    co_await t.get("p:7");
    t.source.heartbeats = false;
    co_await delay(200 * kMillisecond);
    t.change("7", "new");
    const AuditReport report = co_await t.audit();
    EXPECT_EQ(report.caches[0].violations, 0u);
    EXPECT_EQ(report.caches[0].repaired, 1u);
    EXPECT_EQ(report.findings.size(), 1u);
    if (!report.findings.empty()) EXPECT_THAT(report.findings[0].cause, HasSubstr("silent"));
  });
}

TEST_F(Audits, AnInvalidationThatTheEngineLostIsAViolationWhateverTheFeed) {
  source.capabilities_.feed = false;
  play(only_when_asked(), [](Audits& t) -> Task<void> {
    t.source.rows["7"] = "old";
    co_await t.get("p:7");
    co_await delay(kSecond);
    t.source.at_commit = [&t] { t.source.rows["7"] = "new"; };
    t.engine->loses = true;
    std::vector<cache::WriteOp> ops{{.key = "p:7", .value = "new"}};
    const auto written = co_await t.node->write(std::move(ops));
    EXPECT_TRUE(written.has_value());
    t.engine->loses = false;
    const std::string stale = co_await t.get("p:7");
    EXPECT_EQ(stale, "old");
    co_await delay(2 * kMinute);
    const AuditReport report = co_await t.audit();
    EXPECT_EQ(report.caches[0].violations, 1u);
    // The steps tell its age at once.
    EXPECT_THAT(report.caches[0].stale, ElementsAre(1, 1, 0, 0));
    EXPECT_EQ(report.findings.size(), 1u);
    if (!report.findings.empty()) {
      EXPECT_THAT(report.findings[0].cause, HasSubstr("lost the invalidation"));
      EXPECT_THAT(report.findings[0].steps, Contains(HasSubstr("invalidated by write, change 1")));
    }
    const std::string now = co_await t.get("p:7");
    EXPECT_EQ(now, "new");
  });
}

// A standby that has not replayed what the entry shows.
TEST_F(Audits, ARowOlderThanTheEntryIsNoComplaint) {
  play(only_when_asked(), [](Audits& t) -> Task<void> {
    t.change("7", "v2");
    const std::string got = co_await t.get("p:7");
    EXPECT_EQ(got, "v2");
    t.source.behind_us = kSecond;
    t.source.rows["7"] = "v1";
    const AuditReport report = co_await t.audit();
    EXPECT_EQ(report.caches[0].moved, 1u);
    EXPECT_EQ(t.total().findings.size(), 0u);
    t.source.behind_us = 0;
    const AuditReport again = co_await t.audit();
    EXPECT_EQ(again.findings.size(), 1u);
  });
}

TEST_F(Audits, NegativeEntriesAreComparedToo) {
  source.capabilities_.feed = false;
  play(only_when_asked(), [](Audits& t) -> Task<void> {
    const std::string none = co_await t.get("p:7");
    EXPECT_EQ(none, "none");
    AuditReport report = co_await t.audit();
    EXPECT_EQ(report.caches[0].checked, 1u);
    EXPECT_EQ(report.caches[0].stale[0], 0u);
    t.change("7", "");  // a row with an empty value is a row
    report = co_await t.audit();
    EXPECT_EQ(report.caches[0].repaired, 1u);
  });
}

// ---- by itself ----

TEST_F(Audits, LooksAgainAtEachAgeUntilTheRepairWorks) {
  source.capabilities_.feed = false;
  play({}, [](Audits& t) -> Task<void> {
    t.source.rows["7"] = "old";
    co_await t.get("p:7");
    t.change("7", "new");
    t.engine->refuses = true;
    co_await delay(kMinute - kSecond);
    EXPECT_EQ(t.total().caches[0].checked, 0u) << "nothing in the first minute";
    co_await delay(3 * kSecond);
    EXPECT_THAT(t.total().caches[0].stale, ElementsAre(1, 0, 0, 0));
    EXPECT_EQ(t.total().pending, 1u);
    EXPECT_TRUE(t.total().findings.empty()) << "one look proves nothing";
    co_await delay(kMinute);
    EXPECT_THAT(t.total().caches[0].stale, ElementsAre(1, 1, 0, 0));
    EXPECT_EQ(t.total().findings.size(), 1u);
    EXPECT_THAT(t.total().findings.back().repair, HasSubstr("away"));
    co_await delay(4 * kMinute);
    EXPECT_THAT(t.total().caches[0].stale, ElementsAre(1, 1, 1, 0));
    co_await delay(4 * kMinute + 50 * kSecond);
    EXPECT_THAT(t.total().caches[0].stale, ElementsAre(1, 1, 1, 0));
    EXPECT_EQ(t.total().caches[0].checked, 1u) << "it is followed, not checked anew";
    EXPECT_EQ(t.total().findings.size(), 1u);
    co_await delay(12 * kSecond);
    EXPECT_EQ(t.total().caches[0].stale[3], 1u);
    EXPECT_EQ(t.total().caches[0].repaired, 0u);
    EXPECT_EQ(t.total().caches[0].violations, 0u) << "no feed promises anything";
    t.engine->refuses = false;
    co_await delay(3 * kMinute);
    EXPECT_EQ(t.total().caches[0].repaired, 1u);
    EXPECT_EQ(t.total().findings.back().repair, "done");
    EXPECT_EQ(t.total().pending, 1u) << "whether it stays so";
    co_await delay(5 * kMinute);
    EXPECT_EQ(t.total().pending, 0u);
    const std::string now = co_await t.get("p:7");
    EXPECT_EQ(now, "new");
  });
}

TEST_F(Audits, ChangedKeysAreLookedAtAMinuteLater) {
  // Many entries, so that samples alone would take long; the change is told and lost.
  play({.rate = 2}, [](Audits& t) -> Task<void> {
    for (int id = 0; id < 1000; ++id) {
      t.source.rows[std::to_string(id)] = "old";
      co_await t.get("p:" + std::to_string(id));
    }
    t.change("7", "new");
    t.engine->loses = true;
    co_await t.told("7");
    t.engine->loses = false;
    co_await delay(kMinute + 2 * kSecond);
    EXPECT_EQ(t.total().caches[0].violations, 1u);
    EXPECT_EQ(t.total().caches[0].repaired, 1u);
    EXPECT_LE(t.total().caches[0].checked, 10u);
    const std::string now = co_await t.get("p:7");
    EXPECT_EQ(now, "new");
  });
}

TEST_F(Audits, WhatWaitsIsBounded) {
  play({.rate = 1}, [](Audits& t) -> Task<void> {
    std::vector<std::string> keys;
    for (int id = 0; id < 1000; ++id) keys.push_back("p:" + std::to_string(id));
    const auto done = co_await t.node->invalidate_keys(std::move(keys), "call");
    EXPECT_TRUE(done.has_value());
    EXPECT_EQ(t.total().pending, 64u);
    EXPECT_EQ(t.total().dropped, 936u);
    co_await delay(3 * kMinute);
    EXPECT_EQ(t.total().pending, 0u) << "keys that nobody holds cost no look";
    EXPECT_EQ(t.source.loads, 0u);
  });
}

TEST_F(Audits, ASourceThatFailsIsAskedLessAndLess) {
  play({.rate = 10}, [](Audits& t) -> Task<void> {
    for (int id = 0; id < 1000; ++id) {
      t.source.rows[std::to_string(id)] = "old";
      co_await t.get("p:" + std::to_string(id));
    }
    t.source.down = true;
    const std::size_t before = t.source.loads;
    co_await delay(11 * kMinute);
    const std::size_t asked = t.source.loads - before;
    EXPECT_GE(asked, 10u);
    EXPECT_LE(asked, 30u) << "once a minute in the end, where 600 were due";
    EXPECT_EQ(t.total().caches[0].checked, 0u);
    EXPECT_GE(t.total().caches[0].skipped, asked);
    EXPECT_THAT(t.total().problem, HasSubstr("source s: "));
    t.source.down = false;
    co_await delay(2 * kMinute);
    EXPECT_GT(t.total().caches[0].checked, 0u);
  });
}

TEST_F(Audits, ItsRateIsABound) {
  play({.rate = 10}, [](Audits& t) -> Task<void> {
    for (int id = 0; id < 2000; ++id) {
      t.source.rows[std::to_string(id)] = "old";
      co_await t.get("p:" + std::to_string(id));
    }
    const std::size_t before = t.source.loads;
    const std::uint64_t checked = t.total().caches[0].checked;
    co_await delay(3 * kMinute);
    EXPECT_LE(t.source.loads - before, 181u) << "one query for the keys of a second";
    const std::uint64_t more = t.total().caches[0].checked - checked;
    EXPECT_LE(more, 1810u);
    EXPECT_GE(more, 1100u);
  });
}

TEST_F(Audits, ExceptedCachesAreLeftAlone) {
  cache::CacheSpec other = basic();
  other.name = "q";
  other.key = *policy::KeyPattern::parse("q:{id:int}");
  play({.rate = 100, .except = {"q"}},
       [](Audits& t) -> Task<void> {
         t.source.rows["7"] = "old";
         co_await t.get("q:7");
         const std::size_t before = t.source.loads;
         t.change("7", "new");
         co_await t.audit();
         co_await delay(3 * kMinute);
         EXPECT_EQ(t.source.loads, before);
         EXPECT_EQ(t.total().caches.size(), 1u);
       },
       {basic(), other});
}

TEST_F(Audits, EndsWithTheNode) {
  source.capabilities_.feed = false;
  play(only_when_asked(), [](Audits& t) -> Task<void> {
    t.source.rows["7"] = "old";
    co_await t.get("p:7");
    t.change("7", "new");
    // It waits for the second look when the node stops.
    static std::optional<Result<AuditReport>> answer;
    answer.reset();
    TaskGroup asking;
    asking.spawn([](Audits& test) -> Task<void> {
      Result<AuditReport> report = co_await test.node->audit(10);
      answer.emplace(std::move(report));
    }(t));
    const Result<AuditReport> second = co_await t.node->audit(10);
    EXPECT_EQ(second.error().code, ErrorCode::overloaded) << "one at a time";
    co_await delay(100 * kMillisecond);
    EXPECT_FALSE(answer.has_value());
    co_await t.node->stop();
    asking.stop();
    co_await asking.join();
    EXPECT_TRUE(answer.has_value());
    if (answer) EXPECT_EQ(answer->error().code, ErrorCode::cancelled);
  });
}

// ---- the steps ----

using Step = policy::ProtocolEvent;

TEST(RecentEvents, KeepsTheLatestInvalidationAndRefusalLongest) {
  cache::RecentEvents events;
  const Hash hash = 0x1234567890abcdefULL;
  const std::uint8_t feed = events.feed("shop");
  EXPECT_EQ(events.feed("shop"), feed);
  events.note(hash, {.kind = Step::Kind::invalidated, .feed = feed, .at = 1, .x = 12});
  events.note(hash, {.kind = Step::Kind::refused, .refusal = policy::Refusal::tombstone, .at = 2});
  for (TimeUs at = 3; at < 100; ++at) events.note(hash, {.kind = Step::Kind::stored, .at = at});
  EXPECT_EQ(events.of(hash).size(), 8u);
  EXPECT_TRUE(std::ranges::is_sorted(events.of(hash), {}, &Step::at));
  EXPECT_EQ(events.of(hash).back().at, 99);
  ASSERT_TRUE(events.last_invalidation(hash).has_value());
  EXPECT_EQ(events.text(*events.last_invalidation(hash)), "invalidated by shop, change 12");
  ASSERT_TRUE(events.last_refusal(hash).has_value());
  EXPECT_EQ(events.text(*events.last_refusal(hash)), "not stored: tombstone");
  EXPECT_TRUE(events.of(hash + 1).empty());
}

TEST(RecentEvents, OrdinaryStepsLeaveThePlaceToInvalidatedKeys) {
  cache::RecentEvents events;
  const Hash one = 0x10;  // the two have one place
  const Hash other = 0x10 + 512;
  events.note(one, {.kind = Step::Kind::stored, .at = 1});
  events.note(other, {.kind = Step::Kind::stored, .at = 2});
  EXPECT_TRUE(events.of(one).empty());
  EXPECT_EQ(events.of(other).size(), 1u);
  events.note(one, {.kind = Step::Kind::invalidated, .at = 3});
  events.note(other, {.kind = Step::Kind::stored, .at = 4});
  EXPECT_EQ(events.of(one).size(), 1u);
  events.note(other, {.kind = Step::Kind::stored, .at = 3 + 600 * kSecond});
  EXPECT_TRUE(events.of(one).empty());
}

}  // namespace
}  // namespace larder::sim
