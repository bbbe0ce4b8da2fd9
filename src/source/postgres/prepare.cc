#include "source/postgres/prepare.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <functional>
#include <map>

#include "net/runtime.h"
#include "source/postgres/change_table.h"

namespace larder::source::postgres {
namespace {

constexpr std::size_t kMostName = 63;
constexpr int kLeastVersion = 140'000;
constexpr char kSeparator = '\x1f';

constexpr const char* kServerSql =
    "SELECT current_setting('wal_level'), pg_is_in_recovery(), current_user,"
    " (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user)"
    "   OR EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'rds_replication'"
    "              AND pg_has_role(r.oid, 'MEMBER')),"
    " current_setting('max_replication_slots')::int,"
    " (SELECT count(*) FROM pg_replication_slots),"
    " current_setting('max_wal_senders')::int, (SELECT count(*) FROM pg_stat_replication),"
    " current_setting('max_slot_wal_keep_size'),"
    " has_database_privilege(current_database(), 'CREATE'), quote_ident(current_database()),"
    " quote_ident(current_user)";

// $1: the slot.
constexpr const char* kSlotSql =
    "SELECT slot_type, plugin, database = current_database(), temporary, wal_status"
    " FROM pg_replication_slots WHERE slot_name = $1";

// $1: the publication.
constexpr const char* kPublicationSql =
    "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate AND pubviaroot, puballtables,"
    " pg_has_role(pubowner, 'USAGE'), pg_get_userbyid(pubowner), oid || ':' || xmin,"
    " obj_description(oid, 'pg_publication')"
    " FROM pg_publication WHERE pubname = $1";

// $1: the table as it was named, $2: its columns, $3: the publication. A row for each column of the
// table, then of each of its partitions (1), or of the tables that inherit from it (2). Of an
// identity by index only one counts that is valid and not deferrable, as for the server.
constexpr const char* kTableSql =
    "WITH RECURSIVE t AS (SELECT oid, relkind FROM pg_class WHERE oid = to_regclass($1)),"
    " heir AS (SELECT i.inhrelid FROM t JOIN pg_inherits i ON i.inhparent = t.oid"
    "          WHERE t.relkind = 'r'"
    "          UNION SELECT i.inhrelid FROM heir h JOIN pg_inherits i ON i.inhparent = h.inhrelid),"
    " rel AS (SELECT oid, 0 AS part FROM t UNION ALL"
    "         SELECT p.relid, 1 FROM t, pg_partition_tree(t.oid) p"
    "         WHERE t.relkind = 'p' AND p.isleaf AND p.relid <> t.oid"
    "         UNION ALL SELECT inhrelid, 2 FROM heir)"
    " SELECT part, n.nspname, c.relname, format('%I.%I', n.nspname, c.relname), c.relkind,"
    "  c.relpersistence, c.relreplident, pg_has_role(c.relowner, 'USAGE'),"
    "  pg_get_userbyid(c.relowner), has_table_privilege(c.oid, 'SELECT'), w.col, a.attname,"
    "  a.attnum IS NOT NULL AND CASE c.relreplident WHEN 'f' THEN true WHEN 'n' THEN false ELSE"
    "   EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate"
    "           AND CASE c.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END"
    "           AND a.attnum = ANY((i.indkey::int2[])[0:i.indnkeyatts - 1])) END,"
    "  EXISTS (SELECT FROM pg_publication_tables p WHERE p.pubname = $3"
    "          AND p.schemaname = n.nspname AND p.tablename = c.relname),"
    "  EXISTS (SELECT FROM pg_publication_rel p JOIN pg_publication b ON b.oid = p.prpubid"
    "          WHERE b.pubname = $3 AND p.prrelid = c.oid"
    "          AND (to_jsonb(p) ->> 'prqual' IS NOT NULL OR to_jsonb(p) ->> 'prattrs' IS NOT "
    "NULL)),"
    "  a.attgenerated, c.oid || ':' || coalesce(pg_relation_filenode(c.oid), 0),"
    "  (SELECT p.oid FROM pg_publication_rel p JOIN pg_publication b ON b.oid = p.prpubid"
    "   WHERE b.pubname = $3 AND p.prrelid = c.oid)"
    " FROM rel JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace"
    " CROSS JOIN unnest(string_to_array($2, chr(31))) WITH ORDINALITY w(col, ord)"
    " LEFT JOIN LATERAL (SELECT attname, attnum, attgenerated FROM pg_attribute WHERE attrelid = "
    "c.oid"
    "   AND attnum > 0 AND NOT attisdropped AND attname IN (w.col, lower(w.col))"
    "   ORDER BY attname = w.col DESC LIMIT 1) a ON true"
    " ORDER BY part, c.oid, ord";

std::string_view text(const Reply& reply, int row, int column) {
  return reply.value(row, column).value_or("");
}
bool yes(const Reply& reply, int row, int column) { return text(reply, row, column) == "t"; }
std::int64_t integer(const Reply& reply, int row, int column) {
  std::int64_t value = 0;
  const std::string_view digits = text(reply, row, column);
  std::from_chars(digits.data(), digits.data() + digits.size(), value);
  return value;
}

bool is_plain(std::string_view name) {
  return !name.empty() && std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
  });
}

