#include "policy/fill_rules.h"

#include <gtest/gtest.h>

#include <array>

namespace larder::policy {
namespace {

// ---- what a snapshot sees ----

TEST(Snapshot, SeesWhatHasEndedBeforeIt) {
  const Snapshot s = {.source_id = 1, .xmin = 10, .xmax = 15, .in_progress = {10, 12}};
  EXPECT_TRUE(s.known());
  EXPECT_TRUE(s.sees(1));
  EXPECT_TRUE(s.sees(9));
  EXPECT_FALSE(s.sees(10));  // running
  EXPECT_TRUE(s.sees(11));
  EXPECT_FALSE(s.sees(12));  // running
  EXPECT_TRUE(s.sees(13));
  EXPECT_TRUE(s.sees(14));
  EXPECT_FALSE(s.sees(15));  // not begun
  EXPECT_FALSE(s.sees(UINT64_MAX));
}

TEST(Snapshot, IdsAreNotCommitOrder) {
  // 12 has ended while 10 runs: "the highest id is visible" would be the wrong question.
  const Snapshot s = {.source_id = 1, .xmin = 10, .xmax = 13, .in_progress = {10}};
  EXPECT_TRUE(s.sees(12));
  EXPECT_FALSE(s.sees(10));
}

TEST(Snapshot, WhoKnowsTheHighestNumberOnlyAsksForAllUpToIt) {
  const Snapshot s = {.source_id = 1, .xmin = 10, .xmax = 15, .in_progress = {12, 13}};
  EXPECT_TRUE(s.sees_all_up_to(9));
  EXPECT_TRUE(s.sees_all_up_to(11));
  EXPECT_FALSE(s.sees_all_up_to(12));
  EXPECT_TRUE(s.sees(14));
  EXPECT_FALSE(s.sees_all_up_to(14));  // 12 may have changed the key too
  EXPECT_FALSE(s.sees_all_up_to(15));
  const Snapshot serial = {.source_id = 1, .xmin = 8, .xmax = 8};
  EXPECT_TRUE(serial.sees_all_up_to(7));
  EXPECT_FALSE(serial.sees_all_up_to(8));
  EXPECT_FALSE(Snapshot().sees_all_up_to(0));
}

TEST(Snapshot, OfASerialSourceIsOneNumber) {
  const Snapshot s = {.source_id = 1, .xmin = 8, .xmax = 8};
  EXPECT_TRUE(s.sees(7));
  EXPECT_FALSE(s.sees(8));
}

TEST(Snapshot, UnknownSeesNothing) {
  const Snapshot s;
  EXPECT_FALSE(s.known());
  EXPECT_FALSE(s.sees(0));
  EXPECT_FALSE(s.sees(1));
}

// ---- may the load be stored? ----

constexpr Ticket kTicket = {.version = 4, .generation = 2, .stamp = 9};

// Every rule that can refuse a fill, as a state in which that rule alone decides.
struct Flaws {
  bool version = false;     // the key was invalidated since the miss
  bool generation = false;  // its partition was reset since the miss
  bool source = false;      // another incarnation of the source answered
  bool tombstone = false;   // the key's last change is not visible in the load
  bool tag = false;         // a tag's last change is not visible in the load
};

Refusal judge(const Flaws& flaws, const Rules& rules, bool known = true) {
  Snapshot snapshot;
  if (known) snapshot = {.source_id = 77, .xmin = 10, .xmax = 15, .in_progress = {14}};
  Ticket now = kTicket;
  now.stamp += 100;  // tags are judged when an entry is read, not here
  if (flaws.version) ++now.version;
  if (flaws.generation) ++now.generation;
  const std::array<TxnId, 3> tags = {3, flaws.tag ? TxnId{14} : TxnId{11}, 0};
  return judge_fill({.ticket = kTicket,
                     .now = now,
                     .snapshot = snapshot,
                     .source_id = flaws.source ? 78U : 77U,
                     .key_tombstone = flaws.tombstone ? TxnId{15} : TxnId{13},
                     .tag_tombstones = tags},
                    rules);
}

// The flaws in the order of the rules that catch them.
struct RuleUnderTest {
  bool Flaws::* flaw;
  bool Rules::* rule;
  Refusal refusal;
};
constexpr RuleUnderTest kFillRules[] = {
    {&Flaws::generation, &Rules::generation, Refusal::epoch},
    {&Flaws::version, &Rules::ticket, Refusal::ticket},
    {&Flaws::source, &Rules::source, Refusal::source},
    {&Flaws::tombstone, &Rules::tombstone, Refusal::tombstone},
    {&Flaws::tag, &Rules::tag_tombstone, Refusal::tag},
};

TEST(JudgeFill, StoresWhatHasNoFlaw) { EXPECT_EQ(judge({}, {}), Refusal::none); }

TEST(JudgeFill, EachRuleAloneDecides) {
  for (const RuleUnderTest& r : kFillRules) {
    Flaws flaws;
    flaws.*r.flaw = true;
    EXPECT_EQ(to_string(judge(flaws, {})), to_string(r.refusal));
    Rules without;
    without.*r.rule = false;
    EXPECT_EQ(judge(flaws, without), Refusal::none) << "without rule " << to_string(r.refusal);
    Rules alone = {.ticket = false,
                   .generation = false,
                   .source = false,
                   .tombstone = false,
                   .tag_tombstone = false,
                   .tag_stamp = false};
    alone.*r.rule = true;
    EXPECT_EQ(judge(flaws, alone), r.refusal) << "rule alone " << to_string(r.refusal);
  }
}

// All states against all sets of rules: the first flaw whose rule is on is the reason.
TEST(JudgeFill, EveryStateAgainstEverySetOfRules) {
  constexpr unsigned kCount = std::size(kFillRules);
  for (unsigned state = 0; state < 1U << kCount; ++state)
    for (unsigned set = 0; set < 1U << kCount; ++set) {
      Flaws flaws;
      Rules rules;
      Refusal want = Refusal::none;
      for (unsigned i = kCount; i-- > 0;) {
        const bool flawed = (state >> i & 1U) != 0;
        const bool on = (set >> i & 1U) != 0;
        flaws.*kFillRules[i].flaw = flawed;
        rules.*kFillRules[i].rule = on;
        if (flawed && on) want = kFillRules[i].refusal;
      }
      ASSERT_EQ(to_string(judge(flaws, rules)), to_string(want)) << state << " " << set;
    }
}

TEST(JudgeFill, WithoutSnapshotsTheTicketIsTheSafety) {
  Flaws flaws = {.source = true, .tombstone = true, .tag = true};
  EXPECT_EQ(judge(flaws, {}, /*known=*/false), Refusal::none);
  flaws.version = true;
  EXPECT_EQ(judge(flaws, {}, false), Refusal::ticket);
  flaws = {.generation = true};
  EXPECT_EQ(judge(flaws, {}, false), Refusal::epoch);
}

TEST(JudgeFill, AKeyThatNeverChangedHasNoTombstone) {
  const Snapshot empty_database = {.source_id = 77, .xmin = 1, .xmax = 1};
  EXPECT_EQ(judge_fill({.ticket = kTicket,
                        .now = kTicket,
                        .snapshot = empty_database,
                        .source_id = 77,
                        .key_tombstone = 0,
                        .tag_tombstones = {}}),
            Refusal::none);
}

TEST(JudgeInstall, KnowsTicketsOnly) {
  Ticket now = kTicket;
  EXPECT_EQ(judge_install(kTicket, now), Refusal::none);
  now.stamp = 0;
  EXPECT_EQ(judge_install(kTicket, now), Refusal::none);
  now.version = kTicket.version - 1;  // any difference, not only a later one
  EXPECT_EQ(judge_install(kTicket, now), Refusal::ticket);
  now.generation = kTicket.generation + 1;
  EXPECT_EQ(judge_install(kTicket, now), Refusal::epoch);
}

// ---- is a stored entry void? ----

TEST(IsVoid, OfAnOlderGeneration) {
  EXPECT_FALSE(is_void(2, 9, 2, {}));
  EXPECT_TRUE(is_void(2, 9, 3, {}));
  EXPECT_TRUE(is_void(3, 9, 2, {}));
  EXPECT_FALSE(is_void(2, 9, 3, {}, {.generation = false}));
}

TEST(IsVoid, IfOneOfItsTagsWasInvalidatedSinceItsTicket) {
  const auto with = [](std::vector<std::uint64_t> stamps, const Rules& rules = {}) {
    return is_void(2, 9, 2, stamps, rules);
  };
  EXPECT_FALSE(with({0, 9}));  // before the ticket, or at the very stamp that it bears
  EXPECT_TRUE(with({10}));
  EXPECT_TRUE(with({0, 3, 10}));  // any of them
  EXPECT_FALSE(with({10}, {.tag_stamp = false}));
}

TEST(Refusal, HasAName) {
  for (int i = 0; i < static_cast<int>(kRefusals); ++i)
    EXPECT_NE(to_string(static_cast<Refusal>(i)), "?");
  EXPECT_EQ(to_string(static_cast<Refusal>(kRefusals)), "?");
}

}  // namespace
}  // namespace larder::policy
