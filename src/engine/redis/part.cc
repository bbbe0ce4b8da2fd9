#include "engine/redis/part.h"

namespace larder::engine::redis {

const Map& Part::map() {
  const std::uint64_t version = core_.directory.version();
  if (map_ && version == version_) return *map_;
  version_ = version;
  map_ = core_.directory.map();
  for (auto& lanes : primaries_) lanes.assign(map_->shards.size(), nullptr);
  std::erase_if(retired_, [](const auto& lane) { return lane.expired(); });
  std::erase_if(lanes_, [this](const auto& entry) {
    if (map_->has(entry.first.address)) return false;
    entry.second->retire();
    retired_.push_back(entry.second);
    return true;
  });
  return *map_;
}

std::shared_ptr<Lane> Part::lane(const std::string& address, int protocol, bool readonly) {
  TaskGroup* const group = core_.group.load();
  if (stopped_ || !group) return nullptr;
  std::shared_ptr<Lane>& lane =
      lanes_[{.address = address, .protocol = protocol, .readonly = readonly}];
  if (!lane || lane->stopped()) {
    lane = std::make_shared<Lane>(core_, core_.directory.server(address), protocol, readonly);
    const std::shared_ptr<Lane> made = lane;
    if (!group->spawn(Lane::run(made))) made->stop();
    return made;
  }
  return lane;
}

std::shared_ptr<Lane> Part::primary(std::size_t shard, int protocol) {
  std::vector<std::shared_ptr<Lane>>& lanes = primaries_[protocol == 2 ? 0 : 1];
  if (!lanes[shard] || lanes[shard]->stopped()) {
    lanes[shard] = lane(map_->shards[shard].primary, protocol == 2 ? 2 : 3, false);
  }
  return lanes[shard];
}

void Part::stop() {
  stopped_ = true;
  for (const auto& [key, lane] : lanes_) lane->stop();
  for (const auto& retired : retired_) {
    if (const std::shared_ptr<Lane> lane = retired.lock()) lane->stop();
  }
  const HeldSet held = *held_;
  for (Held* const one : held) one->stop();
}

}  // namespace larder::engine::redis
