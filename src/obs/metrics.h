// Counters, gauges and histograms with Prometheus text output.
//
// Writing is for hot paths: a relaxed add on a cache line of the calling thread's own, no lock, no
// allocation. Reading sums the lines up. Families and series are made once, at start, and live as
// long as the registry.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/sync.h"

namespace larder::obs {

using Labels = std::vector<std::pair<std::string, std::string>>;

// A small number for the calling thread, below kStripes: threads share a stripe only beyond that.
inline constexpr unsigned kStripes = 8;
unsigned stripe();

// Only grows. Thread-safe.
class Counter {
 public:
  void add(std::uint64_t n = 1) { cells_[stripe()].value.fetch_add(n, std::memory_order_relaxed); }
  std::uint64_t value() const;

 private:
  struct alignas(64) Cell {
    std::atomic<std::uint64_t> value{0};
  };
  std::array<Cell, kStripes> cells_;
};

// Durations, in buckets of a factor of 2 from 1 us to 32 s (and above). Thread-safe.
class Histogram {
 public:
  static constexpr unsigned kBuckets = 27;  // le 1us, 2us, 4us ... 2^25 us, +Inf

  // `weight` > 1: one sample that stands for so many.
  void record(DurationUs us, std::uint64_t weight = 1) {
    Stripe& s = stripes_[stripe()];
    s.counts[bucket_of(us)].fetch_add(weight, std::memory_order_relaxed);
    s.sum_us.fetch_add(static_cast<std::uint64_t>(us < 0 ? 0 : us) * weight,
                       std::memory_order_relaxed);
  }

  struct Summary {
    std::array<std::uint64_t, kBuckets> counts{};  // not cumulative
    std::uint64_t count = 0;
    std::uint64_t sum_us = 0;
    // Interpolated within the bucket; q in [0, 1]. 0 if nothing was recorded.
    double quantile_us(double q) const;
    // What was recorded since `earlier`.
    Summary since(const Summary& earlier) const;
    void merge(const Summary& other);
  };
  Summary summary() const;

  static unsigned bucket_of(DurationUs us);

 private:
  struct alignas(64) Stripe {
    std::array<std::atomic<std::uint64_t>, kBuckets> counts{};
    std::atomic<std::uint64_t> sum_us{0};
  };
  std::array<Stripe, kStripes> stripes_;
};

// Owns every series. Making one is thread-safe and returns the same series for the same name and
// labels; references stay valid as long as the registry.
class Registry {
 public:
  Registry();
  ~Registry();
  Registry(const Registry&) = delete;
  Registry& operator=(const Registry&) = delete;

  // `name` without a unit check: design section 6 names them. `help` is taken from the first call.
  Counter& counter(std::string_view name, Labels labels, std::string_view help);
  // Rendered in seconds (name ends in _seconds).
  Histogram& histogram(std::string_view name, Labels labels, std::string_view help);
  // A gauge, or a counter kept elsewhere, is read when somebody asks. `read` must stay callable
  // from any thread until remove_callbacks(owner) has returned, and must not call the registry. The
  // same series from two owners is rendered as their sum; from the same owner, the later one
  // counts.
  enum class Kind : std::uint8_t { counter, gauge };
  void callback(Kind kind, std::string_view name, Labels labels, std::string_view help,
                std::function<double()> read, const void* owner);
  void remove_callbacks(const void* owner);

  // The Prometheus text format, version 0.0.4; families in order of name.
  std::string prometheus() const;

  // For the status page and the demo: every series whose family is `name`, in order of labels.
  // Callbacks are not visited. `visit` must not call the registry.
  void each_counter(std::string_view name,
                    const std::function<void(const Labels&, std::uint64_t)>& visit) const;
  void each_histogram(
      std::string_view name,
      const std::function<void(const Labels&, const Histogram::Summary&)>& visit) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace larder::obs
