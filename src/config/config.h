// The configuration file (design section 4): read, checked as a whole, and ready to run.
//
// Pure but for two things, which the caller may replace: environment variables and files that hold
// secrets. Everything that is wrong is reported at once, each with its place and, where there is a
// near one, the word that was probably meant.
#pragma once

#include <cstdint>
#include <expected>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "cache/spec.h"
#include "feed/spec.h"
#include "near/store.h"

namespace larder::config {

struct NodeConfig {
  std::vector<std::string> listen = {"127.0.0.1:7379"};  // host:port, [v6]:port or unix:/path
  std::string admin = "127.0.0.1:7380";                  // host:port; "" = no admin server
  unsigned threads = 0;                                  // 0: one a core
  std::string data_dir = "larder-data";
  std::string requirepass;                     // a secret: never print it; "" = no password
  std::uint64_t max_clients = 10'000;          // beyond: refused with an error
  std::uint64_t max_request_bytes = 64 << 20;  // of one command, arguments together
  std::uint64_t max_output_bytes = 32 << 20;   // a client that lets more pile up is closed
  std::uint64_t max_loads = 100'000;           // loads under way; beyond: -LARDER_OVERLOADED
  std::uint64_t max_waiters = 100'000;         // readers that wait for them
  std::uint64_t max_tracked_keys = 1'000'000;  // of CLIENT TRACKING: pairs of a key and a client
};

struct NearConfig {
  std::uint64_t capacity_bytes = 256 << 20;
  std::string shared;    // the name of a shared memory object; "" = private memory
  std::string snapshot;  // a file that a stop writes and the next start reads; "" = none
  near::Cost cost = near::Cost::one;
};

struct EngineConfig {
  std::string url = "embedded:";
  std::string name_space = "larder";
  unsigned partitions = 64;  // a power of two, at most 1024
};

struct Config {
  NodeConfig node;
  NearConfig near;
  EngineConfig engine;
  cache::PlainSpec plain;
  cache::AuditSpec audit;
  cache::JournalSpec journal;
  std::vector<cache::SourceSpec> sources;  // in order of name
  std::vector<cache::CacheSpec> caches;    // in order of name; each `source` is one of the above
  std::vector<feed::Spec> feeds;  // in order of name; with the engine's url where none is given
};

// Something that is wrong.
struct Problem {
  std::string file;
  unsigned line = 0;    // from 1; 0 = the file as a whole
  unsigned column = 0;  // from 1, in characters
  std::string message;
  std::string suggestion;   // what was probably meant; "" = no idea
  std::string source_line;  // secrets in it are masked
};

// "larder.toml:12:1: unknown key 'tll' in [cache.product]; did you mean 'ttl'?", the line, a caret.
// Ends with a newline.
std::string to_string(const Problem& problem);
std::string to_string(const std::vector<Problem>& problems);

// For tests, and for whoever must not touch the process's own.
struct Outside {
  // nullopt: not set.
  std::function<std::optional<std::string>(const std::string& name)> environment;
  std::function<Result<std::string>(const std::string& path)> secret_file;
  static Outside real();
};

// On failure all problems, in the order of the file; never empty.
using Loaded = std::expected<Config, std::vector<Problem>>;
Loaded load_config(std::string_view text, std::string_view filename,
                   const Outside& outside = Outside::real());
Loaded load_config_file(const std::string& path, const Outside& outside = Outside::real());

inline constexpr std::size_t kMaxConfigBytes = 1 << 20;

}  // namespace larder::config
