// The feed over a real server.
#include "source/postgres/feed.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "source/postgres/feed_testing.h"

namespace larder::source::postgres {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing::OtherClient;
using testing::RunningFeed;
using testing::RuntimeLoop;
using testing::Server;

TimeUs soon() { return monotonic_now_us() + 20 * kSecond; }

class PostgresFeedTest : public ::testing::Test {
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
  void TearDown() override {
    if (!server_) return;
    feeds_.clear();
    server_->drop_slots(database_);
  }
  void exec(const std::string& sql) { other_->exec(sql); }
  std::string query(const std::string& sql) { return other_->query(sql); }

  FeedOptions options(FeedFor feed_for) {
    return {.name = "shop",
            .url = url_,
            .feed_for = feed_for,
            .slot = feed_name("test", database_),
            .publication = feed_name("test", database_),
            .heartbeat_us = 20 * kMillisecond,
            .check_us = 20 * kMillisecond,
            .watched = watched_};
  }
  void prepare(FeedFor feed_for) {
    const FeedOptions given = options(feed_for);
    const PrepareOptions wanted = {.source = given.name,
                                   .slot = given.slot,
                                   .publication = given.publication,
                                   .feed_for = feed_for,
                                   .watched = watched_};
    const auto found = examine_now(url_, wanted, soon());
    ASSERT_TRUE(found) << found.error().message;
    ASSERT_THAT(found->obstacles, IsEmpty());
    const auto done = apply_now(url_, *found, soon());
    ASSERT_TRUE(done) << done.error().message;
  }
  // A feed that has begun to read.
  RunningFeed& reading(FeedOptions options) {
    RunningFeed& feed = *feeds_.emplace_back(std::make_unique<RunningFeed>(loop_, options));
    feed.start();
    feed.until([&] { return feed.sink.heartbeat() > 0; });
    return feed;
  }
  RunningFeed& reading(FeedFor feed_for) {
    prepare(feed_for);
    return reading(options(feed_for));
  }
  // What it knows it knows from the log. Its heartbeats stand still.
  RunningFeed& reading_the_log_alone(FeedFor feed_for) {
    prepare(feed_for);
    FeedOptions given = options(feed_for);
    given.check_us = 3600 * kSecond;
    return reading(given);
  }
  // Returns when they are gone.
  void kill_walsenders() {
    query(
        "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots"
        " WHERE database = current_database() AND active_pid IS NOT NULL");
  }

