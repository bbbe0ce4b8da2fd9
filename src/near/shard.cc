#include "near/shard.h"

#include <sched.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "base/error.h"
#include "near/pins.h"

namespace larder::near {
namespace {

constexpr unsigned kYields = 400;           // while a reader that was put to sleep holds its pin
constexpr unsigned kMovesAtOnce = 2;        // buckets that an insertion moves while the index grows
constexpr std::uint32_t kSlackShare = 32;   // free but scattered: 1/32 of a shard, then compaction
constexpr std::uint32_t kBatchShare = 256;  // evicted ahead at once: 1/256 of a shard
constexpr std::uint32_t kBatchEntries = 32;  // and at most so many of the size asked for
constexpr std::uint32_t kLimboShare = 512;   // 1/512 of a shard may wait without need
constexpr std::uint64_t kEnough = 8;         // times what is asked for: no more is evicted for it
constexpr unsigned kWindows = 8;             // places that compaction looks at

}  // namespace

Store::Shard::Shard(const Store& owner, unsigned number)
    : store(owner),
      state(*reinterpret_cast<ShardState*>(owner.arena_.shard(number))),
      index(owner.arena_.shard(number), state.index,
            reinterpret_cast<std::atomic<Ref>*>(owner.arena_.shard(number) +
                                                owner.arena_.layout().directory_at),
            owner.arena_.layout().max_segments),
      heap(owner.arena_.shard(number), state.heap),
      owned_bytes(owner.arena_.header().fixed.shard_bytes),
      ghost_(
          {reinterpret_cast<GhostRow*>(owner.arena_.shard(number) + owner.arena_.layout().ghost_at),
           owner.arena_.layout().ghost_rows}) {}

void Store::Shard::init(std::uint32_t buckets) {
  const ArenaLayout& layout = store.arena_.layout();
  char* const base = reinterpret_cast<char*>(&state);
  state.exclusive.store(0);
  zero_words(base + layout.directory_at, layout.heap_at - layout.directory_at);
  const auto first = static_cast<Ref>(layout.heap_at / kGranule);
  const auto end = static_cast<Ref>(owned_bytes / kGranule);
  heap.init(first, end);
  init_eviction(state.eviction, std::uint64_t{end - first} * kGranule);
  state.wheel = WheelState{};
  const std::uint32_t segments = std::max(buckets >> Index::kSegmentShift, 1U);
  index.start(segments);
  for (std::uint32_t i = 0; i < segments; ++i) {
    const Ref segment = heap.allocate(index.segment_units());
    LARDER_ASSERT(segment != kNoRef);
    index.add_segment(i << Index::kSegmentShift, segment);
  }
}

// ---- looking ----

Ref Store::Shard::find_live(std::string_view key, Hash hash, TimeUs now) {
  seen_now = std::max(seen_now, now);
  const Ref ref = find(key, hash);
  if (ref == kNoRef || at(ref).useless_at(at(ref).load_bits()) > now) return ref;
  remove(ref, hash);
  ++stats.expirations;
  return kNoRef;
}

Ref Store::Shard::find_plain(std::string_view key, Hash hash, TimeUs now) {
  const Ref ref = find_live(key, hash, now);
  if (ref == kNoRef || at(ref).cache_id(at(ref).load_bits()) != 0 || store.is_void(at(ref), hash))
    return kNoRef;
  return ref;
}

bool Store::Shard::is_garbage(Ref ref) const {
  const Entry entry = at(ref);
  const std::uint64_t word = entry.load_bits();
  return entry.useless_at(word) <= seen_now ||
         (Entry::is_filled(word) && store.is_void(entry, hash_of(ref)));
}

// ---- what the policy sees ----

void Store::Shard::Entries::set_queue(Ref ref, unsigned queue) const {
  const Entry entry = shard->at(ref);
  const std::uint64_t word = entry.load_bits() & ~(63ULL << bits::kQueueShift);
  entry.bits().store(word | std::uint64_t{queue} << bits::kQueueShift, std::memory_order_relaxed);
}

std::uint32_t Store::Shard::Entries::weight(Ref ref) const {
  return shard->heap.units(ref) * static_cast<std::uint32_t>(kGranule);
}

std::uint32_t Store::Shard::Entries::cost(Ref ref) const {
  const Entry entry = shard->at(ref);
  return shard->store.cost_of(entry, entry.load_bits());
}

// ---- storing ----

void Store::Shard::write(Ref block, const New& item) {
  const Entry entry = at(block);
  const std::size_t offset = item.text_offset();
  const std::uint32_t slack = heap.units(block) - units_for(item.bytes());
  std::uint64_t word = (entry.load_bits() & bits::kPrevFree) | bits::kEntry |
                       std::uint64_t{slack} << bits::kSlackShift |
                       std::uint64_t{item.key.size()} << bits::kKeyShift |
                       std::uint64_t{item.value.size()} << bits::kValueShift;
  char* const bytes = entry.block();
  if (item.meta != nullptr) {
    const Meta& meta = *item.meta;
    word |= bits::kFilled;
    if (meta.negative) word |= bits::kNegative;
    if (meta.alone) word |= bits::kAlone;
    if (!item.tags.empty()) word |= bits::kTagged;
    const std::uint64_t as_of = Entry::encode_time(meta.as_of);
    store_word(bytes + 20, static_cast<std::uint32_t>(item.ticket->generation));
    entry.set_when(as_of | std::uint64_t{item.tags.size()} << Entry::kTagCountShift);
    entry.set_life(Entry::life_of(Entry::decode_time(as_of), meta.soft_expiry, meta.useless_at));
    store_word(bytes + 40, Span::encode(meta.ttl_us));
    store_word(bytes + 44, meta.cache_id);
    store_word(bytes + 46, encode_load(meta.load_us));
    if (!item.tags.empty()) store_word(bytes + 48, item.ticket->stamp);
    for (std::size_t i = 0; i < item.tags.size(); ++i)
      store_word(bytes + Entry::kFilledText + 8 + i * sizeof(std::uint32_t),
                 store.tag_slot(item.tags[i]));
  } else if (item.useless_at != kNever) {
    word |= bits::kExpires;
    entry.set_when(Entry::encode_time(item.useless_at));
  }
  store_bytes(bytes + offset, item.key.data(), item.key.size());
  store_bytes(bytes + offset + item.key.size(), item.value.data(), item.value.size());
  hits_of(entry.link()).store(0, std::memory_order_relaxed);
  entry.bits().store(word, std::memory_order_relaxed);
}

policy::Refusal Store::Shard::install(const New& item) {
  out_of_patience_ = false;
  if (const unsigned tuning = store.tuning_.load(std::memory_order_relaxed); tuning != tuning_) {
    tuning_ = tuning;
    eviction().tune(Controller::kCandidates[tuning]);
  }
  if (item.bytes() > store.max_entry_bytes() || item.key.size() > kMaxKeyBytes ||
      item.value.size() > kMaxValueBytes) {
    ++stats.too_large;
    return policy::Refusal::too_large;
  }
  grow();
  Ref old = find(item.key, item.hash);
  if (old == kNoRef && !is_worth(item)) return policy::Refusal::not_worth;
  const Ref block = allocate(units_for(item.bytes()), old);
  if (block == kNoRef) {
    if (old != kNoRef && overwrite(old, item)) return policy::Refusal::none;
    ++stats.no_room;
    return policy::Refusal::no_room;
  }
  // Asked for last: making room may have emptied an overflow bucket, and taken it out of the chain.
  Ref spare = kNoRef;
  if (old == kNoRef && !index.has_slot(item.hash)) {
    spare = allocate(Index::kOverflowUnits, old);
    if (spare == kNoRef) {
      heap.release(block);
      ++stats.no_room;
      return policy::Refusal::no_room;
    }
  }
  write(block, item);
  link_in(block, old, spare, item);
  store.record(item.hash, at(block), at(block).load_bits());
  if (limbo_units_ > owned_bytes / kGranule / kLimboShare) reclaim();
  return policy::Refusal::none;
}

// Of what can be loaded again, and is new: may others be evicted for it? What clients have set is
// always stored.
bool Store::Shard::is_worth(const New& item) {
  if (item.meta == nullptr || item.meta->cache_id == 0 || item.restored) return true;
  const std::uint32_t units = units_for(item.bytes());
  if (heap.free_units() > 2 * units) return true;
  const auto weight = static_cast<std::uint32_t>(units * kGranule);
  const std::uint32_t cost = store.options_.cost == Cost::one ? 1
                             : store.options_.cost == Cost::bytes
                                 ? weight
                                 : std::max(item.meta->load_us, 1U);
  if (eviction().welcome(item.hash, weight, cost)) return true;
  store.record(item.hash, weight, cost);  // it was asked for all the same
  return false;
}

// `block` is written; readers find it from here on.
void Store::Shard::link_in(Ref block, Ref old, Ref spare, const New& item) {
  if (old != kNoRef) {
    index.replace(item.hash, old, block);
    if (must_pin(item) == eviction().pinned(old)) {
      eviction().replace(old, block);
    } else {
      eviction().remove(old);
      if (must_pin(item))
        eviction().pin(block);
      else
        eviction().admit(block, item.hash);
    }
    retire(old);
  } else {
    if (!index.has_slot(item.hash))
      index.add_overflow(item.hash, spare);
    else if (spare != kNoRef)
      heap.release(spare);
    index.insert(item.hash, block);
    if (must_pin(item))
      eviction().pin(block);
    else
      eviction().admit(block, item.hash);
    ++stats.entries;
  }
  schedule(item.hash, at(block).useless_at(at(block).load_bits()));
}

// No room beside the old value, and nothing to evict: the old one goes first. Meanwhile readers
// wait for the lock, so that nobody sees the key absent. If the new one does not fit even so, the
// old one comes back.
bool Store::Shard::overwrite(Ref old, const New& item) {
  const std::uint64_t word = at(old).load_bits();
  const std::uint32_t units = at(old).needed_units(word);
  const std::string bytes(at(old).block() + Entry::kPlainText,
                          (units * kGranule) - Entry::kPlainText);
  state.exclusive.fetch_add(1);
  const Ref overflow = index.remove(item.hash, old);
  Ref block = kNoRef;
  const bool unseen = await_readers();
  const bool was_pinned = eviction().pinned(old);
  if (unseen) {
    eviction().remove(old);
    heap.release(old);
    block = heap.allocate(units_for(item.bytes()), true);
    if (block != kNoRef) {
      write(block, item);
    } else {
      old = heap.allocate(units, true);
      LARDER_ASSERT(old != kNoRef);  // it was there a moment ago
      store_bytes(at(old).block() + Entry::kPlainText, bytes.data(), bytes.size());
      const std::uint64_t moved = bits::kPrevFree | 3ULL << bits::kSlackShift;
      const std::uint64_t over = heap.units(old) - units;
      at(old).bits().store(
          (word & ~moved) | (at(old).load_bits() & bits::kPrevFree) | over << bits::kSlackShift,
          std::memory_order_relaxed);
    }
  }
  const Ref stays = block != kNoRef ? block : old;
  if (!index.has_slot(item.hash)) {
    index.add_overflow(item.hash, overflow);
  } else if (overflow != kNoRef) {
    retire(overflow);
  }
  index.insert(item.hash, stays);
  if (unseen) {
    if (block != kNoRef ? must_pin(item) : was_pinned)
      eviction().pin(stays);
    else
      eviction().admit(stays, item.hash);
  }
  schedule(item.hash, at(stays).useless_at(at(stays).load_bits()));
  state.exclusive.fetch_sub(1);
  return block != kNoRef;
}

void Store::Shard::remove(Ref ref, Hash hash) {
  if (const Ref overflow = index.remove(hash, ref); overflow != kNoRef) retire(overflow);
  eviction().remove(ref);
  retire(ref);
  --stats.entries;
}

// Other processes read copies that they prove by the bucket's sequence: it steps.
void Store::Shard::void_entry(Hash hash, Ref ref) {
  const Index::Change change(home(hash));
  at(ref).set_bits(bits::kVoided, true);
}

bool Store::Shard::set_expiry(Ref ref, Hash hash, TimeUs soft_expiry, TimeUs useless_at) {
  const Entry entry = at(ref);
  const std::uint64_t word = entry.load_bits();
  if (Entry::is_filled(word)) {
    entry.set_life(Entry::life_of(entry.as_of(), soft_expiry, useless_at));
  } else if ((word & bits::kExpires) != 0 && useless_at != kNever) {
    entry.set_when(Entry::encode_time(useless_at));
  } else if ((word & bits::kExpires) != 0 || useless_at != kNever) {
    // Another shape of block. The text is copied first: making room may move the entry.
    const std::string key(entry.key(word));
    const std::string value(entry.value(word));
    if (install({.key = key, .hash = hash, .value = value, .useless_at = useless_at}) !=
        policy::Refusal::none)
      return false;
  }
  if (entry.cache_id(word) == 0) bump(hash);
  schedule(hash, useless_at);
  return true;
}

// ---- room ----

Ref Store::Shard::allocate(std::uint32_t units, Ref& keep) {
  const auto whole = static_cast<std::uint32_t>(owned_bytes / kGranule);
  for (;;) {
    if (const Ref block = heap.allocate(units); block != kNoRef) return block;
    if (limbo_units_ > 0 && reclaim()) continue;
    // What is free is scattered: gather it, rather than evict for ever. Where that fails although
    // there is several times enough, more of it would not help.
    const std::uint32_t scattered = whole / kSlackShare;
    if (heap.free_units() >= units + scattered && compact(units, keep)) continue;
    if (heap.free_units() > kEnough * units + scattered) return kNoRef;
    // Some more than needed, so that the price of reclaim() is paid once for many.
    const std::uint32_t batch = units + std::min(whole / kBatchShare, units * kBatchEntries);
    while (limbo_units_ < batch && evict_one(keep)) {
    }
    if (limbo_units_ > 0) {
      if (reclaim() || await_readers()) continue;
      return kNoRef;
    }
    // Nothing can be evicted. What has expired goes, pinned or not; then what is free is gathered.
    unsigned budget = kWindows;
    if (expire(seen_now, budget, keep) > 0) continue;
    if (heap.free_units() >= units && compact(units, keep)) continue;
    return kNoRef;
  }
}

bool Store::Shard::evict_one(Ref keep) {
  const Ref victim = eviction().evict(keep);
  if (victim == kNoRef) return false;
  const bool expired = at(victim).useless_at(at(victim).load_bits()) <= seen_now;
  if (const Ref overflow = index.remove(hash_of(victim), victim); overflow != kNoRef)
    retire(overflow);
  retire(victim);
  --stats.entries;
  ++(expired ? stats.expirations : stats.evictions);
  return true;
}

bool Store::Shard::is_movable(std::uint64_t word) {
  if ((word & bits::kLimbo) != 0) return false;
  if ((word & (bits::kEntry | bits::kFree)) != 0) return true;
  return (word & (bits::kSegment | bits::kOverflow)) != 0;
}

// Empties a stretch of `units` by moving its entries into holes elsewhere. The stretch begins at a
// large free block, and the one with the least to move is chosen.
bool Store::Shard::compact(std::uint32_t units, Ref& keep) {
  Ref best = kNoRef;
  std::uint32_t best_moving = UINT32_MAX;
  std::array<Ref, kWindows> starts{};
  const unsigned count = heap.largest_free(starts);
  for (unsigned i = 0; i < count; ++i) {
    std::uint32_t moving = 0;
    Ref block = starts[i];
    while (block < std::uint64_t{starts[i]} + units && block < heap.end()) {
      const std::uint64_t word = at(block).load_bits();
      if (!is_movable(word)) break;
      if ((word & bits::kFree) == 0) moving += heap.units(block);
      block = heap.next(block);
    }
    if (block < starts[i] + units || moving >= best_moving) continue;
    best = starts[i];
    best_moving = moving;
  }
  if (best == kNoRef) return false;

  const Ref end = best + units;
  std::vector<Ref> withheld;
  for (Ref block = best; block < end; block = heap.next(block))
    if ((at(block).load_bits() & bits::kFree) != 0) {
      heap.withhold(block);
      withheld.push_back(block);
    }
  bool emptied = true;
  for (Ref block = best; block < end && emptied; block = heap.next(block))
    // What has gone into limbo meanwhile goes by itself.
    if ((at(block).load_bits() & (bits::kFree | bits::kLimbo)) == 0)
      emptied = move_out(block, keep);
  for (const Ref block : withheld) heap.restore(block);
  return emptied && (limbo_units_ == 0 || reclaim() || await_readers());
}

// Elsewhere, or if it fits nowhere, out. False if it may not go.
bool Store::Shard::move_out(Ref ref, Ref& keep) {
  const Entry entry = at(ref);
  const std::uint64_t word = entry.load_bits();
  if ((word & bits::kEntry) == 0) return move_index_block(ref, word);
  const Hash hash = hash_of(ref);
  const std::uint32_t needed = entry.needed_units(word);
  const Ref fresh = heap.allocate(needed);
  if (fresh == kNoRef) {
    if (ref == keep || eviction().pinned(ref)) return false;
    remove(ref, hash);
    ++stats.evictions;
    return true;
  }
  const Entry copy = at(fresh);
  const std::uint64_t fresh_slack = heap.units(fresh) - needed;
  const std::size_t bytes =
      entry.text_offset(word) + Entry::key_size(word) + Entry::value_size(word);
  copy_link(copy.link(), entry.link());
  store_bytes(copy.block() + 20, entry.block() + 20, bytes - 20);
  copy.bits().store((copy.load_bits() & bits::kPrevFree) |
                        (word & ~(bits::kPrevFree | 3ULL << bits::kSlackShift)) |
                        fresh_slack << bits::kSlackShift,
                    std::memory_order_relaxed);
  eviction().moved(ref, fresh);
  index.replace(hash, ref, fresh);
  retire(ref);
  if (ref == keep) keep = fresh;
  return true;
}

bool Store::Shard::move_index_block(Ref block, std::uint64_t word) {
  const bool segment = (word & bits::kSegment) != 0;
  const Ref fresh = heap.allocate(segment ? index.segment_units() : Index::kOverflowUnits);
  if (fresh == kNoRef) return false;
  const bool moved =
      segment ? index.move_segment(block, fresh)
              : index.move_overflow(block, fresh, hash_of(index.entry_of_overflow(block)));
  if (moved)
    retire(block);
  else
    heap.release(fresh);
  return moved;
}

// ---- limbo ----

// The Link of a block that is in no queue is ours: the next one in limbo, and the epoch.
void Store::Shard::retire(Ref block) {
  const Entry entry = at(block);
  entry.set_bits(bits::kLimbo, true);
  entry.link().newer = kNoRef;
  entry.link().older = static_cast<Ref>(epoch_now());
  if (limbo_last_ != kNoRef)
    at(limbo_last_).link().newer = block;
  else
    limbo_first_ = block;
  limbo_last_ = block;
  limbo_units_ += heap.units(block);
}

// True if anything became free.
bool Store::Shard::reclaim() {
  const auto earliest = static_cast<std::uint32_t>(reclaimable());
  bool freed = false;
  while (limbo_first_ != kNoRef) {
    const Ref block = limbo_first_;
    // Epochs in 32 bits: they are compared as distances.
    if (static_cast<std::int32_t>(at(block).link().older - earliest) >= 0) break;
    release_first();
    freed = true;
  }
  return freed;
}

// Until nobody can look at what is in limbo, all of which is free then. Pins last for a few
// instructions, unless their thread was put to sleep; ours would last for ever. Once for an
// insertion: who has waited in vain does not wait again.
bool Store::Shard::await_readers() {
  if (Pin::held_here() || out_of_patience_) return false;
  const std::uint64_t from = epoch_now();
  bool unseen = reclaimable() > from;
  for (unsigned i = 0; i < kYields && !unseen; ++i) {
    if (i < kYields / 2)
      sched_yield();
    else
      usleep(50);
    unseen = earliest_pinned() > from;
  }
  if (unseen) {
    while (limbo_first_ != kNoRef) release_first();
  } else {
    out_of_patience_ = true;
  }
  return unseen;
}

void Store::Shard::release_first() {
  const Ref block = limbo_first_;
  limbo_first_ = at(block).link().newer;
  if (limbo_first_ == kNoRef) limbo_last_ = kNoRef;
  limbo_units_ -= heap.units(block);
  heap.release(block);
}

// ---- growing ----

void Store::Shard::grow() {
  if (!index.is_growing()) {
    if (!index.wants_to_grow(stats.entries)) return;
    index.begin_growth();
  }
  for (unsigned i = 0; i < kMovesAtOnce && index.is_growing(); ++i)
    if (!move_bucket()) return;  // there is no room: later
}

bool Store::Shard::move_bucket() {
  Ref none = kNoRef;
  const Index::Step step = index.next_step();
  for (BucketId to = step.to_first; to <= step.to_last; ++to) {
    if (index.has_segment(to)) continue;
    const Ref segment = allocate(index.segment_units(), none);
    if (segment == kNoRef) return false;
    index.add_segment(to, segment);
  }
  // Making room for overflow may change the buckets: so it is asked again whether it is enough.
  std::vector<Ref> spares;
  std::vector<std::pair<Hash, Ref>> moving;
  for (bool enough = false; !enough;) {
    moving.clear();
    index.each(index.bucket(step.from), [&](Ref ref) {
      moving.emplace_back(hash_of(ref), ref);
      return true;
    });
    std::size_t needed = 0;
    for (BucketId to = step.to_first; to <= step.to_last; ++to) {
      const auto coming = std::ranges::count_if(
          moving, [&](const auto& entry) { return index.id_in_next(entry.first) == to; });
      needed += index.overflows_for(to, static_cast<std::size_t>(coming));
    }
    enough = spares.size() >= needed;
    while (spares.size() < needed) {
      const Ref spare = allocate(Index::kOverflowUnits, none);
      if (spare == kNoRef) {
        for (const Ref unused : spares) heap.release(unused);
        return false;
      }
      spares.push_back(spare);
    }
  }
  for (BucketId to = step.to_first; to <= step.to_last; ++to)
    Index::raise_version(index.bucket(to), Index::version(index.bucket(step.from)));
  for (const auto& [hash, ref] : moving) {
    const BucketId to = index.id_in_next(hash);
    if (!index.has_slot_in(to)) {
      index.add_overflow_to(to, spares.back());
      spares.pop_back();
    }
    index.insert_into(to, hash, ref);
  }
  for (const Ref unused : spares) heap.release(unused);
  wheel().cancel(step.from);
  index.finish(step, [&](Ref block) LARDER_NO_ANALYSIS { retire(block); });
  for (BucketId to = step.to_first; to <= step.to_last; ++to)
    wheel().schedule(to, earliest_end(index.bucket(to)));
  return true;
}

// ---- the end of life ----

void Store::Shard::schedule(Hash hash, TimeUs useless_at) {
  if (useless_at == kNever) return;
  // The wheel begins to turn with the first time that it hears of.
  if (state.wheel.tick == 0) wheel().start(seen_now != 0 ? seen_now : useless_at);
  wheel().schedule(index.id_of(hash), useless_at);
}

TimeUs Store::Shard::earliest_end(const Bucket& head) const {
  TimeUs earliest = kNever;
  index.each(head, [&](Ref ref) {
    earliest = std::min(earliest, at(ref).useless_at(at(ref).load_bits()));
    return true;
  });
  return earliest;
}

std::size_t Store::Shard::expire(TimeUs now, unsigned& budget, Ref keep) {
  seen_now = std::max(seen_now, now);
  if (wheel().is_ahead_of(now)) restart_wheel(now);
  std::size_t dropped = 0;
  BucketId id = 0;
  std::vector<Ref> due;
  for (; budget > 0 && wheel().next_due(now, id); --budget) {
    due.clear();
    index.each(index.bucket(id), [&](Ref ref) {
      if (ref != keep && at(ref).useless_at(at(ref).load_bits()) <= now) due.push_back(ref);
      return true;
    });
    for (const Ref ref : due) remove(ref);
    dropped += due.size();
    wheel().schedule(id, earliest_end(index.bucket(id)));
  }
  if (dropped > 0) reclaim();
  stats.expirations += dropped;
  return dropped;
}

// It began to turn with a time that was not the present.
void Store::Shard::restart_wheel(TimeUs now) {
  wheel().start(now);
  each_bucket([&](BucketId id) LARDER_NO_ANALYSIS {
    index.timer(id) = {};
    wheel().schedule(id, earliest_end(index.bucket(id)));
  });
}

void Store::Shard::clear(bool declared) {
  std::vector<Ref> gone;
  each_bucket([&](BucketId id) LARDER_NO_ANALYSIS {
    Index::bump(index.bucket(id));
    gone.clear();
    index.each(index.bucket(id), [&](Ref ref) {
      if ((at(ref).cache_id(at(ref).load_bits()) != 0) == declared) gone.push_back(ref);
      return true;
    });
    for (const Ref ref : gone) remove(ref);
  });
  reclaim();
}

}  // namespace larder::near
