#include "server/passed.h"

#include "base/hash.h"
#include "server/session.h"

namespace larder::server {
namespace {

constexpr DurationUs kTrackWithin = 5 * kSecond;

}  // namespace

class Passed::NearListener final : public engine::redis::KeyWatch::Listener {
 public:
  explicit NearListener(Passed& owner) : owner_(owner) {}
  void on_changed(std::span<const std::string_view> keys) override {
    owner_.voided_->add(keys.size());
    for (const std::string_view key : keys) owner_.near_.invalidate(hash_bytes(key), key, false);
    // Their own watch may have told clients before: who has read from here since has to hear it.
    owner_.invalidator_.changed(keys);
  }
  void on_flush() override { forget(); }
  void on_up() override { owner_.near_.invalidate_tag(owner_.tag_); }
  void on_down() override { forget(); }

 private:
  void forget() {
    owner_.near_.invalidate_tag(owner_.tag_);
    owner_.invalidator_.everything();
  }

  Passed& owner_;
};

class Passed::ClientListener final : public engine::redis::KeyWatch::Listener {
 public:
  explicit ClientListener(Invalidator& to) : to_(to) {}
  void on_changed(std::span<const std::string_view> keys) override { to_.changed(keys); }
  void on_flush() override { to_.everything(); }
  // What was read while nothing was told must go, at the latest when it is told again.
  void on_up() override { to_.everything(); }
  void on_down() override { to_.everything(); }

