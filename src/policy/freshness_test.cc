#include "policy/freshness.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string_view>

#include "base/random.h"

namespace larder::policy {
namespace {

constexpr TimeUs kNow = 1'000'000 * kSecond;

std::string_view name(Freshness f) {
  switch (f) {
    case Freshness::fresh: return "fresh";
    case Freshness::refresh_early: return "refresh_early";
    case Freshness::revalidate: return "revalidate";
    case Freshness::load: return "load";
    case Freshness::stale_if_error: return "stale_if_error";
    case Freshness::unusable: return "unusable";
  }
  return "?";
}

// The whole decision, as one reads it in the design: y, n, or - for "does not matter". Every state
// matches exactly one row.
struct Row {
  std::string_view is_void;
  std::string_view in_bound;
  std::string_view in_ttl;
  std::string_view in_swr;  // declared, and TTL + stale_while_revalidate has not passed
  std::string_view in_sie;  // declared, and TTL + stale_if_error has not passed
  std::string_view strong;
  std::string_view failed;
  Freshness verdict;
};
constexpr Row kTable[] = {
    // void bound ttl  swr  sie  strong failed
    {"n", "y", "y", "-", "-", "-", "-", Freshness::fresh},
    // Late only: answered at once, by any cache that is not strong; marked if the source failed.
    {"n", "y", "n", "y", "-", "n", "n", Freshness::revalidate},
    {"n", "y", "n", "y", "-", "n", "y", Freshness::stale_if_error},
    {"n", "y", "n", "n", "y", "n", "n", Freshness::load},
    {"n", "y", "n", "n", "y", "n", "y", Freshness::stale_if_error},
    {"n", "y", "n", "n", "n", "n", "-", Freshness::unusable},
    {"n", "y", "n", "-", "-", "y", "-", Freshness::unusable},
    // Beyond the bound: as if it were invalidated, for nobody knows that it was not.
    {"n", "n", "-", "-", "y", "n", "n", Freshness::load},
    {"n", "n", "-", "-", "y", "n", "y", Freshness::stale_if_error},
    {"n", "n", "-", "-", "n", "n", "-", Freshness::unusable},
    {"n", "n", "-", "-", "-", "y", "-", Freshness::unusable},
    // Invalidated: kept for stale-if-error alone.
    {"y", "-", "-", "-", "y", "n", "n", Freshness::load},
    {"y", "-", "-", "-", "y", "n", "y", Freshness::stale_if_error},
    {"y", "-", "-", "-", "n", "n", "-", Freshness::unusable},
    {"y", "-", "-", "-", "-", "y", "-", Freshness::unusable},
};

// A state, with the facts that the table speaks about.
struct State {
  FreshnessInput in;
  FreshnessRules rules;

