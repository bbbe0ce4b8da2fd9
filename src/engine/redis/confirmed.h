// What a source may forget of its log: what every partition had applied kReplicaLag ago. That rests
// on replicas of the engine being less than that behind when one of them takes over; if they were
// more, the source's log no longer reaches back to A, which begins a new epoch: slow, never stale.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>

#include "base/clock.h"

namespace larder::engine::redis {

class Confirmed {
 public:
  static constexpr DurationUs kReplicaLag = 10 * kSecond;
  static constexpr DurationUs kNoteEvery = kSecond;

  // `lowest`: the lowest A of all partitions now.
  void note(TimeUs now, std::uint64_t lowest) {
    // The engine has fallen back: what was noted may be lost.
    if (!applied_.empty() && lowest < applied_.back().position) applied_.clear();
    while (!applied_.empty() && applied_.front().at <= now - kReplicaLag) {
      position_ = std::max(position_, applied_.front().position);
      applied_.pop_front();
    }
    if (applied_.empty() || applied_.back().at <= now - kNoteEvery)
      applied_.push_back({.at = now, .position = lowest});
  }
  // Some partition has no state: nothing more is safe to forget until it has.
  void hold() { applied_.clear(); }
  // Of another log.
  void reset() { *this = {}; }

  std::uint64_t position() const { return position_; }

 private:
  struct Applied {
    TimeUs at = 0;
    std::uint64_t position = 0;
  };
  std::deque<Applied> applied_;  // of the last kReplicaLag
  std::uint64_t position_ = 0;
};

}  // namespace larder::engine::redis
