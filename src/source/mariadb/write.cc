#include <fmt/format.h>

#include <algorithm>

#include "source/mariadb/impl.h"

namespace larder::source::mariadb {

// An open write: its statements ran.
struct Impl::Written {
  policy::TxnId number = 0;  // among numbers_
  policy::TxnId x = 0;
  std::uint64_t source_id = 0;
  std::vector<std::int64_t> affected;
  std::vector<std::optional<std::string>> values;
};

namespace {

// A commit that begins before the deadline may end a little after it.
constexpr DurationUs kCommitGrace = 1 * kSecond;

// The first column of the first row: raw bytes of what is binary, else the canonical text.
std::optional<std::string> first_value(Reply& reply) {
  if (!reply.next() || reply.columns() == 0) return std::nullopt;
  const auto value = reply.value(0);
  const ColumnKind kind = kind_of(reply.field(0));
  if (value && kind == ColumnKind::bytes) return std::string(*value);
  return canonical_text(kind, value);
}

class MariadbTransaction final : public Transaction {
 public:
  template <class Written>
  MariadbTransaction(Impl& source, SessionPool::Lease lease, Written written, TimeUs deadline)
      : source_(source),
        lease_(std::move(lease)),
        deadline_(deadline),
        number_(written.number),
        x_(written.x),
        source_id_(written.source_id),
        affected_(std::move(written.affected)),
        values_(std::move(written.values)) {}
  ~MariadbTransaction() override {
    if (lease_) source_.roll_back(std::move(lease_), number_);
  }
  MariadbTransaction(const MariadbTransaction&) = delete;
  MariadbTransaction& operator=(const MariadbTransaction&) = delete;

  // None: the write path names what it wrote.
  const std::vector<RowChange>& changes() const override { return changes_; }
  policy::TxnId x() const override { return x_; }
  std::uint64_t source_id() const override { return source_id_; }
  const std::vector<std::int64_t>& affected() const override { return affected_; }
  const std::vector<std::optional<std::string>>& values() const override { return values_; }
  Task<Result<void>> commit() override {
    if (!lease_) co_return fail(ErrorCode::internal, "the transaction has ended already");
    SessionPool::Lease lease = std::move(lease_);
    const TimeUs until = std::max(deadline_, monotonic_now_us());
    Result<void> done =
        co_await source_.commit(std::move(lease), number_, saturating_add(until, kCommitGrace));
    co_return done;
  }

