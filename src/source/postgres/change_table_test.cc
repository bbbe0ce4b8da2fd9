// Changes by triggers and a table that is polled, over a real server.
#include "source/postgres/change_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "source/postgres/testing.h"

namespace larder::source::postgres {
namespace {

using source::testing::RuntimeLoop;
using source::testing::Sink;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::OtherClient;
using testing::Server;
using ::testing::UnorderedElementsAre;

TimeUs soon() { return monotonic_now_us() + 20 * kSecond; }

// A feed that runs until it goes.
class Running {
 public:
  Running(RuntimeLoop& loop, FeedOptions options) : loop_(loop), options_(std::move(options)) {
    options_.log = [this](std::string line) { lines.push_back(std::move(line)); };
    feed_ = std::make_unique<TableFeed>(options_, kMillisecond);
    loop_.spawn(group_, feed_->run(group_, sink.sink()));
  }
  ~Running() { loop_.join(group_); }
  void until(const std::function<bool()>& done) { loop_.run_until(done); }
  void catch_up() {
    const TimeUs now = monotonic_now_us();
    until([&] { return sink.heartbeat() > now; });
  }
  std::ptrdiff_t everything() const {
    return std::ranges::count_if(sink.batches, &ChangeBatch::everything);
  }
  bool said(std::string_view part) const {
    return std::ranges::any_of(lines, [&](const std::string& line) { return line.contains(part); });
  }

  Sink sink;
  std::vector<std::string> lines;

 private:
  RuntimeLoop& loop_;
  FeedOptions options_;
  std::unique_ptr<TableFeed> feed_;
  TaskGroup group_;
};

class ChangeTableTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Server::available()) GTEST_SKIP() << "no PostgreSQL server";
    server_ = &Server::get();
    database_ = server_->fresh_database();
    url_ = server_->url(database_);
    other_ = std::make_unique<OtherClient>(url_);
    exec("CREATE TABLE item(id integer PRIMARY KEY, name text, grp integer)");
    exec("INSERT INTO item VALUES (1, 'one', 10), (2, 'two', 10), (3, NULL, 20)");
  }
  void exec(const std::string& sql) { other_->exec(sql); }
  std::string query(const std::string& sql) { return other_->query(sql); }

  PrepareOptions wanted(FeedFor feed_for) const {
    const std::string name = feed_name("test", database_);
    return {.means = Means::triggers,
            .source = "shop",
            .slot = name,
            .publication = name,
            .feed_for = feed_for,
            .watched = watched_};
  }
  Preparation look() {
    auto found = examine_now(url_, wanted(FeedFor::node), soon());
    EXPECT_TRUE(found) << found.error().message;
    return found ? std::move(*found) : Preparation{};
  }
  void prepare() {
    const Preparation found = look();
    ASSERT_THAT(found.obstacles, IsEmpty());
    const auto done = apply_now(url_, found, soon());
    ASSERT_TRUE(done) << done.error().message;
    ASSERT_TRUE(look().complete()) << look().why_not("shop");
  }
  Running& reading(FeedFor feed_for) {
    const PrepareOptions of = wanted(feed_for);
    Running& feed = *feeds_.emplace_back(
        std::make_unique<Running>(loop_, FeedOptions{.name = "shop",
                                                     .url = url_,
                                                     .feed_for = feed_for,
                                                     .slot = of.slot,
                                                     .publication = of.publication,
                                                     .heartbeat_us = 5 * kMillisecond,
                                                     .check_us = 10 * kMillisecond,
                                                     .watched = watched_}));
    feed.until([&] { return feed.sink.heartbeat() > 0; });
    return feed;
  }

  Server* server_ = nullptr;
  std::string database_;
  std::string url_;
  std::unique_ptr<OtherClient> other_;
  std::vector<WatchedTable> watched_ = {{7, "item", {"id"}}, {8, "item", {"grp", "id"}}};
  RuntimeLoop loop_;
  std::vector<std::unique_ptr<Running>> feeds_;
};

TEST_F(ChangeTableTest, ANodeBeginsWithEverythingAndThenTellsChanges) {
  prepare();
  Running& feed = reading(FeedFor::node);
  EXPECT_TRUE(feed.sink.batches[0].everything);
  EXPECT_TRUE(feed.sink.batches[0].floor);
  exec("UPDATE item SET name = 'x' WHERE id = 2");
  const policy::TxnId last = std::stoull(query("SELECT pg_current_xact_id()")) - 1;
  exec("INSERT INTO item VALUES (4, 'four', NULL)");
  exec("UPDATE item SET id = 5, grp = 11 WHERE id = 1");
  exec("DELETE FROM item WHERE id = 3");
  exec("BEGIN; DELETE FROM item; ROLLBACK");
  exec("SET session_replication_role = replica");  // as a subscription or a restore would
  exec("UPDATE item SET name = 'y' WHERE id = 5");
  feed.catch_up();
  EXPECT_THAT(feed.sink.changes(), ElementsAre("7:2", "8:10,2", "7:4", "8:NULL,4", "7:1", "8:10,1",
                                               "7:5", "8:11,5", "7:3", "8:20,3", "7:5", "8:11,5"));
  for (const ChangeBatch& batch : feed.sink.batches) {
    if (batch.changes.empty()) continue;
    EXPECT_EQ(batch.changes[0].x, last);
    break;
  }
  EXPECT_EQ(feed.everything(), 1);
  EXPECT_THAT(feed.lines, IsEmpty());
}

