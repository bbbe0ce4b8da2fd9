#include "engine/embedded/embedded.h"

#include <array>

namespace larder::engine {
namespace {

// Keys and tags share the slots; a tag must not meet the key of the same text.
Hash as_tag(Hash hash) { return mix64(hash ^ 0x7461677461677461ULL); }

void raise_to(std::atomic<policy::TxnId>& slot, policy::TxnId x) {
  policy::TxnId seen = slot.load(std::memory_order_relaxed);
  while (seen < x && !slot.compare_exchange_weak(seen, x, std::memory_order_seq_cst)) {
  }
}

}  // namespace

Embedded::Embedded(near::Store& store, const Options& options) : store_(store), options_(options) {
  for (unsigned i = 0; i < options_.sources; ++i)
    sources_.push_back(std::make_unique<SourceState>(options_.tombstone_slots));
}

Embedded::SourceState::SourceState(unsigned slots) : slots_(slots) { begin(0); }

Embedded::Incarnation& Embedded::SourceState::claim(std::uint64_t id) {
  for (const auto& one : known_)
    if (one && one->id.load(std::memory_order_relaxed) == id) return *one;
  for (;;) {
    std::unique_ptr<Incarnation>& slot = known_[next_];
    next_ = (next_ + 1) % kMost;
    if (!slot) slot = std::make_unique<Incarnation>(slots_);
    if (slot.get() == present_.load(std::memory_order_relaxed)) continue;
    slot->id.store(id, std::memory_order_relaxed);
    for (auto& x : slot->tombstones) x.store(0, std::memory_order_relaxed);
    return *slot;
  }
}

Embedded::Incarnation& Embedded::SourceState::of(std::uint64_t id) {
  Incarnation& now = present();
  if (id == 0 || now.id.load(std::memory_order_relaxed) == id) return now;
  MutexLock lock(mutex_);
  return claim(id);
}

void Embedded::SourceState::begin(std::uint64_t id) {
  MutexLock lock(mutex_);
  present_.store(&claim(id), std::memory_order_seq_cst);
}

Task<std::vector<Found>> Embedded::lookup(Lookup lookup) {
  std::vector<Found> found(lookup.keys.size());
  for (std::size_t i = 0; i < found.size(); ++i)
    found[i].ticket.near = store_.ticket(lookup.keys[i].hash);
  co_return found;
}

Task<void> Embedded::release(Cache /*cache*/, Key /*key*/, Ticket /*ticket*/) { co_return; }

policy::Refusal Embedded::judge(const Fill& fill) const {
  Incarnation& present = sources_[fill.cache.source]->present();
  std::vector<policy::TxnId> tag_tombstones;
  tag_tombstones.reserve(fill.tags.size());
  for (const std::string& tag : fill.tags)
    tag_tombstones.push_back(
        present.tombstone(as_tag(hash_bytes(tag))).load(std::memory_order_seq_cst));
  const policy::FillCheck check{
      .ticket = fill.ticket.near,
      .now = store_.ticket(fill.key.hash),
      .snapshot = fill.snapshot,
      .source_id = present.id.load(std::memory_order_relaxed),
      .key_tombstone = present.tombstone(fill.key.hash).load(std::memory_order_seq_cst),
      .tag_tombstones = tag_tombstones,
  };
  return policy::judge_fill(check, options_.rules);
}

// Why judge-then-install is safe although it is two steps: an invalidation raises the tombstone
// first and voids the ticket second. If the raise came after the tombstone was read here, the
// ticket is void by the time the store looks at it, under its lock. (A tag voids no ticket: its
// stamp voids the entry.)
Task<policy::Refusal> Embedded::fill(Fill fill) {
  const policy::Refusal refusal = judge(fill);
  if (refusal != policy::Refusal::none) co_return refusal;
  std::vector<Hash> tags;
  tags.reserve(fill.tags.size());
  for (const std::string& tag : fill.tags) tags.push_back(hash_bytes(tag));
  co_return store_.fill(fill.ticket.near, fill.key.text, fill.key.hash, fill.value, fill.meta,
                        tags);
}

void Embedded::raise(const Change& change) {
  if (change.x == 0) return;
  Incarnation& incarnation = sources_[change.source]->of(change.source_id);
  for (const std::string& key : change.keys)
    raise_to(incarnation.tombstone(hash_bytes(key)), change.x);
  for (const std::string& tag : change.tags)
    raise_to(incarnation.tombstone(as_tag(hash_bytes(tag))), change.x);
}

void Embedded::void_all(const Change& change) {
  LARDER_ASSERT(change.keep_for_error.empty() ||
                change.keep_for_error.size() == change.keys.size());
  for (std::size_t i = 0; i < change.keys.size(); ++i)
    store_.invalidate(hash_bytes(change.keys[i]), change.keys[i],
                      !change.keep_for_error.empty() && change.keep_for_error[i]);
  for (const std::string& tag : change.tags) store_.invalidate_tag(hash_bytes(tag));
}

Task<Result<void>> Embedded::invalidate(std::vector<Change> changes) {
  for (const Change& change : changes) raise(change);
  for (const Change& change : changes) void_all(change);
  co_return Result<void>{};
}

Task<Result<FeedOrder>> Embedded::feed(unsigned /*source*/, FeedBatch /*batch*/) {
  co_return fail(ErrorCode::internal, "an engine that nobody shares takes invalidations", {});
}

void Embedded::start(TaskGroup& /*group*/, Hooks /*hooks*/) {}

// Fills of loads from another incarnation are refused from here on.
Task<Result<void>> Embedded::new_epoch(unsigned source, std::uint64_t source_id) {
  sources_[source]->begin(source_id);
  co_return Result<void>{};
}

}  // namespace larder::engine
