// Whole nodes over real sockets and a real SQLite file: what a service sees of declared keys.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>
#include <sys/mman.h>

#include <filesystem>
#include <fstream>

#include "near/hits.h"
#include "server/instance.h"
#include "server/test_client.h"
#include "source/sqlite/prepare.h"

namespace larder::server {
namespace {

using testing::HasSubstr;
using testing::StartsWith;
namespace fs = std::filesystem;

constexpr std::string_view kConfig = R"toml(
[node]
listen = ["127.0.0.1:0"]
admin = "127.0.0.1:0"
threads = 2

[near]
capacity = "32MiB"

[source.shop]
url = "sqlite:{DIR}/shop.db"
query_log = "{DIR}/queries.log"
poll = "5ms"

[cache.product]
key = "product:{id:int}"
source = "shop"
load = "SELECT id, name, price FROM product WHERE id = :id"
store = """INSERT INTO product(id, name, price) VALUES (:id, :name, :price)
           ON CONFLICT(id) DO UPDATE SET name = :name, price = :price"""
remove = "DELETE FROM product WHERE id = :id"
warm = "SELECT id FROM product ORDER BY id LIMIT :n"
write = "through"
ttl = "10m"
negative_ttl = "10m"
tags = ["all-products"]
depends_on = ["product(id -> id)"]

[cache.stock]
key = "stock:{id:int}"
source = "shop"
load = "SELECT n FROM stock WHERE id = :id"
store = "INSERT INTO stock(id, n) VALUES (:id, :value) ON CONFLICT(id) DO UPDATE SET n = :value"
increment = "UPDATE stock SET n = n + :delta WHERE id = :id"
remove = "DELETE FROM stock WHERE id = :id"
result = "value"
write = "through"
on_del = "remove"
ttl = "10m"
depends_on = ["stock(id -> id)"]

[cache.report]
key = "report:{name}"
source = "shop"
load = "SELECT name FROM product WHERE name = :name"
ttl = "10m"
)toml";

std::string replaced(std::string text, std::string_view from, std::string_view to) {
  for (std::size_t at = text.find(from); at != std::string::npos;
       at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
  return text;
}

class ServerTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "larder-server-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    dir_ = name;
    sql("CREATE TABLE product(id INTEGER PRIMARY KEY, name TEXT NOT NULL, price INTEGER);"
        "CREATE TABLE stock(id INTEGER PRIMARY KEY, n INTEGER NOT NULL);"
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)"
        "INSERT INTO product SELECT i, 'p' || i, i * 10 FROM n;"
        "INSERT INTO stock VALUES (1, 5), (2, 7);");
    start();
  }
  void TearDown() override {
    instance_.reset();
    fs::remove_all(dir_);
  }

  // `near`: what [near] says besides.
  void start(std::string_view near = "") {
    instance_.reset();
    std::string text = replaced(std::string(kConfig), "{DIR}", dir_.string());
    text = replaced(text, "capacity = \"32MiB\"", "capacity = \"32MiB\"\n" + std::string(near));
    auto config = config::load_config(text, "test");
    ASSERT_TRUE(config) << config::to_string(config.error());
    prepare(*config);
    auto started = Instance::start(*config);
    ASSERT_TRUE(started) << to_string(started.error());
    instance_ = std::move(*started);
  }
  void prepare(const config::Config& config);

  // As somebody else's program would.
  void sql(const std::string& text) {
    sqlite3* db = nullptr;
    ASSERT_EQ(sqlite3_open((dir_ / "shop.db").c_str(), &db), SQLITE_OK);
    sqlite3_busy_timeout(db, 10'000);
    char* problem = nullptr;
    ASSERT_EQ(sqlite3_exec(db, text.c_str(), nullptr, nullptr, &problem), SQLITE_OK)
        << (problem != nullptr ? problem : "");
    sqlite3_close(db);
  }

  // Loads of products that the database itself has seen.
  int product_queries() const {
    std::ifstream log(dir_ / "queries.log");
    int n = 0;
    for (std::string line; std::getline(log, line);)
      n += line.find("name, price FROM product") != std::string::npos;
    return n;
  }

  std::string address() const { return instance_->addresses().front(); }

  fs::path dir_;
  std::unique_ptr<Instance> instance_;
};

