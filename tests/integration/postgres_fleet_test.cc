// Nodes over a real PostgreSQL whose log they read: many on one Redis, and one alone.
#include <gmock/gmock.h>

#include "fleet.h"

namespace larder::server {
namespace {

using source::postgres::testing::Server;

class PostgresFleetTest : public Chaos {
 protected:
  void SetUp() override {
    if (!Server::available()) GTEST_SKIP() << "PostgreSQL's server is not installed";
    Chaos::SetUp();
  }
  std::unique_ptr<Truth> make_truth() override { return std::make_unique<PostgresTruth>(); }
  void kill_walsenders() const {
    sql("SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots"
        " WHERE database = current_database() AND active_pid IS NOT NULL");
  }
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
  EXPECT_EQ(truth_->connect()->integer("SELECT count(*) FROM pg_replication_slots"
                                       " WHERE database = current_database() AND active"
                                       " AND slot_name = 'larder_larder_shop'"),
            1);
}

TEST_F(PostgresFleetTest, Undisturbed) {
  start_engine();
  start_nodes(3);
  run(true, [] { pass(1'500); });
  expect_coherent();
  EXPECT_EQ(load_->counts.errors.load(), 0U);
  EXPECT_EQ(load_->counts.write_errors.load(), 0U);
  EXPECT_GT(load_->counts.near.load(), 0U);
}

TEST_F(PostgresFleetTest, TheLogIsCutAndTheEngineIsFlushed) {
  start_engine();
  start_nodes(3);
  run(false, [&] {
    for (int i = 0; i < 3; ++i) {
      pass(300);
      kill_walsenders();
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

// ---- where the log may not be read ----

class PostgresTriggerTest : public PostgresFleetTest {
 protected:
  std::unique_ptr<Truth> make_truth() override {
    return std::make_unique<PostgresTruth>(PostgresTruth::Means::triggers);
  }
};

TEST_F(PostgresTriggerTest, UndisturbedAndAloneToo) {
  for (const bool alone : {false, true}) {
    nodes_.clear();
    if (alone)
      start_nodes(1, {}, "embedded:");
    else {
      start_engine();
      start_nodes(3);
    }
    run(true, [] { pass(1'500); });
    expect_coherent();
    EXPECT_EQ(load_->counts.errors.load(), 0U);
    EXPECT_EQ(load_->counts.write_errors.load(), 0U);
    EXPECT_GT(load_->counts.near.load(), 0U);
  }
}

TEST_F(PostgresTriggerTest, ConnectionsBreakAndTheEngineIsFlushed) {
  start_engine();
  start_nodes(3);
  run(false, [&] {
    for (int i = 0; i < 3; ++i) {
      pass(300);
      sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = "
          "current_database() AND pid <> pg_backend_pid() AND query LIKE '%_change%' OR query LIKE "
          "'%hashtextextended%' AND pid <> pg_backend_pid()");
      pass(300);
      engine_->call({"FLUSHALL"});
    }
    pass(600);
  });
  expect_coherent();
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
    const std::int64_t wanted = written(998);
    while (version_in(get(client, "e:999").value) != wanted) poll(nullptr, 0, 5);
  }
};

TEST_F(PostgresLoneNodeTest, Undisturbed) {
  run(true, [] { pass(1'000); });
  expect_coherent();
  EXPECT_EQ(load_->counts.errors.load(), 0U);
  EXPECT_GT(load_->counts.near.load(), 0U);
}

TEST_F(PostgresLoneNodeTest, TheLogIsCut) {
  run(false, [&] {
    for (int i = 0; i < 3; ++i) {
      pass(300);
      kill_walsenders();
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
