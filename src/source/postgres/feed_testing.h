// For tests of the feed: a sink that remembers, and a feed that runs on a test's loop.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "source/postgres/feed.h"
#include "source/postgres/testing.h"

namespace larder::source::postgres::testing {

using source::testing::RuntimeLoop;

inline std::string text(const RowChange& change) {
  std::string out = std::to_string(change.watched_id) + ":";
  for (std::size_t i = 0; i < change.values.size(); ++i)
    out += (i > 0 ? "," : "") + change.values[i].value_or("NULL");
  return out;
}

// What a feed has delivered, and what it is told next.
struct FeedSink {
  std::vector<ChangeBatch> batches;
  std::deque<FeedOrder> orders;  // one a batch, then `always`
  FeedOrder always;
  int refuse = 0;  // so many batches with changes

  ChangeSink sink() {
    return [this](ChangeBatch batch) { return take(*this, std::move(batch)); };
  }
  static Task<Result<FeedOrder>> take(FeedSink& self, ChangeBatch batch) {
    if (self.refuse > 0 && !batch.changes.empty()) {
      --self.refuse;
      co_return fail(ErrorCode::engine_down, "not now");
    }
    self.batches.push_back(std::move(batch));
    if (self.orders.empty()) co_return self.always;
    const FeedOrder order = self.orders.front();
    self.orders.pop_front();
    co_return order;
  }

  std::vector<std::string> changes() const {
    std::vector<std::string> out;
    for (const ChangeBatch& batch : batches)
      for (const RowChange& change : batch.changes) out.push_back(text(change));
    return out;
  }
  bool has(const std::string& change) const { return std::ranges::count(changes(), change) > 0; }
  std::vector<policy::TxnId> numbers() const {
    std::vector<policy::TxnId> out;
    for (const ChangeBatch& batch : batches)
      for (const RowChange& change : batch.changes) out.push_back(change.x);
    return out;
  }
  int everything() const {
    return static_cast<int>(std::ranges::count_if(batches, &ChangeBatch::everything));
  }
  TimeUs heartbeat() const {
    TimeUs last = 0;
    for (const ChangeBatch& batch : batches) last = std::max(last, batch.heartbeat);
    return last;
  }
  Lsn position() const { return batches.empty() ? 0 : batches.back().to; }
};

// A feed that runs until stop().
class RunningFeed {
 public:
  RunningFeed(RuntimeLoop& loop, FeedOptions options) : loop_(loop), options_(std::move(options)) {
    options_.log = [this](std::string line) {
      if (std::getenv("LARDER_TEST_LOG")) std::fprintf(stderr, "%s\n", line.c_str());
      lines.push_back(std::move(line));
    };
  }
  ~RunningFeed() { stop(); }

  void start() {
    feed_ = std::make_unique<Feed>(options_);
    group_ = std::make_unique<TaskGroup>();
    loop_.spawn(*group_, feed_->run(*group_, sink.sink()));
  }
  void stop() {
    if (!group_) return;
    loop_.join(*group_);
    group_.reset();
    feed_.reset();
  }
  // Until everything that is committed now has been delivered.
  void catch_up() {
    const TimeUs now = monotonic_now_us();
    loop_.run_until([&] { return sink.heartbeat() > now; });
  }
  void until(const std::function<bool()>& done) { loop_.run_until(done); }
  bool said(std::string_view part) const {
    return std::ranges::any_of(lines, [&](const std::string& line) { return line.contains(part); });
  }

  FeedSink sink;
  std::vector<std::string> lines;

 private:
  RuntimeLoop& loop_;
  FeedOptions options_;
  std::unique_ptr<Feed> feed_;
  std::unique_ptr<TaskGroup> group_;
};

}  // namespace larder::source::postgres::testing
