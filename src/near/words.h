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

// Are the bytes equal? For short keys in memory that does not change: no call, no branch a byte.
inline bool same_bytes(const char* a, const char* b, std::size_t size) {
  const auto word = [](const char* at) {
    std::uint64_t bytes;  // NOLINT(cppcoreguidelines-init-variables)
    std::memcpy(&bytes, at, sizeof bytes);
    return bytes;
  };
  if (size >= sizeof(std::uint64_t)) {
    const std::size_t last = size - sizeof(std::uint64_t);
    for (std::size_t i = 0; i < last; i += sizeof(std::uint64_t))
      if (word(a + i) != word(b + i)) return false;
    return word(a + last) == word(b + last);
  }
  return std::memcmp(a, b, size) == 0;
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

// ---- of memory that another process changes: a copy that is then proven or thrown away ----

// Atomically under ThreadSanitizer, so that it can follow. Else as fast as memory is, which is more
// than the language promises: what comes may be torn, and the proof is there for that; and the
// compiler moves no access across the fence that the proof begins with.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define LARDER_NEAR_BY_WORDS 1
#endif
#endif

// From shared memory into private memory.
inline void load_bytes(char* to, const char* from, std::size_t size) {
#ifdef LARDER_NEAR_BY_WORDS
  for (; size > 0; --size) *to++ = load_word<char>(from++);
#else
  if (size > 0) std::memcpy(to, from, size);
  asm volatile("" ::: "memory");
#endif
}

// Are the bytes at `shared` those at `bytes`, in private memory?
inline bool equal_bytes(const char* shared, const char* bytes, std::size_t size) {
#ifdef LARDER_NEAR_BY_WORDS
  for (std::size_t i = 0; i < size; ++i)
    if (load_word<char>(shared + i) != bytes[i]) return false;
  return true;
#else
  return same_bytes(shared, bytes, size);
#endif
}

}  // namespace larder::near
