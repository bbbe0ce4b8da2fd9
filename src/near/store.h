// The near tier: entries in this process's memory, bounded in bytes, filled under tickets.
//
// With the embedded engine it is also the engine's own storage: plain keys and declared entries are
// held here, once. Sharded; each shard has one mutex, a chained hash index with versioned buckets,
// and SIEVE eviction (Zhang et al., NSDI 2024).
//
// Thread-safe. Nothing suspends. `capacity_bytes` counts entries as the allocator does, indexes and
// version slots; not the fixed arrays of tags and partitions (8 bytes a slot).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/hash.h"
#include "base/sync.h"
#include "policy/fill_rules.h"

namespace larder::near {

struct Options {
  std::uint64_t capacity_bytes = 256ULL << 20;
  unsigned shards = 16;      // a power of two, at most 64
  unsigned partitions = 64;  // a power of two, at most 1024
  unsigned version_slots =
      0;  // a shard: buckets that carry versions, a power of two; 0: by capacity
  unsigned tag_slots = 1 << 16;  // a power of two
  bool evict_plain = true;       // false: plain keys are never evicted
  policy::Rules rules;           // tests only
};

// What an entry is, beside its key and value. All times in microseconds (base/clock.h).
struct Meta {
  std::uint16_t cache_id = 0;  // 0 = plain key; else 1 + index of the declared cache
  bool negative = false;       // "the source has no such row"
  std::uint8_t tag_count = 0;
  std::uint32_t load_us = 0;    // what its load took
  DurationUs ttl_us = 0;        // as filled: for sliding expiry
  TimeUs as_of = 0;             // the source's state it shows is at least this recent
  TimeUs soft_expiry = kNever;  // end of its TTL
  TimeUs useless_at = kNever;   // after this it may be dropped
};

// An entry as seen under the shard's lock; the views are valid only until the visitor returns.
struct View {
  std::string_view key;
  std::string_view value;
  const Meta& meta;
  std::uint64_t version;  // of this very value: no two values in this process share one
  bool is_void;           // invalidated since it was filled; kept for stale-if-error alone
};

struct Stats {
  std::uint64_t bytes = 0;
  std::uint64_t entries = 0;
  std::uint64_t evictions = 0;
  std::uint64_t expirations = 0;
};

class Store {
  struct Entry;
  struct Shard;

 public:
  explicit Store(const Options& options);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // ---- the three verbs ----

  // Calls visit(const View&) under the shard's lock if there is an entry that is not useless by
  // `now`, and marks it as used. Void entries are visited too (View::is_void). True if visited.
  // Cost: one uncontended mutex, one probe.
  template <class Visit>
  bool lookup(std::string_view key, Hash hash, TimeUs now, Visit&& visit) {
    return lookup(
        key, hash, now,
        [](void* context, const View& view) {
          (*static_cast<std::remove_reference_t<Visit>*>(context))(view);
        },
        const_cast<void*>(static_cast<const void*>(&visit)));
  }

  // The right to fill `key`, valid until it is invalidated. Take it before the source is read.
  policy::Ticket ticket(Hash hash) const;

  // Installs unless the ticket is void. `tags` are hash_bytes of the tags' names, at most 255
  // (more: too_large). `value` must not point into the store, here and wherever a value is given.
  policy::Refusal fill(const policy::Ticket& ticket, std::string_view key, Hash hash,
                       std::string_view value, const Meta& meta, std::span<const Hash> tags);

  // No reader gets the entry any more, and every ticket for the key is void, present or not.
  // `keep_for_error`: keep the value, marked void, for stale-if-error. True if a valid one was
  // there.
  bool invalidate(Hash hash, std::string_view key, bool keep_for_error);

  // The same for every entry that bears the tag. Cost: one atomic write; entries notice when read.
  void invalidate_tag(Hash tag);

  // The same for every entry of a partition (a gap, a reset), or of all. What Locked::put has set
  // was filled under no ticket and stays; what fill() has stored is void, plain key or not.
  void reset(unsigned partition);
  void reset_all();
  unsigned partition_of(Hash hash) const { return (hash >> 48) & (options_.partitions - 1); }

  // ---- for entries that are there ----

