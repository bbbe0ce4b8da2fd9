// Where a command goes: which server has which slot, what a refusal means. Without I/O, clock or
// threads. Internal to the engine.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/random.h"
#include "engine/redis/url.h"
#include "wire/resp.h"

namespace larder::engine::redis {

inline constexpr std::uint32_t kSlots = 16384;

// A primary with its replicas, by address.
struct Shard {
  std::string primary;
  std::vector<std::string> replicas;
  friend bool operator==(const Shard&, const Shard&) = default;
};

// Who has which slot. Immutable once it is shared.
struct Map {
  static constexpr std::uint16_t kNobody = UINT16_MAX;
  std::vector<Shard> shards;
  std::vector<std::uint16_t> owner;  // of each slot; empty: shards[0] has all

  // kNobody: not known, or nobody has it.
  std::uint16_t shard_of(std::uint32_t slot) const {
    if (shards.empty()) return kNobody;
    return owner.empty() ? 0 : owner[slot];
  }
  bool complete() const;
  bool has(std::string_view address) const;
  friend bool operator==(const Map&, const Map&) = default;
};

// `map` after the news that `address` is the primary of `slot`.
Map with_moved(Map map, std::uint32_t slot, const std::string& address);

// What one server of a deployment says of the whole.
struct View {
  Map map;
  std::uint64_t epoch = 0;             // grows with every failover and every move of slots
  std::vector<std::string> sentinels;  // that a Sentinel knows besides itself
};

// Answers to CLUSTER SLOTS and CLUSTER INFO. `from`: who says so; an empty host is that one's.
// Errors (engine_down) say what is wrong with them.
Result<View> cluster_view(const wire::Reply& slots, const wire::Reply& info, std::string_view from);

// Answers to SENTINEL GET-MASTER-ADDR-BY-NAME, MASTER, REPLICAS and SENTINELS of one name. The
// address is that of the first: during a failover MASTER has the new epoch with the old address.
// Replicas that are down are left out.
Result<View> sentinel_view(const wire::Reply& address, const wire::Reply& master,
                           const wire::Reply& replicas, const wire::Reply& sentinels);

// What is known of the deployment, and when to ask again. Not thread-safe.
class Topology {
 public:
  struct Timing {
    DurationUs period_us = 5 * kSecond;       // asked without a reason
    DurationUs first_us = 20 * kMillisecond;  // between questions that have one: at least this,
    DurationUs most_us = 1 * kSecond;         // doubled each time while nothing changes
    DurationUs insist_us = 30 * kSecond;      // see learn()
  };
  explicit Topology(Map map, const Timing& timing);
  explicit Topology(Map map) : Topology(std::move(map), Timing()) {}

  const std::shared_ptr<const Map>& map() const { return map_; }
  std::uint64_t version() const { return version_; }  // of the map

  // A view from a server. One whose epoch is below what is known comes from a server that was cut
  // off, and is refused: it would send writes to a primary that is none any more. After insist_us
  // without any other it is believed: this is another deployment behind the same addresses.
  bool learn(View view, TimeUs now);
  // A server says that `address` is the primary of `slot`. A reason to ask.
  void moved(std::uint32_t slot, const std::string& address);
  // A lost connection, a refusal: a reason to ask.
  void trouble() { trouble_ = true; }

  // When to ask next; `asked` says that it was done.
  TimeUs ask_at() const;
  void asked(TimeUs now);

 private:
  void set(Map map);

  Timing timing_;
  std::shared_ptr<const Map> map_;
  std::uint64_t version_ = 1;
  std::uint64_t epoch_ = 0;
  TimeUs agreed_at_ = 0;  // when a view was taken last
  TimeUs asked_at_ = 0;   // 0: never
  DurationUs pause_us_ = 0;
  bool trouble_ = false;
};

// What an error says about the way, rather than about the command.
struct Refusal {
  enum class Kind : std::uint8_t {
    none,          // about the command: the caller's
    moved,         // `address` has `slot` now
    ask,           // ask `address` this time, behind ASKING
    try_again,     // the slot is on its way
    cluster_down,  // no quorum, or nobody has the slot
    loading,       // the server reads its data
    master_down,   // a replica that has lost its primary
    read_only,     // a replica was asked to write
  };
  Kind kind = Kind::none;
  std::uint32_t slot = 0;
  std::string address;
};

// `error`: without '-'. `from`: who says so; an address without a host is on that host.
Refusal parse_refusal(std::string_view error, std::string_view from);

// What is known of a server when one of several is to be chosen.
struct Health {
  bool up = false;
  DurationUs latency_us = 0;  // smoothed; 0: unknown
};

// One of those that are up, by the power of two choices: of two drawn at random the nearer one, so
// that neither one server gets everything nor a far one its full share. nullopt: none is up.
std::optional<std::size_t> choose(std::span<const Health> candidates, Random& random);

}  // namespace larder::engine::redis
