#include "source/mariadb/prepare.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <set>

#include "source/mariadb/log_stream.h"

namespace larder::source::mariadb {
namespace {

constexpr unsigned kNoRight = 1227;
constexpr std::string_view kGrant =
    "as administrator GRANT BINLOG MONITOR, REPLICATION SLAVE ON *.* TO the user of the url";

std::string text(const Reply& reply, unsigned column) {
  return std::string(reply.value(column).value_or(""));
}

std::string lower(std::string_view text) {
  std::string out(text);
  std::ranges::transform(out, out.begin(), [](unsigned char c) { return std::tolower(c); });
  return out;
}

// A value of such a column is in the log as the text that a key has.
bool has_text(std::string_view type, std::string_view charset) {
  if (type.ends_with("int") || type == "decimal" || type == "bit") return true;
  const bool chars = type.ends_with("char") || type.ends_with("text");
  return chars && (charset.starts_with("utf8") || charset == "ascii");
}

class Examiner {
 public:
  Examiner(Setup& db, LogFacts& facts) : db_(db), facts_(facts) {}

  Result<void> settings();
  Result<void> table(const WatchedTable& watched);
  Result<void> cascades();

 private:
  void obstacle(std::string text) {
    if (std::ranges::find(facts_.obstacles, text) == facts_.obstacles.end())
      facts_.obstacles.push_back(std::move(text));
  }
  Setup& db_;
  LogFacts& facts_;
};

Result<void> Examiner::settings() {
  auto reply = db_.query(
      "SELECT @@log_bin, @@GLOBAL.binlog_format, @@GLOBAL.binlog_row_image, "
      "@@GLOBAL.log_bin_compress, @@GLOBAL.binlog_checksum");
  if (!reply) return std::unexpected(reply.error());
  reply->next();
  if (text(*reply, 0) != "1") {
    obstacle("the server writes no binary log: set log_bin and restart it");
    return {};
  }
  if (text(*reply, 1) != "ROW")
    obstacle(
        fmt::format("binlog_format is {}: SET GLOBAL binlog_format = 'ROW', and in the "
                    "server's configuration; sessions that are open keep theirs",
                    text(*reply, 1)));
  if (text(*reply, 2) != "FULL")
    obstacle(
        fmt::format("binlog_row_image is {}: SET GLOBAL binlog_row_image = 'FULL', and in the "
                    "server's configuration; sessions that are open keep theirs",
                    text(*reply, 2)));
  facts_.checksums = text(*reply, 4) != "NONE";
  if (text(*reply, 3) != "0") obstacle("log_bin_compress is on: SET GLOBAL log_bin_compress = 0");
  auto end = db_.query("SHOW MASTER STATUS");
  if (!end) {
    if (end.error().message.contains(fmt::format("(error {})", kNoRight))) {
      obstacle(fmt::format("the user may not see the binary log: {}", kGrant));
      return {};
    }
    return std::unexpected(end.error());
  }
  const bool row = end->next();
  const auto at = row ? LogPosition::parse(text(*end, 0), text(*end, 1)) : std::nullopt;
  if (!at) return fail(ErrorCode::source_down, "the server does not say where its log ends");
  facts_.file = text(*end, 0);
  facts_.end = *at;
  if (!text(*end, 2).empty() || !text(*end, 3).empty())
    obstacle("binlog_do_db or binlog_ignore_db leaves databases out of the log: remove them");
  return {};
}

Result<void> Examiner::table(const WatchedTable& watched) {
  const std::string name = literal_of_text(watched.table);
  auto kind = db_.query(
      fmt::format("SELECT TABLE_SCHEMA, TABLE_NAME, ENGINE, TABLE_TYPE FROM "
                  "information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = {}",
                  name));
  if (!kind) return std::unexpected(kind.error());
  if (!kind->next()) {
    obstacle(fmt::format("there is no table {}: correct depends_on", watched.table));
    return {};
  }
  LoggedTable table{
      .schema = text(*kind, 0), .name = text(*kind, 1), .watched_id = watched.id, .watched = {}};
  if (!text(*kind, 3).ends_with("TABLE")) {
    obstacle(fmt::format("{} is not a table: depends_on has to name the tables behind it",
                         watched.table));
    return {};
  }
  if (text(*kind, 2) != "InnoDB") {
    obstacle(fmt::format("{} is {}, which has no transactions: ALTER TABLE {} ENGINE = InnoDB",
                         watched.table, text(*kind, 2), watched.table));
    return {};
  }
  auto columns = db_.query(
      fmt::format("SELECT COLUMN_NAME, DATA_TYPE, COLUMN_TYPE, CHARACTER_SET_NAME, IS_GENERATED "
                  "FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() AND "
                  "TABLE_NAME = {} ORDER BY ORDINAL_POSITION",
                  name));
  if (!columns) return std::unexpected(columns.error());
  std::map<std::string, LoggedTable::Column> known;
  std::map<std::string, std::string> without_text;
  while (columns->next()) {
    const std::string column = lower(text(*columns, 0));
    known[column] = {.ordinal = table.columns++,
                     .is_unsigned = text(*columns, 2).contains("unsigned")};
    if (!has_text(text(*columns, 1), text(*columns, 3)) || text(*columns, 4) == "ALWAYS")
      without_text[column] = text(*columns, 4) == "ALWAYS" ? "generated"
                             : text(*columns, 3).empty()
                                 ? text(*columns, 1)
                                 : fmt::format("{} in {}", text(*columns, 1), text(*columns, 3));
  }
  for (const std::string& column : watched.columns) {
    const auto found = known.find(lower(column));
    if (found == known.end()) {
      obstacle(fmt::format("{} has no column {}: correct depends_on", watched.table, column));
      return {};
    }
    if (const auto odd = without_text.find(found->first); odd != without_text.end()) {
      obstacle(
          fmt::format("column {}.{} is {}, whose values are not in the log as the texts that keys "
                      "have: name a column of integers, decimals, or texts in utf8mb4",
                      watched.table, column, odd->second));
      return {};
    }
    table.watched.push_back(found->second);
  }
  facts_.tables.push_back(std::move(table));
  return {};
}

// InnoDB deletes and changes the rows at the near end of such a key by itself: they are in no log.
Result<void> Examiner::cascades() {
  auto reply = db_.query(
      "SELECT r.CONSTRAINT_SCHEMA, r.TABLE_NAME, r.UNIQUE_CONSTRAINT_SCHEMA, "
      "r.REFERENCED_TABLE_NAME FROM information_schema.REFERENTIAL_CONSTRAINTS r WHERE "
      "r.DELETE_RULE IN ('CASCADE', 'SET NULL', 'SET DEFAULT') OR "
      "r.UPDATE_RULE IN ('CASCADE', 'SET NULL', 'SET DEFAULT')");
  if (!reply) return std::unexpected(reply.error());
  using Name = std::pair<std::string, std::string>;
  std::multimap<Name, Name> parents;
  while (reply->next())
    parents.emplace(Name(text(*reply, 0), text(*reply, 1)), Name(text(*reply, 2), text(*reply, 3)));
  std::vector<Name> open;
  std::set<Name> seen;
  open.reserve(facts_.tables.size());
  for (const LoggedTable& table : facts_.tables) open.emplace_back(table.schema, table.name);
  while (!open.empty()) {
    const Name child = open.back();
    open.pop_back();
    const auto [first, last] = parents.equal_range(child);
    for (auto at = first; at != last; ++at)
      if (seen.insert(at->second).second) {
        facts_.tables.push_back(
            {.schema = at->second.first, .name = at->second.second, .watched = {}});
        open.push_back(at->second);
      }
  }
  return {};
}

}  // namespace

std::string LogFacts::why_not() const { return fmt::format("{}", fmt::join(obstacles, "; ")); }

Result<LogFacts> examine_log(Setup& db, const std::vector<WatchedTable>& watched) {
  LogFacts facts;
  Examiner examiner(db, facts);
  Result<void> done = examiner.settings();
  for (const WatchedTable& table : watched)
    if (done) done = examiner.table(table);
  if (done) done = examiner.cascades();
  if (!done) return std::unexpected(std::move(done.error()));
  return facts;
}

// May this user read the log? Opens a connection of its own for it. "" or the obstacle.
static Result<std::string> try_to_read(const std::string& url, const LogFacts& facts) {
  auto db = Setup::open(url);
  if (!db) return std::unexpected(std::move(db.error()));
  const auto stream = LogStream::open(std::move(*db), facts.file, facts.end.offset);
  if (!stream) return std::unexpected(stream.error());
  const auto event = (*stream)->next();
  if (event) return "";
  if (event.error().code == ErrorCode::source_down) return std::unexpected(event.error());
  return fmt::format("the user may not read the binary log ({}): {}", event.error().message,
                     kGrant);
}

Result<void> run_now(const std::string& url, const std::vector<std::string>& statements) {
  auto db = Setup::open(url);
  if (!db) return std::unexpected(std::move(db.error()));
  for (const std::string& sql : statements) {
    auto reply = (*db)->query(sql);
    if (!reply) return std::unexpected(std::move(reply.error()));
  }
  return {};
}

Result<std::vector<std::string>> what_is_missing(const std::string& url,
                                                 const std::vector<WatchedTable>& watched) {
  auto db = Setup::open(url);
  if (!db) return std::unexpected(std::move(db.error()));
  auto facts = examine_log(**db, watched);
  if (!facts) return std::unexpected(std::move(facts.error()));
  if (facts->works()) {
    auto refused = try_to_read(url, *facts);
    if (!refused) return std::unexpected(std::move(refused.error()));
    if (!refused->empty()) facts->obstacles.push_back(std::move(*refused));
  }
  return std::move(facts->obstacles);
}

}  // namespace larder::source::mariadb