// Collects what is missing from the answers.
class Examiner {
 public:
  Examiner(const PrepareOptions& options, int version) : options_(options), version_(version) {}

  void server(const Reply& reply);
  void slot(const Reply& reply);
  void table(const WatchedTable& watched, const Reply& reply);
  void publication(const Reply& reply);
  Preparation take() { return std::move(result_); }

 private:
  void obstacle(std::string text) {
    if (std::ranges::find(result_.obstacles, text) == result_.obstacles.end())
      result_.obstacles.push_back(std::move(text));
  }
  void warning(std::string text) {
    if (std::ranges::find(result_.warnings, text) == result_.warnings.end())
      result_.warnings.push_back(std::move(text));
  }
  bool logged(const Reply& reply, int row);
  void identity(const Reply& reply, int row, const std::vector<std::string>& uncovered);
  void publish(const Reply& reply, int row);

  const PrepareOptions& options_;
  const int version_;
  Preparation result_;
  std::string role_;
  std::string database_;
  bool may_create_ = false;
  bool slots_are_full_ = false;
  std::int64_t slots_ = 0;
  std::map<std::string, bool> published_;  // by quoted name
  std::map<std::string, bool> full_;       // tables that get REPLICA IDENTITY FULL
};

void Examiner::server(const Reply& reply) {
  if (version_ < kLeastVersion)
    obstacle(
        fmt::format("PostgreSQL 14 or later is needed (this is {}.{}): earlier ones "
                    "do not send Larder's own heartbeats with the log",
                    version_ / 10'000, version_ % 10'000));
  role_ = text(reply, 0, 11);
  database_ = text(reply, 0, 10);
  may_create_ = yes(reply, 0, 9);
  if (yes(reply, 0, 1)) obstacle("this is a standby: name the primary in the url");
  if (text(reply, 0, 0) != "logical")
    obstacle(
        fmt::format("wal_level is {}: as superuser ALTER SYSTEM SET wal_level = "
                    "'logical', then restart the server; or feed = \"triggers\" in [source.{}]",
                    text(reply, 0, 0), options_.source));
  if (!yes(reply, 0, 3))
    obstacle(fmt::format("the role may not read the log: as superuser ALTER ROLE {} REPLICATION",
                         role_));
  slots_ = integer(reply, 0, 4);
  slots_are_full_ = integer(reply, 0, 5) >= slots_;
  const std::int64_t senders = integer(reply, 0, 6);
  if (senders == 0)
    obstacle(
        "max_wal_senders is 0: as superuser ALTER SYSTEM SET max_wal_senders = "
        "10, then restart the server");
  else if (integer(reply, 0, 7) >= senders)
    warning(
        fmt::format("all {} max_wal_senders are in use: as superuser ALTER "
                    "SYSTEM SET max_wal_senders = {}, then restart the "
                    "server",
                    senders, senders + 10));
  if (options_.feed_for == FeedFor::fleet && text(reply, 0, 8) == "-1")
    warning(
        fmt::format("max_slot_wal_keep_size is not set: while no Larder reads slot {}, the log "
                    "grows until the disk is full. As superuser ALTER SYSTEM SET "
                    "max_slot_wal_keep_size = '10GB', then SELECT pg_reload_conf()",
                    options_.slot));
}

void Examiner::slot(const Reply& reply) {
  const bool fleet = options_.feed_for == FeedFor::fleet;
  if (fleet && reply.rows() > 0) {
    const bool fits = text(reply, 0, 0) == "logical" && text(reply, 0, 1) == "pgoutput" &&
                      yes(reply, 0, 2) && text(reply, 0, 3) == "f";
    if (!fits)
      obstacle(
          fmt::format("replication slot {} is something else's: it must be a logical one of "
                      "pgoutput in database {}; drop it, or give Larder another namespace",
                      options_.slot, database_));
    return;
  }
  if (slots_are_full_)
    obstacle(
        fmt::format("all {} max_replication_slots are in use: drop one that nobody reads, or as "
                    "superuser ALTER SYSTEM SET max_replication_slots = {} and restart the server",
                    slots_, slots_ + 10));
  if (fleet)
    result_.slot.push_back(
        {.sql = fmt::format("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')",
                            options_.slot),
         .why = "the server keeps its log until Larder has read it",
         .needs = {}});
}

