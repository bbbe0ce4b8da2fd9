// The last steps of the fill protocol of many keys: for EXPLAIN, and to explain what the auditor
// finds. A fixed table by hash, a few steps for each key.
//
// A newer key takes an older one's place; but steps that nothing has made interesting (tickets,
// loads, fills) leave the place to a key that was invalidated, or refused a fill, in the last ten
// minutes. Of each key the latest invalidation and the latest refusal are kept longest.
//
// Thread-safe. Cost of a step: a lock, and a look at eight events. Memory: about 2 MiB.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/hash.h"
#include "base/sync.h"
#include "policy/audit.h"

namespace larder::cache {

class RecentEvents {
 public:
  using Event = policy::ProtocolEvent;

  void note(Hash hash, const Event& event);

  // The number by which an event names a feed. There are few names; beyond 255 all have one number.
  std::uint8_t feed(std::string_view name);

  // In order of time.
  std::vector<Event> of(Hash hash) const;
  // The latest invalidation, or the latest refused fill.
  std::optional<Event> last_invalidation(Hash hash) const;
  std::optional<Event> last_refusal(Hash hash) const;

  // "invalidated by shop, change 12", "stored": without the time.
  std::string text(const Event& event) const;
  // "by shop, change 12", of an invalidation.
  std::string by(const Event& event) const;

 private:
  static constexpr std::size_t kEvents = 8;
  struct Slot {
    Hash hash = 0;
    TimeUs interesting_until = 0;
    std::size_t count = 0;
    std::array<Event, kEvents> events;  // unordered
  };
  struct Shard {
    mutable Mutex mutex;
    std::array<Slot, 512> slots LARDER_GUARDED_BY(mutex);
  };
  std::optional<Event> latest(Hash hash, bool (*wanted)(const Event&)) const;

  std::vector<std::unique_ptr<Shard>> shards_ = make_shards();
  static std::vector<std::unique_ptr<Shard>> make_shards();
  mutable Mutex names_mutex_;
  std::vector<std::string> names_ LARDER_GUARDED_BY(names_mutex_);
};

}  // namespace larder::cache
