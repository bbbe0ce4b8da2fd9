// Finds the Tuning that suits the workload: four caches in miniature, one for each candidate, see a
// sample of the keys, and who misses least is what the cache should use.
//
// A key is sampled or not by its hash, so a miniature of 1/64 of the capacity, which sees all
// requests of 1/64 of the keys, misses as the whole would (Waldspurger et al., ATC 2017). The share
// is halved or doubled so that a miniature has some hundred entries, whatever the cache has. They
// run the very Eviction of the cache.
//
// Pure: no clock, no thread, no randomness. Fixed memory. Not thread-safe, except sampled().
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>

#include "base/hash.h"
#include "near/eviction.h"

namespace larder::near {

class Controller {
 public:
  struct Options {
    std::uint64_t capacity = 0;  // the weight that the cache holds
    unsigned shards = 1;         // of equal capacity, with an Eviction each
    // Of a miniature. More are surer, and cost memory: about 32 bytes each and candidate.
    unsigned max_entries = 1024;
    // Never sample more than one key in 2^least_shift: bounds what recording costs on average. A
    // cache with fewer than 64 * 2^least_shift entries stays as it is.
    unsigned least_shift = 4;
  };

  // What is chosen from; the first is the default.
  static constexpr std::array kCandidates = {
      Tuning{.small_percent = 10, .promote_all = false},  // good without knowing anything
      // Popularity is stable.
      Tuning{.small_percent = 1, .promote_all = false, .heavy_part = 1600},
      Tuning{.small_percent = 5, .promote_all = true},   // what came twice comes again, later
      Tuning{.small_percent = 30, .promote_all = true},  // what was used lately is used again
  };

  explicit Controller(const Options& options);
  ~Controller();
  Controller(const Controller&) = delete;
  Controller& operator=(const Controller&) = delete;

  // Should this key's requests be recorded? Thread-safe; one multiplication and one relaxed load.
  bool sampled(Hash hash) const {
    return sample_of(hash) <= threshold_.load(std::memory_order_relaxed);
  }

  // A request of the key, found or not. Does nothing if it is not sampled. `weight` and `cost` as
  // Eviction's Entries have them. Costs 0.05 to 0.2 us.
  void record(Hash hash, std::uint32_t weight, std::uint32_t cost);

  // The tuning to use from now on, if it is another one than before.
  std::optional<Tuning> decide();

  const Tuning& current() const { return kCandidates[current_]; }
  // One key in 2^shift() is sampled.
  unsigned shift() const { return shift_; }
  // All memory it will ever use.
  std::size_t bytes() const;

 private:
  class Miniature;
  static constexpr unsigned kMinEntries = 64;
  static constexpr unsigned kMaxShift = 31;

  static std::uint32_t sample_of(Hash hash) {
    return static_cast<std::uint32_t>((hash * 0x9e3779b97f4a7c15ULL) >> 32);
  }

  // Of a miniature.
  std::uint64_t capacity() const { return std::max<std::uint64_t>(options_.capacity >> shift_, 1); }
  void resample(unsigned shift);
  void compare(unsigned hits, std::uint32_t cost);
  void end_window();

  Options options_;
  std::atomic<std::uint32_t> threshold_;
  unsigned shift_ = 0;
  std::unique_ptr<Miniature[]> miniatures_;
  std::uint32_t window_ = 0;  // requests recorded in this one; as many as there are entries
  unsigned current_ = 0;
  bool changed_ = false;
  // Of each candidate against the current one, older windows with less weight: by how much it
  // missed less, and the variance of that.
  std::array<double, kCandidates.size()> gain_{};
  std::array<double, kCandidates.size()> variance_{};
  double missed_ = 0;  // by the current one
};

}  // namespace larder::near
