// How another machine's clock stands to ours, from the times of round trips (Cristian:
// Probabilistic clock synchronization, 1989). Pure; not thread-safe, its owner locks.
//
// An answer that carries the other clock's time T, asked for at `sent` and received at `received`
// (ours), proves that offset = theirs - ours lies in [T - received, T - sent]. The narrowest proof
// is kept; it grows wider with its age, as clocks drift. One that contradicts it replaces it: the
// other clock was set. Times are translated
// to the older side of it, so that what is not known counts as staleness, never as freshness.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/clock.h"

namespace larder::policy {

class ClockOffset {
 public:
  // Drift of either clock that is reckoned with: 1 in `kDrift`. Crystals stay within 100 ppm.
  static constexpr DurationUs kDrift = 5'000;

  void observe(TimeUs sent, TimeUs theirs, TimeUs received) {
    if (received < sent) return;
    const DurationUs low = theirs - received;
    const DurationUs high = theirs - sent;
    const bool stepped = known_ && (low > high_ + slack(received) || high < low_ - slack(received));
    if (known_ && !stepped && high - low >= width(received)) return;
    known_ = true;
    low_ = low;
    high_ = high;
    at_ = received;
  }
  // Another server answers from now on.
  void forget() { known_ = false; }

  bool known() const { return known_; }
  // The uncertainty at `now`.
  DurationUs width(TimeUs now) const { return high_ - low_ + 2 * slack(now); }

  // REQUIRES: known(). The result is not later than the truth.
  TimeUs to_ours(TimeUs theirs, TimeUs now) const { return theirs - high_ - slack(now); }
  TimeUs to_theirs(TimeUs ours, TimeUs now) const { return ours + low_ - slack(now); }

 private:
  DurationUs slack(TimeUs now) const { return std::max<DurationUs>(0, now - at_) / kDrift; }

  bool known_ = false;
  DurationUs low_ = 0;
  DurationUs high_ = 0;
  TimeUs at_ = 0;
};

}  // namespace larder::policy
