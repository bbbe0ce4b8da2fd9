// Who is asked about the deployment, and when: the I/O around Topology. Internal to the engine.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "base/random.h"
#include "engine/redis/core.h"
#include "engine/redis/dedicated.h"

namespace larder::engine::redis {

// Belongs to one loop.
class Discovery {
 public:
  Discovery(Core& core, std::shared_ptr<HeldSet> held)
      : core_(core), held_(std::move(held)), random_(new_seed()) {}

  // Until the group stops.
  Task<void> run(TaskGroup& group);
  // Sentinels announce a new primary: listens to one of them. Until the group stops.
  Task<void> listen(TaskGroup& group);

 private:
  struct Round {
    std::size_t left = 0;  // who has not answered
    std::size_t answers = 0;
    std::string why;  // somebody has not
    Waiters done;
  };

  std::vector<std::string> candidates();
  Task<void> ask(std::string address, std::shared_ptr<Round> round);
  Task<Result<View>> ask_cluster(std::string address, TimeUs deadline);
  Task<Result<View>> ask_sentinel(std::string address, TimeUs deadline);
  Task<std::string> listen_to(std::string address, TaskGroup& group);

  Core& core_;
  std::shared_ptr<HeldSet> held_;
  Random random_;
  std::vector<std::string> sentinels_;  // that others have named
  std::string complaint_;               // was logged last
};

}  // namespace larder::engine::redis
