#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "source/sqlite/impl.h"

namespace larder::source::sqlite {
namespace {

constexpr std::size_t kMostKeys = 256;
constexpr std::size_t kMostSqlBytes = 900'000;

const Value* find_value(const Params& params, std::string_view name) {
  const auto found = std::ranges::find(params, name, &NamedValue::name);
  return found == params.end() ? nullptr : &found->value;
}

std::vector<std::optional<std::string>> texts_of(std::span<const Cell> cells,
                                                 const std::vector<int>& columns) {
  std::vector<std::optional<std::string>> out;
  out.reserve(columns.size());
  for (const int column : columns)
    out.push_back(column < 0 ? std::nullopt : cell_text(cells[static_cast<std::size_t>(column)]));
  return out;
}

std::vector<int> find_columns(const RowLayout& layout, const std::vector<std::string>& names) {
  std::vector<int> out;
  out.reserve(names.size());
  for (const std::string& name : names) out.push_back(find_column(layout.columns(), name));
  return out;
}

// The change table was there at start. Without it there is no telling what a load has seen.
Error not_prepared(const Error& error, std::string_view name) {
  if (error.code != ErrorCode::source_refused) return error;
  return {ErrorCode::source_down,
          fmt::format("the database is no longer prepared ({}): run `larder source prepare {}`",
                      error.message, name),
          "sqlite"};
}

}  // namespace

LoadPlan LoadPlan::make(LoadStatement spec, SqlText sql, const Connection& limits) {
  LoadPlan plan{.spec = std::move(spec), .sql = std::move(sql), .texts = {}};
  plan.texts.push_back(plan.sql.numbered());
  const std::size_t names = plan.sql.names().size();
  const auto most_parameters = static_cast<std::size_t>(limits.limit(SQLITE_LIMIT_VARIABLE_NUMBER));
  const auto most_selects = static_cast<std::size_t>(limits.limit(SQLITE_LIMIT_COMPOUND_SELECT));
  const std::size_t most_bytes =
      std::min(kMostSqlBytes, static_cast<std::size_t>(limits.limit(SQLITE_LIMIT_SQL_LENGTH)));
  for (std::size_t keys = 2; keys <= kMostKeys; keys *= 2) {
    if (keys * names > most_parameters || keys > most_selects) break;
    std::string text;
    for (std::size_t i = 0; i < keys && text.size() <= most_bytes; ++i)
      // On lines of its own, so that a comment at the end of the statement cannot swallow the
      // parenthesis.
      text += fmt::format("{}SELECT {} AS \"larder#\", q.* FROM (\n{}\n) AS q",
                          i == 0 ? "" : " UNION ALL ", i, plan.sql.numbered(i * names));
    if (text.size() > most_bytes) break;
    plan.texts.push_back(std::move(text));
  }
  return plan;
}

Task<Result<Loaded>> Impl::load(std::uint32_t statement_id, std::vector<Params> keys,
                                LoadTerms terms) {
  const TimeUs deadline = terms.deadline;
  const auto plan = plans_.find(statement_id);
  LARDER_ASSERT(plan != plans_.end());
  Result<Loaded> result;
  net::WorkerPool::Job job = [&](unsigned thread) {
    result = load_now(readers_[thread], plan->second, keys, deadline);
  };
  const bool taken = co_await pool_->run(std::move(job));
  if (!taken)
    co_return fail(ErrorCode::overloaded,
                   fmt::format("source \"{}\": {} loads wait already; raise its pool or queue, or "
                               "lower the load",
                               options_.name, options_.queue));
  note(result ? nullptr : &result.error());
  co_return result;
}

Result<Loaded> Impl::load_now(Reader& reader, const LoadPlan& plan, const std::vector<Params>& keys,
                              TimeUs deadline) {
  Loaded out;
  out.as_of = monotonic_now_us();
  if (out.as_of >= deadline)
    return fail(ErrorCode::timeout,
                fmt::format("source \"{}\": no thread was free before the deadline; raise its pool",
                            options_.name));
  const auto incarnation = current();
  if (!incarnation) return std::unexpected(incarnation.error());
  const auto connected =
      connect(reader.db, reader.generation, *incarnation, Connection::Mode::read);
  if (!connected) return std::unexpected(connected.error());
  if (*connected) reader.schema = -1;  // another file may number its schemas alike
  Connection& db = *reader.db;
  db.set_deadline(deadline);
  // Before the read transaction: whatever has ended by now, it will see.
  policy::TxnId seen = ended_.load(std::memory_order_acquire);
  auto done = db.exec("BEGIN");
  if (done && prepared_) {
    const auto sequence = db.query_integer(kSequenceSql);
    if (sequence)
      seen = static_cast<policy::TxnId>(*sequence);
    else
      done = std::unexpected(not_prepared(sequence.error(), options_.name));
  }
  if (done) done = load_rows(reader, plan, keys, out);
  db.rollback();  // nothing was written: the cheapest end
  out.took_us = monotonic_now_us() - out.as_of;
  if (seconds_) seconds_->record(out.took_us);
  if (!done) return std::unexpected(done.error());
  if (counts())
    out.snapshot = {
        .source_id = incarnation->source_id, .xmin = seen + 1, .xmax = seen + 1, .in_progress = {}};
  return out;
}

Result<void> Impl::load_rows(Reader& reader, const LoadPlan& plan, const std::vector<Params>& keys,
                             Loaded& out) {
  Connection& db = *reader.db;
  const auto schema = db.query_integer("PRAGMA main.schema_version");
  if (!schema) return std::unexpected(schema.error());
  if (*schema != reader.schema) {
    reader.columns.clear();
    db.forget_cached();
    // A statement would be compiled for the tables as this connection knows them, and only find out
    // when it runs: let another one find out.
    const auto looked = db.query_integer("SELECT 1 FROM main.sqlite_master LIMIT 1");
    if (!looked) return std::unexpected(looked.error());
    reader.schema = *schema;
  }
  const auto columns = columns_of(reader, plan);
  if (!columns) return std::unexpected(columns.error());

  out.rows.resize(keys.size());
  std::vector<std::size_t> which;
  const auto flush = [&]() -> Result<void> {
    if (which.empty()) return {};
    auto done = query(db, plan, **columns, keys, which, out.rows);
    // One key's values may be what the database refuses: find out whose.
    const bool of_a_key = !done && (done.error().code == ErrorCode::source_refused ||
                                    done.error().code == ErrorCode::too_large);
    if (of_a_key && which.size() == 1) {
      out.rows[which[0]] = std::unexpected(done.error());
    } else if (of_a_key) {
      for (const std::size_t key : which) {
        const auto one = query(db, plan, **columns, keys, {key}, out.rows);
        if (one) continue;
        if (one.error().code != ErrorCode::source_refused &&
            one.error().code != ErrorCode::too_large)
          return one;
        out.rows[key] = std::unexpected(one.error());
      }
    } else if (!done) {
      return done;
    }
    which.clear();
    return {};
  };
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const auto missing = std::ranges::find_if(
        plan.sql.names(), [&](const std::string& name) { return !find_value(keys[i], name); });
    if (missing != plan.sql.names().end()) {
      out.rows[i] =
          fail(ErrorCode::bad_key, fmt::format("the key gives no value for :{}", *missing));
      continue;
    }
    which.push_back(i);
    if (which.size() < plan.most_keys()) continue;
    if (auto done = flush(); !done) return done;
  }
  return flush();
}

