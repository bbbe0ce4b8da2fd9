#include <fmt/format.h>

#include <algorithm>

#include "base/units.h"
#include "config/sections.h"
#include "source/sql_text.h"

namespace larder::config {
namespace {

using cache::CacheSpec;
using cache::Consistency;
using cache::WriteMode;

constexpr std::size_t kMaxTags = 32;
constexpr std::size_t kMaxDependencies = 64;

bool is_identifier(std::string_view text, bool dots) {
  const auto letter = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
           static_cast<unsigned char>(c) >= 0x80;
  };
  if (text.empty() || !letter(text.front())) return false;
  return std::ranges::all_of(text, [&](char c) {
    return letter(c) || (c >= '0' && c <= '9') || c == '$' || (dots && c == '.');
  });
}

std::string_view trimmed(std::string_view text) {
  while (text.starts_with(' ') || text.starts_with('\t')) text.remove_prefix(1);
  while (text.ends_with(' ') || text.ends_with('\t')) text.remove_suffix(1);
  return text;
}

std::vector<std::string> param_names(const CacheSpec& spec) {
  std::vector<std::string> names;
  for (const auto& param : spec.key.params()) names.push_back(param.name);
  return names;
}

// ---- SQL ----

// Which placeholders a statement may and must have.
struct Placeholders {
  bool key_params = true;           // may, and must, name every parameter of the key
  bool columns = false;             // may name anything else
  std::vector<std::string> others;  // may name these
  std::string required;             // must name this one
};

void check_statement(Section& s, std::string_view key, const std::string& sql,
                     const CacheSpec& spec, source::Dialect dialect, const Placeholders& rule) {
  const auto text = source::SqlText::parse(sql, dialect);
  if (!text) {
    s.problem_at(key, fmt::format("{}: {}", s.path(key), text.error().message));
    return;
  }
  if (spec.key.text().empty()) return;  // reported already; nothing can be said about parameters
  const std::vector<std::string> params = param_names(spec);
  std::vector<std::string> allowed = rule.others;
  if (rule.key_params) allowed.insert(allowed.end(), params.begin(), params.end());
  bool unknown = false;
  for (const std::string& name : text->names()) {
    if (rule.columns || std::ranges::find(allowed, name) != allowed.end()) continue;
    unknown = true;
    const std::string close = nearest(name, allowed);
    s.problem_at(
        key,
        fmt::format("unknown placeholder ':{}' in {}: {}", name, s.path(key),
                    allowed.empty() ? fmt::format("the key '{}' has no parameters", spec.key.text())
                                    : "it may use " + listed(allowed, "and")),
        close.empty() ? close : ":" + close);
  }
  const auto used = [&](const std::string& name) {
    return std::ranges::find(text->names(), name) != text->names().end();
  };
  if (!rule.required.empty() && !used(rule.required))
    s.problem_at(key, fmt::format("{} must use ':{}'", s.path(key), rule.required));
  if (!rule.key_params || unknown) return;  // a misspelt name is one mistake, not two
  for (const std::string& name : params)
    if (!used(name))
      s.problem_at(key, fmt::format("{} does not use ':{}', a parameter of the key '{}': it would "
                                    "be the same for every {}",
                                    s.path(key), name, spec.key.text(), name));
}

void read_statements(Section& s, CacheSpec& spec, source::Dialect dialect) {
  const bool value = spec.result == source::ResultShape::value;
  if (s.statement("load", spec.load)) {
    check_statement(s, "load", spec.load, spec, dialect, {});
  } else if (!s.has("load")) {
    s.missing("load", "the statement that reads one entry");
  }
  if (s.statement("store", spec.store)) {
    Placeholders rule = {.columns = !value};
    if (value) {
      rule.others = {"value"};
      rule.required = "value";
    }
    check_statement(s, "store", spec.store, spec, dialect, rule);
    if (spec.result == source::ResultShape::array)
      s.problem_at("store",
                   fmt::format("{} writes one row, but result = \"array\" makes an entry of "
                               "many: write through a cache of single rows",
                               s.path("store")));
  }
  if (s.statement("remove", spec.remove))
    check_statement(s, "remove", spec.remove, spec, dialect, {});
  if (s.statement("increment", spec.increment)) {
    check_statement(s, "increment", spec.increment, spec, dialect,
                    {.others = {"delta"}, .required = "delta"});
    if (!value)
      s.problem_at("increment", fmt::format("{} needs result = \"value\": the number alone",
                                            s.path("increment")));
    if (spec.key.param_index("delta") >= 0)
      s.problem_at("increment",
                   fmt::format("{}: the key has a parameter named 'delta', too; rename it",
                               s.path("increment")));
  }
  if (s.statement("warm", spec.warm))
    check_statement(s, "warm", spec.warm, spec, dialect, {.key_params = false, .others = {"n"}});
}

// ---- consistency ----

void read_consistency(Section& s, CacheSpec& spec) {
  static const std::vector<std::string> kWords = {"eventual", "bounded", "strong"};
  std::string text;
  if (s.text("consistency", text)) {
    if (text == "strong") {
      spec.consistency = Consistency::strong;
      spec.near = false;
    } else if (text.starts_with("bounded:")) {
      spec.consistency = Consistency::bounded;
      const auto bound = parse_duration(std::string_view(text).substr(8));
      if (!bound || *bound == 0) {
        s.problem_at("consistency", fmt::format("{} must be bounded:<time> with a time such as 1s, "
                                                "got \"{}\"",
                                                s.path("consistency"), text));
      } else {
        spec.bound_us = *bound;
      }
    } else if (text != "eventual") {
      const std::string close = nearest(text.substr(0, text.find(':')), kWords);
      s.problem_at("consistency",
                   fmt::format("{} must be 'eventual', 'bounded:<time>' or 'strong', got \"{}\"",
                               s.path("consistency"), text),
                   close == "bounded" ? "bounded:1s" : close);
    }
  }
  if (s.boolean("near", spec.near) && spec.near && spec.consistency == Consistency::strong)
    s.problem_at("near",
                 fmt::format("{}: a strong cache has no near tier; leave it out", s.path("near")));
}

// ---- tags and dependencies ----

Result<cache::TagPattern> parse_tag(std::string_view text) {
  const auto bad = [&](std::string_view what) {
    return fail(ErrorCode::config, fmt::format("tag '{}': {}", text, what));
  };
  if (text.empty()) return bad("it must not be empty");
  if (text.size() > 256) return bad("it has more than 256 bytes");
  cache::TagPattern tag;
  tag.text = std::string(text);
  std::string literal;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c != '{' && c != '}') {
      literal += c;
    } else if (i + 1 < text.size() && text[i + 1] == c) {
      literal += c;
      ++i;
    } else if (c == '}') {
      return bad("a '}' opens nowhere; '}}' is a literal brace");
    } else {
      const std::size_t close = text.find('}', i);
      if (close == std::string_view::npos)
        return bad("a '{' is not closed; '{{' is a literal brace");
      const std::string_view name = text.substr(i + 1, close - i - 1);
      if (!is_identifier(name, false))
        return bad(fmt::format("'{}' is not the name of a column or key parameter", name));
      tag.literals.push_back(std::exchange(literal, {}));
      tag.names.emplace_back(name);
      i = close;
    }
  }
  tag.literals.push_back(std::move(literal));
  return tag;
}

