#include "source/mariadb/binlog.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/crc.hpp>
#include <cstring>

namespace larder::source::mariadb {
namespace {

enum Event : std::uint8_t {
  kQuery = 2,
  kStop = 3,
  kRotate = 4,
  kIntvar = 5,
  kAppendBlock = 9,
  kDeleteFile = 11,
  kRand = 13,
  kUserVar = 14,
  kFormat = 15,
  kXid = 16,
  kBeginLoad = 17,
  kExecuteLoad = 18,
  kTableMap = 19,
  kWriteRows = 23,
  kUpdateRows = 24,
  kDeleteRows = 25,
  kIncident = 26,
  kHeartbeat = 27,
  kIgnorable = 28,
  kXaPrepare = 38,
  kAnnotate = 160,
  kCheckpoint = 161,
  kGtid = 162,
  kGtidList = 163,
  kStartEncryption = 164,
  kQueryCompressed = 165,
  kWriteRowsCompressed = 166,
  kDeleteRowsCompressed = 168,
};

enum Type : std::uint8_t {
  kTiny = 1,
  kShort = 2,
  kLong = 3,
  kFloat = 4,
  kDouble = 5,
  kNull = 6,
  kTimestamp = 7,
  kLongLong = 8,
  kInt24 = 9,
  kDate = 10,
  kTime = 11,
  kDatetime = 12,
  kYear = 13,
  kNewDate = 14,
  kVarchar = 15,
  kBit = 16,
  kTimestamp2 = 17,
  kDatetime2 = 18,
  kTime2 = 19,
  kBlobCompressed = 140,
  kVarcharCompressed = 141,
  kNewDecimal = 246,
  kEnum = 247,
  kSet = 248,
  kTinyBlob = 249,
  kBlob = 252,
  kVarString = 253,
  kString = 254,
  kGeometry = 255,
};

constexpr std::size_t kHeader = 19;
constexpr std::size_t kChecksum = 4;
constexpr std::uint16_t kArtificial = 0x20, kMayBeIgnored = 0x80;
constexpr std::uint8_t kFlagStandalone = 0x01;
constexpr std::size_t kMostMapped = 10'000;
constexpr std::size_t kMostColumns = 4'096;  // MariaDB's own limit

std::unexpected<Error> unreadable(std::string_view what) {
  return fail(ErrorCode::source_down, fmt::format("the binary log cannot be read: {}", what),
              "mariadb");
}

std::string lower(std::string_view text) {
  std::string out(text);
  std::ranges::transform(out, out.begin(), [](unsigned char c) { return std::tolower(c); });
  return out;
}

bool is_any_of(std::string_view word, std::initializer_list<std::string_view> words) {
  return std::ranges::find(words, word) != words.end();
}

// The last byte of a description says whether what follows, and itself, ends with a checksum.
bool has_checksums(std::string_view format) {
  return format.size() > kHeader + kChecksum && format[format.size() - kChecksum - 1] == 1;
}

// The first words of a statement, without comments in front, in lower case.
std::string beginning(std::string_view sql) {
  for (;;) {
    const std::size_t at = sql.find_first_not_of(" \t\r\n;(");
    sql.remove_prefix(std::min(at, sql.size()));
    if (!sql.starts_with("/*") || sql.starts_with("/*!")) break;
    const std::size_t end = sql.find("*/");
    sql.remove_prefix(end == std::string_view::npos ? sql.size() : end + 2);
  }
  return lower(sql.substr(0, 64));
}
std::string first_of(const std::string& text) {
  return text.substr(0, text.find_first_of(" \t\n"));
}

}  // namespace

// What is left of an event. After a failure everything is 0 or empty.
class BinlogReader::Bytes {
 public:
  explicit Bytes(std::string_view bytes) : rest_(bytes) {}
  std::string_view take(std::size_t size) {
    if (size > rest_.size()) {
      failed_ = true;
      rest_ = {};
      return {};
    }
    const std::string_view taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }
  std::uint64_t number(std::size_t size) {  // the lowest byte first
    std::uint64_t value = 0;
    const std::string_view bytes = take(size);
    for (std::size_t i = bytes.size(); i-- > 0;)
      value = value << 8 | static_cast<std::uint8_t>(bytes[i]);
    return value;
  }
  std::uint64_t packed() {
    const std::uint64_t first = number(1);
    switch (first) {
      case 252: return number(2);
      case 253: return number(3);
      case 254: return number(8);
      default: return first;
    }
  }
  std::vector<bool> bits(std::size_t count) {
    const std::string_view bytes = take((count + 7) / 8);
    std::vector<bool> out(count, false);
    for (std::size_t i = 0; i < count && !failed_; ++i)
      out[i] = (static_cast<std::uint8_t>(bytes[i / 8]) >> (i % 8) & 1) != 0;
    return out;
  }
  std::size_t left() const { return rest_.size(); }
  bool failed() const { return failed_; }

