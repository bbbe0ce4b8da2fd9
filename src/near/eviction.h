// Which entry goes when there is no room: a small FIFO queue in front of a lazily promoted,
// size-aware main part, and a ghost that remembers how often what has left was used.
//
// - A new entry comes into the small queue, with the frequency F that the ghost remembers, plus 1.
// - While the small queue has more than its share, its oldest goes: into the main part if it has
//   proved itself (F > 1, hits since it came counted), or if it would rank above the main part's
//   next victim by more than a factor of two; else it is evicted.
// - The main part is a set of FIFO queues by q = round(log2(F * cost / weight)). An entry has the
//   priority H = L + 2^q, where L is the priority of the last victim when the entry was put there.
//   The victim is the least H among the queues' oldest; was it hit, then the hits are added to F
//   and it is put into its queue again.
// - What is much heavier than others and would not get into the main part is best not stored at
//   all, for it would drive out many that are worth more: welcome().
// - A hit raises a 2-bit counter in the entry: no lock, no list; no write once it is saturated.
//
// After S3-FIFO (Yang et al., SOSP 2023) for the small queue and the ghost, GreedyDual-Size-
// Frequency (Cherkasova, 1998) for H, and CAMP (Ghandeharizadeh et al., Middleware 2014) for the
// rounding that makes queues of the heap. That the ghost remembers frequencies of all victims, that
// weight counts when the small queue is left, and welcome() are what made the difference: what each
// is worth can be seen with `larder bench trace`.
//
// All state is in EvictionState, in the entries' Links and in the ghost: plain data without
// pointers, which may be shared memory. Not thread-safe, the caller holds the shard's mutex; only
// touch() may be called without it. Everything is O(1); evict() amortised over the hits.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <concepts>
#include <cstdint>
#include <type_traits>

#include "base/error.h"
#include "base/hash.h"
#include "near/ghost.h"
#include "near/ref.h"

namespace larder::near {

// The policy's part of an entry. Zeroed is what admit() and pin() expect of a new one, or anything.
struct Link {
  Ref newer;
  Ref older;
  std::uint16_t frequency;  // F, saturating
  std::uint8_t stamp;       // L at enqueue in units of 2^q / 64, modulo 256
  std::uint8_t hits;        // saturates at kMaxHits; only accessed by hits_of()
};
static_assert(sizeof(Link) == 12 && alignof(Link) == 4 && std::is_trivially_copyable_v<Link>);

inline constexpr unsigned kMaxHits = 3;

inline std::atomic_ref<std::uint8_t> hits_of(Link& link) {
  return std::atomic_ref<std::uint8_t>(link.hits);
}

// A hit. Thread-safe, without any lock; two at once may count as one.
inline void touch(Link& link) {
  const std::uint8_t hits = hits_of(link).load(std::memory_order_relaxed);
  if (hits < kMaxHits)
    hits_of(link).store(static_cast<std::uint8_t>(hits + 1), std::memory_order_relaxed);
}

// A copy that tolerates hits meanwhile; one of them may be lost.
inline void copy_link(Link& to, Link& from) {
  to.newer = from.newer;
  to.older = from.older;
  to.frequency = from.frequency;
  to.stamp = from.stamp;
  hits_of(to).store(hits_of(from).load(std::memory_order_relaxed), std::memory_order_relaxed);
}

// What may be chosen by the workload. The defaults are what is good without knowing it.
struct Tuning {
  std::uint8_t small_percent = 10;  // of the weight: the share of the small queue
  bool promote_all = false;         // from small to main: no proof wanted
  std::uint16_t heavy_part = 160;   // what is lighter than capacity / heavy_part is not heavy

