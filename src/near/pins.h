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

class Pin {
 public:
  Pin();
  ~Pin();
  Pin(const Pin&) = delete;
  Pin& operator=(const Pin&) = delete;

  // False if more threads read at once than there are slots: the caller takes the lock instead.
  bool held() const { return slot_ != nullptr; }

  // Does this thread hold a pin at this moment? Then it must not wait for reclaimable().
  static bool held_here();

 private:
  std::atomic<std::uint64_t>* slot_;
};

// What is taken out of the index from now on has at least this epoch.
std::uint64_t epoch_now();

// Begins a new epoch and returns the earliest that a pinned reader may be in: what was taken out in
// an epoch before it is seen by nobody. Cost: a system call and one line a reading thread.
std::uint64_t reclaimable();

}  // namespace larder::near
