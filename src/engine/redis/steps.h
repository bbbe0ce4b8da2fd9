// Runs steps of the protocol: their scripts are known by hash, so a step costs one EVALSHA.
// Thread-safe. Internal to the engine.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/redis/client.h"
#include "engine/redis/protocol.h"

namespace larder::engine::redis {

// For negative controls in tests only: a script's text with a rule taken out.
using StepEditor = std::function<std::string(std::string_view script)>;

class Steps {
 public:
  Steps(Client& client, const StepEditor& edit);

  // Errors: those of Client::eval; engine_down if the server answers with an error.
  Task<Result<wire::Reply>> run(Step step, bool repeatable, TimeUs deadline) const;

 private:
  Client& client_;
  std::vector<std::string> texts_;                               // of scripts_
  std::vector<std::pair<const char*, Client::Script>> scripts_;  // by the text's address
};

}  // namespace larder::engine::redis
