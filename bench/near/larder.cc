// Larder's near tier: entries of a declared cache, filled under tickets.
//
// Nobody in this bench has expiry configured, and nobody reads a clock: the time that Larder takes
// with each lookup is a constant. Its bound is in bytes, everything counted, so what "room for N"
// is in bytes is found by trial.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "base/clock.h"
#include "base/hash.h"
#include "near/store.h"
#include "runner.h"

namespace larder::bench {
namespace {

constexpr TimeUs kNow = 1'000'000;
constexpr near::Meta kMeta = {.cache_id = 1};

void fill(near::Store& store, std::string_view key, std::string_view value) {
  const Hash hash = hash_bytes(key);
  if (store.fill(store.ticket(hash), key, hash, value, kMeta, {}) != policy::Refusal::none) {
    std::abort();
  }
}

std::uint64_t entries_in(std::uint64_t capacity_bytes, std::size_t entries,
                         std::size_t value_bytes) {
  near::Store store({.capacity_bytes = capacity_bytes});
  const std::string value(value_bytes, 'v');
  for (std::uint32_t i = 0; i < entries * 5 / 4; ++i) {
    std::array<char, kKeyBytes> key{};
    write_key(i, key.data());
    fill(store, {key.data(), key.size()}, value);
  }
  return store.stats().entries;
}

// By secants: within half a percent of `entries`.
std::uint64_t find_capacity(std::size_t entries, std::size_t value_bytes) {
  auto bytes = static_cast<double>(entries * (kKeyBytes + value_bytes + 48));
  for (int i = 0; i < 6; ++i) {
    const auto fit =
        static_cast<double>(entries_in(static_cast<std::uint64_t>(bytes), entries, value_bytes));
    const auto wanted = static_cast<double>(entries);
    if (std::abs(fit / wanted - 1) < 0.005) break;
    bytes *= wanted / fit;
  }
  return static_cast<std::uint64_t>(bytes);
}

// In a child: the trials leave nothing in the memory of the process that is measured.
std::uint64_t capacity_for(std::size_t entries, std::size_t value_bytes) {
  std::array<int, 2> ends{};
  if (pipe(ends.data()) != 0) std::abort();
  const pid_t child = fork();
  if (child < 0) std::abort();
  std::uint64_t bytes = 0;
  if (child == 0) {
    bytes = find_capacity(entries, value_bytes);
    _exit(write(ends[1], &bytes, sizeof bytes) == sizeof bytes ? 0 : 1);
  }
  close(ends[1]);
  if (read(ends[0], &bytes, sizeof bytes) != sizeof bytes) std::abort();
  close(ends[0]);
  waitpid(child, nullptr, 0);
  return bytes;
}

class Larder {
 public:
  static constexpr bool kEvicts = true;

  Larder(std::size_t capacity, std::size_t value_bytes)
      : store_({.capacity_bytes = capacity_for(capacity, value_bytes)}) {}

  bool view(std::string_view key, std::uint64_t& sum) {
    return store_.lookup(key, hash_bytes(key), kNow,
                         [&](const near::View& view) { sum += first_word(view.value); });
  }

  bool copy(std::string_view key, char* out) {
    return store_.lookup(key, hash_bytes(key), kNow,
                         [&](const near::View& view) { copy_value(view.value, out); });
  }

  void insert(std::string_view key, std::string_view value) { fill(store_, key, value); }

  bool get_or_load(std::string_view key, const Load& load, std::uint64_t& sum) {
    const Hash hash = hash_bytes(key);
    if (store_.lookup(key, hash, kNow,
                      [&](const near::View& view) { sum += first_word(view.value); })) {
      return true;
    }
    const policy::Ticket ticket = store_.ticket(hash);
    const std::string_view value = load();
    store_.fill(ticket, key, hash, value, kMeta, {});
    sum += first_word(value);
    return false;
  }

  double own_bytes_per_entry() const {
    const near::Stats stats = store_.stats();
    return static_cast<double>(stats.bytes) / static_cast<double>(stats.entries);
  }

 private:
  near::Store store_;
};

}  // namespace

void add_larder(const Flags& flags) { Runner<Larder>::add("larder", flags); }

}  // namespace larder::bench
