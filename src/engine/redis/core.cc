#include "engine/redis/core.h"

#include <algorithm>

namespace larder::engine::redis {

std::uint64_t new_seed() {
  static std::atomic<std::uint64_t> count = 0;
  return mix64(static_cast<std::uint64_t>(monotonic_now_us()) + mix64(++count));
}

std::shared_ptr<const Map> Directory::map() const {
  MutexLock lock(mutex_);
  return topology_.map();
}

// After a change of topology_: `changed` is to be notified, without the lock.
void Directory::publish(std::uint64_t before, std::shared_ptr<Waiters>& changed) {
  if (topology_.version() == before) return;
  version_.store(topology_.version(), std::memory_order_release);
  changed = std::exchange(changed_, std::make_shared<Waiters>());
}

bool Directory::learn(View view, TimeUs now) {
  std::shared_ptr<Waiters> changed;
  bool taken = false;
  {
    MutexLock lock(mutex_);
    const std::uint64_t before = topology_.version();
    taken = topology_.learn(std::move(view), now);
    publish(before, changed);
  }
  if (changed) changed->notify();
  return taken;
}

void Directory::moved(std::uint32_t slot, const std::string& address) {
  std::shared_ptr<Waiters> changed;
  std::shared_ptr<Waiters> troubled;
  {
    MutexLock lock(mutex_);
    const std::uint64_t before = topology_.version();
    topology_.moved(slot, address);
    publish(before, changed);
    troubled = std::exchange(troubled_, std::make_shared<Waiters>());
  }
  troubled->notify();
  if (changed) changed->notify();
}

void Directory::trouble() {
  std::shared_ptr<Waiters> troubled;
  {
    MutexLock lock(mutex_);
    topology_.trouble();
    troubled = std::exchange(troubled_, std::make_shared<Waiters>());
  }
  troubled->notify();
}

TimeUs Directory::ask_at() const {
  MutexLock lock(mutex_);
  return topology_.ask_at();
}

void Directory::asked(TimeUs now) {
  MutexLock lock(mutex_);
  topology_.asked(now);
}

std::shared_ptr<Waiters> Directory::troubled() const {
  MutexLock lock(mutex_);
  return troubled_;
}

std::shared_ptr<Waiters> Directory::changed() const {
  MutexLock lock(mutex_);
  return changed_;
}

void Directory::wake_all() {
  std::shared_ptr<Waiters> troubled;
  std::shared_ptr<Waiters> changed;
  {
    MutexLock lock(mutex_);
    troubled = std::exchange(troubled_, std::make_shared<Waiters>());
    changed = std::exchange(changed_, std::make_shared<Waiters>());
  }
  troubled->notify();
  changed->notify();
}

std::string Directory::why_nobody() const {
  MutexLock lock(mutex_);
  return why_nobody_;
}

void Directory::set_nobody_answers(bool nobody, std::string why) {
  {
    MutexLock lock(mutex_);
    why_nobody_ = std::move(why);
  }
  if (nobody_answers_.exchange(nobody) == nobody || !nobody) return;
  std::shared_ptr<Waiters> changed;
  {
    MutexLock lock(mutex_);
    changed = std::exchange(changed_, std::make_shared<Waiters>());
  }
  changed->notify();
}

std::shared_ptr<Server> Directory::server(const std::string& address) {
  MutexLock lock(mutex_);
  std::shared_ptr<Server>& server = servers_[address];
  if (!server) server = std::make_shared<Server>(address);
  return server;
}

std::vector<std::shared_ptr<Server>> Directory::servers() const {
  MutexLock lock(mutex_);
  std::vector<std::shared_ptr<Server>> all;
  all.reserve(servers_.size());
  for (const auto& [address, server] : servers_) all.push_back(server);
  return all;
}

void Directory::forget_strangers() {
  MutexLock lock(mutex_);
  const Map& map = *topology_.map();
  std::erase_if(servers_,
                [&](const auto& entry) { return !map.has(entry.first) && !entry.second->up(); });
}

bool Directory::any_up() const {
  MutexLock lock(mutex_);
  return std::ranges::any_of(servers_, [](const auto& entry) { return entry.second->up(); });
}

std::optional<bool> Directory::sharded_channels() const {
  MutexLock lock(mutex_);
  std::optional<bool> all;
  for (const Shard& shard : topology_.map()->shards) {
    const auto found = servers_.find(shard.primary);
    if (found == servers_.end()) continue;
    const Server::Knows knows = found->second->sharded_channels.load();
    if (knows == Server::Knows::no) return false;
    if (knows == Server::Knows::yes) all = true;
  }
  return all;
}

}  // namespace larder::engine::redis
