#include "source/mariadb/mariadb.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "source/mariadb/testing.h"
#include "source/mariadb/values.h"

namespace larder::source::mariadb {
namespace {

using source::testing::RuntimeLoop;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::OtherClient;
using testing::Server;

TimeUs soon() { return monotonic_now_us() + 20 * kSecond; }
Params id_of(std::int64_t id) { return {{"id", id}}; }

class MariadbTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Server::available()) GTEST_SKIP() << "MariaDB's server is not installed";
    database_ = Server::get().fresh_database();
    url_ = Server::get().url(database_);
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
    auto opened = open_mariadb(options);
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
    const auto opened = open_mariadb(options(std::move(statements)));
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
  void write_and_commit(const std::string& sql, Params params = {}) {
    auto pending = write(sql, std::move(params));
    ASSERT_TRUE(pending) << pending.error().message;
    const auto committed = loop_.run((*pending)->commit());
    ASSERT_TRUE(committed) << committed.error().message;
  }
  // Other sessions than other_ that use the database, with that in their statement.
  std::string sessions(const std::string& statement = "") {
    return other_->query("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE DB = '" +
                         database_ + "' AND ID <> CONNECTION_ID() AND COALESCE(INFO, '') LIKE '%" +
                         statement + "%'");
  }
  // The source's one session, while it lies idle.
  void end_sessions() {
    other_->exec("KILL CONNECTION " +
                 other_->query("SELECT ID FROM information_schema.PROCESSLIST WHERE DB = '" +
                               database_ + "' AND ID <> CONNECTION_ID()"));
    until([&] { return sessions() == "0"; });
  }
  void until(const std::function<bool()>& done) { loop_.run_until(done); }

  std::string database_, url_;
  std::unique_ptr<OtherClient> other_;
  obs::Registry metrics_;
  std::vector<std::string> log_;
  RuntimeLoop loop_;
  std::unique_ptr<MariadbSource> source_;
};

// ---- rows ----

TEST_F(MariadbTest, EveryTypeAsJson) {
  other_->exec(
      "CREATE TABLE wide(id int PRIMARY KEY, t tinyint, yes boolean, u bigint unsigned, b bigint, "
      "m mediumint, z int(6) zerofill, dec1 decimal(40,10), f float, d double, huge double, bit1 "
      "bit(1), bits bit(64), dt date, dtt datetime(6), ts timestamp(3) NULL, ti time(1), y year, c "
      "char(3), vc varchar(50), tx longtext, e enum('sad','ok'), s set('a','b'), js json, bin "
      "binary(3), vb varbinary(9), bl blob, nothing int, dz decimal(8,2) zerofill) CHARACTER SET "
      "utf8mb4");
  other_->exec("SET sql_mode = ''");
  other_->exec(
      "INSERT INTO wide VALUES (1, -128, true, 18446744073709551615, -9223372036854775808, "
      "8388607, 42, 123456789012345678901234567890.1234567890, 1.5, 0.1, 1e300, b'1', "
      "0xFFFFFFFFFFFFFFFF, '2024-02-29', '2024-02-29 13:14:15.123456', '2024-02-29 13:14:15.5', "
      "'-101:02:03.4', 2024, 'x', 'a\\\"\\\\b', '\xc3\xa4\\n\xf0\x9f\x8e\x89', 'ok', 'a,b', "
      "'{\"a\": [1, 2]}', 'ab', x'00ff10', x'', NULL, 7.5)");
  open_load("SELECT * FROM wide WHERE id = :id");
  EXPECT_EQ(
      load_one(),
      R"({"id":1,"t":-128,"yes":1,"u":18446744073709551615,"b":-9223372036854775808,)"
      R"("m":8388607,"z":42,"dec1":123456789012345678901234567890.1234567890,"f":1.5,"d":0.1,)"
      R"("huge":1e300,"bit1":1,"bits":18446744073709551615,"dt":"2024-02-29",)"
      R"("dtt":"2024-02-29T13:14:15.123456","ts":"2024-02-29T13:14:15.500",)"
      R"("ti":"-101:02:03.4","y":2024,"c":"x","vc":"a\"\\b","tx":")"
      "\xc3\xa4\\n\xf0\x9f\x8e\x89"
      R"(","e":"ok","s":"a,b","js":{"a": [1, 2]},"bin":"YWIA","vb":"AP8Q","bl":"",)"
      R"("nothing":null,"dz":7.50})");
  open_load(
      "SELECT COUNT(*) AS n, :id + 0 AS p, JSON_OBJECT('a', 1) AS j, 1 = 1 AS yes, NULL AS nil, "
      "'x' AS t, x'00' AS b, 1.50 AS dec1, 1e0 AS d, CURRENT_DATE > '2000-01-01' AS later FROM "
      "item");
  EXPECT_EQ(load_one(), R"({"n":2,"p":1,"j":{"a": 1},"yes":1,"nil":null,"t":"x","b":"AA==",)"
                        R"("dec1":1.50,"d":1,"later":1})");
}

