#include "base/units.h"

#include <gtest/gtest.h>

#include <limits>

namespace larder {
namespace {

TEST(Units, Durations) {
  const std::pair<const char*, DurationUs> rows[] = {
      {"0", 0},
      {"0s", 0},
      {"5m", 300 * kSecond},
      {"100ms", 100 * kMillisecond},
      {"250us", 250},
      {"1h30m", 5'400 * kSecond},
      {"1.5s", 1'500 * kMillisecond},
      {"1d", 86'400 * kSecond},
      {"1d2h3m4s5ms6us", (((24 + 2) * 60 + 3) * 60LL + 4) * kSecond + 5'006},
  };
  for (const auto& [text, want] : rows) EXPECT_EQ(parse_duration(text), want) << text;
  for (const char* bad :
       {"",     "5",    "m",    "-5m", "5 m",   "5m ",  "5M",        "5min",
        "1m1h", "1m1m", "1.s",  ".5s", "1..5s", "1e3s", "99999999d", "99999999999999999999999s",
        "inf",  "nans", "0x5s", "\xff"})
    EXPECT_FALSE(parse_duration(bad).has_value()) << bad;
}

TEST(Units, Sizes) {
  const std::pair<const char*, std::uint64_t> rows[] = {
      {"0", 0},
      {"512", 512},
      {"512B", 512},
      {"64KB", 64'000},
      {"64KiB", 65'536},
      {"1MiB", 1 << 20},
      {"1.5GiB", 3ULL << 29},
      {"1TB", 1'000'000'000'000},
      {"1024TiB", 1ULL << 50},
  };
  for (const auto& [text, want] : rows) EXPECT_EQ(parse_size(text), want) << text;
  for (const char* bad : {"", "B", "-1", "1 MiB", "1mib", "1m", "1MiBs", "1025TiB", "1e9", "0x10",
                          "99999999999999999999999"})
    EXPECT_FALSE(parse_size(bad).has_value()) << bad;
}

TEST(Units, WhatIsFormattedParsesBack) {
  EXPECT_EQ(format_duration(0), "0");
  EXPECT_EQ(format_duration(5'400 * kSecond), "1h30m");
  EXPECT_EQ(format_duration(100 * kMillisecond), "100ms");
  EXPECT_EQ(format_size(256 << 20), "256MiB");
  EXPECT_EQ(format_size(64'000), "64KB");
  EXPECT_EQ(format_size(1'234), "1234");
  EXPECT_EQ(format_size(0), "0");
  for (std::int64_t x = 1; x < kMaxDuration / 7; x = x * 7 + 3) {
    EXPECT_EQ(parse_duration(format_duration(x)), x);
    if (static_cast<std::uint64_t>(x) <= kMaxSize)
      EXPECT_EQ(parse_size(format_size(static_cast<std::uint64_t>(x))), x);
  }
  EXPECT_EQ(parse_duration(format_duration(kMaxDuration)), kMaxDuration);
}

}  // namespace
}  // namespace larder
