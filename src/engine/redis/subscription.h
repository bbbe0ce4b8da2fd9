// Channels that the node itself listens to, over connections that come and go. Internal to the
// engine.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/random.h"
#include "engine/redis/core.h"
#include "engine/redis/dedicated.h"
#include "resilience/backoff.h"

namespace larder::engine::redis {

// SUBSCRIBE (or SSUBSCRIBE) to channels, over and over until stop(): one connection to each server
// that has some of them. Belongs to one loop.
class Subscription : public Held, public std::enable_shared_from_this<Subscription> {
 public:
  // Where a channel is to be had now, given where it is held ("" = nowhere); "" = not known.
  using Place =
      std::function<std::string(const std::string& channel, const std::string& held, bool sharded)>;

  // Is it to be SSUBSCRIBE? nullopt: not known yet. May change when the deployment does.
  using Mode = std::function<std::optional<bool>()>;

  // `mode` and `place` are called on the loop, until run() ends.
  Subscription(Core& core, Loop& loop, std::vector<std::string> channels, Subscriber& to, Mode mode,
               Place place);

  static Task<void> run(std::shared_ptr<Subscription> self);  // on its loop, once
  void stop() override;                                       // on its loop: no callback after it

  Loop& loop() { return loop_; }
  const Subscriber& subscriber() const { return to_; }

 private:
  // A connection with some of the channels.
  struct Session {
    std::string address;
    std::unique_ptr<Peer> peer;  // null: it is being made
    std::string queued;
    std::string writing;
    std::shared_ptr<Waiters> idle;                   // the writer has nothing to do
    std::deque<std::vector<std::string>> requested;  // channels of each command without answer
    std::set<std::string, std::less<>> live;
    TimeUs heard_at = 0;
    TimerId timer = 0;
    bool closed = false;
    bool was_live = false;
  };
  using SessionPtr = std::shared_ptr<Session>;

  bool choose_mode();
  void assign();
  void request(Session& session, const std::vector<std::string>& channels);
  static void queue(Session& session, std::string_view bytes);
  static void close(Session& session);
  static Task<void> serve(std::shared_ptr<Subscription> self, SessionPtr session);
  static Task<void> write(SessionPtr session);
  Task<std::string> read(SessionPtr session);
  std::string take(const SessionPtr& session, const wire::Reply& message);
  std::string refused(Session& session, std::string_view error);
  void ended(const SessionPtr& session, const std::string& why);
  void lose(const SessionPtr& session, const std::string& channel);
  void wake(TimeUs at);
  void tick(const SessionPtr& session);

  Core& core_;
  Loop& loop_;
  Subscriber& to_;
  const Mode mode_;
  const Place place_;
  Random random_;
  resilience::Backoff backoff_;
  std::map<std::string, SessionPtr, std::less<>> where_;  // each channel; null: nowhere now
  std::set<SessionPtr> sessions_;
  std::shared_ptr<Waiters> news_ = std::make_shared<Waiters>();
  TimeUs retry_at_ = kNever;
  std::string complaint_;        // was logged last
  std::optional<bool> sharded_;  // as it is done now
  bool stopped_ = false;
};

}  // namespace larder::engine::redis
