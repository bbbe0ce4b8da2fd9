#include "feed/event.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace larder::feed {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::size_t kMax = 4096;

Path path(std::string_view text) { return *parse_path(text); }

Rule key_rule(std::string_view key, std::vector<Condition> match = {}) {
  auto parsed = Template::parse(key);
  EXPECT_TRUE(parsed) << to_string(parsed.error());
  return {.match = std::move(match), .key = parsed ? *parsed : Template{}, .tag = {}};
}

// The key that the event gives; "ignored"; or the error behind '!'.
std::string key_of(std::string_view event, const Rule& rule, std::size_t max = kMax) {
  const auto read = read_event(event, rule, max);
  if (!read) return "!" + read.error().message;
  if (!*read) return "ignored";
  EXPECT_THAT((*read)->tags, testing::IsEmpty());
  return (*read)->keys.size() == 1 ? (*read)->keys.front() : "(several)";
}

const Rule kUser = key_rule("user:{id}", {{path("type"), "user"}});

TEST(Event, GivesTheKeyOfWhatItNames) {
  EXPECT_EQ(key_of(R"({"type":"user","id":"user-123"})", kUser), "user:user-123");
  EXPECT_EQ(key_of(R"( {"id" : 7, "type":"user", "more":[1,{"x":null}]} )", kUser), "user:7");
}

TEST(Event, OthersEventsAreNotOurs) {
  EXPECT_EQ(key_of(R"({"type":"order","id":"7"})", kUser), "ignored");
  EXPECT_EQ(key_of(R"({"id":"7"})", kUser), "ignored");
  EXPECT_EQ(key_of(R"({"type":["user"],"id":"7"})", kUser), "ignored");
  // Whatever else is wrong with them.
  EXPECT_EQ(key_of(R"({"type":"order"})", kUser), "ignored");
}

TEST(Event, AllConditionsMustHold) {
  const Rule rule = key_rule("u:{id}", {{path("type"), "user"}, {path("meta.op"), "update"}});
  EXPECT_EQ(key_of(R"({"type":"user","meta":{"op":"update"},"id":1})", rule), "u:1");
  EXPECT_EQ(key_of(R"({"type":"user","meta":{"op":"create"},"id":1})", rule), "ignored");
  EXPECT_EQ(key_of(R"({"type":"user","meta":"update","id":1})", rule), "ignored");
}

TEST(Event, ConditionsCompareValueAndType) {
  const auto judged = [](Constant is, std::string_view value) {
    const std::string event = "{\"v\":" + std::string(value) + ",\"id\":1}";
    return key_of(event, key_rule("k:{id}", {{path("v"), std::move(is)}})) == "k:1";
  };
  EXPECT_TRUE(judged(std::int64_t{2}, "2"));
  EXPECT_TRUE(judged(std::int64_t{2}, "2.0"));
  EXPECT_FALSE(judged(std::int64_t{2}, "\"2\""));
  EXPECT_FALSE(judged(std::int64_t{2}, "3"));
  EXPECT_FALSE(judged(std::int64_t{-1}, "18446744073709551615"));
  EXPECT_TRUE(judged(INT64_MAX, "9223372036854775807"));
  EXPECT_FALSE(judged(INT64_MAX, "9223372036854775808.0"));
  EXPECT_TRUE(judged(1.5, "1.5"));
  EXPECT_TRUE(judged(2.0, "2"));
  EXPECT_FALSE(judged(1.5, "true"));
  EXPECT_TRUE(judged(true, "true"));
  EXPECT_FALSE(judged(true, "false"));
  EXPECT_FALSE(judged(true, "1"));
  EXPECT_FALSE(judged("true", "true"));
  EXPECT_FALSE(judged("", "null"));
}

TEST(Event, PathsGoIntoObjects) {
  const Rule rule = key_rule("user:{user.id}:{user.home.city}");
  EXPECT_EQ(key_of(R"({"user":{"id":7,"home":{"city":"Bonn"}}})", rule), "user:7:Bonn");
  EXPECT_EQ(key_of(R"({"user":{"id":7}})", rule), "!it has no field 'user.home.city'");
  EXPECT_EQ(key_of(R"({"user":{"id":7,"home":"Bonn"}})", rule),
            "!it has no field 'user.home.city'");
  EXPECT_EQ(key_of(R"({"user.id":7})", rule), "!it has no field 'user.id'");
}

TEST(Event, OnlyScalarsNameAnything) {
  const Rule rule = key_rule("k:{v}");
  const auto with = [&](std::string_view value) {
    return key_of("{\"v\":" + std::string(value) + "}", rule);
  };
  EXPECT_EQ(with(R"("a\u0041")"), "k:aA");
  EXPECT_EQ(with("-12"), "k:-12");
  EXPECT_EQ(with("18446744073709551615"), "k:18446744073709551615");
  EXPECT_EQ(with("1.0"), "k:1");
  EXPECT_EQ(with("-0.0"), "k:0");
  EXPECT_EQ(with("0.1"), "k:0.1");
  EXPECT_EQ(with("true"), "k:true");
  EXPECT_EQ(with("false"), "k:false");
  for (const char* none : {"null", "[]", "{}", "[1]", "18446744073709551617", "1e300", "9.1e15"})
    EXPECT_THAT(with(none), HasSubstr("neither a text nor an exact number")) << none;
  EXPECT_EQ(with("\"\""), "!its field 'v' is empty");
}

