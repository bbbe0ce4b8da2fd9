// What a session keeps of plain commands that it has passed on to the engine (passing.cc).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/hash.h"
#include "base/task.h"
#include "engine/redis/client.h"
#include "policy/fill_rules.h"
#include "server/commands.h"

namespace larder::server {

// In what order the commands in the air were sent: one that the engine refuses for a moment may be
// sent again only if no later one must not run before it. Keys are told apart by a few bits of
// their hash: too few make a command wait less, never too long.
class SentOrder {
 public:
  struct Place {
    std::uint32_t number = 0;
    std::uint32_t bucket = kAnyKey;
  };
  // Of the next command.
  Place add(std::span<const std::string_view> keys, bool writes) {
    Place place{++last_, kAnyKey};
    if (keys.size() == 1) place.bucket = static_cast<std::uint32_t>(hash_bytes(keys[0]) % kAnyKey);
    if (writes) last_write_ = last_writes_[place.bucket] = place.number;
    return place;
  }
  // Has a write been sent after it that may be of its keys?
  bool overtaken(Place place) const {
    if (place.bucket == kAnyKey) return last_write_ > place.number;
    return std::max(last_writes_[place.bucket], last_writes_[kAnyKey]) > place.number;
  }
  void clear() { *this = {}; }

 private:
  static constexpr std::uint32_t kAnyKey = 31;  // several keys, or none
  std::uint32_t last_ = 0;
  std::uint32_t last_write_ = 0;
  std::array<std::uint32_t, kAnyKey + 1> last_writes_{};
};

// One command in the air.
struct Flight {
  const CommandRow* row = nullptr;
  SentOrder::Place place;
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
