#include "source/postgres/prepare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "source/postgres/testing.h"

namespace larder::source::postgres {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::OtherClient;
using testing::Server;

TimeUs soon() { return monotonic_now_us() + 20 * kSecond; }

TEST(FeedName, IsOneThatASlotMayHave) {
  EXPECT_EQ(feed_name("larder", "shop"), "larder_larder_shop");
  EXPECT_EQ(feed_name("a_1", "b"), "larder_a_1_b");
  const std::string dashed = feed_name("my-app", "shop");
  EXPECT_THAT(dashed, ::testing::MatchesRegex("larder_my_app_shop_[0-9a-f]+"));
  EXPECT_NE(dashed, feed_name("my_app", "shop"));
  EXPECT_NE(feed_name("App", "shop"), feed_name("app", "shop"));
  const std::string longest = feed_name(std::string(64, 'a'), std::string(64, 'b'));
  EXPECT_EQ(longest.size(), 63U);
  EXPECT_NE(longest, feed_name(std::string(64, 'a'), std::string(64, 'c')));
}

class PostgresPrepareTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Server::available()) GTEST_SKIP() << "no PostgreSQL server";
    server_ = &Server::get();
    database_ = server_->fresh_database();
    url_ = server_->url(database_);
    other_ = std::make_unique<OtherClient>(url_);
    other_->exec("CREATE TABLE item(id integer PRIMARY KEY, name text, grp integer)");
    options_ = {.source = "shop",
                .slot = feed_name("test", database_),
                .publication = feed_name("test", database_),
                .feed_for = FeedFor::fleet,
                .watched = {{7, "item", {"id"}}, {8, "item", {"grp", "id"}}}};
  }
  void TearDown() override {
    if (server_) server_->drop_slots(database_);
  }
  Preparation look() { return look(url_); }
  Preparation look(const std::string& url) {
    auto found = examine_now(url, options_, soon());
    EXPECT_TRUE(found) << found.error().message;
    return found ? std::move(*found) : Preparation{};
  }
  static std::vector<std::string> sql(const Preparation& preparation) {
    std::vector<std::string> out;
    for (const auto& step : preparation.steps) out.push_back(step.sql);
    return out;
  }

  Server* server_ = nullptr;
  std::string database_;
  std::string url_;
  std::unique_ptr<OtherClient> other_;
  PrepareOptions options_;
};

TEST_F(PostgresPrepareTest, WhatIsMissingIsDoneOnce) {
  const Preparation first = look();
  EXPECT_FALSE(first.complete());
  EXPECT_FALSE(first.works());
  EXPECT_THAT(first.obstacles, IsEmpty());
  const std::string publication = options_.publication;
  EXPECT_THAT(sql(first),
              ElementsAre("ALTER TABLE public.item REPLICA IDENTITY FULL",
                          "CREATE PUBLICATION " + publication +
                              " FOR TABLE public.item WITH (publish = 'insert, update, delete, "
                              "truncate', publish_via_partition_root = true)"));
  EXPECT_THAT(first.steps[0].why, HasSubstr("grp"));
  EXPECT_EQ(first.steps[0].needs, "");
  ASSERT_EQ(first.slot.size(), 1U);
  EXPECT_THAT(first.why_not("shop"), HasSubstr("larder source prepare shop"));
  ASSERT_TRUE(apply_now(url_, first, soon()));
  const Preparation second = look();
  EXPECT_TRUE(second.complete()) << second.why_not("shop");
  EXPECT_THAT(second.slot, IsEmpty());
  EXPECT_EQ(second.why_not("shop"), "");
  ASSERT_EQ(second.tables.size(), 2U);
  EXPECT_EQ(second.tables[0].schema, "public");
  EXPECT_EQ(second.tables[0].name, "item");
  EXPECT_THAT(second.warnings, ElementsAre(HasSubstr("max_slot_wal_keep_size")));
  EXPECT_EQ(rests_on(options_), "slot " + options_.slot + ", publication " + options_.publication);
}