TEST(Event, WhatIsNoJsonObjectIsMalformed) {
  for (const char* bytes :
       {"", " ", "user-123", "{", R"({"type":"user","id":"7")", R"({"type":"user","id":"7"}x)",
        "{'type':'user'}", "\xff", "{\"type\":\"user\",\"id\":\"\xff\"}"})
    EXPECT_THAT(key_of(bytes, kUser), HasSubstr("!it is not JSON")) << bytes;
  for (const char* bytes : {"[]", "7", "null", "\"user\""})
    EXPECT_EQ(key_of(bytes, kUser), "!it is JSON, but no object");
}

TEST(Event, EveryCutOfAnEventIsMalformed) {
  const std::string whole = R"({"type":"user","id":"user-123","n":[1.5,true,null,{"a":"\u00e9"}]})";
  EXPECT_EQ(key_of(whole, kUser), "user:user-123");
  for (std::size_t size = 0; size < whole.size(); ++size)
    EXPECT_THAT(key_of(whole.substr(0, size), kUser), HasSubstr("!it is not JSON")) << size;
}

TEST(Event, SizeAndDepthAreBounded) {
  const std::string event = R"({"type":"user","id":"7"})";
  EXPECT_EQ(key_of(event, kUser, event.size()), "user:7");
  EXPECT_EQ(key_of(event, kUser, event.size() - 1), "!it has 24 bytes, more than 23");
  const auto nested = [](std::size_t depth) {
    return R"({"type":"user","id":"7","x":)" + std::string(depth, '[') + std::string(depth, ']') +
           "}";
  };
  EXPECT_EQ(key_of(nested(30), kUser), "user:7");
  EXPECT_EQ(key_of(nested(40), kUser), "!it is nested more than 32 deep");
  EXPECT_EQ(key_of(nested(1000), kUser), "!it is nested more than 32 deep");
}

TEST(Event, ErrorsDoNotRepeatTheEventsValues) {
  const auto read = read_event(R"({"type":"user","id":{"secret":1}})", kUser, kMax);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().message.find("secret"), std::string::npos);
}

TEST(Event, TagsToo) {
  Rule rule;
  rule.tag = *Template::parse("category:{c}");
  auto read = read_event(R"({"c":"boats"})", rule, kMax);
  ASSERT_TRUE(read && *read);
  EXPECT_EQ(**read, (Event{{}, {"category:boats"}}));
  rule.key = *Template::parse("{c}");
  read = read_event(R"({"c":"boats"})", rule, kMax);
  ASSERT_TRUE(read && *read);
  EXPECT_EQ(**read, (Event{{"boats"}, {"category:boats"}}));
  // Larder's own tags void whole caches: no event may name them.
  rule = {};
  rule.tag = *Template::parse("{c}");
  EXPECT_FALSE(read_event(R"({"c":"@user"})", rule, kMax));
}

TEST(Event, FieldsOfAStreamAreTexts) {
  const Rule rule = key_rule(
      "user:{user.id}", {{path("type"), "user"}, {path("v"), std::int64_t{2}}, {path("ok"), true}});
  const auto read = [&](std::vector<Field> fields, std::size_t max = kMax) -> std::string {
    const auto event = read_fields(fields, rule, max);
    if (!event) return "!" + event.error().message;
    return *event ? (*event)->keys.front() : "ignored";
  };
  EXPECT_EQ(read({{"type", "user"}, {"v", "2"}, {"ok", "true"}, {"user.id", "7"}}), "user:7");
  EXPECT_EQ(read({{"type", "user"}, {"v", "3"}, {"ok", "true"}, {"user.id", "7"}}), "ignored");
  EXPECT_EQ(read({}), "ignored");
  EXPECT_EQ(read({{"type", "user"}, {"v", "2"}, {"ok", "true"}}), "!it has no field 'user.id'");
  EXPECT_EQ(read({{"type", "user"}, {"v", "2"}, {"ok", "true"}, {"user.id", ""}}),
            "!its field 'user.id' is empty");
  EXPECT_EQ(read({{"type", "user"}}, 7), "!it has 8 bytes, more than 7");
}

TEST(Template, Parses) {
  const auto parsed = Template::parse("a{{{x}}}b{y.z}");
  ASSERT_TRUE(parsed) << to_string(parsed.error());
  EXPECT_THAT(parsed->literals, ElementsAre("a{", "}b", ""));
  EXPECT_THAT(parsed->paths, ElementsAre(ElementsAre("x"), ElementsAre("y", "z")));
  EXPECT_EQ(parsed->prefix(), "a{");
  EXPECT_EQ(key_of(R"({"x":1,"y":{"z":2}})", key_rule("a{{{x}}}b{y.z}")), "a{1}b2");
  EXPECT_EQ(key_of("{}", key_rule("all")), "all");  // a constant
}

TEST(Template, SaysWhatIsWrong) {
  const auto error = [](std::string_view text) {
    const auto parsed = Template::parse(text);
    return parsed ? std::string("(none)") : parsed.error().message;
  };
  EXPECT_EQ(error(""), "it must not be empty");
  EXPECT_EQ(error("a{b"), "'a{b', column 2: a '{' that is not closed; '{{' is a literal brace");
  EXPECT_EQ(error("a}"), "'a}', column 2: a '}' that closes nothing; '}}' is a literal brace");
  for (const char* text : {"a{}", "a{.b}", "a{b.}", "a{b..c}"})
    EXPECT_THAT(error(text), HasSubstr("is not a path to a field")) << text;
  EXPECT_THAT(error(std::string(513, 'a')), HasSubstr("more than 512 bytes"));
  std::string many;
  for (int i = 0; i < 17; ++i) many += "{a}";
  EXPECT_THAT(error(many), HasSubstr("more than 16 fields"));
  std::string deep = "a";
  for (int i = 0; i < 40; ++i) deep += ".a";
  EXPECT_THAT(error("{" + deep + "}"), HasSubstr("more than 32 deep"));
}

}  // namespace
}  // namespace larder::feed
