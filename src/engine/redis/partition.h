// What this node knows of one (source, partition) of the engine, and how its near tier follows it:
// messages void entries, gaps are noticed, another history empties the partition, answers are
// installed only if they are not older than what was applied (policy/follower.h). Besides: who
// waits for whose fill, and how the engine's clock stands to ours.
//
// Thread-safe: messages come on one loop, answers on any. Nothing suspends. Internal to the engine.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

#include "base/sync.h"
#include "base/task.h"
#include "engine/engine.h"
#include "engine/redis/protocol.h"
#include "near/store.h"
#include "policy/clock_offset.h"
#include "policy/follower.h"

namespace larder::engine::redis {

class Partition {
 public:
  // All outlive it; `heartbeat` is what Capabilities::heartbeats shows.
  Partition(Names names, unsigned source, near::Store& near, std::atomic<TimeUs>& heartbeat,
            const policy::Follower::Rules& rules);

  // Before any message.
  void set_hooks(const Hooks* hooks) { hooks_ = hooks; }

  const Names& names() const { return names_; }
  unsigned source() const { return source_; }
  // Every entry of the partition in the near tier bears it: a reset voids it.
  Hash reset_tag() const { return reset_tag_; }

  // ---- answers ----

  // To be asked for before the question is sent.
  std::uint64_t generation() const;
  // An answer that told the engine's time; and is the partition's history still the same? If not,
  // the near tier's entries are void when this returns.
  void observe(TimeUs sent, TimeUs engine_now, TimeUs received);
  bool may_install(const Position& answer, std::uint64_t generation);
  // REQUIRES: observe() has been called. Rounded to the older side; kNever and 0 stay.
  TimeUs to_ours(TimeUs engine_time, TimeUs now) const;
  TimeUs to_theirs(TimeUs our_time, TimeUs now) const;

  // ---- messages ----

  enum class Need : std::uint8_t {
    nothing,
    look,  // something is missing: read the position and what there is of the history
  };
  Need on_message(const Message& message, TimeUs now);
  // A reading of the position. look: fetch the changes after position(), or forget().
  Need on_position(const Position& position, TimeUs heartbeat, TimeUs now);
  Position position() const;
  // History is gone, or a message was not understood: entries and tickets are void.
  void forget();
  // Messages may be lost from here on.
  void on_lost();

  // ---- waiting for a fill ----

  // Notified by the fill of `key`, by its invalidation, or when messages may have been lost. Ask
  // the engine once more after this: the message may have come before.
  std::shared_ptr<Waiters> wait_for(std::string_view key);
  void wake(std::string_view key);

 private:
  void apply(const Message& message, TimeUs now);
  void empty();
  void promise(TimeUs engine_time, TimeUs now);
  void wake_all();

  const Names names_;
  const unsigned source_;
  const Hash reset_tag_;
  near::Store& near_;
  std::atomic<TimeUs>& heartbeat_;
  const Hooks* hooks_ = nullptr;

  mutable Mutex mutex_;
  policy::Follower follower_ LARDER_GUARDED_BY(mutex_);
  policy::ClockOffset clock_ LARDER_GUARDED_BY(mutex_);
  std::unordered_map<std::string, std::weak_ptr<Waiters>> waiting_ LARDER_GUARDED_BY(mutex_);
  std::size_t sweep_at_ LARDER_GUARDED_BY(mutex_) = 64;
};

}  // namespace larder::engine::redis
