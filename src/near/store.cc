#include "near/store.h"

#include <malloc.h>

#include <bit>
#include <cstdlib>
#include <cstring>
#include <new>

#include "base/error.h"

namespace larder::near {
namespace {

constexpr std::size_t kMinBuckets = 16;
constexpr std::size_t kMaxKeyBytes = (1U << 30) - 1;       // key_size and value_size have 30 bits
constexpr std::size_t kChunkHeader = sizeof(std::size_t);  // the allocator's own, before the block
constexpr unsigned kDesperateBuckets = 64;

// How much a block of `bytes` takes at most, before it is asked for: rounded to 16, a remainder too
// small to be split off, and for large ones the rest of a page.
std::size_t block_bytes_bound(std::size_t bytes) {
  const std::size_t rounded = ((bytes + kChunkHeader + 15) & ~std::size_t{15}) + 32;
  return rounded < (64U << 10) ? rounded : rounded + 4096;
}

std::size_t block_bytes(void* block) { return malloc_usable_size(block) + kChunkHeader; }

// The cursor counts with its bits reversed, highest bit of the bucket number first. Doubling the
// index appends a bit at the top of the number, so the two halves of a visited bucket are both
// behind the cursor already (the scheme of Redis's SCAN, by Pieter Noordhuis).
std::uint64_t next_bucket(std::uint64_t bucket, std::uint64_t mask) {
  return __builtin_bitreverse64(__builtin_bitreverse64(bucket | ~mask) + 1);
}

// At most a quarter of the shard, whatever was asked for.
unsigned version_slots(const Options& options, std::uint64_t shard_capacity) {
  const std::uint64_t by_capacity = std::clamp<std::uint64_t>(shard_capacity >> 10, 64, 65536);
  const std::uint64_t wanted = options.version_slots != 0 ? options.version_slots : by_capacity;
  const std::uint64_t most = std::max<std::uint64_t>(shard_capacity / 4 / sizeof(std::uint64_t), 1);
  return static_cast<unsigned>(std::bit_floor(std::min(wanted, most)));
}

}  // namespace

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

// ---- Shard: index and queues ----

void Store::Shard::resize_index(std::size_t buckets) {
  auto bigger = std::make_unique<Entry*[]>(buckets);
  const std::size_t old_buckets = index != nullptr ? index_mask + 1 : 0;
  for (std::size_t i = 0; i < old_buckets; ++i)
    for (Entry* entry = index[i]; entry != nullptr;) {
      Entry* next = entry->chain;
      Entry*& head = bigger[entry->hash & (buckets - 1)];
      entry->chain = head;
      head = entry;
      entry = next;
    }
  fixed_bytes += buckets * sizeof(Entry*);
  fixed_bytes -= old_buckets * sizeof(Entry*);
  index = std::move(bigger);
  index_mask = buckets - 1;
}

// Doubles the index if both fit at once; else the chains just get longer until there is room.
void Store::Shard::grow_index() {
  if (stats.entries <= index_mask) return;
  const std::size_t buckets = 2 * (index_mask + 1);
  if (make_room(buckets * sizeof(Entry*) + kChunkHeader + 4096, nullptr)) resize_index(buckets);
}

void Store::Shard::index_replace(Entry* old, Entry* fresh) {
  Entry** link = &bucket(old->hash);
  while (*link != old) link = &(*link)->chain;
  if (fresh != nullptr) fresh->chain = old->chain;
  *link = fresh != nullptr ? fresh : old->chain;
}

void Store::Shard::push(Entry* entry) {
  Queue& queue = queue_of(entry);
  entry->newer = nullptr;
  entry->older = queue.newest;
  (queue.newest != nullptr ? queue.newest->newer : queue.oldest) = entry;
  queue.newest = entry;
  ++queue.size;
}

void Store::Shard::unlink(Entry* entry) {
  Queue& queue = queue_of(entry);
  if (queue.hand == entry) queue.hand = entry->newer;
  (entry->newer != nullptr ? entry->newer->older : queue.newest) = entry->older;
  (entry->older != nullptr ? entry->older->newer : queue.oldest) = entry->newer;
  --queue.size;
}

// ---- Shard: entries ----

void Store::Shard::write(Entry* entry, const New& item) {
  entry->hash = item.hash;
  entry->version = next_version();
  entry->useless_at = item.useless_at;
  entry->key_size = static_cast<std::uint32_t>(item.key.size());
  entry->value_size = static_cast<std::uint32_t>(item.value.size());
  entry->filled = item.meta != nullptr ? 1 : 0;
  entry->voided = 0;
  if (item.meta != nullptr) {
    const Meta& meta = *item.meta;
    new (entry->base()) Entry::Extra{
        item.ticket->generation, item.ticket->stamp, meta.as_of,
        meta.soft_expiry,        meta.ttl_us,        meta.load_us,
        meta.cache_id,           meta.negative,      static_cast<std::uint8_t>(item.tags.size())};
    for (std::size_t i = 0; i < item.tags.size(); ++i)
      entry->tags()[i] = static_cast<std::uint32_t>(item.tags[i] & (store.options_.tag_slots - 1));
  }
  char* text = entry->base() + entry->prefix();
  if (!item.key.empty()) std::memcpy(text, item.key.data(), item.key.size());
  if (!item.value.empty())
    std::memcpy(text + item.key.size(), item.value.data(), item.value.size());
}

// In the same block, if it fits and wastes less than half of it.
bool Store::Shard::overwrite(Entry* entry, const New& item) {
  const std::size_t block = malloc_usable_size(entry);
  const std::size_t bytes = item.bytes();
  if (bytes > block || bytes < block / 2) return false;
  const bool pin = must_pin(item);
  if (pin != (entry->pinned != 0)) {
    unlink(entry);
    entry->pinned = pin ? 1 : 0;
    push(entry);
  }
  write(entry, item);
  entry->used = 1;
  return true;
}

policy::Refusal Store::Shard::install(const New& item) {
  const std::size_t bytes = item.bytes();
  if (bytes > store.max_entry_bytes() || item.key.size() > kMaxKeyBytes ||
      item.value.size() > kMaxKeyBytes)
    return policy::Refusal::too_large;
  Entry* old = find(item.key, item.hash);
  if (old != nullptr && overwrite(old, item)) return policy::Refusal::none;

  if (old == nullptr) grow_index();
  // The old value counts as gone: it is freed before the new one is allocated, so that the bound
  // holds at every moment, and a full store of pinned keys can still be written to.
  if (!make_room(block_bytes_bound(bytes), old)) return policy::Refusal::no_room;
  if (old != nullptr) remove(old);
  void* block = std::malloc(bytes);
  if (block == nullptr) return policy::Refusal::no_room;
  auto* entry = new (block) Entry{};
  entry->pinned = must_pin(item) ? 1 : 0;
  write(entry, item);
  entry->used = old != nullptr ? 1 : 0;
  Entry*& head = bucket(item.hash);
  entry->chain = head;
  head = entry;
  push(entry);
  stats.bytes += block_bytes(block);
  ++stats.entries;
  LARDER_ASSERT(bytes_held() <= store.shard_capacity_);
  return policy::Refusal::none;
}

void Store::Shard::remove(Entry* entry) {
  index_replace(entry, nullptr);
  release(entry);
}

void Store::Shard::release(Entry* entry) {
  unlink(entry);
  stats.bytes -= block_bytes(entry);
  --stats.entries;
  std::free(entry);
}

// Evicts until `bytes` more fit, with `keep` (if not null) counted as gone but left alone.
bool Store::Shard::make_room(std::size_t bytes, const Entry* keep) {
  const std::size_t freed =
      keep != nullptr ? block_bytes(const_cast<Entry*>(keep)) : std::size_t{0};
  const std::size_t wanted = bytes - std::min(bytes, freed);
  while (bytes_held() + wanted > store.shard_capacity_)
    if (!evict_one(keep)) return false;
  return true;
}

bool Store::Shard::evict_one(const Entry* keep) {
  Queue& queue = queues[0];
  Entry* entry = queue.hand != nullptr ? queue.hand : queue.oldest;
  // Two rounds suffice: the first clears all marks.
  for (std::size_t steps = 2 * queue.size; steps > 0; --steps) {
    const bool garbage = is_garbage(entry);
    if (entry != keep && (garbage || entry->used == 0)) {
      queue.hand = entry;
      const bool expired = entry->useless_at <= seen_now;
      remove(entry);  // moves the hand on
      ++(expired ? stats.expirations : stats.evictions);
      return true;
    }
    entry->used = 0;
    entry = entry->newer != nullptr ? entry->newer : queue.oldest;
  }
  queue.hand = entry;
  // Only pinned keys are left; perhaps one of them has expired.
  for (unsigned i = 0; i < kDesperateBuckets && queues[1].size > 0; ++i) {
    desperate_bucket = (desperate_bucket + 1) & index_mask;
    if (sweep_bucket(desperate_bucket, seen_now, keep) > 0) return true;
  }
  return false;
}

std::size_t Store::Shard::sweep_bucket(std::size_t number, TimeUs now, const Entry* keep) {
  std::size_t dropped = 0;
  for (Entry** link = &index[number & index_mask]; *link != nullptr;) {
    Entry* entry = *link;
    if (entry->useless_at > now || entry == keep) {
      link = &entry->chain;
      continue;
    }
    *link = entry->chain;
    release(entry);
    ++dropped;
  }
  stats.expirations += dropped;
  return dropped;
}

void Store::Shard::clear(bool declared) {
  bump_all();
  for (Queue& queue : queues)
    for (Entry* entry = queue.oldest; entry != nullptr;) {
      Entry* next = entry->newer;
      if ((entry->cache_id() != 0) == declared) remove(entry);
      entry = next;
    }
  if (stats.entries == 0) resize_index(kMinBuckets);
}

void Store::Shard::drop_all() {
  for (Queue& queue : queues)
    while (queue.oldest != nullptr) release(queue.oldest);
}

// ---- Store ----

Store::Store(const Options& options)
    : options_(options),
      shard_capacity_(options.capacity_bytes / options.shards),
      generations_(options.partitions),
      tag_stamps_(options.tag_slots) {
  LARDER_ASSERT(std::has_single_bit(options.shards) && options.shards <= 64);
  LARDER_ASSERT(std::has_single_bit(options.partitions) && options.partitions <= 1024);
  LARDER_ASSERT(std::has_single_bit(options.tag_slots));
  const unsigned slots = version_slots(options, shard_capacity_);
  LARDER_ASSERT(std::has_single_bit(slots));
  for (unsigned i = 0; i < options.shards; ++i)
    shards_.push_back(std::make_unique<Shard>(*this, i, slots));
}

Store::~Store() = default;

// The bits of a hash: index buckets take the lowest 32, version slots the next 16, partitions up to
// 10 from bit 48, shards the top 6. No two of them overlap, so none is skewed within another.
Store::Shard& Store::shard_of(Hash hash) const {
  return *shards_[(hash >> 58) & (options_.shards - 1)];
}

bool Store::is_void(const Entry& entry) const {
  if (entry.voided != 0) return true;
  if (entry.filled == 0) return false;  // set, not filled: nothing but its key voids it
  const Entry::Extra& extra = entry.extra();
  std::array<std::uint64_t, 255> stamps;  // NOLINT: only what is written is read
  for (std::size_t i = 0; i < extra.tag_count; ++i)
    stamps[i] = tag_stamps_[entry.tags()[i]].load(std::memory_order_acquire);
  const std::uint64_t generation =
      generations_[partition_of(entry.hash)].load(std::memory_order_acquire);
  return policy::is_void(extra.generation, extra.stamp, generation,
                         std::span(stamps.data(), extra.tag_count), options_.rules);
}

View Store::view_of(const Entry& entry, Meta& meta) const {
  if (entry.filled != 0) {
    const Entry::Extra& extra = entry.extra();
    meta = Meta{.cache_id = extra.cache_id,
                .negative = extra.negative,
                .tag_count = extra.tag_count,
                .load_us = extra.load_us,
                .ttl_us = extra.ttl_us,
                .as_of = extra.as_of,
                .soft_expiry = extra.soft_expiry,
                .useless_at = entry.useless_at};
  } else {
    meta = Meta{.soft_expiry = entry.useless_at, .useless_at = entry.useless_at};
  }
  return View{entry.key(), entry.value(), meta, entry.version, is_void(entry)};
}

bool Store::lookup(std::string_view key, Hash hash, TimeUs now, void (*visit)(void*, const View&),
                   void* context) {
  Shard& shard = shard_of(hash);
  MutexLock lock(shard.mutex);
  Entry* entry = shard.find_live(key, hash, now);
  if (entry == nullptr) return false;
  if (entry->used == 0) entry->used = 1;  // a line that is only read stays shared between cores
  Meta meta;
  visit(context, view_of(*entry, meta));
  return true;
}

// Why each invalidation that runs concurrently with ticket() either leaves the ticket void or
// precedes the load. The caller's order is: the change is in the source; then the invalidation
// begins. And: ticket() returns; then the load begins. Each of the three parts is one monotonic
// counter, which its invalidation advances by one atomic step (under the shard's lock, or a
// read-modify-write), and which ticket() reads once. So for each invalidation there are two cases:
//   - ticket() reads the counter before that step: then the counter is past the ticket afterwards,
//   for
//     ever, and the ticket is void for fill(), or what it filled is void for every reader;
//   - ticket() reads it after: then the invalidation had begun, hence the change was in the source,
//     before ticket() returned, hence before the load: the load sees it.
// The parts are judged each for itself, so the order among the three reads does not matter. For
// tags the step is that of tag_clock_, not that of the slot: a ticket with the stamp of an
// invalidation whose slot is not yet written is of the second case. Two invalidations of one slot
// may write it in either order, hence the maximum in invalidate_tag(). A reset between fill()'s
// check and its install leaves an entry of the ticket's generation, which is void for readers:
// is_void() asks again.
policy::Ticket Store::ticket(Hash hash) const {
  Shard& shard = shard_of(hash);
  MutexLock lock(shard.mutex);
  return {.version = shard.version(hash),
          .generation = generations_[partition_of(hash)].load(std::memory_order_acquire),
          .stamp = tag_clock_.load(std::memory_order_acquire)};
}

policy::Refusal Store::fill(const policy::Ticket& ticket, std::string_view key, Hash hash,
                            std::string_view value, const Meta& meta, std::span<const Hash> tags) {
  if (tags.size() > 255) return policy::Refusal::too_large;
  std::array<std::uint64_t, 255> stamps;  // NOLINT: only what is written is read
  Shard& shard = shard_of(hash);
  MutexLock lock(shard.mutex);
  const policy::Ticket current{
      .version = shard.version(hash),
      .generation = generations_[partition_of(hash)].load(std::memory_order_acquire),
      .stamp = tag_clock_.load(std::memory_order_acquire)};
  const policy::Refusal refusal = policy::judge_install(ticket, current, options_.rules);
  if (refusal != policy::Refusal::none) return refusal;
  // It would be void at once; storing it could only displace a later, valid fill.
  for (std::size_t i = 0; i < tags.size(); ++i)
    stamps[i] = tag_stamps_[tags[i] & (options_.tag_slots - 1)].load(std::memory_order_acquire);
  if (policy::is_void(ticket.generation, ticket.stamp, ticket.generation,
                      std::span(stamps.data(), tags.size()), options_.rules))
    return policy::Refusal::tag;
  return shard.install({.key = key,
                        .hash = hash,
                        .value = value,
                        .useless_at = meta.useless_at,
                        .meta = &meta,
                        .ticket = &ticket,
                        .tags = tags});
}

bool Store::invalidate(Hash hash, std::string_view key, bool keep_for_error) {
  Shard& shard = shard_of(hash);
  MutexLock lock(shard.mutex);
  shard.bump(hash);
  Entry* entry = shard.find(key, hash);
  if (entry == nullptr) return false;
  const bool was_valid = !shard.is_garbage(entry);
  // "No such row" is not worth keeping; what had no ticket has no source that could fail.
  if (keep_for_error && entry->filled != 0 && !entry->extra().negative)
    entry->voided = 1;
  else
    shard.remove(entry);
  return was_valid;
}

void Store::invalidate_tag(Hash tag) {
  const std::uint64_t stamp = tag_clock_.fetch_add(1) + 1;
  std::atomic<std::uint64_t>& slot = tag_stamps_[tag & (options_.tag_slots - 1)];
  std::uint64_t seen = slot.load();
  while (seen < stamp && !slot.compare_exchange_weak(seen, stamp)) {
  }
}

void Store::reset(unsigned partition) { generations_[partition].fetch_add(1); }

void Store::reset_all() {
  for (auto& generation : generations_) generation.fetch_add(1);
}

void Store::touch(std::string_view key, Hash hash, TimeUs now) {
  Shard& shard = shard_of(hash);
  MutexLock lock(shard.mutex);
  Entry* entry = shard.find_live(key, hash, now);
  if (entry == nullptr || entry->filled == 0 || is_void(*entry)) return;
  Entry::Extra& extra = entry->extra();
  if (extra.ttl_us <= 0 || extra.soft_expiry <= now) return;  // a late entry is not revived
  const TimeUs soft_expiry = saturating_add(now, extra.ttl_us);
  if (entry->useless_at != kNever)
    entry->useless_at = saturating_add(soft_expiry, entry->useless_at - extra.soft_expiry);
  extra.soft_expiry = soft_expiry;
}

bool Store::set_expiry(std::string_view key, Hash hash, TimeUs now, TimeUs soft_expiry,
                       TimeUs useless_at) {
  Shard& shard = shard_of(hash);
  MutexLock lock(shard.mutex);
  Entry* entry = shard.find_live(key, hash, now);
  if (entry == nullptr || is_void(*entry)) return false;
  entry->version = shard.next_version();
  entry->useless_at = useless_at;
  if (entry->filled != 0) entry->extra().soft_expiry = soft_expiry;
  return true;
}

bool Store::erase(std::string_view key, Hash hash) {
  Shard& shard = shard_of(hash);
  MutexLock lock(shard.mutex);
  Entry* entry = shard.find(key, hash);
  if (entry == nullptr) return false;
  shard.remove(entry);
  return true;
}

// Calls step(shard, number of a bucket) for up to `count` buckets, under the shard's lock, which is
// taken here unless `locked`.
template <class Step>
std::uint64_t Store::walk(std::uint64_t cursor, unsigned count, bool locked,
                          Step&& step) const LARDER_NO_ANALYSIS {
  const unsigned bits = static_cast<unsigned>(std::countr_zero(options_.shards));
  while (true) {
    const std::uint64_t number = cursor & (options_.shards - 1);
    std::uint64_t bucket = cursor >> bits;
    Shard& shard = *shards_[number];
    if (!locked) shard.mutex.lock();
    do {
      step(shard, bucket & shard.index_mask);
      bucket = next_bucket(bucket, shard.index_mask);
      count -= count > 0 ? 1 : 0;
    } while (bucket != 0 && count > 0);
    if (!locked) shard.mutex.unlock();
    if (bucket != 0) return (bucket << bits) | number;
    if (number + 1 == options_.shards) return 0;
    cursor = number + 1;
    if (count == 0) return cursor;
  }
}

std::uint64_t Store::scan_with(std::uint64_t cursor, unsigned count, TimeUs now, bool locked,
                               const std::function<void(const View&)>& visit) const {
  return walk(cursor, count, locked, [&](Shard& shard, std::size_t bucket) LARDER_NO_ANALYSIS {
    for (const Entry* entry = shard.index[bucket]; entry != nullptr; entry = entry->chain) {
      if (entry->useless_at <= now) continue;
      Meta meta;
      visit(view_of(*entry, meta));
    }
  });
}

std::uint64_t Store::scan(std::uint64_t cursor, unsigned count, TimeUs now,
                          const std::function<void(const View&)>& visit) {
  return scan_with(cursor, count, now, false, visit);
}

std::size_t Store::sweep(TimeUs now, unsigned buckets) {
  std::size_t dropped = 0;
  sweep_cursor_ = walk(sweep_cursor_.load(), buckets, false,
                       [&](Shard& shard, std::size_t bucket) LARDER_NO_ANALYSIS {
                         dropped += shard.sweep_bucket(bucket, now, nullptr);
                       });
  return dropped;
}

void Store::clear(bool declared) {
  for (auto& shard : shards_) {
    MutexLock lock(shard->mutex);
    shard->clear(declared);
  }
}

Stats Store::stats() const {
  Stats sum;
  for (const auto& shard : shards_) {
    MutexLock lock(shard->mutex);
    sum.bytes += shard->bytes_held();
    sum.entries += shard->stats.entries;
    sum.evictions += shard->stats.evictions;
    sum.expirations += shard->stats.expirations;
  }
  return sum;
}

std::uint64_t Store::count(std::uint16_t cache_id, TimeUs now) const {
  std::uint64_t entries = 0;
  std::uint64_t cursor = 0;
  do {
    cursor = walk(cursor, 1024, false, [&](Shard& shard, std::size_t bucket) LARDER_NO_ANALYSIS {
      for (const Entry* entry = shard.index[bucket]; entry != nullptr; entry = entry->chain)
        if (entry->cache_id() == cache_id && entry->useless_at > now) ++entries;
    });
  } while (cursor != 0);
  return entries;
}

// ---- Locked ----

Store::Locked::Locked(Store& store, std::span<const Hash> keys) LARDER_NO_ANALYSIS : store_(store) {
  for (const Hash hash : keys)
    shards_ |= std::uint64_t{1} << ((hash >> 58) & (store.options_.shards - 1));
  for (unsigned i = 0; i < store.options_.shards; ++i)
    if ((shards_ >> i & 1) != 0) store.shards_[i]->mutex.lock();
}

Store::Locked::Locked(Store& store) LARDER_NO_ANALYSIS : store_(store) {
  for (unsigned i = 0; i < store.options_.shards; ++i) {
    shards_ |= std::uint64_t{1} << i;
    store.shards_[i]->mutex.lock();
  }
}

Store::Locked::~Locked() LARDER_NO_ANALYSIS {
  for (unsigned i = 0; i < store_.options_.shards; ++i)
    if ((shards_ >> i & 1) != 0) store_.shards_[i]->mutex.unlock();
}

Store::Shard& Store::Locked::held(Hash hash) {
  const unsigned number = (hash >> 58) & (store_.options_.shards - 1);
  LARDER_ASSERT((shards_ >> number & 1) != 0);
  return *store_.shards_[number];
}

const View* Store::Locked::find(std::string_view key, Hash hash, TimeUs now) LARDER_NO_ANALYSIS {
  Entry* entry = held(hash).find_plain(key, hash, now);
  if (entry == nullptr) return nullptr;
  entry->used = 1;
  return &view_.emplace(store_.view_of(*entry, meta_));
}

policy::Refusal Store::Locked::put(std::string_view key, Hash hash, std::string_view value,
                                   TimeUs expiry) LARDER_NO_ANALYSIS {
  Shard& shard = held(hash);
  const policy::Refusal refusal =
      shard.install({.key = key, .hash = hash, .value = value, .useless_at = expiry});
  if (refusal == policy::Refusal::none) shard.bump(hash);
  return refusal;
}

bool Store::Locked::erase(std::string_view key, Hash hash) LARDER_NO_ANALYSIS {
  Shard& shard = held(hash);
  shard.bump(hash);
  Entry* entry = shard.find(key, hash);
  if (entry == nullptr || entry->cache_id() != 0) return false;
  const bool was_valid = !shard.is_garbage(entry);
  shard.remove(entry);
  return was_valid;
}

bool Store::Locked::set_expiry(std::string_view key, Hash hash, TimeUs expiry) LARDER_NO_ANALYSIS {
  Shard& shard = held(hash);
  Entry* entry = shard.find(key, hash);
  if (entry == nullptr || entry->cache_id() != 0 || shard.is_garbage(entry)) return false;
  entry->version = shard.next_version();
  entry->useless_at = expiry;
  if (entry->filled != 0) entry->extra().soft_expiry = expiry;
  return true;
}

std::uint64_t Store::Locked::version(std::string_view key, Hash hash,
                                     TimeUs now) LARDER_NO_ANALYSIS {
  Shard& shard = held(hash);
  const Entry* entry = shard.find_plain(key, hash, now);
  return entry != nullptr ? entry->version : shard.version(hash);
}

std::uint64_t Store::Locked::scan(std::uint64_t cursor, unsigned count, TimeUs now,
                                  const std::function<void(const View&)>& visit) {
  return store_.scan_with(cursor, count, now, true, visit);
}

void Store::Locked::clear(bool declared) LARDER_NO_ANALYSIS {
  for (auto& shard : store_.shards_) shard->clear(declared);
}

}  // namespace larder::near
