#include "near/pins.h"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>

namespace larder::near {
namespace {

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define LARDER_NEAR_TSAN 1
#endif
#endif

constexpr std::size_t kSlots = 256;  // threads that may read at once without a lock

struct alignas(64) Slot {
  std::atomic<std::uint64_t> epoch{0};  // 0: not reading
  std::atomic<bool> taken{false};
};

// constinit, and trivially destructible: threads may end after the statics are gone.
constinit std::array<Slot, kSlots> slots;
constinit std::atomic<std::size_t> slots_used{0};  // those from here on were never taken
constinit std::atomic<std::uint64_t> epoch{1};

bool register_membarrier() {
#ifdef LARDER_NEAR_TSAN
  return false;
#else
  return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
#endif
}
const bool has_membarrier = register_membarrier();

// This thread's place, given back when the thread ends.
struct Place {
  Slot* slot = nullptr;
  unsigned depth = 0;
  bool asked = false;

  Place() = default;
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;
  ~Place() {
    if (slot != nullptr) slot->taken.store(false, std::memory_order_release);
  }

  void take() {
    asked = true;
    for (std::size_t i = 0; i < kSlots; ++i) {
      if (slots[i].taken.load(std::memory_order_relaxed) || slots[i].taken.exchange(true)) continue;
      slot = &slots[i];
      std::size_t used = slots_used.load();
      while (used <= i && !slots_used.compare_exchange_weak(used, i + 1)) {
      }
      return;
    }
  }
};
thread_local Place place;

}  // namespace

Pin::Pin() : slot_(nullptr) {
  if (place.slot == nullptr) {
    if (!place.asked) place.take();
    if (place.slot == nullptr) return;
  }
  slot_ = &place.slot->epoch;
  if (place.depth++ > 0) return;
  const std::uint64_t now = epoch.load(std::memory_order_acquire);
  if (has_membarrier) {
    slot_->store(now, std::memory_order_release);
    std::atomic_signal_fence(std::memory_order_seq_cst);
  } else {
    slot_->exchange(now, std::memory_order_seq_cst);
  }
}

Pin::~Pin() {
  if (slot_ == nullptr || --place.depth > 0) return;
  slot_->store(0, std::memory_order_release);
}

bool Pin::held_here() { return place.depth > 0; }

std::uint64_t epoch_now() { return epoch.load(std::memory_order_seq_cst); }

// A reader either has written its slot before the barrier, and is seen here; or its reads of the
// index come after the barrier, when what is to be reclaimed has left the index already.
std::uint64_t reclaimable() {
  std::uint64_t earliest = epoch.fetch_add(1, std::memory_order_seq_cst) + 1;
  if (has_membarrier) syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
  const std::size_t used = slots_used.load(std::memory_order_seq_cst);
  for (std::size_t i = 0; i < used; ++i) {
    // A read-modify-write where there is no barrier: it orders this after the slot's last write.
    const std::uint64_t pinned = has_membarrier
                                     ? slots[i].epoch.load(std::memory_order_acquire)
                                     : slots[i].epoch.fetch_add(0, std::memory_order_seq_cst);
    if (pinned != 0) earliest = std::min(earliest, pinned);
  }
  return earliest;
}

}  // namespace larder::near
