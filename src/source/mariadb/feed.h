// The change feed of a MariaDB source, for one node: the server's binary log, read on a thread of
// its own from the log's end on; after each connection everything is void once.
//
// A change's number is told to Numbers with its place in the log, which is how a load knows whether
// it has seen it. Heartbeats: the server is asked where its log ends; when the reader has got
// there, everything that was committed before the question has been delivered. Nothing is written.
//
// A watched table that is altered ends the period: the next one looks the tables up again.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "source/mariadb/binlog.h"
#include "source/mariadb/numbers.h"
#include "source/mariadb/url.h"
#include "source/source.h"

namespace larder::source::mariadb {

struct FeedOptions {
  std::string name;  // of the source, for messages
  std::string url;
  std::vector<WatchedTable> watched;
  DurationUs heartbeat_us = 200 * kMillisecond;
  std::uint64_t salt = 0;                // see incarnation_of
  std::function<void(std::string)> log;  // may be empty
};

class Feed {
 public:
  // `numbers` outlives it.
  Feed(FeedOptions options, Numbers& numbers);
  ~Feed();  // REQUIRES: run() has ended, or never began

  // Source::run_feed. Once.
  Task<void> run(TaskGroup& group, ChangeSink sink);

 private:
  struct Period;
  Task<Result<void>> read(TaskGroup& group, const ChangeSink& sink);
  Task<Result<void>> follow(Period& period, TaskGroup& group, const ChangeSink& sink);
  Task<Result<void>> deliver(ChangeBatch batch, TaskGroup& group, const ChangeSink& sink);
  Task<policy::TxnId> number_of(const LoggedTransaction& transaction, TaskGroup& group);
  Task<void> interrupt_at_stop(TaskGroup& group);
  void note(std::string condition);

  const FeedOptions options_;
  Numbers& numbers_;
  Period* period_ = nullptr;  // what is being read
  std::string condition_;     // why it does not read; "" = it does
  bool has_read_ = false;     // in this period a heartbeat came back
};

// "the binary log (a reader of each node)", for Capabilities::feed_rests_on.
inline constexpr std::string_view kRestsOn = "the binary log, read by each node";

}  // namespace larder::source::mariadb
