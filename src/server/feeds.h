// From the [feed.x] of the configuration to feeds that make entries of a node void.
#pragma once

#include <memory>

#include "cache/node.h"
#include "config/config.h"
#include "feed/feeds.h"
#include "net/runtime.h"
#include "obs/metrics.h"

namespace larder::server {

// Null if none is configured. All that is given outlives the feeds. Errors: config.
Result<std::unique_ptr<feed::Feeds>> open_feeds(const config::Config& config, cache::Node& node,
                                                net::Runtime& runtime, obs::Registry& metrics,
                                                const feed::Log& log);

}  // namespace larder::server
