#include "base/units.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cmath>
#include <iterator>

namespace larder {
namespace {

struct Unit {
  std::string_view name;
  std::int64_t factor;
};
constexpr std::array<Unit, 6> kTimes = {{{"d", 86'400 * kSecond},
                                         {"h", 3'600 * kSecond},
                                         {"m", 60 * kSecond},
                                         {"s", kSecond},
                                         {"ms", kMillisecond},
                                         {"us", 1}}};
constexpr std::array<Unit, 9> kSizes = {{{"TiB", 1LL << 40},
                                         {"GiB", 1LL << 30},
                                         {"MiB", 1LL << 20},
                                         {"KiB", 1LL << 10},
                                         {"TB", 1'000'000'000'000},
                                         {"GB", 1'000'000'000},
                                         {"MB", 1'000'000},
                                         {"KB", 1'000},
                                         {"B", 1}}};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Takes "12" or "1.5" from the front of `text`.
std::optional<double> take_number(std::string_view& text) {
  std::size_t size = 0;
  while (size < text.size() && is_digit(text[size])) ++size;
  if (size == 0) return std::nullopt;
  if (size + 1 < text.size() && text[size] == '.' && is_digit(text[size + 1])) {
    ++size;
    while (size < text.size() && is_digit(text[size])) ++size;
  }
  const char* const digits = text.data();
  const char* const digits_end = digits + size;
  double value = 0;
  const auto [end, error] = std::from_chars(digits, digits_end, value);
  if (error != std::errc() || end != digits_end) return std::nullopt;
  text.remove_prefix(size);
  return value;
}

std::string_view take_word(std::string_view& text) {
  std::size_t size = 0;
  while (size < text.size() && !is_digit(text[size])) ++size;
  const std::string_view word = text.substr(0, size);
  text.remove_prefix(size);
  return word;
}

}  // namespace

std::optional<DurationUs> parse_duration(std::string_view text) {
  if (text == "0") return 0;
  if (text.empty()) return std::nullopt;
  double total = 0;
  std::size_t next_unit = 0;
  while (!text.empty()) {
    const auto number = take_number(text);
    if (!number) return std::nullopt;
    const std::string_view word = take_word(text);
    while (next_unit < kTimes.size() && kTimes[next_unit].name != word) ++next_unit;
    if (next_unit == kTimes.size()) return std::nullopt;  // unknown, repeated, or out of order
    total += *number * static_cast<double>(kTimes[next_unit++].factor);
    if (!(total <= static_cast<double>(kMaxDuration))) return std::nullopt;
  }
  return std::llround(total);
}

std::optional<std::uint64_t> parse_size(std::string_view text) {
  const auto number = take_number(text);
  if (!number) return std::nullopt;
  double factor = text.empty() ? 1 : 0;
  for (const Unit& unit : kSizes)
    if (unit.name == text) factor = static_cast<double>(unit.factor);
  if (factor == 0) return std::nullopt;
  const double bytes = *number * factor;
  if (!(bytes <= static_cast<double>(kMaxSize))) return std::nullopt;
  return static_cast<std::uint64_t>(std::llround(bytes));
}

std::string format_duration(DurationUs us) {
  if (us <= 0) return "0";
  std::string out;
  for (const Unit& unit : kTimes) {
    if (us < unit.factor) continue;
    fmt::format_to(std::back_inserter(out), "{}{}", us / unit.factor, unit.name);
    us %= unit.factor;
  }
  return out;
}

std::string format_size(std::uint64_t bytes) {
  for (const Unit& unit : kSizes) {
    const auto factor = static_cast<std::uint64_t>(unit.factor);
    if (factor > 1 && bytes >= factor && bytes % factor == 0)
      return fmt::format("{}{}", bytes / factor, unit.name);
  }
  return fmt::format("{}", bytes);
}

}  // namespace larder
