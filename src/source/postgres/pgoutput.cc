#include "source/postgres/pgoutput.h"

#include <fmt/format.h>

#include <charconv>

namespace larder::source::postgres {

using namespace pgoutput;  // NOLINT: its implementation

namespace {

constexpr TimeUs kYear2000 = 946'684'800 * kSecond;  // where the server's times begin

std::unexpected<Error> malformed(std::string what) {
  return fail(ErrorCode::source_down, "the replication stream makes no sense: " + std::move(what),
              "postgres");
}

// Reads from the front. After the first thing that is not there everything is 0 or empty, and ok()
// is false.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}

  bool ok() const { return ok_; }
  std::size_t left() const { return rest_.size(); }

  std::string_view bytes(std::size_t count) {
    if (count > rest_.size()) {
      ok_ = false;
      rest_ = {};
      return {};
    }
    const std::string_view taken = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return taken;
  }
  std::uint64_t number(std::size_t width) {
    std::uint64_t value = 0;
    for (const char byte : bytes(width)) value = value << 8 | static_cast<unsigned char>(byte);
    return value;
  }
  char byte() { return static_cast<char>(number(1)); }
  std::uint32_t u32() { return static_cast<std::uint32_t>(number(4)); }
  std::uint64_t u64() { return number(8); }
  TimeUs time() {
    std::int64_t at = 0;
    if (__builtin_add_overflow(static_cast<std::int64_t>(u64()), kYear2000, &at)) ok_ = false;
    return ok_ ? at : 0;
  }
  std::string_view text() {  // up to a NUL
    const std::size_t size = rest_.find('\0');
    if (size == std::string_view::npos) {
      bytes(rest_.size() + 1);
      return {};
    }
    const std::string_view taken = bytes(size);
    bytes(1);
    return taken;
  }
  void refuse() {
    ok_ = false;
    rest_ = {};
  }

 private:
  std::string_view rest_;
  bool ok_ = true;
};

Tuple read_tuple(Reader& in) {
  const std::size_t count = in.number(2);
  // Each column takes a byte at least.
  if (count > kMaxColumns || count > in.left()) in.refuse();
  Tuple tuple;
  if (!in.ok()) return tuple;
  tuple.reserve(count);
  for (std::size_t i = 0; i < count && in.ok(); ++i) {
    Field& field = tuple.emplace_back();
    switch (in.byte()) {
      case 'n': break;
      case 'u': field.kind = Field::Kind::unchanged; break;
      case 't':
        field.kind = Field::Kind::value;
        field.text = in.bytes(in.u32());
        break;
      default:  // 'b' is sent only to those who ask for it
        in.refuse();
    }
  }
  return tuple;
}

OldRow read_old(Reader& in, char kind) {
  OldRow old{.whole = kind == 'O', .row = {}};
  old.row = read_tuple(in);
  return old;
}

Relation read_relation(Reader& in) {
  Relation relation{.id = in.u32(), .columns = {}};
  relation.schema = in.text();
  relation.name = in.text();
  relation.identity = in.byte();
  if (!std::string_view("dnfi").contains(relation.identity)) in.refuse();
  const std::size_t count = in.number(2);
  constexpr std::size_t kLeast = 10;  // flags, an empty name, type, modifier
  if (count > kMaxColumns || count * kLeast > in.left()) in.refuse();
  if (!in.ok()) return relation;
  relation.columns.reserve(count);
  for (std::size_t i = 0; i < count && in.ok(); ++i) {
    Column& column = relation.columns.emplace_back();
    column.key = (in.number(1) & 1) != 0;
    column.name = in.text();
    column.type = in.u32();
    in.u32();  // the type's modifier
  }
  return relation;
}

Update read_update(Reader& in) {
  Update update{.relation = in.u32(), .old = {}, .row = {}};
  char kind = in.byte();
  if (kind == 'K' || kind == 'O') {
    update.old = read_old(in, kind);
    kind = in.byte();
  }
  if (kind != 'N') in.refuse();
  update.row = read_tuple(in);
  return update;
}

Truncate read_truncate(Reader& in) {
  Truncate truncate;
  const std::size_t count = in.u32();
  in.byte();  // CASCADE, RESTART IDENTITY
  if (count > kMaxTruncated || count * 4 > in.left()) in.refuse();
  if (!in.ok()) return truncate;
  truncate.relations.reserve(count);
  for (std::size_t i = 0; i < count; ++i) truncate.relations.push_back(in.u32());
  return truncate;
}

Message read_body(char kind, Reader& in) {
  switch (kind) {
    case 'B': {
      Begin begin{.commit = in.u64()};
      begin.committed_at = in.time();
      begin.xid = in.u32();
      return begin;
    }
    case 'C': {
      in.byte();  // flags: none yet
      Commit commit{.commit = in.u64()};
      commit.end = in.u64();
      commit.committed_at = in.time();
      return commit;
    }
    case 'O': {
      Origin origin{.commit = in.u64(), .name = {}};
      origin.name = in.text();
      return origin;
    }
    case 'R': return read_relation(in);
    case 'Y': {
      const Type type{.id = in.u32()};
      in.text();
      in.text();
      return type;
    }
    case 'I': {
      Insert insert{.relation = in.u32(), .row = {}};
      if (in.byte() != 'N') in.refuse();
      insert.row = read_tuple(in);
      return insert;
    }
    case 'U': return read_update(in);
    case 'D': {
      Delete gone{.relation = in.u32(), .old = {}};
      const char old = in.byte();
      if (old != 'K' && old != 'O') in.refuse();
      gone.old = read_old(in, old);
      return gone;
    }
    case 'T': return read_truncate(in);
    case 'M': {
      LogicalMessage message{.transactional = (in.number(1) & 1) != 0};
      message.lsn = in.u64();
      message.prefix = in.text();
      message.content = in.bytes(in.u32());
      return message;
    }
    default: in.refuse(); return Type{};
  }
}

std::string shown(char kind) {
  return kind >= ' ' && kind <= '~' ? fmt::format("'{}'", kind)
                                    : fmt::format("{:#04x}", static_cast<unsigned char>(kind));
}

void append(std::string& out, std::uint64_t value) {
  for (int shift = 56; shift >= 0; shift -= 8) out += static_cast<char>(value >> shift & 0xff);
}

}  // namespace

