#include "near/store.h"

#include <bit>
#include <cstdio>
#include <cstdlib>

#include "base/error.h"
#include "near/shard.h"

namespace larder::near {
namespace {

Arena private_arena(const Options& options) {
  Result<Arena> arena = Arena::make_private(options.shape());
  if (!arena) {
    std::fprintf(stderr, "larder: %s\n", to_string(arena.error()).c_str());
    std::abort();
  }
  return std::move(*arena);
}

constexpr unsigned kShardBuckets = 64;  // looked at for expiry before the lock is given back

}  // namespace

std::uint64_t Store::max_entry_bytes(const Options& options) {
  return std::min<std::uint64_t>(options.capacity_bytes / options.shards / 8, kMaxValueBytes);
}

// An adapting store has room for thousands of entries, and the controller is a hundredth at most.
std::uint64_t Options::controller_bytes() const {
  constexpr std::uint64_t kLeast = 16 << 20;
  return adapt && capacity_bytes >= kLeast ? Controller(controller()).bytes() : 0;
}

Store::Store(const Options& options) : Store(options, private_arena(options)) {}

Store::Store(const Options& options, Arena arena)
    : options_(options),
      arena_(std::move(arena)),
      max_entry_bytes_(
          std::min<std::uint64_t>(arena_.header().fixed.shard_bytes / 8, kMaxValueBytes)),
      partitions_(arena_.partitions()),
      tag_stamps_(arena_.tag_stamps()),
      tag_clock_(arena_.header().tag_clock) {
  for (unsigned i = 0; i < options.shards; ++i) {
    shards_.push_back(std::make_unique<Shard>(*this, i));
    paths_.push_back({shards_.back()->index, &shards_.back()->state.exclusive});
  }
  if (options.controller_bytes() > 0)
    controller_ = std::make_unique<Controller>(options.controller());
  if (!arena_.found()) init_shards();
}

void Store::init_shards() {
  for (auto& shard : shards_) {
    MutexLock lock(shard->mutex);
    shard->init();
  }
}

Store::~Store() = default;

std::uint32_t Store::cost_of(const Entry& entry, std::uint64_t word) const {
  switch (options_.cost) {
    case Cost::one: return 1;
    case Cost::bytes: return entry.block_units(word) * static_cast<std::uint32_t>(kGranule);
    case Cost::load_time:
      return Entry::is_filled(word) ? std::max(decode_load(entry.load_took()), 1U) : 1U;
  }
  return 1;
}

// Samples may be lost: those that come while another thread records one, and repetitions. So a key
// that everybody reads all the time costs no more than any other.
void Store::record_sample(Hash hash, std::uint32_t weight, std::uint32_t cost) const {
  thread_local Hash last = 0;
  if (hash == last) return;
  last = hash;
  if (recording_.test_and_set(std::memory_order_acquire)) return;
  controller_->record(hash, weight, cost);
  if (controller_->decide()) {
    for (unsigned i = 0; i < Controller::kCandidates.size(); ++i)
      if (Controller::kCandidates[i] == controller_->current())
        tuning_.store(i, std::memory_order_relaxed);
  }
  recording_.clear(std::memory_order_release);
}

// The bits of a hash: index buckets take the lowest 32, their tags the next 8, partitions up to 10
// from bit 48, shards the top 6. No two of them overlap, so none is skewed within another.
Store::Shard& Store::shard_of(Hash hash) const { return *shards_[number_of(hash)]; }

bool Store::lookup_locked(std::string_view key, Hash hash, TimeUs now,
                          void (*visit)(void*, const View&), void* context) {
  Shard& shard = shard_of(hash);
  MutexLock lock(shard.mutex);
  const Ref ref = shard.find_live(key, hash, now);
  if (ref == kNoRef) return false;
  const Entry entry = shard.at(ref);
  larder::near::touch(entry.link());
  View view;
  look_at(entry, entry.load_bits(), hash, view);
  visit(context, view);
  return true;
}

bool Store::peek(std::string_view key, Hash hash, TimeUs now,
                 const std::function<void(const View&)>& visit) const {
  Shard& shard = shard_of(hash);
  MutexLock lock(shard.mutex);
  const Ref ref = shard.find(key, hash);
  if (ref == kNoRef) return false;
  const Entry entry = shard.at(ref);
  const std::uint64_t word = entry.load_bits();
  if (entry.useless_at(word) <= now) return false;
  View view;
  look_at(entry, word, hash, view);
  visit(view);
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
          .generation = partitions_[partition_of(hash)].generation.load(std::memory_order_acquire),
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
      .generation = partitions_[partition_of(hash)].generation.load(std::memory_order_acquire),
      .stamp = tag_clock_.load(std::memory_order_acquire)};
  const policy::Refusal refusal = policy::judge_install(ticket, current, options_.rules);
  if (refusal != policy::Refusal::none) return refusal;
  // It would be void at once; storing it could only displace a later, valid fill.
  for (std::size_t i = 0; i < tags.size(); ++i)
    stamps[i] = tag_stamps_[tag_slot(tags[i])].load(std::memory_order_acquire);
  if (policy::is_void(ticket.generation, ticket.stamp, ticket.generation,
                      std::span(stamps.data(), tags.size()), options_.rules))
    return policy::Refusal::tag;
  // A slow load must not put an older state over that of a later one.
  if (const Ref ref = shard.find(key, hash); options_.rules.later && ref != kNoRef) {
    const Entry old = shard.at(ref);
    const std::uint64_t word = old.load_bits();
    if (Entry::is_filled(word) && !is_void(old, hash) && old.filled_cache_id() == meta.cache_id &&
        old.as_of() > meta.as_of)
      return policy::Refusal::later;
  }
  if (shard.seen_now == 0) shard.seen_now = meta.as_of;
  const policy::Refusal stored = shard.install({.key = key,
                                                .hash = hash,
                                                .value = value,
                                                .useless_at = meta.useless_at,
                                                .meta = &meta,
                                                .ticket = &ticket,
                                                .tags = tags});
  // A plain key has changed: whoever watches it must see that.
  if (stored == policy::Refusal::none && meta.cache_id == 0) shard.bump(hash);
  return stored;
}