TEST_F(MariadbTest, TheOneValueIsRaw) {
  open_load("SELECT x'00ff10' AS b FROM item WHERE id = :id", ResultShape::value);
  EXPECT_EQ(load_one(), std::string("\0\xff\x10", 3));
  open_load("SELECT name AS value FROM item WHERE id = :id");
  EXPECT_EQ(load_one(), "one");
  open_load("SELECT b'101' + 0 AS b FROM item WHERE id = :id", ResultShape::value);
  EXPECT_EQ(load_one(), "5");
}

TEST_F(MariadbTest, KeysAndTagsAreTexts) {
  open_load(
      "SELECT id, name AS Name, id = 1 AS first, x'00ff' AS raw, TIMESTAMP '2024-02-29 01:02:03' "
      "AS "
      "at, CAST(7 AS DECIMAL(9,2)) AS price FROM item WHERE id = :id",
      ResultShape::object, {"name", "first", "raw", "at", "price", "nosuch"});
  const auto loaded = load({id_of(1), id_of(9)});
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_THAT(loaded->rows[0]->key_values, ElementsAre("1"));
  EXPECT_THAT(loaded->rows[0]->tag_values,
              ElementsAre("one", "1", "AP8=", "2024-02-29 01:02:03", "7.00", std::nullopt));
  EXPECT_FALSE(loaded->rows[1]->found);
  EXPECT_THAT(loaded->rows[1]->key_values, ElementsAre(std::nullopt));
}

TEST_F(MariadbTest, ARowOfNullsIsARow) {
  open_load("SELECT NULL AS a, NULL AS b FROM item WHERE id = :id");
  EXPECT_EQ(load_one(id_of(1)), R"({"a":null,"b":null})");
  EXPECT_EQ(load_one(id_of(9)), "absent");
}

TEST_F(MariadbTest, SeveralRowsForOneObjectAreThatKeysError) {
  open_load("SELECT name FROM item WHERE id >= :id");
  const auto loaded = load({id_of(1), id_of(2)});
  ASSERT_TRUE(loaded) << loaded.error().message;
  ASSERT_FALSE(loaded->rows[0]);
  EXPECT_THAT(loaded->rows[0].error().message, HasSubstr("several rows"));
  EXPECT_EQ(loaded->rows[1]->value, R"({"name":"two"})");
}