void ServerTest::prepare(const config::Config& config) {
  const auto watched = cache::Node::watched_tables(config.caches, "shop");
  const auto applied = source::sqlite::apply((dir_ / "shop.db").string(), watched);
  ASSERT_TRUE(applied) << to_string(applied.error());
}

constexpr std::string_view kProduct7 = R"({"id":7,"name":"p7","price":70})";

TEST_F(ServerTest, ReadsThroughAndThenFromMemory) {
  TestClient c(address());
  EXPECT_EQ(c.text({"EXISTS", "product:7"}), "(int) 0");
  EXPECT_EQ(c.text({"TTL", "product:7"}), "(int) -2");
  EXPECT_EQ(c.text({"GET", "product:7"}), kProduct7);
  EXPECT_EQ(c.text({"GET", "product:7"}), kProduct7);
  EXPECT_EQ(product_queries(), 1);
  EXPECT_EQ(c.text({"EXISTS", "product:7", "product:8"}), "(int) 1");
  EXPECT_EQ(c.text({"TYPE", "product:7"}), "string");
  EXPECT_GT(c.call({"TTL", "product:7"}).integer, 500);
  EXPECT_EQ(c.text({"STRLEN", "product:7"}), "(int) " + std::to_string(kProduct7.size()));
  EXPECT_EQ(c.text({"GETRANGE", "product:7", "1", "4"}), "\"id\"");
  EXPECT_EQ(c.text({"GET", "product:5000"}), "(nil)");
  EXPECT_EQ(c.text({"GET", "product:5000"}), "(nil)");
  EXPECT_EQ(product_queries(), 2);
  EXPECT_EQ(c.text({"EXISTS", "product:5000"}), "(int) 0");
  EXPECT_EQ(c.text({"TTL", "product:5000"}), "(int) -2");
  EXPECT_THAT(c.text({"GET", "product:007"}), StartsWith("-LARDER_BADKEY "));
  EXPECT_THAT(c.text({"LARDER.GET", "product:7"}), HasSubstr("tier, near, age_ms, "));
  EXPECT_THAT(c.text({"LARDER.GET", "product:9"}), HasSubstr("tier, source, age_ms, "));
  EXPECT_THAT(c.text({"LARDER.EXPLAIN", "product:7"}), HasSubstr("product"));
}

TEST_F(ServerTest, AThousandReadersOfOneColdKeyCauseOneQuery) {
  constexpr int kReaders = 1'000;
  std::vector<std::unique_ptr<TestClient>> readers;
  for (int i = 0; i < kReaders; ++i) readers.push_back(std::make_unique<TestClient>(address()));
  for (const auto& reader : readers) ASSERT_EQ(reader->text({"PING"}), "PONG");
  for (const auto& reader : readers) reader->send({"GET", "product:7"});
  for (const auto& reader : readers) ASSERT_EQ(TestClient::to_text(reader->receive()), kProduct7);
  EXPECT_EQ(product_queries(), 1);
}

TEST_F(ServerTest, MgetOfColdKeysIsOneQuery) {
  TestClient c(address());
  std::vector<std::string> mget{"MGET"};
  for (int i = 1; i <= 100; ++i) mget.push_back("product:" + std::to_string(i));
  const wire::Reply reply = c.call(mget);
  ASSERT_EQ(reply.elements.size(), 100U);
  EXPECT_EQ(reply.elements[6].text, kProduct7);
  EXPECT_EQ(product_queries(), 1);
  // Declared and plain, held and not, in the order asked for.
  c.text({"SET", "plain", "P"});
  EXPECT_EQ(c.text({"MGET", "plain", "product:200", "none", "product:7", "product:5000", "plain"}),
            "[P, {\"id\":200,\"name\":\"p200\",\"price\":2000}, (nil), " + std::string(kProduct7) +
                ", (nil), P]");
  EXPECT_EQ(product_queries(), 2);
  EXPECT_THAT(c.text({"MGET", "product:1", "product:x"}), StartsWith("-LARDER_BADKEY "));
}

