// FIFO, LRU, CLOCK, SIEVE, S3-FIFO, 2Q and ARC, written from their papers.
#include <algorithm>

#include "trace/key_list.h"
#include "trace/simulator.h"

namespace larder::trace {
namespace {

enum class Where : std::uint8_t { nowhere, small, main, ghost, ghost2 };

// What policies of lists have in common: where a key is, and a small number of each.
class Lists : public Online {
 protected:
  using Online::Online;

  void grow(std::size_t keys) override {
    links_.of.resize(keys);
    where_.resize(keys);
    mark_.resize(keys);
  }

  void put(KeyList& list, std::uint32_t key, Where where) {
    list.push(key, weights_[key]);
    where_[key] = where;
  }
  std::uint32_t pop(KeyList& list) {
    const std::uint32_t key = list.oldest();
    drop(list, key);
    return key;
  }
  void drop(KeyList& list, std::uint32_t key) {
    list.remove(key, weights_[key]);
    where_[key] = Where::nowhere;
  }

  KeyLinks links_;
  std::vector<Where> where_;
  std::vector<std::uint8_t> mark_;
};

// One queue; what differs is what a hit does and who goes.
class Fifo final : public Lists {
 public:
  explicit Fifo(std::uint64_t capacity) : Lists(capacity) {}

 private:
  bool hit(std::uint32_t key) override { return where_[key] == Where::main; }
  void store(std::uint32_t key, std::uint32_t weight) override {
    while (queue_.weight() + weight > capacity_) pop(queue_);
    weights_[key] = weight;
    put(queue_, key, Where::main);
  }

  KeyList queue_{links_};
};

class Lru final : public Lists {
 public:
  explicit Lru(std::uint64_t capacity) : Lists(capacity) {}

 private:
  bool hit(std::uint32_t key) override {
    if (where_[key] != Where::main) return false;
    drop(queue_, key);
    put(queue_, key, Where::main);
    return true;
  }
  void store(std::uint32_t key, std::uint32_t weight) override {
    while (queue_.weight() + weight > capacity_) pop(queue_);
    weights_[key] = weight;
    put(queue_, key, Where::main);
  }

  KeyList queue_{links_};
};

class Clock final : public Lists {
 public:
  explicit Clock(std::uint64_t capacity) : Lists(capacity) {}

 private:
  bool hit(std::uint32_t key) override {
    if (where_[key] != Where::main) return false;
    mark_[key] = 1;
    return true;
  }
  void store(std::uint32_t key, std::uint32_t weight) override {
    while (queue_.weight() + weight > capacity_) {
      const std::uint32_t oldest = pop(queue_);
      if (mark_[oldest] == 0) continue;
      mark_[oldest] = 0;
      put(queue_, oldest, Where::main);
    }
    weights_[key] = weight;
    mark_[key] = 0;
    put(queue_, key, Where::main);
  }

  KeyList queue_{links_};
};

class Sieve final : public Lists {
 public:
  explicit Sieve(std::uint64_t capacity) : Lists(capacity) {}

 private:
  bool hit(std::uint32_t key) override {
    if (where_[key] != Where::main) return false;
    mark_[key] = 1;
    return true;
  }
  void store(std::uint32_t key, std::uint32_t weight) override {
    while (queue_.weight() + weight > capacity_) {
      std::uint32_t at = hand_ != kNoKey ? hand_ : queue_.oldest();
      while (mark_[at] != 0) {
        mark_[at] = 0;
        at = queue_.newer(at) != kNoKey ? queue_.newer(at) : queue_.oldest();
      }
      hand_ = queue_.newer(at);
      drop(queue_, at);
    }
    weights_[key] = weight;
    mark_[key] = 0;
    put(queue_, key, Where::main);
  }

  KeyList queue_{links_};
  std::uint32_t hand_ = kNoKey;
};

class S3Fifo final : public Lists {
 public:
  explicit S3Fifo(std::uint64_t capacity)
      : Lists(capacity),
        small_capacity_(std::max<std::uint64_t>(capacity / 10, 1)),
        main_capacity_(capacity - small_capacity_),
        ghost_capacity_(capacity / 10 * 9 + capacity % 10 * 9 / 10) {}

 private:
  static constexpr std::uint8_t kThreshold = 2;
  static constexpr std::uint8_t kMaxFrequency = 3;

  bool hit(std::uint32_t key) override {
    if (where_[key] != Where::small && where_[key] != Where::main) return false;
    if (mark_[key] < kMaxFrequency) ++mark_[key];
    return true;
  }

  void store(std::uint32_t key, std::uint32_t weight) override {
    const bool known = where_[key] == Where::ghost;
    if (known) drop(ghost_, key);
    while (small_.weight() + main_.weight() + weight > capacity_) evict();
    weights_[key] = weight;
    mark_[key] = 0;
    if (known)
      put(main_, key, Where::main);
    else
      put(small_, key, Where::small);
  }

  void evict() {
    if (main_.weight() > main_capacity_ || small_.empty())
      evict_main();
    else
      evict_small();
  }
  void evict_small() {
    while (!small_.empty()) {
      const std::uint32_t key = pop(small_);
      if (mark_[key] >= kThreshold) {
        mark_[key] = 0;
        put(main_, key, Where::main);
        continue;
      }
      while (!ghost_.empty() && ghost_.weight() + weights_[key] > ghost_capacity_) pop(ghost_);
      if (weights_[key] <= ghost_capacity_) put(ghost_, key, Where::ghost);
      return;
    }
  }
  void evict_main() {
    while (!main_.empty()) {
      const std::uint32_t key = pop(main_);
      if (mark_[key] == 0) return;
      --mark_[key];
      put(main_, key, Where::main);
    }
  }

