// The parts of the MariaDB source, for its own files only: open.cc, load.cc, write.cc.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/sync.h"
#include "source/mariadb/connection.h"
#include "source/mariadb/feed.h"
#include "source/mariadb/mariadb.h"
#include "source/mariadb/numbers.h"
#include "source/mariadb/values.h"
#include "source/pool.h"
#include "source/reporting.h"
#include "source/row_json.h"
#include "source/sql_text.h"

namespace larder::source::mariadb {

// What a load statement's rows look like.
struct LoadLayout {
  RowLayout rows;
  std::vector<ColumnKind> kinds;
  std::vector<int> key_columns;  // parallel to key_params; -1: the row has none
  std::vector<int> tag_columns;

  // Errors (source_refused): as RowLayout::make, no columns.
  static Result<LoadLayout> make(const LoadStatement& spec, const Reply& reply);
  // Are these the columns that it was made for?
  bool fits(const Reply& reply) const;
  Result<Row> read(Reply& reply) const;
};

struct LoadPlan {
  LoadStatement spec;
  SqlText sql;
  std::string text;  // with ? for each placeholder
};

using Literals = std::vector<std::string>;

// Statements that run one after the other, and what they prepare on the way.
struct Script {
  struct Prepare {
    std::size_t at;
    std::string sql, name;
  };
  std::vector<std::string> statements;
  std::vector<Prepare> prepares;

  // Its index among the replies.
  std::size_t add(std::string statement) {
    statements.push_back(std::move(statement));
    return statements.size() - 1;
  }
};

// A connection and what has been prepared on it. As thread-safe as Connection.
struct Session {
  std::unique_ptr<Connection> connection;
  std::uint64_t server = 0;           // Loaded::snapshot.source_id
  std::string lock;                   // that is free again when this session has ended
  std::size_t most_packet = 1 << 20;  // max_allowed_packet
  bool retired = false;               // good no more, though nothing has failed
  bool open = false;                  // a transaction is
  std::unordered_map<std::string, std::string> prepared;  // by its SQL: the name
  unsigned names = 0;
  std::unordered_map<std::uint32_t, LoadLayout> layouts;

  Loop& loop() const { return connection->loop(); }
  bool broken() const { return retired || connection->broken(); }
  bool stale() { return broken() || connection->stale(); }
  // The name under which it is prepared, or will be by this script.
  std::string prepare(Script& script, const std::string& sql);
  // Room for so many more.
  void make_room(Script& script, std::size_t more);
  void note_prepared(const Script& script, const std::vector<Reply>& replies);
  // Leaves no transaction open.
  void settle();
};
using SessionPool = Pool<Session>;

// A connection that blocks, for the start.
class Setup {
 public:
  struct CloseStatement {
    void operator()(MYSQL_STMT* statement) const { mysql_stmt_close(statement); }
  };
  struct Described {
    std::unique_ptr<MYSQL_STMT, CloseStatement> statement;  // which `columns` belong to
    Reply columns;                                          // without rows
    std::size_t parameters = 0;
  };
  // `patience`: of connecting, and of each answer.
  static Result<std::unique_ptr<Setup>> open(const std::string& url,
                                             DurationUs patience = 10 * kSecond);
  Result<Reply> query(const std::string& sql);
  MYSQL* raw() const { return mysql_.get(); }
  Result<Described> describe(const std::string& sql);

 private:
  struct Close {
    void operator()(MYSQL* mysql) const { mysql_close(mysql); }
  };
  std::unique_ptr<MYSQL, Close> mysql_;
};

class Impl final : public MariadbSource {
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
  Numbers& numbers() override { return numbers_; }
  std::uint64_t round_trips() const override { return round_trips_.load(); }

  // For Transaction. Ends it: the lease goes back. Resumes on the caller's loop.
  Task<Result<void>> commit(SessionPool::Lease lease, policy::TxnId number, TimeUs deadline);
  void roll_back(SessionPool::Lease lease, policy::TxnId number);

 private:
  // The keys of one load, on their way.
  struct Load {
    const LoadPlan& plan;
    TimeUs deadline;
    std::vector<std::size_t> which;  // of the keys asked, those that can be asked for
    std::vector<Literals> params;    // parallel to it
    std::size_t done = 0;            // so many of them have their answer
    Loaded out;
  };
  // Which statement of a script does what.
  struct Places {
    std::optional<std::size_t> doubts, log;
    std::size_t first_key = 0, keys = 0;
  };

  // open.cc
  Result<void> check_load(Setup& db, const LoadStatement& spec);
  Result<void> check_watched(Setup& db, const WatchedTable& table);
  Task<Result<std::unique_ptr<Session>>> open_session(TimeUs deadline);
  void end_setup() LARDER_EXCLUDES(setup_mutex_);
  Result<void> open_feed();

  // load.cc; on the session's loop
  Task<Result<void>> load_on(Session& session, Load& load);
  Task<Result<void>> load_once(Session& session, Load& load, bool& again);
  Script script_of(Session& session, const Load& load, bool follow,
                   const std::vector<Numbers::Doubt>& doubts, Places& places) const;
  Result<void> read_rows(Session& session, Load& load, std::vector<Reply>& replies,
                         const Places& places);
  void resolve(const std::vector<Numbers::Doubt>& doubts, Reply& reply);
  // One round trip, unless it is more than the server takes at once. The last reply may be an
  // error.
  Task<Result<std::vector<Reply>>> run(Session& session, const Script& script, TimeUs deadline);

  // write.cc; on the session's loop
  struct Written;
  Task<Result<Written>> write_on(Session& session, const std::vector<Statement>& statements,
                                 TimeUs deadline);

  const Options options_;
  const QueryMetrics metrics_;
  Health health_;
  Url url_;
  Capabilities capabilities_;
  std::uint64_t salt_ = 0;  // of this process
  Numbers numbers_;
  std::unordered_map<std::uint32_t, LoadPlan> plans_;
  std::atomic<std::uint64_t> round_trips_{0};
  std::atomic<std::uint64_t> sessions_{0};  // opened so far

  Mutex setup_mutex_;
  std::unique_ptr<Setup> setup_ LARDER_GUARDED_BY(setup_mutex_);  // until the first load or write
  std::atomic<bool> set_up_{false};                               // there is one

  std::unique_ptr<Feed> feed_;  // null: there is none
  std::unique_ptr<SessionPool> pool_;
};

// Which server, and which log, of this process's view: by the reply to kIncarnationSql.
inline constexpr std::string_view kIncarnationSql =
    "SELECT @@server_id, @@hostname, @@port, @@datadir";
std::uint64_t incarnation_of(Reply& reply, std::uint64_t salt);

// The parameters of a statement, in the order of its placeholders. `code`: of the error.
Result<Literals> literals_of(const SqlText& sql, const Params& params, ErrorCode code,
                             std::string_view giver);
std::string execute(const std::string& name, const Literals& params);

}  // namespace larder::source::mariadb
