#include "wire/resp.h"

#include <array>
#include <charconv>
#include <cmath>
#include <cstring>

#include "wire/resp_numbers.h"

namespace larder::wire {
namespace {

using Status = CommandParser::Status;

constexpr std::size_t kFastArguments = 32;
constexpr int kMaxDepth = 32;

// Reads at most four digits and CRLF: nearly every length there is. Null if it is anything else.
const char* parse_short(const char* p, const char* end, std::size_t& value) {
  if (end - p < 3 || !is_digit(*p)) return nullptr;
  if (*p == '0' && is_digit(p[1])) return nullptr;
  std::size_t n = static_cast<std::size_t>(*p++ - '0');
  for (int i = 0; i < 3 && p < end && is_digit(*p); ++i) {
    n = n * 10 + static_cast<std::size_t>(*p++ - '0');
  }
  if (end - p < 2 || p[0] != '\r' || p[1] != '\n') return nullptr;
  value = n;
  return p + 2;
}

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

int hex_digit(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

char unescape(char c) {
  switch (c) {
    case 'n': return '\n';
    case 'r': return '\r';
    case 't': return '\t';
    case 'b': return '\b';
    case 'a': return '\a';
    default: return c;
  }
}

// Appends the inside of a "quoted" part that begins at line[i], behind the quote; i ends behind the
// closing one. False if there is none, or if the word goes on behind it.
bool unquote_double(std::string_view line, std::size_t& i, std::string& out) {
  while (i < line.size()) {
    const char c = line[i];
    if (c == '"') {
      ++i;
      return i == line.size() || is_space(line[i]);
    }
    if (c == '\\' && i + 3 < line.size() && line[i + 1] == 'x' && hex_digit(line[i + 2]) >= 0 &&
        hex_digit(line[i + 3]) >= 0) {
      out += static_cast<char>(hex_digit(line[i + 2]) * 16 + hex_digit(line[i + 3]));
      i += 4;
    } else if (c == '\\' && i + 1 < line.size()) {
      out += unescape(line[i + 1]);
      i += 2;
    } else {
      out += c;
      ++i;
    }
  }
  return false;
}

bool unquote_single(std::string_view line, std::size_t& i, std::string& out) {
  while (i < line.size()) {
    const char c = line[i];
    if (c == '\'') {
      ++i;
      return i == line.size() || is_space(line[i]);
    }
    if (c == '\\' && i + 1 < line.size() && line[i + 1] == '\'') ++i;
    out += line[i++];
  }
  return false;
}

// One word of an inline command, from line[i] on. False if its quotes are unbalanced.
bool split_word(std::string_view line, std::size_t& i, std::string& out) {
  while (i < line.size()) {
    const char c = line[i];
    // Of all spaces only these end a word, while any of them may stand between words: so Redis.
    if (c == ' ' || c == '\n' || c == '\r' || c == '\t') return true;
    ++i;
    if (c == '"') return unquote_double(line, i, out);
    if (c == '\'') return unquote_single(line, i, out);
    out += c;
  }
  return true;
}

}  // namespace

// --- CommandParser ---

Status CommandParser::fail(std::string message) {
  error_ = std::move(message);
  args_.clear();
  return Status::error;
}

Status CommandParser::complete(std::size_t consumed) {
  consumed_ = consumed;
  position_ = scanned_ = total_ = 0;
  expected_ = bulk_ = -1;
  return Status::complete;
}

Status CommandParser::next(std::string_view data) {
  if (position_ == 0) {
    if (parse_whole(data)) return Status::complete;
    if (!error_.empty()) return Status::error;
    args_.clear();
    wants_ = 0;
    if (data.empty()) return Status::incomplete;
    if (data[0] != '*') return parse_inline(data);
  }
  if (!error_.empty()) return Status::error;
  return parse_array(data);
}

// The common case: a small array that is there in whole. Touches each header byte once and keeps no
// state; whatever is unusual is left, from the start, to parse_array.
bool CommandParser::parse_whole(std::string_view data) {
  if (data.size() < 4 || data[0] != '*' || !error_.empty() || scanned_ != 0) return false;
  const char* const begin = data.data();
  const char* const end = begin + data.size();
  std::size_t count = 0;
  const char* p = parse_short(begin + 1, end, count);
  if (!p || count == 0 || count > kFastArguments || count > limits_.max_arguments) return false;
  args_.resize(count);
  std::size_t total = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (p == end || *p != '$') return false;
    std::size_t size = 0;
    p = parse_short(p + 1, end, size);
    if (!p || size > limits_.max_bulk_bytes) return false;
    if (static_cast<std::size_t>(end - p) < size + 2) return false;
    args_[i] = {p, size};
    total += size;
    p += size + 2;
  }
  if (total > limits_.max_command_bytes) return false;
  wants_ = 0;
  consumed_ = static_cast<std::size_t>(p - begin);
  return true;
}

// Finds the end of the header line that begins at position_. Looks only at bytes not seen before.
CommandParser::Line CommandParser::header_line(std::string_view data, std::string_view& text) {
  scanned_ = std::max(scanned_, position_);
  const void* const found = std::memchr(data.data() + scanned_, '\r', data.size() - scanned_);
  const std::size_t stop =
      found ? static_cast<std::size_t>(static_cast<const char*>(found) - data.data()) : data.size();
  if (stop - position_ > limits_.max_inline_bytes) return Line::too_long;
  scanned_ = stop;
  // Like Redis, take it on trust that the byte behind CR is LF.
  if (!found || stop + 2 > data.size()) return Line::incomplete;
  text = data.substr(position_ + 1, stop - position_ - 1);
  position_ = scanned_ = stop + 2;
  return Line::complete;
}

Status CommandParser::parse_array(std::string_view data) {
  std::string_view text;
  if (expected_ < 0) {
    const Line line = header_line(data, text);
    if (line == Line::too_long) return fail("Protocol error: too big mbulk count string");
    if (line == Line::incomplete) return Status::incomplete;
    std::int64_t count = 0;
    if (!parse_integer(text, count) ||
        (count > 0 && static_cast<std::uint64_t>(count) > limits_.max_arguments)) {
      return fail("Protocol error: invalid multibulk length");
    }
    if (count <= 0) return complete(position_);
    expected_ = count;
    pieces_.clear();  // and not reserve: the count is only a claim
  }
  wants_ = 0;
  while (pieces_.size() < static_cast<std::size_t>(expected_)) {
    if (bulk_ < 0) {
      const Status status = parse_bulk_header(data);
      if (status != Status::complete) return status;
    }
    const std::size_t size = static_cast<std::size_t>(bulk_);
    if (data.size() - position_ < size + 2) {
      wants_ = position_ + size + 2;
      return Status::incomplete;
    }
    pieces_.push_back({position_, size});
    position_ += size + 2;
    bulk_ = -1;
  }
  args_.resize(pieces_.size());
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    args_[i] = data.substr(pieces_[i].offset, pieces_[i].size);
  }
  return complete(position_);
}

