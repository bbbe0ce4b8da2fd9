#include "source/postgres/postgres.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "source/postgres/connection.h"
#include "source/postgres/testing.h"

namespace larder::source::postgres {
namespace {

using source::testing::RuntimeLoop;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::OtherClient;
using testing::Server;

TimeUs soon() { return monotonic_now_us() + 20 * kSecond; }
Params id_of(std::int64_t id) { return {{"id", id}}; }

class PostgresTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Server::available()) GTEST_SKIP() << "PostgreSQL's server is not installed";
    url_ = Server::get().url(Server::get().fresh_database());
    other_ = std::make_unique<OtherClient>(url_);
    other_->exec("CREATE TABLE item(id integer PRIMARY KEY, name text)");
    other_->exec("INSERT INTO item VALUES (1, 'one'), (2, 'two')");
  }

  Options options(std::vector<LoadStatement> statements) {
    return {.name = "shop",
            .url = url_,
            .pool = 4,
            .queue = 16,
            .statements = std::move(statements),
            .metrics = &metrics_,
            .log = [this](std::string line) { log_.push_back(std::move(line)); }};
  }
  void open(const Options& options) {
    auto opened = open_postgres(options);
    ASSERT_TRUE(opened.has_value()) << opened.error().message;
    source_ = std::move(*opened);
  }
  // Statement 0, with the key parameter id.
  void open_load(std::string sql, ResultShape shape = ResultShape::object,
                 std::vector<std::string> tags = {}) {
    open(options({{0, std::move(sql), shape, {"id"}, std::move(tags)}}));
  }
  void open_items() { open_load("SELECT id, name FROM item WHERE id = :id"); }
  std::string refusal(std::vector<LoadStatement> statements) {
    const auto opened = open_postgres(options(std::move(statements)));
    EXPECT_FALSE(opened.has_value());
    if (opened) return {};
    EXPECT_EQ(opened.error().code, ErrorCode::config);
    return opened.error().message;
  }

  Result<Loaded> load(std::vector<Params> keys, TimeUs deadline = soon()) {
    return loop_.run(source_->load(0, std::move(keys), deadline));
  }
  std::string load_one(Params key = id_of(1)) {
    const auto loaded = load({std::move(key)});
    if (!loaded) return "error: " + loaded.error().message;
    if (!loaded->rows[0]) return "error: " + loaded->rows[0].error().message;
    return loaded->rows[0]->found ? loaded->rows[0]->value : "absent";
  }
  Result<std::unique_ptr<Transaction>> write(std::string sql, Params params = {},
                                             TimeUs deadline = soon()) {
    std::vector<Statement> statements;
    statements.push_back({.sql = std::move(sql), .params = std::move(params)});
    return loop_.run(source_->write(std::move(statements), deadline));
  }
  // Other sessions than other_ that use the database.
  std::string sessions() {
    return other_->query(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> "
        "pg_backend_pid() AND backend_type = 'client backend'");
  }

  std::string url_;
  std::unique_ptr<OtherClient> other_;
  obs::Registry metrics_;
  std::vector<std::string> log_;
  RuntimeLoop loop_;
  std::unique_ptr<PostgresSource> source_;
};

// ---- rows ----

TEST_F(PostgresTest, ValuesAreAsPostgresqlItselfWritesThemInJson) {
  other_->exec("CREATE DOMAIN price AS numeric(12,4)");
  other_->exec("CREATE TYPE mood AS ENUM ('sad', 'ok')");
  other_->exec("CREATE TYPE pair AS (a int, b text)");
  const std::string columns =
      "true AS yes, false AS no, NULL::boolean AS maybe, 7::smallint AS small, "
      "9223372036854775807::bigint AS big, 12345678901234567890.1234567890::numeric AS num, "
      "12.5000::price AS dom, 'NaN'::numeric AS nan, 0.1::float8 AS f8, 1e300::float8 AS huge, "
      "'-Infinity'::float8 AS inf, 1.5::real AS f4, 'a\"\\b'::text AS txt, E'\\u00e4\\n\\x01' AS "
      "esc, 'x'::char(3) AS pad, '2024-02-29'::date AS d, '2024-02-29 13:14:15.123456'::timestamp "
      "AS ts, '2024-02-29 13:14:15+02'::timestamptz AS tz, '13:14'::time AS t, '1 day "
      "2:00'::interval AS iv, ARRAY[1,NULL,3] AS ints, ARRAY[['a','b'],['c','d']] AS texts, "
      "'{\"a\":[1,2]}'::json AS js, '{\"b\": 1}'::jsonb AS jb, ROW(1,'x')::pair AS comp, "
      "'sad'::mood AS en, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid AS u, '10.0.0.1'::inet AS "
      "ip, '[1,5)'::int4range AS r, ARRAY['2024-02-29'::date] AS dates";
  open_load("SELECT " + columns + " WHERE :id = 1");
  const std::string theirs = other_->query("SELECT row_to_json(q) FROM (SELECT " + columns + ") q");
  EXPECT_THAT(theirs, HasSubstr("12345678901234567890.1234567890"));
  EXPECT_EQ(load_one(), theirs);
}

