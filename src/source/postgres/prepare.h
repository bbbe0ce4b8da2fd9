// `larder source prepare` for PostgreSQL: what a server needs so that its log tells which rows of
// the watched tables change, and what of it is missing.
//
//   publication   which tables' changes are sent; one for all Larders of a namespace
//   replica identity of each watched table: the columns whose old values an UPDATE or DELETE logs.
//     The primary key does by itself; where another watched column is to be known, FULL
//   slot          (FeedFor::fleet) keeps the log until it has been read; whoever holds it reads
//   and settings and rights that only an administrator can give
//
// Errors are those of the connection; what is missing is a value.
#pragma once

#include <algorithm>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/task.h"
#include "source/postgres/connection.h"
#include "source/postgres/replication.h"
#include "source/source.h"

namespace larder::source::postgres {

// The name of the publication and of the slot of source `source`: "larder_<space>_<source>" in
// lower case. What a slot's name cannot hold is replaced, and a hash of the names then keeps
// different ones apart. At most 63 bytes.
std::string feed_name(std::string_view space, std::string_view source);

// Where changes by others are learned from.
enum class Means : std::uint8_t {
  log,       // logical decoding: the rest of this file
  triggers,  // change_table.h
};

struct PrepareOptions {
  Means means = Means::log;
  std::string source;       // its name, for messages
  std::string slot;         // see feed_name; of FeedFor::node the beginning of its names
  std::string publication;  // see feed_name
  FeedFor feed_for = FeedFor::node;
  std::vector<WatchedTable> watched;
};

struct Preparation {
  struct Step {
    std::string sql;
    std::string why;    // what it is good for
    std::string needs;  // the right that it takes; "" = the role has it
    bool vital = true;  // false: without it changes are seen, but many of them void everything
  };
  std::vector<TableName> tables;  // the watched tables that there are
  // The files of the tables and their parts, and their places in the publication. Other ones mean
  // that rows may have changed without a word in the log: a table was rewritten or not published
  // for a while; a partition was attached with its rows, detached, dropped, truncated.
  std::set<std::string> storage;
  std::string noted;  // what note() has left there
  bool may_note = false;
  std::vector<Step> steps;  // in one transaction
  std::vector<Step> slot;   // afterwards; the feed does it itself, too
  // What no statement of an application's role cures, and what does.
  std::vector<std::string> obstacles;
  std::vector<std::string> warnings;

  bool complete() const { return steps.empty() && obstacles.empty(); }
  // Does the log tell of every change, be it that all of it is void?
  bool works() const {
    return obstacles.empty() &&
           std::ranges::none_of(steps, [](const Step& step) { return step.vital; });
  }
  // What is missing and what to do about it, in one line; "" if complete.
  std::string why_not(std::string_view source) const;
};

// `db`: an ordinary connection. Suspends.
Task<Result<Preparation>> examine(Connection& db, PrepareOptions options, TimeUs deadline);

// Leaves a line with the publication, for the next one who reads: what he finds in
// Preparation::noted. Takes the right to alter the publication. Suspends.
Task<Result<void>> note(Connection& db, std::string publication, std::string line, TimeUs deadline);

// Runs the steps in one transaction, then those of the slot. Creating a slot waits for the
// transactions that run to end. Suspends. Errors also: source_refused, naming the statement.
Task<Result<void>> apply(Connection& db, Preparation preparation, TimeUs deadline);

// The same for those who have no loop, on a connection of their own to `url`. They block.
Result<Preparation> examine_now(const std::string& url, const PrepareOptions& options,
                                TimeUs deadline);
Result<void> apply_now(const std::string& url, const Preparation& preparation, TimeUs deadline);

// "slot larder_x, publication larder_y", for Capabilities::feed_rests_on.
std::string rests_on(const PrepareOptions& options);

}  // namespace larder::source::postgres
