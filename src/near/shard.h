// Inside of the store: an entry's block, and a shard with everything that one mutex guards.
#pragma once

#include <malloc.h>

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "near/store.h"

namespace larder::near {

inline constexpr std::size_t kMinBuckets = 16;

// The allocator's own, before each block.
inline constexpr std::size_t kChunkHeader = sizeof(std::size_t);

inline std::size_t block_bytes(void* block) { return malloc_usable_size(block) + kChunkHeader; }

// One block an entry: Entry, Extra if it was filled, its tags' slots, key, value. What plain keys
// do not need is not there: 56 bytes of header, 104 with Extra.
struct Store::Entry {
  struct Extra {
    std::uint64_t generation;  // of the ticket
    std::uint64_t stamp;       // likewise
    TimeUs as_of;
    TimeUs soft_expiry;
    DurationUs ttl_us;
    std::uint32_t load_us;
    std::uint16_t cache_id;
    bool negative;
    std::uint8_t tag_count;
  };

  Entry* chain;  // of its index bucket
  Entry* newer;  // of its queue
  Entry* older;
  Hash hash;
  std::uint64_t version;
  TimeUs useless_at;
  std::uint32_t key_size : 30;
  std::uint32_t filled : 1;  // has Extra
  std::uint32_t voided : 1;  // invalidated by key and kept for errors
  std::uint32_t value_size : 30;
  std::uint32_t used : 1;    // SIEVE's bit
  std::uint32_t pinned : 1;  // in the queue that is never evicted

  char* base() { return reinterpret_cast<char*>(this + 1); }
  const char* base() const { return reinterpret_cast<const char*>(this + 1); }
  Extra& extra() { return *reinterpret_cast<Extra*>(base()); }
  const Extra& extra() const { return *reinterpret_cast<const Extra*>(base()); }
  std::uint32_t* tags() { return reinterpret_cast<std::uint32_t*>(base() + sizeof(Extra)); }
  const std::uint32_t* tags() const {
    return reinterpret_cast<const std::uint32_t*>(base() + sizeof(Extra));
  }
  std::size_t prefix() const {
    return filled != 0 ? sizeof(Extra) + extra().tag_count * sizeof(std::uint32_t) : 0;
  }
  std::string_view key() const { return {base() + prefix(), key_size}; }
  std::string_view value() const { return {base() + prefix() + key_size, value_size}; }
  std::uint16_t cache_id() const { return filled != 0 ? extra().cache_id : std::uint16_t{0}; }
};

struct alignas(64) Store::Shard {
  // Newest to oldest, with SIEVE's hand.
  struct Queue {
    Entry* newest = nullptr;
    Entry* oldest = nullptr;
    Entry* hand = nullptr;
    std::size_t size = 0;
  };

  // What is to be stored; the parts of Extra only if it is filled.
  struct New {
    std::string_view key;
    Hash hash;
    std::string_view value;
    TimeUs useless_at;
    const Meta* meta = nullptr;
    const policy::Ticket* ticket = nullptr;
    std::span<const Hash> tags;

    std::size_t bytes() const {
      const std::size_t extra =
          meta != nullptr ? sizeof(Entry::Extra) + tags.size() * sizeof(std::uint32_t) : 0;
      return sizeof(Entry) + extra + key.size() + value.size();
    }
  };

  Shard(const Store& owner, unsigned index, unsigned slots)
      : store(owner),
        stride(owner.options_.shards),
        clock(index),
        version_mask(slots - 1),
        versions(new std::uint64_t[slots]()) {
    MutexLock lock(mutex);
    fixed_bytes = slots * sizeof(std::uint64_t) + kChunkHeader;
    resize_index(kMinBuckets);
  }
  ~Shard() { drop_all(); }
  Shard(const Shard&) = delete;
  Shard& operator=(const Shard&) = delete;

  // ---- versions ----

  std::uint64_t next_version() LARDER_REQUIRES(mutex) { return clock += stride; }
  std::uint64_t& slot(Hash hash) LARDER_REQUIRES(mutex) {
    return versions[(hash >> 32) & version_mask];
  }
  // `floor` is what clear() raised all of them to.
  std::uint64_t version(Hash hash) LARDER_REQUIRES(mutex) { return std::max(slot(hash), floor); }
  void bump(Hash hash) LARDER_REQUIRES(mutex) { slot(hash) = next_version(); }
  void bump_all() LARDER_REQUIRES(mutex) { floor = next_version(); }