 private:
  Invalidator& to_;
};

Passed::Passed(engine::redis::Client& client, near::Store& near, Invalidator& invalidator,
               Options options)
    : near_(near),
      invalidator_(invalidator),
      options_(std::move(options)),
      plain_(client, {.name_space = options_.name_space, .timeout_us = options_.timeout_us}),
      unlearned_{.name = "unlearned",
                 .arity = -1,
                 .group = "generic",
                 .summary = "",
                 .later = &Session::pass_unlearned},
      tag_(hash_bytes("@plain.near")) {
  using engine::redis::KeyWatch;
  if (!options_.near_prefixes.empty()) {
    near_listener_ = std::make_unique<NearListener>(*this);
    near_watch_ = std::make_unique<KeyWatch>(client,
                                             KeyWatch::Options{.prefixes = options_.near_prefixes,
                                                               .bound_us = options_.near_bound_us,
                                                               .wanted = {},
                                                               .log = options_.log},
                                             *near_listener_);
  }
  client_listener_ = std::make_unique<ClientListener>(invalidator);
  client_watch_ = std::make_unique<KeyWatch>(
      client,
      KeyWatch::Options{.prefixes = {},
                        .bound_us = options_.near_bound_us,
                        .wanted =
                            [this] {
                              return invalidator_.table().clients() > 0 ||
                                     monotonic_now_us() <
                                         client_wish_.load(std::memory_order_relaxed);
                            },
                        .log = options_.log},
      *client_listener_);
  obs::Registry& metrics = *options_.metrics;
  fills_ = &metrics.counter("larder_plain_near_fills_total", {},
                            "Plain keys that were stored in the near tier");
  voided_ = &metrics.counter("larder_plain_near_changes_total", {},
                             "Changes of plain keys that the engine has told the near tier");
  metrics.callback(
      obs::Registry::Kind::gauge, "larder_plain_near_up", {},
      "1: the engine tells of changes, so plain keys may be held near",
      [this] { return near_up() ? 1.0 : 0.0; }, this);
}

Passed::~Passed() { options_.metrics->remove_callbacks(this); }

Task<void> Passed::run(TaskGroup& group) {
  if (near_watch_ != nullptr) group.spawn(near_watch_->run(group));
  group.spawn(client_watch_->run(group));
  co_return;
}

// ---- commands ----

const CommandRow* Passed::find_name(std::string_view name) const {
  const auto at = learned_.find(name);
  return at == learned_.end() ? nullptr : &at->second->row;
}

const CommandRow* Passed::find(Args args) const {
  constexpr std::size_t kLongestName = 64;
  std::string name = to_lower(args[0].substr(0, kLongestName));
  MutexLock lock(mutex_);
  const CommandRow* const row = find_name(name);
  if (row == nullptr) return &unlearned_;
  if ((row->flags & kContainer) == 0 || args.size() < 2) return row;
  name += '|';
  name += to_lower(args[1].substr(0, kLongestName));
  const CommandRow* const sub = find_name(name);
  return sub != nullptr ? sub : row;
}

void Passed::add(engine::redis::CommandInfo info) {
  auto& slot = learned_[info.name];
  if (slot != nullptr) return;
  slot = std::make_unique<Learned>();
  Learned& learned = *slot;
  learned.name = std::move(info.name);
  learned.plain = {.name = learned.name,
                   .arity = info.arity,
                   .writes = info.writes,
                   .may_grow = false,
                   .first_key = info.first_key,
                   .last_key = info.last_key,
                   .key_step = std::max(1, info.key_step),
                   .whole_keyspace = false};
  std::uint16_t flags = kPassed;
  if (info.blocking) flags |= kBlocking;
  if (info.movable) flags |= kMovable;
  if (info.container) flags |= kContainer;
  // The "key" of these is a channel.
  if (learned.name == "spublish" || learned.name.starts_with("pubsub")) flags |= kPubSub;
  learned.row = {.name = learned.name,
                 .arity = info.arity,
                 .flags = flags,
                 .first_key = info.first_key,
                 .last_key = info.last_key,
                 .key_step = info.key_step,
                 .group = "engine",
                 .summary = "As the engine has it.",
                 .plain = &learned.plain};
}

Task<Result<bool>> Passed::learn(std::string name) {
  auto found = co_await plain_.info(name);
  if (!found) co_return std::unexpected(found.error());
  if (found->empty()) co_return false;
  found->front().name = std::move(name);  // a renamed command says its first name
  MutexLock lock(mutex_);
  for (engine::redis::CommandInfo& info : *found) add(std::move(info));
  co_return true;
}

// ---- plain keys near ----

bool Passed::near(std::string_view key) const {
  return std::ranges::any_of(options_.near_prefixes,
                             [&](const std::string& prefix) { return key.starts_with(prefix); });
}

std::optional<policy::Ticket> Passed::ticket(std::string_view key) const {
  if (!near_up() || !near(key)) return std::nullopt;
  return near_.ticket(hash_bytes(key));
}

void Passed::fill(const policy::Ticket& ticket, std::string_view key, std::string_view value,
                  TimeUs asked_at, std::int64_t life_ms) {
  // What became void since the ticket was given is refused, a loss of the watch included: that
  // stamps the tag.
  if (!near_up() || life_ms == 0 || life_ms < -1) return;
  const TimeUs end = life_ms < 0 ? kNever : saturating_add(asked_at, life_ms * kMillisecond);
  const near::Meta meta{.tag_count = 1, .as_of = asked_at, .soft_expiry = end, .useless_at = end};
  const policy::Refusal refusal = near_.fill(ticket, key, hash_bytes(key), value, meta, {&tag_, 1});
  if (refusal == policy::Refusal::none) fills_->add();
}

void Passed::written(std::span<const std::string_view> keys) {
  if (near_watch_ == nullptr) return;
  for (const std::string_view key : keys)
    if (near(key)) near_.invalidate(hash_bytes(key), key, false);
}

void Passed::flushed() {
  if (near_watch_ != nullptr) near_.invalidate_tag(tag_);
}

// ---- CLIENT TRACKING ----

Task<Result<void>> Passed::watch_for_clients() {
  const TimeUs until = monotonic_now_us() + kTrackWithin;
  client_wish_.store(until + kSecond, std::memory_order_relaxed);
  auto up = co_await client_watch_->wait_up(until);
  co_return up;
}

}  // namespace larder::server