bool Store::invalidate(Hash hash, std::string_view key, bool keep_for_error) {
  Shard& shard = shard_of(hash);
  MutexLock lock(shard.mutex);
  shard.bump(hash);
  const Ref ref = shard.find(key, hash);
  if (ref == kNoRef) return false;
  const bool was_valid = !shard.is_garbage(ref);
  const std::uint64_t word = shard.at(ref).load_bits();
  // "No such row" is not worth keeping; what had no ticket has no source that could fail.
  if (keep_for_error && Entry::is_filled(word) && (word & bits::kNegative) == 0)
    shard.void_entry(hash, ref);
  else
    shard.remove(ref, hash);
  return was_valid;
}

void Store::invalidate_tag(Hash tag) {
  const std::uint64_t stamp = tag_clock_.fetch_add(1) + 1;
  std::atomic<std::uint64_t>& slot = tag_stamps_[tag_slot(tag)];
  std::uint64_t seen = slot.load();
  while (seen < stamp && !slot.compare_exchange_weak(seen, stamp)) {
  }
}

void Store::reset(unsigned partition) { partitions_[partition].generation.fetch_add(1); }

void Store::reset_all() {
  for (Partition& partition : partitions_) partition.generation.fetch_add(1);
}

void Store::touch(std::string_view key, Hash hash, TimeUs now) {
  Shard& shard = shard_of(hash);
  MutexLock lock(shard.mutex);
  const Ref ref = shard.find_live(key, hash, now);
  if (ref == kNoRef) return;
  const Entry entry = shard.at(ref);
  View view;
  look_at(entry, entry.load_bits(), hash, view);
  const Meta& meta = view.meta;
  if (view.is_void || meta.ttl_us <= 0 || meta.soft_expiry <= now) return;  // late is not revived
  const TimeUs soft_expiry = saturating_add(now, meta.ttl_us);
  const TimeUs useless_at = meta.useless_at == kNever
                                ? kNever
                                : saturating_add(soft_expiry, meta.useless_at - meta.soft_expiry);
  entry.set_life(Entry::life_of(meta.as_of, soft_expiry, useless_at));
  shard.schedule(hash, useless_at);
}

bool Store::set_expiry(std::string_view key, Hash hash, TimeUs now, TimeUs soft_expiry,
                       TimeUs useless_at) {
  Shard& shard = shard_of(hash);
  MutexLock lock(shard.mutex);
  const Ref ref = shard.find_live(key, hash, now);
  if (ref == kNoRef || is_void(shard.at(ref), hash)) return false;
  return shard.set_expiry(ref, hash, soft_expiry, useless_at);
}