  Server* server_ = nullptr;
  std::string database_;
  std::string url_;
  std::unique_ptr<OtherClient> other_;
  std::vector<WatchedTable> watched_ = {{7, "item", {"id"}}, {8, "item", {"grp", "id"}}};
  RuntimeLoop loop_;
  std::vector<std::unique_ptr<RunningFeed>> feeds_;
};

// ---- what is delivered ----

TEST_F(PostgresFeedTest, ANodeBeginsWithEverythingAndThenTellsChanges) {
  RunningFeed& feed = reading(FeedFor::node);
  ASSERT_FALSE(feed.sink.batches.empty());
  EXPECT_TRUE(feed.sink.batches[0].everything);
  EXPECT_TRUE(feed.sink.batches[0].floor);
  EXPECT_EQ(feed.sink.everything(), 1);
  EXPECT_THAT(feed.sink.changes(), IsEmpty());

  exec("UPDATE item SET name = 'x' WHERE id = 2");
  const policy::TxnId last = std::stoull(query("SELECT pg_current_xact_id()"));
  exec("INSERT INTO item VALUES (4, 'four', NULL)");
  exec("UPDATE item SET id = 5, grp = 11 WHERE id = 1");
  exec("DELETE FROM item WHERE id = 3");
  feed.catch_up();
  EXPECT_THAT(feed.sink.changes(), ElementsAre("7:2", "8:10,2", "7:4", "8:NULL,4", "7:1", "7:5",
                                               "8:10,1", "8:11,5", "7:3", "8:20,3"));
  EXPECT_EQ(feed.sink.numbers()[0], last - 1);
  EXPECT_EQ(feed.sink.numbers()[2], last + 1);
  EXPECT_EQ(feed.sink.everything(), 1);
  for (const ChangeBatch& batch : feed.sink.batches) {
    EXPECT_EQ(batch.source_id, feed.sink.batches[0].source_id);
    if (!batch.changes.empty()) {
      EXPECT_GT(batch.committed_at, 0);
    }
  }
  EXPECT_THAT(feed.lines, IsEmpty());
  feed.stop();
  EXPECT_EQ(query("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
                  " AND NOT active"),
            "0")
      << "a node that is gone keeps no log";
}

TEST_F(PostgresFeedTest, BatchesFollowUponEachOther) {
  RunningFeed& feed = reading(FeedFor::fleet);
  for (int i = 0; i < 20; ++i)
    exec("UPDATE item SET name = '" + std::to_string(i) + "' WHERE id = 1");
  feed.catch_up();
  Lsn at = feed.sink.batches[0].to;
  for (const ChangeBatch& batch : feed.sink.batches) {
    EXPECT_EQ(batch.from, at);
    EXPECT_GE(batch.to, batch.from);
    at = batch.to;
  }
  EXPECT_EQ(feed.sink.changes().size(), 40U);
  EXPECT_EQ(feed.sink.everything(), 0);
}

TEST_F(PostgresFeedTest, CommitsAreInTheirOrderRollbacksAreNot) {
  RunningFeed& feed = reading(FeedFor::fleet);
  OtherClient slow(url_);
  slow.exec("BEGIN");
  slow.exec("UPDATE item SET name = 'slow' WHERE id = 1");
  exec("UPDATE item SET name = 'fast' WHERE id = 2");
  slow.exec("COMMIT");
  exec("BEGIN");
  exec("UPDATE item SET name = 'gone' WHERE id = 3");
  exec("ROLLBACK");
  // Subtransactions have ids of their own; what counts is that of the whole.
  exec("BEGIN");
  const std::string top = query("SELECT pg_current_xact_id()");
  exec("SAVEPOINT a");
  exec("INSERT INTO item VALUES (10, 'kept', 1)");
  exec("RELEASE a");
  exec("SAVEPOINT b");
  exec("INSERT INTO item VALUES (11, 'not', 1)");
  exec("ROLLBACK TO b");
  exec("INSERT INTO item VALUES (12, 'kept', 1)");
  exec("COMMIT");
  feed.catch_up();
  EXPECT_THAT(feed.sink.changes(),
              ElementsAre("7:2", "8:10,2", "7:1", "8:10,1", "7:10", "8:1,10", "7:12", "8:1,12"));
  const auto numbers = feed.sink.numbers();
  EXPECT_GT(numbers[0], numbers[2]);
  EXPECT_EQ(numbers[4], std::stoull(top));
  EXPECT_EQ(numbers[7], std::stoull(top));
}

TEST_F(PostgresFeedTest, KeysOfEveryTypeAreAsTheyAreWritten) {
  exec("CREATE TABLE many(a bigint, b uuid, c text, d numeric, PRIMARY KEY (a, b, c, d))");
  watched_ = {{1, "many", {"a", "b", "c", "d"}}};
  RunningFeed& feed = reading(FeedFor::fleet);
  exec(
      "INSERT INTO many VALUES (-9223372036854775808, 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11',"
      " E'tab\\t\\u00e9 ,\\n', 1.50)");
  feed.catch_up();
  EXPECT_THAT(feed.sink.changes(),
              ElementsAre("1:-9223372036854775808,a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11,tab\t\u00e9 "
                          ",\n,1.50"));
}

TEST_F(PostgresFeedTest, LargeValuesThatWereNotTouchedAreKnownByTheOldRow) {
  exec("CREATE TABLE large(id integer PRIMARY KEY, body text, n integer)");
  exec("ALTER TABLE large ALTER body SET STORAGE external");
  exec("INSERT INTO large VALUES (1, repeat('x', 3000), 0)");
  watched_ = {{1, "large", {"body"}}};
  RunningFeed& feed = reading(FeedFor::fleet);
  exec("UPDATE large SET n = 1");
  feed.catch_up();
  EXPECT_THAT(feed.sink.changes(), ElementsAre("1:" + std::string(3000, 'x')));
  EXPECT_EQ(feed.sink.everything(), 0);
}

TEST_F(PostgresFeedTest, Partitions) {
  exec("CREATE TABLE parts(id integer, grp integer, PRIMARY KEY (id)) PARTITION BY RANGE (id)");
  exec("CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100)");
  exec("CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (200)");
  watched_ = {{9, "parts", {"grp"}}};
  RunningFeed& feed = reading(FeedFor::fleet);
  exec("INSERT INTO parts VALUES (1, 10), (101, 11)");
  exec("UPDATE parts SET grp = 12 WHERE id = 1");
  exec("UPDATE parts SET id = 102 WHERE id = 1");  // moves to another one
  feed.catch_up();
  EXPECT_THAT(feed.sink.changes(), ElementsAre("9:10", "9:11", "9:10", "9:12", "9:12", "9:12"));
  EXPECT_EQ(feed.sink.everything(), 0);
  // One that came later logs only its key.
  exec("CREATE TABLE parts_3 PARTITION OF parts FOR VALUES FROM (200) TO (300)");
  feed.until([&] { return feed.sink.everything() == 1; });  // it might have brought rows
  feed.catch_up();
  exec("INSERT INTO parts VALUES (201, 13)");
  exec("DELETE FROM parts WHERE id = 201");
  feed.catch_up();
  EXPECT_EQ(feed.sink.everything(), 2);
  exec("DELETE FROM parts WHERE id = 101");
  feed.catch_up();
  EXPECT_EQ(feed.sink.changes().back(), "9:11");
  EXPECT_EQ(feed.sink.everything(), 2);
}

TEST_F(PostgresFeedTest, WhatCannotBeNamedIsEverything) {
  RunningFeed& feed = reading_the_log_alone(FeedFor::node);
  exec("TRUNCATE item");
  feed.until([&] { return feed.sink.everything() == 2; });
  const auto truncated = std::ranges::find_if(feed.sink.batches.begin() + 1,
                                              feed.sink.batches.end(), &ChangeBatch::everything);
  EXPECT_TRUE(truncated->floor) << "loads may not see it yet";
  EXPECT_TRUE(feed.said("TRUNCATE of public.item"));

  exec("INSERT INTO item SELECT i, 'x', 1 FROM generate_series(1, 20000) i");
  feed.until([&] { return feed.sink.everything() == 3; });
  EXPECT_TRUE(feed.said("more than 10000 changes"));
  EXPECT_THAT(feed.sink.changes(), IsEmpty());

  exec("UPDATE item SET name = 'y' WHERE id = 7");
  feed.until([&] { return feed.sink.has("8:1,7"); });
  EXPECT_THAT(feed.sink.changes(), ElementsAre("7:7", "8:1,7"));
  EXPECT_EQ(feed.sink.everything(), 3);
}

TEST_F(PostgresFeedTest, SchemaChanges) {
  RunningFeed& feed = reading_the_log_alone(FeedFor::fleet);
  exec("ALTER TABLE item ADD COLUMN price numeric DEFAULT 1");
  exec("ALTER TABLE item DROP COLUMN name");
  exec("UPDATE item SET price = 2 WHERE id = 1");
  feed.until([&] { return feed.sink.has("8:10,1"); });
  EXPECT_THAT(feed.sink.changes(), ElementsAre("7:1", "8:10,1"));
  EXPECT_EQ(feed.sink.everything(), 0);
  exec("ALTER TABLE item REPLICA IDENTITY DEFAULT");
  exec("UPDATE item SET grp = 11 WHERE id = 1");
  feed.until([&] { return feed.sink.everything() == 1; });
  EXPECT_TRUE(feed.said("ALTER TABLE public.item REPLICA IDENTITY FULL"));
  exec("ALTER TABLE item REPLICA IDENTITY FULL");
  exec("ALTER TABLE item RENAME COLUMN grp TO category");
  exec("UPDATE item SET price = 3 WHERE id = 1");
  feed.until([&] { return feed.sink.everything() == 2; });
  EXPECT_TRUE(feed.said("public.item has no column grp any more"));
  exec("ALTER TABLE item RENAME COLUMN category TO grp");
  exec("UPDATE item SET price = 4 WHERE id = 1");
  feed.until([&] { return feed.sink.has("8:11,1"); });
  EXPECT_THAT(feed.sink.changes(), ElementsAre("7:1", "8:10,1", "7:1", "8:11,1"));
  EXPECT_EQ(feed.sink.everything(), 2);
}

TEST_F(PostgresFeedTest, WhatTheSinkRefusesIsDeliveredAgain) {
  RunningFeed& feed = reading(FeedFor::fleet);
  feed.sink.refuse = 3;
  exec("UPDATE item SET name = 'x' WHERE id = 2");
  feed.catch_up();
  EXPECT_EQ(feed.sink.refuse, 0);
  EXPECT_THAT(feed.sink.changes(), ElementsAre("7:2", "8:10,2"));
}

// ---- positions and epochs ----

TEST_F(PostgresFeedTest, AFloorLiesAboveWhateverHadBegun) {
  RunningFeed& feed = reading(FeedFor::fleet);
  OtherClient running(url_);
  running.exec("BEGIN");
  running.exec("UPDATE item SET name = 'r' WHERE id = 1");
  const policy::TxnId begun = std::stoull(running.query("SELECT pg_current_xact_id()"));
  exec("UPDATE item SET name = 'x' WHERE id = 2");
  const auto end = parse_lsn(query("SELECT pg_current_wal_insert_lsn()"));
  feed.sink.orders = {{.go_on_from = {}, .new_epoch = true}};
  const auto answered = [&] {
    return std::ranges::any_of(feed.sink.batches,
                               [](const auto& b) { return b.floor.has_value(); });
  };
  feed.until(answered);
  const auto& batch =
      *std::ranges::find_if(feed.sink.batches, [](const auto& b) { return b.floor.has_value(); });
  EXPECT_GT(*batch.floor, begun);
  EXPECT_LE(batch.xmin, begun);
  EXPECT_EQ(batch.from, batch.to);
  EXPECT_GE(batch.to, *end);
  EXPECT_THAT(batch.changes, IsEmpty());
  EXPECT_FALSE(batch.everything);
  // What had begun, and what comes, is told.
  running.exec("COMMIT");
  feed.catch_up();
  EXPECT_TRUE(feed.sink.has("7:1"));
  EXPECT_TRUE(feed.sink.has("7:2"));
}

TEST_F(PostgresFeedTest, ItGoesOnWhereItIsTold) {
  FeedOptions given = options(FeedFor::fleet);
  prepare(FeedFor::fleet);
  feeds_.push_back(std::make_unique<RunningFeed>(loop_, given));
  RunningFeed& feed = *feeds_.back();
  feed.sink.always.confirm_up_to = 0;  // the log stays
  feed.start();
  feed.catch_up();
  exec("UPDATE item SET name = 'a' WHERE id = 1");
  feed.catch_up();
  const Lsn before = std::ranges::find_if(feed.sink.batches, [](const ChangeBatch& b) {
                       return !b.changes.empty();
                     })->from;
  exec("UPDATE item SET name = 'b' WHERE id = 2");
  feed.catch_up();
  EXPECT_THAT(feed.sink.changes(), ElementsAre("7:1", "8:10,1", "7:2", "8:10,2"));

  // Back: the same once more, and nothing is made void for it.
  feed.sink.batches.clear();
  feed.sink.orders = {{.go_on_from = before, .new_epoch = false, .confirm_up_to = 0}};
  feed.until([&] { return feed.sink.orders.empty(); });
  feed.sink.batches.clear();
  feed.catch_up();
  EXPECT_THAT(feed.sink.changes(), ElementsAre("7:1", "8:10,1", "7:2", "8:10,2"));
  EXPECT_EQ(feed.sink.everything(), 0);

  // Forth: what lies between is passed over.
  feed.sink.batches.clear();
  const Lsn ahead = *parse_lsn(query("SELECT pg_current_wal_insert_lsn()")) + (1 << 20);
  feed.sink.orders = {{.go_on_from = ahead, .new_epoch = false, .confirm_up_to = 0}};
  feed.until([&] { return feed.sink.orders.empty(); });
  exec("UPDATE item SET name = 'c' WHERE id = 3");
  exec("CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 2000)");
  exec("UPDATE item SET name = 'd' WHERE id = 1");
  feed.catch_up();
  EXPECT_THAT(feed.sink.changes(), ElementsAre("7:1", "8:10,1"));
  EXPECT_GE(feed.sink.batches.back().from, ahead);
}

TEST_F(PostgresFeedTest, HistoryThatIsGoneIsEverything) {
  RunningFeed& feed = reading(FeedFor::fleet);
  exec("UPDATE item SET name = 'a' WHERE id = 1");
  feed.catch_up();
  const Lsn first = feed.sink.batches[0].from;
  // Until the server knows that it may forget.
  feed.until([&] {
    return query("SELECT confirmed_flush_lsn > '" + lsn_text(first) +
                 "' FROM pg_replication_slots"
                 " WHERE slot_name = '" +
                 options(FeedFor::fleet).slot + "'") == "t";
  });
  feed.sink.batches.clear();
  feed.sink.orders = {{.go_on_from = 1, .new_epoch = false}};
  feed.until([&] { return feed.sink.everything() > 0; });
  const auto& batch = *std::ranges::find_if(feed.sink.batches, &ChangeBatch::everything);
  EXPECT_EQ(batch.from, 1U);
  EXPECT_GE(batch.to, first);
  feed.catch_up();
  EXPECT_EQ(feed.sink.everything(), 1);
  EXPECT_TRUE(feed.said("does not reach back"));
}

// ---- what goes wrong ----

TEST_F(PostgresFeedTest, AFleetMissesNothingWhenItsConnectionBreaks) {
  RunningFeed& feed = reading(FeedFor::fleet);
  for (int i = 10; i < 13; ++i) {
    exec("INSERT INTO item VALUES (" + std::to_string(i) + ", 'x', 1)");
    kill_walsenders();
    exec("INSERT INTO item VALUES (" + std::to_string(i + 10) + ", 'x', 1)");
    feed.catch_up();
    EXPECT_TRUE(feed.sink.has("7:" + std::to_string(i)));
    EXPECT_TRUE(feed.sink.has("7:" + std::to_string(i + 10)));
  }
  EXPECT_EQ(feed.sink.everything(), 0);
  EXPECT_TRUE(feed.said("its log cannot be read"));
  EXPECT_TRUE(feed.said("its log is read again"));
}

TEST_F(PostgresFeedTest, ANodeHasEverythingVoidWhenItsConnectionBreaks) {
  RunningFeed& feed = reading(FeedFor::node);
  kill_walsenders();
  feed.until([&] { return feed.sink.everything() == 2; });
  exec("UPDATE item SET name = 'x' WHERE id = 1");
  feed.catch_up();
  EXPECT_TRUE(feed.sink.has("7:1"));
}

TEST_F(PostgresFeedTest, AFleetMissesNothingWhenTheServerCrashes) {
  RunningFeed& feed = reading(FeedFor::fleet);
  exec("SET synchronous_commit = on");
  exec("INSERT INTO item VALUES (10, 'x', 1)");
  other_.reset();
  server_->kill();
  feed.until([&] { return feed.said("its log cannot be read"); });
  const TimeUs blind = feed.sink.heartbeat();
  server_->start();
  other_ = std::make_unique<OtherClient>(url_);
  exec("INSERT INTO item VALUES (20, 'x', 1)");
  feed.catch_up();
  EXPECT_GT(feed.sink.heartbeat(), blind);
  EXPECT_TRUE(feed.sink.has("7:10"));
  EXPECT_TRUE(feed.sink.has("7:20"));
  EXPECT_EQ(feed.sink.everything(), 0);
}

TEST_F(PostgresFeedTest, TheSlotElectsOneAndAnotherTakesOver) {
  RunningFeed& first = reading(FeedFor::fleet);
  RunningFeed& second =
      *feeds_.emplace_back(std::make_unique<RunningFeed>(loop_, options(FeedFor::fleet)));
  second.start();
  second.until([&] { return second.said("stands by"); });
  exec("INSERT INTO item VALUES (10, 'x', 1)");
  first.catch_up();
  EXPECT_TRUE(first.sink.has("7:10"));
  EXPECT_THAT(second.sink.batches, IsEmpty());
  // What the first had not taken comes to the second.
  first.sink.refuse = 1'000'000;
  exec("INSERT INTO item VALUES (11, 'x', 1)");
  first.until([&] { return first.sink.refuse < 1'000'000; });
  second.sink.orders = {{.go_on_from = first.sink.position()}};
  first.stop();
  second.catch_up();
  EXPECT_TRUE(second.sink.has("7:11"));
  EXPECT_EQ(second.sink.everything(), 0);
  exec("INSERT INTO item VALUES (12, 'x', 1)");
  second.catch_up();
  EXPECT_TRUE(second.sink.has("7:12"));
}

TEST_F(PostgresFeedTest, ASlotThatIsGoneIsMadeAnew) {
  RunningFeed& feed = reading(FeedFor::fleet);
  const std::string slot = options(FeedFor::fleet).slot;
  // Whoever is faster: the feed comes back at once.
  exec(
      "DO $$BEGIN LOOP PERFORM pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots"
      " WHERE slot_name = '" +
      slot +
      "' AND active_pid IS NOT NULL; BEGIN"
      " PERFORM pg_drop_replication_slot('" +
      slot +
      "'); EXIT; EXCEPTION WHEN OTHERS THEN END;"
      " END LOOP; END$$");
  exec("INSERT INTO item VALUES (10, 'x', 1)");
  feed.until([&] { return feed.sink.everything() > 0; });
  exec("INSERT INTO item VALUES (11, 'x', 1)");
  feed.catch_up();
  EXPECT_TRUE(feed.sink.has("7:11"));
  EXPECT_EQ(query("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '" + slot + "'"),
            "1");
}

TEST_F(PostgresFeedTest, ASlotBeyondItsLimitIsDropped) {
  FeedOptions given = options(FeedFor::fleet);
  given.slot_limit_bytes = 2 << 20;
  given.check_us = 10 * kMillisecond;
  prepare(FeedFor::fleet);
  feeds_.push_back(std::make_unique<RunningFeed>(loop_, given));
  RunningFeed& feed = *feeds_.back();
  feed.sink.always.confirm_up_to = 0;
  feed.start();
  feed.catch_up();
  EXPECT_EQ(feed.sink.everything(), 0);
  exec("CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 4000)");
  feed.until([&] { return feed.sink.everything() > 0; });
  EXPECT_TRUE(feed.said("is dropped and made anew"));
  exec("INSERT INTO item VALUES (11, 'x', 1)");
  feed.catch_up();
  EXPECT_TRUE(feed.sink.has("7:11"));
}

TEST_F(PostgresFeedTest, WithoutItsPublicationItIsBlindAndThenEverythingIsVoid) {
  prepare(FeedFor::fleet);
  const FeedOptions given = options(FeedFor::fleet);
  RunningFeed& feed = reading(given);
  exec("ALTER PUBLICATION " + given.publication + " DROP TABLE item");
  exec("UPDATE item SET name = 'unseen' WHERE id = 1");
  feed.until([&] { return feed.said("ADD TABLE public.item"); });
  const TimeUs blind = feed.sink.heartbeat();
  exec("ALTER PUBLICATION " + given.publication + " ADD TABLE item");
  feed.until([&] { return feed.sink.everything() > 0; });
  feed.catch_up();
  EXPECT_GT(feed.sink.heartbeat(), blind);
  EXPECT_FALSE(feed.sink.has("7:1"));
  // Dropped and made again: the slot cannot read what lies before.
  exec("DROP PUBLICATION " + given.publication);
  exec("UPDATE item SET name = 'unseen' WHERE id = 2");
  feed.until([&] { return feed.said("CREATE PUBLICATION"); });
  prepare(FeedFor::fleet);
  feed.until([&] { return feed.sink.everything() > 1; });
  exec("INSERT INTO item VALUES (11, 'x', 1)");
  feed.catch_up();
  EXPECT_TRUE(feed.sink.has("7:11"));
}

TEST_F(PostgresFeedTest, WhatChangesRowsWithoutAWordInTheLogIsEverything) {
  exec("CREATE TABLE parts(id integer, grp integer, PRIMARY KEY (id)) PARTITION BY RANGE (id)");
  exec("CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100)");
  watched_ = {{7, "item", {"id"}}, {9, "parts", {"id"}}};
  RunningFeed& feed = reading(FeedFor::fleet);
  exec("ALTER TABLE item REPLICA IDENTITY NOTHING");
  feed.until([&] { return feed.said("until it is done, many changes void all"); });
  exec("ALTER TABLE item REPLICA IDENTITY FULL");
  feed.catch_up();
  EXPECT_EQ(feed.sink.everything(), 0);
  int expected = 0;
  for (const char* const sql :
       {"ALTER TABLE item ALTER name TYPE varchar USING upper(name)", "TRUNCATE parts_1",
        "ALTER TABLE parts DETACH PARTITION parts_1",
        "ALTER TABLE parts ATTACH PARTITION parts_1 FOR VALUES FROM (0) TO (100)",
        "DROP TABLE parts_1"}) {
    exec(sql);
    ++expected;
    feed.until([&] { return feed.sink.everything() == expected; });
    feed.catch_up();
  }
  EXPECT_TRUE(feed.said("was rewritten"));
}

// Between two looks.
TEST_F(PostgresFeedTest, OutOfThePublicationAndBackIsNoticed) {
  RunningFeed& feed = reading(FeedFor::fleet);
  const std::string publication = options(FeedFor::fleet).publication;
  exec("BEGIN; ALTER PUBLICATION " + publication + " DROP TABLE item; ALTER PUBLICATION " +
       publication + " ADD TABLE item; COMMIT");
  feed.until([&] { return feed.sink.everything() == 1; });
  feed.catch_up();
  exec("BEGIN; ALTER PUBLICATION " + publication + " SET (publish = 'insert'); ALTER PUBLICATION " +
       publication + " SET (publish = 'insert, update, delete, truncate'); COMMIT");
  feed.until([&] { return feed.sink.everything() == 2; });
  feed.catch_up();
}

TEST_F(PostgresFeedTest, HeartbeatsVouchForNoMoreThanWasLookedAt) {
  RunningFeed& feed = reading_the_log_alone(FeedFor::node);
  const TimeUs looked_at = feed.sink.heartbeat();
  exec("INSERT INTO item VALUES (11, 'x', 1)");
  feed.until([&] { return feed.sink.has("7:11"); });
  const std::size_t batches = feed.sink.batches.size();
  feed.until([&] { return feed.sink.batches.size() > batches + 3; });
  EXPECT_EQ(feed.sink.heartbeat(), looked_at);
}

// What has happened to the tables while nobody was there.
TEST_F(PostgresFeedTest, TheNextOneWhoReadsForAFleetKnowsWhatTheLastOneSaw) {
  reading(FeedFor::fleet).stop();
  feeds_.clear();
  RunningFeed& second = reading(options(FeedFor::fleet));
  EXPECT_EQ(second.sink.everything(), 0) << "nothing has happened";
  second.stop();
  feeds_.clear();
  exec("ALTER TABLE item ALTER name TYPE varchar USING upper(name)");
  RunningFeed& third = reading(options(FeedFor::fleet));
  EXPECT_EQ(third.sink.everything(), 1);
  third.stop();
  feeds_.clear();
  EXPECT_EQ(reading(options(FeedFor::fleet)).sink.everything(), 0);
}

TEST_F(PostgresFeedTest, WhoMayLeaveNoNoteBeginsWithEverything) {
  prepare(FeedFor::fleet);
  exec("CREATE ROLE " + database_ + "_reader LOGIN REPLICATION");
  exec("GRANT SELECT ON item TO " + database_ + "_reader");
  FeedOptions given = options(FeedFor::fleet);
  given.url.replace(given.url.find("larder@"), 6, database_ + "_reader");
  EXPECT_EQ(reading(given).sink.everything(), 1);
  feeds_.clear();
  EXPECT_EQ(reading(given).sink.everything(), 1);
  feeds_.clear();
  exec("DROP OWNED BY " + database_ + "_reader");
  exec("DROP ROLE " + database_ + "_reader");
}

TEST_F(PostgresFeedTest, TablesThatInherit) {
  exec("CREATE TABLE heir(extra text, PRIMARY KEY (id)) INHERITS (item)");
  exec("CREATE TABLE grandchild(PRIMARY KEY (id)) INHERITS (heir)");
  RunningFeed& feed = reading(FeedFor::fleet);
  exec("INSERT INTO heir(id, grp) VALUES (21, 5)");
  exec("INSERT INTO grandchild(id, grp) VALUES (22, 5)");
  exec("UPDATE item SET grp = 6 WHERE id = 22");
  feed.catch_up();
  for (const char* const change : {"7:21", "8:5,21", "7:22", "8:5,22", "8:6,22"})
    EXPECT_TRUE(feed.sink.has(change)) << change;
  EXPECT_EQ(feed.sink.everything(), 0);
  exec("TRUNCATE ONLY heir");
  feed.until([&] { return feed.sink.everything() > 0; });
  feed.catch_up();
  exec("CREATE TABLE another(PRIMARY KEY (id)) INHERITS (item)");
  feed.until([&] { return feed.said("ADD TABLE ONLY public.another"); });
  const int before = feed.sink.everything();
  prepare(FeedFor::fleet);
  feed.until([&] { return feed.sink.everything() > before; });
  exec("INSERT INTO another(id) VALUES (23)");
  feed.catch_up();
  EXPECT_TRUE(feed.sink.has("7:23"));
}

TEST_F(PostgresFeedTest, AServerThatHangs) {
  RunningFeed& feed = reading(FeedFor::fleet);
  // It ends while it waits for an answer.
  server_->freeze();
  feed.stop();
  server_->thaw();
  feed.start();
  feed.catch_up();
}

TEST_F(PostgresFeedTest, AFeedEndsAtOnceWhereverItIs) {
  RunningFeed& feed = reading(FeedFor::fleet);
  feed.stop();
  feed.start();
  feed.stop();  // before it has connected
  RunningFeed& first = reading(options(FeedFor::fleet));
  feed.start();
  feed.until([&] { return feed.said("stands by"); });
  feed.stop();
  first.sink.refuse = 1'000'000;
  exec("INSERT INTO item VALUES (11, 'x', 1)");
  first.until([&] { return first.sink.refuse < 1'000'000; });
  first.stop();
  EXPECT_FALSE(first.sink.has("7:11"));
}

}  // namespace
}  // namespace larder::source::postgres
