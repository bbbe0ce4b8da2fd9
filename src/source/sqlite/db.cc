#include "source/sqlite/db.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace larder::source::sqlite {
namespace {

constexpr DurationUs kLongestWait = 60 * kSecond;
constexpr int kOpsBetweenLooks = 1000;  // virtual machine steps, about 20 us

void sleep_us(DurationUs us) {
  timespec left{.tv_sec = us / kSecond, .tv_nsec = (us % kSecond) * 1000};
  nanosleep(&left, nullptr);
}

}  // namespace

std::optional<FileId> file_id(const std::string& path) {
  struct statx info{};
  if (statx(AT_FDCWD, path.c_str(), 0, STATX_INO | STATX_BTIME, &info) != 0) return std::nullopt;
  FileId id{.device = (std::uint64_t{info.stx_dev_major} << 32) | info.stx_dev_minor,
            .inode = info.stx_ino};
  if ((info.stx_mask & STATX_BTIME) != 0)
    id.born_ns = info.stx_btime.tv_sec * 1'000'000'000 + info.stx_btime.tv_nsec;
  return id;
}

// ---- the query log ----

Result<std::unique_ptr<QueryLog>> QueryLog::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640);
  if (fd < 0)
    return fail(ErrorCode::config,
                fmt::format("cannot open the query log {}: {}", path, std::strerror(errno)));
  return std::unique_ptr<QueryLog>(new QueryLog(fd));
}

QueryLog::~QueryLog() { ::close(fd_); }

void QueryLog::append(std::string_view statement) {
  std::string line(statement);
  for (char& c : line)
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  line += '\n';
  // A log that cannot be written must not stop what it logs.
  [[maybe_unused]] const auto written = ::write(fd_, line.data(), line.size());
}

// ---- statements ----

void Stmt::bind(int index, const Value& value) {
  struct Bind {
    sqlite3_stmt* stmt;
    int index;
    int operator()(std::nullptr_t) const { return sqlite3_bind_null(stmt, index); }
    int operator()(std::int64_t v) const { return sqlite3_bind_int64(stmt, index, v); }
    int operator()(double v) const { return sqlite3_bind_double(stmt, index, v); }
    int operator()(const std::string& v) const {
      return sqlite3_bind_text64(stmt, index, v.data(), v.size(), SQLITE_STATIC, SQLITE_UTF8);
    }
    int operator()(const std::vector<std::byte>& v) const {
      // A null pointer would be NULL, not an empty blob.
      const void* const data = v.empty() ? static_cast<const void*>("") : v.data();
      return sqlite3_bind_blob64(stmt, index, data, v.size(), SQLITE_STATIC);
    }
  };
  // Fails only for a bad index, a value over SQLite's limit (then it stays NULL: step() would run
  // with it), or no memory.
  const int code = std::visit(Bind{stmt_, index}, value);
  if (code != SQLITE_OK) owner_->broken_ = true;
}

