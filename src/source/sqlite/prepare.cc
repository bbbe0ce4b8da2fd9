#include "source/sqlite/prepare.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

namespace larder::source::sqlite {
namespace {

// Milliseconds since 1970, in functions that every SQLite has.
constexpr std::string_view kNowMs = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)";

constexpr std::string_view kChangeColumns =
    "(seq INTEGER PRIMARY KEY AUTOINCREMENT, at_ms INTEGER NOT NULL, tbl TEXT NOT NULL, "
    "k1, k2, k3, k4)";
constexpr std::string_view kWatchedColumns =
    "(tbl TEXT NOT NULL, k INTEGER NOT NULL, col TEXT NOT NULL, PRIMARY KEY (tbl, k))";

struct UniqueColumn {
  std::string name;
  std::string collation;
};

// One table of the database, as far as triggers on it need to know.
struct TableInfo {
  std::string name;                                // as the schema writes it
  std::vector<std::string> columns;                // all
  std::vector<std::vector<UniqueColumn>> uniques;  // each: a conflict there makes REPLACE delete
  std::vector<std::string> watched;                // k1..
};

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

Result<std::vector<std::vector<std::string>>> rows_of(Connection& db, const std::string& sql,
                                                      const std::vector<Value>& values = {}) {
  auto stmt = db.prepare(sql, false);
  if (!stmt) return std::unexpected(stmt.error());
  for (std::size_t i = 0; i < values.size(); ++i) (*stmt)->bind(static_cast<int>(i) + 1, values[i]);
  std::vector<std::vector<std::string>> rows;
  while (true) {
    const auto row = (*stmt)->step();
    if (!row) return std::unexpected(row.error());
    if (!*row) return rows;
    auto& cells = rows.emplace_back();
    for (int i = 0; i < (*stmt)->columns(); ++i) cells.push_back((*stmt)->text(i));
  }
}

Result<std::string> table_name(Connection& db, const std::string& asked) {
  const auto found = rows_of(db,
                             "SELECT name, type, coalesce(sql, '') FROM main.sqlite_master WHERE "
                             "lower(name) = lower(?1) AND type IN ('table', 'view')",
                             {Value(asked)});
  if (!found) return std::unexpected(found.error());
  if (found->empty())
    return fail(
        ErrorCode::config,
        fmt::format("depends_on names the table \"{}\", which the database does not have", asked),
        "sqlite");
  const auto& row = found->front();
  if (row[1] == "view" || lower(row[2]).starts_with("create virtual"))
    return fail(ErrorCode::config,
                fmt::format("depends_on names \"{}\", a {}: name the tables that it is made of",
                            asked, row[1] == "view" ? "view" : "virtual table"),
                "sqlite");
  return row[0];
}

// The unique constraints of a table: its primary key and its unique indexes.
Result<void> find_uniques(Connection& db, TableInfo& table) {
  std::set<std::string> seen;
  const auto add = [&](std::vector<UniqueColumn> columns) {
    std::string id;
    for (const auto& c : columns) id += lower(c.name) + '\0' + lower(c.collation) + '\0';
    if (seen.insert(id).second) table.uniques.push_back(std::move(columns));
  };
  const auto indexes = rows_of(
      db, "SELECT name, origin FROM pragma_index_list(?1, 'main') WHERE \"unique\" ORDER BY name",
      {Value(table.name)});
  if (!indexes) return std::unexpected(indexes.error());
  bool primary_seen = false;
  for (const auto& index : *indexes) {
    primary_seen |= index[1] == "pk";
    const auto parts = rows_of(db,
                               "SELECT cid, name, coll FROM pragma_index_xinfo(?1, 'main') WHERE "
                               "key ORDER BY seqno",
                               {Value(index[0])});
    if (!parts) return std::unexpected(parts.error());
    std::vector<UniqueColumn> columns;
    // Expressions, and the WHERE of a partial index, are left out: more rows are logged than
    // conflict, never fewer.
    for (const auto& part : *parts)
      if (part[0] != "-2" && part[0] != "-1") columns.push_back({part[1], part[2]});
    if (columns.empty())
      return fail(ErrorCode::config,
                  fmt::format("the table \"{}\" has the unique index \"{}\" on expressions alone: "
                              "what REPLACE deletes through it cannot be followed; add a column to "
                              "the index, or do not depend on the table",
                              table.name, index[0]),
                  "sqlite");
    add(std::move(columns));
  }
  if (!primary_seen) {  // INTEGER PRIMARY KEY has no index
    const auto primary =
        rows_of(db, "SELECT name FROM pragma_table_xinfo(?1, 'main') WHERE pk > 0 ORDER BY pk",
                {Value(table.name)});
    if (!primary) return std::unexpected(primary.error());
    std::vector<UniqueColumn> columns;
    for (const auto& column : *primary) columns.push_back({column[0], "BINARY"});
    if (!columns.empty()) add(std::move(columns));
  }
  return {};
}

// Adds `wanted` to the columns watched already; the order of those stays.
Result<void> add_columns(TableInfo& table, const std::vector<std::string>& wanted) {
  for (const std::string& asked : wanted) {
    const int index = find_column(table.columns, asked);
    if (index < 0)
      return fail(ErrorCode::config,
                  fmt::format("depends_on names the column \"{}\" of table \"{}\", which has: {}",
                              asked, table.name, fmt::join(table.columns, ", ")),
                  "sqlite");
    const std::string& name = table.columns[static_cast<std::size_t>(index)];
    if (std::ranges::find(table.watched, name) == table.watched.end())
      table.watched.push_back(name);
  }
  if (table.watched.size() > kMaxWatchedColumns)
    return fail(
        ErrorCode::config,
        fmt::format("depends_on needs {} columns of table \"{}\" ({}), more than the {} that "
                    "its change table holds: name fewer columns",
                    table.watched.size(), table.name, fmt::join(table.watched, ", "),
                    kMaxWatchedColumns),
        "sqlite");
  return {};
}

Result<std::vector<TableInfo>> find_tables(Connection& db, const std::vector<WatchedTable>& watched,
                                           const std::vector<std::vector<std::string>>& before) {
  std::vector<TableInfo> tables;
  for (const WatchedTable& entry : watched) {
    const auto name = table_name(db, entry.table);
    if (!name) return std::unexpected(name.error());
    auto found = std::ranges::find(tables, *name, &TableInfo::name);
    if (found == tables.end()) {
      TableInfo table{.name = *name, .columns = {}, .uniques = {}, .watched = {}};
      const auto columns = rows_of(
          db, "SELECT name FROM pragma_table_xinfo(?1, 'main') WHERE hidden <> 1", {Value(*name)});
      if (!columns) return std::unexpected(columns.error());
      for (const auto& column : *columns) table.columns.push_back(column[0]);
      for (const auto& row : before)  // tbl, col; in the order of k
        if (row[0] == *name) table.watched.push_back(row[1]);
      if (auto done = find_uniques(db, table); !done) return std::unexpected(done.error());
      found = tables.insert(tables.end(), std::move(table));
    }
    if (auto done = add_columns(*found, entry.columns); !done) return std::unexpected(done.error());
  }
  return tables;
}

// ---- the triggers ----

std::string insert_into(const TableInfo& table) {
  std::string out = "INSERT INTO larder_change(at_ms, tbl";
  for (std::size_t i = 0; i < table.watched.size(); ++i) out += fmt::format(", k{}", i + 1);
  return out + ") ";
}

// "now, 'table', NEW."a", NEW."b"", with `row` = NEW, OLD or nothing.
std::string values(const TableInfo& table, std::string_view row) {
  std::string out = fmt::format("{}, {}", kNowMs, quote_text(table.name));
  for (const std::string& column : table.watched)
    out += fmt::format(", {}{}", row, quote_name(column));
  return out;
}

// Do NEW and OLD differ in `column`, to the bit? A column's own collation may hide a change of
// case, and 1 = 1.0 though their texts differ.
std::string differs(std::string_view column) {
  const std::string name = quote_name(column);
  return fmt::format(
      "(NEW.{0} COLLATE BINARY IS NOT OLD.{0} COLLATE BINARY OR typeof(NEW.{0}) <> "
      "typeof(OLD.{0}))",
      name);
}

// Rows that REPLACE would delete because NEW takes their place in a unique constraint.
std::string conflicts(const TableInfo& table, bool update) {
  std::string out;
  for (const auto& unique : table.uniques) {
    std::string where;
    std::string same;
    for (const auto& column : unique) {
      const std::string equal = fmt::format("{0} = NEW.{0} COLLATE {1}", quote_name(column.name),
                                            quote_name(column.collation));
      where += (where.empty() ? "" : " AND ") + equal;
      same += fmt::format("{0}NEW.{2} IS OLD.{2} COLLATE {1}", same.empty() ? "" : " AND ",
                          quote_name(column.collation), quote_name(column.name));
    }
    out += fmt::format("{}SELECT {} FROM {} WHERE {}{}; ", insert_into(table), values(table, ""),
                       quote_name(table.name), where,
                       update ? fmt::format(" AND NOT ({})", same) : "");
  }
  return out;
}

struct Trigger {
  std::string name;
  std::string rest;  // what follows the name
};

std::vector<Trigger> triggers_of(const TableInfo& table, std::string_view on) {
  const std::string insert = insert_into(table);
  std::string moved;
  for (const std::string& column : table.watched)
    moved += (moved.empty() ? "" : " OR ") + differs(column);
  std::vector<Trigger> out;
  const auto add = [&](std::string_view kind, std::string_view event, std::string body) {
    out.push_back({fmt::format("larder_{}_{}", kind, table.name),
                   fmt::format(" {} ON {} BEGIN {}END", event, on, body)});
  };
  add("insert", "AFTER INSERT", fmt::format("{}VALUES ({}); ", insert, values(table, "NEW.")));
  add("delete", "AFTER DELETE", fmt::format("{}VALUES ({}); ", insert, values(table, "OLD.")));
  std::string update = fmt::format("{}VALUES ({}); ", insert, values(table, "OLD."));
  if (!moved.empty())
    update += fmt::format("{}SELECT {} WHERE {}; ", insert, values(table, "NEW."), moved);
  add("update", "AFTER UPDATE", std::move(update));
  if (!table.uniques.empty()) {
    add("replace", "BEFORE INSERT", conflicts(table, false));
    add("move", "BEFORE UPDATE", conflicts(table, true));
  }
  return out;
}

ChangeColumns columns_of(const std::vector<TableInfo>& tables,
                         const std::vector<WatchedTable>& watched) {
  ChangeColumns out;
  for (const WatchedTable& entry : watched) {
    const auto table = std::ranges::find_if(
        tables, [&](const TableInfo& t) { return lower(t.name) == lower(entry.table); });
    LARDER_ASSERT(table != tables.end());
    ChangeColumns::Target target{.watched_id = entry.id, .positions = {}};
    for (const std::string& column : entry.columns)
      target.positions.push_back(find_column(table->watched, column));
    out.tables[table->name].push_back(std::move(target));
  }
  return out;
}

// Does the database have the table, in the form that is needed?
Result<bool> has_table(Connection& db, std::string_view name, std::string_view columns) {
  const auto found =
      rows_of(db, "SELECT sql FROM main.sqlite_master WHERE name = ?1", {Value(std::string(name))});
  if (!found) return std::unexpected(found.error());
  if (found->empty()) return false;
  if (found->front()[0] != fmt::format("CREATE TABLE {}{}", name, columns))
    return fail(
        ErrorCode::config,
        fmt::format("the database has a table {} that is not of this version of Larder: drop "
                    "it and prepare again",
                    name),
        "sqlite");
  return true;
}

}  // namespace

