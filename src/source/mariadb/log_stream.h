// A server's binary log from a place on, event by event, over libmariadb. Everything blocks but
// interrupt().
#pragma once

#include <mysql.h>
// After mysql.h.
#include <mariadb_rpl.h>

#include <memory>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/sync.h"
#include "source/mariadb/impl.h"

namespace larder::source::mariadb {

class LogStream {
 public:
  // `file`, `offset`: between two transactions. Errors: source_down.
  static Result<std::unique_ptr<LogStream>> open(std::unique_ptr<Setup> db, const std::string& file,
                                                 std::uint64_t offset);
  ~LogStream();
  LogStream(const LogStream&) = delete;
  LogStream& operator=(const LogStream&) = delete;

  // The next event, from its header on: valid until the next call. On a quiet
  // server there is a heartbeat now and then. Errors: source_down (the connection, or nothing for
  // 10 s), source_refused (what the server says: no right, no such file).
  Result<std::string_view> next();

  // Ends next(), now and later. From any thread.
  void interrupt();

 private:
  explicit LogStream(std::unique_ptr<Setup> db) : db_(std::move(db)) {}

  const std::unique_ptr<Setup> db_;
  MARIADB_RPL* rpl_ = nullptr;
  MARIADB_RPL_EVENT* event_ = nullptr;
};

}  // namespace larder::source::mariadb
