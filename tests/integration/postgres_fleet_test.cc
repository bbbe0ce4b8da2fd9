// Nodes over a real PostgreSQL whose log they read: many on one Redis, and one alone.
#include <gmock/gmock.h>

#include "fleet.h"
#include "source/postgres/prepare.h"
#include "source/postgres/testing.h"

namespace larder::server {
namespace {

namespace postgres = source::postgres;
using postgres::testing::OtherClient;
using postgres::testing::Server;

class PostgresTruth final : public Truth {
 public:
  PostgresTruth() {
    OtherClient admin(url_);
    admin.exec("CREATE TABLE item(id integer PRIMARY KEY, v bigint NOT NULL)");
    admin.exec("INSERT INTO item SELECT i, 1 FROM generate_series(1, 1000) i");
  }
  ~PostgresTruth() override { server_.drop_slots(database_); }

  std::string source(std::size_t) const override { return "url = \"" + url_ + "\"\n"; }
  void prepare(const std::vector<cache::CacheSpec>& caches) override {
    const std::string name = postgres::feed_name("larder", "shop");
    const postgres::PrepareOptions wanted{.source = "shop",
                                          .slot = name,
                                          .publication = name,
                                          .feed_for = source::FeedFor::node,  // it makes its slot
                                          .watched = cache::Node::watched_tables(caches, "shop")};
    const TimeUs deadline = monotonic_now_us() + 20 * kSecond;
    const auto found = postgres::examine_now(url_, wanted, deadline);
    ASSERT_TRUE(found) << to_string(found.error());
    const auto done = postgres::apply_now(url_, *found, deadline);
    ASSERT_TRUE(done) << to_string(done.error());
  }
  Client client() const override {
    return [client = std::make_shared<OtherClient>(url_)](const std::string& sql) {
      return client->try_exec(sql);
    };
  }
  std::int64_t version(int id) const override {
    return std::stoll(query("SELECT v FROM item WHERE id = " + std::to_string(id)));
  }
  int loads(std::size_t) const override { return 0; }  // nobody asks

  std::string query(const std::string& sql) const { return OtherClient(url_).query(sql); }
  void kill_walsenders() const {
    query(
        "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots"
        " WHERE database = current_database() AND active_pid IS NOT NULL");
  }

