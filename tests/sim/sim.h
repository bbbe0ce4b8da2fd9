// A world in one thread: a loop with a virtual clock, and a source that commits, delays, fails and
// forgets as the dice say. The same seed gives the same run.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <string>
#include <vector>

#include "base/loop.h"
#include "base/random.h"
#include "base/task.h"
#include "source/source.h"

namespace larder::sim {

class SimLoop final : public Loop {
 public:
  explicit SimLoop(TimeUs start = 1'000'000'000) : now_(start) { set_current(this); }
  ~SimLoop() override { set_current(nullptr); }

  void post(Callback callback) override { push(now_, std::move(callback)); }
  TimerId call_at(TimeUs at, Callback callback) override {
    return push(std::max(at, now_), std::move(callback));
  }
  void cancel(TimerId timer) override {
    if (timer) waiting_.erase(timer);
  }
  TimeUs now_us() const override { return now_; }

  // Runs until nothing is left to do. False: `steps` did not suffice (something spins).
  bool run(std::size_t steps = 50'000'000) {
    while (!queue_.empty()) {
      if (steps-- == 0) return false;
      const auto [at, id] = queue_.top();
      queue_.pop();
      const auto found = waiting_.find(id);
      if (found == waiting_.end()) continue;  // cancelled
      Callback callback = std::move(found->second);
      waiting_.erase(found);
      now_ = at;
      callback();
    }
    return true;
  }

 private:
  TimerId push(TimeUs at, Callback callback) {
    const TimerId id = ++last_id_;
    waiting_.emplace(id, std::move(callback));
    queue_.emplace(at, id);
    return id;
  }

  TimeUs now_;
  TimerId last_id_ = 0;
  std::priority_queue<std::pair<TimeUs, TimerId>, std::vector<std::pair<TimeUs, TimerId>>,
                      std::greater<>>
      queue_;  // by time, then in the order of posting
  std::map<TimerId, Callback> waiting_;
};

// A plain delay on the current loop.
inline auto delay(DurationUs us) {
  struct Awaiter {
    DurationUs us;
    bool await_ready() const { return us <= 0; }
    void await_suspend(std::coroutine_handle<> handle) {
      Loop* const loop = Loop::current();
      loop->call_at(loop->now_us() + us, [handle] { handle.resume(); });
    }
    void await_resume() const {}
  };
  return Awaiter{us};
}

// Faults, as chances in [0, 1] for each operation.
struct Faults {
  double load_fails = 0;
  double load_hangs = 0;  // beyond any deadline; ends with `timeout`
  double commit_fails = 0;
  double feed_stalls = 0;   // no change and no heartbeat for a while
  double feed_forgets = 0;  // history gone
  double replaced = 0;      // another incarnation, at a change by others
  bool fails_loads() const { return load_fails > 0 || load_hangs > 0; }
};

// One table of rows id -> version (the number of the transaction that wrote it last), serialised
// writers, snapshots in the manner of a change table, a feed with a delay.
class FakeSource final : public source::Source {
 public:
  struct Commit {
    policy::TxnId x;
    std::int64_t id;
    bool foreign;
    TimeUs at;
    std::string token;  // what the writer wrote: finds its commit again
  };

  FakeSource(SimLoop& loop, Random& random, const Faults& faults, bool feed, bool snapshots)
      : loop_(loop), random_(random), faults_(faults) {
    capabilities_ = {.kind = "fake",
                     .snapshots = snapshots,
                     .feed = feed,
                     .feed_rests_on = "the simulation",
                     .why_no_feed = "switched off"};
  }

  const source::Capabilities& capabilities() const override { return capabilities_; }