std::string lsn_text(Lsn lsn) { return fmt::format("{:X}/{:X}", lsn >> 32, lsn & 0xffff'ffff); }

std::optional<Lsn> parse_lsn(std::string_view text) {
  const std::size_t slash = text.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  const auto half = [](std::string_view digits) -> std::optional<std::uint64_t> {
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(digits.begin(), digits.end(), value, 16);
    if (error != std::errc() || end != digits.end() || digits.size() > 8) return std::nullopt;
    return value;
  };
  const auto high = half(text.substr(0, slash));
  const auto low = half(text.substr(slash + 1));
  if (!high || !low) return std::nullopt;
  return *high << 32 | *low;
}

Result<Frame> parse_frame(std::string_view bytes) {
  if (bytes.empty()) return malformed("an empty frame");
  Reader in(bytes.substr(1));
  Frame frame;
  if (bytes.front() == 'w') {
    XLogData data{.start = in.u64(), .payload = {}};
    data.end = in.u64();
    data.sent_at = in.time();
    data.payload = in.bytes(in.left());
    frame = data;
  } else if (bytes.front() == 'k') {
    Keepalive alive{.end = in.u64()};
    alive.sent_at = in.time();
    alive.reply_wanted = in.byte() != 0;
    frame = alive;
  } else {
    return malformed("a frame of kind " + shown(bytes.front()));
  }
  if (!in.ok() || in.left() > 0)
    return malformed(
        fmt::format("a frame of kind {} with {} bytes", shown(bytes.front()), bytes.size()));
  return frame;
}

std::string status_update(Lsn received, Lsn flushed, TimeUs now, bool reply_wanted) {
  std::string out = "r";
  append(out, received);
  append(out, flushed);
  append(out, flushed);  // applied
  append(out, static_cast<std::uint64_t>(now - kYear2000));
  out += static_cast<char>(reply_wanted);
  return out;
}

Result<Message> pgoutput::parse_message(std::string_view bytes) {
  if (bytes.empty()) return malformed("an empty message");
  Reader in(bytes.substr(1));
  Message message = read_body(bytes.front(), in);
  if (!in.ok() || in.left() > 0)
    return malformed(fmt::format("message {} of {} bytes", shown(bytes.front()), bytes.size()));
  return message;
}

}  // namespace larder::source::postgres
