// Small, fast, seedable randomness (xoshiro256**, Blackman and Vigna). Not for secrets.
#pragma once

#include <bit>
#include <cstdint>

#include "base/hash.h"

namespace larder {

class Random {
 public:
  explicit Random(std::uint64_t seed) {
    for (auto& word : state_) word = mix64(seed += 0x9e3779b97f4a7c15ULL);
  }

  std::uint64_t next() {
    const std::uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
    const std::uint64_t t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = std::rotl(state_[3], 45);
    return result;
  }

  // In [0, bound). REQUIRES: bound > 0.
  std::uint64_t below(std::uint64_t bound) {
    return static_cast<std::uint64_t>((static_cast<unsigned __int128>(next()) * bound) >> 64);
  }

  // In (0, 1]: safe to take the logarithm of.
  double unit() { return (static_cast<double>(next() >> 11) + 1.0) * 0x1.0p-53; }

  bool chance(double probability) { return unit() <= probability; }

 private:
  std::uint64_t state_[4];
};

}  // namespace larder
