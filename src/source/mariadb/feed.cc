#include "source/mariadb/feed.h"

#include <fmt/format.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <random>
#include <thread>

#include "base/random.h"
#include "resilience/backoff.h"
#include "source/mariadb/connection.h"
#include "source/mariadb/log_stream.h"
#include "source/mariadb/prepare.h"

namespace larder::source::mariadb {
namespace {

constexpr resilience::BackoffLimits kReconnect = {.first_us = 50 * kMillisecond,
                                                  .most_us = 2 * kSecond};
constexpr DurationUs kRefusedPause = 50 * kMillisecond;
constexpr DurationUs kConnectPatience = 3 * kSecond;
constexpr DurationUs kPatience = 10 * kSecond;
constexpr DurationUs kOwnPatience = 2 * kMillisecond;
constexpr std::size_t kMostRows = 20'000;  // that wait to be delivered, but for one transaction
constexpr std::size_t kBatchRows = 1'000;

}  // namespace

// From a connection to its loss: the thread that reads, and what it has read.
struct Feed::Period {
  struct Begun {
    LogPosition at;
  };
  // ---- the loop's ----
  struct Taken {
    std::optional<Begun> begun;
    std::deque<LoggedTransaction> transactions;
    LogPosition reached;  // all that lies before is in `transactions`, or was taken before
    std::optional<Error> ended;
    std::shared_ptr<Waiters> wake;  // notified when there is more
  };
  Taken take() {
    const std::lock_guard lock(mutex_);
    Taken out{.begun = std::exchange(begun_, std::nullopt),
              .transactions = std::exchange(transactions_, {}),
              .reached = reached_,
              .ended = ended_,
              .wake = {}};
    rows_ = 0;
    room_.notify_one();
    if (!wake_ || wake_->notified()) wake_ = std::make_shared<Waiters>();
    out.wake = wake_;
    return out;
  }
  // Wake the loop when the reader has got there.
  void expect(LogPosition place) {
    const std::lock_guard lock(mutex_);
    expected_ = place;
    if (reached_ >= place) wake();
  }
  void stop() {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    room_.notify_one();
    if (stream_) stream_->interrupt();
    wake();
  }
  void join() {
    if (thread_.joinable()) thread_.join();
  }
  void start(const FeedOptions& options) {
    thread_ = std::thread([this, &options] { work(options); });
  }

  // ---- the thread's ----
  void work(const FeedOptions& options) {
    Result<void> done = read(options);
    const std::lock_guard lock(mutex_);
    stream_ = nullptr;
    ended_ = done ? Error{ErrorCode::cancelled, "Larder is shutting down", {}} : done.error();
    wake();
  }
  Result<void> read(const FeedOptions& options) {
    auto db = Setup::open(options.url, kConnectPatience);
    if (!db) return std::unexpected(std::move(db.error()));
    auto facts = examine_log(**db, options.watched);
    if (!facts) return std::unexpected(std::move(facts.error()));
    if (!facts->works()) return fail(ErrorCode::source_down, facts->why_not(), "mariadb");
    auto stream = LogStream::open(std::move(*db), facts->file, facts->end.offset);
    if (!stream) return std::unexpected(std::move(stream.error()));
    if (!publish(stream->get(), facts->end)) return {};
    BinlogReader reader(
        {.tables = std::move(facts->tables), .start = facts->end, .checksums = facts->checksums});
    for (;;) {
      const auto event = (*stream)->next();
      if (stopping()) return {};
      if (!event) return std::unexpected(event.error());
      auto transaction = reader.take(*event);
      if (!transaction) return std::unexpected(std::move(transaction.error()));
      const bool altered = *transaction && (*transaction)->tables_changed;
      std::string why = altered ? (*transaction)->why : std::string();
      if (!put(std::move(*transaction), reader.position())) return {};
      if (altered) return fail(ErrorCode::source_down, std::move(why), "mariadb");
    }
  }
  bool stopping() {
    const std::lock_guard lock(mutex_);
    return stopping_;
  }
  // False: it is to end.
  bool publish(LogStream* stream, LogPosition at) {
    const std::lock_guard lock(mutex_);
    if (stopping_) return false;
    stream_ = stream;
    begun_ = Begun{at};
    reached_ = at;
    wake();
    return true;
  }
  bool put(std::optional<LoggedTransaction> transaction, LogPosition reached) {
    std::unique_lock lock(mutex_);
    if (transaction) {
      room_.wait(lock, [&] { return rows_ < kMostRows || stopping_; });
      rows_ += 1 + transaction->changes.size();
      transactions_.push_back(std::move(*transaction));
    }
    reached_ = std::max(reached_, reached);
    if (!transactions_.empty() || (expected_ && reached_ >= *expected_)) wake();
    return !stopping_;
  }
  void wake() {
    expected_.reset();
    if (wake_) wake_->notify();
  }

