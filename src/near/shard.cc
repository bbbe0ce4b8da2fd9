#include "near/shard.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "base/error.h"

namespace larder::near {
namespace {

constexpr std::size_t kMaxTextBytes = (1U << 30) - 1;  // key_size and value_size have 30 bits
constexpr unsigned kDesperateBuckets = 64;

// How much a block of `bytes` takes at most, before it is asked for: rounded to 16, a remainder too
// small to be split off, and for large ones the rest of a page.
std::size_t block_bytes_bound(std::size_t bytes) {
  const std::size_t rounded = ((bytes + kChunkHeader + 15) & ~std::size_t{15}) + 32;
  return rounded < (64U << 10) ? rounded : rounded + 4096;
}

}  // namespace

// ---- index and queues ----

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

// ---- entries ----

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
  if (bytes > store.max_entry_bytes() || item.key.size() > kMaxTextBytes ||
      item.value.size() > kMaxTextBytes)
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
  // An allocator with coarser sizes than glibc's gave more than was asked for: room for that, too.
  if (bytes_held() + block_bytes(block) > store.shard_capacity_ &&
      !make_room(block_bytes(block), nullptr)) {
    std::free(block);
    return policy::Refusal::no_room;
  }
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
  for (const Queue& queue : queues)
    for (Entry* entry = queue.newest; entry != nullptr;)
      std::free(std::exchange(entry, entry->older));
}

}  // namespace larder::near