bool Store::erase(std::string_view key, Hash hash) {
  Shard& shard = shard_of(hash);
  MutexLock lock(shard.mutex);
  const Ref ref = shard.find(key, hash);
  if (ref == kNoRef) return false;
  shard.remove(ref, hash);
  return true;
}

// A cursor is the number of a shard and a hash: all entries of smaller hashes have been met. That
// means the same however much the index has grown meanwhile. Calls step(shard, bucket) for up to
// `count` buckets, under the shard's lock, which is taken here unless `locked`.
template <class Step>
std::uint64_t Store::walk(std::uint64_t cursor, unsigned count, bool locked,
                          Step&& step) const LARDER_NO_ANALYSIS {
  const unsigned bits = static_cast<unsigned>(std::countr_zero(options_.shards));
  while (true) {
    const std::uint64_t number = cursor & (options_.shards - 1);
    std::uint64_t hash = cursor >> bits & 0xffffffffULL;
    Shard& shard = *shards_[number];
    struct Unlock {  // whatever the visitor throws
      Shard* shard;
      ~Unlock() LARDER_NO_ANALYSIS {
        if (shard != nullptr) shard->mutex.unlock();
      }
    };
    if (!locked) shard.mutex.lock();
    const Unlock unlock{locked ? nullptr : &shard};
    do {
      step(shard, shard.index.bucket(shard.index.id_at(hash, hash)));
      count -= count > 0 ? 1 : 0;
    } while (hash < 1ULL << 32 && count > 0);
    if (hash < 1ULL << 32) return (hash << bits) | number;
    if (number + 1 == options_.shards) return 0;
    cursor = number + 1;
    if (count == 0) return cursor;
  }
}

std::uint64_t Store::scan_with(std::uint64_t cursor, unsigned count, TimeUs now, bool locked,
                               const std::function<void(const View&)>& visit) const {
  return walk(cursor, count, locked, [&](Shard& shard, Bucket& bucket) {
    shard.index.each(bucket, [&](Ref ref) {
      const Entry entry = shard.at(ref);
      const std::uint64_t word = entry.load_bits();
      if (entry.useless_at(word) <= now) return true;
      View view;
      look_at(entry, word, Entry::is_filled(word) ? shard.hash_of(ref) : 0, view);
      visit(view);
      return true;
    });
  });
}

std::uint64_t Store::scan(std::uint64_t cursor, unsigned count, TimeUs now,
                          const std::function<void(const View&)>& visit) {
  return scan_with(cursor, count, now, false, visit);
}

Store::Expired Store::expire(TimeUs now, unsigned buckets) {
  Expired result;
  unsigned idle = 0;  // shards in a row in which nothing is due
  while (buckets > 0 && idle < options_.shards) {
    Shard& shard = *shards_[expiring_.fetch_add(1) & (options_.shards - 1)];
    unsigned budget = std::min(buckets, kShardBuckets);
    buckets -= budget;
    {
      MutexLock lock(shard.mutex);
      result.entries += shard.expire(now, budget);
    }
    buckets += budget;
    idle = budget > 0 ? idle + 1 : 0;
  }
  result.more = idle < options_.shards;
  return result;
}

void Store::clear(bool declared) {
  for (auto& shard : shards_) {
    MutexLock lock(shard->mutex);
    shard->clear(declared);
  }
}

Stats Store::stats() const {
  Stats sum{.bytes = controller_ != nullptr ? controller_->bytes() : 0};
  for (const auto& shard : shards_) {
    MutexLock lock(shard->mutex);
    sum.bytes += shard->bytes_held();
    sum.entries += shard->stats.entries;
    sum.evictions += shard->stats.evictions;
    sum.expirations += shard->stats.expirations;
    sum.too_large += shard->stats.too_large;
    sum.no_room += shard->stats.no_room;
  }
  return sum;
}

std::uint64_t Store::count(std::uint16_t cache_id, TimeUs now) const {
  std::uint64_t entries = 0;
  std::uint64_t cursor = 0;
  do {
    cursor = walk(cursor, 1024, false, [&](Shard& shard, Bucket& bucket) {
      shard.index.each(bucket, [&](Ref ref) {
        const Entry entry = shard.at(ref);
        const std::uint64_t word = entry.load_bits();
        if (entry.cache_id(word) == cache_id && entry.useless_at(word) > now) ++entries;
        return true;
      });
    });
  } while (cursor != 0);
  return entries;
}

// ---- Locked ----

