#include "journal/pending.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "base/random.h"

namespace larder::journal {
namespace {

using ::testing::ElementsAre;
using Kind = Op::Kind;

Op set(std::string key, std::string value) {
  return {.kind = Kind::set, .cache = "p", .key = std::move(key), .value = std::move(value)};
}
Op removed(std::string key) {
  return {.kind = Kind::remove, .cache = "p", .key = std::move(key), .value = {}};
}
Op increment(std::string key, std::int64_t delta, std::string value = {}) {
  return {.kind = Kind::increment,
          .cache = "p",
          .key = std::move(key),
          .value = std::move(value),
          .delta = delta};
}
Record record(std::string source, std::vector<Op> ops, TimeUs at = 5) {
  return {.source = std::move(source), .written_at = at, .ops = std::move(ops)};
}
std::optional<Pending::Value> find(const Pending& pending, std::string_view key) {
  return pending.find(key, hash_bytes(key));
}

TEST(JournalRecord, GivesBackWhatWasPutInAndNothingElse) {
  const Record whole =
      record("shop", {set("p:1", std::string("\0x", 2)), removed("p:2"), increment("p:3", -7, "9")},
             1'700'000'000'000'000);
  const std::string bytes = encode(whole);
  EXPECT_EQ(decode_record(bytes), whole);
  for (std::size_t size = 0; size < bytes.size(); ++size)
    EXPECT_FALSE(decode_record(bytes.substr(0, size))) << size;
  EXPECT_FALSE(decode_record(bytes + "x"));
  std::string other = bytes;
  other[0] = 2;
  EXPECT_FALSE(decode_record(other));
  for (const Record& about : {Record{.kind = Record::Kind::applied, .source = "s", .upto = 7},
                              Record{.kind = Record::Kind::yielded,
                                     .source = "s",
                                     .ops = {{.cache = "p", .key = "p:1", .delta = 9}}}})
    EXPECT_EQ(decode_record(encode(about)), about);
}

TEST(JournalRecord, RandomBytesAreNone) {
  Random random(3);
  const std::string bytes = encode(record("s", {set("p:1", "v"), removed("p:2")}));
  for (int i = 0; i < 20'000; ++i) {
    std::string damaged = bytes;
    for (std::uint64_t n = 0; n <= random.below(4); ++n)
      damaged[random.below(damaged.size())] = static_cast<char>(random.next());
    const Result<Record> decoded = decode_record(damaged);
    if (decoded) EXPECT_EQ(encode(*decoded), damaged);
  }
}

TEST(JournalPending, ReadersGetTheLatestUntilItIsApplied) {
  Pending pending;
  EXPECT_FALSE(find(pending, "p:1"));
  EXPECT_FALSE(pending.oldest());
  pending.add(1, record("a", {set("p:1", "v1"), set("p:2", "w1")}, 100));
  Op other = set("q:1", "x");
  other.cache = "q";
  pending.add(2, record("b", {other}, 200));
  pending.add(3, record("a", {removed("p:1")}, 300));
  EXPECT_TRUE(find(pending, "p:1")->removed);
  EXPECT_EQ(find(pending, "p:2")->value, "w1");
  EXPECT_EQ(pending.oldest(), 1u);
  EXPECT_EQ(pending.waiting_records("a"), 2u);
  EXPECT_EQ(pending.depth("p").waiting, 3u);
  EXPECT_EQ(pending.depth("q").waiting, 1u);
  EXPECT_EQ(pending.depth("p").oldest, 100);
  EXPECT_EQ(pending.first("a", 10, 1 << 20).records.size(), 2u);
  EXPECT_EQ(pending.first("a", 10, 1 << 20).upto(), 3u);
  EXPECT_EQ(pending.first("a", 1, 1 << 20).upto(), 1u);
  EXPECT_EQ(pending.first("a", 10, 1).upto(), 1u) << "at least one";
  pending.applied("a", 1);
  EXPECT_TRUE(find(pending, "p:1")) << "written again since";
  EXPECT_FALSE(find(pending, "p:2"));
  EXPECT_EQ(pending.oldest(), 2u);
  pending.applied("a", 3);
  EXPECT_FALSE(pending.holds("p:1", hash_bytes("p:1")));
  EXPECT_THAT(pending.sources(), ElementsAre("b"));
  EXPECT_EQ(pending.waiting_records("a"), 0u);
  EXPECT_EQ(pending.depth("p").oldest, 0);
  pending.applied("b", 2);
  EXPECT_FALSE(pending.oldest());
  EXPECT_EQ(pending.depth("p").waiting, 0u);
  EXPECT_EQ(pending.depth("p").oldest, 0);
}

std::optional<Seq> contested(const Pending& pending, std::string_view key) {
  return pending.contested("a", key, hash_bytes(key));
}

TEST(JournalPending, AbsoluteWritesAreContestedAndMayYield) {
  Pending pending;
  pending.add(1, record("a", {increment("p:1", 1, "8")}));
  EXPECT_FALSE(contested(pending, "p:1")) << "it adds to whatever is there";
  pending.add(2, record("a", {set("p:1", "v"), set("p:2", "w")}));
  EXPECT_EQ(contested(pending, "p:1"), 2u);
  EXPECT_FALSE(pending.contested("b", "p:1", hash_bytes("p:1")));
  pending.yield("a", "p:1", 2);
  EXPECT_FALSE(find(pending, "p:1")) << "others have it";
  EXPECT_TRUE(find(pending, "p:2"));
  pending.add(3, record("a", {set("p:1", "x")}));
  EXPECT_EQ(find(pending, "p:1")->value, "x") << "written after that";
  const Coalesced work = coalesce(pending.first("a", 10, 1 << 20));
  EXPECT_THAT(work.ops, ElementsAre(set("p:2", "w"), set("p:1", "x")));
  ASSERT_EQ(work.yielded.size(), 2u);
  EXPECT_EQ(work.yielded[0], std::pair(Seq{1}, increment("p:1", 1, "8")));
  EXPECT_EQ(work.yielded[1], std::pair(Seq{2}, set("p:1", "v")));
  pending.applied("a", 3);
  pending.yield("a", "p:1", 3);
  pending.add(4, record("a", {increment("p:1", 1, "9")}));
  EXPECT_FALSE(contested(pending, "p:1"));
  EXPECT_THAT(coalesce(pending.first("a", 10, 1 << 20)).yielded, ElementsAre());
}

std::vector<Op> coalesced(std::vector<Op> ops) {
  Pending::Batch batch;
  for (Op& op : ops)
    batch.records.push_back(
        {batch.records.size() + 1, std::make_shared<const Record>(record("s", {op}))});
  return coalesce(batch).ops;
}

TEST(JournalCoalesce, TheLastAbsoluteWriteAndTheSum) {
  EXPECT_THAT(coalesced({set("a", "1"), set("b", "1"), set("a", "2")}),
              ElementsAre(set("a", "2"), set("b", "1")));
  EXPECT_THAT(coalesced({set("a", "1"), removed("a")}), ElementsAre(removed("a")));
  EXPECT_THAT(coalesced({set("a", "1"), removed("a"), set("a", "2"), set("a", "3")}),
              ElementsAre(removed("a"), set("a", "3")))
      << "`store` may be an INSERT";
  EXPECT_THAT(coalesced({increment("a", 1, "1"), increment("a", 2, "3")}),
              ElementsAre(increment("a", 3, "3")));
  EXPECT_THAT(coalesced({set("a", "1"), increment("a", 1, "2"), increment("a", 1, "3")}),
              ElementsAre(set("a", "1"), increment("a", 2, "3")));
  EXPECT_THAT(coalesced({increment("a", 1), set("a", "7"), increment("a", 2)}),
              ElementsAre(set("a", "7"), increment("a", 2)));
  EXPECT_THAT(coalesced({set("a", "1"), increment("a", 1), set("a", "9")}),
              ElementsAre(set("a", "9")));
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  EXPECT_THAT(coalesced({increment("a", most), increment("a", 1)}),
              ElementsAre(increment("a", most), increment("a", 1)));
}

// A database of numbers; NULL is no row. An increment of no row changes nothing.
using Rows = std::map<std::string, std::int64_t>;
void apply(Rows& rows, const Op& op) {
  switch (op.kind) {
    case Kind::set: rows[op.key] = std::stoll(op.value); break;
    case Kind::remove: rows.erase(op.key); break;
    case Kind::increment:
      if (rows.contains(op.key)) rows[op.key] += op.delta;
      break;
  }
}

TEST(JournalCoalesce, LeavesTheSameRows) {
  Random random(11);
  std::size_t saved = 0;
  for (int run = 0; run < 20'000; ++run) {
    std::vector<Op> ops;
    for (std::uint64_t i = 0; i <= random.below(12); ++i) {
      const std::string key(1, static_cast<char>('a' + random.below(3)));
      const auto number = static_cast<std::int64_t>(random.below(100));
      switch (random.below(4)) {
        case 0: ops.push_back(set(key, std::to_string(number))); break;
        case 1: ops.push_back(removed(key)); break;
        default: ops.push_back(increment(key, number - 50));
      }
    }
    Rows before{{"a", 1}};
    if (random.chance(0.5)) before["b"] = 2;
    Rows one_by_one = before;
    for (const Op& op : ops) apply(one_by_one, op);
    const std::vector<Op> fewer = coalesced(ops);
    Rows together = before;
    for (const Op& op : fewer) apply(together, op);
    ASSERT_EQ(one_by_one, together) << run;
    ASSERT_LE(fewer.size(), ops.size());
    saved += ops.size() - fewer.size();
  }
  EXPECT_GT(saved, 20'000u);
}

}  // namespace
}  // namespace larder::journal
