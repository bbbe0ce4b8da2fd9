// What only SQLite can do wrong: files, locks, deadlines, full disks, migrations.
#include "source/sqlite/sqlite.h"

#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "source/conformance.h"
#include "source/sqlite/prepare.h"

namespace larder::source::sqlite {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using testing::soon;

constexpr const char* kSlow =
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000000000) "
    "SELECT max(i) FROM n WHERE i <> :id";

class SqliteTest : public ::testing::Test {
 protected:
  void SetUp() override {
    other->exec("CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, grp INTEGER)");
    other->exec("INSERT INTO item VALUES (1, 'one', 10), (2, 'two', 10), (3, NULL, 20)");
  }
  void TearDown() override {
    if (feeding) loop.join(feed);
  }
  Options options() {
    return {.name = "shop",
            .path = path,
            .pool = 1,
            .queue = 4,
            .poll_us = kMillisecond,
            .query_log = {},
            .statements = statements,
            .watched = watched,
            .metrics = nullptr,
            .log = [this](std::string line) {
              const std::lock_guard lock(log_mutex);
              log.push_back(std::move(line));
            }};
  }
  void open(bool prepare = true) { open(options(), prepare); }
  void open(const Options& with, bool prepare) {
    if (prepare) {
      const auto done = sqlite::apply(path, watched);
      ASSERT_TRUE(done) << done.error().message;
    }
    auto opened = open_sqlite(with);
    ASSERT_TRUE(opened) << opened.error().message;
    source = std::move(*opened);
  }
  Error open_error(Options with) {
    auto opened = open_sqlite(with);
    EXPECT_FALSE(opened);
    return opened ? Error{} : opened.error();
  }
  Error statement_error(LoadStatement statement) {
    Options with = options();
    with.statements = {std::move(statement)};
    const Error error = open_error(with);
    EXPECT_EQ(error.code, ErrorCode::config);
    return error;
  }
  Result<Loaded> load(std::uint32_t id, std::vector<Params> keys, TimeUs deadline = soon()) {
    return loop.run(source->load(id, std::move(keys), deadline));
  }
  std::string name_of(std::int64_t id) {
    const auto loaded = load(0, {testing::id_of(id)});
    if (!loaded) return to_string(loaded.error());
    return loaded->rows[0] ? loaded->rows[0]->value : to_string(loaded->rows[0].error());
  }
  Result<std::unique_ptr<Transaction>> write(const std::string& sql, TimeUs deadline = soon()) {
    return loop.run(source->write({{.sql = sql, .params = {}}}, deadline));
  }
  Result<void> write_through(const std::string& sql) {
    auto opened = write(sql);
    if (!opened) return std::unexpected(opened.error());
    return loop.run((*opened)->commit());
  }
  void start_feed() {
    feeding = true;
    loop.spawn(feed, source->run_feed(feed, sink.sink()));
  }
  void catch_up() {
    const TimeUs now = monotonic_now_us();
    loop.run_until([&] { return sink.heartbeat() > now; });
  }
  std::vector<std::string> logged() {
    const std::lock_guard lock(log_mutex);
    return log;
  }

  testing::TestLoop loop;
  testing::TempFolder folder;
  std::string path = folder / "shop.db";
  std::optional<testing::OtherClient> other{std::in_place, path};
  std::vector<LoadStatement> statements = {
      {0, "SELECT name FROM item WHERE id = :id", ResultShape::value, {"id"}, {}},
      {1, kSlow, ResultShape::value, {"id"}, {}}};
  std::vector<WatchedTable> watched = {{0, "item", {"id"}}};
  std::mutex log_mutex;
  std::vector<std::string> log;
  std::unique_ptr<SqliteSource> source;
  testing::Sink sink;
  TaskGroup feed;
  bool feeding = false;
};

TEST(SqliteUrl, Paths) {
  EXPECT_EQ(path_of_url("sqlite:shop.db"), "shop.db");
  EXPECT_EQ(path_of_url("sqlite:./a b.db"), "./a b.db");
  EXPECT_EQ(path_of_url("sqlite:/var/shop.db"), "/var/shop.db");
  EXPECT_EQ(path_of_url("sqlite:///var/shop.db"), "/var/shop.db");
  for (const char* bad : {"sqlite:", "sqlite://host/shop.db", "sqlite::memory:", "postgresql://x",
                          "sqlite:shop.db?mode=ro", "sqlite:file:x", "sqlite://"})
    EXPECT_EQ(path_of_url(bad).error().code, ErrorCode::config) << bad;
  EXPECT_THAT(path_of_url("sqlite::memory:").error().message, HasSubstr("memory"));
}

