// Keyed 64-bit hash (XXH3). The seed is random per process, so a client cannot aim for collisions.
#pragma once

#include <cstdint>
#include <string_view>

namespace larder {

using Hash = std::uint64_t;

// Thread-safe; about 5 ns for a short key.
Hash hash_bytes(std::string_view bytes);

// The same with a given seed: for tests, and for hashes that must agree between processes.
Hash hash_bytes(std::string_view bytes, std::uint64_t seed);

// The process's seed. It is set, if at all, once: before there is a second thread and before any
// hash is kept; a process that takes over another one's hashes takes over its seed.
std::uint64_t hash_seed();
void set_hash_seed(std::uint64_t seed);

// Spreads all bits of x over the result (Stafford's mix 13).
constexpr std::uint64_t mix64(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

}  // namespace larder
