#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "source/postgres/impl.h"

namespace larder::source::postgres {

// An open write: its statements ran.
struct Impl::Written {
  policy::TxnId x = 0;
  std::uint64_t source_id = 0;
  std::vector<RowChange> changes;
  std::vector<std::int64_t> affected;
  std::vector<std::optional<std::string>> values;
};

namespace {

// A commit that begins before the deadline may end a little after it.
constexpr DurationUs kCommitGrace = 1 * kSecond;
constexpr std::size_t kMostPrepared = 256;  // writes, on one connection

Result<Texts> texts_of(const SqlText& sql, const Params& params) {
  Texts out;
  for (const std::string& name : sql.names()) {
    const auto given = std::ranges::find(params, name, &NamedValue::name);
    if (given == params.end())
      return fail(ErrorCode::bad_value, fmt::format("no value is given for :{}", name));
    auto text = param_of(given->value);
    if (!text)
      return fail(ErrorCode::bad_value, fmt::format(":{} is {}", name, text.error().message));
    out.push_back(std::move(*text));
  }
  return out;
}

// The first column of the first row: raw bytes of a bytea, else the canonical text.
std::optional<std::string> first_value(const Reply& reply) {
  if (reply.rows() == 0 || reply.columns() == 0) return std::nullopt;
  const auto value = reply.value(0, 0);
  if (value && kind_of(reply.type(0)) == ColumnKind::bytes) return bytes_of(*value);
  return canonical_text(reply.type(0), value);
}

class PostgresTransaction final : public Transaction {
 public:
  template <class Written>
  PostgresTransaction(Impl& source, SessionPool::Lease lease, Written written, TimeUs deadline)
      : source_(source),
        lease_(std::move(lease)),
        deadline_(deadline),
        x_(written.x),
        source_id_(written.source_id),
        changes_(std::move(written.changes)),
        affected_(std::move(written.affected)),
        values_(std::move(written.values)) {}
  ~PostgresTransaction() override {
    if (lease_) Impl::roll_back(std::move(lease_));
  }
  PostgresTransaction(const PostgresTransaction&) = delete;
  PostgresTransaction& operator=(const PostgresTransaction&) = delete;

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
        co_await source_.commit(std::move(lease), saturating_add(until, kCommitGrace));
    co_return done;
  }

 private:
  Impl& source_;
  SessionPool::Lease lease_;
  const TimeUs deadline_;
  const policy::TxnId x_;
  const std::uint64_t source_id_;
  const std::vector<RowChange> changes_;
  const std::vector<std::int64_t> affected_;
  const std::vector<std::optional<std::string>> values_;
};

}  // namespace

ChangeReader own_changes(const ChangeTable& names, std::vector<TableName> tables) {
  return {.sql = fmt::format(
              "SELECT rel, cols FROM {} WHERE n IS NULL AND x = pg_current_xact_id()", names.name),
          .read = [tables = std::move(tables)](const Reply& reply,
                                               policy::TxnId x) -> Result<std::vector<RowChange>> {
            std::vector<RowChange> changes;
            for (int row = 0; row < reply.rows(); ++row) {
              TableChange change{.rel = std::string(reply.value(row, 0).value_or("")), .cols = {}};
              if (const auto cols = reply.value(row, 1)) change.cols = std::string(*cols);
              if (auto named = changes_of(change, x, tables, changes); !named)
                return std::unexpected(named.error());
            }
            return changes;
          }};
}

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
      std::make_unique<PostgresTransaction>(*this, std::move(lease), std::move(*written), deadline);
  co_return transaction;
}