// ---- at start ----

TEST_F(SqliteTest, AMissingFileIsNotCreated) {
  Options with = options();
  with.path = folder / "none.db";
  const Error error = open_error(with);
  EXPECT_EQ(error.code, ErrorCode::config);
  EXPECT_THAT(error.message, HasSubstr("does not exist; create it"));
  EXPECT_FALSE(std::filesystem::exists(with.path));
}

TEST_F(SqliteTest, WhatIsNoDatabaseIsRefused) {
  Options with = options();
  with.path = folder / "text.db";
  std::ofstream(with.path) << std::string(5'000, 'x');
  EXPECT_THAT(open_error(with).message, HasSubstr("not a database"));
  with.path = folder / "";
  EXPECT_THAT(open_error(with).message, HasSubstr("is a folder"));
}

TEST_F(SqliteTest, ChecksStatementsAtStart) {
  const auto error = [&](const std::string& sql, ResultShape shape = ResultShape::object) {
    return statement_error({0, sql, shape, {"id"}, {}}).message;
  };
  EXPECT_THAT(error("SELECT nmae FROM item WHERE id = :id"), HasSubstr("no such column: nmae"));
  EXPECT_THAT(error("SELECT nmae FROM item WHERE id = :id"), HasSubstr("`SELECT nmae FROM"));
  EXPECT_THAT(error("SELEC 1"), HasSubstr("syntax error"));
  EXPECT_THAT(error("SELECT 'x"), HasSubstr("does not end"));
  EXPECT_THAT(error("SELECT name FROM item WHERE id = :key"), HasSubstr(":key"));
  EXPECT_THAT(error("SELECT name FROM item WHERE id = ?"), HasSubstr(":name"));
  EXPECT_THAT(error("SELECT name FROM item WHERE id = @id"), HasSubstr("@id"));
  EXPECT_THAT(error("DELETE FROM item WHERE id = :id"), HasSubstr("may only read"));
  EXPECT_THAT(error("PRAGMA user_version"), HasSubstr("not allowed"));
  EXPECT_THAT(error("SELECT id, id FROM item"), HasSubstr("two columns named \"id\""));
  EXPECT_THAT(error("SELECT id, name FROM item", ResultShape::value), HasSubstr("exactly one"));
  EXPECT_EQ(other->query("SELECT count(*) FROM item"), "3");
}

TEST_F(SqliteTest, ChecksOtherStatements) {
  open();
  EXPECT_TRUE(source->check_statement("UPDATE item SET name = :name WHERE id = :id"));
  EXPECT_TRUE(source->check_statement("DELETE FROM item WHERE id = :id RETURNING name;"));
  for (const char* bad :
       {"UPDATE itm SET name = 1", "COMMIT", "PRAGMA user_version = 1", "ATTACH 'x' AS y",
        "DELETE FROM item WHERE id = ?1", "DELETE FROM item; DELETE FROM item", "SAVEPOINT s"}) {
    const auto checked = source->check_statement(bad);
    ASSERT_FALSE(checked) << bad;
    EXPECT_EQ(checked.error().code, ErrorCode::config);
    EXPECT_THAT(checked.error().message, HasSubstr("source \"shop\", statement `"));
  }
  EXPECT_EQ(other->query("SELECT count(*) FROM item"), "3");
}

TEST_F(SqliteTest, SaysWhetherThereIsAFeed) {
  open(false);
  EXPECT_FALSE(source->capabilities().feed);
  EXPECT_THAT(source->capabilities().why_no_feed, HasSubstr("larder source prepare shop"));
  open(true);
  EXPECT_TRUE(source->capabilities().feed);
  EXPECT_THAT(source->capabilities().feed_rests_on, HasSubstr("polled every 1ms"));
  // Another depends_on than the one that was prepared for.
  watched.push_back({1, "item", {"grp"}});
  open(false);
  EXPECT_FALSE(source->capabilities().feed);
}

// ---- loads ----

TEST_F(SqliteTest, TypesAreKept) {
  other->exec("CREATE TABLE t(id INTEGER PRIMARY KEY, i, r REAL, t TEXT, b BLOB, n)");
  other->exec(
      "INSERT INTO t VALUES (1, 9223372036854775807, 3, '7', x'00FF', NULL),"
      "(2, -9223372036854775808, 1e999, char(34, 10), zeroblob(0), 0.1)");
  statements = {{0, "SELECT * FROM t WHERE id = :id", ResultShape::object, {"id"}, {"r", "b"}}};
  open();
  for (const std::int64_t extra : {9, 2}) {  // both by itself and together with others
    const auto loaded = load(0, {testing::id_of(1), testing::id_of(2), testing::id_of(extra)});
    ASSERT_TRUE(loaded);
    EXPECT_EQ(loaded->rows[0]->value,
              R"({"id":1,"i":9223372036854775807,"r":3.0,"t":"7","b":"AP8=","n":null})");
    EXPECT_EQ(loaded->rows[1]->value,
              R"({"id":2,"i":-9223372036854775808,"r":null,"t":"\"\n","b":"","n":0.1})");
    EXPECT_THAT(loaded->rows[0]->tag_values, ElementsAre("3.0", "AP8="));
    EXPECT_EQ(loaded->rows[0]->value, load(0, {testing::id_of(1)})->rows[0]->value);
  }
}

