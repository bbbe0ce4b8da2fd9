// What was acknowledged and is not in the database yet, in memory: readers of such a key get it
// from here, and it waits here, in order, to be applied. Bounded by the journal's capacity.
//
// Thread-safe.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/hash.h"
#include "base/sync.h"
#include "journal/frame.h"
#include "journal/record.h"

namespace larder::journal {

class Pending {
 public:
  struct Value {
    bool removed = false;
    std::string value;
    TimeUs written_at = 0;
  };
  struct Waiting {
    Seq seq = 0;
    std::shared_ptr<const Record> record;
  };
  struct Depth {
    std::uint64_t waiting = 0;  // writes to keys
    TimeUs oldest = 0;          // Record::written_at; 0: none waits
  };
  // What its flusher takes to the database at once.
  struct Batch {
    std::vector<Waiting> records;
    // Keys whose writes up to a number give way (yield()).
    std::unordered_map<std::string, Seq> yielded;
    Seq upto() const { return records.back().seq; }
  };

  // Of kind `write`. REQUIRES: `seq` ascends.
  void add(Seq seq, Record record);

  // What a reader of the key gets; nullopt: ask the tiers. Cost where nothing waits: one load.
  std::optional<Value> find(std::string_view key, Hash hash) const;
  bool holds(std::string_view key, Hash hash) const;
  bool any() const { return keys_.load(std::memory_order_seq_cst) != 0; }

  // Each key that is held. For the start, before others use it.
  template <class Each>
  void each_key(Each&& each) const {
    for (const Shard& shard : shards_) {
      MutexLock lock(shard.mutex);
      for (const auto& [key, held] : shard.held) each(std::string_view(key));
    }
  }

  // The first of a source, in order: at most so many, and so many bytes if that is more than one.
  Batch first(std::string_view source, std::size_t most_records, std::size_t most_bytes) const;
  // Everything of the source up to `seq` is in the database, or needs not be.
  void applied(std::string_view source, Seq seq);

  // Does an absolute write (no increment, which adds to whatever is there) of the key wait? The
  // number of the last one.
  std::optional<Seq> contested(std::string_view source, std::string_view key, Hash hash) const;
  // Somebody else has written to the key: what waits for it up to `seq` gives way. Readers ask the
  // tiers from now on, unless something newer waits.
  void yield(std::string_view source, std::string_view key, Seq seq);

  Depth depth(std::string_view cache) const;
  std::uint64_t waiting_records(std::string_view source) const;
  // Of all sources: what lies before it waits no more. nullopt: nothing waits.
  std::optional<Seq> oldest() const;
  std::vector<std::string> sources() const;  // that something waits for

 private:
  static constexpr std::size_t kShards = 16;
  struct Held {
    Value value;
    Seq last = 0;      // the record that made it so
    Seq absolute = 0;  // the last one that was no increment
  };
  struct TextHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return hash_bytes(text); }
  };
  using Map = std::unordered_map<std::string, Held, TextHash, std::equal_to<>>;
  struct Shard {
    mutable Mutex mutex;
    Map held LARDER_GUARDED_BY(mutex);
  };
  struct Queue {
    std::deque<Waiting> waiting;
    std::unordered_map<std::string, Seq> yielded;
    Seq applied = 0;
  };
  void erase_held(std::string_view key, Seq upto);
  static std::uint64_t size_of(const Record& record);
  Shard& shard(Hash hash) { return shards_[hash % kShards]; }
  const Shard& shard(Hash hash) const { return shards_[hash % kShards]; }

  std::atomic<std::size_t> keys_{0};
  std::array<Shard, kShards> shards_;
  mutable Mutex mutex_;
  std::map<std::string, Queue, std::less<>> queues_ LARDER_GUARDED_BY(mutex_);
  // Of each cache, when what waits was written.
  std::map<std::string, std::deque<TimeUs>, std::less<>> caches_ LARDER_GUARDED_BY(mutex_);
};

// What a batch of records does, with less: of a key's absolute writes the last, of increments the
// sum. Where a key is written several times it stands where it was written first; but what is
// removed and then set is removed first, as an INSERT may want it. Whoever applies it does so in
// one transaction.
struct Coalesced {
  std::vector<Op> ops;
  std::vector<std::pair<Seq, Op>> yielded;  // what is not to be done, one by one
};
Coalesced coalesce(const Pending::Batch& batch);

}  // namespace larder::journal