  // Sliding expiry: moves the end of life to now + its ttl.
  void touch(std::string_view key, Hash hash, TimeUs now);
  // Changes the end of life of a plain key or an entry. False if absent.
  bool set_expiry(std::string_view key, Hash hash, TimeUs now, TimeUs soft_expiry,
                  TimeUs useless_at);
  // Removes an entry without voiding anything (eviction by hand). False if absent.
  bool erase(std::string_view key, Hash hash);

  // Visits up to `count` index buckets from `cursor` (0 to begin); returns the next cursor, 0 at
  // the end. An entry that is there during the whole scan is visited at least once.
  std::uint64_t scan(std::uint64_t cursor, unsigned count, TimeUs now,
                     const std::function<void(const View&)>& visit);

  // Drops what is useless by `now` from the next `buckets` index buckets, going round for ever;
  // returns how many entries went. Amortises expiry of what nobody looks up: call it from a timer,
  // so that a round takes seconds. Cost: as scan; one shard's lock at a time.
  std::size_t sweep(TimeUs now, unsigned buckets);

  // Drops every plain key (declared = false) or every declared entry (true), voiding tickets.
  void clear(bool declared);

  Stats stats() const;
  // Entries of one cache (cache_id), or plain keys (0), that are not useless. Cost: a full pass.
  std::uint64_t count(std::uint16_t cache_id, TimeUs now) const;
  std::uint64_t capacity_bytes() const { return options_.capacity_bytes; }
  // The largest key + value + header that fits.
  std::uint64_t max_entry_bytes() const { return shard_capacity_ / 8; }

  // ---- plain keys: several at once, atomically ----

  // Holds the locks of the shards of some keys, in order of shard. Several plain keys can be read
  // and changed as one step; nobody sees a part of it. Do not call anything else of Store meanwhile
  // on this thread, and never suspend.
  class Locked {
   public:
    Locked(Store& store, std::span<const Hash> keys);  // the shards of these keys
    explicit Locked(Store& store);                     // all shards
    ~Locked();
    Locked(const Locked&) = delete;
    Locked& operator=(const Locked&) = delete;

    // As Store::lookup, but answers only plain keys that have not expired by `now`; null if none.
    // Valid until the next change through this object.
    const View* find(std::string_view key, Hash hash, TimeUs now);
    // Sets a plain key; keeps nothing of the old one. Refusal::too_large or no_room: unchanged.
    policy::Refusal put(std::string_view key, Hash hash, std::string_view value, TimeUs expiry);
    // False if absent.
    bool erase(std::string_view key, Hash hash);
    bool set_expiry(std::string_view key, Hash hash, TimeUs expiry);
    // Changes whenever the key changes: View::version, or that of its bucket if absent. For WATCH.
    std::uint64_t version(std::string_view key, Hash hash, TimeUs now);

    // As those of Store, under the locks that are held already. REQUIRES: all shards are locked.
    std::uint64_t scan(std::uint64_t cursor, unsigned count, TimeUs now,
                       const std::function<void(const View&)>& visit);
    void clear(bool declared);

   private:
    Shard& held(Hash hash);

    Store& store_;
    std::uint64_t shards_ = 0;  // bit set
    Meta meta_;
    std::optional<View> view_;  // refers to meta_
  };

 private:
  bool lookup(std::string_view key, Hash hash, TimeUs now, void (*visit)(void*, const View&),
              void* context);
  Shard& shard_of(Hash hash) const;
  // The view refers to `meta`, which is filled in.
  View view_of(const Entry& entry, Meta& meta) const;
  bool is_void(const Entry& entry) const;
  template <class Step>
  std::uint64_t walk(std::uint64_t cursor, unsigned count, bool locked, Step&& step) const;
  std::uint64_t scan_with(std::uint64_t cursor, unsigned count, TimeUs now, bool locked,
                          const std::function<void(const View&)>& visit) const;

  Options options_;
  std::uint64_t shard_capacity_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::vector<std::atomic<std::uint64_t>> generations_;
  std::vector<std::atomic<std::uint64_t>> tag_stamps_;
  std::atomic<std::uint64_t> tag_clock_{1};
  std::atomic<std::uint64_t> sweep_cursor_{0};
};

}  // namespace larder::near
