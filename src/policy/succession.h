// Which incarnation of a source is the present one, by what its answers say: the database was
// restored, failed over, put back. Pure.
//
// A new one is believed at once: what is held of the other is void. Three things must not be taken
// for one: a late answer of the one that was replaced; an answer of an old primary that some
// connections still reach, while others reach the new one; and, after the way back, nothing.
//
// Not thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>

#include "base/clock.h"

namespace larder::policy {

class Succession {
 public:
  // One that was replaced is believed again when the present one has been silent so long: two
  // servers that answer by turns would void everything each time.
  static constexpr DurationUs kSilence = kSecond;
  static constexpr std::size_t kMostReplaced = 8;  // the oldest count as new again

  // 0: none yet.
  std::uint64_t present() const { return present_; }

  // Is `id`, by an answer that was asked for at `asked`, the one that comes after the present one?
  // `heard`: when the present one last answered. REQUIRES: id is not the present one.
  bool follows(std::uint64_t id, TimeUs asked, TimeUs heard, TimeUs now) const {
    if (present_ == 0) return true;
    if (asked <= began_at_) return false;
    return std::ranges::find(replaced_, id) == replaced_.end() || now - heard >= kSilence;
  }

  void begin(std::uint64_t id, TimeUs now) {
    std::erase(replaced_, id);
    if (present_ != 0) replaced_.push_back(present_);
    if (replaced_.size() > kMostReplaced) replaced_.pop_front();
    present_ = id;
    began_at_ = now;
  }

 private:
  std::uint64_t present_ = 0;
  TimeUs began_at_ = 0;
  std::deque<std::uint64_t> replaced_;
};

}  // namespace larder::policy