Store::Locked::Locked(Store& store, std::span<const Hash> keys)
    : store_(store), several_(keys.size() > 1) {
  for (const Hash hash : keys) shards_ |= std::uint64_t{1} << store.number_of(hash);
  lock();
}

Store::Locked::Locked(Store& store) : store_(store), several_(true) {
  for (unsigned i = 0; i < store.options_.shards; ++i) shards_ |= std::uint64_t{1} << i;
  lock();
}

void Store::Locked::lock() LARDER_NO_ANALYSIS {
  for (std::uint64_t left = shards_; left != 0; left &= left - 1) {
    Shard& shard = *store_.shards_[static_cast<unsigned>(std::countr_zero(left))];
    shard.mutex.lock();
  }
}

// Before the first change. All flags are up before it, and until after the last one: whoever has
// seen one of the changes also sees that the other shards are not to be read without their locks.
void Store::Locked::announce() {
  if (!several_ || announced_) return;
  announced_ = true;
  for (std::uint64_t left = shards_; left != 0; left &= left - 1)
    store_.shards_[static_cast<unsigned>(std::countr_zero(left))]->state.exclusive.fetch_add(1);
}

Store::Locked::~Locked() LARDER_NO_ANALYSIS {
  if (announced_)
    for (std::uint64_t left = shards_; left != 0; left &= left - 1)
      store_.shards_[static_cast<unsigned>(std::countr_zero(left))]->state.exclusive.fetch_sub(1);
  for (std::uint64_t left = shards_; left != 0; left &= left - 1)
    store_.shards_[static_cast<unsigned>(std::countr_zero(left))]->mutex.unlock();
}

Store::Shard& Store::Locked::held(Hash hash) {
  const unsigned number = store_.number_of(hash);
  LARDER_ASSERT((shards_ >> number & 1) != 0);
  return *store_.shards_[number];
}

const View* Store::Locked::find(std::string_view key, Hash hash, TimeUs now) LARDER_NO_ANALYSIS {
  Shard& shard = held(hash);
  const Ref ref = shard.find_plain(key, hash, now);
  if (ref == kNoRef) return nullptr;
  const Entry entry = shard.at(ref);
  larder::near::touch(entry.link());
  view_ = View{};
  store_.look_at(entry, entry.load_bits(), hash, view_);
  return &view_;
}

policy::Refusal Store::Locked::put(std::string_view key, Hash hash, std::string_view value,
                                   TimeUs expiry) LARDER_NO_ANALYSIS {
  announce();
  Shard& shard = held(hash);
  const policy::Refusal refusal =
      shard.install({.key = key, .hash = hash, .value = value, .useless_at = expiry});
  if (refusal == policy::Refusal::none) shard.bump(hash);
  return refusal;
}

bool Store::Locked::erase(std::string_view key, Hash hash) LARDER_NO_ANALYSIS {
  announce();
  Shard& shard = held(hash);
  shard.bump(hash);
  const Ref ref = shard.find(key, hash);
  if (ref == kNoRef || shard.at(ref).cache_id(shard.at(ref).load_bits()) != 0) return false;
  const bool was_valid = !shard.is_garbage(ref);
  shard.remove(ref, hash);
  return was_valid;
}

bool Store::Locked::set_expiry(std::string_view key, Hash hash, TimeUs expiry) LARDER_NO_ANALYSIS {
  announce();
  Shard& shard = held(hash);
  const Ref ref = shard.find(key, hash);
  if (ref == kNoRef || shard.at(ref).cache_id(shard.at(ref).load_bits()) != 0 ||
      shard.is_garbage(ref))
    return false;
  return shard.set_expiry(ref, hash, expiry, expiry);
}

std::uint64_t Store::Locked::version(std::string_view key, Hash hash,
                                     TimeUs now) LARDER_NO_ANALYSIS {
  Shard& shard = held(hash);
  // Eviction raises no version: present and absent differ.
  const bool present = shard.find_plain(key, hash, now) != kNoRef;
  return std::uint64_t{shard.version(hash)} << 1 | (present ? 1 : 0);
}

std::uint64_t Store::Locked::scan(std::uint64_t cursor, unsigned count, TimeUs now,
                                  const std::function<void(const View&)>& visit) {
  return store_.scan_with(cursor, count, now, true, visit);
}

void Store::Locked::clear(bool declared) LARDER_NO_ANALYSIS {
  announce();
  for (auto& shard : store_.shards_) shard->clear(declared);
}

}  // namespace larder::near
