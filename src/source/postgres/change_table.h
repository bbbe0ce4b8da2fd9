// The other way to learn of changes, where the server's log may not be read: triggers write what
// has changed into a table, in the transaction that changes it, and the table is polled.
//
//   larder_X         x, the transaction; n, its place; rel, the table; cols, {"column": "text",
//   ...} larder_X_n       the sequence of places larder_X_state   trimmed: rows up to there are
//   gone; seen: what the last reader has examined
//
// Numbers of transactions are not the order of commits, nor are those of a sequence that writers
// use. So the places are given afterwards, by whoever polls: one at a time (an advisory lock that
// is held until its COMMIT) numbers what is visible and has no place yet. Whoever sees place n sees
// all that lie before it, and what commits later comes after. Nobody listens (LISTEN, NOTIFY would
// serialise commits).
//
// What triggers do not tell (a partition that is attached with its rows, a table that is rewritten,
// a trigger that is switched off) is looked for every check_us, as with the log.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "source/postgres/feed.h"
#include "source/postgres/prepare.h"

namespace larder::source::postgres {

// The names of its parts; `base`: see feed_name.
struct ChangeTable {
  explicit ChangeTable(const std::string& base);
  std::string name, sequence, state, trigger;
  std::string function_of(const std::string& quoted_table) const;
};

// As examine(), for Means::triggers. Suspends.
Task<Result<Preparation>> examine_triggers(Connection& db, PrepareOptions options, TimeUs deadline);

// The rows that a transaction has written into the change table, and what they mean. Errors: none
// of ours.
struct TableChange {
  std::string rel;
  std::optional<std::string> cols;  // nullopt: TRUNCATE
};
// False: everything has changed.
Result<bool> changes_of(const TableChange& change, policy::TxnId x,
                        const std::vector<TableName>& tables, std::vector<RowChange>& into);

// Reads the change table; see Feed for what `options` mean (`slot`: the base of the names).
class TableFeed {
 public:
  TableFeed(FeedOptions options, DurationUs poll_us);
  ~TableFeed();  // REQUIRES: run() has ended, or never began

  // Source::run_feed. Once.
  Task<void> run(TaskGroup& group, ChangeSink sink);

  static constexpr std::uint64_t kKept = 100'000;   // rows, for those who are behind
  static constexpr std::size_t kMostRows = 10'000;  // of a batch, beyond which it is everything

 private:
  class Period;
  Task<void> interrupt_at_stop(TaskGroup& group);
  void say(std::string_view line) const;
  void note(std::string condition);

  const FeedOptions options_;
  const DurationUs poll_us_;
  const ChangeTable table_;
  std::unique_ptr<Period> period_;  // what is connected now
  // What outlives a connection.
  std::set<std::string> storage_;  // see Preparation
  bool owes_everything_ = false;   // changes may have been missed
  std::optional<std::uint64_t> position_;
  std::uint64_t source_id_ = 0;
  std::string condition_;  // why it does not read; "" = it does
  bool has_read_ = false;  // in this period
};

}  // namespace larder::source::postgres