void ChangeColumns::append(const Stmt& stmt, int first, policy::TxnId x,
                           std::vector<RowChange>& out) const {
  const Cell name = stmt.cell(first);
  const auto found = tables.find(name.bytes);
  if (found == tables.end()) return;
  for (const Target& target : found->second) {
    RowChange change{.watched_id = target.watched_id, .values = {}, .x = x};
    for (const int position : target.positions)
      change.values.push_back(cell_text(stmt.cell(first + 1 + position)));
    out.push_back(std::move(change));
  }
}

Result<Preparation> examine(Connection& db, const std::vector<WatchedTable>& watched) {
  Preparation out;
  const auto change = has_table(db, "larder_change", kChangeColumns);
  if (!change) return std::unexpected(change.error());
  const auto watch = has_table(db, "larder_watched", kWatchedColumns);
  if (!watch) return std::unexpected(watch.error());
  if (!*change)
    out.statements.push_back(fmt::format("CREATE TABLE larder_change{}", kChangeColumns));
  if (!*watch)
    out.statements.push_back(fmt::format("CREATE TABLE larder_watched{}", kWatchedColumns));

  std::vector<std::vector<std::string>> before;
  if (*watch) {
    auto rows = rows_of(db, "SELECT tbl, col FROM larder_watched ORDER BY tbl, k");
    if (!rows) return std::unexpected(rows.error());
    before = std::move(*rows);
  }
  const auto tables = find_tables(db, watched, before);
  if (!tables) return std::unexpected(tables.error());
  for (const TableInfo& table : *tables) {
    const auto known = static_cast<std::size_t>(
        std::ranges::count_if(before, [&](const auto& row) { return row[0] == table.name; }));
    for (std::size_t k = known; k < table.watched.size(); ++k)
      out.statements.push_back(
          fmt::format("INSERT INTO larder_watched(tbl, k, col) VALUES ({}, {}, {})",
                      quote_text(table.name), k + 1, quote_text(table.watched[k])));
    for (const Trigger& trigger : triggers_of(table, quote_name(table.name))) {
      const std::string sql = "CREATE TRIGGER " + quote_name(trigger.name) + trigger.rest;
      const auto found =
          rows_of(db, "SELECT sql FROM main.sqlite_master WHERE type = 'trigger' AND name = ?1",
                  {Value(trigger.name)});
      if (!found) return std::unexpected(found.error());
      if (!found->empty() && found->front()[0] == sql) continue;
      if (!found->empty()) out.statements.push_back("DROP TRIGGER " + quote_name(trigger.name));
      out.statements.push_back(sql);
    }
  }
  out.columns = columns_of(*tables, watched);
  out.complete = out.statements.empty();
  return out;
}