 private:
  Impl& source_;
  SessionPool::Lease lease_;
  const TimeUs deadline_;
  const policy::TxnId number_;
  const policy::TxnId x_;
  const std::uint64_t source_id_;
  const std::vector<RowChange> changes_;
  const std::vector<std::int64_t> affected_;
  const std::vector<std::optional<std::string>> values_;
};

}  // namespace

Task<Result<std::unique_ptr<Transaction>>> Impl::write(std::vector<Statement> statements,
                                                       TimeUs deadline) {
  Loop* const home = Loop::current();
  end_setup();
  auto taken = co_await pool_->take(deadline);
  if (!taken) {
    health_.note(&taken.error(), taken.error().code == ErrorCode::source_down);
    co_return std::unexpected(taken.error());
  }
  SessionPool::Lease lease = std::move(*taken);
  auto written = co_await write_on(*lease, statements, deadline);
  const bool down = lease->broken() && !written && written.error().code == ErrorCode::source_down;
  if (!written) {
    lease->settle();
    lease.give_back();
  }
  co_await resume_on(*home);
  health_.note(written ? nullptr : &written.error(), down);
  if (!written) co_return std::unexpected(written.error());
  std::unique_ptr<Transaction> transaction =
      std::make_unique<MariadbTransaction>(*this, std::move(lease), std::move(*written), deadline);
  co_return transaction;
}

Task<Result<Impl::Written>> Impl::write_on(Session& session,
                                           const std::vector<Statement>& statements,
                                           TimeUs deadline) {
  struct Step {
    std::string sql;  // as it is prepared
    Literals params;
  };
  std::vector<Step> steps;
  for (const Statement& statement : statements) {
    const auto sql = SqlText::parse(statement.sql, Dialect::mariadb);
    if (!sql) co_return std::unexpected(sql.error());
    auto literals = literals_of(*sql, statement.params, ErrorCode::bad_value, "there is");
    if (!literals) co_return std::unexpected(literals.error());
    steps.push_back({.sql = sql->positional(), .params = std::move(*literals)});
  }
  for (bool again = true;; again = false) {
    Script script;
    session.make_room(script, steps.size());
    script.add("START TRANSACTION");
    session.open = true;
    std::vector<std::size_t> at;  // where the statements' replies are
    for (const Step& step : steps) {
      const std::string name = session.prepare(script, step.sql);
      at.push_back(script.add(execute(name, step.params)));
    }
    const TimeUs sent = monotonic_now_us();
    auto ran = co_await run(session, script, deadline);
    if (metrics_.writes) metrics_.writes->add(steps.size());
    if (metrics_.seconds) metrics_.seconds->record(monotonic_now_us() - sent);
    if (!ran) co_return std::unexpected(ran.error());
    std::vector<Reply> replies = std::move(*ran);
    session.note_prepared(script, replies);
    if (const Reply& last = replies.back(); !last.ok()) {
      const Error error = last.error();
      // The next session may find the primary.
      if (is_read_only(last.error_number(), error.message)) session.retired = true;
      // A prepared statement that a pooler has lost. Nothing is done yet.
      if (again && last.error_number() == kNoSuchPrepared) {
        session.settle();
        continue;
      }
      co_return std::unexpected(error);
    }
    if (!session.connection->in_transaction()) {
      session.open = false;
      co_return fail(
          ErrorCode::source_refused,
          "a statement has ended the transaction that it ran in (as DDL does): what came "
          "before it is committed",
          "mariadb");
    }
    Written out{.source_id = session.server};
    for (std::size_t i = 0; i < at.size(); ++i) {
      Reply& reply = replies[at[i]];
      const bool query = reply.has_rows() && is_query(steps[i].sql);  // and not RETURNING
      out.affected.push_back(query ? 0 : reply.affected());
      out.values.push_back(statements[i].wants_value ? first_value(reply) : std::nullopt);
    }
    out.number = numbers_.begin(session.server);
    if (capabilities_.snapshots) out.x = out.number;
    co_return out;
  }
}

Task<Result<void>> Impl::commit(SessionPool::Lease lease, policy::TxnId number, TimeUs deadline) {
  Loop* const home = Loop::current();
  co_await resume_on(lease->loop());
  Result<void> done;
  Script script;
  script.add("COMMIT");
  if (feed_) script.add("SELECT @@last_gtid");
  numbers_.commit_begins();
  auto replies = co_await run(*lease, script, deadline);
  if (!replies) {
    const bool late = replies.error().code == ErrorCode::timeout;
    done = fail(late ? ErrorCode::timeout : ErrorCode::source_down,
                fmt::format("whether the transaction was committed is not known: {}",
                            replies.error().message),
                "mariadb");
    numbers_.doubt(number, lease->lock);
  } else {
    if (!replies->front().ok())
      done = std::unexpected(replies->front().error());
    else
      lease->open = false;
    if (Reply& gtid = replies->back(); replies->size() == 2 && gtid.ok() && gtid.next())
      numbers_.committed(number, std::string(gtid.value(0).value_or("")));
    numbers_.end(number);
  }
  numbers_.commit_ends();
  const bool down = lease->broken();
  lease->settle();
  lease.give_back();
  co_await resume_on(*home);
  health_.note(done ? nullptr : &done.error(), down);
  co_return done;
}

// Sent and not waited for: whoever uses the connection next waits for it first. If it cannot even
// be sent, the connection goes, and the server rolls back by itself. Either way it never commits.
void Impl::roll_back(SessionPool::Lease lease, policy::TxnId number) {
  lease->settle();
  numbers_.end(number);
}

}  // namespace larder::source::mariadb
