#include "source/postgres/pgoutput.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "source/postgres/pgoutput_testing.h"

namespace larder::source::postgres {
namespace {

using namespace testing;  // NOLINT
using pgoutput::Field;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr TimeUs kAt = 1'700'000'000 * kSecond + 7;

// One of each kind.
std::vector<std::string> all_messages() {
  return {begin(0x10, 7, kAt),
          commit(0x10, 0x20, kAt),
          Bytes("O").u64(3).text("elsewhere").str(),
          relation(1, "public", "item", 'd', {"*id", "name", "grp"}),
          Bytes("Y").u32(600).text("public").text("mood").str(),
          insert(1, {"7", std::nullopt, ""}),
          update(1, {"7", kUnchanged, "x"}),
          update(1, 'K', {"6", std::nullopt, std::nullopt}, {"7", "a", "b"}),
          update(1, 'O', {"6", "x", std::nullopt}, {"7", "a", "b"}),
          erase(1, 'K', {"6", std::nullopt, std::nullopt}),
          erase(1, 'O', {"6", "x", "y"}),
          truncate({1, 2}),
          message(true, 0x30, "larder", std::string("a\0b", 3))};
}

template <class T>
T parsed(const std::string& bytes) {
  // Views into `bytes`, as for the caller: it has to outlive what is parsed.
  auto message = pgoutput::parse_message(bytes);
  EXPECT_TRUE(message) << message.error().message;
  if (!message || !std::holds_alternative<T>(*message)) {
    ADD_FAILURE() << "another kind of message";
    return {};
  }
  return std::get<T>(*message);
}

TEST(Lsn, Text) {
  EXPECT_EQ(lsn_text(0x16'B374D848), "16/B374D848");
  EXPECT_EQ(lsn_text(0), "0/0");
  EXPECT_EQ(parse_lsn("16/B374D848"), 0x16'B374D848);
  EXPECT_EQ(parse_lsn("FFFFFFFF/FFFFFFFF"), ~Lsn{0});
  for (const char* wrong :
       {"", "/", "1", "1/", "/1", "1/2/3", "1/123456789", "g/1", "-1/1", "1/ 2"})
    EXPECT_EQ(parse_lsn(wrong), std::nullopt) << wrong;
}

TEST(Frame, Kinds) {
  const std::string data = Bytes("w").u64(5).u64(9).time(kAt).raw("payload").str();
  const auto frame = parse_frame(data);
  ASSERT_TRUE(frame);
  const auto& log = std::get<XLogData>(*frame);
  EXPECT_EQ(log.start, 5U);
  EXPECT_EQ(log.end, 9U);
  EXPECT_EQ(log.sent_at, kAt);
  EXPECT_EQ(log.payload, "payload");

  const std::string ping = Bytes("k").u64(9).time(kAt).u8(1).str();
  const auto alive = parse_frame(ping);
  ASSERT_TRUE(alive);
  EXPECT_EQ(std::get<Keepalive>(*alive).end, 9U);
  EXPECT_TRUE(std::get<Keepalive>(*alive).reply_wanted);
  EXPECT_FALSE(parse_frame(ping + "x"));
  for (std::size_t size = 0; size < ping.size(); ++size)
    EXPECT_FALSE(parse_frame(ping.substr(0, size))) << size;
  for (std::size_t size = 0; size < 25; ++size)
    EXPECT_FALSE(parse_frame(data.substr(0, size))) << size;
  EXPECT_FALSE(parse_frame("x"));
}

TEST(Frame, TimesThatOverflowAreRefused) {
  EXPECT_FALSE(parse_frame(Bytes("k").u64(9).u64(INT64_MAX).u8(0).str()));
  EXPECT_TRUE(parse_frame(Bytes("k").u64(9).u64(0).u8(0).str()));
}

TEST(Frame, StatusUpdate) {
  EXPECT_EQ(status_update(0x20, 0x10, kAt, true),
            Bytes("r").u64(0x20).u64(0x10).u64(0x10).time(kAt).u8(1).str());
}

TEST(Message, TransactionsAndTables) {
  const std::string started = begin(0x10, 7, kAt);
  const auto first = parsed<pgoutput::Begin>(started);
  EXPECT_EQ(first.commit, 0x10U);
  EXPECT_EQ(first.xid, 7U);
  EXPECT_EQ(first.committed_at, kAt);
  const std::string ended = commit(0x10, 0x20, kAt);
  EXPECT_EQ(parsed<pgoutput::Commit>(ended).end, 0x20U);

  const std::string bytes = relation(1, "public", "item", 'i', {"*id", "name"});
  const auto table = parsed<pgoutput::Relation>(bytes);
  EXPECT_EQ(table.id, 1U);
  EXPECT_EQ(table.schema, "public");
  EXPECT_EQ(table.name, "item");
  EXPECT_EQ(table.identity, 'i');
  ASSERT_EQ(table.columns.size(), 2U);
  EXPECT_TRUE(table.columns[0].key);
  EXPECT_EQ(table.columns[0].name, "id");
  EXPECT_FALSE(table.columns[1].key);
  EXPECT_EQ(table.columns[1].type, 25U);
}

TEST(Message, Rows) {
  const std::string bytes = update(1, 'K', {"6", std::nullopt}, {"7", kUnchanged});
  const auto changed = parsed<pgoutput::Update>(bytes);
  ASSERT_TRUE(changed.old);
  EXPECT_FALSE(changed.old->whole);
  EXPECT_EQ(changed.old->row[0].text, "6");
  EXPECT_EQ(changed.old->row[1].kind, Field::Kind::null);
  EXPECT_EQ(changed.row[0].kind, Field::Kind::value);
  EXPECT_EQ(changed.row[1].kind, Field::Kind::unchanged);
  const std::string gone = erase(1, 'O', {"6", ""});
  EXPECT_TRUE(parsed<pgoutput::Delete>(gone).old.whole);
  EXPECT_EQ(parsed<pgoutput::Delete>(gone).old.row[1].kind, Field::Kind::value);
  const std::string cleared = truncate({3, 4});
  EXPECT_THAT(parsed<pgoutput::Truncate>(cleared).relations, ElementsAre(3, 4));
  const std::string said = message(false, 9, "larder", "text");
  const auto logical = parsed<pgoutput::LogicalMessage>(said);
  EXPECT_FALSE(logical.transactional);
  EXPECT_EQ(logical.lsn, 9U);
  EXPECT_EQ(logical.prefix, "larder");
  EXPECT_EQ(logical.content, "text");
}

TEST(Message, CutAnywhereItIsRefused) {
  for (const std::string& whole : all_messages()) {
    ASSERT_TRUE(pgoutput::parse_message(whole)) << whole.front();
    EXPECT_FALSE(pgoutput::parse_message(whole + 'x')) << whole.front();
    for (std::size_t size = 0; size < whole.size(); ++size) {
      const auto cut = pgoutput::parse_message(whole.substr(0, size));
      ASSERT_FALSE(cut) << whole.front() << " cut at " << size;
      EXPECT_EQ(cut.error().code, ErrorCode::source_down);
    }
  }
}

TEST(Message, CountsAreCheckedAgainstWhatIsThere) {
  EXPECT_FALSE(pgoutput::parse_message(Bytes("I").u32(1).raw("N").u16(0xffff).str()));
  EXPECT_FALSE(pgoutput::parse_message(Bytes("T").u32(0xffffffff).u8(0).str()));
  EXPECT_FALSE(
      pgoutput::parse_message(Bytes("R").u32(1).text("a").text("b").raw("d").u16(0xffff).str()));
  const Cells many(pgoutput::kMaxColumns + 1, "");
  EXPECT_FALSE(pgoutput::parse_message(insert(1, many)));
  EXPECT_TRUE(pgoutput::parse_message(insert(1, Cells(pgoutput::kMaxColumns, ""))));
  EXPECT_FALSE(pgoutput::parse_message(
      Bytes("I").u32(1).raw("N").u16(1).raw("t").u32(0xffffffff).raw("x").str()));
}

TEST(Message, UnknownKindsAreRefused) {
  EXPECT_THAT(pgoutput::parse_message("Zzz").error().message, HasSubstr("'Z'"));
  EXPECT_FALSE(pgoutput::parse_message("\x01"));
  EXPECT_FALSE(pgoutput::parse_message(Bytes("I").u32(1).raw("K").raw(tuple({"1"})).str()));
  EXPECT_FALSE(pgoutput::parse_message(Bytes("D").u32(1).raw("N").raw(tuple({"1"})).str()));
  EXPECT_FALSE(pgoutput::parse_message(Bytes("I").u32(1).raw("N").u16(1).raw("b").u32(0).str()));
  EXPECT_FALSE(pgoutput::parse_message(relation(1, "a", "b", '?', {"c"})));
}

}  // namespace
}  // namespace larder::source::postgres
