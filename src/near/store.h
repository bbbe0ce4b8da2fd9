// The near tier: entries in one block of memory, filled under tickets, read without a lock.
//
// With the embedded engine it is also the engine's own storage: plain keys and declared entries are
// held here, once. Sharded by hash. Each shard has a region of the arena (arena.h) with an index
// (index.h), an allocator (heap.h), an eviction policy (eviction.h) and an expiry wheel (expiry.h),
// all changed under the shard's mutex. A hit takes no mutex and writes nothing shared once the
// entry's 2-bit counter is saturated: it is pinned (pins.h) for as long as the visitor looks.
//
// Thread-safe. Nothing suspends. `capacity_bytes` is the size of the arena, and everything is in
// it: entries, index, ghosts, tags, what waits for its last reader. It is never crossed.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/hash.h"
#include "base/sync.h"
#include "near/arena.h"
#include "near/controller.h"
#include "near/pins.h"
#include "policy/fill_rules.h"

namespace larder::near {

// What a miss costs, for the choice of victims: nothing but itself (the best object hit ratio), the
// bytes to be fetched again (the best byte hit ratio), or the time that the load took.
enum class Cost : std::uint8_t { one, bytes, load_time };

struct Options {
  std::uint64_t capacity_bytes = 256ULL << 20;
  unsigned shards = 16;          // a power of two, at most 64
  unsigned partitions = 64;      // a power of two, at most 1024
  unsigned tag_slots = 1 << 16;  // a power of two; fewer if they took over a 64th of the capacity
  unsigned caches = 64;          // declared caches that other processes may read
  bool evict_plain = true;       // false: plain keys are never evicted
  Cost cost = Cost::one;
  bool adapt = true;    // let a Controller tune the eviction; it counts as part of the capacity
  policy::Rules rules;  // tests only

  ArenaShape shape(std::uint64_t fingerprint = 0) const {
    return {.bytes = capacity_bytes - controller_bytes(),
            .shards = shards,
            .partitions = partitions,
            .tag_slots = tag_slots,
            .caches = caches,
            .fingerprint = fingerprint};
  }
  Controller::Options controller() const { return {.capacity = capacity_bytes, .shards = shards}; }
  std::uint64_t controller_bytes() const;
};

// What an entry is, beside its key and value. All times in microseconds (base/clock.h). Spans of
// over 17 minutes from as_of are kept to the millisecond, over 12 days to the second, rounded down.
struct Meta {
  std::uint16_t cache_id = 0;  // 0 = plain key; else 1 + index of the declared cache
  bool negative = false;       // "the source has no such row"
  bool alone = false;          // filled without the engine: nobody may tell of its change
  std::uint8_t tag_count = 0;
  std::uint32_t load_us = 0;    // what its load took
  DurationUs ttl_us = 0;        // as filled: for sliding expiry
  TimeUs as_of = 0;             // the source's state it shows is at least this recent
  TimeUs soft_expiry = kNever;  // end of its TTL
  TimeUs useless_at = kNever;   // after this it may be dropped
};

// An entry as seen under a pin or the shard's lock; valid only until the visitor returns.
struct View {
  std::string_view key;
  std::string_view value;
  Meta meta;
  bool is_void = false;  // invalidated since it was filled; kept for stale-if-error alone
};

struct Stats {
  std::uint64_t bytes = 0;
  std::uint64_t entries = 0;
  std::uint64_t evictions = 0;
  std::uint64_t expirations = 0;
  std::uint64_t too_large = 0;  // refused: over an eighth of a shard
  std::uint64_t no_room = 0;    // refused: nothing could be evicted
};

class Store {
  struct Shard;

 public:
  // Over private memory. Aborts if there is none, or the capacity is too small for the shards: use
  // Arena::make_private first where that is to be an error.
  explicit Store(const Options& options);
  // Over an arena of options.shape(). If it was found(), take_over() comes before anything else.
  Store(const Options& options, Arena arena);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // ---- the three verbs ----

  // Calls visit(const View&) if there is an entry that is not useless by `now`, and counts the hit.
  // Void entries are visited too (View::is_void). True if visited. The visitor runs under a pin
  // (in rare cases under the shard's lock): it looks and copies, calls nothing of Store, and never
  // suspends. Cost: two or three cache lines, no lock, no shared write on a hot key.
  template <class Visit>
  bool lookup(std::string_view key, Hash hash, TimeUs now, Visit&& visit) {
    {
      const Pin pin;
      View view;
      const Found found = pin.held() ? find(key, hash, now, view) : Found::ask_again;
      if (found == Found::yes) visit(static_cast<const View&>(view));
      if (found != Found::ask_again) return found == Found::yes;
    }
    return lookup_locked(
        key, hash, now,
        [](void* context, const View& view) {
          (*static_cast<std::remove_reference_t<Visit>*>(context))(view);
        },
        const_cast<void*>(static_cast<const void*>(&visit)));
  }

