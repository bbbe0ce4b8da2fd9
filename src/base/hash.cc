#include "base/hash.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <random>

namespace larder {
namespace {
std::uint64_t random_seed() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}
std::uint64_t process_seed = random_seed();
}  // namespace

Hash hash_bytes(std::string_view bytes) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), process_seed);
}

Hash hash_bytes(std::string_view bytes, std::uint64_t seed) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

std::uint64_t hash_seed() { return process_seed; }

void set_hash_seed(std::uint64_t seed) { process_seed = seed; }

}  // namespace larder
