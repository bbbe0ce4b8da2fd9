// Single flight: of all who miss a key at once, one loads and the others wait for it.
//
// The rule that makes it safe beside writes: nobody joins a flight that began before a change that
// he may have seen. So an invalidation closes the key's flight: those in it get its answer, those
// who come later start a new one.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "base/hash.h"
#include "base/sync.h"
#include "base/task.h"
#include "engine/engine.h"

namespace larder::cache {

// One load under way. Shared by its leader and its waiters, of whom any may leave first.
template <class Outcome>
struct Flight {
  Flight(std::string key_text, Hash key_hash, std::uint64_t born)
      : key(std::move(key_text)), hash(key_hash), era(born) {}

  const std::string key;
  const Hash hash;
  const std::uint64_t era;            // of the table when it began; 0: it is not in it
  engine::Ticket ticket;              // the leader's
  bool reload = false;                // the source is to be asked although there is an entry
  bool newest = false;                // what a replica has said will not do
  TimeUs held_until = 0;              // an entry of the engine is to end later than this
  TimeUs deadline = 0;                // of the whole of it; 0: not set yet
  std::optional<DurationUs> life_us;  // of the entry, if its leader wants another than the cache's
  Outcome outcome;  // written by the leader before done.notify(), read by waiters after
  Waiters done;
};

// Thread-safe. Bounded by `limit` flights.
template <class Outcome>
class Flights {
 public:
  using Pointer = std::shared_ptr<Flight<Outcome>>;
  struct Joined {
    Pointer flight;      // null: the table is full
    bool leads = false;  // this caller must load, fill outcome, and finish()
  };

  explicit Flights(std::size_t limit) : limit_(limit) {}

  Joined join_or_start(std::string_view key, Hash hash) {
    const std::uint64_t era = era_.load(std::memory_order_acquire);
    Shard& shard = shard_of(hash);
    MutexLock lock(shard.mutex);
    const auto found = shard.flights.find(key);
    if (found != shard.flights.end()) {
      if (found->second->era == era) return {found->second, false};
      shard.flights.erase(found);
      size_.fetch_sub(1, std::memory_order_relaxed);
    }
    if (size_.load(std::memory_order_relaxed) >= limit_) return {};
    auto flight = std::make_shared<Flight<Outcome>>(std::string(key), hash, era);
    shard.flights.emplace(flight->key, flight);  // the map's key is a view into the flight
    size_.fetch_add(1, std::memory_order_relaxed);
    return {std::move(flight), true};
  }

  // A flight that nobody joins; its caller leads it.
  Joined start_alone(std::string_view key, Hash hash) {
    if (size_.fetch_add(1, std::memory_order_relaxed) >= limit_) {
      size_.fetch_sub(1, std::memory_order_relaxed);
      return {};
    }
    return {std::make_shared<Flight<Outcome>>(std::string(key), hash, kAlone), true};
  }

  // Nobody joins it any more, and its waiters wake. The leader calls it exactly once.
  void finish(const Pointer& flight) {
    if (flight->era == kAlone) {
      size_.fetch_sub(1, std::memory_order_relaxed);
    } else {
      Shard& shard = shard_of(flight->hash);
      MutexLock lock(shard.mutex);
      const auto found = shard.flights.find(flight->key);
      if (found != shard.flights.end() && found->second == flight) {
        shard.flights.erase(found);
        size_.fetch_sub(1, std::memory_order_relaxed);
      }
    }
    flight->done.notify();
  }

  // The key has changed: whoever comes from now on starts a new flight.
  void close(std::string_view key, Hash hash) {
    Shard& shard = shard_of(hash);
    MutexLock lock(shard.mutex);
    const auto found = shard.flights.find(key);
    if (found == shard.flights.end()) return;
    shard.flights.erase(found);
    size_.fetch_sub(1, std::memory_order_relaxed);
  }

  // Any key may have changed.
  void close_all() { era_.fetch_add(1, std::memory_order_acq_rel); }

  bool contains(std::string_view key, Hash hash) const {
    Shard& shard = shard_of(hash);
    MutexLock lock(shard.mutex);
    return shard.flights.contains(key);
  }

  std::size_t size() const { return size_.load(std::memory_order_relaxed); }

 private:
  struct alignas(64) Shard {
    Mutex mutex;
    std::unordered_map<std::string_view, Pointer> flights LARDER_GUARDED_BY(mutex);
  };
  Shard& shard_of(Hash hash) const { return shards_[(hash >> 32) % shards_.size()]; }

  static constexpr std::uint64_t kAlone = 0;  // no era of the table

  const std::size_t limit_;
  std::atomic<std::size_t> size_{0};
  std::atomic<std::uint64_t> era_{1};
  mutable std::array<Shard, 16> shards_;
};

}  // namespace larder::cache
