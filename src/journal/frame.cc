#include "journal/frame.h"

#include <bit>
#include <cstring>

#include "base/hash.h"

namespace larder::journal {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr std::string_view kSegmentMark = "LARDRJNL";
constexpr std::uint32_t kFrameMark = 0x4d52464a;  // "JFRM"

template <class T>
void put(std::string& to, std::size_t at, T value) {
  std::memcpy(to.data() + at, &value, sizeof value);
}
template <class T>
T get(std::string_view from, std::size_t at) {
  T value;
  std::memcpy(&value, from.data() + at, sizeof value);
  return value;
}

constexpr std::size_t padded(std::size_t size) { return (size + 7) & ~std::size_t{7}; }

// Of the frame's header without the checksum itself, and all that follows.
std::uint64_t checksum_of(std::string_view frame, std::uint64_t journal) {
  const Hash header = hash_bytes(frame.substr(0, kFrameHeader - 8), journal);
  return hash_bytes(frame.substr(kFrameHeader), header);
}

// Are they `count` whole records?
bool well_formed(std::string_view records, std::uint32_t count) {
  for (std::uint32_t i = 0; i < count; ++i) {
    if (records.size() < kRecordHeader) return false;
    const auto size = get<std::uint32_t>(records, 0);
    if (size > records.size() - kRecordHeader) return false;
    records.remove_prefix(kRecordHeader + size);
  }
  return records.empty();
}

}  // namespace

std::string encode(const SegmentHeader& header) {
  std::string bytes(kSegmentHeader, '\0');
  std::memcpy(bytes.data(), kSegmentMark.data(), kSegmentMark.size());
  put(bytes, 8, header.journal);
  put(bytes, 16, header.first);
  put(bytes, 24, hash_bytes(std::string_view(bytes).substr(0, 24), 0));
  return bytes;
}

std::optional<SegmentHeader> decode_segment_header(std::string_view bytes) {
  if (bytes.size() < kSegmentHeader || !bytes.starts_with(kSegmentMark)) return std::nullopt;
  if (get<std::uint64_t>(bytes, 24) != hash_bytes(bytes.substr(0, 24), 0)) return std::nullopt;
  const SegmentHeader header{.journal = get<std::uint64_t>(bytes, 8),
                             .first = get<std::uint64_t>(bytes, 16)};
  if (header.first == 0) return std::nullopt;
  return header;
}

void FrameWriter::add(std::string_view record) {
  LARDER_ASSERT(record.size() <= kMostRecord);
  if (bytes_.empty()) bytes_.resize(kFrameHeader);
  const auto size = static_cast<std::uint32_t>(record.size());
  bytes_.append(reinterpret_cast<const char*>(&size), sizeof size).append(record);
  ++count_;
}

std::string FrameWriter::finish(std::uint64_t journal, Seq first) {
  LARDER_ASSERT(count_ > 0);
  put(bytes_, 0, kFrameMark);
  put(bytes_, 4, count_);
  put(bytes_, 8, first);
  put(bytes_, 16, static_cast<std::uint64_t>(bytes_.size() - kFrameHeader));
  bytes_.resize(padded(bytes_.size()));
  put(bytes_, 24, checksum_of(bytes_, journal));
  count_ = 0;
  return std::exchange(bytes_, {});
}

std::string_view records_of(std::string_view frame) {
  return frame.substr(kFrameHeader, get<std::uint64_t>(frame, 16));
}

std::optional<Frame> decode_frame(std::string_view bytes, std::uint64_t journal) {
  if (bytes.size() < kFrameHeader || get<std::uint32_t>(bytes, 0) != kFrameMark)
    return std::nullopt;
  const auto count = get<std::uint32_t>(bytes, 4);
  const auto first = get<std::uint64_t>(bytes, 8);
  const auto size = get<std::uint64_t>(bytes, 16);
  if (count == 0 || first == 0 || size > kMostFrame) return std::nullopt;
  const std::size_t whole = padded(kFrameHeader + size);
  if (bytes.size() < whole) return std::nullopt;
  const std::string_view frame = bytes.substr(0, whole);
  if (get<std::uint64_t>(bytes, 24) != checksum_of(frame, journal)) return std::nullopt;
  const std::string_view records = records_of(frame);
  if (!well_formed(records, count)) return std::nullopt;
  return Frame{.first = first, .count = count, .records = records, .size = whole};
}

void each_record(const Frame& frame,
                 const std::function<void(Seq seq, std::string_view record)>& each) {
  std::string_view records = frame.records;
  for (std::uint32_t i = 0; i < frame.count; ++i) {
    const auto size = get<std::uint32_t>(records, 0);
    each(frame.first + i, records.substr(kRecordHeader, size));
    records.remove_prefix(kRecordHeader + size);
  }
}

Scan scan(std::string_view bytes, std::uint64_t journal,
          const std::function<void(Seq seq, std::string_view record)>& each) {
  Scan result;
  const std::optional<SegmentHeader> header = decode_segment_header(bytes);
  if (header && header->journal == journal) {
    result.header = header;
    result.next = header->first;
    result.good = kSegmentHeader;
    for (;;) {
      const std::optional<Frame> frame = decode_frame(bytes.substr(result.good), journal);
      if (!frame || frame->first != result.next) break;
      if (each) each_record(*frame, each);
      result.next += frame->count;
      result.good += frame->size;
      ++result.frames;
    }
  }
  for (std::size_t at = padded(result.good); at + kFrameHeader <= bytes.size();) {
    const std::optional<Frame> frame = decode_frame(bytes.substr(at), journal);
    if (!frame) {
      at += 8;
      continue;
    }
    if (!result.behind) result.behind = at;
    result.last_behind = frame->first + frame->count - 1;
    at += frame->size;
  }
  return result;
}

}  // namespace larder::journal
