// Plain keys that live on a Redis or Valkey engine: what all sessions share of them. The one place
// that is there, or not, decides whether plain commands are passed on or run here
// (SessionContext::passed, SessionContext::plain).
//
// - The rows of commands that Larder itself does not have, learned from the engine one by one.
// - Plain keys in the near tier (plain.near): filled under near tickets, void when the engine tells
//   of a change; while it tells nothing, none are held.
// - Changes of plain keys for CLIENT TRACKING, while somebody tracks.
//
// Thread-safe. Calls that return a Task suspend and resume on the caller's loop.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/sync.h"
#include "engine/redis/key_watch.h"
#include "engine/redis/plain.h"
#include "near/store.h"
#include "obs/metrics.h"
#include "server/commands.h"
#include "server/invalidator.h"

namespace larder::server {

class Passed {
 public:
  struct Options {
    std::string name_space = "larder";
    DurationUs timeout_us = 30 * kSecond;  // of one command
    std::vector<std::string> near_prefixes;
    DurationUs near_bound_us = 1 * kSecond;
    obs::Registry* metrics = nullptr;
    std::function<void(std::string)> log;
  };
  // All outlive it.
  Passed(engine::redis::Client& client, near::Store& near, Invalidator& invalidator,
         Options options);
  ~Passed();

  // Spawned once into a group that is stopped and joined before this goes away.
  Task<void> run(TaskGroup& group);

  engine::redis::Plain& plain() { return plain_; }

  // ---- commands ----

  // The row of a command that is passed on; `unlearned()` if it has to be learned first. Larder's
  // own commands are not asked for here.
  const CommandRow* find(Args args) const;
  const CommandRow* unlearned() const { return &unlearned_; }
  // False: the engine does not know it either.
  Task<Result<bool>> learn(std::string name);

  // ---- plain keys near ----

  bool near(std::string_view key) const;
  // The right to fill; take it before the engine is asked. Only while changes are told.
  std::optional<policy::Ticket> ticket(std::string_view key) const;
  // `life_ms`: what PTTL said; `asked_at`: a time before it did.
  void fill(const policy::Ticket& ticket, std::string_view key, std::string_view value,
            TimeUs asked_at, std::int64_t life_ms);
  // Behind a write that passed here, before it is answered: its client reads its own write.
  void written(std::span<const std::string_view> keys);
  void flushed();
  bool near_up() const { return near_watch_ != nullptr && near_watch_->up(); }

  // ---- CLIENT TRACKING ----

  // Until clients will be told of every change of plain keys.
  Task<Result<void>> watch_for_clients();

 private:
  struct Learned {
    std::string name;
    engine::PlainCommand plain{};
    CommandRow row;
  };
  class NearListener;
  class ClientListener;
  void add(engine::redis::CommandInfo info) LARDER_REQUIRES(mutex_);
  const CommandRow* find_name(std::string_view name) const LARDER_REQUIRES(mutex_);

  near::Store& near_;
  Invalidator& invalidator_;
  const Options options_;
  engine::redis::Plain plain_;
  CommandRow unlearned_;
  const Hash tag_;  // every near entry of a plain key bears it

  mutable Mutex mutex_;
  // Rows stay for ever: sessions point to them. Bounded: only what the engine knows is kept.
  std::map<std::string, std::unique_ptr<Learned>, std::less<>> learned_ LARDER_GUARDED_BY(mutex_);

  std::unique_ptr<NearListener> near_listener_;
  std::unique_ptr<engine::redis::KeyWatch> near_watch_;  // null: no prefixes
  std::unique_ptr<ClientListener> client_listener_;
  std::unique_ptr<engine::redis::KeyWatch> client_watch_;
  std::atomic<TimeUs> client_wish_{0};  // somebody is about to track
  obs::Counter* fills_ = nullptr;
  obs::Counter* voided_ = nullptr;
};

}  // namespace larder::server
