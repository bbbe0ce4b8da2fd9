// Durations and sizes as people write them. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"

namespace larder {

// "5m", "100ms", "1h30m", "1.5s", "0". Units: us, ms, s, m, h, d, larger ones first, each once.
// nullopt: not a duration, or above 100 years.
std::optional<DurationUs> parse_duration(std::string_view text);
inline constexpr DurationUs kMaxDuration = 100LL * 366 * 24 * 3600 * kSecond;

// "512", "64KB" (1000), "1MiB" (1024 * 1024), "1.5GiB". Units: B, K, M, G, T with B or iB.
// nullopt: not a size, or above 2^50.
std::optional<std::uint64_t> parse_size(std::string_view text);
inline constexpr std::uint64_t kMaxSize = 1ULL << 50;

// The shortest form that parses back to the same: "1h30m", "100ms", "0".
std::string format_duration(DurationUs us);
// "256MiB", "64KB" or "1234".
std::string format_size(std::uint64_t bytes);

}  // namespace larder
