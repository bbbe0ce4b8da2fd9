// One function for each kind of section. Private to config/.
#pragma once

#include <string_view>
#include <vector>

#include "config/config.h"
#include "config/reader.h"

namespace larder::config {

// [cache.<name>]. `sources`: the names of all that are declared, also of those that are wrong;
// `specs`: those that are right. Reports into the section's reader.
cache::CacheSpec read_cache(Section& section, std::string_view name,
                            const std::vector<std::string>& sources,
                            const std::vector<cache::SourceSpec>& specs);

// [source.<name>]
cache::SourceSpec read_source(Section& section, std::string_view name);

// [feed.<name>]. `caches`: those that are declared, also those that are wrong.
feed::Spec read_feed(Section& section, std::string_view name, const EngineConfig& engine,
                     const std::vector<cache::CacheSpec>& caches);

// "sqlite" of "sqlite:shop.db"; "" if there is none.
std::string_view scheme_of(std::string_view url);

// Names of caches and sources: they become labels of metrics and parts of the engine's keys.
bool is_section_name(std::string_view name);

}  // namespace larder::config
