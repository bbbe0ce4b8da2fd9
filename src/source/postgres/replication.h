// From the messages of a replication stream to changes of watched tables: which rows had, or have
// now, which values in the columns that matter, by which transaction, up to which position.
//
// What cannot be told row by row is told as *everything*: a TRUNCATE, a transaction with more
// changes than are worth naming, a row whose old values are not in the log, a watched column that
// is gone. A change is never left out.
//
// Pure: no I/O, no clock. Used by one thread at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "source/postgres/pgoutput.h"
#include "source/source.h"

namespace larder::source::postgres {

// A watched table under its names in the catalogs.
struct TableName {
  WatchedTable watched;
  std::string schema;
  std::string name;
  bool partitioned = false;
};

// The 64-bit transaction id with these low 32 bits that is nearest to `near`. Right as long as the
// log reaches back less than 2^31 transactions, as PostgreSQL itself demands.
policy::TxnId widen(std::uint32_t xid, policy::TxnId near);

// Text of a logical message by which a node finds its own time again in the log. `token` tells
// whose it is; xmin: every transaction below it had ended. The server appends xmin.
inline constexpr std::string_view kPrefix = "larder";
std::string heartbeat_text(std::string_view token, TimeUs at);
struct HeartbeatText {
  std::string_view token;
  TimeUs at = 0;
  policy::TxnId xmin = 0;
};
std::optional<HeartbeatText> parse_heartbeat(std::string_view content);

class ChangeLog {
 public:
  struct Options {
    std::vector<TableName> tables;
    std::string token;                  // of this process's heartbeats
    std::size_t most_changes = 10'000;  // of one transaction, beyond which it means everything
  };
  explicit ChangeLog(Options options);

  // The tables' names were looked up again. Between streams.
  void set_tables(std::vector<TableName> tables);
  // What was taken of an unfinished transaction is dropped; relations will be described again.
  // `near`: a transaction id of about now.
  void begin_stream(policy::TxnId near);
  // Everything up to here has been delivered: transactions that end before are passed over, and the
  // next batch begins here. Nothing that was taken before is kept.
  void seek(Lsn position);
  Lsn position() const { return position_; }

  // Errors (source_down): the messages are not those of a stream. Its end; begin another one.
  Result<void> take(const pgoutput::Message& message);
  void take(const Keepalive& alive);

  // Rows that wait in whole transactions.
  std::size_t waiting() const { return ready_.changes.size(); }
  // Is there anything that the sink does not have yet, be it a position?
  bool ready() const;
  bool in_transaction() const { return transaction_.has_value(); }

  struct Batch {
    ChangeBatch batch;             // but for source_id
    std::vector<std::string> why;  // it is everything, or soon will be: lines for the log
  };
  // Everything in whole transactions since position(), which moves.
  Batch next();

 private:
  struct Target {
    std::uint32_t watched_id = 0;
    std::vector<std::size_t> columns;  // their places in a row
  };
  struct Known {  // a relation of this stream
    std::string name;
    char identity = 'd';
    bool partitioned = false;
    std::vector<bool> key;
    std::vector<std::string> columns;
    std::vector<Target> targets;
    std::string broken;  // why rows of it mean everything; "" = they do not
    bool complained = false;
  };
  struct Transaction {
    Transaction(const pgoutput::Begin& begin, policy::TxnId x) : begin(begin), x(x) {}
    pgoutput::Begin begin;
    policy::TxnId x = 0;
    bool passed_over = false;  // it has been delivered
    bool everything = false;
    std::vector<RowChange> changes;
    std::optional<HeartbeatText> heartbeat;  // without its token
  };
  using Value = std::optional<std::string_view>;  // nullopt: NULL
  // nullopt: the log does not say.
  using Seen = std::optional<Value>;
  struct Row {
    const pgoutput::OldRow* old = nullptr;
    const pgoutput::Tuple* now = nullptr;
  };

  Result<void> begin(const pgoutput::Begin& begin);
  Result<void> commit(const pgoutput::Commit& commit);
  Result<void> relation(const pgoutput::Relation& relation);
  Result<void> row(std::uint32_t relation, Row row);
  Result<void> truncate(const pgoutput::Truncate& truncate);
  Result<void> message(const pgoutput::LogicalMessage& message);

  void change(Known& known, const Target& target, Row row);
  static Seen old_value(const Known& known, Row row, std::size_t column);
  static Seen new_value(const Known& known, Row row, std::size_t column);
  void everything(Known& known, std::string why);
  void push(const Target& target, const std::vector<Value>& values);
  void reach(Lsn position);
  void beat(const HeartbeatText& heartbeat);

  Options options_;
  std::unordered_map<std::uint32_t, Known> relations_;
  policy::TxnId near_ = 0;
  Lsn position_ = 0;
  std::optional<Transaction> transaction_;
  ChangeBatch ready_;  // of whole transactions
  std::vector<std::string> why_;
};

}  // namespace larder::source::postgres
