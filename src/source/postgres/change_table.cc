#include "source/postgres/change_table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <map>
#include <random>

#include "base/hash.h"
#include "base/random.h"
#include "resilience/backoff.h"

namespace larder::source::postgres {
namespace {

namespace json = boost::json;

constexpr DurationUs kPatience = 10 * kSecond;
constexpr DurationUs kRefusedPause = 50 * kMillisecond;
constexpr std::uint64_t kTrimEvery = 1'000;  // places
constexpr resilience::BackoffLimits kReconnect = {.first_us = 50 * kMillisecond,
                                                  .most_us = 2 * kSecond};

std::string_view text(const Reply& reply, int row, int column) {
  return reply.value(row, column).value_or("");
}
template <class Number>
Number number(const Reply& reply, int row, int column) {
  Number value = 0;
  const std::string_view digits = text(reply, row, column);
  std::from_chars(digits.data(), digits.data() + digits.size(), value);
  return value;
}
std::string quoted_text(std::string_view text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? "''" : std::string(1, c);
  return out + "'";
}
std::string quoted_name(std::string_view name) {
  std::string out = "\"";
  for (const char c : name) out += c == '"' ? "\"\"" : std::string(1, c);
  return out + "\"";
}

// $1: the table as it was named. The table (part 0), its partitions (1), those that inherit (2).
constexpr const char* kPartsSql =
    "WITH RECURSIVE t AS (SELECT oid, relkind FROM pg_class WHERE oid = to_regclass($1)),"
    " heir AS (SELECT i.inhrelid FROM t JOIN pg_inherits i ON i.inhparent = t.oid"
    "          WHERE t.relkind = 'r'"
    "          UNION SELECT i.inhrelid FROM heir h JOIN pg_inherits i ON i.inhparent = h.inhrelid),"
    " rel AS (SELECT oid, 0 AS part FROM t UNION ALL"
    "         SELECT p.relid, 1 FROM t, pg_partition_tree(t.oid) p"
    "         WHERE t.relkind = 'p' AND p.relid <> t.oid"
    "         UNION ALL SELECT inhrelid, 2 FROM heir)"
    " SELECT part, n.nspname, c.relname, format('%I.%I', n.nspname, c.relname), c.relkind,"
    "  c.relpersistence, pg_has_role(c.relowner, 'USAGE'), pg_get_userbyid(c.relowner),"
    "  c.oid || ':' || coalesce(pg_relation_filenode(c.oid), 0),"
    "  (SELECT string_agg(a.attname, chr(31)) FROM pg_attribute a WHERE a.attrelid = c.oid"
    "   AND a.attnum > 0 AND NOT a.attisdropped)"
    " FROM rel JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace"
    " ORDER BY part, c.oid";

// $1: the beginning of our triggers' names. Each of ours: table, its name, is it always on, the
// text of its function, its oid.
constexpr const char* kTriggersSql =
    "SELECT t.tgrelid::regclass::text, format('%I.%I', n.nspname, c.relname), t.tgname,"
    " t.tgenabled, p.prosrc, t.oid || ':' || t.xmin || ':' || p.oid || ':' || p.xmin"
    " FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_class c ON c.oid = t.tgrelid"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE NOT t.tgisinternal AND (t.tgname = $1 OR t.tgname = $1 || '_t') ORDER BY 2, 3";

std::string lower(std::string_view text) {
  std::string out(text);
  std::ranges::transform(out, out.begin(), [](unsigned char c) { return std::tolower(c); });
  return out;
}

// What a trigger's function does. Texts are written as those of loads and keys are.
std::string body_of(const ChangeTable& names, const std::string& schema, std::string_view rel,
                    const std::set<std::string>& columns) {
  const auto cols = [&](std::string_view row) {
    std::vector<std::string> parts;
    parts.reserve(columns.size());
    for (const std::string& column : columns)
      parts.push_back(
          fmt::format("{}, {}.{}::text", quoted_text(column), row, quoted_name(column)));
    return fmt::format("jsonb_build_object({})", fmt::join(parts, ", "));
  };
  const std::string insert =
      fmt::format("INSERT INTO {}.{}(x, rel, cols) VALUES (pg_current_xact_id(), {}, ", schema,
                  names.name, quoted_text(rel));
  return fmt::format(
      "BEGIN"
      " IF TG_OP = 'TRUNCATE' THEN {0}NULL); RETURN NULL; END IF;"
      " IF TG_OP <> 'INSERT' THEN {0}{1}); END IF;"
      " IF TG_OP = 'INSERT' OR (TG_OP = 'UPDATE' AND {1} <> {2}) THEN {0}{2}); END IF;"
      " RETURN NULL; "
      "END",
      insert, cols("OLD"), cols("NEW"));
}

}  // namespace

ChangeTable::ChangeTable(const std::string& base)
    : name(base),
      sequence(feed_name(base, "n").substr(7)),
      state(feed_name(base, "state").substr(7)),
      trigger(base.substr(0, 60)) {}

std::string ChangeTable::function_of(const std::string& quoted_table) const {
  return fmt::format("{}_{:08x}", name.substr(0, 54),
                     static_cast<std::uint32_t>(hash_bytes(quoted_table, 0)));
}

Task<Result<Preparation>> examine_triggers(Connection& db, PrepareOptions options,
                                           TimeUs deadline) {
  const ChangeTable names(options.slot);
  std::vector<Command> commands;
  commands.push_back(Command::query(
      "SELECT pg_is_in_recovery(), quote_ident(current_schema()), to_regclass($1) IS NOT NULL,"
      " coalesce(has_schema_privilege(current_schema(), 'CREATE'), false), "
      "quote_ident(current_user)",
      {names.state}));
  commands.push_back(Command::query(kTriggersSql, {names.trigger}));
  for (const WatchedTable& watched : options.watched)
    commands.push_back(Command::query(kPartsSql, {watched.table}));
  const auto replies = co_await db.run(std::move(commands), deadline);
  if (!replies) co_return std::unexpected(replies.error());
  for (const Reply& reply : *replies)
    if (!reply.ok() && !reply.skipped()) co_return std::unexpected(reply.error());
  const Reply& server = (*replies)[0];
  Preparation out;
  if (text(server, 0, 0) == "t")
    out.obstacles.emplace_back("this is a standby: name the primary in the url");
  const std::string schema(text(server, 0, 1));
  const std::string role(text(server, 0, 4));
  if (schema.empty()) {
    out.obstacles.emplace_back("the role's search_path names no schema that there is");
    co_return out;
  }
  // What is there already.
  struct Trigger {
    bool always = false;
    std::string body;
  };
  std::map<std::pair<std::string, std::string>, Trigger> there;  // by table and name
  const Reply& triggers = (*replies)[1];
  for (int row = 0; row < triggers.rows(); ++row) {
    there[{std::string(text(triggers, row, 1)), std::string(text(triggers, row, 2))}] = {
        .always = text(triggers, row, 3) == "A", .body = std::string(text(triggers, row, 4))};
    out.storage.emplace(fmt::format("trigger {}", text(triggers, row, 5)));
  }
  if (text(server, 0, 2) != "t") {
    const std::string needs = text(server, 0, 3) == "t"
                                  ? std::string()
                                  : fmt::format("GRANT CREATE ON SCHEMA {} TO {}", schema, role);
    for (const std::string& sql :
         {fmt::format(
              "CREATE TABLE {}.{}(x xid8 NOT NULL, n bigint, rel text NOT NULL, cols jsonb)",
              schema, names.name),
          fmt::format("CREATE INDEX ON {}.{}(n)", schema, names.name),
          fmt::format("CREATE INDEX ON {}.{}(x) WHERE n IS NULL", schema, names.name),
          fmt::format("CREATE SEQUENCE {}.{}", schema, names.sequence),
          fmt::format("CREATE TABLE {}.{} AS SELECT 0::bigint AS trimmed, ''::text AS seen", schema,
                      names.state)})
      out.steps.push_back(
          {.sql = sql, .why = "where triggers note what has changed", .needs = needs});
  }
  // Of one table that is named several times all columns together.
  struct Relation {
    bool truncates_only = false;  // a partition: its rows' triggers are those of its table
    std::string needs;
    std::string root;  // as it is quoted in SQL
    std::string rel;   // as it is noted: schema.name
    std::set<std::string> columns;
  };
  std::map<std::string, Relation> relations;
  for (std::size_t i = 0; i < options.watched.size(); ++i) {
    const WatchedTable& watched = options.watched[i];
    const Reply& parts = (*replies)[2 + i];
    if (parts.rows() == 0)
      out.obstacles.push_back(
          fmt::format("there is no table {}: correct depends_on, or the search_path of the role",
                      watched.table));
    for (int row = 0; row < parts.rows(); ++row) {
      const std::string quoted(text(parts, row, 3));
      const std::string_view kind = text(parts, row, 4);
      if ((kind != "r" && kind != "p") || text(parts, row, 5) != "p") {
        out.obstacles.push_back(fmt::format(
            "{} is no ordinary table (or unlogged, or temporary): changes of it would be missed",
            quoted));
        continue;
      }
      out.storage.emplace(text(parts, row, 8));
      TableName name{.watched = watched,
                     .schema = std::string(text(parts, row, 1)),
                     .name = std::string(text(parts, row, 2))};
      Relation& relation = relations[quoted];
      relation.root = text(parts, row, 0) == "1" ? std::string(text(parts, 0, 3)) : quoted;
      relation.truncates_only = text(parts, row, 0) == "1";
      const int noted = relation.truncates_only ? 0 : row;
      relation.rel = fmt::format("{}.{}", text(parts, noted, 1), text(parts, noted, 2));
      if (text(parts, row, 6) != "t")
        relation.needs = fmt::format("ownership of {} (role {})", quoted, text(parts, row, 7));
      std::map<std::string, std::string> known;
      for (std::string_view rest = text(parts, row, 9); !rest.empty();) {
        const std::size_t end = std::min(rest.find('\x1f'), rest.size());
        known.emplace(lower(rest.substr(0, end)), rest.substr(0, end));
        rest.remove_prefix(std::min(end + 1, rest.size()));
      }
      for (std::string& column : name.watched.columns) {
        const auto found = known.find(lower(column));
        if (found == known.end()) {
          out.obstacles.push_back(
              fmt::format("{} has no column {}: correct depends_on", quoted, column));
          break;
        }
        column = found->second;
        relation.columns.insert(column);
      }
      if (!relation.truncates_only) out.tables.push_back(std::move(name));
    }
  }
  if (!out.obstacles.empty()) co_return out;
  for (const auto& [quoted, relation] : relations) {
    const std::set<std::string>& columns =
        relation.truncates_only ? relations[relation.root].columns : relation.columns;
    const std::string body = body_of(names, schema, relation.rel, columns);
    const std::string function = fmt::format("{}.{}", schema, names.function_of(relation.root));
    const auto step = [&](std::string sql, std::string why) {
      for (const auto& known : out.steps)
        if (known.sql == sql) return;
      out.steps.push_back({.sql = std::move(sql), .why = std::move(why), .needs = relation.needs});
    };
    for (const bool truncates : {false, true}) {
      if (relation.truncates_only && !truncates) continue;
      const std::string trigger = names.trigger + (truncates ? "_t" : "");
      const auto found = there.find({quoted, trigger});
      if (found == there.end() || found->second.body != body)
        step(fmt::format("CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql "
                         "SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET datestyle = "
                         "'ISO' SET intervalstyle = 'postgres' SET extra_float_digits = 1 SET "
                         "bytea_output = 'hex' SET TimeZone = 'UTC' AS {}",
                         function, quoted_text(body)),
             fmt::format("notes which rows of {} have changed", relation.root));
      if (found == there.end())
        step(fmt::format("CREATE TRIGGER {} AFTER {} ON {} FOR EACH {} EXECUTE FUNCTION {}()",
                         trigger, truncates ? "TRUNCATE" : "INSERT OR UPDATE OR DELETE", quoted,
                         truncates ? "STATEMENT" : "ROW", function),
             fmt::format("calls it when {} changes", quoted));
      if (found == there.end() || !found->second.always)
        step(fmt::format("ALTER TABLE {} ENABLE ALWAYS TRIGGER {}", quoted, trigger),
             "also when a replica or a restore writes");
    }
  }
  co_return out;
}

Result<bool> changes_of(const TableChange& change, policy::TxnId x,
                        const std::vector<TableName>& tables, std::vector<RowChange>& into) {
  if (!change.cols) return false;
  boost::system::error_code ec;
  const json::value parsed = json::parse(*change.cols, ec);
  if (ec || !parsed.is_object())
    return fail(ErrorCode::source_down, "the change table holds what Larder did not write",
                "postgres");
  const json::object& cols = parsed.get_object();
  for (const TableName& table : tables) {
    if (change.rel != fmt::format("{}.{}", table.schema, table.name)) continue;
    RowChange row{.watched_id = table.watched.id, .values = {}, .x = x};
    for (const std::string& column : table.watched.columns) {
      const json::value* const value = cols.if_contains(column);
      if (!value) return false;  // written before the triggers knew of it
      row.values.push_back(value->is_string()
                               ? std::optional<std::string>(std::string(value->get_string()))
                               : std::nullopt);
    }
    into.push_back(std::move(row));
  }
  return true;
}

// ---- TableFeed ----

// From connecting to the loss of the connection.
class TableFeed::Period {
 public:
  Period(TableFeed& feed, TaskGroup& group, const ChangeSink& sink)
      : feed_(feed), group_(group), sink_(sink) {}

