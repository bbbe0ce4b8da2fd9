// The feed over a real server.
#include "source/mariadb/feed.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <sstream>
#include <thread>

#include "source/mariadb/mariadb.h"
#include "source/mariadb/testing.h"

namespace larder::source::mariadb {
namespace {

using source::testing::RuntimeLoop;
using source::testing::Sink;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::OtherClient;
using testing::Server;

TimeUs soon() { return monotonic_now_us() + 20 * kSecond; }

class MariadbFeedTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Server::available()) GTEST_SKIP() << "MariaDB's server is not installed";
    server_ = &Server::get();
    url_ = server_->url(server_->fresh_database());
    other_ = std::make_unique<OtherClient>(url_);
    exec("CREATE TABLE item(id integer PRIMARY KEY, name text, grp integer)");
    exec("INSERT INTO item VALUES (1, 'one', 10), (2, 'two', 10), (3, NULL, 20)");
  }
  void TearDown() override {
    if (reading_) stop();
  }
  void exec(const std::string& sql) { other_->exec(sql); }

  Capabilities open() {
    auto opened = open_mariadb({.name = "shop",
                                .url = url_,
                                .pool = 2,
                                .heartbeat_us = 10 * kMillisecond,
                                .statements = {{0,
                                                "SELECT id, name, grp FROM item WHERE id = :id",
                                                ResultShape::object,
                                                {"id"},
                                                {}}},
                                .watched = watched_,
                                .log = [this](std::string line) { lines_.push_back(line); }});
    EXPECT_TRUE(opened) << opened.error().message;
    source_ = opened ? std::move(*opened) : nullptr;
    return source_ ? source_->capabilities() : Capabilities{};
  }
  void start() {
    reading_ = true;
    group_ = std::make_unique<TaskGroup>();
    loop_.spawn(*group_, source_->run_feed(*group_, sink_.sink()));
  }
  void stop() {
    loop_.join(*group_);
    group_.reset();
    reading_ = false;
  }
  // A feed that has begun to read. Forgets that it began with everything.
  void read() {
    const Capabilities can = open();
    ASSERT_TRUE(can.feed) << can.why_no_feed;
    start();
    catch_up();
    sink_.batches.clear();
  }
  void until(const std::function<bool()>& done) { loop_.run_until(done); }
  void catch_up() {
    const TimeUs now = monotonic_now_us();
    until([&] { return sink_.heartbeat() > now; });
  }
  std::size_t everything() const {
    return static_cast<std::size_t>(std::ranges::count_if(sink_.batches, &ChangeBatch::everything));
  }
  bool said(std::string_view part) const {
    return std::ranges::any_of(lines_,
                               [&](const std::string& line) { return line.contains(part); });
  }
  policy::TxnId last_change() const {
    policy::TxnId x = 0;
    for (const ChangeBatch& batch : sink_.batches)
      for (const RowChange& change : batch.changes) x = change.x;
    return x;
  }
  policy::Snapshot snapshot() {
    auto loaded = loop_.run(source_->load(0, {{{"id", std::int64_t{1}}}}, soon()));
    EXPECT_TRUE(loaded) << loaded.error().message;
    return loaded ? loaded->snapshot : policy::Snapshot{};
  }

  Server* server_ = nullptr;
  std::string url_;
  std::unique_ptr<OtherClient> other_;
  std::vector<WatchedTable> watched_ = {{7, "item", {"id"}}, {8, "item", {"grp", "id"}}};
  RuntimeLoop loop_;
  Sink sink_;
  std::vector<std::string> lines_;
  std::unique_ptr<MariadbSource> source_;
  std::unique_ptr<TaskGroup> group_;
  bool reading_ = false;
};