TEST_F(PostgresTest, BinaryIsBase64AndRawWhereItIsTheValue) {
  open_load("SELECT '\\x00ff10'::bytea AS b, ''::bytea AS e WHERE :id = 1");
  EXPECT_EQ(load_one(), R"({"b":"AP8Q","e":""})");
  open_load("SELECT '\\x00ff10'::bytea AS b WHERE :id = 1", ResultShape::value);
  EXPECT_EQ(load_one(), std::string("\0\xff\x10", 3));
  open_load("SELECT 'x y' AS value WHERE :id = 1");
  EXPECT_EQ(load_one(), "x y");
  open_load("SELECT now() < 'infinity' AS b WHERE :id = 1", ResultShape::value);
  EXPECT_EQ(load_one(), "true");
  open_load("SELECT ARRAY[1,2] AS b WHERE :id = 1", ResultShape::value);
  EXPECT_EQ(load_one(), "{1,2}");
}

TEST_F(PostgresTest, ARowOfNullsIsARow) {
  open_load("SELECT NULL::int AS a, NULL::text AS b FROM item WHERE id = :id");
  EXPECT_EQ(load_one(id_of(1)), R"({"a":null,"b":null})");
  EXPECT_EQ(load_one(id_of(9)), "absent");
}

TEST_F(PostgresTest, KeysAndTagsAreTexts) {
  open_load(
      "SELECT id, name AS \"Name\", id = 1 AS first, '\\x00ff'::bytea AS raw, DATE '2024-02-29' AS "
      "day, ARRAY[id] AS ids FROM item WHERE id = :id",
      ResultShape::object, {"name", "first", "raw", "day", "ids", "nosuch"});
  const auto loaded = load({id_of(1), id_of(9)});
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_THAT(loaded->rows[0]->key_values, ElementsAre("1"));
  EXPECT_THAT(loaded->rows[0]->tag_values,
              ElementsAre("one", "true", "AP8=", "2024-02-29", "{1}", std::nullopt));
  EXPECT_THAT(loaded->rows[1]->key_values, ElementsAre(std::nullopt));
}

TEST_F(PostgresTest, SeveralRowsForOneObjectAreThatKeysError) {
  open_load("SELECT name FROM item WHERE id >= :id");
  const auto loaded = load({id_of(1), id_of(2)});
  ASSERT_TRUE(loaded);
  ASSERT_FALSE(loaded->rows[0]);
  EXPECT_THAT(loaded->rows[0].error().message, HasSubstr("several rows"));
  EXPECT_EQ(loaded->rows[1]->value, R"({"name":"two"})");
}

TEST_F(PostgresTest, StatementsAreCheckedAtStart) {
  EXPECT_THAT(refusal({{0, "SELECT nosuch FROM item WHERE id = :id", {}, {"id"}, {}}}),
              HasSubstr("column \"nosuch\" does not exist"));
  EXPECT_THAT(refusal({{0, "SELECT id, 1 AS id FROM item WHERE id = :id", {}, {"id"}, {}}}),
              HasSubstr("two columns named \"id\""));
  EXPECT_THAT(refusal({{0, "SELECT id FROM item WHERE id = :nr", {}, {"id"}, {}}}),
              HasSubstr(":nr is not a parameter of the key (id)"));
  EXPECT_THAT(refusal({{0, "SELECT id FROM item WHERE id = $1", {}, {"id"}, {}}}),
              HasSubstr("placeholders are written :name"));
  EXPECT_THAT(
      refusal({{0, "UPDATE item SET name = 'x' WHERE id = :id RETURNING id", {}, {"id"}, {}}}),
      HasSubstr("syntax error"));
  EXPECT_THAT(
      refusal({{0, "SELECT id, name FROM item WHERE id = :id", ResultShape::value, {"id"}, {}}}),
      HasSubstr("exactly one column"));
  // What looks like a placeholder, and a comment at the end.
  open_load("SELECT id::text, ':no' AS a, $$:no$$ AS b FROM item WHERE id = :id -- the end");
  EXPECT_EQ(load_one(), R"({"id":"1","a":":no","b":":no"})");

  for (const char* const good :
       {"UPDATE item SET name = :name WHERE id = :id", "DELETE FROM item WHERE id = :id",
        "WITH x AS (SELECT 1) INSERT INTO item VALUES (:id, :name) ON CONFLICT DO NOTHING"})
    EXPECT_TRUE(source_->check_statement(good)) << good;
  for (const char* const bad :
       {"COMMIT", "DROP TABLE item", "SET search_path = x", "UPDATE nosuch SET a = 1",
        "DELETE FROM item; COMMIT", "UPDATE item SET name = :name WHERE id = :id; SELECT 1", ""}) {
    const auto checked = source_->check_statement(bad);
    ASSERT_FALSE(checked) << bad;
    EXPECT_EQ(checked.error().code, ErrorCode::config) << bad;
  }
  EXPECT_EQ(other_->query("SELECT count(*) FROM item"), "2");
}

