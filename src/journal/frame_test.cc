#include "journal/frame.h"

#include <gtest/gtest.h>

#include <vector>

namespace larder::journal {
namespace {

constexpr std::uint64_t kId = 7;

std::string frame_of(Seq first, const std::vector<std::string>& records) {
  FrameWriter writer;
  for (const std::string& record : records) writer.add(record);
  return writer.finish(kId, first);
}
std::vector<std::string> records_in(const Frame& frame) {
  std::vector<std::string> records;
  each_record(frame, [&](Seq seq, std::string_view record) {
    EXPECT_EQ(seq, frame.first + records.size());
    records.emplace_back(record);
  });
  return records;
}

TEST(JournalFrame, GivesBackWhatWasPutIn) {
  const std::vector<std::string> records{"one", "", std::string(1000, 'x'), std::string("\0", 1)};
  FrameWriter writer;
  for (const std::string& record : records) writer.add(record);
  EXPECT_EQ(writer.count(), 4u);
  const std::string bytes = writer.finish(kId, 42);
  EXPECT_EQ(writer.count(), 0u);
  EXPECT_EQ(bytes.size() % 8, 0u);
  const std::string followed = bytes + "behind";
  const std::optional<Frame> frame = decode_frame(followed, kId);
  ASSERT_TRUE(frame);
  EXPECT_EQ(frame->first, 42u);
  EXPECT_EQ(frame->size, bytes.size());
  EXPECT_EQ(records_in(*frame), records);
}

TEST(JournalFrame, IsWholeAndOursOrNothing) {
  const std::string bytes = frame_of(5, {"abc", "defgh"});
  for (std::size_t size = 0; size < bytes.size(); ++size)
    EXPECT_FALSE(decode_frame(std::string_view(bytes).substr(0, size), kId)) << size;
  for (std::size_t at = 0; at < bytes.size(); ++at)
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = bytes;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
      EXPECT_FALSE(decode_frame(damaged, kId)) << at;
    }
  EXPECT_FALSE(decode_frame(bytes, kId + 1));
  EXPECT_TRUE(decode_frame(bytes, kId));
}

TEST(JournalFrame, SegmentHeaders) {
  const SegmentHeader header{.journal = kId, .first = 9};
  const std::string bytes = encode(header);
  EXPECT_EQ(bytes.size(), kSegmentHeader);
  EXPECT_EQ(decode_segment_header(bytes), header);
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 1);
    EXPECT_FALSE(decode_segment_header(damaged));
    EXPECT_FALSE(decode_segment_header(std::string_view(bytes).substr(0, at)));
  }
  EXPECT_FALSE(decode_segment_header(encode({.journal = kId, .first = 0})));
}

// Wherever the writing of it ended, and whatever was overwritten.
TEST(JournalScan, TellsTornFromDamaged) {
  const std::string header = encode({.journal = kId, .first = 1});
  const std::string a = frame_of(1, {"a", "aa"});
  const std::string b = frame_of(3, {std::string(50, 'b')});
  const std::string c = frame_of(4, {"c"});
  const std::string whole = header + a + b + c;
  for (std::size_t size = header.size(); size <= whole.size(); ++size) {
    std::vector<std::string> found;
    const Scan torn = scan(std::string_view(whole).substr(0, size), kId,
                           [&](Seq, std::string_view record) { found.emplace_back(record); });
    ASSERT_TRUE(torn.header);
    EXPECT_FALSE(torn.behind);
    const std::size_t a_end = header.size() + a.size();
    const std::size_t b_end = a_end + b.size();
    const std::size_t good = size == whole.size() ? size
                             : size >= b_end      ? b_end
                             : size >= a_end      ? a_end
                                                  : header.size();
    EXPECT_EQ(torn.good, good);
    EXPECT_EQ(found.size(), torn.next - 1);
  }
  std::string damaged = whole;
  damaged[header.size() + a.size() + 40] = '?';
  const Scan middle = scan(damaged, kId, {});
  EXPECT_EQ(middle.good, header.size() + a.size());
  EXPECT_EQ(middle.next, 3u);
  EXPECT_EQ(middle.behind, header.size() + a.size() + b.size());
  EXPECT_EQ(middle.last_behind, 4u);
  // A frame that does not follow is not ours to give.
  const Scan gap = scan(header + a + c, kId, {});
  EXPECT_EQ(gap.next, 3u);
  EXPECT_TRUE(gap.behind);
}

}  // namespace
}  // namespace larder::journal