TEST_F(MariadbTest, StatementsAreCheckedAtStart) {
  EXPECT_THAT(refusal({{0, "SELECT nosuch FROM item WHERE id = :id", {}, {"id"}, {}}}),
              HasSubstr("Unknown column 'nosuch'"));
  EXPECT_THAT(refusal({{0, "SELECT id, 1 AS id FROM item WHERE id = :id", {}, {"id"}, {}}}),
              HasSubstr("two columns named \"id\""));
  EXPECT_THAT(refusal({{0, "SELECT id FROM item WHERE id = :nr", {}, {"id"}, {}}}),
              HasSubstr(":nr is not a parameter of the key (id)"));
  EXPECT_THAT(refusal({{0, "SELECT id FROM item WHERE id = ?", {}, {"id"}, {}}}),
              HasSubstr("placeholders are written :name"));
  EXPECT_THAT(refusal({{0, "DELETE FROM item WHERE id = :id RETURNING id", {}, {"id"}, {}}}),
              HasSubstr("only SELECT"));
  EXPECT_THAT(
      refusal({{0, "SELECT id, name FROM item WHERE id = :id", ResultShape::value, {"id"}, {}}}),
      HasSubstr("exactly one column"));
  // What looks like a placeholder, quotes of every kind, and a comment at the end.
  open_load("SELECT id `a``:b`, ':no\\'' AS a, \":no\" AS b FROM item WHERE id = :id # :the end");
  EXPECT_EQ(load_one(), R"({"a`:b":1,"a":":no'","b":":no"})");

  for (const char* const good :
       {"UPDATE item SET name = :name WHERE id = :id", "DELETE FROM item WHERE id = :id",
        "REPLACE INTO item VALUES (:id, :name)",
        "INSERT INTO item VALUES (:id, :name) ON DUPLICATE KEY UPDATE name = :name"})
    EXPECT_TRUE(source_->check_statement(good)) << good;
  for (const char* const bad :
       {"COMMIT", "DROP TABLE item", "SET autocommit = 1", "UPDATE nosuch SET a = 1",
        "DELETE FROM item; COMMIT", "UPDATE item SET name = ?", "CALL p()", "",
        "PREPARE p FROM 'COMMIT'", "BEGIN NOT ATOMIC COMMIT; END"}) {
    const auto checked = source_->check_statement(bad);
    ASSERT_FALSE(checked) << bad;
    EXPECT_EQ(checked.error().code, ErrorCode::config) << bad;
  }
  EXPECT_EQ(other_->query("SELECT count(*) FROM item"), "2");
}

TEST_F(MariadbTest, WhoeverDependsOnAColumnOfAnotherTypeIsTold) {
  const auto told = [&](std::string column, policy::ParamType type) -> std::string {
    Options given = options({});
    given.watched = {{0, "item", {std::move(column)}, {type}}};
    const auto opened = open_mariadb(given);
    return opened ? "" : opened.error().message;
  };
  EXPECT_THAT(told("id", policy::ParamType::text), HasSubstr("item.id is int"));
  EXPECT_THAT(told("name", policy::ParamType::integer), HasSubstr("item.name is text"));
  EXPECT_THAT(told("nosuch", policy::ParamType::integer), HasSubstr("no column item.nosuch"));
  EXPECT_EQ(told("id", policy::ParamType::integer), "");
  EXPECT_EQ(told("name", policy::ParamType::text), "");
}

// ---- parameters ----

TEST_F(MariadbTest, ATextIsATextWhateverItHolds) {
  open_load("SELECT id FROM item WHERE name = :id");
  for (const char* const text : {"", "'", "''", "\\", "\\'", "\"", "x'; DROP TABLE item; --", "`",
                                 "\n", "\xc3\xa4", "\xf0\x9f\x8e\x89", "%", "_", "?", ":id"}) {
    SCOPED_TRACE(text);
    other_->exec("DELETE FROM item");
    write_and_commit("INSERT INTO item VALUES (:id, :name)",
                     {{"id", std::int64_t{5}}, {"name", std::string(text)}});
    EXPECT_EQ(other_->query("SELECT HEX(name) = UPPER('" + literal_of_text(text).substr(11) +
                            ") FROM item"),
              "1");
    EXPECT_EQ(load_one({{"id", std::string(text)}}), R"({"id":5})");
  }
  // Also where a backslash is nothing special, and quotes are those of names.
  other_->exec("SET GLOBAL sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'");
  open_load("SELECT id FROM item WHERE name = :id");
  write_and_commit("UPDATE item SET name = :name", {{"name", std::string("\\'\"")}});
  EXPECT_EQ(load_one({{"id", std::string("\\'\"")}}), R"({"id":5})");
  other_->exec("SET GLOBAL sql_mode = DEFAULT");
}

TEST_F(MariadbTest, WritesTakeEveryTypeOfValue) {
  other_->exec(
      "CREATE TABLE wide(id int PRIMARY KEY, n decimal(40,9), u bigint unsigned, b boolean, j "
      "json, "
      "t text, y varbinary(9), d double)");
  open_items();
  EXPECT_TRUE(source_->capabilities().number_texts);
  write_and_commit("INSERT INTO wide VALUES (:id, :n, :u, :b, :j, :t, :y, :d)",
                   {{"id", std::int64_t{1}},
                    {"n", std::string("12345678901234567890.123456789")},
                    {"u", std::string("18446744073709551615")},
                    {"b", std::int64_t{1}},
                    {"j", std::string(R"({"a": [1, null]})")},
                    {"t", nullptr},
                    {"y", std::vector<std::byte>{std::byte{0}, std::byte{255}}},
                    {"d", 0.1}});
  EXPECT_EQ(
      other_->query("SELECT id, n, u, b, j, t, HEX(y), d FROM wide"),
      R"(1|12345678901234567890.123456789|18446744073709551615|1|{"a": [1, null]}|NULL|00FF|0.1)");
}

// ---- one round trip ----

