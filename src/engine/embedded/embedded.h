// The embedded engine: the near tier's store is its storage, so an entry is held once; what it adds
// is what outlives a ticket: the transactions that are known to have changed a key or a tag.
//
// A tombstone is kept by hash slot, not by key: a fixed array, nothing to trim, no floor. Two keys
// in one slot only make a fill wait for a transaction that is not its own. Each incarnation of a
// source has tombstones of its own, so that a writer is never forgotten because the source was, or
// seemed to be, another one for a moment.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <vector>

#include "base/sync.h"
#include "engine/engine.h"

namespace larder::engine {

class Embedded final : public Engine {
 public:
  struct Options {
    unsigned sources = 1;
    unsigned tombstone_slots = 1 << 14;  // for each source; a power of two
    policy::Rules rules;                 // tests only
  };
  // `store` outlives the engine.
  Embedded(near::Store& store, const Options& options);

  const Capabilities& capabilities() const override { return capabilities_; }
  // Always a ticket: what there is, the near tier has.
  Task<std::vector<Found>> lookup(Lookup lookup) override;
  Task<policy::Refusal> fill(Fill fill) override;
  Task<void> release(Cache cache, Key key, Ticket ticket) override;
  Task<Result<void>> invalidate(std::vector<Change> changes) override;
  Task<Result<void>> new_epoch(unsigned source, std::uint64_t source_id) override;
  Task<Result<FeedOrder>> feed(unsigned source, FeedBatch batch) override;
  void start(TaskGroup& group, Hooks hooks) override;

  // The same without suspending, in the steps that other threads may come between (tests/sim walks
  // through every interleaving of them): fill is judge, then Store::fill; invalidate is raise, then
  // void_all.
  policy::Refusal judge(const Fill& fill) const;
  void raise(const Change& change);
  void void_all(const Change& change);

 private:
  struct Incarnation {
    explicit Incarnation(unsigned slots) : tombstones(slots) {}
    std::atomic<policy::TxnId>& tombstone(Hash hash) {
      return tombstones[hash & (tombstones.size() - 1)];
    }
    std::atomic<std::uint64_t> id{0};  // 0: none seen yet
    std::vector<std::atomic<policy::TxnId>> tombstones;
  };
  class SourceState {
   public:
    explicit SourceState(unsigned slots);
    Incarnation& present() const { return *present_.load(std::memory_order_seq_cst); }
    // Of changes: 0 is the present one. One that was never heard of has no tombstones yet.
    Incarnation& of(std::uint64_t id);
    void begin(std::uint64_t id);

   private:
    // Beyond so many, one that is not the present one is forgotten.
    static constexpr std::size_t kMost = 4;
    Incarnation& claim(std::uint64_t id) LARDER_REQUIRES(mutex_);

    Mutex mutex_;  // never taken for the present one
    const unsigned slots_;
    // Whoever holds one of them may use it at any time: none is freed before the engine.
    std::array<std::unique_ptr<Incarnation>, kMost> known_ LARDER_GUARDED_BY(mutex_);
    std::size_t next_ LARDER_GUARDED_BY(mutex_) = 0;  // to be forgotten
    std::atomic<Incarnation*> present_ = nullptr;
  };

  near::Store& store_;
  Options options_;
  Capabilities capabilities_{.kind = "embedded", .entries_live_in_near = true};
  std::vector<std::unique_ptr<SourceState>> sources_;
};

}  // namespace larder::engine
