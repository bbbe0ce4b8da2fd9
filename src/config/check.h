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

struct FeedReport {
  std::string name;
  std::string from;                 // "channel x of redis://h:6379", without secrets
  std::string voids;                // "key user:{id}", "key a, tag b"
  std::vector<std::string> caches;  // those that its events can make void
  std::string rests_on;             // what happens to an event that nobody heard
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
  std::vector<FeedReport> feeds;
  MemoryReport memory;
  std::vector<Warning> warnings;
};

// What the engine's servers say of themselves. Empty texts: they did not say.
struct EngineFacts {
  std::string problem;  // why it could not be asked; "" = it was
  std::string version;
  std::uint64_t maxmemory_bytes = 0;  // 0: no limit
  std::string maxmemory_policy;
  bool saves = false;  // snapshots or an append-only file
  std::uint64_t replicas = 0;
};
// Warnings of section [engine] about an engine that is not "embedded:".
void check_engine(const EngineFacts& facts, std::vector<Warning>& warnings);

// By name of source. One that is absent could not be opened: guarantees are then those without it.
using SourceCapabilities = std::map<std::string, source::Capabilities>;

CheckReport check(const Config& config, const SourceCapabilities& capabilities);

std::string to_text(const CheckReport& report);
// {"caches": [...], "sources": [...], "feeds": [...], "memory": {...}, "warnings": [...]};
// durations in ms as *_ms.
std::string to_json(const CheckReport& report);

}  // namespace larder::config