TEST_F(MariadbTest, ManyKeysAreOneRoundTrip) {
  open_items();
  std::vector<Params> keys;
  keys.reserve(100);
  for (std::int64_t i = 0; i < 100; ++i) keys.push_back(id_of(i));
  const auto loaded = load(keys);
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(source_->round_trips(), 1U);  // the statement was prepared on the way
  ASSERT_TRUE(load(std::move(keys)));
  EXPECT_EQ(source_->round_trips(), 2U);
  EXPECT_EQ(load_one(), R"({"id":1,"name":"one"})");
  EXPECT_EQ(source_->round_trips(), 3U);
  EXPECT_EQ(loaded->rows[1]->value, R"({"id":1,"name":"one"})");
  EXPECT_FALSE(loaded->rows[50]->found);
  EXPECT_TRUE(loaded->snapshot.known());
  EXPECT_EQ(
      metrics_.counter("larder_source_queries_total", {{"source", "shop"}, {"op", "load"}}, "")
          .value(),
      3U);
}

TEST_F(MariadbTest, AllKeysAreOfOneState) {
  // The first key's load waits for a user lock; what is committed meanwhile shows in none.
  open_load(
      "SELECT name, IF(:id = 1, GET_LOCK('gate', 20) + RELEASE_LOCK('gate'), 2) AS waited FROM "
      "item "
      "WHERE id = :id");
  other_->exec("DO GET_LOCK('gate', 0)");
  std::thread committing([&] {
    OtherClient writer(url_);
    while (writer.query("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE STATE = 'User "
                        "lock' AND DB = '" +
                        database_ + "'") == "0")
      continue;
    writer.exec("UPDATE item SET name = 'new'");
    other_->exec("DO RELEASE_LOCK('gate')");
  });
  const auto loaded = load({id_of(1), id_of(2)});
  committing.join();
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(loaded->rows[0]->value, R"({"name":"one","waited":2})");
  EXPECT_EQ(loaded->rows[1]->value, R"({"name":"two","waited":2})");
}

TEST_F(MariadbTest, AKeyThatTheDatabaseRefusesFailsAlone) {
  open_load(
      "SELECT id, (SELECT i.id FROM item i WHERE i.id = 1 OR :id = 2) AS one FROM item WHERE id = "
      ":id");
  const auto loaded = load({id_of(1), id_of(2), {{"id", std::string("\xff")}}, id_of(1), id_of(2)});
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(loaded->rows[0]->value, R"({"id":1,"one":1})");
  ASSERT_FALSE(loaded->rows[1]);
  EXPECT_THAT(loaded->rows[1].error().message, HasSubstr("more than 1 row"));
  EXPECT_EQ(loaded->rows[1].error().code, ErrorCode::source_refused);
  EXPECT_FALSE(loaded->rows[2]);
  EXPECT_EQ(loaded->rows[3]->value, R"({"id":1,"one":1})");
  EXPECT_FALSE(loaded->rows[4]);
  EXPECT_TRUE(loaded->snapshot.known());
  EXPECT_EQ(source_->round_trips(), 3U);  // one more for each that does not come last
  // Nothing is left open.
  EXPECT_EQ(load_one(), R"({"id":1,"one":1})");
  EXPECT_EQ(other_->query("SELECT COUNT(*) FROM information_schema.INNODB_TRX"), "0");
}

// ---- changed tables, lost statements ----

TEST_F(MariadbTest, TablesMayChangeUnderTheSource) {
  open_load("SELECT * FROM item WHERE id = :id");
  EXPECT_EQ(load_one(), R"({"id":1,"name":"one"})");
  other_->exec("ALTER TABLE item ADD extra date DEFAULT '2024-02-29'");
  EXPECT_EQ(load_one(), R"({"id":1,"name":"one","extra":"2024-02-29"})");
  other_->exec("ALTER TABLE item MODIFY id varchar(20)");
  EXPECT_EQ(load_one(), R"({"id":"1","name":"one","extra":"2024-02-29"})");
  other_->exec("ALTER TABLE item DROP name");
  const auto many = load({id_of(1), id_of(2)});
  ASSERT_TRUE(many) << many.error().message;
  EXPECT_EQ(many->rows[1]->value, R"({"id":"2","extra":"2024-02-29"})");
  other_->exec("RENAME TABLE item TO gone");
  EXPECT_THAT(load_one(), HasSubstr("item' doesn't exist"));
  other_->exec("RENAME TABLE gone TO item");
  EXPECT_EQ(load_one(), R"({"id":"1","extra":"2024-02-29"})");
}

TEST_F(MariadbTest, PreparedStatementsMayBeLost) {
  Options given = options({{0, "SELECT name FROM item WHERE id = :id", {}, {"id"}, {}}});
  given.pool = 1;
  open(given);
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(load_one(), HasSubstr("one"));
    write_and_commit("UPDATE item SET name = CONCAT(name, '!') WHERE id = 1");
    // As a connection pooler may do between two clients. Neither is a statement for a cache's
    // write.
    for (int name = 1; name <= 6; ++name) {
      auto pending = write("DEALLOCATE PREPARE larder_" + std::to_string(name));
      if (pending) ASSERT_TRUE(loop_.run((*pending)->commit()));
    }
  }
  EXPECT_EQ(load_one(), R"({"name":"one!!"})");
}