TEST_F(PostgresTest, WhoeverDependsOnAColumnOfAnotherTypeIsTold) {
  Options given = options({});
  given.watched = {{0, "item", {"id"}, {policy::ParamType::text}}};
  const auto opened = open_postgres(given);
  ASSERT_FALSE(opened);
  EXPECT_THAT(opened.error().message, HasSubstr("item.id is integer"));
  given.watched = {{0, "item", {"nosuch"}, {policy::ParamType::integer}}};
  EXPECT_THAT(open_postgres(given).error().message, HasSubstr("there is no column item.nosuch"));
  given.watched = {
      {0, "item", {"id", "name"}, {policy::ParamType::integer, policy::ParamType::text}}};
  EXPECT_TRUE(open_postgres(given));
}

// ---- one round trip ----

TEST_F(PostgresTest, ManyKeysAreOneRoundTrip) {
  open_items();
  std::vector<Params> keys;
  for (std::int64_t i = 0; i < 100; ++i) keys.push_back(id_of(i));
  const auto loaded = load(keys);
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(source_->round_trips(), 1U);  // the statement was prepared on the way
  ASSERT_TRUE(load(std::move(keys)));
  EXPECT_EQ(source_->round_trips(), 2U);
  EXPECT_EQ(loaded->rows[1]->value, R"({"id":1,"name":"one"})");
  EXPECT_FALSE(loaded->rows[50]->found);
  EXPECT_TRUE(loaded->snapshot.known());
  EXPECT_EQ(
      metrics_.counter("larder_source_queries_total", {{"source", "shop"}, {"op", "load"}}, "")
          .value(),
      2U);
}

TEST_F(PostgresTest, AllKeysAreOfOneState) {
  // The first key's load waits for a lock; what is committed meanwhile shows in none.
  open_load(
      "SELECT name, (SELECT count(pg_advisory_xact_lock_shared(1)) FROM item i WHERE i.id = 1 AND "
      ":id = 1) AS waited FROM item WHERE id = :id");
  other_->exec("SELECT pg_advisory_lock(1)");
  std::thread committing([&] {
    OtherClient writer(url_);
    while (writer.query(
               "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") == "0")
      continue;
    writer.exec("UPDATE item SET name = 'new'");
    other_->exec("SELECT pg_advisory_unlock(1)");
  });
  const auto loaded = load({id_of(1), id_of(2)});
  committing.join();
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_THAT(loaded->rows[0]->value, HasSubstr("one"));
  EXPECT_THAT(loaded->rows[1]->value, HasSubstr("two"));
}

TEST_F(PostgresTest, AKeyThatTheDatabaseRefusesFailsAlone) {
  open_load("SELECT id, 6 / (id - 2) AS part FROM item WHERE id = :id");
  const auto loaded = load({id_of(1),
                            {{"id", std::string("seven")}},
                            id_of(2),
                            {{"id", std::string("1\0", 2)}},
                            id_of(1)});
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(loaded->rows[0]->value, R"({"id":1,"part":-6})");
  EXPECT_THAT(loaded->rows[1].error().message, HasSubstr("invalid input syntax"));
  EXPECT_THAT(loaded->rows[2].error().message, HasSubstr("division by zero"));
  EXPECT_EQ(loaded->rows[2].error().code, ErrorCode::source_refused);
  EXPECT_EQ(loaded->rows[3].error().code, ErrorCode::bad_key);
  EXPECT_EQ(loaded->rows[4]->value, R"({"id":1,"part":-6})");
  EXPECT_TRUE(loaded->snapshot.known());
  // Nothing is left open.
  EXPECT_EQ(load_one(), R"({"id":1,"part":-6})");
  EXPECT_EQ(other_->query("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'"),
            "0");
}

// ---- changed tables ----

TEST_F(PostgresTest, TablesMayChangeUnderTheSource) {
  open_load("SELECT * FROM item WHERE id = :id");
  EXPECT_EQ(load_one(), R"({"id":1,"name":"one"})");
  other_->exec("ALTER TABLE item ADD extra date DEFAULT '2024-02-29'");
  EXPECT_EQ(load_one(), R"({"id":1,"name":"one","extra":"2024-02-29"})");
  other_->exec("ALTER TABLE item ALTER id TYPE text");
  EXPECT_EQ(load_one({{"id", std::string("1")}}),
            R"({"id":"1","name":"one","extra":"2024-02-29"})");
  other_->exec("ALTER TABLE item DROP name");
  const auto many = load({{{"id", std::string("1")}}, {{"id", std::string("2")}}});
  ASSERT_TRUE(many) << many.error().message;
  EXPECT_EQ(many->rows[1]->value, R"({"id":"2","extra":"2024-02-29"})");
  other_->exec("ALTER TABLE item RENAME TO gone");
  EXPECT_THAT(load_one(), HasSubstr("\"item\" does not exist"));
  other_->exec("ALTER TABLE gone RENAME TO item");
  EXPECT_EQ(load_one({{"id", std::string("1")}}), R"({"id":"1","extra":"2024-02-29"})");
}

