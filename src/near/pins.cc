#include "near/pins.h"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "base/error.h"

namespace larder::near {
namespace {

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define LARDER_NEAR_TSAN 1
#endif
#endif

constexpr std::size_t kSlots = 256;  // threads that may read at once without a lock

// constinit, and trivially destructible: threads may end after the statics are gone.
constinit std::array<pins::Slot, kSlots> slots;
constinit std::atomic<std::size_t> slots_used{0};  // those from here on were never taken

bool register_membarrier() {
#ifdef LARDER_NEAR_TSAN
  return false;
#else
  return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
#endif
}
// Gives the slot back when the thread ends.
struct Return {
  pins::Slot* slot = nullptr;
  Return() = default;
  Return(const Return&) = delete;
  Return& operator=(const Return&) = delete;
  ~Return() {
    pins::here = {.slot = nullptr, .depth = 0, .asked = true};
    if (slot != nullptr) slot->taken.store(false, std::memory_order_release);
  }
};
thread_local Return at_end;

}  // namespace

namespace pins {

constinit thread_local Here here;
constinit std::atomic<std::uint64_t> epoch{1};
bool has_membarrier = register_membarrier();

Slot* take_slot() {
  if (here.asked) return nullptr;
  here.asked = true;
  for (std::size_t i = 0; i < kSlots; ++i) {
    if (slots[i].taken.load(std::memory_order_relaxed) || slots[i].taken.exchange(true)) continue;
    at_end.slot = here.slot = &slots[i];
    std::size_t used = slots_used.load();
    while (used <= i && !slots_used.compare_exchange_weak(used, i + 1)) {
    }
    break;
  }
  return here.slot;
}

}  // namespace pins

// A reader either has written its slot before the barrier, and is seen here; or its reads of the
// index come after the barrier, when what is to be reclaimed has left the index already.
std::uint64_t reclaimable() {
  const std::uint64_t now = pins::epoch.fetch_add(1, std::memory_order_seq_cst) + 1;
  if (pins::has_membarrier)  // registered at start: it cannot fail, or nothing here is ordered
    LARDER_ASSERT(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0);
  return std::min(now, earliest_pinned());
}

std::uint64_t earliest_pinned() {
  std::uint64_t earliest = UINT64_MAX;
  const std::size_t used = slots_used.load(std::memory_order_seq_cst);
  for (std::size_t i = 0; i < used; ++i) {
    // A read-modify-write where there is no barrier: it orders this after the slot's last write.
    const std::uint64_t pinned = pins::has_membarrier
                                     ? slots[i].epoch.load(std::memory_order_acquire)
                                     : slots[i].epoch.fetch_add(0, std::memory_order_seq_cst);
    if (pinned != 0) earliest = std::min(earliest, pinned);
  }
  return earliest;
}

}  // namespace larder::near
