// Hints from readers in other processes: hashes of the keys that they had hits on, so that the node
// does not evict what only others read.
//
// They go through a small file, /dev/shm/larder-NAME.hits, which whoever may read the arena may
// write: kSlots batches of 63 hashes. A reader collects a batch in memory of its own, and writes it
// with one pwrite() into a slot chosen at random; the node reads them all with one pread() now and
// then, and knows a new batch by its stamp. Batches that meet in a slot are lost: they are hints.
//
// Why a file and not shared memory: what readers may write they may also truncate, and whoever has
// it mapped then dies of SIGBUS, the node and all other readers. A write costs half a microsecond,
// but only one hit in 63, and only hits on entries whose 2-bit counter is not saturated yet; so no
// reader shares a cache line with another, nor with the node.
//
// The content is untrusted. Whatever stands there, the node calls back with at most so many hashes,
// and what a wrong one can do is to raise the counter of an entry that nobody read.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/error.h"
#include "base/hash.h"

namespace larder::near {

struct HitBatch {
  static constexpr std::size_t kHashes = 63;

  std::uint64_t stamp;               // random; 0: never written
  std::array<Hash, kHashes> hashes;  // 0: none
};
static_assert(sizeof(HitBatch) == 512);

inline constexpr std::size_t kHitSlots = 256;
inline constexpr std::size_t kHitBytes = kHitSlots * sizeof(HitBatch);  // 128 KiB

// "/larder-<name>.hits", as shm_open wants it.
std::string shared_hits(std::string_view name);

// The node's side. Not thread-safe.
class HitRing {
 public:
  // Makes the file, or empties the one that is there: readers who have it open go on with it.
  static Result<HitRing> create(std::string_view name);
  HitRing(HitRing&& other) noexcept;
  HitRing& operator=(HitRing&&) = delete;
  ~HitRing();

  // Calls hit(Hash) for each hash that came since the last call, at most kHitSlots * 63 times, and
  // returns how often. Cost: one system call that copies 128 KiB (15 us), and the calls. Ten times
  // a second is often enough.
  template <class Hit>
  std::size_t drain(Hit&& hit) {
    std::size_t count = 0;
    const std::size_t batches = fetch();
    for (std::size_t slot = 0; slot < batches; ++slot) {
      const HitBatch& batch = (*batches_)[slot];
      if (batch.stamp == seen_[slot]) continue;
      seen_[slot] = batch.stamp;
      for (const Hash hash : batch.hashes) {
        if (hash == 0) continue;
        hit(hash);
        ++count;
      }
    }
    return count;
  }

 private:
  explicit HitRing(int fd)
      : fd_(fd), batches_(std::make_unique<std::array<HitBatch, kHitSlots>>()) {}
  std::size_t fetch();  // whole batches that were read

  int fd_;
  std::unique_ptr<std::array<HitBatch, kHitSlots>> batches_;
  std::array<std::uint64_t, kHitSlots> seen_{};
};

// A reader's side. Thread-safe, and nobody waits: a hit is dropped if another thread is in its lane
// or if there is no file that may be written.
class HitWriter {
 public:
  explicit HitWriter(std::string_view name);
  HitWriter(const HitWriter&) = delete;
  HitWriter& operator=(const HitWriter&) = delete;
  ~HitWriter();

  // `lane` is a number of the calling thread. `now` is any steady time. A batch is written when it
  // is full, or the lane has written none for 50 ms: so a rare hit is told at once.
  void record(unsigned lane, Hash hash, TimeUs now);
  std::uint64_t dropped() const { return dropped_.load(std::memory_order_relaxed); }

  static constexpr DurationUs kWait = 50 * kMillisecond;

 private:
  static constexpr std::size_t kLanes = 64;
  struct alignas(64) Lane {
    std::atomic<bool> busy{false};
    std::uint32_t count = 0;
    TimeUs written_at = 0;
    std::uint64_t serial = 0;
    HitBatch batch{};
  };
  void write(Lane& lane);
  void drop(std::uint64_t hits) { dropped_.fetch_add(hits, std::memory_order_relaxed); }

  int fd_ = -1;
  std::uint64_t salt_;
  std::array<Lane, kLanes> lanes_;
  std::atomic<std::uint64_t> dropped_{0};
};

}  // namespace larder::near
