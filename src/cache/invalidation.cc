// engine -> near tier, and the flights.
#include <fmt/format.h>

#include "cache/impl.h"

namespace larder::cache {

void RecentEvents::note(Hash hash, TimeUs at, std::string text) {
  Shard& shard = shards_[(hash >> 40) % shards_.size()];
  MutexLock lock(shard.mutex);
  shard.events[hash % shard.events.size()] = {hash, at, std::move(text)};
}

std::optional<RecentEvents::Event> RecentEvents::find(Hash hash) const {
  const Shard& shard = shards_[(hash >> 40) % shards_.size()];
  MutexLock lock(shard.mutex);
  const Event& event = shard.events[hash % shard.events.size()];
  if (event.at == 0 || event.hash != hash) return std::nullopt;
  return event;
}

obs::Counter& Node::Impl::invalidations(std::string_view feed) {
  return metrics.counter("larder_invalidations_total", {{"feed", std::string(feed)}},
                         "Keys, tags and caches made void, by where the news came from");
}

// The one place where anything becomes void. Entries and tickets first, then the flights: whoever
// comes after this returned joins no load that began before it.
Task<Result<void>> Node::Impl::invalidate(engine::Change change, std::string_view feed) {
  const TimeUs at = now();
  std::vector<bool> keep;
  keep.reserve(change.keys.size());
  for (const std::string& key : change.keys) {
    bool keeps = false;
    for (const auto& cache : caches)
      if (cache->keeps_for_error && key.starts_with(cache->spec.key.prefix())) keeps = true;
    keep.push_back(keeps);
  }
  Result<void> done = co_await engine.invalidate(change, std::move(keep));
  if (!done) co_return done;
  for (const std::string& key : change.keys) {
    const Hash hash = hash_bytes(key);
    flights.close(key, hash);
    invalidated.note(hash, at,
                     change.x ? fmt::format("{}, change {}", feed, change.x) : std::string(feed));
  }
  for (const std::string& tag : change.tags)
    invalidated.note(hash_bytes(tag), at, fmt::format("{}, tag", feed));
  if (!change.tags.empty()) flights.close_all();
  invalidations(feed).add(change.keys.size() + change.tags.size());
  co_return done;
}

// ---- what others changed ----

engine::Change Node::Impl::change_of(unsigned source,
                                     const std::vector<source::RowChange>& changes) const {
  engine::Change result{.source = source, .keys = {}, .tags = {}};
  std::vector<std::string_view> texts;
  for (const source::RowChange& change : changes) {
    result.x = std::max(result.x, change.x);
    LARDER_ASSERT(change.watched_id < targets.size());
    for (const DependencyTarget& target : targets[change.watched_id]) {
      const CacheRuntime& cache = *caches[target.cache];
      texts.clear();
      // No key and no row is found by NULL: such a change touches no entry.
      if (std::ranges::any_of(change.values, [](const auto& v) { return !v.has_value(); }))
        continue;
      if (!target.full) {
        for (const auto& value : change.values) texts.push_back(*value);
        result.tags.push_back(partial_tag(change.watched_id, cache.spec, texts));
        continue;
      }
      for (const int column : target.column_of_param)
        texts.push_back(*change.values[static_cast<std::size_t>(column)]);
      Result<std::string> key = cache.spec.key.render(texts);
      if (key) result.keys.push_back(std::move(*key));  // else no key can name this row
    }
  }
  for (auto* names : {&result.keys, &result.tags}) {
    std::ranges::sort(*names);
    const auto repeated = std::ranges::unique(*names);
    names->erase(repeated.begin(), repeated.end());
  }
  return result;
}

Task<void> Node::Impl::begin_incarnation(unsigned source, std::uint64_t source_id) {
  SourceRuntime& runtime = *sources[source];
  if (runtime.incarnation.load(std::memory_order_acquire) == source_id) co_return;
  Waiters* begun = nullptr;
  bool leads = false;
  bool first = false;
  {
    MutexLock lock(runtime.epoch_mutex);
    auto& slot = runtime.incarnations[source_id];
    leads = slot == nullptr;
    first = leads && runtime.incarnations.size() == 1;
    if (leads) slot = std::make_unique<Waiters>();
    begun = slot.get();
  }
  if (!leads) {  // nobody fills or invalidates in an incarnation that is still being prepared
    co_await begun->wait();
    co_return;
  }
  co_await engine.new_epoch(source, source_id);
  if (!first) co_await void_source(source, "epoch");
  runtime.incarnation.store(source_id, std::memory_order_release);
  begun->notify();
}

Task<void> Node::Impl::void_source(unsigned source, std::string_view feed) {
  engine::Change all{.source = source, .keys = {}, .tags = {}};
  for (const auto& cache : caches)
    if (cache->source == source) all.tags.push_back(cache->cache_tag);
  Result<void> done = co_await invalidate(std::move(all), feed);
  LARDER_ASSERT(done.has_value());
}

Task<Result<void>> Node::Impl::apply(unsigned source, source::ChangeBatch batch) {
  SourceRuntime& runtime = *sources[source];
  co_await begin_incarnation(source, batch.source_id);
  if (batch.everything) co_await void_source(source, runtime.name);
  if (!batch.changes.empty()) {
    engine::Change change = change_of(source, batch.changes);
    change.source_id = batch.source_id;
    Result<void> done = co_await invalidate(std::move(change), runtime.name);
    if (!done) co_return done;  // no heartbeat: bounded caches stop answering from memory
    if (batch.committed_at)
      runtime.lag->record(std::max<DurationUs>(0, now() - batch.committed_at));
  }
  if (batch.heartbeat > runtime.heartbeat.load(std::memory_order_relaxed))
    runtime.heartbeat.store(batch.heartbeat, std::memory_order_release);
  co_return Result<void>{};
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
  for (engine::Change& change : by_source) {
    if (change.keys.empty()) continue;
    Result<void> done = co_await self.invalidate(std::move(change), feed);
    if (!done) co_return std::unexpected(done.error());
  }
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
  for (unsigned source = 0; source < self.sources.size(); ++source) {
    engine::Change change{.source = source, .keys = {}, .tags = tags};
    Result<void> done = co_await self.invalidate(std::move(change), feed);
    if (!done) co_return std::unexpected(done.error());
  }
  co_return count;
}

Task<Result<bool>> Node::invalidate_cache(std::string name, std::string_view feed) {
  const CacheRuntime* cache = impl_->by_name(name);
  if (!cache) co_return false;
  engine::Change change{.source = cache->source, .keys = {}, .tags = {cache->cache_tag}};
  Result<void> done = co_await impl_->invalidate(std::move(change), feed);
  if (!done) co_return std::unexpected(done.error());
  co_return true;
}

Task<Result<void>> Node::invalidate_all(std::string_view feed) {
  for (unsigned source = 0; source < impl_->sources.size(); ++source)
    co_await impl_->void_source(source, feed);
  co_return Result<void>{};
}

}  // namespace larder::cache
