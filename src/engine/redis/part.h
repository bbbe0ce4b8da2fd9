// What a client has on one loop: the lanes to the servers, and what else must be ended there.
// Internal to the engine; used from its loop only.
#pragma once

#include <array>
#include <compare>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "engine/redis/core.h"
#include "engine/redis/dedicated.h"
#include "engine/redis/lane.h"

namespace larder::engine::redis {

class Part {
 public:
  Part(Core& core, Loop& loop) : core_(core), loop_(loop), random_(new_seed()) {}

  Loop& loop() { return loop_; }
  Random& random() { return random_; }
  const std::shared_ptr<HeldSet>& held() { return held_; }

  // The map as it is now; lanes to servers that left it are on their way out.
  const Map& map();

  // Null: shutting down. The lane connects as soon as it is made.
  std::shared_ptr<Lane> lane(const std::string& address, int protocol, bool readonly);
  // To map().shards[shard].primary; faster.
  std::shared_ptr<Lane> primary(std::size_t shard, int protocol);

  // Ends everything here.
  void stop();

 private:
  struct Key {
    std::string address;
    int protocol;
    bool readonly;
    auto operator<=>(const Key&) const = default;
  };

  Core& core_;
  Loop& loop_;
  Random random_;
  std::shared_ptr<const Map> map_;
  std::uint64_t version_ = 0;
  std::map<Key, std::shared_ptr<Lane>> lanes_;
  std::vector<std::weak_ptr<Lane>> retired_;
  std::array<std::vector<std::shared_ptr<Lane>>, 2> primaries_;  // by protocol - 2, by shard
  std::shared_ptr<HeldSet> held_ = std::make_shared<HeldSet>();
  bool stopped_ = false;
};

}  // namespace larder::engine::redis