  // As lookup(), for whoever only looks: no hit is counted, and nothing is changed, moved or
  // dropped. The visitor runs under the shard's lock. Cost: the lock, which fills and changes want,
  // too.
  bool peek(std::string_view key, Hash hash, TimeUs now,
            const std::function<void(const View&)>& visit) const;

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

  struct Expired {
    std::size_t entries = 0;
    bool more = false;  // the budget was too small: call again soon
  };
  // Drops what is useless by `now`, looking at nothing but up to `buckets` index buckets in which
  // something ends. To be called several times a second. Cost: about a microsecond a bucket; one
  // shard's lock at a time, and not for long.
  Expired expire(TimeUs now, unsigned buckets);

  // Drops every plain key (declared = false) or every declared entry (true), voiding tickets. Cost:
  // a full pass, one shard's lock at a time.
  void clear(bool declared);

  Stats stats() const;
  // For tests: what is wrong inside, or "". Cost: looks at everything.
  std::string verify();
  // Entries of one cache (cache_id), or plain keys (0), that are not useless. Cost: a full pass.
  std::uint64_t count(std::uint16_t cache_id, TimeUs now) const;
  std::uint64_t capacity_bytes() const { return options_.capacity_bytes; }
  // The largest key + value + header that fits: an eighth of a shard, and at most 128 MiB.
  std::uint64_t max_entry_bytes() const { return max_entry_bytes_; }
  static std::uint64_t max_entry_bytes(const Options& options);

  // ---- a warm start; before any other thread knows of this store ----

  // What may be answered of an entry of an earlier life. `revalidate`: it counts as void, and is
  // kept for stale-if-error alone.
  enum class Trust : std::uint8_t { drop, revalidate, full };
  struct Restored {
    std::uint64_t entries = 0;
    std::uint64_t to_revalidate = 0;
    std::uint64_t dropped = 0;
  };

  // Of an arena that was found(): keeps of its contents what `trust` says of their cache (0: plain
  // keys). `clock_anchor_us` is that of this process (clock_anchor_us() in base/clock.h): the times
  // of the earlier life are moved onto our clock. Cost: copies everything once.
  Restored take_over(TimeUs now, std::int64_t clock_anchor_us,
                     const std::function<Trust(std::uint16_t cache_id)>& trust);

  // The same through a file, for a host without shared memory. REQUIRES: nobody changes the store
  // meanwhile. save() is atomic (a new file,
  // synced, renamed); load() uses a file once and removes it, and answers an error if it cannot be
  // trusted.
  Result<void> save(const std::string& path, TimeUs now) const;
  Result<Restored> load(const std::string& path, TimeUs now,
                        const std::function<Trust(std::uint16_t cache_id)>& trust);
  // The seed of its hashes (set_hash_seed), without which tagged entries are to be revalidated.
  static Result<std::optional<std::uint64_t>> seed_of_snapshot(const std::string& path);

  // ---- what other processes go by (reader.h) ----

  // They may answer from this store until now + lease_us.
  void publish(TimeUs now, DurationUs lease_us, std::int64_t clock_anchor_us);
  void publish_cache(std::uint16_t cache_id, bool readable, DurationUs bound_us, TimeUs heartbeat);
  // They may not any more.
  void close_shared();
  // One of them had a hit.
  void count_hit(Hash hash);

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
    // Changes whenever the key changes, comes or goes; rarely, without need, when another key of
    // its bucket does. For WATCH.
    std::uint64_t version(std::string_view key, Hash hash, TimeUs now);

    // As those of Store, under the locks that are held already. REQUIRES: all shards are locked.
    std::uint64_t scan(std::uint64_t cursor, unsigned count, TimeUs now,
                       const std::function<void(const View&)>& visit);
    void clear(bool declared);

   private:
    Shard& held(Hash hash);

    void lock();
    void announce();

    Store& store_;
    std::uint64_t shards_ = 0;  // bit set
    bool several_ = false;      // keys: readers must not see one changed and the other not
    bool announced_ = false;    // and they have been told so
    View view_;
  };

 private:
  enum class Found : std::uint8_t { yes, no, ask_again };

