#include <fmt/format.h>

#include <algorithm>

#include "source/postgres/impl.h"

namespace larder::source::postgres {
namespace {

// The state that a statement sees. On a standby pg_current_snapshot() does not list all running
// transactions, and what is seen is as old as what has been replayed: `lag`, in microseconds, is
// null on a primary and -1 when nobody knows. OFFSET 0: computed once, not for each row.
constexpr std::string_view kState =
    "SELECT pg_current_snapshot()::text AS snapshot, CASE WHEN pg_is_in_recovery() THEN "
    "coalesce(greatest((extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) * "
    "1000000)::bigint, 0), -1) END AS lag OFFSET 0";

std::string quote_name(std::string_view name) {
  std::string out = "\"";
  for (const char c : name) {
    if (c == '"') out += '"';
    out += c;
  }
  return out + '"';
}

std::vector<int> find_columns(const RowLayout& rows, const std::vector<std::string>& names) {
  std::vector<int> out;
  out.reserve(names.size());
  for (const std::string& name : names) out.push_back(find_column(rows.columns(), name));
  return out;
}

}  // namespace

Result<LoadLayout> LoadLayout::make(const LoadStatement& spec, const std::string& load,
                                    const Reply& described) {
  std::vector<std::string> names;
  names.reserve(static_cast<std::size_t>(described.columns()));
  for (int i = 0; i < described.columns(); ++i) names.emplace_back(described.column(i));
  if (names.empty()) return fail(ErrorCode::source_refused, "the load statement gives no columns");
  auto rows = RowLayout::make(spec.shape, std::move(names));
  if (!rows) return std::unexpected(rows.error());
  LoadLayout out{.rows = std::move(*rows)};
  out.key_columns = find_columns(out.rows, spec.key_params);
  out.tag_columns = find_columns(out.rows, spec.tag_columns);
  std::string as_json;
  const int width = described.columns();
  int next = kFirst + width;
  for (int i = 0; i < width; ++i) {
    const ColumnKind kind = kind_of(described.type(i));
    const bool ask = kind == ColumnKind::other && !out.rows.raw();
    if (ask) as_json += fmt::format(", to_json(q.{})", quote_name(described.column(i)));
    out.types.push_back(described.type(i));
    out.kinds.push_back(ask ? ColumnKind::json : kind);
    out.read_from.push_back(ask ? next++ : kFirst + i);
  }
  // The load stands on lines of its own, so that a comment at its end cannot swallow what follows.
  out.sql = fmt::format(
      "SELECT s.snapshot, s.lag, q.*{} FROM ({}) AS s LEFT JOIN (SELECT true AS \"larder#\", r.* "
      "FROM (\n{}\n) AS r) AS q ON true",
      as_json, kState, load);
  return out;
}

bool LoadLayout::fits(const Reply& reply) const {
  const std::size_t width = types.size();
  const auto asked = static_cast<std::size_t>(
      std::ranges::count(kinds, ColumnKind::json) -
      std::ranges::count_if(types, [](Oid type) { return kind_of(type) == ColumnKind::json; }));
  if (static_cast<std::size_t>(reply.columns()) != kFirst + width + asked) return false;
  for (std::size_t i = 0; i < width; ++i) {
    const int column = kFirst + static_cast<int>(i);
    if (reply.type(column) != types[i] || reply.column(column) != rows.columns()[i]) return false;
  }
  return true;
}

Result<Row> LoadLayout::read(const Reply& reply) const {
  RowBuilder builder(rows);
  const std::size_t width = types.size();
  std::vector<Cell> cells(width);
  std::vector<std::string> scratch(width);
  const bool some = reply.rows() > 0 && reply.value(0, kFound).has_value();
  for (int row = 0; some && row < reply.rows() && !builder.failed(); ++row) {
    for (std::size_t i = 0; i < width; ++i)
      cells[i] = cell_of(kinds[i], reply.value(row, read_from[i]), scratch[i]);
    builder.add(cells);
  }
  auto out = builder.finish();
  if (!out) return out;
  const auto texts = [&](const std::vector<int>& columns) {
    std::vector<std::optional<std::string>> found(columns.size());
    for (std::size_t i = 0; some && i < columns.size(); ++i)
      if (columns[i] >= 0)
        found[i] = canonical_text(types[static_cast<std::size_t>(columns[i])],
                                  reply.value(0, kFirst + columns[i]));
    return found;
  };
  out->key_values = texts(key_columns);
  out->tag_values = texts(tag_columns);
  return out;
}

}  // namespace larder::source::postgres
