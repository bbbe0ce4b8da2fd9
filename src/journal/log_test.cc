#include "journal/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <future>
#include <set>

#include "journal/testing.h"
#include "net/runtime.h"

namespace larder::journal {
namespace {

using ::testing::HasSubstr;

// Syncs of files wait until they are let.
class HeldStorage final : public Storage {
 public:
  explicit HeldStorage(SimDisk& disk) : inner_(disk) {}

  Result<std::vector<std::string>> list() override { return inner_.list(); }
  Result<std::string> read(const std::string& name) override { return inner_.read(name); }
  Result<std::unique_ptr<File>> open(const std::string& name) override {
    Result<std::unique_ptr<File>> file = inner_.open(name);
    if (!file) return file;
    return std::make_unique<HeldFile>(*this, std::move(*file));
  }
  Result<void> replace(const std::string& name, std::string_view bytes) override {
    return inner_.replace(name, bytes);
  }
  Result<void> remove(const std::string& name) override { return inner_.remove(name); }
  Result<void> sync_names() override { return inner_.sync_names(); }

  std::atomic<int> syncs = 0;
  std::binary_semaphore started{0};
  std::binary_semaphore let{0};
  std::atomic<bool> hold = false;

 private:
  class HeldFile final : public File {
   public:
    HeldFile(HeldStorage& owner, std::unique_ptr<File> file)
        : owner_(owner), file_(std::move(file)) {}
    Result<void> append(std::string_view bytes) override { return file_->append(bytes); }
    Result<void> sync() override {
      ++owner_.syncs;
      if (owner_.hold.exchange(false)) {
        owner_.started.release();
        owner_.let.acquire();
      }
      return file_->sync();
    }
    Result<void> cut(std::uint64_t size) override { return file_->cut(size); }

   private:
    HeldStorage& owner_;
    const std::unique_ptr<File> file_;
  };
  SimStorage inner_;
};

struct LogTest : ::testing::Test {
  LogTest() : runtime(net::Runtime::create(2)), thread([this] { runtime->run(); }) {}
  ~LogTest() override {
    runtime->stop();
    thread.join();
  }
  void open(Log::Options options = {}) {
    options.segments.id = 3;
    auto storage = std::make_unique<HeldStorage>(disk);
    held = storage.get();
    auto opened = Log::open(
        std::move(storage), options,
        [this](Seq seq, std::string_view record) { replayed[seq] = record; },
        [this](Seq seq, std::string_view record) { durable.emplace_back(seq, record); });
    ASSERT_TRUE(opened) << opened.error().message;
    log = std::move(*opened);
  }
  static Task<void> append_one(Log& log, std::string record, std::promise<Result<Seq>>& done) {
    Result<Seq> appended = co_await log.append(std::move(record));
    done.set_value(std::move(appended));
  }
  // Begins on one of the loops.
  std::future<Result<Seq>> begin(std::string record) {
    auto promise = std::make_shared<std::promise<Result<Seq>>>();
    std::promise<void> spawned;
    runtime->loop(next_loop++ % 2).post([&, promise, record = std::move(record)]() mutable {
      group.spawn(keep(*log, std::move(record), promise));
      spawned.set_value();
    });
    spawned.get_future().wait();
    return promise->get_future();
  }
  static Task<void> keep(Log& log, std::string record,
                         std::shared_ptr<std::promise<Result<Seq>>> promise) {
    co_await append_one(log, std::move(record), *promise);
  }
  void join() {
    std::promise<void> joined;
    runtime->loop(0).post([&] { waiter.spawn(join_all(joined)); });
    joined.get_future().wait();
  }
  Task<void> join_all(std::promise<void>& joined) {
    group.stop();
    co_await group.join();
    joined.set_value();
  }