TEST_F(PostgresPrepareTest, AKeyThatCoversTheColumnsNeedsNoMore) {
  options_.watched = {{7, "item", {"ID"}}};
  const Preparation found = look();
  ASSERT_EQ(found.steps.size(), 1U);
  EXPECT_THAT(found.steps[0].sql, HasSubstr("CREATE PUBLICATION"));
  EXPECT_THAT(found.tables[0].watched.columns, ElementsAre("id")) << "as the catalogs write it";
  other_->exec("ALTER TABLE item ADD UNIQUE (grp, id), ALTER grp SET NOT NULL");
  other_->exec("ALTER TABLE item REPLICA IDENTITY USING INDEX item_grp_id_key");
  options_.watched = {{8, "item", {"grp", "id"}}};
  EXPECT_EQ(look().steps.size(), 1U);
  options_.watched = {{8, "item", {"grp", "name"}}};
  EXPECT_EQ(look().steps.size(), 2U);
  // A column that the index only carries along is not logged.
  other_->exec("CREATE TABLE carried(id integer, grp integer, PRIMARY KEY (id) INCLUDE (grp))");
  options_.watched = {{8, "carried", {"grp", "id"}}};
  EXPECT_THAT(sql(look()), ElementsAre("ALTER TABLE public.carried REPLICA IDENTITY FULL",
                                       HasSubstr("CREATE PUBLICATION")));
}

TEST_F(PostgresPrepareTest, WhatOthersPreparedStays) {
  ASSERT_TRUE(apply_now(url_, look(), soon()));
  other_->exec("CREATE TABLE \"Odd name\"(id integer PRIMARY KEY)");
  other_->exec("CREATE TABLE bare(id integer)");
  options_.watched = {{1, "\"Odd name\"", {"id"}}, {2, "bare", {"id"}}};
  const Preparation more = look();
  const std::string alter = "ALTER PUBLICATION " + options_.publication;
  EXPECT_THAT(sql(more), ElementsAre(alter + " ADD TABLE public.\"Odd name\"",
                                     "ALTER TABLE public.bare REPLICA IDENTITY FULL",
                                     alter + " ADD TABLE public.bare"));
  ASSERT_TRUE(apply_now(url_, more, soon()));
  EXPECT_TRUE(look().complete());
  EXPECT_EQ(other_->query("SELECT count(*) FROM pg_publication_tables"), "3");
  // An application's hands.
  other_->exec(alter + " SET (publish = 'insert')");
  EXPECT_THAT(sql(look()), ElementsAre(HasSubstr("SET (publish = 'insert, update, delete")));
  other_->exec("ALTER TABLE bare REPLICA IDENTITY NOTHING");
  EXPECT_EQ(look().steps.size(), 2U);
  ASSERT_TRUE(apply_now(url_, look(), soon()));
  EXPECT_TRUE(look().complete());
}

TEST_F(PostgresPrepareTest, PartitionsDecideWhatIsLogged) {
  other_->exec(
      "CREATE TABLE parts(id integer, grp integer, PRIMARY KEY (id)) PARTITION BY RANGE (id)");
  other_->exec("CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100)");
  options_.watched = {{9, "parts", {"grp"}}};
  EXPECT_THAT(sql(look()), ElementsAre("ALTER TABLE public.parts REPLICA IDENTITY FULL",
                                       "ALTER TABLE public.parts_1 REPLICA IDENTITY FULL",
                                       HasSubstr("CREATE PUBLICATION")));
  ASSERT_TRUE(apply_now(url_, look(), soon()));
  EXPECT_TRUE(look().complete()) << look().why_not("shop");
  EXPECT_TRUE(look().tables[0].partitioned);
  other_->exec("CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (200)");
  EXPECT_THAT(sql(look()), ElementsAre("ALTER TABLE public.parts_2 REPLICA IDENTITY FULL"));
  EXPECT_TRUE(look().works());
}

