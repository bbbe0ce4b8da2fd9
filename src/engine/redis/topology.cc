#include "engine/redis/topology.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace larder::engine::redis {
namespace {

constexpr std::size_t kMostServers = 4096;

// "host:port", with brackets around IPv6, which comes without them.
std::string join(std::string_view host, std::string_view port) {
  const bool bare = host.contains(':') && !host.starts_with('[');
  return bare ? fmt::format("[{}]:{}", host, port) : fmt::format("{}:{}", host, port);
}

std::unexpected<Error> bad(std::string_view what) {
  return fail(ErrorCode::engine_down, std::string(what), "redis");
}

// The value behind a name in a map, or in an array that stands for one; "" = none.
std::string_view value_of(const wire::Reply& map, std::string_view name) {
  for (std::size_t i = 0; i + 1 < map.elements.size(); i += 2) {
    if (map.elements[i].text == name) return map.elements[i + 1].text;
  }
  return {};
}

std::uint64_t number(std::string_view text) {
  std::uint64_t n = 0;
  std::from_chars(text.data(), text.data() + text.size(), n);
  return n;
}

// [host, port, id, ...] of CLUSTER SLOTS. "" if the server does not know the host itself.
std::string slot_server(const wire::Reply& server, std::string_view from) {
  if (server.elements.size() < 2) return {};
  std::string_view host = server.elements[0].text;
  const std::int64_t port = server.elements[1].integer;
  if (port <= 0 || port > 65535 || host == "?") return {};
  const std::string text = std::to_string(port);
  if (host.empty()) return fmt::format("{}:{}", from.substr(0, from.rfind(':')), text);
  return join(host, text);
}

}  // namespace

bool Map::complete() const {
  if (shards.empty()) return false;
  return std::ranges::find(owner, kNobody) == owner.end();
}

bool Map::has(std::string_view address) const {
  return std::ranges::any_of(shards, [&](const Shard& shard) {
    return shard.primary == address ||
           std::ranges::find(shard.replicas, address) != shard.replicas.end();
  });
}

Map with_moved(Map map, std::uint32_t slot, const std::string& address) {
  const auto found = std::ranges::find(map.shards, address, &Shard::primary);
  const auto shard = static_cast<std::uint16_t>(found - map.shards.begin());
  // A replica that was promoted stands among its old primary's replicas until the map is read anew.
  if (found == map.shards.end()) {
    if (map.shards.size() >= Map::kNobody) return map;
    map.shards.push_back({.primary = address, .replicas = {}});
  }
  if (map.owner.empty()) map.owner.assign(kSlots, Map::kNobody);
  map.owner[slot] = shard;
  return map;
}

Result<View> cluster_view(const wire::Reply& slots, const wire::Reply& info,
                          std::string_view from) {
  using Type = wire::Reply::Type;
  if (slots.type == Type::error) return bad(slots.text);
  if (info.type == Type::error) return bad(info.text);
  View view;
  Map& map = view.map;
  map.owner.assign(kSlots, Map::kNobody);
  for (const wire::Reply& range : slots.elements) {
    if (range.elements.size() < 3) return bad("CLUSTER SLOTS: a range without a server");
    const std::int64_t begin = range.elements[0].integer;
    const std::int64_t end = range.elements[1].integer;
    if (begin < 0 || end < begin || end >= kSlots) return bad("CLUSTER SLOTS: a bad range");
    Shard shard{.primary = slot_server(range.elements[2], from), .replicas = {}};
    if (shard.primary.empty()) continue;
    for (std::size_t i = 3; i < range.elements.size(); ++i) {
      std::string replica = slot_server(range.elements[i], from);
      if (!replica.empty()) shard.replicas.push_back(std::move(replica));
    }
    std::ranges::sort(shard.replicas);  // so that equal maps are equal
    const auto found = std::ranges::find(map.shards, shard.primary, &Shard::primary);
    const auto index = static_cast<std::uint16_t>(found - map.shards.begin());
    if (found == map.shards.end()) {
      if (map.shards.size() >= kMostServers) return bad("CLUSTER SLOTS: too many servers");
      map.shards.push_back(std::move(shard));
    }
    std::fill(map.owner.begin() + begin, map.owner.begin() + end + 1, index);
  }
  if (map.shards.empty()) return bad(fmt::format("{} knows no server with slots", from));
  static constexpr std::string_view kEpoch = "cluster_current_epoch:";
  const std::size_t at = info.text.find(kEpoch);
  if (at != std::string::npos) view.epoch = number(info.text.substr(at + kEpoch.size()));
  return view;
}

