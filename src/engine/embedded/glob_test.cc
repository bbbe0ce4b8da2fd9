#include "engine/embedded/glob.h"

#include <gtest/gtest.h>

#include <string>

#include "base/random.h"

namespace larder::engine {
namespace {

TEST(Glob, MatchesAsRedisDoes) {
  struct Case {
    std::string_view pattern;
    std::string_view text;
    bool match;
  };
  const Case cases[] = {
      {"", "", true},
      {"", "a", false},
      {"*", "", true},
      {"**", "", true},
      {"*", "anything", true},
      {"a*", "a", true},
      {"a*c", "abcbc", true},
      {"a*c", "abcb", false},
      {"*b*", "abc", true},
      {"*a*b*c*", "xxaxxbxxcxx", true},
      {"*a*b*c*", "xxaxxcxxbxx", false},
      {"?", "", false},
      {"?", "a", true},
      {"h?llo", "hello", true},
      {"h[ae]llo", "hallo", true},
      {"h[ae]llo", "hillo", false},
      {"h[^e]llo", "hallo", true},
      {"h[^e]llo", "hello", false},
      {"h[a-b]llo", "hbllo", true},
      {"h[b-a]llo", "hallo", true},
      {"h[a-b]llo", "hcllo", false},
      {"[a-]", "-", false},  // the range from ']' to 'a', and no end
      {"[a-]", "^", true},
      {"[-a]", "-", true},
      {"[]", "a", false},
      {"[]a]", "]a]", false},
      {"[^]", "a", true},
      {"[a", "a", true},
      {"[a", "b", false},
      {"[", "a", false},
      {"[", "[", false},
      {"[^", "x", true},
      {"[\\]]", "]", true},
      {"[\\", "\\", true},
      {"[a-", "a", true},
      {"[a-", "-", true},
      {"\\*", "*", true},
      {"\\*", "a", false},
      {"\\", "\\", true},
      {"a\\", "a\\", true},
      {"\\\\", "\\", true},
      {"*\\?", "what?", true},
      {"a*[^x]", "abx", false},
      {"a*[^x]", "abxy", true},
      {"*[0-9]", "k7", true},
      {"A", "a", false},
  };
  for (const Case& c : cases)
    EXPECT_EQ(glob_match(c.pattern, c.text), c.match) << c.pattern << " on " << c.text;
}

TEST(Glob, BinaryKeysAndSignedRanges) {
  EXPECT_TRUE(glob_match(std::string_view("a?b", 3), std::string_view("a\0b", 3)));
  EXPECT_TRUE(glob_match("[\x80-\xff]", "\x90"));
  EXPECT_TRUE(glob_match("[\x80-\x7f]", "a")) << "all of them, as signed characters";
}

// Only * and ? and letters: simple enough to say by recursion.
bool slow_match(std::string_view pattern, std::string_view text) {
  if (pattern.empty()) return text.empty();
  if (pattern[0] == '*')
    return slow_match(pattern.substr(1), text) ||
           (!text.empty() && slow_match(pattern, text.substr(1)));
  return !text.empty() && (pattern[0] == '?' || pattern[0] == text[0]) &&
         slow_match(pattern.substr(1), text.substr(1));
}

TEST(Glob, AgreesWithTheDefinition) {
  Random random(1);
  const auto draw = [&](std::string_view letters, std::uint64_t most) {
    std::string text;
    for (auto n = random.below(most); n > 0; --n) text += letters[random.below(letters.size())];
    return text;
  };
  for (int i = 0; i < 50'000; ++i) {
    const std::string pattern = draw("ab*?", 8);
    const std::string text = draw("ab", 9);
    ASSERT_EQ(glob_match(pattern, text), slow_match(pattern, text)) << pattern << " on " << text;
  }
}

TEST(Glob, HostilePatternsStopAtTheBound) {
  std::string stars;
  for (int i = 0; i < 20'000; ++i) stars += "a*";
  stars += "b";
  EXPECT_FALSE(glob_match(stars, std::string(40'000, 'a')));
  std::string classes = "*[" + std::string(50'000, 'b') + "]";
  EXPECT_FALSE(glob_match(classes, std::string(1'000'000, 'a')));
  EXPECT_TRUE(
      glob_match("*needle*", std::string(1'000'000, 'n') + "needle" + std::string(99, 'x')));
}

}  // namespace
}  // namespace larder::engine
