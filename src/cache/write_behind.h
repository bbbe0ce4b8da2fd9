// Writes that are acknowledged when they are durable here, and in the database later: in order,
// each once.
//
//   accepting    checked as if it were written at once, appended to the journal, and acknowledged
//                when that is durable and every reader of this node gets it
//   flusher      one a source: what waits goes to the database, in batches, each in one transaction
//                with the number up to which the database has it now (table larder_applied).
//                Whether a COMMIT whose answer was lost has happened is found there. Who opens the
//                journal takes a new epoch, and an older owner's transactions match no row any more
//   dead letters what the database refuses, in its table larder_dead_letter, moved there by the
//                transaction that moves the number
//
// Readers find a waiting write before anything else. That holds with the near tier's hits
// untouched: accepting a write voids the entry and every ticket of its key, and nothing is stored
// for a key that waits (settle() asks waiting_write()). When the flusher commits, the key is voided
// with the number of that transaction, as by any write; only then it waits no more.
//
// A part of the node. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/random.h"
#include "base/sync.h"
#include "base/task.h"
#include "cache/node.h"
#include "journal/journal.h"

namespace larder::cache {

struct WritePlan;

// What waits for one source, on its way to it.
class Flusher {
 public:
  Flusher(Node::Impl& node, journal::Journal& journal, unsigned source, std::uint64_t seed);

  // Until the node's group is stopping and wake() was called, or it cannot go on: stopped().
  Task<void> run();
  // There is something to do. Thread-safe.
  void wake();

  // Has the source told what it has, or failed to?
  Waiters& met() { return met_; }
  // Why it has given up, if it has. Thread-safe.
  std::optional<Error> stopped() const;
  // The last failure that it will try again after.
  std::optional<Error> trouble() const;

  // One value of one row, from the source.
  Task<Result<std::optional<std::string>>> ask(source::Statement statement);
  // See Node::dead_letters and the following. nullopt, false: there is no such dead letter.
  Task<Result<std::optional<std::string>>> dead_letters(std::uint64_t most);
  Task<Result<bool>> drop_dead_letter(journal::Seq seq);
  Task<Result<bool>> replay_dead_letter(journal::Seq seq);

 private:
  enum class Outcome : std::uint8_t {
    done,
    refused,    // by the database, or before that: why_
    away,       // nothing was written: why_
    uncertain,  // somebody else moved the number, or COMMIT's answer was lost
  };
  std::shared_ptr<Waiters> arm();
  Task<Result<void>> claim();
  Task<Outcome> flush(const journal::Pending::Batch& batch, std::optional<Error> refused);
  Result<source::Statement> statement_of(const journal::Op& op) const;
  source::Statement about_shard(const char* sql) const;
  source::Statement dead_letter(journal::Seq seq, std::size_t place, const journal::Op& op,
                                TimeUs written_at, const std::string& why) const;
  void give_up(Error error);
  void note_trouble(const Error* error);
  const std::string& name() const;
  source::Dialect dialect() const;

  Node::Impl& node_;
  journal::Journal& journal_;
  const unsigned source_;
  const std::string shard_;
  Random random_;
  Waiters met_;

  // The flusher's own.
  bool claimed_ = false;
  bool ever_claimed_ = false;
  std::int64_t epoch_ = 0;     // the last one that is known to be there
  std::int64_t tried_ = 0;     // the last one that may be there
  journal::Seq position_ = 0;  // the database has everything up to it
  std::size_t limit_;          // records of the next batch
  DurationUs patience_;        // how long it may take
  Error why_;
  std::atomic<std::int64_t> dead_letters_{0};  // that a later write to their key makes obsolete

  mutable Mutex mutex_;
  std::shared_ptr<Waiters> signal_ LARDER_GUARDED_BY(mutex_);
  std::optional<Error> stopped_ LARDER_GUARDED_BY(mutex_);
  std::optional<Error> trouble_ LARDER_GUARDED_BY(mutex_);
};

class WriteBehind {
 public:
  // `front`, whose insides `node` are, and `journal` outlive it.
  WriteBehind(Node& front, Node::Impl& node, journal::Journal& journal, std::uint64_t seed);
  ~WriteBehind();

  // Starts the flushers on the current loop, in the node's group.
  void start();
  Task<void> recovered(TimeUs deadline);
  // Waits until nothing waits any more, or until `deadline`, and says what is left.
  Task<void> drain(TimeUs deadline);
  void wake();

  // REQUIRES: plan.behind. Errors: overloaded (the journal is full), io (its disk failed), and why
  // the source's flusher has stopped.
  Task<Result<std::vector<Written>>> write(const WritePlan& plan, const std::vector<WriteOp>& ops);

  // Others have written to these keys of the source.
  Task<Result<void>> changed(unsigned source, std::vector<std::string> keys);

  const journal::Pending& pending() const { return journal_.pending(); }
  journal::Journal& journal() { return journal_; }
  const std::vector<std::unique_ptr<Flusher>>& flushers() const { return flushers_; }
  std::string json(TimeUs now) const;

 private:
  // Keys whose next value depends on the one before. One writer at a time finds out what that is
  // and queues his own; nobody waits for another's disk.
  class Counters {
   public:
    struct Value {
      bool removed = false;
      std::string value;
    };
    Task<bool> lock(std::vector<std::string> keys, TimeUs deadline);
    void unlock(const std::vector<std::string>& keys);
    // What was queued last for the key, and may not be in pending() yet.
    std::optional<Value> queued(const std::string& key) const;
    void queue(const std::string& key, Value value);
    void settled(const std::string& key);  // of each queue()

   private:
    struct InFlight {
      Value value;
      unsigned writers = 0;
    };
    mutable Mutex mutex_;
    std::map<std::string, std::shared_ptr<Waiters>, std::less<>> held_ LARDER_GUARDED_BY(mutex_);
    std::map<std::string, InFlight, std::less<>> in_flight_ LARDER_GUARDED_BY(mutex_);
  };
  Task<Result<journal::Log::Queued>> queue(const WritePlan& plan, const std::vector<WriteOp>& ops,
                                           std::vector<Written>& written);
  Task<Result<std::int64_t>> base_of(const WriteOp& op, const journal::Record& before);
  bool counts(unsigned cache) const;
  Flusher& flusher(unsigned source) { return *flushers_[flusher_of_[source]]; }

  Node& front_;
  Node::Impl& node_;
  journal::Journal& journal_;
  Counters counters_;
  std::vector<std::unique_ptr<Flusher>> flushers_;
  std::vector<std::size_t> flusher_of_;  // of each source; flushers_.size(): none
};

}  // namespace larder::cache