TEST_F(SqliteTest, ParametersKeepTheirTypes) {
  statements = {{0,
                 "SELECT typeof(:a) || typeof(:b) || typeof(:c) || typeof(:d) || typeof(:e)",
                 ResultShape::value,
                 {"a", "b", "c", "d", "e"},
                 {}}};
  open();
  const Params key = {{"e", std::vector<std::byte>{}},
                      {"a", nullptr},
                      {"b", std::int64_t{1}},
                      {"c", 1.5},
                      {"d", std::string("1")}};
  EXPECT_EQ(load(0, {key})->rows[0]->value, "nullintegerrealtextblob");
  EXPECT_EQ(load(0, {key, key})->rows[1]->value, "nullintegerrealtextblob");
}

TEST_F(SqliteTest, OrderAndLimitHoldForEachKey) {
  for (int i = 0; i < 50; ++i)
    other->exec("INSERT INTO item(name, grp) VALUES ('n" + std::to_string(i * 7 % 50) + "', " +
                std::to_string(i % 3) + ")");
  statements = {{0,
                 "SELECT name FROM item WHERE grp = :g ORDER BY name DESC LIMIT 3 -- best first",
                 ResultShape::array,
                 {"g"},
                 {}},
                {1,
                 "WITH x AS (SELECT * FROM item) SELECT count(*) AS value FROM x WHERE grp = :g;",
                 ResultShape::object,
                 {"g"},
                 {}},
                {2,
                 "SELECT name FROM item WHERE grp = :g UNION SELECT 'zz' ORDER BY 1 DESC",
                 ResultShape::array,
                 {"g"},
                 {}}};
  open();
  std::vector<Params> keys;
  for (std::int64_t g = 0; g < 3; ++g) keys.push_back({{"g", g}});
  for (std::uint32_t id = 0; id < 3; ++id) {
    const auto together = load(id, keys);
    ASSERT_TRUE(together) << together.error().message;
    for (std::size_t i = 0; i < keys.size(); ++i)
      EXPECT_EQ(together->rows[i]->value, load(id, {keys[i]})->rows[0]->value);
  }
  EXPECT_EQ(load(1, keys)->rows[0]->value, "17");
  EXPECT_EQ(other->query("SELECT name FROM item WHERE grp = 0 ORDER BY name DESC LIMIT 3"),
            "n5 n47 n44");
  EXPECT_EQ(load(0, keys)->rows[0]->value, R"([{"name":"n5"},{"name":"n47"},{"name":"n44"}])");
}

