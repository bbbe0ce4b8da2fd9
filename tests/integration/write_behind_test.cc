// write = "behind" on real databases: what clients see, what the database has in the end, and what
// happens when it refuses, stands still, or the node ends in between.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>

#include <boost/json.hpp>
#include <filesystem>
#include <fstream>
#include <thread>

#include "cache/journal_sql.h"
#include "server/instance.h"
#include "server/test_client.h"
#include "source/mariadb/testing.h"
#include "source/postgres/testing.h"
#include "source/sqlite/prepare.h"

namespace larder::server {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using testing::AnyOf;
using testing::HasSubstr;
using testing::StartsWith;

// Another program that uses the database.
class Database {
 public:
  virtual ~Database() = default;
  virtual std::string url() const = 0;
  virtual void exec(const std::string& sql) = 0;
  // "a|b" for each row, separated by spaces.
  virtual std::string query(const std::string& sql) = 0;
  // Until released nobody else can write to `item`.
  virtual void hold() = 0;
  virtual void release() = 0;
  virtual source::Dialect dialect() const = 0;
};

class SqliteDatabase final : public Database {
 public:
  explicit SqliteDatabase(const fs::path& folder) : path_(folder / "shop.db") {
    EXPECT_EQ(sqlite3_open(path_.c_str(), &db_), SQLITE_OK);
    sqlite3_busy_timeout(db_, 10'000);
    exec("PRAGMA journal_mode = WAL");
  }
  ~SqliteDatabase() override { sqlite3_close(db_); }
  std::string url() const override { return "sqlite:" + path_.string(); }
  void exec(const std::string& sql) override { query(sql); }
  std::string query(const std::string& sql) override {
    std::string out;
    char* problem = nullptr;
    const auto row = [](void* to, int columns, char** values, char**) {
      std::string& text = *static_cast<std::string*>(to);
      if (!text.empty()) text += ' ';
      for (int i = 0; i < columns; ++i) (text += i ? "|" : "") += values[i] ? values[i] : "";
      return 0;
    };
    EXPECT_EQ(sqlite3_exec(db_, sql.c_str(), row, &out, &problem), SQLITE_OK)
        << (problem ? problem : "") << " in " << sql;
    return out;
  }
  void hold() override { exec("BEGIN IMMEDIATE"); }
  void release() override { exec("COMMIT"); }
  source::Dialect dialect() const override { return source::Dialect::sqlite; }

 private:
  const fs::path path_;
  sqlite3* db_ = nullptr;
};

template <class Client>
class ServerDatabase final : public Database {
 public:
  ServerDatabase(std::string url, source::Dialect dialect, std::string lock, std::string unlock)
      : url_(std::move(url)),
        dialect_(dialect),
        lock_(std::move(lock)),
        unlock_(std::move(unlock)),
        client_(url_),
        holder_(url_) {}
  std::string url() const override { return url_; }
  void exec(const std::string& sql) override { client_.exec(sql); }
  std::string query(const std::string& sql) override { return client_.query(sql); }
  void hold() override {
    holder_.exec("BEGIN");
    holder_.exec(lock_);
  }
  void release() override { holder_.exec(unlock_); }
  source::Dialect dialect() const override { return dialect_; }

