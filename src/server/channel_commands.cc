// SUBSCRIBE, PUBLISH and their kin.
#include <fmt/format.h>

#include "server/session.h"

namespace larder::server {
namespace {

constexpr std::string_view kSubscribe[] = {"subscribe", "psubscribe", "ssubscribe"};
constexpr std::string_view kUnsubscribe[] = {"unsubscribe", "punsubscribe", "sunsubscribe"};

}  // namespace

// Of "subscribe", "punsubscribe" and the like.
ChannelKind Session::channel_kind(std::string_view command) {
  const bool leaves = command.size() > 10;
  switch (command[0] | 0x20) {
    case 'p': return ChannelKind::pattern;
    case 's':
      return !leaves && (command[1] | 0x20) == 'u' ? ChannelKind::channel : ChannelKind::shard;
    default: return ChannelKind::channel;
  }
}

// What (un)subscribe answers: channels and patterns together, shard channels by themselves.
std::size_t Session::subscription_count(ChannelKind kind) const {
  const auto size = [&](ChannelKind k) {
    return subscriptions_[static_cast<std::size_t>(k)].size();
  };
  if (kind == ChannelKind::shard) return size(kind);
  return size(ChannelKind::channel) + size(ChannelKind::pattern);
}

void Session::confirm(std::string_view what, std::optional<std::string_view> name,
                      ChannelKind kind) {
  writer_.push(3);
  writer_.bulk(what);
  if (name)
    writer_.bulk(*name);
  else
    writer_.null();
  writer_.integer(static_cast<std::int64_t>(subscription_count(kind)));
}

void Session::subscribe(ChannelKind kind, Args args) {
  auto& names = subscriptions_[static_cast<std::size_t>(kind)];
  const std::string_view what = kSubscribe[static_cast<std::size_t>(kind)];
  for (const std::string_view name : args.subspan(1)) {
    if (!names.contains(name)) {
      if (name.size() > context_.limits.channel_bytes) {
        error(fmt::format("ERR a channel's name has at most {} bytes",
                          context_.limits.channel_bytes));
        return;
      }
      if (names.size() >= context_.limits.subscriptions) {
        error(fmt::format("LARDER_OVERLOADED at most {} channels a client",
                          context_.limits.subscriptions));
        return;
      }
      const auto added = names.emplace(name).first;
      context_.pubsub->subscribe(kind, *added, peer_);
    }
    confirm(what, name, kind);
  }
}

// What was published before an unsubscribe comes before its confirmation: a RESP2 client that has
// read that takes whatever follows for an answer.
void Session::take_pushes() {
  pushes_waiting_ = false;
  const std::size_t before = out_.size();
  peer_->take_pushes(out_);
  peer_->sent(out_.size() - before);
}

void Session::unsubscribe(ChannelKind kind, Args args) {
  auto& names = subscriptions_[static_cast<std::size_t>(kind)];
  const std::string_view what = kUnsubscribe[static_cast<std::size_t>(kind)];
  if (args.size() > 1) {
    for (const std::string_view name : args.subspan(1)) {
      if (const auto found = names.find(name); found != names.end()) {
        context_.pubsub->unsubscribe(kind, *found, *peer_);
        names.erase(found);
        take_pushes();
      }
      confirm(what, name, kind);
    }
    return;
  }
  if (names.empty()) confirm(what, std::nullopt, kind);
  while (!names.empty()) {
    const std::string name = std::move(names.extract(names.begin()).value());
    context_.pubsub->unsubscribe(kind, name, *peer_);
    take_pushes();
    confirm(what, name, kind);
  }
}

void Session::unsubscribe_all() {
  end_relay();
  for (std::size_t kind = 0; kind < kChannelKinds; ++kind) {
    for (const std::string& name : subscriptions_[kind])
      context_.pubsub->unsubscribe(static_cast<ChannelKind>(kind), name, *peer_);
    subscriptions_[kind].clear();
  }
  take_pushes();
  note_subscriptions();
}

void Session::note_subscriptions() {
  const auto size = [&](ChannelKind kind) {
    return static_cast<std::uint32_t>(subscriptions_[static_cast<std::size_t>(kind)].size());
  };
  peer_->channels.store(size(ChannelKind::channel), std::memory_order_relaxed);
  peer_->patterns.store(size(ChannelKind::pattern), std::memory_order_relaxed);
  peer_->shard_channels.store(size(ChannelKind::shard), std::memory_order_relaxed);
  update_ready();
}

void Session::do_subscribe(Args args) {
  if (context_.passed != nullptr && (args.size() != 2 || args[1] != kInvalidations)) {
    needs_later_ = true;
    return;
  }
  subscribe(channel_kind(args[0]), args);
  note_subscriptions();
}

void Session::do_unsubscribe(Args args) {
  if (relay_ != nullptr) {
    needs_later_ = true;
    return;
  }
  unsubscribe(channel_kind(args[0]), args);
  note_subscriptions();
}

void Session::do_publish(Args args) {
  const bool shard = (args[0][0] | 0x20) == 's';
  writer_.integer(context_.pubsub->publish(args[1], args[2], shard));
}

void Session::do_pubsub(Args args) {
  const std::string what = to_lower(args[1].substr(0, 32));
  const bool shard = what.starts_with("shard");
  const ChannelKind kind = shard ? ChannelKind::shard : ChannelKind::channel;
  if (what == "channels" || what == "shardchannels") {
    if (args.size() > 3) return wrong_arity("pubsub|" + what);
    const auto names = context_.pubsub->names(kind, args.size() > 2 ? args[2] : "");
    writer_.array(names.size());
    for (const std::string& name : names) writer_.bulk(name);
  } else if (what == "numsub" || what == "shardnumsub") {
    writer_.map(args.size() - 2);
    for (const std::string_view name : args.subspan(2)) {
      writer_.bulk(name);
      writer_.integer(static_cast<std::int64_t>(context_.pubsub->subscribers(kind, name)));
    }
  } else if (what == "numpat") {
    if (args.size() != 2) return wrong_arity("pubsub|numpat");
    writer_.integer(static_cast<std::int64_t>(context_.pubsub->count(ChannelKind::pattern)));
  } else if (what == "help") {
    help({"PUBSUB <subcommand> [<arg> [value] [opt] ...]. Subcommands are:", "CHANNELS [<pattern>]",
          "NUMPAT", "NUMSUB [<channel> ...]", "SHARDCHANNELS [<pattern>]",
          "SHARDNUMSUB [<shardchannel> ...]", "HELP"});
  } else {
    unknown_subcommand(args);
  }
}

}  // namespace larder::server
