// The reader of the log on events made by hand; what real servers write is in feed_test.cc.
#include "source/mariadb/binlog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/crc.hpp>

namespace larder::source::mariadb {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string little(std::uint64_t value, std::size_t size) {
  std::string out;
  for (std::size_t i = 0; i < size; ++i) out += static_cast<char>(value >> (8 * i));
  return out;
}
std::string event(std::uint8_t type, const std::string& body, std::uint32_t next,
                  std::uint16_t flags = 0, bool checksum = false) {
  const std::size_t size = 19 + body.size() + (checksum ? 4 : 0);
  std::string out = little(0, 4) + static_cast<char>(type) + little(7, 4) + little(size, 4) +
                    little(next, 4) + little(flags, 2) + body;
  if (checksum) {
    boost::crc_32_type crc;
    crc.process_bytes(out.data(), out.size());
    out += little(crc.checksum(), 4);
  }
  return out;
}
std::string format(bool checksums) {
  std::string body = little(4, 2) + std::string(50, '\0') + little(0, 4) + '\x13' +
                     std::string(10, '\x08') + static_cast<char>(checksums ? 1 : 0);
  if (checksums) return event(15, body, 0, 0, true);
  return event(15, body + little(0, 4), 0);  // there is always room for one
}
std::string gtid(std::uint64_t number, std::uint8_t flags) {
  return little(number, 8) + little(0, 4) + static_cast<char>(flags) + std::string(6, '\0');
}
std::string query(const std::string& sql) {
  return little(0, 8) + '\x04' + little(0, 2) + little(0, 2) + "shop" + '\0' + sql;
}
// item(id int, name varchar(300), n decimal(5,2))
std::string map(std::uint64_t id = 5) {
  return little(id, 6) + little(1, 2) + '\x04' + "shop" + '\0' + '\x04' + "item" + '\0' + '\x03' +
         "\x03\x0f\xf6" + '\x04' + little(300, 2) + "\x05\x02" + '\x06';
}
std::string row(std::uint32_t id, const std::string& name) {
  return '\0' + little(id, 4) + little(name.size(), 2) + name + "\x80\x0c\x22";  // 12.34
}
std::string rows(const std::string& all, std::uint64_t id = 5) {
  return little(id, 6) + little(1, 2) + '\x03' + '\x07' + all;
}

BinlogReader reader(std::size_t most = 10'000) {
  LoggedTable item{.schema = "shop",
                   .name = "item",
                   .columns = 3,
                   .watched_id = 7,
                   .watched = {{.ordinal = 0}, {.ordinal = 1}, {.ordinal = 2}}};
  LoggedTable above{.schema = "shop", .name = "above", .watched = {}};
  return BinlogReader({.tables = {item, above}, .start = {1, 100}, .most_changes = most});
}
std::vector<std::string> texts(const LoggedTransaction& transaction) {
  std::vector<std::string> out;
  for (const auto& change : transaction.changes) {
    std::string text = std::to_string(change.watched_id);
    for (const auto& value : change.values) text += ":" + value.value_or("NULL");
    out.push_back(std::move(text));
  }
  return out;
}
// What the last of the events gives; the others give nothing.
LoggedTransaction last(BinlogReader& reader, const std::vector<std::string>& events) {
  for (std::size_t i = 0; i < events.size(); ++i) {
    auto taken = reader.take(events[i]);
    EXPECT_TRUE(taken) << i << ": " << taken.error().message;
    if (!taken) break;
    EXPECT_EQ(taken->has_value(), i + 1 == events.size()) << i;
    if (*taken) return std::move(**taken);
  }
  return {};
}

TEST(Binlog, ATransactionEndsWithItsXid) {
  for (const bool checksums : {false, true}) {
    BinlogReader log = reader();
    const auto with = [&](std::uint8_t type, const std::string& body, std::uint32_t next) {
      return event(type, body, next, 0, checksums);
    };
    const LoggedTransaction done = last(
        log, {format(checksums), with(162, gtid(9, 0), 200), with(19, map(), 300),
              with(23, rows(row(1, "one") + row(2, "two")), 400), with(16, little(1, 8), 500)});
    EXPECT_THAT(texts(done), ElementsAre("7:1:one:12.34", "7:2:two:12.34"));
    EXPECT_FALSE(done.everything);
    EXPECT_EQ(done.gtid, "0-7-9");
    EXPECT_EQ(done.end, (LogPosition{1, 500}));
    EXPECT_EQ(log.position(), (LogPosition{1, 500}));
  }
}

TEST(Binlog, PlacesGoFromFileToFileAndBeyondFourGigabytes) {
  BinlogReader log = reader();
  ASSERT_TRUE(log.take(event(4, little(4, 8) + "binlog.000042", 0, 0x20)));
  EXPECT_EQ(log.position(), (LogPosition{42, 4}));
  ASSERT_TRUE(log.take(event(3, "", 0xffffff00U)));
  ASSERT_TRUE(log.take(event(3, "", 0x10U)));
  EXPECT_EQ(log.position(), (LogPosition{42, 0x1'0000'0010}));
  ASSERT_TRUE(log.take(event(27, "binlog.000042", 0x20)));
  EXPECT_EQ(log.position(), (LogPosition{42, 0x1'0000'0010})) << "a heartbeat is no place";
}

TEST(Binlog, WhatIsNotRowsIsEverythingOrNothing) {
  const auto after = [](const std::string& sql, std::uint8_t flags) {
    BinlogReader log = reader();
    EXPECT_TRUE(log.take(event(162, gtid(1, flags), 200)));
    auto taken = log.take(event(2, query(sql), 300));
    EXPECT_TRUE(taken) << sql;
    if (flags == 0) {
      EXPECT_FALSE(*taken);
      taken = log.take(event(16, little(1, 8), 400));
    }
    if (!taken || !*taken) return std::string("nothing");
    EXPECT_TRUE((*taken)->everything);
    return std::string((*taken)->tables_changed ? "altered" : "everything");
  };
  EXPECT_EQ(after("UPDATE item SET n = 1", 0), "everything");
  EXPECT_EQ(after("  /* a */ (insert into other values (1)", 0), "everything");
  EXPECT_EQ(after("XA COMMIT 'x'", 1), "everything");
  EXPECT_EQ(after("XA ROLLBACK 'x'", 1), "nothing");
  EXPECT_EQ(after("ALTER TABLE `Item` ADD x int", 1), "altered");
  EXPECT_EQ(after("DROP TABLE above", 1), "altered");
  EXPECT_EQ(after("DROP DATABASE shop", 1), "altered");
  EXPECT_EQ(after("CREATE TABLE other(id int)", 1), "nothing");
  EXPECT_EQ(after("GRANT ALL ON shop.item TO x", 1), "nothing");
  EXPECT_EQ(after("SAVEPOINT `item`", 0), "nothing");
}

TEST(Binlog, WhatCannotBeNamedIsEverything) {
  const auto of_rows = [](std::uint8_t type, const std::string& table, const std::string& body,
                          std::size_t most = 10'000) {
    BinlogReader log = reader(most);
    return last(log, {event(162, gtid(1, 0), 200), event(19, table, 250), event(type, body, 300),
                      event(16, little(1, 8), 400)});
  };
  EXPECT_TRUE(of_rows(23, map(), rows(row(1, "a") + row(2, "b") + row(3, "c")), 2).everything);
  EXPECT_FALSE(of_rows(23, map(), rows(row(1, "a") + row(2, "b")), 2).everything);
  // The table has fewer columns now.
  std::string narrow = little(5, 6) + little(1, 2) + '\x04' + "shop" + '\0' + '\x04' + "item" +
                       '\0' + '\x01' + "\x03" + '\0' + '\0';
  const auto altered = of_rows(25, narrow, little(5, 6) + little(1, 2) + "\x01\x01" + "rest");
  EXPECT_TRUE(altered.everything && altered.tables_changed);
  // A part of the row.
  std::string part = little(5, 6) + little(1, 2) + '\x03' + '\x01' + '\0' + little(1, 4);
  EXPECT_THAT(of_rows(25, map(), part).why, HasSubstr("binlog_row_image"));
  // The other end of a cascade.
  std::string above = little(6, 6) + little(1, 2) + '\x04' + "shop" + '\0' + '\x05' + "above" +
                      '\0' + '\x01' + "\x03" + '\0' + '\0';
  const std::string one = little(6, 6) + little(1, 2) + "\x01\x01" + '\0' + little(1, 4);
  EXPECT_TRUE(of_rows(25, above, one).everything);
  BinlogReader log = reader();
  for (const std::string& inserted : {event(162, gtid(1, 0), 200), event(19, above, 250),
                                      event(23, one, 300), event(16, little(1, 8), 400)}) {
    const auto taken = log.take(inserted);
    ASSERT_TRUE(taken);
    EXPECT_FALSE(*taken) << "an INSERT takes no rows with it";
  }
}

TEST(Binlog, WhatIsNotUnderstoodIsAnError) {
  const std::vector<std::string> whole = {event(162, gtid(9, 0), 200), event(19, map(), 300),
                                          event(23, rows(row(1, "one")), 400)};
  for (std::size_t which = 0; which < whole.size(); ++which)
    for (std::size_t size = 0; size + 1 < whole[which].size() - 19; ++size) {
      BinlogReader log = reader();
      for (std::size_t i = 0; i < which; ++i) ASSERT_TRUE(log.take(whole[i]));
      const std::string& of = whole[which];
      const std::string cut = event(static_cast<std::uint8_t>(of[4]), of.substr(19, size), 0);
      const auto taken = log.take(cut);
      // A map without its last byte is one; rows may end with any.
      if (taken) EXPECT_TRUE(which < 2 || size <= 10) << which << " " << size;
    }
  BinlogReader log = reader();
  EXPECT_FALSE(log.take("short"));
  EXPECT_FALSE(log.take(event(30, "", 0))) << "rows as MySQL writes them";
  EXPECT_TRUE(log.take(event(200, "", 0, 0x80))) << "it may be ignored";
  EXPECT_FALSE(log.take(event(23, rows(row(1, "a"), 99), 0))) << "nobody has said of which table";
  ASSERT_TRUE(log.take(format(true)));
  std::string damaged = event(16, little(1, 8), 500, 0, true);
  damaged[20] ^= 1;
  EXPECT_THAT(log.take(damaged).error().message, HasSubstr("checksum"));
  EXPECT_THAT(log.take(event(15, little(3, 2) + std::string(80, '\0'), 0)).error().message,
              HasSubstr("format"));
}

}  // namespace
}  // namespace larder::source::mariadb