  SimDisk disk;
  HeldStorage* held = nullptr;
  std::map<Seq, std::string> replayed;
  std::vector<std::pair<Seq, std::string>> durable;
  std::unique_ptr<Log> log;
  TaskGroup group, waiter;
  unsigned next_loop = 0;
  std::unique_ptr<net::Runtime> runtime;
  std::thread thread;
};

TEST_F(LogTest, WhatComesWhileTheDiskIsBusyGoesOutTogether) {
  open();
  const int before = held->syncs;
  held->hold = true;
  std::vector<std::future<Result<Seq>>> appended;
  appended.push_back(begin("r0"));
  held->started.acquire();
  for (int i = 1; i <= 100; ++i) appended.push_back(begin("r" + std::to_string(i)));
  held->let.release();
  std::vector<Seq> numbers;  // of all first: until then the log's thread adds to `durable`
  for (auto& one : appended) {
    const Result<Seq> seq = one.get();
    ASSERT_TRUE(seq);
    numbers.push_back(*seq);
  }
  for (std::size_t i = 0; i < numbers.size(); ++i)
    EXPECT_EQ(durable[numbers[i] - 1], std::pair(numbers[i], "r" + std::to_string(i)));
  const std::set<Seq> seqs(numbers.begin(), numbers.end());
  EXPECT_EQ(seqs.size(), 101u);
  EXPECT_EQ(*seqs.rbegin(), 101u);
  EXPECT_EQ(held->syncs - before, 2);
  join();
  log.reset();
  open();
  EXPECT_EQ(replayed.size(), 101u);
  for (const auto& [seq, record] : durable) EXPECT_EQ(replayed[seq], record);
}

TEST_F(LogTest, NobodyIsToldBeforeItIsDurable) {
  open();
  held->hold = true;
  std::future<Result<Seq>> one = begin("one");
  held->started.acquire();
  EXPECT_NE(one.wait_for(std::chrono::seconds(0)), std::future_status::ready);
  EXPECT_EQ(durable.size(), 0u);
  held->let.release();
  EXPECT_TRUE(one.get());
  join();
}

TEST_F(LogTest, AFailedDiskFailsAllAndForGood) {
  open();
  held->hold = true;
  std::vector<std::future<Result<Seq>>> appended;
  appended.push_back(begin("a"));
  held->started.acquire();
  appended.push_back(begin("b"));
  disk.syncs_until_failure = 0;
  held->let.release();
  for (auto& one : appended) {
    const Result<Seq> seq = one.get();
    ASSERT_FALSE(seq);
    EXPECT_EQ(seq.error().code, ErrorCode::io);
  }
  EXPECT_TRUE(log->failed());
  EXPECT_FALSE(begin("c").get());
  EXPECT_EQ(durable.size(), 0u);
  join();
}

TEST_F(LogTest, IsBounded) {
  open({.capacity_bytes = 2'000, .queue_bytes = 1'000, .segments = {.segment_bytes = 500}});
  held->hold = true;
  std::future<Result<Seq>> first = begin("x");
  held->started.acquire();
  std::future<Result<Seq>> fits = begin(std::string(900, 'y'));
  Result<Seq> waits = begin(std::string(900, 'z')).get();
  ASSERT_FALSE(waits);
  EXPECT_EQ(waits.error().code, ErrorCode::overloaded);
  EXPECT_THAT(waits.error().message, HasSubstr("than the disk takes"));
  held->let.release();
  EXPECT_TRUE(first.get());
  EXPECT_TRUE(fits.get());
  EXPECT_TRUE(begin(std::string(700, 'z')).get());
  Result<Seq> full = begin(std::string(700, 'z')).get();
  ASSERT_FALSE(full);
  EXPECT_THAT(full.error().message, HasSubstr("the journal is full"));
  log->trim(log->next());
  // The thread removes in its own time: whoever comes after that finds room.
  while (log->bytes() > 1'000) std::this_thread::yield();
  EXPECT_TRUE(begin(std::string(700, 'z')).get());
  const Result<Seq> large = begin(std::string(kMostRecord + 1, 'z')).get();
  ASSERT_FALSE(large);
  EXPECT_EQ(large.error().code, ErrorCode::too_large);
  join();
}

TEST_F(LogTest, WhatWasAcceptedIsWrittenBeforeItEnds) {
  open();
  std::vector<std::future<Result<Seq>>> appended;
  for (int i = 0; i < 50; ++i) appended.push_back(begin("r"));
  join();
  for (auto& one : appended) EXPECT_TRUE(one.get());
  log.reset();
  open();
  EXPECT_EQ(replayed.size(), 50u);
}

// ---- on real files ----

struct FolderTest : ::testing::Test {
  FolderTest() {
    path = (std::filesystem::temp_directory_path() / ("journal-" + std::to_string(::getpid())))
               .string();
    std::filesystem::remove_all(path);
  }
  ~FolderTest() override { std::filesystem::remove_all(path); }
  std::string path;
};

TEST_F(FolderTest, IsOneProcessesOwn) {
  const auto first = open_folder(path + "/a/b");
  ASSERT_TRUE(first) << first.error().message;
  const auto second = open_folder(path + "/a/b");
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, ErrorCode::config);
  EXPECT_THAT(second.error().message, HasSubstr("another process has the journal"));
}

TEST_F(FolderTest, KeepsASegmentsBytes) {
  std::map<Seq, std::string> found;
  const auto each = [&](Seq seq, std::string_view record) { found[seq] = record; };
  for (int life = 0; life < 3; ++life) {
    auto folder = open_folder(path);
    ASSERT_TRUE(folder);
    auto segments = Segments::open(**folder, {.segment_bytes = 256, .id = 5}, each);
    ASSERT_TRUE(segments) << segments.error().message;
    for (int i = 0; i < 10; ++i) {
      FrameWriter frame;
      frame.add(std::to_string(life) + std::string(50, '.'));
      ASSERT_TRUE((*segments)->append(frame));
    }
    ASSERT_TRUE((*segments)->trim((*segments)->next() - 5));
  }
  auto folder = open_folder(path);
  const auto report = Segments::check(**folder, each);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->next, 31u);
  EXPECT_FALSE(report->damaged);
  EXPECT_EQ((*folder)->list()->size(), report->segments.size() + 1) << "and the reserve";
  EXPECT_TRUE((*folder)->open("none").error().message.contains("none"));
}

}  // namespace
}  // namespace larder::journal
