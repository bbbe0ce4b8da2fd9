// The parts of the SQLite source, for its own files only: open.cc, load.cc, write.cc, feed.cc.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/sync.h"
#include "net/worker_pool.h"
#include "source/reporting.h"
#include "source/row_json.h"
#include "source/sql_text.h"
#include "source/sqlite/db.h"
#include "source/sqlite/prepare.h"
#include "source/sqlite/sqlite.h"
#include "source/sqlite/writer_thread.h"

namespace larder::source::sqlite {

// A load statement, ready to run for many keys at once.
struct LoadPlan {
  LoadStatement spec;
  SqlText sql;
  std::vector<std::string> texts;  // [i]: for 2^i keys

  std::size_t most_keys() const { return std::size_t{1} << (texts.size() - 1); }
  // `limits` is asked how long a statement may be.
  static LoadPlan make(LoadStatement spec, SqlText sql, const Connection& limits);
};

// What a load statement's rows look like in the database as it is now.
struct LoadColumns {
  RowLayout layout;
  std::vector<int> key_columns;  // parallel to key_params; -1: the row has none
  std::vector<int> tag_columns;
};

// One state of the file behind the path.
struct Incarnation {
  std::uint64_t generation = 0;  // grows with each
  FileId file;
  std::uint64_t source_id = 0;
};

// Sequence numbers of transactions that this process has committed; their invalidations are done.
class OwnChanges {
 public:
  // (before, last]. Bounded: the oldest are forgotten, and then delivered once more.
  void add(std::int64_t before, std::int64_t last);
  bool contains(std::int64_t seq) const;
  void drop_until(std::int64_t seq);
  void clear() { ranges_.clear(); }

 private:
  static constexpr std::size_t kMost = 10'000;
  struct Range {
    std::int64_t before, last;
  };
  std::deque<Range> ranges_;
};

// An open write, as the writer thread made it.
struct OpenWrite {
  DurationUs took_us = 0;
  std::uint64_t id = 0;
  std::uint64_t source_id = 0;
  policy::TxnId x = 0;
  std::vector<RowChange> changes;
  std::vector<std::int64_t> affected;
  std::vector<std::optional<std::string>> values;
};

class Impl final : public SqliteSource {
 public:
  explicit Impl(const Options& options);
  ~Impl() override;
  Result<void> open();

  const Capabilities& capabilities() const override { return capabilities_; }
  Task<Result<Loaded>> load(std::uint32_t statement_id, std::vector<Params> keys,
                            LoadTerms terms) override;
  Task<Result<std::unique_ptr<Transaction>>> write(std::vector<Statement> statements,
                                                   TimeUs deadline) override;
  Task<void> run_feed(TaskGroup& group, ChangeSink sink) override;
  Result<void> check_statement(std::string_view sql) override;

  // For Transaction.
  Task<Result<void>> commit(std::uint64_t id);
  void abandon(std::uint64_t id);

 private:
  struct Reader {
    std::unique_ptr<Connection> db;
    std::uint64_t generation = 0;
    std::int64_t schema = -1;
    std::unordered_map<std::uint32_t, LoadColumns> columns;
  };
  struct Writer {
    std::unique_ptr<Connection> db;
    std::uint64_t generation = 0;
    std::int64_t schema = -1;    // for which `columns` (and TEMP triggers) were made
    bool schema_is_new = false;  // made in the open transaction: gone if it rolls back
    ChangeColumns columns;
    std::uint64_t last_id = 0;
    // Of the open transaction.
    std::uint64_t open_id = 0;  // 0 = none
    policy::TxnId open_x = 0;
    std::int64_t open_before = 0;
    TimeUs open_deadline = 0;
    // Numbers up to this were given to transactions that did not commit.
    policy::TxnId owed = 0;
    DurationUs owed_wait_us = 0;
  };
  struct Feed {
    std::unique_ptr<Connection> db;
    std::uint64_t generation = 0;
    std::int64_t position = 0;
    std::int64_t data_version = -1;
    std::int64_t schema = -1;
    bool everything = false;  // owed to the sink
    bool new_epoch = false;   // the sink waits for a floor
    ChangeColumns columns;
  };
  struct FeedStep {
    ChangeBatch batch;
    std::int64_t position = 0;
    std::int64_t data_version = -1;
    bool more = false;
    bool trim = false;
  };

