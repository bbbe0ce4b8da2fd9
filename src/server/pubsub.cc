#include "server/pubsub.h"

#include "engine/embedded/glob.h"
#include "wire/resp.h"

namespace larder::server {
namespace {

// One message, encoded at most once for each version of the protocol.
class Message {
 public:
  Message(std::string_view kind, std::string_view pattern, std::string_view channel,
          std::string_view body)
      : kind_(kind), pattern_(pattern), channel_(channel), body_(body) {}

  std::string_view bytes(int protocol) {
    std::string& out = encoded_[protocol == 3 ? 1 : 0];
    if (!out.empty()) return out;
    wire::Writer writer(out, protocol);
    const bool by_pattern = kind_ == "pmessage";
    writer.push(by_pattern ? 4 : 3);
    writer.bulk(kind_);
    if (by_pattern) writer.bulk(pattern_);
    writer.bulk(channel_);
    writer.bulk(body_);
    return out;
  }

 private:
  std::string_view kind_;
  std::string_view pattern_;
  std::string_view channel_;
  std::string_view body_;
  std::array<std::string, 2> encoded_;
};

std::int64_t send(const std::vector<std::shared_ptr<Peer>>& peers, Message& message,
                  obs::Counter& dropped) {
  for (const auto& peer : peers)
    if (!peer->push(message.bytes(peer->protocol.load(std::memory_order_relaxed)))) dropped.add();
  return static_cast<std::int64_t>(peers.size());
}

}  // namespace

void PubSub::subscribe(ChannelKind kind, const std::string& name, std::shared_ptr<Peer> peer) {
  MutexLock lock(mutex_);
  names_[static_cast<std::size_t>(kind)][name].push_back(std::move(peer));
}

void PubSub::unsubscribe(ChannelKind kind, const std::string& name, const Peer& peer) {
  MutexLock lock(mutex_);
  Names& names = names_[static_cast<std::size_t>(kind)];
  const auto found = names.find(name);
  if (found == names.end()) return;
  std::erase_if(found->second, [&](const auto& other) { return other.get() == &peer; });
  if (found->second.empty()) names.erase(found);
}

std::int64_t PubSub::publish(std::string_view channel, std::string_view message, bool shard) {
  MutexLock lock(mutex_);
  std::int64_t sent = 0;
  const Names& exact = of(shard ? ChannelKind::shard : ChannelKind::channel);
  if (const auto found = exact.find(channel); found != exact.end()) {
    Message encoded(shard ? "smessage" : "message", {}, channel, message);
    sent += send(found->second, encoded, dropped_);
  }
  if (shard) return sent;
  for (const auto& [pattern, peers] : of(ChannelKind::pattern)) {
    if (!engine::glob_match(pattern, channel)) continue;
    Message encoded("pmessage", pattern, channel, message);
    sent += send(peers, encoded, dropped_);
  }
  return sent;
}

bool PubSub::push(std::string_view channel, Peer& peer, std::string_view bytes) {
  MutexLock lock(mutex_);
  const Names& exact = of(ChannelKind::channel);
  const auto found = exact.find(channel);
  if (found == exact.end() ||
      std::ranges::none_of(found->second, [&](const auto& other) { return other.get() == &peer; }))
    return true;
  return peer.push(bytes);
}

std::vector<std::string> PubSub::names(ChannelKind kind, std::string_view pattern) const {
  MutexLock lock(mutex_);
  std::vector<std::string> found;
  for (const auto& [name, peers] : of(kind))
    if (pattern.empty() || engine::glob_match(pattern, name)) found.push_back(name);
  return found;
}

std::size_t PubSub::subscribers(ChannelKind kind, std::string_view name) const {
  MutexLock lock(mutex_);
  const auto found = of(kind).find(name);
  return found == of(kind).end() ? 0 : found->second.size();
}

std::size_t PubSub::count(ChannelKind kind) const {
  MutexLock lock(mutex_);
  return of(kind).size();
}

}  // namespace larder::server
