// One command on its way: where it is sent next, and what is done about what came of it. Decides,
// and tells the directory what it learnt; sends nothing. Internal to the engine.
#pragma once

#include <memory>
#include <string>

#include "engine/redis/core.h"
#include "engine/redis/part.h"
#include "resilience/backoff.h"

namespace larder::engine::redis {

class Trip {
 public:
  Trip(Core& core, Route route) : core_(core), route_(std::move(route)) {}

  struct Target {
    std::string address;  // "" = nobody is known: error() says so
    bool primary = true;  // it is to be one
    bool readonly = false;
    bool asking = false;
    std::uint16_t shard = Map::kNobody;  // whose primary it is
    std::shared_ptr<Lane> lane;          // of aim(); null: shutting down
  };
  // Where to now.
  Target target(Part& part);
  // The same with its lane.
  Target aim(Part& part);

  enum class Step : std::uint8_t {
    done,   // the answer is the caller's
    again,  // at once, by target()
    pause,  // likewise, after pause_us() or when the map has changed
    fail,   // with error()
  };
  // After an attempt without a connection; `why` is what its lane said.
  Step unreachable(const Target& target, Error why);
  // A connection to a server that is not what it should be.
  Step wrong_role(const Target& target);
  Step judge(const Target& target, Fate fate, std::string& reply);

  DurationUs pause_us(Random& random) {
    if (core_.waited) core_.waited->add();
    return backoff_.next(random);
  }
  const Error& error() const { return error_; }
  // The server's last refusal, for when time has run out; "" = none.
  std::string& refused() { return refused_; }

 private:
  Step refusal(const Target& target, const Refusal& refusal, std::string& reply);
  std::string choose_replica(Part& part, const Shard& shard);
  std::uint16_t choose_shard(const Map& map) const;

  Core& core_;
  const Route route_;
  resilience::Backoff backoff_{{.first_us = 2 * kMillisecond, .most_us = 100 * kMillisecond}};
  std::string redirect_;  // ASK: go there, once
  bool replica_refused_ = false;
  int hops_ = 0;  // since the last pause
  Error error_{ErrorCode::engine_down, "no server is known", "redis"};
  std::string refused_;
};

}  // namespace larder::engine::redis
