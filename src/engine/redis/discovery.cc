#include "engine/redis/discovery.h"

#include <fmt/format.h>

#include <algorithm>

#include "resilience/backoff.h"

namespace larder::engine::redis {
namespace {

constexpr std::size_t kAskedAtOnce = 3;  // of a cluster's servers
constexpr std::size_t kMostSentinels = 32;

// One question after the other, answers in order. Errors: engine_down.
Task<Result<std::vector<wire::Reply>>> question(Peer& peer, std::string bytes, std::size_t count) {
  const auto sent = co_await peer.stream->write_all(bytes);
  if (!sent) co_return fail(ErrorCode::engine_down, sent.error().message);
  std::vector<wire::Reply> replies;
  while (replies.size() < count) {
    const auto answer = co_await peer.receive();
    if (!answer) co_return std::unexpected(answer.error());
    std::size_t consumed = 0;
    std::string problem;
    auto reply = wire::parse_reply(*answer, consumed, problem);
    if (!reply) co_return fail(ErrorCode::engine_down, problem);
    replies.push_back(std::move(*reply));
  }
  co_return replies;
}

}  // namespace

// A cluster: some servers by chance, so that one that was cut off is not asked again and again;
// those with a connection first, the URL's last. Sentinels: all.
std::vector<std::string> Discovery::candidates() {
  const Url& url = core_.options.url;
  std::vector<std::string> all;
  const auto add = [&](const std::string& address) {
    if (std::ranges::find(all, address) == all.end()) all.push_back(address);
  };
  if (url.kind == Url::Kind::sentinel) {
    for (const std::string& seed : url.seeds) add(seed);
    for (const std::string& other : sentinels_) add(other);
    return all;
  }
  const std::shared_ptr<const Map> map = core_.directory.map();
  for (const Shard& shard : map->shards) {
    add(shard.primary);
    for (const std::string& replica : shard.replicas) add(replica);
  }
  for (std::size_t i = all.size(); i > 1; --i) std::swap(all[i - 1], all[random_.below(i)]);
  std::ranges::partition(
      all, [&](const std::string& address) { return core_.directory.server(address)->up(); });
  const bool lonely = all.empty() || !core_.directory.any_up();
  if (all.size() > kAskedAtOnce && !lonely) all.resize(kAskedAtOnce);
  if (lonely) {
    for (const std::string& seed : url.seeds) add(seed);
  }
  return all;
}

Task<void> Discovery::run(TaskGroup& group) {
  Loop& loop = *Loop::current();
  while (!group.stopping()) {
    core_.directory.asked(loop.now_us());
    const auto round = std::make_shared<Round>();
    const std::vector<std::string> asked = candidates();
    round->left = asked.size();
    for (const std::string& address : asked) {
      if (!group.spawn(ask(address, round))) --round->left;
    }
    if (round->left > 0) co_await round->done.wait();
    if (group.stopping()) break;
    core_.directory.set_nobody_answers(round->answers == 0, round->why);
    if (round->answers == 0) core_.directory.trouble();
    for (;;) {
      const std::shared_ptr<Waiters> troubled = core_.directory.troubled();
      const TimeUs at = core_.directory.ask_at();
      if (group.stopping() || at <= loop.now_us()) break;
      co_await troubled->wait_until(at);
    }
  }
}

// Each answer counts as soon as it is there: who is slow delays nobody.
Task<void> Discovery::ask(std::string address, std::shared_ptr<Round> round) {
  const TimeUs deadline = Loop::current()->now_us() + core_.options.connect_timeout_us;
  const bool sentinel = core_.options.url.kind == Url::Kind::sentinel;
  Result<View> view;
  if (sentinel) {
    view = co_await ask_sentinel(address, deadline);
  } else {
    view = co_await ask_cluster(address, deadline);
  }
  if (view) {
    ++round->answers;
    for (std::string& other : view->sentinels) {
      if (sentinels_.size() < kMostSentinels &&
          std::ranges::find(sentinels_, other) == sentinels_.end()) {
        sentinels_.push_back(std::move(other));
      }
    }
    core_.directory.set_nobody_answers(false);
    const std::uint64_t before = core_.directory.version();
    (void)core_.directory.learn(std::move(*view), Loop::current()->now_us());
    if (core_.directory.version() != before) {
      const std::shared_ptr<const Map> map = core_.directory.map();
      core_.log(sentinel ? fmt::format("{} is the primary, says the Sentinel {}",
                                       map->shards[0].primary, address)
                         : fmt::format("the cluster has {} primaries with slots, says {}",
                                       map->shards.size(), address));
      complaint_.clear();
    }
  } else {
    round->why = fmt::format("asking {}: {}", address, view.error().message);
    if (round->why != complaint_) core_.log(round->why);
    complaint_ = round->why;
  }
  if (--round->left == 0) round->done.notify();
}

Task<Result<View>> Discovery::ask_cluster(std::string address, TimeUs deadline) {
  auto peer = co_await core_.dialer.dial(address, 2, false, deadline);
  if (!peer) co_return std::unexpected(std::move(peer.error()));
  Alarm alarm(*peer->stream, deadline);
  std::string bytes = encode({"CLUSTER", "SLOTS"}) + encode({"CLUSTER", "INFO"}) +
                      encode({"COMMAND", "INFO", "SSUBSCRIBE"});
  const auto replies = co_await question(*peer, std::move(bytes), 3);
  if (!replies) co_return std::unexpected(replies.error());
  using Type = wire::Reply::Type;
  const wire::Reply& command = (*replies)[2];
  if (command.type == Type::array && command.elements.size() == 1) {
    core_.directory.server(address)->sharded_channels =
        command.elements[0].type == Type::null || command.elements[0].elements.empty()
            ? Server::Knows::no
            : Server::Knows::yes;
  } else if (!peer->version.empty()) {  // COMMAND is forbidden: SSUBSCRIBE came with 7.0
    core_.directory.server(address)->sharded_channels =
        peer->version[0] >= '7' || peer->version.find('.') > 1 ? Server::Knows::yes
                                                               : Server::Knows::no;
  }
  co_return cluster_view((*replies)[0], (*replies)[1], address);
}

Task<Result<View>> Discovery::ask_sentinel(std::string address, TimeUs deadline) {
  auto peer = co_await core_.dialer.dial_sentinel(address, deadline);
  if (!peer) co_return std::unexpected(std::move(peer.error()));
  Alarm alarm(*peer->stream, deadline);
  const std::string& name = core_.options.url.master;
  std::string bytes =
      encode({"SENTINEL", "GET-MASTER-ADDR-BY-NAME", name}) + encode({"SENTINEL", "MASTER", name}) +
      encode({"SENTINEL", "REPLICAS", name}) + encode({"SENTINEL", "SENTINELS", name});
  const auto replies = co_await question(*peer, std::move(bytes), 4);
  if (!replies) co_return std::unexpected(replies.error());
  co_return sentinel_view((*replies)[0], (*replies)[1], (*replies)[2], (*replies)[3]);
}

// ---- Announcements ----

Task<void> Discovery::listen(TaskGroup& group) {
  resilience::Backoff backoff({.first_us = 100 * kMillisecond, .most_us = 2 * kSecond});
  while (!group.stopping()) {
    const std::vector<std::string> all = candidates();
    std::string address = all[random_.below(all.size())];
    const TimeUs began = Loop::current()->now_us();
    (void)co_await listen_to(std::move(address), group);
    core_.directory.trouble();
    if (Loop::current()->now_us() - began > 10 * kSecond) backoff.reset();
    const TimeUs until = Loop::current()->now_us() + backoff.next(random_);
    co_await group.sleep_until(until);
  }
}

namespace {

struct Listening final : Held {
  explicit Listening(net::Stream& connected) : stream(connected) {}
  void stop() override { stream.shutdown(); }
  net::Stream& stream;
};

}  // namespace

Task<std::string> Discovery::listen_to(std::string address, TaskGroup& group) {
  const TimeUs limit = Loop::current()->now_us() + core_.options.connect_timeout_us;
  auto peer = co_await core_.dialer.dial_sentinel(std::move(address), limit);
  if (!peer) co_return peer.error().message;
  if (group.stopping()) co_return kShuttingDown;
  Listening listening(*peer->stream);
  held_->insert(&listening);
  const std::string bytes = encode({"SUBSCRIBE", "+switch-master", "+slave", "+sdown", "-sdown"});
  const auto sent = co_await peer->stream->write_all(bytes);
  std::string why = sent ? "" : sent.error().message;
  while (why.empty()) {
    const auto message = co_await peer->receive();
    if (!message) {
      why = message.error().message;
    } else if (message->starts_with('-')) {
      why = *message;
    } else {
      core_.directory.trouble();
    }
  }
  held_->erase(&listening);
  co_return why;
}

}  // namespace larder::engine::redis
