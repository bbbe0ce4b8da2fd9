// Epoch-based reclamation for readers that take no lock: a block that a pinned reader may still
// look at is not used again before that reader has let go (Fraser, Practical Lock-Freedom, 2004).
//
// A pin costs one store to a line of the thread's own and no fence: whoever reclaims pays for the
// ordering with membarrier(2), once for many blocks. Where the kernel has no membarrier, and under
// ThreadSanitizer, which does not know it, the reader's store is sequentially consistent instead.
//
// One for the whole process, shared by all stores. Thread-safe. A pin lasts for a few instructions:
// no suspension, no lock and no system call under it.
#pragma once

#include <atomic>
#include <cstdint>

namespace larder::near {

namespace pins {

struct alignas(64) Slot {
  std::atomic<std::uint64_t> epoch{0};  // 0: not reading
  std::atomic<bool> taken{false};
};

// This thread's slot; null until its first pin, and if there are none left.
struct Here {
  Slot* slot = nullptr;
  unsigned depth = 0;
  bool asked = false;
};
// Without a destructor, so that reading it costs nothing.
extern constinit thread_local Here here;
extern constinit std::atomic<std::uint64_t> epoch;
extern bool has_membarrier;

Slot* take_slot();

}  // namespace pins

class Pin {
 public:
  Pin() : slot_(pins::here.slot) {
    if (slot_ == nullptr) {
      slot_ = pins::take_slot();
      if (slot_ == nullptr) return;
    }
    if (pins::here.depth++ > 0) return;
    const std::uint64_t now = pins::epoch.load(std::memory_order_acquire);
    if (pins::has_membarrier) {
      slot_->epoch.store(now, std::memory_order_release);
      std::atomic_signal_fence(std::memory_order_seq_cst);
    } else {
      slot_->epoch.exchange(now, std::memory_order_seq_cst);
    }
  }
  ~Pin() {
    if (slot_ == nullptr || --pins::here.depth > 0) return;
    slot_->epoch.store(0, std::memory_order_release);
  }
  Pin(const Pin&) = delete;
  Pin& operator=(const Pin&) = delete;

  // False if more threads read at once than there are slots: the caller takes the lock instead.
  bool held() const { return slot_ != nullptr; }

  // Does this thread hold a pin at this moment? Then it must not wait for reclaimable().
  static bool held_here() { return pins::here.depth > 0; }

 private:
  pins::Slot* slot_;
};

// What is taken out of the index from now on has at least this epoch.
// The fence: what the caller took out has left before the epoch is read, not only before it is
// stored.
inline std::uint64_t epoch_now() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return pins::epoch.load(std::memory_order_seq_cst);
}

// Begins a new epoch and returns the earliest that a pinned reader may be in: what was taken out in
// an epoch before it is seen by nobody. Cost: a system call and one line a reading thread.
std::uint64_t reclaimable();

// The earliest epoch that a reader is pinned in, UINT64_MAX if none is. After reclaimable(), which
// orders it: for waiting, without a new epoch each time.
std::uint64_t earliest_pinned();

}  // namespace larder::near