  friend bool operator==(const Tuning&, const Tuning&) = default;
};

// The queues of a shard. Entries::queue() says in which one an entry is.
inline constexpr unsigned kSmallQueue = 0;
inline constexpr unsigned kPinnedQueue = 1;
inline constexpr unsigned kMainQueue = 2;  // the first of them
inline constexpr unsigned kMainQueues = 48;
inline constexpr unsigned kQueues = kMainQueue + kMainQueues;  // fits 6 bits
inline constexpr int kLeastExponent = -27;  // of the first main queue: F * cost = 1, 128 MiB

// In shared memory. Made by init_eviction().
struct EvictionState {
  struct Queue {
    Ref newest;
    Ref oldest;
    std::uint32_t count;
    std::uint32_t unused;
    std::uint64_t weight;
  };
  std::array<Queue, kQueues> queues;
  std::array<std::uint64_t, kMainQueues> priority;  // H of each main queue's oldest
  std::uint64_t occupied;                           // which main queues are not empty
  std::uint64_t inflation;                          // L in units of 2^kLeastExponent / 64; wraps
  std::uint64_t capacity;  // the weight of which the small queue has its share
  std::uint64_t whole;     // the same, or that of the cache if this is a miniature of it
  std::uint64_t small_weight;
  std::uint64_t heavy_weight;  // what is lighter is always welcome
  std::uint64_t main_weight;
  std::uint64_t remembered;  // by the ghost, in all
  std::uint32_t main_count;
  Tuning tuning;
};
static_assert(std::is_trivially_copyable_v<EvictionState>);

inline void set_tuning(EvictionState& state, const Tuning& tuning) {
  state.tuning = tuning;
  state.small_weight = state.capacity / 100 * tuning.small_percent +
                       state.capacity % 100 * tuning.small_percent / 100;
  state.heavy_weight = state.whole / std::max<unsigned>(tuning.heavy_part, 1);
}

inline void init_eviction(EvictionState& state, std::uint64_t capacity, const Tuning& tuning = {}) {
  state = EvictionState{};
  state.capacity = capacity;
  state.whole = capacity;
  set_tuning(state, tuning);
}

// What the policy asks of the entries, all O(1). An entry's weight, cost and hash do not change
// while it is in a queue.
template <class E>
concept EvictionEntries = requires(E entries, Ref ref, unsigned queue) {
  { entries.link(ref) } -> std::same_as<Link&>;
  { entries.queue(ref) } -> std::convertible_to<unsigned>;        // what set_queue() has set
  entries.set_queue(ref, queue);                                  // below kQueues
  { entries.weight(ref) } -> std::convertible_to<std::uint32_t>;  // at least 1
  { entries.cost(ref) } -> std::convertible_to<std::uint32_t>;    // of a miss, at least 1
  { entries.hash(ref) } -> std::convertible_to<Hash>;  // asked when an entry is evicted only
};

// A view, cheap to make. `Entries` may also have `bool dead(Ref)`: an entry that is of no use to
// anybody is evicted when it is its turn, hit or not, and not remembered.
template <EvictionEntries Entries>
class Eviction {
 public:
  Eviction(Entries entries, EvictionState& state, Ghost ghost)
      : entries_(entries), state_(state), ghost_(ghost) {}

  // Whether it is worth to evict others for this new entry. If not, it should not be stored; it is
  // remembered, and welcome when it has come often enough. Only what is 8 times heavier than the
  // mean is ever refused. Ask when something has to be evicted, before it is.
  bool welcome(Hash hash, std::uint32_t weight, std::uint32_t cost) {
    if (weight <= state_.heavy_weight) return true;
    const Queue& small = state_.queues[kSmallQueue];
    const std::uint64_t count = std::uint64_t{small.count} + state_.main_count;
    if (weight / kHeavyTimes * count <= small.weight + state_.main_weight) return true;
    unsigned steps = 0;
    const Ref victim = settled(kNoRef, steps);
    if (victim == kNoRef) return true;
    const unsigned frequency = ghost_.recall(hash) + 1;
    if (frequency > Ghost::kMaxFrequency) return true;  // more is not remembered
    if (main_queue_for(frequency, cost, weight) > main_queue_of(victim)) return true;
    remember(hash, frequency);
    return false;
  }

  // A new entry. `hash` as Entries::hash(ref).
  void admit(Ref ref, Hash hash) {
    start(ref, ghost_.take(hash) + 1);
    push(ref, kSmallQueue);
  }

  // A new entry that is never evicted.
  void pin(Ref ref) {
    start(ref, 1);
    push(ref, kPinnedQueue);
  }
  bool pinned(Ref ref) { return entries_.queue(ref) == kPinnedQueue; }

  // The same key has a new block, perhaps of another weight: it takes the old one's place, with one
  // hit more. `old` is in no queue then.
  void replace(Ref old, Ref fresh) {
    Link& link = entries_.link(fresh);
    copy_link(link, entries_.link(old));
    const unsigned queue = entries_.queue(old);
    entries_.set_queue(fresh, queue);
    add_weight(queue, std::uint64_t{entries_.weight(fresh)} - entries_.weight(old));
    moved(old, fresh);
    touch(link);
  }

