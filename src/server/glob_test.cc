#include "server/glob.h"

#include <gtest/gtest.h>

#include <string>

namespace larder::server {
namespace {

TEST(Glob, MatchesAsRedisDoes) {
  struct Case {
    const char* pattern;
    const char* text;
    bool matches;
  };
  const Case cases[] = {
      {"*", "", true},
      {"*", "news", true},
      {"", "", true},
      {"", "a", false},
      {"news.*", "news.a", true},
      {"news.*", "news", false},
      {"h?llo", "hello", true},
      {"h?llo", "hllo", false},
      {"h[ae]llo", "hallo", true},
      {"h[ae]llo", "hillo", false},
      {"h[^e]llo", "hello", false},
      {"h[^e]llo", "hallo", true},
      {"h[a-c]llo", "hbllo", true},
      {"h[c-a]llo", "hbllo", true},
      {"h[a-c]llo", "hdllo", false},
      {"a\\*b", "a*b", true},
      {"a\\*b", "axb", false},
      {"a*b*c", "axxbyyc", true},
      {"a*b*c", "axxbyy", false},
      {"[abc", "b", true},
      {"a**", "a", true},
      {"[\\]]", "]", true},
  };
  for (const Case& c : cases)
    EXPECT_EQ(glob_match(c.pattern, c.text), c.matches) << c.pattern << " against " << c.text;
}

TEST(Glob, FoldsCaseOnRequest) {
  EXPECT_FALSE(glob_match("MAX*", "maxmemory"));
  EXPECT_TRUE(glob_match("MAX*", "maxmemory", true));
}

TEST(Glob, ManyStarsStayCheap) {
  // A backtracking matcher would take longer than the age of the universe.
  std::string pattern;
  for (int i = 0; i < 100; ++i) pattern += "*a";
  EXPECT_FALSE(glob_match(pattern + "b", std::string(10'000, 'a')));
}

}  // namespace
}  // namespace larder::server
