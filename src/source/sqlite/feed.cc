#include <fmt/format.h>

#include <algorithm>

#include "source/sqlite/impl.h"

namespace larder::source::sqlite {
namespace {

constexpr int kMostRows = 1'000;  // a batch
constexpr std::int64_t kTrimSlack = 1'000;
constexpr DurationUs kLongestBackoff = 1 * kSecond;
constexpr DurationUs kHeartbeat = 50 * kMillisecond;

}  // namespace

void OwnChanges::add(std::int64_t before, std::int64_t last) {
  if (!ranges_.empty() && ranges_.back().last == before) {
    ranges_.back().last = last;
    return;
  }
  ranges_.push_back({before, last});
  if (ranges_.size() > kMost) ranges_.pop_front();
}

bool OwnChanges::contains(std::int64_t seq) const {
  const auto range = std::ranges::lower_bound(ranges_, seq, {}, &Range::last);
  return range != ranges_.end() && range->before < seq;
}

void OwnChanges::drop_until(std::int64_t seq) {
  while (!ranges_.empty() && ranges_.front().last <= seq) ranges_.pop_front();
}

Task<void> Impl::run_feed(TaskGroup& group, ChangeSink sink) {
  if (!prepared_) co_return;
  const DurationUs pause = std::max<DurationUs>(options_.poll_us, kMillisecond);
  DurationUs backoff = pause;
  TimeUs last_heartbeat = 0;
  while (!group.stopping()) {
    Result<FeedStep> step;
    net::WorkerPool::Job job = [&](unsigned) { step = poll(); };
    const bool taken = co_await feed_pool_->run(std::move(job));
    if (!taken) step = fail(ErrorCode::internal, "the feed's thread has something else to do");
    note(step ? nullptr : &step.error());
    if (!step) {
      // No heartbeat: whoever needs to know that nothing was missed has to ask the source.
      backoff = std::min(backoff * 2, kLongestBackoff);
      const TimeUs next = monotonic_now_us() + backoff;
      co_await group.sleep_until(next);
      continue;
    }
    const TimeUs heartbeat = step->batch.heartbeat;
    const bool quiet = step->batch.changes.empty() && !step->batch.everything && !feed_.new_epoch;
    if (!quiet || heartbeat - last_heartbeat >= std::max(kHeartbeat, pause)) {
      const Result<void> applied = co_await deliver(*step, sink);
      if (!applied) {  // the same changes again, later
        backoff = std::min(backoff * 2, kLongestBackoff);
        const TimeUs next = monotonic_now_us() + backoff;
        co_await group.sleep_until(next);
        continue;
      }
      if (heartbeat != 0) last_heartbeat = heartbeat;
    } else {
      feed_.position = step->position;
      feed_.data_version = step->data_version;
    }
    backoff = pause;
    if (step->trim && !step->more) {
      const std::int64_t keep_after = feed_.position - kKeptChanges;
      WriterThread::Work work = [this, keep_after] { trim_now(keep_after); };
      const TimeUs patience = monotonic_now_us() + kSecond;
      co_await writer_thread_->run(WriterThread::Turn::wait, patience, std::move(work));
    }
    if (step->more) continue;
    const TimeUs next = monotonic_now_us() + pause;
    co_await group.sleep_until(next);
  }
}

// Moves the position only when the sink has taken the step: what it did not get is read again.
Task<Result<void>> Impl::deliver(FeedStep& step, const ChangeSink& sink) {
  ChangeBatch batch = std::move(step.batch);
  const Result<FeedOrder> order = co_await sink(std::move(batch));
  if (!order) co_return std::unexpected(order.error());
  feed_.position = step.position;
  feed_.data_version = step.data_version;
  feed_.everything = false;
  obey(*order);
  if (!feed_.new_epoch) co_return Result<void>{};
  const Result<void> begun = co_await begin_epoch(sink);
  co_return begun;
}

void Impl::obey(const FeedOrder& order) {
  feed_.new_epoch = order.new_epoch;
  if (!order.go_on_from || static_cast<std::int64_t>(*order.go_on_from) == feed_.position) return;
  feed_.position = static_cast<std::int64_t>(*order.go_on_from);
  feed_.data_version = -1;  // what lies behind it has to be read, whether or not anything is new
}

Task<Result<void>> Impl::begin_epoch(const ChangeSink& sink) {
  Result<ChangeBatch> batch = fail(ErrorCode::timeout, "the writer is busy");
  WriterThread::Work work = [&] { batch = floor_now(); };
  const TimeUs patience = monotonic_now_us() + kSecond;
  const auto outcome =
      co_await writer_thread_->run(WriterThread::Turn::wait, patience, std::move(work));
  if (outcome != WriterThread::Outcome::done)
    co_return fail(ErrorCode::timeout, "no floor in time");
  if (!batch) co_return std::unexpected(batch.error());
  const Result<FeedOrder> order = co_await sink(std::move(*batch));
  if (!order) co_return std::unexpected(order.error());
  obey(*order);
  co_return Result<void>{};
}

// While nobody else writes: every number up to the last belongs to a transaction that has ended.
Result<ChangeBatch> Impl::floor_now() {
  const auto connected = connect_writer();
  if (!connected) return std::unexpected(connected.error());
  Connection& db = *writer_.db;
  db.set_deadline(monotonic_now_us() + kSecond);
  auto begun = db.exec("BEGIN IMMEDIATE");
  if (!begun) return std::unexpected(begun.error());
  const auto last = db.query_integer(kSequenceSql);
  db.rollback();
  if (!last) return std::unexpected(last.error());
  ChangeBatch batch{.source_id = connected->source_id};
  batch.from = batch.to = static_cast<std::uint64_t>(*last);
  batch.xmin = batch.to + 1;
  batch.floor = batch.to;
  return batch;
}

Result<Impl::FeedStep> Impl::poll() {
  FeedStep step;
  const TimeUs began = monotonic_now_us();
  const auto incarnation = current();
  if (!incarnation) return std::unexpected(incarnation.error());
  const std::uint64_t generation = feed_.generation;
  const auto anew = connect(feed_.db, feed_.generation, *incarnation, Connection::Mode::read);
  if (!anew) return std::unexpected(anew.error());
  if (*anew) {
    feed_.data_version = -1;  // counts for one connection only
  }
  if (feed_.generation != generation) {
    feed_.everything = true;
    feed_.schema = -1;
  }

  Connection& db = *feed_.db;
  db.set_deadline(began + kSecond);
  step.position = feed_.position;
  step.batch.everything = feed_.everything;
  step.batch.source_id = incarnation->source_id;
  const auto version = db.query_integer("PRAGMA main.data_version");
  if (!version) return std::unexpected(version.error());
  step.data_version = *version;
  if (*version != feed_.data_version || feed_.everything) {
    auto done = db.exec("BEGIN");
    if (done) done = read_changes(step);
    db.rollback();
    if (!done) return std::unexpected(done.error());
    // What is ours has been invalidated before it was committed. A commit that runs now holds the
    // mutex; one that was read above has registered by the time that we get it.
    const std::lock_guard lock(commit_mutex_);
    // Numbers of another incarnation, or of a history that is gone, say nothing about ours.
    if (step.batch.everything) own_.clear();
    if (options_.feed_for == FeedFor::node)
      std::erase_if(step.batch.changes, [&](const RowChange& change) {
        return own_.contains(static_cast<std::int64_t>(change.x));
      });
    own_.drop_until(feed_.position);
  }
  if (step.batch.changes.empty()) step.batch.committed_at = 0;
  step.batch.from = static_cast<std::uint64_t>(feed_.position);
  step.batch.to = static_cast<std::uint64_t>(step.position);
  step.batch.xmin = step.batch.to + 1;
  if (!step.more)
    step.batch.heartbeat = began;
  else
    step.data_version = feed_.data_version;
  return step;
}

// In a read transaction.
Result<void> Impl::read_changes(FeedStep& step) {
  Connection& db = *feed_.db;
  const auto schema = db.query_integer("PRAGMA main.schema_version");
  if (!schema) return std::unexpected(schema.error());
  if (*schema != feed_.schema) {
    // A migration that rebuilds a table drops its triggers without a word.
    auto found = examine(db, options_.watched);
    if (!found) return std::unexpected(found.error());
    if (!found->complete) {
      feed_.everything = true;  // once it is right again: who knows what was missed
      return fail(ErrorCode::source_down,
                  fmt::format("the triggers of `larder source prepare` are gone or no longer fit, "
                              "changes made by others are not seen: run `larder source prepare {}`",
                              options_.name),
                  "sqlite");
    }
    feed_.columns = std::move(found->columns);
    feed_.schema = *schema;
    // Between two looks a table may have been without its triggers.
    step.batch.everything = feed_.everything = true;
  }
  const auto last = db.query_integer(kSequenceSql);
  if (!last) return std::unexpected(last.error());
  if (*last < feed_.position) {
    // The sequence went back: another database was copied over this one. Its numbers mean nothing.
    const auto file = file_id(options_.path);
    if (!file) return fail(ErrorCode::source_down, "the database file is missing", "sqlite");
    const Incarnation incarnation = renew(*file);
    feed_.generation = incarnation.generation;
    step.batch.source_id = incarnation.source_id;
    step.batch.everything = true;
  }
  const auto first =
      db.query_integer("SELECT coalesce(min(seq), 9223372036854775807) FROM larder_change");
  if (!first) return std::unexpected(first.error());
  step.trim = *first < *last - kKeptChanges - kTrimSlack;
  if (*last > feed_.position && *first > feed_.position + 1) step.batch.everything = true;
  if (step.batch.everything) {
    step.position = *last;
    return {};
  }
  return read_rows(step, *last);
}

Result<void> Impl::read_rows(FeedStep& step, std::int64_t last) {
  const auto stmt = feed_.db->cached(
      fmt::format("SELECT seq, at_ms, tbl, k1, k2, k3, k4 FROM larder_change WHERE seq > ?1 "
                  "ORDER BY seq LIMIT {}",
                  kMostRows),
      false);
  if (!stmt) return std::unexpected(stmt.error());
  const StmtUse use(**stmt);
  const Value after = feed_.position;
  (*stmt)->bind(1, after);
  int rows = 0;
  while (true) {
    const auto row = (*stmt)->step();
    if (!row) return std::unexpected(row.error());
    if (!*row) break;
    ++rows;
    step.position = (*stmt)->integer(0);
    const TimeUs at = (*stmt)->integer(1) * kMillisecond;
    const std::size_t had = step.batch.changes.size();
    feed_.columns.append(**stmt, 2, static_cast<policy::TxnId>(step.position), step.batch.changes);
    // Of the statement, which is a little before the commit.
    if (step.batch.changes.size() > had &&
        (step.batch.committed_at == 0 || at < step.batch.committed_at))
      step.batch.committed_at = at;
  }
  step.more = rows == kMostRows;
  if (!step.more) step.position = last;
  return {};
}

}  // namespace larder::source::sqlite
