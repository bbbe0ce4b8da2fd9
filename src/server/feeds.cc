#include "server/feeds.h"

#include "config/feed_targets.h"

namespace larder::server {
namespace {

Task<Result<void>> apply(cache::Node& node, const std::string& feed, std::vector<std::string> keys,
                         std::vector<std::string> tags) {
  if (!keys.empty()) {
    Result<std::int64_t> done = co_await node.invalidate_keys(std::move(keys), feed);
    if (!done) co_return std::unexpected(done.error());
  }
  if (!tags.empty()) {
    Result<std::int64_t> done = co_await node.invalidate_tags(std::move(tags), feed);
    if (!done) co_return std::unexpected(done.error());
  }
  co_return Result<void>{};
}

Task<Result<void>> everything(cache::Node& node, const std::string& feed,
                              const std::vector<std::string>& caches) {
  for (const std::string& cache : caches) {
    Result<bool> done = co_await node.invalidate_cache(cache, feed);
    if (!done) co_return std::unexpected(done.error());
  }
  co_return Result<void>{};
}

// The functions own what their coroutines refer to, and outlive them.
feed::Actions actions_of(const feed::Spec& spec, cache::Node& node) {
  const auto name = std::make_shared<const std::string>(spec.name);
  const auto caches =
      std::make_shared<const std::vector<std::string>>(config::caches_of(spec.rule, node.caches()));
  return {.declared =
              [&node](std::string_view key) { return node.route(key).match == policy::Match::yes; },
          .apply =
              [&node, name](std::vector<std::string> keys, std::vector<std::string> tags) {
                return apply(node, *name, std::move(keys), std::move(tags));
              },
          .everything = [&node, name, caches] { return everything(node, *name, *caches); }};
}

}  // namespace

Result<std::unique_ptr<feed::Feeds>> open_feeds(const config::Config& config, cache::Node& node,
                                                net::Runtime& runtime, obs::Registry& metrics,
                                                const feed::Log& log) {
  if (config.feeds.empty()) return std::unique_ptr<feed::Feeds>();
  return feed::Feeds::create(config.feeds, {.runtime = &runtime,
                                            .metrics = &metrics,
                                            .log = log,
                                            .name_space = config.engine.name_space,
                                            .actions = [&node](const feed::Spec& spec) {
                                              return actions_of(spec, node);
                                            }});
}

}  // namespace larder::server