TEST_F(SqliteTest, ErrorsOfOneKeyAreItsOwn) {
  other->exec("INSERT INTO item VALUES (7, '{bad', 1), (8, '{\"a\":1}', 1)");
  statements = {{0,
                 "SELECT json_extract(name, '$.a') AS value FROM item WHERE id = :id",
                 ResultShape::object,
                 {"id"},
                 {}},
                {1, "SELECT name FROM item WHERE grp = :grp", ResultShape::object, {"grp"}, {}}};
  open();
  const auto loaded = load(0, {testing::id_of(7), testing::id_of(8), testing::id_of(99)});
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded->rows[0].error().code, ErrorCode::source_refused);
  EXPECT_EQ(loaded->rows[1]->value, "1");
  EXPECT_FALSE(loaded->rows[2]->found);
  const auto several = load(1, {{{"grp", std::int64_t{10}}}, {{"grp", std::int64_t{20}}}});
  EXPECT_EQ(several->rows[0].error().code, ErrorCode::source_refused);
  EXPECT_THAT(several->rows[0].error().message, HasSubstr("several rows"));
  EXPECT_TRUE(several->rows[1]->found);
}

TEST_F(SqliteTest, OneStatementForManyKeys) {
  Options with = options();
  with.query_log = folder / "queries.log";
  open(with, true);
  const auto lines = [&] {
    std::ifstream in(with.query_log);
    std::vector<std::string> out;
    for (std::string line; std::getline(in, line);) out.push_back(line);
    return out;
  };
  std::vector<Params> keys;
  for (std::int64_t i = 0; i < 100; ++i) keys.push_back(testing::id_of(i));
  ASSERT_TRUE(load(0, keys));
  ASSERT_THAT(lines(), SizeIs(1));
  EXPECT_THAT(lines()[0], HasSubstr("SELECT name FROM item WHERE id = 42"));
  ASSERT_TRUE(load(0, {testing::id_of(1)}));
  ASSERT_TRUE(write_through("UPDATE item\nSET name = 'x' WHERE id = 1"));
  EXPECT_THAT(lines(), ElementsAre(::testing::_, "SELECT name FROM item WHERE id = 1",
                                   "UPDATE item SET name = 'x' WHERE id = 1"));
}

TEST_F(SqliteTest, CountsQueries) {
  obs::Registry metrics;
  Options with = options();
  with.metrics = &metrics;
  open(with, true);
  ASSERT_TRUE(load(0, {testing::id_of(1), testing::id_of(2)}));
  ASSERT_TRUE(write_through("DELETE FROM item WHERE id = 1"));
  const std::string text = metrics.prometheus();
  EXPECT_THAT(text, HasSubstr("larder_source_queries_total{source=\"shop\",op=\"load\"} 1"));
  EXPECT_THAT(text, HasSubstr("larder_source_queries_total{source=\"shop\",op=\"write\"} 1"));
  EXPECT_THAT(text, HasSubstr("larder_source_seconds_count{source=\"shop\"} 2"));
}

TEST_F(SqliteTest, SlowStatementsEndAtTheirDeadline) {
  open();
  const auto loaded = load(1, {testing::id_of(1)}, monotonic_now_us() + 30 * kMillisecond);
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().code, ErrorCode::timeout);
  EXPECT_EQ(name_of(1), "one");
  const auto written = write(
      "UPDATE item SET grp = (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE "
      "i < 2000000000) SELECT max(i) FROM n)",
      monotonic_now_us() + 30 * kMillisecond);
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, ErrorCode::timeout);
  ASSERT_TRUE(write_through("UPDATE item SET name = 'x' WHERE id = 1"));
}

Task<void> load_into(Source& source, TimeUs deadline, int& ended, int& refused) {
  std::vector<Params> keys{testing::id_of(1)};
  const Result<Loaded> loaded = co_await source.load(1, std::move(keys), deadline);
  ++ended;
  if (!loaded && loaded.error().code == ErrorCode::overloaded) ++refused;
}

TEST_F(SqliteTest, TheQueueIsBounded) {
  open();
  TaskGroup group;
  int ended = 0;
  int refused = 0;
  for (int i = 0; i < 20; ++i)
    loop.spawn(group, load_into(*source, monotonic_now_us() + 50 * kMillisecond, ended, refused));
  loop.run_until([&] { return ended == 20; });
  loop.join(group);
  EXPECT_GE(refused, 15);  // one runs, four wait
}

TEST_F(SqliteTest, AChangedSchemaIsFollowed) {
  statements = {{0, "SELECT * FROM item WHERE id = :id", ResultShape::object, {"id"}, {}}};
  open(false);
  EXPECT_EQ(name_of(1), R"({"id":1,"name":"one","grp":10})");
  other->exec("ALTER TABLE item ADD COLUMN extra DEFAULT 5");
  other->exec("ALTER TABLE item RENAME COLUMN grp TO team");
  EXPECT_EQ(name_of(1), R"({"id":1,"name":"one","team":10,"extra":5})");
  other->exec("DROP TABLE item");
  EXPECT_THAT(name_of(1), HasSubstr("no such table"));
}