TEST_F(ServerTest, WritesGoToTheSource) {
  TestClient c(address());
  c.text({"GET", "product:7"});
  EXPECT_EQ(c.text({"SET", "product:7", R"({"id":7,"name":"new","price":71})"}), "OK");
  EXPECT_EQ(c.text({"GET", "product:7"}), R"({"id":7,"name":"new","price":71})");
  EXPECT_THAT(c.text({"SET", "product:7", R"({"id":8,"name":"new","price":71})"}),
              StartsWith("-LARDER_BADVALUE "));
  EXPECT_THAT(c.text({"SET", "product:7", "no json"}), StartsWith("-LARDER_BADVALUE "));
  EXPECT_THAT(c.text({"SET", "report:a", "x"}), StartsWith("-LARDER_READONLY "));
  EXPECT_EQ(c.text({"SETEX", "product:8", "100", R"({"id":8,"name":"e","price":1})"}), "OK");
  EXPECT_EQ(c.text({"MSET", "product:1", R"({"id":1,"name":"a","price":1})", "product:2",
                    R"({"id":2,"name":"b","price":2})"}),
            "OK");
  EXPECT_EQ(c.text({"MGET", "product:1", "product:2"}),
            R"([{"id":1,"name":"a","price":1}, {"id":2,"name":"b","price":2}])");
  EXPECT_THAT(c.text({"MSET", "product:1", "{}", "plain", "x"}), HasSubstr("cannot mix"));
  EXPECT_EQ(c.text({"GET", "stock:1"}), "5");
  EXPECT_EQ(c.text({"INCR", "stock:1"}), "(int) 6");
  EXPECT_EQ(c.text({"DECRBY", "stock:1", "4"}), "(int) 2");
  EXPECT_EQ(c.text({"GET", "stock:1"}), "2");
  EXPECT_THAT(c.text({"INCR", "product:7"}), HasSubstr("declare `increment` in [cache.product]"));
}

TEST_F(ServerTest, DelInvalidatesOrRemovesAsDeclared) {
  TestClient c(address());
  c.text({"MGET", "product:1", "product:2", "stock:1"});
  c.text({"SET", "plain", "x"});
  // Held product: 1; row of the stock: 1; plain: 1; product:3 is not held.
  EXPECT_EQ(c.text({"DEL", "product:1", "product:1", "product:3", "stock:1", "plain"}), "(int) 3");
  EXPECT_EQ(c.text({"EXISTS", "product:1", "product:2", "plain"}), "(int) 1");
  EXPECT_THAT(c.text({"GET", "product:1"}), HasSubstr("p1"));
  EXPECT_EQ(c.text({"GET", "stock:1"}), "(nil)");
  EXPECT_EQ(c.text({"EXPIRE", "product:1", "100"}), "(int) 1");
  EXPECT_LE(c.call({"TTL", "product:1"}).integer, 100);
  EXPECT_EQ(c.text({"EXPIRE", "product:1", "0"}), "(int) 1");
  EXPECT_EQ(c.text({"EXISTS", "product:1"}), "(int) 0");
  EXPECT_EQ(c.text({"EXPIRE", "product:1", "-5"}), "(int) 0");
  EXPECT_EQ(c.text({"LARDER.REMOVE", "product:1"}), "(int) 1");
  EXPECT_EQ(c.text({"GET", "product:1"}), "(nil)");
}

TEST_F(ServerTest, OtherCommandsSayWhatToUse) {
  TestClient c(address());
  EXPECT_EQ(c.text({"APPEND", "product:7", "x"}),
            "-ERR 'append' does not work on key 'product:7' of the declared cache 'product': write "
            "the whole value with SET");
  EXPECT_THAT(c.text({"GETDEL", "product:7"}), HasSubstr("use GET, then DEL"));
  EXPECT_THAT(c.text({"SET", "product:7", "{}", "NX"}), HasSubstr("SET with NX does not work"));
  EXPECT_THAT(c.text({"SET", "product:7", "{}", "KEEPTTL"}), HasSubstr("use EX or PX"));
  EXPECT_THAT(c.text({"RENAME", "plain", "product:7"}),
              HasSubstr("does not work on key 'product:7'"));
  EXPECT_THAT(c.text({"WATCH", "product:7"}), HasSubstr("does not work on key 'product:7'"));
  EXPECT_THAT(c.text({"PERSIST", "product:7"}), HasSubstr("an entry always expires"));
  EXPECT_EQ(product_queries(), 0);
}

