// GreedyDual-Size-Frequency and W-TinyLFU, written from their papers.
#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "trace/key_list.h"
#include "trace/simulator.h"

namespace larder::trace {
namespace {

// H = L + F / size; the least H goes, and L becomes it.
class Gdsf final : public Online {
 public:
  explicit Gdsf(std::uint64_t capacity) : Online(capacity) {}

 private:
  struct Entry {
    double priority = 0;
    std::uint32_t frequency = 0;  // 0: not there
  };

  void grow(std::size_t keys) override { entries_.resize(keys); }

  bool hit(std::uint32_t key) override {
    if (entries_[key].frequency == 0) return false;
    order_.erase({entries_[key].priority, key});
    rank(key);
    return true;
  }
  void store(std::uint32_t key, std::uint32_t weight) override {
    while (used_ + weight > capacity_) {
      const auto [priority, victim] = *order_.begin();
      order_.erase(order_.begin());
      inflation_ = priority;
      entries_[victim].frequency = 0;
      used_ -= weights_[victim];
    }
    weights_[key] = weight;
    used_ += weight;
    rank(key);
  }
  void rank(std::uint32_t key) {
    Entry& entry = entries_[key];
    entry.priority = inflation_ + static_cast<double>(++entry.frequency) / weights_[key];
    order_.emplace(entry.priority, key);
  }

  std::vector<Entry> entries_;
  std::set<std::pair<double, std::uint32_t>> order_;
  double inflation_ = 0;
  std::uint64_t used_ = 0;
};

// A window (LRU) in front of a main part (segmented LRU); who leaves the window has to be used more
// often than whom it would replace. Frequencies are counted exactly where others have a sketch, to
// 15 and halved every ten requests an entry. A climber moves the window's share.
class WTinyLfu final : public Online {
 public:
  explicit WTinyLfu(std::uint64_t capacity) : Online(capacity) { share(0.01); }

 private:
  enum class Where : std::uint8_t { nowhere, window, probation, kept };
  static constexpr double kFirstStep = 0.0625;
  static constexpr double kStepDecay = 0.98;
  static constexpr double kRestart = 0.05;
  static constexpr std::uint64_t kPeriod = 10;  // requests an entry

  void grow(std::size_t keys) override {
    links_.of.resize(keys);
    where_.resize(keys);
    frequency_.resize(keys);
  }

  void share(double window) {
    window_share_ = std::clamp(window, 0.0, 0.8);
    const auto all = static_cast<double>(capacity_);
    window_capacity_ = std::max<std::uint64_t>(static_cast<std::uint64_t>(all * window_share_), 1);
    kept_capacity_ =
        static_cast<std::uint64_t>((all - static_cast<double>(window_capacity_)) * 0.8);
  }

  bool hit(std::uint32_t key) override {
    count(key);
    const Where where = where_[key];
    if (where == Where::nowhere) return false;
    ++hits_;
    list(where).remove(key, weights_[key]);
    put(key, where == Where::window ? Where::window : Where::kept);
    while (kept_.weight() > kept_capacity_ && kept_.count() > 1) move(kept_, Where::probation);
    return true;
  }

  void store(std::uint32_t key, std::uint32_t weight) override {
    weights_[key] = weight;
    put(key, Where::window);
    while (window_.weight() > window_capacity_) {
      const std::uint32_t candidate = window_.oldest();
      move(window_, Where::probation);
      admit(candidate);
    }
    while (used() > capacity_) evict(victim(kNoKey));
  }

  // The candidate stays if it is used more often than each that has to go for it.
  void admit(std::uint32_t candidate) {
    while (used() > capacity_) {
      const std::uint32_t other = victim(candidate);
      if (other == kNoKey || frequency_[candidate] <= frequency_[other]) {
        evict(candidate);
        return;
      }
      evict(other);
    }
  }
  std::uint32_t victim(std::uint32_t except) const {
    std::uint32_t key = probation_.oldest();
    if (key == except && key != kNoKey) key = probation_.newer(key);
    if (key == kNoKey) key = kept_.oldest();
    if (key == kNoKey && except == kNoKey) key = window_.oldest();
    return key;
  }

  std::uint64_t used() const { return window_.weight() + probation_.weight() + kept_.weight(); }
  KeyList& list(Where where) {
    return where == Where::window ? window_ : where == Where::kept ? kept_ : probation_;
  }
  void put(std::uint32_t key, Where where) {
    list(where).push(key, weights_[key]);
    where_[key] = where;
  }
  void move(KeyList& from, Where to) {
    const std::uint32_t key = from.oldest();
    from.remove(key, weights_[key]);
    put(key, to);
  }
  void evict(std::uint32_t key) {
    list(where_[key]).remove(key, weights_[key]);
    where_[key] = Where::nowhere;
  }

  void count(std::uint32_t key) {
    if (frequency_[key] < 15) ++frequency_[key];
    ++requests_;
    const std::uint64_t entries = window_.count() + probation_.count() + kept_.count();
    if (++since_halved_ >= kPeriod * std::max<std::uint64_t>(entries, 16)) {
      for (std::uint8_t& frequency : frequency_) frequency /= 2;
      since_halved_ = 0;
    }
    if (requests_ >= kPeriod * std::max<std::uint64_t>(entries, 16)) climb();
  }

  void climb() {
    const double ratio = static_cast<double>(hits_) / static_cast<double>(requests_);
    requests_ = hits_ = 0;
    const double change = ratio - last_ratio_;
    last_ratio_ = ratio;
    if (used() < capacity_ / 2) return;  // still filling
    if (change < 0) step_ = -step_;
    share(window_share_ + step_);
    step_ = std::abs(change) >= kRestart ? std::copysign(kFirstStep, step_) : step_ * kStepDecay;
  }

  KeyLinks links_;
  std::vector<Where> where_;
  std::vector<std::uint8_t> frequency_;
  KeyList window_{links_};
  KeyList probation_{links_};
  KeyList kept_{links_};
  double window_share_ = 0;
  std::uint64_t window_capacity_ = 0;
  std::uint64_t kept_capacity_ = 0;
  double step_ = kFirstStep;
  double last_ratio_ = 0;
  std::uint64_t requests_ = 0;
  std::uint64_t hits_ = 0;
  std::uint64_t since_halved_ = 0;
};

}  // namespace

std::unique_ptr<Simulator> make_gdsf(std::uint64_t capacity, Unit) {
  return std::make_unique<Gdsf>(capacity);
}
std::unique_ptr<Simulator> make_w_tinylfu(std::uint64_t capacity, Unit) {
  return std::make_unique<WTinyLfu>(capacity);
}

}  // namespace larder::trace