TEST_F(MariadbFeedTest, ANodeBeginsWithEverythingAndThenTellsChanges) {
  ASSERT_TRUE(open().feed);
  EXPECT_THAT(source_->capabilities().feed_rests_on, HasSubstr("binary log"));
  start();
  catch_up();
  ASSERT_FALSE(sink_.batches.empty());
  EXPECT_TRUE(sink_.batches[0].everything);
  ASSERT_TRUE(sink_.batches[0].floor);
  EXPECT_TRUE(snapshot().sees_all_up_to(*sink_.batches[0].floor));
  sink_.batches.clear();
  exec("UPDATE item SET name = 'x' WHERE id = 2");
  exec("INSERT INTO item VALUES (4, 'four', NULL)");
  exec("UPDATE item SET id = 5, grp = 11 WHERE id = 1");
  exec("DELETE FROM item WHERE id = 3");
  catch_up();
  EXPECT_THAT(sink_.changes(), ElementsAre("7:2", "8:10,2", "7:4", "8:NULL,4", "7:1", "8:10,1",
                                           "7:5", "8:11,5", "7:3", "8:20,3"));
  EXPECT_EQ(everything(), 0U);
  EXPECT_THAT(lines_, IsEmpty());
}

TEST_F(MariadbFeedTest, CommitsAreInTheirOrderRollbacksAreNot) {
  read();
  OtherClient first(url_);
  OtherClient second(url_);
  first.exec("BEGIN");
  first.exec("UPDATE item SET name = 'a' WHERE id = 1");
  first.exec("SAVEPOINT s");
  first.exec("UPDATE item SET name = 'a' WHERE id = 3");
  first.exec("ROLLBACK TO s");
  second.exec("UPDATE item SET name = 'b' WHERE id = 2");
  first.exec("COMMIT");
  second.exec("BEGIN");
  second.exec("UPDATE item SET name = 'c' WHERE id = 3");
  second.exec("ROLLBACK");
  catch_up();
  EXPECT_THAT(sink_.changes(), ElementsAre("7:2", "8:10,2", "7:1", "8:10,1"));
  EXPECT_EQ(everything(), 0U);
}

// A commit is in the log before loads see it; their snapshot has its place in the log.
TEST_F(MariadbFeedTest, ALoadSeesWhatItsPlaceInTheLogSays) {
  read();
  exec("UPDATE item SET name = 'x' WHERE id = 2");
  until([&] { return sink_.changes().size() == 2; });
  const policy::TxnId x = last_change();
  while (!snapshot().sees(x)) {
  }
  // A change that the log has told of and that no snapshot shows: it waits for a replica.
  OtherClient admin(server_->url("mysql"));
  admin.exec("SET GLOBAL rpl_semi_sync_master_wait_point = AFTER_SYNC");
  admin.exec("SET GLOBAL rpl_semi_sync_master_timeout = 600000");
  admin.exec("SET GLOBAL rpl_semi_sync_master_wait_no_slave = 1");
  admin.exec("SET GLOBAL rpl_semi_sync_master_enabled = 1");
  sink_.batches.clear();
  std::thread writer([url = url_] { OtherClient(url).exec("UPDATE item SET name = 'late'"); });
  until([&] { return sink_.changes().size() == 6; });
  const policy::TxnId late = last_change();
  const auto loaded = loop_.run(source_->load(0, {{{"id", std::int64_t{1}}}}, soon()));
  ASSERT_TRUE(loaded && loaded->rows[0]);
  EXPECT_THAT(loaded->rows[0]->value, HasSubstr("\"one\""));
  EXPECT_FALSE(loaded->snapshot.sees(late)) << "this load must not be stored";
  admin.exec("SET GLOBAL rpl_semi_sync_master_enabled = 0");
  writer.join();
  while (!snapshot().sees(late)) {
  }
}

TEST_F(MariadbFeedTest, OurOwnWritesHaveTheNumberThatTheyHadBefore) {
  read();
  for (int i = 0; i < 50; ++i) {
    sink_.batches.clear();
    auto open = loop_.run(source_->write({{.sql = "UPDATE item SET name = :name WHERE id = 1",
                                           .params = {{"name", std::to_string(i)}}}},
                                         soon()));
    ASSERT_TRUE(open) << open.error().message;
    const policy::TxnId x = (*open)->x();
    ASSERT_TRUE(loop_.run((*open)->commit()));
    until([&] { return sink_.changes().size() == 2; });
    EXPECT_EQ(last_change(), x);
  }
  exec("UPDATE item SET name = 'x' WHERE id = 1");
  sink_.batches.clear();
  until([&] { return sink_.changes().size() == 2; });
  EXPECT_GT(last_change(), 0U);
}

