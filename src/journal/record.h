// What a journal holds: writes that were acknowledged and are not in the database yet, and what has
// become of earlier ones.
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

struct Record {
  enum class Kind : std::uint8_t {
    write = 1,    // `ops` become one transaction
    applied = 2,  // all writes of the source up to number `upto` are in the database
    yielded = 3,  // writes to the keys of `ops` give way to what others have written
  };
  Kind kind = Kind::write;
  std::string source;
  TimeUs written_at = 0;  // since 1970
  std::uint64_t upto = 0;
  // Of `write`: never empty. Of `yielded`: cache, key, and as delta the number of the last write
  // that gives way.
  std::vector<Op> ops;
  friend bool operator==(const Record&, const Record&) = default;
};

std::string encode(const Record& record);
// Error: config, it was written by a version that this one does not know, or is none.
Result<Record> decode_record(std::string_view bytes);

}  // namespace larder::journal
