// Database and cache change together: run the statements, invalidate, commit, fill again.
#include <fmt/format.h>

#include <boost/json.hpp>

#include "cache/impl.h"

namespace larder::cache {
namespace {

namespace json = boost::json;

// The fields of an object as they were written. Boost.JSON 1.81 rounds one double in ten
// differently from the shortest form that it was printed in; a value that was read and is written
// back must be the same, so numbers are taken from the text. REQUIRES: `text` is one valid JSON
// object.
std::vector<std::string_view> raw_fields(std::string_view text) {
  std::vector<std::string_view> fields;
  int depth = 0;
  bool quoted = false;
  bool in_value = false;  // behind the colon of a field of the outer object
  std::size_t begin = 0;
  const auto end_value = [&](std::size_t end) {
    if (!in_value) return;
    std::string_view raw = text.substr(begin, end - begin);
    constexpr std::string_view kBlank = " \t\r\n";
    raw.remove_prefix(std::min(raw.find_first_not_of(kBlank), raw.size()));
    raw.remove_suffix(raw.size() - 1 - std::min(raw.find_last_not_of(kBlank), raw.size() - 1));
    fields.push_back(raw);
    in_value = false;
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\')
        ++i;
      else if (c == '"')
        quoted = false;
      continue;
    }
    if (c == '"') {
      quoted = true;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if (c == '}' || c == ']') {
      if (--depth == 0) end_value(i);
    } else if (depth == 1 && c == ':') {
      in_value = true;
      begin = i + 1;
    } else if (depth == 1 && c == ',') {
      end_value(i);
    }
  }
  return fields;
}

Result<source::Value> number_of(std::string_view raw, std::string_view name) {
  if (raw.find_first_of(".eE") == std::string_view::npos) {
    std::int64_t integer = 0;
    if (std::from_chars(raw.data(), raw.data() + raw.size(), integer).ec == std::errc())
      return integer;
    return fail(ErrorCode::bad_value,
                fmt::format("field '{}' does not fit a 64-bit signed integer: {}", name, raw));
  }
  double real = 0;
  if (std::from_chars(raw.data(), raw.data() + raw.size(), real).ec == std::errc()) return real;
  return fail(ErrorCode::bad_value,
              fmt::format("field '{}' does not fit a 64-bit real number: {}", name, raw));
}

Result<source::Value> value_of(const json::value& field, std::string_view raw,
                               std::string_view name, const source::Capabilities& can) {
  const bool as_written = (field.is_number() && (can.typed_texts || can.number_texts)) ||
                          (field.is_bool() && can.typed_texts);
  if (as_written) return std::string(raw);
  switch (field.kind()) {
    case json::kind::null: return nullptr;
    case json::kind::bool_: return std::int64_t{field.get_bool()};
    case json::kind::int64:
    case json::kind::uint64:
    case json::kind::double_: return number_of(raw, name);
    case json::kind::string: return std::string(field.get_string());
    case json::kind::array:
    case json::kind::object: return std::string(raw);  // stored as the JSON text that it is
  }
  return fail(ErrorCode::internal, "unknown kind of JSON value");
}

// Does the field say the same as the key's part?
bool agrees(const json::value& field, std::string_view part) {
  if (field.is_string()) return std::string_view(field.get_string()) == part;
  return (field.is_int64() || field.is_uint64()) && json::serialize(field) == part;
}

std::string joined(const std::vector<std::string>& names) {
  return fmt::format("{}", fmt::join(names, ", "));
}

Error not_writable(const CacheSpec& spec, std::string_view what) {
  return {ErrorCode::read_only,
          fmt::format("cache '{}' declares no `{}`; write to the database, or declare it",
                      spec.name, what),
          {}};
}

// The fields of a SET, as the placeholders of `store` want them.
Result<source::Params> fields_of(const CacheSpec& spec, const WriteOp& op,
                                 source::Params key_params,
                                 const std::vector<std::string>& placeholders,
                                 const std::vector<std::string_view>& parts,
                                 const source::Capabilities& can) {
  if (spec.result == source::ResultShape::value) {
    key_params.push_back({"value", op.value});
    return key_params;
  }
  boost::system::error_code ec;
  const json::value parsed = json::parse(op.value, ec);
  if (ec || !parsed.is_object())
    return fail(ErrorCode::bad_value,
                fmt::format("the value of '{}' must be one JSON object: {}", op.key,
                            ec ? ec.message() : "it is something else"));
  const json::object& object = parsed.as_object();
  const std::vector<std::string_view> raw = raw_fields(op.value);
  if (raw.size() != object.size())
    return fail(ErrorCode::bad_value, fmt::format("the value of '{}' has a field twice", op.key));
  std::vector<std::string> unknown;
  for (const auto& [name, field] : object) {
    const std::string_view field_name(name.data(), name.size());
    const int param = spec.key.param_index(field_name);
    if (param >= 0 && !agrees(field, parts[static_cast<std::size_t>(param)]))
      return fail(ErrorCode::bad_value,
                  fmt::format("field '{}' is {}, but the key says {}", field_name,
                              json::serialize(field), parts[static_cast<std::size_t>(param)]));
    if (param < 0 && std::ranges::find(placeholders, field_name) == placeholders.end())
      unknown.emplace_back(field_name);
  }
  if (!unknown.empty())
    return fail(ErrorCode::bad_value,
                fmt::format("`store` of cache '{}' has no place for: {}; it takes: {}", spec.name,
                            joined(unknown), joined(placeholders)));
  std::vector<std::string> missing;
  source::Params params = std::move(key_params);
  for (const std::string& name : placeholders) {
    if (spec.key.param_index(name) >= 0) continue;  // the key gives it
    const json::value* field = object.if_contains(name);
    if (!field) {
      missing.push_back(name);
      continue;
    }
    const auto position = static_cast<std::size_t>(object.find(name) - object.begin());
    Result<source::Value> value = value_of(*field, raw[position], name, can);
    if (!value) return std::unexpected(value.error());
    params.push_back({name, std::move(*value)});
  }
  if (!missing.empty())
    return fail(ErrorCode::bad_value,
                fmt::format("the value of '{}' lacks: {}", op.key, joined(missing)));
  return params;
}

// Only what the statement names: a database refuses parameters that it does not know.
source::Params only_named(source::Params params, const std::vector<std::string>& placeholders) {
  std::erase_if(params, [&](const source::NamedValue& p) {
    return std::ranges::find(placeholders, p.name) == placeholders.end();
  });
  return params;
}

}  // namespace

Error changed_nothing(std::string_view key, bool increments) {
  return {
      ErrorCode::bad_value,
      fmt::format("no row for '{}': `{}` changed nothing", key, increments ? "increment" : "store"),
      {}};
}

Result<source::Statement> Node::Impl::statement_of(
    const CacheRuntime& cache, const WriteOp& op,
    const std::vector<std::string_view>& parts) const {
  const CacheSpec& spec = cache.spec;
  source::Statement statement;
  const std::vector<std::string>* placeholders = nullptr;
  if (op.kind == WriteOp::Kind::set) {
    if (spec.write == WriteMode::none) return std::unexpected(not_writable(spec, "write"));
    if (spec.store.empty()) return std::unexpected(not_writable(spec, "store"));
    if (op.value.size() > spec.max_value_bytes)
      return fail(ErrorCode::too_large,
                  fmt::format("the value of '{}' has {} bytes; max_value of cache '{}' is {}",
                              op.key, op.value.size(), spec.name, spec.max_value_bytes));
    statement.sql = spec.store;
    placeholders = &cache.store_names;
  } else if (op.kind == WriteOp::Kind::remove) {
    if (spec.remove.empty()) return std::unexpected(not_writable(spec, "remove"));
    statement.sql = spec.remove;
    placeholders = &cache.remove_names;
  } else {
    if (spec.increment.empty()) return std::unexpected(not_writable(spec, "increment"));
    statement.sql = spec.increment;
    placeholders = &cache.increment_names;
  }
  Result<source::Params> params = params_of(cache, parts);
  if (op.kind == WriteOp::Kind::set)
    params = fields_of(spec, op, std::move(*params), *placeholders, parts,
                       sources[cache.source]->source->capabilities());
  if (op.kind == WriteOp::Kind::increment) params->push_back({"delta", op.delta});
  if (!params) return std::unexpected(params.error());
  statement.params = only_named(std::move(*params), *placeholders);
  return statement;
}

Task<Result<void>> Node::Impl::commit(unsigned source, source::Transaction& transaction,
                                      std::vector<std::string> keys, bool told_later) {
  // Before COMMIT: until this transaction has ended no load can see it, so every fill of what it
  // changed is refused. A crash on either side of COMMIT is safe.
  std::vector<engine::Change> changes = changes_of(source, transaction.changes());
  engine::Change rest{.source = source, .x = transaction.x(), .keys = {}, .tags = {}};
  for (std::string& key : keys) {
    const bool named = std::ranges::any_of(changes, [&](const engine::Change& change) {
      return std::ranges::binary_search(change.keys, key);
    });
    if (!named) rest.keys.push_back(std::move(key));
  }
  if (!rest.keys.empty()) changes.push_back(std::move(rest));
  for (engine::Change& change : changes)  // an x that is 0 belongs to no incarnation
    if (change.x != 0) change.source_id = transaction.source_id();
  const std::vector<engine::Change> changed = changes;
  if (sources[source]->echoes())
    for (const engine::Change& change : changed)
      if (change.x != 0) sources[source]->own.note(change.x, change.keys, change.tags);
  Result<void> invalidated = co_await invalidate(std::move(changes), "write");
  if (!invalidated && invalidated.error().code != ErrorCode::cancelled && told_later)
    invalidated = {};
  if (!invalidated) co_return std::unexpected(invalidated.error());

  Result<void> committed = co_await transaction.commit();
  // Without snapshots nothing but its ticket tells that a load read the old value in between.
  if (!sources[source]->source->capabilities().snapshots) {
    std::vector<engine::Change> again = changed;
    invalidated = co_await invalidate(std::move(again), "write");
  }
  // Whoever begins from here on has the right to see the commit: no old flight for him.
  // After an error the same holds, since the outcome may be unknown. Clients too are told once
  // more: who looked before COMMIT saw the old rows.
  for (const engine::Change& change : changed) {
    for (const std::string& key : change.keys) flights.close(key, hash_bytes(key));
    if (!change.tags.empty()) flights.close_all();
    tell(change.keys, !change.tags.empty());
  }
  if (!committed) co_return std::unexpected(committed.error());
  // Committed, but an entry may be old: say so rather than acknowledge what a read may deny.
  co_return invalidated;
}

Result<WritePlan> Node::Impl::plan(const std::vector<WriteOp>& ops) const {
  WritePlan plan;
  std::vector<std::string_view> parts;
  for (const WriteOp& op : ops) {
    const int found = cache_of(op.key);
    if (found < 0)
      return fail(ErrorCode::bad_key, fmt::format("no cache is declared for '{}'", op.key));
    const auto index = static_cast<unsigned>(found);
    const CacheRuntime& cache = *caches[index];
    if (cache.spec.key.match(op.key, parts) != policy::Match::yes)
      return std::unexpected(bad_key_of(cache.spec, op.key));
    const bool first = plan.caches.empty();
    if (!first && plan.source != cache.source)
      return fail(ErrorCode::syntax,
                  fmt::format("'{}' and '{}' live in two sources ({} and {}); one transaction can "
                              "only write one",
                              ops.front().key, op.key, sources[plan.source]->name,
                              sources[cache.source]->name));
    const bool is_behind = cache.spec.write == WriteMode::behind;
    if (!first && plan.behind != is_behind)
      return fail(ErrorCode::syntax,
                  fmt::format("'{}' and '{}' cannot be written together: one of their caches has "
                              "write = \"behind\", the other has not",
                              ops.front().key, op.key));
    plan.source = cache.source;
    plan.behind = is_behind;
    plan.timeout = std::max(plan.timeout, cache.spec.load_timeout_us);
    Result<source::Statement> statement = statement_of(cache, op, parts);
    if (!statement) return std::unexpected(statement.error());
    plan.caches.push_back(index);
    plan.statements.push_back(std::move(*statement));
  }
  return plan;
}

void Node::Impl::count_write(const WritePlan& plan, const std::vector<WriteOp>& ops,
                             std::size_t tier, TimeUs began) const {
  for (std::size_t i = 0; i < ops.size(); ++i) {
    const Op op = tier == kErrorTier                     ? Op::set
                  : ops[i].kind == WriteOp::Kind::set    ? Op::set
                  : ops[i].kind == WriteOp::Kind::remove ? Op::del
                                                         : Op::incr;
    count(*caches[plan.caches[i]], op, tier, now() - began);
  }
}

Task<Result<std::vector<Written>>> Node::write(std::vector<WriteOp> ops) {
  Impl& self = *impl_;
  const TimeUs began = self.now();
  if (ops.empty()) co_return std::vector<Written>{};
  Result<WritePlan> planned = self.plan(ops);
  if (!planned) co_return std::unexpected(planned.error());
  const WritePlan plan = std::move(*planned);
  Result<std::vector<Written>> written = fail(ErrorCode::internal, "not written");
  if (plan.behind) {
    written = co_await self.behind->write(plan, ops);
  } else {
    written = co_await self.write_through(plan, ops);
  }
  const Tier tier = plan.behind ? Tier::journal : Tier::source;
  self.count_write(plan, ops, written ? static_cast<std::size_t>(tier) : kErrorTier, began);
  co_return written;
}

Task<Result<std::vector<Written>>> Node::Impl::write_through(const WritePlan& plan,
                                                             const std::vector<WriteOp>& ops) {
  const TimeUs began = now();
  std::vector<source::Statement> statements;
  std::vector<std::size_t> at;  // of each operation its statement
  for (std::size_t i = 0; i < ops.size(); ++i) {
    at.push_back(statements.size());
    statements.push_back(plan.statements[i]);
    if (ops[i].kind != WriteOp::Kind::increment) continue;
    // Its answer is what this transaction made of it.
    const CacheRuntime& cache = *caches[plan.caches[i]];
    std::vector<std::string_view> parts;
    cache.spec.key.match(ops[i].key, parts);
    statements.push_back({.sql = cache.spec.load,
                          .params = only_named(params_of(cache, parts), cache.load_names),
                          .wants_value = true});
  }
  const TimeUs deadline = saturating_add(began, plan.timeout);
  Result<std::unique_ptr<source::Transaction>> opened =
      co_await sources[plan.source]->source->write(std::move(statements), deadline);
  if (!opened) co_return std::unexpected(opened.error());
  const std::unique_ptr<source::Transaction> transaction = std::move(*opened);
  co_await begin_incarnation(plan.source, transaction->source_id(), began);

  std::vector<Written> written(ops.size());
  for (std::size_t i = 0; i < ops.size(); ++i) {
    written[i].affected = transaction->affected()[at[i]];
    const bool increments = ops[i].kind == WriteOp::Kind::increment;
    if (increments) written[i].value = transaction->values()[at[i] + 1].value_or("");
    if (written[i].affected == 0 && ops[i].kind != WriteOp::Kind::remove)  // rolls back
      co_return std::unexpected(changed_nothing(ops[i].key, increments));
  }

  std::vector<std::string> keys;
  keys.reserve(ops.size());
  for (const WriteOp& op : ops) keys.push_back(op.key);
  // The engine is down. Where a feed covers the table it will tell what was changed; a strong cache
  // has no other way than this one.
  const bool told_later = std::ranges::all_of(plan.caches, [&](unsigned index) {
    return caches[index]->guarantee.fed && !caches[index]->rules.strong;
  });
  const Result<void> committed =
      co_await commit(plan.source, *transaction, std::move(keys), told_later);
  if (!committed) co_return std::unexpected(committed.error());

  std::vector<std::vector<std::string>> refilled(caches.size());
  std::vector<std::vector<std::optional<DurationUs>>> lives(caches.size());
  for (std::size_t i = 0; i < ops.size(); ++i) {
    const unsigned cache = plan.caches[i];
    if (specs[cache].write != WriteMode::through || ops[i].kind == WriteOp::Kind::remove) continue;
    refilled[cache].push_back(ops[i].key);
    lives[cache].push_back(ops[i].ttl_us);
  }
  for (unsigned cache = 0; cache < refilled.size(); ++cache)
    if (!refilled[cache].empty())
      co_await refill(cache, std::move(refilled[cache]), std::move(lives[cache]));
  co_return written;
}

}  // namespace larder::cache