Result<View> sentinel_view(const wire::Reply& address, const wire::Reply& master,
                           const wire::Reply& replicas, const wire::Reply& sentinels) {
  if (master.type == wire::Reply::Type::error) {
    return bad(
        fmt::format("{}; see the name of the primary in the engine's URL: "
                    "redis+sentinel://host:26379/name",
                    master.text));
  }
  const auto join_fields = [](const wire::Reply& server) {
    return join(value_of(server, "ip"), value_of(server, "port"));
  };
  if (address.elements.size() != 2) return bad("a Sentinel does not know the primary's address");
  View view;
  view.epoch = number(value_of(master, "config-epoch"));
  Shard shard{.primary = join(address.elements[0].text, address.elements[1].text), .replicas = {}};
  for (const wire::Reply& replica : replicas.elements) {
    const std::string_view flags = value_of(replica, "flags");
    const bool out = flags.contains("down") || flags.contains("disconnected");
    std::string where = join_fields(replica);
    if (!out && where != shard.primary && !value_of(replica, "ip").empty() &&
        shard.replicas.size() < kMostServers) {
      shard.replicas.push_back(std::move(where));
    }
  }
  std::ranges::sort(shard.replicas);
  view.map.shards.push_back(std::move(shard));
  for (const wire::Reply& sentinel : sentinels.elements) {
    if (!value_of(sentinel, "ip").empty()) view.sentinels.push_back(join_fields(sentinel));
  }
  return view;
}

// ---- Topology ----

Topology::Topology(Map map, const Timing& timing)
    : timing_(timing), map_(std::make_shared<const Map>(std::move(map))) {}

void Topology::set(Map map) {
  if (*map_ == map) return;
  map_ = std::make_shared<const Map>(std::move(map));
  ++version_;
  pause_us_ = 0;
}

bool Topology::learn(View view, TimeUs now) {
  if (view.epoch < epoch_ && now - agreed_at_ < timing_.insist_us) return false;
  epoch_ = view.epoch;
  agreed_at_ = now;
  set(std::move(view.map));
  return true;
}

void Topology::moved(std::uint32_t slot, const std::string& address) {
  trouble_ = true;
  const std::uint16_t shard = map_->shard_of(slot);
  if (shard != Map::kNobody && map_->shards[shard].primary == address) return;
  set(with_moved(*map_, slot, address));
}

TimeUs Topology::ask_at() const {
  if (asked_at_ == 0) return 0;
  return asked_at_ + (trouble_ ? std::max(pause_us_, timing_.first_us) : timing_.period_us);
}

void Topology::asked(TimeUs now) {
  // Trouble that goes on is asked about less and less often; what is quiet for a while is new.
  const bool quiet = !trouble_ || now - asked_at_ > 2 * timing_.most_us;
  pause_us_ = quiet ? timing_.first_us
                    : std::min(std::max(2 * pause_us_, timing_.first_us), timing_.most_us);
  trouble_ = false;
  asked_at_ = now;
}

Refusal parse_refusal(std::string_view error, std::string_view from) {
  using Kind = Refusal::Kind;
  const std::string_view word = error.substr(0, error.find(' '));
  if (word == "TRYAGAIN") return {.kind = Kind::try_again};
  if (word == "CLUSTERDOWN") return {.kind = Kind::cluster_down};
  if (word == "LOADING") return {.kind = Kind::loading};
  if (word == "MASTERDOWN") return {.kind = Kind::master_down};
  if (word == "READONLY") return {.kind = Kind::read_only};
  if (word != "MOVED" && word != "ASK") return {};
  Refusal refusal{.kind = word == "ASK" ? Kind::ask : Kind::moved};
  std::string_view rest = error.substr(std::min(error.size(), word.size() + 1));
  const auto [end, problem] = std::from_chars(rest.data(), rest.data() + rest.size(), refusal.slot);
  rest.remove_prefix(static_cast<std::size_t>(end - rest.data()));
  if (problem != std::errc() || refusal.slot >= kSlots || !rest.starts_with(' ')) return {};
  rest.remove_prefix(1);
  const std::size_t colon = rest.rfind(':');
  if (colon == std::string_view::npos || colon + 1 == rest.size()) return {};
  if (colon == 0) {
    refusal.address = fmt::format("{}{}", from.substr(0, from.rfind(':')), rest);
  } else {
    refusal.address = join(rest.substr(0, colon), rest.substr(colon + 1));
  }
  return refusal;
}

std::optional<std::size_t> choose(std::span<const Health> candidates, Random& random) {
  std::vector<std::size_t> up;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (candidates[i].up) up.push_back(i);
  }
  if (up.empty()) return std::nullopt;
  if (up.size() == 1) return up[0];
  const std::size_t first = random.below(up.size());
  const std::size_t second = (first + 1 + random.below(up.size() - 1)) % up.size();
  const DurationUs a = candidates[up[first]].latency_us;
  const DurationUs b = candidates[up[second]].latency_us;
  return up[b < a ? second : first];
}

}  // namespace larder::engine::redis
