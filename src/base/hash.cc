#include "base/hash.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <random>

namespace larder {
namespace {
std::uint64_t process_seed() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}
const std::uint64_t kSeed = process_seed();
}  // namespace

Hash hash_bytes(std::string_view bytes) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), kSeed);
}

Hash hash_bytes(std::string_view bytes, std::uint64_t seed) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

}  // namespace larder