Result<bool> Stmt::step() {
  const int code = sqlite3_step(stmt_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  return std::unexpected(owner_->error(code));
}

std::string Stmt::column_name(int column) const {
  const char* name = sqlite3_column_name(stmt_, column);
  return name ? name : "";
}

Cell Stmt::cell(int column) const {
  const auto bytes = [&](const void* data) {
    return std::string_view(
        static_cast<const char*>(data),
        data ? static_cast<std::size_t>(sqlite3_column_bytes(stmt_, column)) : 0);
  };
  switch (sqlite3_column_type(stmt_, column)) {
    case SQLITE_INTEGER: return Cell::of(std::int64_t{sqlite3_column_int64(stmt_, column)});
    case SQLITE_FLOAT: return Cell::of(sqlite3_column_double(stmt_, column));
    case SQLITE_TEXT: return Cell::text(bytes(sqlite3_column_text(stmt_, column)));
    case SQLITE_BLOB: return Cell::blob(bytes(sqlite3_column_blob(stmt_, column)));
    default: return {};
  }
}

std::string Stmt::text(int column) const {
  const auto* const text = reinterpret_cast<const char*>(sqlite3_column_text(stmt_, column));
  return text ? text : "";
}

void Stmt::reset() {
  sqlite3_reset(stmt_);
  sqlite3_clear_bindings(stmt_);
}

// ---- connections ----

Result<std::unique_ptr<Connection>> Connection::open(const std::string& path, Mode mode,
                                                     QueryLog* log) {
  std::unique_ptr<Connection> self(new Connection(path));
  self->log_ = log;
  const int flags = (mode == Mode::read ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE) |
                    SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
  const int code = sqlite3_open_v2(path.c_str(), &self->db_, flags, nullptr);
  if (code != SQLITE_OK) return std::unexpected(self->error(code));
  sqlite3* const db = self->db_;
  sqlite3_busy_handler(db, on_busy, self.get());
  sqlite3_progress_handler(db, kOpsBetweenLooks, on_progress, self.get());
  sqlite3_set_authorizer(db, on_authorize, self.get());
  if (log) sqlite3_trace_v2(db, SQLITE_TRACE_STMT, on_trace, self.get());
  self->set_deadline(monotonic_now_us() + 5 * kSecond);
  auto ready = self->exec("PRAGMA temp_store = MEMORY");
  // Rows written through Larder keep the integrity that the schema declares.
  if (ready && mode == Mode::write) ready = self->exec("PRAGMA foreign_keys = ON");
  // The first look at the file: is it a database?
  if (ready) {
    auto version = self->query_integer("PRAGMA schema_version");
    if (!version) ready = std::unexpected(version.error());
  }
  if (!ready) return std::unexpected(ready.error());
  return self;
}

Connection::~Connection() {
  cache_.clear();
  sqlite3_close(db_);
}

void Connection::set_deadline(TimeUs deadline) {
  deadline_ = std::min(deadline, monotonic_now_us() + kLongestWait);
}

Result<std::unique_ptr<Stmt>> Connection::prepare(std::string_view sql, bool user) {
  sqlite3_stmt* stmt = nullptr;
  restricted_ = user;
  const int code = sqlite3_prepare_v3(db_, sql.data(), static_cast<int>(sql.size()),
                                      SQLITE_PREPARE_PERSISTENT, &stmt, nullptr);
  restricted_ = false;
  if (code != SQLITE_OK) return std::unexpected(error(code));
  if (!stmt) return fail(ErrorCode::internal, "an empty statement");
  return std::make_unique<Stmt>(*this, stmt);
}

Result<Stmt*> Connection::cached(const std::string& sql, bool user) {
  if (const auto found = cache_.find(sql); found != cache_.end()) return found->second.get();
  auto stmt = prepare(sql, user);
  if (!stmt) return std::unexpected(stmt.error());
  // Never reached with statements of a configuration; a bound all the same.
  if (cache_.size() >= kMaxCached) cache_.clear();
  return cache_.emplace(sql, std::move(*stmt)).first->second.get();
}

std::optional<std::string> Connection::declared_type(const std::string& table,
                                                     const std::string& column) {
  const char* declared = nullptr;
  if (sqlite3_table_column_metadata(db_, nullptr, table.c_str(), column.c_str(), &declared, nullptr,
                                    nullptr, nullptr, nullptr) != SQLITE_OK)
    return std::nullopt;
  std::string type = declared != nullptr ? declared : "";
  for (char& c : type) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return type;
}

Result<void> Connection::exec(const std::string& sql) {
  const int code = sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr);
  if (code != SQLITE_OK) return std::unexpected(error(code));
  return {};
}

Result<std::int64_t> Connection::query_integer(const std::string& sql) {
  auto stmt = cached(sql, false);
  if (!stmt) return std::unexpected(stmt.error());
  const StmtUse use(**stmt);
  const auto row = (*stmt)->step();
  if (!row) return std::unexpected(row.error());
  return *row ? (*stmt)->integer(0) : 0;
}

void Connection::rollback() {
  if (!in_transaction()) return;
  const TimeUs deadline = std::exchange(deadline_, kNever);
  if (!exec("ROLLBACK")) broken_ = true;
  deadline_ = deadline;
}

