// RESP2 and RESP3 without I/O: a parser for what clients send, a writer for what they get, and a
// parser for replies (for our own clients and tests).
//
// Every length that comes from outside has a limit; a buffer is parsed wherever it happens to be
// cut.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace larder::wire {

struct Limits {
  std::size_t max_arguments = 1 << 20;       // of one command (Redis: 1024*1024)
  std::size_t max_bulk_bytes = 512u << 20;   // of one argument
  std::size_t max_inline_bytes = 64 << 10;   // of an inline command, and of any header line
  std::size_t max_command_bytes = 1u << 30;  // of all arguments of one command
};

// Parses commands: arrays of bulk strings, or inline commands (with Redis's quoting rules).
//
// next() looks only at bytes that it has not seen: a large argument that arrives in pieces costs
// linear time. The arguments are views into the buffer given to that call.
class CommandParser {
 public:
  explicit CommandParser(const Limits& limits = {}) : limits_(limits) {}

  enum class Status : std::uint8_t {
    complete,    // args() holds a command of `consumed` bytes; an empty one is to be ignored
    incomplete,  // wants more bytes: call again with the same beginning and more behind it
    error,       // error() says "Protocol error: ..."; close the connection
  };

  // `data` begins at the first byte after the last complete command. On `complete`, consumed() says
  // how many bytes the command took.
  Status next(std::string_view data);
  std::span<const std::string_view> args() const { return args_; }
  std::size_t consumed() const { return consumed_; }
  const std::string& error() const { return error_; }
  // After `incomplete`: how many bytes there will be at least, as far as is known; 0 = unknown. For
  // sizing the read buffer.
  std::size_t wants() const { return wants_; }

 private:
  struct Piece {  // offsets: the buffer may move between calls
    std::size_t offset;
    std::size_t size;
  };
  enum class Line : std::uint8_t { complete, incomplete, too_long };

  bool parse_whole(std::string_view data);
  Status parse_array(std::string_view data);
  Status parse_bulk_header(std::string_view data);
  Status parse_inline(std::string_view data);
  Line header_line(std::string_view data, std::string_view& text);
  Status complete(std::size_t consumed);
  Status fail(std::string message);

  Limits limits_;
  std::vector<std::string_view> args_;
  std::vector<Piece> pieces_;
  std::string unquoted_;  // inline arguments with escapes live here
  std::string error_;
  std::size_t position_ = 0;    // parsed so far
  std::size_t scanned_ = 0;     // searched so far for the end of the line at position_
  std::int64_t expected_ = -1;  // arguments of the array; -1: header not yet read
  std::int64_t bulk_ = -1;      // size of the bulk that is being read
  std::size_t consumed_ = 0;
  std::size_t wants_ = 0;
  std::size_t total_ = 0;
};

// Appends replies to a buffer in the protocol version of the connection. In RESP2, RESP3 types
// become what Redis makes of them: a map an array of twice the size, null a nil bulk, double a
// bulk, boolean an integer, push and set an array, verbatim string a bulk.
class Writer {
 public:
  explicit Writer(std::string& out, int protocol = 2) : out_(&out), protocol_(protocol) {}

  int protocol() const { return protocol_; }
  void set_protocol(int protocol) { protocol_ = protocol; }
  std::string& buffer() { return *out_; }

  void ok() { raw("+OK\r\n"); }
  void simple(std::string_view text);  // REQUIRES: no CR or LF
  void error(std::string_view text);   // "ERR what"; CR and LF become spaces
  void integer(std::int64_t n);
  void bulk(std::string_view bytes);
  void null();                // nil bulk in RESP2
  void null_array();          // nil array in RESP2 (EXEC aborted by WATCH)
  void array(std::size_t n);  // header; n elements follow
  void map(std::size_t n);    // header; n keys and n values follow
  void set(std::size_t n);
  void push(std::size_t n);
  void real(double value);
  void boolean(bool value);
  void verbatim(std::string_view text);  // "txt"
  void raw(std::string_view bytes) { out_->append(bytes); }

 private:
  void header(char type, std::int64_t n);
  std::string* out_;
  int protocol_;
};

// A parsed reply, as a tree. For our own clients, tests and tools; not for hot paths.
struct Reply {
  enum class Type : std::uint8_t {
    simple,
    error,
    integer,
    bulk,
    null,
    array,
    map,
    set,
    push,
    real,
    boolean,
    big_number,
    verbatim
  };
  Type type = Type::null;
  std::string text;          // simple, error, bulk, big_number, verbatim (without its prefix)
  std::int64_t integer = 0;  // integer, boolean
  double real = 0;
  std::vector<Reply> elements;  // map: key, value, key, value
};

// Parses one reply from the front of `data`. nullopt: incomplete. Sets `error` if it is malformed,
// too deep (32) or over the limits. `consumed` is set on success.
std::optional<Reply> parse_reply(std::string_view data, std::size_t& consumed, std::string& error,
                                 const Limits& limits = {});

// A command as clients send it.
void write_command(std::string& out, std::span<const std::string_view> args);

}  // namespace larder::wire
