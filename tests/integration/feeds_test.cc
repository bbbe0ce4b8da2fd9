// A whole node, a real Redis beside it, and somebody else's events: what a service then reads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "engine/redis_process.h"
#include "server/instance.h"
#include "server/test_client.h"

namespace larder::server {
namespace {

namespace fs = std::filesystem;
namespace real = engine::real;

// Nothing but the feeds tells these caches of a change: no depends_on, and a long TTL.
constexpr std::string_view kConfig = R"toml(
[node]
listen = ["127.0.0.1:0"]
admin = ""
threads = 2

[source.db]
url = "sqlite:{DIR}/users.db"

[cache.user]
key = "user:{id:text}"
source = "db"
load = "SELECT id, name FROM user WHERE id = :id"
ttl = "1h"

[cache.team]
key = "team:{id:text}"
source = "db"
load = "SELECT count(*) AS n FROM user WHERE team = :id"
ttl = "1h"
tags = ["team:{id}"]

[feed.events]
url = "redis+unix:{REDIS}"
channel = "cache-invalidation"
match = { type = "user" }
key = "user:{id}"

[feed.log]
url = "redis+unix:{REDIS}"
stream = "changes"
key = "user:{user.id}"

[feed.teams]
url = "redis+unix:{REDIS}"
channel = "teams"
tag = "team:{name}"
)toml";

std::string replaced(std::string text, std::string_view from, std::string_view to) {
  for (std::size_t at = text.find(from); at != std::string::npos;
       at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
  return text;
}

class FeedsTest : public real::WithRedis<testing::Test> {
 protected:
  void SetUp() override {
    WithRedis::SetUp();
    if (server_ == nullptr) return;
    std::string name = (fs::temp_directory_path() / "larder-feeds-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    dir_ = name;
    sql("CREATE TABLE user(id TEXT PRIMARY KEY, name TEXT NOT NULL, team TEXT);"
        "INSERT INTO user VALUES ('user-123', 'old', 'red'), ('7', 'old', 'red');");
    start(server_->path());
  }
  void TearDown() override {
    instance_.reset();
    if (!dir_.empty()) fs::remove_all(dir_);
  }

  void start(const std::string& socket) {
    instance_.reset();
    const std::string text =
        replaced(replaced(std::string(kConfig), "{DIR}", dir_.string()), "{REDIS}", socket);
    const auto config = config::load_config(text, "test");
    ASSERT_TRUE(config) << config::to_string(config.error());
    auto started = Instance::start(*config);
    ASSERT_TRUE(started) << to_string(started.error());
    instance_ = std::move(*started);
  }
  // Every feed has done what it does at its start.
  void wait_until_fed() {
    for (const char* feed : {"events", "log", "teams"})
      ASSERT_TRUE(eventually([&] { return everythings(feed) >= 1; })) << feed;
  }

  void sql(const std::string& text) {
    sqlite3* db = nullptr;
    ASSERT_EQ(sqlite3_open((dir_ / "users.db").c_str(), &db), SQLITE_OK);
    sqlite3_busy_timeout(db, 10'000);
    char* problem = nullptr;
    ASSERT_EQ(sqlite3_exec(db, text.c_str(), nullptr, nullptr, &problem), SQLITE_OK)
        << (problem != nullptr ? problem : "");
    sqlite3_close(db);
  }

  // Looks again and again. The limit only ends a broken test.
  template <class Condition>
  static bool eventually(Condition&& holds) {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!holds()) {
      if (std::chrono::steady_clock::now() > limit) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }
  bool becomes(TestClient& c, const std::string& key, const std::string& value) {
    return eventually([&] { return c.text({"GET", key}) == value; });
  }
  std::uint64_t counter(std::string_view name, std::string_view feed, std::string_view label = {}) {
    std::uint64_t sum = 0;
    instance_->metrics().each_counter(name, [&](const obs::Labels& labels, std::uint64_t value) {
      bool ours = false;
      bool fits = label.empty();
      for (const auto& [key, text] : labels) {
        ours |= key == "feed" && text == feed;
        fits |= key != "feed" && text == label;
      }
      if (ours && fits) sum += value;
    });
    return sum;
  }
  std::uint64_t everythings(std::string_view feed) {
    return counter("larder_feed_everything_total", feed);
  }
  std::uint64_t events(std::string_view feed, std::string_view result) {
    return counter("larder_feed_events_total", feed, result);
  }
  std::string address() const { return instance_->addresses().front(); }

  fs::path dir_;
  std::unique_ptr<Instance> instance_;
};

constexpr std::string_view kOld = R"({"id":"user-123","name":"old"})";
constexpr std::string_view kNew = R"({"id":"user-123","name":"new"})";

TEST_F(FeedsTest, AForeignPublishMakesACachedValueGo) {
  wait_until_fed();
  TestClient c(address());
  EXPECT_EQ(c.text({"GET", "user:user-123"}), kOld);
  EXPECT_EQ(c.text({"GET", "user:7"}), R"({"id":"7","name":"old"})");
  sql("UPDATE user SET name = 'new'");
  EXPECT_EQ(c.text({"GET", "user:user-123"}), kOld) << "nothing has told it";
  // Not for this feed, and nonsense.
  redis_->call({"PUBLISH", "cache-invalidation", R"({"type":"order","id":"user-123"})"});
  redis_->call({"PUBLISH", "cache-invalidation", "user-123"});
  redis_->call({"PUBLISH", "cache-invalidation", R"({"type":"user"})"});
  ASSERT_TRUE(eventually([&] { return events("events", "malformed") == 2; }));
  EXPECT_EQ(events("events", "ignored"), 1U);
  EXPECT_EQ(c.text({"GET", "user:user-123"}), kOld);
  redis_->call({"PUBLISH", "cache-invalidation", R"({"type":"user","id":"user-123"})"});
  ASSERT_TRUE(eventually([&] { return events("events", "applied") == 1; }));
  EXPECT_EQ(c.text({"GET", "user:user-123"}), kNew);
  EXPECT_EQ(c.text({"GET", "user:7"}), R"({"id":"7","name":"old"})") << "no other";
  EXPECT_EQ(counter("larder_invalidations_total", "events"), 2U)
      << "its cache at the start, and it";
}

TEST_F(FeedsTest, ATagOfAnEventMakesItsEntriesGo) {
  wait_until_fed();
  TestClient c(address());
  EXPECT_EQ(c.text({"GET", "team:red"}), R"({"n":2})");
  EXPECT_EQ(c.text({"GET", "team:blue"}), R"({"n":0})");
  sql("INSERT INTO user VALUES ('8', 'x', 'red'), ('9', 'x', 'blue')");
  EXPECT_EQ(c.text({"GET", "team:red"}), R"({"n":2})");
  redis_->call({"PUBLISH", "teams", R"({"name":"red"})"});
  ASSERT_TRUE(eventually([&] { return events("teams", "applied") == 1; }));
  EXPECT_EQ(c.text({"GET", "team:red"}), R"({"n":3})");
  EXPECT_EQ(c.text({"GET", "team:blue"}), R"({"n":0})") << "no other";
}

TEST_F(FeedsTest, AStreamGoesOnWhereItEndedAfterARestart) {
  wait_until_fed();
  TestClient c(address());
  EXPECT_EQ(c.text({"GET", "user:user-123"}), kOld);
  sql("UPDATE user SET name = 'new'");
  redis_->call({"XADD", "changes", "*", "user.id", "user-123"});
  ASSERT_TRUE(eventually([&] { return events("log", "applied") == 1; }));
  EXPECT_EQ(c.text({"GET", "user:user-123"}), kNew);
  instance_.reset();
  redis_->call({"XADD", "changes", "*", "user.id", "7"});
  start(server_->path());
  ASSERT_TRUE(eventually([&] { return events("log", "applied") == 1; }));
  EXPECT_EQ(everythings("log"), 0U) << "nothing was missed";
}

TEST_F(FeedsTest, LosingTheRedisVoidsEverythingWhenItIsBack) {
  auto other = std::make_unique<real::RedisServer>(real::find_redis());
  ASSERT_TRUE(real::Connection(*other).connected());
  start(other->path());
  wait_until_fed();
  TestClient c(address());
  EXPECT_EQ(c.text({"GET", "user:user-123"}), kOld);
  const std::uint64_t before = everythings("events");
  {
    real::Connection kills(*other);
    kills.call({"CLIENT", "KILL", "TYPE", "pubsub"});
  }
  // An event that nobody hears, or somebody already does again: the value goes in either case.
  sql("UPDATE user SET name = 'new'");
  {
    real::Connection says(*other);
    says.call({"PUBLISH", "cache-invalidation", R"({"type":"user","id":"user-123"})"});
  }
  ASSERT_TRUE(becomes(c, "user:user-123", std::string(kNew)));
  ASSERT_TRUE(eventually([&] { return everythings("events") >= before + 1; }));
  // And when it is gone for good, the node answers and stops all the same.
  other.reset();
  EXPECT_EQ(c.text({"GET", "user:user-123"}), kNew);
}

TEST_F(FeedsTest, StartsAndStopsWithoutItsRedis) {
  start((dir_ / "nobody").string());
  TestClient c(address());
  EXPECT_EQ(c.text({"GET", "user:user-123"}), kOld);
  EXPECT_EQ(everythings("events"), 0U);
  instance_.reset();
}

}  // namespace
}  // namespace larder::server