Status CommandParser::parse_bulk_header(std::string_view data) {
  if (position_ >= data.size()) return Status::incomplete;
  if (data[position_] != '$') {
    return fail(std::string("Protocol error: expected '$', got '") + data[position_] + "'");
  }
  std::string_view text;
  const Line line = header_line(data, text);
  if (line == Line::too_long) return fail("Protocol error: too big bulk count string");
  if (line == Line::incomplete) return Status::incomplete;
  std::int64_t size = 0;
  if (!parse_integer(text, size) || size < 0 ||
      static_cast<std::uint64_t>(size) > limits_.max_bulk_bytes ||
      static_cast<std::uint64_t>(size) > limits_.max_command_bytes - total_) {
    return fail("Protocol error: invalid bulk length");
  }
  bulk_ = size;
  total_ += static_cast<std::size_t>(size);
  return Status::complete;
}

Status CommandParser::parse_inline(std::string_view data) {
  const void* const found = std::memchr(data.data() + scanned_, '\n', data.size() - scanned_);
  const std::size_t stop =
      found ? static_cast<std::size_t>(static_cast<const char*>(found) - data.data()) : data.size();
  if (stop > limits_.max_inline_bytes) return fail("Protocol error: too big inline request");
  scanned_ = stop;
  if (!found) return Status::incomplete;

  std::string_view line = data.substr(0, stop);
  line = line.substr(0, line.find('\0'));  // to Redis it is a C string
  unquoted_.clear();
  unquoted_.reserve(line.size());  // no word grows by unquoting: the views below stay valid
  for (std::size_t i = 0;;) {
    while (i < line.size() && is_space(line[i])) ++i;
    if (i == line.size()) break;
    const std::size_t begin = unquoted_.size();
    if (!split_word(line, i, unquoted_)) {
      return fail("Protocol error: unbalanced quotes in request");
    }
    args_.emplace_back(unquoted_.data() + begin, unquoted_.size() - begin);
    if (args_.size() > limits_.max_arguments) {
      return fail("Protocol error: invalid multibulk length");
    }
  }
  return complete(stop + 1);
}