 private:
  std::string_view rest_;
  bool failed_ = false;
};

namespace {

using Meta = std::uint16_t;

std::size_t meta_size(std::uint8_t type) {
  switch (type) {
    case kVarchar:
    case kVarcharCompressed:
    case kBit:
    case kNewDecimal:
    case kEnum:
    case kSet:
    case kVarString:
    case kString: return 2;
    case kFloat:
    case kDouble:
    case kTimestamp2:
    case kDatetime2:
    case kTime2:
    case kBlobCompressed:
    case kGeometry: return 1;
    default: return type >= kTinyBlob && type <= kBlob ? 1 : 0;
  }
}

// The bytes of `digits` decimal digits.
std::size_t decimal_bytes(std::size_t digits) {
  static constexpr std::array<std::uint8_t, 10> kPart = {0, 1, 1, 2, 2, 3, 3, 4, 4, 4};
  return digits / 9 * 4 + kPart[digits % 9];
}

// Groups of nine digits in four bytes, the highest first; a negative number has all bits turned.
std::string decimal_text(std::string_view bytes, std::size_t precision, std::size_t scale) {
  std::string raw(bytes);
  const bool negative = !raw.empty() && (static_cast<std::uint8_t>(raw[0]) & 0x80) == 0;
  if (!raw.empty()) raw[0] = static_cast<char>(raw[0] ^ 0x80);
  if (negative)
    for (char& c : raw) c = static_cast<char>(~c);
  std::size_t at = 0;
  std::string digits;
  const auto group = [&](std::size_t count) {
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < decimal_bytes(count); ++i)
      value = value << 8 | static_cast<std::uint8_t>(raw[at++]);
    digits += fmt::format("{:0{}}", value, count);
  };
  const std::size_t whole = precision - scale;
  if (whole % 9 != 0) group(whole % 9);
  for (std::size_t i = 0; i < whole / 9; ++i) group(9);
  const std::size_t point = digits.size();
  for (std::size_t i = 0; i < scale / 9; ++i) group(9);
  if (scale % 9 != 0) group(scale % 9);
  const std::size_t first = std::min(digits.find_first_not_of('0'), point);
  std::string out = digits.substr(first, point - first);
  if (out.empty()) out = "0";
  if (scale > 0) out += "." + digits.substr(point);
  const bool zero = out.find_first_not_of("0.") == std::string::npos;
  return negative && !zero ? "-" + out : out;
}

std::string integer_text(std::uint64_t value, std::size_t size, bool is_unsigned) {
  if (is_unsigned) return std::to_string(value);
  const unsigned unused = static_cast<unsigned>(64 - size * 8);
  return std::to_string(static_cast<std::int64_t>(value << unused) >> unused);
}

}  // namespace

BinlogReader::BinlogReader(Options options)
    : options_(std::move(options)), position_(options_.start), checksums_(options_.checksums) {}

