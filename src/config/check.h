// What `larder config check` says: each cache's guarantee and what it rests on, memory, warnings.
// Pure.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/clock.h"
#include "config/config.h"
#include "source/source.h"

namespace larder::config {

struct CacheReport {
  std::string name;
  std::string key;
  std::string source;
  std::string guarantee;  // "bounded:1s"
  std::string rests_on;   // one sentence
  std::string write;      // "none", "around", "through"
  DurationUs ttl_us = 0;  // the effective one
};

struct SourceReport {
  std::string name;
  std::string url;  // without its secrets
  bool opened = false;
  std::string kind;
  std::string feed;  // what its feed rests on, or why there is none
};

struct MemoryReport {
  std::uint64_t near_capacity_bytes = 0;  // entries, plain keys and their index
  std::uint64_t max_entry_bytes = 0;      // larger ones are served and not held
  std::uint64_t max_clients = 0;
  std::uint64_t max_request_bytes = 0;  // of each client
  std::uint64_t max_output_bytes = 0;   // of each client
};

struct Warning {
  std::string section;  // "[cache.product]"
  std::string message;
};

struct CheckReport {
  std::vector<CacheReport> caches;
  std::vector<SourceReport> sources;
  MemoryReport memory;
  std::vector<Warning> warnings;
};

// By name of source. One that is absent could not be opened: guarantees are then those without it.
using SourceCapabilities = std::map<std::string, source::Capabilities>;

CheckReport check(const Config& config, const SourceCapabilities& capabilities);

std::string to_text(const CheckReport& report);
// {"caches": [...], "sources": [...], "memory": {...}, "warnings": [...]}; durations in ms as *_ms.
std::string to_json(const CheckReport& report);

}  // namespace larder::config