  bool in_bound() const {
    const DurationUs age = std::min(in.now - in.as_of, in.now - in.heartbeat);
    return rules.bound_us == 0 || age <= rules.bound_us;
  }
  DurationUs late_by() const { return in.now - in.soft_expiry; }  // >= 0: its TTL has passed
  bool in_sie() const {
    return rules.stale_if_error_us != 0 && late_by() < rules.stale_if_error_us;
  }
  bool in_swr() const {
    return rules.stale_while_revalidate_us != 0 && late_by() < rules.stale_while_revalidate_us;
  }
};

Freshness by_table(const State& s) {
  const auto is = [](std::string_view want, bool fact) {
    return want == "-" || (want == "y") == fact;
  };
  const Row* found = nullptr;
  for (const Row& row : kTable) {
    if (is(row.is_void, s.in.is_void) && is(row.in_bound, s.in_bound()) &&
        is(row.in_ttl, s.late_by() < 0) && is(row.in_swr, s.in_swr()) &&
        is(row.in_sie, s.in_sie()) && is(row.strong, s.rules.strong) &&
        is(row.failed, s.in.source_failed)) {
      EXPECT_EQ(found, nullptr) << "two rows match";
      found = &row;
    }
  }
  EXPECT_NE(found, nullptr) << "no row matches";
  return found == nullptr ? Freshness::unusable : found->verdict;
}

std::string describe(const State& s) {
  return fmt::format(
      "void={} as_of=now-{} heartbeat=now-{} bound={} late_by={} swr={} sie={} strong={} failed={}",
      s.in.is_void, s.in.now - s.in.as_of, s.in.now - s.in.heartbeat, s.rules.bound_us, s.late_by(),
      s.rules.stale_while_revalidate_us, s.rules.stale_if_error_us, s.rules.strong,
      s.in.source_failed);
}

// Every combination of every value on which a decision turns.
template <class Visit>
void each_state(Visit&& visit) {
  constexpr DurationUs kBound = kSecond;
  constexpr DurationUs kShort = 10 * kSecond;
  constexpr DurationUs kLong = 3600 * kSecond;
  const TimeUs sights[] = {kNow, kNow - kBound, kNow - kBound - 1};
  const TimeUs heartbeats[] = {0, kNow, kNow - kBound, kNow - kBound - 1};
  const DurationUs late[] = {-kLong, -1, 0, 1, kShort - 1, kShort, kLong - 1, kLong, 2 * kLong};
  State s;
  s.in.now = kNow;
  s.in.load_us = kMillisecond;
  for (const bool is_void : {false, true})
    for (const bool failed : {false, true})
      for (const bool strong : {false, true})
        for (const DurationUs bound : {DurationUs{0}, kBound})
          for (const DurationUs swr : {DurationUs{0}, kShort, kLong})
            for (const DurationUs sie : {DurationUs{0}, kShort, kLong})
              for (const TimeUs as_of : sights)
                for (const TimeUs heartbeat : heartbeats)
                  for (const DurationUs late_by : late) {
                    s.in.is_void = is_void;
                    s.in.source_failed = failed;
                    s.in.as_of = as_of;
                    s.in.heartbeat = heartbeat;
                    s.in.soft_expiry = kNow - late_by;
                    s.rules.strong = strong;
                    s.rules.bound_us = bound;
                    s.rules.stale_while_revalidate_us = swr;
                    s.rules.stale_if_error_us = sie;
                    visit(s);
                  }
}

TEST(Freshness, EveryStateIsDecidedByTheTable) {
  int states = 0;
  each_state([&](State& s) {
    ++states;
    const Freshness want = by_table(s);
    const Freshness got = decide(s.in, s.rules);
    ASSERT_EQ(name(got), name(want)) << describe(s);
    // XFetch may turn fresh into refresh_early, and changes nothing else.
    s.rules.refresh_ahead = true;
    s.in.random = 1.0;  // never early
    ASSERT_EQ(name(decide(s.in, s.rules)), name(want)) << describe(s);
    s.in.random = 0x1.0p-53;  // as early as can be
    const Freshness early = decide(s.in, s.rules);
    if (early != Freshness::refresh_early) {
      ASSERT_EQ(name(early), name(want)) << describe(s);
    } else {
      ASSERT_EQ(want, Freshness::fresh) << describe(s);
      ASSERT_FALSE(s.in.source_failed) << describe(s);
    }
    s.rules.refresh_ahead = false;
  });
  EXPECT_EQ(states, 2 * 2 * 2 * 2 * 3 * 3 * 3 * 4 * 9);
}

TEST(Freshness, WhatIsUselessIsUnusableAndOnlyThatMayBeDropped) {
  each_state([&](State& s) {
    const bool useless = s.in.now >= useless_at(s.in.soft_expiry, s.rules);
    if (useless) {
      ASSERT_EQ(decide(s.in, s.rules), Freshness::unusable) << describe(s);
    } else if (!s.in.is_void) {  // some state of the source and of the feed can still use it
      s.in.heartbeat = s.in.now;
      s.in.source_failed = true;
      ASSERT_NE(decide(s.in, s.rules), Freshness::unusable) << describe(s);
    }
  });
}

TEST(Freshness, LoadPromisesTheValueIfTheSourceFailsAndUnusableNever) {
  each_state([&](State& s) {
    s.in.source_failed = false;
    const Freshness before = decide(s.in, s.rules);
    s.in.source_failed = true;
    const Freshness after = decide(s.in, s.rules);
    if (before == Freshness::load) ASSERT_EQ(after, Freshness::stale_if_error) << describe(s);
    if (before == Freshness::unusable) ASSERT_EQ(after, Freshness::unusable) << describe(s);
    // A failing source never takes a value away.
    if (before <= Freshness::revalidate) ASSERT_NE(after, Freshness::unusable) << describe(s);
  });
}

// ---- rows to read ----

struct Named {
  const char* what;
  DurationUs late_by;  // since its TTL; negative: still to go
  bool is_void;
  DurationUs age;      // since the state that it shows
  DurationUs silence;  // since the last heartbeat; -1: no feed
  bool failed;
  FreshnessRules rules;
  Freshness verdict;
};

constexpr FreshnessRules kPlain = {};
constexpr FreshnessRules kLenient = {.stale_while_revalidate_us = 30 * kSecond,
                                     .stale_if_error_us = 3600 * kSecond};
constexpr FreshnessRules kBounded = {.stale_while_revalidate_us = 30 * kSecond,
                                     .stale_if_error_us = 3600 * kSecond,
                                     .bound_us = kSecond};
constexpr FreshnessRules kStrict = {
    .stale_while_revalidate_us = 30 * kSecond, .stale_if_error_us = 3600 * kSecond, .strong = true};
constexpr DurationUs kMin = 60 * kSecond;

constexpr Named kNamed[] = {
    {"a young entry is answered", -kMin, false, kSecond, -1, false, kPlain, Freshness::fresh},
    {"its last microsecond counts", -1, false, kMin, -1, false, kPlain, Freshness::fresh},
    {"at its expiry it is over", 0, false, kMin, -1, false, kPlain, Freshness::unusable},
    {"a late one is answered and reloaded", kSecond, false, kMin, -1, false, kLenient,
     Freshness::revalidate},
    {"too late for that, it waits for the source", kMin, false, kMin, -1, false, kLenient,
     Freshness::load},
    {"and steps in when the source fails", kMin, false, kMin, -1, true, kLenient,
     Freshness::stale_if_error},
    {"but not for ever", 3600 * kSecond, false, kMin, -1, true, kLenient, Freshness::unusable},
    {"an invalidated one is not merely late", kSecond, true, kMin, -1, false, kLenient,
     Freshness::load},
    {"nor young", -kMin, true, kSecond, -1, false, kLenient, Freshness::load},
    {"it helps out when the source fails", -kMin, true, kSecond, -1, true, kLenient,
     Freshness::stale_if_error},
    {"if the cache says so", -kMin, true, kSecond, -1, true, kPlain, Freshness::unusable},
    {"and never in a strong cache", -kMin, true, kSecond, -1, true, kStrict, Freshness::unusable},
    {"which knows no late values either", kSecond, false, kMin, -1, false, kStrict,
     Freshness::unusable},
    {"even if the source fails", kSecond, false, kMin, -1, true, kStrict, Freshness::unusable},
    {"an old entry is fresh while the feed is heard", -kMin, false, kMin, kSecond, false, kBounded,
     Freshness::fresh},
    {"and not after a silence beyond the bound", -kMin, false, kMin, kSecond + 1, false, kBounded,
     Freshness::load},
    {"unless it was loaded since", -kMin, false, kSecond, kMin, false, kBounded, Freshness::fresh},
    {"without a feed the bound is a TTL", -kMin, false, kSecond + 1, -1, false, kBounded,
     Freshness::load},
    {"beyond the bound nothing is merely late", kSecond, false, kMin, kMin, false, kBounded,
     Freshness::load},
    {"but the source's failure is stronger, if declared", -kMin, false, kMin, kMin, true, kBounded,
     Freshness::stale_if_error},
    {"an early failure does not hurt a fresh entry", -kMin, false, kSecond, -1, true, kLenient,
     Freshness::fresh},
};

TEST(Freshness, RowsToRead) {
  for (const Named& row : kNamed) {
    const FreshnessInput in = {.now = kNow,
                               .as_of = kNow - row.age,
                               .soft_expiry = kNow - row.late_by,
                               .is_void = row.is_void,
                               .heartbeat = row.silence < 0 ? 0 : kNow - row.silence,
                               .source_failed = row.failed};
    EXPECT_EQ(name(decide(in, row.rules)), name(row.verdict)) << row.what;
  }
}

TEST(Freshness, HugeTimesDoNotOverflow) {
  const FreshnessRules rules = {
      .stale_while_revalidate_us = kNever, .stale_if_error_us = kNever, .bound_us = kNever};
  FreshnessInput in = {.now = kNow, .soft_expiry = kNever};
  EXPECT_EQ(decide(in, rules), Freshness::fresh);
  in.soft_expiry = 1;
  EXPECT_EQ(decide(in, rules), Freshness::revalidate);
  EXPECT_EQ(useless_at(1, rules), kNever);
}

// ---- XFetch ----

FreshnessInput near_expiry(DurationUs left, DurationUs load, double random) {
  return {.now = kNow,
          .as_of = kNow - 1,
          .soft_expiry = kNow + left,
          .load_us = load,
          .random = random};
}

TEST(XFetch, TheDiceDecide) {
  const FreshnessRules rules = {.refresh_ahead = true};
  constexpr DurationUs kLoad = 100 * kMillisecond;
  // Reload iff random <= exp(-left / load).
  for (const DurationUs left : {1L, 10'000L, 100'000L, 300'000L, 1'000'000L}) {
    const double edge = std::exp(-static_cast<double>(left) / kLoad);
    EXPECT_EQ(decide(near_expiry(left, kLoad, edge * 0.999), rules), Freshness::refresh_early);
    EXPECT_EQ(decide(near_expiry(left, kLoad, std::min(1.0, edge * 1.001)), rules),
              Freshness::fresh);
  }
}

TEST(XFetch, CheapLoadsWaitLonger) {
  const FreshnessRules rules = {.refresh_ahead = true};
  EXPECT_EQ(decide(near_expiry(kSecond, kSecond, 0.3), rules), Freshness::refresh_early);
  EXPECT_EQ(decide(near_expiry(kSecond, kMillisecond, 0.3), rules), Freshness::fresh);
  EXPECT_EQ(decide(near_expiry(kSecond, 0, 0x1.0p-53), rules), Freshness::fresh);
}

TEST(XFetch, OffMeansOff) {
  EXPECT_EQ(decide(near_expiry(1, kSecond, 0x1.0p-53), {}), Freshness::fresh);
}

TEST(XFetch, ABoundWithoutAFeedIsTheExpiry) {
  FreshnessInput in = near_expiry(3600 * kSecond, 100 * kMillisecond, 0.2);
  const FreshnessRules rules = {.refresh_ahead = true, .bound_us = kSecond};
  in.as_of = kNow - kSecond + 100 * kMillisecond;  // one load's time to go
  EXPECT_EQ(decide(in, rules), Freshness::refresh_early);
  in.heartbeat = kNow;  // a feed moves the bound on
  EXPECT_EQ(decide(in, rules), Freshness::fresh);
}

TEST(XFetch, ReloadsComeAtTheRateOfTheFormula) {
  const FreshnessRules rules = {.refresh_ahead = true};
  Random random(7);
  int early = 0;
  constexpr int kRounds = 100'000;
  for (int i = 0; i < kRounds; ++i)
    early +=
        decide(near_expiry(kSecond, kSecond, random.unit()), rules) == Freshness::refresh_early;
  EXPECT_NEAR(static_cast<double>(early) / kRounds, std::exp(-1.0), 0.01);
}

}  // namespace
}  // namespace larder::policy
