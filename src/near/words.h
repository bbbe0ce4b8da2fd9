// Copying bytes that another thread or process may read or write at the same moment, as the memory
// model allows it: word by word, each word atomically. The order among words is anybody's; whoever
// reads proves afterwards, by a version, that nothing was written meanwhile.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace larder::near {

template <class Word>
void store_word(char* to, Word word) {
  std::atomic_ref<Word>(*reinterpret_cast<Word*>(to)).store(word, std::memory_order_relaxed);
}

template <class Word>
Word load_word(const char* from) {
  return std::atomic_ref<Word>(*reinterpret_cast<Word*>(const_cast<char*>(from)))
      .load(std::memory_order_relaxed);
}

inline std::size_t bytes_to_word(const char* at) {
  return -reinterpret_cast<std::uintptr_t>(at) % sizeof(std::uint64_t);
}

// REQUIRES: both are multiples of eight, or the rest belongs to whoever calls.
inline void zero_words(char* at, std::size_t size) {
  for (std::size_t i = 0; i < size; i += sizeof(std::uint64_t))
    store_word<std::uint64_t>(at + i, 0);
}

// From private memory into shared memory.
inline void store_bytes(char* to, const char* from, std::size_t size) {
  for (std::size_t head = std::min(bytes_to_word(to), size); head > 0; --head, --size)
    store_word<char>(to++, *from++);
  for (; size >= sizeof(std::uint64_t); size -= sizeof(std::uint64_t)) {
    std::uint64_t word;  // NOLINT(cppcoreguidelines-init-variables)
    std::memcpy(&word, from, sizeof word);
    store_word(to, word);
    to += sizeof word;
    from += sizeof word;
  }
  for (; size > 0; --size) store_word<char>(to++, *from++);
}

// From shared memory into private memory.
inline void load_bytes(char* to, const char* from, std::size_t size) {
  for (std::size_t head = std::min(bytes_to_word(from), size); head > 0; --head, --size)
    *to++ = load_word<char>(from++);
  for (; size >= sizeof(std::uint64_t); size -= sizeof(std::uint64_t)) {
    const auto word = load_word<std::uint64_t>(from);
    std::memcpy(to, &word, sizeof word);
    to += sizeof word;
    from += sizeof word;
  }
  for (; size > 0; --size) *to++ = load_word<char>(from++);
}

}  // namespace larder::near