TEST_F(MariadbTest, MoreStatementsThanAConnectionKeeps) {
  Options given = options({{0, "SELECT name FROM item WHERE id = :id", {}, {"id"}, {}}});
  given.pool = 1;
  open(given);
  for (int i = 0; i < 300; ++i) {
    auto pending = write("UPDATE item SET name = 'v" + std::to_string(i) + "' WHERE id = 1");
    ASSERT_TRUE(pending) << pending.error().message;
    ASSERT_TRUE(loop_.run((*pending)->commit()));
  }
  EXPECT_EQ(load_one(), R"({"name":"v299"})");
  EXPECT_LT(std::stoi(other_->query("SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS "
                                    "WHERE VARIABLE_NAME = 'Prepared_stmt_count'")),
            300);
}

// ---- what a load has seen ----

TEST_F(MariadbTest, ALoadBesideAnOpenTransactionSeesItInProgress) {
  open_items();
  auto first = write("UPDATE item SET name = 'uno' WHERE id = 1");
  ASSERT_TRUE(first) << first.error().message;
  auto later = write("UPDATE item SET name = 'due' WHERE id = 2");
  ASSERT_TRUE(later) << later.error().message;
  const policy::TxnId x = (*first)->x(), y = (*later)->x();
  EXPECT_GT(y, x);
  const TimeUs before = monotonic_now_us();
  for (const bool many : {false, true}) {
    const auto loaded = many ? load({id_of(1), id_of(2), id_of(9)}) : load({id_of(1)});
    ASSERT_TRUE(loaded);
    EXPECT_THAT(loaded->rows[0]->value, HasSubstr("one"));
    EXPECT_FALSE(loaded->snapshot.sees(x));
    EXPECT_FALSE(loaded->snapshot.sees(y));
    EXPECT_GE(loaded->as_of, before);
  }
  // The later one ends first: it is seen, the older one is not.
  ASSERT_TRUE(loop_.run((*later)->commit()));
  const auto between = load({id_of(2)});
  EXPECT_THAT(between->rows[0]->value, HasSubstr("due"));
  EXPECT_TRUE(between->snapshot.sees(y));
  EXPECT_FALSE(between->snapshot.sees(x));
  ASSERT_TRUE(loop_.run((*first)->commit()));
  const auto after = load({id_of(1), id_of(9)});
  EXPECT_THAT(after->rows[0]->value, HasSubstr("uno"));
  EXPECT_TRUE(after->snapshot.sees_all_up_to(y));
  EXPECT_FALSE(after->rows[1]->found);  // an absent row has the same proof
  EXPECT_NE(after->snapshot.source_id, 0U);
}

TEST_F(MariadbTest, WhatIsNotCommittedIsNotSeenWhateverTheServersDefault) {
  other_->exec("SET GLOBAL tx_isolation = 'READ-UNCOMMITTED'");
  open_items();
  other_->exec("BEGIN");
  other_->exec("UPDATE item SET name = 'never' WHERE id = 1");
  EXPECT_EQ(load_one(), R"({"id":1,"name":"one"})");
  EXPECT_EQ(load({id_of(1), id_of(2)})->rows[0]->value, R"({"id":1,"name":"one"})");
  other_->exec("ROLLBACK");
  other_->exec("SET GLOBAL tx_isolation = DEFAULT");
}

