#include "engine/redis/client.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <algorithm>

#include "engine/redis/core.h"
#include "engine/redis/dedicated.h"
#include "engine/redis/discovery.h"
#include "engine/redis/part.h"
#include "engine/redis/subscription.h"
#include "engine/redis/trip.h"

namespace larder::engine::redis {
namespace {

class ClientImpl final : public Client {
 public:
  ClientImpl(net::Runtime& runtime, Options options, std::shared_ptr<const net::TlsContext> tls,
             Map map);
  ~ClientImpl() override;

  Task<void> run(TaskGroup& group) override;
  Task<Result<Answer>> call(Route route, std::vector<std::string> args, TimeUs deadline) override;
  Task<Result<Answer>> forward(Route route, std::string bytes, TimeUs deadline) override;
  Task<Result<Answer>> eval(const Script& script, std::vector<std::string> keys,
                            std::vector<std::string> args, bool repeatable,
                            TimeUs deadline) override;
  Task<Result<std::unique_ptr<Dedicated>>> dedicate(Route route, TimeUs deadline) override;
  void subscribe(std::vector<std::string> channels, bool sharded, Subscriber& to) override;
  Task<void> unsubscribe(Subscriber& from) override;

  bool cluster() const override { return core_.options.url.cluster(); }
  bool sharded_channels() const override {
    return cluster() && core_.directory.sharded_channels().value_or(false);
  }
  bool up() const override;
  std::string server_version() const override;
  std::vector<ServerInfo> nodes() const override;

 private:
  Part* here();
  std::string place_of(const std::string& channel, const std::string& held, bool by_slot) const;
  void start(const std::shared_ptr<Subscription>& subscription);
  Task<void> hold(std::shared_ptr<Subscription> subscription);
  Task<void> watch(TaskGroup& group);
  std::shared_ptr<void> take_seat();
  void publish_metrics(obs::Registry& metrics);

