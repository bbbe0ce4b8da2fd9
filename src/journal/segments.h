// A journal's records on the disk: appended in frames, found again after a crash, removed from the
// front. The thread and the waiting are in log.h.
//
// What open() finds:
//   a torn end       frames that were being written: cut; nobody was told that they are durable
//   a damaged middle  something durable cannot be read: refused. `larder journal check` shows what
//                    lies behind it, `larder journal repair` cuts there
// Whatever it keeps it writes anew: what a process left in the system's memory without having made
// it durable (or failed to) may be readable now and gone after a power cut.
//
// Everything blocks. Used by one thread at a time, but for bytes() and next().
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "journal/frame.h"
#include "journal/storage.h"

namespace larder::journal {

class Segments {
 public:
  // What tests switch off, to see that it is needed.
  struct Rules {
    bool sync = true;
    bool sync_names = true;
    bool rewrite = true;  // what open() keeps
  };
  struct Options {
    std::uint64_t segment_bytes = std::uint64_t{64} << 20;  // the next one begins after so many
    std::size_t reserve_bytes = 64 << 10;  // kept for a new segment when the disk is full
    std::uint64_t id = 0;                  // of a journal that does not exist yet. REQUIRES: not 0
    Rules rules = {};
  };
  struct Opened {
    std::uint64_t id = 0;
    Seq first = 1;  // the first record that is still there, if first < next
    Seq next = 1;
    std::uint64_t cut_bytes = 0;  // of a torn end
  };
  using Each = std::function<void(Seq seq, std::string_view record)>;

  // `storage` outlives it. `each`: every record that is there, in order; views end with the call.
  // Errors: io; config (it is damaged, and what to do).
  static Result<std::unique_ptr<Segments>> open(Storage& storage, const Options& options,
                                                const Each& each);

  const Opened& opened() const { return opened_; }
  Seq next() const { return next_.load(std::memory_order_acquire); }
  // Of all files. Thread-safe.
  std::uint64_t bytes() const { return bytes_.load(std::memory_order_relaxed); }

  // Makes the records durable; the first of them has the number that next() was. After `overloaded`
  // (the disk is full) none of them is there, and one may try again. After any other error nothing
  // is known of them, and nothing is accepted any more: failed(). `durable`: called with each of
  // them once they are.
  Result<void> append(FrameWriter& records, const Each& durable = {});
  const std::optional<Error>& failed() const { return failed_; }

  // Records below `seq` are needed no more: removes the segments that hold nothing else, but for
  // the one that is being written; after an append that found the disk full that one, too, if `seq`
  // is next(). Errors: as append().
  Result<void> trim(Seq seq);

  // ---- without opening ----

  struct Report {
    struct Segment {
      std::string name;
      std::uint64_t bytes = 0;
      Seq first = 0, next = 0;         // what can be read
      std::string problem;             // "" = none
      std::uint64_t lost_bytes = 0;    // behind the first problem
      std::uint64_t lost_records = 0;  // of those, known by what lies behind
    };
    std::vector<Segment> segments;
    bool damaged = false;  // open() would refuse
    Seq first = 1, next = 1;
    std::uint64_t lost_records = 0;  // at least
  };
  static Result<Report> check(Storage& storage, const Each& each = {});
  // Cuts after the last record before the first damage. What is cut off is kept beside it, as
  // NAME.damaged. Nothing to do is no error.
  static Result<Report> repair(Storage& storage);

 private:
  struct Segment {
    std::string name;
    Seq first = 0;
    std::uint64_t bytes = 0;
  };
  struct Found;
  Segments(Storage& storage, const Options& options) : storage_(storage), options_(options) {}
  static Result<Found> find(Storage& storage, const Each& each);
  Result<void> begin_segment();
  Result<void> remove_below(Seq seq);
  std::unexpected<Error> failed_by(Error error);

  Storage& storage_;
  const Options options_;
  Opened opened_;
  std::deque<Segment> segments_;  // the last one is being written
  std::unique_ptr<Storage::File> file_;
  std::atomic<Seq> next_{1};
  std::atomic<std::uint64_t> bytes_{0};
  std::optional<Error> failed_;
  bool full_ = false;  // the last append found no room
};

}  // namespace larder::journal
