#include "server/instance.h"

#include <fmt/format.h>

#include <future>
#include <random>

namespace larder::server {
namespace {

constexpr DurationUs kKeepEvery = 50 * kMillisecond;
// What a client that does not take its answers may hold up a shutdown.
constexpr DurationUs kFinishWithin = 3 * kSecond;
constexpr DurationUs kLookAgain = 10 * kMillisecond;
// A source that does not answer keeps no node from starting.
constexpr DurationUs kRecoverWithin = 5 * kSecond;

std::string random_id() {
  std::random_device device;
  std::string id;
  while (id.size() < 40) id += fmt::format("{:08x}", static_cast<std::uint32_t>(device()));
  return id;
}

std::uint64_t random_seed() {
  std::random_device device;
  return (static_cast<std::uint64_t>(device()) << 32) | device();
}

// A free function: the session's owner is this frame, which the group holds.
Task<void> serve_client(SessionContext& context, std::unique_ptr<net::Stream> stream) {
  const auto session = std::make_unique<Session>(context, std::move(stream));
  co_await session->run();
}

}  // namespace

Instance::Instance(const config::Config& config, Log log,
                   const engine::redis::RedisEngine::Options& engine)
    : config_(config), log_(std::move(log)), engine_options_(engine) {}

Result<std::unique_ptr<Instance>> Instance::start(
    const config::Config& config, Log log, const engine::redis::RedisEngine::Options& engine) {
  std::unique_ptr<Instance> instance(new Instance(config, std::move(log), engine));
  if (auto built = instance->build(); !built) return std::unexpected(built.error());
  if (auto launched = instance->launch(); !launched) return std::unexpected(launched.error());
  return instance;
}

Result<void> Instance::build() {
  runtime_ = net::Runtime::create(config_.node.threads);
  if (auto connected = build_client(); !connected) return connected;
  cache::Parts parts;
  for (const cache::SourceSpec& spec : config_.sources) {
    auto source = open_source(spec, config_, metrics_, log_);
    if (!source) return std::unexpected(source.error());
    parts.source_names.push_back(spec.name);
    parts.sources.push_back(source->get());
    sources_.push_back(std::move(*source));
  }
  auto tier = NearTier::open(config_, sources_);
  if (!tier) return std::unexpected(tier.error());
  near_ = std::move(*tier);
  if (log_ && !near_->began_with().empty()) log_(near_->began_with());
  near::Store& store = near_->store();
  if (auto built = build_engine(); !built) return built;
  if (client_ == nullptr) {
    plain_ = std::make_unique<engine::PlainCommands>(store);
    leases_ = std::make_unique<engine::Leases>(
        store, engine::Leases::Options{.max_waiters = config_.node.max_waiters});
  }
  if (auto built = build_journal(); !built) return built;
  parts.caches = config_.caches;
  parts.journal = journal_.get();
  parts.near = &store;
  parts.engine = engine_.get();
  parts.metrics = &metrics_;
  parts.seed = random_seed();
  parts.max_flights = config_.node.max_loads;
  parts.max_waiters = config_.node.max_waiters;
  parts.audit = config_.audit;
  parts.log = log_;
  pubsub_ = std::make_unique<PubSub>(metrics_.counter("larder_clients_dropped_total",
                                                      {{"reason", "slow_subscriber"}},
                                                      "Clients closed by Larder, by reason"));
  invalidator_ = std::make_unique<Invalidator>(
      clients_, *pubsub_, config_.node.max_tracked_keys,
      metrics_.counter("larder_clients_dropped_total", {{"reason", "slow_tracking"}},
                       "Clients closed by Larder, by reason"));
  if (client_ != nullptr)
    passed_ = std::make_unique<Passed>(*client_, store, *invalidator_,
                                       Passed::Options{.name_space = config_.engine.name_space,
                                                       .timeout_us = config_.plain.timeout_us,
                                                       .near_prefixes = config_.plain.near,
                                                       .near_bound_us = config_.plain.near_bound_us,
                                                       .metrics = &metrics_,
                                                       .log = log_});
  parts.on_invalidated = [this](std::span<const std::string> keys, bool everything) {
    if (everything) return invalidator_->everything();
    const std::vector<std::string_view> views(keys.begin(), keys.end());
    invalidator_->changed(views);
  };
  node_ = std::make_unique<cache::Node>(std::move(parts));
  auto feeds = open_feeds(config_, *node_, *runtime_, metrics_, log_);
  if (!feeds) return std::unexpected(feeds.error());
  feeds_ = std::move(*feeds);

  SessionContext& context = sessions_context_;
  context.node = node_.get();
  context.near = &store;
  context.plain = plain_.get();
  context.passed = passed_.get();
  context.leases = leases_.get();
  context.pubsub = pubsub_.get();
  context.invalidator = invalidator_.get();
  context.max_tracked = config_.node.max_tracked_keys;
  context.clients = &clients_;
  context.group = &sessions_;
  context.password = config_.node.requirepass;
  context.max_connections = config_.node.max_clients;
  context.evict_plain = config_.plain.evict;
  context.started = monotonic_now_us();
  context.run_id = random_id();
  context.threads = runtime_->size();
  context.limits.wire.max_command_bytes = config_.node.max_request_bytes;
  context.limits.wire.max_bulk_bytes =
      std::min<std::size_t>(context.limits.wire.max_bulk_bytes, config_.node.max_request_bytes);
  context.limits.push_bytes = config_.node.max_output_bytes;
  context.limits.queued_bytes = config_.node.max_request_bytes;
  register_gauges();
  return {};
}

Result<void> Instance::build_engine() {
  near::Store& store = near_->store();
  if (client_ == nullptr) {
    engine_ = std::make_unique<engine::Embedded>(
        store, engine::Embedded::Options{.sources = static_cast<unsigned>(sources_.size())});
    return {};
  }
  engine::redis::RedisEngine::Options options = engine_options_;
  options.name_space = config_.engine.name_space;
  options.partitions = config_.engine.partitions;
  for (const cache::SourceSpec& spec : config_.sources) options.sources.push_back(spec.name);
  auto engine = std::make_unique<engine::redis::RedisEngine>(*client_, store, std::move(options));
  shared_engine_ = engine.get();
  engine_ = std::move(engine);
  return {};
}

// What waits in it is in memory when this returns; near entries of its keys are void.
Result<void> Instance::build_journal() {
  if (std::ranges::none_of(config_.caches, [](const cache::CacheSpec& spec) {
        return spec.write == cache::WriteMode::behind;
      }))
    return {};
  constexpr std::uint64_t kSegments = 16;  // so that a full journal has room again soon
  journal::Journal::Options options;
  options.log.capacity_bytes = config_.journal.capacity_bytes;
  options.log.segments.segment_bytes =
      std::min(options.log.segments.segment_bytes, config_.journal.capacity_bytes / kSegments);
  auto opened = journal::Journal::open(config_.node.data_dir + "/journal", options);
  if (!opened) return std::unexpected(opened.error());
  journal_ = std::move(*opened);
  journal_->pending().each_key(
      [this](std::string_view key) { near_->store().invalidate(hash_bytes(key), key, false); });
  if (const std::uint64_t waits = journal_->replayed(); waits > 0 && log_)
    log_(fmt::format("the journal holds {} write{} of an earlier run: they go to the database now",
                     waits, waits == 1 ? "" : "s"));
  if (const std::uint64_t cut = journal_->opened().cut_bytes; cut > 0 && log_)
    log_(
        fmt::format("the journal's last {} bytes were being written when it ended, and were "
                    "acknowledged to nobody: cut off",
                    cut));
  for (const std::string& source : journal_->pending().sources())
    if (std::ranges::find(config_.sources, source, &cache::SourceSpec::name) ==
            config_.sources.end() &&
        log_)
      log_(
          fmt::format("the journal holds writes to source '{}', which is no longer declared: they "
                      "stay where they are",
                      source));
  return {};
}

// The client of a Redis or Valkey engine; none for the embedded one.
Result<void> Instance::build_client() {
  if (config_.engine.url == "embedded:") return {};
  auto url = engine::redis::parse_url(config_.engine.url);
  if (!url) return std::unexpected(url.error());
  engine::redis::Options options;
  options.url = std::move(*url);
  options.metrics = &metrics_;
  options.log = log_;
  auto client = engine::redis::Client::create(*runtime_, std::move(options));
  if (!client) return std::unexpected(client.error());
  client_ = std::move(*client);
  return {};
}

void Instance::register_gauges() {
  using Kind = obs::Registry::Kind;
  const auto add = [&](Kind kind, std::string_view name, std::string_view help, auto read) {
    metrics_.callback(kind, name, {}, help, [read] { return static_cast<double>(read()); }, this);
  };
  add(Kind::gauge, "larder_connected_clients", "Connected RESP clients",
      [this] { return clients_.count(); });
  add(Kind::gauge, "larder_near_bytes", "Bytes that the near tier holds",
      [this] { return near_->store().stats().bytes; });
  add(Kind::gauge, "larder_near_capacity_bytes", "Bytes that the near tier may hold",
      [this] { return near_->store().capacity_bytes(); });
  add(Kind::gauge, "larder_near_entries", "Entries in the near tier",
      [this] { return near_->store().stats().entries; });
  add(Kind::counter, "larder_near_evictions_total", "Entries that made room for others",
      [this] { return near_->store().stats().evictions; });
  add(Kind::counter, "larder_near_expirations_total", "Entries whose life ended",
      [this] { return near_->store().stats().expirations; });
  add(Kind::counter, "larder_near_refused_too_large_total",
      "Entries larger than an eighth of a shard, which were not stored",
      [this] { return near_->store().stats().too_large; });
  add(Kind::counter, "larder_near_refused_no_room_total",
      "Entries that were not stored because nothing could be evicted",
      [this] { return near_->store().stats().no_room; });
  add(Kind::gauge, "larder_tracked_keys", "Reads that clients may have in caches of their own",
      [this] { return invalidator_->table().reads(); });
  add(Kind::gauge, "larder_tracked_keys_max", "The bound of larder_tracked_keys",
      [this] { return config_.node.max_tracked_keys; });
  add(Kind::counter, "larder_tracked_evictions_total",
      "Keys that clients had to drop because the table of tracked keys was full",
      [this] { return invalidator_->table().evictions(); });
  add(Kind::gauge, "larder_tracking_clients", "Clients with CLIENT TRACKING on",
      [this] { return invalidator_->table().clients(); });
  add(Kind::counter, "larder_commands_total", "Commands of clients, of all kinds",
      [this] { return sessions_context_.stats.commands.load(std::memory_order_relaxed); });
}

Result<void> Instance::listen() {
  for (const std::string& address : config_.node.listen) {
    auto bound = runtime_->listen(
        address, sessions_,
        [this](std::unique_ptr<net::Stream> stream) {
          return serve_client(sessions_context_, std::move(stream));
        },
        config_.node.max_clients, "-ERR max number of clients reached\r\n");
    if (!bound) return std::unexpected(bound.error());
    addresses_.push_back(std::move(*bound));
  }
  if (!addresses_.empty()) sessions_context_.address = addresses_.front();
  admin_context_ = {.node = node_.get(),
                    .near = &near_->store(),
                    .metrics = &metrics_,
                    .clients = &clients_,
                    .ready = [this] { return ready_.load(); },
                    .started = sessions_context_.started,
                    .listening = fmt::format("{}", fmt::join(addresses_, ", "))};
  if (config_.node.admin.empty()) return {};
  auto bound = net::serve_http(
      *runtime_, config_.node.admin, admin_,
      [this](const net::HttpRequest& request) { return answer_admin(admin_context_, request); });
  if (!bound) return std::unexpected(bound.error());
  admin_address_ = std::move(*bound);
  return {};
}

// Clients are answered once it is known which of the writes that wait the database has already.
Task<void> Instance::begin(std::promise<Result<void>>& started) {
  node_->start();
  co_await node_->recovered(monotonic_now_us() + kRecoverWithin);
  if (feeds_) feeds_->start();
  upkeep_.spawn(housekeeping());
  auto listening = listen();
  ready_ = listening.has_value();
  started.set_value(std::move(listening));
}

Result<void> Instance::launch() {
  std::promise<Result<void>> started;
  runtime_->loop(0).post([this, &started] {
    if (client_ != nullptr) {
      engine_tasks_.spawn(client_->run(engine_tasks_));
      engine_tasks_.spawn(passed_->run(engine_tasks_));
    }
    lifecycle_.spawn(begin(started));
  });
  thread_ = std::thread([this] { runtime_->run(); });
  auto result = started.get_future().get();
  if (!result) {
    request_stop();
    wait();
  }
  return result;
}

Instance::~Instance() {
  if (thread_.joinable()) {
    request_stop();
    wait();
  }
  metrics_.remove_callbacks(this);
}

void Instance::stop_on_signals() {
  runtime_->loop(0).post([this] {
    runtime_->on_signal([this](int) {
      if (stopping_) std::_Exit(130);  // asked twice: at once
      request_stop();
    });
  });
}

void Instance::request_stop() {
  if (stopping_.exchange(true)) return;
  ready_ = false;
  runtime_->loop(0).post([this] { lifecycle_.spawn(shut_down()); });
}

void Instance::wait() {
  const std::scoped_lock lock(wait_mutex_);
  if (thread_.joinable()) thread_.join();
}

Task<void> Instance::housekeeping() {
  for (;;) {
    const TimeUs now = monotonic_now_us();
    // When much ends at once, the loop serves others in between.
    bool more = near_->keep(now, *node_);
    more |= invalidator_->expire(now);
    const bool stopping = co_await upkeep_.sleep_until(now + (more ? 0 : kKeepEvery));
    if (stopping) co_return;
  }
}

// Lets sessions answer what they are working on; those that cannot be rid of their answers are cut.
Task<void> Instance::finish_sessions() {
  sessions_.stop();
  clients_.each([](Peer& peer) { peer.finish(); });
  const TimeUs until = monotonic_now_us() + kFinishWithin;
  while (sessions_.running() > 0 && monotonic_now_us() < until) {
    Waiters pause;
    co_await pause.wait_until(monotonic_now_us() + kLookAgain);
  }
  clients_.each([](Peer& peer) { peer.kill(); });
  const TimeUs at_last = monotonic_now_us() + kFinishWithin;
  while (sessions_.running() > 0 && monotonic_now_us() < at_last) {
    Waiters pause;
    co_await pause.wait_until(monotonic_now_us() + kLookAgain);
  }
  // What still waits for the engine is cut off there.
  if (sessions_.running() > 0) engine_tasks_.stop();
  co_await sessions_.join();
}

Task<void> Instance::shut_down() {
  runtime_->stop_listening();
  node_->drain();
  co_await finish_sessions();
  upkeep_.stop();
  co_await upkeep_.join();
  if (feeds_) co_await feeds_->stop();
  co_await node_->stop(monotonic_now_us() + config_.journal.drain_timeout_us);
  if (shared_engine_ != nullptr) co_await shared_engine_->stop();
  engine_tasks_.stop();
  co_await engine_tasks_.join();
  if (auto closed = near_->close(monotonic_now_us()); !closed && log_)
    log_(to_string(closed.error()));
  admin_.stop();
  co_await admin_.join();
  runtime_->stop();
}

}  // namespace larder::server
