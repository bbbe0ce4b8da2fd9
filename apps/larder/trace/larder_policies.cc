// The policy that the near tier ships, over entries that are nothing else.
#include <algorithm>
#include <optional>
#include <vector>

#include "near/controller.h"
#include "near/eviction.h"
#include "trace/simulator.h"

namespace larder::trace {
namespace {

constexpr double kGhostShare = 0.012;  // of the bytes; what the store gives to its ghosts

std::size_t ghost_rows(std::uint64_t capacity, Unit unit) {
  if (unit == Unit::entries) return near::Ghost::rows_for(capacity);
  const auto bytes = static_cast<std::size_t>(static_cast<double>(capacity) * kGhostShare);
  return std::max(bytes / sizeof(near::GhostRow), std::size_t{1});
}

class Larder final : public Online {
 public:
  Larder(std::uint64_t capacity, Unit unit, bool controlled)
      : Online(capacity),
        ghost_(ghost_rows(capacity, unit)),
        eviction_(Entries{*this}, state_, near::Ghost(ghost_)) {
    near::init_eviction(state_, capacity);
    // Traces are short beside what a node sees in a day: sample as much as a miniature can take.
    if (controlled)
      controller_.emplace(near::Controller::Options{.capacity = capacity, .least_shift = 0});
  }

 private:
  struct Slot {
    near::Link link{};
    std::uint8_t queue = 0;
    bool stored = false;
  };

  // Ref is the key plus 1.
  struct Entries {
    Larder& larder;

    near::Link& link(near::Ref ref) { return larder.slots_[ref - 1].link; }
    unsigned queue(near::Ref ref) { return larder.slots_[ref - 1].queue; }
    void set_queue(near::Ref ref, unsigned queue) {
      larder.slots_[ref - 1].queue = static_cast<std::uint8_t>(queue);
    }
    std::uint32_t weight(near::Ref ref) { return larder.weights_[ref - 1]; }
    std::uint32_t cost(near::Ref) { return 1; }
    Hash hash(near::Ref ref) { return hash_of(ref - 1); }
  };

  static Hash hash_of(std::uint32_t key) { return mix64(key + 0x9e3779b97f4a7c15ULL); }

  void grow(std::size_t keys) override { slots_.resize(keys); }

  bool hit(std::uint32_t key) override {
    if (!slots_[key].stored) return false;
    near::touch(slots_[key].link);
    record(hash_of(key), weights_[key]);
    return true;
  }

  void record(Hash hash, std::uint32_t weight) {
    if (!controller_ || !controller_->sampled(hash)) return;
    controller_->record(hash, weight, 1);
    if (const auto tuning = controller_->decide()) eviction_.tune(*tuning);
  }

  void store(std::uint32_t key, std::uint32_t weight) override {
    const Hash hash = hash_of(key);
    record(hash, weight);
    if (used_ + weight > capacity_ && !eviction_.welcome(hash, weight, 1)) return;
    while (used_ + weight > capacity_) {
      const near::Ref victim = eviction_.evict();
      slots_[victim - 1].stored = false;
      used_ -= weights_[victim - 1];
    }
    weights_[key] = weight;
    used_ += weight;
    slots_[key].stored = true;
    eviction_.admit(key + 1, hash);
  }

  std::vector<Slot> slots_;
  std::vector<near::GhostRow> ghost_;
  near::EvictionState state_{};
  near::Eviction<Entries> eviction_;
  std::optional<near::Controller> controller_;
  std::uint64_t used_ = 0;
};

}  // namespace

std::unique_ptr<Simulator> make_larder(std::uint64_t capacity, Unit unit) {
  return std::make_unique<Larder>(capacity, unit, true);
}
std::unique_ptr<Simulator> make_larder_fixed(std::uint64_t capacity, Unit unit) {
  return std::make_unique<Larder>(capacity, unit, false);
}

}  // namespace larder::trace
