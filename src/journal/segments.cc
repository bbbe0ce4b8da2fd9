#include "journal/segments.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace larder::journal {
namespace {

constexpr std::string_view kSuffix = ".journal";
constexpr std::string_view kDamaged = ".damaged";
// Room for a new segment on a disk that is full.
constexpr const char* kReserve = "reserve";

std::string name_of(Seq first) { return fmt::format("{:020}{}", first, kSuffix); }

}  // namespace

// All segments as they are, in order.
struct Segments::Found {
  std::optional<std::uint64_t> id;
  Report report;
  std::vector<std::string> contents;  // of the last segment only; parallel to report.segments
  std::vector<Scan> scans;
};

// What is wrong with each segment is a problem of that segment; what is a torn end is none.
Result<Segments::Found> Segments::find(Storage& storage, const Each& each) {
  Result<std::vector<std::string>> names = storage.list();
  if (!names) return std::unexpected(std::move(names.error()));
  std::erase_if(*names, [](const std::string& name) { return !name.ends_with(kSuffix); });
  Found found;
  for (std::size_t i = 0; i < names->size(); ++i) {
    const std::string& name = (*names)[i];
    const bool last = i + 1 == names->size();
    Result<std::string> bytes = storage.read(name);
    if (!bytes) return std::unexpected(std::move(bytes.error()));
    const std::optional<SegmentHeader> header = decode_segment_header(*bytes);
    if (!found.id && header) found.id = header->journal;
    Report::Segment about{.name = name, .bytes = bytes->size(), .problem = {}};
    const bool before_damage = !found.report.damaged;
    Scan scanned = scan(*bytes, found.id.value_or(0), before_damage ? each : Each{});
    const Seq expected = found.report.segments.empty() ? 0 : found.report.next;
    const bool gap = scanned.header && expected != 0 && scanned.header->first != expected;
    if (!scanned.header) {
      about.problem = "its header cannot be read";
    } else if (gap) {
      about.problem = fmt::format("it begins with record {}, not {}: a segment is missing",
                                  scanned.header->first, expected);
    } else if (scanned.good < bytes->size() && (!last || scanned.behind)) {
      about.problem = fmt::format("it cannot be read at byte {}", scanned.good);
    }
    about.first = scanned.header ? scanned.header->first : expected;
    about.next = scanned.header ? scanned.next : about.first;
    if (!about.problem.empty() || !before_damage) {
      found.report.damaged = true;
      const bool all = !before_damage || !scanned.header || gap;
      about.lost_bytes = bytes->size() - (all ? 0 : scanned.good);
      const Seq end = std::max(about.next, scanned.last_behind + 1);
      about.lost_records = end - std::min(end, all ? about.first : about.next);
      found.report.lost_records += about.lost_records;
    }
    if (before_damage && scanned.header && !gap) {
      if (found.report.segments.empty()) found.report.first = about.first;
      found.report.next = about.next;
    }
    found.report.segments.push_back(std::move(about));
    found.scans.push_back(scanned);
    found.contents.push_back(last ? std::move(*bytes) : std::string());
  }
  return found;
}

Result<std::unique_ptr<Segments>> Segments::open(Storage& storage, const Options& options,
                                                 const Each& each) {
  Result<Found> found = find(storage, each);
  if (!found) return std::unexpected(std::move(found.error()));
  if (found->report.damaged) {
    const auto& segments = found->report.segments;
    const auto damaged = std::ranges::find_if(
        segments, [](const Report::Segment& segment) { return !segment.problem.empty(); });
    return fail(ErrorCode::config,
                fmt::format("the journal is damaged: {}: {}. `larder journal check` shows what can "
                            "be read and what is lost, `larder journal repair` cuts there",
                            damaged->name, damaged->problem),
                "journal");
  }
  std::unique_ptr<Segments> result(new Segments(storage, options));
  Segments& self = *result;
  self.opened_.id = found->id.value_or(options.id);
  for (std::size_t i = 0; i < found->scans.size(); ++i) {
    const Report::Segment& about = found->report.segments[i];
    const Scan& scanned = found->scans[i];
    const bool last = i + 1 == found->scans.size();
    if (last) self.opened_.cut_bytes = about.bytes - scanned.good;
    if (last && scanned.frames == 0) continue;  // the one that begins now has its name
    if (last && (options.rules.rewrite || scanned.good < about.bytes)) {
      Result<void> kept =
          storage.replace(about.name, std::string_view(found->contents[i]).substr(0, scanned.good));
      if (!kept) return std::unexpected(std::move(kept.error()));
    }
    self.segments_.push_back({.name = about.name, .first = about.first, .bytes = scanned.good});
    self.bytes_ += scanned.good;
  }
  self.opened_.first = found->report.first;
  self.opened_.next = found->report.next;
  self.next_ = found->report.next;
  Result<void> begun = self.begin_segment();
  if (begun) begun = storage.replace(kReserve, std::string(options.reserve_bytes, '\0'));
  if (!begun) return std::unexpected(std::move(begun.error()));
  return result;
}