TEST_F(ServerTest, InvalidationByKeyTagAndCache) {
  TestClient c(address());
  const auto held = [&] { return c.call({"EXISTS", "product:1", "product:2"}).integer; };
  const auto load = [&] { c.text({"MGET", "product:1", "product:2"}); };
  load();
  EXPECT_EQ(c.text({"LARDER.INVALIDATE", "KEY", "product:1"}), "(int) 1");
  EXPECT_EQ(held(), 1);
  load();
  EXPECT_EQ(c.text({"LARDER.INVALIDATE", "TAG", "all-products"}), "(int) 1");
  EXPECT_EQ(held(), 0);
  load();
  EXPECT_EQ(c.text({"LARDER.INVALIDATE", "CACHE", "product"}), "(int) 1");
  EXPECT_EQ(held(), 0);
  EXPECT_THAT(c.text({"LARDER.INVALIDATE", "CACHE", "nope"}), HasSubstr("no cache 'nope'"));
  load();
  c.text({"SET", "plain", "x"});
  EXPECT_EQ(c.text({"FLUSHALL"}), "OK");
  EXPECT_EQ(held(), 0);
  EXPECT_EQ(c.text({"GET", "plain"}), "(nil)");
  EXPECT_EQ(c.text({"LARDER.WARM", "product", "10"}).substr(0, 24), "[keys, (int) 10, failed,");
  EXPECT_EQ(held(), 2);
  EXPECT_EQ(c.text({"LARDER.REFRESH", "product:1", "product:5000"}), "(int) 1");
}

TEST_F(ServerTest, ForeignChangesInvalidate) {
  TestClient c(address());
  EXPECT_EQ(c.text({"GET", "product:7"}), kProduct7);
  sql("UPDATE product SET name = 'theirs' WHERE id = 7");
  // The feed polls: ask until it has come; the patience of the client bounds the wait.
  const TimeUs until = monotonic_now_us() + 30 * kSecond;
  std::string seen;
  while (seen.find("theirs") == std::string::npos && monotonic_now_us() < until)
    seen = c.text({"GET", "product:7"});
  EXPECT_EQ(seen, R"({"id":7,"name":"theirs","price":70})");
}

TEST_F(ServerTest, TransactionsOnDeclaredKeys) {
  TestClient c(address());
  c.text({"SET", "plain", "P"});
  c.text({"GET", "product:1"});
  EXPECT_EQ(c.text({"MULTI"}), "OK");
  EXPECT_EQ(c.text({"GET", "product:1"}), "QUEUED");
  EXPECT_EQ(c.text({"SET", "product:1", R"({"id":1,"name":"a","price":1})"}), "QUEUED");
  EXPECT_EQ(c.text({"INCRBY", "stock:1", "10"}), "QUEUED");
  EXPECT_EQ(c.text({"GET", "product:1"}), "QUEUED");
  EXPECT_EQ(c.text({"GET", "plain"}), "QUEUED");
  EXPECT_EQ(c.text({"EXEC"}),
            R"([{"id":1,"name":"p1","price":10}, OK, (int) 15, {"id":1,"name":"a","price":1}, P])");
  // All or nothing: the second write is refused by the database.
  c.text({"MULTI"});
  c.text({"INCRBY", "stock:1", "1"});
  EXPECT_EQ(c.text({"SET", "product:1", R"({"id":1,"name":null,"price":1})"}), "QUEUED");
  EXPECT_THAT(c.text({"EXEC"}), StartsWith("[-LARDER_SOURCE_ERROR "));
  EXPECT_EQ(c.text({"GET", "stock:1"}), "15");
  // Mixed with plain writes.
  c.text({"MULTI"});
  c.text({"SET", "product:1", R"({"id":1,"name":"b","price":1})"});
  EXPECT_EQ(c.text({"SET", "plain", "x"}), "QUEUED");
  EXPECT_THAT(c.text({"EXEC"}), StartsWith("-EXECABORT "));
  EXPECT_EQ(c.text({"GET", "plain"}), "P");
  // What can be refused at once is, and spoils the transaction.
  c.text({"MULTI"});
  EXPECT_THAT(c.text({"APPEND", "product:1", "x"}), HasSubstr("does not work"));
  EXPECT_EQ(c.text({"EXEC"}), "-EXECABORT Transaction discarded because of previous errors.");
}

