#include "policy/key_pattern.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/random.h"

namespace larder::policy {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

KeyPattern pattern(std::string_view text) {
  auto parsed = KeyPattern::parse(text);
  EXPECT_TRUE(parsed.has_value()) << text << ": " << (parsed ? "" : parsed.error().message);
  return parsed.value();
}

struct Matched {
  Match match;
  std::vector<std::string> values;
};

Matched match(const KeyPattern& p, std::string_view key) {
  std::vector<std::string_view> values = {"left over"};
  const Match m = p.match(key, values);
  return {m, {values.begin(), values.end()}};
}

TEST(KeyPattern, SplitsAKeyIntoItsParameters) {
  const KeyPattern p = pattern("page:{user}:{lang:text}:{n:int}");
  EXPECT_EQ(p.prefix(), "page:");
  EXPECT_EQ(p.text(), "page:{user}:{lang:text}:{n:int}");
  EXPECT_EQ(p.param_index("lang"), 1);
  EXPECT_EQ(p.param_index("nobody"), -1);
  const Matched m = match(p, "page:ann:de:-12");
  EXPECT_EQ(m.match, Match::yes);
  EXPECT_THAT(m.values, ElementsAre("ann", "de", "-12"));
}

TEST(KeyPattern, OtherKeysAreNotItsOwn) {
  const KeyPattern p = pattern("product:{id:int}");
  EXPECT_EQ(match(p, "").match, Match::no);
  EXPECT_EQ(match(p, "product").match, Match::no);
  EXPECT_EQ(match(p, "products:7").match, Match::no);
  EXPECT_EQ(match(p, "Product:7").match, Match::no);
  EXPECT_THAT(match(p, "user:7").values, ElementsAre());
}

TEST(KeyPattern, ABadPartKeepsThePrefixReserved) {
  const KeyPattern p = pattern("product:{id:int}");
  EXPECT_EQ(match(p, "product:").match, Match::bad_part);
  EXPECT_EQ(match(p, "product:007").match, Match::bad_part);
  EXPECT_EQ(match(p, "product:abc").match, Match::bad_part);
  EXPECT_EQ(match(p, "product:7:8").match, Match::bad_part);
  EXPECT_THAT(match(p, "product:abc").values, ElementsAre());
}

TEST(KeyPattern, OnlyCanonicalTextsOfATypeMatch) {
  const auto is_int = [](std::string_view t) { return is_canonical(ParamType::integer, t); };
  for (const char* good : {"0", "7", "-7", "10", "9223372036854775807", "-9223372036854775808"})
    EXPECT_TRUE(is_int(good)) << good;
  for (const char* bad : {"", "-", "-0", "00", "007", "-01", "+7", " 7", "7 ", "7a", "0x7", "7.0",
                          "9223372036854775808", "-9223372036854775809", "99999999999999999999"})
    EXPECT_FALSE(is_int(bad)) << bad;
  const auto is_uuid = [](std::string_view t) { return is_canonical(ParamType::uuid, t); };
  EXPECT_TRUE(is_uuid("01234567-89ab-cdef-0123-456789abcdef"));
  for (const char* bad :
       {"", "01234567-89AB-cdef-0123-456789abcdef", "0123456789abcdef0123456789abcdef",
        "01234567-89ab-cdef-0123-456789abcdeg", "01234567-89ab-cdef-0123-456789abcde",
        "01234567x89ab-cdef-0123-456789abcdef", "{1234567-89ab-cdef-0123-456789abcde}"})
    EXPECT_FALSE(is_uuid(bad)) << bad;
  EXPECT_TRUE(is_canonical(ParamType::text, " "));
  EXPECT_FALSE(is_canonical(ParamType::text, ""));
}

TEST(KeyPattern, ATextEndsAtTheNextLiteralAndOnlyTheLastMayContainAnything) {
  const KeyPattern p = pattern("p:{a}::{b}");
  EXPECT_THAT(match(p, "p:x:y::z::w").values, ElementsAre("x:y", "z::w"));
  EXPECT_EQ(match(p, "p:::z").match, Match::bad_part);  // a is empty
  EXPECT_EQ(match(p, "p:x:y").match, Match::bad_part);

  const KeyPattern closed = pattern("p:{a}/{b}.json");
  EXPECT_THAT(match(closed, "p:x/y/z.json.json").values, ElementsAre("x", "y/z.json"));
  EXPECT_EQ(match(closed, "p:x/y.jso").match, Match::bad_part);
  EXPECT_EQ(match(closed, "p:x/.json").match, Match::bad_part);
}

TEST(KeyPattern, DoubledBracesAreLiterals) {
  const KeyPattern p = pattern("{{u}}:{id}");
  EXPECT_EQ(p.prefix(), "{u}:");
  EXPECT_THAT(match(p, "{u}:7").values, ElementsAre("7"));
  EXPECT_THAT(match(pattern("a{{{x}}}"), "a{v}").values, ElementsAre("v"));
}

TEST(KeyPattern, WithoutParametersItIsOneKey) {
  const KeyPattern p = pattern("home");
  EXPECT_EQ(match(p, "home").match, Match::yes);
  EXPECT_EQ(match(p, "homepage").match, Match::no);
  EXPECT_EQ(match(p, "hom").match, Match::no);
  EXPECT_EQ(p.render({}).value(), "home");
}

TEST(KeyPattern, BytesAreBytes) {
  const KeyPattern p = pattern("k:{a}:{b}");
  const std::string key("k:\0\xff:\r\n", 7);
  const Matched m = match(p, key);
  EXPECT_EQ(m.match, Match::yes);
  EXPECT_THAT(m.values, ElementsAre(std::string("\0\xff", 2), "\r\n"));
}

TEST(KeyPattern, RefusesWhatItCouldNotMatch) {
  const std::pair<const char*, const char*> rows[] = {
      {"", "must not be empty"},
      {"{id}", "must begin with a literal"},
      {"a:{x}{y}", "'x' and 'y' touch"},
      {"a:{x}:{x}", "'x' appears twice"},
      {"a:{x", "'{' at column 3 of the key pattern is not closed"},
      {"a:x}", "'}' at column 4"},
      {"a:{}", "'' at column 3 of the key pattern is not a parameter name"},
      {"a:{7x}", "not a parameter name"},
      {"a:{x y}", "not a parameter name"},
      {"a:{x:integer}", "unknown type 'integer' of key parameter 'x': use int, uuid or text"},
      {"a:{x:}", "unknown type ''"},
  };
  for (const auto& [text, message] : rows) {
    const auto parsed = KeyPattern::parse(text);
    ASSERT_FALSE(parsed.has_value()) << text;
    EXPECT_EQ(parsed.error().code, ErrorCode::config);
    EXPECT_THAT(parsed.error().message, HasSubstr(message));
  }
}

TEST(KeyPattern, HasLimits) {
  EXPECT_TRUE(KeyPattern::parse(std::string(512, 'a')).has_value());
  EXPECT_FALSE(KeyPattern::parse(std::string(513, 'a')).has_value());
  std::string many = "a";
  for (int i = 0; i < 16; ++i) many += ":{p" + std::to_string(i) + "}";
  EXPECT_TRUE(KeyPattern::parse(many).has_value());
  EXPECT_FALSE(KeyPattern::parse(many + ":{q}").has_value());
}

TEST(KeyPattern, RendersOnlyWhatMatchesBack) {
  const KeyPattern p = pattern("p:{a}::{n:int}:{b}");
  EXPECT_EQ(p.render({"x", "7", "y:z"}).value(), "p:x::7:y:z");
  const auto error = [&](std::vector<std::string_view> values) {
    const auto key = p.render(values);
    EXPECT_FALSE(key.has_value());
    return key ? std::string() : key.error().message;
  };
  EXPECT_EQ(error({"", "7", "b"}), "a must not be empty (got '')");
  EXPECT_EQ(error({"x", "07", "b"}), "n must be an integer in canonical form (got '07')");
  EXPECT_EQ(error({"x::y", "7", "b"}),
            "a must not contain '::', which ends it in the key (got 'x::y')");
  EXPECT_THAT(error({"x:", "7", "b"}), HasSubstr("must not contain"));  // x:::7 splits elsewhere
  // An integer may contain its own end, too.
  EXPECT_FALSE(pattern("d:{a:int}-{b:int}").render({"-5", "3"}).has_value());
}

TEST(KeyPattern, ExplainsABadPart) {
  const KeyPattern p = pattern("p:{id:int}/{u:uuid}.x");
  EXPECT_EQ(p.explain_bad_part("p:abc/"), "id must be an integer in canonical form (got 'abc')");
  EXPECT_EQ(p.explain_bad_part("p:7"), "'/' must follow id (got '7')");
  EXPECT_EQ(p.explain_bad_part("p:/"), "id must not be empty");
  EXPECT_EQ(p.explain_bad_part("p:7/q.x"), "u must be a UUID in lower case (got 'q')");
  EXPECT_EQ(p.explain_bad_part("p:7/q"), "'.x' must follow u (got 'q')");
  EXPECT_EQ(p.explain_bad_part("q"), "the key does not begin with 'p:'");
  EXPECT_EQ(p.explain_bad_part("p:7/01234567-89ab-cdef-0123-456789abcdef.x"), "");
  EXPECT_EQ(p.explain_bad_part("p:\r\n/"),
            "id must be an integer in canonical form (got '\\x0d\\x0a')");
  EXPECT_LT(p.explain_bad_part("p:" + std::string(10'000, 'a') + "/").size(), 200U);
}

TEST(KeyPattern, OverlapIsDecidedByPrefixes) {
  const auto overlap = [](std::string_view a, std::string_view b) {
    const bool ab = KeyPattern::overlap(pattern(a), pattern(b));
    EXPECT_EQ(ab, KeyPattern::overlap(pattern(b), pattern(a)));
    return ab;
  };
  EXPECT_TRUE(overlap("a:{x}", "a:{y:int}"));
  EXPECT_TRUE(overlap("a:{x}", "a:b:{y}"));
  EXPECT_TRUE(overlap("a:{x}", "a:all"));
  EXPECT_TRUE(overlap("home", "home"));
  EXPECT_FALSE(overlap("a:{x}", "b:{x}"));
  EXPECT_FALSE(overlap("home", "homepage"));
  EXPECT_FALSE(overlap("home", "home:{x}"));
  EXPECT_FALSE(overlap("a:{x}", "a"));
}

// Random patterns and keys over a small alphabet, so that literals and texts collide all the time.
TEST(KeyPattern, MatchAndRenderAreInverse) {
  Random random(20240607);
  const std::string_view alphabet = "a:-01";
  const auto text = [&](std::size_t min, std::size_t max) {
    std::string out;
    const std::size_t n = min + random.below(max - min + 1);
    while (out.size() < n) out += alphabet[random.below(alphabet.size())];
    return out;
  };
  int matched = 0;
  int rendered = 0;
  for (int round = 0; round < 40'000; ++round) {
    std::string source = text(1, 2);
    const std::size_t params = 1 + random.below(3);
    for (std::size_t i = 0; i < params; ++i) {
      source += "{p" + std::to_string(i) + (random.chance(0.3) ? ":int}" : "}");
      source += i + 1 < params ? text(1, 2) : text(0, 2);
    }
    const KeyPattern p = pattern(source);
    std::vector<std::string_view> values;
    const std::string key = p.prefix() + text(0, 10);
    if (p.match(key, values) == Match::yes) {
      ++matched;
      ASSERT_EQ(p.render(values).value(), key) << source;
      ASSERT_EQ(p.explain_bad_part(key), "");
    } else {
      ASSERT_NE(p.explain_bad_part(key), "") << source << " " << key;
    }
    std::vector<std::string> texts;
    for (std::size_t i = 0; i < params; ++i) texts.push_back(text(0, 3));
    values.assign(texts.begin(), texts.end());
    if (const auto made = p.render(values)) {
      ++rendered;
      std::vector<std::string_view> back;
      ASSERT_EQ(p.match(*made, back), Match::yes) << source << " " << *made;
      ASSERT_EQ(back, values) << source << " " << *made;
    }
  }
  EXPECT_GT(matched, 1'000);
  EXPECT_GT(rendered, 1'000);
}

}  // namespace
}  // namespace larder::policy