void read_tags(Section& s, CacheSpec& spec) {
  std::vector<Section::Item> items;
  if (!s.statements("tags", items)) return;
  if (items.size() > kMaxTags)
    s.problem_at("tags", fmt::format("{} has more than {} tags", s.path("tags"), kMaxTags));
  for (const auto& [text, at] : items) {
    auto tag = parse_tag(text);
    if (!tag) {
      s.reader().problem(at, tag.error().message);
      continue;
    }
    if (std::ranges::find(spec.tags, text, &cache::TagPattern::text) != spec.tags.end())
      s.reader().problem(at, fmt::format("tag '{}' is listed twice in {}", text, s.path("tags")));
    spec.tags.push_back(std::move(*tag));
  }
}

// "review(product_id -> id, lang -> lang)"; reports, and gives nothing, if it is wrong.
std::optional<cache::Dependency> parse_dependency(Section& s, const Section::Item& item,
                                                  const CacheSpec& spec) {
  const std::string_view text = item.text;
  const auto bad = [&](std::string_view what, std::string suggestion = {}) {
    s.reader().problem(item.at, fmt::format("dependency '{}': {}", text, what),
                       std::move(suggestion));
    return std::nullopt;
  };
  constexpr std::string_view kForm = "write table(column -> key parameter, ...)";
  const std::size_t open = text.find('(');
  if (open == std::string_view::npos || !text.ends_with(')')) return bad(kForm);
  cache::Dependency result;
  result.table = std::string(trimmed(text.substr(0, open)));
  if (!is_identifier(result.table, true))
    return bad(fmt::format("'{}' is not the name of a table", result.table));
  std::string_view list = trimmed(text.substr(open + 1, text.size() - open - 2));
  while (!list.empty()) {
    const std::size_t comma = std::min(list.find(','), list.size());
    const std::string_view pair = list.substr(0, comma);
    const std::size_t arrow = pair.find("->");
    if (arrow == std::string_view::npos) return bad(kForm);
    const std::string column(trimmed(pair.substr(0, arrow)));
    const std::string param(trimmed(pair.substr(arrow + 2)));
    if (!is_identifier(column, false))
      return bad(fmt::format("'{}' is not the name of a column", column));
    if (!spec.key.text().empty() && spec.key.param_index(param) < 0)
      return bad(fmt::format("'{}' is not a parameter of the key '{}'", param, spec.key.text()),
                 nearest(param, param_names(spec)));
    for (const auto& [other_column, other_param] : result.columns)
      if (other_param == param) return bad(fmt::format("key parameter '{}' appears twice", param));
    result.columns.emplace_back(column, param);
    if (comma + 1 == list.size()) return bad(kForm);  // a comma at the end
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return result;
}

void read_dependencies(Section& s, CacheSpec& spec) {
  std::vector<Section::Item> items;
  if (!s.statements("depends_on", items)) return;
  if (items.size() > kMaxDependencies)
    s.problem_at("depends_on", fmt::format("{} has more than {} entries", s.path("depends_on"),
                                           kMaxDependencies));
  for (const Section::Item& item : items) {
    auto dependency = parse_dependency(s, item, spec);
    if (!dependency) continue;
    const bool twice = std::ranges::any_of(spec.depends_on, [&](const cache::Dependency& d) {
      return d.table == dependency->table && d.columns == dependency->columns;
    });
    if (twice)
      s.reader().problem(item.at, fmt::format("dependency '{}' is listed twice", item.text));
    spec.depends_on.push_back(std::move(*dependency));
  }
}

// ---- the rest ----

// Finds the source, which may go without saying if there is only one. Returns its SQL dialect.
source::Dialect read_source_name(Section& s, CacheSpec& spec, const std::vector<std::string>& names,
                                 const std::vector<cache::SourceSpec>& specs) {
  if (s.text("source", spec.source)) {
    if (std::ranges::find(names, spec.source) == names.end())
      s.problem_at("source",
                   fmt::format("there is no [source.{}]{}", spec.source,
                               names.empty() ? std::string(": no source is declared")
                                             : ": declared are " + listed(names, "and")),
                   nearest(spec.source, names));
  } else if (!s.has("source")) {
    if (names.size() == 1) {
      spec.source = names.front();
    } else {
      s.missing("source", names.empty()
                              ? std::string("declare one, such as [source.shop] with its url")
                              : fmt::format("one of {}", listed(names)));
    }
  }
  for (const cache::SourceSpec& source : specs) {
    if (source.name != spec.source) continue;
    const std::string_view scheme = scheme_of(source.url);
    if (scheme.starts_with("postgres")) return source::Dialect::postgres;
    if (scheme == "mariadb" || scheme == "mysql") return source::Dialect::mariadb;
  }
  return source::Dialect::sqlite;
}

void read_write_mode(Section& s, CacheSpec& spec) {
  std::size_t write = 0;
  if (s.choice("write", {"none", "around", "through", "behind"}, write)) {
    spec.write = static_cast<WriteMode>(write);
    if (spec.write != WriteMode::none && !s.has("store") && !s.has("remove") && !s.has("increment"))
      s.problem_at("write", fmt::format("{} needs 'store', the statement that writes one row (or "
                                        "'remove', or 'increment')",
                                        s.path("write")));
  }
  if (spec.write == WriteMode::behind && spec.result == source::ResultShape::array)
    s.problem_at("write", fmt::format("{} does not go with result = \"array\": what is written is "
                                      "one row, what is read are several",
                                      s.path("write")));
  std::size_t conflict = 0;
  if (s.choice("conflict", {"ours", "theirs", "dead-letter"}, conflict)) {
    spec.conflict = static_cast<cache::Conflict>(conflict);
    if (spec.write != WriteMode::behind)
      s.problem_at("conflict",
                   fmt::format("{} needs write = \"behind\": other writes wait for nothing",
                               s.path("conflict")));
    else if (spec.conflict != cache::Conflict::ours && !s.has("depends_on"))
      s.problem_at("conflict", fmt::format("{} needs 'depends_on': by it a change made by others "
                                           "is known to be one of this row",
                                           s.path("conflict")));
  }
  std::size_t on_del = 0;
  if (s.choice("on_del", {"invalidate", "remove"}, on_del)) {
    spec.on_del_removes = on_del == 1;
    if (spec.on_del_removes && !s.has("remove"))
      s.problem_at("on_del", fmt::format("{} needs 'remove', the statement that deletes the row",
                                         s.path("on_del")));
  }
}

void read_times(Section& s, CacheSpec& spec) {
  s.duration("ttl", spec.ttl_us);
  s.number("jitter", 0, 1, spec.jitter);
  s.duration("negative_ttl", spec.negative_ttl_us);
  s.boolean("sliding", spec.sliding);
  s.boolean("refresh_ahead", spec.refresh_ahead);
  s.duration("stale_while_revalidate", spec.stale_while_revalidate_us);
  s.duration("stale_if_error", spec.stale_if_error_us);
  s.duration("soft_timeout", spec.soft_timeout_us);
  if (s.duration("load_timeout", spec.load_timeout_us) && spec.load_timeout_us == 0)
    s.problem_at("load_timeout",
                 fmt::format("{} must be above 0: it bounds how long a reader waits",
                             s.path("load_timeout")));
}

}  // namespace

