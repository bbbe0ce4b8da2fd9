#include "server/near_tier.h"

#include <fmt/format.h>

#include "base/hash.h"
#include "cache/guarantee.h"

namespace larder::server {
namespace {

// Other processes stop answering so long after the node was last seen alive. Longer than a loop is
// ever held up, shorter than anybody would take stale for fresh.
constexpr DurationUs kLease = kSecond;
constexpr unsigned kExpireBuckets = 256;
constexpr DurationUs kDrainEvery = 100 * kMillisecond;

near::Options options_of(const config::Config& config) {
  return {.capacity_bytes = config.near.capacity_bytes,
          .partitions = config.engine.partitions,
          .caches = static_cast<unsigned>(std::max<std::size_t>(config.caches.size(), 1)),
          // Of plain keys on an engine there are only copies here.
          .evict_plain = config.plain.evict || config.engine.url != "embedded:",
          .cost = config.near.cost};
}

// By cache_id: what an entry of an earlier life is worth.
std::vector<near::Store::Trust> trust_of(
    const config::Config& config, const std::vector<std::unique_ptr<source::Source>>& sources) {
  using Trust = near::Store::Trust;
  // Plain keys: nobody but this node changes them, unless they are copies of the engine's.
  std::vector<Trust> trust{config.engine.url == "embedded:" ? Trust::full : Trust::drop};
  for (const cache::CacheSpec& spec : config.caches) {
    const source::Capabilities* source = nullptr;
    for (std::size_t i = 0; i < config.sources.size(); ++i)
      if (config.sources[i].name == spec.source) source = &sources[i]->capabilities();
    if (config.engine.url != "embedded:") {  // nobody has followed the engine meanwhile
      trust.push_back(Trust::drop);
      continue;
    }
    trust.push_back(cache::outlives_the_node(spec, cache::guarantee_of(spec, source, false))
                        ? Trust::full
                        : Trust::revalidate);
  }
  return trust;
}

}  // namespace

std::uint64_t fingerprint_of(const config::Config& config) {
  std::string all = fmt::format("{}|{}|{}|{}", LARDER_VERSION, config.near.capacity_bytes,
                                config.engine.partitions, config.plain.evict);
  for (const cache::CacheSpec& spec : config.caches)
    all +=
        fmt::format("\n{}|{}|{}|{}|{}|{}|{}", spec.name, spec.key.text(), spec.source, spec.load,
                    static_cast<int>(spec.result), static_cast<int>(spec.consistency), spec.near);
  for (const cache::SourceSpec& source : config.sources)
    all += fmt::format("\n{}|{}", source.name, hash_bytes(source.url, 0));
  return hash_bytes(all, 0);
}

Result<std::unique_ptr<NearTier>> NearTier::open(
    const config::Config& config, const std::vector<std::unique_ptr<source::Source>>& sources) {
  std::unique_ptr<NearTier> tier(new NearTier(config));
  const near::Options options = options_of(config);
  const near::ArenaShape shape = options.shape(fingerprint_of(config));
  const TimeUs now = monotonic_now_us();
  const std::vector<near::Store::Trust> trusts = trust_of(config, sources);
  const auto trust = [&](std::uint16_t cache_id) {
    return cache_id < trusts.size() ? trusts[cache_id] : near::Store::Trust::drop;
  };
  near::Store::Restored restored;
  if (!config.near.shared.empty()) {
    Result<near::Arena> arena = near::Arena::open_shared(config.near.shared, shape);
    if (!arena) return std::unexpected(arena.error());
    if (arena->found()) set_hash_seed(arena->header().fixed.hash_seed);
    tier->store_ = std::make_unique<near::Store>(options, std::move(*arena));
    restored = tier->store_->take_over(now, clock_anchor_us(), trust);
    Result<near::HitRing> hits = near::HitRing::create(config.near.shared);
    if (!hits) return std::unexpected(hits.error());
    tier->hits_.emplace(std::move(*hits));
  } else {
    const std::string& snapshot = config.near.snapshot;
    if (!snapshot.empty()) {
      auto seed = near::Store::seed_of_snapshot(snapshot);
      if (!seed) return std::unexpected(seed.error());
      if (*seed) set_hash_seed(**seed);
    }
    Result<near::Arena> arena = near::Arena::make_private(shape);
    if (!arena) return std::unexpected(arena.error());
    tier->store_ = std::make_unique<near::Store>(options, std::move(*arena));
    if (!snapshot.empty()) {
      auto loaded = tier->store_->load(snapshot, now, trust);
      if (loaded)
        restored = *loaded;
      else
        tier->began_with_ = to_string(loaded.error());
    }
  }
  if (restored.entries + restored.to_revalidate > 0)
    tier->began_with_ = fmt::format(
        "near tier: {} entries of the last run are warm, {} more will be asked for again, {} had "
        "ended or did not fit",
        restored.entries, restored.to_revalidate, restored.dropped);
  return tier;
}

bool NearTier::keep(TimeUs now, const cache::Node& node) {
  const bool more = store_->expire(now, kExpireBuckets).more;
  if (!config_.shared.empty()) {
    node.publish_near();
    store_->publish(now, kLease, clock_anchor_us());
  }
  if (hits_ && now >= drained_at_ + kDrainEvery) {
    hits_->drain([this](Hash hash) { store_->count_hit(hash); });
    drained_at_ = now;
  }
  return more;
}

Result<void> NearTier::close(TimeUs now) {
  if (!config_.shared.empty()) store_->close_shared();
  return config_.snapshot.empty() ? Result<void>{} : store_->save(config_.snapshot, now);
}

}  // namespace larder::server
