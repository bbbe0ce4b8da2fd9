// From the events of a MariaDB server's binary log to changes of watched tables: which rows had, or
// have now, which values in the columns that matter, and where in the log their transaction ends.
//
// What cannot be told row by row is told as *everything*: statements that are logged as text, a
// table that has changed, a transaction with more changes than are worth naming, an XA COMMIT, rows
// that InnoDB changes by a cascading foreign key (it does not log them; any DELETE or UPDATE of the
// table at the other end means everything). A change is never left out: what is not understood is
// an error.
//
// Pure: no I/O, no clock. Used by one thread at a time. Source: the format of events is described
// in MariaDB's documentation of its replication protocol.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "source/mariadb/numbers.h"
#include "source/source.h"

namespace larder::source::mariadb {

// A table whose events matter, as it is in the server.
struct LoggedTable {
  struct Column {
    std::size_t ordinal = 0;  // from 0
    bool is_unsigned = false;
  };
  std::string schema;
  std::string name;
  std::size_t columns = 0;  // of the table
  // None: an UPDATE or DELETE of it means everything.
  std::optional<std::uint32_t> watched_id;
  std::vector<Column> watched;
};

// What a transaction in the log has changed.
struct LoggedTransaction {
  struct Change {
    std::uint32_t watched_id = 0;
    std::vector<std::optional<std::string>> values;
  };
  std::vector<Change> changes;
  bool everything = false;      // then there are no changes
  bool tables_changed = false;  // look them up again; what follows cannot be read before
  std::string why;              // everything, or tables_changed
  std::string gtid;             // "0-7-123", as @@last_gtid gives it
  LogPosition end;
};

class BinlogReader {
 public:
  struct Options {
    std::vector<LoggedTable> tables;
    LogPosition start;       // between two transactions
    bool checksums = false;  // events end with one, until a description says something else
    std::size_t most_changes = 10'000;
  };
  explicit BinlogReader(Options options);

  // An event as the server sends it, from its header on. A transaction that it
  // ends and that has changed something that matters. Errors (source_down): it is none, or of a
  // kind that is not known.
  Result<std::optional<LoggedTransaction>> take(std::string_view event);

  // Everything before it has been taken.
  LogPosition position() const { return position_; }

 private:
  class Bytes;
  struct Column {
    std::uint8_t type = 0;
    std::uint16_t meta = 0;
  };
  struct Mapped {
    std::vector<const LoggedTable*> tables;  // empty: nobody's
    std::vector<Column> columns;
    std::string broken;  // why its rows mean everything
  };
  using Row = std::vector<std::optional<std::string>>;  // texts of the columns, if they are wanted

  Result<void> format(Bytes body);
  Result<void> rotate(Bytes body);
  Result<void> gtid(Bytes body, std::uint64_t server);
  Result<void> query(Bytes body);
  Result<void> table_map(Bytes body);
  Result<void> rows(Bytes body, std::uint8_t type);
  Result<void> row(Bytes& body, const Mapped& mapped, const std::vector<bool>& present, Row& row);
  void push(const Mapped& mapped, const Row& row);
  void everything(std::string why);
  std::optional<LoggedTransaction> finish();
  bool names_ours(std::string_view statement) const;

  const Options options_;
  LogPosition position_;
  std::unordered_map<std::uint64_t, Mapped> mapped_;
  LoggedTransaction transaction_;
  bool checksums_ = false;
  bool standalone_ = false;  // one event, without a COMMIT
  bool ended_ = false;
};

}  // namespace larder::source::mariadb
