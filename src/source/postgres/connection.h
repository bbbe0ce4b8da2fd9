// libpq behind RAII, Result and Task: one connection to a PostgreSQL server.
//
// A Connection belongs to the loop on which it was opened: every call from there, one at a time;
// destroyed there too, or when that loop does not run any more. Nothing blocks but what libpq does
// itself while it connects (the password file; names are looked up before, without blocking).
//
// Errors: source_down (the server cannot be reached, is starting or stopping, the connection
// broke), timeout (the deadline passed, or the server's statement_timeout), cancelled
// (interrupt()), source_refused (what the server says to a statement, with its SQLSTATE in
// parentheses). No message holds a password.
#pragma once

#include <libpq-fe.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/task.h"
#include "net/readiness.h"

namespace larder::source::postgres {

// What came of one command: rows, a count, or the server's error. Views live as long as this.
class Reply {
 public:
  explicit Reply(PGresult* result) : result_(result) {}

  ExecStatusType status() const { return PQresultStatus(result_.get()); }
  // Rows, a count, or a COPY has begun.
  bool ok() const;
  // The server did not run it: an earlier command before the same sync has failed.
  bool skipped() const { return status() == PGRES_PIPELINE_ABORTED; }
  // REQUIRES: !ok().
  Error error() const;
  Result<void> check() const { return ok() ? Result<void>{} : std::unexpected(error()); }
  std::string_view sqlstate() const;  // "40001"; "" if there is none

  int rows() const { return PQntuples(result_.get()); }
  int columns() const { return PQnfields(result_.get()); }
  int parameters() const { return PQnparams(result_.get()); }  // of describe
  std::string_view column(int column) const { return PQfname(result_.get(), column); }
  Oid type(int column) const { return PQftype(result_.get(), column); }
  // As text; nullopt = NULL.
  std::optional<std::string_view> value(int row, int column) const;
  std::string_view tag() const { return PQcmdStatus(result_.get()); }  // "INSERT 0 1"
  // Rows that were inserted, updated, deleted or merged; 0 for what only reads.
  std::int64_t affected() const;

 private:
  struct Clear {
    void operator()(PGresult* result) const { PQclear(result); }
  };
  std::unique_ptr<PGresult, Clear> result_;
};

// One step of a pipeline. Parameters are bound as text, their types are for the server to infer;
// nullopt = NULL.
struct Command {
  enum class Kind : std::uint8_t { query, prepare, describe, execute, sync };
  Kind kind = Kind::query;
  std::string name;  // of the prepared statement
  std::string sql;   // of query and prepare; one statement
  std::vector<std::optional<std::string>> params;

  static Command query(std::string sql, std::vector<std::optional<std::string>> params = {});
  static Command prepare(std::string name, std::string sql);
  static Command describe(std::string name);
  static Command execute(std::string name, std::vector<std::optional<std::string>> params);
  // After an error the server skips what is left up to the next sync. It ends an implicit
  // transaction, not one that BEGIN began.
  static Command sync();
};

// A block of a COPY stream, in libpq's memory.
class CopyBlock {
 public:
  CopyBlock() = default;
  CopyBlock(char* bytes, std::size_t size) : bytes_(bytes), size_(size) {}
  std::string_view bytes() const { return {bytes_.get(), size_}; }

 private:
  struct Free {
    void operator()(char* bytes) const { PQfreemem(bytes); }
  };
  std::unique_ptr<char, Free> bytes_;
  std::size_t size_ = 0;
};

// Which server it is. Transaction ids and log positions mean something within one only.
struct ServerIdentity {
  std::uint64_t system_id = 0;
  std::uint32_t timeline = 0;
  bool in_recovery = false;  // a standby; its timeline is that of the last checkpoint it replayed

  std::uint64_t source_id() const { return source_id_of(system_id, timeline); }
  // Never 0.
  static std::uint64_t source_id_of(std::uint64_t system_id, std::uint32_t timeline);
};

class Connection {
 public:
  // "keyword", "value": override what the URL says.
  using Settings = std::vector<std::pair<std::string, std::string>>;

