// The one decision: what may be done with an entry that a tier holds? Pure; the whole table is in
// freshness_test.cc.
#pragma once

#include <cstdint>
#include <optional>

#include "base/clock.h"

namespace larder::policy {

// What the cache declares, in microseconds. 0 = off.
struct FreshnessRules {
  DurationUs stale_while_revalidate_us = 0;
  DurationUs stale_if_error_us = 0;
  bool refresh_ahead = false;
  bool strong = false;      // never answer a stale value, whatever fails
  DurationUs bound_us = 0;  // consistency = "bounded:<time>"; 0 = not bounded
};

struct FreshnessInput {
  TimeUs now = 0;
  TimeUs as_of = 0;            // the source's state that the entry shows is at least this recent
  TimeUs soft_expiry = 0;      // the end of its TTL
  DurationUs load_us = 0;      // what its load took (XFetch's delta)
  bool is_void = false;        // invalidated since it was filled
  TimeUs heartbeat = 0;        // all changes up to here have been applied; 0 = no feed
  bool source_failed = false;  // the source was just asked, and failed
  bool source_slow = false;    // it was asked, and the soft timeout passed; it may yet answer
  double random = 1.0;         // in (0, 1]; XFetch's dice
};

enum class Freshness : std::uint8_t {
  fresh,           // answer it
  refresh_early,   // answer it, and let one reload before it expires (XFetch)
  revalidate,      // its TTL has passed: answer it, and let one reload (stale-while-revalidate)
  load,            // do not answer it; ask the next tier. It may still serve if that fails
  stale_if_error,  // the source failed: answer it, marked as stale
  unusable,  // do not answer it now, whatever the source says. It may come back: an entry that is
             // merely beyond its bound is fresh again after the next heartbeat. See useless_at
};

// XFetch's beta: 1 is optimal (Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache
// Stampede Prevention, VLDB 2015).
inline constexpr double kXFetchBeta = 1.0;

// Cost: a few compares; one logarithm where refresh_ahead is on and expiry is near.
Freshness decide(const FreshnessInput& in, const FreshnessRules& rules);

// When nothing may use the entry any more, error or not: it can be dropped.
inline TimeUs useless_at(TimeUs soft_expiry, const FreshnessRules& rules) {
  const DurationUs grace = rules.stale_while_revalidate_us > rules.stale_if_error_us
                               ? rules.stale_while_revalidate_us
                               : rules.stale_if_error_us;
  return saturating_add(soft_expiry, rules.strong ? 0 : grace);
}

}  // namespace larder::policy
