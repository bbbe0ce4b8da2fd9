#include "server/sources.h"

#include <fmt/format.h>

#include "cache/node.h"
#include "source/mariadb/mariadb.h"
#include "source/postgres/postgres.h"
#include "source/postgres/prepare.h"
#include "source/sqlite/sqlite.h"

namespace larder::server {

source::FeedFor feed_for(const config::Config& config) {
  return config.engine.url == "embedded:" ? source::FeedFor::node : source::FeedFor::fleet;
}

namespace {

using Opened = Result<std::unique_ptr<source::Source>>;

// What is wrong with a write shows now, not when the first client writes.
template <class S>
Opened with_writes_checked(std::unique_ptr<S> source, const cache::SourceSpec& spec,
                           const std::vector<cache::CacheSpec>& caches) {
  for (const cache::CacheSpec& cache : caches) {
    if (cache.source != spec.name) continue;
    const std::pair<std::string_view, const std::string&> statements[] = {
        {"store", cache.store}, {"remove", cache.remove}, {"increment", cache.increment}};
    for (const auto& [name, sql] : statements) {
      if (sql.empty()) continue;
      const auto taken = source->check_statement(sql);
      if (!taken)
        return fail(taken.error().code,
                    fmt::format("[cache.{}] {}: {}", cache.name, name, taken.error().message),
                    taken.error().origin);
    }
  }
  return std::unique_ptr<source::Source>(std::move(source));
}

Opened open_sqlite(const cache::SourceSpec& spec, const config::Config& config,
                   obs::Registry& metrics, Log log) {
  const auto& caches = config.caches;
  namespace sqlite = source::sqlite;
  auto path = sqlite::path_of_url(spec.url);
  if (!path) return std::unexpected(path.error());
  auto opened = sqlite::open_sqlite({.name = spec.name,
                                     .path = std::move(*path),
                                     .pool = spec.pool,
                                     .queue = spec.queue,
                                     .poll_us = spec.poll_us,
                                     .query_log = spec.query_log,
                                     .feed_for = feed_for(config),
                                     .statements = cache::Node::load_statements(caches, spec.name),
                                     .watched = cache::Node::watched_tables(caches, spec.name),
                                     .metrics = &metrics,
                                     .log = std::move(log)});
  if (!opened) return std::unexpected(opened.error());
  return with_writes_checked(std::move(*opened), spec, caches);
}

// Nobody waits longer for a statement: `warm`, or the cache with the most patience.
DurationUs longest_wait(const cache::SourceSpec& spec,
                        const std::vector<cache::CacheSpec>& caches) {
  DurationUs longest = 30 * kSecond;
  for (const cache::CacheSpec& cache : caches)
    if (cache.source == spec.name) longest = std::max(longest, cache.load_timeout_us);
  return longest;
}

// What a feed needs so that the bounds of the source's caches hold: several heartbeats, and two
// looks at what it rests on.
struct FeedTimes {
  DurationUs heartbeat = 200 * kMillisecond;
  DurationUs check = 10 * kSecond;

  FeedTimes(const cache::SourceSpec& spec, const std::vector<cache::CacheSpec>& caches) {
    for (const cache::CacheSpec& cache : caches) {
      if (cache.source != spec.name || cache.bound_us == 0) continue;
      heartbeat = std::clamp(cache.bound_us / 5, 10 * kMillisecond, heartbeat);
      check = std::clamp(cache.bound_us / 2, 20 * kMillisecond, check);
    }
  }
};

Opened open_mariadb(const cache::SourceSpec& spec, const config::Config& config,
                    obs::Registry& metrics, Log log) {
  const auto& caches = config.caches;
  auto opened =
      source::mariadb::open_mariadb({.name = spec.name,
                                     .url = spec.url,
                                     .pool = spec.pool,
                                     .queue = spec.queue,
                                     .statement_timeout_us = longest_wait(spec, caches),
                                     .feed_for = feed_for(config),
                                     .heartbeat_us = FeedTimes(spec, caches).heartbeat,
                                     .statements = cache::Node::load_statements(caches, spec.name),
                                     .watched = cache::Node::watched_tables(caches, spec.name),
                                     .metrics = &metrics,
                                     .log = std::move(log)});
  if (!opened) return std::unexpected(opened.error());
  return with_writes_checked(std::move(*opened), spec, caches);
}

Opened open_postgres(const cache::SourceSpec& spec, const config::Config& config,
                     obs::Registry& metrics, Log log) {
  const auto& caches = config.caches;
  const FeedTimes times(spec, caches);
  const std::string feed = source::postgres::feed_name(config.engine.name_space, spec.name);
  auto opened = source::postgres::open_postgres(
      {.name = spec.name,
       .url = spec.url,
       .replicas = spec.replicas,
       .replica_lag_us = spec.replica_lag_us,
       .pool = spec.pool,
       .queue = spec.queue,
       .statement_timeout_us = longest_wait(spec, caches),
       .feed_for = feed_for(config),
       .means = spec.triggers ? source::postgres::Means::triggers : source::postgres::Means::log,
       .poll_us = spec.poll_us,
       .slot = feed,
       .publication = feed,
       .heartbeat_us = times.heartbeat,
       .check_us = times.check,
       .slot_limit_bytes = spec.slot_limit_bytes,
       .statements = cache::Node::load_statements(caches, spec.name),
       .watched = cache::Node::watched_tables(caches, spec.name),
       .metrics = &metrics,
       .log = std::move(log)});
  if (!opened) return std::unexpected(opened.error());
  return with_writes_checked(std::move(*opened), spec, caches);
}

}  // namespace

Opened open_source(const cache::SourceSpec& spec, const config::Config& config,
                   obs::Registry& metrics, Log log) {
  if (spec.url.starts_with("postgres")) return open_postgres(spec, config, metrics, std::move(log));
  if (spec.url.starts_with("mariadb:") || spec.url.starts_with("mysql:"))
    return open_mariadb(spec, config, metrics, std::move(log));
  return open_sqlite(spec, config, metrics, std::move(log));
}

}  // namespace larder::server
