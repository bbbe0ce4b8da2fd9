// libmariadb behind RAII, Result and Task: one connection to a MariaDB server.
//
// A Connection belongs to the loop on which it was opened: every call from there, one at a time;
// destroyed there too, or when that loop does not run any more. Nothing blocks but what libmariadb
// does itself: reading certificates, and looking up a name that a certificate must bear (url.h).
//
// Errors: source_down (the server cannot be reached, is starting or stopping, the connection broke,
// others were in the way), timeout (the deadline passed, or the server's max_statement_time),
// cancelled (interrupt()), too_large, source_refused (what else the server says to a statement,
// with its error number in parentheses). No message holds a password.
#pragma once

#include <mysql.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/task.h"
#include "net/readiness.h"
#include "source/mariadb/url.h"

namespace larder::source::mariadb {

// Numbers of errors that more than one place asks for.
inline constexpr unsigned kNoSuchPrepared = 1243;     // a statement that a pooler has lost
inline constexpr unsigned kDefinitionChanged = 1412;  // a table is younger than the snapshot

// What came of one statement: rows, a count, or the server's error. Views live as long as this.
class Reply {
 public:
  static Reply of_rows(MYSQL_RES* rows, std::int64_t affected);
  static Reply of_count(std::int64_t affected);
  static Reply of_error(unsigned number, std::string_view message);

  bool ok() const { return number_ == 0; }
  unsigned error_number() const { return number_; }
  Error error() const;  // REQUIRES: !ok()

  bool has_rows() const { return rows_ != nullptr; }
  unsigned columns() const { return rows_ ? mysql_num_fields(rows_.get()) : 0; }
  const MYSQL_FIELD& field(unsigned column) const {
    return *mysql_fetch_field_direct(rows_.get(), column);
  }
  // To the next row, the first at first. False: there is none.
  bool next();
  // Of the row that next() has gone to; nullopt = NULL.
  std::optional<std::string_view> value(unsigned column) const;
  // Rows that were found to be inserted, changed, replaced, deleted, or given.
  std::int64_t affected() const { return affected_; }

 private:
  struct Free {
    void operator()(MYSQL_RES* rows) const { mysql_free_result(rows); }
  };
  std::unique_ptr<MYSQL_RES, Free> rows_;
  MYSQL_ROW row_ = nullptr;
  const unsigned long* lengths_ = nullptr;
  std::int64_t affected_ = 0;
  unsigned number_ = 0;
  std::string message_;
};

// Statements that go to the server in one packet and run one after the other. Each is one statement
// and gives one reply: none of them calls a procedure.
class Batch {
 public:
  // Its index among the replies.
  std::size_t add(std::string_view statement);
  std::size_t size() const { return statements_; }
  std::size_t bytes() const { return sql_.size(); }
  std::string take_sql() { return std::move(sql_); }

 private:
  std::string sql_;
  std::size_t statements_ = 0;
};

class Connection {
 public:
  // utf8mb4 is spoken. REQUIRES: the current loop is one of net::Runtime.
  static Task<Result<std::unique_ptr<Connection>>> connect(Url url, TimeUs deadline);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // One round trip. The server stops at the first statement that it refuses: its reply is the last
  // then. Errors are those of the connection, and leave it broken().
  Task<Result<std::vector<Reply>>> run(Batch batch, TimeUs deadline);

  // One statement and its reply; what the server refuses is an error too.
  Task<Result<Reply>> run_one(std::string sql, TimeUs deadline);

  // Sends it and does not wait: the next run() drops the reply. For ROLLBACK. False: it could not
  // be sent, the connection is broken.
  bool send_and_forget(std::string_view sql);

  // Ends the pending wait, and every later one, with `cancelled`.
  void interrupt();

  // It is good for nothing more: close it.
  bool broken() const { return broken_; }
  // True if the server has closed it, or said something unasked, while it lay idle: take another.
  bool stale();

  // As of the last reply.
  bool in_transaction() const { return (mysql_->server_status & SERVER_STATUS_IN_TRANS) != 0; }
  std::uint64_t round_trips() const { return round_trips_; }
  unsigned long thread_id() const { return mysql_thread_id(mysql_.get()); }
  // "db.example:3306/shop", for messages.
  const std::string& name() const { return name_; }
  Loop& loop() const { return *loop_; }
  MYSQL* raw() const { return mysql_.get(); }

 private:
  struct Close {
    void operator()(MYSQL* mysql) const { mysql_close(mysql); }
  };
  // The functions of libmariadb that may have to wait.
  enum class Step : std::uint8_t { connect, query, read_result, store, next_result };

  Connection() = default;
  Task<Result<void>> connect_to(const Url& url, const Target& target, TimeUs deadline);
  // Runs the step and waits meanwhile; what it gives is in the members below.
  Task<Result<void>> drive(Step step, TimeUs deadline);
  int start(Step step);
  int resume(Step step, int ready);
  void abandon(Step step);
  Result<void> watch();
  Task<Result<Reply>> read_reply(TimeUs deadline);
  // Has the connection failed, rather than the statement?
  bool lost_it() const;
  std::unexpected<Error> lost(std::string_view doing);
  std::unexpected<Error> out_of_time(std::string_view doing);

  std::unique_ptr<MYSQL, Close> mysql_;
  std::unique_ptr<net::Readiness> readiness_;
  Loop* loop_ = nullptr;
  std::string name_;
  Url url_;          // while it connects
  Target target_;    // likewise
  std::string sql_;  // while it is sent
  bool connected_ = false;
  bool owes_ = false;  // the reply to what was sent and forgotten
  bool broken_ = false;
  std::uint64_t round_trips_ = 0;
  // What the last step gave.
  MYSQL* connect_result_ = nullptr;
  int int_result_ = 0;
  my_bool bool_result_ = 0;
  MYSQL_RES* rows_result_ = nullptr;
};

// Options that every connection has: character set, TLS, counts of rows that were found.
void set_options(MYSQL* mysql, const Url& url);
inline constexpr unsigned long kClientFlags = CLIENT_FOUND_ROWS | CLIENT_MULTI_STATEMENTS;

// libmariadb, ready to be used by any thread; null: no memory.
MYSQL* new_handle();

// The first line of what libmariadb or a server says.
std::string one_line(std::string_view message);

// An error that the server has answered, by its number.
Error server_error(unsigned number, std::string_view message);

// Does it say that nothing may be written on this server?
bool is_read_only(unsigned number, std::string_view message);

}  // namespace larder::source::mariadb
