// A connection for one client that is in a state (Client::dedicate). Internal to the engine; each
// belongs to one loop.
#pragma once

#include <memory>
#include <set>

#include "engine/redis/connection.h"
#include "engine/redis/core.h"

namespace larder::engine::redis {

// Something that run() must end, on its loop, before it returns.
class Held {
 public:
  virtual ~Held() = default;
  virtual void stop() = 0;
};

// Of one loop: what is to be ended.
using HeldSet = std::set<Held*>;

// It reads ahead up to a bound, so that its end is noticed while nobody receives. `seat` is given
// back at the end.
Result<std::unique_ptr<Dedicated>> make_dedicated(Core& core, Peer peer,
                                                  std::shared_ptr<HeldSet> held,
                                                  std::shared_ptr<void> seat);

}  // namespace larder::engine::redis
