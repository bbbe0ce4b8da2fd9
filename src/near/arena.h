// The near tier's one block of memory, and how it is laid out: everything that the near tier knows
// is in here, under names (Ref, numbers) that mean the same in every process that maps it.
//
//     ArenaHeader | CacheSlot... | Partition... | tag stamps... | shard 0 | shard 1 | ...
//     a shard:  ShardState | directory of the index | ghost | heap
//
// It is private memory, or a shared memory object that a node owns alone and writes, and that other
// processes map read-only (reader.h). A node that starts again with the same version and
// configuration finds the object as the last one left it, and takes over what is in it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/error.h"
#include "near/eviction.h"
#include "near/expiry.h"
#include "near/heap.h"
#include "near/index.h"

namespace larder::near {

// What a reader in another process must know to answer as the node would: one a declared cache.
struct CacheSlot {
  std::atomic<TimeUs> heartbeat;        // all changes up to here have been applied; 0: no feed
  std::atomic<DurationUs> bound;        // staleness bound; 0: none
  std::atomic<std::uint32_t> readable;  // 0: never (strong caches, near = false)
  std::uint32_t unused;
};

struct Partition {
  std::atomic<std::uint64_t> generation;
  std::atomic<TimeUs> valid_until;  // the node is alive and has its position; for other processes
};

// Fixed by whoever made the arena, and covered by the checksum; then what the node keeps current.
struct ArenaHeader {
  static constexpr std::uint64_t kMagic = 0x3130'5241'454e'444cULL;  // "LDNEAR01" backwards
  static constexpr std::uint32_t kLayout = 1;  // raise it whenever anything in here moves

  struct Fixed {
    std::uint64_t magic;
    std::uint32_t layout;
    std::uint32_t shards;
    std::uint32_t partitions;
    std::uint32_t tag_slots;
    std::uint32_t caches;
    std::uint32_t unused;
    std::uint64_t bytes;        // of the whole arena
    std::uint64_t shard_bytes;  // of a shard's region
    std::uint64_t fingerprint;  // of version and configuration
    std::uint64_t hash_seed;
  };
  Fixed fixed;
  std::uint64_t checksum;  // of `fixed`

  // `building`: not to be read now. `closed`: the node has ended in order. `gone`: there is another
  // object of this name; open it.
  enum class State : std::uint32_t { building, serving, closed, gone };
  std::atomic<State> state;
  std::atomic<std::uint32_t> unused;
  std::atomic<std::uint64_t> instance;        // of the node; another number: another life
  std::atomic<std::int64_t> clock_anchor_us;  // monotonic_now_us() minus the steady clock
  std::atomic<std::uint64_t> tag_clock;
  std::atomic<TimeUs> saved_at;  // when the node last said that it is alive
};

struct ShardState {
  alignas(64) IndexState index;          // with `exclusive`: read by every lookup
  std::atomic<std::uint32_t> exclusive;  // several keys are being changed as one step
  alignas(64) HeapState heap;
  EvictionState eviction;
  WheelState wheel;
};

// Sizes and places, from the numbers in the header alone: checked once, then trusted.
struct ArenaLayout {
  std::uint64_t caches_at = 0;
  std::uint64_t partitions_at = 0;
  std::uint64_t tags_at = 0;
  std::uint64_t shards_at = 0;
  // within a shard
  std::uint64_t directory_at = 0;
  std::uint64_t ghost_at = 0;
  std::uint64_t ghost_rows = 0;
  std::uint64_t heap_at = 0;
  std::uint32_t max_segments = 0;

  // An error if the numbers do not fit together.
  static Result<ArenaLayout> of(const ArenaHeader::Fixed& fixed);
};

struct ArenaShape {
  std::uint64_t bytes = 0;
  unsigned shards = 16;
  unsigned partitions = 64;
  unsigned tag_slots = 1 << 16;
  unsigned caches = 64;
  std::uint64_t fingerprint = 0;
};

// Owns the mapping (and, if shared, the object's name). Immovable parts of it are used by readers
// and writers as the owners of those parts say; open() and the destructor are not thread-safe.
class Arena {
 public:
  // Zeroed private memory, of huge pages where allowed. Its pages become resident when first used.
  static Result<Arena> make_private(const ArenaShape& shape);

  // The shared memory object `name` ([A-Za-z0-9._-]+), made or found. All its pages are allocated
  // here, so that a full /dev/shm is an error now and no crash later. Errors: another node owns it.
  // found(): it has the contents of an earlier life, of the same shape and fingerprint.
  static Result<Arena> open_shared(std::string_view name, const ArenaShape& shape);

  Arena(Arena&& other) noexcept;
  Arena& operator=(Arena&& other) noexcept = delete;
  ~Arena();

  bool found() const { return found_; }
  bool shared() const { return fd_ >= 0; }
  char* base() const { return base_; }
  std::uint64_t bytes() const { return header().fixed.bytes; }
  ArenaHeader& header() const { return *reinterpret_cast<ArenaHeader*>(base_); }
  const ArenaLayout& layout() const { return layout_; }
  std::span<CacheSlot> caches() const {
    return {reinterpret_cast<CacheSlot*>(base_ + layout_.caches_at), header().fixed.caches};
  }
  std::span<Partition> partitions() const {
    return {reinterpret_cast<Partition*>(base_ + layout_.partitions_at), header().fixed.partitions};
  }
  std::span<std::atomic<std::uint64_t>> tag_stamps() const {
    return {reinterpret_cast<std::atomic<std::uint64_t>*>(base_ + layout_.tags_at),
            header().fixed.tag_slots};
  }
  char* shard(unsigned number) const {
    return base_ + layout_.shards_at + number * header().fixed.shard_bytes;
  }

 private:
  Arena(char* base, int fd, const ArenaLayout& layout, bool found)
      : base_(base), fd_(fd), layout_(layout), found_(found) {}

  char* base_;
  int fd_;
  ArenaLayout layout_;
  bool found_;
};

std::uint64_t checksum_of(const ArenaHeader::Fixed& fixed);
// "/larder-<name>", as shm_open wants it.
std::string shared_object(std::string_view name);
bool is_shared_name(std::string_view name);

}  // namespace larder::near