void Examiner::table(const WatchedTable& watched, const Reply& reply) {
  if (reply.rows() == 0) {
    obstacle(
        fmt::format("there is no table {}: correct depends_on, or the search_path "
                    "of the role",
                    watched.table));
    return;
  }
  const bool partitioned = text(reply, 0, 4) == "p";
  const int columns = static_cast<int>(watched.columns.size());
  for (int row = 0; row < reply.rows(); row += columns) {
    const bool heir = text(reply, row, 0) == "2";
    const std::string quoted(text(reply, row, 3));
    if (!logged(reply, row)) return;
    TableName name{.watched = watched,
                   .schema = std::string(text(reply, row, 1)),
                   .name = std::string(text(reply, row, 2)),
                   .partitioned = partitioned};
    std::vector<std::string> uncovered;
    for (int i = row; i < row + columns; ++i) {
      if (!reply.value(i, 11)) {
        obstacle(
            fmt::format("{} has no column {}: correct depends_on", quoted, text(reply, i, 10)));
        return;
      }
      if (!text(reply, i, 15).empty()) {
        obstacle(
            fmt::format("column {} of {} is generated: its values are not in the "
                        "log; name the columns that it is made of",
                        text(reply, i, 11), quoted));
        return;
      }
      if (!yes(reply, i, 12)) uncovered.emplace_back(text(reply, i, 11));
      name.watched.columns[static_cast<std::size_t>(i - row)] = text(reply, i, 11);
    }
    result_.storage.emplace(text(reply, row, 16));
    if (const auto member = reply.value(row, 17))
      result_.storage.emplace(fmt::format("published {}", *member));
    if (!uncovered.empty()) identity(reply, row, uncovered);
    if (text(reply, row, 0) == "1") continue;  // under its table's name
    if (yes(reply, row, 14))
      obstacle(
          fmt::format("publication {} leaves out rows or columns of {}: as its owner "
                      "ALTER PUBLICATION {} DROP TABLE {}, then `larder source prepare {}`",
                      options_.publication, quoted, options_.publication, quoted, options_.source));
    if (!heir && !yes(reply, row, 9))
      warning(
          fmt::format("the role may not read {}: as its owner GRANT SELECT ON "
                      "{} TO {}",
                      quoted, quoted, role_));
    if (!yes(reply, row, 13)) publish(reply, row);
    result_.tables.push_back(std::move(name));
  }
}

// Are changes of it in the log at all?
bool Examiner::logged(const Reply& reply, int row) {
  const std::string_view quoted = text(reply, row, 3);
  const char kind = text(reply, row, 4).empty() ? ' ' : text(reply, row, 4).front();
  const bool part = text(reply, row, 0) != "0";
  if (kind != 'r' && kind != 'p') {
    obstacle(part ? fmt::format("{} is a part of {} and no table of this server: changes of it are "
                                "not in its log; name in depends_on what is",
                                quoted, text(reply, 0, 3))
                  : fmt::format("{} is not a table: depends_on has to name the tables behind it",
                                quoted));
    return false;
  }
  const std::string_view persistence = text(reply, row, 5);
  if (persistence == "p") return true;
  const bool temporary = persistence != "u";
  obstacle(fmt::format("{} is {}: changes of it are not in the log. As its owner {} TABLE {}{}",
                       quoted, temporary ? "temporary" : "unlogged", temporary ? "DROP" : "ALTER",
                       quoted, temporary ? "" : " SET LOGGED"));
  return false;
}

void Examiner::publish(const Reply& reply, int row) {
  const std::string quoted(text(reply, row, 3));
  if (std::exchange(published_[quoted], true)) return;
  // Each heir has a step of its own.
  const bool has_heirs = text(reply, reply.rows() - 1, 0) == "2";
  result_.steps.push_back(
      {.sql = fmt::format("ALTER PUBLICATION {} ADD TABLE {}{}", options_.publication,
                          has_heirs ? "ONLY " : "", quoted),
       .why = fmt::format("changes of {} are to be sent", quoted),
       .needs = yes(reply, row, 7)
                    ? std::string()
                    : fmt::format("ownership of {} (role {})", quoted, text(reply, row, 8))});
}