CacheSpec read_cache(Section& s, std::string_view name, const std::vector<std::string>& sources,
                     const std::vector<cache::SourceSpec>& specs) {
  CacheSpec spec;
  spec.name = std::string(name);
  std::string key;
  if (s.statement("key", key)) {
    auto pattern = policy::KeyPattern::parse(key);
    if (pattern) {
      spec.key = std::move(*pattern);
    } else {
      s.problem_at("key", fmt::format("{}: {}", s.path("key"), pattern.error().message));
    }
  } else if (!s.has("key")) {
    s.missing("key", fmt::format("the pattern of its keys, such as \"{}:{{id:int}}\"", name));
  }
  spec.dialect = read_source_name(s, spec, sources, specs);
  std::size_t shape = 0;
  if (s.choice("result", {"object", "array", "value"}, shape))
    spec.result = static_cast<source::ResultShape>(shape);
  read_statements(s, spec, spec.dialect);
  read_write_mode(s, spec);
  read_times(s, spec);
  read_consistency(s, spec);
  if (spec.write == WriteMode::behind && spec.consistency == cache::Consistency::strong)
    s.problem_at("write", fmt::format("{} does not go with consistency = \"strong\": the database "
                                      "has a write only later",
                                      s.path("write")));
  if (s.size("max_value", spec.max_value_bytes) &&
      (spec.max_value_bytes == 0 || spec.max_value_bytes > (512ULL << 20)))
    s.problem_at("max_value", fmt::format("{} must be from 1 to 512MiB", s.path("max_value")));
  read_tags(s, spec);
  read_dependencies(s, spec);
  s.finish();
  return spec;
}

}  // namespace larder::config