TEST_F(MariadbTest, WithoutAFeedAFleetIsToldOfNoSnapshots) {
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

// Who reads the log tells of places in it; a load has seen what its own snapshot contains, though
// the log holds more by then.
TEST_F(MariadbTest, ALoadHasSeenTheLogUpToItsSnapshot) {
  open_items();
  const auto end_of_log = [&] {
    const std::string status = other_->query("SHOW MASTER STATUS");  // file|position|...
    const std::size_t bar = status.find('|');
    const std::size_t end = status.find('|', bar + 1);
    return *LogPosition::parse(status.substr(0, bar), status.substr(bar + 1, end - bar - 1));
  };
  other_->exec("UPDATE item SET name = 'uno' WHERE id = 1");
  const policy::TxnId x = source_->numbers().tell(end_of_log());
  LogPosition beyond = end_of_log();
  beyond.offset += 1;  // what is in the log and not yet visible
  const policy::TxnId y = source_->numbers().tell(beyond);
  for (const bool many : {false, true}) {
    const auto loaded = many ? load({id_of(1), id_of(2)}) : load({id_of(1)});
    ASSERT_TRUE(loaded) << loaded.error().message;
    EXPECT_THAT(loaded->rows[0]->value, HasSubstr("uno"));
    EXPECT_TRUE(loaded->snapshot.sees(x));
    EXPECT_FALSE(loaded->snapshot.sees(y));
  }
  EXPECT_EQ(source_->round_trips(), 2U);
  other_->exec("UPDATE item SET name = 'due' WHERE id = 1");
  const auto after = load({id_of(1)});
  EXPECT_THAT(after->rows[0]->value, HasSubstr("due"));
  EXPECT_TRUE(after->snapshot.sees(y));
}

// ---- writes ----

TEST_F(MariadbTest, OneRoundTripToWriteAndOneToCommit) {
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

TEST_F(MariadbTest, RowsThatAreFoundCountThoughNothingChanges) {
  open_items();
  const auto affected = [&](const std::string& sql) {
    const auto pending = write(sql);
    EXPECT_TRUE(pending) << pending.error().message;
    return (*pending)->affected()[0];
  };
  EXPECT_EQ(affected("UPDATE item SET name = 'one' WHERE id = 1"), 1);
  EXPECT_EQ(affected("UPDATE item SET name = 'one' WHERE id = 9"), 0);
  EXPECT_GE(affected("INSERT INTO item VALUES (1, 'one') ON DUPLICATE KEY UPDATE name = 'one'"), 1);
  EXPECT_EQ(affected("DELETE FROM item WHERE id = 1 RETURNING id"), 1);
  EXPECT_EQ(affected("SELECT * FROM item"), 0);
}

TEST_F(MariadbTest, AStatementThatEndsItsTransactionIsFoundOut) {
  open_items();
  const auto ended = write("CREATE TABLE other(id int)");
  ASSERT_FALSE(ended);
  EXPECT_THAT(ended.error().message, HasSubstr("ended the transaction"));
}

TEST_F(MariadbTest, ADuplicateKeyIsRefused) {
  open_items();
  const auto twice = write("INSERT INTO item VALUES (1, 'again')");
  ASSERT_FALSE(twice);
  EXPECT_EQ(twice.error().code, ErrorCode::source_refused);
  EXPECT_THAT(twice.error().message, HasSubstr("Duplicate entry '1'"));
  EXPECT_THAT(twice.error().message, HasSubstr("1062"));
}

TEST_F(MariadbTest, ADestroyedTransactionGivesItsLocksBack) {
  open_items();
  write("UPDATE item SET name = 'uno' WHERE id = 1").value().reset();
  other_->exec("SET innodb_lock_wait_timeout = 20");
  other_->exec("UPDATE item SET name = 'theirs' WHERE id = 1");  // would wait for the lock
  EXPECT_EQ(load_one(), R"({"id":1,"name":"theirs"})");
  EXPECT_EQ(sessions(), "1");  // the session was kept
}

// Two transactions wait for each other's row. InnoDB ends the one that has changed less: ours.
TEST_F(MariadbTest, DeadlocksAreErrorsThatSaySo) {
  for (int i = 10; i < 40; ++i)
    other_->exec("INSERT INTO item VALUES (" + std::to_string(i) + ", 'x')");
  open_items();
  other_->exec("BEGIN");
  other_->exec("UPDATE item SET name = 'a' WHERE id >= 10");
  other_->exec("UPDATE item SET name = 'a' WHERE id = 1");
  std::vector<Statement> statements;
  for (const char* const sql :
       {"UPDATE item SET name = 'b' WHERE id = 2", "UPDATE item SET name = 'b' WHERE id = 1"})
    statements.push_back({.sql = sql, .params = {}});
  std::thread theirs([&] {
    OtherClient watcher(url_);
    // Whoever looks more often than ten times a second is shown the same picture again.
    const std::string waiting =
        "SELECT COUNT(*) FROM information_schema.INNODB_TRX WHERE trx_state = 'LOCK WAIT'";
    while (watcher.query(waiting) == "0") ::poll(nullptr, 0, 150);
    other_->exec("UPDATE item SET name = 'a' WHERE id = 2");
  });
  const auto lost = loop_.run(source_->write(std::move(statements), soon()));
  theirs.join();
  other_->exec("COMMIT");
  ASSERT_FALSE(lost);
  EXPECT_EQ(lost.error().code, ErrorCode::source_down);
  EXPECT_THAT(lost.error().message, HasSubstr("Deadlock"));
  EXPECT_THAT(log_, IsEmpty());  // no reason to call the source down
  EXPECT_EQ(load_one(id_of(2)), R"({"id":2,"name":"a"})");
}

TEST_F(MariadbTest, AReadOnlyServerIsNoPrimary) {
  // Rights that let larder write all the same are not this user's.
  other_->exec("CREATE USER plain" + database_ + "@'%'");
  other_->exec("GRANT SELECT, INSERT, UPDATE, DELETE ON " + database_ + ".* TO plain" + database_ +
               "@'%'");
  Options given = options({{0, "SELECT name FROM item WHERE id = :id", {}, {"id"}, {}}});
  given.url = "mariadb://plain" + database_ + "@127.0.0.1:" + std::to_string(Server::get().port()) +
              "/" + database_;
  open(given);
  other_->exec("SET GLOBAL read_only = 1");
  const auto refused = write("UPDATE item SET name = 'x' WHERE id = 1");
  EXPECT_EQ(load_one(), R"({"name":"one"})");
  other_->exec("SET GLOBAL read_only = 0");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::source_down);
  EXPECT_THAT(refused.error().message, HasSubstr("primary"));
  write_and_commit("UPDATE item SET name = 'x' WHERE id = 1");
}

TEST_F(MariadbTest, WhatIsLargerThanAPacketIsRefusedBeforeItIsSent) {
  open_items();
  const auto large =
      write("UPDATE item SET name = :name WHERE id = 1", {{"name", std::string(10 << 20, 'x')}});
  ASSERT_FALSE(large);
  EXPECT_EQ(large.error().code, ErrorCode::too_large);
  EXPECT_THAT(large.error().message, HasSubstr("max_allowed_packet"));
  write_and_commit("UPDATE item SET name = :name WHERE id = 1", {{"name", std::string("small")}});
  // Many that fit one by one go in several packets, and are one transaction all the same.
  other_->exec("ALTER TABLE item MODIFY name longtext");
  std::vector<Statement> statements;
  for (std::int64_t i = 10; i < 16; ++i)
    statements.push_back({.sql = "INSERT INTO item VALUES (:id, :name)",
                          .params = {{"id", i}, {"name", std::string(3 << 20, 'y')}}});
  auto pending = loop_.run(source_->write(std::move(statements), soon()));
  ASSERT_TRUE(pending) << pending.error().message;
  EXPECT_EQ(load_one(id_of(10)), "absent");
  ASSERT_TRUE(loop_.run((*pending)->commit()));
  EXPECT_EQ(load_one(id_of(15)).size(), (3U << 20U) + std::string(R"({"id":15,"name":""})").size());
}

// ---- limits and failures ----

TEST_F(MariadbTest, ADeadlineThatPassesEndsTheWait) {
  open_load("SELECT name, SLEEP(60) AS s FROM item WHERE id = :id");
  const auto late = load({id_of(1)}, monotonic_now_us() + 50 * kMillisecond);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::timeout);
  const auto written = write("SELECT SLEEP(60)", {}, monotonic_now_us() + 50 * kMillisecond);
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, ErrorCode::timeout);
  EXPECT_THAT(log_, IsEmpty());
}

