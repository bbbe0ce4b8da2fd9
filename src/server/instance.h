// A whole Larder in this process: everything that the configuration asks for, built, started and
// stopped in order. `larder serve`, the demo and the integration tests run this.
#pragma once

#include <atomic>
#include <condition_variable>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cache/node.h"
#include "config/config.h"
#include "engine/embedded/embedded.h"
#include "engine/embedded/leases.h"
#include "engine/embedded/plain.h"
#include "engine/redis/client.h"
#include "engine/redis/engine.h"
#include "near/store.h"
#include "net/runtime.h"
#include "obs/metrics.h"
#include "server/admin.h"
#include "server/clients.h"
#include "server/feeds.h"
#include "server/invalidator.h"
#include "server/near_tier.h"
#include "server/passed.h"
#include "server/pubsub.h"
#include "server/session.h"
#include "server/sources.h"
#include "source/source.h"

namespace larder::server {

// Thread-safe, except where said. Nothing of it runs outside of its own threads.
class Instance {
 public:
  // Opens the sources and listens; answers clients when this returns. An address with port 0 takes
  // a free one. Errors: config, io, and those of the sources.
  // `engine`: what the configuration does not say of a shared one; tests weaken it.
  static Result<std::unique_ptr<Instance>> start(
      const config::Config& config, Log log = {},
      const engine::redis::RedisEngine::Options& engine = {});

  // Stops, if that has not been done, and waits.
  ~Instance();
  Instance(const Instance&) = delete;
  Instance& operator=(const Instance&) = delete;

  // SIGINT and SIGTERM ask for a stop. Once, after start().
  void stop_on_signals();
  // Takes no more clients, answers what is under way, ends feeds and loads. Returns at once.
  void request_stop();
  // Returns when all has ended after request_stop().
  void wait();

  // Where it listens, with the real ports.
  const std::vector<std::string>& addresses() const { return addresses_; }
  const std::string& admin_address() const { return admin_address_; }  // "" = none

  net::Runtime& runtime() { return *runtime_; }
  cache::Node& node() { return *node_; }
  near::Store& near() { return near_->store(); }
  obs::Registry& metrics() { return metrics_; }
  Clients& clients() { return clients_; }

 private:
  Instance(const config::Config& config, Log log,
           const engine::redis::RedisEngine::Options& engine);
  Result<void> build();
  Result<void> build_client();
  Result<void> build_engine();
  Result<void> build_journal();
  Result<void> launch();
  Result<void> listen();
  Task<void> begin(std::promise<Result<void>>& started);
  void register_gauges();
  Task<void> housekeeping();
  Task<void> shut_down();
  Task<void> finish_sessions();

  const config::Config config_;
  const Log log_;
  obs::Registry metrics_;
  std::unique_ptr<net::Runtime> runtime_;
  std::vector<std::unique_ptr<source::Source>> sources_;
  std::unique_ptr<NearTier> near_;
  std::unique_ptr<engine::redis::Client> client_;  // null: the engine is embedded
  Clients clients_;
  std::unique_ptr<PubSub> pubsub_;
  std::unique_ptr<Invalidator> invalidator_;
  const engine::redis::RedisEngine::Options engine_options_;
  std::unique_ptr<engine::Engine> engine_;
  engine::redis::RedisEngine* shared_engine_ = nullptr;  // the same one, if it is shared
  std::unique_ptr<engine::PlainCommands> plain_;         // or, with client_:
  std::unique_ptr<Passed> passed_;
  std::unique_ptr<engine::Leases> leases_;
  std::unique_ptr<journal::Journal> journal_;  // null: no cache has write = "behind"
  std::unique_ptr<cache::Node> node_;
  std::unique_ptr<feed::Feeds> feeds_;  // null: none are configured
  SessionContext sessions_context_;
  AdminContext admin_context_;

  TaskGroup sessions_;
  TaskGroup admin_;
  TaskGroup upkeep_;
  TaskGroup engine_tasks_;  // of the engine's client and what uses it
  TaskGroup lifecycle_;     // shut_down() alone: it ends last, and nobody joins it

  std::vector<std::string> addresses_;
  std::string admin_address_;
  std::atomic<bool> ready_{false};
  std::atomic<bool> stopping_{false};
  std::thread thread_;  // runs loop 0
  std::mutex wait_mutex_;
};

}  // namespace larder::server
