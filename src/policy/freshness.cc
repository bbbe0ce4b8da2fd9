#include "policy/freshness.h"

#include <algorithm>
#include <cmath>

namespace larder::policy {
namespace {

// When the entry stops being fresh, as far as can be known now. Without a feed nothing moves the
// bound on, so it ends the entry's life too: the effective TTL is min(ttl, bound).
TimeUs end_of_freshness(const FreshnessInput& in, const FreshnessRules& rules) {
  if (rules.bound_us == 0 || in.heartbeat != 0) return in.soft_expiry;
  return std::min(in.soft_expiry, saturating_add(saturating_add(in.as_of, rules.bound_us), 1));
}

bool refreshes_early(const FreshnessInput& in, const FreshnessRules& rules) {
  // now - delta * beta * ln(rand) >= expiry. ln(rand) of a 53-bit dice is above -37: farther away
  // than that no dice can decide for a reload, and the logarithm is not needed.
  const auto left = static_cast<double>(end_of_freshness(in, rules) - in.now);
  const double delta = static_cast<double>(in.load_us) * kXFetchBeta;
  if (left > delta * 37.0) return false;
  return -delta * std::log(in.random) >= left;
}

}  // namespace

Freshness decide(const FreshnessInput& in, const FreshnessRules& rules) {
  // Nothing that is known has changed it, and what is known is recent enough.
  const bool current = !in.is_void && (rules.bound_us == 0 ||
                                       std::max(in.as_of, in.heartbeat) >= in.now - rules.bound_us);
  if (current && in.now < in.soft_expiry) {
    const bool early = rules.refresh_ahead && !in.source_failed && refreshes_early(in, rules);
    return early ? Freshness::refresh_early : Freshness::fresh;
  }
  if (rules.strong) return Freshness::unusable;

  // Merely late: its TTL has passed, nothing else. Only such a value is answered while the source
  // may still be fine; if the source has failed it is all the more welcome, but then it is marked.
  const bool late =
      current && in.now < saturating_add(in.soft_expiry, rules.stale_while_revalidate_us);
  if (late && !in.source_failed) return Freshness::revalidate;
  const bool for_error = rules.stale_if_error_us > 0 &&
                         in.now < saturating_add(in.soft_expiry, rules.stale_if_error_us);
  if (!late && !for_error) return Freshness::unusable;
  // Slow is not failed: what was invalidated, or is beyond its bound, waits for the answer.
  if (in.source_slow) return current ? Freshness::stale_if_error : Freshness::load;
  return in.source_failed ? Freshness::stale_if_error : Freshness::load;
}

}  // namespace larder::policy
