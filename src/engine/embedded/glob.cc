#include "engine/embedded/glob.h"

#include <cstddef>
#include <utility>

namespace larder::engine {
namespace {

// One class, from behind its '['. Sets `at` behind its ']'.
bool class_matches(std::string_view pattern, std::size_t& at, char c, std::size_t& budget) {
  const bool negated = at < pattern.size() && pattern[at] == '^';
  if (negated) ++at;
  bool match = false;
  while (at < pattern.size() && pattern[at] != ']') {
    if (budget > 0) --budget;
    const std::size_t left = pattern.size() - at;
    if (left >= 2 && pattern[at] == '\\') {
      match |= pattern[at + 1] == c;
      at += 2;
    } else if (left >= 3 && pattern[at + 1] == '-') {
      // Signed, as Redis compares them; the ends may come in either order.
      auto first = static_cast<signed char>(pattern[at]);
      auto last = static_cast<signed char>(pattern[at + 2]);
      if (first > last) std::swap(first, last);
      const auto it = static_cast<signed char>(c);
      match |= it >= first && it <= last;
      at += 3;
    } else {
      match |= pattern[at] == c;
      ++at;
    }
  }
  if (at < pattern.size()) ++at;
  return match != negated;
}

// Does the token at `at` (not a star) match c? Sets `at` behind it.
bool token_matches(std::string_view pattern, std::size_t& at, char c, std::size_t& budget) {
  const char token = pattern[at++];
  if (token == '?') return true;
  if (token == '[') return class_matches(pattern, at, c, budget);
  if (token == '\\' && at < pattern.size()) return pattern[at++] == c;
  return token == c;
}

}  // namespace

bool glob_match(std::string_view pattern, std::string_view text) {
  constexpr std::size_t kNone = static_cast<std::size_t>(-1);
  std::size_t budget = (std::size_t{1} << 16) + 16 * (pattern.size() + text.size());
  std::size_t p = 0;
  std::size_t t = 0;
  // Each token takes exactly one byte, so only the last star ever needs to be tried again: what an
  // earlier one would give up, the last one can take.
  std::size_t after_star = kNone;
  std::size_t star_text = 0;
  while (t < text.size()) {
    if (budget == 0) return false;
    --budget;
    if (p < pattern.size() && pattern[p] == '*') {
      after_star = ++p;
      star_text = t;
      continue;
    }
    if (p < pattern.size() && token_matches(pattern, p, text[t], budget)) {
      ++t;
      continue;
    }
    if (after_star == kNone) return false;
    p = after_star;
    t = ++star_text;
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace larder::engine