TEST_F(MariadbTest, TheServerEndsWhatNobodyWaitsForAnyMore) {
  Options given = options({{0, "SELECT SLEEP(60) AS s FROM item WHERE id = :id", {}, {"id"}, {}}});
  given.statement_timeout_us = 100 * kMillisecond;
  open(given);
  const auto late = load({id_of(1)});
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::timeout);
  EXPECT_THAT(late.error().message, HasSubstr("max_statement_time"));
  EXPECT_EQ(sessions(), "1");  // the connection is as good as before
}

Task<void> load_into(MariadbSource& source, std::vector<ErrorCode>& errors, int& done) {
  std::vector<Params> keys{id_of(1)};
  const auto loaded = co_await source.load(0, std::move(keys), soon());
  if (!loaded) errors.push_back(loaded.error().code);
  ++done;
}

TEST_F(MariadbTest, ThePoolAndItsQueueAreBounds) {
  Options given = options(
      {{0,
        "SELECT name, GET_LOCK('pool', 20) + RELEASE_LOCK('pool') AS l FROM item WHERE id = :id",
        {},
        {"id"},
        {}}});
  given.pool = 2;
  given.queue = 3;
  open(given);
  other_->exec("DO GET_LOCK('pool', 0)");
  std::vector<ErrorCode> errors;
  int done = 0;
  TaskGroup group;
  for (int i = 0; i < 8; ++i) loop_.spawn(group, load_into(*source_, errors, done));
  until([&] { return errors.size() == 3; });
  EXPECT_THAT(errors,
              ElementsAre(ErrorCode::overloaded, ErrorCode::overloaded, ErrorCode::overloaded));
  until([&] {
    return other_->query(
               "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE STATE = 'User "
               "lock' AND DB = '" +
               database_ + "'") == "2";
  });
  EXPECT_EQ(sessions(), "2");
  EXPECT_THAT(metrics_.prometheus(), HasSubstr("larder_source_waiting{source=\"shop\"} 3"));
  EXPECT_THAT(metrics_.prometheus(), HasSubstr("larder_source_connections{source=\"shop\"} 2"));
  other_->exec("DO RELEASE_LOCK('pool')");
  until([&] { return done == 8; });
  EXPECT_EQ(errors.size(), 3U);
  loop_.join(group);
}

