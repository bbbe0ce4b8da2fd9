// For tests of sources: a loop on the test's own thread, folders, and another client of a SQLite
// file.
#pragma once

#include <gtest/gtest.h>
#include <sqlite3.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/loop.h"
#include "base/task.h"
#include "net/runtime.h"
#include "source/source.h"

namespace larder::source::testing {

// Runs tasks on the calling thread.
class TestLoop final : public Loop {
 public:
  void post(Callback callback) override {
    const std::lock_guard lock(mutex_);
    posted_.push_back(std::move(callback));
    ready_.notify_one();
  }
  TimerId call_at(TimeUs at, Callback callback) override {
    const TimerId id = ++last_timer_;
    timers_.emplace(std::pair(at, id), std::move(callback));
    return id;
  }
  void cancel(TimerId timer) override {
    std::erase_if(timers_, [&](const auto& entry) { return entry.first.second == timer; });
  }
  TimeUs now_us() const override { return monotonic_now_us(); }

  // Until `done` is true.
  void run_until(const std::function<bool()>& done) {
    Loop* const outer = current();
    set_current(this);
    while (!done()) run_one();
    set_current(outer);
  }

  // Runs the task and everything that it waits for.
  template <class T>
  T run(Task<T> task) {
    std::optional<T> result;
    TaskGroup group;
    run_in(group, [&] { group.spawn(keep(std::move(task), result)); });
    run_until([&] { return result.has_value(); });
    join(group);
    return std::move(*result);
  }

  void spawn(TaskGroup& group, Task<void> task) {
    run_in(group, [&] { group.spawn(std::move(task)); });
  }

  void join(TaskGroup& group) {
    bool ended = false;
    TaskGroup joiner;
    group.stop();
    run_in(joiner, [&] { joiner.spawn(joined(group, ended)); });
    run_until([&] { return ended && joiner.running() == 0; });
  }

 private:
  template <class T>
  static Task<void> keep(Task<T> task, std::optional<T>& result) {
    T value = co_await task;
    result.emplace(std::move(value));
  }
  static Task<void> joined(TaskGroup& group, bool& ended) {
    co_await group.join();
    ended = true;
  }
  template <class Start>
  void run_in(TaskGroup&, Start start) {
    Loop* const outer = current();
    set_current(this);
    start();
    set_current(outer);
  }

  void run_one() {
    Callback callback;
    if (!timers_.empty() && timers_.begin()->first.first <= monotonic_now_us()) {
      callback = std::move(timers_.extract(timers_.begin()).mapped());
    } else {
      std::unique_lock lock(mutex_);
      const auto some = [&] { return !posted_.empty(); };
      if (timers_.empty()) {
        ready_.wait(lock, some);
      } else {
        const DurationUs left = timers_.begin()->first.first - monotonic_now_us();
        ready_.wait_for(lock, std::chrono::microseconds(std::max<DurationUs>(0, left)), some);
      }
      if (posted_.empty()) return;
      callback = std::move(posted_.front());
      posted_.pop_front();
    }
    callback();
  }

  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Callback> posted_;
  std::map<std::pair<TimeUs, TimerId>, Callback> timers_;
  TimerId last_timer_ = 0;
};

// The same on loops of net::Runtime, for sources that read sockets. The first loop runs on the
// calling thread, while something is run.
class RuntimeLoop {
 public:
  explicit RuntimeLoop(unsigned loops = 1) : runtime_(net::Runtime::create(loops)) {}

  Loop& loop(unsigned index = 0) { return runtime_->loop(index); }

  void run_until(const std::function<bool()>& done) {
    loop().post([this, &done] { look(done); });
    runtime_->run();
  }

  template <class T>
  T run(Task<T> task) {
    std::optional<T> result;
    TaskGroup group;
    loop().post([&] { group.spawn(keep(std::move(task), result)); });
    runtime_->run();
    return std::move(*result);
  }

  // Starts with the next run.
  void spawn(TaskGroup& group, Task<void> task) {
    loop().post([&group, task = std::move(task)]() mutable { group.spawn(std::move(task)); });
  }