TEST_F(ServerTest, GarbageOfOneClientDoesNotDisturbOthers) {
  TestClient witness(address());
  witness.send({"GET", "product:7"});
  for (int i = 0; i < 50; ++i) {
    TestClient c(address());
    c.send_raw("*3\r\n$3\r\nGET\r\n$-7\r\n");
    EXPECT_THAT(c.read_to_end(), StartsWith("-ERR Protocol error"));
    TestClient leaves(address());
    leaves.send({"GET", "product:" + std::to_string(100 + i)});
  }
  EXPECT_EQ(TestClient::to_text(witness.receive()), kProduct7);
  EXPECT_EQ(witness.text({"PING"}), "PONG");
}

TEST_F(ServerTest, AdminAnswers) {
  TestClient c(address());
  c.text({"GET", "product:7"});
  const auto get = [&](const std::string& path) {
    TestClient http(instance_->admin_address());
    http.send_raw("GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    return http.read_to_end();
  };
  EXPECT_THAT(get("/healthz"), HasSubstr("200 OK"));
  EXPECT_THAT(get("/readyz"), HasSubstr("ready"));
  EXPECT_THAT(get("/api/v1/status"), HasSubstr("\"version\":\"" LARDER_VERSION "\""));
  EXPECT_THAT(get("/nope"), HasSubstr("404"));
  EXPECT_THAT(get("/"), HasSubstr("/metrics"));
  const std::string metrics = get("/metrics");
  for (const char* expected :
       {"larder_connected_clients 1", "larder_near_entries 1",
        "larder_near_capacity_bytes 33554432",
        "larder_requests_total{cache=\"product\",op=\"get\",tier=\"source\"} 1"})
    EXPECT_THAT(metrics, HasSubstr(expected));
}

// report has nothing but its TTL and plain keys have nobody else: they are answered as before. What
// a feed watches over is asked for again, since nobody has listened meanwhile.
void warm_restart(TestClient& c, const std::function<void()>& restart,
                  const std::function<TestClient()>& connect, const std::function<int()>& queries) {
  EXPECT_EQ(c.text({"SET", "plain", "kept"}), "OK");
  EXPECT_EQ(c.text({"SET", "ending", "soon", "EX", "1000"}), "OK");
  EXPECT_EQ(c.text({"GET", "product:7"}), kProduct7);
  EXPECT_EQ(c.text({"GET", "report:p5"}), R"({"name":"p5"})");
  const int before = queries();
  restart();
  TestClient again = connect();
  EXPECT_EQ(again.text({"GET", "plain"}), "kept");
  EXPECT_GT(again.call({"TTL", "ending"}).integer, 900);
  EXPECT_THAT(again.text({"LARDER.GET", "report:p5"}), HasSubstr("tier, near"));
  EXPECT_THAT(again.text({"LARDER.GET", "product:7"}), HasSubstr("price\":71"));
  EXPECT_EQ(queries(), before + 1);
}

TEST_F(ServerTest, SharedMemoryOutlivesTheNode) {
  const std::string name = "larder-test-" + dir_.filename().string();
  const std::string near = "shared = \"" + name + "\"";
  start(near);
  TestClient c(address());
  warm_restart(
      c,
      [&] {
        instance_.reset();
        sql("UPDATE product SET price = 71 WHERE id = 7");
        start(near);
      },
      [&] { return TestClient(address()); }, [&] { return product_queries(); });
  instance_.reset();
  EXPECT_EQ(shm_unlink(near::shared_object(name).c_str()), 0);
  EXPECT_EQ(shm_unlink(near::shared_hits(name).c_str()), 0);
}

TEST_F(ServerTest, ASnapshotOutlivesTheNode) {
  const std::string near = "snapshot = \"" + (dir_ / "near.snapshot").string() + "\"";
  start(near);
  TestClient c(address());
  warm_restart(
      c,
      [&] {
        instance_.reset();
        sql("UPDATE product SET price = 71 WHERE id = 7");
        start(near);
      },
      [&] { return TestClient(address()); }, [&] { return product_queries(); });
}

}  // namespace
}  // namespace larder::server
