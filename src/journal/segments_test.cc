#include "journal/segments.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "journal/testing.h"

namespace larder::journal {
namespace {

using ::testing::HasSubstr;

using Records = std::map<Seq, std::string>;
constexpr std::uint64_t kId = 77;

Segments::Each into(Records& records) {
  return [&records](Seq seq, std::string_view record) { records[seq] = record; };
}
Result<std::unique_ptr<Segments>> open(SimStorage& storage, Records& found,
                                       Segments::Options options = {
                                           .segment_bytes = 512, .reserve_bytes = 64, .id = kId}) {
  return Segments::open(storage, options, into(found));
}
FrameWriter frame_of(const std::vector<std::string>& records) {
  FrameWriter frame;
  for (const std::string& record : records) frame.add(record);
  return frame;
}
Result<void> append(Segments& segments, const std::vector<std::string>& records) {
  FrameWriter frame = frame_of(records);
  return segments.append(frame);
}

struct Disk : ::testing::Test {
  SimDisk disk;
  SimStorage storage{disk};
  Records found;

  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& [name, inode] : disk.names())
      if (name != "reserve") names.push_back(name);
    return names;
  }
  // Three segments of some frames.
  void fill() {
    const auto log = open(storage, found);
    ASSERT_TRUE(log);
    for (int i = 0; i < 30; ++i)
      ASSERT_TRUE(append(**log, {fmt::format("record {}", i), std::string(20, 'x')}));
    ASSERT_GE(names().size(), 3u);
  }
};

TEST_F(Disk, FindsWhatWasAppendedAndGoesOn) {
  {
    const auto log = open(storage, found);
    ASSERT_TRUE(log);
    EXPECT_EQ((*log)->opened().id, kId);
    EXPECT_EQ((*log)->opened().next, 1u);
    ASSERT_TRUE(append(**log, {"a", "", std::string(600, 'b')}));
    ASSERT_TRUE(append(**log, {"c"}));
    EXPECT_EQ((*log)->next(), 5u);
  }
  EXPECT_EQ(found.size(), 0u);
  const auto log = open(storage, found, {.segment_bytes = 512, .id = kId + 1});
  ASSERT_TRUE(log);
  EXPECT_EQ((*log)->opened().id, kId) << "the id of a journal is kept";
  EXPECT_EQ(found, (Records{{1, "a"}, {2, ""}, {3, std::string(600, 'b')}, {4, "c"}}));
  EXPECT_EQ((*log)->next(), 5u);
}

TEST_F(Disk, TrimsWholeSegmentsFromTheFront) {
  fill();
  {
    const auto log = open(storage, found);
    ASSERT_TRUE(log);
    const std::uint64_t before = (*log)->bytes();
    ASSERT_TRUE((*log)->trim(25));
    EXPECT_LT((*log)->bytes(), before);
    ASSERT_TRUE((*log)->trim((*log)->next()));
    EXPECT_EQ(names().size(), 1u);
  }
  found.clear();
  const auto log = open(storage, found);  // an empty journal still knows its next number
  ASSERT_TRUE(log);
  EXPECT_EQ(found.size(), 0u);
  EXPECT_EQ((*log)->next(), 61u);
}

TEST_F(Disk, AFullDiskTakesNothingOfTheFrameAndGoesOnLater) {
  const auto log = open(storage, found);
  ASSERT_TRUE(log);
  ASSERT_TRUE(append(**log, {"a"}));
  disk.room_bytes = 20;
  const Result<void> full = append(**log, {"lost"});
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, ErrorCode::overloaded);
  EXPECT_FALSE((*log)->failed());
  disk.room_bytes = std::nullopt;
  ASSERT_TRUE(append(**log, {"b"}));
  const auto again = open(storage, found);
  ASSERT_TRUE(again);
  EXPECT_EQ(found, (Records{{1, "a"}, {2, "b"}}));
}

TEST_F(Disk, AFailedSyncIsFinal) {
  const auto log = open(storage, found);
  ASSERT_TRUE(log);
  ASSERT_TRUE(append(**log, {"a"}));
  disk.syncs_until_failure = 0;
  EXPECT_FALSE(append(**log, {"b"}));
  disk.syncs_until_failure = -1;
  EXPECT_FALSE(append(**log, {"c"})) << "never tried again";
  EXPECT_TRUE((*log)->failed());
}

