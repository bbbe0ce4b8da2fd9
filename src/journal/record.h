// A write that was acknowledged and is not in the database yet, as a journal holds it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/error.h"

namespace larder::journal {

struct Op {
  enum class Kind : std::uint8_t { set = 1, remove = 2, increment = 3 };
  Kind kind = Kind::set;
  std::string cache;
  std::string key;
  std::string value;       // set: as it was given; increment: what it has made of the value
  std::int64_t delta = 0;  // increment
  friend bool operator==(const Op&, const Op&) = default;
};

// What becomes one transaction.
struct Record {
  std::string source;
  TimeUs written_at = 0;  // since 1970
  std::vector<Op> ops;    // never empty
  friend bool operator==(const Record&, const Record&) = default;
};

std::string encode(const Record& record);
// Error: config, it was written by a version that this one does not know, or is none.
Result<Record> decode_record(std::string_view bytes);

}  // namespace larder::journal
