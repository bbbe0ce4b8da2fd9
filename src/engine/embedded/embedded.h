// The embedded engine: the near tier's store is its storage, so an entry is held once; what it adds
// is what outlives a ticket: the transactions that are known to have changed a key or a tag.
//
// A tombstone is kept by hash slot, not by key: a fixed array, nothing to trim, no floor. Two keys
// in one slot only make a fill wait for a transaction that is not its own.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

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
  struct SourceState {
    explicit SourceState(unsigned slots) : tombstones(slots) {}
    std::atomic<std::uint64_t> source_id{0};  // 0: none seen yet
    std::vector<std::atomic<policy::TxnId>> tombstones;
  };
  std::atomic<policy::TxnId>& tombstone(unsigned source, Hash hash) const;

  near::Store& store_;
  Options options_;
  Capabilities capabilities_{.kind = "embedded", .entries_live_in_near = true};
  std::vector<std::unique_ptr<SourceState>> sources_;
};

}  // namespace larder::engine
