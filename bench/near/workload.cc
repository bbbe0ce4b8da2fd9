#include "workload.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <utility>

namespace larder::bench {
namespace {

// SplitMix64 (Steele, Lea, Flood 2014).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  std::size_t below(std::size_t n) {
    return static_cast<std::size_t>(static_cast<__uint128_t>(next()) * n >> 64);
  }

 private:
  std::uint64_t state_;
};

[[noreturn]] void fail(const std::string& what) {
  fmt::print(stderr, "near_bench: {}\n", what);
  std::exit(1);
}

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Close>;

void write_numbers(const std::string& path, const std::vector<std::uint32_t>& numbers) {
  const File file(std::fopen(path.c_str(), "wb"));
  if (!file || std::fwrite(numbers.data(), 4, numbers.size(), file.get()) != numbers.size() ||
      std::fflush(file.get()) != 0) {
    fail("cannot write " + path);
  }
}

std::vector<std::uint32_t> permutation(std::size_t count, Random& random) {
  std::vector<std::uint32_t> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0);
  for (std::size_t i = count; i > 1; --i) std::swap(numbers[i - 1], numbers[random.below(i)]);
  return numbers;
}

// The exact distribution by its cumulated weights, rank 1 first.
std::vector<double> zipf_weights(std::size_t count) {
  std::vector<double> cumulated(count);
  double total = 0;
  for (std::size_t rank = 0; rank < count; ++rank) {
    total += std::pow(static_cast<double>(rank + 1), -kZipf);
    cumulated[rank] = total;
  }
  return cumulated;
}

}  // namespace

void write_key(std::uint32_t number, char* out) {
  copy_value("key:", out);
  for (std::size_t i = kKeyBytes; i-- > 4; number /= 10) {
    out[i] = static_cast<char>('0' + number % 10);
  }
}

Sequence::Sequence(std::vector<std::uint32_t> numbers)
    : numbers_(std::move(numbers)), text_(numbers_.size() * kKeyBytes, '\0') {
  for (std::size_t i = 0; i < numbers_.size(); ++i) write_key(numbers_[i], &text_[i * kKeyBytes]);
}

Sequence Sequence::read(const std::string& path) {
  const File file(std::fopen(path.c_str(), "rb"));
  if (!file) fail("cannot read " + path);
  std::fseek(file.get(), 0, SEEK_END);
  std::vector<std::uint32_t> numbers(static_cast<std::size_t>(std::ftell(file.get())) / 4);
  if (std::fseek(file.get(), 0, SEEK_SET) != 0 ||
      std::fread(numbers.data(), 4, numbers.size(), file.get()) != numbers.size()) {
    fail("cannot read " + path);
  }
  return Sequence(std::move(numbers));
}

Sequence Sequence::range(std::uint32_t first, std::size_t count) {
  std::vector<std::uint32_t> numbers(count);
  std::iota(numbers.begin(), numbers.end(), first);
  return Sequence(std::move(numbers));
}

std::uint64_t Sequence::sum(std::size_t begin, std::uint64_t count) const {
  const std::uint64_t rounds = count / size();
  std::uint64_t total = 0;
  if (rounds > 0) {
    total = rounds * std::accumulate(numbers_.begin(), numbers_.end(), std::uint64_t{0});
  }
  for (std::uint64_t i = 0; i < count % size(); ++i) total += numbers_[(begin + i) % size()];
  return total;
}

void write_sequences(const std::string& folder, std::size_t entries, std::size_t chunks,
                     std::size_t chunk_keys) {
  Random random(entries);
  // Twice as many as there are entries, and more: six of seven are asked for at least once.
  std::vector<std::uint32_t> get(std::size_t{1} << static_cast<unsigned>(
                                     std::ceil(std::log2(2.0 * static_cast<double>(entries)))));
  for (auto& number : get) number = static_cast<std::uint32_t>(random.below(entries));
  write_numbers(fmt::format("{}/get-{}.u32", folder, entries), get);

  const auto draw = [&](std::size_t keys, const std::vector<std::uint32_t>& key_of_rank) {
    const auto weights = zipf_weights(keys);
    std::vector<std::uint32_t> drawn(chunk_keys);
    for (auto& number : drawn) {
      const auto at =
          std::lower_bound(weights.begin(), weights.end() - 1, random.unit() * weights.back());
      number = key_of_rank[static_cast<std::size_t>(at - weights.begin())];
    }
    return drawn;
  };
  write_numbers(fmt::format("{}/zipf-{}.u32", folder, entries),
                draw(entries, permutation(entries, random)));
  const auto key_of_rank = permutation(2 * entries, random);
  for (std::size_t chunk = 0; chunk < chunks; ++chunk) {
    write_numbers(fmt::format("{}/load-{}-{}.u32", folder, entries, chunk),
                  draw(2 * entries, key_of_rank));
  }
  write_numbers(fmt::format("{}/order-{}.u32", folder, entries),
                {key_of_rank.rbegin(), key_of_rank.rend()});
}

}  // namespace larder::bench