 private:
  Server& server_ = Server::get();
  const std::string database_ = server_.fresh_database();
  const std::string url_ = server_.url(database_);
};

class PostgresFleetTest : public Chaos {
 protected:
  void SetUp() override {
    if (!Server::available()) GTEST_SKIP() << "PostgreSQL's server is not installed";
    Chaos::SetUp();
  }
  std::unique_ptr<Truth> make_truth() override { return std::make_unique<PostgresTruth>(); }
  const PostgresTruth& truth() const { return static_cast<const PostgresTruth&>(*truth_); }
};

TEST_F(PostgresFleetTest, AChangePastLarderIsSeenByAll) {
  start_engine();
  start_nodes(3);
  for (std::size_t node = 0; node < 3; ++node) get_from(node, "e:3", "near");
  sql("UPDATE item SET v = 9 WHERE id = 3");
  const TimeUs until = monotonic_now_us() + 10 * kSecond;
  for (std::size_t node = 0; node < 3; ++node) {
    TestClient client(address(node));
    std::int64_t seen = 0;
    while (seen != 9 && monotonic_now_us() < until) seen = version_in(get(client, "e:3").value);
    EXPECT_EQ(seen, 9) << node;
  }
  // The slot is that of the fleet.
  EXPECT_EQ(truth().query("SELECT slot_name, active FROM pg_replication_slots"
                          " WHERE database = current_database()"),
            "larder_larder_shop|t");
}

TEST_F(PostgresFleetTest, Undisturbed) {
  start_engine();
  start_nodes(3);
  run(true, [] { pass(1'500); });
  expect_coherent();
  EXPECT_EQ(load_->counts.errors.load(), 0U);
  EXPECT_EQ(load_->counts.write_errors.load(), 0U);
  EXPECT_GT(load_->counts.near.load(), load_->counts.source.load());
}

TEST_F(PostgresFleetTest, TheLogIsCutAndTheEngineIsFlushed) {
  start_engine();
  start_nodes(3);
  run(false, [&] {
    for (int i = 0; i < 3; ++i) {
      pass(300);
      truth().kill_walsenders();
      pass(300);
      engine_->call({"FLUSHALL"});
    }
    pass(600);
  });
  expect_coherent();
}

TEST_F(PostgresFleetTest, TheReadingNodeLeavesAndAnotherTakesOver) {
  start_engine();
  start_nodes(2);
  get_from(0, "e:3", "near");
  get_from(1, "e:3", "near");
  nodes_.erase(nodes_.begin());
  sql("UPDATE item SET v = 7 WHERE id = 3");
  TestClient client(address(0));
  const TimeUs until = monotonic_now_us() + 20 * kSecond;
  std::int64_t seen = 0;
  while (seen != 7 && monotonic_now_us() < until) seen = version_in(get(client, "e:3").value);
  EXPECT_EQ(seen, 7);
}

// ---- one node alone ----

class PostgresLoneNodeTest : public PostgresFleetTest {
 protected:
  void SetUp() override {
    PostgresFleetTest::SetUp();
    if (!truth_) return;
    start_nodes(1, {}, "embedded:");
    ASSERT_EQ(get_from(0, "b:900", "near").tier, "near");
  }
  std::uint64_t asked() {
    return nodes_[0]
        ->metrics()
        .counter("larder_source_queries_total", {{"source", "shop"}, {"op", "load"}}, "")
        .value();
  }
  // Until what has been committed has been told. The first time it may be the beginning of the feed
  // that is seen, which voids everything.
  void catch_up() {
    get_from(0, "e:999", "near");
    sql("UPDATE item SET v = v + 1 WHERE id = 999");
    TestClient client(address(0));
    const std::int64_t wanted = truth_->version(999);
    while (version_in(get(client, "e:999").value) != wanted) poll(nullptr, 0, 5);
  }
};

TEST_F(PostgresLoneNodeTest, Undisturbed) {
  run(true, [] { pass(1'000); });
  expect_coherent();
  EXPECT_EQ(load_->counts.errors.load(), 0U);
  EXPECT_GT(load_->counts.near.load(), load_->counts.source.load());
}

TEST_F(PostgresLoneNodeTest, TheLogIsCut) {
  run(false, [&] {
    for (int i = 0; i < 3; ++i) {
      pass(300);
      truth().kill_walsenders();
    }
    pass(400);
  });
  expect_coherent();
}

TEST_F(PostgresLoneNodeTest, TheEchoOfAWriteDoesNotVoidWhatItFilled) {
  TestClient client(address(0));
  catch_up();
  catch_up();
  EXPECT_EQ(client.text({"SET", "e:5", R"({"v":42})"}), "OK");
  EXPECT_EQ(get(client, "e:5").tier, "near");
  catch_up();
  const std::uint64_t before = asked();
  EXPECT_EQ(get(client, "e:5").tier, "near");
  EXPECT_EQ(version_in(get(client, "e:5").value), 42);
  EXPECT_EQ(asked(), before);
  // Another cache's entry of the row was not known to the writer: it is void.
  EXPECT_EQ(client.text({"SET", "e:6", R"({"v":43})"}), "OK");
  EXPECT_EQ(version_in(get_from(0, "b:6", "near").value), 43);
  EXPECT_EQ(client.text({"SET", "e:6", R"({"v":44})"}), "OK");
  catch_up();
  EXPECT_EQ(version_in(get(client, "b:6").value), 44);
}

}  // namespace
}  // namespace larder::server
