// What the node and the reading processes of the stress test share: the shape of values, and a page
// of shared memory beside the near tier.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/clock.h"
#include "base/hash.h"

namespace larder::stress {

inline constexpr std::uint64_t kKeys = 4096;
inline constexpr std::uint64_t kPairs = 64;  // of plain keys that change together
inline constexpr std::size_t kMaxValue = 64 << 10;

inline std::string key_of(std::uint64_t number) { return "product:" + std::to_string(number); }
inline std::string pair_key(std::uint64_t pair, int which) {
  return (which == 0 ? "left:" : "right:") + std::to_string(pair);
}

// In front of a value; behind it follow `size` bytes that the version decides.
struct Stamp {
  std::uint64_t key;
  std::uint64_t version;
  TimeUs expiry;
  std::uint64_t size;
  std::uint64_t checksum;  // of the others and of the bytes
};

inline std::uint64_t checksum_of(Stamp stamp, std::string_view bytes) {
  stamp.checksum = 0;
  return hash_bytes({reinterpret_cast<const char*>(&stamp), sizeof stamp}, 1) ^
         hash_bytes(bytes, stamp.version);
}

inline std::string value_of(std::uint64_t key, std::uint64_t version, TimeUs expiry,
                            std::size_t size) {
  std::string value(sizeof(Stamp) + size, '\0');
  for (std::size_t i = 0; i < size; i += 8) {
    const std::uint64_t word = mix64(key ^ (version << 20) ^ i);
    std::memcpy(&value[sizeof(Stamp) + i], &word, std::min<std::size_t>(8, size - i));
  }
  Stamp stamp{.key = key, .version = version, .expiry = expiry, .size = size, .checksum = 0};
  stamp.checksum = checksum_of(stamp, std::string_view(value).substr(sizeof stamp));
  std::memcpy(value.data(), &stamp, sizeof stamp);
  return value;
}

// False: the value is torn, or not this key's.
inline bool parse(std::string_view value, std::uint64_t key, Stamp& stamp) {
  if (value.size() < sizeof stamp) return false;
  std::memcpy(&stamp, value.data(), sizeof stamp);
  const std::string_view bytes = value.substr(sizeof stamp);
  return stamp.key == key && stamp.size == bytes.size() &&
         stamp.checksum == checksum_of(stamp, bytes);
}

struct Page {
  std::atomic<std::uint32_t> stop;
  // Nothing older than this may be read by whoever begins to read after it was written here.
  std::array<std::atomic<std::uint64_t>, kKeys> confirmed;

  std::atomic<std::uint64_t> reads;
  std::atomic<std::uint64_t> found;
  std::atomic<std::uint64_t> pairs;
  std::atomic<std::uint64_t> torn;     // checksum, or another key's
  std::atomic<std::uint64_t> stale;    // older than confirmed
  std::atomic<std::uint64_t> late;     // past the end of its life
  std::atomic<std::uint64_t> halves;   // one of a pair changed, the other not
  std::atomic<std::uint64_t> strange;  // results that cannot be here
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
};

inline Page* map_page(const std::string& object, bool make) {
  const int fd = shm_open(object.c_str(), make ? O_RDWR | O_CREAT | O_TRUNC : O_RDWR, 0600);
  if (fd < 0 || (make && ftruncate(fd, sizeof(Page)) != 0)) std::abort();
  void* page = mmap(nullptr, sizeof(Page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (page == MAP_FAILED) std::abort();
  close(fd);
  return static_cast<Page*>(page);
}

}  // namespace larder::stress
