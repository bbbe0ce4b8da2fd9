#include "near/controller.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <span>
#include <utility>
#include <vector>

namespace larder::near {
namespace {

constexpr double kMemory = 0.975;     // of the windows before
constexpr double kSigmas = 3;         // how much surer than by chance
constexpr double kLeastGain = 0.005;  // of the misses: less is not worth a change
constexpr std::uint16_t kNoSlot = 0;  // as kNoRef

}  // namespace

// A cache without values.
class Controller::Miniature {
 public:
  // Heavy is what is heavy for the `whole`, not in proportion: it comes as much more rarely.
  void init(const Tuning& tuning, std::uint64_t capacity, std::uint64_t whole,
            unsigned max_entries) {
    slots_.resize(max_entries + 1);
    buckets_.assign(std::bit_ceil(max_entries), kNoSlot);
    rows_.resize(Ghost::rows_for(max_entries));
    ghost_rows_ = rows_.size();
    capacity_ = capacity;
    init_eviction(state_, capacity, tuning);
    state_.whole = whole;
    set_tuning(state_, tuning);
    for (unsigned slot = max_entries; slot > 0; --slot)
      slots_[slot].chain = std::exchange(free_, static_cast<std::uint16_t>(slot));
  }

  std::size_t bytes() const {
    return sizeof(*this) + slots_.size() * sizeof(Slot) + buckets_.size() * sizeof(buckets_[0]) +
           rows_.size() * sizeof(GhostRow);
  }
  unsigned count() const { return count_; }
  bool out_of_slots() const { return free_ == kNoSlot; }
  bool has_been_full() const { return has_been_full_; }

  // Whether it was there; it is stored if not. REQUIRES: !out_of_slots().
  bool access(Hash hash, std::uint32_t weight, std::uint32_t cost) {
    for (std::uint16_t slot = bucket(hash); slot != kNoSlot; slot = slots_[slot].chain)
      if (slots_[slot].hash == hash) {
        touch(slots_[slot].link);
        return true;
      }
    if (weight > capacity_) return false;
    if (used_ + weight > capacity_) {
      has_been_full_ = true;
      if (!policy().welcome(hash, weight, cost)) return false;
      evict_down_to(capacity_ - weight);
    }
    const std::uint16_t slot = std::exchange(free_, slots_[free_].chain);
    slots_[slot] = {.hash = hash,
                    .link = {},
                    .weight = weight,
                    .cost = cost,
                    .chain = std::exchange(bucket(hash), slot),
                    .queue = 0};
    used_ += weight;
    ++count_;
    policy().admit(slot, hash);
    return false;
  }

  // Another sample and capacity: what `stays` refuses goes.
  template <class Stays>
  void resample(std::uint64_t capacity, Stays&& stays) {
    for (unsigned queue = 0; queue < kQueues; ++queue)
      policy().for_each(queue, [&](Ref ref) {
        if (stays(slots_[ref].hash)) return;
        policy().remove(ref);
        drop(static_cast<std::uint16_t>(ref));
      });
    capacity_ = capacity;
    state_.capacity = capacity;
    set_tuning(state_, Tuning(state_.tuning));
    evict_down_to(capacity);
  }

  // A ghost for as many entries as there are, as the cache has one; the old one is forgotten if it
  // is far off.
  void fit_ghost() {
    const std::size_t wanted = std::clamp(Ghost::rows_for(count_), std::size_t{1}, rows_.size());
    if (wanted * 2 > ghost_rows_ && wanted < ghost_rows_ * 2) return;
    ghost_rows_ = wanted;
    std::ranges::fill(rows_, GhostRow{});
  }

 private:
  struct Slot {
    Hash hash;
    Link link;
    std::uint32_t weight;
    std::uint32_t cost;
    std::uint16_t chain;  // of its bucket, or of the free ones
    std::uint8_t queue;
  };
  static_assert(sizeof(Slot) == 32);

  struct Entries {
    Slot* slots;

    Link& link(Ref ref) { return slots[ref].link; }
    unsigned queue(Ref ref) { return slots[ref].queue; }
    void set_queue(Ref ref, unsigned queue) { slots[ref].queue = static_cast<std::uint8_t>(queue); }
    std::uint32_t weight(Ref ref) { return slots[ref].weight; }
    std::uint32_t cost(Ref ref) { return slots[ref].cost; }
    Hash hash(Ref ref) { return slots[ref].hash; }
  };

  Eviction<Entries> policy() {
    return {Entries{slots_.data()}, state_, Ghost(std::span(rows_).first(ghost_rows_))};
  }

  std::uint16_t& bucket(Hash hash) { return buckets_[hash & (buckets_.size() - 1)]; }