TEST_F(MariadbTest, TooManyConnectionsSaysWhatToDo) {
  open_items();
  load_one();  // ends the connection of the start
  end_sessions();
  other_->exec("SET GLOBAL max_connections = 10");
  const Url url = *Url::parse(url_);
  std::vector<MYSQL*> others;  // as many as there can be
  bool room = true;
  while (room && others.size() < 20) {
    others.push_back(new_handle());
    set_options(others.back(), url);
    room = mysql_real_connect(others.back(), "127.0.0.1", url.user.c_str(), url.password.c_str(),
                              nullptr, url.hosts[0].port, nullptr, 0) != nullptr;
  }
  const auto refused = load({id_of(1)});
  for (MYSQL* const one : others) mysql_close(one);
  other_->exec("SET GLOBAL max_connections = 100");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::source_down);
  EXPECT_THAT(refused.error().message, HasSubstr("raise max_connections"));
}

TEST_F(MariadbTest, AServerThatDiesAndComesBack) {
  open_items();
  EXPECT_EQ(load_one(), R"({"id":1,"name":"one"})");
  auto pending = write("UPDATE item SET name = 'lost' WHERE id = 1");
  ASSERT_TRUE(pending);
  const policy::TxnId x = (*pending)->x();
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
  // The load has found out that the session has ended, and with it the transaction.
  EXPECT_TRUE(load({id_of(1)})->snapshot.sees(x));
  other_ = std::make_unique<OtherClient>(url_);
}

TEST_F(MariadbTest, WhatBreaksWhileItLiesIdleIsNoticedBeforeItIsUsed) {
  open_items();
  load_one();
  end_sessions();
  EXPECT_EQ(load_one(), R"({"id":1,"name":"one"})");
  EXPECT_THAT(log_, IsEmpty());
}

// A COMMIT whose answer nobody waited for may still succeed: until its session has ended, the
// transaction is open. (Without that a load in between would show the old row, and claim to have
// seen the end of the transaction that is about to change it.)
TEST_F(MariadbTest, ACommitThatWasNotAnsweredIsOpenUntilItsSessionHasEnded) {
  open_items();
  auto pending =
      write("UPDATE item SET name = 'late' WHERE id = 1", {}, monotonic_now_us() + kSecond);
  ASSERT_TRUE(pending) << pending.error().message;
  const policy::TxnId x = (*pending)->x();
  other_->exec("FLUSH TABLES WITH READ LOCK");  // which every COMMIT waits for
  const auto committed = loop_.run((*pending)->commit());
  ASSERT_FALSE(committed);
  EXPECT_EQ(committed.error().code, ErrorCode::timeout);
  EXPECT_THAT(committed.error().message, HasSubstr("not known"));
  for (int i = 0; i < 3; ++i) {
    const auto beside = load({id_of(1)});
    ASSERT_TRUE(beside) << beside.error().message;
    EXPECT_THAT(beside->rows[0]->value, HasSubstr("one"));
    // The server looks once a second whether a client that waits for a lock is still there.
    const bool open = other_->query(
                          "SELECT count(*) FROM information_schema.processlist "
                          "WHERE info = 'COMMIT'") != "0";
    EXPECT_FALSE(open && beside->snapshot.sees(x));
  }
  other_->exec("UNLOCK TABLES");
  Result<Loaded> loaded;
  do loaded = load({id_of(1)});
  while (loaded && !loaded->snapshot.sees(x));
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(loaded->rows[0]->value,
            R"({"id":1,"name":")" + other_->query("SELECT name FROM item WHERE id = 1") + "\"}");
}

}  // namespace
}  // namespace larder::source::mariadb
