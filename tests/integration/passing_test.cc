// Declared keys beside plain ones that a real Redis holds: one command may name both.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>

#include <filesystem>

#include "engine/redis/client_testing.h"
#include "server/instance.h"
#include "server/test_client.h"
#include "source/sqlite/prepare.h"

namespace larder::server {
namespace {

using engine::redis::eventually;
using engine::redis::TestServer;
using testing::HasSubstr;
using testing::StartsWith;
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
[cache.stock]
key = "stock:{id:int}"
source = "shop"
load = "SELECT n FROM stock WHERE id = :id"
store = "INSERT INTO stock(id, n) VALUES (:id, :value) ON CONFLICT(id) DO UPDATE SET n = :value"
increment = "UPDATE stock SET n = n + :delta WHERE id = :id"
remove = "DELETE FROM stock WHERE id = :id"
result = "value"
write = "through"
ttl = "10m"
depends_on = ["stock(id -> id)"]
)toml";

class PassingDeclaredTest : public testing::Test {
 protected:
  void SetUp() override {
    if (engine::real::find_redis().empty()) GTEST_SKIP() << "redis-server is missing";
    redis_.start();
    std::string name = (fs::temp_directory_path() / "larder-passing-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    dir_ = name;
    sqlite3* db = nullptr;
    ASSERT_EQ(sqlite3_open((dir_ / "shop.db").c_str(), &db), SQLITE_OK);
    ASSERT_EQ(sqlite3_exec(db,
                           "CREATE TABLE stock(id INTEGER PRIMARY KEY, n INTEGER NOT NULL);"
                           "INSERT INTO stock VALUES (1, 5), (2, 7)",
                           nullptr, nullptr, nullptr),
              SQLITE_OK);
    sqlite3_close(db);
    std::string text(kConfig);
    text.replace(text.find("{DIR}"), 5, dir_.string());
    auto config = config::load_config(text, "test");
    ASSERT_TRUE(config) << config::to_string(config.error());
    config->engine.url = "redis://" + redis_.address();
    const auto watched = cache::Node::watched_tables(config->caches, "shop");
    const auto applied = source::sqlite::apply((dir_ / "shop.db").string(), watched);
    ASSERT_TRUE(applied) << to_string(applied.error());
    auto started = Instance::start(*config);
    ASSERT_TRUE(started) << to_string(started.error());
    instance_ = std::move(*started);
    // The client connects in the background.
    TestClient c(instance_->addresses().front());
    ASSERT_TRUE(eventually([&] { return c.text({"GET", "none"}) == "(nil)"; }));
    // And nothing is stored before the engine has its first epoch.
    ASSERT_TRUE(eventually([&] {
      c.text({"MGET", "stock:1", "stock:2"});
      return c.text({"EXISTS", "stock:1", "stock:2"}) == "(int) 2";
    }));
  }
  void TearDown() override {
    instance_.reset();
    if (!dir_.empty()) fs::remove_all(dir_);
  }
  std::string address() const { return instance_->addresses().front(); }

  TestServer redis_;
  fs::path dir_;
  std::unique_ptr<Instance> instance_;
};

TEST_F(PassingDeclaredTest, OneCommandMayNameBoth) {
  TestClient c(address());
  EXPECT_EQ(c.text({"MSET", "a", "1", "b", "2"}), "OK");
  EXPECT_EQ(c.text({"MGET", "a", "stock:1", "none", "stock:2", "b"}), "[1, 5, (nil), 7, 2]");
  EXPECT_EQ(c.text({"MGET", "stock:1", "a", "stock:2"}), "[5, 1, 7]");
  EXPECT_EQ(c.text({"EXISTS", "a", "stock:1", "none", "stock:9"}), "(int) 2");
  EXPECT_EQ(c.text({"DEL", "a", "stock:1", "none"}), "(int) 2");
  EXPECT_EQ(redis_.call({"EXISTS", "a"}), ":0\r\n");
  EXPECT_EQ(c.text({"INCR", "stock:1"}), "(int) 6");
  EXPECT_EQ(c.text({"INCR", "n"}), "(int) 1");
  EXPECT_EQ(redis_.call({"GET", "stock:1"}), "$-1\r\n") << "a declared key under its own name";
}

TEST_F(PassingDeclaredTest, CommandsThatMakeNoSenseOnADeclaredKeyAreRefused) {
  TestClient c(address());
  EXPECT_THAT(c.text({"LPUSH", "stock:1", "x"}), HasSubstr("declared cache 'stock'"));
  EXPECT_THAT(c.text({"EVAL", "return 1", "1", "stock:1"}), HasSubstr("declared cache 'stock'"));
  EXPECT_THAT(c.text({"SUNIONSTORE", "a", "b", "stock:1"}), HasSubstr("declared cache 'stock'"));
  EXPECT_THAT(c.text({"BLPOP", "stock:1", "0"}), HasSubstr("declared cache 'stock'"));
  EXPECT_THAT(c.text({"WATCH", "stock:1"}), HasSubstr("declared cache 'stock'"));
  EXPECT_THAT(c.text({"LPUSH", "stock:abc", "x"}), StartsWith("-LARDER_BADKEY"));
  EXPECT_THAT(c.text({"MSET", "stock:1", "1", "a", "1"}), HasSubstr("cannot mix"));
}

TEST_F(PassingDeclaredTest, APipelineOfBothKeepsItsOrder) {
  TestClient c(address());
  std::string all;
  for (int i = 0; i < 300; ++i)
    all += TestClient::encode({"RPUSH", "l", "x"}) + TestClient::encode({"GET", "stock:2"});
  c.send_raw(all);
  for (int i = 0; i < 300; ++i) {
    EXPECT_EQ(TestClient::to_text(c.receive()), "(int) " + std::to_string(i + 1));
    EXPECT_EQ(TestClient::to_text(c.receive()), "7");
  }
}

TEST_F(PassingDeclaredTest, Transactions) {
  TestClient c(address());
  c.text({"MULTI"});
  c.text({"LPUSH", "l", "a"});
  c.text({"GET", "stock:1"});
  c.text({"LLEN", "l"});
  EXPECT_EQ(c.text({"EXEC"}), "[(int) 1, 5, (int) 1]");
  c.text({"MULTI"});
  c.text({"LPUSH", "l", "a"});
  c.text({"SET", "stock:1", "9"});
  EXPECT_THAT(c.text({"EXEC"}), StartsWith("-EXECABORT"));
  EXPECT_EQ(c.text({"LLEN", "l"}), "(int) 1");
  EXPECT_EQ(c.text({"WATCH", "l"}), "OK");
  redis_.call({"LPUSH", "l", "foreign"});
  c.text({"MULTI"});
  c.text({"SET", "stock:1", "9"});
  EXPECT_EQ(c.text({"EXEC"}), "(nil)");
  EXPECT_EQ(c.text({"GET", "stock:1"}), "5");
}

TEST_F(PassingDeclaredTest, FlushesVoidDeclaredEntriesAndDeletePlainKeys) {
  TestClient c(address());
  EXPECT_EQ(c.text({"GET", "stock:1"}), "5");
  EXPECT_EQ(c.text({"SET", "a", "1"}), "OK");
  EXPECT_EQ(c.text({"EXISTS", "stock:1", "a"}), "(int) 2");
  EXPECT_EQ(c.text({"FLUSHDB"}), "OK");
  EXPECT_EQ(c.text({"EXISTS", "stock:1", "a"}), "(int) 0");
  EXPECT_EQ(c.text({"GET", "stock:1"}), "5");
}

TEST_F(PassingDeclaredTest, ClientsThatTrackAreToldOfBoth) {
  TestClient a(address());
  TestClient b(address());
  a.call({"HELLO", "3"});
  EXPECT_EQ(a.text({"CLIENT", "TRACKING", "ON"}), "OK");
  EXPECT_EQ(a.text({"MGET", "k", "stock:1"}), "[(nil), 5]");
  EXPECT_EQ(a.text({"PING"}), "PONG");
  EXPECT_EQ(b.text({"SET", "stock:1", "6"}), "OK");
  EXPECT_EQ(TestClient::to_text(a.receive()), "[invalidate, [stock:1]]");
  redis_.call({"SET", "k", "v"});
  EXPECT_EQ(TestClient::to_text(a.receive()), "[invalidate, [k]]");
}

}  // namespace
}  // namespace larder::server