// ---- locks, files, disks ----

TEST_F(SqliteTest, ALockedDatabaseHasACure) {
  open();
  other->exec("BEGIN EXCLUSIVE");
  const auto loaded = load(0, {testing::id_of(1)}, monotonic_now_us() + 20 * kMillisecond);
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().code, ErrorCode::source_down);
  EXPECT_THAT(loaded.error().message, HasSubstr("journal_mode = WAL"));
  const auto written = write("DELETE FROM item", monotonic_now_us() + 20 * kMillisecond);
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, ErrorCode::source_down);
  other->exec("COMMIT");
  EXPECT_EQ(name_of(1), "one");
  EXPECT_THAT(logged(), ElementsAre(HasSubstr("locked"), HasSubstr("works again")));
}

TEST_F(SqliteTest, AReaderMakesACommitFailWithoutWal) {
  open();
  other->exec("BEGIN");
  other->query("SELECT * FROM item");
  auto opened =
      write("UPDATE item SET name = 'x' WHERE id = 1", monotonic_now_us() + 20 * kMillisecond);
  ASSERT_TRUE(opened) << opened.error().message;
  const policy::TxnId x = (*opened)->x();
  const auto committed = loop.run((*opened)->commit());
  ASSERT_FALSE(committed);
  EXPECT_EQ(committed.error().code, ErrorCode::source_down);
  other->exec("COMMIT");
  EXPECT_EQ(name_of(1), "one");
  // Its number is given up as soon as that can be written: nobody waits for it for ever.
  while (!load(0, {testing::id_of(1)})->snapshot.sees(x)) {
  }
  // And what others then write under numbers that it had is not taken for ours.
  start_feed();
  other->exec("UPDATE item SET name = 'y' WHERE id = 2");
  catch_up();
  EXPECT_THAT(sink.changes(), ElementsAre("0:2"));
}

TEST_F(SqliteTest, AnAbandonedTransactionEndsByItself) {
  for (const bool prepared : {false, true}) {
    open(prepared);
    auto held =
        write("UPDATE item SET name = 'x' WHERE id = 1", monotonic_now_us() + 10 * kMillisecond);
    if (!held) continue;  // a slow machine may not even get there
    ASSERT_TRUE(write_through("UPDATE item SET name = 'dos' WHERE id = 2"));
    const auto late = loop.run((*held)->commit());
    ASSERT_FALSE(late);
    EXPECT_EQ(late.error().code, ErrorCode::timeout);
    EXPECT_EQ(name_of(1), "one");
    EXPECT_EQ(name_of(2), "dos");
    held->reset();
    source.reset();
  }
}

TEST_F(SqliteTest, WritersWaitForTheirTurn) {
  open();
  auto first = write("UPDATE item SET name = 'x' WHERE id = 1");
  ASSERT_TRUE(first);
  const auto second = write("DELETE FROM item", monotonic_now_us() + 10 * kMillisecond);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, ErrorCode::timeout);
  ASSERT_TRUE(loop.run((*first)->commit()));
  EXPECT_EQ(name_of(1), "x");
}

TEST_F(SqliteTest, ConstraintsAreRefusals) {
  open();
  const auto written = write("INSERT INTO item(id) VALUES (1)");
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, ErrorCode::source_refused);
  EXPECT_THAT(written.error().message, HasSubstr("UNIQUE constraint failed: item.id"));
  EXPECT_EQ(write("COMMIT").error().code, ErrorCode::source_refused);
}

TEST_F(SqliteTest, AFullDiskHasACure) {
  auto db = Connection::open(path, Connection::Mode::write);
  ASSERT_TRUE(db);
  ASSERT_TRUE((*db)->exec("PRAGMA max_page_count = 10"));
  ASSERT_TRUE((*db)->exec("BEGIN IMMEDIATE"));
  const auto full = (*db)->exec("INSERT INTO item(name) VALUES (randomblob(100000))");
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, ErrorCode::source_down);
  EXPECT_THAT(full.error().message, HasSubstr("free space"));
  (*db)->rollback();  // SQLite may have done it already
  EXPECT_FALSE((*db)->in_transaction());
  EXPECT_TRUE((*db)->exec("INSERT INTO item(name) VALUES ('small')"));
}

