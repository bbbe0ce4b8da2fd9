// A source that answers what the test says, when the test says.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "sim.h"

namespace larder::sim {

// Rows by key text ("7", or "7|en" for two parameters); every load takes `latency`.
class ScriptedSource final : public source::Source {
 public:
  const source::Capabilities& capabilities() const override { return capabilities_; }

  Task<Result<source::Loaded>> load(std::uint32_t statement, std::vector<source::Params> keys,
                                    source::LoadTerms terms) override {
    const TimeUs deadline = terms.deadline;
    ++loads;
    last_batch = keys.size();
    Loop* const loop = Loop::current();
    const TimeUs began = loop->now_us();
    const DurationUs takes = std::min<DurationUs>(latency, deadline - began);
    const bool answers_late_of_this = answers_late || (terms.may_be_older && replica.has_value());
    const bool by_replica = terms.may_be_older && replica.has_value();
    const auto seen = by_replica ? *replica : rows;
    const std::uint64_t seen_seq = by_replica ? replica_seq : seq;
    co_await delay(takes);
    if (takes < latency) co_return fail(ErrorCode::timeout, "slow", "script");
    if (down) co_return fail(ErrorCode::source_down, "down", "script");
    source::Loaded loaded;
    loaded.as_of = began - behind_us;
    loaded.took_us = takes;
    loaded.replica = by_replica;
    if (by_replica) loaded.as_of -= replica_lag_us;
    const std::uint64_t next = (answers_late_of_this ? seen_seq : seq) + 1;
    loaded.snapshot = {.source_id = source_id, .xmin = next, .xmax = next, .in_progress = {}};
    for (const source::Params& key : keys) {
      std::string text;
      for (const source::NamedValue& param : key) {
        if (!text.empty()) text += '|';
        text += std::holds_alternative<std::int64_t>(param.value)
                    ? std::to_string(std::get<std::int64_t>(param.value))
                    : std::get<std::string>(param.value);
      }
      source::Row row;
      const auto& shown = answers_late_of_this ? seen : rows;
      const auto found = shown.find(statement >= 1 ? "warm" : text);
      row.found = found != shown.end();
      if (row.found) row.value = found->second;
      row.tag_values.push_back(category);
      row.key_values = {key_column};
      loaded.rows.emplace_back(std::move(row));
    }
    co_return loaded;
  }

  Task<Result<std::unique_ptr<source::Transaction>>> write(
      std::vector<source::Statement> statements, TimeUs) override {
    if (down) co_return fail(ErrorCode::source_down, "down", "script");
    co_await delay(100);
    written = std::move(statements);
    co_return std::unique_ptr<source::Transaction>(std::make_unique<ScriptedTransaction>(*this));
  }

  Task<void> run_feed(TaskGroup& group, source::ChangeSink given) override {
    sink = std::move(given);
    while (!group.stopping()) {
      if (heartbeats) {
        source::ChangeBatch beat;
        beat.source_id = source_id;
        beat.heartbeat = Loop::current()->now_us();
        const Result<source::FeedOrder> applied = co_await sink(std::move(beat));
        EXPECT_TRUE(applied.has_value());
      }
      const TimeUs next = Loop::current()->now_us() + 50 * kMillisecond;
      const bool stopping = co_await group.sleep_until(next);
      if (stopping) break;
    }
  }

  source::Capabilities capabilities_{.kind = "script",
                                     .snapshots = true,
                                     .feed = true,
                                     .feed_rests_on = "a script",
                                     .why_no_feed = {}};
  std::map<std::string, std::string> rows;
  // What a replica shows, which has replayed the changes up to replica_seq; nullopt: there is none.
  std::optional<std::map<std::string, std::string>> replica;
  std::uint64_t replica_seq = 0;
  DurationUs replica_lag_us = 0;
  std::optional<std::string> category = "a", key_column;
  DurationUs latency = kMillisecond;
  DurationUs behind_us = 0;  // what a load shows was so this long ago
  bool down = false;
  bool answers_late = false;  // the state at the beginning of the load, not at its end
  bool heartbeats = true;
  bool commit_fails = false;
  std::uint64_t seq = 0, source_id = 1;
  std::size_t loads = 0, last_batch = 0;
  std::vector<source::Statement> written;
  std::function<void()> at_commit;
  source::ChangeSink sink;

 private:
  class ScriptedTransaction final : public source::Transaction {
   public:
    explicit ScriptedTransaction(ScriptedSource& source) : source_(source), x_(source.seq + 1) {
      affected_.resize(source.written.size(), 1);
      values_.resize(source.written.size(), "42");
    }
    const std::vector<source::RowChange>& changes() const override { return changes_; }
    policy::TxnId x() const override { return x_; }
    std::uint64_t source_id() const override { return source_.source_id; }
    const std::vector<std::int64_t>& affected() const override { return affected_; }
    const std::vector<std::optional<std::string>>& values() const override { return values_; }
    Task<Result<void>> commit() override {
      co_await delay(100);
      if (source_.commit_fails) co_return fail(ErrorCode::source_down, "lost", "script");
      source_.seq = x_;
      if (source_.at_commit) source_.at_commit();
      co_return Result<void>{};
    }

   private:
    ScriptedSource& source_;
    policy::TxnId x_;
    std::vector<source::RowChange> changes_;
    std::vector<std::int64_t> affected_;
    std::vector<std::optional<std::string>> values_;
  };
};

}  // namespace larder::sim