Result<const LoadColumns*> Impl::columns_of(Reader& reader, const LoadPlan& plan) {
  if (const auto found = reader.columns.find(plan.spec.id); found != reader.columns.end())
    return &found->second;
  // The form for one key: in the one for many, SQLite renames what clashes.
  const auto stmt = reader.db->cached(plan.texts[0], true);
  if (!stmt) return std::unexpected(stmt.error());
  std::vector<std::string> names;
  names.reserve(static_cast<std::size_t>((*stmt)->columns()));
  for (int i = 0; i < (*stmt)->columns(); ++i) names.push_back((*stmt)->column_name(i));
  auto layout = RowLayout::make(plan.spec.shape, std::move(names));
  if (!layout) return std::unexpected(layout.error());
  LoadColumns columns{.layout = std::move(*layout), .key_columns = {}, .tag_columns = {}};
  columns.key_columns = find_columns(columns.layout, plan.spec.key_params);
  columns.tag_columns = find_columns(columns.layout, plan.spec.tag_columns);
  return &reader.columns.emplace(plan.spec.id, std::move(columns)).first->second;
}

Result<void> Impl::query(Connection& db, const LoadPlan& plan, const LoadColumns& columns,
                         const std::vector<Params>& keys, const std::vector<std::size_t>& which,
                         std::vector<Result<Row>>& rows) {
  const auto form = static_cast<std::size_t>(std::bit_width(which.size() - 1));
  const std::size_t copies = std::size_t{1} << form;
  const int extra = form == 0 ? 0 : 1;  // the column that says whose row it is
  const auto stmt = db.cached(plan.texts[form], true);
  if (!stmt) return std::unexpected(stmt.error());
  const StmtUse use(**stmt);
  int index = 0;
  for (std::size_t i = 0; i < copies; ++i) {
    // Copies beyond the last key repeat it, and what they give is dropped.
    const Params& key = keys[which[std::min(i, which.size() - 1)]];
    for (const std::string& name : plan.sql.names()) (*stmt)->bind(++index, *find_value(key, name));
  }
  if (loads_) loads_->add();

  const std::size_t width = columns.layout.columns().size();
  std::vector<RowBuilder> builders(which.size(), RowBuilder(columns.layout));
  std::vector<Row> firsts(which.size());
  std::vector<bool> begun(which.size());
  std::vector<Cell> cells(width);
  db.trace(true);
  Result<void> done;
  while (true) {
    const auto row = (*stmt)->step();
    if (!row) done = std::unexpected(row.error());
    if (!row || !*row) break;
    const auto owner = extra ? static_cast<std::size_t>((*stmt)->integer(0)) : 0;
    if (owner >= which.size()) continue;
    if (static_cast<std::size_t>((*stmt)->columns() - extra) != width) {
      done = fail(ErrorCode::internal, "the statement's columns changed while it ran");
      break;
    }
    for (std::size_t i = 0; i < width; ++i) cells[i] = (*stmt)->cell(static_cast<int>(i) + extra);
    if (!begun[owner]) {
      begun[owner] = true;
      firsts[owner].key_values = texts_of(cells, columns.key_columns);
      firsts[owner].tag_values = texts_of(cells, columns.tag_columns);
    }
    builders[owner].add(cells);
    if (which.size() == 1 && builders[0].failed()) break;
  }
  db.trace(false);
  if (!done) return done;
  for (std::size_t i = 0; i < which.size(); ++i) {
    auto row = builders[i].finish();
    if (row) {
      row->key_values = std::move(firsts[i].key_values);
      row->tag_values = std::move(firsts[i].tag_values);
      row->key_values.resize(columns.key_columns.size());
      row->tag_values.resize(columns.tag_columns.size());
    }
    rows[which[i]] = std::move(row);
  }
  return {};
}

}  // namespace larder::source::sqlite
