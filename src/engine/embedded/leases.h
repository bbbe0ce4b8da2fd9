// LARDER.LEASE and LARDER.FILL: race-free, stampede-safe cache-aside on plain keys, for any source.
//
// On a miss one caller gets a ticket and loads; the others wait for its fill, or are told `busy`. A
// ticket ends after its time, or by any change of the key (which those who wait already learn at
// the next LEASE or FILL of the key, at the latest when its time is up). Bounded: at most
// `max_leases` at once. Thread-safe; nothing suspends but lease().
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/task.h"
#include "near/store.h"

namespace larder::engine {

struct Lease {
  enum class Kind : std::uint8_t { value, ticket, busy };
  Kind kind = Kind::busy;
  std::string text;  // the value, or the ticket to give back with FILL (32 hex digits)
};

class Leases {
 public:
  struct Options {
    DurationUs lease_us = 10 * kSecond;
    std::size_t max_leases = 100'000;
    std::size_t max_waiters = 100'000;
    std::uint64_t seed = 0;  // 0: random
  };
  Leases(near::Store& store, const Options& options);
  ~Leases();

  // A value, a ticket, or (after waiting up to wait_us for the holder's fill) busy. When the
  // holder's time is up, or its key changed, one waiter gets the next ticket. Errors: overloaded.
  // REQUIRES: Loop::current(), if wait_us > 0; the object outlives the wait.
  Task<Result<Lease>> lease(std::string key, DurationUs wait_us);

  // true: stored. false: refused, because the ticket is void, over, or unknown: the caller serves
  // its value and stores nothing. expiry: absolute, or kNever. It ends the lease in any case but
  // that of a wrong ticket. Errors: syntax (too large, more than 255 tags), out_of_memory.
  Result<bool> fill(std::string_view key, std::string_view ticket, std::string_view value,
                    TimeUs now, TimeUs expiry, const std::vector<std::string>& tags);

  std::size_t count() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace larder::engine