// Numbers are given when rows are visible, whoever began first.
TEST_F(ChangeTableTest, CommitsThatComeLateAreNotMissed) {
  prepare();
  Running& feed = reading(FeedFor::fleet);
  OtherClient slow(url_);
  slow.exec("BEGIN");
  slow.exec("UPDATE item SET name = 'slow' WHERE id = 1");
  exec("UPDATE item SET name = 'fast' WHERE id = 2");
  feed.catch_up();
  EXPECT_THAT(feed.sink.changes(), ElementsAre("7:2", "8:10,2"));
  const policy::TxnId running = std::stoull(slow.query("SELECT pg_current_xact_id()"));
  EXPECT_LE(feed.sink.batches.back().xmin, running) << "it has not ended";
  exec("UPDATE item SET name = 'faster' WHERE id = 3");
  slow.exec("COMMIT");
  feed.catch_up();
  EXPECT_THAT(feed.sink.changes(),
              UnorderedElementsAre("7:2", "8:10,2", "7:3", "8:20,3", "7:1", "8:10,1"));
  std::uint64_t at = feed.sink.batches[0].to;
  for (const ChangeBatch& batch : feed.sink.batches) {
    EXPECT_EQ(batch.from, at);
    EXPECT_GE(batch.to, batch.from);
    EXPECT_TRUE(batch.changes.empty() || batch.to > batch.from);
    at = batch.to;
  }
  EXPECT_EQ(feed.everything(), 0);
}

// Many writers and two readers: both get every change, in one order.
TEST_F(ChangeTableTest, TwoReadersGetEveryChange) {
  exec("INSERT INTO item SELECT i, 'x', i FROM generate_series(100, 199) i");
  watched_ = {{7, "item", {"id"}}};
  prepare();
  Running& one = reading(FeedFor::fleet);
  Running& two = reading(FeedFor::fleet);
  std::vector<std::thread> writers;
  for (int w = 0; w < 4; ++w)
    writers.emplace_back([w, url = url_] {
      OtherClient writer(url);
      for (int i = 0; i < 100; ++i)
        writer.exec("UPDATE item SET name = 'w" + std::to_string(w) +
                    "' WHERE id = " + std::to_string(100 + (i * 7 + w * 25) % 100));
    });
  one.until([&] { return one.sink.changes().size() >= 400 && two.sink.changes().size() >= 400; });
  for (std::thread& writer : writers) writer.join();
  one.catch_up();
  two.catch_up();
  EXPECT_EQ(one.sink.changes().size(), 400U);
  EXPECT_EQ(one.sink.changes(), two.sink.changes());
}

TEST_F(ChangeTableTest, WhatCannotBeNamedIsEverything) {
  prepare();
  Running& feed = reading(FeedFor::fleet);
  exec("INSERT INTO item SELECT i, 'x', 1 FROM generate_series(100, 12000) i");
  feed.until([&] { return feed.everything() == 1; });
  feed.catch_up();
  EXPECT_TRUE(feed.said("more than 10000 changes"));
  exec("TRUNCATE item");
  feed.until([&] { return feed.said("TRUNCATE of public.item"); });
  feed.catch_up();
  EXPECT_GE(feed.everything(), 2);
}

TEST_F(ChangeTableTest, PartsAndWhatTriggersDoNotTell) {
  exec("CREATE TABLE parts(id integer, grp integer, PRIMARY KEY (id)) PARTITION BY RANGE (id)");
  exec("CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100)");
  exec("CREATE TABLE base(id integer)");
  exec("CREATE TABLE heir() INHERITS (base)");
  watched_ = {{9, "parts", {"grp"}}, {6, "base", {"id"}}};
  prepare();
  Running& feed = reading(FeedFor::fleet);
  exec("INSERT INTO parts VALUES (1, 10)");
  exec("UPDATE parts_1 SET grp = 11");
  exec("INSERT INTO heir VALUES (5)");
  feed.catch_up();
  EXPECT_THAT(feed.sink.changes(), ElementsAre("9:10", "9:10", "9:11", "6:5"));
  EXPECT_EQ(feed.everything(), 0);
  exec("TRUNCATE parts_1");
  feed.until([&] { return feed.everything() >= 1; });
  feed.catch_up();
  std::ptrdiff_t before = feed.everything();
  exec("CREATE TABLE late(id integer PRIMARY KEY, grp integer)");
  exec("INSERT INTO late VALUES (150, 15)");
  exec("ALTER TABLE parts ATTACH PARTITION late FOR VALUES FROM (100) TO (200)");
  feed.until([&] { return feed.said("larder source prepare"); });
  exec("ALTER TABLE parts DISABLE TRIGGER ALL");
  prepare();
  feed.until([&] { return feed.everything() > before; });
  feed.catch_up();
  feed.sink.batches.clear();
  exec("UPDATE parts SET grp = 16 WHERE id = 150");
  feed.catch_up();
  EXPECT_THAT(feed.sink.changes(), ElementsAre("9:15", "9:16"));
}