  // `url`: a URL or a list of keyword = value, as libpq takes it. UTF-8 is spoken; application_name
  // is "larder" unless it is given. For a replication connection: {"replication", "database"}.
  // REQUIRES: the current loop is one of net::Runtime.
  static Task<Result<std::unique_ptr<Connection>>> connect(std::string url, Settings settings,
                                                           TimeUs deadline);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Sends all commands at once and waits for all replies: one round trip, however many syncs. A
  // sync is added at the end. One reply for each command that is no sync, in order; what the
  // server refuses is in its reply. Errors are those of the connection, and leave it broken().
  Task<Result<std::vector<Reply>>> run(std::vector<Command> commands, TimeUs deadline);

  // One command and its reply; what the server refuses is an error too.
  Task<Result<Reply>> run_one(Command command, TimeUs deadline);

  // Sends it and does not wait: the next run() drops the reply. For ROLLBACK. False: it could not
  // be sent, the connection is broken.
  bool send_and_forget(const Command& command);

  // The simple protocol, which is all that a replication connection knows. The last result; the
  // first error. START_REPLICATION and COPY end with a reply that says so, and then:
  Task<Result<Reply>> simple(std::string sql, TimeUs deadline);

  // The next block of a COPY. nullopt: the stream has ended (finish_copy() says how). At the
  // deadline: timeout, and the connection stays as good as it was, also after interrupt().
  Task<Result<std::optional<CopyBlock>>> receive_copy(TimeUs deadline);
  // Sends a block, and all of it.
  Task<Result<void>> send_copy(std::string bytes, TimeUs deadline);
  // What the server says at the end of a COPY. `send_end`: ends our side first.
  Task<Result<void>> finish_copy(bool send_end, TimeUs deadline);

  // Asks the server who it is. One round trip.
  Task<Result<ServerIdentity>> identify(TimeUs deadline);

  // Ends the pending wait, and every later one, with `cancelled`.
  void interrupt();

  // It is good for nothing more: close it.
  bool broken() const { return broken_; }
  // True if the server has closed it, or said something unasked, while it lay idle: take another.
  bool stale();

  // server_version, TimeZone, in_hot_standby ...; "" if the server did not say.
  std::string parameter(const char* name) const;
  int server_version() const { return PQserverVersion(conn_.get()); }  // 150018
  int backend_pid() const { return PQbackendPID(conn_.get()); }
  // Syncs sent: each is a round trip that somebody waits for, or a part of one.
  std::uint64_t pipelines() const { return pipelines_; }
  // "db.example:5432/shop", for messages.
  const std::string& name() const { return name_; }
  Loop& loop() const { return *loop_; }
  PGconn* raw() { return conn_.get(); }

 private:
  struct Finish {
    void operator()(PGconn* conn) const { PQfinish(conn); }
  };

  Connection() = default;
  Result<void> start(const std::string& url, const Settings& settings);
  Task<Result<void>> finish_connect(TimeUs deadline);
  Result<void> watch();
  bool send(const Command& command);
  Task<Result<void>> flush(TimeUs deadline);
  bool consume();
  // Until there is a result; null = the end of a command's results.
  Task<Result<PGresult*>> next_result(TimeUs deadline);
  Task<Result<void>> wait(bool write, TimeUs deadline);
  // The connection is lost: what libpq says of it.
  std::unexpected<Error> lost(std::string_view doing);
  std::unexpected<Error> out_of_time(std::string_view doing);

  std::unique_ptr<PGconn, Finish> conn_;
  std::unique_ptr<net::Readiness> readiness_;
  Loop* loop_ = nullptr;
  std::string name_;
  // Commands whose replies have not been read, in order.
  std::deque<Command::Kind> owed_;
  std::uint64_t pipelines_ = 0;
  bool interrupted_ = false;
  bool broken_ = false;
};

// The first line of what libpq or a server says, without line ends and without passwords.
std::string one_line(std::string_view message);

// An error that the server has answered, by its SQLSTATE.
Error server_error(std::string_view sqlstate, std::string_view message, std::string_view detail,
                   std::string_view hint);

}  // namespace larder::source::postgres
