// How long to wait before the next attempt: twice as long each time, up to a bound, and never all
// at once. Pure: randomness is an argument.
#pragma once

#include <algorithm>

#include "base/clock.h"
#include "base/random.h"

namespace larder::resilience {

struct BackoffLimits {
  DurationUs first_us = 10 * kMillisecond;
  DurationUs most_us = 1 * kSecond;
};

class Backoff {
 public:
  explicit Backoff(const BackoffLimits& limits = {}) : limits_(limits) {}

  // The step grows first, 2 * first, 4 * first ... most; the pause is drawn from its upper half.
  // That much jitter parts those who lost the same server at the same moment, and the lower bound
  // keeps an attempt from following its predecessor at once.
  DurationUs next(Random& random) {
    step_us_ = step_us_ == 0 ? std::min(limits_.first_us, limits_.most_us)
                             : std::min(saturating_add(step_us_, step_us_), limits_.most_us);
    ++attempts_;
    const DurationUs half = step_us_ / 2;
    return half +
           static_cast<DurationUs>(random.below(static_cast<std::uint64_t>(step_us_ - half) + 1));
  }

  // It went well: begin small again.
  void reset() {
    step_us_ = 0;
    attempts_ = 0;
  }

  unsigned attempts() const { return attempts_; }

 private:
  BackoffLimits limits_;
  DurationUs step_us_ = 0;
  unsigned attempts_ = 0;
};

}  // namespace larder::resilience