  std::mutex mutex_;
  std::condition_variable room_;
  std::optional<Begun> begun_;
  std::deque<LoggedTransaction> transactions_;
  std::size_t rows_ = 0;
  LogPosition reached_;
  std::optional<LogPosition> expected_;
  std::optional<Error> ended_;
  bool stopping_ = false;
  LogStream* stream_ = nullptr;  // while it lives
  std::shared_ptr<Waiters> wake_;
  std::thread thread_;
  // The loop's own.
  std::unique_ptr<Connection> sql_;
};

Feed::Feed(FeedOptions options, Numbers& numbers)
    : options_(std::move(options)), numbers_(numbers) {}
Feed::~Feed() = default;

void Feed::note(std::string condition) {
  if (condition == condition_) return;
  condition_ = std::move(condition);
  if (options_.log)
    options_.log(fmt::format("source {}: {}", options_.name,
                             condition_.empty() ? "its log is read again" : condition_));
}

Task<void> Feed::run(TaskGroup& group, ChangeSink sink) {
  TaskGroup watching;
  watching.spawn(interrupt_at_stop(group));
  resilience::Backoff backoff(kReconnect);
  Random random(options_.salt);
  while (!group.stopping()) {
    has_read_ = false;
    const Result<void> ended = co_await read(group, sink);
    if (has_read_) backoff.reset();
    if (group.stopping() || ended) continue;
    note(fmt::format("its log cannot be read, changes by others are not seen: {}",
                     ended.error().message));
    const TimeUs next = monotonic_now_us() + backoff.next(random);
    co_await group.sleep_until(next);
  }
  watching.stop();
  co_await watching.join();
}

Task<void> Feed::interrupt_at_stop(TaskGroup& group) {
  co_await group.sleep_until(kNever);
  if (!period_) co_return;
  period_->stop();
  if (period_->sql_) period_->sql_->interrupt();
}

Task<Result<void>> Feed::read(TaskGroup& group, const ChangeSink& sink) {
  Period period;
  auto url = Url::parse(options_.url);
  if (!url) co_return std::unexpected(std::move(url.error()));
  Url copy = *url;
  auto sql = co_await Connection::connect(std::move(copy), monotonic_now_us() + kConnectPatience);
  if (!sql) co_return std::unexpected(std::move(sql.error()));
  period.sql_ = std::move(*sql);
  if (group.stopping()) co_return Result<void>{};
  period_ = &period;
  period.start(options_);
  const Result<void> done = co_await follow(period, group, sink);
  period_ = nullptr;
  period.stop();
  period.join();
  co_return done;
}

Task<Result<void>> Feed::follow(Period& period, TaskGroup& group, const ChangeSink& sink) {
  auto facts =
      co_await period.sql_->run_one(std::string(kIncarnationSql), monotonic_now_us() + kPatience);
  if (!facts) co_return std::unexpected(std::move(facts.error()));
  const std::uint64_t source_id = incarnation_of(*facts, options_.salt);
  struct Question {
    TimeUs at = 0;
    LogPosition end;
  };
  std::optional<Question> asked;
  LogPosition last_end;
  TimeUs ask_at = 0;
  bool begun = false;
  for (;;) {
    Period::Taken taken = period.take();
    if (group.stopping()) co_return Result<void>{};
    if (taken.begun) {
      // What was committed before is told no more; loads that have not seen it are of no use.
      begun = true;
      ChangeBatch all{.changes = {}, .everything = true, .source_id = source_id};
      all.floor = numbers_.begin_log(taken.begun->at);
      const Result<void> done = co_await deliver(std::move(all), group, sink);
      if (!done) co_return done;
      ask_at = 0;
    }
    ChangeBatch batch{.changes = {}, .source_id = source_id};
    for (std::size_t i = 0; i < taken.transactions.size(); ++i) {
      LoggedTransaction& transaction = taken.transactions[i];
      const auto x = co_await number_of(transaction, group);
      if (transaction.everything) {
        if (options_.log)
          options_.log(fmt::format("source {}: {}: all entries of the source are void",
                                   options_.name, transaction.why));
        batch.everything = true;
        batch.floor = x;
      }
      for (LoggedTransaction::Change& change : transaction.changes)
        batch.changes.push_back(
            {.watched_id = change.watched_id, .values = std::move(change.values), .x = x});
      const bool last = i + 1 == taken.transactions.size();
      if (!last && batch.changes.size() < kBatchRows) continue;
      const Result<void> done = co_await deliver(
          std::exchange(batch, {.changes = {}, .source_id = source_id}), group, sink);
      if (!done) co_return done;
    }
    if (taken.ended) co_return std::unexpected(std::move(*taken.ended));
    const TimeUs now = monotonic_now_us();
    if (asked && taken.reached >= asked->end) {
      ChangeBatch beat{.changes = {}, .source_id = source_id};
      beat.heartbeat = asked->at;
      asked.reset();
      const Result<void> done = co_await deliver(std::move(beat), group, sink);
      if (!done) co_return done;
      has_read_ = true;
      note("");
    }
    if (begun && !asked && now >= ask_at) {
      auto end = co_await period.sql_->run_one("SHOW MASTER STATUS", now + kPatience);
      if (!end) co_return std::unexpected(std::move(end.error()));
      const auto at =
          end->next() ? LogPosition::parse(end->value(0).value_or(""), end->value(1).value_or(""))
                      : std::nullopt;
      if (!at || *at < last_end)
        co_return fail(ErrorCode::source_down,
                       "the server's log was begun anew (RESET MASTER): all entries of the source "
                       "are void",
                       "mariadb");
      last_end = *at;
      asked = {.at = now, .end = *at};
      ask_at = now + options_.heartbeat_us;
      period.expect(*at);
      continue;
    }
    co_await taken.wake->wait_until(asked || !begun ? now + kSecond : ask_at);
  }
}

// One of our own has a number already. Its COMMIT may not have been answered yet: the answer is on
// its way together with what the log says.
Task<policy::TxnId> Feed::number_of(const LoggedTransaction& transaction, TaskGroup& group) {
  const TimeUs until = monotonic_now_us() + kOwnPatience;
  for (;;) {
    const bool committing = numbers_.committing();
    if (const auto known = numbers_.ours(transaction.gtid)) co_return *known;
    const TimeUs now = monotonic_now_us();
    if (!committing || now >= until || group.stopping()) break;
    co_await group.sleep_until(now + kOwnPatience / 8);
  }
  co_return numbers_.tell(transaction.end);
}

Task<Result<void>> Feed::deliver(ChangeBatch batch, TaskGroup& group, const ChangeSink& sink) {
  for (;;) {
    ChangeBatch copy = batch;
    const Result<FeedOrder> order = co_await sink(std::move(copy));
    if (order) co_return Result<void>{};
    if (group.stopping()) co_return std::unexpected(order.error());
    // The same again, later.
    const TimeUs next = monotonic_now_us() + kRefusedPause;
    co_await group.sleep_until(next);
  }
}

}  // namespace larder::source::mariadb