// A layout that another session has learned meanwhile, or that is out of date for a new one.
TEST_F(PostgresTest, ANewSessionLooksAtWhatTheTableIsNow) {
  open_load("SELECT * FROM item WHERE id = :id");
  other_->exec("ALTER TABLE item ALTER id TYPE text");  // before the first load
  EXPECT_EQ(load_one({{"id", std::string("1")}}), R"({"id":"1","name":"one"})");
}

TEST_F(PostgresTest, PreparedStatementsMayBeLost) {
  Options given = options({{0, "SELECT name FROM item WHERE id = :id", {}, {"id"}, {}}});
  given.pool = 1;
  open(given);
  const auto run = [&](const std::string& sql) {
    auto pending = write(sql);
    ASSERT_TRUE(pending) << pending.error().message;
    const auto committed = loop_.run((*pending)->commit());
    ASSERT_TRUE(committed) << committed.error().message;
  };
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(load_one(), HasSubstr("one"));
    run("UPDATE item SET name = name || '!' WHERE id = 1");
    run("DEALLOCATE ALL");  // as a connection pooler does between two clients
  }
  EXPECT_EQ(load_one(), R"({"name":"one!!"})");
  run("UPDATE item SET name = name || '!' WHERE id = 1");
  EXPECT_EQ(load_one(), R"({"name":"one!!!"})");
}

// ---- snapshots ----

TEST_F(PostgresTest, ALoadBesideAnOpenTransactionSeesItInProgress) {
  open_items();
  other_->exec("BEGIN");
  const policy::TxnId x = std::stoull(other_->query("SELECT pg_current_xact_id()"));
  other_->exec("UPDATE item SET name = 'uno' WHERE id = 1");
  const TimeUs before = monotonic_now_us();
  for (const bool many : {false, true}) {
    const auto loaded = many ? load({id_of(1), id_of(2), id_of(9)}) : load({id_of(1)});
    ASSERT_TRUE(loaded);
    EXPECT_THAT(loaded->rows[0]->value, HasSubstr("one"));
    EXPECT_LE(loaded->snapshot.xmin, x);
    EXPECT_FALSE(loaded->snapshot.sees(x));
    EXPECT_TRUE(loaded->snapshot.sees(x - 1));
    EXPECT_GE(loaded->as_of, before);
    EXPECT_LE(loaded->as_of, monotonic_now_us());
  }
  // A later transaction ends first: it is seen, the older one is not.
  auto later = write("UPDATE item SET name = 'due' WHERE id = 2");
  ASSERT_TRUE(later);
  const policy::TxnId y = (*later)->x();
  EXPECT_GT(y, x);
  ASSERT_TRUE(loop_.run((*later)->commit()));
  const auto between = load({id_of(2)});
  EXPECT_THAT(between->rows[0]->value, HasSubstr("due"));
  EXPECT_TRUE(between->snapshot.sees(y));
  EXPECT_FALSE(between->snapshot.sees(x));
  EXPECT_THAT(between->snapshot.in_progress, ElementsAre(x));
  other_->exec("COMMIT");
  const auto after = load({id_of(1)});
  EXPECT_THAT(after->rows[0]->value, HasSubstr("uno"));
  EXPECT_TRUE(after->snapshot.sees(x));
  EXPECT_THAT(after->snapshot.in_progress, IsEmpty());
  // An absent row has the same proof.
  const auto absent = load({id_of(9)});
  EXPECT_FALSE(absent->rows[0]->found);
  EXPECT_TRUE(absent->snapshot.sees(x));
  EXPECT_EQ(absent->snapshot.source_id, after->snapshot.source_id);
  EXPECT_NE(absent->snapshot.source_id, 0U);
}

TEST_F(PostgresTest, WithoutAFeedAFleetIsToldOfNoSnapshots) {
  Options given = options({{0, "SELECT id, name FROM item WHERE id = :id", {}, {"id"}, {}}});
  given.feed_for = FeedFor::fleet;
  open(given);
  EXPECT_FALSE(source_->capabilities().snapshots);
  const auto loaded = load({id_of(1), id_of(2)});
  ASSERT_TRUE(loaded);
  EXPECT_FALSE(loaded->snapshot.known());
  auto pending = write("UPDATE item SET name = 'x' WHERE id = 1");
  ASSERT_TRUE(pending);
  EXPECT_EQ((*pending)->x(), 0U);
  EXPECT_TRUE(loop_.run((*pending)->commit()));
}

// ---- writes ----

