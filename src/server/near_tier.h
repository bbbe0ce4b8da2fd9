// The node's near tier as it is configured: where its memory is, what an earlier life left in it,
// and what other processes are told about it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cache/node.h"
#include "config/config.h"
#include "near/hits.h"
#include "near/store.h"
#include "source/source.h"

namespace larder::server {

class NearTier {
 public:
  // Private or shared memory; warm, if an earlier life with the same version and configuration left
  // something. `sources` are those of config.sources, in order. Before any other thread runs: it
  // may set the process's hash seed. Errors: config, out_of_memory.
  static Result<std::unique_ptr<NearTier>> open(
      const config::Config& config, const std::vector<std::unique_ptr<source::Source>>& sources);

  near::Store& store() { return *store_; }
  // One line for the log; "" if it began empty, as usual.
  const std::string& began_with() const { return began_with_; }

  // Several times a second: drops what has expired, and tells other processes how far they may
  // trust what they read. True if more has expired than was dropped: call again soon.
  bool keep(TimeUs now, const cache::Node& node);

  // After the last change: other processes read no more, and the snapshot is written if there is to
  // be one. An error is for the log.
  Result<void> close(TimeUs now);

 private:
  explicit NearTier(const config::Config& config) : config_(config.near) {}

  const config::NearConfig config_;
  std::unique_ptr<near::Store> store_;
  std::optional<near::HitRing> hits_;  // of other processes; only if shared
  TimeUs drained_at_ = 0;
  std::string began_with_;
};

// Of what entries mean: the version, each cache's key, source, statement and shape, the sizes.
std::uint64_t fingerprint_of(const config::Config& config);

}  // namespace larder::server
