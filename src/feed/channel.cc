#include "feed/channel.h"

namespace larder::feed {
namespace {

// Applied with one call: large enough to be cheap, small enough to let others in between.
constexpr std::size_t kBatch = 1000;
constexpr std::size_t kMaxPendingBytes = 64 << 20;
// Woken long before; a wait without a deadline is one that a lost wake-up never ends.
constexpr DurationUs kLookAgain = 60 * kSecond;

}  // namespace

ChannelFeed::ChannelFeed(const Spec& spec, engine::redis::Client& client, const Actions& actions,
                         obs::Registry& metrics, const Log& log)
    : spec_(spec),
      client_(client),
      metrics_(metrics),
      intake_(spec, actions, metrics, log),
      pending_(spec.queue, kMaxPendingBytes),
      wake_(std::make_shared<Waiters>()) {
  using Kind = obs::Registry::Kind;
  metrics_.callback(
      Kind::gauge, "larder_feed_waiting", {{"feed", spec.name}},
      "Keys and tags of a feed that wait to be made void",
      [this] {
        MutexLock lock(mutex_);
        return static_cast<double>(pending_.size());
      },
      this);
  metrics_.callback(
      Kind::gauge, "larder_feed_up", {{"feed", spec.name}},
      "1 while a feed hears what its application says",
      [this] {
        MutexLock lock(mutex_);
        return up_ ? 1.0 : 0.0;
      },
      this);
}

ChannelFeed::~ChannelFeed() { metrics_.remove_callbacks(this); }

void ChannelFeed::wake_locked(std::shared_ptr<Waiters>& old) {
  if (!std::exchange(asleep_, false)) return;
  old = std::exchange(wake_, std::make_shared<Waiters>());
}

void ChannelFeed::wake() {
  std::shared_ptr<Waiters> old;
  {
    MutexLock lock(mutex_);
    asleep_ = true;  // also for a feed that is about to sleep
    wake_locked(old);
  }
  if (old) old->notify();
}

void ChannelFeed::on_message(std::string_view /*channel*/, std::string_view message) {
  std::optional<Event> event = intake_.read(message, Loop::current()->now_us());
  if (!event) return;
  std::shared_ptr<Waiters> old;
  bool fits = true;
  {
    MutexLock lock(mutex_);
    fits = pending_.add(std::move(*event));
    if (!fits) reason_ = "overflow";
    wake_locked(old);
  }
  if (old) old->notify();
  if (!fits)
    intake_.say(
        fmt::format("more than {} keys and tags wait: all entries of its caches go", spec_.queue));
}

void ChannelFeed::voided(std::string_view reason) {
  std::shared_ptr<Waiters> old;
  {
    MutexLock lock(mutex_);
    pending_.everything();
    reason_ = reason;
    up_ = reason == "subscribed";
    wake_locked(old);
  }
  if (old) old->notify();
}

void ChannelFeed::on_subscribed(std::string_view /*channel*/) { voided("subscribed"); }

void ChannelFeed::on_lost(std::string_view /*channel*/) {
  intake_.say("the subscription is lost; events may be missed until it is made again");
  voided("lost");
}

Task<void> ChannelFeed::run(TaskGroup& group) {
  client_.subscribe({spec_.channel}, false, *this);
  co_await apply_until_stopped(group);
  co_await client_.unsubscribe(*this);
}

Task<void> ChannelFeed::apply_until_stopped(TaskGroup& group) {
  while (!group.stopping()) {
    Pending::Batch batch;
    std::string reason;
    std::shared_ptr<Waiters> sleep;
    {
      MutexLock lock(mutex_);
      if (pending_.empty()) {
        asleep_ = true;
        sleep = wake_;
      } else {
        batch = pending_.take(kBatch);
        reason = reason_;
      }
    }
    if (sleep) {
      co_await sleep->wait_until(Loop::current()->now_us() + kLookAgain);
      continue;
    }
    if (batch.everything) {
      const bool done = co_await intake_.everything(group, reason);
      if (!done) co_return;
    }
    const bool done = co_await intake_.apply(group, std::move(batch.keys), std::move(batch.tags));
    if (!done) co_return;
    intake_.applied(batch.events);
  }
}

}  // namespace larder::feed
