// A journal that many write to and one thread makes durable: what comes while the disk is busy goes
// out together (group commit), so throughput does not depend on how long the disk takes.
//
// Thread-safe. Bounded: what waits, and what lies on the disk.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "base/task.h"
#include "journal/segments.h"

namespace larder::journal {

class Log {
 public:
  struct Options {
    std::uint64_t capacity_bytes = std::uint64_t{1} << 30;  // on the disk
    std::size_t queue_bytes = std::size_t{64} << 20;        // that wait to be written
    Segments::Options segments;
  };
  // On the log's thread, in order, for every record once it is durable and before anybody is told.
  // Must be quick, and must not call the log.
  using Durable = Segments::Each;

  // Opens what is there or begins a new one. `replay`: each record that is there. Blocks.
  static Result<std::unique_ptr<Log>> open(std::unique_ptr<Storage> storage, const Options& options,
                                           const Segments::Each& replay, Durable durable);
  // What was accepted is written first. REQUIRES: nobody awaits append().
  ~Log();

  const Segments::Opened& opened() const { return segments_->opened(); }

  // A record on its way: its place in the order is certain.
  class Queued {
   private:
    friend class Log;
    struct Group;
    std::shared_ptr<Group> group_;
    std::uint32_t place_ = 0;
  };
  // append() in two steps: what is queued first has the lower number. Errors: as append().
  Result<Queued> enqueue(std::string_view record);
  Task<Result<Seq>> durable(Queued queued);

  // Ends when the record is durable: its number. Errors: overloaded (the journal is full, or the
  // disk; the record is not there and will not be), too_large, io (the disk failed: nothing is
  // accepted any more, and whether this record is there nobody knows). Resumes on the caller's
  // loop.
  Task<Result<Seq>> append(std::string record);

  // The same, and nobody wants to know: it is there a little later, or, where append() would fail,
  // not at all.
  void note(const std::string& record);

  // Records below `seq` are needed no more. Their place is free a little later.
  void trim(Seq seq);

  Seq next() const { return segments_->next(); }
  std::uint64_t bytes() const { return segments_->bytes(); }
  // Why nothing is accepted any more.
  std::optional<Error> failed() const;

 private:
  using Group = Queued::Group;

  Log(std::unique_ptr<Storage> storage, const Options& options, Durable durable);
  void work();
  void write(Group& group);
  void note_failure();

  const Options options_;
  const std::unique_ptr<Storage> storage_;
  std::unique_ptr<Segments> segments_;  // the thread's, but for next() and bytes()
  const Durable durable_;

  mutable std::mutex mutex_;
  std::condition_variable ready_;
  std::shared_ptr<Group> gathering_;  // the next one; null: nobody waits
  std::size_t queued_bytes_ = 0;      // gathered, or being written
  Seq trim_ = 0;
  std::optional<Error> failed_;
  bool stopping_ = false;
  std::thread thread_;
};

// Records that are made durable together, and who waits for that.
struct Log::Queued::Group {
  FrameWriter records;
  Waiters done;
  Result<Seq> first;  // or why not; written before `done`
};

}  // namespace larder::journal