Result<std::optional<LoggedTransaction>> BinlogReader::take(std::string_view event) {
  if (event.size() < kHeader) return unreadable("an event without a header");
  Bytes header(event.substr(0, kHeader));
  header.take(4);
  const auto type = static_cast<std::uint8_t>(header.number(1));
  const std::uint64_t server = header.number(4);
  const std::uint64_t size = header.number(4);
  const std::uint64_t next = header.number(4);
  const auto flags = static_cast<std::uint16_t>(header.number(2));
  if (size != event.size()) return unreadable("an event of another length");
  if (type == kFormat) checksums_ = has_checksums(event);
  if (checksums_) {
    if (size < kHeader + kChecksum) return unreadable("an event without its checksum");
    Bytes written(event.substr(size - kChecksum));
    event.remove_suffix(kChecksum);
    boost::crc_32_type computed;
    computed.process_bytes(event.data(), event.size());
    if (computed.checksum() != written.number(kChecksum)) return unreadable("a checksum is wrong");
  }
  Bytes body(event.substr(kHeader));
  const bool lone = std::exchange(standalone_, false);
  ended_ = false;
  Result<void> done;
  switch (type) {
    case kFormat: done = format(body); break;
    case kRotate: done = rotate(body); break;
    case kGtid: done = gtid(body, server); break;
    case kQuery: done = query(body); break;
    case kTableMap: done = table_map(body); break;
    case kWriteRows:
    case kUpdateRows:
    case kDeleteRows: done = rows(body, type); break;
    case kXid: ended_ = true; break;
    case kXaPrepare:  // nobody sees it yet; XA COMMIT means everything
      transaction_ = {};
      ended_ = true;
      break;
    case kQueryCompressed:
    case kExecuteLoad:
      everything("a statement is in the log as text");
      ended_ = type == kQueryCompressed && lone;
      break;
    case kIncident:
      everything("the server says that its log misses something");
      ended_ = true;
      break;
    case kStop:
    case kIntvar:
    case kAppendBlock:
    case kDeleteFile:
    case kRand:
    case kUserVar:
    case kBeginLoad:
    case kHeartbeat:
    case kIgnorable:
    case kAnnotate:
    case kCheckpoint:
    case kGtidList:
    case kStartEncryption: break;
    default:
      if (type >= kWriteRowsCompressed && type <= kDeleteRowsCompressed)
        everything("rows are compressed (log_bin_compress)");
      else if ((flags & kMayBeIgnored) == 0)
        return unreadable(
            fmt::format("an event of kind {}, which this version does not know", type));
  }
  if (!done) return std::unexpected(done.error());
  if (lone && (type == kAnnotate || type == kIntvar || type == kRand || type == kUserVar))
    standalone_ = true;  // they stand in front of it
  else if (lone)
    ended_ = true;
  if (type != kRotate && type != kHeartbeat && (flags & kArtificial) == 0 && next != 0) {
    constexpr std::uint64_t kWrap = std::uint64_t{1} << 32;
    const std::uint64_t above = position_.offset / kWrap * kWrap;
    position_.offset = above + next >= position_.offset ? above + next : above + kWrap + next;
  }
  return ended_ ? finish() : std::optional<LoggedTransaction>();
}

std::optional<LoggedTransaction> BinlogReader::finish() {
  LoggedTransaction out = std::exchange(transaction_, {});
  mapped_.clear();
  if (out.changes.empty() && !out.everything && !out.tables_changed) return std::nullopt;
  if (out.everything) out.changes.clear();
  out.end = position_;
  return out;
}

void BinlogReader::everything(std::string why) {
  if (!transaction_.everything) transaction_.why = std::move(why);
  transaction_.everything = true;
  transaction_.changes.clear();
}

Result<void> BinlogReader::format(Bytes body) {
  const std::uint64_t version = body.number(2);
  body.take(50 + 4);
  const std::uint64_t header = body.number(1);
  if (version != 4 || header != kHeader || body.failed())
    return unreadable(fmt::format("its format is {}", version));
  transaction_ = {};
  return {};
}

Result<void> BinlogReader::rotate(Bytes body) {
  const std::uint64_t offset = body.number(8);
  const std::string_view name = body.take(body.left());
  const auto at = LogPosition::parse(name, std::to_string(offset));
  if (!at || body.failed()) return unreadable("the name of the next file");
  position_ = *at;
  return {};
}

Result<void> BinlogReader::gtid(Bytes body, std::uint64_t server) {
  const std::uint64_t number = body.number(8);
  const std::uint64_t domain = body.number(4);
  const std::uint64_t flags = body.number(1);
  if (body.failed()) return unreadable("a GTID");
  transaction_ = {};
  transaction_.gtid = fmt::format("{}-{}-{}", domain, server, number);
  mapped_.clear();
  standalone_ = (flags & kFlagStandalone) != 0;
  return {};
}

bool BinlogReader::names_ours(std::string_view statement) const {
  const std::string text = lower(statement);
  return std::ranges::any_of(options_.tables, [&](const LoggedTable& table) {
    return text.contains(lower(table.name)) || text.contains(lower(table.schema));
  });
}

Result<void> BinlogReader::query(Bytes body) {
  body.take(4 + 4);
  const std::uint64_t schema_size = body.number(1);
  body.take(2);
  body.take(body.number(2));
  const std::string_view schema = body.take(schema_size);
  body.take(1);
  const std::string_view statement = body.take(body.left());
  if (body.failed()) return unreadable("a statement");
  const std::string begins = beginning(statement);
  const std::string word = first_of(begins);
  if (word == "begin" || word == "savepoint" || begins.starts_with("rollback to") ||
      word == "release")
    return {};
  if (word == "commit" || word == "rollback") {
    if (word == "rollback") transaction_ = {};
    ended_ = true;
    return {};
  }
  if (is_any_of(word, {"grant", "revoke", "flush", "analyze", "optimize", "set"}) ||
      begins.starts_with("xa rollback"))
    return {};
  const bool changes_rows =
      is_any_of(word, {"insert", "update", "delete", "replace", "load", "call", "with", "xa"});
  if (changes_rows) {
    everything(word == "xa" ? "an XA COMMIT does not say what it commits"
                            : "a statement is in the log as text: binlog_format was not ROW");
    return {};
  }
  // Whatever else it is, it concerns us if it names one of our tables, or its schema.
  if (!names_ours(statement) && !(word == "drop" && names_ours(schema))) return {};
  everything(fmt::format("{} of a watched table, or of something like it", word));
  transaction_.tables_changed = true;
  return {};
}

