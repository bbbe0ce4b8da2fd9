// A whole node over a real MariaDB: what a service sees of declared keys, read and written.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>
#include <thread>

#include "server/instance.h"
#include "server/test_client.h"
#include "source/mariadb/testing.h"

namespace larder::server {
namespace {

using source::mariadb::testing::OtherClient;
using source::mariadb::testing::Server;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

constexpr std::string_view kConfig = R"toml(
[node]
listen = ["127.0.0.1:0"]
admin = ""
threads = 2

[source.shop]
url = "{URL}"
pool = 4

[cache.product]
key = "product:{id:int}"
source = "shop"
load = "SELECT id, name, price, data, active FROM product WHERE id = :id"
store = """INSERT INTO product(id, name, price, data, active)
           VALUES (:id, :name, :price, :data, :active)
           ON DUPLICATE KEY UPDATE name = :name, price = :price, data = :data, active = :active"""
remove = "DELETE FROM product WHERE id = :id"
warm = "SELECT id FROM product ORDER BY id LIMIT :n"
write = "through"
ttl = "10m"
negative_ttl = "10m"
stale_if_error = "1h"
tags = ["all-products"]

[cache.stock]
key = "stock:{id:int}"
source = "shop"
load = "SELECT n FROM stock WHERE id = :id"
store = "INSERT INTO stock(id, n) VALUES (:id, :value) ON DUPLICATE KEY UPDATE n = :value"
increment = "UPDATE stock SET n = n + :delta WHERE id = :id"
result = "value"
write = "through"
ttl = "10m"

# Backslashes and a comment: not the SQL of every database.
[cache.named]
key = "named:{name:text}"
source = "shop"
load = """SELECT id, 'it\\'s :no' AS note FROM product WHERE name = :name # :none"""
result = "array"
ttl = "10m"
)toml";

std::string replaced(std::string text, std::string_view from, std::string_view to) {
  for (std::size_t at = text.find(from); at != std::string::npos;
       at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
  return text;
}

class MariadbNodeTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!Server::available()) GTEST_SKIP() << "MariaDB's server is not installed";
    url_ = Server::get().url(Server::get().fresh_database());
    sql("CREATE TABLE product(id int PRIMARY KEY, name text NOT NULL, price decimal(40,3), data "
        "json, "
        "active boolean)");
    sql("CREATE TABLE stock(id int PRIMARY KEY, n bigint NOT NULL)");
    sql("INSERT INTO product SELECT seq, CONCAT('p', seq), seq + 0.10, NULL, true FROM "
        "seq_1_to_200");
    sql("INSERT INTO stock VALUES (1, 5)");
    auto config = config::load_config(replaced(text(), "{URL}", url_), "test");
    ASSERT_TRUE(config) << config::to_string(config.error());
    auto started = Instance::start(*config);
    ASSERT_TRUE(started) << to_string(started.error());
    instance_ = std::move(*started);
  }

  virtual std::string text() const { return std::string(kConfig); }
  // As somebody else's program would.
  void sql(const std::string& text) { OtherClient(url_).exec(text); }
  std::string rows(const std::string& text) { return OtherClient(url_).query(text); }
  std::uint64_t loads() {
    return instance_->metrics()
        .counter("larder_source_queries_total", {{"source", "shop"}, {"op", "load"}}, "")
        .value();
  }
  std::string address() const { return instance_->addresses().front(); }

  std::string url_;
  std::unique_ptr<Instance> instance_;
};