  // REQUIRES: pinned.
  Found find(std::string_view key, Hash hash, TimeUs now, View& view) const;
  // What a lookup needs of a shard, in a cache line of its own that nobody writes.
  struct alignas(64) Path {
    Index index;
    const std::atomic<std::uint32_t>* exclusive;
  };
  bool lookup_locked(std::string_view key, Hash hash, TimeUs now, void (*visit)(void*, const View&),
                     void* context);
  unsigned number_of(Hash hash) const { return (hash >> 58) & (options_.shards - 1); }
  Shard& shard_of(Hash hash) const;
  void init_shards();
  class Remains;
  struct Takeover {
    TimeUs now;
    DurationUs shift_us;  // from their clock to ours
    bool same_seed;
    const std::function<Trust(std::uint16_t)>& trust;
  };
  void restore(std::span<const char> region, const Takeover& how, Restored& restored);
  std::uint32_t cost_of(const Entry& entry, std::uint64_t word) const;
  // A request of a key, for the controller.
  void record(Hash hash, const Entry& entry, std::uint64_t word) const {
    if (controller_ != nullptr && controller_->sampled(hash)) [[unlikely]]
      record_sample(hash, entry.block_units(word) * static_cast<std::uint32_t>(kGranule),
                    cost_of(entry, word));
  }
  void record(Hash hash, std::uint32_t weight, std::uint32_t cost) const {
    if (controller_ != nullptr && controller_->sampled(hash)) record_sample(hash, weight, cost);
  }
  void record_sample(Hash hash, std::uint32_t weight, std::uint32_t cost) const;
  void look_at(const Entry& entry, std::uint64_t word, Hash hash, View& view) const;
  bool is_void(const Entry& entry, Hash hash) const;
  std::uint32_t tag_slot(Hash tag) const {
    return static_cast<std::uint32_t>(tag & (tag_stamps_.size() - 1));
  }
  template <class Step>
  std::uint64_t walk(std::uint64_t cursor, unsigned count, bool locked, Step&& step) const;
  std::uint64_t scan_with(std::uint64_t cursor, unsigned count, TimeUs now, bool locked,
                          const std::function<void(const View&)>& visit) const;

  Options options_;
  Arena arena_;
  std::uint64_t max_entry_bytes_;
  std::span<Partition> partitions_;
  std::span<std::atomic<std::uint64_t>> tag_stamps_;
  std::atomic<std::uint64_t>& tag_clock_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::vector<Path> paths_;                  // of the shards
  std::unique_ptr<Controller> controller_;   // null: the tuning stays as it is
  mutable std::atomic_flag recording_;       // somebody uses the controller
  mutable std::atomic<unsigned> tuning_{0};  // of Controller::kCandidates; shards follow
  std::atomic<unsigned> expiring_{0};        // the shard that is next
};

// Inline, so that what a visitor does not look at is not even decoded.

inline bool Store::is_void(const Entry& entry, Hash hash) const {
  const std::uint64_t word = entry.load_bits();
  if ((word & bits::kVoided) != 0) return true;
  if (!Entry::is_filled(word)) return false;  // set, not filled: nothing but its key voids it
  // Generations are kept to 32 bits in an entry.
  const auto generation = static_cast<std::uint32_t>(
      partitions_[partition_of(hash)].generation.load(std::memory_order_acquire));
  std::array<std::uint64_t, 255> stamps;  // NOLINT: only what is written is read
  const std::size_t tags = entry.tag_count(word);
  for (std::size_t i = 0; i < tags; ++i)
    stamps[i] = tag_stamps_[tag_slot(entry.tag_slot(i))].load(std::memory_order_acquire);
  return policy::is_void(entry.generation(), tags > 0 ? entry.stamp() : 0, generation,
                         std::span(stamps.data(), tags), options_.rules);
}

[[gnu::always_inline]] inline void Store::look_at(const Entry& entry, std::uint64_t word, Hash hash,
                                                  View& view) const {
  const std::size_t text = entry.text_offset(word);
  const char* const key = entry.block() + text;
  view.key = {key, Entry::key_size(word)};
  view.value = {key + view.key.size(), Entry::value_size(word)};
  if (Entry::is_filled(word)) {
    const std::uint64_t when = entry.when();
    const std::uint64_t life = entry.life();
    const TimeUs as_of = Entry::decode_time(when);
    view.meta = Meta{.cache_id = entry.filled_cache_id(),
                     .negative = (word & bits::kNegative) != 0,
                     .alone = (word & bits::kAlone) != 0,
                     .tag_count = static_cast<std::uint8_t>(entry.tag_count(word)),
                     .load_us = decode_load(entry.load_took()),
                     .ttl_us = Span::decode(entry.ttl()),
                     .as_of = as_of,
                     .soft_expiry = Entry::soft_expiry_of(as_of, life),
                     .useless_at = Entry::useless_at_of(as_of, life)};
    view.is_void = is_void(entry, hash);
  } else {
    view.meta.soft_expiry = view.meta.useless_at = entry.useless_at(word);
  }
}

[[gnu::always_inline]] inline Store::Found Store::find(std::string_view key, Hash hash, TimeUs now,
                                                       View& view) const {
  const Path& path = paths_[number_of(hash)];
  // Several keys are being changed as one step: wait for its end, at the lock.
  if (path.exclusive->load(std::memory_order_acquire) != 0) return Found::ask_again;
  bool proven = true;
  const Ref ref = path.index.find(key, hash, proven, path.exclusive);
  if (ref == kNoRef) return proven ? Found::no : Found::ask_again;
  const Entry entry = path.index.at(ref);
  const std::uint64_t word = entry.load_bits();
  look_at(entry, word, hash, view);
  if (view.meta.useless_at <= now) return Found::no;
  larder::near::touch(entry.link());
  record(hash, entry, word);
  return Found::yes;
}

}  // namespace larder::near
