// What every source must do, whatever database is behind it.
//
// A source that passes names a harness type:
//
//   struct MyHarness {
//     using Loop = TestLoop;                  // or RuntimeLoop, where there are sockets
//     static constexpr bool kFeed = true;     // does the feed deliver what others change?
//     static constexpr bool kChanges = true;  // do transactions tell the rows that they changed?
//     static constexpr bool kLeavesOut = true;  // does the feed leave out what the source wrote?
//     // A fresh database with the table item(id integer key, name text, grp integer), and in it
//     // the rows (1, 'one', 10), (2, 'two', 10), (3, NULL, 20). Two connections at least.
//     MyHarness();
//     static bool available();                // optional: else its tests are skipped
//     Result<std::unique_ptr<Source>> open(std::vector<LoadStatement>, std::vector<WatchedTable>);
//     void foreign(const std::string& sql);     // another program's statement, committed
//   };
//   INSTANTIATE_TYPED_TEST_SUITE_P(Mine, SourceConformance, MyHarness);
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "source/source.h"
#include "source/testing.h"

namespace larder::source::testing {

inline TimeUs soon() { return monotonic_now_us() + 20 * kSecond; }

inline Params id_of(std::int64_t id) { return {{"id", id}}; }

template <class Harness>
class SourceConformance : public ::testing::Test {
 protected:
  static constexpr std::uint32_t kItem = 0, kGroup = 1, kName = 2;

  void SetUp() override {
    if constexpr (requires { Harness::available(); })
      if (!Harness::available()) GTEST_SKIP() << "the database's server is not installed";
    harness_.emplace();
    std::vector<LoadStatement> statements = {
        {kItem,
         "SELECT id, name, grp FROM item WHERE id = :id",
         ResultShape::object,
         {"id"},
         {"grp"}},
        {kGroup,
         "SELECT id, name FROM item WHERE grp = :grp ORDER BY id DESC",
         ResultShape::array,
         {"grp"},
         {}},
        {kName, "SELECT name FROM item WHERE id = :id", ResultShape::value, {"id"}, {}}};
    std::vector<WatchedTable> watched = {{7, "item", {"id"}}, {8, "item", {"grp", "id"}}};
    auto opened = harness_->open(std::move(statements), std::move(watched));
    ASSERT_TRUE(opened.has_value()) << opened.error().message;
    source_ = std::move(*opened);
  }
  void TearDown() override {
    if (feeding_) loop_.join(feed_);
  }

  Result<Loaded> load(std::uint32_t statement, std::vector<Params> keys) {
    return loop_.run(source_->load(statement, std::move(keys), soon()));
  }
  std::string load_one(std::uint32_t statement, Params key) {
    auto loaded = load(statement, {std::move(key)});
    if (!loaded) return "error: " + loaded.error().message;
    if (!loaded->rows[0]) return "error: " + loaded->rows[0].error().message;
    return loaded->rows[0]->found ? loaded->rows[0]->value : "absent";
  }
  Result<std::unique_ptr<Transaction>> write(std::vector<Statement> statements) {
    return loop_.run(source_->write(std::move(statements), soon()));
  }
  Statement set_name(std::int64_t id, std::string name) {
    return {.sql = "UPDATE item SET name = :name WHERE id = :id",
            .params = {{"id", id}, {"name", std::move(name)}}};
  }
  void start_feed() {
    feeding_ = true;
    loop_.spawn(feed_, source_->run_feed(feed_, sink_.sink()));
  }
  // Until the feed has delivered everything that is committed now.
  void catch_up() {
    const TimeUs now = monotonic_now_us();
    loop_.run_until([&] { return sink_.heartbeat() > now; });
  }

