// The parts of the PostgreSQL source, for its own files only: open.cc, load.cc, write.cc.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/sync.h"
#include "source/pool.h"
#include "source/postgres/change_table.h"
#include "source/postgres/connection.h"
#include "source/postgres/feed.h"
#include "source/postgres/postgres.h"
#include "source/postgres/values.h"
#include "source/reporting.h"
#include "source/row_json.h"
#include "source/sql_text.h"

namespace larder::source::postgres {

// What a load statement's rows look like in the database as it is now, and the statement that loads
// them together with the snapshot. Its columns: the snapshot, how far a standby is behind, "is
// there a row", the load's own columns, and to_json() of those of kind `other`.
struct LoadLayout {
  RowLayout rows;
  std::vector<Oid> types;
  std::vector<ColumnKind> kinds;
  std::vector<int> read_from;    // the reply's column that each is read from
  std::vector<int> key_columns;  // parallel to key_params; -1: the row has none
  std::vector<int> tag_columns;
  std::string sql;

  static constexpr int kSnapshot = 0, kLag = 1, kFound = 2, kFirst = 3;

  // `described`: the load statement alone. Errors (source_refused): as RowLayout::make, no columns.
  static Result<LoadLayout> make(const LoadStatement& spec, const std::string& load,
                                 const Reply& described);
  // Are these the columns that it was made for?
  bool fits(const Reply& reply) const;
  Result<Row> read(const Reply& reply) const;
};

struct LoadPlan {
  LoadStatement spec;
  SqlText sql;
  std::string text;  // with $1, $2 ...
};

// A connection and what has been prepared on it. As thread-safe as Connection.
struct Session {
  struct Prepared {
    std::shared_ptr<const LoadLayout> layout;
    std::string name;  // "" = not prepared yet
    bool checked =
        false;  // the columns are those of the layout; from here on the server sees to it
  };

  std::unique_ptr<Connection> connection;
  ServerIdentity identity;
  TimeUs identified_at = 0;
  bool retired = false;  // good no more, though nothing has failed
  std::unordered_map<std::uint32_t, Prepared> loads;
  std::unordered_map<std::string, std::string> writes;  // the name under which SQL is prepared
  unsigned names = 0;

  Loop& loop() const { return connection->loop(); }
  bool broken() const { return retired || connection->broken(); }
  bool stale() { return broken() || connection->stale(); }
  std::string new_name() { return "larder_" + std::to_string(++names); }
  // Leaves no transaction open.
  void settle();
};
using SessionPool = Pool<Session>;

// How the rows that a transaction changed are found out. Empty: Transaction::changes() is empty,
// and the write path names what it wrote.
struct ChangeReader {
  std::string sql;  // runs after the statements, in their transaction
  std::function<Result<std::vector<RowChange>>(const Reply& reply, policy::TxnId x)> read;
};

// By the change table that the transaction's own triggers have filled. What they do not name is
// void when the feed tells it.
ChangeReader own_changes(const ChangeTable& names, std::vector<TableName> tables);

// A connection that blocks, for the start.
class Setup {
 public:
  static Result<std::unique_ptr<Setup>> open(const std::string& url);
  Result<Reply> query(const std::string& sql);
  Result<Reply> describe(const std::string& sql);

 private:
  struct Finish {
    void operator()(PGconn* conn) const { PQfinish(conn); }
  };
  std::unique_ptr<PGconn, Finish> conn_;
};

using Texts = std::vector<std::optional<std::string>>;

class Impl final : public PostgresSource {
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
  std::uint64_t round_trips() const override { return round_trips_.load(); }

  // For Transaction. Ends it: the lease goes back. Resumes on the caller's loop.
  Task<Result<void>> commit(SessionPool::Lease lease, TimeUs deadline);
  static void roll_back(SessionPool::Lease lease);

 private:
  // The keys of one load, on their way.
  struct Load {
    const LoadPlan& plan;
    TimeUs deadline;
    std::vector<std::size_t> which;  // of the keys asked, those that can be asked for
    std::vector<Texts> params;       // parallel to it
    Loaded out;
  };
  // How they are asked for.
  enum class Form : std::uint8_t {
    single,    // one key: a statement of its own
    together,  // one transaction
    apart,     // the same with a savepoint, so that a key that fails fails alone
  };
  // A standby that loads may go to.
  struct Replica {
    std::string url;
    std::unique_ptr<SessionPool> pool;
    std::atomic<TimeUs> unfit_until{0};
    std::atomic<DurationUs> lag_us{0};  // when it last answered
    obs::Counter* loads = nullptr;      // that it has answered; null: nobody counts
    obs::Counter* passed = nullptr;     // that it could not answer as wanted
  };
  // What to do after the replies.
  enum class Next : std::uint8_t { done, describe_again, ask_apart };

  // open.cc
  Result<void> check_load(Setup& db, const LoadStatement& spec);
  Result<void> check_watched(Setup& db, const WatchedTable& table);
  Task<Result<std::unique_ptr<Session>>> open_session(const std::string& url, TimeUs deadline);
  std::unique_ptr<SessionPool> make_pool(const std::string& url);
  void open_replicas();
  void end_setup() LARDER_EXCLUDES(setup_mutex_);
  Result<void> open_feed();

  // load.cc
  Replica* fit_replica();
  Task<bool> load_from(Replica& replica, Load& load);

  // load.cc; on the session's loop
  Result<Load> begin_load(const LoadPlan& plan, const std::vector<Params>& keys, TimeUs deadline);
  Task<Result<void>> load_on(Session& session, Load& load);
  std::vector<Command> commands_of(Session& session, const Load& load, Form form,
                                   std::vector<std::size_t>& at,
                                   std::optional<std::size_t>& prepare);
  Result<Next> read_replies(Session& session, Load& load, Form form, std::vector<Reply> replies,
                            const std::vector<std::size_t>& at, TimeUs sent, bool may_describe);
  Result<void> read_state(Session& session, const Reply& reply, TimeUs sent, Loaded& out);
  Task<Result<void>> describe(Session& session, const LoadPlan& plan, TimeUs deadline);
  std::shared_ptr<const LoadLayout> layout_of(std::uint32_t id) LARDER_EXCLUDES(layouts_mutex_);

  // write.cc; on the session's loop
  struct Written;
  Task<Result<Written>> write_on(Session& session, const std::vector<Statement>& statements,
                                 TimeUs deadline);

  Task<Result<std::vector<Reply>>> run(Session& session, std::vector<Command> commands,
                                       TimeUs deadline);

  const Options options_;
  const QueryMetrics metrics_;
  Health health_;
  Capabilities capabilities_;
  ChangeReader change_reader_;
  std::unordered_map<std::uint32_t, LoadPlan> plans_;
  std::atomic<std::uint64_t> round_trips_{0};

  Mutex layouts_mutex_;
  std::unordered_map<std::uint32_t, std::shared_ptr<const LoadLayout>> layouts_
      LARDER_GUARDED_BY(layouts_mutex_);

  Mutex setup_mutex_;
  std::unique_ptr<Setup> setup_ LARDER_GUARDED_BY(setup_mutex_);  // until the first load or write
  std::atomic<bool> set_up_{false};                               // there is one

  std::unique_ptr<Feed> feed_;             // null: there is none
  std::unique_ptr<TableFeed> table_feed_;  // null: there is none
  std::unique_ptr<SessionPool> pool_;
  std::vector<std::unique_ptr<Replica>> replicas_;
  std::atomic<std::size_t> next_replica_{0};
  std::atomic<std::uint64_t> primary_{0};  // its incarnation, as it was seen last
};

}  // namespace larder::source::postgres
