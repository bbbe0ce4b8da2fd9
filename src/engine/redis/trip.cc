#include "engine/redis/trip.h"

#include <fmt/format.h>

namespace larder::engine::redis {
namespace {

constexpr int kMostHops = 5;  // redirections one after the other, before a pause
constexpr DurationUs kUnfitUs = 1 * kSecond;

Error problem(ErrorCode code, std::string message) {
  return {.code = code, .message = std::move(message), .origin = "redis"};
}

}  // namespace

Trip::Target Trip::target(Part& part) {
  const Map& map = part.map();
  const bool cluster = core_.options.url.cluster();
  if (!route_.node.empty()) {
    error_ = problem(ErrorCode::engine_down, fmt::format("no server '{}' is known", route_.node));
    if (!map.has(route_.node)) return {};
    bool primary = false;
    for (const Shard& shard : map.shards) primary = primary || shard.primary == route_.node;
    return {.address = route_.node, .primary = false, .readonly = cluster && !primary};
  }
  if (!redirect_.empty()) return {.address = std::exchange(redirect_, {}), .asking = true};
  const std::uint16_t shard =
      route_.slot == Route::kAnySlot ? choose_shard(map) : map.shard_of(route_.slot);
  if (shard == Map::kNobody) {
    std::string why = fmt::format("no server is known that has slot {}", route_.slot);
    if (map.shards.empty()) why = core_.directory.why_nobody();
    if (why.empty()) why = "no server of those in the engine's URL has answered yet";
    error_ = problem(ErrorCode::engine_down, std::move(why));
    return {};
  }
  if (route_.replica && !replica_refused_) {
    std::string replica = choose_replica(part, map.shards[shard]);
    if (!replica.empty()) {
      return {.address = std::move(replica), .primary = false, .readonly = cluster};
    }
  }
  return {.address = map.shards[shard].primary, .shard = shard};
}

Trip::Target Trip::aim(Part& part) {
  Target target = this->target(part);
  if (target.address.empty()) return target;
  target.lane = target.shard != Map::kNobody
                    ? part.primary(target.shard, route_.protocol)
                    : part.lane(target.address, route_.protocol, target.readonly);
  if (!target.lane) error_ = problem(ErrorCode::cancelled, kShuttingDown);
  return target;
}

std::uint16_t Trip::choose_shard(const Map& map) const {
  if (map.shards.empty()) return Map::kNobody;
  for (std::size_t i = 0; map.shards.size() > 1 && i < map.shards.size(); ++i) {
    if (core_.directory.server(map.shards[i].primary)->up()) return static_cast<std::uint16_t>(i);
  }
  return 0;
}

std::string Trip::choose_replica(Part& part, const Shard& shard) {
  std::vector<Health> candidates;
  const TimeUs now = part.loop().now_us();
  for (const std::string& address : shard.replicas) {
    const std::shared_ptr<Lane> lane =
        part.lane(address, route_.protocol, core_.options.url.cluster());
    if (!lane) return {};
    const Server& server = lane->server();
    candidates.push_back({.up = server.up() && server.unfit_until.load() <= now,
                          .latency_us = server.latency_us.load()});
  }
  const auto chosen = choose(candidates, part.random());
  return chosen ? shard.replicas[*chosen] : std::string();
}

Trip::Step Trip::unreachable(const Target& target, Error why) {
  if (!target.address.empty() || !why.message.empty()) error_ = std::move(why);
  if (error_.code == ErrorCode::cancelled || error_.code == ErrorCode::timeout) return Step::fail;
  if (core_.options.url.kind == Url::Kind::single || !route_.node.empty()) return Step::fail;
  if (!target.primary) {
    replica_refused_ = true;
    return Step::again;
  }
  core_.directory.trouble();
  // A failover leaves somebody standing: with nobody there, nothing is worth waiting for.
  const bool hope = core_.directory.any_up() || !core_.directory.nobody_answers();
  return hope ? Step::pause : Step::fail;
}

Trip::Step Trip::wrong_role(const Target& target) {
  error_ = problem(ErrorCode::engine_down, target.address + " is not the primary");
  target.lane->reconnect();
  core_.directory.trouble();
  return Step::pause;
}

Trip::Step Trip::judge(const Target& target, Fate fate, std::string& reply) {
  switch (fate) {
    case Fate::answered: {
      if (!reply.starts_with('-')) return Step::done;
      const std::string_view text(reply.data() + 1, reply.size() - 3);
      const Refusal refused = parse_refusal(text, target.address);
      if (refused.kind == Refusal::Kind::none) return Step::done;
      return refusal(target, refused, reply);
    }
    case Fate::unsent:
      error_ = problem(ErrorCode::engine_down, target.address + ": the connection was lost");
      return ++hops_ > kMostHops ? Step::pause : Step::again;
    case Fate::lost:
      error_ = problem(ErrorCode::engine_down,
                       target.address + ": the connection was lost before the answer");
      if (core_.options.url.kind != Url::Kind::single) core_.directory.trouble();
      return route_.repeatable ? Step::pause : Step::fail;
    case Fate::timeout:
      // It may be frozen or cut off: another one may have its slots by now.
      if (core_.options.url.kind != Url::Kind::single) core_.directory.trouble();
      if (!target.primary) target.lane->server().unfit_until = Loop::current()->now_us() + kUnfitUs;
      error_ = problem(ErrorCode::timeout, target.address + " has not answered in time");
      return Step::fail;
    case Fate::overloaded:
      error_ = problem(ErrorCode::overloaded,
                       fmt::format("too much waits for {} already", target.address));
      return Step::fail;
    case Fate::too_large:
      error_ =
          problem(ErrorCode::too_large, fmt::format("{}: the answer is over the limit of {} bytes",
                                                    target.address, core_.options.max_reply_bytes));
      return Step::fail;
  }
  return Step::fail;
}

Trip::Step Trip::refusal(const Target& target, const Refusal& refusal, std::string& reply) {
  using Kind = Refusal::Kind;
  const Url::Kind deployment = core_.options.url.kind;
  const bool cluster = deployment == Url::Kind::cluster;
  const bool of_cluster = refusal.kind == Kind::moved || refusal.kind == Kind::ask ||
                          refusal.kind == Kind::try_again || refusal.kind == Kind::cluster_down;
  // Whom the caller has named, or who is alone, is to say it himself.
  if (!route_.node.empty() || (of_cluster && !cluster)) return Step::done;
  if (refusal.kind == Kind::read_only && deployment == Url::Kind::single) return Step::done;
  if (refusal.kind == Kind::moved || refusal.kind == Kind::ask) {
    refused_ = reply;
    if (core_.redirected) core_.redirected->add();
    if (refusal.kind == Kind::ask) {
      redirect_ = refusal.address;
    } else if (target.readonly) {
      replica_refused_ = true;  // the replica does not have the slot, or not any more
      core_.directory.trouble();
    } else {
      core_.directory.moved(refusal.slot, refusal.address);
    }
    if (++hops_ <= kMostHops) return Step::again;
    hops_ = 0;
    return Step::pause;
  }
  refused_ = std::move(reply);
  if (!target.primary) {  // LOADING, MASTERDOWN, CLUSTERDOWN of a replica
    target.lane->server().unfit_until = Loop::current()->now_us() + kUnfitUs;
    replica_refused_ = true;
    return Step::again;
  }
  if (deployment != Url::Kind::single) core_.directory.trouble();
  if (refusal.kind == Kind::read_only) target.lane->reconnect();
  return Step::pause;
}

}  // namespace larder::engine::redis
