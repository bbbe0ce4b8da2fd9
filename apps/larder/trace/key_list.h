// A doubly linked list of keys, for the simulators.
#pragma once

#include <cstdint>
#include <vector>

namespace larder::trace {

inline constexpr std::uint32_t kNoKey = 0xffffffff;

// Links of all keys; a key is in one list at most. Lists share them.
struct KeyLinks {
  struct Link {
    std::uint32_t newer = kNoKey;
    std::uint32_t older = kNoKey;
  };
  std::vector<Link> of;
};

class KeyList {
 public:
  explicit KeyList(KeyLinks& links) : links_(links) {}

  bool empty() const { return oldest_ == kNoKey; }
  std::uint32_t oldest() const { return oldest_; }
  std::uint32_t newer(std::uint32_t key) const { return links_.of[key].newer; }
  std::uint64_t weight() const { return weight_; }
  std::uint64_t count() const { return count_; }

  void push(std::uint32_t key, std::uint32_t weight) {
    links_.of[key] = {.newer = kNoKey, .older = newest_};
    (newest_ != kNoKey ? links_.of[newest_].newer : oldest_) = key;
    newest_ = key;
    weight_ += weight;
    ++count_;
  }

  void remove(std::uint32_t key, std::uint32_t weight) {
    const KeyLinks::Link link = links_.of[key];
    (link.newer != kNoKey ? links_.of[link.newer].older : newest_) = link.older;
    (link.older != kNoKey ? links_.of[link.older].newer : oldest_) = link.newer;
    weight_ -= weight;
    --count_;
  }

 private:
  KeyLinks& links_;
  std::uint32_t newest_ = kNoKey;
  std::uint32_t oldest_ = kNoKey;
  std::uint64_t weight_ = 0;
  std::uint64_t count_ = 0;
};

}  // namespace larder::trace
