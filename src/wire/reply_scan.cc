#include "wire/reply_scan.h"

#include <algorithm>

#include "wire/resp_numbers.h"

namespace larder::wire {
namespace {

using Status = ReplyScanner::Status;

}  // namespace

Status ReplyScanner::fail(std::string_view what) {
  error_ = "Protocol error: ";
  error_ += what;
  return Status::error;
}

Status ReplyScanner::next(std::string_view data) {
  if (!error_.empty()) return Status::error;
  wants_ = 0;
  while (!is_done_) {
    const Status status = scan(data);
    if (status != Status::complete) return status;
  }
  consumed_ = position_;
  position_ = scanned_ = 0;
  is_done_ = false;
  return Status::complete;
}

// One step: a line, or the bytes of a bulk.
Status ReplyScanner::scan(std::string_view data) {
  if (bulk_ >= 0) return bulk_body(data);
  std::string_view text;
  const Status status = line(data, text);
  if (status != Status::complete) return status;
  if (position_ > limits_.max_command_bytes) return fail("too big reply");
  return header(text);
}

// The line at position_, without its end. Searches only bytes that it has not seen.
Status ReplyScanner::line(std::string_view data, std::string_view& text) {
  scanned_ = std::max(scanned_, position_);
  const std::size_t stop = std::min(data.find('\r', scanned_), data.size());
  if (stop - position_ > limits_.max_inline_bytes) return fail("too big reply line");
  scanned_ = stop;
  if (data.size() - stop < 2) return Status::incomplete;
  if (data[stop + 1] != '\n') return fail("line without an end");
  text = data.substr(position_, stop - position_);
  position_ = scanned_ = stop + 2;
  return Status::complete;
}

Status ReplyScanner::header(std::string_view text) {
  if (text.empty()) return fail("empty reply line");
  const char kind = text[0];
  text.remove_prefix(1);
  switch (kind) {
    case '$':
    case '!':
    case '=': return bulk_header(kind, text);
    case '*':
    case '~':
    case '>':
    case '%':
    case '|': return aggregate(kind, text);
    default: return scalar(kind, text);
  }
}

Status ReplyScanner::scalar(char kind, std::string_view text) {
  std::int64_t integer = 0;
  double real = 0;
  switch (kind) {
    case '+':
    case '-':
    case '(': break;
    case ':':
      if (!parse_reply_integer(text, integer)) return fail("invalid number");
      break;
    case '_':
      if (!text.empty()) return fail("invalid null");
      break;
    case '#':
      if (text != "t" && text != "f") return fail("invalid boolean");
      break;
    case ',':
      if (!parse_reply_real(text, real)) return fail("invalid number");
      break;
    default: return fail(std::string("unknown reply type '") + kind + "'");
  }
  is_done_ = close_element();
  return Status::complete;
}

Status ReplyScanner::bulk_header(char kind, std::string_view text) {
  std::int64_t size = 0;
  if (!parse_reply_integer(text, size)) return fail("invalid number");
  if (size == -1 && kind == '$') {
    is_done_ = close_element();
    return Status::complete;
  }
  if (size < 0 || static_cast<std::uint64_t>(size) > limits_.max_bulk_bytes) {
    return fail("invalid bulk length");
  }
  if (static_cast<std::uint64_t>(size) + 2 > limits_.max_command_bytes - position_) {
    return fail("too big reply");
  }
  bulk_ = size;
  is_verbatim_ = kind == '=';
  return Status::complete;
}

Status ReplyScanner::bulk_body(std::string_view data) {
  const std::size_t size = static_cast<std::size_t>(bulk_);
  if (data.size() - position_ < size + 2) {
    wants_ = position_ + size + 2;
    return Status::incomplete;
  }
  if (data.substr(position_ + size, 2) != "\r\n") return fail("bulk without an end");
  if (is_verbatim_ && (size < 4 || data[position_ + 3] != ':')) {
    return fail("invalid verbatim string");
  }
  position_ += size + 2;
  bulk_ = -1;
  is_done_ = close_element();
  return Status::complete;
}

Status ReplyScanner::aggregate(char kind, std::string_view text) {
  const bool is_attribute = kind == '|';
  if (is_attribute && attributes_ >= kMaxDepth) return fail("too many attributes");
  std::int64_t count = 0;
  if (!parse_reply_integer(text, count)) return fail("invalid number");
  if (count == -1 && kind == '*') {
    is_done_ = close_element();
    return Status::complete;
  }
  if (count < 0 || static_cast<std::uint64_t>(count) > limits_.max_arguments) {
    return fail("invalid multibulk length");
  }
  if (depth_ == frames_.size()) return fail("too deep");
  const std::uint64_t pairs = is_attribute || kind == '%' ? 2 : 1;
  frames_[depth_++] = {.left = static_cast<std::uint64_t>(count) * pairs,
                       .is_attribute = is_attribute,
                       .attributes = static_cast<std::uint8_t>(attributes_ + 1)};
  attributes_ = 0;
  is_done_ = close_full();
  return Status::complete;
}

// An element is at its end, and perhaps the aggregates around it. True if the reply is.
bool ReplyScanner::close_element() {
  attributes_ = 0;
  if (depth_ == 0) return true;
  --frames_[depth_ - 1].left;
  return close_full();
}

// Leaves the aggregates that have all their elements. True if the reply is at its end.
bool ReplyScanner::close_full() {
  while (depth_ > 0 && frames_[depth_ - 1].left == 0) {
    const Frame& frame = frames_[--depth_];
    if (frame.is_attribute) {  // what it describes is still to come
      attributes_ = frame.attributes;
      return false;
    }
    attributes_ = 0;
    if (depth_ == 0) return true;
    --frames_[depth_ - 1].left;
  }
  return false;
}

}  // namespace larder::wire