  typename Harness::Loop loop_;
  std::optional<Harness> harness_;
  std::unique_ptr<Source> source_;
  Sink sink_;
  TaskGroup feed_;
  bool feeding_ = false;
};

TYPED_TEST_SUITE_P(SourceConformance);

TYPED_TEST_P(SourceConformance, LoadsOneRow) {
  EXPECT_EQ(this->load_one(this->kItem, id_of(1)), R"({"id":1,"name":"one","grp":10})");
  EXPECT_EQ(this->load_one(this->kItem, id_of(3)), R"({"id":3,"name":null,"grp":20})");
  EXPECT_EQ(this->load_one(this->kItem, id_of(4)), "absent");
  EXPECT_EQ(this->load_one(this->kName, id_of(2)), "two");
  EXPECT_EQ(this->load_one(this->kName, id_of(3)), "absent");
}

TYPED_TEST_P(SourceConformance, LoadsAllRowsInTheirOrder) {
  EXPECT_EQ(this->load_one(this->kGroup, {{"grp", std::int64_t{10}}}),
            R"([{"id":2,"name":"two"},{"id":1,"name":"one"}])");
  EXPECT_EQ(this->load_one(this->kGroup, {{"grp", std::int64_t{99}}}), "[]");
  const auto loaded = this->load(
      this->kGroup,
      {{{"grp", std::int64_t{20}}}, {{"grp", std::int64_t{5}}}, {{"grp", std::int64_t{10}}}});
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded->rows[0]->value, R"([{"id":3,"name":null}])");
  EXPECT_EQ(loaded->rows[1]->value, "[]");
  EXPECT_EQ(loaded->rows[2]->value, R"([{"id":2,"name":"two"},{"id":1,"name":"one"}])");
}

TYPED_TEST_P(SourceConformance, LoadsManyKeys) {
  std::vector<Params> keys;
  for (std::int64_t i = 0; i < 700; ++i) keys.push_back(id_of(i % 5));
  const auto loaded = this->load(this->kItem, keys);
  ASSERT_TRUE(loaded) << loaded.error().message;
  ASSERT_EQ(loaded->rows.size(), keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    ASSERT_TRUE(loaded->rows[i]);
    const bool found = i % 5 >= 1 && i % 5 <= 3;
    EXPECT_EQ(loaded->rows[i]->found, found) << i;
    if (!found) continue;
    EXPECT_EQ(loaded->rows[i]->key_values[0], std::to_string(i % 5));
    EXPECT_EQ(loaded->rows[i]->tag_values[0], i % 5 == 3 ? "20" : "10");
  }
}

TYPED_TEST_P(SourceConformance, AFailedKeyFailsAlone) {
  const auto loaded = this->load(this->kItem, {id_of(1), {{"other", std::int64_t{1}}}, id_of(2)});
  ASSERT_TRUE(loaded);
  EXPECT_TRUE(loaded->rows[0]);
  EXPECT_FALSE(loaded->rows[1]);
  EXPECT_TRUE(loaded->rows[2]);
}

TYPED_TEST_P(SourceConformance, DeadlinesThatHavePassed) {
  const auto loaded =
      this->loop_.run(this->source_->load(this->kItem, {id_of(1)}, monotonic_now_us() - kSecond));
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().code, ErrorCode::timeout);
  const auto written =
      this->loop_.run(this->source_->write({this->set_name(1, "x")}, monotonic_now_us() - kSecond));
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, ErrorCode::timeout);
  EXPECT_EQ(this->load_one(this->kName, id_of(1)), "one");
}

TYPED_TEST_P(SourceConformance, WritesAreSeenAfterCommitOnly) {
  auto open = this->write({this->set_name(1, "uno")});
  ASSERT_TRUE(open) << open.error().message;
  EXPECT_THAT((*open)->affected(), ::testing::ElementsAre(1));
  EXPECT_EQ(this->load_one(this->kName, id_of(1)), "one");
  ASSERT_TRUE(this->loop_.run((*open)->commit()));
  EXPECT_EQ(this->load_one(this->kName, id_of(1)), "uno");
}

TYPED_TEST_P(SourceConformance, ADestroyedTransactionIsRolledBack) {
  this->write({this->set_name(1, "uno")});
  EXPECT_EQ(this->load_one(this->kName, id_of(1)), "one");
  auto next = this->write({this->set_name(2, "due")});
  ASSERT_TRUE(next) << next.error().message;
  ASSERT_TRUE(this->loop_.run((*next)->commit()));
  EXPECT_EQ(this->load_one(this->kName, id_of(1)), "one");
  EXPECT_EQ(this->load_one(this->kName, id_of(2)), "due");
}

TYPED_TEST_P(SourceConformance, AllStatementsOrNone) {
  auto open = this->write({this->set_name(1, "uno"),
                           {.sql = "INSERT INTO item(id, name) VALUES (:id, :name)",
                            .params = {{"id", std::int64_t{2}}, {"name", std::string("twice")}}}});
  ASSERT_FALSE(open);
  EXPECT_EQ(open.error().code, ErrorCode::source_refused);
  EXPECT_EQ(this->load_one(this->kName, id_of(1)), "one");
}

