#include "source/postgres/replication.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "source/postgres/pgoutput_testing.h"

namespace larder::source::postgres {
namespace {

using namespace testing;  // NOLINT
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::uint32_t kItem = 100;
constexpr std::uint32_t kOther = 101;
constexpr std::uint32_t kParts = 102;

std::string text(const RowChange& change) {
  std::string out = std::to_string(change.watched_id) + ":";
  for (std::size_t i = 0; i < change.values.size(); ++i)
    out += (i > 0 ? "," : "") + change.values[i].value_or("NULL");
  return out;
}

class ChangeLogTest : public ::testing::Test {
 protected:
  static std::vector<TableName> tables() {
    return {{{7, "item", {"id"}}, "public", "item"},
            {{8, "item", {"grp", "id"}}, "public", "item"},
            {{9, "parts", {"grp"}}, "public", "parts", true}};
  }
  void SetUp() override {
    log_.begin_stream(1'000);
    log_.seek(0x100);
  }
  Result<void> take(const std::string& bytes) {
    const auto message = pgoutput::parse_message(bytes);
    EXPECT_TRUE(message);
    return log_.take(*message);
  }
  // One transaction of these messages.
  void transaction(const std::vector<std::string>& messages, std::uint32_t xid = 1'001) {
    ASSERT_TRUE(take(begin(at_, xid, 5 * kSecond)));
    for (const std::string& message : messages) {
      const auto taken = take(message);
      ASSERT_TRUE(taken) << taken.error().message;
    }
    ASSERT_TRUE(take(commit(at_, at_ + 0x10, 5 * kSecond)));
    at_ += 0x20;
  }
  std::vector<std::string> changes() {
    last_ = log_.next();
    std::vector<std::string> out;
    for (const RowChange& change : last_.batch.changes) out.push_back(text(change));
    return out;
  }
  static std::string item(char identity = 'd') {
    return identity == 'f' ? relation(kItem, "public", "item", 'f', {"*id", "*name", "*grp"})
                           : relation(kItem, "public", "item", identity, {"*id", "name", "grp"});
  }

  ChangeLog log_{{.tables = tables(), .token = "me", .most_changes = 20}};
  ChangeLog::Batch last_;
  Lsn at_ = 0x200;
};

TEST(Widen, NearestToWhatIsKnown) {
  constexpr policy::TxnId kEpoch = policy::TxnId{1} << 32;
  EXPECT_EQ(widen(1'001, 1'000), 1'001U);
  EXPECT_EQ(widen(990, 1'000), 990U);
  EXPECT_EQ(widen(5, 3 * kEpoch - 5), 3 * kEpoch + 5);
  EXPECT_EQ(widen(0xffff'fff0, 3 * kEpoch + 5), 3 * kEpoch - 16);
  EXPECT_EQ(widen(0xffff'fff0, 5), 0xffff'fff0U) << "there was no epoch before the first";
}

TEST(Heartbeat, Text) {
  const std::string text = heartbeat_text("me", 123) + "456";
  const auto parsed = parse_heartbeat(text);
  ASSERT_TRUE(parsed);
  EXPECT_EQ(parsed->token, "me");
  EXPECT_EQ(parsed->at, 123);
  EXPECT_EQ(parsed->xmin, 456U);
  for (const char* wrong : {"", "1", "1 me", "1 me 123", "1 me 123 ", "2 me 123 456", "1 me x 456",
                            "1 me 123 456x", "1 me 123 -4"})
    EXPECT_FALSE(parse_heartbeat(wrong)) << wrong;
}

TEST_F(ChangeLogTest, WholeTransactionsInTheirOrder) {
  EXPECT_FALSE(log_.ready());
  ASSERT_TRUE(take(begin(0x200, 1'001, 5 * kSecond)));
  ASSERT_TRUE(take(item('f')));
  ASSERT_TRUE(take(insert(kItem, {"1", "one", "10"})));
  EXPECT_TRUE(log_.in_transaction());
  EXPECT_FALSE(log_.ready()) << "nothing before its end";
  ASSERT_TRUE(take(update(kItem, 'O', {"1", "one", "10"}, {"1", "uno", "10"})));
  ASSERT_TRUE(take(update(kItem, 'O', {"1", "uno", "10"}, {"1", "uno", "20"})));
  ASSERT_TRUE(take(erase(kItem, 'O', {"2", "two", std::nullopt})));
  ASSERT_TRUE(take(commit(0x200, 0x210, 5 * kSecond)));
  EXPECT_TRUE(log_.ready());
  EXPECT_EQ(log_.waiting(), 9U);
  EXPECT_THAT(changes(), ElementsAre("7:1", "8:10,1", "7:1", "8:10,1", "7:1", "8:10,1", "8:20,1",
                                     "7:2", "8:NULL,2"));
  EXPECT_EQ(last_.batch.from, 0x100U);
  EXPECT_EQ(last_.batch.to, 0x210U);
  EXPECT_EQ(last_.batch.committed_at, 5 * kSecond);
  EXPECT_EQ(last_.batch.changes.front().x, 1'001U);
  EXPECT_FALSE(last_.batch.everything);
  EXPECT_FALSE(log_.ready());
  EXPECT_EQ(log_.position(), 0x210U);
  EXPECT_THAT(changes(), IsEmpty());
  EXPECT_EQ(last_.batch.from, last_.batch.to);
}

TEST_F(ChangeLogTest, AnIdentityThatCoversTheColumnsIsEnough) {
  const std::string both = relation(kItem, "public", "item", 'i', {"*id", "name", "*grp"});
  transaction({both, update(kItem, {"1", "x", "10"}),
               update(kItem, 'K', {"1", std::nullopt, "10"}, {"2", "x", "20"}),
               erase(kItem, 'K', {"2", std::nullopt, "20"})});
  EXPECT_THAT(changes(),
              ElementsAre("7:1", "8:10,1", "7:1", "7:2", "8:10,1", "8:20,2", "7:2", "8:20,2"));
  EXPECT_FALSE(last_.batch.everything);
}

TEST_F(ChangeLogTest, WhatTheIdentityDoesNotCoverIsEverything) {
  transaction({item('d'), insert(kItem, {"1", "one", "10"})});
  EXPECT_THAT(changes(), ElementsAre("7:1", "8:10,1"));
  transaction({update(kItem, {"1", "one", "20"})});
  EXPECT_THAT(changes(), IsEmpty());
  EXPECT_TRUE(last_.batch.everything);
  ASSERT_EQ(last_.why.size(), 1U);
  EXPECT_THAT(last_.why[0], HasSubstr("ALTER TABLE public.item REPLICA IDENTITY FULL"));
  transaction({erase(kItem, 'K', {"1", std::nullopt, std::nullopt})});
  EXPECT_THAT(changes(), IsEmpty());
  EXPECT_TRUE(last_.batch.everything);
  EXPECT_THAT(last_.why, IsEmpty()) << "said once";
  // The table is described again after it was changed.
  transaction({item('f'), update(kItem, 'O', {"1", "one", "20"}, {"1", "one", "30"})});
  EXPECT_THAT(changes(), ElementsAre("7:1", "8:20,1", "8:30,1"));
  EXPECT_FALSE(last_.batch.everything);
}

TEST_F(ChangeLogTest, WithoutAnIdentityOldValuesAreUnknown) {
  transaction({relation(kItem, "public", "item", 'n', {"id", "name", "grp"}),
               update(kItem, {"1", "one", "20"})});
  changes();
  EXPECT_TRUE(last_.batch.everything);
}

TEST_F(ChangeLogTest, LargeValuesThatWereNotTouched) {
  transaction({item('f'), update(kItem, 'O', {"1", "x", "10"}, {"1", kUnchanged, kUnchanged})});
  EXPECT_THAT(changes(), ElementsAre("7:1", "8:10,1")) << "the old row has it";
  transaction({item('d'), update(kItem, {kUnchanged, "x", "10"})});
  changes();
  EXPECT_TRUE(last_.batch.everything) << "nobody has it";
}

TEST_F(ChangeLogTest, Truncate) {
  transaction({item('f'), relation(kOther, "public", "other", 'd', {"*id"}), truncate({kOther})});
  changes();
  EXPECT_FALSE(last_.batch.everything);
  transaction({insert(kItem, {"1", "one", "10"}), truncate({kOther, kItem})});
  EXPECT_THAT(changes(), IsEmpty());
  EXPECT_TRUE(last_.batch.everything);
  EXPECT_THAT(last_.why, ElementsAre(HasSubstr("TRUNCATE of public.item")));
}

TEST_F(ChangeLogTest, ColumnsComeAndGo) {
  transaction({relation(kItem, "public", "item", 'f', {"*new", "*grp", "*id"}),
               insert(kItem, {"x", "10", "1"})});
  EXPECT_THAT(changes(), ElementsAre("7:1", "8:10,1")) << "by name, not by place";
  transaction(
      {relation(kItem, "public", "item", 'f', {"*id", "*category"}), insert(kItem, {"1", "10"})});
  EXPECT_THAT(changes(), IsEmpty());
  EXPECT_TRUE(last_.batch.everything);
  EXPECT_THAT(last_.why, ElementsAre(HasSubstr("public.item has no column grp any more")));
  transaction({insert(kItem, {"1", "10"})});
  changes();
  EXPECT_TRUE(last_.batch.everything) << "as long as it is so";
  EXPECT_THAT(last_.why, IsEmpty());
}

TEST_F(ChangeLogTest, OtherTablesAndSchemasAreNotOurs) {
  transaction({relation(kOther, "private", "item", 'd', {"*id", "grp"}), insert(kOther, {"1", "2"}),
               erase(kOther, 'K', {"1", std::nullopt})});
  EXPECT_THAT(changes(), IsEmpty());
  EXPECT_FALSE(last_.batch.everything);
  EXPECT_EQ(last_.batch.to, 0x210U);
  EXPECT_EQ(last_.batch.committed_at, 0);
}

TEST_F(ChangeLogTest, APartitionMayLogLessThanItsTableSays) {
  const std::string parts = relation(kParts, "public", "parts", 'f', {"*id", "*grp"});
  transaction({parts, update(kParts, 'O', {"1", "10"}, {"1", "20"})});
  EXPECT_THAT(changes(), ElementsAre("9:10", "9:20"));
  transaction({update(kParts, 'O', {"1", std::nullopt}, {"1", "20"})});
  changes();
  EXPECT_TRUE(last_.batch.everything);
  transaction({update(kParts, {"1", "20"})});
  changes();
  EXPECT_TRUE(last_.batch.everything);
}

TEST_F(ChangeLogTest, LargeTransactionsAreEverythingAndStaySmall) {
  std::vector<std::string> messages = {item('d')};
  for (int i = 0; i < 1'000; ++i) messages.push_back(insert(kItem, {std::to_string(i), "x", "10"}));
  transaction(messages);
  transaction({insert(kItem, {"1", "x", "10"})});
  EXPECT_EQ(log_.waiting(), 0U) << "what comes behind it in the same batch is part of everything";
  EXPECT_THAT(changes(), IsEmpty());
  EXPECT_TRUE(last_.batch.everything);
  EXPECT_EQ(last_.batch.to, 0x230U);
  EXPECT_THAT(last_.why, ElementsAre(HasSubstr("more than 20 changes")));
  transaction({insert(kItem, {"1", "x", "10"})});
  EXPECT_THAT(changes(), ElementsAre("7:1", "8:10,1"));
}

TEST_F(ChangeLogTest, WhatHasBeenDeliveredIsPassedOver) {
  log_.seek(0x220);
  transaction({item('f'), insert(kItem, {"1", "x", "10"})});  // ends at 0x210
  EXPECT_FALSE(log_.ready());
  transaction({insert(kItem, {"2", "x", "10"})});  // begins at 0x220
  EXPECT_THAT(changes(), ElementsAre("7:2", "8:10,2"));
  EXPECT_EQ(last_.batch.from, 0x220U);
  // While one is being read.
  ASSERT_TRUE(take(begin(0x240, 1'003)));
  ASSERT_TRUE(take(insert(kItem, {"3", "x", "10"})));
  log_.seek(0x260);
  ASSERT_TRUE(take(commit(0x240, 0x250)));
  EXPECT_FALSE(log_.ready());
}

TEST_F(ChangeLogTest, ANewStreamBeginsBetweenTransactions) {
  ASSERT_TRUE(take(begin(0x200, 1'001)));
  ASSERT_TRUE(take(item()));
  log_.begin_stream(1'000);
  EXPECT_FALSE(log_.in_transaction());
  ASSERT_TRUE(take(begin(0x200, 1'001)));
  EXPECT_FALSE(take(insert(kItem, {"1", "x", "10"}))) << "tables are described again";
}

TEST_F(ChangeLogTest, Heartbeats) {
  const std::string mine = heartbeat_text("me", 77) + "1005";
  ASSERT_TRUE(take(message(false, 0x300, "larder", mine)));
  EXPECT_TRUE(log_.ready());
  EXPECT_THAT(changes(), IsEmpty());
  EXPECT_EQ(last_.batch.heartbeat, 77);
  EXPECT_EQ(last_.batch.xmin, 1'005U);
  EXPECT_EQ(last_.batch.to, 0x300U);
  // Another node's clock is not ours; a position is a position.
  ASSERT_TRUE(take(message(false, 0x310, "larder", heartbeat_text("you", 99) + "1006")));
  ASSERT_TRUE(take(message(false, 0x320, "other", "text")));
  changes();
  EXPECT_EQ(last_.batch.heartbeat, 0);
  EXPECT_EQ(last_.batch.to, 0x320U);
  // What was passed over says nothing.
  ASSERT_TRUE(take(message(false, 0x310, "larder", mine)));
  EXPECT_FALSE(log_.ready());
  // In a transaction it counts at its end.
  at_ = 0x330;
  ASSERT_TRUE(take(begin(at_, 1'010)));
  ASSERT_TRUE(take(message(true, 0x331, "larder", heartbeat_text("me", 88) + "1007")));
  EXPECT_FALSE(log_.ready());
  ASSERT_TRUE(take(commit(at_, 0x340)));
  changes();
  EXPECT_EQ(last_.batch.heartbeat, 88);
}

TEST_F(ChangeLogTest, KeepalivesMoveThePositionOutsideOfTransactions) {
  log_.take(Keepalive{.end = 0x150});
  EXPECT_TRUE(log_.ready());
  changes();
  EXPECT_EQ(last_.batch.to, 0x150U);
  log_.take(Keepalive{.end = 0x140});
  EXPECT_FALSE(log_.ready());
  ASSERT_TRUE(take(begin(0x200, 1'001)));
  log_.take(Keepalive{.end = 0x400});
  EXPECT_FALSE(log_.ready());
}

TEST_F(ChangeLogTest, WhatIsNoStreamIsRefused) {
  EXPECT_FALSE(take(commit(1, 2)));
  EXPECT_FALSE(take(insert(kItem, {"1"})));
  EXPECT_FALSE(take(truncate({kItem})));
  EXPECT_FALSE(take(message(true, 9, "larder", "")));
  ASSERT_TRUE(take(begin(0x200, 1)));
  EXPECT_FALSE(take(begin(0x200, 1)));
  EXPECT_FALSE(take(message(false, 9, "larder", "")));
  EXPECT_FALSE(take(truncate({kItem})));
  ASSERT_TRUE(take(item()));
  EXPECT_FALSE(take(insert(kItem, {"1"}))) << "columns are missing";
  EXPECT_FALSE(take(commit(0x201, 0x210))) << "another transaction's end";
}

}  // namespace
}  // namespace larder::source::postgres
