#include <fmt/format.h>

#include <algorithm>

#include "source/mariadb/impl.h"

namespace larder::source::mariadb {
namespace {

constexpr std::size_t kMostDoubts = 32;          // asked about at once
constexpr std::size_t kMostPrepared = 256;       // on one connection
constexpr std::size_t kLargestScript = 8 << 20;  // sent at once, even where a server takes more

std::vector<int> find_columns(const RowLayout& rows, const std::vector<std::string>& names) {
  std::vector<int> out;
  out.reserve(names.size());
  for (const std::string& name : names) out.push_back(find_column(rows.columns(), name));
  return out;
}

bool may_be_repeated(unsigned error) {
  return error == kNoSuchPrepared || error == kDefinitionChanged;
}

}  // namespace

// ---- LoadLayout ----

Result<LoadLayout> LoadLayout::make(const LoadStatement& spec, const Reply& reply) {
  if (reply.columns() == 0)
    return fail(ErrorCode::source_refused, "the load statement gives no columns");
  std::vector<std::string> names;
  std::vector<ColumnKind> kinds;
  for (unsigned i = 0; i < reply.columns(); ++i) {
    const MYSQL_FIELD& field = reply.field(i);
    names.emplace_back(field.name, field.name_length);
    kinds.push_back(kind_of(field));
  }
  auto rows = RowLayout::make(spec.shape, std::move(names));
  if (!rows) return std::unexpected(rows.error());
  LoadLayout out{.rows = std::move(*rows), .kinds = std::move(kinds)};
  out.key_columns = find_columns(out.rows, spec.key_params);
  out.tag_columns = find_columns(out.rows, spec.tag_columns);
  return out;
}

bool LoadLayout::fits(const Reply& reply) const {
  if (reply.columns() != kinds.size()) return false;
  for (unsigned i = 0; i < reply.columns(); ++i) {
    const MYSQL_FIELD& field = reply.field(i);
    if (std::string_view(field.name, field.name_length) != rows.columns()[i]) return false;
    if (kind_of(field) != kinds[i]) return false;
  }
  return true;
}

Result<Row> LoadLayout::read(Reply& reply) const {
  RowBuilder builder(rows);
  std::vector<Cell> cells(kinds.size());
  std::vector<std::string> scratch(kinds.size());
  std::vector<std::optional<std::string>> key_values(key_columns.size());
  std::vector<std::optional<std::string>> tag_values(tag_columns.size());
  const auto take = [&](const std::vector<int>& columns, auto& out) {
    for (std::size_t i = 0; i < columns.size(); ++i)
      if (columns[i] >= 0)
        out[i] = canonical_text(kinds[static_cast<std::size_t>(columns[i])],
                                reply.value(static_cast<unsigned>(columns[i])));
  };
  for (bool first = true; !builder.failed() && reply.next(); first = false) {
    for (std::size_t i = 0; i < kinds.size(); ++i)
      cells[i] = cell_of(kinds[i], reply.value(static_cast<unsigned>(i)), scratch[i]);
    builder.add(cells);
    if (!first) continue;
    take(key_columns, key_values);
    take(tag_columns, tag_values);
  }
  auto out = builder.finish();
  if (!out) return out;
  out->key_values = std::move(key_values);
  out->tag_values = std::move(tag_values);
  return out;
}

// ---- Session ----

std::string Session::prepare(Script& script, const std::string& sql) {
  if (const auto found = prepared.find(sql); found != prepared.end()) return found->second;
  const auto same = std::ranges::find(script.prepares, sql, &Script::Prepare::sql);
  if (same != script.prepares.end()) return same->name;
  const std::string name = fmt::format("larder_{}", ++names);
  // In hexadecimal the text is whole, whatever the server's sql_mode makes of quotes in it.
  const std::size_t at = script.add(fmt::format("PREPARE {} FROM {}", name, literal_of_text(sql)));
  script.prepares.push_back({.at = at, .sql = sql, .name = name});
  return name;
}

void Session::make_room(Script& script, std::size_t more) {
  if (prepared.size() + more <= kMostPrepared) return;
  for (const auto& [sql, name] : prepared) script.add("DEALLOCATE PREPARE " + name);
  prepared.clear();
}

void Session::note_prepared(const Script& script, const std::vector<Reply>& replies) {
  for (const auto& [at, sql, name] : script.prepares)
    if (at < replies.size() && replies[at].ok()) prepared.emplace(sql, name);
  if (!replies.empty() && replies.back().error_number() == kNoSuchPrepared) prepared.clear();
}

void Session::settle() {
  if (open && !broken()) connection->send_and_forget("ROLLBACK");
  open = false;
}

// ---- parameters ----

Result<Literals> literals_of(const SqlText& sql, const Params& params, ErrorCode code,
                             std::string_view giver) {
  Literals out;
  out.reserve(sql.placeholders().size());
  for (const SqlText::Placeholder& placeholder : sql.placeholders()) {
    const auto given = std::ranges::find(params, placeholder.name, &NamedValue::name);
    if (given == params.end())
      return fail(code, fmt::format("{} no value for :{}", giver, placeholder.name));
    auto literal = literal_of(given->value);
    if (!literal)
      return fail(code, fmt::format(":{} is {}", placeholder.name, literal.error().message));
    out.push_back(std::move(*literal));
  }
  return out;
}

std::string execute(const std::string& name, const Literals& params) {
  std::string out = "EXECUTE " + name;
  for (std::size_t i = 0; i < params.size(); ++i) {
    out += i == 0 ? " USING " : ", ";
    out += params[i];
  }
  return out;
}

// ---- Impl ----

Task<Result<Loaded>> Impl::load(std::uint32_t statement_id, std::vector<Params> keys,
                                LoadTerms terms) {
  const TimeUs deadline = terms.deadline;
  const auto plan = plans_.find(statement_id);
  LARDER_ASSERT(plan != plans_.end());
  Loop* const home = Loop::current();
  end_setup();
  Load load{.plan = plan->second, .deadline = deadline, .which = {}, .params = {}, .out = {}};
  load.out.rows.resize(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    auto literals = literals_of(plan->second.sql, keys[i], ErrorCode::bad_key, "the key gives");
    if (!literals) {
      load.out.rows[i] = std::unexpected(literals.error());
      continue;
    }
    load.which.push_back(i);
    load.params.push_back(std::move(*literals));
  }
  if (load.which.empty()) co_return std::move(load.out);
  auto lease = co_await pool_->take(deadline);
  if (!lease) {
    health_.note(&lease.error(), lease.error().code == ErrorCode::source_down);
    co_return std::unexpected(lease.error());
  }
  Session& session = **lease;
  const Result<void> done = co_await load_on(session, load);
  session.settle();
  const bool down = session.broken() && !done && done.error().code == ErrorCode::source_down;
  lease->give_back();
  co_await resume_on(*home);
  health_.note(done ? nullptr : &done.error(), down);
  if (!done) co_return std::unexpected(done.error());
  co_return std::move(load.out);
}

Task<Result<void>> Impl::load_on(Session& session, Load& load) {
  // A statement that a pooler has lost, a table that is younger than the snapshot: once more.
  bool again = true;
  Result<void> done = co_await load_once(session, load, again);
  if (!done && again) {
    session.settle();
    load.done = 0;
    again = false;
    done = co_await load_once(session, load, again);
  }
  co_return done;
}

// `again`: whether it may be; then, whether it should be.
Task<Result<void>> Impl::load_once(Session& session, Load& load, bool& again) {
  const bool may = std::exchange(again, false);
  const std::vector<Numbers::Doubt> doubts = numbers_.doubts(session.server, kMostDoubts);
  const bool follow = capabilities_.snapshots && numbers_.follows_log();
  // Before the snapshot is taken: whatever has ended by now, it will contain.
  const Numbers::Moment moment = numbers_.now(session.server);
  std::optional<LogPosition> at;
  load.out.took_us = 0;
  // A key that the database refuses ends the script, not the transaction: the rest goes on.
  for (bool first = true; first || load.done < load.which.size(); first = false) {
    Places places;
    Script script =
        script_of(session, load, follow, first ? doubts : std::vector<Numbers::Doubt>(), places);
    if (metrics_.loads) metrics_.loads->add();
    const TimeUs sent = monotonic_now_us();
    if (first) load.out.as_of = sent;
    auto ran = co_await run(session, script, load.deadline);
    const DurationUs took = monotonic_now_us() - sent;
    if (metrics_.seconds) metrics_.seconds->record(took);
    if (!ran) co_return std::unexpected(ran.error());
    load.out.took_us += took;
    std::vector<Reply> replies = std::move(*ran);
    session.note_prepared(script, replies);
    if (places.doubts && replies.size() > *places.doubts) resolve(doubts, replies[*places.doubts]);
    if (places.log && replies.size() > *places.log) {
      std::string file, offset;
      Reply& state = replies[*places.log];
      while (state.next()) {
        const bool names_file = state.value(0).value_or("").ends_with("file");
        (names_file ? file : offset) = state.value(1).value_or("");
      }
      at = LogPosition::parse(file, offset);
    }
    // What stands around the keys: if it has failed, they are not of one state.
    const Reply& last = replies.back();
    const std::size_t index = replies.size() - 1;
    const bool of_a_key = index >= places.first_key && index < places.first_key + places.keys;
    if (!last.ok()) {
      const Error error = last.error();
      again = may && may_be_repeated(last.error_number());
      // What is wrong with the whole: the time is up, the server goes down, all is locked.
      if (!of_a_key || again || error.code == ErrorCode::timeout ||
          error.code == ErrorCode::source_down)
        co_return std::unexpected(error);
    }
    const Result<void> read = read_rows(session, load, replies, places);
    if (!read) co_return read;
    if (places.keys == 0) break;
  }
  if (capabilities_.snapshots) load.out.snapshot = numbers_.seen(moment, at, session.server);
  co_return Result<void>();
}

Script Impl::script_of(Session& session, const Load& load, bool follow,
                       const std::vector<Numbers::Doubt>& doubts, Places& places) const {
  Script script;
  if (!doubts.empty()) {
    std::string ask = "SELECT ";
    for (std::size_t i = 0; i < doubts.size(); ++i)
      ask += fmt::format("{}IS_FREE_LOCK('{}')", i == 0 ? "" : ", ", doubts[i].lock);
    places.doubts = script.add(std::move(ask));
  }
  session.make_room(script, 1);
  const bool transaction = load.which.size() > 1 || follow;
  if (transaction && !session.open) {
    // The level of this transaction alone; any other would take a snapshot for each statement.
    script.add("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ");
    script.add("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY");
    session.open = true;
    // The place in the log that goes with this very snapshot; @@gtid_binlog_pos would not do, as a
    // transaction is in the log before it is visible.
    if (follow) places.log = script.add("SHOW SESSION STATUS LIKE 'binlog_snapshot_%'");
  }
  const std::string name = session.prepare(script, load.plan.text);
  places.first_key = script.statements.size();
  places.keys = load.which.size() - load.done;
  for (std::size_t i = load.done; i < load.which.size(); ++i)
    script.add(execute(name, load.params[i]));
  if (session.open) script.add("COMMIT");
  return script;
}

Result<void> Impl::read_rows(Session& session, Load& load, std::vector<Reply>& replies,
                             const Places& places) {
  for (std::size_t i = 0; i < places.keys && places.first_key + i < replies.size(); ++i) {
    Reply& reply = replies[places.first_key + i];
    Result<Row>& row = load.out.rows[load.which[load.done++]];
    if (!reply.ok()) {
      row = std::unexpected(reply.error());
      continue;
    }
    auto layout = session.layouts.find(load.plan.spec.id);
    if (layout == session.layouts.end() || !layout->second.fits(reply)) {
      auto made = LoadLayout::make(load.plan.spec, reply);
      if (!made) return std::unexpected(made.error());
      layout = session.layouts.insert_or_assign(load.plan.spec.id, std::move(*made)).first;
    }
    row = layout->second.read(reply);
  }
  if (replies.back().ok()) session.open = false;  // COMMIT
  return {};
}

void Impl::resolve(const std::vector<Numbers::Doubt>& doubts, Reply& reply) {
  if (!reply.next()) return;
  for (std::size_t i = 0; i < doubts.size(); ++i)
    if (reply.value(static_cast<unsigned>(i)) == "1") numbers_.end(doubts[i].x);
}

Task<Result<std::vector<Reply>>> Impl::run(Session& session, const Script& script,
                                           TimeUs deadline) {
  constexpr std::size_t kAround = 1024;  // of the protocol's own
  std::vector<Reply> replies;
  const std::size_t most =
      std::min(kLargestScript, std::max(kAround, session.most_packet) - kAround / 2);
  for (std::size_t next = 0; next < script.statements.size();) {
    Batch batch;
    for (; next < script.statements.size(); ++next) {
      const std::size_t bytes = script.statements[next].size() + 2;
      if (batch.size() > 0 && batch.bytes() + bytes > most) break;
      if (bytes + kAround / 2 > std::max(most, session.most_packet)) {
        if (batch.size() > 0) break;  // what stands before it runs first
        replies.push_back(Reply::of_error(1153, fmt::format("a statement of {} bytes, with its "
                                                            "parameters, is more than the server "
                                                            "takes",
                                                            bytes)));
        co_return replies;
      }
      batch.add(script.statements[next]);
    }
    ++round_trips_;
    auto ran = co_await session.connection->run(std::move(batch), deadline);
    if (!ran) co_return std::unexpected(ran.error());
    for (Reply& reply : *ran) replies.push_back(std::move(reply));
    if (!replies.back().ok()) break;
  }
  co_return replies;
}

}  // namespace larder::source::mariadb
