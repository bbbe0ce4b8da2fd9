// Accepting writes, and what readers see of them.
#include "cache/write_behind.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>

#include "cache/impl.h"

namespace larder::cache {
namespace {

namespace json = boost::json;

journal::Op::Kind kind_of(WriteOp::Kind kind) {
  switch (kind) {
    case WriteOp::Kind::set: return journal::Op::Kind::set;
    case WriteOp::Kind::remove: return journal::Op::Kind::remove;
    case WriteOp::Kind::increment: break;
  }
  return journal::Op::Kind::increment;
}

// What a reader gets of what was written: the object with the fields that its key gives.
std::string as_read(const CacheSpec& spec, const std::string& key, const std::string& value) {
  if (spec.result == source::ResultShape::value) return value;
  std::vector<std::string_view> parts;
  spec.key.match(key, parts);
  const json::value parsed = json::parse(value);  // plan() has
  std::string missing;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const auto& param = spec.key.params()[i];
    if (parsed.as_object().contains(param.name)) continue;
    missing += json::serialize(json::value(param.name)) + ':';
    missing += param.type == policy::ParamType::integer
                   ? std::string(parts[i])
                   : json::serialize(json::value(std::string(parts[i])));
    missing += ',';
  }
  if (missing.empty()) return value;
  std::string object = value;
  const std::size_t open = object.find('{');
  if (parsed.as_object().empty()) missing.pop_back();
  return object.insert(open + 1, missing);
}

}  // namespace

// ---- keys that one writer at a time may write ----

Task<bool> WriteBehind::Counters::lock(std::vector<std::string> keys, TimeUs deadline) {
  for (std::size_t i = 0; i < keys.size();) {
    std::shared_ptr<Waiters> other;
    {
      MutexLock lock(mutex_);
      const auto [held, mine] = held_.try_emplace(keys[i]);
      if (mine)
        held->second = std::make_shared<Waiters>();
      else
        other = held->second;
    }
    if (!other) {
      ++i;
      continue;
    }
    const bool freed = co_await other->wait_until(deadline);
    if (freed) continue;
    keys.resize(i);
    unlock(keys);
    co_return false;
  }
  co_return true;
}

void WriteBehind::Counters::unlock(const std::vector<std::string>& keys) {
  for (const std::string& key : keys) {
    MutexLock lock(mutex_);
    const auto held = held_.find(key);
    const std::shared_ptr<Waiters> waiters = std::move(held->second);
    held_.erase(held);
    waiters->notify();
  }
}

std::optional<WriteBehind::Counters::Value> WriteBehind::Counters::queued(
    const std::string& key) const {
  MutexLock lock(mutex_);
  const auto found = in_flight_.find(key);
  if (found == in_flight_.end()) return std::nullopt;
  return found->second.value;
}

void WriteBehind::Counters::queue(const std::string& key, Value value) {
  MutexLock lock(mutex_);
  InFlight& in_flight = in_flight_[key];
  in_flight.value = std::move(value);
  ++in_flight.writers;
}

void WriteBehind::Counters::settled(const std::string& key) {
  MutexLock lock(mutex_);
  const auto found = in_flight_.find(key);
  if (--found->second.writers == 0) in_flight_.erase(found);
}

// ---- construction ----

WriteBehind::WriteBehind(Node& front, Node::Impl& node, journal::Journal& journal,
                         std::uint64_t seed)
    : front_(front), node_(node), journal_(journal) {
  for (unsigned source = 0; source < node.sources.size(); ++source) {
    flusher_of_.push_back(flushers_.size());
    const std::string& name = node.sources[source]->name;
    const bool used = std::ranges::any_of(node.specs, [&](const CacheSpec& spec) {
      return spec.source == name && spec.write == WriteMode::behind;
    });
    // What was written under an older configuration has to get there, too.
    if (used || journal.pending().waiting_records(name) > 0)
      flushers_.push_back(std::make_unique<Flusher>(node, journal, source, mix64(seed + source)));
    else
      flusher_of_.back() = SIZE_MAX;
  }
  journal.on_durable([this] { wake(); });
  for (const CacheSpec& spec : node.specs) {
    if (spec.write != WriteMode::behind) continue;
    const obs::Labels labels{{"cache", spec.name}};
    const auto add = [&](const char* name, const char* help, auto read) {
      node.metrics.callback(
          obs::Registry::Kind::gauge, name, labels, help,
          [this, read, cache = spec.name] {
            return static_cast<double>(read(journal_.pending().depth(cache)));
          },
          this);
    };
    add("larder_journal_depth", "Writes that were acknowledged and are not in the database yet",
        [](const journal::Pending::Depth& depth) { return depth.waiting; });
    add("larder_journal_oldest_seconds", "How long the first of them has waited",
        [](const journal::Pending::Depth& depth) {
          return depth.oldest == 0 ? 0.0
                                   : static_cast<double>(std::max<DurationUs>(
                                         0, monotonic_now_us() - depth.oldest)) /
                                         kSecond;
        });
  }
  node.metrics.callback(
      obs::Registry::Kind::gauge, "larder_journal_bytes", {}, "Bytes of the journal on the disk",
      [this] { return static_cast<double>(journal_.bytes()); }, this);
}

