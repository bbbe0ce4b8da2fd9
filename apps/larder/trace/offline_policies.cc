// What nothing can beat: these keep the whole trace, 12 bytes a request, and look into its future.
#include <algorithm>
#include <numeric>
#include <queue>
#include <utility>

#include "trace/simulator.h"

namespace larder::trace {
namespace {

inline constexpr std::uint32_t kNever = 0xffffffff;

class Offline : public Simulator {
 public:
  void access(std::uint32_t key, std::uint32_t weight) final {
    keys_.push_back(key);
    weights_.push_back(weight);
  }

 protected:
  explicit Offline(std::uint64_t capacity) : capacity_(capacity) {}

  // When the key of each request is asked for again; kNever: not any more.
  std::vector<std::uint32_t> next_uses() const {
    std::vector<std::uint32_t> next(keys_.size(), kNever);
    std::vector<std::uint32_t> last;
    for (std::uint32_t i = 0; i < keys_.size(); ++i) {
      if (keys_[i] >= last.size()) last.resize(keys_[i] + 1, kNever);
      if (last[keys_[i]] != kNever) next[last[keys_[i]]] = i;
      last[keys_[i]] = i;
    }
    return next;
  }

  std::uint64_t capacity_;
  std::vector<std::uint32_t> keys_;
  std::vector<std::uint32_t> weights_;
};

// Belady's: what is asked for again the latest goes. For weights of 1.
class Opt final : public Offline {
 public:
  explicit Opt(std::uint64_t capacity) : Offline(capacity) {}

  std::uint64_t misses() override {
    const std::vector<std::uint32_t> next = next_uses();
    std::vector<std::uint32_t> due;  // by key: its next use as it is in the cache; 0: it is not
    std::priority_queue<std::pair<std::uint32_t, std::uint32_t>> order;  // with outdated ones
    std::uint64_t stored = 0;
    std::uint64_t misses = 0;
    for (std::uint32_t i = 0; i < keys_.size(); ++i) {
      const std::uint32_t key = keys_[i];
      if (key >= due.size()) due.resize(key + 1);
      if (due[key] == 0) {
        ++misses;
        if (stored == capacity_) {
          while (due[order.top().second] != order.top().first) order.pop();
          due[order.top().second] = 0;
          order.pop();
        } else {
          ++stored;
        }
      }
      due[key] = next[i];
      order.emplace(next[i], key);
    }
    return misses;
  }
};

// Each pair of uses of a key takes its weight for as long as lies between them. The hits that are
// cheapest in this sense, as many as there is capacity in all: more hits are not possible.
class PfooL final : public Offline {
 public:
  explicit PfooL(std::uint64_t capacity) : Offline(capacity) {}

  std::uint64_t misses() override {
    const std::vector<std::uint32_t> next = next_uses();
    std::vector<std::uint64_t> costs;
    for (std::uint32_t i = 0; i < keys_.size(); ++i)
      if (next[i] != kNever && weights_[i] <= capacity_)
        costs.push_back(std::uint64_t{weights_[i]} * (next[i] - i));
    std::ranges::sort(costs);
    const auto budget = static_cast<unsigned __int128>(capacity_) * keys_.size();
    unsigned __int128 spent = 0;
    std::uint64_t hits = 0;
    for (const std::uint64_t cost : costs) {
      spent += cost;
      if (spent > budget) break;
      ++hits;
    }
    return keys_.size() - hits;
  }
};

}  // namespace

std::unique_ptr<Simulator> make_opt(std::uint64_t capacity, Unit) {
  return std::make_unique<Opt>(capacity);
}
std::unique_ptr<Simulator> make_pfoo_l(std::uint64_t capacity, Unit) {
  return std::make_unique<PfooL>(capacity);
}

}  // namespace larder::trace