// --- Writer ---

void Writer::header(char type, std::int64_t n) {
  char text[24];
  text[0] = type;
  char* end = text + 2;
  if (n >= 0 && n < 10)
    text[1] = static_cast<char>('0' + n);
  else
    end = std::to_chars(text + 1, text + sizeof text - 2, n).ptr;
  *end++ = '\r';
  *end++ = '\n';
  out_->append(text, static_cast<std::size_t>(end - text));
}

void Writer::simple(std::string_view text) {
  *out_ += '+';
  raw(text);
  raw("\r\n");
}

void Writer::error(std::string_view text) {
  *out_ += '-';
  const std::size_t begin = out_->size();
  raw(text);
  for (std::size_t i = begin; i < out_->size(); ++i) {
    char& c = (*out_)[i];
    if (c == '\r' || c == '\n') c = ' ';
  }
  raw("\r\n");
}

void Writer::integer(std::int64_t n) { header(':', n); }

void Writer::bulk(std::string_view bytes) {
  header('$', static_cast<std::int64_t>(bytes.size()));
  const std::size_t old = out_->size();
  const std::size_t total = old + bytes.size() + 2;
  // The callback's own size argument is larger than asked for in libstdc++ 12, if memory grew.
  out_->resize_and_overwrite(total, [&](char* p, std::size_t) {
    if (!bytes.empty()) std::memcpy(p + old, bytes.data(), bytes.size());
    p[total - 2] = '\r';
    p[total - 1] = '\n';
    return total;
  });
}

void Writer::null() { raw(protocol_ >= 3 ? "_\r\n" : "$-1\r\n"); }
void Writer::null_array() { raw(protocol_ >= 3 ? "_\r\n" : "*-1\r\n"); }

void Writer::array(std::size_t n) { header('*', static_cast<std::int64_t>(n)); }

void Writer::map(std::size_t n) {
  if (protocol_ >= 3)
    header('%', static_cast<std::int64_t>(n));
  else
    array(2 * n);
}

void Writer::set(std::size_t n) {
  header(protocol_ >= 3 ? '~' : '*', static_cast<std::int64_t>(n));
}
void Writer::push(std::size_t n) {
  header(protocol_ >= 3 ? '>' : '*', static_cast<std::int64_t>(n));
}

void Writer::real(double value) {
  char digits[32];
  const char* const end = std::to_chars(digits, digits + sizeof digits, value).ptr;
  std::string_view text(digits, static_cast<std::size_t>(end - digits));
  if (std::isnan(value)) text = "nan";  // never "-nan"
  if (protocol_ < 3) return bulk(text);
  *out_ += ',';
  raw(text);
  raw("\r\n");
}

void Writer::boolean(bool value) {
  if (protocol_ < 3)
    integer(value ? 1 : 0);
  else
    raw(value ? "#t\r\n" : "#f\r\n");
}

void Writer::verbatim(std::string_view text) {
  if (protocol_ < 3) return bulk(text);
  header('=', static_cast<std::int64_t>(text.size() + 4));
  raw("txt:");
  raw(text);
  raw("\r\n");
}

// --- Replies ---

namespace {

class ReplyParser {
 public:
  ReplyParser(std::string_view data, std::string& error, const Limits& limits)
      : data_(data), error_(error), limits_(limits) {}

  // False: incomplete, or malformed if there is an error text.
  bool parse(Reply& reply, int depth);
  std::size_t position() const { return position_; }

 private:
  bool fail(std::string text) {
    error_ = "Protocol error: " + std::move(text);
    return false;
  }
  bool line(std::string_view& text);
  bool number(std::string_view text, std::int64_t& value);
  bool bulk(std::string_view text, Reply& reply, Reply::Type type);
  bool aggregate(std::string_view text, Reply& reply, Reply::Type type, int depth);
  bool scalar(char kind, std::string_view text, Reply& reply);