TEST_F(MariadbFeedTest, KeysOfEveryTypeAreAsTheyAreWritten) {
  exec(
      "CREATE TABLE many(t tinyint, tu tinyint unsigned, s smallint, m mediumint, mu mediumint "
      "unsigned, i int, b bigint, bu bigint unsigned, d decimal(20,3), dd decimal(65,30), bits "
      "bit(20), c char(10), cl char(255), v varchar(300), tx text, pad1 double, pad2 "
      "datetime(6), pad3 time(3), pad4 timestamp(2) NULL, pad5 year, pad6 enum('a','b'), pad7 "
      "set('x','y'), pad8 date, pad9 float, pad10 blob, pad11 varbinary(20), pad12 json, pad13 "
      "point, pad14 uuid, pad15 inet6, pad16 binary(3), last int)");
  std::vector<std::string> columns = {"t", "tu", "s",    "m", "mu", "i", "b",  "bu",
                                      "d", "dd", "bits", "c", "cl", "v", "tx", "last"};
  watched_ = {{9, "many", columns}};
  read();
  exec(
      "INSERT INTO many VALUES (-1, 255, -30000, -8388608, 16777215, -5, -9223372036854775808, "
      "18446744073709551615, -12345678901234567.125, 0.5, 7, 'cc', REPEAT('l', 255), "
      "REPEAT('v', 300), 'tést', 1.5, '2024-02-29 13:14:15.123456', '12:13:14.5', "
      "'2024-01-02 03:04:05', 2024, 'b', 'x,y', '2024-02-29', 2.5, 'blob', 'vb', '{\"a\":1}', "
      "POINT(1,2), UUID(), '::1', 'bin', 77)");
  exec("INSERT INTO many(t, last) VALUES (1, 78)");
  exec("INSERT INTO many(d, dd, last) VALUES (0, -0.000000000000000000000000000001, 79)");
  catch_up();
  EXPECT_EQ(everything(), 0U) << (lines_.empty() ? "" : lines_.back());
  ASSERT_EQ(sink_.changes().size(), 3U);
  EXPECT_EQ(sink_.changes()[0],
            "9:-1,255,-30000,-8388608,16777215,-5,-9223372036854775808,18446744073709551615,"
            "-12345678901234567.125,0.500000000000000000000000000000,7,cc," +
                std::string(255, 'l') + "," + std::string(300, 'v') + ",tést,77");
  EXPECT_EQ(sink_.changes()[1],
            "9:1,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,78");
  EXPECT_EQ(sink_.changes()[2],
            "9:NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0.000,-0.000000000000000000000000000001,"
            "NULL,NULL,NULL,NULL,NULL,79");
}

TEST_F(MariadbFeedTest, WhatIsNotInTheLogRowByRowIsEverything) {
  read();
  std::size_t expected = 0;
  OtherClient texts(url_);
  const auto voids = [&](const std::function<void()>& act) {
    act();
    ++expected;
    until([&] { return everything() >= expected; });
    catch_up();
    EXPECT_EQ(everything(), expected);
  };
  voids([&] { exec("INSERT INTO item SELECT seq, 'x', 1 FROM seq_100_to_10200"); });
  EXPECT_TRUE(said("more than 10000 changes"));
  texts.exec("SET SESSION binlog_format = 'STATEMENT'");
  voids([&] { texts.exec("UPDATE item SET name = 'y' WHERE id = 101"); });
  EXPECT_TRUE(said("binlog_format was not ROW"));
  texts.exec("SET SESSION binlog_format = 'ROW', SESSION binlog_row_image = 'MINIMAL'");
  voids([&] { texts.exec("UPDATE item SET name = 'z' WHERE id = 101"); });
  EXPECT_TRUE(said("binlog_row_image was not FULL"));
  voids([&] {
    exec("XA START 'x'");
    exec("UPDATE item SET name = 'xa' WHERE id = 101");
    exec("XA END 'x'");
    exec("XA PREPARE 'x'");
    exec("XA COMMIT 'x'");
  });
  sink_.batches.clear();
  exec("UPDATE item SET name = 'named' WHERE id = 101");
  exec("CREATE USER IF NOT EXISTS nobody@localhost");
  exec("ANALYZE TABLE item");
  exec("CREATE TABLE elsewhere(id int)");
  exec("INSERT INTO elsewhere VALUES (1)");
  catch_up();
  EXPECT_THAT(sink_.changes(), ElementsAre("7:101", "8:1,101"));
  EXPECT_EQ(everything(), 0U) << lines_.back();
}

