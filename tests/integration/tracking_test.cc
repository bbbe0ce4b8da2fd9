// CLIENT TRACKING of declared keys: a client that caches by itself never keeps an old row untold.
#include <gtest/gtest.h>
#include <sqlite3.h>

#include <filesystem>
#include <thread>

#include "server/instance.h"
#include "server/test_client.h"
#include "source/sqlite/prepare.h"

namespace larder::server {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kConfig = R"toml(
[node]
listen = ["127.0.0.1:0"]
admin = ""
threads = 2
[near]
capacity = "32MiB"
[source.shop]
url = "sqlite:{DIR}/shop.db"
poll = "5ms"
[cache.product]
key = "product:{id:int}"
source = "shop"
load = "SELECT id, price FROM product WHERE id = :id"
store = "INSERT INTO product(id, price) VALUES (:id, :price) ON CONFLICT(id) DO UPDATE SET price = :price"
remove = "DELETE FROM product WHERE id = :id"
write = "through"
ttl = "10m"
negative_ttl = "10m"
tags = ["all-products"]
depends_on = ["product(id -> id)"]
[cache.short]
key = "short:{id:int}"
source = "shop"
load = "SELECT price FROM product WHERE id = :id"
result = "value"
ttl = "50ms"
)toml";

class TrackingDeclaredTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "larder-tracking-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    dir_ = name;
    sql("CREATE TABLE product(id INTEGER PRIMARY KEY, price INTEGER);"
        "INSERT INTO product VALUES (1, 10), (2, 20), (3, 30)");
    std::string text(kConfig);
    text.replace(text.find("{DIR}"), 5, dir_.string());
    auto config = config::load_config(text, "test");
    ASSERT_TRUE(config) << config::to_string(config.error());
    const auto watched = cache::Node::watched_tables(config->caches, "shop");
    const auto applied = source::sqlite::apply((dir_ / "shop.db").string(), watched);
    ASSERT_TRUE(applied) << to_string(applied.error());
    auto started = Instance::start(*config);
    ASSERT_TRUE(started) << to_string(started.error());
    instance_ = std::move(*started);
  }
  void TearDown() override {
    instance_.reset();
    fs::remove_all(dir_);
  }
  void sql(const std::string& text) {
    sqlite3* db = nullptr;
    ASSERT_EQ(sqlite3_open((dir_ / "shop.db").c_str(), &db), SQLITE_OK);
    sqlite3_busy_timeout(db, 10'000);
    EXPECT_EQ(sqlite3_exec(db, text.c_str(), nullptr, nullptr, nullptr), SQLITE_OK) << text;
    sqlite3_close(db);
  }
  std::string address() const { return instance_->addresses().front(); }

  // A client with tracking on, and all that was pushed to it since the last look.
  struct Tracker : TestClient {
    explicit Tracker(const std::string& address, const std::vector<std::string>& options = {})
        : TestClient(address) {
      call({"HELLO", "3"});
      std::vector<std::string> on{"CLIENT", "TRACKING", "ON"};
      on.insert(on.end(), options.begin(), options.end());
      EXPECT_EQ(text(on), "OK");
    }
    std::string pushed() {
      send({"PING"});
      std::string all;
      for (Reply reply = receive(); reply.text != "PONG"; reply = receive()) {
        EXPECT_EQ(reply.type, Reply::Type::push);
        all += to_text(reply.elements.at(1));
        if (reply.type != Reply::Type::push) break;
      }
      return all;
    }
    // Waits for it.
    std::string next_push() { return to_text(receive()); }
  };

  fs::path dir_;
  std::unique_ptr<Instance> instance_;
};

