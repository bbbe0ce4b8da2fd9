// Learns of every change of keys on the engine, whoever makes it: CLIENT TRACKING in broadcasting
// mode, one connection to each primary, held for as long as it is wanted.
//
// Keys that expire or are evicted count as changed. Whether the connections still tell everything
// is known by pings, each a fifth of the bound after the last: what has been answered was in order.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/sync.h"
#include "base/task.h"
#include "engine/redis/client.h"

namespace larder::engine::redis {

class KeyWatch {
 public:
  // Called on the loop of run().
  class Listener {
   public:
    virtual ~Listener() = default;
    virtual void on_changed(std::span<const std::string_view> keys) = 0;
    // Everything may have changed: a flush. Between on_up() and on_down().
    virtual void on_flush() = 0;
    // From here on every change will be told.
    virtual void on_up() = 0;
    // From here on changes may be missed, and may have been for the bound.
    virtual void on_down() = 0;
  };
  struct Options {
    std::vector<std::string> prefixes;  // none: every key
    DurationUs bound_us = 1 * kSecond;
    std::function<bool()> wanted;  // is anybody interested? Empty: always. Any thread
    std::function<void(std::string)> log;
  };
  // Both outlive it.
  KeyWatch(Client& client, Options options, Listener& listener)
      : client_(client), options_(std::move(options)), listener_(listener) {}

  // Until the group stops. Spawned once into a group that is joined before this goes away.
  Task<void> run(TaskGroup& group);

  bool up() const { return up_.load(std::memory_order_acquire); }
  // Waits until everything is told. From any loop. Errors: timeout.
  Task<Result<void>> wait_up(TimeUs deadline);

 private:
  // One primary that is watched; shared by the coroutine that does it.
  struct Post {
    std::string address;
    bool up = false;
    bool over = false;
  };
  Task<void> watch(TaskGroup& group, std::shared_ptr<Post> post);
  Task<std::string> listen(TaskGroup& group, std::shared_ptr<Post> post);
  void hear(std::string_view push);
  std::set<std::string> wanted_addresses() const;
  void look(TaskGroup& group);
  void judge();

  Client& client_;
  const Options options_;
  Listener& listener_;
  std::vector<std::shared_ptr<Post>> posts_;  // on the loop of run()
  std::atomic<bool> up_{false};
  Mutex mutex_;
  std::shared_ptr<Waiters> changed_ LARDER_GUARDED_BY(mutex_) = std::make_shared<Waiters>();
};

}  // namespace larder::engine::redis