  std::string_view data_;
  std::string& error_;
  const Limits& limits_;
  std::size_t position_ = 0;
};

bool ReplyParser::line(std::string_view& text) {
  const std::size_t stop = std::min(data_.find('\r', position_), data_.size());
  if (stop - position_ > limits_.max_inline_bytes) return fail("too big reply line");
  if (stop + 2 > data_.size()) return false;
  if (data_[stop + 1] != '\n') return fail("line without an end");
  text = data_.substr(position_, stop - position_);
  position_ = stop + 2;
  return true;
}

bool ReplyParser::number(std::string_view text, std::int64_t& value) {
  return parse_reply_integer(text, value) || fail("invalid number");
}

bool ReplyParser::bulk(std::string_view text, Reply& reply, Reply::Type type) {
  std::int64_t size = 0;
  if (!number(text, size)) return false;
  if (size == -1 && type == Reply::Type::bulk) {
    reply.type = Reply::Type::null;
    return true;
  }
  if (size < 0 || static_cast<std::uint64_t>(size) > limits_.max_bulk_bytes) {
    return fail("invalid bulk length");
  }
  const std::size_t length = static_cast<std::size_t>(size);
  if (data_.size() - position_ < length + 2) return false;
  if (data_.substr(position_ + length, 2) != "\r\n") return fail("bulk without an end");
  std::string_view bytes = data_.substr(position_, length);
  position_ += length + 2;
  if (type == Reply::Type::verbatim) {
    if (bytes.size() < 4 || bytes[3] != ':') return fail("invalid verbatim string");
    bytes.remove_prefix(4);
  }
  reply.type = type;
  reply.text = bytes;
  return true;
}

bool ReplyParser::aggregate(std::string_view text, Reply& reply, Reply::Type type, int depth) {
  std::int64_t count = 0;
  if (!number(text, count)) return false;
  if (count == -1 && type == Reply::Type::array) {
    reply.type = Reply::Type::null;
    return true;
  }
  if (count < 0 || static_cast<std::uint64_t>(count) > limits_.max_arguments) {
    return fail("invalid multibulk length");
  }
  if (depth + 1 >= kMaxDepth) return fail("too deep");
  const std::int64_t total = type == Reply::Type::map ? 2 * count : count;
  reply.type = type;
  for (std::int64_t i = 0; i < total; ++i) {  // grows with what is there, not with what is claimed
    Reply element;
    if (!parse(element, depth + 1)) return false;
    reply.elements.push_back(std::move(element));
  }
  return true;
}

bool ReplyParser::scalar(char kind, std::string_view text, Reply& reply) {
  switch (kind) {
    case '+':
    case '-':
    case '(':
      reply.type = kind == '+'   ? Reply::Type::simple
                   : kind == '-' ? Reply::Type::error
                                 : Reply::Type::big_number;
      reply.text = text;
      return true;
    case ':': reply.type = Reply::Type::integer; return number(text, reply.integer);
    case '_': reply.type = Reply::Type::null; return text.empty() || fail("invalid null");
    case '#':
      reply.type = Reply::Type::boolean;
      reply.integer = text == "t" ? 1 : 0;
      return text == "t" || text == "f" || fail("invalid boolean");
    case ',':
      reply.type = Reply::Type::real;
      return parse_reply_real(text, reply.real) || fail("invalid number");
    default: return fail(std::string("unknown reply type '") + kind + "'");
  }
}

bool ReplyParser::parse(Reply& reply, int depth) {
  // Attributes stand before the reply that they describe; nobody here wants them.
  for (int attributes = 0;; ++attributes) {
    std::string_view text;
    if (!line(text)) return false;
    if (text.empty()) return fail("empty reply line");
    const char kind = text[0];
    text.remove_prefix(1);
    switch (kind) {
      case '$': return bulk(text, reply, Reply::Type::bulk);
      case '!': return bulk(text, reply, Reply::Type::error);
      case '=': return bulk(text, reply, Reply::Type::verbatim);
      case '*': return aggregate(text, reply, Reply::Type::array, depth);
      case '~': return aggregate(text, reply, Reply::Type::set, depth);
      case '>': return aggregate(text, reply, Reply::Type::push, depth);
      case '%': return aggregate(text, reply, Reply::Type::map, depth);
      case '|': {
        if (attributes >= kMaxDepth) return fail("too many attributes");
        Reply ignored;
        if (!aggregate(text, ignored, Reply::Type::map, depth)) return false;
        continue;
      }
      default: return scalar(kind, text, reply);
    }
  }
}

}  // namespace

std::optional<Reply> parse_reply(std::string_view data, std::size_t& consumed, std::string& error,
                                 const Limits& limits) {
  error.clear();
  ReplyParser parser(data, error, limits);
  Reply reply;
  if (!parser.parse(reply, 0)) return std::nullopt;
  consumed = parser.position();
  return reply;
}

void write_command(std::string& out, std::span<const std::string_view> args) {
  Writer writer(out);
  writer.array(args.size());
  for (const std::string_view arg : args) writer.bulk(arg);
}

}  // namespace larder::wire
