// What keeps one connection to one server, for one loop and protocol: connects, connects again with
// backoff, pings. Internal to the engine.
#pragma once

#include <memory>
#include <string>

#include "base/error.h"
#include "base/random.h"
#include "base/task.h"
#include "engine/redis/connection.h"
#include "engine/redis/core.h"
#include "resilience/backoff.h"

namespace larder::engine::redis {

// A silent server that owes answers is given up after so many probes.
inline constexpr int kSilentProbes = 5;

// Belongs to one loop.
class Lane : public std::enable_shared_from_this<Lane> {
 public:
  Lane(Core& core, std::shared_ptr<Server> server, int protocol, bool readonly);

  // Until stop(). Spawned once.
  static Task<void> run(std::shared_ptr<Lane> self);

  // The connection, or why there is none. Waits for the attempt that is under way, no longer.
  Task<Result<std::shared_ptr<Connection>>> connection(TimeUs deadline);

  // Closes. What is under way ends with engine_down, who waits for a connection with cancelled.
  void stop();
  // The server left the map: closes when nothing is under way any more, and does not connect again.
  // Who waits for a connection gets engine_down, for he may find another server.
  void retire();
  // Closes the connection that there is, so that the next one shows what the server is now.
  void reconnect();

  Server& server() { return *server_; }
  bool stopped() const { return stopped_; }

 private:
  Task<void> serve(Peer peer);
  void connected(const Peer& peer);
  void lost(const std::string& why);
  void begin_attempt();
  void end_attempt();
  void tick();
  void leave();
  void end(Error why);

  Core& core_;
  std::shared_ptr<Server> server_;
  const int protocol_;
  const bool readonly_;
  Random random_;
  resilience::Backoff backoff_;
  std::shared_ptr<Connection> connection_;  // null: none now
  std::shared_ptr<Waiters> attempt_;        // is under way; null: none
  std::shared_ptr<Waiters> stopping_ = std::make_shared<Waiters>();
  Error last_error_;
  TimerId timer_ = 0;
  bool stopped_ = false;
  bool retired_ = false;
};

}  // namespace larder::engine::redis
