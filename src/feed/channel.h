// A feed of what is published on a channel of a Redis or Valkey.
//
// Pub/Sub has no history. Whenever messages may have been lost - the subscription is made, is lost,
// is made again, or more waits to be applied than may wait - all entries that the feed could name
// become void. In between an event is applied within about a round trip, equal ones once.
//
// Between a loss and the new subscription nobody hears what is published: entries that are loaded
// meanwhile may be as old as the outage is long. They go when the subscription is made again.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/sync.h"
#include "base/task.h"
#include "engine/redis/client.h"
#include "feed/intake.h"
#include "feed/pending.h"

namespace larder::feed {

// on_* are called from the subscription's loop, everything else from one loop.
class ChannelFeed final : public engine::redis::Subscriber {
 public:
  // What is given by reference, and what `actions` use, outlives the feed.
  ChannelFeed(const Spec& spec, engine::redis::Client& client, const Actions& actions,
              obs::Registry& metrics, const Log& log);
  ~ChannelFeed() override;

  // Subscribes, and applies until `group` stops; then unsubscribes. wake() after group.stop().
  Task<void> run(TaskGroup& group);
  void wake();

  void on_message(std::string_view channel, std::string_view message) override;
  void on_subscribed(std::string_view channel) override;
  void on_lost(std::string_view channel) override;

 private:
  void voided(std::string_view reason);
  void wake_locked(std::shared_ptr<Waiters>& old) LARDER_REQUIRES(mutex_);
  Task<void> apply_until_stopped(TaskGroup& group);

  const Spec& spec_;
  engine::redis::Client& client_;
  obs::Registry& metrics_;
  Intake intake_;
  mutable Mutex mutex_;
  Pending pending_ LARDER_GUARDED_BY(mutex_);
  std::string reason_ LARDER_GUARDED_BY(mutex_);             // of everything that waits
  std::shared_ptr<Waiters> wake_ LARDER_GUARDED_BY(mutex_);  // notified once, then another one
  bool asleep_ LARDER_GUARDED_BY(mutex_) = false;
  bool up_ LARDER_GUARDED_BY(mutex_) = false;
};

}  // namespace larder::feed