  Task<Result<void>> run();
  void interrupt() {
    interrupted_ = true;
    if (db_) db_->interrupt();
  }

 private:
  struct Polled {
    TimeUs at = 0;          // before it
    bool numbered = false;  // everything that was visible has a place
    policy::TxnId xmin = 0;
    std::uint64_t trimmed = 0, end = 0;
    Reply rows;
  };
  Task<Result<void>> open();
  Task<Result<void>> look();
  Task<Result<void>> hello();
  Task<Result<void>> step();
  Task<Result<Polled>> poll(std::uint64_t after, std::size_t most);
  Task<Result<ChangeBatch>> epoch();
  Task<Result<FeedOrder>> deliver(ChangeBatch batch);
  Task<Result<void>> obey(FeedOrder order);
  Task<Result<void>> trim(std::uint64_t end);
  ChangeBatch empty() const { return {.changes = {}, .source_id = feed_.source_id_}; }
  bool fleet() const { return feed_.options_.feed_for == FeedFor::fleet; }
  bool stopping() const { return interrupted_ || group_.stopping(); }

  TableFeed& feed_;
  TaskGroup& group_;
  const ChangeSink& sink_;
  std::unique_ptr<Connection> db_;
  std::vector<TableName> tables_;
  std::string noted_;
  TimeUs looked_at_ = 0, beat_at_ = 0;
  std::uint64_t trimmed_ = 0, confirmed_ = 0;
  bool more_ = false;
  bool interrupted_ = false;
};

TableFeed::TableFeed(FeedOptions options, DurationUs poll_us)
    : options_(std::move(options)), poll_us_(poll_us), table_(options_.slot) {}
TableFeed::~TableFeed() = default;

void TableFeed::say(std::string_view line) const {
  if (options_.log) options_.log(fmt::format("source {}: {}", options_.name, line));
}

void TableFeed::note(std::string condition) {
  if (condition == condition_) return;
  condition_ = std::move(condition);
  say(condition_.empty() ? "its change table is read again" : condition_);
}

Task<void> TableFeed::run(TaskGroup& group, ChangeSink sink) {
  TaskGroup watching;
  watching.spawn(interrupt_at_stop(group));
  resilience::Backoff backoff(kReconnect);
  Random random(static_cast<std::uint64_t>(monotonic_now_us()));
  while (!group.stopping()) {
    has_read_ = false;
    period_ = std::make_unique<Period>(*this, group, sink);
    const Result<void> ended = co_await period_->run();
    period_.reset();
    if (has_read_) backoff.reset();
    if (group.stopping() || ended) continue;
    note(fmt::format("its change table cannot be read, changes by others are not seen: {}",
                     ended.error().message));
    const TimeUs next = monotonic_now_us() + backoff.next(random);
    co_await group.sleep_until(next);
  }
  watching.stop();
  co_await watching.join();
}

Task<void> TableFeed::interrupt_at_stop(TaskGroup& group) {
  co_await group.sleep_until(kNever);
  if (period_) period_->interrupt();
}

Task<Result<void>> TableFeed::Period::run() {
  Result<void> done = co_await open();
  if (done) done = co_await look();
  if (done) done = co_await hello();
  while (done && !stopping()) {
    const TimeUs began = monotonic_now_us();
    if (began >= looked_at_ + feed_.options_.check_us) done = co_await look();
    if (done) done = co_await step();
    if (!done || more_) continue;
    co_await group_.sleep_until(began + feed_.poll_us_);
  }
  co_return done;
}

Task<Result<void>> TableFeed::Period::open() {
  Connection::Settings settings;
  auto connected = co_await Connection::connect(feed_.options_.url, std::move(settings),
                                                monotonic_now_us() + kPatience);
  if (!connected) co_return std::unexpected(connected.error());
  db_ = std::move(*connected);
  if (stopping()) co_return fail(ErrorCode::cancelled, "Larder is shutting down");
  const auto identity = co_await db_->identify(monotonic_now_us() + kPatience);
  if (!identity) co_return std::unexpected(identity.error());
  if (identity->in_recovery)
    co_return fail(ErrorCode::source_down,
                   fmt::format("{} is a standby: name the primary in the url", db_->name()),
                   "postgres");
  if (const std::uint64_t id = identity->source_id(); id != feed_.source_id_) {
    feed_.source_id_ = id;
    feed_.storage_.clear();
  }
  co_return Result<void>{};
}

// Does everything still tell what changes?
Task<Result<void>> TableFeed::Period::look() {
  const TimeUs began = monotonic_now_us();
  PrepareOptions wanted{.means = Means::triggers,
                        .source = feed_.options_.name,
                        .slot = feed_.options_.slot,
                        .publication = feed_.options_.publication,
                        .feed_for = feed_.options_.feed_for,
                        .watched = feed_.options_.watched};
  auto found = co_await examine(*db_, std::move(wanted), began + kPatience);
  if (!found) co_return std::unexpected(found.error());
  if (!found->works()) {
    feed_.owes_everything_ = true;  // once it is right again: who knows what was missed
    co_return fail(ErrorCode::source_down, found->why_not(feed_.options_.name), "postgres");
  }
  const bool same = feed_.storage_.empty() || found->storage == feed_.storage_;
  feed_.storage_ = std::move(found->storage);
  tables_ = std::move(found->tables);
  if (!same) {
    feed_.owes_everything_ = true;
    co_return fail(ErrorCode::source_down,
                   "a watched table was rewritten, truncated, or got or lost a part, or a trigger "
                   "was made anew: all entries of the source are void",
                   "postgres");
  }
  looked_at_ = began;
  co_return Result<void>{};
}

// Numbers what can be numbered, and reads what lies behind `after`.
Task<Result<TableFeed::Period::Polled>> TableFeed::Period::poll(std::uint64_t after,
                                                                std::size_t most) {
  const ChangeTable& names = feed_.table_;
  Polled out{.at = monotonic_now_us(), .rows = Reply(nullptr)};
  std::vector<Command> commands;
  commands.push_back(Command::query("SELECT pg_snapshot_xmin(pg_current_snapshot())"));
  commands.push_back(Command::sync());
  commands.push_back(Command::query(
      fmt::format("WITH turn AS MATERIALIZED (SELECT pg_try_advisory_xact_lock(hashtextextended("
                  "$1, 0)) AS mine), done AS (UPDATE {} SET n = nextval('{}') FROM turn"
                  " WHERE turn.mine AND n IS NULL RETURNING 1)"
                  " SELECT mine, (SELECT count(*) FROM done) FROM turn",
                  names.name, names.sequence),
      {names.name}));
  commands.push_back(Command::sync());
  commands.push_back(Command::query(
      fmt::format("SELECT trimmed, greatest(trimmed, (SELECT max(n) FROM {})), seen FROM {}",
                  names.name, names.state)));
  commands.push_back(Command::query(
      fmt::format("SELECT n, x, rel, cols FROM {} WHERE n > $1 ORDER BY n LIMIT $2", names.name),
      {std::to_string(after), std::to_string(most)}));
  auto replies = co_await db_->run(std::move(commands), out.at + kPatience);
  if (!replies) co_return std::unexpected(replies.error());
  for (const Reply& reply : *replies)
    if (!reply.ok()) co_return std::unexpected(reply.error());
  out.xmin = number<policy::TxnId>((*replies)[0], 0, 0);
  out.numbered = text((*replies)[1], 0, 0) == "t";
  out.trimmed = number<std::uint64_t>((*replies)[2], 0, 0);
  out.end = number<std::uint64_t>((*replies)[2], 0, 1);
  noted_ = text((*replies)[2], 0, 2);
  out.rows = std::move((*replies)[3]);
  trimmed_ = out.trimmed;
  co_return out;
}

// Where the table ends, and then a transaction that ends at once.
Task<Result<ChangeBatch>> TableFeed::Period::epoch() {
  const auto now = co_await poll(0, 0);
  if (!now) co_return std::unexpected(now.error());
  Command allocate = Command::query("SELECT pg_current_xact_id()");
  const auto floor = co_await db_->run_one(std::move(allocate), monotonic_now_us() + kPatience);
  if (!floor) co_return std::unexpected(floor.error());
  ChangeBatch batch = empty();
  batch.from = batch.to = now->end;
  batch.xmin = now->xmin;
  batch.floor = number<policy::TxnId>(*floor, 0, 0);
  co_return batch;
}

Task<Result<void>> TableFeed::Period::hello() {
  auto begun = co_await epoch();
  if (!begun) co_return std::unexpected(begun.error());
  if (!fleet()) {
    feed_.position_ = begun->to;
    begun->everything = true;
    const auto order = co_await deliver(std::move(*begun));
    if (!order) co_return std::unexpected(order.error());
    feed_.owes_everything_ = false;
    co_return Result<void>{};
  }
  // Did the one who read before us see it like this?
  std::string line =
      fmt::format("{:016x}", hash_bytes(fmt::format("{}", fmt::join(feed_.storage_, ",")), 0));
  const bool known = noted_.empty() || noted_ == line;
  ChangeBatch batch = empty();
  batch.from = batch.to = begun->to;
  feed_.position_ = batch.to;
  auto order = co_await deliver(std::move(batch));
  if (!order) co_return std::unexpected(order.error());
  Result<void> done = co_await obey(*order);
  if (done && (feed_.owes_everything_ || !known)) {
    ChangeBatch all = empty();
    all.from = all.to = *feed_.position_;
    all.everything = true;
    order = co_await deliver(std::move(all));
    if (!order) co_return std::unexpected(order.error());
    feed_.owes_everything_ = false;
    done = co_await obey(*order);
  }
  if (!done || noted_ == line) co_return done;
  Command note =
      Command::query(fmt::format("UPDATE {} SET seen = $1", feed_.table_.state), {std::move(line)});
  const auto noted = co_await db_->run_one(std::move(note), monotonic_now_us() + kPatience);
  if (!noted) co_return std::unexpected(noted.error());
  co_return done;
}

Task<Result<void>> TableFeed::Period::step() {
  const std::uint64_t from = *feed_.position_;
  const auto polled = co_await poll(from, kMostRows + 1);
  if (!polled) co_return std::unexpected(polled.error());
  ChangeBatch batch = empty();
  batch.from = batch.to = from;
  const auto rows = static_cast<std::size_t>(polled->rows.rows());
  more_ = rows > kMostRows;
  if (from < polled->trimmed || more_) {
    feed_.say(more_ ? "more than 10000 changes at once: all entries of the source are void"
                    : "its changes were kept no longer: all entries of the source are void");
    batch.everything = true;
    batch.to = std::max(from, polled->end);
  }
  for (std::size_t i = 0; i < rows && !batch.everything; ++i) {
    const int row = static_cast<int>(i);
    TableChange change{.rel = std::string(text(polled->rows, row, 2)), .cols = {}};
    if (const auto cols = polled->rows.value(row, 3)) change.cols = std::string(*cols);
    const auto x = number<policy::TxnId>(polled->rows, row, 1);
    const auto named = changes_of(change, x, tables_, batch.changes);
    if (!named) co_return std::unexpected(named.error());
    batch.to = number<std::uint64_t>(polled->rows, row, 0);
    if (*named) continue;
    feed_.say(fmt::format("TRUNCATE of {}, or older triggers: all entries of the source are void",
                          change.rel));
    batch.everything = true;
    batch.to = std::max(batch.to, polled->end);
  }
  if (batch.everything) {
    batch.changes.clear();
    if (!fleet()) {
      // A load may not see yet what the table shows already.
      const auto floor = co_await epoch();
      if (!floor) co_return std::unexpected(floor.error());
      batch.floor = floor->floor;
    }
  }
  const TimeUs now = monotonic_now_us();
  const bool quiet = batch.to == from && !batch.everything;
  if (polled->numbered && !more_) {
    batch.xmin = polled->xmin;
    // Of what triggers do not tell nothing is known since.
    batch.heartbeat = std::min(polled->at, looked_at_);
    feed_.note("");
    feed_.has_read_ = true;
  }
  if (quiet && (batch.heartbeat == 0 || now - beat_at_ < feed_.options_.heartbeat_us))
    co_return Result<void>{};
  if (batch.heartbeat != 0) beat_at_ = now;
  const std::uint64_t to = batch.to;
  auto order = co_await deliver(std::move(batch));
  if (!order) co_return std::unexpected(order.error());
  feed_.position_ = to;
  Result<void> done = fleet() ? co_await obey(*order) : Result<void>{};
  if (done && !more_) done = co_await trim(polled->end);
  co_return done;
}

Task<Result<FeedOrder>> TableFeed::Period::deliver(ChangeBatch batch) {
  for (;;) {
    ChangeBatch copy = batch;
    Result<FeedOrder> order = co_await sink_(std::move(copy));
    if (order || stopping()) co_return order;
    // The same again, later.
    const TimeUs next = monotonic_now_us() + kRefusedPause;
    co_await group_.sleep_until(next);
  }
}

Task<Result<void>> TableFeed::Period::obey(FeedOrder order) {
  constexpr int kMostOrders = 16;  // in a row
  for (int orders = 0; orders < kMostOrders; ++orders) {
    if (stopping()) co_return fail(ErrorCode::cancelled, "Larder is shutting down");
    const std::uint64_t from = order.go_on_from.value_or(*feed_.position_);
    if (!order.new_epoch && from >= trimmed_) {
      confirmed_ = std::max(confirmed_, std::min(from, order.confirm_up_to.value_or(from)));
      feed_.position_ = from;
      co_return Result<void>{};
    }
    auto batch = co_await epoch();
    if (!batch) co_return std::unexpected(batch.error());
    if (!order.new_epoch) {
      feed_.say("its changes were kept no longer: all entries of the source are void");
      batch->floor.reset();
      batch->from = from;
      batch->everything = true;
    }
    feed_.position_ = batch->to;
    const auto next = co_await deliver(std::move(*batch));
    if (!next) co_return std::unexpected(next.error());
    order = *next;
  }
  co_return fail(ErrorCode::internal, "the engine asks for one thing again and again", "postgres");
}

// Others who read have their places, too: what is kept is enough for one who is away for a while.
Task<Result<void>> TableFeed::Period::trim(std::uint64_t end) {
  const std::uint64_t kept = fleet() ? std::min(confirmed_, end) : end;
  if (kept < trimmed_ + kKept + kTrimEvery) co_return Result<void>{};
  const std::uint64_t upto = std::min(kept - kKept, trimmed_ + 10 * kTrimEvery);
  Command remove = Command::query(
      fmt::format("WITH gone AS (DELETE FROM {} WHERE n <= $1) UPDATE {} SET trimmed ="
                  " greatest(trimmed, $1)",
                  feed_.table_.name, feed_.table_.state),
      {std::to_string(upto)});
  const auto removed = co_await db_->run_one(std::move(remove), monotonic_now_us() + kPatience);
  if (!removed) co_return std::unexpected(removed.error());
  trimmed_ = upto;
  co_return Result<void>{};
}

}  // namespace larder::source::postgres