  void join(TaskGroup& group) {
    TaskGroup joiner;
    loop().post([&] {
      group.stop();
      joiner.spawn(joined(group));
    });
    runtime_->run();
  }

 private:
  void look(const std::function<bool()>& done) {
    if (done()) return runtime_->stop();
    loop().call_at(loop().now_us() + kMillisecond, [this, &done] { look(done); });
  }
  template <class T>
  Task<void> keep(Task<T> task, std::optional<T>& result) {
    T value = co_await task;
    result.emplace(std::move(value));
    runtime_->stop();
  }
  Task<void> joined(TaskGroup& group) {
    co_await group.join();
    runtime_->stop();
  }

  std::unique_ptr<net::Runtime> runtime_;
};

// A folder that goes with the object.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = ::testing::TempDir() + "larder-source-XXXXXX";
    const char* const made = mkdtemp(pattern.data());
    EXPECT_NE(made, nullptr);
    path_ = made ? made : "";
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// Another program that uses a SQLite file: plain SQLite, nothing of Larder.
class OtherClient {
 public:
  explicit OtherClient(const std::string& path) {
    EXPECT_EQ(sqlite3_open(path.c_str(), &db_), SQLITE_OK);
    sqlite3_busy_timeout(db_, 10'000);
  }
  ~OtherClient() { sqlite3_close(db_); }
  OtherClient(const OtherClient&) = delete;
  OtherClient& operator=(const OtherClient&) = delete;

  void exec(const std::string& sql) {
    EXPECT_EQ(sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr), SQLITE_OK)
        << sqlite3_errmsg(db_) << " in " << sql;
  }
  // What may fail.
  void try_exec(const std::string& sql) {
    sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr);
  }
  // "a|b" for each row, separated by spaces.
  std::string query(const std::string& sql) {
    std::string out;
    const auto row = [](void* out, int columns, char** values, char**) {
      auto& text = *static_cast<std::string*>(out);
      for (int i = 0; i < columns; ++i)
        text += (i > 0          ? "|"
                 : text.empty() ? ""
                                : " ") +
                std::string(values[i] ? values[i] : "NULL");
      return 0;
    };
    EXPECT_EQ(sqlite3_exec(db_, sql.c_str(), row, &out, nullptr), SQLITE_OK)
        << sqlite3_errmsg(db_) << " in " << sql;
    return out;
  }

 private:
  sqlite3* db_ = nullptr;
};

// Collects what a feed delivers.
struct Sink {
  std::vector<ChangeBatch> batches;
  int refuse = 0;                 // so many batches with changes
  std::vector<FeedOrder> orders;  // given one a batch, then none

  ChangeSink sink() {
    return [this](ChangeBatch batch) { return take(*this, std::move(batch)); };
  }
  static Task<Result<FeedOrder>> take(Sink& self, ChangeBatch batch) {
    if (self.refuse > 0 && !batch.changes.empty()) {
      --self.refuse;
      co_return fail(ErrorCode::io, "the engine is down");
    }
    self.batches.push_back(std::move(batch));
    FeedOrder order;
    if (!self.orders.empty()) {
      order = self.orders.front();
      self.orders.erase(self.orders.begin());
    }
    co_return order;
  }
  bool everything() const { return std::ranges::any_of(batches, &ChangeBatch::everything); }
  // "watched:value,value" of every change.
  std::vector<std::string> changes() const {
    std::vector<std::string> out;
    for (const auto& batch : batches)
      for (const auto& change : batch.changes) out.push_back(text(change));
    return out;
  }
  static std::string text(const RowChange& change) {
    std::string out = std::to_string(change.watched_id) + ":";
    for (std::size_t i = 0; i < change.values.size(); ++i)
      out += (i > 0 ? "," : "") + change.values[i].value_or("NULL");
    return out;
  }
  TimeUs heartbeat() const {
    TimeUs last = 0;
    for (const auto& batch : batches) last = std::max(last, batch.heartbeat);
    return last;
  }
};

}  // namespace larder::source::testing
