// Replies in pieces of any size end where they do in one piece, and where parse_reply says.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"
#include "wire/reply_scan.h"

using larder::wire::Limits;
using larder::wire::ReplyScanner;
using Status = ReplyScanner::Status;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  std::uint32_t state = data[0];  // of the sizes of the pieces
  const std::string_view input(reinterpret_cast<const char*>(data + 1), size - 1);
  const Limits limits{.max_arguments = 1000, .max_bulk_bytes = 1000, .max_inline_bytes = 100};
  ReplyScanner whole(limits);
  ReplyScanner pieces(limits);
  std::string_view rest = input;
  for (;;) {
    const Status expected = whole.next(rest);
    std::string error;
    std::size_t consumed = 0;
    const bool is_parsed = larder::wire::parse_reply(rest, consumed, error, limits).has_value();
    LARDER_ASSERT(is_parsed == (expected == Status::complete));
    LARDER_ASSERT(!error.empty() == (expected == Status::error));

    Status status = Status::incomplete;
    std::size_t seen = 0;
    while (status == Status::incomplete && seen < rest.size()) {
      state = state * 1664525 + 1013904223;
      seen = std::min(rest.size(), seen + 1 + (state >> 28));
      status = pieces.next(std::string(rest.substr(0, seen)));  // moves, and ends sharply
    }
    LARDER_ASSERT(status == expected);
    LARDER_ASSERT(pieces.error() == whole.error());
    if (status != Status::complete) return 0;
    LARDER_ASSERT(whole.consumed() == consumed && pieces.consumed() == consumed);
    rest.remove_prefix(consumed);
  }
}