TEST_F(SqliteTest, ValuesTooLargeForSqlite) {
  open();
  const auto blob = write("INSERT INTO item(name) VALUES (zeroblob(3000000000))");
  ASSERT_FALSE(blob);
  EXPECT_EQ(blob.error().code, ErrorCode::too_large);
  EXPECT_EQ(name_of(1), "one");
}

TEST_F(SqliteTest, AFileThatMayNotBeWritten) {
  open();
  auto db = Connection::open(path, Connection::Mode::read);
  ASSERT_TRUE(db);
  const auto refused = (*db)->exec("DELETE FROM item");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::source_refused);
  EXPECT_THAT(refused.error().message, HasSubstr("right to write"));
}

TEST_F(SqliteTest, AMissingFileIsNoticedAndItsReturn) {
  open();
  other.reset();
  std::filesystem::rename(path, path + ".away");
  const auto loaded = load(0, {testing::id_of(1)});
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().code, ErrorCode::source_down);
  EXPECT_THAT(loaded.error().message, HasSubstr("is missing: put it back"));
  EXPECT_EQ(write("DELETE FROM item").error().code, ErrorCode::source_down);
  EXPECT_FALSE(std::filesystem::exists(path));
  std::filesystem::rename(path + ".away", path);
  EXPECT_EQ(name_of(1), "one");
}

TEST_F(SqliteTest, ADamagedFileIsSurvived) {
  open();
  std::filesystem::copy_file(path, path + ".good");
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.write(std::string(8'192, 'x').data(), 8'192);
  }
  const auto loaded = load(0, {testing::id_of(1)});
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().code, ErrorCode::source_down);
  EXPECT_EQ(write("DELETE FROM item").error().code, ErrorCode::source_down);
  std::filesystem::rename(path + ".good", path);
  EXPECT_EQ(name_of(1), "one");
}

TEST_F(SqliteTest, AReplacedFileIsAnotherIncarnation) {
  open();
  start_feed();
  catch_up();
  const auto before = load(0, {testing::id_of(1)});
  {
    testing::OtherClient copy(path + ".new");
    copy.exec("CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, grp INTEGER)");
    copy.exec("INSERT INTO item VALUES (1, 'restored', 10)");
  }
  ASSERT_TRUE(sqlite::apply(path + ".new", watched));
  auto open_write = write("UPDATE item SET name = 'lost' WHERE id = 1");
  ASSERT_TRUE(open_write);
  std::filesystem::rename(path + ".new", path);
  EXPECT_EQ(loop.run((*open_write)->commit()).error().code, ErrorCode::source_down);
  const auto after = load(0, {testing::id_of(1)});
  EXPECT_EQ(after->rows[0]->value, "restored");
  EXPECT_NE(after->snapshot.source_id, before->snapshot.source_id);
  catch_up();
  EXPECT_TRUE(sink.everything());
  EXPECT_EQ(sink.batches.back().source_id, after->snapshot.source_id);
}

// ---- the feed ----