  std::uint64_t small_capacity_;
  std::uint64_t main_capacity_;
  std::uint64_t ghost_capacity_;
  KeyList small_{links_};
  KeyList main_{links_};
  KeyList ghost_{links_};
};

class TwoQ final : public Lists {
 public:
  explicit TwoQ(std::uint64_t capacity)
      : Lists(capacity),
        in_capacity_(std::max<std::uint64_t>(capacity / 4, 1)),
        out_capacity_(capacity / 2) {}

 private:
  bool hit(std::uint32_t key) override {
    if (where_[key] == Where::small) return true;
    if (where_[key] != Where::main) return false;
    drop(main_, key);
    put(main_, key, Where::main);
    return true;
  }
  void store(std::uint32_t key, std::uint32_t weight) override {
    const bool known = where_[key] == Where::ghost;
    if (known) drop(ghost_, key);
    while (in_.weight() + main_.weight() + weight > capacity_) {
      if (in_.weight() > in_capacity_ || main_.empty()) {
        const std::uint32_t oldest = pop(in_);
        put(ghost_, oldest, Where::ghost);
        while (ghost_.weight() > out_capacity_) pop(ghost_);
      } else {
        pop(main_);
      }
    }
    weights_[key] = weight;
    if (known)
      put(main_, key, Where::main);
    else
      put(in_, key, Where::small);
  }

  std::uint64_t in_capacity_;
  std::uint64_t out_capacity_;
  KeyList in_{links_};
  KeyList main_{links_};
  KeyList ghost_{links_};
};

// For weights of 1.
class Arc final : public Lists {
 public:
  explicit Arc(std::uint64_t capacity) : Lists(capacity) {}

 private:
  bool hit(std::uint32_t key) override {
    if (where_[key] == Where::small)
      drop(recent_, key);
    else if (where_[key] == Where::main)
      drop(often_, key);
    else
      return false;
    put(often_, key, Where::main);
    return true;
  }

  void store(std::uint32_t key, std::uint32_t weight) override {
    weights_[key] = weight;
    const auto size = [](const KeyList& list) { return static_cast<double>(list.count()); };
    if (where_[key] == Where::ghost) {
      const double step = std::max(1.0, size(ghost_often_) / size(ghost_recent_));
      target_ = std::min(static_cast<double>(capacity_), target_ + step);
      replace(false);
      drop(ghost_recent_, key);
      put(often_, key, Where::main);
    } else if (where_[key] == Where::ghost2) {
      const double step = std::max(1.0, size(ghost_recent_) / size(ghost_often_));
      target_ = std::max(0.0, target_ - step);
      replace(true);
      drop(ghost_often_, key);
      put(often_, key, Where::main);
    } else {
      make_room();
      put(recent_, key, Where::small);
    }
  }

  void make_room() {
    const std::uint64_t seen_once = recent_.count() + ghost_recent_.count();
    const std::uint64_t all = seen_once + often_.count() + ghost_often_.count();
    if (seen_once == capacity_) {
      if (recent_.count() < capacity_) {
        pop(ghost_recent_);
        replace(false);
      } else {
        pop(recent_);
      }
    } else if (all >= capacity_) {
      if (all == 2 * capacity_) pop(ghost_often_);
      replace(false);
    }
  }

  void replace(bool in_ghost_often) {
    if (recent_.count() + often_.count() < capacity_) return;
    const auto recent = static_cast<double>(recent_.count());
    const bool too_many = recent > target_ || (in_ghost_often && recent == target_);
    if (!recent_.empty() && (too_many || often_.empty()))
      put(ghost_recent_, pop(recent_), Where::ghost);
    else
      put(ghost_often_, pop(often_), Where::ghost2);
  }

  double target_ = 0;
  KeyList recent_{links_};
  KeyList often_{links_};
  KeyList ghost_recent_{links_};
  KeyList ghost_often_{links_};
};

}  // namespace

std::unique_ptr<Simulator> make_fifo(std::uint64_t capacity, Unit) {
  return std::make_unique<Fifo>(capacity);
}
std::unique_ptr<Simulator> make_lru(std::uint64_t capacity, Unit) {
  return std::make_unique<Lru>(capacity);
}
std::unique_ptr<Simulator> make_clock(std::uint64_t capacity, Unit) {
  return std::make_unique<Clock>(capacity);
}
std::unique_ptr<Simulator> make_sieve(std::uint64_t capacity, Unit) {
  return std::make_unique<Sieve>(capacity);
}
std::unique_ptr<Simulator> make_s3_fifo(std::uint64_t capacity, Unit) {
  return std::make_unique<S3Fifo>(capacity);
}
std::unique_ptr<Simulator> make_two_q(std::uint64_t capacity, Unit) {
  return std::make_unique<TwoQ>(capacity);
}
std::unique_ptr<Simulator> make_arc(std::uint64_t capacity, Unit) {
  return std::make_unique<Arc>(capacity);
}

}  // namespace larder::trace