TEST_F(PostgresTest, WritesTakeEveryTypeOfValue) {
  other_->exec(
      "CREATE TABLE wide(id int PRIMARY KEY, n numeric, b boolean, j jsonb, t text, y bytea)");
  open_items();
  auto open = write("INSERT INTO wide VALUES (:id, :n, :b, :j, :t, :y)",
                    {{"id", std::int64_t{1}},
                     {"n", std::string("12345678901234567890.123456789")},
                     {"b", std::string("true")},
                     {"j", std::string(R"({"a": [1, null]})")},
                     {"t", nullptr},
                     {"y", std::vector<std::byte>{std::byte{0}, std::byte{255}}}});
  ASSERT_TRUE(open) << open.error().message;
  EXPECT_THAT((*open)->affected(), ElementsAre(1));
  ASSERT_TRUE(loop_.run((*open)->commit()));
  EXPECT_EQ(other_->query("SELECT * FROM wide"),
            R"(1|12345678901234567890.123456789|t|{"a": [1, null]}|NULL|\x00ff)");
  const auto zero = write("UPDATE wide SET t = :t", {{"t", std::string("a\0b", 3)}});
  ASSERT_FALSE(zero);
  EXPECT_EQ(zero.error().code, ErrorCode::bad_value);
}

TEST_F(PostgresTest, OneRoundTripToWriteAndOneToCommit) {
  open_items();
  load_one();
  const std::uint64_t before = source_->round_trips();
  std::vector<Statement> statements;
  for (std::int64_t i = 10; i < 20; ++i)
    statements.push_back({.sql = "INSERT INTO item VALUES (:id, 'x')", .params = id_of(i)});
  statements.push_back({.sql = "SELECT count(*) FROM item", .params = {}, .wants_value = true});
  auto open = loop_.run(source_->write(std::move(statements), soon()));
  ASSERT_TRUE(open) << open.error().message;
  EXPECT_EQ((*open)->values().back(), "12");
  EXPECT_EQ(source_->round_trips(), before + 1);
  ASSERT_TRUE(loop_.run((*open)->commit()));
  EXPECT_EQ(source_->round_trips(), before + 2);
}

TEST_F(PostgresTest, AConstraintThatIsCheckedAtCommitIsADefiniteNo) {
  other_->exec("CREATE TABLE child(id int REFERENCES item DEFERRABLE INITIALLY DEFERRED)");
  open_items();
  auto open = write("INSERT INTO child VALUES (99)");
  ASSERT_TRUE(open);
  const auto committed = loop_.run((*open)->commit());
  ASSERT_FALSE(committed);
  EXPECT_EQ(committed.error().code, ErrorCode::source_refused);
  EXPECT_THAT(committed.error().message, HasSubstr("SQLSTATE 23503"));
  EXPECT_EQ(other_->query("SELECT count(*) FROM child"), "0");
  EXPECT_EQ(load_one(), R"({"id":1,"name":"one"})");
}

TEST_F(PostgresTest, ADestroyedTransactionGivesItsLocksBack) {
  open_items();
  write("UPDATE item SET name = 'uno' WHERE id = 1");
  other_->exec("SET lock_timeout = '20s'");
  other_->exec("UPDATE item SET name = 'theirs' WHERE id = 1");  // would wait for the lock
  EXPECT_EQ(load_one(), R"({"id":1,"name":"theirs"})");
  loop_.run_until([&] { return sessions() == "1"; });  // the session was kept
}

// Two transactions wait for each other's row; the advisory lock makes ours the last to wait, and so
// the one that looks for a deadlock.
TEST_F(PostgresTest, DeadlocksAreErrorsThatSaySo) {
  open_items();
  other_->exec("SET deadlock_timeout = '20s'");
  other_->exec("BEGIN");
  other_->exec("UPDATE item SET name = 'a' WHERE id = 1");
  OtherClient gate(url_);
  gate.exec("SELECT pg_advisory_lock(5)");
  std::vector<Statement> statements;
  for (const char* const sql :
       {"UPDATE item SET name = 'b' WHERE id = 2", "SELECT pg_advisory_xact_lock(5)",
        "SELECT set_config('deadlock_timeout', '10ms', true)",
        "UPDATE item SET name = 'b' WHERE id = 1"})
    statements.push_back({.sql = sql, .params = {}});
  const auto until_one_waits = [&](const std::string& for_what) {
    OtherClient watcher(url_);
    while (watcher.query("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = '" +
                         for_what + "'") == "0")
      continue;
  };
  std::thread theirs([&] {
    until_one_waits("advisory");
    other_->exec("UPDATE item SET name = 'a' WHERE id = 2");
  });
  std::thread opener([&] {
    until_one_waits("transactionid");
    gate.exec("SELECT pg_advisory_unlock(5)");
  });
  const auto lost = loop_.run(source_->write(std::move(statements), soon()));
  theirs.join();
  opener.join();
  other_->exec("COMMIT");
  ASSERT_FALSE(lost);
  EXPECT_EQ(lost.error().code, ErrorCode::source_down);
  EXPECT_THAT(lost.error().message, HasSubstr("deadlock"));
  EXPECT_THAT(log_, IsEmpty());  // no reason to call the source down
}

// ---- limits and failures ----

