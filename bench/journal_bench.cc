// Durable appends of 200 bytes: the journal's own log, beside SQLite (WAL, full sync) that commits
// what has gathered together, and SQLite with a commit for each
//
// As many coroutines on two loops as there are writers, each waits for its record to be durable
// before the next. `p50` and `p99` are of one append, in microseconds. The folder is
// LARDER_BENCH_DIR, else the system's for temporary files: on a memory file system nothing is
// measured.
#include <benchmark/benchmark.h>
#include <sqlite3.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "journal/log.h"
#include "net/runtime.h"

namespace larder::bench {
namespace {

using journal::Seq;

constexpr std::size_t kRecordBytes = 200;

class Recorder {
 public:
  virtual ~Recorder() = default;
  virtual Task<Result<Seq>> append(std::string record) = 0;
};

class OwnLog final : public Recorder {
 public:
  explicit OwnLog(const std::string& folder) {
    journal::Log::Options options;
    options.capacity_bytes = std::uint64_t{16} << 30;
    options.segments.id = 1;
    auto storage = journal::open_folder(folder);
    LARDER_ASSERT(storage);
    auto log = journal::Log::open(std::move(*storage), options, {}, {});
    LARDER_ASSERT(log);
    log_ = std::move(*log);
  }
  Task<Result<Seq>> append(std::string record) override { return log_->append(std::move(record)); }

 private:
  std::unique_ptr<journal::Log> log_;
};

// The same thread and the same groups in front of SQLite.
class Sqlite final : public Recorder {
 public:
  Sqlite(const std::string& folder, bool together) : together_(together) {
    std::filesystem::create_directories(folder);
    LARDER_ASSERT(sqlite3_open((folder + "/journal.db").c_str(), &db_) == SQLITE_OK);
    run("PRAGMA journal_mode=WAL");
    run("PRAGMA synchronous=FULL");
    run("CREATE TABLE journal(seq INTEGER PRIMARY KEY, record BLOB)");
    LARDER_ASSERT(sqlite3_prepare_v2(db_, "INSERT INTO journal(record) VALUES (?)", -1, &insert_,
                                     nullptr) == SQLITE_OK);
    thread_ = std::thread([this] { work(); });
  }
  ~Sqlite() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    ready_.notify_one();
    thread_.join();
    sqlite3_finalize(insert_);
    sqlite3_close(db_);
  }
  Task<Result<Seq>> append(std::string record) override {
    std::shared_ptr<Group> group;
    {
      const std::lock_guard lock(mutex_);
      if (!gathering_) gathering_ = std::make_shared<Group>();
      group = gathering_;
      group->records.push_back(std::move(record));
      if (!together_) {
        queue_.push_back(std::exchange(gathering_, nullptr));
      } else if (group->records.size() == 1) {
        queue_.push_back(group);
      }
    }
    ready_.notify_one();
    co_await group->done.wait();
    co_return Seq{1};
  }

 private:
  struct Group {
    std::vector<std::string> records;
    Waiters done;
  };
  void run(const char* sql) {
    LARDER_ASSERT(sqlite3_exec(db_, sql, nullptr, nullptr, nullptr) == SQLITE_OK);
  }
  void work() {
    for (;;) {
      std::shared_ptr<Group> group;
      {
        std::unique_lock lock(mutex_);
        ready_.wait(lock, [&] { return !queue_.empty() || stopping_; });
        if (queue_.empty()) return;
        group = queue_.front();
        queue_.erase(queue_.begin());
        if (group == gathering_) gathering_.reset();
      }
      run("BEGIN");
      for (const std::string& record : group->records) {
        sqlite3_bind_blob(insert_, 1, record.data(), static_cast<int>(record.size()),
                          SQLITE_STATIC);
        LARDER_ASSERT(sqlite3_step(insert_) == SQLITE_DONE);
        sqlite3_reset(insert_);
      }
      run("COMMIT");
      group->done.notify();
    }
  }

