#include <fmt/format.h>

#include <algorithm>

#include "source/sqlite/impl.h"

namespace larder::source::sqlite {
namespace {

// A change list is memory: a statement that rewrites a large table is not for a cache's write path.
constexpr std::size_t kMostChanges = 1'000'000;
// A commit that begins before the deadline may end a little after it.
constexpr DurationUs kCommitGrace = 1 * kSecond;
constexpr DurationUs kLongestHold = 60 * kSecond;

constexpr const char* kMarkSql =
    "INSERT INTO larder_change(at_ms, tbl) VALUES (CAST((julianday('now') - 2440587.5) * 86400000 "
    "AS INTEGER), '')";

class SqliteTransaction final : public Transaction {
 public:
  SqliteTransaction(Impl& source, OpenWrite write) : source_(source), write_(std::move(write)) {}
  ~SqliteTransaction() override {
    if (!ended_) source_.abandon(write_.id);
  }
  SqliteTransaction(const SqliteTransaction&) = delete;
  SqliteTransaction& operator=(const SqliteTransaction&) = delete;

  const std::vector<RowChange>& changes() const override { return write_.changes; }
  policy::TxnId x() const override { return write_.x; }
  std::uint64_t source_id() const override { return write_.source_id; }
  const std::vector<std::int64_t>& affected() const override { return write_.affected; }
  const std::vector<std::optional<std::string>>& values() const override { return write_.values; }
  Task<Result<void>> commit() override {
    if (ended_) co_return fail(ErrorCode::internal, "the transaction has ended already");
    ended_ = true;
    Result<void> done = co_await source_.commit(write_.id);
    co_return done;
  }