TEST_F(PostgresTest, ADeadlineThatPassesEndsTheWaitAndTheStatement) {
  open_load("SELECT name, (SELECT count(pg_sleep(60))) AS s FROM item WHERE id = :id");
  const auto late = load({id_of(1)}, monotonic_now_us() + 50 * kMillisecond);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::timeout);
  const auto written = write("SELECT pg_sleep(60)", {}, monotonic_now_us() + 50 * kMillisecond);
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, ErrorCode::timeout);
  EXPECT_THAT(log_, IsEmpty());
  // The server notices that its client has gone: well before its statement would have ended.
  loop_.run_until([&] { return sessions() == "0"; });
}

TEST_F(PostgresTest, TheServerEndsWhatNobodyWaitsForAnyMore) {
  Options given = options(
      {{0, "SELECT (SELECT count(pg_sleep(60))) AS s FROM item WHERE id = :id", {}, {"id"}, {}}});
  given.statement_timeout_us = 100 * kMillisecond;
  open(given);
  const auto late = load({id_of(1)});
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::timeout);
  EXPECT_THAT(late.error().message, HasSubstr("statement timeout"));
  loop_.run_until([&] { return sessions() == "1"; });  // the connection is as good as before
}

Task<void> load_into(PostgresSource& source, std::vector<ErrorCode>& errors, int& done) {
  std::vector<Params> keys{id_of(1)};
  const auto loaded = co_await source.load(0, std::move(keys), soon());
  if (!loaded) errors.push_back(loaded.error().code);
  ++done;
}

TEST_F(PostgresTest, ThePoolAndItsQueueAreBounds) {
  Options given = options({{0,
                            "SELECT name, (SELECT count(pg_advisory_xact_lock_shared(7))) AS l "
                            "FROM item WHERE id = :id",
                            {},
                            {"id"},
                            {}}});
  given.pool = 2;
  given.queue = 3;
  open(given);
  other_->exec("SELECT pg_advisory_lock(7)");
  std::vector<ErrorCode> errors;
  int done = 0;
  TaskGroup group;
  for (int i = 0; i < 8; ++i) loop_.spawn(group, load_into(*source_, errors, done));
  loop_.run_until([&] { return errors.size() == 3; });
  EXPECT_THAT(errors,
              ElementsAre(ErrorCode::overloaded, ErrorCode::overloaded, ErrorCode::overloaded));
  loop_.run_until(
      [&] { return other_->query("SELECT count(*) FROM pg_locks WHERE NOT granted") == "2"; });
  // The connection with which it began may take a moment to end.
  loop_.run_until([&] { return sessions() == "2"; });
  EXPECT_THAT(metrics_.prometheus(), HasSubstr("larder_source_waiting{source=\"shop\"} 3"));
  EXPECT_THAT(metrics_.prometheus(), HasSubstr("larder_source_connections{source=\"shop\"} 2"));
  other_->exec("SELECT pg_advisory_unlock(7)");
  loop_.run_until([&] { return done == 8; });
  EXPECT_EQ(errors.size(), 3U);
  loop_.join(group);
}

TEST_F(PostgresTest, AServerThatDiesAndComesBack) {
  open_items();
  EXPECT_EQ(load_one(), R"({"id":1,"name":"one"})");
  auto pending = write("UPDATE item SET name = 'lost' WHERE id = 1");
  ASSERT_TRUE(pending);
  Server::get().kill();
  const auto committed = loop_.run((*pending)->commit());
  ASSERT_FALSE(committed);
  EXPECT_EQ(committed.error().code, ErrorCode::source_down);
  EXPECT_THAT(committed.error().message, HasSubstr("not known"));
  for (int i = 0; i < 20; ++i) {
    const auto loaded = load({id_of(1)});
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code, ErrorCode::source_down) << loaded.error().message;
  }
  EXPECT_EQ(write("SELECT 1").error().code, ErrorCode::source_down);
  EXPECT_EQ(log_.size(), 1U);
  Server::get().start();
  std::string seen;
  while ((seen = load_one()).starts_with("error")) continue;
  EXPECT_EQ(seen, R"({"id":1,"name":"one"})");
  ASSERT_EQ(log_.size(), 2U);
  EXPECT_THAT(log_[0], HasSubstr("source \"shop\": "));
  EXPECT_EQ(log_[1], "source \"shop\": works again");
  other_ = std::make_unique<OtherClient>(url_);
}

TEST_F(PostgresTest, WhatBreaksWhileItLiesIdleIsNoticedBeforeItIsUsed) {
  open_items();
  load_one();
  other_->exec(
      "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = "
      "current_database() AND pid <> pg_backend_pid()");
  EXPECT_EQ(load_one(), R"({"id":1,"name":"one"})");
  EXPECT_THAT(log_, IsEmpty());
}

// A proxy that forwards a connection until it is told to cut it.
class Cutter {
 public:
  explicit Cutter(std::uint16_t target) : target_(target) {
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = local(0);
    EXPECT_EQ(::bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(listener_, 16), 0);
    socklen_t size = sizeof address;
    EXPECT_EQ(::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { run(); });
  }
  ~Cutter() {
    stop_ = true;
    ::shutdown(listener_, SHUT_RDWR);
    thread_.join();
    ::close(listener_);
  }
  std::uint16_t port() const { return port_; }
  // Cuts a connection when its client sends these bytes: behind them, so that the server gets them
  // and its answer is lost.
  void cut_behind(std::string bytes) {
    const std::lock_guard lock(mutex_);
    cut_ = std::move(bytes);
  }
  // Pieces that clients have sent, each answered before the next.
  int requests() const { return requests_; }