 private:
  const std::string url_;
  const source::Dialect dialect_;
  const std::string lock_, unlock_;
  Client client_, holder_;
};

constexpr std::string_view kConfig = R"toml(
[node]
listen = ["127.0.0.1:0"]
admin = ""
threads = 2
data_dir = "{DIR}/data"

[journal]
capacity = "1MiB"
drain_timeout = "{DRAIN}"

[source.shop]
url = "{URL}"
pool = 4
{POLL}

[cache.item]
key = "item:{id:int}"
load = "SELECT id, name, price FROM item WHERE id = :id"
store = "{STORE}"
remove = "DELETE FROM item WHERE id = :id"
write = "behind"
on_del = "remove"
ttl = "10m"
negative_ttl = "10m"
{MORE}

[cache.count]
key = "count:{id:int}"
load = "SELECT n FROM tally WHERE id = :id"
store = "{STORE_COUNT}"
increment = "UPDATE tally SET n = n + :delta WHERE id = :id"
result = "value"
write = "behind"
ttl = "10m"

[cache.through]
key = "through:{id:int}"
load = "SELECT n FROM tally WHERE id = :id"
store = "UPDATE tally SET n = :value WHERE id = :id"
result = "value"
write = "through"
)toml";

std::string replaced(std::string text, std::string_view from, std::string_view to) {
  for (std::size_t at = text.find(from); at != std::string::npos;
       at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
  return text;
}

constexpr const char* kUpsert =
    "INSERT INTO item(id, name, price) VALUES (:id, :name, :price)"
    " ON CONFLICT(id) DO UPDATE SET name = :name, price = :price";
constexpr const char* kUpsertCount =
    "INSERT INTO tally(id, n) VALUES (:id, :value) ON CONFLICT(id) DO UPDATE SET n = :value";
constexpr const char* kUpsertMariadb =
    "INSERT INTO item(id, name, price) VALUES (:id, :name, :price)"
    " ON DUPLICATE KEY UPDATE name = :name, price = :price";
constexpr const char* kUpsertCountMariadb =
    "INSERT INTO tally(id, n) VALUES (:id, :value) ON DUPLICATE KEY UPDATE n = :value";

class WriteBehindTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "larder-behind-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    dir_ = name;
    const std::string kind = GetParam();
    if (kind == "sqlite") {
      database_ = std::make_unique<SqliteDatabase>(dir_);
    } else if (kind == "postgres") {
      using source::postgres::testing::OtherClient;
      using source::postgres::testing::Server;
      if (!Server::available()) GTEST_SKIP() << "PostgreSQL's server is not installed";
      database_ = std::make_unique<ServerDatabase<OtherClient>>(
          Server::get().url(Server::get().fresh_database()), source::Dialect::postgres,
          "LOCK TABLE larder_applied IN EXCLUSIVE MODE", "COMMIT");
    } else {
      using source::mariadb::testing::OtherClient;
      using source::mariadb::testing::Server;
      if (!Server::available()) GTEST_SKIP() << "MariaDB's server is not installed";
      database_ = std::make_unique<ServerDatabase<OtherClient>>(
          Server::get().url(Server::get().fresh_database()), source::Dialect::mariadb,
          "SELECT * FROM larder_applied FOR UPDATE", "COMMIT");
    }
    exec(
        "CREATE TABLE item(id INTEGER PRIMARY KEY, name VARCHAR(100) NOT NULL,"
        " price INTEGER NOT NULL CHECK (price >= 0))");
    exec("CREATE TABLE tally(id INTEGER PRIMARY KEY, n BIGINT NOT NULL)");
    exec("INSERT INTO item VALUES (1, 'one', 10), (2, 'two', 20), (3, 'three', 30)");
    exec("INSERT INTO tally VALUES (1, 5), (2, 9223372036854775807)");
    for (const std::string& sql : cache::journal_sql::tables(database_->dialect())) exec(sql);
  }
  void TearDown() override {
    instance_.reset();
    database_.reset();
    fs::remove_all(dir_);
  }

  config::Loaded configure(std::string_view data = "data", std::string_view drain = "20s") {
    const bool mariadb = database_->dialect() == source::Dialect::mariadb;
    std::string text =
        replaced(std::string(kConfig), "{DIR}/data", dir_.string() + '/' + std::string(data));
    text = replaced(text, "{URL}", database_->url());
    text = replaced(text, "{DRAIN}", drain);
    text = replaced(text, "{STORE}", mariadb ? kUpsertMariadb : kUpsert);
    text = replaced(text, "{STORE_COUNT}", mariadb ? kUpsertCountMariadb : kUpsertCount);
    text = replaced(text, "{MORE}", more_);
    const bool polled = database_->dialect() == source::Dialect::sqlite;
    text = replaced(text, "{POLL}", polled ? "poll = \"5ms\"" : "");
    return config::load_config(text, "test");
  }
  Result<std::unique_ptr<Instance>> launch(std::string_view data = "data",
                                           std::string_view drain = "20s") {
    auto config = configure(data, drain);
    if (!config) return fail(ErrorCode::config, config::to_string(config.error()));
    return Instance::start(*config, [this](std::string line) {
      const std::lock_guard lock(mutex_);
      lines_.push_back(std::move(line));
    });
  }
  void start(std::string_view drain = "20s") {
    instance_.reset();
    auto started = launch("data", drain);
    ASSERT_TRUE(started) << to_string(started.error());
    instance_ = std::move(*started);
  }