TYPED_TEST_P(SourceConformance, AMissingParameterIsAnError) {
  auto open = this->write({{.sql = "UPDATE item SET name = :name WHERE id = :id",
                            .params = {{"id", std::int64_t{1}}}}});
  ASSERT_FALSE(open);
  EXPECT_THAT(open.error().message, ::testing::HasSubstr("name"));
}

TYPED_TEST_P(SourceConformance, KeepsTheValueThatIsAskedFor) {
  auto open = this->write(
      {this->set_name(1, "uno"),
       {.sql = "SELECT name FROM item WHERE id = :id", .params = id_of(1), .wants_value = true}});
  ASSERT_TRUE(open) << open.error().message;
  EXPECT_THAT((*open)->values(),
              ::testing::ElementsAre(std::nullopt, std::optional<std::string>("uno")));
  EXPECT_THAT((*open)->affected(), ::testing::ElementsAre(1, 0));
}

// The heart of the fill protocol: who has not seen a transaction must not claim to.
TYPED_TEST_P(SourceConformance, SnapshotsSeeATransactionOnlyAfterItsEnd) {
  const auto before = this->load(this->kItem, {id_of(1)});
  ASSERT_TRUE(before && before->snapshot.known());
  auto open = this->write({this->set_name(1, "uno")});
  ASSERT_TRUE(open);
  const policy::TxnId x = (*open)->x();
  EXPECT_EQ((*open)->source_id(), before->snapshot.source_id);
  EXPECT_FALSE(before->snapshot.sees(x));
  EXPECT_FALSE(this->load(this->kItem, {id_of(1)})->snapshot.sees(x));
  for (const RowChange& change : (*open)->changes()) {
    EXPECT_LE(change.x, x);
    EXPECT_FALSE(before->snapshot.sees(change.x));
  }
  ASSERT_TRUE(this->loop_.run((*open)->commit()));
  const auto after = this->load(this->kItem, {id_of(1)});
  EXPECT_TRUE(after->snapshot.sees(x));
  EXPECT_EQ(after->snapshot.source_id, before->snapshot.source_id);
}

TYPED_TEST_P(SourceConformance, ARolledBackTransactionIsSeenAsEnded) {
  policy::TxnId x = 0;
  {
    auto open = this->write({this->set_name(1, "uno")});
    ASSERT_TRUE(open);
    x = (*open)->x();
  }
  // The next write waits for the roll back; without it nothing says when that is done.
  auto next = this->write({});
  ASSERT_TRUE(next);
  EXPECT_TRUE(this->load(this->kItem, {id_of(1)})->snapshot.sees(x));
}

TYPED_TEST_P(SourceConformance, AWriteWithoutChangesHasANumberThatIsSeen) {
  auto open = this->write({this->set_name(999, "nobody")});
  ASSERT_TRUE(open);
  EXPECT_THAT((*open)->affected(), ::testing::ElementsAre(0));
  const policy::TxnId x = (*open)->x();
  EXPECT_FALSE(this->load(this->kItem, {id_of(1)})->snapshot.sees(x));
  ASSERT_TRUE(this->loop_.run((*open)->commit()));
  EXPECT_TRUE(this->load(this->kItem, {id_of(1)})->snapshot.sees(x));
}

TYPED_TEST_P(SourceConformance, TransactionsTellTheirChanges) {
  if (!TypeParam::kChanges) GTEST_SKIP() << "the write path names what it wrote";
  auto open = this->write({{.sql = "UPDATE item SET grp = 30 WHERE id = :id", .params = id_of(1)},
                           {.sql = "DELETE FROM item WHERE id = :id", .params = id_of(3)}});
  ASSERT_TRUE(open) << open.error().message;
  std::set<std::string> changes;
  for (const RowChange& change : (*open)->changes()) changes.insert(Sink::text(change));
  EXPECT_THAT(changes, ::testing::UnorderedElementsAre("7:1", "8:10,1", "8:30,1", "7:3", "8:20,3"));
}

