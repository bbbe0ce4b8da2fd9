#include "cache/node.h"

#include <fmt/format.h>

#include "cache/auditor.h"
#include "cache/impl.h"

namespace larder::cache {
namespace {

constexpr std::array<std::string_view, kOps> kOpNames{"get", "set", "del", "incr"};
constexpr std::array<std::string_view, kTiers> kTierNames{"near",  "engine",  "source",
                                                          "stale", "journal", "error"};

// Which op can be answered by which tier: only these series exist.
bool makes_sense(Op op, std::size_t tier, bool behind) {
  if (tier == static_cast<std::size_t>(Tier::journal)) return behind;
  if (op == Op::get || tier == kErrorTier) return true;
  return !behind && tier == static_cast<std::size_t>(Tier::source);
}

CacheMetrics make_metrics(obs::Registry& registry, const std::string& cache, bool behind) {
  CacheMetrics m;
  for (std::size_t op = 0; op < kOps; ++op)
    for (std::size_t tier = 0; tier < kTiers; ++tier) {
      if (!makes_sense(static_cast<Op>(op), tier, behind)) continue;
      const obs::Labels labels{{"cache", cache},
                               {"op", std::string(kOpNames[op])},
                               {"tier", std::string(kTierNames[tier])}};
      m.by_op_tier[op][tier] = {
          &registry.counter("larder_requests_total", labels,
                            "Requests for declared keys, by the tier that answered"),
          &registry.histogram("larder_request_seconds", labels,
                              "Time inside Larder; near hits are sampled, 1 in 32")};
    }
  for (std::size_t i = 0; i < m.stale_served.size(); ++i)
    m.stale_served[i] = &registry.counter(
        "larder_stale_served_total", {{"cache", cache}, {"reason", i == 0 ? "ttl" : "error"}},
        "Late values answered: revalidating (ttl), or the source failed (error)");
  for (std::size_t i = 1; i < m.fills_refused.size(); ++i)
    m.fills_refused[i] = &registry.counter(
        "larder_fills_refused_total",
        {{"cache", cache}, {"reason", std::string(to_string(static_cast<policy::Refusal>(i)))}},
        "Loads that were answered but not stored, by reason");
  m.fills = &registry.counter("larder_fills_total", {{"cache", cache}}, "Loads that were stored");
  m.early_refreshes =
      &registry.counter("larder_early_refreshes_total", {{"cache", cache}},
                        "Reloads begun before (or after) expiry, in the background");
  return m;
}

std::vector<std::string> placeholder_names(const CacheSpec& spec, const std::string& sql) {
  if (sql.empty()) return {};
  const Result<source::SqlText> text = source::SqlText::parse(sql, spec.dialect);
  LARDER_ASSERT(text.has_value());  // config/ has parsed it before
  return text->names();
}

}  // namespace

constexpr std::uint64_t kSchemaSeed = 0x6c61726465723a73ULL;

std::string_view to_string(Tier tier) { return kTierNames[static_cast<std::size_t>(tier)]; }

// ---- what the sources must know ----

std::vector<Watching> watch_list(const std::vector<CacheSpec>& caches) {
  std::vector<Watching> list;
  for (unsigned c = 0; c < caches.size(); ++c)
    for (unsigned d = 0; d < caches[c].depends_on.size(); ++d) {
      const Dependency& dependency = caches[c].depends_on[d];
      std::vector<std::string> columns;
      std::vector<policy::ParamType> types;
      columns.reserve(dependency.columns.size());
      types.reserve(dependency.columns.size());
      for (const auto& [column, param] : dependency.columns) {
        columns.push_back(column);
        const auto index = static_cast<std::size_t>(caches[c].key.param_index(param));
        types.push_back(caches[c].key.params()[index].type);
      }
      auto same = std::ranges::find_if(list, [&](const Watching& w) {
        return w.source == caches[c].source && w.table.table == dependency.table &&
               w.table.columns == columns && w.table.types == types;
      });
      if (same == list.end()) {
        list.push_back({{static_cast<std::uint32_t>(list.size()), dependency.table, columns, types},
                        caches[c].source,
                        {}});
        same = list.end() - 1;
      }
      same->served.emplace_back(c, d);
    }
  return list;
}

std::vector<source::WatchedTable> Node::watched_tables(const std::vector<CacheSpec>& caches,
                                                       std::string_view source) {
  std::vector<source::WatchedTable> tables;
  for (Watching& watching : watch_list(caches))
    if (watching.source == source) tables.push_back(std::move(watching.table));
  return tables;
}

std::vector<source::LoadStatement> Node::load_statements(const std::vector<CacheSpec>& caches,
                                                         std::string_view source) {
  std::vector<source::LoadStatement> statements;
  for (std::uint32_t i = 0; i < caches.size(); ++i) {
    const CacheSpec& cache = caches[i];
    if (cache.source != source) continue;
    source::LoadStatement load{
        .id = i, .sql = cache.load, .shape = cache.result, .key_params = {}, .tag_columns = {}};
    for (const auto& param : cache.key.params()) load.key_params.push_back(param.name);
    for (const TagPattern& tag : cache.tags)
      for (const std::string& name : tag.names)
        if (cache.key.param_index(name) < 0 &&
            std::ranges::find(load.tag_columns, name) == load.tag_columns.end())
          load.tag_columns.push_back(name);
    statements.push_back(std::move(load));
    if (!cache.warm.empty()) {
      source::LoadStatement warm{.id = static_cast<std::uint32_t>(caches.size()) + i,
                                 .sql = cache.warm,
                                 .shape = source::ResultShape::array,
                                 .key_params = {},
                                 .tag_columns = {}};
      warm.key_params = placeholder_names(cache, cache.warm);  // :n or nothing
      statements.push_back(std::move(warm));
    }
  }
  return statements;
}

std::string partial_tag(std::uint32_t watched_id, const CacheSpec& cache,
                        const std::vector<std::string_view>& values) {
  std::string tag = fmt::format("@dep:{}:{}", cache.name, watched_id);
  for (const std::string_view value : values) {
    tag += kFieldSeparator;
    tag += value;
  }
  return tag;
}

// ---- construction ----

Node::Impl::Impl(Parts given)
    : specs(std::move(given.caches)),
      near(*given.near),
      engine(*given.engine),
      metrics(*given.metrics),
      flights(given.max_flights),
      max_waiters(given.max_waiters),
      on_invalidated(std::move(given.on_invalidated)),
      log(std::move(given.log)),
      dice_count(mix64(given.seed)) {
  LARDER_ASSERT(given.source_names.size() == given.sources.size());
  for (std::size_t i = 0; i < given.sources.size(); ++i) {
    auto runtime = std::make_unique<SourceRuntime>();
    runtime->name = given.source_names[i];
    runtime->source = given.sources[i];
    if (engine.capabilities().shared) runtime->heartbeats = engine.capabilities().heartbeats[i];
    runtime->invalidations = &invalidations(runtime->name);
    runtime->lag = &metrics.histogram("larder_invalidation_lag_seconds", {{"feed", runtime->name}},
                                      "From a commit by others to its invalidation");
    sources.push_back(std::move(runtime));
  }
  for (std::size_t i = 0; i < specs.size(); ++i) {
    auto cache = std::make_unique<CacheRuntime>();
    cache->spec = specs[i];
    const CacheSpec& spec = cache->spec;
    cache->id = static_cast<std::uint16_t>(i + 1);
    const auto source = std::ranges::find(given.source_names, spec.source);
    LARDER_ASSERT(source != given.source_names.end());
    cache->source = static_cast<unsigned>(source - given.source_names.begin());
    cache->guarantee = guarantee_of(spec, &sources[cache->source]->source->capabilities(),
                                    engine.capabilities().shared);
    cache->rules = {.stale_while_revalidate_us = spec.stale_while_revalidate_us,
                    .stale_if_error_us = spec.stale_if_error_us,
                    .refresh_ahead = spec.refresh_ahead,
                    .strong = spec.consistency == Consistency::strong,
                    .bound_us = spec.consistency == Consistency::bounded ? spec.bound_us : 0};
    cache->keeps_for_error = spec.stale_if_error_us > 0 && !cache->rules.strong;
    cache->cache_tag = "@cache:" + spec.name;
    // Not keyed: all nodes that run this version of the service agree on it.
    cache->schema = fmt::format("{}.{:016x}", spec.name,
                                hash_bytes(spec.key.text() + '\n' + spec.load, kSchemaSeed));
    cache->load_names = placeholder_names(spec, spec.load);
    cache->store_names = placeholder_names(spec, spec.store);
    cache->remove_names = placeholder_names(spec, spec.remove);
    cache->increment_names = placeholder_names(spec, spec.increment);
    cache->metrics = make_metrics(metrics, spec.name, spec.write == WriteMode::behind);
    prefixes.emplace_back(spec.key.prefix(), static_cast<int>(i));
    caches.push_back(std::move(cache));
  }
  std::ranges::sort(prefixes);
  for (const Watching& watching : watch_list(specs)) {
    std::vector<DependencyTarget> served;
    for (const auto& [c, d] : watching.served) {
      const Dependency& dependency = specs[c].depends_on[d];
      const std::size_t params = specs[c].key.params().size();
      DependencyTarget target{.cache = c,
                              .full = dependency.columns.size() == params,
                              .column_of_param = std::vector<int>(params, -1)};
      PartialDependency partial{watching.table.id, {}};
      for (std::size_t column = 0; column < dependency.columns.size(); ++column) {
        const int param = specs[c].key.param_index(dependency.columns[column].second);
        LARDER_ASSERT(param >= 0);
        target.column_of_param[static_cast<std::size_t>(param)] = static_cast<int>(column);
        partial.params.push_back(param);
      }
      if (!target.full) caches[c]->partial.push_back(std::move(partial));
      served.push_back(std::move(target));
    }
    targets.push_back(std::move(served));
  }
  auditor = std::make_unique<Auditor>(*this, std::move(given.audit), given.seed);
}

Node::Impl::~Impl() = default;

double Node::Impl::dice() const {
  const std::uint64_t x =
      mix64(dice_count.fetch_add(0x9e3779b97f4a7c15ULL, std::memory_order_relaxed));
  return (static_cast<double>(x >> 11) + 1.0) * 0x1.0p-53;
}

int Node::Impl::cache_of(std::string_view key) const {
  // No prefix is a prefix of another (config refuses that), so at most one can fit: the greatest
  // that is not beyond the key.
  const auto after = std::ranges::upper_bound(
      prefixes, key, {}, [](const auto& p) { return std::string_view(p.first); });
  if (after == prefixes.begin()) return -1;
  const auto& [prefix, cache] = *(after - 1);
  return key.starts_with(prefix) ? cache : -1;
}

const CacheRuntime* Node::Impl::by_name(std::string_view name) const {
  for (const auto& cache : caches)
    if (cache->spec.name == name) return cache.get();
  return nullptr;
}

void Node::Impl::count(const CacheRuntime& cache, Op op, std::size_t tier,
                       DurationUs took_us) const {
  const CacheMetrics::Pair& pair = cache.metrics.by_op_tier[static_cast<std::size_t>(op)][tier];
  pair.requests->add();
  pair.seconds->record(took_us);
}

Node::Node(Parts parts) {
  journal::Journal* const journal = parts.journal;
  const std::uint64_t seed = parts.seed;
  impl_ = std::make_unique<Impl>(std::move(parts));
  const bool any_behind = std::ranges::any_of(
      impl_->specs, [](const CacheSpec& spec) { return spec.write == WriteMode::behind; });
  LARDER_ASSERT(!any_behind || journal != nullptr);
  if (journal != nullptr)
    impl_->behind = std::make_unique<WriteBehind>(*this, *impl_, *journal, seed);
}
Node::~Node() = default;

void Node::start() {
  Impl* const impl = impl_.get();
  impl->engine.start(impl->group, impl->hooks());
  for (unsigned i = 0; i < impl->sources.size(); ++i)
    impl->group.spawn(impl->sources[i]->source->run_feed(
        impl->group,
        [impl, i](source::ChangeBatch batch) { return impl->apply(i, std::move(batch)); }));
  impl->group.spawn(impl->auditor->run());
  if (impl->behind) impl->behind->start();
}

Task<void> Node::recovered(TimeUs deadline) {
  if (impl_->behind) co_await impl_->behind->recovered(deadline);
}

void Node::drain() { impl_->draining = true; }

Task<void> Node::stop(TimeUs flush_until) {
  drain();
  if (impl_->behind) co_await impl_->behind->drain(flush_until);
  impl_->group.stop();
  if (impl_->behind) impl_->behind->wake();
  co_await impl_->group.join();
}

// ---- routing ----

Node::Route Node::route(std::string_view key) const {
  const int cache = impl_->cache_of(key);
  if (cache < 0) return {};
  thread_local std::vector<std::string_view> values;
  return {cache, impl_->specs[static_cast<std::size_t>(cache)].key.match(key, values)};
}

const std::vector<CacheSpec>& Node::caches() const { return impl_->specs; }

Error Node::bad_key(const Route& route, std::string_view key) const {
  return bad_key_of(impl_->specs[static_cast<std::size_t>(route.cache)], key);
}

Error bad_key_of(const CacheSpec& cache, std::string_view key) {
  return {ErrorCode::bad_key,
          fmt::format("key of cache '{}' ({}): {}", cache.name, cache.key.text(),
                      cache.key.explain_bad_part(key)),
          {}};
}

// As judge() does: the same bound, and the same heartbeat.
void Node::publish_near() const {
  for (const auto& cache : impl_->caches) {
    const bool fed = cache->rules.bound_us != 0 && cache->guarantee.fed;
    // A reader in another process does not know partitions: what holds for all of them.
    impl_->near.publish_cache(
        cache->id, cache->spec.near && cache->spec.consistency != Consistency::strong,
        cache->rules.bound_us, fed ? impl_->sources[cache->source]->oldest_heartbeat() : 0);
  }
}

}  // namespace larder::cache
