// What a session keeps of plain commands that it has passed on to the engine (passing.cc).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/task.h"
#include "engine/redis/client.h"
#include "policy/fill_rules.h"
#include "server/commands.h"

namespace larder::server {

// One command in the air.
struct Flight {
  const CommandRow* row = nullptr;
  std::uint32_t slot = 0;
  std::string bytes;
  std::vector<std::string> keys;  // of a write that the near tier has to know of
  struct Near {
    std::string key;
    policy::Ticket ticket;
    std::size_t element = 0;  // of an MGET's answer
    std::int64_t life_ms = 0;
  };
  std::vector<Near> near;  // what may be kept of the answer
  TimeUs asked_at = 0;
  bool many = false;  // MGET
  Result<engine::redis::Answer> answer = fail(ErrorCode::internal, "not asked");
};

// A connection of one's own: WATCH, a selected database.
struct OwnLink {
  std::unique_ptr<engine::redis::Dedicated> link;
  bool watching = false;
  bool stale = false;  // of a WATCH that is over: UNWATCH has to be sent before the next one
  std::int64_t database = 0;
};

// One whose messages all go on to the client: channels, MONITOR.
struct Relay {
  std::unique_ptr<engine::redis::Dedicated> link;
  int confirmed = 0;  // answers to commands, as opposed to messages
  bool over = false;
  std::shared_ptr<Waiters> news;
};

}  // namespace larder::server
