// The engine on Redis or Valkey: entries, tickets and coordination state live there (protocol.h),
// and this node's near tier follows (partition.h). Nothing here decides; it sends steps, and
// applies their answers.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/engine.h"
#include "engine/redis/client.h"
#include "engine/redis/feeder.h"
#include "engine/redis/partition.h"
#include "engine/redis/steps.h"

namespace larder::engine::redis {

class RedisEngine final : public Engine, private Subscriber {
 public:
  struct Options {
    std::string name_space = "larder";
    unsigned partitions = 64;
    std::vector<std::string> sources;       // names
    DurationUs timeout_us = kSecond / 2;    // of one step; beyond, the engine counts as down
    DurationUs near_only_us = kSecond;      // life of what is held while it is down, at most
    DurationUs beat_us = kSecond;           // between heartbeats, where no bound asks for more
    StepEditor edit = {};                   // tests only
    policy::Follower::Rules follower = {};  // tests only
  };
  // All outlive the engine. Client::run is the caller's to spawn.
  RedisEngine(Client& client, near::Store& near, Options options);
  ~RedisEngine() override;

  const Capabilities& capabilities() const override { return capabilities_; }
  Task<std::vector<Found>> lookup(Lookup lookup) override;
  Task<policy::Refusal> fill(Fill fill) override;
  Task<void> release(Cache cache, Key key, Ticket ticket) override;
  Task<Result<void>> invalidate(std::vector<Change> changes) override;
  Task<Result<void>> new_epoch(unsigned source, std::uint64_t source_id) override;
  Task<Result<FeedOrder>> feed(unsigned source, FeedBatch batch) override;
  void start(TaskGroup& group, Hooks hooks) override;
  // Ends the subscription. After the group of start() was stopped, before the client's.
  Task<void> stop();

 private:
  struct Source {
    std::vector<std::atomic<TimeUs>> heartbeats;
    std::vector<std::unique_ptr<Partition>> partitions;
    std::unique_ptr<Feeder> feeder;
  };
  struct Following {  // by channel
    Partition* partition = nullptr;
    bool looking = false;
    bool again = false;
    bool live = false;
  };

  // Subscriber; on one loop.
  void on_message(std::string_view channel, std::string_view message) override;
  void on_subscribed(std::string_view channel) override;
  void on_lost(std::string_view channel) override;
  void look(Following& following);
  Task<void> catch_up(Following& following);
  Task<bool> catch_up_once(Partition& partition);

  Partition& partition_of_key(unsigned source, std::string_view key) const;
  Task<void> lookup_in(const Lookup& lookup, Partition& partition, std::vector<std::size_t> which,
                       bool waits, std::vector<Found>& found);
  void take(const Lookup& lookup, Partition& partition, const LookupAnswer& answer, TimeUs now,
            const std::vector<std::size_t>& which, std::vector<Found>& found);
  void install(Partition& partition, Key key, const Ticket& ticket, const near::Meta& meta,
               std::string_view value, const std::vector<std::string>& tags);
  Task<void> change_in(Partition& partition, std::vector<Invalidation> changes,
                       Result<void>& outcome);
  bool suspect(TimeUs now) const;
  void judge_call(const Error* error, TimeUs now);

  Client& client_;
  near::Store& near_;
  const Options options_;
  Capabilities capabilities_;
  Steps steps_;
  Hooks hooks_;
  std::vector<std::unique_ptr<Source>> sources_;
  std::unordered_map<std::string, Following> following_;
  TaskGroup* group_ = nullptr;
  std::atomic<TimeUs> suspect_until_{0};
};

}  // namespace larder::engine::redis
