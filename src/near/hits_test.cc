#include "near/hits.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <map>
#include <thread>
#include <vector>

namespace larder::near {
namespace {

class Hits : public testing::Test {
 protected:
  Hits() : name_("test-hits-" + std::to_string(getpid())) {}
  ~Hits() override { shm_unlink(shared_hits(name_).c_str()); }

  std::map<Hash, int> drain(HitRing& ring) {
    std::map<Hash, int> hits;
    ring.drain([&](Hash hash) { ++hits[hash]; });
    return hits;
  }

  std::string name_;
};

TEST_F(Hits, AreToldAtOnceIfTheyAreRare) {
  HitRing ring = *HitRing::create(name_);
  HitWriter writer(name_);
  EXPECT_TRUE(drain(ring).empty());
  writer.record(0, 17, kSecond);
  EXPECT_EQ(drain(ring), (std::map<Hash, int>{{17, 1}}));
  EXPECT_TRUE(drain(ring).empty());  // told once
  writer.record(0, 18, kSecond + HitWriter::kWait);
  EXPECT_EQ(drain(ring), (std::map<Hash, int>{{18, 1}}));
}

TEST_F(Hits, AreCollectedIfTheyAreMany) {
  HitRing ring = *HitRing::create(name_);
  HitWriter writer(name_);
  writer.record(0, 1, kSecond);
  drain(ring);
  for (Hash hash = 1; hash < HitBatch::kHashes; ++hash) writer.record(0, hash, kSecond);
  EXPECT_TRUE(drain(ring).empty());
  writer.record(0, HitBatch::kHashes, kSecond);
  const auto hits = drain(ring);
  EXPECT_EQ(hits.size(), HitBatch::kHashes);
  for (const auto& [hash, times] : hits) EXPECT_EQ(times, 1) << hash;
  EXPECT_EQ(writer.dropped(), 0U);
}

TEST_F(Hits, OfManyThreadsComeMostly) {
  HitRing ring = *HitRing::create(name_);
  HitWriter writer(name_);
  std::vector<std::thread> threads;
  for (unsigned lane = 0; lane < 4; ++lane)
    threads.emplace_back([&writer, lane] {
      for (Hash i = 1; i <= 630; ++i) writer.record(lane, lane * 1000 + i, 0);
    });
  for (std::thread& thread : threads) thread.join();
  std::size_t count = 0;
  for (const auto& [hash, times] : drain(ring)) count += static_cast<std::size_t>(times);
  EXPECT_GT(count, 1000U);
  EXPECT_LE(count, 4 * 630U);
}

TEST_F(Hits, AreDroppedWhereTheyCannotBeWritten) {
  HitWriter writer(name_);  // there is no file
  writer.record(0, 1, kSecond);
  EXPECT_EQ(writer.dropped(), 1U);
}

// It is a signal that kills otherwise.
TEST_F(Hits, AreDroppedByAProcessThatMayNotWriteFiles) {
  const HitRing ring = *HitRing::create(name_);
  HitWriter writer(name_);
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit none = before;
  none.rlim_cur = 0;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &none), 0);
  writer.record(0, 1, kSecond);
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(writer.dropped(), 1U);
}

// Whoever may write the file may do anything to it.
TEST_F(Hits, SurviveAHostileReader) {
  HitRing ring = *HitRing::create(name_);
  const int fd = shm_open(shared_hits(name_).c_str(), O_RDWR, 0);
  ASSERT_GE(fd, 0);
  std::vector<std::uint64_t> garbage(kHitBytes / 8, 0x1234567890abcdefULL);
  ASSERT_EQ(pwrite(fd, garbage.data(), kHitBytes, 0), static_cast<ssize_t>(kHitBytes));
  EXPECT_EQ(ring.drain([](Hash) {}), kHitSlots * HitBatch::kHashes);  // and not more
  EXPECT_EQ(ring.drain([](Hash) {}), 0U);
  ASSERT_EQ(ftruncate(fd, 700), 0);
  EXPECT_EQ(ring.drain([](Hash) {}), 0U);
  ASSERT_EQ(ftruncate(fd, 0), 0);
  EXPECT_EQ(ring.drain([](Hash) {}), 0U);
  ASSERT_EQ(ftruncate(fd, 1 << 30), 0);
  EXPECT_EQ(ring.drain([](Hash) {}), 0U);
  close(fd);
  HitWriter writer(name_);
  writer.record(0, 5, kSecond);
  EXPECT_EQ(drain(ring), (std::map<Hash, int>{{5, 1}}));
}

TEST_F(Hits, GoOnWhenTheNodeStartsAgain) {
  auto first = std::make_unique<HitRing>(*HitRing::create(name_));
  HitWriter writer(name_);
  writer.record(0, 1, kSecond);
  first.reset();
  HitRing second = *HitRing::create(name_);
  EXPECT_TRUE(drain(second).empty());  // of another life
  writer.record(0, 2, 2 * kSecond);
  EXPECT_EQ(drain(second), (std::map<Hash, int>{{2, 1}}));
}

TEST_F(Hits, MayBeWrittenByTheGroup) {
  const mode_t before = umask(022);
  const HitRing ring = *HitRing::create(name_);
  umask(before);
  const int fd = shm_open(shared_hits(name_).c_str(), O_RDONLY, 0);
  struct stat status{};
  ASSERT_EQ(fstat(fd, &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0660U);
  close(fd);
}

}  // namespace
}  // namespace larder::near