TEST_F(TrackingDeclaredTest, ALoadIsKeptByItsReaders) {
  Tracker a(address());
  EXPECT_EQ(a.text({"GET", "product:1"}), R"({"id":1,"price":10})");
  EXPECT_EQ(a.text({"MGET", "product:1", "product:2", "plain", "product:9"}),
            R"([{"id":1,"price":10}, {"id":2,"price":20}, (nil), (nil)])");
  EXPECT_EQ(a.pushed(), "") << "what it has just been given is no news";
  sql("UPDATE product SET price = 11 WHERE id = 1");
  EXPECT_EQ(a.next_push(), "[invalidate, [product:1]]");
  sql("INSERT INTO product VALUES (9, 90)");
  EXPECT_EQ(a.next_push(), "[invalidate, [product:9]]");
  EXPECT_EQ(a.text({"GET", "product:1"}), R"({"id":1,"price":11})");
}

TEST_F(TrackingDeclaredTest, WritesThroughLarderAreTold) {
  Tracker a(address());
  TestClient b(address());
  a.text({"GET", "product:1"});
  a.text({"GET", "product:2"});
  EXPECT_EQ(b.text({"SET", "product:1", R"({"price":12})"}), "OK");
  EXPECT_EQ(a.next_push(), "[invalidate, [product:1]]");
  EXPECT_EQ(b.text({"DEL", "product:2"}), "(int) 1");
  EXPECT_EQ(a.next_push(), "[invalidate, [product:2]]");
  a.text({"GET", "product:3"});
  EXPECT_EQ(b.text({"EXPIRE", "product:3", "100"}), "(int) 1");
  EXPECT_EQ(a.next_push(), "[invalidate, [product:3]]");
  // Its own, behind the answer.
  a.text({"GET", "product:1"});
  EXPECT_EQ(a.text({"SET", "product:1", R"({"price":13})"}), "OK");
  EXPECT_NE(a.pushed().find("[product:1]"), std::string::npos);
}

TEST_F(TrackingDeclaredTest, TagsAndFlushesVoidEverything) {
  Tracker a(address());
  Tracker c(address(), {"BCAST", "PREFIX", "product:"});
  TestClient b(address());
  a.text({"GET", "product:1"});
  EXPECT_EQ(b.text({"LARDER.INVALIDATE", "TAG", "all-products"}), "(int) 1");
  EXPECT_EQ(a.next_push(), "[invalidate, (nil)]");
  EXPECT_EQ(c.next_push(), "[invalidate, [product:1]]") << "of the load";
  EXPECT_EQ(c.next_push(), "[invalidate, (nil)]");
  a.text({"GET", "product:1"});
  EXPECT_EQ(b.text({"FLUSHALL"}), "OK");
  EXPECT_EQ(a.next_push(), "[invalidate, (nil)]");
}

TEST_F(TrackingDeclaredTest, TheEndOfALifeIsTold) {
  Tracker a(address());
  EXPECT_EQ(a.text({"GET", "short:1"}), "10");
  EXPECT_EQ(a.next_push(), "[invalidate, [short:1]]");
}

// A client that keeps what it reads until it is told, beside writers: at the end it holds nothing
// that is old.
TEST_F(TrackingDeclaredTest, NobodyKeepsAnOldRow) {
  constexpr int kWrites = 200;
  std::thread writer([this] {
    TestClient w(address());
    for (int i = 1; i <= kWrites; ++i) {
      const std::string price = std::to_string(1000 + i);
      if (i % 2 == 0)
        EXPECT_EQ(w.text({"SET", "product:1", "{\"price\":" + price + "}"}), "OK");
      else
        sql("UPDATE product SET price = " + price + " WHERE id = 1");
    }
  });
  const std::string last = R"({"id":1,"price":)" + std::to_string(1000 + kWrites) + "}";
  Tracker a(address());
  std::string cached;
  while (cached != last) {
    a.send({"GET", "product:1"});
    auto got = a.receive();
    while (got.type == TestClient::Reply::Type::push) got = a.receive();
    cached = got.text;
    // It asks again only when it is told to.
    if (cached != last) EXPECT_EQ(a.receive().type, TestClient::Reply::Type::push);
  }
  writer.join();
}

}  // namespace
}  // namespace larder::server
