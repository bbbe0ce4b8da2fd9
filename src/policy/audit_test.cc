#include "policy/audit.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

namespace larder::policy {
namespace {

using Kind = ProtocolEvent::Kind;

// ---- one tier beside the source ----

// Everything that a tier can hold before and after, and everything that the row can be.
TEST(AuditCompare, WholeTable) {
  std::vector<std::optional<AuditEntry>> held{std::nullopt};
  for (const TimeUs as_of : {100, 105}) {
    held.push_back(AuditEntry{.digest = 0, .negative = true, .as_of = as_of});
    for (const std::uint64_t digest : {0, 1, 2})
      held.push_back(AuditEntry{.digest = digest, .negative = false, .as_of = as_of});
  }
  std::vector<AuditRow> rows{{.digest = 0, .found = false}};
  for (const std::uint64_t digest : {0, 1, 2}) rows.push_back({.digest = digest, .found = true});
  std::size_t differ = 0;
  for (const auto& before : held)
    for (const AuditRow& row : rows)
      for (const auto& after : held)
        for (const DurationUs tolerance : {0, 5}) {
          const AuditVerdict verdict = compare(before, row, after, tolerance);
          if (!before) {
            EXPECT_EQ(verdict, AuditVerdict::absent);
            continue;
          }
          const bool right =
              before->negative ? !row.found : row.found && row.digest == before->digest;
          if (right) {
            EXPECT_EQ(verdict, AuditVerdict::consistent);
            continue;
          }
          const bool same = after && after->negative == before->negative &&
                            after->digest == before->digest &&
                            (after->as_of == before->as_of || tolerance == 5);
          EXPECT_EQ(verdict, same ? AuditVerdict::differs : AuditVerdict::moved);
          differ += verdict == AuditVerdict::differs ? 1 : 0;
        }
  EXPECT_GT(differ, 0u);
}

TEST(AuditCompare, ARowOfAnOlderStateSaysNothing) {
  const AuditEntry entry{.digest = 1, .as_of = 100};
  EXPECT_EQ(compare(entry, {.digest = 2, .found = true, .as_of = 100}, entry, 0),
            AuditVerdict::differs);
  EXPECT_EQ(compare(entry, {.digest = 2, .found = true, .as_of = 99}, entry, 0),
            AuditVerdict::moved);
  EXPECT_EQ(compare(entry, {.digest = 2, .found = true, .as_of = 99}, entry, 1),
            AuditVerdict::differs);
  EXPECT_EQ(compare(entry, {.digest = 1, .found = true, .as_of = 99}, entry, 0),
            AuditVerdict::consistent);
}

// ---- what happened to the key ----

constexpr std::uint64_t kSource = 7;

ProtocolEvent invalidated(TimeUs at, TxnId x = 0, std::uint64_t source_id = kSource) {
  return {.kind = Kind::invalidated, .at = at, .x = x, .source_id = x != 0 ? source_id : 0};
}
ProtocolEvent load(TimeUs at, TxnId xmax, std::uint64_t source_id = kSource) {
  return {.kind = Kind::load, .at = at, .x = xmax, .source_id = source_id};
}

TEST(AuditProve, AnEntryThatIsOlderThanAnInvalidation) {
  const AuditEntry entry{.as_of = 100};
  for (TimeUs at = 95; at <= 110; ++at)
    for (const DurationUs tolerance : {0, 3}) {
      const std::vector<ProtocolEvent> events{invalidated(at)};
      const AuditProof proof = prove(events, entry, tolerance);
      const bool outlived = at > 100 + tolerance;
      EXPECT_EQ(proof.kind, outlived ? AuditProof::Kind::outlived : AuditProof::Kind::none) << at;
      if (outlived) EXPECT_EQ(proof.since, at);
    }
}

TEST(AuditProve, ALoadThatDoesNotSeeTheChange) {
  const AuditEntry entry{.as_of = 100};
  for (const TxnId xmax : {0, 5, 6, 7})
    for (const TxnId x : {0, 5, 6, 7})
      for (const std::uint64_t source : {kSource, kSource + 1})
        for (const TimeUs loaded_at : {99, 100}) {
          // The invalidation came before the load: by its time nothing can be said.
          const std::vector<ProtocolEvent> events{load(loaded_at, xmax, source),
                                                  invalidated(90, x)};
          const bool unseen =
              xmax != 0 && x >= xmax && x != 0 && source == kSource && loaded_at == 100;
          const AuditProof proof = prove(events, entry, 0);
          EXPECT_EQ(proof.kind, unseen ? AuditProof::Kind::unseen : AuditProof::Kind::none);
          // Before it was loaded the entry was not there.
          if (unseen) EXPECT_EQ(proof.since, 100);
        }
}

TEST(AuditProve, OfTwoLoadsAtOneMomentEitherMayHaveGivenIt) {
  const AuditEntry entry{.as_of = 100};
  std::vector<ProtocolEvent> events{load(100, 5), invalidated(90, 5), load(100, 6)};
  EXPECT_EQ(prove(events, entry, 0).kind, AuditProof::Kind::none);
  events.back() = load(100, 5);
  EXPECT_EQ(prove(events, entry, 0).kind, AuditProof::Kind::unseen);
}

TEST(AuditProve, TheEarliestCounts) {
  const AuditEntry entry{.as_of = 100};
  std::vector<ProtocolEvent> events{invalidated(300), invalidated(150), invalidated(200)};
  EXPECT_EQ(prove(events, entry, 0).since, 150);
  events.insert(events.begin(), load(100, 5));
  events.push_back(invalidated(90, 8));
  EXPECT_EQ(prove(events, entry, 0).since, 100);
}

TEST(AuditProve, OtherStepsProveNothing) {
  const AuditEntry entry{.as_of = 100};
  for (const Kind kind :
       {Kind::ticket, Kind::load, Kind::engine, Kind::stored, Kind::refused, Kind::unanswered}) {
    const std::vector<ProtocolEvent> events{{.kind = kind, .at = 200, .x = 9, .source_id = kSource},
                                            load(100, 5)};
    EXPECT_EQ(prove(events, entry, 0).kind, AuditProof::Kind::none);
  }
}

// ---- what it means ----

constexpr std::array<DurationUs, 4> kAges{0, 60 * kSecond, 300 * kSecond, 600 * kSecond};

TEST(AuditDecide, WholeTable) {
  for (const bool fed : {false, true})
    for (const TimeUs heartbeat : {0, 999, 1000, 1001})
      for (const unsigned looks : {1, 2, 3})
        for (const auto proof :
             {AuditProof::Kind::none, AuditProof::Kind::outlived, AuditProof::Kind::unseen}) {
          const AuditDecision d = decide({.now = 1000,
                                          .first_seen = 1000,
                                          .looks = looks,
                                          .proof = {proof, 400},
                                          .fed = fed,
                                          .heartbeat = heartbeat,
                                          .ages = kAges});
          const bool proven = proof != AuditProof::Kind::none;
          // What was committed before the heartbeat is applied; the row had changed by 1000.
          const bool violation = proven || (fed && heartbeat > 1000);
          EXPECT_EQ(d.violation, violation);
          EXPECT_EQ(d.repair, violation || looks >= 2);
          EXPECT_EQ(d.cause, proof == AuditProof::Kind::outlived ? AuditCause::outlived
                             : proof == AuditProof::Kind::unseen ? AuditCause::unseen
                             : !fed                              ? AuditCause::no_feed
                             : violation                         ? AuditCause::untold
                                                                 : AuditCause::late);
          EXPECT_EQ(d.age_us, proven ? 600 : 0);
          EXPECT_EQ(d.reached, 1u);
          EXPECT_EQ(d.next_look, (proven ? 400 : 1000) + kAges[1]);
        }
}

TEST(AuditDecide, NoFeedAnswersForWhatWasLoadedWithoutTheEngine) {
  AuditQuestion question{.now = 9 * kSecond,
                         .first_seen = kSecond,
                         .fed = true,
                         .heartbeat = 8 * kSecond,
                         .ages = kAges};
  EXPECT_TRUE(decide(question).violation);
  question.alone = true;
  EXPECT_FALSE(decide(question).violation);
  EXPECT_EQ(decide(question).cause, AuditCause::alone);
  EXPECT_EQ(decide(question).age_us, 8 * kSecond) << "it is counted all the same";
}

TEST(AuditDecide, CountsTheAgesThatItReaches) {
  const TimeUs first = 5 * kSecond;
  for (DurationUs after = 0; after < 700 * kSecond; after += 10 * kSecond) {
    const AuditDecision d =
        decide({.now = first + after, .first_seen = first, .looks = 2, .ages = kAges});
    unsigned reached = 0;
    for (const DurationUs age : kAges) reached += age <= after ? 1 : 0;
    EXPECT_EQ(d.reached, reached);
    EXPECT_EQ(d.age_us, after);
    EXPECT_EQ(d.next_look, reached < kAges.size() ? first + kAges[reached] : kNever);
  }
}

TEST(AuditDecide, AnInvalidationThatItSurvivedTellsItsAgeAtOnce) {
  const AuditDecision d = decide({.now = 400 * kSecond,
                                  .first_seen = 400 * kSecond,
                                  .proof = {AuditProof::Kind::outlived, 50 * kSecond},
                                  .ages = kAges});
  EXPECT_EQ(d.age_us, 350 * kSecond);
  EXPECT_EQ(d.reached, 3u);
  EXPECT_EQ(d.next_look, 650 * kSecond);
}

TEST(AuditDecide, ALookBackInTimeHasNoAge) {
  EXPECT_EQ(decide({.now = 10, .first_seen = 20, .ages = kAges}).age_us, 0);
}

TEST(AuditNines, AreThoseOfTheShare) {
  const Consistency three = consistency_of(100'000, 100);
  EXPECT_DOUBLE_EQ(three.ratio, 0.999);
  EXPECT_NEAR(three.nines, 3, 1e-9);
  EXPECT_FALSE(three.at_least);
  // None of n: with 95 % confidence fewer than 3 in n.
  const Consistency none = consistency_of(30'000, 0);
  EXPECT_DOUBLE_EQ(none.ratio, 1);
  EXPECT_NEAR(none.nines, 4, 1e-9);
  EXPECT_TRUE(none.at_least);
  for (const std::uint64_t checked : {0, 1, 2, 3}) {
    EXPECT_GE(consistency_of(checked, 0).nines, 0);
    EXPECT_FALSE(std::signbit(consistency_of(checked, 0).nines));
    EXPECT_GE(consistency_of(checked, checked + 1).ratio, 0);
  }
}

}  // namespace
}  // namespace larder::policy