WriteBehind::~WriteBehind() {
  journal_.on_durable({});
  node_.metrics.remove_callbacks(this);
}

void WriteBehind::start() {
  for (const auto& flusher : flushers_) node_.group.spawn(flusher->run());
}

Task<void> WriteBehind::recovered(TimeUs deadline) {
  for (const auto& flusher : flushers_) co_await flusher->met().wait_until(deadline);
}

void WriteBehind::wake() {
  for (const auto& flusher : flushers_) flusher->wake();
}

Task<void> WriteBehind::drain(TimeUs deadline) {
  constexpr DurationUs kLookAgain = 5 * kMillisecond;
  const auto left = [&] {
    std::uint64_t records = 0;
    for (const auto& source : node_.sources)
      records += journal_.pending().waiting_records(source->name);
    return records;
  };
  const auto all_stopped = [&] {
    return std::ranges::all_of(flushers_,
                               [](const auto& one) { return one->stopped().has_value(); });
  };
  while (left() > 0 && node_.now() < deadline && !all_stopped())
    co_await node_.group.sleep_until(node_.now() + kLookAgain);
  if (const std::uint64_t records = left(); records > 0 && node_.log)
    node_.log(
        fmt::format("{} write{} wait in the journal, and go to the database at the next "
                    "start",
                    records, records == 1 ? "" : "s"));
}

// ---- accepting ----

bool WriteBehind::counts(unsigned cache) const { return !node_.specs[cache].increment.empty(); }

Task<Result<std::vector<Written>>> WriteBehind::write(const WritePlan& plan,
                                                      const std::vector<WriteOp>& ops) {
  if (const auto stopped = flusher(plan.source).stopped()) co_return std::unexpected(*stopped);
  std::vector<std::string> counters;
  for (std::size_t i = 0; i < ops.size(); ++i)
    if (counts(plan.caches[i])) counters.push_back(ops[i].key);
  std::ranges::sort(counters);
  const auto twice = std::ranges::unique(counters);
  counters.erase(twice.begin(), twice.end());
  if (!counters.empty()) {
    std::vector<std::string> keys = counters;
    const TimeUs deadline = saturating_add(node_.now(), plan.timeout);
    const bool mine = co_await counters_.lock(std::move(keys), deadline);
    if (!mine)
      co_return fail(
          ErrorCode::timeout,
          fmt::format("other writers of '{}' were in front until the deadline", counters.front()));
  }
  std::vector<Written> written(ops.size());
  Result<journal::Log::Queued> queued = co_await queue(plan, ops, written);
  counters_.unlock(counters);
  if (!queued) co_return std::unexpected(queued.error());
  const Result<journal::Seq> durable = co_await journal_.durable(std::move(*queued));
  for (std::size_t i = 0; i < ops.size(); ++i)
    if (counts(plan.caches[i])) counters_.settled(ops[i].key);
  if (!durable) co_return std::unexpected(durable.error());
  // From here on nobody gets what was held before, and no load under way leaves it behind.
  engine::Change change{.source = plan.source, .keys = {}, .tags = {}};
  for (const WriteOp& op : ops) change.keys.push_back(op.key);
  std::vector<engine::Change> changes{std::move(change)};
  const Result<void> done = co_await node_.invalidate(std::move(changes), "write");
  if (!done) co_return std::unexpected(done.error());
  co_return written;
}