  Task<Result<source::Loaded>> load(std::uint32_t, std::vector<source::Params> keys,
                                    source::LoadTerms terms) override {
    const TimeUs deadline = terms.deadline;
    ++loads;
    const TimeUs began = loop_.now_us();
    co_await delay(latency());
    if (random_.chance(faults_.load_hangs)) {
      co_await delay(deadline - loop_.now_us());
      co_return fail(ErrorCode::timeout, "hangs", "fake");
    }
    if (random_.chance(faults_.load_fails)) co_return fail(ErrorCode::source_down, "down", "fake");
    source::Loaded loaded;
    loaded.as_of = began;
    if (capabilities_.snapshots)
      loaded.snapshot = {
          .source_id = source_id_, .xmin = seq_ + 1, .xmax = seq_ + 1, .in_progress = {}};
    for (const source::Params& key : keys) {
      const std::int64_t id = std::get<std::int64_t>(key.front().value);
      source::Row row;
      const auto found = rows_.find(id);
      row.found = found != rows_.end();
      if (row.found) row.value = std::to_string(found->second);
      row.key_values = {std::to_string(id)};
      row.tag_values = {std::to_string(id % 3)};
      loaded.rows.emplace_back(std::move(row));
    }
    co_await delay(latency());  // the answer is on its way while others write
    loaded.took_us = loop_.now_us() - began;
    co_return loaded;
  }

  Task<Result<std::unique_ptr<source::Transaction>>> write(
      std::vector<source::Statement> statements, TimeUs) override {
    while (locked_) co_await delay(50);
    locked_ = true;
    co_await delay(latency());
    auto transaction = std::make_unique<FakeTransaction>(*this);
    transaction->x_ = ++allocated_;
    transaction->source_id_ = source_id_;
    for (const source::Statement& statement : statements)
      for (const source::NamedValue& param : statement.params)
        if (param.name == "value") {
          transaction->token_ = std::get<std::string>(param.value);
        } else if (param.name == "id") {
          const std::int64_t id = std::get<std::int64_t>(param.value);
          transaction->ids_.push_back(id);
          transaction->changes_.push_back({0, {std::to_string(id)}, transaction->x_});
          transaction->affected_.push_back(1);
          transaction->values_.emplace_back();
        }
    co_return std::unique_ptr<source::Transaction>(std::move(transaction));
  }

  // Somebody else's transaction.
  Task<void> foreign_write(std::int64_t id) {
    while (locked_) co_await delay(50);
    locked_ = true;
    co_await delay(latency());
    if (random_.chance(faults_.replaced)) {  // another file with the same rows, and its own numbers
      ++source_id_;
      log_.clear();
      everything_ = true;
    }
    commit(++allocated_, {id}, true, {});
    locked_ = false;
  }

  Task<void> run_feed(TaskGroup& group, source::ChangeSink sink) override {
    if (!capabilities_.feed) co_return;
    std::size_t position = 0;
    while (!group.stopping()) {
      const TimeUs polled = loop_.now_us();
      source::ChangeBatch batch{.changes = {},
                                .everything = std::exchange(everything_, false),
                                .source_id = source_id_,
                                .heartbeat = polled,
                                .committed_at = 0};
      if (batch.everything) position = 0;
      position = std::min(position, log_.size());
      if (position < log_.size() && random_.chance(faults_.feed_forgets)) {
        batch.everything = true;
        position = log_.size();
      }
      std::vector<Commit> delivered;
      for (; position < log_.size(); ++position)
        if (log_[position].foreign) {
          batch.changes.push_back({0, {std::to_string(log_[position].id)}, log_[position].x});
          delivered.push_back(log_[position]);
        }
      const bool everything = batch.everything;
      if (everything) delivered = history_of(source_id_);
      const Result<source::FeedOrder> applied = co_await sink(std::move(batch));
      LARDER_ASSERT(applied.has_value());
      for (const Commit& one : delivered) processed(one.id, one.x);
      const bool stalls = random_.chance(faults_.feed_stalls);
      const TimeUs wake = loop_.now_us() + (stalls ? 3 * kSecond : 10 * kMillisecond);
      const bool stopping = co_await group.sleep_until(wake);
      if (stopping) break;
    }
  }