  // open.cc
  static Result<void> check_affinities(Connection& db, const WatchedTable& table);
  Result<void> check_load(Connection& db, const LoadStatement& spec);
  void describe();
  Result<Incarnation> current() LARDER_EXCLUDES(identity_mutex_);
  Incarnation renew(FileId file) LARDER_EXCLUDES(identity_mutex_);
  // True: the connection is a new one.
  Result<bool> connect(std::unique_ptr<Connection>& db, std::uint64_t& generation,
                       const Incarnation& wanted, Connection::Mode mode);
  // Remembers whether the source works, says so when that changes.
  void note(const Error* error);

  // load.cc
  Result<Loaded> load_now(Reader& reader, const LoadPlan& plan, const std::vector<Params>& keys,
                          TimeUs deadline);
  Result<void> load_rows(Reader& reader, const LoadPlan& plan, const std::vector<Params>& keys,
                         Loaded& out);
  Result<const LoadColumns*> columns_of(Reader& reader, const LoadPlan& plan);
  Result<void> query(Connection& db, const LoadPlan& plan, const LoadColumns& columns,
                     const std::vector<Params>& keys, const std::vector<std::size_t>& which,
                     std::vector<Result<Row>>& rows);

  // write.cc; on the writer thread
  Result<Incarnation> connect_writer();
  Result<OpenWrite> write_now(const std::vector<Statement>& statements, TimeUs deadline);
  Result<OpenWrite> run_statements(const std::vector<Statement>& statements);
  Result<void> run_statement(const Statement& statement, OpenWrite& out);
  Result<void> refresh_schema();
  Result<void> collect(OpenWrite& out);
  Result<void> commit_now(std::uint64_t id);
  void end_write(bool committed);
  void settle_owed();
  void trim_now(std::int64_t keep_after);

  // Do our numbers order the writes of everybody who asks?
  bool counts() const { return prepared_ || options_.feed_for == FeedFor::node; }

  // feed.cc
  Result<FeedStep> poll();
  Task<Result<void>> deliver(FeedStep& step, const ChangeSink& sink);
  Task<Result<void>> begin_epoch(const ChangeSink& sink);
  Result<ChangeBatch> floor_now();
  void obey(const FeedOrder& order);
  Result<void> read_changes(FeedStep& step);
  Result<void> read_rows(FeedStep& step, std::int64_t last);

  const Options options_;
  Capabilities capabilities_;
  bool prepared_ = false;
  std::unique_ptr<QueryLog> log_;
  std::unordered_map<std::uint32_t, LoadPlan> plans_;
  obs::Counter* loads_ = nullptr;
  obs::Counter* writes_ = nullptr;
  obs::Histogram* seconds_ = nullptr;
  std::atomic<bool> works_{true};

  Mutex identity_mutex_;
  Incarnation identity_ LARDER_GUARDED_BY(identity_mutex_);

  // Without preparation: the last transaction of this process that has ended.
  std::atomic<policy::TxnId> ended_{0};

  // Held over COMMIT, so that the feed cannot see a commit before it is known to be our own.
  std::mutex commit_mutex_;
  OwnChanges own_;  // under commit_mutex_

  std::vector<Reader> readers_;  // each used by its thread of pool_ alone
  Writer writer_;                // by writer_thread_ alone
  Feed feed_;                    // by run_feed and its thread in turns

  // Last: their threads use everything above.
  std::unique_ptr<net::WorkerPool> pool_;
  std::unique_ptr<net::WorkerPool> feed_pool_;
  std::unique_ptr<WriterThread> writer_thread_;
};

}  // namespace larder::source::sqlite
