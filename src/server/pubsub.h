// Channels: who listens to what, and PUBLISH to them, over all loops of the program.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/hash.h"
#include "base/sync.h"
#include "obs/metrics.h"
#include "server/clients.h"

namespace larder::server {

enum class ChannelKind : std::uint8_t { channel, pattern, shard };
inline constexpr std::size_t kChannelKinds = 3;

// Thread-safe. Every subscriber of a channel gets its messages in one and the same order.
class PubSub {
 public:
  // `dropped` counts subscribers that were closed because they did not take their messages.
  explicit PubSub(obs::Counter& dropped) : dropped_(dropped) {}

  void subscribe(ChannelKind kind, const std::string& name, std::shared_ptr<Peer> peer);
  void unsubscribe(ChannelKind kind, const std::string& name, const Peer& peer);

  // To the subscribers of the channel and of every pattern that matches it; `shard` reaches only
  // SSUBSCRIBE's. Returns how many messages were sent.
  // Cost: one post for each subscriber that has nothing under way, and one match for each pattern.
  std::int64_t publish(std::string_view channel, std::string_view message, bool shard);

  // To one peer, bytes that are a whole message, if it listens to the channel at this moment: one
  // that has left it takes whatever comes for an answer. False: the peer gets closed (Peer::push).
  bool push(std::string_view channel, Peer& peer, std::string_view bytes);

  // The channels (or shard channels) that have subscribers and match; all if `pattern` is empty.
  std::vector<std::string> names(ChannelKind kind, std::string_view pattern) const;
  std::size_t subscribers(ChannelKind kind, std::string_view name) const;
  std::size_t count(ChannelKind kind) const;  // names that have subscribers

 private:
  struct TextHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return hash_bytes(text); }
  };
  using Peers = std::vector<std::shared_ptr<Peer>>;
  using Names = std::unordered_map<std::string, Peers, TextHash, std::equal_to<>>;

  const Names& of(ChannelKind kind) const LARDER_REQUIRES(mutex_) {
    return names_[static_cast<std::size_t>(kind)];
  }

  obs::Counter& dropped_;
  mutable Mutex mutex_;
  std::array<Names, kChannelKinds> names_ LARDER_GUARDED_BY(mutex_);
};

}  // namespace larder::server