TEST_F(MariadbFeedTest, AnAlteredTableIsLookedUpAgain) {
  read();
  for (const char* const sql : {"ALTER TABLE item ADD COLUMN front int FIRST", "TRUNCATE item",
                                "RENAME TABLE item TO "
                                "gone, gone TO item",
                                "ALTER TABLE item MODIFY id bigint unsigned"}) {
    sink_.batches.clear();
    exec(sql);
    until([&] { return everything() >= 1; });
    catch_up();
    sink_.batches.clear();
    exec("INSERT INTO item(id, grp) VALUES (50, 5)");
    exec("DELETE FROM item WHERE id = 50");
    catch_up();
    EXPECT_THAT(sink_.changes(), ElementsAre("7:50", "8:5,50", "7:50", "8:5,50")) << sql;
  }
  exec("ALTER TABLE item RENAME COLUMN grp TO category");
  until([&] { return said("has no column grp"); });
  sink_.batches.clear();
  exec("ALTER TABLE item RENAME COLUMN category TO grp");
  until([&] { return sink_.heartbeat() > 0; });
  EXPECT_GE(everything(), 1U);
}

// InnoDB deletes the rows that refer to a deleted one by itself.
TEST_F(MariadbFeedTest, CascadesAreEverything) {
  exec("CREATE TABLE top(id int PRIMARY KEY) ENGINE=InnoDB");
  exec("CREATE TABLE middle(id int PRIMARY KEY, top int REFERENCES top(id) ON DELETE CASCADE)");
  exec("CREATE TABLE low(id int PRIMARY KEY, middle int REFERENCES middle(id) ON DELETE SET NULL)");
  exec("INSERT INTO top VALUES (1), (2)");
  exec("INSERT INTO middle VALUES (1, 1), (2, 2)");
  exec("INSERT INTO low VALUES (1, 1)");
  watched_ = {{9, "low", {"id"}}};
  read();
  exec("INSERT INTO top VALUES (3)");
  exec("INSERT INTO low VALUES (2, 2)");
  catch_up();
  EXPECT_EQ(everything(), 0U);
  EXPECT_THAT(sink_.changes(), ElementsAre("9:2"));
  exec("DELETE FROM top WHERE id = 1");
  catch_up();
  EXPECT_EQ(everything(), 1U);
  EXPECT_TRUE(said("those that refer to them"));
}

TEST_F(MariadbFeedTest, WhatTheSinkRefusesIsDeliveredAgain) {
  read();
  sink_.refuse = 3;
  for (int i = 0; i < 5; ++i)
    exec("UPDATE item SET name = '" + std::to_string(i) + "' WHERE id = 1");
  catch_up();
  EXPECT_EQ(sink_.refuse, 0);
  EXPECT_EQ(sink_.changes().size(), 10U);
}

TEST_F(MariadbFeedTest, GoesOnFromFileToFile) {
  read();
  for (int i = 0; i < 5; ++i) {
    exec("UPDATE item SET name = '" + std::to_string(i) + "' WHERE id = 1");
    exec("FLUSH BINARY LOGS");
  }
  exec("PURGE BINARY LOGS BEFORE NOW()");
  exec("UPDATE item SET name = 'last' WHERE id = 2");
  catch_up();
  EXPECT_EQ(sink_.changes().size(), 12U);
  EXPECT_EQ(everything(), 0U) << lines_.back();
}

TEST_F(MariadbFeedTest, ALostConnectionIsEverything) {
  read();
  std::istringstream readers(
      other_->query("SELECT id FROM information_schema.PROCESSLIST WHERE COMMAND = 'Binlog Dump'"));
  for (std::string id; readers >> id;) other_->try_exec("KILL " + id);
  until([&] { return everything() == 1; });
  catch_up();
  EXPECT_TRUE(said("its log is read again"));
  sink_.batches.clear();
  exec("UPDATE item SET name = 'x' WHERE id = 2");
  catch_up();
  EXPECT_THAT(sink_.changes(), ElementsAre("7:2", "8:10,2"));
}