// Every byte that was made durable: damaged where something follows it, torn where nothing does.
TEST_F(Disk, ADamagedMiddleIsRefusedAndATornEndIsCut) {
  fill();
  const std::vector<std::string> files = names();
  const std::string last = files.back();
  std::size_t torn = 0;
  std::size_t refused = 0;
  for (const std::string& name : files) {
    const std::string whole = disk.bytes_of(name);
    for (std::size_t at = 0; at < whole.size(); ++at) {
      disk.damage(name, at);
      const Result<Segments::Report> report = Segments::check(storage);
      ASSERT_TRUE(report);
      Records kept;
      const auto log = open(storage, kept);
      if (report->damaged) {
        ++refused;
        ASSERT_FALSE(log);
        EXPECT_EQ(log.error().code, ErrorCode::config);
        EXPECT_THAT(log.error().message, HasSubstr("larder journal repair"));
      } else {
        ++torn;
        EXPECT_EQ(name, last);
        ASSERT_TRUE(log);
        EXPECT_GE(kept.size(), 58u);
        // It began a segment of its own.
        for (const std::string& other : names())
          if (std::ranges::find(files, other) == files.end()) ASSERT_TRUE(storage.remove(other));
      }
      disk.bytes_of(name) = whole;
      disk.damage(name, 0);
      disk.damage(name, 0);
    }
  }
  EXPECT_GT(torn, 0u);
  EXPECT_LT(torn, 128u) << "the last frame alone";
  EXPECT_GT(refused, 1'000u);
}

TEST_F(Disk, AMissingSegmentIsRefused) {
  fill();
  ASSERT_TRUE(storage.remove(names()[1]));
  const auto log = open(storage, found);
  ASSERT_FALSE(log);
  EXPECT_THAT(log.error().message, HasSubstr("a segment is missing"));
}

TEST_F(Disk, RepairKeepsWhatLiesBeforeTheDamageAndSaysWhatIsLost) {
  fill();
  const std::string second = names()[1];
  disk.damage(second, disk.bytes_of(second).size() / 2);
  Result<Segments::Report> report = Segments::check(storage, into(found));
  ASSERT_TRUE(report && report->damaged);
  EXPECT_EQ(report->next, found.rbegin()->first + 1);
  EXPECT_EQ(report->lost_records, 60 - found.size());
  const Records before = found;
  report = Segments::repair(storage);
  ASSERT_TRUE(report && report->damaged);
  found.clear();
  const auto log = open(storage, found);
  ASSERT_TRUE(log) << log.error().message;
  EXPECT_EQ(found, before);
  EXPECT_EQ(std::ranges::count_if(
                names(), [](const std::string& name) { return name.ends_with(".damaged"); }),
            static_cast<std::ptrdiff_t>(report->segments.size()) - 1);
  ASSERT_TRUE(append(**log, {"more"}));
  report = Segments::repair(storage);
  ASSERT_TRUE(report);
  EXPECT_FALSE(report->damaged);
}

// ---- lives of a process ----

// "" or what was broken.
std::string live(std::uint64_t seed, Segments::Rules rules) {
  Random random(seed);
  SimDisk disk;
  SimStorage storage(disk);
  Records acknowledged;  // or found once: whoever has read it may have acted on it
  Records unknown;       // written when the process died
  Seq trimmed = 1;
  for (int life = 0; life < 5; ++life) {
    Records found;
    const auto log = Segments::open(
        storage, {.segment_bytes = 300, .id = 1 + random.next(), .rules = rules}, into(found));
    if (!log && disk.stopped) {
      // It died at once.
    } else if (!log) {
      return "refused: " + log.error().message;
    } else {
      Seq expected = (*log)->opened().first;
      for (const auto& [seq, record] : found) {
        if (seq != expected++) return "a gap";
        const auto known = acknowledged.find(seq);
        const auto maybe = unknown.find(seq);
        const bool as_written = known != acknowledged.end() ? known->second == record
                                : maybe != unknown.end()    ? maybe->second == record
                                                            : false;
        if (!as_written) return "a record that nobody has written";
      }
      if ((*log)->next() != expected) return "the next number is another one";
      for (const auto& [seq, record] : acknowledged)
        if (seq >= trimmed && !found.contains(seq)) return "an acknowledged record is gone";
      std::size_t whole = 0;
      for (const auto& [seq, record] : unknown) whole += found.contains(seq) ? 1 : 0;
      if (whole != 0 && whole != unknown.size()) return "a part of a frame";
      acknowledged.insert(found.begin(), found.end());
      unknown.clear();
      disk.steps_until_stop = static_cast<std::int64_t>(random.below(60));
      while (!disk.stopped && !(*log)->failed()) {
        if (random.chance(0.1)) {
          const Seq seq = trimmed + random.below((*log)->next() - trimmed + 1);
          trimmed = seq;
          static_cast<void>((*log)->trim(seq));
          continue;
        }
        if (random.chance(0.02)) disk.syncs_until_failure = 0;
        disk.room_bytes = random.chance(0.05) ? std::optional(random.below(200)) : std::nullopt;
        Records batch;
        const Seq first = (*log)->next();
        FrameWriter frame;
        for (std::uint64_t i = 0; i <= random.below(4); ++i) {
          std::string record = fmt::format("{}-{}", seed, random.next());
          record.resize(random.below(120), '.');
          frame.add(record);
          batch[first + i] = std::move(record);
        }
        const Result<void> done = (*log)->append(frame);
        if (done)
          acknowledged.insert(batch.begin(), batch.end());
        else if (done.error().code != ErrorCode::overloaded)
          unknown = batch;
      }
    }
    disk.room_bytes = std::nullopt;
    disk.syncs_until_failure = -1;
    disk.steps_until_stop = -1;
    disk.stopped = false;
    if (random.chance(0.7)) disk.crash(random);  // else only the process has died
  }
  return "";
}

TEST(Lives, NothingAcknowledgedIsEverLost) {
  for (std::uint64_t seed = 1; seed <= 20'000; ++seed) {
    const std::string broken = live(seed, {});
    ASSERT_EQ(broken, "") << "seed " << seed;
  }
}

TEST(Lives, EveryRuleIsNeeded) {
  const auto found = [](Segments::Rules rules) {
    for (std::uint64_t seed = 1; seed <= 20'000; ++seed)
      if (!live(seed, rules).empty()) return true;
    return false;
  };
  EXPECT_TRUE(found({.sync = false}));
  EXPECT_TRUE(found({.sync_names = false}));
  EXPECT_TRUE(found({.rewrite = false}));
}

}  // namespace
}  // namespace larder::journal
