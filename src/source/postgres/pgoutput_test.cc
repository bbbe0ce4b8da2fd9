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

// What PostgreSQL 15 sent, in hexadecimal; '~' stands for 2,100 times the letter x.
constexpr const char* kCaptured[] = {
    "42000000000153d6300003042890e4de16000002dd",
    "52000040007075626c6963006974656d006400030169640000000017ffffffff006e616d650000000019"
    "ffffffff006772700000000017ffffffff",
    "49000040004e000374000000013174000000036f6e656e",
    "49000040004e0003740000000132740000000074000000023130",
    "4300000000000153d630000000000153d6600003042890e4de16",
    "42000000000153d6b00003042890e51d99000002de",
    "55000040004e0003740000000132740000000374776f74000000023130",
    "4300000000000153d6b0000000000153d6e00003042890e51d99",
    "42000000000153d7780003042890e53ac1000002df",
    "55000040004b00037400000001326e6e4e0003740000000133740000000374776f74000000023130",
    "4300000000000153d778000000000153d7a80003042890e53ac1",
    "42000000000153d7e80003042890e57932000002e0",
    "44000040004b00037400000001316e6e",
    "4300000000000153d7e8000000000153d8180003042890e57932",
    "42000000000153e2c80003042890e599a7000002e1",
    "52000040077075626c69630077686f6c65006600030169640000000017ffffffff01626f647900000000"
    "19ffffffff016e0000000017ffffffff",
    "49000040074e00037400000001317400000834~740000000130",
    "4300000000000153e2c8000000000153e2f80003042890e599a7",
    "42000000000153ebd80003042890e5b864000002e2",
    "55000040074f00037400000001317400000834~7400000001304e000374000000013175740000000131",
    "4300000000000153ebd8000000000153ec080003042890e5b864",
    "42000000000153f4f80003042890e5b916000002e3",
    "44000040074f00037400000001317400000834~740000000131",
    "4300000000000153f4f8000000000153f5280003042890e5b916",
    "42000000000153f6080003042890e5ba5b000002e4",
    "590000400f7075626c6963006d6f6f6400",
    "52000040137075626c6963007479706564006400020169640000000017ffffffff006d000000400fffff"
    "ffff",
    "49000040134e00027400000001317400000004676c6164",
    "4300000000000153f608000000000153f6380003042890e5ba5b",
    "42000000000153f7180003042890e5bb44000002e5",
    "52000040187075626c6963007061727473006400020169640000000017ffffffff006772700000000017"
    "ffffffff",
    "520000401d7075626c69630070617274735f31006400020169640000000017ffffffff00677270000000"
    "0017ffffffff",
    "49000040184e0002740000000131740000000131",
    "4300000000000153f718000000000153f7480003042890e5bb44",
    "42000000000153f8400003042890e5eef8000002e6",
    "49000040004e0003740000000135740000000466697665740000000135",
    "4d01000000000153f8406c61726465720000000005696e206974",
    "4300000000000153f840000000000153f8780003042890e5eef8",
    "4d00000000000153f8c06c6172646572000000000f3120746f6b656e2031323320343536",
    "420000000001540fb80003042890e60dd4000002e8",
    "52000040007075626c6963006974656d006400030169640000000017ffffffff006e616d650000000019"
    "ffffffff006772700000000017ffffffff",
    "52000040077075626c69630077686f6c65006600030169640000000017ffffffff01626f647900000000"
    "19ffffffff016e0000000017ffffffff",
    "5400000002000000400000004007",
    "43000000000001540fb800000000015412580003042890e60dd4",
};

std::string bytes_of(std::string_view hex) {
  std::string out;
  while (!hex.empty()) {
    if (hex.front() == '~') {
      out += std::string(2'100, 'x');
      hex.remove_prefix(1);
      continue;
    }
    out += static_cast<char>(std::stoi(std::string(hex.substr(0, 2)), nullptr, 16));
    hex.remove_prefix(2);
  }
  return out;
}

std::string shown(const pgoutput::Tuple& row) {
  std::string out;
  for (const Field& field : row) {
    if (!out.empty()) out += ',';
    switch (field.kind) {
      case Field::Kind::null: out += "NULL"; break;
      case Field::Kind::unchanged: out += "(unchanged)"; break;
      case Field::Kind::value:
        out +=
            field.text.size() > 100 ? std::to_string(field.text.size()) : std::string(field.text);
    }
  }
  return out;
}

struct Shown {
  std::string operator()(const pgoutput::Begin& m) const { return "B " + std::to_string(m.xid); }
  std::string operator()(const pgoutput::Commit& m) const {
    return "C +" + std::to_string(m.end - m.commit);
  }
  std::string operator()(const pgoutput::Origin&) const { return "O"; }
  std::string operator()(const pgoutput::Relation& m) const {
    std::string out = "R " + std::string(m.schema) + "." + std::string(m.name) + " " + m.identity;
    for (const auto& column : m.columns)
      out += (column.key ? " *" : " ") + std::string(column.name);
    return out;
  }
  std::string operator()(const pgoutput::Type&) const { return "Y"; }
  std::string operator()(const pgoutput::Insert& m) const { return "I " + shown(m.row); }
  std::string operator()(const pgoutput::Update& m) const {
    const std::string old = m.old ? (m.old->whole ? "O " : "K ") + shown(m.old->row) : "-";
    return "U " + old + " -> " + shown(m.row);
  }
  std::string operator()(const pgoutput::Delete& m) const {
    return std::string("D ") + (m.old.whole ? "O " : "K ") + shown(m.old.row);
  }
  std::string operator()(const pgoutput::Truncate& m) const {
    return "T " + std::to_string(m.relations.size());
  }
  std::string operator()(const pgoutput::LogicalMessage& m) const {
    return std::string(m.transactional ? "M+ " : "M ") + std::string(m.prefix) + " " +
           std::string(m.content);
  }
};

TEST(Message, AsAServerSendsThem) {
  std::vector<std::string> said;
  for (const char* const hex : kCaptured) {
    const std::string bytes = bytes_of(hex);
    const auto message = pgoutput::parse_message(bytes);
    ASSERT_TRUE(message) << hex;
    said.push_back(std::visit(Shown(), *message));
    for (std::size_t size = 0; size < bytes.size(); ++size)
      ASSERT_FALSE(pgoutput::parse_message(bytes.substr(0, size))) << hex << " cut at " << size;
  }
  EXPECT_THAT(
      said, ElementsAre("B 733", "R public.item d *id name grp", "I 1,one,NULL", "I 2,,10", "C +48",
                        "B 734", "U - -> 2,two,10", "C +48", "B 735", "U K 2,NULL,NULL -> 3,two,10",
                        "C +48", "B 736", "D K 1,NULL,NULL", "C +48", "B 737",
                        "R public.whole f *id *body *n", "I 1,2100,0", "C +48", "B 738",
                        "U O 1,2100,0 -> 1,(unchanged),1", "C +48", "B 739", "D O 1,2100,1",
                        "C +48", "B 740", "Y", "R public.typed d *id m", "I 1,glad", "C +48",
                        "B 741", "R public.parts d *id grp", "R public.parts_1 d *id grp", "I 1,1",
                        "C +48", "B 742", "I 5,five,5", "M+ larder in it", "C +56",
                        "M larder 1 token 123 456", "B 744", "R public.item d *id name grp",
                        "R public.whole f *id *body *n", "T 2", "C +672"));
}

}  // namespace
}  // namespace larder::source::postgres