void Examiner::identity(const Reply& reply, int row, const std::vector<std::string>& uncovered) {
  const std::string quoted(text(reply, row, 3));
  if (std::exchange(full_[quoted], true)) return;
  result_.steps.push_back(
      {.sql = fmt::format("ALTER TABLE {} REPLICA IDENTITY FULL", quoted),
       .why = fmt::format("else the log does not tell which {} a changed or deleted row had; it "
                          "makes the log of UPDATE and DELETE larger by the old row",
                          fmt::join(uncovered, ", ")),
       .needs = yes(reply, row, 7)
                    ? std::string()
                    : fmt::format("ownership of {} (role {})", quoted, text(reply, row, 8)),
       .vital = false});
}

// After the tables: a new publication takes all of them at once.
void Examiner::publication(const Reply& reply) {
  const std::string& name = options_.publication;
  constexpr std::string_view kWith =
      "publish = 'insert, update, delete, truncate', publish_via_partition_root = true";
  const bool exists = reply.rows() > 0;
  if (exists) {
    result_.storage.emplace(fmt::format("publication {}", text(reply, 0, 4)));
    result_.noted = text(reply, 0, 5);
    result_.may_note = yes(reply, 0, 2);
  }
  if (exists && !yes(reply, 0, 0))
    result_.steps.push_back(
        {.sql = fmt::format("ALTER PUBLICATION {} SET ({})", name, kWith),
         .why = "every kind of change has to be sent, and of partitions under their table's name",
         .needs = {}});
  if (exists) {
    if (!yes(reply, 0, 2))
      for (Preparation::Step& step : result_.steps)
        if (step.needs.empty() && step.sql.starts_with("ALTER PUBLICATION"))
          step.needs =
              fmt::format("ownership of publication {} (role {})", name, text(reply, 0, 3));
    return;
  }
  std::vector<std::string> tables;
  std::string needs;
  std::erase_if(result_.steps, [&](const Preparation::Step& step) {
    const std::string prefix = fmt::format("ALTER PUBLICATION {} ADD TABLE ", name);
    if (!step.sql.starts_with(prefix)) return false;
    tables.push_back(step.sql.substr(prefix.size()));
    if (needs.empty()) needs = step.needs;
    return true;
  });
  if (tables.empty()) return;
  if (!may_create_) {
    if (!needs.empty()) needs += ", and ";
    needs += fmt::format("GRANT CREATE ON DATABASE {} TO {}", database_, role_);
  }
  result_.steps.push_back({.sql = fmt::format("CREATE PUBLICATION {} FOR TABLE {} WITH ({})", name,
                                              fmt::join(tables, ", "), kWith),
                           .why = "which tables' changes are sent",
                           .needs = std::move(needs)});
}

template <class T>
using Work = std::function<Task<Result<T>>(Connection&)>;

template <class T>
Task<void> connect_and_run(const std::string& url, TimeUs deadline, const Work<T>& work,
                           net::Runtime& runtime, Result<T>& outcome) {
  Connection::Settings none;
  auto db = co_await Connection::connect(url, std::move(none), deadline);
  if (db)
    outcome = co_await work(**db);
  else
    outcome = std::unexpected(db.error());
  runtime.stop();
}

// Connects, and runs `work` with the connection, on a loop of its own.
template <class T>
Result<T> with_connection(const std::string& url, TimeUs deadline, const Work<T>& work) {
  const auto runtime = net::Runtime::create(1);
  Result<T> outcome = fail(ErrorCode::internal, "nothing was done");
  TaskGroup group;
  runtime->loop(0).post(
      [&] { group.spawn(connect_and_run(url, deadline, work, *runtime, outcome)); });
  runtime->run();
  return outcome;
}

}  // namespace

std::string feed_name(std::string_view space, std::string_view source) {
  const std::string wanted = fmt::format("larder_{}_{}", space, source);
  std::string name = wanted;
  for (char& c : name) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (!is_plain(std::string_view(&c, 1))) c = '_';
  }
  if (name == wanted && name.size() <= kMostName) return name;
  // FNV-1a: the same on every host and in every version.
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char c : wanted) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  const std::string end = fmt::format("_{:08x}", static_cast<std::uint32_t>(hash ^ hash >> 32));
  return name.substr(0, kMostName - end.size()) + end;
}

std::string rests_on(const PrepareOptions& options) {
  if (options.means == Means::triggers)
    return fmt::format("triggers that fill table {}, which is polled",
                       ChangeTable(options.slot).name);
  return options.feed_for == FeedFor::fleet
             ? fmt::format("slot {}, publication {}", options.slot, options.publication)
             : fmt::format("a temporary slot of each node, publication {}", options.publication);
}

