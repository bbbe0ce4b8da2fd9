// Caches that store nothing: they count what a policy would have missed.
//
// A new policy needs a class and a line in the table of policies.cc.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace larder::trace {

enum class Unit : std::uint8_t { entries, bytes };

// What one policy does with one capacity. Keys are numbered 0, 1, 2, ... as they first appear, so
// that a policy can keep what it knows about them in arrays. Not thread-safe.
class Simulator {
 public:
  virtual ~Simulator() = default;
  Simulator(const Simulator&) = delete;
  Simulator& operator=(const Simulator&) = delete;

  // One request. `weight` is 1 or the size in bytes, at least 1; a key keeps the weight that it was
  // stored with until it goes. What weighs more than the capacity is a miss and is not stored.
  virtual void access(std::uint32_t key, std::uint32_t weight) = 0;
  // Of all requests so far. May take as long as all of them for policies that know the future.
  virtual std::uint64_t misses() = 0;

 protected:
  Simulator() = default;
};

struct Policy {
  std::string_view name;
  std::string_view about;
  bool for_entries;  // with --unit entries
  bool for_bytes;
  std::unique_ptr<Simulator> (*make)(std::uint64_t capacity, Unit unit);
};

// In the order of the table that is printed.
std::span<const Policy> policies();
const Policy* find_policy(std::string_view name);  // null: none of this name

// A simulator that sees the requests in order: `hit` says whether the key is there and notes the
// use, `store` makes room for it.
class Online : public Simulator {
 public:
  void access(std::uint32_t key, std::uint32_t weight) final {
    if (key >= weights_.size()) {
      weights_.resize(key + 1);
      grow(key + 1);
    }
    if (hit(key)) return;
    ++misses_;
    if (weight > capacity_) return;
    store(key, weight);
  }
  std::uint64_t misses() final { return misses_; }

 protected:
  explicit Online(std::uint64_t capacity) : capacity_(capacity) {}

  virtual void grow(std::size_t keys) = 0;
  virtual bool hit(std::uint32_t key) = 0;
  virtual void store(std::uint32_t key, std::uint32_t weight) = 0;

  std::uint64_t capacity_;
  std::vector<std::uint32_t> weights_;  // by key, of what is stored
  std::uint64_t misses_ = 0;
};

// One function for each policy, in the file that it is in.
std::unique_ptr<Simulator> make_larder(std::uint64_t capacity, Unit unit);
std::unique_ptr<Simulator> make_larder_fixed(std::uint64_t capacity, Unit unit);
std::unique_ptr<Simulator> make_fifo(std::uint64_t capacity, Unit unit);
std::unique_ptr<Simulator> make_lru(std::uint64_t capacity, Unit unit);
std::unique_ptr<Simulator> make_clock(std::uint64_t capacity, Unit unit);
std::unique_ptr<Simulator> make_sieve(std::uint64_t capacity, Unit unit);
std::unique_ptr<Simulator> make_s3_fifo(std::uint64_t capacity, Unit unit);
std::unique_ptr<Simulator> make_two_q(std::uint64_t capacity, Unit unit);
std::unique_ptr<Simulator> make_arc(std::uint64_t capacity, Unit unit);
std::unique_ptr<Simulator> make_w_tinylfu(std::uint64_t capacity, Unit unit);
std::unique_ptr<Simulator> make_gdsf(std::uint64_t capacity, Unit unit);
std::unique_ptr<Simulator> make_opt(std::uint64_t capacity, Unit unit);
std::unique_ptr<Simulator> make_pfoo_l(std::uint64_t capacity, Unit unit);

}  // namespace larder::trace
