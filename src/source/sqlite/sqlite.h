// SQLite as a source.
//
// Reads run on a pool of threads, each with its own read-only connection; writes on one thread with
// the only connection that writes. All keys of a load are answered by one statement in one read
// transaction. Any journal mode works; WAL is recommended (PRAGMA journal_mode = WAL, once, by the
// owner of the file): without it a writer and the readers wait for each other.
//
// Snapshots are numbers of changes. In a database that `larder source prepare` has prepared
// (prepare.h) they count the rows of the table larder_change, so that they order the writes of
// every process, and a feed delivers what others changed. Without it they count the transactions of
// this process: writes through Larder are coherent, those of others are unseen until the TTL ends.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "obs/metrics.h"
#include "source/source.h"

namespace larder::source::sqlite {

struct Options {
  std::string name;                        // of the source: label of the metrics, and in messages
  std::string path;                        // see path_of_url
  std::uint32_t pool = 8;                  // reading threads
  std::uint32_t queue = 1024;              // loads, and writes, that may wait; beyond: overloaded
  DurationUs poll_us = 10 * kMillisecond;  // how often the feed looks
  std::string query_log;  // SQLite's own trace of every statement is appended here; "" = none
  // fleet: numbers of a database that is not prepared mean nothing to other nodes, so that there
  // are no snapshots then.
  FeedFor feed_for = FeedFor::node;
  std::vector<LoadStatement> statements;
  std::vector<WatchedTable> watched;
  obs::Registry* metrics = nullptr;  // may be null; else outlives the source
  // Told when the source fails, and when it recovers: one line, at most once a change of state.
  // Called from any thread. May be empty.
  std::function<void(std::string)> log;
};

// "sqlite:shop.db", "sqlite:/var/shop.db", "sqlite:///var/shop.db" to a path. Errors (config):
// another scheme, a host, parameters, no path, :memory: (each connection would have a database of
// its own).
Result<std::string> path_of_url(std::string_view url);

class SqliteSource : public Source {
 public:
  // Would write() take this statement? Compiled by the database, nothing runs. Errors (config):
  // what the database says, a placeholder not written `:name`, transaction control, PRAGMA, ATTACH.
  // Blocks.
  virtual Result<void> check_statement(std::string_view sql) = 0;
};

// Opens the database, checks every statement against it, starts the threads. Blocks; call at start.
// The file is never created. Errors (config) say which statement, and what the database said.
Result<std::unique_ptr<SqliteSource>> open_sqlite(const Options& options);

}  // namespace larder::source::sqlite