TYPED_TEST_P(SourceConformance, TheFeedDeliversWhatOthersChange) {
  this->start_feed();
  if (!TypeParam::kFeed) {
    EXPECT_FALSE(this->source_->capabilities().feed);
    EXPECT_NE(this->source_->capabilities().why_no_feed, "");
    this->loop_.run_until([&] { return this->feed_.running() == 0; });
    return;
  }
  EXPECT_TRUE(this->source_->capabilities().feed);
  this->catch_up();
  EXPECT_THAT(this->sink_.changes(), ::testing::IsEmpty());
  this->sink_.batches.clear();  // it may begin with everything
  this->harness_->foreign("UPDATE item SET name = 'x' WHERE id = 2");
  this->harness_->foreign("INSERT INTO item(id, name, grp) VALUES (4, 'four', NULL)");
  this->catch_up();
  EXPECT_THAT(this->sink_.changes(), ::testing::ElementsAre("7:2", "8:10,2", "7:4", "8:NULL,4"));
  EXPECT_FALSE(this->sink_.everything());
  // What was delivered is ended in the eyes of a load, or will be: never the other way round.
  const auto loaded = this->load(this->kItem, {id_of(2)});
  for (const auto& batch : this->sink_.batches) {
    EXPECT_EQ(batch.source_id, loaded->snapshot.source_id);
    for (const auto& change : batch.changes) EXPECT_TRUE(loaded->snapshot.sees(change.x));
  }
}

TYPED_TEST_P(SourceConformance, TheFeedLeavesOutOurOwnWrites) {
  if (!TypeParam::kFeed) GTEST_SKIP() << "no feed";
  if (!TypeParam::kLeavesOut) GTEST_SKIP() << "the feed tells more than the write path knows";
  this->start_feed();
  for (int i = 0; i < 20; ++i) {
    auto open = this->write({this->set_name(1, std::to_string(i))});
    ASSERT_TRUE(open);
    ASSERT_TRUE(this->loop_.run((*open)->commit()));
    if (i % 5 == 0) this->harness_->foreign("UPDATE item SET name = 'x' WHERE id = 2");
  }
  this->catch_up();
  EXPECT_THAT(this->sink_.changes(), ::testing::ElementsAre("7:2", "8:10,2", "7:2", "8:10,2", "7:2",
                                                            "8:10,2", "7:2", "8:10,2"));
}

TYPED_TEST_P(SourceConformance, WhatTheSinkRefusesIsDeliveredAgain) {
  if (!TypeParam::kFeed) GTEST_SKIP() << "no feed";
  this->sink_.refuse = 3;
  this->start_feed();
  this->catch_up();
  if (TypeParam::kLeavesOut) {
    auto open = this->write({this->set_name(1, "ours")});
    ASSERT_TRUE(open);
    ASSERT_TRUE(this->loop_.run((*open)->commit()));
  }
  this->harness_->foreign("UPDATE item SET name = 'x' WHERE id = 2");
  this->catch_up();
  EXPECT_EQ(this->sink_.refuse, 0);
  EXPECT_THAT(this->sink_.changes(), ::testing::ElementsAre("7:2", "8:10,2"));
}

TYPED_TEST_P(SourceConformance, AFeedEndsAtOnce) {
  this->start_feed();
  if (TypeParam::kFeed) this->catch_up();
  this->loop_.join(this->feed_);
  this->feeding_ = false;
  EXPECT_EQ(this->feed_.running(), 0U);
}

REGISTER_TYPED_TEST_SUITE_P(SourceConformance, LoadsOneRow, LoadsAllRowsInTheirOrder, LoadsManyKeys,
                            AFailedKeyFailsAlone, DeadlinesThatHavePassed,
                            WritesAreSeenAfterCommitOnly, ADestroyedTransactionIsRolledBack,
                            AllStatementsOrNone, AMissingParameterIsAnError,
                            KeepsTheValueThatIsAskedFor, SnapshotsSeeATransactionOnlyAfterItsEnd,
                            ARolledBackTransactionIsSeenAsEnded,
                            AWriteWithoutChangesHasANumberThatIsSeen, TransactionsTellTheirChanges,
                            TheFeedDeliversWhatOthersChange, TheFeedLeavesOutOurOwnWrites,
                            WhatTheSinkRefusesIsDeliveredAgain, AFeedEndsAtOnce);

}  // namespace larder::source::testing