std::string Preparation::why_not(std::string_view source) const {
  std::string out;
  const auto add = [&](std::string_view line) {
    if (!out.empty()) out += "; ";
    out += line;
  };
  for (const std::string& obstacle : obstacles) add(obstacle);
  if (!steps.empty()) {
    add(fmt::format("run `larder source prepare {}`", source));
    for (const Step& step : steps) {
      add(step.sql);
      if (!step.needs.empty()) out += fmt::format(" (needs {})", step.needs);
    }
  }
  return out;
}

Task<Result<Preparation>> examine(Connection& db, PrepareOptions options, TimeUs deadline) {
  if (options.means == Means::triggers) {
    auto found = co_await examine_triggers(db, std::move(options), deadline);
    co_return found;
  }
  std::vector<Command> commands;
  if (!is_plain(options.slot) || !is_plain(options.publication))
    co_return fail(ErrorCode::config, "the names of slot and publication may hold a-z, 0-9 and _",
                   "postgres");
  commands.push_back(Command::query(kServerSql));
  commands.push_back(Command::query(kSlotSql, {options.slot}));
  commands.push_back(Command::query(kPublicationSql, {options.publication}));
  for (const WatchedTable& watched : options.watched) {
    std::string columns = fmt::format("{}", fmt::join(watched.columns, std::string(1, kSeparator)));
    commands.push_back(
        Command::query(kTableSql, {watched.table, std::move(columns), options.publication}));
  }
  const auto replies = co_await db.run(std::move(commands), deadline);
  if (!replies) co_return std::unexpected(replies.error());
  for (const Reply& reply : *replies)
    if (!reply.ok() && !reply.skipped()) co_return std::unexpected(reply.error());
  Examiner examiner(options, db.server_version());
  examiner.server((*replies)[0]);
  examiner.slot((*replies)[1]);
  for (std::size_t i = 0; i < options.watched.size(); ++i)
    examiner.table(options.watched[i], (*replies)[3 + i]);
  examiner.publication((*replies)[2]);
  co_return examiner.take();
}

Task<Result<void>> note(Connection& db, std::string publication, std::string line,
                        TimeUs deadline) {
  LARDER_ASSERT(line.find_first_of("'\\") == std::string::npos);
  Command comment =
      Command::query(fmt::format("COMMENT ON PUBLICATION {} IS '{}'", publication, line));
  const auto done = co_await db.run_one(std::move(comment), deadline);
  if (!done) co_return std::unexpected(done.error());
  co_return Result<void>{};
}

Task<Result<void>> apply(Connection& db, Preparation preparation, TimeUs deadline) {
  if (!preparation.steps.empty()) {
    std::vector<Command> commands;
    commands.push_back(Command::query("BEGIN"));
    for (const auto& step : preparation.steps) commands.push_back(Command::query(step.sql));
    commands.push_back(Command::query("COMMIT"));
    const auto replies = co_await db.run(std::move(commands), deadline);
    if (!replies) co_return std::unexpected(replies.error());
    for (std::size_t i = 0; i < replies->size(); ++i) {
      const Reply& reply = (*replies)[i];
      if (reply.ok()) continue;
      Error error = reply.error();
      db.send_and_forget(Command::query("ROLLBACK"));
      if (i > 0 && i <= preparation.steps.size()) {
        const auto& step = preparation.steps[i - 1];
        error.message = fmt::format("{}: {}", step.sql, error.message);
        if (!step.needs.empty()) error.message += fmt::format("; it needs {}", step.needs);
      }
      co_return std::unexpected(std::move(error));
    }
  }
  for (const auto& step : preparation.slot) {
    Command create = Command::query(step.sql);
    const auto created = co_await db.run_one(std::move(create), deadline);
    if (created) continue;
    Error error = created.error();
    error.message = fmt::format("{}: {}", step.sql, error.message);
    if (error.code == ErrorCode::timeout)
      error.message +=
          "; a slot is made when the transactions that run have ended: see "
          "pg_stat_activity for the oldest";
    co_return std::unexpected(std::move(error));
  }
  co_return Result<void>{};
}

Result<Preparation> examine_now(const std::string& url, const PrepareOptions& options,
                                TimeUs deadline) {
  return with_connection<Preparation>(
      url, deadline, [&](Connection& db) { return examine(db, options, deadline); });
}

Result<void> apply_now(const std::string& url, const Preparation& preparation, TimeUs deadline) {
  return with_connection<void>(url, deadline,
                               [&](Connection& db) { return apply(db, preparation, deadline); });
}

}  // namespace larder::source::postgres