  const bool together_;
  sqlite3* db_ = nullptr;
  sqlite3_stmt* insert_ = nullptr;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::shared_ptr<Group> gathering_;
  std::vector<std::shared_ptr<Group>> queue_;
  bool stopping_ = false;
  std::thread thread_;
};

struct Run {
  Recorder& recorder;
  std::atomic<bool> stop = false;
  std::atomic<std::uint64_t> appended = 0;
};

Task<void> writer(Run& run, std::vector<DurationUs>& took) {
  const std::string record(kRecordBytes, 'r');
  while (!run.stop.load(std::memory_order_relaxed)) {
    const TimeUs began = monotonic_now_us();
    std::string copy = record;
    const Result<Seq> done = co_await run.recorder.append(std::move(copy));
    LARDER_ASSERT(done);
    took.push_back(monotonic_now_us() - began);
    run.appended.fetch_add(1, std::memory_order_relaxed);
  }
}

Task<void> join(TaskGroup& group, std::promise<void>& joined) {
  group.stop();
  co_await group.join();
  joined.set_value();
}

template <class Make>
void measure(benchmark::State& state, Make make) {
  const char* const given = std::getenv("LARDER_BENCH_DIR");
  const std::filesystem::path folder =
      std::filesystem::path(given ? given : std::filesystem::temp_directory_path().c_str()) /
      ("journal-bench-" + std::to_string(::getpid()));
  std::filesystem::remove_all(folder);
  {
    const std::unique_ptr<Recorder> recorder = make(folder.string());
    const std::unique_ptr<net::Runtime> runtime = net::Runtime::create(2);
    std::thread thread([&] { runtime->run(); });
    const auto writers = static_cast<std::size_t>(state.range(0));
    std::vector<std::vector<DurationUs>> took(writers);
    Run run{*recorder};
    TaskGroup group;
    TaskGroup waiter;
    const TimeUs began = monotonic_now_us();
    for (std::size_t i = 0; i < writers; ++i)
      runtime->loop(i % 2).post([&, i] { group.spawn(writer(run, took[i])); });
    for (auto _ : state) std::this_thread::sleep_for(std::chrono::seconds(3));
    run.stop = true;
    std::promise<void> joined;
    runtime->loop(0).post([&] { waiter.spawn(join(group, joined)); });
    joined.get_future().wait();
    const double seconds = static_cast<double>(monotonic_now_us() - began) / 1e6;
    runtime->stop();
    thread.join();
    std::vector<DurationUs> all;
    for (const auto& some : took) all.insert(all.end(), some.begin(), some.end());
    std::ranges::sort(all);
    state.counters["appends/s"] = static_cast<double>(run.appended.load()) / seconds;
    state.counters["p50"] = static_cast<double>(all[all.size() / 2]);
    state.counters["p99"] = static_cast<double>(all[all.size() * 99 / 100]);
  }
  std::filesystem::remove_all(folder);
}

void own_log(benchmark::State& state) {
  measure(state, [](const std::string& folder) { return std::make_unique<OwnLog>(folder); });
}
void sqlite_together(benchmark::State& state) {
  measure(state, [](const std::string& folder) { return std::make_unique<Sqlite>(folder, true); });
}
void sqlite_one_by_one(benchmark::State& state) {
  measure(state, [](const std::string& folder) { return std::make_unique<Sqlite>(folder, false); });
}
BENCHMARK(own_log)->Arg(1)->Arg(16)->Arg(128)->Arg(512)->Iterations(1)->Unit(benchmark::kSecond);
BENCHMARK(sqlite_together)
    ->Arg(1)
    ->Arg(16)
    ->Arg(128)
    ->Arg(512)
    ->Iterations(1)
    ->Unit(benchmark::kSecond);
BENCHMARK(sqlite_one_by_one)->Arg(1)->Arg(16)->Arg(128)->Iterations(1)->Unit(benchmark::kSecond);

}  // namespace
}  // namespace larder::bench

BENCHMARK_MAIN();