Result<TempTriggers> temp_triggers(Connection& db, const std::vector<WatchedTable>& watched) {
  TempTriggers out;
  const auto tables = find_tables(db, watched, {});
  if (!tables) return std::unexpected(tables.error());
  out.statements.push_back(
      fmt::format("CREATE TEMP TABLE IF NOT EXISTS larder_change{}", kChangeColumns));
  for (const TableInfo& table : *tables) {
    for (const Trigger& trigger : triggers_of(table, "main." + quote_name(table.name))) {
      out.statements.push_back("DROP TRIGGER IF EXISTS temp." + quote_name(trigger.name));
      out.statements.push_back("CREATE TEMP TRIGGER " + quote_name(trigger.name) + trigger.rest);
    }
  }
  out.columns = columns_of(*tables, watched);
  return out;
}

namespace {

constexpr DurationUs kPatience = 10 * kSecond;  // for the locks of a database in use

Result<std::unique_ptr<Connection>> begin(const std::string& path, Connection::Mode mode) {
  if (!file_id(path))
    return fail(
        ErrorCode::config,
        fmt::format("the database file {} does not exist: create it with its tables first", path),
        "sqlite");
  auto db = Connection::open(path, mode);
  if (!db) return db;
  (*db)->set_deadline(monotonic_now_us() + kPatience);
  const auto begun = (*db)->exec(mode == Connection::Mode::write ? "BEGIN IMMEDIATE" : "BEGIN");
  if (!begun) return std::unexpected(begun.error());
  return db;
}

}  // namespace

Result<std::vector<std::string>> plan(const std::string& path,
                                      const std::vector<WatchedTable>& watched) {
  auto db = begin(path, Connection::Mode::read);
  if (!db) return std::unexpected(db.error());
  auto found = examine(**db, watched);
  if (!found) return std::unexpected(found.error());
  return std::move(found->statements);
}

Result<void> apply(const std::string& path, const std::vector<WatchedTable>& watched) {
  auto db = begin(path, Connection::Mode::write);
  if (!db) return std::unexpected(db.error());
  const auto found = examine(**db, watched);
  if (!found) return std::unexpected(found.error());
  for (const std::string& sql : found->statements)
    if (auto done = (*db)->exec(sql); !done) return done;
  return (*db)->exec("COMMIT");
}

Result<bool> is_prepared(const std::string& path, const std::vector<WatchedTable>& watched) {
  const auto left = plan(path, watched);
  if (!left) return std::unexpected(left.error());
  return left->empty();
}

}  // namespace larder::source::sqlite
