// Asks the servers of a shared engine what `larder config check` has to know of them.
#pragma once

#include "config/check.h"
#include "config/config.h"

namespace larder::server {

// Blocks, for a few seconds at most. REQUIRES: config.engine.url is not "embedded:".
config::EngineFacts ask_engine(const config::Config& config);

}  // namespace larder::server