Task<Result<Impl::Written>> Impl::write_on(Session& session,
                                           const std::vector<Statement>& statements,
                                           TimeUs deadline) {
  struct Step {
    std::string sql;  // as it is prepared
    Texts params;
  };
  std::vector<Step> steps;
  for (const Statement& statement : statements) {
    const auto sql = SqlText::parse(statement.sql, Dialect::postgres);
    if (!sql) co_return std::unexpected(sql.error());
    auto texts = texts_of(*sql, statement.params);
    if (!texts) co_return std::unexpected(texts.error());
    steps.push_back({.sql = sql->numbered(0, '$'), .params = std::move(*texts)});
  }
  for (bool again = true;; again = false) {
    if (session.writes.size() + steps.size() > kMostPrepared) {
      session.connection->send_and_forget(Command::query("DEALLOCATE ALL"));
      session.writes.clear();
      session.loads.clear();
    }
    std::vector<Command> commands;
    std::vector<std::string> prepared;  // in this round
    std::vector<std::size_t> at;        // where the statements' replies are
    commands.push_back(Command::query("BEGIN"));
    // The number that the transaction will be known by, before it has written anything.
    commands.push_back(Command::query("SELECT pg_current_xact_id()::text"));
    for (const Step& step : steps) {
      std::string& name = session.writes[step.sql];
      if (name.empty()) {
        name = session.new_name();
        commands.push_back(Command::prepare(name, step.sql));
        prepared.push_back(step.sql);
      }
      at.push_back(commands.size());
      commands.push_back(Command::execute(name, step.params));
    }
    if (!change_reader_.sql.empty()) commands.push_back(Command::query(change_reader_.sql));
    const TimeUs sent = monotonic_now_us();
    auto ran = co_await run(session, std::move(commands), deadline);
    if (metrics_.writes) metrics_.writes->add(steps.size());
    if (metrics_.seconds) metrics_.seconds->record(monotonic_now_us() - sent);
    if (!ran) co_return std::unexpected(ran.error());
    const std::vector<Reply> replies = std::move(*ran);
    const auto failed = std::ranges::find_if(
        replies, [](const Reply& reply) { return !reply.ok() && !reply.skipped(); });
    if (failed != replies.end()) {
      // Which of them the server has prepared is not worth finding out.
      for (const std::string& sql : prepared) session.writes.erase(sql);
      const std::string_view state = failed->sqlstate();
      if (state == "25006") session.retired = true;  // the next one may find the primary
      // A prepared statement that no longer fits, or that a pooler has lost. Nothing is done yet.
      if (again && (state == "0A000" || state == "26000" || state == "42P05")) {
        session.settle();
        session.connection->send_and_forget(Command::query("DEALLOCATE ALL"));
        session.writes.clear();
        session.loads.clear();
        continue;
      }
      co_return std::unexpected(failed->error());
    }
    Written out{.source_id = session.identity.source_id()};
    const std::string_view x = replies[1].value(0, 0).value_or("");
    std::from_chars(x.data(), x.data() + x.size(), out.x);
    if (out.x == 0 || session.identity.in_recovery) {
      session.retired = true;  // it was promoted: its timeline is another one now
      co_return fail(ErrorCode::source_down, "the server has just been promoted: repeat it",
                     "postgres");
    }
    if (!capabilities_.snapshots) out.x = 0;
    for (std::size_t i = 0; i < at.size(); ++i) {
      const Reply& reply = replies[at[i]];
      out.affected.push_back(reply.affected());
      out.values.push_back(statements[i].wants_value ? first_value(reply) : std::nullopt);
    }
    if (change_reader_.read) {
      auto changes = change_reader_.read(replies.back(), out.x);
      if (!changes) co_return std::unexpected(changes.error());
      out.changes = std::move(*changes);
    }
    co_return out;
  }
}

Task<Result<void>> Impl::commit(SessionPool::Lease lease, TimeUs deadline) {
  Loop* const home = Loop::current();
  co_await resume_on(lease->loop());
  Result<void> done;
  std::vector<Command> commands;
  commands.push_back(Command::query("COMMIT"));
  auto replies = co_await run(*lease, std::move(commands), deadline);
  if (!replies) {
    const bool late = replies.error().code == ErrorCode::timeout;
    done = fail(late ? ErrorCode::timeout : ErrorCode::source_down,
                fmt::format("whether the transaction was committed is not known: {}",
                            replies.error().message),
                "postgres");
  } else if (!replies->front().ok()) {
    done = std::unexpected(replies->front().error());
  } else if (replies->front().tag() != "COMMIT") {
    done =
        fail(ErrorCode::source_refused, "the server has rolled the transaction back", "postgres");
  }
  const bool down = lease->broken();
  lease->settle();
  lease.give_back();
  co_await resume_on(*home);
  health_.note(done ? nullptr : &done.error(), down);
  co_return done;
}

// Sent and not waited for: whoever uses the connection next waits for it first. If it cannot even
// be sent, the connection goes, and the server rolls back by itself.
void Impl::roll_back(SessionPool::Lease lease) {
  lease->connection->send_and_forget(Command::query("ROLLBACK"));
}

}  // namespace larder::source::postgres