  // The entry was copied to another place, its Link (copy_link) and queue
  // included; `old` is not read any more.
  void moved(Ref old, Ref fresh) {
    const Link& link = entries_.link(fresh);
    Queue& queue = state_.queues[entries_.queue(fresh)];
    LARDER_ASSERT(link.newer != kNoRef ? entries_.link(link.newer).older == old
                                       : queue.newest == old);
    (link.newer != kNoRef ? entries_.link(link.newer).older : queue.newest) = fresh;
    (link.older != kNoRef ? entries_.link(link.older).newer : queue.oldest) = fresh;
  }

  // Takes the entry out of its queue; the ghost does not hear of it.
  void remove(Ref ref) {
    const unsigned number = entries_.queue(ref);
    Queue& queue = state_.queues[number];
    const Link& link = entries_.link(ref);
    const Ref newer = link.newer;
    (newer != kNoRef ? entries_.link(newer).older : queue.newest) = link.older;
    (link.older != kNoRef ? entries_.link(link.older).newer : queue.oldest) = newer;
    add_weight(number, 0 - std::uint64_t{entries_.weight(ref)});
    --queue.count;
    if (number < kMainQueue) return;
    --state_.main_count;
    if (queue.oldest == kNoRef)
      state_.occupied &= ~(std::uint64_t{1} << (number - kMainQueue));
    else if (queue.oldest == newer)
      state_.priority[number - kMainQueue] = priority_of(newer, number - kMainQueue);
  }

  // Chooses the victim, never `keep`, and takes it out of its queue. kNoRef: all others are pinned.
  // Puts kMaxSteps entries elsewhere at most; then also one that was hit has to go.
  Ref evict(Ref keep = kNoRef) {
    for (unsigned steps = 0;; ++steps) {
      if (!small_is_next(keep)) return evict_main(keep, steps);
      const Ref ref = oldest(kSmallQueue, keep);
      Link& link = entries_.link(ref);
      const bool dead = is_dead(ref);
      add_hits(link);
      if (!dead && steps < kMaxSteps && is_proved(ref, keep, steps)) {
        remove(ref);
        push_main(ref);
        continue;
      }
      if (!dead) remember(entries_.hash(ref), link.frequency);
      remove(ref);
      return ref;
    }
  }

  // Puts an entry at the newest end of a queue, with the frequency and the hits that it has: to
  // make the queues anew, oldest first.
  void relink(Ref ref, unsigned queue) {
    LARDER_ASSERT(queue < kQueues);
    push(ref, queue);
  }

  // Calls fn(Ref) for each entry of a queue, the oldest first. fn may remove its entry.
  template <class Fn>
  void for_each(unsigned queue, Fn&& fn) {
    for (Ref ref = state_.queues[queue].oldest; ref != kNoRef;) {
      const Ref newer = entries_.link(ref).newer;
      fn(ref);
      ref = newer;
    }
  }

  void tune(const Tuning& tuning) { set_tuning(state_, tuning); }

  static constexpr unsigned kMaxSteps = 64;
  static constexpr unsigned kHeavyTimes = 8;  // the mean, or more

 private:
  using Queue = EvictionState::Queue;

  void start(Ref ref, unsigned frequency) {
    Link& link = entries_.link(ref);
    hits_of(link).store(0, std::memory_order_relaxed);
    link.frequency = static_cast<std::uint16_t>(frequency);
  }

  void remember(Hash hash, unsigned frequency) {
    ghost_.remember(hash, frequency, ++state_.remembered);
  }

  // Whether there were any.
  static bool add_hits(Link& link) {
    const unsigned hits = hits_of(link).load(std::memory_order_relaxed);
    if (hits == 0) return false;
    hits_of(link).store(0, std::memory_order_relaxed);
    link.frequency = static_cast<std::uint16_t>(std::min(link.frequency + hits, 0xffffU));
    return true;
  }

  // May an entry of the small queue go into the main part?
  bool is_proved(Ref ref, Ref keep, unsigned& steps) {
    if (state_.tuning.promote_all || entries_.link(ref).frequency > 1) return true;
    const Ref victim = settled(keep, steps);
    return victim != kNoRef && main_queue_for(ref) > main_queue_of(victim);
  }

  // The next victim of the main part: those that were hit are put into their queues again.
  Ref settled(Ref keep, unsigned& steps) {
    for (;; ++steps) {
      const Ref ref = least(keep);
      if (ref == kNoRef || steps >= kMaxSteps || is_dead(ref)) return ref;
      if (!add_hits(entries_.link(ref))) return ref;
      remove(ref);
      push_main(ref);
    }
  }

