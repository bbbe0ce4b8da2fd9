// All feeds of a node: builds them from the configuration, starts them, ends them.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/redis/client.h"
#include "feed/channel.h"
#include "feed/intake.h"
#include "feed/spec.h"
#include "feed/stream.h"
#include "net/runtime.h"
#include "obs/metrics.h"

namespace larder::feed {

// What feeds are built with; what is pointed to, and what the functions use, outlives them.
struct Parts {
  net::Runtime* runtime = nullptr;
  obs::Registry* metrics = nullptr;
  Log log;
  std::string name_space;                       // of the engine: begins the names of positions
  std::function<Actions(const Spec&)> actions;  // what a feed's events do
};

// Feeds of one URL share a client, which is theirs alone: the engine's commands never wait behind
// them. start() and stop() from one loop, on which the feeds then run.
class Feeds {
 public:
  // Nothing is connected yet. Errors: config (a URL that is none).
  static Result<std::unique_ptr<Feeds>> create(std::vector<Spec> specs, const Parts& parts);
  ~Feeds();  // REQUIRES: stopped, if they were started

  void start();
  // Ends them, and their connections.
  Task<void> stop();

 private:
  explicit Feeds(std::vector<Spec> specs) : specs_(std::move(specs)) {}

  const std::vector<Spec> specs_;
  std::map<std::string, std::unique_ptr<engine::redis::Client>> clients_;  // by URL
  std::vector<std::unique_ptr<ChannelFeed>> channels_;
  std::vector<std::unique_ptr<StreamFeed>> streams_;
  TaskGroup feeds_;
  TaskGroup connections_;  // outlive the feeds
};

}  // namespace larder::feed
