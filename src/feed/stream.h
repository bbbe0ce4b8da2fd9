// A feed of the entries of a Redis Stream.
//
// A stream has a history, so nothing is lost by a restart or an outage: entries are read in order,
// applied, and then the position is written to the key "<namespace>:{feed:<name>}" of the same
// Redis. Beside the stream is the right place: both are lost together, and then everything is void
// anyway. What was trimmed away before it was read is noticed (cursor.h), and voids everything,
// too.
//
// There is no consumer group: every node reads every entry, each at its own pace from memory, and
// the stored position is the furthest that any has reached. That is enough where nodes share an
// engine, because there an invalidation by one is an invalidation for all; and it needs no
// acknowledgements, no claims of dead consumers, and no state that grows with the nodes.
// Invalidations are idempotent: what is applied by two nodes, or again after a crash, does no harm.
// Nodes that share no engine (embedded) but the Redis of a feed want namespaces of their own: one
// would begin where the other has ended.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/task.h"
#include "engine/redis/client.h"
#include "feed/cursor.h"
#include "feed/intake.h"

namespace larder::feed {

// Used from one loop.
class StreamFeed {
 public:
  // What is given by reference, and what `actions` use, outlives the feed.
  StreamFeed(const Spec& spec, std::string position_key, engine::redis::Client& client,
             const Actions& actions, obs::Registry& metrics, const Log& log);
  ~StreamFeed();

  // Reads and applies until `group` stops. wake() after group.stop().
  Task<void> run(TaskGroup& group);
  void wake();

 private:
  struct Batch {
    StreamState state;
    std::vector<StreamEntry> entries;
  };
  Task<Result<void>> load_position();
  Task<Result<void>> serve(TaskGroup& group);
  Task<Result<wire::Reply>> receive(DurationUs within);
  Task<Result<Batch>> read_batch();
  Task<Result<void>> wait_for_more();
  Task<bool> begin(TaskGroup& group, const StreamState& state);
  Task<bool> apply(TaskGroup& group, const Batch& batch);
  std::optional<Event> event_of(const StreamEntry& entry, TimeUs now);
  Task<void> save(bool replaced);

  const Spec& spec_;
  const std::string position_key_;
  engine::redis::Client& client_;
  obs::Registry& metrics_;
  Intake intake_;
  SayRarely say_;
  std::unique_ptr<engine::redis::Dedicated> connection_;
  bool loaded_ = false;           // the stored position has been looked at
  std::optional<Cursor> cursor_;  // nullopt: there was none
  std::atomic<bool> up_{false};
};

}  // namespace larder::feed