TEST_F(ChangeTableTest, TheNextOneWhoReadsForAFleetKnowsWhatTheLastOneSaw) {
  prepare();
  reading(FeedFor::fleet);
  feeds_.clear();
  EXPECT_EQ(reading(FeedFor::fleet).everything(), 0);
  feeds_.clear();
  exec("ALTER TABLE item ALTER name TYPE varchar USING upper(name)");
  EXPECT_EQ(reading(FeedFor::fleet).everything(), 1);
  feeds_.clear();
  EXPECT_EQ(reading(FeedFor::fleet).everything(), 0);
}

TEST_F(ChangeTableTest, ItGoesOnWhereItIsTold) {
  prepare();
  Running& feed = reading(FeedFor::fleet);
  const std::uint64_t start = feed.sink.batches[0].to;
  exec("UPDATE item SET name = 'x' WHERE id = 2");
  feed.catch_up();
  feed.sink.batches.clear();
  feed.sink.orders = {{.go_on_from = start}};
  feed.until([&] { return feed.sink.changes().size() == 2; });
  feed.sink.orders = {{.go_on_from = {}, .new_epoch = true}};
  feed.until([&] {
    return std::ranges::any_of(feed.sink.batches,
                               [](const ChangeBatch& batch) { return batch.floor.has_value(); });
  });
  feed.sink.batches.clear();
  feed.sink.refuse = 3;
  exec("UPDATE item SET name = 'y' WHERE id = 2");
  feed.catch_up();
  EXPECT_EQ(feed.sink.refuse, 0);
  EXPECT_THAT(feed.sink.changes(), ElementsAre("7:2", "8:10,2"));
  EXPECT_EQ(feed.everything(), 0);
}

TEST_F(ChangeTableTest, OldRowsGoAndWhoIsFartherBehindBeginsAnew) {
  watched_ = {{7, "item", {"id"}}};
  prepare();
  const ChangeTable names(feed_name("test", database_));
  exec("INSERT INTO " + names.name + "(x, n, rel, cols) SELECT pg_current_xact_id(), nextval('" +
       names.sequence + "'), 'public.item', '{\"id\": \"1\"}' FROM generate_series(1, 105000)");
  Running& feed = reading(FeedFor::fleet);
  exec("UPDATE item SET name = 'x' WHERE id = 2");
  feed.catch_up();
  EXPECT_NE(query("SELECT trimmed FROM " + names.state), "0");
  feed.sink.orders = {{.go_on_from = 1}};
  feed.until([&] { return feed.everything() == 1; });
  EXPECT_TRUE(feed.said("kept no longer"));
}

TEST_F(ChangeTableTest, SaysWhatIsMissing) {
  const Preparation first = look();
  EXPECT_FALSE(first.works());
  EXPECT_THAT(first.why_not("shop"), HasSubstr("CREATE TRIGGER"));
  EXPECT_THAT(first.why_not("shop"), HasSubstr("run `larder source prepare shop`"));
  prepare();
  exec("ALTER TABLE item DISABLE TRIGGER ALL");
  EXPECT_THAT(look().why_not("shop"), HasSubstr("ENABLE ALWAYS TRIGGER"));
  watched_ = {{7, "item", {"id", "name"}}};  // other columns: another function
  EXPECT_THAT(look().why_not("shop"), HasSubstr("CREATE OR REPLACE FUNCTION"));
  prepare();
  watched_ = {{7, "item", {"nothing"}}};
  EXPECT_THAT(look().obstacles, ElementsAre(HasSubstr("has no column nothing")));
  watched_ = {{7, "none", {"id"}}};
  EXPECT_THAT(look().obstacles, ElementsAre(HasSubstr("there is no table none")));
  exec("CREATE VIEW seen AS SELECT * FROM item");
  watched_ = {{7, "seen", {"id"}}};
  EXPECT_THAT(look().obstacles, ElementsAre(HasSubstr("is no ordinary table")));
}

}  // namespace
}  // namespace larder::source::postgres