// Durably there before anything is appended to it.
Result<void> Segments::begin_segment() {
  const Seq first = next();
  const std::string header = encode({.journal = opened_.id, .first = first});
  Result<void> made = storage_.replace(name_of(first), header);
  if (!made) return made;
  Result<std::unique_ptr<Storage::File>> file = storage_.open(name_of(first));
  if (!file) return std::unexpected(std::move(file.error()));
  file_ = std::move(*file);
  segments_.push_back({.name = name_of(first), .first = first, .bytes = header.size()});
  bytes_ += header.size();
  return {};
}

// A full disk may have room again. Whatever else it is, the system may say later that all is well.
std::unexpected<Error> Segments::failed_by(Error error) {
  if (error.code != ErrorCode::overloaded) failed_ = error;
  return std::unexpected(std::move(error));
}

Result<void> Segments::append(FrameWriter& records, const Each& durable) {
  if (failed_) return std::unexpected(*failed_);
  if (segments_.back().bytes >= options_.segment_bytes) {
    Result<void> begun = begin_segment();
    if (!begun) return failed_by(std::move(begun.error()));
  }
  const Seq first = next();
  const std::uint32_t count = records.count();
  const std::string frame = records.finish(opened_.id, first);
  Segment& segment = segments_.back();
  Result<void> written = file_->append(frame);
  if (!written) {
    Result<void> cut;
    if (written.error().code == ErrorCode::overloaded) cut = file_->cut(segment.bytes);
    full_ = true;
    if (!cut) written.error().code = ErrorCode::io;  // a part of it is there
    return failed_by(std::move(written.error()));
  }
  if (options_.rules.sync) {
    Result<void> synced = file_->sync();
    if (!synced) {
      // Also where the disk was found to be full only now: the frame is there, and is not durable.
      synced.error().code = ErrorCode::io;
      return failed_by(std::move(synced.error()));
    }
  }
  full_ = false;
  segment.bytes += frame.size();
  bytes_ += frame.size();
  next_.store(first + count, std::memory_order_release);
  if (durable) each_record({.first = first, .count = count, .records = records_of(frame)}, durable);
  return {};
}

Result<void> Segments::trim(Seq seq) {
  Result<void> trimmed = remove_below(seq);
  // A full disk, and nothing is needed: the room is in the segment that is being written.
  if (!trimmed || !full_ || seq < next() || segments_.back().bytes <= kSegmentHeader)
    return trimmed;
  Result<void> begun = begin_segment();
  if (!begun && begun.error().code == ErrorCode::overloaded) {
    if (Result<void> gone = storage_.remove(kReserve); !gone) return failed_by(gone.error());
    begun = begin_segment();
  }
  if (!begun) return failed_by(std::move(begun.error()));
  full_ = false;
  trimmed = remove_below(seq);
  if (trimmed) trimmed = storage_.replace(kReserve, std::string(options_.reserve_bytes, '\0'));
  if (!trimmed) return failed_by(std::move(trimmed.error()));
  return trimmed;
}

// The oldest first, each durably: what is left never has a gap.
Result<void> Segments::remove_below(Seq seq) {
  while (segments_.size() > 1 && segments_[1].first <= seq) {
    Result<void> gone = storage_.remove(segments_.front().name);
    if (gone && options_.rules.sync_names) gone = storage_.sync_names();
    if (!gone) return failed_by(std::move(gone.error()));
    bytes_ -= segments_.front().bytes;
    segments_.pop_front();
  }
  return {};
}

Result<Segments::Report> Segments::check(Storage& storage, const Each& each) {
  Result<Found> found = find(storage, each);
  if (!found) return std::unexpected(std::move(found.error()));
  return std::move(found->report);
}

Result<Segments::Report> Segments::repair(Storage& storage) {
  Result<Report> report = check(storage);
  if (!report || !report->damaged) return report;
  bool behind = false;  // the first damage
  for (const Report::Segment& segment : report->segments) {
    if (segment.lost_bytes == 0 && segment.problem.empty()) continue;
    Result<std::string> bytes = storage.read(segment.name);
    if (!bytes) return std::unexpected(std::move(bytes.error()));
    const std::size_t good = bytes->size() - segment.lost_bytes;
    Result<void> kept = storage.replace(segment.name + std::string(kDamaged), *bytes);
    if (kept)
      kept = !behind && good > 0
                 ? storage.replace(segment.name, std::string_view(*bytes).substr(0, good))
                 : storage.remove(segment.name);
    if (!kept) return std::unexpected(std::move(kept.error()));
    behind = true;
  }
  Result<void> synced = storage.sync_names();
  if (!synced) return std::unexpected(std::move(synced.error()));
  return report;
}

}  // namespace larder::journal
