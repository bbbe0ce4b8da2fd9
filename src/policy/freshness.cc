#include "policy/freshness.h"

#include <algorithm>
#include <cmath>

namespace larder::policy {
namespace {

bool refreshes_early(const FreshnessInput& in) {
  // now - delta * beta * ln(rand) >= expiry. ln(rand) of a 53-bit dice is above -37: nearer than
  // that, no dice can decide for a reload, and the logarithm is not needed.
  const auto left = static_cast<double>(in.soft_expiry - in.now);
  const double delta = static_cast<double>(in.load_us) * kXFetchBeta;
  if (left > delta * 37.0) return false;
  return -delta * std::log(in.random) >= left;
}

}  // namespace

Freshness decide(const FreshnessInput& in, const FreshnessRules& rules) {
  // Within the bound: the entry shows a state that is recent enough, or no change came since.
  const bool in_bound =
      rules.bound_us == 0 || std::max(in.as_of, in.heartbeat) >= in.now - rules.bound_us;
  const bool in_ttl = in.now < in.soft_expiry;

  if (!in.is_void && in_bound && in_ttl) {
    return rules.refresh_ahead && refreshes_early(in) ? Freshness::refresh_early : Freshness::fresh;
  }
  // A value that was invalidated, or that is beyond its bound, is never served as a mere late one.
  if (!in.is_void && in_bound && !rules.strong &&
      in.now < saturating_add(in.soft_expiry, rules.stale_while_revalidate_us) &&
      !in.source_failed) {
    return Freshness::revalidate;
  }
  if (rules.strong || in.now >= saturating_add(in.soft_expiry, rules.stale_if_error_us)) {
    return in.source_failed || rules.strong ? Freshness::unusable
           : in.now >= useless_at(in.soft_expiry, rules) ? Freshness::unusable
                                                         : Freshness::load;
  }
  return in.source_failed ? Freshness::stale_if_error : Freshness::load;
}

}  // namespace larder::policy