TEST_F(MariadbFeedTest, TheServerCrashesAndItsLogIsBegunAnew) {
  read();
  server_->kill();
  until([&] { return said("its log cannot be read"); });
  server_->start();
  other_ = std::make_unique<OtherClient>(url_);
  until([&] { return everything() >= 1; });
  catch_up();
  sink_.batches.clear();
  exec("RESET MASTER");
  until([&] { return everything() >= 1; });
  catch_up();
  sink_.batches.clear();
  exec("UPDATE item SET name = 'x' WHERE id = 2");
  catch_up();
  EXPECT_THAT(sink_.changes(), ElementsAre("7:2", "8:10,2"));
  const auto loaded = loop_.run(source_->load(0, {{{"id", std::int64_t{2}}}}, soon()));
  ASSERT_TRUE(loaded);
  EXPECT_TRUE(loaded->snapshot.sees(last_change()));
}

TEST_F(MariadbFeedTest, AServerThatHangsAndAFeedThatEnds) {
  read();
  server_->freeze();
  stop();
  server_->thaw();
  start();
  stop();  // before it has connected
  start();
  catch_up();
}

// ---- what is missing ----

TEST_F(MariadbFeedTest, SaysWhatIsMissing) {
  const auto why = [&](std::vector<WatchedTable> watched) {
    watched_ = std::move(watched);
    const Capabilities can = open();
    EXPECT_FALSE(can.feed);
    return can.why_no_feed;
  };
  exec(
      "CREATE TABLE odd(id int PRIMARY KEY, kind enum('a','b'), latin varchar(9) CHARACTER SET "
      "latin1, twice int AS (id * 2))");
  exec("CREATE TABLE flat(id int) ENGINE=MyISAM");
  exec("CREATE VIEW seen AS SELECT * FROM item");
  EXPECT_THAT(why({}), HasSubstr("no cache of this source declares depends_on"));
  EXPECT_THAT(why({{7, "none", {"id"}}}), HasSubstr("there is no table none"));
  EXPECT_THAT(why({{7, "seen", {"id"}}}), HasSubstr("seen is not a table"));
  EXPECT_THAT(why({{7, "flat", {"id"}}}), HasSubstr("ALTER TABLE flat ENGINE = InnoDB"));
  EXPECT_THAT(why({{7, "item", {"nothing"}}}), HasSubstr("item has no column nothing"));
  EXPECT_THAT(why({{7, "odd", {"kind"}}}), HasSubstr("column odd.kind is enum"));
  EXPECT_THAT(why({{7, "odd", {"latin"}}}), HasSubstr("odd.latin is varchar in latin1"));
  EXPECT_THAT(why({{7, "odd", {"twice"}}}), HasSubstr("odd.twice is generated"));
  OtherClient admin(server_->url("mysql"));
  for (const auto& [name, bad, good] : {std::tuple("binlog_format", "'MIXED'", "'ROW'"),
                                        std::tuple("binlog_row_image", "'MINIMAL'", "'FULL'"),
                                        std::tuple("log_bin_compress", "1", "0")}) {
    admin.exec(std::string("SET GLOBAL ") + name + " = " + bad);
    EXPECT_THAT(why({{7, "item", {"id"}}}), HasSubstr(std::string("SET GLOBAL ") + name));
    admin.exec(std::string("SET GLOBAL ") + name + " = " + good);
  }
  const std::string database = url_.substr(url_.rfind('/') + 1);
  admin.exec("CREATE OR REPLACE USER poor@'%' IDENTIFIED BY 'hunter2'");
  admin.exec("GRANT ALL ON " + database + ".* TO poor@'%'");
  const std::string rich = url_;
  url_.replace(url_.find("larder"), 6, "poor");
  EXPECT_THAT(why({{7, "item", {"id"}}}), HasSubstr("GRANT BINLOG MONITOR, REPLICATION SLAVE"));
  admin.exec("GRANT BINLOG MONITOR ON *.* TO poor@'%'");
  EXPECT_THAT(why({{7, "item", {"id"}}}), HasSubstr("may not read the binary log"));
  admin.exec("GRANT REPLICATION SLAVE ON *.* TO poor@'%'");
  EXPECT_TRUE(open().feed);
  source_.reset();
  admin.exec("DROP USER poor@'%'");
}

}  // namespace
}  // namespace larder::source::mariadb