Result<void> BinlogReader::table_map(Bytes body) {
  const std::uint64_t id = body.number(6);
  body.take(2);
  const std::string schema(body.take(body.number(1)));
  body.take(1);
  const std::string name(body.take(body.number(1)));
  body.take(1);
  const std::uint64_t count = body.packed();
  if (body.failed() || count > kMostColumns || mapped_.size() >= kMostMapped)
    return unreadable("the map of a table");
  Mapped mapped;
  for (const LoggedTable& table : options_.tables) {
    if (table.schema != schema || table.name != name) continue;
    mapped.tables.push_back(&table);
    if (table.watched_id && table.columns != count)
      mapped.broken = fmt::format("table {}.{} has other columns than it had", schema, name);
  }
  const std::string_view types = body.take(count);
  const std::uint64_t meta_bytes = body.packed();
  Bytes metas(body.take(meta_bytes));
  if (body.failed()) return unreadable("the map of a table");
  for (const char c : types) {
    Column column{.type = static_cast<std::uint8_t>(c)};
    const std::size_t size = meta_size(column.type);
    // Of two bytes the first says more.
    if (column.type == kString || column.type == kNewDecimal || column.type == kEnum ||
        column.type == kSet) {
      const std::uint64_t first = metas.number(1);
      column.meta = static_cast<Meta>(first << 8 | metas.number(1));
    } else
      column.meta = static_cast<Meta>(metas.number(size));
    mapped.columns.push_back(column);
  }
  if (metas.failed()) return unreadable("the map of a table");
  mapped_[id] = std::move(mapped);
  return {};
}

Result<void> BinlogReader::rows(Bytes body, std::uint8_t type) {
  const std::uint64_t id = body.number(6);
  body.take(2);
  const std::uint64_t count = body.packed();
  const auto found = mapped_.find(id);
  if (found == mapped_.end()) {
    // The end of a statement that has named no table: nothing is changed.
    if (body.left() == 0 || count == 0) return {};
    return unreadable("rows of a table that was not described");
  }
  const Mapped& mapped = found->second;
  if (mapped.tables.empty() || transaction_.everything) return {};
  if (!mapped.broken.empty()) {
    everything(mapped.broken);
    transaction_.tables_changed = true;
    return {};
  }
  bool named = false;
  for (const LoggedTable* const table : mapped.tables) {
    if (table->watched_id)
      named = true;
    else if (type != kWriteRows) {
      everything(fmt::format("rows of {}.{} were changed, and with them those that refer to them",
                             table->schema, table->name));
      return {};
    }
  }
  if (!named) return {};
  if (count != mapped.columns.size()) return unreadable("rows of another table");
  const std::vector<bool> before = body.bits(count);
  const std::vector<bool> after = type == kUpdateRows ? body.bits(count) : before;
  const auto has_all = [&](const std::vector<bool>& present) {
    return std::ranges::all_of(mapped.tables, [&](const LoggedTable* table) {
      return std::ranges::all_of(table->watched, [&](const LoggedTable::Column& column) {
        return present[column.ordinal];
      });
    });
  };
  if (body.failed()) return unreadable("rows");
  if (!has_all(before) || !has_all(after)) {
    everything("a row is not in the log whole: binlog_row_image was not FULL");
    return {};
  }
  Row old_row(count);
  Row new_row(count);
  while (body.left() > 0) {
    Result<void> read = row(body, mapped, before, old_row);
    if (read && type == kUpdateRows) read = row(body, mapped, after, new_row);
    if (!read) return read;
    push(mapped, old_row);
    if (type == kUpdateRows) push(mapped, new_row);
    if (transaction_.everything) return {};
  }
  return {};
}

