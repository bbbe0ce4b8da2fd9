// SQLite's C interface behind RAII and Result: connections, statements, deadlines, messages.
//
// A Connection and its statements belong to one thread at a time.
#pragma once

#include <sqlite3.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "source/row_json.h"
#include "source/source.h"

namespace larder::source::sqlite {

// Which file a path leads to. An inode is soon given to another file: the birth tells them apart,
// where the file system knows it.
struct FileId {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::int64_t born_ns = 0;
  friend bool operator==(const FileId&, const FileId&) = default;
};
std::optional<FileId> file_id(const std::string& path);

// A file that takes one line for each statement. Thread-safe: one write(2) a line.
class QueryLog {
 public:
  static Result<std::unique_ptr<QueryLog>> open(const std::string& path);
  ~QueryLog();
  QueryLog(const QueryLog&) = delete;
  QueryLog& operator=(const QueryLog&) = delete;
  void append(std::string_view statement);

 private:
  explicit QueryLog(int fd) : fd_(fd) {}
  int fd_;
};

class Connection;

// A compiled statement. Owned by the cache of its connection, or by the caller.
class Stmt {
 public:
  Stmt(Connection& owner, sqlite3_stmt* stmt) : owner_(&owner), stmt_(stmt) {}
  ~Stmt() { sqlite3_finalize(stmt_); }
  Stmt(const Stmt&) = delete;
  Stmt& operator=(const Stmt&) = delete;

  // `index` counts from 1. The value must stay until reset().
  void bind(int index, const Value& value);
  int parameters() const { return sqlite3_bind_parameter_count(stmt_); }
  const char* parameter(int index) const { return sqlite3_bind_parameter_name(stmt_, index); }

  // True: a row is there. False: the end.
  Result<bool> step();
  int columns() const { return sqlite3_column_count(stmt_); }
  std::string column_name(int column) const;
  Cell cell(int column) const;  // valid until the next step
  std::int64_t integer(int column) const { return sqlite3_column_int64(stmt_, column); }
  std::string text(int column) const;
  bool readonly() const { return sqlite3_stmt_readonly(stmt_) != 0; }
  void reset();

 private:
  Connection* owner_;
  sqlite3_stmt* stmt_;
};

// Resets a statement at the end of a scope: one that is left half read holds its snapshot.
class StmtUse {
 public:
  explicit StmtUse(Stmt& stmt) : stmt_(stmt) {}
  ~StmtUse() { stmt_.reset(); }
  StmtUse(const StmtUse&) = delete;
  StmtUse& operator=(const StmtUse&) = delete;

 private:
  Stmt& stmt_;
};

class Connection {
 public:
  enum class Mode : std::uint8_t { read, write };
  // Never creates the file. `log` may be null; else it outlives the connection.
  static Result<std::unique_ptr<Connection>> open(const std::string& path, Mode mode,
                                                  QueryLog* log = nullptr);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // From now on waits for locks end at `deadline` (SQLITE_BUSY), and running statements too
  // (SQLITE_INTERRUPT). kNever is cut to a minute: no thread is lost for ever.
  void set_deadline(TimeUs deadline);

  // Compiles what Larder itself says, or (`user`) what the configuration says: that may not control
  // transactions, attach, or use PRAGMA, and is written to the query log when it runs.
  Result<std::unique_ptr<Stmt>> prepare(std::string_view sql, bool user);
  // The same, kept for the next time.
  Result<Stmt*> cached(const std::string& sql, bool user);
  void forget_cached() { cache_.clear(); }

  // Runs statements of Larder's own.
  Result<void> exec(const std::string& sql);
  // The first column of the first row of a statement of Larder's own; 0 if there is none.
  Result<std::int64_t> query_integer(const std::string& sql);

  // The declared type of a column, upper case; nullopt: no such column.
  std::optional<std::string> declared_type(const std::string& table, const std::string& column);

  bool in_transaction() const { return sqlite3_get_autocommit(db_) == 0; }
  // Ends a transaction if one is open; no deadline stops it.
  void rollback();

  // The log gets the statements that run while this is on.
  void trace(bool on) { tracing_ = on; }

  std::int64_t changes() const { return sqlite3_changes64(db_); }
  std::int64_t total_changes() const { return sqlite3_total_changes64(db_); }
  int limit(int which) const { return sqlite3_limit(db_, which, -1); }

  // The last failure in Larder's words, with a cure where one is known.
  Error error(int code) const;
  // Did the last failure mean that this connection had better be opened anew?
  bool broken() const { return broken_; }

 private:
  friend class Stmt;
  explicit Connection(std::string path) : path_(std::move(path)) {}
  static int on_busy(void* self, int count);
  static int on_progress(void* self);
  static int on_authorize(void* self, int action, const char*, const char*, const char*,
                          const char*);
  static int on_trace(unsigned event, void* self, void* stmt, void* text);

  static constexpr std::size_t kMaxCached = 512;

  std::string path_;
  sqlite3* db_ = nullptr;
  QueryLog* log_ = nullptr;
  TimeUs deadline_ = kNever;
  bool tracing_ = false;
  bool restricted_ = false;
  mutable bool broken_ = false;
  std::unordered_map<std::string, std::unique_ptr<Stmt>> cache_;
};

// "name" in double quotes, 'text' in single ones.
std::string quote_name(std::string_view name);
std::string quote_text(std::string_view text);

}  // namespace larder::source::sqlite
