// What a source's feed has read, applied to the source's partitions, by one node at a time.
//
// Any node's feed may do it: each step compares the partition's position A, so two at once are
// safe. A lease keeps it to one. Whoever takes it over reads all A and has the source's log read
// again from the lowest. A partition without state, or with another source's, gets a new epoch:
// mark it, ask the feed for the log's end and a floor, write the epoch (design section 3).
//
// Used by one coroutine at a time. Internal to the engine.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "engine/engine.h"
#include "engine/redis/client.h"
#include "engine/redis/confirmed.h"
#include "engine/redis/partition.h"
#include "engine/redis/steps.h"

namespace larder::engine::redis {

class Feeder {
 public:
  // All outlive it. `partitions`: of the source.
  Feeder(Client& client, const Steps& steps, std::vector<Partition*> partitions, DurationUs beat_us,
         DurationUs timeout_us, const Hooks* hooks);

  Task<Result<FeedOrder>> deliver(FeedBatch batch, TaskGroup& group);

  // For a source without a feed: keeps every partition in an epoch until `group` is stopping.
  Task<void> keep_epochs(TaskGroup& group);

  // So that another node need not wait for its end. After the feed has ended.
  Task<void> give_up_lease();

  void set_beat(DurationUs beat_us) { beat_us_ = beat_us; }

 private:
  Task<Result<bool>> take_lease();
  Task<Result<void>> wait_for_lease(TaskGroup& group);
  Task<Result<void>> read_all(std::uint64_t source_id);
  Task<void> read_one(std::size_t index, std::uint64_t source_id, Result<void>& outcome);
  Task<void> begin_epoch(std::size_t index, Result<void>& outcome);
  Task<void> write_epoch(std::size_t index, const FeedBatch& batch, Result<void>& outcome);
  Task<void> apply(std::size_t index, const FeedBatch& batch, std::vector<Invalidation> changes,
                   bool beats, Result<void>& outcome);
  Task<Result<void>> mark_missing();
  Task<Result<void>> apply_all(FeedBatch& batch);
  std::vector<std::vector<Invalidation>> by_partition(const FeedBatch& batch) const;
  std::string unique();
  FeedOrder order() const;
  void note_applied();

  struct State {
    bool known = false;          // it has an epoch of our source
    std::uint64_t position = 0;  // A
    std::string mark;            // of an epoch that we have begun; "" = none
  };
  // Those that have applied what comes after the batch.
  std::vector<State*> beyond(const FeedBatch& batch);

  Client& client_;
  const Steps& steps_;
  const std::vector<Partition*> partitions_;
  const Hooks* hooks_;
  DurationUs beat_us_;
  const DurationUs timeout_us_;
  Random random_;
  const std::string token_;
  TimeUs leased_at_ = 0;  // 0: not held
  bool began_ = false;    // states_ are right, for source_id_
  std::uint64_t source_id_ = 0;
  std::vector<State> states_;
  std::uint64_t delivered_ = 0;  // everything up to here has been applied where it belongs
  TimeUs beat_at_ = 0;
  Confirmed confirmed_;
};

// Turns a change into steps of the partitions of its keys and tags. `schema_of` names the schemas.
void split_change(const Change& change, const Hooks& hooks, unsigned partitions,
                  std::vector<std::vector<Invalidation>>& into);

}  // namespace larder::engine::redis
