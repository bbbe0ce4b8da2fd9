#include "near/store.h"

#include <bit>

#include "base/error.h"
#include "near/shard.h"

namespace larder::near {
namespace {

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
  // A slow load must not put an older state over that of a later one.
  const Entry* const old = shard.find(key, hash);
  if (options_.rules.later && old != nullptr && old->filled != 0 && !is_void(*old) &&
      old->extra().cache_id == meta.cache_id && old->extra().as_of > meta.as_of)
    return policy::Refusal::later;
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
  for (std::uint64_t left = shards_; left != 0; left &= left - 1)
    store_.shards_[static_cast<unsigned>(std::countr_zero(left))]->mutex.unlock();
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
