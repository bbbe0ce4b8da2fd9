#include "feed/cursor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "engine/redis_process.h"

namespace larder::feed {
namespace {

namespace real = engine::real;

TEST(EntryId, ParsesAndOrders) {
  EXPECT_EQ(parse_entry_id("12-3"), (EntryId{12, 3}));
  EXPECT_EQ(to_string(EntryId{12, 3}), "12-3");
  EXPECT_EQ(parse_entry_id("18446744073709551615-18446744073709551615"),
            (EntryId{UINT64_MAX, UINT64_MAX}));
  for (const char* bad :
       {"", "1", "-", "1-", "-1", "a-1", "1-2-3", "1- 2", "+1-2", "18446744073709551616-0"})
    EXPECT_FALSE(parse_entry_id(bad)) << bad;
  EXPECT_LT((EntryId{9, 9}), (EntryId{10, 0}));
}

TEST(Cursor, IsWrittenAndRead) {
  for (const Cursor& c : {Cursor{{1, 2}, 3}, Cursor{{1, 2}, {}}, Cursor{{}, 0}})
    EXPECT_EQ(parse_cursor(to_string(c)), c);
  for (const char* bad : {"", "1", "1-2 ", "1-2 x", "1-2 3 4", " 1-2"})
    EXPECT_FALSE(parse_cursor(bad)) << bad;
}

StreamState state(std::uint64_t length, EntryId first, EntryId last, std::uint64_t added) {
  return {.exists = true, .length = length, .first = first, .last = last, .added = added};
}

TEST(Advance, NothingMissed) {
  const Cursor from{{5, 0}, 5};
  // Nothing new.
  Advance a = advance(from, state(5, {1, 0}, {5, 0}, 5), 0, {}, true);
  EXPECT_FALSE(a.missed);
  EXPECT_EQ(a.next, from);
  // Two more; what was read before has been trimmed away.
  a = advance(from, state(2, {6, 0}, {7, 0}, 7), 2, {7, 0}, true);
  EXPECT_FALSE(a.missed);
  EXPECT_EQ(a.next, (Cursor{{7, 0}, 7}));
  // Two of more.
  a = advance(from, state(10, {1, 0}, {10, 0}, 10), 2, {7, 0}, false);
  EXPECT_FALSE(a.missed);
  EXPECT_EQ(a.next, (Cursor{{7, 0}, 7}));
}

TEST(Advance, MissedAtTheEnd) {
  const Cursor from{{5, 0}, 5};
  // Trimmed before it was read; all of it trimmed; one in the middle deleted.
  EXPECT_TRUE(advance(from, state(1, {8, 0}, {8, 0}, 8), 1, {8, 0}, true).missed);
  EXPECT_TRUE(advance(from, state(0, {}, {8, 0}, 8), 0, {}, true).missed);
  EXPECT_TRUE(advance(from, state(7, {1, 0}, {8, 0}, 8), 2, {8, 0}, true).missed);
  // The next position is right all the same.
  const Advance a = advance(from, state(0, {}, {8, 0}, 8), 0, {}, true);
  EXPECT_EQ(a.next, (Cursor{{8, 0}, 8}));
  EXPECT_FALSE(advance(a.next, state(0, {}, {8, 0}, 8), 0, {}, true).missed);
}

TEST(Advance, MissedInTheMiddle) {
  const Cursor from{{5, 0}, 5};
  const Advance a = advance(from, state(10, {11, 0}, {20, 0}, 20), 3, {13, 0}, false);
  EXPECT_TRUE(a.missed);
  EXPECT_EQ(a.next.at, (EntryId{13, 0}));
  EXPECT_FALSE(a.next.count);  // unknown until the end
  const Advance b = advance(a.next, state(10, {11, 0}, {20, 0}, 20), 7, {20, 0}, true);
  EXPECT_FALSE(b.missed);
  EXPECT_EQ(b.next, (Cursor{{20, 0}, 20}));
  // Up to the position, no further.
  EXPECT_FALSE(advance(from, state(10, {6, 0}, {15, 0}, 15), 3, {8, 0}, false).missed);
}

TEST(Advance, WithoutCountsInDoubtMissed) {
  const auto old = [](std::uint64_t length, EntryId first, EntryId last) {
    return StreamState{.exists = true, .length = length, .first = first, .last = last};
  };
  const Cursor from{{5, 0}, {}};
  EXPECT_FALSE(advance(from, old(3, {5, 0}, {7, 0}), 2, {7, 0}, true).missed);
  EXPECT_FALSE(advance(from, old(0, {}, {5, 0}), 0, {}, true).missed);
  EXPECT_TRUE(advance(from, old(2, {6, 0}, {7, 0}), 2, {7, 0}, true).missed);
  EXPECT_TRUE(advance(from, old(0, {}, {6, 0}), 0, {}, true).missed);
  EXPECT_TRUE(advance(from, old(5, {6, 0}, {10, 0}), 2, {7, 0}, false).missed);
  StreamState deleted = old(3, {5, 0}, {7, 0});
  deleted.max_deleted = EntryId{6, 0};
  EXPECT_TRUE(advance(from, deleted, 1, {7, 0}, true).missed);
  deleted.max_deleted = EntryId{4, 0};
  EXPECT_FALSE(advance(from, deleted, 2, {7, 0}, true).missed);
}

TEST(Advance, AStreamThatIsGoneOrAnother) {
  // Never there: nothing to miss.
  EXPECT_EQ(end_of({}), (Cursor{{}, 0}));
  Advance a = advance(end_of({}), {}, 0, {}, true);
  EXPECT_FALSE(a.missed || a.replaced);
  // Created meanwhile.
  a = advance(end_of({}), state(2, {6, 0}, {7, 0}, 2), 2, {7, 0}, true);
  EXPECT_FALSE(a.missed);
  // Deleted.
  const Cursor from{{5, 0}, 5};
  a = advance(from, {}, 0, {}, true);
  EXPECT_TRUE(a.missed && a.replaced);
  EXPECT_EQ(a.next, (Cursor{{}, 0}));
  // Begun anew, with smaller ids, and with larger ones.
  a = advance(from, state(1, {1, 0}, {1, 0}, 1), 0, {}, true);
  EXPECT_TRUE(a.missed && a.replaced);
  EXPECT_TRUE(advance(from, state(1, {9, 0}, {9, 0}, 1), 1, {9, 0}, true).missed);
}

TEST(StreamAnswers, AreReadOrRefused) {
  const auto info = [](const std::string& bytes) { return stream_state(real::parse(bytes)); };
  EXPECT_FALSE(info("-WRONGTYPE no\r\n"));
  EXPECT_TRUE(info("-ERR no such key\r\n"));
  EXPECT_FALSE(info("-ERR no such key\r\n")->exists);
  EXPECT_FALSE(info(":1\r\n"));
  EXPECT_FALSE(info("*1\r\n+a\r\n"));
  EXPECT_FALSE(info("*2\r\n+length\r\n:1\r\n"));
  EXPECT_FALSE(info("*2\r\n+last-generated-id\r\n+x\r\n"));
  EXPECT_FALSE(info("*4\r\n+last-generated-id\r\n+1-1\r\n+length\r\n:-1\r\n"));
  EXPECT_FALSE(info("*4\r\n+last-generated-id\r\n+1-1\r\n+first-entry\r\n*0\r\n"));
  EXPECT_TRUE(info("*4\r\n+last-generated-id\r\n+1-1\r\n+first-entry\r\n$-1\r\n"));
  const auto read = [](const std::string& bytes) { return stream_entries(real::parse(bytes)); };
  EXPECT_TRUE(read("*-1\r\n"));
  EXPECT_TRUE(read("_\r\n"));
  EXPECT_TRUE(read("*0\r\n"));
  const std::string entries = "*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\nf\r\n$1\r\nv\r\n";
  for (const std::string& head :
       {std::string("*1\r\n*2\r\n$1\r\ns\r\n"), std::string("%1\r\n+s\r\n")}) {
    const auto got = read(head + entries);
    ASSERT_TRUE(got);
    ASSERT_EQ(got->size(), 1U);
    EXPECT_EQ((*got)[0].id, (EntryId{1, 1}));
    EXPECT_THAT((*got)[0].fields, testing::ElementsAre(testing::Pair("f", "v")));
  }
  for (const char* bad :
       {"-ERR x\r\n", ":1\r\n", "*1\r\n:1\r\n", "*1\r\n*2\r\n+s\r\n:1\r\n",
        "*1\r\n*2\r\n+s\r\n*1\r\n:1\r\n", "*1\r\n*2\r\n+s\r\n*1\r\n*2\r\n+x\r\n*0\r\n",
        "*1\r\n*2\r\n+s\r\n*1\r\n*2\r\n+1-1\r\n*1\r\n+f\r\n"})
    EXPECT_FALSE(read(bad)) << bad;
}

// ---- a real server: who misses nothing is told so, and who misses something, too ----

class RealStream : public real::WithRedis<testing::Test> {
 protected:
  StreamState now() {
    auto got = stream_state(real::parse(redis_->call({"XINFO", "STREAM", "s"})));
    EXPECT_TRUE(got);
    return got ? *got : StreamState{};
  }
  std::vector<StreamEntry> entries_after(EntryId id, std::size_t most) {
    auto got = stream_entries(real::parse(
        redis_->call({"XREAD", "COUNT", std::to_string(most), "STREAMS", "s", to_string(id)})));
    EXPECT_TRUE(got);
    return got ? *got : std::vector<StreamEntry>{};
  }
  bool lost_ = false;  // entries went unseen, and nothing has said so yet
};

// Random adds, trims, deletions and reads. The reference knows which entries there were.
TEST_F(RealStream, NoLossGoesUnnoticed) {
  Random random(17);
  Cursor cursor = end_of(now());
  std::vector<EntryId> unread;  // added since the last read
  std::uint64_t ms = 0;
  unsigned missed = 0;
  unsigned clean = 0;
  for (int round = 0; round < 2000; ++round) {
    const std::uint64_t dice = random.below(10);
    if (dice < 5) {
      const EntryId id{++ms, 0};
      redis_->call({"XADD", "s", to_string(id), "f", "v"});
      unread.push_back(id);
    } else if (dice == 5) {
      redis_->call({"XTRIM", "s", "MAXLEN", std::to_string(random.below(6))});
    } else if (dice == 6 && ms > 0) {
      redis_->call({"XDEL", "s", to_string(EntryId{1 + random.below(ms), 0})});
    } else if (dice == 7 && random.below(20) == 0 && cursor.at != EntryId{}) {
      redis_->call({"DEL", "s"});  // and begun anew with larger ids
    } else {
      const std::size_t most = 1 + random.below(4);
      const auto got = entries_after(cursor.at, most);
      const StreamState state = now();
      const bool to_the_end = got.size() < most;
      const EntryId last = got.empty() ? EntryId{} : got.back().id;
      const Advance step = advance(cursor, state, got.size(), last, to_the_end);
      // What a reader up to here ought to have seen.
      std::vector<EntryId> seen;
      seen.reserve(got.size());
      for (const StreamEntry& entry : got) seen.push_back(entry.id);
      std::vector<EntryId> due;
      for (const EntryId id : unread)
        if (to_the_end || id <= last) due.push_back(id);
      lost_ |= seen != due;
      std::erase_if(unread, [&](EntryId id) { return to_the_end || id <= last; });
      missed += step.missed;
      if (step.missed) {
        lost_ = false;
      } else if (to_the_end) {
        // The end is where all that happened before must have come to light.
        ASSERT_FALSE(lost_) << "round " << round;
        ++clean;
      }
      cursor = step.next;
    }
  }
  EXPECT_GT(missed, 20U);
  EXPECT_GT(clean, 20U);
}

}  // namespace
}  // namespace larder::feed