// What an increment adds to: what an earlier operation of the same transaction makes of the key, a
// write that waits, or what a reader gets.
Task<Result<std::int64_t>> WriteBehind::base_of(const WriteOp& op, const journal::Record& before) {
  std::optional<std::string> value;
  bool found = true;
  const auto earlier =
      std::ranges::find(before.ops.rbegin(), before.ops.rend(), op.key, &journal::Op::key);
  if (earlier != before.ops.rend()) {
    found = earlier->kind != journal::Op::Kind::remove;
    value = earlier->value;
  } else if (const auto queued = counters_.queued(op.key)) {
    found = !queued->removed;
    value = queued->value;
  } else if (const auto waiting = pending().find(op.key, hash_bytes(op.key))) {
    found = !waiting->removed;
    value = waiting->value;
  } else {
    std::vector<std::string> keys{op.key};
    std::vector<Result<Reading>> readings = co_await front_.get_many(std::move(keys));
    if (!readings.front()) co_return std::unexpected(readings.front().error());
    found = readings.front()->found;
    value = std::move(readings.front()->value);
  }
  if (!found) co_return std::unexpected(changed_nothing(op.key, true));
  std::int64_t base = 0;
  const auto [end, ec] = std::from_chars(value->data(), value->data() + value->size(), base);
  if (ec != std::errc() || end != value->data() + value->size())
    co_return fail(ErrorCode::bad_value,
                   fmt::format("the value of '{}' is no 64-bit integer: write = \"behind\" can "
                               "increment nothing else",
                               op.key));
  co_return base;
}

Task<Result<journal::Log::Queued>> WriteBehind::queue(const WritePlan& plan,
                                                      const std::vector<WriteOp>& ops,
                                                      std::vector<Written>& written) {
  journal::Record record{
      .source = node_.sources[plan.source]->name, .written_at = node_.now(), .ops = {}};
  for (std::size_t i = 0; i < ops.size(); ++i) {
    const CacheSpec& spec = node_.specs[plan.caches[i]];
    journal::Op op{
        .kind = kind_of(ops[i].kind), .cache = spec.name, .key = ops[i].key, .value = {}};
    written[i].affected = 1;
    if (ops[i].kind == WriteOp::Kind::set) op.value = as_read(spec, ops[i].key, ops[i].value);
    if (ops[i].kind == WriteOp::Kind::increment) {
      const Result<std::int64_t> base = co_await base_of(ops[i], record);
      if (!base) co_return std::unexpected(base.error());
      std::int64_t sum = 0;
      if (__builtin_add_overflow(*base, ops[i].delta, &sum))
        co_return fail(ErrorCode::bad_value, "increment or decrement would overflow");
      op.delta = ops[i].delta;
      op.value = std::to_string(sum);
      written[i].value = op.value;
    }
    record.ops.push_back(std::move(op));
  }
  Result<journal::Log::Queued> queued = journal_.enqueue(record);
  if (!queued) co_return std::unexpected(queued.error());
  for (std::size_t i = 0; i < ops.size(); ++i)
    if (counts(plan.caches[i]))
      counters_.queue(ops[i].key, {.removed = ops[i].kind == WriteOp::Kind::remove,
                                   .value = record.ops[i].value});
  co_return queued;
}

// ---- what others changed ----

Task<Result<void>> WriteBehind::changed(unsigned source, std::vector<std::string> keys) {
  const std::string& name = node_.sources[source]->name;
  std::vector<journal::Op> yielding;
  for (const std::string& key : keys) {
    const auto contested = pending().contested(name, key, hash_bytes(key));
    if (!contested) continue;
    const int cache = node_.cache_of(key);
    if (cache < 0) continue;
    const CacheSpec& spec = node_.specs[static_cast<std::size_t>(cache)];
    if (spec.conflict == Conflict::ours) continue;
    yielding.push_back({.kind = journal::Op::Kind::remove,
                        .cache = spec.name,
                        .key = key,
                        .value = {},
                        .delta = static_cast<std::int64_t>(*contested)});
  }
  if (yielding.empty()) co_return Result<void>();
  Result<void> done = co_await journal_.yield(name, std::move(yielding));
  co_return done;
}

// ---- reading ----