  Ref evict_main(Ref keep, unsigned steps) {
    const Ref ref = settled(keep, steps);
    if (ref == kNoRef) return kNoRef;
    if (!is_dead(ref)) {
      remember(entries_.hash(ref), entries_.link(ref).frequency);
      state_.inflation = priority_of(ref, main_queue_of(ref));
    }
    remove(ref);
    return ref;
  }

  bool is_dead(Ref ref) {
    if constexpr (requires { entries_.dead(ref); })
      return entries_.dead(ref);
    else
      return false;
  }

  // round(log2(F * cost / weight)), as the number of a main queue from 0.
  static unsigned main_queue_for(unsigned frequency, std::uint32_t cost, std::uint32_t weight) {
    constexpr double kSqrt2 = 1.4142135623730951;  // so that rounding down rounds to the nearest
    const double value = kSqrt2 * frequency * std::max(cost, 1U) / std::max(weight, 1U);
    const int exponent = static_cast<int>(std::bit_cast<std::uint64_t>(value) >> 52) - 1023;
    return static_cast<unsigned>(
        std::clamp(exponent - kLeastExponent, 0, static_cast<int>(kMainQueues) - 1));
  }
  unsigned main_queue_for(Ref ref) {
    return main_queue_for(entries_.link(ref).frequency, entries_.cost(ref), entries_.weight(ref));
  }
  // Where it is.
  unsigned main_queue_of(Ref ref) { return entries_.queue(ref) - kMainQueue; }

  void add_weight(unsigned queue, std::uint64_t weight) {  // modulo 2^64: also less
    state_.queues[queue].weight += weight;
    if (queue >= kMainQueue) state_.main_weight += weight;
  }

  // H of an entry of a main queue, from how long ago its stamp was. Never below L.
  std::uint64_t priority_of(Ref ref, unsigned main) {
    const std::uint64_t now = state_.inflation >> main;
    const auto age = static_cast<std::uint8_t>(now - entries_.link(ref).stamp);
    return age < 64 ? state_.inflation + (std::uint64_t{64U - age} << main) : state_.inflation;
  }

  void push_main(Ref ref) { push(ref, kMainQueue + main_queue_for(ref)); }

  void push(Ref ref, unsigned number) {
    Queue& queue = state_.queues[number];
    Link& link = entries_.link(ref);
    link.newer = kNoRef;
    link.older = queue.newest;
    (queue.newest != kNoRef ? entries_.link(queue.newest).newer : queue.oldest) = ref;
    queue.newest = ref;
    ++queue.count;
    add_weight(number, entries_.weight(ref));
    entries_.set_queue(ref, number);
    if (number < kMainQueue) return;
    const unsigned main = number - kMainQueue;
    ++state_.main_count;
    link.stamp = static_cast<std::uint8_t>(state_.inflation >> main);
    if (queue.oldest == ref) {
      state_.occupied |= std::uint64_t{1} << main;
      state_.priority[main] = state_.inflation + (std::uint64_t{64} << main);
    }
  }

  bool small_is_next(Ref keep) {
    const Queue& small = state_.queues[kSmallQueue];
    if (oldest(kSmallQueue, keep) == kNoRef) return false;
    return small.weight > state_.small_weight || state_.main_count == 0 ||
           (state_.main_count == 1 && keep != kNoRef && entries_.queue(keep) >= kMainQueue);
  }

  Ref oldest(unsigned queue, Ref keep) {
    const Ref ref = state_.queues[queue].oldest;
    return ref != keep || ref == kNoRef ? ref : entries_.link(ref).newer;
  }

  // The entry of least H in the main part.
  Ref least(Ref keep) {
    Ref best = kNoRef;
    std::int64_t best_distance = 0;  // H - L
    for (std::uint64_t left = state_.occupied; left != 0; left &= left - 1) {
      const auto main = static_cast<unsigned>(std::countr_zero(left));
      Ref ref = state_.queues[kMainQueue + main].oldest;
      std::uint64_t priority = state_.priority[main];
      if (ref == keep) {
        ref = entries_.link(ref).newer;
        if (ref == kNoRef) continue;
        priority = priority_of(ref, main);
      }
      // Below 0 if `keep` was passed over; it wraps, so H alone says nothing.
      const auto distance = static_cast<std::int64_t>(priority - state_.inflation);
      if (best == kNoRef || distance < best_distance) {
        best = ref;
        best_distance = distance;
      }
    }
    return best;
  }

  Entries entries_;
  EvictionState& state_;
  Ghost ghost_;
};

}  // namespace larder::near
