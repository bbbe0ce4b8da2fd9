#include "cache/journal_sql.h"

#include <fmt/format.h>

namespace larder::cache::journal_sql {
namespace {

using source::Dialect;

constexpr const char* kColumns[] = {"seq",        "place", "cache",   "entry_key",
                                    "kind",       "value", "delta",   "written_us",
                                    "refused_us", "error", "obsolete"};

// An array of objects, as one text.
std::string as_json(Dialect dialect, const std::string& rows) {
  std::string fields;
  for (const char* column : kColumns)
    fields += fmt::format("{}'{}', {}", fields.empty() ? "" : ", ", column, column);
  switch (dialect) {
    case Dialect::postgres:
      return fmt::format("SELECT coalesce(json_agg(json_build_object({})), '[]')::text FROM ({}) r",
                         fields, rows);
    case Dialect::mariadb:
      return fmt::format("SELECT coalesce(json_arrayagg(json_object({})), '[]') FROM ({}) r",
                         fields, rows);
    case Dialect::sqlite: break;
  }
  return fmt::format("SELECT json_group_array(json_object({})) FROM ({})", fields, rows);
}

}  // namespace

std::vector<std::string> tables(Dialect dialect) {
  // A key is text of any size; MariaDB's TEXT ends at 64 KiB, and its indexes want a length.
  const bool mariadb = dialect == Dialect::mariadb;
  const char* const text = mariadb ? "LONGTEXT" : "TEXT";
  const char* const shard =
      mariadb ? "VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin" : "VARCHAR(255)";
  const char* const binary = mariadb ? " CHARACTER SET utf8mb4 COLLATE utf8mb4_bin" : "";
  return {fmt::format("CREATE TABLE IF NOT EXISTS larder_applied (shard {} NOT NULL PRIMARY KEY,"
                      " epoch BIGINT NOT NULL, seq BIGINT NOT NULL)",
                      shard),
          fmt::format("CREATE TABLE IF NOT EXISTS larder_dead_letter (shard {} NOT NULL,"
                      " seq BIGINT NOT NULL, place INTEGER NOT NULL, cache {}{} NOT NULL,"
                      " entry_key {}{} NOT NULL, kind VARCHAR(16) NOT NULL, value {}{} NOT NULL,"
                      " delta BIGINT NOT NULL, written_us BIGINT NOT NULL,"
                      " refused_us BIGINT NOT NULL, error {}{} NOT NULL,"
                      " obsolete INTEGER NOT NULL, PRIMARY KEY (shard, seq, place))",
                      shard, text, binary, text, binary, text, binary, text, binary)};
}

const char* make_shard(Dialect dialect) {
  if (dialect == Dialect::mariadb)
    return "INSERT IGNORE INTO larder_applied (shard, epoch, seq) VALUES (:shard, 0, 0)";
  return "INSERT INTO larder_applied (shard, epoch, seq) VALUES (:shard, 0, 0)"
         " ON CONFLICT DO NOTHING";
}

std::string list_letters(Dialect dialect) {
  return as_json(dialect,
                 "SELECT * FROM larder_dead_letter WHERE shard = :shard ORDER BY seq, place LIMIT "
                 ":n");
}

std::string one_letter(Dialect dialect) {
  return as_json(dialect,
                 "SELECT * FROM larder_dead_letter WHERE shard = :shard AND seq = :seq ORDER BY "
                 "place");
}

const char* be_durable(Dialect dialect) {
  if (dialect == Dialect::postgres)
    return "SELECT set_config('synchronous_commit', 'on', true)"
           " WHERE current_setting('synchronous_commit') = 'off'";
  return "";
}

}  // namespace larder::cache::journal_sql
