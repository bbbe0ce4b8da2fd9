// The change feed of a PostgreSQL source: its log, read through a replication slot.
//
// FeedFor::fleet: a persistent slot. Whoever holds it reads for all; the others wait until it is
// free. What has been read stays in the log until the sink has it (and, if the sink says so, until
// its replicas have). FeedFor::node: a temporary slot that begins at the log's end, so that a
// node that is away cannot fill the server's disk; after each connection everything is void once.
//
// Positions are LSNs: of the end of a commit record, or of a message of ours. The reader writes a
// message into the log each heartbeat; when it comes back, everything that was committed before has
// been delivered. While the log cannot be read there are no heartbeats.
//
// What it rests on is examined (prepare.h) with each connection and every `check_us`; a heartbeat
// vouches for no later time than that. When it does not hold, changes may have been missed: no
// heartbeat until it holds again, and then everything. Who reads for a fleet leaves a note with the
// publication of what he has examined, for the one who reads after him.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "obs/metrics.h"
#include "source/postgres/prepare.h"
#include "source/postgres/replication.h"
#include "source/source.h"

namespace larder::source::postgres {

struct FeedOptions {
  std::string name;  // of the source: label of the metrics, and in messages
  std::string url;   // of the primary, as Connection takes it
  FeedFor feed_for = FeedFor::node;
  std::string slot;         // see feed_name; FeedFor::node: the beginning of its slots' names
  std::string publication;  // see feed_name
  DurationUs heartbeat_us = 200 * kMillisecond;
  DurationUs check_us = 10 * kSecond;
  // FeedFor::fleet: how much log the slot may hold back. Beyond, it is dropped and made anew, and
  // everything is void. 0: no limit but the server's max_slot_wal_keep_size.
  std::uint64_t slot_limit_bytes = 0;
  std::vector<WatchedTable> watched;
  obs::Registry* metrics = nullptr;  // may be null; else outlives the feed
  // Told when the log cannot be read any more, why, and when it is read again. May be empty.
  std::function<void(std::string)> log;
};

struct FeedState;
class FeedSession;

class Feed {
 public:
  explicit Feed(FeedOptions options);
  ~Feed();  // REQUIRES: run() has ended, or never began
  Feed(const Feed&) = delete;
  Feed& operator=(const Feed&) = delete;

  // Source::run_feed. Once.
  Task<void> run(TaskGroup& group, ChangeSink sink);

 private:
  Task<void> interrupt_at_stop(TaskGroup& group);

  std::unique_ptr<FeedState> state_;
  std::unique_ptr<FeedSession> session_;  // what is connected now
};

}  // namespace larder::source::postgres