 private:
  static sockaddr_in local(std::uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }
  void run() {
    std::vector<std::thread> pumps;
    for (;;) {
      const int client = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (client < 0) break;
      pumps.emplace_back([this, client] { pump(client); });
    }
    for (auto& pump : pumps) pump.join();
  }
  void pump(int client) {
    const int server = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_in address = local(target_);
    EXPECT_EQ(::connect(server, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    std::string buffer(64 << 10, '\0');
    bool answered = true;
    while (!stop_) {
      pollfd fds[] = {{client, POLLIN, 0}, {server, POLLIN, 0}};
      if (::poll(fds, 2, 50) <= 0) continue;
      const bool asks = fds[0].revents != 0;
      const ssize_t got = ::recv(asks ? client : server, buffer.data(), buffer.size(), 0);
      if (got <= 0) break;
      const auto size = static_cast<std::size_t>(got);
      ::send(asks ? server : client, buffer.data(), size, MSG_NOSIGNAL);
      if (asks && answered) ++requests_;
      answered = !asks;
      const std::lock_guard lock(mutex_);
      if (asks && !cut_.empty() && std::string_view(buffer.data(), size).contains(cut_)) {
        // The server has it for certain when it has answered.
        ::recv(server, buffer.data(), buffer.size(), 0);
        break;
      }
    }
    ::close(client);
    ::close(server);
  }

  const std::uint16_t target_;
  int listener_ = -1;
  std::uint16_t port_ = 0;
  std::atomic<bool> stop_{false};
  std::atomic<int> requests_{0};
  std::mutex mutex_;
  std::string cut_;
  std::thread thread_;
};

TEST_F(PostgresTest, ACommitWhoseAnswerIsLostHasAnUnknownOutcome) {
  Cutter cutter(Server::get().port());
  Options given = options({{0, "SELECT id, name FROM item WHERE id = :id", {}, {"id"}, {}}});
  given.url = url_;
  given.url.replace(given.url.find(std::to_string(Server::get().port())),
                    std::to_string(Server::get().port()).size(), std::to_string(cutter.port()));
  open(given);
  auto pending = write("UPDATE item SET name = 'kept' WHERE id = 1");
  ASSERT_TRUE(pending) << pending.error().message;
  cutter.cut_behind("COMMIT");
  const auto committed = loop_.run((*pending)->commit());
  ASSERT_FALSE(committed);
  EXPECT_EQ(committed.error().code, ErrorCode::source_down);
  EXPECT_THAT(committed.error().message, HasSubstr("not known"));
  EXPECT_EQ(other_->query("SELECT name FROM item WHERE id = 1"), "kept");
  cutter.cut_behind("");
  EXPECT_EQ(load_one(), R"({"id":1,"name":"kept"})");

  // As the server sees it: a hundred keys are one request and one answer.
  const int before = cutter.requests();
  std::vector<Params> keys;
  for (std::int64_t i = 0; i < 100; ++i) keys.push_back(id_of(i));
  ASSERT_TRUE(load(std::move(keys)));
  EXPECT_EQ(cutter.requests(), before + 1);
  source_.reset();
}

// ---- standbys ----

TEST_F(PostgresTest, AStandbyClaimsNoMoreThanItKnowsAndIsNoticedWhenItIsPromoted) {
  Server::get().drop_old_databases();
  Server standby(&Server::get());
  const std::string database = url_.substr(url_.rfind('/') + 1);
  Options given = options({{0, "SELECT id, name FROM item WHERE id = :id", {}, {"id"}, {}}});
  given.url = standby.url(database);
  open(given);
  OtherClient there(given.url);
  // A transaction is open on the primary, and one beside it has ended.
  other_->exec("BEGIN");
  const policy::TxnId open_x = std::stoull(other_->query("SELECT pg_current_xact_id()"));
  other_->exec("UPDATE item SET name = 'open' WHERE id = 1");
  OtherClient beside(url_);
  const policy::TxnId ended_x = std::stoull(beside.query("SELECT pg_current_xact_id()"));
  beside.exec("UPDATE item SET name = 'ended' WHERE id = 2");
  while (load_one(id_of(2)) != R"({"id":2,"name":"ended"})") continue;  // until it is replayed
  const TimeUs before = monotonic_now_us();
  const auto loaded = load({id_of(1), id_of(2)});
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(loaded->rows[0]->value, R"({"id":1,"name":"one"})");
  EXPECT_EQ(loaded->snapshot.xmin, loaded->snapshot.xmax);
  EXPECT_THAT(loaded->snapshot.in_progress, IsEmpty());
  EXPECT_FALSE(loaded->snapshot.sees(open_x));
  EXPECT_FALSE(loaded->snapshot.sees(std::max(open_x, ended_x)));
  EXPECT_LT(loaded->as_of, before);  // what it has replayed is older than the question
  EXPECT_GT(loaded->as_of, before - 60 * kSecond);
  const std::uint64_t first_timeline = loaded->snapshot.source_id;
  const auto refused = write("UPDATE item SET name = 'x' WHERE id = 1");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::source_down);
  EXPECT_THAT(refused.error().message, HasSubstr("standby"));

  other_->exec("ROLLBACK");
  load_one();  // leaves a session that knows it as a standby
  there.exec("SELECT pg_promote(true, 60)");
  const auto at_once = load({id_of(1)});
  ASSERT_TRUE(at_once) << at_once.error().message;
  EXPECT_EQ(at_once->snapshot.xmin, at_once->snapshot.xmax);
  EXPECT_EQ(at_once->as_of, 0);
  auto promoted = write("UPDATE item SET name = 'x' WHERE id = 1");
  ASSERT_TRUE(promoted) << promoted.error().message;
  EXPECT_NE((*promoted)->source_id(), first_timeline);
  const auto after = load({id_of(1)});
  EXPECT_EQ(after->snapshot.source_id, (*promoted)->source_id());
  EXPECT_FALSE(after->snapshot.sees((*promoted)->x()));
  promoted->reset();
  source_.reset();
}

TEST_F(PostgresTest, LoadsGoToAReplicaThatIsFitAndSayWhatTheyHaveNotSeen) {
  Server::get().drop_old_databases();
  Server standby(&Server::get());
  const std::string database = url_.substr(url_.rfind('/') + 1);
  obs::Registry metrics;
  Options given = options({{0, "SELECT id, name FROM item WHERE id = :id", {}, {"id"}, {}}});
  given.replicas = {standby.url(database)};
  given.replica_lag_us = 3600 * kSecond;
  given.metrics = &metrics;
  open(given);
  const auto any = [&](std::vector<Params> keys) {
    return loop_.run(source_->load(0, std::move(keys), {soon(), true}));
  };
  const auto count = [&](const char* name) {
    return metrics.counter(name, {{"source", "shop"}, {"replica", "1"}}, "").value();
  };
  EXPECT_FALSE(any({id_of(1)})->replica) << "which server is the right one?";
  auto loaded = any({id_of(1), id_of(2)});
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_TRUE(loaded->replica);
  EXPECT_EQ(loaded->rows[0]->value, R"({"id":1,"name":"one"})");
  EXPECT_FALSE(load({id_of(1)})->replica);

  OtherClient there(given.replicas[0]);
  there.query("SELECT pg_wal_replay_pause()");
  while (there.query("SELECT pg_get_wal_replay_pause_state()") != "paused") continue;
  other_->exec("BEGIN");
  other_->exec("UPDATE item SET name = 'new' WHERE id = 1");
  const policy::TxnId x = std::stoull(other_->query("SELECT pg_current_xact_id()"));
  other_->exec("COMMIT");
  loaded = any({id_of(1)});
  EXPECT_TRUE(loaded->replica);
  EXPECT_EQ(loaded->rows[0]->value, R"({"id":1,"name":"one"})");
  EXPECT_FALSE(loaded->snapshot.sees(x)) << "it must not be stored";
  there.query("SELECT pg_wal_replay_resume()");

  // Of another timeline, and then gone: the primary answers, in time.
  there.exec("SELECT pg_promote(true, 60)");
  for (int i = 0; i < 3; ++i) {
    loaded = any({id_of(1)});
    ASSERT_TRUE(loaded) << loaded.error().message;
    if (!loaded->replica) break;  // a session that does not know yet
  }
  EXPECT_FALSE(loaded->replica);
  EXPECT_EQ(loaded->rows[0]->value, R"({"id":1,"name":"new"})");
  EXPECT_GE(count("larder_source_replica_passed_total"), 1U);
  EXPECT_GE(count("larder_source_replica_loads_total"), 2U);
  source_.reset();
}

TEST_F(PostgresTest, AReplicaThatIsDownOrBehindIsPassedOver) {
  Server::get().drop_old_databases();
  const std::string database = url_.substr(url_.rfind('/') + 1);
  Options given = options({{0, "SELECT id, name FROM item WHERE id = :id", {}, {"id"}, {}}});
  {
    Server standby(&Server::get());
    given.replicas = {standby.url(database)};
    given.replica_lag_us = -kSecond;  // it always is
    open(given);
    load_one();
    const auto behind = loop_.run(source_->load(0, {id_of(1)}, {soon(), true}));
    ASSERT_TRUE(behind) << behind.error().message;
    EXPECT_FALSE(behind->replica);
    source_.reset();
  }
  given.replica_lag_us = 3600 * kSecond;
  open(given);
  load_one();
  for (int i = 0; i < 3; ++i) {
    const auto down = loop_.run(source_->load(0, {id_of(1)}, {soon(), true}));
    ASSERT_TRUE(down) << down.error().message;
    EXPECT_FALSE(down->replica);
  }
  source_.reset();
}

}  // namespace
}  // namespace larder::source::postgres
