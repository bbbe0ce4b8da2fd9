// engine -> near tier, and the flights.
#include <fmt/format.h>

#include "cache/auditor.h"
#include "cache/impl.h"

namespace larder::cache {

obs::Counter& Node::Impl::invalidations(std::string_view feed) {
  return metrics.counter("larder_invalidations_total", {{"feed", std::string(feed)}},
                         "Keys, tags and caches made void, by where the news came from");
}

bool Node::Impl::keeps_for_error(std::string_view key) const {
  return std::ranges::any_of(caches, [&](const auto& cache) {
    return cache->keeps_for_error && key.starts_with(cache->spec.key.prefix());
  });
}

// Whoever comes from now on joins no load that began before the change.
void Node::Impl::close_flights(const Voided& what, std::string_view feed) {
  policy::ProtocolEvent event{.kind = what.confirmed ? policy::ProtocolEvent::Kind::invalidated
                                                     : policy::ProtocolEvent::Kind::unanswered,
                              .feed = events.feed(feed),
                              .at = what.began,
                              .x = what.x,
                              .source_id = what.source_id};
  for (const std::string& key : what.keys) {
    const Hash hash = hash_bytes(key);
    flights.close(key, hash);
    events.note(hash, event);
    auditor->changed(key, hash, what.began, feed);
  }
  event.by_tag = true;
  for (const std::string& tag : what.tags) events.note(hash_bytes(tag), event);
  if (!what.tags.empty()) flights.close_all();
  invalidations(feed).add(what.keys.size() + what.tags.size());
  tell(what.keys, !what.tags.empty());
}

// The one place where this node makes anything void. Entries and tickets first, then the flights.
Task<Result<void>> Node::Impl::invalidate(std::vector<engine::Change> changes,
                                          std::string_view feed) {
  for (engine::Change& change : changes) {
    change.keep_for_error.clear();
    for (const std::string& key : change.keys)
      change.keep_for_error.push_back(keeps_for_error(key));
  }
  const TimeUs began = now();
  std::vector<engine::Change> sent = changes;
  Result<void> done = co_await engine.invalidate(std::move(sent));
  for (const engine::Change& change : changes)
    close_flights({.keys = change.keys,
                   .tags = change.tags,
                   .x = change.x,
                   .source_id = change.source_id,
                   .began = began,
                   .confirmed = done.has_value()},
                  feed);
  co_return done;
}

// What a shared engine asks and tells.
engine::Hooks Node::Impl::hooks() {
  engine::Hooks result;
  result.schema_of = [this](std::string_view key) -> std::string_view {
    const int index = cache_of(key);
    return index < 0 ? std::string_view()
                     : std::string_view(caches[static_cast<std::size_t>(index)]->schema);
  };
  result.keeps_for_error = [this](std::string_view key) { return keeps_for_error(key); };
  result.voided = [this](const engine::Hooks::Voided& what) {
    const SourceRuntime& source = *sources[what.source];
    if (what.everything) {
      flights.close_all();
      tell({}, true);
    }
    close_flights({.keys = what.keys, .tags = what.tags, .x = what.x, .began = now()}, source.name);
    if (what.lag_us > 0) source.lag->record(what.lag_us);
  };
  for (const auto& source : sources) {
    engine::Hooks::Source known{.name = source->name, .feeds = source->source->capabilities().feed};
    for (const auto& cache : caches) {
      const DurationUs bound = cache->rules.bound_us;
      if (sources[cache->source] != source || bound == 0 || !cache->guarantee.fed) continue;
      known.bound_us = known.bound_us == 0 ? bound : std::min(known.bound_us, bound);
    }
    result.sources.push_back(std::move(known));
  }
  return result;
}

// ---- what others changed ----

std::vector<engine::Change> Node::Impl::changes_of(
    unsigned source, std::span<const source::RowChange> changes) const {
  std::vector<engine::Change> result;
  std::vector<std::string_view> texts;
  for (const source::RowChange& change : changes) {
    if (result.empty() || result.back().x != change.x)
      result.push_back({.source = source, .x = change.x, .keys = {}, .tags = {}});
    engine::Change& into = result.back();
    LARDER_ASSERT(change.watched_id < targets.size());
    // No key and no row is found by NULL: such a change touches no entry.
    if (std::ranges::any_of(change.values, [](const auto& v) { return !v.has_value(); })) continue;
    for (const DependencyTarget& target : targets[change.watched_id]) {
      const CacheRuntime& cache = *caches[target.cache];
      texts.clear();
      if (!target.full) {
        for (const auto& value : change.values) texts.push_back(*value);
        into.tags.push_back(partial_tag(change.watched_id, cache.spec, texts));
        continue;
      }
      for (const int column : target.column_of_param)
        texts.push_back(*change.values[static_cast<std::size_t>(column)]);
      Result<std::string> key = cache.spec.key.render(texts);
      if (key) into.keys.push_back(std::move(*key));  // else no key can name this row
    }
  }
  for (engine::Change& change : result)
    for (auto* names : {&change.keys, &change.tags}) {
      std::ranges::sort(*names);
      const auto repeated = std::ranges::unique(*names);
      names->erase(repeated.begin(), repeated.end());
    }
  return result;
}

Task<void> Node::Impl::begin_incarnation(unsigned source, std::uint64_t source_id, TimeUs asked) {
  if (engine.capabilities().shared) co_return;  // its feed begins epochs
  SourceRuntime& runtime = *sources[source];
  std::shared_ptr<Waiters> mine;
  bool first = false;
  while (!mine) {
    const TimeUs now = this->now();
    if (runtime.incarnation.load(std::memory_order_acquire) == source_id) {
      runtime.heard_at.store(now, std::memory_order_relaxed);
      co_return;
    }
    std::shared_ptr<Waiters> others;
    {
      MutexLock lock(runtime.epoch_mutex);
      others = runtime.beginning;
      if (!others) {
        const TimeUs heard = runtime.heard_at.load(std::memory_order_relaxed);
        if (runtime.succession.present() == source_id) continue;
        if (!runtime.succession.follows(source_id, asked, heard, now)) co_return;
        first = runtime.succession.present() == 0;
        mine = runtime.beginning = std::make_shared<Waiters>();
      }
    }
    // Nobody fills or invalidates in an incarnation that is still being prepared.
    if (others) co_await others->wait();
  }
  co_await engine.new_epoch(source, source_id);
  if (!first) co_await void_source(source, "epoch");
  runtime.own.clear();
  {
    MutexLock lock(runtime.epoch_mutex);
    const TimeUs now = this->now();
    runtime.succession.begin(source_id, now);
    runtime.heard_at.store(now, std::memory_order_relaxed);
    runtime.incarnation.store(source_id, std::memory_order_release);
    runtime.beginning.reset();
  }
  mine->notify();
}

// `floor`: loads that do not see everything up to it end are not stored any more; 0 = none.
Task<Result<void>> Node::Impl::void_source(unsigned source, std::string_view feed,
                                           policy::TxnId floor) {
  engine::Change all{.source = source, .x = floor, .keys = {}, .tags = {}};
  for (const auto& cache : caches)
    if (cache->source == source) all.tags.push_back(cache->cache_tag);
  std::vector<engine::Change> changes{std::move(all)};
  Result<void> done = co_await invalidate(std::move(changes), feed);
  co_return done;
}

Task<Result<source::FeedOrder>> Node::Impl::apply(unsigned source, source::ChangeBatch batch) {
  if (!engine.capabilities().shared) {
    Result<source::FeedOrder> order = co_await apply_here(source, std::move(batch));
    co_return order;
  }
  engine::FeedBatch delivered{.from = batch.from,
                              .to = batch.to,
                              .source_id = batch.source_id,
                              .changes = changes_of(source, batch.changes),
                              .everything = batch.everything,
                              .heartbeat = batch.heartbeat,
                              .committed_at = batch.committed_at,
                              .xmin = batch.xmin,
                              .floor = batch.floor};
  for (engine::Change& change : delivered.changes) change.source_id = batch.source_id;
  const Result<engine::FeedOrder> order = co_await engine.feed(source, std::move(delivered));
  if (!order) co_return std::unexpected(order.error());
  co_return source::FeedOrder{.go_on_from = order->go_on_from,
                              .new_epoch = order->new_epoch,
                              .confirm_up_to = order->confirm_up_to};
}

// The near tier is all there is.
Task<Result<source::FeedOrder>> Node::Impl::apply_here(unsigned source, source::ChangeBatch batch) {
  SourceRuntime& runtime = *sources[source];
  co_await begin_incarnation(source, batch.source_id, now());
  if (batch.everything) co_await void_source(source, runtime.name, batch.floor.value_or(0));
  if (!batch.changes.empty()) {
    std::vector<engine::Change> changes = changes_of(source, batch.changes);
    for (engine::Change& change : changes) {
      change.source_id = batch.source_id;
      if (runtime.echoes()) runtime.own.leave_out(change.x, change.keys, change.tags);
      if (!behind) continue;
      std::vector<std::string> keys = change.keys;
      Result<void> yielded = co_await behind->changed(source, std::move(keys));
      if (!yielded) co_return std::unexpected(yielded.error());
    }
    Result<void> done = co_await invalidate(std::move(changes), runtime.name);
    if (!done)
      co_return std::unexpected(
          done.error());  // no heartbeat: bounded caches stop answering from memory
    if (batch.committed_at)
      runtime.lag->record(std::max<DurationUs>(0, now() - batch.committed_at));
  }
  if (batch.heartbeat > runtime.heartbeat.load(std::memory_order_relaxed))
    runtime.heartbeat.store(batch.heartbeat, std::memory_order_release);
  co_return source::FeedOrder{};
}

// ---- what a caller says ----

Task<Result<std::int64_t>> Node::invalidate_keys(std::vector<std::string> keys,
                                                 std::string_view feed) {
  Impl& self = *impl_;
  std::int64_t count = 0;
  const TimeUs now = self.now();
  std::vector<engine::Change> by_source(self.sources.size());
  for (std::string& key : keys) {
    const Route where = route(key);
    if (where.match == policy::Match::bad_part) co_return std::unexpected(bad_key(where, key));
    if (where.match == policy::Match::no)
      co_return fail(ErrorCode::bad_key,
                     fmt::format("no cache is declared for '{}'; a plain key goes by DEL", key));
    count += held(key, now).has_value();
    const unsigned source = self.caches[static_cast<std::size_t>(where.cache)]->source;
    by_source[source].source = source;
    by_source[source].keys.push_back(std::move(key));
  }
  std::erase_if(by_source, [](const engine::Change& change) { return change.keys.empty(); });
  Result<void> done = co_await self.invalidate(std::move(by_source), feed);
  if (!done) co_return std::unexpected(done.error());
  co_return count;
}

Task<Result<std::int64_t>> Node::invalidate_tags(std::vector<std::string> tags,
                                                 std::string_view feed) {
  Impl& self = *impl_;
  const auto count = static_cast<std::int64_t>(tags.size());
  for (const std::string& tag : tags)
    if (tag.starts_with('@'))
      co_return fail(ErrorCode::bad_value, "a tag that begins with '@' is Larder's own");
  // A tag may be borne by entries of any source.
  std::vector<engine::Change> changes;
  changes.reserve(self.sources.size());
  for (unsigned source = 0; source < self.sources.size(); ++source)
    changes.push_back({.source = source, .keys = {}, .tags = tags});
  Result<void> done = co_await self.invalidate(std::move(changes), feed);
  if (!done) co_return std::unexpected(done.error());
  co_return count;
}

Task<Result<bool>> Node::invalidate_cache(std::string name, std::string_view feed) {
  const CacheRuntime* cache = impl_->by_name(name);
  if (!cache) co_return false;
  std::vector<engine::Change> change{
      {.source = cache->source, .keys = {}, .tags = {cache->cache_tag}}};
  Result<void> done = co_await impl_->invalidate(std::move(change), feed);
  if (!done) co_return std::unexpected(done.error());
  co_return true;
}

Task<Result<void>> Node::invalidate_all(std::string_view feed) {
  Result<void> outcome;
  for (unsigned source = 0; source < impl_->sources.size(); ++source) {
    Result<void> done = co_await impl_->void_source(source, feed);
    if (!done) outcome = std::move(done);
  }
  co_return outcome;
}

}  // namespace larder::cache
