// MariaDB 10.3 or newer as a source, over libmariadb.
//
// Many keys are loaded from one snapshot (START TRANSACTION WITH CONSISTENT SNAPSHOT) in one round
// trip; what a load has seen is told by numbers of this process's own (numbers.h), as MariaDB knows
// a transaction's GTID only once it is committed. Every parameter is bound to a prepared statement.
//
// Connections live on the loops that use them; nothing blocks but what says so.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "obs/metrics.h"
#include "source/mariadb/numbers.h"
#include "source/source.h"

namespace larder::source::mariadb {

struct Options {
  std::string name;            // of the source: label of the metrics, and in messages
  std::string url;             // see url.h; never printed
  std::uint32_t pool = 8;      // connections
  std::uint32_t queue = 1024;  // loads and writes that may wait for one; beyond: overloaded
  // The largest time that anybody waits for a statement. The server ends what runs longer, when
  // nobody waits any more.
  DurationUs statement_timeout_us = 30 * kSecond;
  // fleet: our numbers mean nothing to other nodes, so that there are no snapshots then.
  FeedFor feed_for = FeedFor::node;
  DurationUs heartbeat_us = 200 * kMillisecond;  // of the feed
  std::vector<LoadStatement> statements;
  std::vector<WatchedTable> watched;
  obs::Registry* metrics = nullptr;  // may be null; else outlives the source
  // Told when the source fails, and when it recovers: one line, at most once a change of state.
  // Called from any thread. May be empty.
  std::function<void(std::string)> log;
};

class MariadbSource : public Source {
 public:
  // Would write() take this statement? Compiled by the database, nothing runs. Errors: config (what
  // the database says, transaction control, DDL, CALL), source_down. Blocks; call at start.
  virtual Result<void> check_statement(std::string_view sql) = 0;

  // Whoever reads the server's log tells here what stands in it.
  virtual Numbers& numbers() = 0;

  // Round trips to the server since the start, those of opening connections not counted.
  virtual std::uint64_t round_trips() const = 0;
};

// Errors (config) quote nothing of the URL, which may hold a password.
Result<void> check_url(const std::string& url);

// Runs statements, each by itself. Blocks. Errors: as of a write.
Result<void> run_now(const std::string& url, const std::vector<std::string>& statements);

// What keeps a node from learning of changes of these tables by the server's log, and what to do
// about it: one line each; none if nothing does. Blocks.
Result<std::vector<std::string>> what_is_missing(const std::string& url,
                                                 const std::vector<WatchedTable>& watched);

// Connects, checks every statement against the database. Blocks; call at start. Load and write from
// loops of net::Runtime. The source goes when nothing of it runs any more, before its loops do.
// Errors (config) say which statement, and what the database said; source_down.
Result<std::unique_ptr<MariadbSource>> open_mariadb(const Options& options);

}  // namespace larder::source::mariadb