  void exec(const std::string& sql) { database_->exec(sql); }
  std::string rows(const std::string& sql) { return database_->query(sql); }
  // Waits until nothing waits.
  void flushed() {
    TestClient client(address());
    for (int i = 0; i < 4000; ++i) {
      if (waiting(client) == 0) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    ADD_FAILURE() << "still waiting: " << client.text({"LARDER.JOURNAL"});
  }
  static std::int64_t waiting(TestClient& client) {
    const json::value status = json::parse(client.text({"LARDER.JOURNAL"}));
    std::int64_t sum = 0;
    for (const json::value& one : status.at("sources").as_array())
      sum += one.at("waiting").to_number<std::int64_t>();
    return sum;
  }
  static std::string tier(TestClient& client, const std::string& key) {
    const auto reply = client.call({"LARDER.GET", key});
    for (std::size_t i = 0; i + 1 < reply.elements.size(); i += 2)
      if (reply.elements[i].text == "tier") return reply.elements[i + 1].text;
    return TestClient::to_text(reply);
  }
  static json::array letters(TestClient& client) {
    return json::parse(client.text({"LARDER.JOURNAL", "LIST"})).as_array();
  }
  bool logged(const std::string& text) {
    const std::lock_guard lock(mutex_);
    return std::ranges::any_of(
        lines_, [&](const std::string& line) { return line.find(text) != std::string::npos; });
  }
  std::string address() const { return instance_->addresses().front(); }

  fs::path dir_;
  std::string more_;
  std::unique_ptr<Database> database_;
  std::mutex mutex_;
  std::vector<std::string> lines_;
  std::unique_ptr<Instance> instance_;
};
INSTANTIATE_TEST_SUITE_P(On, WriteBehindTest, testing::Values("sqlite", "postgres", "mariadb"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(WriteBehindTest, IsSeenAtOnceAndInTheDatabaseLater) {
  start();
  TestClient client(address());
  EXPECT_THAT(client.text({"GET", "item:1"}), HasSubstr("one"));
  EXPECT_EQ(client.text({"GET", "item:9"}), "(nil)");
  database_->hold();
  EXPECT_EQ(client.text({"SET", "item:1", R"({"name":"uno","price":11})"}), "OK");
  EXPECT_EQ(client.text({"SET", "item:9", R"({"id":9,"name":"neun","price":90})"}), "OK");
  EXPECT_EQ(client.text({"DEL", "item:2"}), "(int) 1");
  TestClient other(address());
  EXPECT_EQ(other.text({"GET", "item:1"}), R"({"id":1,"name":"uno","price":11})");
  EXPECT_EQ(tier(other, "item:1"), "journal");
  EXPECT_EQ(other.text({"MGET", "item:9", "item:2", "item:3"}),
            R"([{"id":9,"name":"neun","price":90}, (nil), {"id":3,"name":"three","price":30}])");
  EXPECT_EQ(other.text({"EXISTS", "item:9", "item:2"}), "(int) 1");
  EXPECT_EQ(other.text({"LARDER.REFRESH", "item:1"}), "(int) 1");
  EXPECT_EQ(other.text({"GET", "item:1"}), R"({"id":1,"name":"uno","price":11})");
  EXPECT_GT(waiting(client), 0);
  database_->release();
  flushed();
  EXPECT_EQ(rows("SELECT id, name, price FROM item ORDER BY id"), "1|uno|11 3|three|30 9|neun|90");
  EXPECT_EQ(client.text({"GET", "item:1"}), R"({"id":1,"name":"uno","price":11})");
  EXPECT_THAT(tier(client, "item:1"), AnyOf("near", "source"));
  EXPECT_EQ(client.text({"GET", "item:2"}), "(nil)");
}

TEST_P(WriteBehindTest, IncrementsAddUp) {
  start();
  database_->hold();
  std::vector<std::thread> writers;
  for (int w = 0; w < 4; ++w)
    writers.emplace_back([&] {
      TestClient client(address());
      for (int i = 0; i < 50; ++i)
        EXPECT_THAT(client.text({"INCRBY", "count:1", "2"}), StartsWith("(int)"));
    });
  for (std::thread& writer : writers) writer.join();
  TestClient client(address());
  EXPECT_EQ(client.text({"GET", "count:1"}), "405");
  EXPECT_EQ(client.text({"DECR", "count:1"}), "(int) 404");
  database_->release();
  flushed();
  EXPECT_EQ(rows("SELECT n FROM tally WHERE id = 1"), "404");
  EXPECT_EQ(client.text({"INCR", "count:1"}), "(int) 405");
  exec("UPDATE tally SET n = n + 1000 WHERE id = 1");  // nobody's increment is lost
  flushed();
  EXPECT_EQ(rows("SELECT n FROM tally WHERE id = 1"), "1405");
  EXPECT_THAT(client.text({"INCR", "count:2"}), HasSubstr("overflow"));
  EXPECT_THAT(client.text({"INCR", "count:77"}), HasSubstr("no row for 'count:77'"));
  EXPECT_THAT(client.text({"SET", "count:3", "1"}), "OK");
  EXPECT_THAT(client.text({"INCR", "count:3"}), "(int) 2");
  flushed();
  EXPECT_EQ(rows("SELECT n FROM tally WHERE id = 3"), "2");
}

TEST_P(WriteBehindTest, WhatIsWrongIsRefusedBeforeItIsAcknowledged) {
  start();
  TestClient client(address());
  EXPECT_THAT(client.text({"SET", "item:1", "no json"}), StartsWith("-LARDER_BADVALUE"));
  EXPECT_THAT(client.text({"SET", "item:1", R"({"name":"x"})"}), HasSubstr("lacks: price"));
  EXPECT_THAT(client.text({"SET", "item:1", R"({"id":2,"name":"x","price":1})"}),
              HasSubstr("but the key says"));
  EXPECT_THAT(client.text({"MSET", "item:1", R"({"name":"x","price":1})", "through:1", "3"}),
              HasSubstr("cannot be written together"));
  EXPECT_EQ(waiting(client), 0);
  EXPECT_THAT(client.text({"GET", "item:1"}), HasSubstr("one"));
}

TEST_P(WriteBehindTest, WhatWaitedIsThereAfterARestart) {
  start("0s");
  TestClient before(address());
  EXPECT_THAT(before.text({"GET", "item:1"}), HasSubstr("one"));
  exec("ALTER TABLE larder_applied RENAME TO elsewhere");  // nothing gets past it
  EXPECT_EQ(before.text({"SET", "item:1", R"({"name":"uno","price":11})"}), "OK");
  for (int i = 0; i < 10; ++i) before.text({"INCR", "count:1"});
  instance_.reset();
  EXPECT_TRUE(logged("wait in the journal, and go to the database at the next start"));
  exec("ALTER TABLE elsewhere RENAME TO larder_applied");
  database_->hold();
  std::thread release([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    database_->release();
  });
  start();  // waits until the database has told what it has
  release.join();
  TestClient client(address());
  EXPECT_THAT(client.text({"GET", "item:1"}), HasSubstr("uno"));
  EXPECT_EQ(client.text({"GET", "count:1"}), "15");
  flushed();
  EXPECT_EQ(rows("SELECT name FROM item WHERE id = 1"), "uno");
  EXPECT_EQ(rows("SELECT n FROM tally WHERE id = 1"), "15");
  for (int i = 0; i < 3; ++i) {
    start();
    EXPECT_EQ(waiting(*std::make_unique<TestClient>(address())), 0);
  }
  EXPECT_EQ(rows("SELECT n FROM tally WHERE id = 1"), "15") << "once";
}

TEST_P(WriteBehindTest, WhatTheDatabaseRefusesIsKeptAndKeepsNothingUp) {
  start();
  TestClient client(address());
  database_->hold();  // so that all of it is one batch
  for (int i = 100; i < 200; ++i)
    EXPECT_EQ(client.text({"SET", "item:" + std::to_string(i),
                           i == 150 || i == 177 ? R"({"name":"bad","price":-1})"
                                                : R"({"name":"good","price":1})"}),
              "OK");
  database_->release();
  flushed();
  EXPECT_EQ(rows("SELECT count(*) FROM item WHERE name = 'good'"), "98");
  EXPECT_EQ(rows("SELECT count(*) FROM item WHERE name = 'bad'"), "0");
  EXPECT_EQ(client.text({"GET", "item:150"}), "(nil)") << "as the database has it";
  json::array refused = letters(client);
  ASSERT_EQ(refused.size(), 2U);
  EXPECT_EQ(refused[0].at("entry_key").as_string(), "item:150");
  EXPECT_THAT(std::string(refused[0].at("error").as_string()), HasSubstr("LARDER_SOURCE_ERROR"));
  EXPECT_TRUE(logged("dead letters"));
  const auto number = [&](std::size_t i) {
    return std::to_string(refused[i].at("seq").to_number<std::int64_t>());
  };
  EXPECT_THAT(client.text({"LARDER.JOURNAL", "REPLAY", number(0)}),
              StartsWith("-LARDER_SOURCE_ERROR"));
  EXPECT_THAT(client.text({"LARDER.JOURNAL", "REPLAY", "999999"}),
              HasSubstr("there is no dead letter 999999"));
  // Its key is written again: what was refused may not come back.
  EXPECT_EQ(client.text({"SET", "item:177", R"({"name":"better","price":7})"}), "OK");
  flushed();
  EXPECT_THAT(client.text({"LARDER.JOURNAL", "REPLAY", number(1)}), HasSubstr("applied since"));
  EXPECT_EQ(client.text({"LARDER.JOURNAL", "DROP", number(1)}), "OK");
  EXPECT_EQ(letters(client).size(), 1U);
  if (GetParam() == std::string("sqlite")) return;  // cannot drop a constraint
  exec(GetParam() == std::string("postgres") ? "ALTER TABLE item DROP CONSTRAINT item_price_check"
                                             : "ALTER TABLE item MODIFY price INTEGER NOT NULL");
  EXPECT_EQ(client.text({"LARDER.JOURNAL", "REPLAY", number(0)}), "OK");
  EXPECT_EQ(rows("SELECT price FROM item WHERE id = 150"), "-1");
  EXPECT_THAT(client.text({"GET", "item:150"}), HasSubstr("-1"));
  EXPECT_EQ(letters(client).size(), 0U);
}

TEST_P(WriteBehindTest, AFullJournalSaysSoAndHasRoomAgain) {
  start();
  TestClient client(address());
  database_->hold();
  const std::string value = R"({"name":")" + std::string(90, 'x') + R"(","price":1})";
  std::string answer = "OK";
  int accepted = 0;
  for (; answer == "OK" && accepted < 20'000; ++accepted)
    answer = client.text({"SET", "item:" + std::to_string(accepted % 50), value});
  EXPECT_THAT(answer, StartsWith("-LARDER_OVERLOADED the journal is full"));
  EXPECT_THAT(client.text({"GET", "item:1"}), HasSubstr("xxx"));
  database_->release();
  flushed();
  EXPECT_EQ(client.text({"SET", "item:1", R"({"name":"uno","price":11})"}), "OK");
  flushed();
  EXPECT_EQ(rows("SELECT name FROM item WHERE id = 1"), "uno");
}

TEST_P(WriteBehindTest, AnotherOwnerOfTheSameJournalStopsTheFirst) {
  start();
  TestClient client(address());
  EXPECT_EQ(client.text({"INCR", "count:1"}), "(int) 6");
  flushed();
  fs::copy(dir_ / "data", dir_ / "copy", fs::copy_options::recursive);
  auto second = launch("copy");
  ASSERT_TRUE(second) << to_string(second.error());
  TestClient of_second((*second)->addresses().front());
  EXPECT_EQ(of_second.text({"INCR", "count:1"}), "(int) 7");
  EXPECT_THAT(client.text({"INCR", "count:1"}), StartsWith("(int)")) << "it has heard of nothing";
  std::string answer;
  for (int i = 0; i < 2000 && !answer.starts_with('-'); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    answer = client.text({"SET", "item:1", R"({"name":"uno","price":11})"});
  }
  EXPECT_THAT(answer, HasSubstr("two nodes use copies of one journal"));
  EXPECT_EQ(rows("SELECT n FROM tally WHERE id = 1"), "7");
}

TEST_P(WriteBehindTest, AnOlderCopyOfTheJournalIsNoticed) {
  start();
  TestClient(address()).text({"INCR", "count:1"});
  flushed();
  instance_.reset();
  fs::copy(dir_ / "data", dir_ / "copy", fs::copy_options::recursive);
  start();
  for (int i = 0; i < 20; ++i) {
    TestClient(address()).text({"INCR", "count:1"});
    flushed();
  }
  instance_.reset();
  fs::remove_all(dir_ / "data");
  fs::rename(dir_ / "copy", dir_ / "data");
  start();
  EXPECT_THAT(TestClient(address()).text({"INCR", "count:1"}), HasSubstr("an older copy"));
}

TEST_P(WriteBehindTest, WithoutTheTablesItSaysWhatToDo) {
  exec("DROP TABLE larder_applied");
  start();
  TestClient client(address());
  EXPECT_EQ(client.text({"SET", "item:1", R"({"name":"uno","price":11})"}), "OK");
  for (int i = 0; i < 2000 && !logged("larder source prepare shop"); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_TRUE(logged("larder source prepare shop"));
  for (const std::string& sql : cache::journal_sql::tables(database_->dialect())) exec(sql);
  flushed();
  EXPECT_EQ(rows("SELECT name FROM item WHERE id = 1"), "uno");
}

// What others write while a write of ours waits. SQLite's feed is at hand everywhere.
class ConflictTest : public WriteBehindTest {
 protected:
  void begin(const std::string& rule) {
    more_ = "depends_on = [\"item(id -> id)\"]\nconflict = \"" + rule + "\"";
    const auto config = configure();
    ASSERT_TRUE(config) << config::to_string(config.error());
    const auto applied = source::sqlite::apply((dir_ / "shop.db").string(),
                                               cache::Node::watched_tables(config->caches, "shop"));
    ASSERT_TRUE(applied) << to_string(applied.error());
    // Nothing is flushed as long as it is there.
    exec(
        "CREATE TRIGGER stall BEFORE INSERT ON larder_applied "
        "BEGIN SELECT RAISE(ABORT, 'not now'); END");
    start("0s");
    TestClient client(address());
    EXPECT_THAT(client.text({"GET", "item:1"}), HasSubstr("one"));
    EXPECT_EQ(client.text({"SET", "item:1", R"({"name":"ours","price":11})"}), "OK");
    EXPECT_EQ(client.text({"SET", "item:3", R"({"name":"drei","price":33})"}), "OK");
    EXPECT_THAT(client.text({"GET", "item:1"}), HasSubstr("ours"));
    exec("UPDATE item SET name = 'theirs' WHERE id = 1");
  }
  void end() {
    exec("DROP TRIGGER stall");
    flushed();
    EXPECT_EQ(rows("SELECT name FROM item WHERE id = 3"), "drei");
  }
  void until_theirs_is_seen() {
    TestClient client(address());
    for (int i = 0; i < 2000; ++i) {
      if (client.text({"GET", "item:1"}).find("theirs") != std::string::npos) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    ADD_FAILURE() << "a foreign write was not seen";
  }
};
INSTANTIATE_TEST_SUITE_P(On, ConflictTest, testing::Values("sqlite"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(ConflictTest, Ours) {
  begin("ours");
  end();
  EXPECT_EQ(rows("SELECT name FROM item WHERE id = 1"), "ours");
}

TEST_P(ConflictTest, Theirs) {
  begin("theirs");
  until_theirs_is_seen();
  end();
  EXPECT_EQ(rows("SELECT name FROM item WHERE id = 1"), "theirs");
  TestClient client(address());
  EXPECT_THAT(client.text({"GET", "item:1"}), HasSubstr("theirs"));
  EXPECT_EQ(letters(client).size(), 0U);
}

TEST_P(ConflictTest, TheirsAlsoAfterARestart) {
  begin("theirs");
  until_theirs_is_seen();
  instance_.reset();
  exec("DROP TRIGGER stall");
  start();
  flushed();
  EXPECT_EQ(rows("SELECT name FROM item WHERE id = 1"), "theirs");
  EXPECT_EQ(rows("SELECT name FROM item WHERE id = 3"), "drei");
}

TEST_P(ConflictTest, DeadLetter) {
  begin("dead-letter");
  until_theirs_is_seen();
  end();
  EXPECT_EQ(rows("SELECT name FROM item WHERE id = 1"), "theirs");
  TestClient client(address());
  const json::array refused = letters(client);
  ASSERT_EQ(refused.size(), 1U);
  EXPECT_THAT(std::string(refused[0].at("error").as_string()), HasSubstr("others have changed"));
  EXPECT_EQ(client.text({"LARDER.JOURNAL", "REPLAY",
                         std::to_string(refused[0].at("seq").to_number<std::int64_t>())}),
            "OK");
  EXPECT_EQ(rows("SELECT name FROM item WHERE id = 1"), "ours");
}

}  // namespace
}  // namespace larder::server
