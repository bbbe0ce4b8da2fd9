// The journal of a node: writes that were acknowledged and are not in the database yet, on the disk
// (Log) and in memory (Pending), and the two kept together.
//
// Thread-safe. Bounded: Options::log.capacity_bytes, on the disk and so in memory.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/task.h"
#include "journal/log.h"
#include "journal/pending.h"

namespace larder::journal {

class Journal {
 public:
  struct Options {
    Log::Options log;
  };
  // In `folder`, which is made if it is missing and is this process's alone until the journal goes.
  // What waits there is in pending() when it returns. Blocks. Errors: io; config (another process
  // has it, it is damaged, a record is of another version: and what to do).
  static Result<std::unique_ptr<Journal>> open(const std::string& folder, const Options& options);
  static Result<std::unique_ptr<Journal>> open(std::unique_ptr<Storage> storage,
                                               const Options& options);

  // Called on the log's thread after writes have become durable: there is something to flush. Once,
  // before the first append(). Must be quick.
  void on_durable(std::function<void()> tell);

  // A write in two steps: what is queued first comes first; durable() ends when it is durable and
  // in pending(): its number. Errors: see Log::append.
  Result<Log::Queued> enqueue(const Record& record) { return log_->enqueue(encode(record)); }
  Task<Result<Seq>> durable(Log::Queued queued) { return log_->durable(std::move(queued)); }

  // Everything of the source up to `seq` is in the database. The disk is told, too, in its own
  // time: after a restart a little more may wait than really does.
  void applied(const std::string& source, Seq seq);

  // Others have written to these keys (of Op: cache, key): what waits for each up to number
  // Op::delta gives way. Ends when that is durable. Errors: see Log::append; then nothing gives
  // way.
  Task<Result<void>> yield(std::string source, std::vector<Op> keys);

  const Pending& pending() const { return pending_; }
  std::uint64_t id() const { return log_->opened().id; }
  Seq next() const { return log_->next(); }
  std::uint64_t bytes() const { return log_->bytes(); }
  std::optional<Error> failed() const { return log_->failed(); }
  // What opening it found.
  const Segments::Opened& opened() const { return log_->opened(); }
  std::uint64_t replayed() const { return replayed_; }

 private:
  Journal() = default;
  // A record that is on the disk.
  void take(Seq seq, std::string_view bytes);

  Pending pending_;
  std::uint64_t replayed_ = 0;  // writes that waited when it was opened
  std::optional<Error> unreadable_;
  std::atomic<Seq> taken_{0};  // every write up to it is, or was, in pending_
  std::function<void()> tell_;
  std::unique_ptr<Log> log_;  // goes first: its thread uses the rest
};

}  // namespace larder::journal
