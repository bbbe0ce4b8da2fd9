// Finds where a reply ends, in a stream that is cut anywhere, without building it.
//
// For clients that read replies as they arrive: parse_reply begins anew whenever bytes were
// missing, this keeps its place.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "wire/resp.h"

namespace larder::wire {

// Scans one RESP2 or RESP3 reply after another; attributes belong to the reply behind them.
//
// Accepts and refuses what parse_reply does, with the same limits (depth 32 included), and refuses
// besides a reply that takes more than limits.max_command_bytes in whole, headers included. There
// are no streamed types. The work for a reply is linear in its size however it is cut, and the
// memory is fixed. Not thread-safe; never allocates but for an error text.
class ReplyScanner {
 public:
  explicit ReplyScanner(const Limits& limits = {}) : limits_(limits) {}

  enum class Status : std::uint8_t {
    complete,    // the first consumed() bytes are one reply; the next call begins behind them
    incomplete,  // wants more bytes: call again with the same beginning and more behind it
    error,       // error() says "Protocol error: ..."; stays so: close the connection
  };

  // `data` begins at the first byte after the last complete reply. The buffer may move between
  // calls. REQUIRES: after `incomplete`, at least as many bytes as last time.
  Status next(std::string_view data);
  std::size_t consumed() const { return consumed_; }
  const std::string& error() const { return error_; }
  // After `incomplete`: how many bytes of data there will be at least, if a bulk is being read;
  // 0 = unknown. For sizing the read buffer.
  std::size_t wants() const { return wants_; }

 private:
  static constexpr std::size_t kMaxDepth = 32;

  struct Frame {  // an aggregate that is being read
    std::uint64_t left = 0;
    bool is_attribute = false;
    std::uint8_t attributes = 0;  // for an attribute: how many its reply has by now
  };

  Status scan(std::string_view data);
  Status line(std::string_view data, std::string_view& text);
  Status header(std::string_view text);
  Status scalar(char kind, std::string_view text);
  Status bulk_header(char kind, std::string_view text);
  Status bulk_body(std::string_view data);
  Status aggregate(char kind, std::string_view text);
  bool close_element();
  bool close_full();
  Status fail(std::string_view what);

  Limits limits_;
  std::array<Frame, kMaxDepth - 1> frames_;
  std::size_t depth_ = 0;        // frames in use
  std::uint8_t attributes_ = 0;  // before the element that is to come
  std::size_t position_ = 0;     // scanned so far: the beginning of a line, or of a bulk's bytes
  std::size_t scanned_ = 0;      // searched so far for the end of the line at position_
  std::int64_t bulk_ = -1;       // size of the bulk that is being read; -1: none
  bool is_verbatim_ = false;     // and whether it must have a prefix
  bool is_done_ = false;         // the reply is complete
  std::size_t consumed_ = 0;
  std::size_t wants_ = 0;
  std::string error_;
};

}  // namespace larder::wire
