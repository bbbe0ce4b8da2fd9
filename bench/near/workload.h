// What every system of the near bench is asked, in every language: the same keys in the same order.
//
// A key is the text "key:" and ten digits, 14 bytes. What is drawn (uniform, Zipf) is drawn once,
// by write_sequences(), into files of 32-bit numbers that the drivers of all languages read:
//
//   get     uniform over the N keys that are held; every one is a hit
//   zipf    Zipf(0.99) over the same N keys
//   load    chunks of Zipf(0.99) over 2N keys, rank to key by a random permutation; the first chunk
//           warms up, each repetition takes the next one, so that no stretch is seen twice
//   order   the 2N keys from the least to the most popular: a cache is filled in this order first
//
// Inserts need no file: they take key numbers from 2N upward. The first 8 bytes of a value are the
// number of its key, which every driver adds up and compares: a hit on a wrong key is an error.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace larder::bench {

inline constexpr std::size_t kKeyBytes = 14;
inline constexpr double kZipf = 0.99;
inline constexpr unsigned kSampleEvery =
    7;  // operations, of which one is timed; no divisor of a length

// Writes the text of a key: kKeyBytes bytes.
void write_key(std::uint32_t number, char* out);

inline std::uint64_t first_word(std::string_view value) {
  std::uint64_t word = 0;
  std::copy_n(value.begin(), sizeof word, reinterpret_cast<char*>(&word));
  return word;
}

inline void copy_value(std::string_view value, char* out) {
  std::copy_n(value.begin(), value.size(), out);
}

// Keys side by side in the order of their use, as requests arrive: reading the next one is cheap
// for everybody, finding it in the cache is what is measured.
class Sequence {
 public:
  Sequence() = default;
  explicit Sequence(std::vector<std::uint32_t> numbers);
  static Sequence read(const std::string& file);
  static Sequence range(std::uint32_t first, std::size_t count);

  std::size_t size() const { return numbers_.size(); }
  std::uint32_t number(std::size_t i) const { return numbers_[i]; }
  std::string_view key(std::size_t i) const { return {&text_[i * kKeyBytes], kKeyBytes}; }
  // Of the numbers of `count` keys from `begin` on, going round.
  std::uint64_t sum(std::size_t begin, std::uint64_t count) const;

 private:
  std::vector<std::uint32_t> numbers_;
  std::string text_;
};

// Writes get-N, zipf-N, load-N-0 to load-N-(chunks - 1) and order-N into the folder. A second or
// two.
void write_sequences(const std::string& folder, std::size_t entries, std::size_t chunks,
                     std::size_t chunk_keys);

}  // namespace larder::bench