  mutable Core core_;
  std::vector<std::unique_ptr<Part>> parts_;
  std::unique_ptr<Discovery> discovery_;  // null: a single server
  mutable Mutex mutex_;
  std::vector<std::shared_ptr<Subscription>> subscriptions_ LARDER_GUARDED_BY(mutex_);
  bool running_ LARDER_GUARDED_BY(mutex_) = false;
};

ClientImpl::ClientImpl(net::Runtime& runtime, Options options,
                       std::shared_ptr<const net::TlsContext> tls, Map map)
    : core_(runtime, std::move(options), std::move(tls), std::move(map)) {
  for (unsigned i = 0; i < runtime.size(); ++i) {
    parts_.push_back(std::make_unique<Part>(core_, runtime.loop(i)));
  }
  if (core_.options.metrics) publish_metrics(*core_.options.metrics);
}

ClientImpl::~ClientImpl() {
  if (core_.options.metrics) core_.options.metrics->remove_callbacks(this);
}

void ClientImpl::publish_metrics(obs::Registry& metrics) {
  using Kind = obs::Registry::Kind;
  core_.redirected = &metrics.counter("larder_engine_redirected_total", {},
                                      "Commands that a server has sent elsewhere (MOVED, ASK)");
  core_.waited =
      &metrics.counter("larder_engine_waited_total", {}, "Pauses before a command was sent again");
  metrics.callback(
      Kind::gauge, "larder_engine_connected_servers", {}, "Servers of the engine with a connection",
      [this] {
        const auto servers = core_.directory.servers();
        return static_cast<double>(
            std::ranges::count_if(servers, [](const auto& server) { return server->up(); }));
      },
      this);
  metrics.callback(
      Kind::gauge, "larder_engine_dedicated_connections", {},
      "Connections to the engine that belong to one client (blocking, in a transaction)",
      [this] { return static_cast<double>(core_.dedicated.load()); }, this);
  metrics.callback(
      Kind::gauge, "larder_engine_dedicated_limit", {}, "Of these, at most so many",
      [this] { return static_cast<double>(core_.options.max_dedicated); }, this);
}

// Null: not one of the runtime's loops, or run() has not begun.
Part* ClientImpl::here() {
  if (!core_.group.load()) return nullptr;
  Loop* const loop = Loop::current();
  for (const auto& part : parts_) {
    if (&part->loop() == loop) return part.get();
  }
  return nullptr;
}

std::unexpected<Error> not_running() {
  return fail(ErrorCode::engine_down, "the engine's client is not running yet", "redis");
}

// ---- Commands ----

Task<Result<Answer>> ClientImpl::call(Route route, std::vector<std::string> args, TimeUs deadline) {
  std::string bytes = encode(args);
  auto answer = co_await forward(std::move(route), std::move(bytes), deadline);
  co_return answer;
}

Task<Result<Answer>> ClientImpl::forward(Route route, std::string bytes, TimeUs deadline) {
  Part* const part = here();
  if (!part) co_return not_running();
  Loop& loop = part->loop();
  const std::function<bool()> overtaken = std::move(route.overtaken);
  Trip trip(core_, std::move(route));
  for (;;) {
    const std::shared_ptr<Waiters> changed = core_.directory.changed();
    const Trip::Target target = trip.aim(*part);
    Trip::Step step = Trip::Step::fail;
    if (!target.lane) {
      step = trip.unreachable(target, trip.error());
    } else {
      auto connection = co_await target.lane->connection(deadline);
      if (!connection) {
        step = trip.unreachable(target, std::move(connection.error()));
      } else if (target.primary && core_.options.url.kind == Url::Kind::sentinel &&
                 !(*connection)->peer().primary) {
        step = trip.wrong_role(target);
      } else {
        Exchange exchange(**connection, bytes, deadline, target.asking);
        const Fate fate = co_await exchange;
        step = trip.judge(target, fate, exchange.reply);
        if (step == Trip::Step::done) co_return Answer{std::move(exchange.reply)};
      }
    }
    if (step == Trip::Step::pause && overtaken && overtaken()) step = Trip::Step::fail;
    if (step == Trip::Step::pause) {
      const TimeUs until = loop.now_us() + trip.pause_us(part->random());
      co_await changed->wait_until(std::min(until, deadline));
      if (loop.now_us() >= deadline) step = Trip::Step::fail;
    }
    if (step == Trip::Step::fail) {
      if (!trip.refused().empty()) co_return Answer{std::move(trip.refused())};
      co_return std::unexpected(trip.error());
    }
  }
}

Task<Result<Answer>> ClientImpl::eval(const Script& script, std::vector<std::string> keys,
                                      std::vector<std::string> args, bool repeatable,
                                      TimeUs deadline) {
  const std::string count = std::to_string(keys.size());
  std::vector<std::string_view> words = {"EVALSHA", script.sha1, count};
  words.insert(words.end(), keys.begin(), keys.end());
  words.insert(words.end(), args.begin(), args.end());
  Route route{.slot = keys.empty() ? Route::kAnySlot : slot_of(keys.front()),
              .repeatable = repeatable};
  std::string bytes;
  wire::write_command(bytes, words);
  auto answer = co_await forward(route, std::move(bytes), deadline);
  if (!answer || !answer->bytes.starts_with("-NOSCRIPT")) co_return answer;
  words[0] = "EVAL";
  words[1] = script.text;
  std::string whole;
  wire::write_command(whole, words);
  answer = co_await forward(std::move(route), std::move(whole), deadline);
  co_return answer;
}

// ---- Connections of one's own ----

std::shared_ptr<void> ClientImpl::take_seat() {
  if (core_.dedicated.fetch_add(1) >= core_.options.max_dedicated) {
    core_.dedicated.fetch_sub(1);
    return nullptr;
  }
  return {&core_, [](void* core) { static_cast<Core*>(core)->dedicated.fetch_sub(1); }};
}

Task<Result<std::unique_ptr<Dedicated>>> ClientImpl::dedicate(Route route, TimeUs deadline) {
  Part* const part = here();
  if (!part) co_return not_running();
  std::shared_ptr<void> seat;
  if (!route.own) seat = take_seat();
  if (!route.own && !seat) {
    co_return fail(ErrorCode::overloaded,
                   fmt::format("{} connections are given out already", core_.options.max_dedicated),
                   "redis");
  }
  Loop& loop = part->loop();
  const int protocol = route.protocol;
  Trip trip(core_, std::move(route));
  for (;;) {
    const std::shared_ptr<Waiters> changed = core_.directory.changed();
    const Trip::Target target = trip.target(*part);
    Trip::Step step = Trip::Step::fail;
    if (target.address.empty()) {
      step = trip.unreachable(target, trip.error());
    } else {
      const TimeUs limit = std::min(deadline, loop.now_us() + core_.options.connect_timeout_us);
      auto peer = co_await core_.dialer.dial(target.address, protocol, target.readonly, limit);
      if (!peer) {
        if (loop.now_us() < deadline) peer.error().code = ErrorCode::engine_down;
        step = trip.unreachable(target, std::move(peer.error()));
      } else if (target.primary && core_.options.url.kind == Url::Kind::sentinel &&
                 !peer->primary) {
        core_.directory.trouble();
        step = Trip::Step::pause;
      } else {
        co_return make_dedicated(core_, std::move(*peer), part->held(), std::move(seat));
      }
    }
    if (step == Trip::Step::pause) {
      const TimeUs until = loop.now_us() + trip.pause_us(part->random());
      co_await changed->wait_until(std::min(until, deadline));
      if (loop.now_us() >= deadline) step = Trip::Step::fail;
    }
    if (step == Trip::Step::fail) co_return std::unexpected(trip.error());
  }
}

// ---- Subscriptions ----

void ClientImpl::subscribe(std::vector<std::string> channels, bool sharded, Subscriber& to) {
  Loop* const current = Loop::current();
  const bool ours =
      std::ranges::any_of(parts_, [&](const auto& part) { return &part->loop() == current; });
  Loop& loop = ours ? *current : parts_[0]->loop();
  auto subscription = std::make_shared<Subscription>(
      core_, loop, std::move(channels), to,
      [this, sharded]() -> std::optional<bool> {
        if (!sharded || !cluster()) return false;
        return core_.directory.sharded_channels();
      },
      [this](const std::string& channel, const std::string& held, bool by_slot) {
        return place_of(channel, held, by_slot);
      });
  bool running = false;
  {
    MutexLock lock(mutex_);
    subscriptions_.push_back(subscription);
    running = running_;
  }
  if (running) start(subscription);
}

// Messages that are not sharded reach every server of a cluster: any will do.
std::string ClientImpl::place_of(const std::string& channel, const std::string& held,
                                 bool by_slot) const {
  const std::shared_ptr<const Map> map = core_.directory.map();
  if (map->shards.empty()) return {};
  if (!cluster()) return map->shards[0].primary;
  if (by_slot) {
    const std::uint16_t shard = map->shard_of(slot_of(channel));
    return shard == Map::kNobody ? "" : map->shards[shard].primary;
  }
  if (!held.empty() && map->has(held)) return held;
  std::vector<std::string> up;
  for (const Shard& shard : map->shards) {
    if (core_.directory.server(shard.primary)->up()) up.push_back(shard.primary);
  }
  Random random(new_seed());
  return up.empty() ? "" : up[random.below(up.size())];
}

void ClientImpl::start(const std::shared_ptr<Subscription>& subscription) {
  subscription->loop().post(
      [this, subscription] { (void)core_.group.load()->spawn(hold(subscription)); });
}

Task<void> ClientImpl::hold(std::shared_ptr<Subscription> subscription) {
  const std::shared_ptr<HeldSet> held = here()->held();
  held->insert(subscription.get());
  co_await Subscription::run(subscription);
  held->erase(subscription.get());
}

Task<void> ClientImpl::unsubscribe(Subscriber& from) {
  Loop& home = *Loop::current();
  std::vector<std::shared_ptr<Subscription>> ended;
  {
    MutexLock lock(mutex_);
    std::erase_if(subscriptions_, [&](const std::shared_ptr<Subscription>& subscription) {
      if (&subscription->subscriber() != &from) return false;
      ended.push_back(subscription);
      return true;
    });
  }
  for (const std::shared_ptr<Subscription>& subscription : ended) {
    co_await resume_on(subscription->loop());
    subscription->stop();
  }
  co_await resume_on(home);
}

// ---- The whole ----

// Keeps a connection to each server from the loop of run(): its health, for all.
Task<void> ClientImpl::watch(TaskGroup& group) {
  Part& part = *here();
  while (!group.stopping()) {
    const std::shared_ptr<Waiters> changed = core_.directory.changed();
    for (const Shard& shard : part.map().shards) {
      (void)part.lane(shard.primary, 3, false);
      for (const std::string& replica : shard.replicas) (void)part.lane(replica, 3, cluster());
    }
    core_.directory.forget_strangers();
    co_await changed->wait();
  }
}

Task<void> ClientImpl::run(TaskGroup& group) {
  Loop& home = *Loop::current();
  core_.group = &group;
  std::vector<std::shared_ptr<Subscription>> waiting;
  {
    MutexLock lock(mutex_);
    running_ = true;
    waiting = subscriptions_;
  }
  for (const std::shared_ptr<Subscription>& subscription : waiting) start(subscription);
  (void)group.spawn(watch(group));
  if (core_.options.url.kind != Url::Kind::single) {
    discovery_ = std::make_unique<Discovery>(core_, here()->held());
    (void)group.spawn(discovery_->run(group));
  }
  if (core_.options.url.kind == Url::Kind::sentinel) {
    (void)group.spawn(discovery_->listen(group));
  }
  co_await group.sleep_until(kNever);
  core_.directory.wake_all();
  for (const auto& part : parts_) {
    Loop& loop = part->loop();
    co_await resume_on(loop);
    part->stop();
  }
  co_await resume_on(home);
}

bool ClientImpl::up() const {
  const std::shared_ptr<const Map> map = core_.directory.map();
  if (!map->complete()) return false;
  return std::ranges::all_of(
      map->shards, [&](const Shard& shard) { return core_.directory.server(shard.primary)->up(); });
}

std::string ClientImpl::server_version() const {
  const std::shared_ptr<const Map> map = core_.directory.map();
  for (const Shard& shard : map->shards) {
    std::string version = core_.directory.server(shard.primary)->version();
    if (!version.empty()) return version;
  }
  return {};
}

std::vector<ServerInfo> ClientImpl::nodes() const {
  std::vector<ServerInfo> all;
  const auto add = [&](const std::string& address, bool primary) {
    const std::shared_ptr<Server> server = core_.directory.server(address);
    all.push_back({.address = address,
                   .primary = primary,
                   .up = server->up(),
                   .latency_us = server->latency_us.load()});
  };
  const std::shared_ptr<const Map> map = core_.directory.map();
  for (const Shard& shard : map->shards) {
    add(shard.primary, true);
    for (const std::string& replica : shard.replicas) add(replica, false);
  }
  return all;
}

}  // namespace

// ---- Answer, Client ----

std::string_view Answer::error() const {
  LARDER_ASSERT(is_error());
  std::string_view text(bytes);
  if (text[0] == '!') text.remove_prefix(text.find('\n'));
  text.remove_prefix(1);
  if (text.ends_with("\r\n")) text.remove_suffix(2);
  return text;
}

wire::Reply Answer::parse() const {
  std::size_t consumed = 0;
  std::string problem;
  auto reply = wire::parse_reply(bytes, consumed, problem);
  LARDER_ASSERT(reply);
  return std::move(*reply);
}

Client::Script Client::script(std::string_view text) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned size = 0;
  LARDER_ASSERT(EVP_Digest(text.data(), text.size(), digest.data(), &size, EVP_sha1(), nullptr));
  Script script{.text = text, .sha1 = {}};
  for (unsigned i = 0; i < size; ++i) script.sha1 += fmt::format("{:02x}", digest[i]);
  return script;
}

Result<std::unique_ptr<Client>> Client::create(net::Runtime& runtime, Options options) {
  const Url& url = options.url;
  if (url.seeds.empty()) return fail(ErrorCode::config, "the engine's URL names no server");
  std::shared_ptr<const net::TlsContext> tls;
  if (url.tls) {
    auto made = net::TlsContext::create({.ca_file = url.ca_file,
                                         .cert_file = url.cert_file,
                                         .key_file = url.key_file,
                                         .server_name = url.server_name,
                                         .verify = url.verify});
    if (!made) return std::unexpected(std::move(made.error()));
    tls = std::move(*made);
  }
  Map map;
  if (url.kind == Url::Kind::single)
    map.shards.push_back({.primary = url.seeds[0], .replicas = {}});
  return std::make_unique<ClientImpl>(runtime, std::move(options), std::move(tls), std::move(map));
}

}  // namespace larder::engine::redis
