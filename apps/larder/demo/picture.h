// What the demo shows while it runs: figures taken from the node's own metrics and from its
// clients.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "obs/metrics.h"

namespace larder::app {

// Filled by the demo's threads; read by the painter. Thread-safe.
struct DemoFigures {
  // From COMMIT to a reader who sees the new price.
  void saw_fresh(DurationUs us);
  // In microseconds; 0 if nothing was seen yet.
  double until_fresh_us(double quantile) const;
  std::uint64_t seen() const;

  std::atomic<std::uint64_t> reads{0};
  std::atomic<std::uint64_t> errors{0};
  std::atomic<std::uint64_t> changes{0};  // prices changed in the database

 private:
  mutable Mutex mutex_;
  std::vector<DurationUs> until_fresh_ LARDER_GUARDED_BY(mutex_);
};

// The state at one moment, summed over the caches.
struct DemoSample {
  double seconds = 0;
  std::uint64_t reads = 0;
  std::array<std::uint64_t, 5> by_tier{};  // near, engine, source, stale, error
  std::array<obs::Histogram::Summary, 5> latency;
  std::uint64_t queries = 0;
  std::uint64_t keys_queried = 0;
  std::uint64_t invalidations = 0;
};

DemoSample take_sample(const obs::Registry& registry, double seconds);

// The frame: about 16 lines. `before` is an earlier sample, for rates.
std::vector<std::string> paint(const DemoSample& now, const DemoSample& before,
                               const DemoFigures& figures, bool colour);

// One line for terminals that cannot be repainted.
std::string paint_line(const DemoSample& now, const DemoSample& before, const DemoFigures& figures);

}  // namespace larder::app
