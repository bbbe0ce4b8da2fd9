// PostgreSQL 13 or newer as a source, over libpq.
//
// A load and the snapshot that it shows come from one statement (pg_current_snapshot); many keys
// from one REPEATABLE READ transaction, in one round trip (pipeline mode). Transactions have their
// xid8. A server that is a standby is recognised, also one that is promoted meanwhile: its
// snapshots claim less, and what it answers is as old as what it has replayed.
//
// Connections live on the loops that use them; nothing blocks but what says so.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "obs/metrics.h"
#include "source/postgres/hosts.h"
#include "source/postgres/prepare.h"
#include "source/source.h"

namespace larder::source::postgres {

struct Options {
  std::string name;  // of the source: label of the metrics, and in messages
  std::string url;   // see check_url; never printed
  // Standbys of that server, which loads may go to. One that is down, farther behind than
  // `replica_lag_us`, or of another server is passed over for a while.
  std::vector<std::string> replicas = {};
  DurationUs replica_lag_us = kSecond;
  std::uint32_t pool = 8;      // connections, to each server
  std::uint32_t queue = 1024;  // loads and writes that may wait for one; beyond: overloaded
  // The largest time that anybody waits for a statement. The server ends what runs longer, when
  // nobody waits any more.
  DurationUs statement_timeout_us = 30 * kSecond;
  // fleet: without a feed numbers of transactions mean nothing to other nodes, so that there are no
  // snapshots then.
  FeedFor feed_for = FeedFor::node;
  // Of the feed (feed.h, change_table.h): both as feed_name() makes them. "": no feed.
  Means means = Means::log;
  DurationUs poll_us = 10 * kMillisecond;  // of the change table
  std::string slot;
  std::string publication;
  DurationUs heartbeat_us = 200 * kMillisecond;
  DurationUs check_us = 10 * kSecond;  // see FeedOptions
  std::uint64_t slot_limit_bytes = 0;
  std::vector<LoadStatement> statements;
  std::vector<WatchedTable> watched;
  obs::Registry* metrics = nullptr;  // may be null; else outlives the source
  // Told when the source fails, and when it recovers: one line, at most once a change of state.
  // Called from any thread. May be empty.
  std::function<void(std::string)> log;
};

class PostgresSource : public Source {
 public:
  // Would write() take this statement? Compiled by the database, nothing runs. Errors: config (what
  // the database says, transaction control, DDL), source_down. Blocks; call at start.
  virtual Result<void> check_statement(std::string_view sql) = 0;

  // Round trips to the server since the start, those of opening connections not counted.
  virtual std::uint64_t round_trips() const = 0;
};

// Connects, checks every statement against the database. Blocks; call at start. Load and write from
// loops of net::Runtime. The source goes when nothing of it runs any more, before its loops do.
// Errors (config) say which statement, and what the database said; source_down.
Result<std::unique_ptr<PostgresSource>> open_postgres(const Options& options);

}  // namespace larder::source::postgres