TEST_F(MariadbNodeTest, ReadsThroughOnce) {
  TestClient client(address());
  EXPECT_EQ(client.text({"GET", "product:7"}),
            R"({"id":7,"name":"p7","price":7.100,"data":null,"active":1})");
  const std::uint64_t before = loads();
  EXPECT_EQ(before, 1U);
  for (int i = 0; i < 10; ++i) client.call({"GET", "product:7"});
  EXPECT_EQ(client.text({"GET", "product:999"}), "(nil)");
  EXPECT_EQ(client.text({"GET", "product:999"}), "(nil)");
  EXPECT_EQ(loads(), before + 1);
  EXPECT_EQ(client.text({"GET", "named:p7"}), R"([{"id":7,"note":"it's :no"}])");
}

TEST_F(MariadbNodeTest, ManyColdKeysAreOneRoundTrip) {
  TestClient client(address());
  std::vector<std::string> mget{"MGET"};
  for (int i = 1; i <= 100; ++i) mget.push_back("product:" + std::to_string(i));
  const auto reply = client.call(mget);
  ASSERT_EQ(reply.elements.size(), 100U);
  EXPECT_THAT(reply.elements[41].text, HasSubstr(R"("name":"p42")"));
  EXPECT_EQ(loads(), 1U);
}

TEST_F(MariadbNodeTest, WritesThroughWithEveryDigit) {
  TestClient client(address());
  EXPECT_THAT(client.text({"GET", "product:7"}), HasSubstr("p7"));
  const std::string value = R"({"id":7,"name":"new","price":12345678901234567890.120,)"
                            R"("data":{"a": [1, 2.50]},"active":0})";
  EXPECT_EQ(client.text({"SET", "product:7", value}), "OK");
  EXPECT_EQ(rows("SELECT * FROM product WHERE id = 7"),
            R"(7|new|12345678901234567890.120|{"a": [1, 2.50]}|0)");
  EXPECT_EQ(client.text({"GET", "product:7"}), value);
  EXPECT_EQ(loads(), 2U);  // the write has filled again
  // What was read can be written back.
  EXPECT_EQ(client.text({"SET", "product:7", value}), "OK");
  EXPECT_EQ(client.text({"GET", "product:7"}), value);
  EXPECT_EQ(client.text({"LARDER.REMOVE", "product:7"}), "(int) 1");
  EXPECT_EQ(client.text({"GET", "product:7"}), "(nil)");
  EXPECT_EQ(rows("SELECT count(*) FROM product WHERE id = 7"), "0");
}

TEST_F(MariadbNodeTest, BooleansAreIntegers) {
  TestClient client(address());
  const std::string value = R"({"name":"new","price":1,"data":null,"active":true})";
  EXPECT_EQ(client.text({"SET", "product:7", value}), "OK");
  EXPECT_EQ(client.text({"GET", "product:7"}),
            R"({"id":7,"name":"new","price":1.000,"data":null,"active":1})");
}

TEST_F(MariadbNodeTest, CountsInTheDatabase) {
  TestClient client(address());
  EXPECT_EQ(client.text({"GET", "stock:1"}), "5");
  EXPECT_EQ(client.text({"INCRBY", "stock:1", "37"}), "(int) 42");
  EXPECT_EQ(client.text({"GET", "stock:1"}), "42");
  EXPECT_EQ(client.text({"SET", "stock:2", "9"}), "OK");
  EXPECT_EQ(rows("SELECT * FROM stock ORDER BY id"), "1|42 2|9");
}

TEST_F(MariadbNodeTest, RefusedWritesSayWhatTheDatabaseSaid) {
  TestClient client(address());
  const std::string refused =
      client.text({"SET", "product:7", R"({"name":null,"price":1,"data":null,"active":true})"});
  EXPECT_THAT(refused, StartsWith("-LARDER_SOURCE_ERROR"));
  EXPECT_THAT(refused, HasSubstr("cannot be null (error 1048)"));
  EXPECT_THAT(client.text({"GET", "product:7"}), HasSubstr("p7"));
}

// Writers and readers at once: whoever has his answer reads his own write, and in the end every
// entry is what the table says.
TEST_F(MariadbNodeTest, WritersReadTheirWrites) {
  constexpr int kWriters = 6, kRounds = 40, kKeys = 3;
  std::vector<std::thread> threads;
  threads.reserve(kWriters);
  for (int w = 0; w < kWriters; ++w)
    threads.emplace_back([&, w] {
      TestClient client(address());
      for (int i = 0; i < kRounds; ++i) {
        const std::string key = "stock:" + std::to_string(100 + (w + i) % kKeys);
        if (w % 2 == 0) {
          const auto own = "stock:" + std::to_string(w);
          EXPECT_EQ(client.text({"SET", own, std::to_string(i)}), "OK");
          EXPECT_EQ(client.text({"GET", own}), std::to_string(i));
          EXPECT_EQ(client.text({"SET", key, std::to_string(w * kRounds + i)}), "OK");
        } else {
          EXPECT_THAT(client.text({"GET", key}), Not(StartsWith("-")));
        }
      }
    });
  for (auto& thread : threads) thread.join();
  TestClient client(address());
  for (int k = 0; k < kKeys; ++k) {
    const std::string id = std::to_string(100 + k);
    EXPECT_EQ(client.text({"GET", "stock:" + id}), rows("SELECT n FROM stock WHERE id = " + id));
  }
}

TEST_F(MariadbNodeTest, AnswersLateWhileTheDatabaseIsDownAndGoesOnAfterwards) {
  TestClient client(address());
  const std::string value = client.text({"GET", "product:7"});
  client.call({"LARDER.INVALIDATE", "KEY", "product:7"});
  Server::get().kill();
  EXPECT_EQ(client.text({"GET", "product:7"}), value);  // stale_if_error
  EXPECT_THAT(client.text({"GET", "product:8"}), StartsWith("-LARDER_SOURCE_DOWN"));
  EXPECT_THAT(client.text({"SET", "stock:1", "1"}), StartsWith("-LARDER_SOURCE_DOWN"));
  Server::get().start();
  while (client.text({"GET", "product:8"}).starts_with("-")) continue;
  EXPECT_THAT(client.text({"GET", "product:8"}), HasSubstr("p8"));
  EXPECT_EQ(client.text({"SET", "stock:1", "1"}), "OK");
}

TEST_F(MariadbNodeTest, StartsOnlyWithStatementsThatTheDatabaseTakes) {
  const auto refusal = [&](std::string_view from, std::string_view to) {
    auto config = config::load_config(
        replaced(replaced(std::string(kConfig), "{URL}", url_), from, to), "test");
    EXPECT_TRUE(config) << config::to_string(config.error());
    const auto started = Instance::start(*config);
    EXPECT_FALSE(started.has_value());
    return started ? std::string() : to_string(started.error());
  };
  EXPECT_THAT(refusal("DELETE FROM product", "DELETE FROM nosuch"),
              HasSubstr("[cache.product] remove: the database refuses it: Table '"));
  EXPECT_THAT(refusal("SELECT n FROM stock", "SELECT m FROM stock"),
              HasSubstr("Unknown column 'm'"));
  EXPECT_THAT(refusal("127.0.0.1:" + std::to_string(Server::get().port()), "127.0.0.1:1"),
              HasSubstr("connect to server"));
}

// The same node, which reads the database's log.
class MariadbLogTest : public MariadbNodeTest {
 protected:
  std::string text() const override {
    return replaced(replaced(std::string(kConfig), "tags = [\"all-products\"]",
                             "depends_on = [\"product(id -> id)\"]\nconsistency = \"bounded:1s\""),
                    "increment =", "depends_on = [\"stock(id -> id)\"]\nincrement =");
  }
  static void until(TestClient& client, const std::string& key, const std::string& part) {
    while (!client.text({"GET", key}).contains(part)) continue;
  }
  // Until the log is read: then everything has been void once, and what is loaded stays.
  void follow(TestClient& client) {
    client.call({"GET", "product:100"});
    sql("UPDATE product SET name = 'followed' WHERE id = 100");
    until(client, "product:100", "followed");
  }
};

TEST_F(MariadbLogTest, WhatOthersChangeIsSeenAndOnlyThat) {
  TestClient client(address());
  EXPECT_THAT(client.text({"LARDER.EXPLAIN", "product:7"}),
              HasSubstr("bounded:1s; rests on: change feed of source shop (the binary log"));
  follow(client);
  client.call({"GET", "product:7"});
  client.call({"GET", "product:8"});
  for (int i = 0; i < 20; ++i) {
    const std::string name = "n" + std::to_string(i);
    sql("UPDATE product SET name = '" + name + "' WHERE id = 7");
    until(client, "product:7", name);
  }
  const std::uint64_t before = loads();
  for (int i = 0; i < 100; ++i) client.call({"GET", "product:8"});
  EXPECT_EQ(loads(), before) << "nobody has changed it";
}

// The echo of our own write voids nothing that was filled since.
TEST_F(MariadbLogTest, OurOwnWritesStay) {
  TestClient client(address());
  follow(client);
  std::uint64_t extra = 0;
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(client.text({"SET", "stock:1", std::to_string(i)}), "OK");
    sql("UPDATE product SET name = 'mark' WHERE id = 9");
    // The log has been read up to here when the mark is seen.
    sql("UPDATE product SET name = 'm" + std::to_string(i) + "' WHERE id = 9");
    until(client, "product:9", "\"m" + std::to_string(i) + "\"");
    const std::uint64_t before = loads();
    EXPECT_EQ(client.text({"GET", "stock:1"}), std::to_string(i));
    extra += loads() - before;
  }
  EXPECT_EQ(extra, 0u);
}

