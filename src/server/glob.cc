#include "server/glob.h"

namespace larder::server {
namespace {

char fold(char c, bool ignore_case) {
  return ignore_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
}

// Matches one character against the pattern's element at `p`, and moves `p` behind that element.
bool match_one(std::string_view pattern, std::size_t& p, char c, bool ignore_case) {
  if (pattern[p] == '?') {
    ++p;
    return true;
  }
  if (pattern[p] != '[') {
    if (pattern[p] == '\\' && p + 1 < pattern.size()) ++p;
    return fold(pattern[p++], ignore_case) == c;
  }
  ++p;
  const bool negated = p < pattern.size() && pattern[p] == '^';
  if (negated) ++p;
  bool found = false;
  // As in Redis, a bracket that is not closed ends with the pattern.
  while (p < pattern.size() && pattern[p] != ']') {
    if (pattern[p] == '\\' && p + 1 < pattern.size()) {
      ++p;
      found |= fold(pattern[p++], ignore_case) == c;
    } else if (p + 2 < pattern.size() && pattern[p + 1] == '-') {
      char low = fold(pattern[p], ignore_case);
      char high = fold(pattern[p + 2], ignore_case);
      if (low > high) std::swap(low, high);
      found |= c >= low && c <= high;
      p += 3;
    } else {
      found |= fold(pattern[p++], ignore_case) == c;
    }
  }
  if (p < pattern.size()) ++p;
  return found != negated;
}

}  // namespace

bool glob_match(std::string_view pattern, std::string_view text, bool ignore_case) {
  constexpr std::size_t kNone = static_cast<std::size_t>(-1);
  std::size_t p = 0;
  std::size_t t = 0;
  // Where to go on after a mismatch: only the latest star can matter, which is what keeps this from
  // being exponential.
  std::size_t star = kNone;
  std::size_t star_text = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = ++p;
      star_text = t;
      continue;
    }
    std::size_t next = p;
    if (p < pattern.size() && match_one(pattern, next, fold(text[t], ignore_case), ignore_case)) {
      p = next;
      ++t;
    } else if (star != kNone) {
      p = star;
      t = ++star_text;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace larder::server