  // ---- what really happened, for the checker ----

  // The version that the row has now.
  policy::TxnId version(std::int64_t id) const {
    const auto found = rows_.find(id);
    return found == rows_.end() ? 0 : found->second;
  }
  // The least version that a read which begins now must show, by what was processed so far.
  policy::TxnId processed_version(std::int64_t id) const {
    const auto found = processed_.find(id);
    return found == processed_.end() ? 0 : found->second;
  }
  // ... and by what was committed before `at`.
  policy::TxnId committed_before(std::int64_t id, TimeUs at) const {
    policy::TxnId latest = 0;
    for (const Commit& one : history_)
      if (one.id == id && one.at < at) latest = one.x;
    return latest;
  }
  void processed(std::int64_t id, policy::TxnId x) {
    policy::TxnId& latest = processed_[id];
    latest = std::max(latest, x);
  }
  // The transaction that wrote `token`; 0 if none has.
  policy::TxnId written_by(std::string_view token) const {
    for (const Commit& one : history_)
      if (one.token == token) return one.x;
    return 0;
  }
  void insert(std::int64_t id) { rows_[id] = 0; }

  std::size_t loads = 0;
  std::size_t commits = 0;

 private:
  class FakeTransaction final : public source::Transaction {
   public:
    explicit FakeTransaction(FakeSource& source) : source_(source) {}
    ~FakeTransaction() override {
      if (!ended_) source_.end_without_commit(x_);
    }
    const std::vector<source::RowChange>& changes() const override { return changes_; }
    policy::TxnId x() const override { return x_; }
    std::uint64_t source_id() const override { return source_id_; }
    const std::vector<std::int64_t>& affected() const override { return affected_; }
    const std::vector<std::optional<std::string>>& values() const override { return values_; }
    Task<Result<void>> commit() override {
      co_await delay(source_.latency());
      ended_ = true;
      if (source_.random_.chance(source_.faults_.commit_fails)) {
        source_.end_without_commit(x_);
        co_return fail(ErrorCode::source_down, "commit failed", "fake");
      }
      source_.commit(x_, ids_, false, token_);
      source_.locked_ = false;
      co_await delay(source_.latency());  // the answer is on its way
      co_return Result<void>{};
    }

    FakeSource& source_;
    std::vector<source::RowChange> changes_;
    std::vector<std::int64_t> ids_, affected_;
    std::string token_;
    std::vector<std::optional<std::string>> values_;
    policy::TxnId x_ = 0;
    std::uint64_t source_id_ = 0;
    bool ended_ = false;
  };

  void commit(policy::TxnId x, const std::vector<std::int64_t>& ids, bool foreign,
              const std::string& token) {
    for (const std::int64_t id : ids) {
      rows_[id] = x;
      log_.push_back({x, id, foreign, loop_.now_us(), token});
      history_.push_back(log_.back());
    }
    seq_ = std::max(seq_, x);
    ++commits;
  }
  // A number that was handed out is never seen again; it must not be waited for.
  void end_without_commit(policy::TxnId x) {
    seq_ = std::max(seq_, x);
    locked_ = false;
  }
  std::vector<Commit> history_of(std::uint64_t) const { return history_; }
  DurationUs latency() {
    return static_cast<DurationUs>(20 + random_.below(random_.chance(0.1) ? 20'000 : 300));
  }

  SimLoop& loop_;
  Random& random_;
  Faults faults_;
  source::Capabilities capabilities_;
  std::map<std::int64_t, policy::TxnId> rows_;
  std::map<std::int64_t, policy::TxnId> processed_;
  std::vector<Commit> log_;
  std::vector<Commit> history_;
  policy::TxnId seq_ = 0;
  policy::TxnId allocated_ = 0;
  std::uint64_t source_id_ = 1;
  bool everything_ = false;
  bool locked_ = false;
};

}  // namespace larder::sim
