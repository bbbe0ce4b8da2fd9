// What a MariaDB server's binary log tells of the watched tables, and what is missing so that it
// tells everything: settings, rights and tables that only an administrator can change.
#pragma once

#include <string>
#include <vector>

#include "source/mariadb/binlog.h"
#include "source/mariadb/impl.h"

namespace larder::source::mariadb {

struct LogFacts {
  // What keeps changes from being told, and what to do about it: one line each.
  std::vector<std::string> obstacles;
  // Where the log ended before the tables were looked at.
  std::string file;
  LogPosition end;
  bool checksums = false;  // in the log
  // The watched tables, and those whose rows take theirs with them (foreign keys that cascade).
  std::vector<LoggedTable> tables;

  bool works() const { return obstacles.empty(); }
  std::string why_not() const;  // in one line
};

// Errors are those of the connection. Blocks.
Result<LogFacts> examine_log(Setup& db, const std::vector<WatchedTable>& watched);

}  // namespace larder::source::mariadb
