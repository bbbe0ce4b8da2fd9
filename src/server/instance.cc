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

Instance::Instance(const config::Config& config, Log log) : config_(config), log_(std::move(log)) {}

Result<std::unique_ptr<Instance>> Instance::start(const config::Config& config, Log log) {
  std::unique_ptr<Instance> instance(new Instance(config, std::move(log)));
  if (auto built = instance->build(); !built) return std::unexpected(built.error());
  if (auto launched = instance->launch(); !launched) return std::unexpected(launched.error());
  return instance;
}

Result<void> Instance::build() {
  if (config_.engine.url != "embedded:")
    return fail(ErrorCode::config,
                fmt::format("engine.url = \"{}\" is not in this version; use \"embedded:\"",
                            config_.engine.url));
  runtime_ = net::Runtime::create(config_.node.threads);
  cache::Parts parts;
  for (const cache::SourceSpec& spec : config_.sources) {
    auto source = open_source(spec, config_.caches, metrics_, log_);
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
  engine_ = std::make_unique<engine::Embedded>(
      store, engine::Embedded::Options{.sources = static_cast<unsigned>(sources_.size())});
  plain_ = std::make_unique<engine::PlainCommands>(store);
  leases_ = std::make_unique<engine::Leases>(
      store, engine::Leases::Options{.max_waiters = config_.node.max_waiters});
  parts.caches = config_.caches;
  parts.near = &store;
  parts.engine = engine_.get();
  parts.metrics = &metrics_;
  parts.seed = random_seed();
  parts.max_flights = config_.node.max_loads;
  parts.max_waiters = config_.node.max_waiters;
  node_ = std::make_unique<cache::Node>(std::move(parts));
  pubsub_ = std::make_unique<PubSub>(metrics_.counter("larder_clients_dropped_total",
                                                      {{"reason", "slow_subscriber"}},
                                                      "Clients closed by Larder, by reason"));

  SessionContext& context = sessions_context_;
  context.node = node_.get();
  context.near = &store;
  context.plain = plain_.get();
  context.leases = leases_.get();
  context.pubsub = pubsub_.get();
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

Result<void> Instance::launch() {
  std::promise<Result<void>> started;
  runtime_->loop(0).post([this, &started] {
    node_->start();
    upkeep_.spawn(housekeeping());
    auto listening = listen();
    ready_ = listening.has_value();
    started.set_value(std::move(listening));
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
    const bool more = near_->keep(now, *node_);
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
  co_await sessions_.join();
}

Task<void> Instance::shut_down() {
  runtime_->stop_listening();
  node_->drain();
  co_await finish_sessions();
  upkeep_.stop();
  co_await upkeep_.join();
  co_await node_->stop();
  if (auto closed = near_->close(monotonic_now_us()); !closed && log_)
    log_(to_string(closed.error()));
  admin_.stop();
  co_await admin_.join();
  runtime_->stop();
}

}  // namespace larder::server