std::optional<Reading> Node::Impl::waiting_write(const CacheRuntime& cache, std::string_view key,
                                                 Hash hash) const {
  if (!behind) return std::nullopt;
  std::optional<journal::Pending::Value> waiting = behind->pending().find(key, hash);
  if (!waiting) return std::nullopt;
  return Reading{.found = !waiting->removed,
                 .value = waiting->removed ? std::string() : std::move(waiting->value),
                 .tier = Tier::journal,
                 .age_us = std::max<DurationUs>(0, now() - waiting->written_at),
                 .ttl_us = cache.guarantee.ttl_us};
}

// ---- for people ----

std::string WriteBehind::json(TimeUs now) const {
  json::object all;
  all["bytes"] = journal_.bytes();
  all["next"] = journal_.next();
  if (const auto failed = journal_.failed()) all["failed"] = failed->message;
  json::array caches;
  for (const CacheSpec& spec : node_.specs) {
    if (spec.write != WriteMode::behind) continue;
    const journal::Pending::Depth depth = pending().depth(spec.name);
    caches.push_back({{"cache", spec.name},
                      {"waiting", depth.waiting},
                      {"oldest_ms", depth.oldest == 0 ? 0 : (now - depth.oldest) / kMillisecond}});
  }
  all["caches"] = std::move(caches);
  json::array sources;
  for (unsigned source = 0; source < node_.sources.size(); ++source) {
    if (flusher_of_[source] == SIZE_MAX) continue;
    const Flusher& flusher = *flushers_[flusher_of_[source]];
    const auto stopped = flusher.stopped();
    const auto trouble = flusher.trouble();
    sources.push_back({{"source", node_.sources[source]->name},
                       {"waiting", pending().waiting_records(node_.sources[source]->name)},
                       {"state", stopped   ? "stopped"
                                 : trouble ? "waits"
                                           : "flows"},
                       {"problem", stopped   ? json::value(stopped->message)
                                   : trouble ? json::value(trouble->message)
                                             : json::value(nullptr)}});
  }
  all["sources"] = std::move(sources);
  return json::serialize(all);
}

std::string Node::journal_json(TimeUs now) const {
  return impl_->behind ? impl_->behind->json(now) : "{\"caches\":[],\"sources\":[]}";
}

namespace {
std::unexpected<Error> no_journal() {
  return fail(ErrorCode::unsupported, "no cache has write = \"behind\": there is no journal");
}
std::unexpected<Error> no_letter(std::uint64_t seq) {
  return fail(ErrorCode::bad_key, fmt::format("there is no dead letter {}", seq));
}
}  // namespace

Task<Result<std::string>> Node::dead_letters(std::uint64_t most) {
  if (!impl_->behind) co_return no_journal();
  std::string all;
  for (const auto& flusher : impl_->behind->flushers()) {
    const Result<std::optional<std::string>> some = co_await flusher->dead_letters(most);
    if (!some) co_return std::unexpected(some.error());
    const std::string_view array = some->has_value() ? std::string_view(**some) : "[]";
    const std::size_t open = array.find('[');
    const std::size_t close = array.rfind(']');
    if (open == std::string_view::npos || close <= open)
      co_return fail(ErrorCode::internal, "the list of dead letters is no JSON");
    const std::string_view inner = array.substr(open + 1, close - open - 1);
    if (inner.find('{') == std::string_view::npos) continue;
    if (!all.empty()) all += ',';
    all += inner;
  }
  co_return '[' + all + ']';
}

Task<Result<void>> Node::replay_dead_letter(std::uint64_t seq) {
  if (!impl_->behind) co_return no_journal();
  for (const auto& flusher : impl_->behind->flushers()) {
    const Result<bool> done = co_await flusher->replay_dead_letter(seq);
    if (!done) co_return std::unexpected(done.error());
    if (*done) co_return Result<void>();
  }
  co_return no_letter(seq);
}

Task<Result<void>> Node::drop_dead_letter(std::uint64_t seq) {
  if (!impl_->behind) co_return no_journal();
  for (const auto& flusher : impl_->behind->flushers()) {
    const Result<bool> done = co_await flusher->drop_dead_letter(seq);
    if (!done) co_return std::unexpected(done.error());
    if (*done) co_return Result<void>();
  }
  co_return no_letter(seq);
}

}  // namespace larder::cache