  void evict_down_to(std::uint64_t weight) {
    while (used_ > weight) drop(static_cast<std::uint16_t>(policy().evict()));
  }

  // It is in no queue any more.
  void drop(std::uint16_t slot) {
    std::uint16_t* link = &bucket(slots_[slot].hash);
    while (*link != slot) link = &slots_[*link].chain;
    *link = slots_[slot].chain;
    slots_[slot].chain = std::exchange(free_, slot);
    used_ -= slots_[slot].weight;
    --count_;
  }

  std::vector<Slot> slots_;
  std::vector<std::uint16_t> buckets_;
  std::vector<GhostRow> rows_;
  std::size_t ghost_rows_ = 0;
  std::uint64_t capacity_ = 0;
  std::uint64_t used_ = 0;
  unsigned count_ = 0;
  std::uint16_t free_ = kNoSlot;
  bool has_been_full_ = false;
  EvictionState state_{};
};

Controller::Controller(const Options& options)
    : options_(options),
      shift_(std::min(options.least_shift, kMaxShift)),
      miniatures_(std::make_unique<Miniature[]>(kCandidates.size())) {
  options_.least_shift = shift_;
  options_.max_entries = std::clamp(options.max_entries, 4 * kMinEntries, 32768U);
  threshold_ = std::numeric_limits<std::uint32_t>::max() >> shift_;
  const std::uint64_t whole = options.capacity / std::max(options.shards, 1U);
  for (std::size_t i = 0; i < kCandidates.size(); ++i)
    miniatures_[i].init(kCandidates[i], capacity(), whole, options_.max_entries);
}

Controller::~Controller() = default;

std::size_t Controller::bytes() const {
  std::size_t bytes = sizeof(*this);
  for (std::size_t i = 0; i < kCandidates.size(); ++i) bytes += miniatures_[i].bytes();
  return bytes;
}

void Controller::record(Hash hash, std::uint32_t weight, std::uint32_t cost) {
  if (!sampled(hash)) return;
  unsigned hits = 0;
  bool full = true;
  for (std::size_t i = 0; i < kCandidates.size(); ++i) {
    Miniature& miniature = miniatures_[i];
    if (miniature.out_of_slots()) {
      if (shift_ < kMaxShift) resample(shift_ + 1);
      return;  // half of the keys are not sampled any more, perhaps this one, too
    }
    if (miniature.access(hash, weight, cost)) hits |= 1U << i;
    full = full && miniature.has_been_full();
  }
  if (!full) return;
  compare(hits, cost);
  if (++window_ >= std::max(miniatures_[current_].count(), kMinEntries)) end_window();
}

void Controller::compare(unsigned hits, std::uint32_t cost) {
  const double miss = std::max(cost, 1U);
  const bool ours = (hits >> current_ & 1) != 0;
  if (!ours) missed_ += miss;
  const unsigned all = (1U << kCandidates.size()) - 1;
  for (unsigned other = hits ^ (ours ? all : 0); other != 0; other &= other - 1) {
    const auto i = static_cast<unsigned>(std::countr_zero(other));
    gain_[i] += ours ? -miss : miss;
    variance_[i] += miss * miss;
  }
}

void Controller::end_window() {
  window_ = 0;
  const unsigned count = miniatures_[current_].count();
  const auto best = static_cast<unsigned>(std::ranges::max_element(gain_) - gain_.begin());
  const double gain = gain_[best];
  if (count >= kMinEntries && gain > kLeastGain * missed_ &&
      gain > kSigmas * std::sqrt(variance_[best])) {
    const double variance = variance_[best];
    for (std::size_t i = 0; i < kCandidates.size(); ++i) {
      gain_[i] -= gain;
      variance_[i] += variance;  // at most
    }
    variance_[best] = 0;
    missed_ -= gain;
    current_ = best;
    changed_ = true;
  }
  for (double& old : gain_) old *= kMemory;
  for (double& old : variance_) old *= kMemory * kMemory;
  missed_ *= kMemory;
  for (std::size_t i = 0; i < kCandidates.size(); ++i) miniatures_[i].fit_ghost();
  if (count < options_.max_entries / 4 && shift_ > options_.least_shift) resample(shift_ - 1);
}

void Controller::resample(unsigned shift) {
  shift_ = shift;
  const std::uint32_t threshold = std::numeric_limits<std::uint32_t>::max() >> shift;
  threshold_.store(threshold, std::memory_order_relaxed);
  for (std::size_t i = 0; i < kCandidates.size(); ++i)
    miniatures_[i].resample(capacity(), [=](Hash hash) { return sample_of(hash) <= threshold; });
}

std::optional<Tuning> Controller::decide() {
  if (!std::exchange(changed_, false)) return std::nullopt;
  return current();
}

}  // namespace larder::near
