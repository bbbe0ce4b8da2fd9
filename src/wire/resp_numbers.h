// Numbers as RESP writes them, for the parsers of this folder.
#pragma once

#include <charconv>
#include <cstdint>
#include <string_view>

namespace larder::wire {

inline bool is_digit(char c) { return static_cast<unsigned char>(c - '0') < 10; }

// Redis's string2ll, for lengths in commands: no plus, no leading zeros, nothing around it.
inline bool parse_integer(std::string_view text, std::int64_t& value) {
  const std::string_view digits = text.substr(text.starts_with('-') ? 1 : 0);
  if (digits.empty() || !is_digit(digits[0])) return false;
  if (digits[0] == '0' && text.size() > 1) return false;
  const char* const begin = text.data();
  const char* const end = begin + text.size();
  const auto [stop, code] = std::from_chars(begin, end, value);
  return code == std::errc() && stop == end;
}

// In replies a plus may stand before an integer or a real.
inline bool parse_reply_integer(std::string_view text, std::int64_t& value) {
  if (text.starts_with('+')) text.remove_prefix(1);
  return parse_integer(text, value);
}

inline bool parse_reply_real(std::string_view text, double& value) {
  if (text.starts_with('+')) text.remove_prefix(1);
  const char* const begin = text.data();
  const char* const end = begin + text.size();
  const auto [stop, code] = std::from_chars(begin, end, value);
  return code == std::errc() && stop == end;
}

}  // namespace larder::wire
