// Copying bytes that another thread or process may read or write at the same moment, as the memory
// model allows it: word by word, each word atomically. The order among words is anybody's; whoever
// reads proves afterwards, by a version, that nothing was written meanwhile.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
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

// Calls each(word, count) for the bytes at `from`, eight at once and then the rest, in the low
// bytes of `word`, until it returns false. Reads whole aligned words, none without one of the
// bytes.
template <class Each>
bool each_word(const char* from, std::size_t size, Each&& each) {
  static_assert(std::endian::native == std::endian::little);
  constexpr std::size_t kWord = sizeof(std::uint64_t);
  if (size == 0) return true;
  const std::size_t skew = reinterpret_cast<std::uintptr_t>(from) % kWord;
  const char* at = from - skew;
  if (skew == 0) {
    for (; size >= kWord; size -= kWord, at += kWord)
      if (!each(load_word<std::uint64_t>(at), kWord)) return false;
    return size == 0 || each(load_word<std::uint64_t>(at), size);
  }
  const auto shift = static_cast<unsigned>(skew * 8);
  auto low = load_word<std::uint64_t>(at);
  for (; size >= kWord; size -= kWord) {
    at += kWord;
    const auto high = load_word<std::uint64_t>(at);
    if (!each(low >> shift | high << (64 - shift), kWord)) return false;
    low = high;
  }
  if (size == 0) return true;
  low >>= shift;
  if (skew + size > kWord) low |= load_word<std::uint64_t>(at + kWord) << (64 - shift);
  return each(low, size);
}

// From shared memory into private memory.
inline void load_bytes(char* to, const char* from, std::size_t size) {
  each_word(from, size, [&to](std::uint64_t word, std::size_t count) {
    if (count == sizeof word) {
      std::memcpy(to, &word, sizeof word);
      to += sizeof word;
      return true;
    }
    for (std::size_t half = sizeof word / 2; half > 0; half /= 2) {
      if ((count & half) == 0) continue;
      std::memcpy(to, &word, half);
      to += half;
      word >>= half * 8;
    }
    return true;
  });
}

// Are the bytes at `shared` those at `key`, in private memory?
inline bool equal_bytes(const char* shared, const char* key, std::size_t size) {
  return each_word(shared, size, [&key](std::uint64_t word, std::size_t count) {
    std::uint64_t wanted = 0;
    if (count == sizeof word) {
      std::memcpy(&wanted, key, sizeof wanted);
      key += sizeof wanted;
      return word == wanted;
    }
    for (std::size_t i = 0; i < count; ++i)
      wanted |= std::uint64_t{static_cast<unsigned char>(key[i])} << (8 * i);
    return (word & ((std::uint64_t{1} << (8 * count)) - 1)) == wanted;
  });
}

}  // namespace larder::near
