// Answers to "why?" and "how is it?".
#include <fmt/format.h>

#include <boost/json.hpp>

#include "base/units.h"
#include "cache/auditor.h"
#include "cache/impl.h"

namespace larder::cache {

std::string duration(DurationUs us) {
  if (us >= 100 * kSecond) return format_duration(us - us % kSecond);
  if (us >= kSecond) return fmt::format("{:.1f}s", static_cast<double>(us) / kSecond);
  if (us >= kMillisecond) return fmt::format("{:.1f}ms", static_cast<double>(us) / kMillisecond);
  return fmt::format("{}us", us);
}

namespace {

std::string_view state_of(policy::Freshness freshness, bool is_void) {
  if (is_void) return "invalidated; kept only for when the source fails (stale_if_error)";
  switch (freshness) {
    case policy::Freshness::fresh: return "fresh";
    case policy::Freshness::refresh_early: return "fresh; a reload before its expiry is due";
    case policy::Freshness::revalidate: return "late; answered while one reload runs";
    case policy::Freshness::load: return "late; the next read loads";
    case policy::Freshness::stale_if_error: return "late; answered only because the source fails";
    case policy::Freshness::unusable: return "of no use any more";
  }
  return "?";
}

}  // namespace

std::string Node::guarantee(std::size_t index) const {
  const Guarantee& promise = impl_->caches[index]->guarantee;
  return fmt::format("{}; rests on: {}", promise.name, promise.rests_on);
}

Explanation Node::explain(std::string_view key, TimeUs now) {
  Impl& self = *impl_;
  Explanation result;
  const auto say = [&](std::string name, std::string text) {
    result.emplace_back(std::move(name), std::move(text));
  };
  const Hash hash = hash_bytes(key);
  const Route where = route(key);
  say("key", std::string(key));
  if (where.match == policy::Match::bad_part) {
    say("cache", self.specs[static_cast<std::size_t>(where.cache)].name);
    say("error", to_string(bad_key(where, key)));
    return result;
  }
  if (where.match == policy::Match::no) {
    say("cache", "none: a plain key, held by the engine under its own name");
    bool held = false;
    self.near.lookup(key, hash, now, [&](const near::View& view) {
      held = view.meta.soft_expiry > now && !view.is_void;
      if (held)
        say("held_by",
            view.meta.soft_expiry == kNever
                ? "embedded engine, without expiry"
                : fmt::format("embedded engine, ttl {}", duration(view.meta.soft_expiry - now)));
    });
    if (!held) say("held_by", "nobody");
    return result;
  }

  const auto index = static_cast<std::size_t>(where.cache);
  const CacheRuntime& cache = *self.caches[index];
  say("cache", cache.spec.name);
  say("source", self.sources[cache.source]->name);
  bool held = false;
  self.near.lookup(key, hash, now, [&](const near::View& view) {
    held = true;
    const policy::Freshness freshness = self.judge(cache, view, now, Impl::SourceState::unknown);
    say("held_by", self.engine.capabilities().entries_live_in_near
                       ? (cache.spec.near ? "near tier (the embedded engine's own storage)"
                                          : "embedded engine")
                       : "near tier");
    say("state", std::string(state_of(freshness, view.is_void)));
    say("value", view.meta.negative ? "none: the source has no such row"
                                    : fmt::format("{} bytes", view.value.size()));
    say("age", duration(std::max<DurationUs>(0, now - view.meta.as_of)));
    say("ttl", view.meta.soft_expiry > now ? duration(view.meta.soft_expiry - now) : "passed");
    say("load_took", duration(view.meta.load_us));
  });
  if (!held)
    say("held_by", self.engine.capabilities().shared
                       ? "not the near tier: the next read asks the engine"
                       : "nobody: the next read loads");
  say("guarantee", guarantee(index));
  say("loading", self.flights.contains(key, hash) ? "yes, one load is under way" : "no");
  const RecentEvents& events = self.events;
  const auto ago = [&](TimeUs at) { return duration(std::max<DurationUs>(0, now - at)); };
  const auto invalidated = events.last_invalidation(hash);
  say("last_invalidation",
      invalidated ? fmt::format("{} ago, {}", ago(invalidated->at), events.by(*invalidated))
                  : "none remembered");
  if (const auto whole = events.last_invalidation(hash_bytes(cache.cache_tag)))
    say("cache_invalidated", fmt::format("{} ago, {}", ago(whole->at), events.by(*whole)));
  const auto refused = events.last_refusal(hash);
  say("last_fill_refused",
      refused ? fmt::format("{} ago: {}", ago(refused->at), policy::to_string(refused->refusal))
              : "never");
  std::string steps;
  for (const RecentEvents::Event& event : events.of(hash))
    steps +=
        fmt::format("{}{} ago {}", steps.empty() ? "" : "; ", ago(event.at), events.text(event));
  say("steps", steps.empty() ? "none remembered" : steps);
  return result;
}

std::string Node::status_json(TimeUs now) const {
  namespace json = boost::json;
  Impl& self = *impl_;
  json::object root;
  const near::Stats stats = self.near.stats();
  root["near"] = {{"bytes", stats.bytes},
                  {"capacity_bytes", self.near.capacity_bytes()},
                  {"entries", stats.entries},
                  {"evictions", stats.evictions}};
  root["loads_under_way"] = self.flights.size();
  json::array caches;
  for (std::size_t i = 0; i < self.caches.size(); ++i) {
    const CacheRuntime& cache = *self.caches[i];
    json::object reads;
    std::uint64_t total = 0;
    for (std::size_t tier = 0; tier < kTiers; ++tier) {
      const obs::Counter* const requests = cache.metrics.by_op_tier[0][tier].requests;
      if (requests == nullptr) continue;
      const std::uint64_t n = requests->value();
      const std::string_view name =
          tier == kErrorTier ? "error" : to_string(static_cast<Tier>(tier));
      reads[json::string_view(name.data(), name.size())] = n;
      total += n;
    }
    const std::uint64_t missed =
        cache.metrics.by_op_tier[0][static_cast<std::size_t>(Tier::source)].requests->value() +
        cache.metrics.by_op_tier[0][kErrorTier].requests->value();
    caches.push_back(
        {{"name", cache.spec.name},
         {"key", cache.spec.key.text()},
         {"source", self.sources[cache.source]->name},
         {"guarantee", guarantee(i)},
         {"reads", std::move(reads)},
         {"hit_ratio",
          total ? 1.0 - static_cast<double>(missed) / static_cast<double>(total) : 0.0}});
  }
  root["caches"] = std::move(caches);
  if (self.behind) root["journal"] = json::parse(self.behind->json(now));
  json::array sources;
  for (const auto& source : self.sources) {
    const TimeUs heartbeat = source->heartbeat.load(std::memory_order_acquire);
    const auto& can = source->source->capabilities();
    sources.push_back(
        {{"name", source->name},
         {"kind", can.kind},
         {"feed", can.feed ? can.feed_rests_on : "none: " + can.why_no_feed},
         {"heartbeat_age_ms",
          heartbeat ? json::value((now - heartbeat) / kMillisecond) : json::value(nullptr)},
         {"invalidations", source->invalidations->value()}});
  }
  root["sources"] = std::move(sources);
  root["audit"] = json_of(audited(now));
  return json::serialize(root);
}

}  // namespace larder::cache