TEST_F(MariadbLogTest, ABoundHoldsWhileTheLogCannotBeRead) {
  TestClient client(address());
  follow(client);
  // Nobody may read the log any more; rows are there all the same.
  OtherClient admin("mariadb://root@/mysql?socket=" + Server::get().socket());
  admin.exec(
      "REVOKE SUPER, BINLOG MONITOR, REPLICATION SLAVE ON *.* FROM larder@'%', larder@localhost");
  std::istringstream readers(
      admin.query("SELECT id FROM information_schema.PROCESSLIST WHERE COMMAND = 'Binlog Dump'"));
  for (std::string id; readers >> id;) admin.try_exec("KILL " + id);
  const TimeUs began = monotonic_now_us();
  for (int i = 0; i < 3; ++i) {
    const std::string name = "blind" + std::to_string(i);
    sql("UPDATE product SET name = '" + name + "' WHERE id = 7");
    const TimeUs changed = monotonic_now_us();
    until(client, "product:7", name);
    EXPECT_LT(monotonic_now_us() - changed, 10 * kSecond);
  }
  EXPECT_GE(monotonic_now_us() - began, kSecond) << "it has learned of it by the log";
  admin.exec("GRANT ALL ON *.* TO larder@'%', larder@localhost WITH GRANT OPTION");
}

}  // namespace
}  // namespace larder::server
