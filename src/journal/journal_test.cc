#include "journal/journal.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <map>
#include <thread>

#include "journal/testing.h"
#include "net/runtime.h"

namespace larder::journal {
namespace {

Record write_of(const std::string& source, const std::string& key, const std::string& value) {
  return {.source = source,
          .written_at = 1,
          .ops = {{.kind = Op::Kind::set, .cache = "c", .key = key, .value = value}}};
}

struct JournalTest : ::testing::Test {
  JournalTest() : runtime(net::Runtime::create(2)), thread([this] { runtime->run(); }) {}
  ~JournalTest() override {
    std::promise<void> joined;
    runtime->loop(0).post([&] { last.spawn(join(joined)); });
    joined.get_future().wait();
    journal.reset();
    runtime->stop();
    thread.join();
  }
  Task<void> join(std::promise<void>& joined) {
    group.stop();
    co_await group.join();
    joined.set_value();
  }
  // The process ends, and another begins.
  void open(std::uint64_t segment_bytes = 1 << 20) {
    journal.reset();
    Journal::Options options;
    options.log.segments.segment_bytes = segment_bytes;
    auto opened = Journal::open(std::make_unique<SimStorage>(disk), options);
    ASSERT_TRUE(opened) << opened.error().message;
    journal = std::move(*opened);
  }
  static Task<void> keep(Journal& journal, Record record, std::promise<Seq>& done) {
    auto queued = journal.enqueue(record);
    EXPECT_TRUE(queued);
    const Result<Seq> seq = co_await journal.durable(std::move(*queued));
    EXPECT_TRUE(seq);
    done.set_value(seq.value_or(0));
  }
  Seq append(Record record) {
    std::promise<Seq> done;
    runtime->loop(next++ % 2).post([&] { group.spawn(keep(*journal, std::move(record), done)); });
    return done.get_future().get();
  }
  static Task<void> give_way(Journal& journal, Seq seq, std::promise<bool>& done) {
    std::vector<Op> keys{{.kind = Op::Kind::remove,
                          .cache = "c",
                          .key = "k",
                          .value = {},
                          .delta = static_cast<std::int64_t>(seq)}};
    const Result<void> yielded = co_await journal.yield("a", std::move(keys));
    done.set_value(yielded.has_value());
  }
  std::optional<std::string> find(const std::string& key) {
    const auto found = journal->pending().find(key, hash_bytes(key));
    return found ? std::optional(found->value) : std::nullopt;
  }

  SimDisk disk;
  std::unique_ptr<Journal> journal;
  TaskGroup group, last;
  std::atomic<unsigned> next = 0;
  std::unique_ptr<net::Runtime> runtime;
  std::thread thread;
};

TEST_F(JournalTest, WhatWaitsIsFoundAgainAndWhatIsAppliedIsNot) {
  open();
  const std::uint64_t id = journal->id();
  EXPECT_NE(id, 0U);
  const Seq first = append(write_of("a", "k", "1"));
  append(write_of("b", "l", "2"));
  const Seq third = append(write_of("a", "k", "3"));
  EXPECT_EQ(find("k"), "3");
  journal->applied("a", first);
  EXPECT_EQ(find("k"), "3");
  open();
  EXPECT_EQ(journal->id(), id);
  EXPECT_EQ(journal->replayed(), 2U);
  EXPECT_EQ(find("k"), "3");
  EXPECT_EQ(find("l"), "2");
  journal->applied("a", third);
  open();
  EXPECT_EQ(journal->replayed(), 1U);
  EXPECT_FALSE(find("k"));
}

TEST_F(JournalTest, WhatHasGivenWayStaysSo) {
  open();
  const Seq seq = append(write_of("a", "k", "1"));
  std::promise<bool> done;
  runtime->loop(0).post([&] { group.spawn(give_way(*journal, seq, done)); });
  EXPECT_TRUE(done.get_future().get());
  EXPECT_FALSE(find("k"));
  open();
  EXPECT_FALSE(find("k"));
  const Coalesced work = coalesce(journal->pending().first("a", 10, 1 << 20));
  EXPECT_TRUE(work.ops.empty());
  EXPECT_EQ(work.yielded.size(), 1U);
}

// Trimming goes on beside appending: what is durable and nobody has applied is never trimmed.
TEST_F(JournalTest, NothingIsTrimmedThatWaits) {
  open(256);  // a few records a segment
  constexpr int kRounds = 3000;
  std::map<std::string, Seq> kept;
  std::atomic<bool> stop = false;
  std::thread applier([&] {
    while (!stop) {
      const auto batch = journal->pending().first("a", 1000, 1 << 20);
      if (!batch.records.empty()) journal->applied("a", batch.upto());
    }
  });
  for (int i = 0; i < kRounds; ++i) append(write_of("a", "k", std::to_string(i)));
  for (int i = 0; i < 50; ++i) {
    append(write_of("a", "k", "x"));
    const std::string key = "b" + std::to_string(i);
    kept[key] = append(write_of("b", key, key));
  }
  stop = true;
  applier.join();
  open(256);
  for (const auto& [key, seq] : kept) EXPECT_EQ(find(key), key) << seq;
  EXPECT_LT(journal->bytes(), 40'000U) << "and the rest was trimmed";
}

}  // namespace
}  // namespace larder::journal
