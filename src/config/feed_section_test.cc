#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "config/check.h"
#include "config/config.h"
#include "config/feed_targets.h"

namespace larder::config {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

// Ten lines: what is asked for begins at line 11.
constexpr std::string_view kCaches =
    "[source.shop]\nurl = \"sqlite:shop.db\"\n"
    "[cache.user]\nkey = \"user:{id:text}\"\nload = \"SELECT name FROM u WHERE id = :id\"\n"
    "tags = [\"team:{team}\", \"all-users\"]\n"
    "[cache.home]\nkey = \"home\"\nload = \"SELECT * FROM home\"\n"
    "\n";

const Outside kOutside = {.environment = [](const std::string& name) -> std::optional<std::string> {
                            if (name == "PW") return "hunter2";
                            return std::nullopt;
                          },
                          .secret_file = [](const std::string&) -> Result<std::string> {
                            return fail(ErrorCode::io, "it cannot be opened");
                          }};

Loaded load(std::string_view feed) {
  return load_config(std::string(kCaches) + std::string(feed), "t", kOutside);
}

Config good(std::string_view feed) {
  auto loaded = load(feed);
  EXPECT_TRUE(loaded.has_value()) << (loaded ? "" : to_string(loaded.error()));
  return loaded ? std::move(*loaded) : Config{};
}

std::string wrong(std::string_view feed) {
  const auto loaded = load(feed);
  return loaded ? "(right)" : to_string(loaded.error());
}

constexpr std::string_view kEvents =
    "[feed.events]\nurl = \"redis://localhost:6379\"\nchannel = \"cache-invalidation\"\n";

std::string events(std::string_view more) { return std::string(kEvents) + std::string(more); }

TEST(FeedSection, AChannel) {
  const Config c = good(events("match = { type = \"user\" }\nkey = \"user:{id}\"\n"));
  ASSERT_EQ(c.feeds.size(), 1U);
  const feed::Spec& f = c.feeds[0];
  EXPECT_EQ(f.name, "events");
  EXPECT_EQ(f.channel, "cache-invalidation");
  EXPECT_EQ(f.stream, "");
  EXPECT_EQ(f.url, "redis://localhost:6379");
  ASSERT_EQ(f.rule.match.size(), 1U);
  EXPECT_THAT(f.rule.match[0].path, ElementsAre("type"));
  EXPECT_EQ(f.rule.match[0].is, feed::Constant("user"));
  ASSERT_TRUE(f.rule.key);
  EXPECT_EQ(f.rule.key->text, "user:{id}");
  EXPECT_FALSE(f.rule.tag);
  EXPECT_EQ(f.queue, 10'000U);
  EXPECT_EQ(f.max_event_bytes, 64U << 10);
}

TEST(FeedSection, AStreamWithEverything) {
  const Config c = good(
      "[feed.a]\nurl = \"redis://:${PW}@h:1/2\"\nstream = \"orders\"\nfield = \"data\"\n"
      "tag = \"team:{user.team}\"\nqueue = 5\nmax_event = \"1KiB\"\n"
      "[feed.a.match]\nuser.kind = 1\n\"user.ok\" = true\nweight = 1.5\n");
  ASSERT_EQ(c.feeds.size(), 1U);
  const feed::Spec& f = c.feeds[0];
  EXPECT_EQ(f.stream, "orders");
  EXPECT_EQ(f.field, "data");
  EXPECT_EQ(f.url, "redis://:hunter2@h:1/2");
  EXPECT_THAT(f.display_url, Not(HasSubstr("hunter2")));
  EXPECT_EQ(f.queue, 5U);
  EXPECT_EQ(f.max_event_bytes, 1024U);
  ASSERT_EQ(f.rule.match.size(), 3U);
  for (const feed::Condition& condition : f.rule.match) {
    if (condition.path == feed::Path{"user", "kind"}) {
      EXPECT_EQ(condition.is, feed::Constant(std::int64_t{1}));
    } else if (condition.path == feed::Path{"user", "ok"}) {
      EXPECT_EQ(condition.is, feed::Constant(true));
    } else {
      EXPECT_EQ(condition.path, feed::Path{"weight"});
      EXPECT_EQ(condition.is, feed::Constant(1.5));
    }
  }
}

TEST(FeedSection, SaysWhatIsWrongAndWhere) {
  struct Wrong {
    std::string text;
    std::string message;
  };
  const Wrong rows[] = {
      {"[feed.events]\nchannel = \"c\"\nkey = \"user:{id}\"\n",
       "t:11:1: [feed.events] needs 'url': a Redis or Valkey that has the events"},
      {"[feed.events]\nurl = \"redis://h\"\nkey = \"user:{id}\"\n",
       "t:11:1: [feed.events] needs 'channel': where the events are published; or 'stream'"},
      {events("stream = \"s\"\nkey = \"user:{id}\"\n"),
       "t:14:10: 'stream' in [feed.events]: a feed has a channel or a stream, not both"},
      {events("field = \"s\"\nkey = \"user:{id}\"\n"),
       "t:14:9: 'field' in [feed.events] is for a stream"},
      {events(""), "t:11:1: [feed.events] needs 'key': what an event makes void"},
      {events("key = \"user:{id\"\n"),
       "t:14:7: 'key' in [feed.events]: 'user:{id', column 6: a '{' that is not closed"},
      {events("key = \"usr:{id}\"\n"),
       "t:14:7: 'key' in [feed.events]: no cache has keys that begin with 'usr:'; did you mean "
       "'user:'?"},
      {events("key = \"homes\"\n"), "t:14:7: 'key' in [feed.events]: no cache has keys such as"},
      {events("tag = \"tem:{id}\"\n"), "t:14:7: 'tag' in [feed.events]: no cache declares a tag"},
      {events("tag = \"@user\"\n"), "t:14:7: 'tag' in [feed.events]: a tag that begins with '@'"},
      {events("key = \"user:{id}\"\nmatch = \"user\"\n"),
       "t:15:9: 'match' in [feed.events] must be a table, got \"user\""},
      {events("key = \"user:{id}\"\nmatch = { type = [\"a\"] }\n"),
       "t:15:11: 'match' in [feed.events] compares 'type' with a constant"},
      {events("key = \"user:{id}\"\nmatch = { \"a..b\" = 1 }\n"),
       "t:15:11: 'match' in [feed.events]: 'a..b' is not a path to a field"},
      {events("key = \"user:{id}\"\nqueue = 0\n"),
       "t:15:9: 'queue' in [feed.events] must be an integer from 1 to 10000000"},
      {events("key = \"user:{id}\"\nmax_event = \"1GiB\"\n"),
       "t:15:13: 'max_event' in [feed.events] must be from 16 to 16MiB"},
      {events("key = \"user:{id}\"\nmatches = 1\n"),
       "t:15:1: unknown key 'matches' in [feed.events]; did you mean 'match'?"},
      {"[feed.e]\nurl = \"postgresql://h\"\nchannel = \"c\"\nkey = \"user:{id}\"\n",
       "t:12:7: 'url' in [feed.e]: "},
      {"[feed]\nchannel = \"c\"\n", "t:12:1: 'channel' in [feed] must be a table [feed.<name>]"},
  };
  for (const Wrong& row : rows) {
    const std::string got = wrong(row.text);
    EXPECT_THAT(got, HasSubstr(row.message));
    EXPECT_THAT(got, Not(HasSubstr("\nt:"))) << "one mistake, one message";
  }
}

TEST(FeedSection, NeverPrintsThePassword) {
  const std::string text =
      "[feed.e]\nurl = \"redis://u:hunter3@h:1/x\"\nchannel = \"\"\nkey = \"user:{id}\"\n";
  EXPECT_THAT(wrong(text), Not(HasSubstr("hunter3")));
  EXPECT_THAT(wrong("[feed.e]\nchannel = 1\nurl = \"redis://u:hunter3@h:1\" # hunter3\nkey = 1\n"),
              Not(HasSubstr("hunter3")));
}

TEST(FeedTargets, AreTheCachesThatItsEventsCanName) {
  const auto named = [](std::string_view lines) {
    const Config c = good(events(lines));
    return c.feeds.empty() ? std::vector<std::string>{"?"} : caches_of(c.feeds[0].rule, c.caches);
  };
  EXPECT_THAT(named("key = \"user:{id}\"\n"), ElementsAre("user"));
  EXPECT_THAT(named("key = \"user:a-{id}\"\n"), ElementsAre("user"));
  EXPECT_THAT(named("key = \"{key}\"\n"), ElementsAre("home", "user"));
  EXPECT_THAT(named("key = \"home\"\n"), ElementsAre("home"));
  EXPECT_THAT(named("tag = \"team:{t}\"\n"), ElementsAre("user"));
  EXPECT_THAT(named("tag = \"team:red\"\n"), ElementsAre("user"));
  EXPECT_THAT(named("tag = \"all-users\"\n"), ElementsAre("user"));
  EXPECT_THAT(named("key = \"home\"\ntag = \"all-users\"\n"), ElementsAre("home", "user"));
}

TEST(FeedTargets, PatternsThatCanMeet) {
  EXPECT_TRUE(may_meet("a", false, "a", false));
  EXPECT_FALSE(may_meet("a", false, "ab", false));
  EXPECT_FALSE(may_meet("a", true, "a", false));
  EXPECT_TRUE(may_meet("a", true, "ab", false));
  EXPECT_FALSE(may_meet("ab", true, "a", false));
  EXPECT_TRUE(may_meet("ab", false, "a", true));
  EXPECT_TRUE(may_meet("ab", true, "a", true));
  EXPECT_FALSE(may_meet("ab", true, "ac", true));
}

TEST(FeedReport, SaysWhatItVoidsAndWhatItRestsOn) {
  const Config c = good(events("key = \"user:{id}\"\n") +
                        "[feed.log]\nurl = \"redis://:${PW}@h:1\"\nstream = \"s\"\n"
                        "key = \"home\"\ntag = \"team:{t}\"\n");
  const CheckReport report = check(c, {});
  const std::string text = to_text(report);
  EXPECT_THAT(text, HasSubstr("feeds\n  events  channel cache-invalidation of redis://"));
  EXPECT_THAT(text, HasSubstr("voids key user:{id} (cache user)\n"
                              "          rests on: a subscription without history"));
  EXPECT_THAT(text, HasSubstr("voids key home, tag team:{t} (cache home, user)\n"));
  EXPECT_THAT(text, Not(HasSubstr("hunter2")));
  const auto json = boost::json::parse(to_json(report));
  EXPECT_EQ(json.at("feeds").at(1).at("name"), "log");
  EXPECT_EQ(json.at("feeds").at(1).at("caches").as_array().size(), 2U);
  EXPECT_THAT(to_json(report), Not(HasSubstr("hunter2")));
  EXPECT_THAT(to_text(check(good(""), {})), Not(HasSubstr("feeds")));
}

}  // namespace
}  // namespace larder::config
