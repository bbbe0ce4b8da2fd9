// The database behind a fleet: rows item(id, v), 1 to 1000, which begin with v = 1.
#pragma once

#include <gtest/gtest.h>
#include <sqlite3.h>

#include <filesystem>
#include <memory>
#include <string>

#include "base/clock.h"
#include "cache/node.h"
#include "config/config.h"
#include "source/postgres/prepare.h"
#include "source/postgres/testing.h"
#include "source/sqlite/prepare.h"

namespace larder::server {

class Truth {
 public:
  // Another program's connection.
  class Session {
   public:
    virtual ~Session() = default;
    // Committed when it returns. False: refused, or nobody knows.
    virtual bool exec(const std::string& sql) = 0;
    virtual std::int64_t integer(const std::string& sql) = 0;
  };
  virtual ~Truth() = default;
  virtual std::string source(std::size_t node) const = 0;  // what stands in [source.shop]
  virtual void prepare(const config::Config& config) const = 0;
  virtual std::unique_ptr<Session> connect() const = 0;

  static constexpr const char* kTable =
      "CREATE TABLE item(id INTEGER PRIMARY KEY, v INTEGER NOT NULL)";
};

class SqliteTruth final : public Truth {
 public:
  explicit SqliteTruth(std::filesystem::path dir) : dir_(std::move(dir)) {
    const auto session = connect();
    EXPECT_TRUE(session->exec("PRAGMA journal_mode = WAL") && session->exec(kTable) &&
                session->exec(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)"
                    "INSERT INTO item SELECT i, 1 FROM n"));
  }
  std::string source(std::size_t node) const override {
    return "url = \"sqlite:" + file() + "\"\nquery_log = \"" + dir_.string() + "/queries-" +
           std::to_string(node) + ".log\"\npoll = \"5ms\"\n";
  }
  void prepare(const config::Config& config) const override {
    const auto watched = cache::Node::watched_tables(config.caches, "shop");
    const auto applied = source::sqlite::apply(file(), watched);
    ASSERT_TRUE(applied) << to_string(applied.error());
  }
  std::unique_ptr<Session> connect() const override { return std::make_unique<Open>(file()); }

 private:
  class Open final : public Session {
   public:
    explicit Open(const std::string& file) {
      EXPECT_EQ(sqlite3_open(file.c_str(), &db_), SQLITE_OK);
      sqlite3_busy_timeout(db_, 10'000);
      exec("PRAGMA synchronous = OFF");
    }
    ~Open() override { sqlite3_close(db_); }
    bool exec(const std::string& sql) override {
      return sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr) == SQLITE_OK;
    }
    std::int64_t integer(const std::string& sql) override {
      sqlite3_stmt* statement = nullptr;
      sqlite3_prepare_v2(db_, sql.c_str(), -1, &statement, nullptr);
      sqlite3_step(statement);
      const std::int64_t value = sqlite3_column_int64(statement, 0);
      sqlite3_finalize(statement);
      return value;
    }

   private:
    sqlite3* db_ = nullptr;
  };
  std::string file() const { return (dir_ / "shop.db").string(); }

  const std::filesystem::path dir_;
};

// A database of its own in the program's PostgreSQL. REQUIRES: Server::available().
class PostgresTruth final : public Truth {
 public:
  using Server = source::postgres::testing::Server;

  using Means = source::postgres::Means;

  explicit PostgresTruth(Means means = Means::log) : means_(means) {
    const auto session = connect();
    EXPECT_TRUE(session->exec(kTable) &&
                session->exec("INSERT INTO item SELECT i, 1 FROM generate_series(1, 1000) i"));
  }
  ~PostgresTruth() override { Server::get().drop_slots(database_); }
  std::string source(std::size_t /*node*/) const override {
    return "url = \"" + url_ + "\"\n" +
           (means_ == Means::triggers ? "feed = \"triggers\"\npoll = \"5ms\"\n" : "");
  }
  void prepare(const config::Config& config) const override {
    const std::string name = source::postgres::feed_name(config.engine.name_space, "shop");
    const source::postgres::PrepareOptions options{
        .means = means_,
        .source = "shop",
        .slot = name,
        .publication = name,
        .feed_for = source::FeedFor::fleet,
        .watched = cache::Node::watched_tables(config.caches, "shop")};
    const TimeUs deadline = monotonic_now_us() + 20 * kSecond;
    const auto found = source::postgres::examine_now(url_, options, deadline);
    ASSERT_TRUE(found) << to_string(found.error());
    const auto applied = source::postgres::apply_now(url_, *found, deadline);
    ASSERT_TRUE(applied) << to_string(applied.error());
  }
  std::unique_ptr<Session> connect() const override { return std::make_unique<Open>(url_); }

 private:
  class Open final : public Session {
   public:
    explicit Open(const std::string& url) : conn_(PQconnectdb(url.c_str())) {
      PQsetNoticeProcessor(conn_, [](void*, const char*) {}, nullptr);
    }
    ~Open() override { PQfinish(conn_); }
    bool exec(const std::string& sql) override {
      if (PQstatus(conn_) != CONNECTION_OK) PQreset(conn_);
      PGresult* const result = PQexec(conn_, sql.c_str());
      const ExecStatusType status = PQresultStatus(result);
      PQclear(result);
      return status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK;
    }
    std::int64_t integer(const std::string& sql) override {
      if (PQstatus(conn_) != CONNECTION_OK) PQreset(conn_);
      PGresult* const result = PQexec(conn_, sql.c_str());
      const std::int64_t value = PQntuples(result) > 0 ? std::atoll(PQgetvalue(result, 0, 0)) : -1;
      PQclear(result);
      return value;
    }

   private:
    PGconn* conn_;
  };
  const Means means_;
  const std::string database_ = Server::get().fresh_database();
  const std::string url_ = Server::get().url(database_);
};

}  // namespace larder::server
