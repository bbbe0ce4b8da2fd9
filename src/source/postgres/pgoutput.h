// What a walsender says: the frames of the streaming replication protocol, and the messages of the
// output plugin pgoutput, protocol version 1 (PostgreSQL 14 and later: with logical messages).
//
// Pure: bytes in, values out, no I/O and no state. Every count and length of the input is checked
// against what is there before anything is allocated for it. Text views point into the input.
//
// Reference: the PostgreSQL documentation, "Logical Replication Message Formats" and "Streaming
// Replication Protocol".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/error.h"

namespace larder::source::postgres {

// A position in the log.
using Lsn = std::uint64_t;

// "16/B374D848"
std::string lsn_text(Lsn lsn);
// nullopt: not one.
std::optional<Lsn> parse_lsn(std::string_view text);

// ---- frames ----

struct XLogData {
  Lsn start = 0;
  Lsn end = 0;  // how far the server's log reaches
  TimeUs sent_at = 0;
  std::string_view payload;  // one message of pgoutput
};
struct Keepalive {
  Lsn end = 0;  // everything that was committed before has been sent
  TimeUs sent_at = 0;
  bool reply_wanted = false;
};
using Frame = std::variant<XLogData, Keepalive>;

// Errors (source_down): not a frame.
Result<Frame> parse_frame(std::string_view bytes);

// What the client sends now and then. The server may forget the log before `flushed`; it takes what
// it is told last, even if that is less, so never send less than before. 0: says nothing.
std::string status_update(Lsn received, Lsn flushed, TimeUs now, bool reply_wanted);

// ---- messages ----

namespace pgoutput {

inline constexpr std::size_t kMaxColumns = 1'664;     // of PostgreSQL itself
inline constexpr std::size_t kMaxTruncated = 65'536;  // tables of one TRUNCATE

struct Begin {
  Lsn commit = 0;  // where the commit record begins
  TimeUs committed_at = 0;
  std::uint32_t xid = 0;  // of the top transaction, without its epoch
};
struct Commit {
  Lsn commit = 0;
  Lsn end = 0;  // of the commit record: the transaction's position
  TimeUs committed_at = 0;
};
struct Origin {
  Lsn commit = 0;
  std::string_view name;
};
struct Column {
  bool key = false;  // of the replica identity
  std::string_view name;
  std::uint32_t type = 0;
};
// Sent before a table's first row, and again after its definition has changed.
struct Relation {
  std::uint32_t id = 0;
  std::string_view schema;  // "" = pg_catalog
  std::string_view name;
  char identity = 'd';  // 'd' primary key, 'n' nothing, 'f' all columns, 'i' an index
  std::vector<Column> columns;
};
struct Type {
  std::uint32_t id = 0;
};
struct Field {
  enum class Kind : std::uint8_t {
    null,
    unchanged,  // a large value that the statement did not touch, and that is not sent
    value,
  };
  Kind kind = Kind::null;
  std::string_view text;
};
using Tuple = std::vector<Field>;
struct OldRow {
  bool whole = false;  // else only columns of the replica identity count, the others are null
  Tuple row;
};
struct Insert {
  std::uint32_t relation = 0;
  Tuple row;
};
struct Update {
  std::uint32_t relation = 0;
  std::optional<OldRow> old;  // none: nothing of the replica identity has changed
  Tuple row;
};
struct Delete {
  std::uint32_t relation = 0;
  OldRow old;
};
struct Truncate {
  std::vector<std::uint32_t> relations;
};
struct LogicalMessage {  // of pg_logical_emit_message
  bool transactional = false;
  Lsn lsn = 0;  // its end
  std::string_view prefix;
  std::string_view content;
};
using Message = std::variant<Begin, Commit, Origin, Relation, Type, Insert, Update, Delete,
                             Truncate, LogicalMessage>;

// Exactly one message. Errors (source_down): cut short, left over, an unknown kind, a limit.
Result<Message> parse_message(std::string_view bytes);

}  // namespace pgoutput

}  // namespace larder::source::postgres
