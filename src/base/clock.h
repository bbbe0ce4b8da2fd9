// One time for everything: microseconds since 1970 that never run backwards.
//
// The wall clock is read once, at start; from then on the steady clock advances it, so a step of
// the wall clock can neither revive an expired entry nor stretch a staleness bound.
#pragma once

#include <chrono>
#include <cstdint>

namespace larder {

using TimeUs = std::int64_t;      // a point in time, microseconds since 1970; 0 = none
using DurationUs = std::int64_t;  // microseconds

inline constexpr DurationUs kMillisecond = 1'000;
inline constexpr DurationUs kSecond = 1'000'000;
inline constexpr TimeUs kNever = INT64_MAX;

// What the wall clock was ahead of the steady one at the start of this process. The steady clock is
// the same for all processes of a host: with this, another one can tell our time.
inline std::int64_t clock_anchor_us() {
  using namespace std::chrono;
  static const std::int64_t anchor =
      duration_cast<microseconds>(system_clock::now().time_since_epoch()).count() -
      duration_cast<microseconds>(steady_clock::now().time_since_epoch()).count();
  return anchor;
}

// Thread-safe; about 20 ns.
inline TimeUs monotonic_now_us() {
  using namespace std::chrono;
  return clock_anchor_us() +
         duration_cast<microseconds>(steady_clock::now().time_since_epoch()).count();
}

// a + b without overflow, for "now + ttl" where ttl may be kNever.
inline TimeUs saturating_add(TimeUs a, DurationUs b) {
  TimeUs sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? (b > 0 ? kNever : INT64_MIN) : sum;
}

}  // namespace larder