int Connection::on_busy(void* self, int count) {
  const DurationUs left = static_cast<Connection*>(self)->deadline_ - monotonic_now_us();
  if (left <= 0) return 0;
  // Short first: most locks are held for the time of one fsync.
  sleep_us(std::min<DurationUs>(left, count < 4 ? 300 : std::min(count, 10) * kMillisecond));
  return 1;
}

int Connection::on_progress(void* self) {
  return monotonic_now_us() >= static_cast<Connection*>(self)->deadline_ ? 1 : 0;
}

int Connection::on_authorize(void* self, int action, const char*, const char*, const char*,
                             const char*) {
  if (!static_cast<Connection*>(self)->restricted_) return SQLITE_OK;
  switch (action) {
    case SQLITE_TRANSACTION:
    case SQLITE_SAVEPOINT:
    case SQLITE_ATTACH:
    case SQLITE_DETACH:
    case SQLITE_PRAGMA: return SQLITE_DENY;
    default: return SQLITE_OK;
  }
}

int Connection::on_trace(unsigned event, void* self, void* stmt, void* text) {
  const auto* const connection = static_cast<Connection*>(self);
  const auto* const unexpanded = static_cast<const char*>(text);
  // A trigger's start is reported too, as a comment.
  if (event != SQLITE_TRACE_STMT || !connection->tracing_ || !unexpanded ||
      std::strncmp(unexpanded, "--", 2) == 0)
    return 0;
  char* const expanded = sqlite3_expanded_sql(static_cast<sqlite3_stmt*>(stmt));
  connection->log_->append(expanded ? expanded : unexpanded);
  sqlite3_free(expanded);
  return 0;
}

Error Connection::error(int code) const {
  const std::string said = db_ ? sqlite3_errmsg(db_) : sqlite3_errstr(code);
  const auto is = [&](ErrorCode kind, std::string message) {
    return Error{kind, std::move(message), "sqlite"};
  };
  switch (code & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return is(ErrorCode::source_down,
                fmt::format("{} is locked by another connection, and stayed so until the deadline: "
                            "shorten its transactions, or use PRAGMA journal_mode = WAL",
                            path_));
    case SQLITE_INTERRUPT:
      return is(ErrorCode::timeout, "the statement did not end within its deadline");
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      broken_ = true;
      return is(ErrorCode::source_down,
                fmt::format("{} is damaged or not a database ({}): check it with PRAGMA "
                            "integrity_check, restore it from a backup",
                            path_, said));
    case SQLITE_CANTOPEN:
      broken_ = true;
      return is(
          ErrorCode::source_down,
          fmt::format("cannot open {} ({}): it, or its -wal and -shm files, are missing or may "
                      "not be accessed; put it back or correct the permissions",
                      path_, said));
    case SQLITE_IOERR:
      broken_ = true;
      return is(
          ErrorCode::source_down,
          fmt::format("the operating system failed to read or write {} ({}): look at the disk",
                      path_, said));
    case SQLITE_FULL:
      return is(ErrorCode::source_down,
                fmt::format("no room for {} ({}): free space on its disk, or raise its "
                            "max_page_count",
                            path_, said));
    case SQLITE_READONLY:
      return is(ErrorCode::source_refused,
                fmt::format("{} cannot be written ({}): give this user the right to write the file "
                            "and its folder",
                            path_, said));
    case SQLITE_NOMEM: return is(ErrorCode::out_of_memory, "SQLite has no memory left");
    case SQLITE_TOOBIG: return is(ErrorCode::too_large, said);
    case SQLITE_AUTH:
      return is(ErrorCode::source_refused,
                "transaction control, ATTACH and PRAGMA are not allowed in statements of the "
                "configuration: Larder opens and ends the transaction itself");
    default: return is(ErrorCode::source_refused, said);
  }
}

namespace {
std::string doubled(std::string_view text, char quote) {
  std::string out(1, quote);
  for (const char c : text) {
    if (c == quote) out += quote;
    out += c;
  }
  out += quote;
  return out;
}
}  // namespace

std::string quote_name(std::string_view name) { return doubled(name, '"'); }
std::string quote_text(std::string_view text) { return doubled(text, '\''); }

}  // namespace larder::source::sqlite
