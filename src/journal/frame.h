// The bytes of a journal: frames, one after the other, in segments.
//
//   segment   header | frame | frame | ...
//   header    "LARDRJNL" | journal | first | checksum                              32 bytes
//   frame     mark | count | first | size | checksum | records | zeros to 8 bytes   32 + size
//   record    size | bytes
//
// A frame is what was made durable at once. The next one is written only after that, so a frame
// that cannot be read is a torn end if none that can be read lies behind it: nobody was told that
// it is durable. If one does, something durable was damaged. Numbers are little-endian; a checksum
// is XXH3 over everything of the header before it and what follows, seeded with the journal's id
// (what another journal has left on the disk is not ours).
//
// Pure: no I/O. Source: group commit with a checksum a block is as old as databases; that a frame
// tells torn from damaged is what TigerBeetle's and etcd's logs are careful about, too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"

namespace larder::journal {

// A record's number: dense, from 1. 0 = none.
using Seq = std::uint64_t;

inline constexpr std::size_t kSegmentHeader = 32;
inline constexpr std::size_t kFrameHeader = 32;
inline constexpr std::size_t kRecordHeader = 4;
inline constexpr std::size_t kMostRecord = std::size_t{64} << 20;
inline constexpr std::size_t kMostFrame = std::size_t{128} << 20;

struct SegmentHeader {
  std::uint64_t journal = 0;  // its id, random
  Seq first = 0;              // of the first record in it
  friend bool operator==(const SegmentHeader&, const SegmentHeader&) = default;
};
std::string encode(const SegmentHeader& header);
// nullopt: it is none, or a part of one.
std::optional<SegmentHeader> decode_segment_header(std::string_view bytes);

// Records on their way into one frame. REQUIRES of add(): record.size() <= kMostRecord.
class FrameWriter {
 public:
  void add(std::string_view record);
  std::uint32_t count() const { return count_; }
  // Of the whole frame.
  std::size_t size() const { return bytes_.size(); }
  // The frame; `first` is the number of its first record. Then it is empty again. REQUIRES: count()
  // > 0. Cost: one pass over the bytes.
  std::string finish(std::uint64_t journal, Seq first);

 private:
  std::string bytes_;  // begins with room for the header
  std::uint32_t count_ = 0;
};

struct Frame {
  Seq first = 0;
  std::uint32_t count = 0;
  std::string_view records;
  std::size_t size = 0;  // of all of it
};
// The frame at the beginning of `bytes`; nullopt: there is none that is whole and ours. Whatever
// the bytes are, it reads no further than they go.
std::optional<Frame> decode_frame(std::string_view bytes, std::uint64_t journal);

// Of a frame that FrameWriter has finished.
std::string_view records_of(std::string_view frame);

// Calls `each` for every record, in order.
void each_record(const Frame& frame,
                 const std::function<void(Seq seq, std::string_view record)>& each);

// A segment as it is on the disk.
struct Scan {
  std::optional<SegmentHeader> header;
  Seq next = 0;          // after the last record of `good`
  std::size_t good = 0;  // so many bytes are header and whole frames
  std::uint64_t frames = 0;
  // Where the first whole frame lies behind `good`: then what is between is damaged, not torn. It
  // and its like are lost if the segment is cut after `good`.
  std::optional<std::size_t> behind;
  Seq last_behind = 0;  // the last record of those
};
// Cost: one pass, and of what is not good a look at every eighth byte.
Scan scan(std::string_view bytes, std::uint64_t journal,
          const std::function<void(Seq seq, std::string_view record)>& each);

}  // namespace larder::journal
