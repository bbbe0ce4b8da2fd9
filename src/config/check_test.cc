#include "config/check.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

namespace larder::config {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

const source::Capabilities kWithFeed = {.kind = "sqlite",
                                        .snapshots = true,
                                        .feed = true,
                                        .feed_rests_on = "triggers, polled every 10ms"};
const source::Capabilities kWithout = {
    .kind = "sqlite", .snapshots = true, .why_no_feed = "run larder source prepare"};

// One cache, with these lines and a dependency.
Config config(std::string_view lines, std::string_view depends = "product(id -> id)",
              std::string_view head = "") {
  const auto loaded = load_config(
      fmt::format("{}\n[source.shop]\nurl = \"sqlite:shop.db\"\n[cache.product]\n"
                  "key = \"product:{{id:int}}\"\nload = \"SELECT * FROM product WHERE id = :id\"\n"
                  "depends_on = [{}]\n{}\n",
                  head, depends.empty() ? std::string() : fmt::format("\"{}\"", depends), lines),
      "larder.toml");
  EXPECT_TRUE(loaded.has_value()) << (loaded ? "" : to_string(loaded.error()));
  return loaded ? *loaded : Config{};
}

std::string rests_on(const Config& c, const SourceCapabilities& can) {
  return check(c, can).caches.at(0).rests_on;
}

std::vector<std::string> warnings(const Config& c,
                                  const SourceCapabilities& can = {{"shop", kWithFeed}}) {
  std::vector<std::string> out;
  for (const Warning& w : check(c, can).warnings) out.push_back(w.section + " " + w.message);
  return out;
}

TEST(Check, BoundedRestsOnTheFeed) {
  const CheckReport r = check(config("consistency = \"bounded:1s\""), {{"shop", kWithFeed}});
  EXPECT_EQ(r.caches.at(0).guarantee, "bounded:1s");
  EXPECT_EQ(r.caches.at(0).rests_on, "change feed of source shop (triggers, polled every 10ms)");
  EXPECT_EQ(r.caches.at(0).ttl_us, 60 * kSecond);
  EXPECT_THAT(r.warnings, IsEmpty());
}

TEST(Check, BoundedWithoutAFeedIsAShorterTtl) {
  const Config c = config("consistency = \"bounded:1s\"");
  const CheckReport r = check(c, {{"shop", kWithout}});
  EXPECT_EQ(r.caches.at(0).rests_on,
            "effective TTL is min(ttl, bound) = 1s because source shop has no change feed (run "
            "larder source prepare)");
  EXPECT_EQ(r.caches.at(0).ttl_us, kSecond);
  EXPECT_EQ(rests_on(c, {}),
            "effective TTL is min(ttl, bound) = 1s because source shop could not be opened");
  EXPECT_EQ(rests_on(config("consistency = \"bounded:1s\"", ""), {{"shop", kWithFeed}}),
            "effective TTL is min(ttl, bound) = 1s because no depends_on says which tables it is "
            "made of");
  // A ttl below the bound needs no feed.
  const CheckReport small =
      check(config("consistency = \"bounded:1s\"\nttl = \"100ms\""), {{"shop", kWithout}});
  EXPECT_EQ(small.caches.at(0).ttl_us, 100 * kMillisecond);
  EXPECT_THAT(small.warnings, IsEmpty());
}

TEST(Check, EventualSaysWhenChangesShow) {
  EXPECT_EQ(
      rests_on(config(""), {{"shop", kWithFeed}}),
      "change feed of source shop (triggers, polled every 10ms); and at the latest on ttl 1m, "
      "should the feed fall silent");
  EXPECT_EQ(
      rests_on(config(""), {{"shop", kWithout}}),
      "ttl 1m for changes by others, because source shop has no change feed (run larder source "
      "prepare)");
}

TEST(Check, StrongSaysWhatItMeans) {
  EXPECT_EQ(
      rests_on(config("consistency = \"strong\""), {{"shop", kWithFeed}}),
      "linearizable for writes through Larder: they invalidate before they commit, and no stale "
      "value is answered, whatever fails; changes by others: change feed of source shop "
      "(triggers, polled every 10ms)");
  EXPECT_THAT(rests_on(config("consistency = \"strong\""), {{"shop", kWithout}}),
              HasSubstr("changes by others: ttl 1m, because source shop has no change feed"));
}

TEST(Check, Warnings) {
  EXPECT_THAT(warnings(config("")), IsEmpty());
  EXPECT_THAT(
      warnings(config("consistency = \"strong\"\nstale_if_error = \"1h\"\n"
                      "stale_while_revalidate = \"1s\"\nsoft_timeout = \"1ms\"")),
      ElementsAre(
          "[cache.product] stale_while_revalidate has no effect: a strong cache answers no "
          "late value",
          "[cache.product] stale_if_error has no effect: a strong cache answers no stale value",
          "[cache.product] soft_timeout has no effect: a strong cache has no late value to "
          "answer"));
  EXPECT_THAT(warnings(config("ttl = \"0\"")),
              ElementsAre(StartsWith("[cache.product] ttl 0: every read asks the source")));
  EXPECT_THAT(warnings(config("jitter = 0.75")),
              ElementsAre("[cache.product] jitter 0.75: some entries live only 25% of their ttl"));
  EXPECT_THAT(warnings(config("jitter = 1")), ElementsAre(HasSubstr("live only an instant")));
  EXPECT_THAT(warnings(config("negative_ttl = \"2m\"")),
              ElementsAre(HasSubstr("negative_ttl 2m is above ttl 1m")));
  EXPECT_THAT(warnings(config("consistency = \"bounded:1s\"\nstale_if_error = \"1h\"")),
              ElementsAre(HasSubstr("while the source fails, values older than 1s are answered")));
  EXPECT_THAT(warnings(config("soft_timeout = \"1ms\"")),
              ElementsAre(HasSubstr("soft_timeout has no effect without")));
  EXPECT_THAT(warnings(config("stale_if_error = \"1m\"\nsoft_timeout = \"9s\"")),
              ElementsAre(HasSubstr("soft_timeout 9s has no effect: load_timeout 5s comes first")));
  EXPECT_THAT(warnings(config("store = \"UPDATE p SET n = :n WHERE id = :id\"")),
              ElementsAre(HasSubstr("SET answers LARDER_READONLY")));
  EXPECT_THAT(
      warnings(config("max_value = \"4MiB\"")),
      ElementsAre("[cache.product] max_value 4MiB: values above 2MiB are served and not held "
                  "(an eighth of a shard of near.capacity)"));
  EXPECT_THAT(
      warnings(config("consistency = \"bounded:20ms\"")),
      ElementsAre(HasSubstr("source shop is polled every 10ms: a bound of 20ms wants a fifth")));
  EXPECT_THAT(warnings(config("", "")), ElementsAre(HasSubstr("without depends_on")));
  EXPECT_THAT(warnings(config("sliding = true"), {{"shop", kWithout}}),
              ElementsAre(HasSubstr("sliding without a feed")));
  EXPECT_THAT(warnings(config(""), {}),
              ElementsAre("[source.shop] it could not be opened: what rests on it is not known"));
  EXPECT_THAT(warnings(Config{}), ElementsAre("[cache] no cache is declared: every key is plain"));
}

TEST(Check, WarnsOfOpenDoors) {
  const auto open = [](std::string_view node) {
    return warnings(config("", "product(id -> id)", fmt::format("[node]\n{}", node)));
  };
  EXPECT_THAT(open("listen = [\"0.0.0.0:7379\"]"),
              ElementsAre(HasSubstr("listens on 0.0.0.0:7379 without requirepass")));
  EXPECT_THAT(open("listen = [\"0.0.0.0:7379\"]\nrequirepass = \"x\""), IsEmpty());
  EXPECT_THAT(open("listen = [\"127.0.0.1:1\", \"[::1]:1\", \"localhost:1\", \"unix:/x\"]"),
              IsEmpty());
  EXPECT_THAT(open("admin = \"0.0.0.0:80\""), ElementsAre(HasSubstr("asks for no password")));
}

TEST(Check, WarnsOfASourceThatNobodyUses) {
  Config c = config("");
  c.sources.push_back({.name = "spare", .url = "sqlite:s", .display_url = "sqlite:s"});
  EXPECT_THAT(warnings(c, {{"shop", kWithFeed}, {"spare", kWithFeed}}),
              ElementsAre("[source.spare] no cache uses it"));
}

TEST(Check, Text) {
  Config c = config("consistency = \"bounded:1s\"\nttl = \"5m\"\njitter = 0.9");
  c.sources[0].display_url = "sqlite:shop.db";
  EXPECT_EQ(to_text(check(c, {{"shop", kWithFeed}})),
            R"(caches
  product  bounded:1s  rests on: change feed of source shop (triggers, polled every 10ms)
           key product:{id:int}, source shop, write none, ttl 5m
sources
  shop  sqlite:shop.db  feed: triggers, polled every 10ms
memory
  near tier 256MiB (entries, plain keys and their index), the largest entry 2MiB
  up to 10000 clients, each with a request of up to 64MiB and 32MiB of unread answers
warnings
  [cache.product] jitter 0.9: some entries live only 10% of their ttl
)");
}

TEST(Check, Json) {
  const auto json = boost::json::parse(
      to_json(check(config("consistency = \"bounded:1s\""), {{"shop", kWithout}})));
  EXPECT_EQ(json.at("caches").at(0).at("guarantee"), "bounded:1s");
  EXPECT_EQ(json.at("caches").at(0).at("ttl_ms"), 1000);
  EXPECT_EQ(json.at("sources").at(0).at("opened"), true);
  EXPECT_EQ(json.at("sources").at(0).at("feed"), "none: run larder source prepare");
  EXPECT_EQ(json.at("memory").at("near_capacity_bytes"), 256 << 20);
  EXPECT_EQ(json.at("warnings").as_array().size(), 1U);
}

TEST(CheckEngine, WarnsOfWhatLosesState) {
  const auto said = [](const EngineFacts& facts) {
    std::vector<Warning> found;
    check_engine(facts, found);
    std::string all;
    for (const Warning& w : found) all += w.section + " " + w.message + "\n";
    return all;
  };
  EXPECT_EQ(
      said({.version = "7.0.15", .maxmemory_policy = "volatile-lru", .saves = true, .replicas = 1}),
      "");
  EXPECT_THAT(said({.version = "7.0.15", .maxmemory_policy = "allkeys-lru"}),
              AllOf(HasSubstr("[engine] maxmemory-policy allkeys-lru"), HasSubstr("volatile-lru"),
                    HasSubstr("appendonly"), HasSubstr("no replica")));
  EXPECT_THAT(said({.maxmemory_bytes = 1 << 30, .maxmemory_policy = "noeviction"}),
              HasSubstr("1GiB are full"));
  EXPECT_THAT(said({.maxmemory_policy = "noeviction", .saves = true, .replicas = 1}), "");
  EXPECT_THAT(said({.version = "6.0.16", .saves = true, .replicas = 1}), HasSubstr("too old"));
  EXPECT_THAT(said({.problem = "refused"}), HasSubstr("could not be asked (refused)"));
}

}  // namespace
}  // namespace larder::config
