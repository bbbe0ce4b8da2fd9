#include "server/invalidator.h"

#include "wire/resp.h"

namespace larder::server {
namespace {

constexpr std::size_t kExpireAtOnce = 1'000;

void write_keys(wire::Writer& writer, const Tracking::Message& message) {
  if (message.keys.empty()) {
    writer.null();
    return;
  }
  writer.array(message.keys.size());
  for (const std::string& key : message.keys) writer.bulk(key);
}

}  // namespace

void Invalidator::changed(std::span<const std::string_view> keys, Tracking::Client by) {
  if (!table_.active()) return;
  Tracking::Messages messages;
  table_.changed(keys, by, messages);
  send(messages);
}

void Invalidator::everything(Tracking::Client by) {
  if (!table_.active()) return;
  Tracking::Messages messages;
  table_.everything(by, messages);
  send(messages);
}

bool Invalidator::expire(TimeUs now) {
  Tracking::Messages messages;
  const bool more = table_.expire(now, kExpireAtOnce, messages);
  send(messages);
  return more;
}

void Invalidator::tell(Tracking::Client client, Tracking::Client redirect, std::string_view key) {
  send(Tracking::Message{client, redirect, {std::string(key)}});
}

void Invalidator::send(const Tracking::Messages& messages) {
  for (const Tracking::Message& message : messages) send(message);
}

void Invalidator::send(const Tracking::Message& message) {
  const auto peer = clients_.find(message.redirect != 0 ? message.redirect : message.client);
  if (peer == nullptr) {
    if (message.redirect != 0) redirect_is_gone(message);
    return;
  }
  std::string bytes;
  if (peer->protocol.load(std::memory_order_relaxed) == 3) {
    wire::Writer writer(bytes, 3);
    writer.push(2);
    writer.bulk("invalidate");
    write_keys(writer, message);
    if (!peer->push(bytes)) dropped_.add();
  } else if (message.redirect != 0) {
    wire::Writer writer(bytes, 2);
    writer.push(3);
    writer.bulk("message");
    writer.bulk(kInvalidations);
    write_keys(writer, message);
    if (!pubsub_.push(kInvalidations, *peer, bytes)) dropped_.add();
  }
  // RESP2 without a redirection: there is no way to tell it, as on Redis.
}

void Invalidator::redirect_is_gone(const Tracking::Message& message) {
  const auto peer = clients_.find(message.client);
  if (peer == nullptr) return;
  peer->redirect_broken.store(true, std::memory_order_relaxed);
  if (peer->protocol.load(std::memory_order_relaxed) != 3) return;
  std::string bytes;
  wire::Writer writer(bytes, 3);
  writer.push(2);
  writer.bulk("tracking-redir-broken");
  writer.integer(static_cast<std::int64_t>(message.redirect));
  if (!peer->push(bytes)) dropped_.add();
}

}  // namespace larder::server