 private:
  Impl& source_;
  OpenWrite write_;
  bool ended_ = false;
};

}  // namespace

Task<Result<std::unique_ptr<Transaction>>> Impl::write(std::vector<Statement> statements,
                                                       TimeUs deadline) {
  Result<OpenWrite> opened;
  WriterThread::Work work = [&] {
    opened = write_now(statements, deadline);
    if (seconds_ && opened) seconds_->record(opened->took_us);
  };
  const auto outcome =
      co_await writer_thread_->run(WriterThread::Turn::wait, deadline, std::move(work));
  if (outcome == WriterThread::Outcome::overloaded)
    co_return fail(ErrorCode::overloaded,
                   fmt::format("source \"{}\": {} writes wait already; SQLite writes one "
                               "transaction at a time",
                               options_.name, options_.queue));
  if (outcome == WriterThread::Outcome::timeout)
    co_return fail(
        ErrorCode::timeout,
        fmt::format("source \"{}\": other writes were in front until the deadline", options_.name));
  note(opened ? nullptr : &opened.error());
  if (!opened) co_return std::unexpected(opened.error());
  std::unique_ptr<Transaction> transaction =
      std::make_unique<SqliteTransaction>(*this, std::move(*opened));
  co_return transaction;
}

Task<Result<void>> Impl::commit(std::uint64_t id) {
  Result<void> done;
  WriterThread::Work work = [&] { done = commit_now(id); };
  co_await writer_thread_->run(WriterThread::Turn::now, kNever, std::move(work));
  note(done ? nullptr : &done.error());
  co_return done;
}

void Impl::abandon(std::uint64_t id) {
  writer_thread_->post([this, id] {
    if (writer_.open_id == id) end_write(false);
  });
}

// ---- on the writer thread ----

Result<Incarnation> Impl::connect_writer() {
  const auto incarnation = current();
  if (!incarnation) return incarnation;
  const std::uint64_t generation = writer_.generation;
  const auto anew = connect(writer_.db, writer_.generation, *incarnation, Connection::Mode::write);
  if (!anew) return std::unexpected(anew.error());
  if (*anew) writer_.schema = -1;                          // TEMP triggers went with the old one
  if (writer_.generation != generation) writer_.owed = 0;  // numbers of another database
  return incarnation;
}

Result<OpenWrite> Impl::write_now(const std::vector<Statement>& statements, TimeUs deadline) {
  const TimeUs began = monotonic_now_us();
  const auto connected = connect_writer();
  if (!connected) return std::unexpected(connected.error());
  Connection& db = *writer_.db;
  db.set_deadline(deadline);
  auto begun = db.exec("BEGIN IMMEDIATE");
  if (!begun) return std::unexpected(begun.error());
  auto out = run_statements(statements);
  if (!out) {
    // Nobody has heard of its numbers: they may be given again.
    db.rollback();
    if (writer_.schema_is_new) writer_.schema = -1;
    writer_.schema_is_new = false;
    return out;
  }
  out->id = ++writer_.last_id;
  out->source_id = connected->source_id;
  out->took_us = monotonic_now_us() - began;
  writer_.open_id = out->id;
  writer_.open_x = out->x;
  writer_.open_deadline = saturating_add(deadline, kCommitGrace);
  writer_thread_->hold(std::min(writer_.open_deadline, monotonic_now_us() + kLongestHold),
                       [this] { end_write(false); });
  return out;
}

Result<OpenWrite> Impl::run_statements(const std::vector<Statement>& statements) {
  Connection& db = *writer_.db;
  if (auto ready = refresh_schema(); !ready) return std::unexpected(ready.error());
  const auto before =
      prepared_ ? db.query_integer(kSequenceSql) : Result<std::int64_t>(std::int64_t{0});
  if (!before) return std::unexpected(before.error());
  writer_.open_before = *before;
  OpenWrite out;
  for (const Statement& statement : statements) {
    auto done = run_statement(statement, out);
    if (!done) return std::unexpected(done.error());
  }
  if (auto done = collect(out); !done) return std::unexpected(done.error());
  return out;
}

// Triggers belong to a schema; so does the meaning of k1..k4.
Result<void> Impl::refresh_schema() {
  Connection& db = *writer_.db;
  const auto schema = db.query_integer("PRAGMA main.schema_version");
  if (!schema) return std::unexpected(schema.error());
  if (*schema == writer_.schema)
    return prepared_ ? Result<void>{} : db.exec("DELETE FROM temp.larder_change");
  db.forget_cached();
  if (prepared_) {
    auto found = examine(db, options_.watched);
    if (!found) return std::unexpected(found.error());
    if (!found->complete)
      return fail(ErrorCode::source_refused,
                  fmt::format("the triggers of `larder source prepare` are gone or no longer fit: "
                              "run `larder source prepare {}` again",
                              options_.name),
                  "sqlite");
    writer_.columns = std::move(found->columns);
  } else {
    auto temp = temp_triggers(db, options_.watched);
    if (!temp) return std::unexpected(temp.error());
    for (const std::string& sql : temp->statements)
      if (auto done = db.exec(sql); !done) return done;
    if (auto done = db.exec("DELETE FROM temp.larder_change"); !done) return done;
    writer_.columns = std::move(temp->columns);
  }
  writer_.schema = *schema;
  writer_.schema_is_new = true;
  return {};
}

Result<void> Impl::run_statement(const Statement& statement, OpenWrite& out) {
  Connection& db = *writer_.db;
  const auto stmt = db.cached(statement.sql, true);
  if (!stmt) return std::unexpected(stmt.error());
  const StmtUse use(**stmt);
  for (int i = 1; i <= (*stmt)->parameters(); ++i) {
    const char* const name = (*stmt)->parameter(i);
    const auto given = std::ranges::find_if(statement.params, [&](const NamedValue& value) {
      return name && name[0] == ':' && value.name == name + 1;
    });
    if (given == statement.params.end())
      return fail(ErrorCode::bad_value,
                  fmt::format("no value is given for {}", name ? name : "a placeholder"));
    (*stmt)->bind(i, given->value);
  }
  if (writes_) writes_->add();
  const std::int64_t total = db.total_changes();
  std::optional<std::string> value;
  db.trace(true);
  Result<bool> row = (*stmt)->step();
  if (row && *row && statement.wants_value && (*stmt)->columns() > 0) {
    const Cell cell = (*stmt)->cell(0);
    value = cell.type == Cell::Type::blob ? std::string(cell.bytes) : cell_text(cell);
  }
  while (row && *row) row = (*stmt)->step();
  db.trace(false);
  if (!row) return std::unexpected(row.error());
  // changes() keeps its value over statements that change nothing.
  out.affected.push_back(db.total_changes() == total ? 0 : db.changes());
  out.values.push_back(std::move(value));
  return {};
}

// What the triggers have noted, and a number that no snapshot sees before the end.
Result<void> Impl::collect(OpenWrite& out) {
  Connection& db = *writer_.db;
  policy::TxnId x = ended_.load(std::memory_order_relaxed) + 1;
  if (prepared_) {
    auto last = db.query_integer(kSequenceSql);
    if (last && *last == writer_.open_before) {
      // A transaction without a watched change needs a number too, and one that comes to be seen.
      const auto marked = db.exec(kMarkSql);
      last = marked ? db.query_integer(kSequenceSql) : std::unexpected(marked.error());
    }
    if (!last) return std::unexpected(last.error());
    x = static_cast<policy::TxnId>(*last);
  }
  out.x = counts() ? x : 0;
  const auto stmt = db.cached(fmt::format("SELECT seq, tbl, k1, k2, k3, k4 FROM {}.larder_change "
                                          "WHERE seq > ?1 ORDER BY seq",
                                          prepared_ ? "main" : "temp"),
                              false);
  if (!stmt) return std::unexpected(stmt.error());
  const StmtUse use(**stmt);
  const Value before = writer_.open_before;
  (*stmt)->bind(1, before);
  while (true) {
    const auto row = (*stmt)->step();
    if (!row) return std::unexpected(row.error());
    if (!*row) return {};
    const policy::TxnId seq = prepared_ ? static_cast<policy::TxnId>((*stmt)->integer(0)) : out.x;
    writer_.columns.append(**stmt, 1, seq, out.changes);
    if (out.changes.size() > kMostChanges)
      return fail(ErrorCode::too_large,
                  fmt::format("the write changes more than {} rows that entries depend on: write "
                              "less at once, or past Larder",
                              kMostChanges));
  }
}

Result<void> Impl::commit_now(std::uint64_t id) {
  if (writer_.open_id != id)
    return fail(ErrorCode::timeout,
                "the transaction was held beyond its deadline and has been rolled back", "sqlite");
  const auto incarnation = current();
  if (!incarnation || incarnation->generation != writer_.generation) {
    end_write(false);
    if (!incarnation) return std::unexpected(incarnation.error());
    return fail(ErrorCode::source_down,
                "the database file was replaced during the transaction: repeat it", "sqlite");
  }
  Connection& db = *writer_.db;
  db.set_deadline(writer_.open_deadline);
  Result<void> done;
  {
    const std::lock_guard lock(commit_mutex_);
    done = db.exec("COMMIT");
    if (done && prepared_) own_.add(writer_.open_before, static_cast<std::int64_t>(writer_.open_x));
  }
  if (!done) {
    end_write(false);
    return done;
  }
  end_write(true);
  return {};
}

// Ends the open transaction. `committed`: it has ended already, and well.
void Impl::end_write(bool committed) {
  if (!committed) {
    writer_.db->rollback();
    if (writer_.schema_is_new) writer_.schema = -1;
    // Invalidations bear its number, and wait for it to be seen.
    if (prepared_) writer_.owed = std::max(writer_.owed, writer_.open_x);
  }
  if (!prepared_) ended_.store(writer_.open_x, std::memory_order_release);
  writer_.schema_is_new = false;
  writer_.open_id = 0;
  writer_thread_->release();
  if (writer_.owed != 0) settle_owed();
}

// Moves the sequence past the numbers of transactions that did not commit: else whatever they
// invalidated could not be stored until somebody writes.
void Impl::settle_owed() {
  const auto settled = [&]() -> Result<void> {
    const auto connected = connect_writer();
    if (!connected) return std::unexpected(connected.error());
    if (writer_.owed == 0) return {};
    Connection& db = *writer_.db;
    db.set_deadline(monotonic_now_us() + kSecond);
    auto done = db.exec("BEGIN IMMEDIATE");
    const auto last = done ? db.query_integer(kSequenceSql) : std::unexpected(done.error());
    if (!last) done = std::unexpected(last.error());
    if (done && static_cast<policy::TxnId>(*last) < writer_.owed)
      done =
          db.exec(fmt::format("INSERT INTO larder_change(seq, at_ms, tbl) VALUES ({}, "
                              "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER), '')",
                              writer_.owed));
    if (done) done = db.exec("COMMIT");
    db.rollback();
    return done;
  }();
  if (settled) {
    writer_.owed = 0;
    writer_.owed_wait_us = 0;
    return;
  }
  writer_.owed_wait_us = std::clamp(writer_.owed_wait_us * 2, 50 * kMillisecond, 5 * kSecond);
  writer_thread_->later(monotonic_now_us() + writer_.owed_wait_us, [this] {
    if (writer_.owed != 0) settle_owed();
  });
}

void Impl::trim_now(std::int64_t keep_after) {
  constexpr std::int64_t kMostAtOnce = 20'000;  // so that writers wait for milliseconds only
  if (!connect_writer()) return;                // the next poll tries again
  Connection& db = *writer_.db;
  db.set_deadline(monotonic_now_us() + 100 * kMillisecond);
  if (!db.exec("BEGIN IMMEDIATE")) return;
  auto done = db.exec(fmt::format(
      "DELETE FROM larder_change WHERE seq <= min({}, (SELECT min(seq) FROM larder_change) + {})",
      keep_after, kMostAtOnce));
  if (done) done = db.exec("COMMIT");
  if (!done) db.rollback();  // the next poll tries again
}

}  // namespace larder::source::sqlite
