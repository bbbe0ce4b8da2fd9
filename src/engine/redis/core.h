// What all parts of a client share: the options, the servers, the map of slots. Internal to the
// engine. Thread-safe.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/sync.h"
#include "base/task.h"
#include "engine/redis/client.h"
#include "engine/redis/connection.h"
#include "engine/redis/topology.h"

namespace larder::engine::redis {

// One server, as all loops see it.
struct Server {
  explicit Server(std::string where) : address(std::move(where)) {}
  const std::string address;
  std::atomic<bool> primary = true;  // as it said itself when it was connected to
  std::atomic<int> connections = 0;  // that are greeted
  std::atomic<int> failures = 0;     // attempts since the last connection
  std::atomic<DurationUs> latency_us = 0;
  std::atomic<TimeUs> unfit_until = 0;  // as a replica: it said that it cannot answer
  enum class Knows : std::uint8_t { unknown, no, yes };
  std::atomic<Knows> sharded_channels = Knows::unknown;  // of a cluster: SSUBSCRIBE

  bool up() const { return connections.load(std::memory_order_relaxed) > 0; }
  void set_version(const std::string& version) {
    MutexLock lock(mutex_);
    version_ = version;
  }
  std::string version() const {
    MutexLock lock(mutex_);
    return version_;
  }

 private:
  mutable Mutex mutex_;
  std::string version_ LARDER_GUARDED_BY(mutex_);
};

// The servers and the map, for all loops. A new map is a new object and a new version().
class Directory {
 public:
  explicit Directory(Map map) : topology_(std::move(map)) {}

  std::shared_ptr<const Map> map() const;
  std::uint64_t version() const { return version_.load(std::memory_order_acquire); }

  // As Topology's.
  bool learn(View view, TimeUs now);
  void moved(std::uint32_t slot, const std::string& address);
  void trouble();
  TimeUs ask_at() const;
  void asked(TimeUs now);
  // Is notified by the next trouble() or moved(), and by wake_all().
  std::shared_ptr<Waiters> troubled() const;
  // Is notified by the next new map, by nobody_answers(), and by wake_all().
  std::shared_ptr<Waiters> changed() const;
  void wake_all();

  // All servers that are known were asked, and none has answered; why the last one has not.
  void set_nobody_answers(bool nobody, std::string why = {});
  std::string why_nobody() const;
  bool nobody_answers() const { return nobody_answers_.load(std::memory_order_relaxed); }

  std::shared_ptr<Server> server(const std::string& address);
  std::vector<std::shared_ptr<Server>> servers() const;
  // Those outside of the map and without a connection.
  void forget_strangers();
  bool any_up() const;

  // Does every primary have SSUBSCRIBE? nullopt: none has said so yet.
  std::optional<bool> sharded_channels() const;

 private:
  void publish(std::uint64_t before, std::shared_ptr<Waiters>& changed) LARDER_REQUIRES(mutex_);

  mutable Mutex mutex_;
  Topology topology_ LARDER_GUARDED_BY(mutex_);
  std::map<std::string, std::shared_ptr<Server>, std::less<>> servers_ LARDER_GUARDED_BY(mutex_);
  std::shared_ptr<Waiters> troubled_ LARDER_GUARDED_BY(mutex_) = std::make_shared<Waiters>();
  std::shared_ptr<Waiters> changed_ LARDER_GUARDED_BY(mutex_) = std::make_shared<Waiters>();
  std::string why_nobody_ LARDER_GUARDED_BY(mutex_);
  std::atomic<std::uint64_t> version_ = 1;
  std::atomic<bool> nobody_answers_ = false;
};

struct Core {
  Core(net::Runtime& loops, Options given, std::shared_ptr<const net::TlsContext> tls, Map map)
      : runtime(loops),
        options(std::move(given)),
        dialer(loops, options.url, std::move(tls), options.max_reply_bytes),
        directory(std::move(map)) {}
  void log(std::string line) const {
    if (options.log) options.log(std::move(line));
  }

  net::Runtime& runtime;
  const Options options;
  const Dialer dialer;
  Directory directory;
  std::atomic<TaskGroup*> group = nullptr;  // of run(); null before it
  std::atomic<std::size_t> dedicated = 0;   // are given out
  // Null: nobody counts.
  obs::Counter* redirected = nullptr;
  obs::Counter* waited = nullptr;
};

inline constexpr const char* kShuttingDown = "the engine's client is shutting down";

// A seed of one's own: after a loss everybody reconnects at once, and is to draw other pauses.
std::uint64_t new_seed();

}  // namespace larder::engine::redis
