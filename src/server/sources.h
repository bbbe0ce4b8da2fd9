// From a [source.x] of the configuration to a source that is open.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cache/spec.h"
#include "config/config.h"
#include "obs/metrics.h"
#include "source/source.h"

namespace larder::server {

// One line for the people who run it. Called from any thread.
using Log = std::function<void(std::string)>;

// Whom the sources' feeds serve: this node alone, or all that share its engine.
source::FeedFor feed_for(const config::Config& config);

// By the scheme of its URL; every statement of the caches that use it is checked against the
// database. Blocks. Errors: config (also for a statement that the database does not take),
// source_down, io.
Result<std::unique_ptr<source::Source>> open_source(const cache::SourceSpec& spec,
                                                    const config::Config& config,
                                                    obs::Registry& metrics, Log log);

}  // namespace larder::server
