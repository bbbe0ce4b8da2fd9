#include "server/sources.h"

#include <fmt/format.h>

#include "cache/node.h"
#include "source/sqlite/sqlite.h"

namespace larder::server {

source::FeedFor feed_for(const config::Config& config) {
  return config.engine.url == "embedded:" ? source::FeedFor::node : source::FeedFor::fleet;
}

Result<std::unique_ptr<source::Source>> open_source(const cache::SourceSpec& spec,
                                                    const std::vector<cache::CacheSpec>& caches,
                                                    source::FeedFor feed_for,
                                                    obs::Registry& metrics, Log log) {
  namespace sqlite = source::sqlite;
  auto path = sqlite::path_of_url(spec.url);
  if (!path) return std::unexpected(path.error());
  auto opened = sqlite::open_sqlite({.name = spec.name,
                                     .path = std::move(*path),
                                     .pool = spec.pool,
                                     .queue = spec.queue,
                                     .poll_us = spec.poll_us,
                                     .query_log = spec.query_log,
                                     .feed_for = feed_for,
                                     .statements = cache::Node::load_statements(caches, spec.name),
                                     .watched = cache::Node::watched_tables(caches, spec.name),
                                     .metrics = &metrics,
                                     .log = std::move(log)});
  if (!opened) return std::unexpected(opened.error());
  // What is wrong with a write shows now, not when the first client writes.
  for (const cache::CacheSpec& cache : caches) {
    if (cache.source != spec.name) continue;
    const std::pair<std::string_view, const std::string&> statements[] = {
        {"store", cache.store}, {"remove", cache.remove}, {"increment", cache.increment}};
    for (const auto& [name, sql] : statements) {
      if (sql.empty()) continue;
      const auto taken = (*opened)->check_statement(sql);
      if (!taken)
        return fail(taken.error().code,
                    fmt::format("[cache.{}] {}: {}", cache.name, name, taken.error().message),
                    taken.error().origin);
    }
  }
  return std::unique_ptr<source::Source>(std::move(*opened));
}

}  // namespace larder::server