  // ---- index ----

  Entry*& bucket(Hash hash) LARDER_REQUIRES(mutex) { return index[hash & index_mask]; }

  Entry* find(std::string_view key, Hash hash) LARDER_REQUIRES(mutex) {
    for (Entry* entry = bucket(hash); entry != nullptr; entry = entry->chain)
      if (entry->hash == hash && entry->key() == key) return entry;
    return nullptr;
  }

  // The entry if it is not useless by `now`; it is dropped if it is.
  Entry* find_live(std::string_view key, Hash hash, TimeUs now) LARDER_REQUIRES(mutex) {
    if (now > seen_now) seen_now = now;
    Entry* entry = find(key, hash);
    if (entry == nullptr || entry->useless_at > now) return entry;
    remove(entry);
    ++stats.expirations;
    return nullptr;
  }

  // find_live, only plain keys that count.
  Entry* find_plain(std::string_view key, Hash hash, TimeUs now) LARDER_REQUIRES(mutex) {
    Entry* entry = find_live(key, hash, now);
    if (entry == nullptr || entry->cache_id() != 0 || store.is_void(*entry)) return nullptr;
    return entry;
  }

  void resize_index(std::size_t buckets) LARDER_REQUIRES(mutex);
  void grow_index() LARDER_REQUIRES(mutex);
  void index_replace(Entry* old, Entry* fresh) LARDER_REQUIRES(mutex);

  // ---- queues ----

  void push(Entry* entry) LARDER_REQUIRES(mutex);
  void unlink(Entry* entry) LARDER_REQUIRES(mutex);
  Queue& queue_of(const Entry* entry) LARDER_REQUIRES(mutex) { return queues[entry->pinned]; }

  // ---- entries ----

  policy::Refusal install(const New& item) LARDER_REQUIRES(mutex);
  bool must_pin(const New& item) const {
    return !store.options_.evict_plain && (item.meta == nullptr || item.meta->cache_id == 0);
  }
  bool overwrite(Entry* entry, const New& item) LARDER_REQUIRES(mutex);
  void write(Entry* entry, const New& item) LARDER_REQUIRES(mutex);
  void remove(Entry* entry) LARDER_REQUIRES(mutex);
  void release(Entry* entry) LARDER_REQUIRES(mutex);
  bool make_room(std::size_t bytes, const Entry* keep) LARDER_REQUIRES(mutex);
  bool evict_one(const Entry* keep) LARDER_REQUIRES(mutex);
  bool is_garbage(const Entry* entry) LARDER_REQUIRES(mutex) {
    return entry->useless_at <= seen_now || store.is_void(*entry);
  }
  std::size_t sweep_bucket(std::size_t number, TimeUs now, const Entry* keep)
      LARDER_REQUIRES(mutex);
  void clear(bool declared) LARDER_REQUIRES(mutex);
  void drop_all() LARDER_NO_ANALYSIS;

  std::uint64_t bytes_held() const LARDER_REQUIRES(mutex) { return stats.bytes + fixed_bytes; }

  mutable Mutex mutex;
  const Store& store;
  const std::uint64_t stride;  // version numbers of shard i are i modulo this
  std::uint64_t clock LARDER_GUARDED_BY(mutex);
  std::uint64_t floor LARDER_GUARDED_BY(mutex) = 0;
  const std::uint64_t version_mask;
  std::unique_ptr<Entry*[]> index LARDER_GUARDED_BY(mutex);
  std::uint64_t index_mask LARDER_GUARDED_BY(mutex) = 0;
  std::unique_ptr<std::uint64_t[]> versions LARDER_GUARDED_BY(mutex);
  std::array<Queue, 2> queues LARDER_GUARDED_BY(mutex);    // evictable, pinned
  Stats stats LARDER_GUARDED_BY(mutex);                    // bytes: of the entries
  std::uint64_t fixed_bytes LARDER_GUARDED_BY(mutex) = 0;  // index and version slots
  TimeUs seen_now LARDER_GUARDED_BY(mutex) = INT64_MIN;    // latest time anybody came with
  std::uint64_t desperate_bucket LARDER_GUARDED_BY(mutex) = 0;
};

}  // namespace larder::near
