// From a [source.x] of the configuration to a source that is open.
#pragma once

#include <memory>
#include <vector>

#include "cache/spec.h"
#include "obs/metrics.h"
#include "source/source.h"

namespace larder::server {

// By the scheme of its URL. Errors: config (a scheme that is not in this version), source_down, io.
Result<std::unique_ptr<source::Source>> open_source(const cache::SourceSpec& spec,
                                                    std::vector<source::LoadStatement> loads,
                                                    std::vector<source::WatchedTable> watched,
                                                    obs::Registry& metrics);

}  // namespace larder::server