TEST_F(SqliteTest, AProcessOfItsOwnIsSeen) {
  open();
  start_feed();
  catch_up();
  other.reset();
  const pid_t child = fork();
  if (child == 0) {
    execlp("sqlite3", "sqlite3", path.c_str(),
           "UPDATE item SET name = 'x' WHERE id = 2; REPLACE INTO item VALUES (3, 'y', 1)",
           nullptr);
    _exit(127);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  if (WEXITSTATUS(status) == 127) GTEST_SKIP() << "no sqlite3 program";
  catch_up();
  EXPECT_THAT(sink.changes(), ElementsAre("0:2", "0:3", "0:3"));
  bool dated = false;
  for (const auto& batch : sink.batches) dated |= batch.committed_at != 0;
  EXPECT_TRUE(dated);
}

TEST_F(SqliteTest, LargeTransactionsComeInBatches) {
  open();
  start_feed();
  catch_up();
  other->exec(
      "WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 3599) INSERT "
      "INTO "
      "item(id) SELECT i FROM n");
  catch_up();
  const auto changes = sink.changes();
  ASSERT_THAT(changes, SizeIs(3'500));
  for (std::size_t i = 0; i < changes.size(); ++i)
    ASSERT_EQ(changes[i], "0:" + std::to_string(100 + i));
  for (const auto& batch : sink.batches) EXPECT_LE(batch.changes.size(), 1'000U);
}

TEST_F(SqliteTest, OldChangesAreTrimmedAndAGapVoidsEverything) {
  open();
  start_feed();
  catch_up();
  other->exec(
      "WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 12099) INSERT "
      "INTO "
      "item(id) SELECT i FROM n");
  catch_up();
  EXPECT_FALSE(sink.everything());
  EXPECT_THAT(sink.changes(), SizeIs(12'000));
  // A trim is a write of its own, after the batch.
  while (other->query("SELECT count(*) FROM larder_change") != "10000") catch_up();
  other->exec("BEGIN");
  other->exec("UPDATE item SET name = 'x' WHERE id < 10");
  other->exec("DELETE FROM larder_change");
  other->exec("COMMIT");
  catch_up();
  EXPECT_TRUE(sink.everything());
  const std::size_t had = sink.changes().size();
  other->exec("UPDATE item SET name = 'z' WHERE id = 1");
  catch_up();
  EXPECT_EQ(sink.changes().size(), had + 1);
}

// Restores that write into the same file set the sequence back.
TEST_F(SqliteTest, ASequenceThatGoesBackIsAnotherIncarnation) {
  open();
  start_feed();
  other->exec("UPDATE item SET name = 'x'");
  catch_up();
  const auto before = load(0, {testing::id_of(1)});
  other->exec("BEGIN");
  other->exec("DELETE FROM larder_change");
  other->exec("UPDATE sqlite_sequence SET seq = 0");
  other->exec("COMMIT");
  catch_up();
  EXPECT_TRUE(sink.everything());
  const auto after = load(0, {testing::id_of(1)});
  EXPECT_NE(after->snapshot.source_id, before->snapshot.source_id);
  EXPECT_EQ(sink.batches.back().source_id, after->snapshot.source_id);
}

TEST_F(SqliteTest, LostTriggersStopTheHeartbeat) {
  open();
  start_feed();
  catch_up();
  other->exec("CREATE TABLE copy AS SELECT * FROM item");
  other->exec("DROP TABLE item");
  other->exec("CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, grp INTEGER)");
  other->exec("INSERT INTO item SELECT * FROM copy");
  loop.run_until([&] { return !logged().empty(); });
  EXPECT_THAT(logged()[0], HasSubstr("run `larder source prepare shop`"));
  EXPECT_EQ(write("DELETE FROM item").error().code, ErrorCode::source_refused);
  ASSERT_TRUE(sqlite::apply(path, watched));
  catch_up();
  EXPECT_TRUE(sink.everything());
}

TEST_F(SqliteTest, ALockedDatabaseStopsTheHeartbeat) {
  open();
  start_feed();
  catch_up();
  other->exec("BEGIN EXCLUSIVE");
  loop.run_until([&] { return !logged().empty(); });
  const TimeUs last = sink.heartbeat();
  EXPECT_THAT(logged()[0], HasSubstr("locked"));
  other->exec("UPDATE item SET name = 'x' WHERE id = 1");
  EXPECT_EQ(sink.heartbeat(), last);
  other->exec("COMMIT");
  catch_up();
  EXPECT_THAT(sink.changes(), ElementsAre("0:1"));
}

// Everything at once, for the sanitizers: readers, writers of both kinds, and the feed.
Task<void> write_many(Source& source, int count, int& ended) {
  for (int i = 0; i < count; ++i) {
    std::vector<Statement> statements{
        {.sql = "UPDATE item SET grp = grp + 1 WHERE id = 1", .params = {}}};
    Result<std::unique_ptr<Transaction>> open =
        co_await source.write(std::move(statements), soon());
    if (!open || i % 7 == 0) continue;
    const Result<void> done = co_await (*open)->commit();
    EXPECT_TRUE(done) << done.error().message;
  }
  ++ended;
}
Task<void> load_many(Source& source, int count, int& ended) {
  policy::TxnId last = 0;
  for (int i = 0; i < count; ++i) {
    std::vector<Params> keys{testing::id_of(1), testing::id_of(2), testing::id_of(5)};
    const Result<Loaded> loaded = co_await source.load(0, std::move(keys), soon());
    EXPECT_TRUE(loaded) << loaded.error().message;
    if (!loaded) continue;
    EXPECT_GE(loaded->snapshot.xmin, last);
    last = loaded->snapshot.xmin;
  }
  ++ended;
}

TEST_F(SqliteTest, ManyAtOnce) {
  for (const bool prepared : {false, true}) {
    other->exec("PRAGMA journal_mode = WAL");
    open(prepared);
    TaskGroup group;
    int ended = 0;
    if (prepared) start_feed();
    loop.spawn(group, write_many(*source, 40, ended));
    loop.spawn(group, write_many(*source, 40, ended));
    loop.spawn(group, load_many(*source, 100, ended));
    loop.spawn(group, load_many(*source, 100, ended));
    std::thread foreign([&] {
      testing::OtherClient client(path);
      for (int i = 0; i < 40; ++i) client.exec("UPDATE item SET grp = grp + 1 WHERE id = 2");
    });
    loop.run_until([&] { return ended == 4; });
    foreign.join();
    loop.join(group);
    if (!prepared) {
      source.reset();
      continue;
    }
    catch_up();
    EXPECT_FALSE(sink.everything());
    EXPECT_THAT(sink.changes(), SizeIs(40));
  }
}

// ---- for an engine that nodes share ----

class SqliteFleetTest : public SqliteTest {
 protected:
  void open_for_fleet(bool prepare = true) {
    Options with = options();
    with.feed_for = FeedFor::fleet;
    open(with, prepare);
  }
};

TEST_F(SqliteFleetTest, NodesAgreeOnTheIncarnation) {
  open_for_fleet();
  Options with = options();
  with.feed_for = FeedFor::fleet;
  auto second = open_sqlite(with);
  ASSERT_TRUE(second);
  const auto one = load(0, {testing::id_of(1)});
  const auto two = loop.run((*second)->load(0, {testing::id_of(1)}, soon()));
  ASSERT_TRUE(one && two);
  EXPECT_TRUE(one->snapshot.known());
  EXPECT_EQ(one->snapshot.source_id, two->snapshot.source_id);
}

TEST_F(SqliteFleetTest, NumbersOfOneProcessAreNoSnapshots) {
  open_for_fleet(false);
  EXPECT_FALSE(source->capabilities().snapshots);
  EXPECT_FALSE(load(0, {testing::id_of(1)})->snapshot.known());
  auto opened = write("UPDATE item SET name = 'x' WHERE id = 1");
  ASSERT_TRUE(opened);
  EXPECT_EQ((*opened)->x(), 0U);
}

TEST_F(SqliteFleetTest, TheFeedDeliversOwnChangesAndGoesBack) {
  open_for_fleet();
  start_feed();
  catch_up();
  ASSERT_TRUE(write_through("UPDATE item SET name = 'a' WHERE id = 1"));
  other->exec("UPDATE item SET name = 'b' WHERE id = 2");
  catch_up();
  EXPECT_THAT(sink.changes(), ElementsAre("0:1", "0:2"));
  const ChangeBatch last = sink.batches.back();
  EXPECT_EQ(last.to, 2U);
  EXPECT_EQ(last.xmin, 3U);
  sink.orders = {{.go_on_from = 1}};
  catch_up();
  catch_up();
  EXPECT_THAT(sink.changes(), ElementsAre("0:1", "0:2", "0:2"));
}

TEST_F(SqliteFleetTest, AFloorIsReadWhileNobodyWrites) {
  open_for_fleet();
  other->exec("UPDATE item SET name = 'b' WHERE id = 2");
  other->exec("BEGIN IMMEDIATE; UPDATE item SET name = 'c' WHERE id = 1");
  sink.orders = {{.new_epoch = true}, {.go_on_from = 0}};
  start_feed();
  // Until the other one ends there is no floor.
  loop.run_until([&] { return !sink.batches.empty(); });
  EXPECT_FALSE(sink.batches.back().floor);
  other->exec("COMMIT");
  loop.run_until([&] { return sink.batches.back().floor.has_value(); });
  EXPECT_EQ(*sink.batches.back().floor, 2U);
  EXPECT_EQ(sink.batches.back().to, 2U);
  catch_up();
  EXPECT_THAT(sink.changes(), ElementsAre("0:2", "0:2", "0:1"));  // and from 0, as was ordered
}

}  // namespace
}  // namespace larder::source::sqlite