TEST_F(PostgresPrepareTest, EveryPartMustBeLogged) {
  other_->exec("CREATE UNLOGGED TABLE heir(PRIMARY KEY (id)) INHERITS (item)");
  EXPECT_THAT(look().obstacles, ElementsAre(HasSubstr("ALTER TABLE public.heir SET LOGGED")));
  other_->exec("ALTER TABLE heir SET LOGGED");
  const Preparation first = look();
  EXPECT_THAT(first.obstacles, IsEmpty());
  EXPECT_THAT(sql(first), Contains(HasSubstr("FOR TABLE ONLY public.item, ONLY public.heir")));
  ASSERT_TRUE(apply_now(url_, first, soon()));
  EXPECT_TRUE(look().complete()) << look().why_not("shop");
  EXPECT_EQ(look().tables.size(), 4U);
  other_->exec("CREATE TABLE parts(id integer) PARTITION BY RANGE (id)");
  other_->exec("CREATE UNLOGGED TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10)");
  options_.watched = {{7, "parts", {"id"}}};
  EXPECT_THAT(look().obstacles, ElementsAre(HasSubstr("parts_1 is unlogged")));
}

TEST_F(PostgresPrepareTest, WhatCannotBeFollowed) {
  other_->exec("CREATE VIEW seen AS SELECT * FROM item");
  other_->exec("CREATE UNLOGGED TABLE fast(id integer PRIMARY KEY)");
  options_.watched = {
      {1, "nowhere", {"id"}}, {2, "seen", {"id"}}, {3, "fast", {"id"}}, {4, "item", {"nothing"}}};
  const Preparation found = look();
  EXPECT_THAT(found.obstacles,
              ElementsAre(HasSubstr("there is no table nowhere"), HasSubstr("is not a table"),
                          HasSubstr("is unlogged"), HasSubstr("has no column nothing")));
  EXPECT_FALSE(found.complete());
  other_->query("SELECT pg_create_logical_replication_slot('" + options_.slot +
                "', 'test_decoding') WHERE false");
  other_->query("SELECT pg_create_physical_replication_slot('" + options_.slot + "')");
  options_.watched = {{7, "item", {"id"}}};
  EXPECT_THAT(look().obstacles, ElementsAre(HasSubstr("is something else's")));
  other_->query("SELECT pg_drop_replication_slot('" + options_.slot + "')");
}

TEST_F(PostgresPrepareTest, ARoleWithoutRightsIsToldWhichOnes) {
  const std::string role = "app_" + database_;
  other_->exec("CREATE ROLE " + role + " LOGIN");
  std::string url = url_;
  url.replace(url.find("larder@"), 7, role + "@");
  const Preparation found = look(url);
  EXPECT_THAT(found.obstacles, ElementsAre(HasSubstr("ALTER ROLE " + role + " REPLICATION")));
  EXPECT_THAT(found.warnings,
              ::testing::Contains(HasSubstr("GRANT SELECT ON public.item TO " + role)));
  ASSERT_EQ(found.steps.size(), 2U);
  EXPECT_THAT(found.steps[0].needs, HasSubstr("ownership of public.item (role larder)"));
  EXPECT_THAT(found.steps[1].needs,
              HasSubstr("GRANT CREATE ON DATABASE " + database_ + " TO " + role));
  const auto refused = apply_now(url, found, soon());
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, HasSubstr("it needs ownership of public.item"));
  other_->exec("ALTER ROLE " + role + " REPLICATION");
  EXPECT_THAT(look(url).obstacles, IsEmpty());
}

TEST_F(PostgresPrepareTest, APublicationThatLeavesSomethingOut) {
  ASSERT_TRUE(apply_now(url_, look(), soon()));
  if (PQserverVersion(other_->raw()) < 150'000) GTEST_SKIP() << "no row filters before 15";
  other_->exec("ALTER PUBLICATION " + options_.publication + " SET TABLE item WHERE (id > 7)");
  EXPECT_THAT(look().obstacles, ElementsAre(HasSubstr("leaves out rows or columns")));
}

}  // namespace
}  // namespace larder::source::postgres
