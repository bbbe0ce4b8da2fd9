// The policy that the near tier ships, over entries that are nothing else.
#include <algorithm>
#include <vector>

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

class Larder : public Online {
 public:
  Larder(std::uint64_t capacity, Unit unit)
      : Online(capacity),
        ghost_(ghost_rows(capacity, unit)),
        eviction_(Entries{*this}, state_, near::Ghost(ghost_)) {
    near::init_eviction(state_, capacity);
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
    return true;
  }

  void store(std::uint32_t key, std::uint32_t weight) override {
    const Hash hash = hash_of(key);
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
  std::uint64_t used_ = 0;
};

}  // namespace

std::unique_ptr<Simulator> make_larder(std::uint64_t capacity, Unit unit) {
  return std::make_unique<Larder>(capacity, unit);
}
std::unique_ptr<Simulator> make_larder_fixed(std::uint64_t capacity, Unit unit) {
  return std::make_unique<Larder>(capacity, unit);
}

}  // namespace larder::trace
