// Inside of the store: a shard, with everything that one mutex guards.
//
// Readers come without the mutex (Store::lookup): what they see is the index and the entries, which
// change as index.h and entry.h say, and blocks are used again only when pins.h allows it.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "near/arena.h"
#include "near/store.h"

namespace larder::near {

struct alignas(64) Store::Shard {
  // What is to be stored; meta and ticket only if it is filled.
  struct New {
    std::string_view key;
    Hash hash;
    std::string_view value;
    TimeUs useless_at;
    const Meta* meta = nullptr;
    const policy::Ticket* ticket = nullptr;
    std::span<const Hash> tags;
    bool restored = false;  // it was stored before

    std::size_t text_offset() const {
      if (meta != nullptr) return Entry::tags_offset(tags.size());
      return useless_at == kNever ? Entry::kPlainText : Entry::kExpiringText;
    }
    std::size_t bytes() const { return text_offset() + key.size() + value.size(); }
  };

  Shard(const Store& owner, unsigned number);
  Shard(const Shard&) = delete;
  Shard& operator=(const Shard&) = delete;

  // Makes it empty: a new arena, or one whose contents are put into it anew.
  void init(std::uint32_t buckets = 0) LARDER_REQUIRES(mutex);

  // ---- index ----

  Entry at(Ref ref) const { return index.at(ref); }
  Bucket& home(Hash hash) const { return index.home(hash); }
  std::uint32_t version(Hash hash) const { return Index::version(home(hash)); }
  void bump(Hash hash) LARDER_REQUIRES(mutex) { Index::bump(home(hash)); }

  Ref find(std::string_view key, Hash hash) const LARDER_REQUIRES(mutex) {
    bool proven = true;
    return index.find(key, hash, proven);
  }
  // The entry if it is not useless by `now`; it is dropped if it is.
  Ref find_live(std::string_view key, Hash hash, TimeUs now) LARDER_REQUIRES(mutex);
  // find_live, only plain keys that count.
  Ref find_plain(std::string_view key, Hash hash, TimeUs now) LARDER_REQUIRES(mutex);

  // ---- entries ----

  policy::Refusal install(const New& item) LARDER_REQUIRES(mutex);
  // Out of the index and of the queues.
  void remove(Ref ref, Hash hash) LARDER_REQUIRES(mutex);
  void remove(Ref ref) LARDER_REQUIRES(mutex) { remove(ref, hash_of(ref)); }
  Hash hash_of(Ref ref) const { return hash_bytes(at(ref).key(at(ref).load_bits())); }
  bool is_garbage(Ref ref) const LARDER_REQUIRES(mutex);
  // Invalidated, and kept for errors.
  void void_entry(Hash hash, Ref ref) LARDER_REQUIRES(mutex);
  // False if there was no room for the end of life of a key that had none.
  bool set_expiry(Ref ref, Hash hash, TimeUs soft_expiry, TimeUs useless_at) LARDER_REQUIRES(mutex);
  // A change of the end of life takes effect: the bucket is looked at in time.
  void schedule(Hash hash, TimeUs useless_at) LARDER_REQUIRES(mutex);

  // Drops what is useless by `now` from up to `budget` buckets that are due; less is left of the
  // budget. Returns how many entries went.
  std::size_t expire(TimeUs now, unsigned& budget, Ref keep = kNoRef) LARDER_REQUIRES(mutex);
  void clear(bool declared) LARDER_REQUIRES(mutex);
  std::string verify() LARDER_REQUIRES(mutex);

  std::uint64_t bytes_held() const LARDER_REQUIRES(mutex) {
    return owned_bytes - std::uint64_t{heap.free_units()} * kGranule;
  }

  mutable Mutex mutex;
  const Store& store;
  ShardState& state;
  Index index;
  Heap heap LARDER_GUARDED_BY(mutex);
  Stats stats LARDER_GUARDED_BY(mutex);
  TimeUs seen_now LARDER_GUARDED_BY(mutex) = 0;  // latest time anybody came with
  std::uint64_t owned_bytes = 0;                 // of the arena: this shard's region

 private:
  // What the eviction policy sees of the entries.
  struct Entries {
    Shard* shard;

    Link& link(Ref ref) const { return shard->at(ref).link(); }
    unsigned queue(Ref ref) const { return Entry::queue(shard->at(ref).load_bits()); }
    void set_queue(Ref ref, unsigned queue) const;
    std::uint32_t weight(Ref ref) const LARDER_NO_ANALYSIS;
    std::uint32_t cost(Ref ref) const LARDER_NO_ANALYSIS;
    Hash hash(Ref ref) const { return shard->hash_of(ref); }
    bool dead(Ref ref) const LARDER_NO_ANALYSIS { return shard->is_garbage(ref); }
  };
  Eviction<Entries> eviction() { return {Entries{this}, state.eviction, ghost_}; }
  Wheel wheel() { return {state.wheel, index}; }

  void write(Ref block, const New& item) LARDER_REQUIRES(mutex);
  bool must_pin(const New& item) const {
    return !store.options_.evict_plain && (item.meta == nullptr || item.meta->cache_id == 0);
  }
  bool is_worth(const New& item) LARDER_REQUIRES(mutex);
  void link_in(Ref block, Ref old, Ref spare, const New& item) LARDER_REQUIRES(mutex);
  bool overwrite(Ref old, const New& item) LARDER_REQUIRES(mutex);
  void grow() LARDER_REQUIRES(mutex);
  bool move_bucket() LARDER_REQUIRES(mutex);
  void restart_wheel(TimeUs now) LARDER_REQUIRES(mutex);
  template <class Visit>
  void each_bucket(Visit&& visit) const {
    for (std::uint64_t hash = 0; hash < 1ULL << 32;) {
      std::uint64_t next = 0;
      const BucketId id = index.id_at(hash, next);
      visit(id);
      hash = next;
    }
  }
  TimeUs earliest_end(const Bucket& head) const LARDER_REQUIRES(mutex);

  // A block of `units`, for which others are evicted, never `keep` (which may be moved).
  Ref allocate(std::uint32_t units, Ref& keep) LARDER_REQUIRES(mutex);
  bool evict_one(Ref keep) LARDER_REQUIRES(mutex);
  bool compact(std::uint32_t units, Ref& keep) LARDER_REQUIRES(mutex);
  bool move_out(Ref ref, Ref& keep) LARDER_REQUIRES(mutex);
  bool move_index_block(Ref block, std::uint64_t word) LARDER_REQUIRES(mutex);
  static bool is_movable(std::uint64_t word);

  // Not in the index any more; free once no pinned reader can look at it.
  void retire(Ref block) LARDER_REQUIRES(mutex);
  bool reclaim() LARDER_REQUIRES(mutex);
  bool await_readers() LARDER_REQUIRES(mutex);
  void release_first() LARDER_REQUIRES(mutex);

  Ghost ghost_;
  unsigned tuning_ LARDER_GUARDED_BY(mutex) = 0;  // of Controller::kCandidates
  Ref limbo_first_ LARDER_GUARDED_BY(mutex) = kNoRef;
  Ref limbo_last_ LARDER_GUARDED_BY(mutex) = kNoRef;
  std::uint32_t limbo_units_ LARDER_GUARDED_BY(mutex) = 0;
  bool out_of_patience_ LARDER_GUARDED_BY(mutex) = false;
};

}  // namespace larder::near
