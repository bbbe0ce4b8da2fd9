// `larder source prepare`: a change table and the triggers that fill it, so that every write of
// every process is seen, in commit order, whatever wrote it. Also the SQL that the writer uses for
// TEMP triggers where nothing was prepared. Used through SQLite's own SQL of 2009: a process with
// an old SQLite can still write to a prepared database.
//
//   larder_change(seq INTEGER PRIMARY KEY AUTOINCREMENT, at_ms, tbl, k1, k2, k3, k4)
//     one row for each row that was changed: its table, and its watched columns with their own
//     types. An UPDATE gives the old values, and the new ones where they differ. What INSERT OR
//     REPLACE and UPDATE OR REPLACE delete without a word is given too (BEFORE triggers look for
//     the conflict). tbl = '' is a mark that only moves the sequence. Only the last kKeptChanges
//     rows stay.
//   larder_watched(tbl, k, col): which column is k1..k4. Columns are only ever added, so that
//     services with different needs can prepare one database.
//   triggers larder_insert_T, larder_update_T, larder_delete_T, larder_replace_T, larder_move_T
//
// All functions block.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "source/source.h"
#include "source/sqlite/db.h"

namespace larder::source::sqlite {

inline constexpr std::size_t kMaxWatchedColumns = 4;
inline constexpr std::int64_t kKeptChanges = 10'000;

// The statements that apply() would run, in order; none if the database is prepared. Errors
// (config): no such table or column, a view or virtual table, more than kMaxWatchedColumns columns
// of one table, a unique index made of expressions alone (its REPLACE conflicts cannot be
// followed).
Result<std::vector<std::string>> plan(const std::string& path,
                                      const std::vector<WatchedTable>& watched);
// Runs them in one transaction. Repeatable; what other services prepared stays.
Result<void> apply(const std::string& path, const std::vector<WatchedTable>& watched);
// Are the triggers exactly those that the watched tables need?
Result<bool> is_prepared(const std::string& path, const std::vector<WatchedTable>& watched);

// ---- for the source itself ----

// Where k1..k4 of a change of one table go.
struct ChangeColumns {
  struct Target {
    std::uint32_t watched_id = 0;
    std::vector<int> positions;  // for each watched column its k, from 0
  };
  // By the table's name as larder_change has it.
  std::map<std::string, std::vector<Target>, std::less<>> tables;

  // The changes that the current row of `stmt` means. Its columns from `first` on: tbl, k1..k4.
  void append(const Stmt& stmt, int first, policy::TxnId x, std::vector<RowChange>& out) const;
};

struct Preparation {
  bool complete = false;                // nothing is left to do
  std::vector<std::string> statements;  // what is left
  ChangeColumns columns;
};
// REQUIRES: a read transaction, so that it is of one state.
Result<Preparation> examine(Connection& db, const std::vector<WatchedTable>& watched);

// Statements that make a TEMP larder_change and TEMP triggers, for one connection.
struct TempTriggers {
  std::vector<std::string> statements;
  ChangeColumns columns;
};
Result<TempTriggers> temp_triggers(Connection& db, const std::vector<WatchedTable>& watched);

// The last change of a prepared database. Both the rows and the memory of AUTOINCREMENT are asked:
// a statement that stops half way (OR FAIL) leaves its rows without moving the latter.
inline constexpr const char* kSequenceSql =
    "SELECT max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'larder_change'), 0),"
    " coalesce((SELECT max(seq) FROM larder_change), 0))";

}  // namespace larder::source::sqlite
