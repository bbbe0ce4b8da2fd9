// A whole node over a real PostgreSQL: what a service sees of declared keys, read and written.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "server/instance.h"
#include "server/test_client.h"
#include "source/postgres/prepare.h"
#include "source/postgres/testing.h"

namespace larder::server {
namespace {

using source::postgres::testing::OtherClient;
using source::postgres::testing::Server;
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
           ON CONFLICT(id) DO UPDATE SET name = :name, price = :price, data = :data, active = :active"""
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
store = "INSERT INTO stock(id, n) VALUES (:id, :value) ON CONFLICT(id) DO UPDATE SET n = :value"
increment = "UPDATE stock SET n = n + :delta WHERE id = :id"
result = "value"
write = "through"
ttl = "10m"

# Dollar quotes and a cast: not the SQL of every database.
[cache.named]
key = "named:{name:text}"
source = "shop"
load = "SELECT array_agg(id ORDER BY id) AS ids, $$it's$$ AS note FROM product WHERE name = :name::text"
result = "array"
ttl = "10m"
)toml";

std::string replaced(std::string text, std::string_view from, std::string_view to) {
  for (std::size_t at = text.find(from); at != std::string::npos;
       at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
  return text;
}

class PostgresNodeTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!Server::available()) GTEST_SKIP() << "PostgreSQL's server is not installed";
    url_ = Server::get().url(Server::get().fresh_database());
    sql("CREATE TABLE product(id int PRIMARY KEY, name text NOT NULL, price numeric, data jsonb, "
        "active boolean)");
    sql("CREATE TABLE stock(id int PRIMARY KEY, n bigint NOT NULL)");
    sql("INSERT INTO product SELECT i, 'p' || i, i + 0.10, NULL, true FROM generate_series(1, 200) "
        "i");
    sql("INSERT INTO stock VALUES (1, 5)");
    auto config = config::load_config(replaced(std::string(kConfig), "{URL}", url_), "test");
    ASSERT_TRUE(config) << config::to_string(config.error());
    auto started = Instance::start(*config);
    ASSERT_TRUE(started) << to_string(started.error());
    instance_ = std::move(*started);
  }

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

TEST_F(PostgresNodeTest, ReadsThroughOnce) {
  TestClient client(address());
  EXPECT_EQ(client.text({"GET", "product:7"}),
            R"({"id":7,"name":"p7","price":7.10,"data":null,"active":true})");
  const std::uint64_t before = loads();
  EXPECT_EQ(before, 1U);
  for (int i = 0; i < 10; ++i) client.call({"GET", "product:7"});
  EXPECT_EQ(client.text({"GET", "product:999"}), "(nil)");
  EXPECT_EQ(client.text({"GET", "product:999"}), "(nil)");
  EXPECT_EQ(loads(), before + 1);
  EXPECT_EQ(client.text({"GET", "named:p7"}), R"([{"ids":[7],"note":"it's"}])");
}

TEST_F(PostgresNodeTest, ManyColdKeysAreOneRoundTrip) {
  TestClient client(address());
  std::vector<std::string> mget{"MGET"};
  for (int i = 1; i <= 100; ++i) mget.push_back("product:" + std::to_string(i));
  const auto reply = client.call(mget);
  ASSERT_EQ(reply.elements.size(), 100U);
  EXPECT_THAT(reply.elements[41].text, HasSubstr(R"("name":"p42")"));
  EXPECT_EQ(loads(), 1U);
}

TEST_F(PostgresNodeTest, WritesThroughWithEveryDigit) {
  TestClient client(address());
  EXPECT_THAT(client.text({"GET", "product:7"}), HasSubstr("p7"));
  const std::string value = R"({"id":7,"name":"new","price":12345678901234567890.120,)"
                            R"("data":{"a": [1, 2.50]},"active":false})";
  EXPECT_EQ(client.text({"SET", "product:7", value}), "OK");
  EXPECT_EQ(rows("SELECT * FROM product WHERE id = 7"),
            R"(7|new|12345678901234567890.120|{"a": [1, 2.50]}|f)");
  EXPECT_EQ(client.text({"GET", "product:7"}), value);
  EXPECT_EQ(loads(), 2U);  // the write has filled again
  // What was read can be written back.
  EXPECT_EQ(client.text({"SET", "product:7", value}), "OK");
  EXPECT_EQ(client.text({"GET", "product:7"}), value);
  EXPECT_EQ(client.text({"LARDER.REMOVE", "product:7"}), "(int) 1");
  EXPECT_EQ(client.text({"GET", "product:7"}), "(nil)");
  EXPECT_EQ(rows("SELECT count(*) FROM product WHERE id = 7"), "0");
}

TEST_F(PostgresNodeTest, CountsInTheDatabase) {
  TestClient client(address());
  EXPECT_EQ(client.text({"GET", "stock:1"}), "5");
  EXPECT_EQ(client.text({"INCRBY", "stock:1", "37"}), "(int) 42");
  EXPECT_EQ(client.text({"GET", "stock:1"}), "42");
  EXPECT_EQ(client.text({"SET", "stock:2", "9"}), "OK");
  EXPECT_EQ(rows("SELECT * FROM stock ORDER BY id"), "1|42 2|9");
}

TEST_F(PostgresNodeTest, RefusedWritesSayWhatTheDatabaseSaid) {
  TestClient client(address());
  const std::string refused =
      client.text({"SET", "product:7", R"({"name":null,"price":1,"data":null,"active":true})"});
  EXPECT_THAT(refused, StartsWith("-LARDER_SOURCE_ERROR"));
  EXPECT_THAT(refused, HasSubstr("SQLSTATE 23502"));
  EXPECT_THAT(client.text({"GET", "product:7"}), HasSubstr("p7"));
}

// Writers and readers at once: whoever has his answer reads his own write, and in the end every
// entry is what the table says.
TEST_F(PostgresNodeTest, WritersReadTheirWrites) {
  constexpr int kWriters = 6, kRounds = 40, kKeys = 3;
  std::vector<std::thread> threads;
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

TEST_F(PostgresNodeTest, AnswersLateWhileTheDatabaseIsDownAndGoesOnAfterwards) {
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

TEST_F(PostgresNodeTest, StartsOnlyWithStatementsThatTheDatabaseTakes) {
  const auto refusal = [&](std::string_view from, std::string_view to) {
    auto config = config::load_config(
        replaced(replaced(std::string(kConfig), "{URL}", url_), from, to), "test");
    EXPECT_TRUE(config) << config::to_string(config.error());
    const auto started = Instance::start(*config);
    EXPECT_FALSE(started.has_value());
    return started ? std::string() : to_string(started.error());
  };
  EXPECT_THAT(refusal("DELETE FROM product", "DELETE FROM nosuch"),
              HasSubstr("[cache.product] remove: the database refuses it: relation \"nosuch\""));
  EXPECT_THAT(refusal("SELECT n FROM stock", "SELECT m FROM stock"),
              HasSubstr("column \"m\" does not exist"));
  EXPECT_THAT(refusal("127.0.0.1:" + std::to_string(Server::get().port()), "127.0.0.1:1"),
              HasSubstr("refused"));
}

// Reads from a standby that replays nothing: whatever has been invalidated comes from the primary.
TEST_F(PostgresNodeTest, AReplicaThatIsBehindIsNeverBelievedAboutWhatHasChanged) {
  Server::get().drop_old_databases();
  Server standby(&Server::get());
  const std::string database = url_.substr(url_.rfind('/') + 1);
  const std::string name = source::postgres::feed_name("larder", "shop");
  const std::vector<source::WatchedTable> watched = {{0, "product", {"id"}}};
  const source::postgres::PrepareOptions wanted{
      .source = "shop", .slot = name, .publication = name, .watched = watched};
  const TimeUs soon = monotonic_now_us() + 20 * kSecond;
  const auto found = source::postgres::examine_now(url_, wanted, soon);
  ASSERT_TRUE(found && source::postgres::apply_now(url_, *found, soon));
  const std::string with_replica =
      replaced(replaced(replaced(std::string(kConfig), "pool = 4",
                                 "pool = 4\nreplica_lag = \"1h\"\nreplicas = [\"" +
                                     standby.url(database) + "\"]"),
                        "tags = [\"all-products\"]", "depends_on = [\"product(id -> id)\"]"),
               "{URL}", url_);
  auto config = config::load_config(with_replica, "test");
  ASSERT_TRUE(config) << config::to_string(config.error());
  instance_.reset();
  auto started = Instance::start(*config);
  ASSERT_TRUE(started) << to_string(started.error());
  instance_ = std::move(*started);
  TestClient client(address());
  const auto answered_by_replica = [&] {
    return instance_->metrics()
        .counter("larder_source_replica_loads_total", {{"source", "shop"}, {"replica", "1"}}, "")
        .value();
  };
  // Once the feed has begun, what the standby shows is enough again when it has replayed that.
  for (int i = 1; answered_by_replica() == 0; i = i % 200 + 1) {
    sql("UPDATE stock SET n = n + 1");
    EXPECT_THAT(client.text({"GET", "product:" + std::to_string(i)}), HasSubstr("p"));
    client.call({"LARDER.INVALIDATE", "KEY", "product:" + std::to_string(i)});
  }
  OtherClient there(standby.url(database));
  there.query("SELECT pg_wal_replay_pause()");
  while (there.query("SELECT pg_get_wal_replay_pause_state()") != "paused") continue;
  for (int i = 0; i < 20; ++i) {
    const std::string ours = "o" + std::to_string(i);
    EXPECT_EQ(client.text({"SET", "product:7",
                           R"({"name":")" + ours + R"(","price":1,"data":null,"active":true})"}),
              "OK");
    EXPECT_THAT(client.text({"GET", "product:7"}), HasSubstr("\"" + ours + "\""));
    const std::string theirs = "t" + std::to_string(i);
    sql("UPDATE product SET name = '" + theirs + "' WHERE id = 7");
    // Until it has been told; from then on nobody sees the old one.
    while (!client.text({"GET", "product:7"}).contains("\"" + theirs + "\"")) continue;
    for (int k = 0; k < 20; ++k)
      EXPECT_THAT(client.text({"GET", "product:7"}), HasSubstr("\"" + theirs + "\""));
  }
  there.query("SELECT pg_wal_replay_resume()");
  instance_.reset();
}

}  // namespace
}  // namespace larder::server