Result<void> BinlogReader::row(Bytes& body, const Mapped& mapped, const std::vector<bool>& present,
                               Row& row) {
  const auto there = static_cast<std::size_t>(std::ranges::count(present, true));
  const std::vector<bool> nulls = body.bits(there);
  std::size_t at = 0;
  for (std::size_t i = 0; i < mapped.columns.size(); ++i) {
    row[i].reset();
    if (!present[i] || nulls[at++]) continue;
    bool is_unsigned = false;
    bool wanted = false;
    for (const LoggedTable* const table : mapped.tables)
      for (const LoggedTable::Column& column : table->watched)
        if (column.ordinal == i) {
          wanted = true;
          is_unsigned = column.is_unsigned;
        }
    std::uint8_t type = mapped.columns[i].type;
    Meta meta = mapped.columns[i].meta;
    std::size_t length_size = 0;  // of a text's length, in front of it
    std::size_t size = 0;
    switch (type) {
      case kTiny: size = 1; break;
      case kShort: size = 2; break;
      case kInt24: size = 3; break;
      case kLong: size = 4; break;
      case kLongLong: size = 8; break;
      case kFloat: size = 4; break;
      case kDouble: size = 8; break;
      case kNull: break;
      case kYear: size = 1; break;
      case kDate:
      case kNewDate:
      case kTime: size = 3; break;
      case kTimestamp: size = 4; break;
      case kDatetime: size = 8; break;
      case kTimestamp2: size = 4u + (meta + 1u) / 2; break;
      case kDatetime2: size = 5u + (meta + 1u) / 2; break;
      case kTime2: size = 3u + (meta + 1u) / 2; break;
      case kBit: size = (meta >> 8) + ((meta & 0xff) != 0 ? 1u : 0u); break;
      case kNewDecimal:
        size = decimal_bytes((meta >> 8) - std::min(meta >> 8, meta & 0xff)) +
               decimal_bytes(meta & 0xff);
        break;
      case kVarchar:
      case kVarString:
      case kVarcharCompressed: length_size = meta < 256 ? 1 : 2; break;
      case kString: {
        // A long CHAR hides two bits of its length in its type.
        const unsigned real = meta >> 8;
        const unsigned high = (real & 0x30) == 0x30 ? 0 : ((real & 0x30) ^ 0x30) << 4;
        const unsigned most = high | (meta & 0xff);
        type = static_cast<std::uint8_t>(real | 0x30);
        if (type == kEnum || type == kSet)
          size = meta & 0xff;
        else
          length_size = most < 256 ? 1 : 2;
        break;
      }
      default:
        if ((type >= kTinyBlob && type <= kBlob) || type == kGeometry || type == kBlobCompressed)
          length_size = meta;
        else
          return unreadable(
              fmt::format("a column of type {}, which this version does not know", type));
    }
    if (length_size > 0) size = body.number(length_size);
    const std::string_view value = body.take(size);
    if (body.failed()) return unreadable("a row");
    if (!wanted) continue;
    Bytes number(value);
    switch (type) {
      case kTiny:
      case kShort:
      case kInt24:
      case kLong:
      case kLongLong: row[i] = integer_text(number.number(size), size, is_unsigned); break;
      case kBit: {
        std::uint64_t bits = 0;
        for (const char c : value) bits = bits << 8 | static_cast<std::uint8_t>(c);
        row[i] = std::to_string(bits);
        break;
      }
      case kNewDecimal: row[i] = decimal_text(value, meta >> 8, meta & 0xff); break;
      case kVarchar:
      case kVarString:
      case kString: row[i] = std::string(value); break;
      default:
        if (type < kTinyBlob || type > kBlob)
          return unreadable("a watched column of a type without a text");
        row[i] = std::string(value);
    }
  }
  return {};
}

void BinlogReader::push(const Mapped& mapped, const Row& row) {
  for (const LoggedTable* const table : mapped.tables) {
    if (!table->watched_id) continue;
    LoggedTransaction::Change change{.watched_id = *table->watched_id, .values = {}};
    for (const LoggedTable::Column& column : table->watched)
      change.values.push_back(row[column.ordinal]);
    // An UPDATE that leaves them alone tells the same twice.
    if (!transaction_.changes.empty()) {
      const auto same = [&](const LoggedTransaction::Change& other) {
        return other.watched_id == change.watched_id && other.values == change.values;
      };
      const std::size_t back =
          std::min<std::size_t>(transaction_.changes.size(), mapped.tables.size());
      if (std::any_of(transaction_.changes.end() - static_cast<std::ptrdiff_t>(back),
                      transaction_.changes.end(), same))
        continue;
    }
    transaction_.changes.push_back(std::move(change));
  }
  if (transaction_.changes.size() > options_.most_changes)
    everything(fmt::format("a transaction with more than {} changes", options_.most_changes));
}

}  // namespace larder::source::mariadb
