// A source: the truth behind a cache. SQLite, PostgreSQL, MariaDB, an HTTP service.
//
// One narrow interface (4 virtuals); what a source cannot do is data (Capabilities). All calls are
// made from a loop, suspend, and resume on the loop of the caller. Nothing here blocks a loop.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/error.h"
#include "base/task.h"
#include "policy/key_pattern.h"
#include "policy/snapshot.h"

namespace larder::source {

// A bound parameter. A text is bound as text, never spliced into a statement.
using Value =
    std::variant<std::nullptr_t, std::int64_t, double, std::string, std::vector<std::byte>>;

struct NamedValue {
  std::string name;  // without the colon
  Value value;
};
using Params = std::vector<NamedValue>;

// How a row becomes bytes. object: {"id":7,...}; array: [{...},...] of all rows; value: the bytes
// of the one column. A column named "value" that is alone gives its raw bytes in `object` too.
enum class ResultShape : std::uint8_t { object, array, value };

// One `load` statement, given once at start. `id` is chosen by the caller, dense from 0.
struct LoadStatement {
  std::uint32_t id = 0;
  std::string sql;
  ResultShape shape = ResultShape::object;
  std::vector<std::string> key_params;   // the placeholders that a key gives
  std::vector<std::string> tag_columns;  // columns whose texts the caller wants (for tags)
};

// What one key's load gave.
struct Row {
  bool found = false;  // false: no such row (negative entry)
  std::string value;   // per shape; empty if not found
  // Texts of LoadStatement::tag_columns, in order; nullopt = NULL or no such column.
  std::vector<std::optional<std::string>> tag_values;
  // Texts of the row's columns that bear a key parameter's name, in the order of key_params;
  // nullopt where the row has no such column. From the first row. Used to render the row's key
  // back.
  std::vector<std::optional<std::string>> key_values;
};

// How a load is wanted.
struct LoadTerms {
  // NOLINTNEXTLINE(google-explicit-constructor): a deadline alone is the common case.
  LoadTerms(TimeUs until, bool older = false) : deadline(until), may_be_older(older) {}
  TimeUs deadline;
  // A replica may answer, which is behind: the caller judges by `snapshot` and `as_of` whether that
  // will do, and asks again otherwise.
  bool may_be_older;
};

struct Loaded {
  std::vector<Result<Row>> rows;  // one for each key asked, in order
  policy::Snapshot snapshot;      // of the one state of the database that all of them show
  TimeUs as_of = 0;               // the load's statement began no earlier than this
  DurationUs took_us = 0;         // spent in the source alone
  bool replica = false;           // see LoadTerms::may_be_older
};

// A table whose changes matter, and the columns that a change must carry (old and new values).
struct WatchedTable {
  std::uint32_t id = 0;  // chosen by the caller
  std::string table;
  std::vector<std::string> columns;
  // What the key makes of each column, so that a source can refuse a column that finds its row by
  // other texts than the one that a change will name ('07' finds the integer 7). May be empty.
  std::vector<policy::ParamType> types = {};
};

// "A row of watched table `id` had (or now has) these column values, as of transaction x."
struct RowChange {
  std::uint32_t watched_id = 0;
  std::vector<std::optional<std::string>> values;  // canonical texts; nullopt = NULL
  policy::TxnId x = 0;
};

// Changes that others made, in commit order, from the source's log or change table.
struct ChangeBatch {
  std::vector<RowChange> changes;
  bool everything = false;      // history is gone: void all entries of this source (new epoch)
  std::uint64_t source_id = 0;  // the incarnation that they come from
  TimeUs heartbeat = 0;         // every change committed before this has now been delivered
  TimeUs committed_at = 0;  // earliest commit time in the batch, 0 = unknown (for the lag metric)
  // Positions in the log: this is everything in (from, to]. Unless all of it is for one node only
  // (FeedFor::node), which begins at the log's end.
  std::uint64_t from = 0;
  std::uint64_t to = 0;
  policy::TxnId xmin = 0;  // every transaction below it has ended; 0: unknown
  // The answer to FeedOrder::new_epoch: a transaction that has ended, with a number above that of
  // every one that had begun when it was taken. A load that has seen all up to it end has seen
  // everything that was committed before. A feed of one node gives it with `everything`, where its
  // loads may be behind its log.
  std::optional<policy::TxnId> floor;
};

// What the sink wants next.
struct FeedOrder {
  std::optional<std::uint64_t> go_on_from;  // deliver what comes after this position
  // Read the log's end first, then take the number of a transaction that ends at once; deliver
  // both, as `to` and `floor`, in a batch without changes.
  bool new_epoch = false;
  // The sink will not ask again for what lies up to here: the source may forget it. Absent: what
  // the sink has taken. Less than that where a sink may lose what it has taken, as an engine does
  // when it fails over to a replica that is behind; history that is gone all the same costs a new
  // epoch, never a stale answer.
  std::optional<std::uint64_t> confirm_up_to = {};
};

// Whom the feed serves.
enum class FeedFor : std::uint8_t {
  node,   // this node's memory: what it wrote itself it knows already (but see echoes)
  fleet,  // an engine that nodes share: everything, its own changes included, from any position
};

struct Statement {
  std::string sql;
  Params params;
  bool wants_value = false;  // a query: keep the first column of its first row (as `value` bytes)
};

// An open write: its statements ran, nothing is visible yet. Holding it may hold the source's write
// lock: commit or destroy (= roll back) soon.
class Transaction {
 public:
  virtual ~Transaction() = default;
  // Every row change of watched tables that this transaction made, so that it can be invalidated
  // before commit. All carry the same x, or ascending ones; no snapshot sees them before commit.
  virtual const std::vector<RowChange>& changes() const = 0;
  // An id that no snapshot sees before this transaction has ended; every x in changes() is <= it.
  virtual policy::TxnId x() const = 0;
  // The incarnation of the source that this transaction belongs to.
  virtual std::uint64_t source_id() const = 0;
  // Rows touched by each statement, in order.
  virtual const std::vector<std::int64_t>& affected() const = 0;
  // For each statement, what wants_value asked for; nullopt = not asked, no row, or NULL.
  virtual const std::vector<std::optional<std::string>>& values() const = 0;
  // After an error the outcome may be unknown: the caller must not report success, and must leave
  // its invalidations in place.
  virtual Task<Result<void>> commit() = 0;
};

struct Capabilities {
  std::string kind;        // "sqlite"
  bool snapshots = false;  // Loaded::snapshot is known()
  // A bound text takes the type that the statement wants: so numbers and booleans of JSON are bound
  // as they were written, with every digit.
  bool typed_texts = false;
  // The same for numbers alone: a boolean is an integer there.
  bool number_texts = false;
  bool feed = false;          // changes made by others are delivered to the sink
  std::string feed_rests_on;  // "triggers of larder source prepare, polled every 10ms"
  bool echoes = false;        // a feed of this node alone delivers what this node wrote itself, too
  std::string why_no_feed;    // and what to do about it
};

// Receives what others changed. Called on a loop of the node; returns when the changes have been
// applied. Only then does the source move its position and its heartbeat; after an error it
// delivers the same changes again.
using ChangeSink = std::function<Task<Result<FeedOrder>>(ChangeBatch)>;

class Source {
 public:
  virtual ~Source() = default;

  virtual const Capabilities& capabilities() const = 0;

  // Loads all `keys` (one Params a key) of one statement from one state of the source, in one query
  // where the source can. An error of the whole (down, timeout) or one of a row.
  virtual Task<Result<Loaded>> load(std::uint32_t statement_id, std::vector<Params> keys,
                                    LoadTerms terms) = 0;

  // Runs the statements in one transaction and leaves it open.
  virtual Task<Result<std::unique_ptr<Transaction>>> write(std::vector<Statement> statements,
                                                           TimeUs deadline) = 0;

  // Delivers changes until `group` is stopping. Spawned once, by the node, into that group. Without
  // a feed it returns at once.
  virtual Task<void> run_feed(TaskGroup& group, ChangeSink sink) = 0;
};

}  // namespace larder::source
