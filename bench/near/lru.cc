// What everybody writes: a hash map and a list under one mutex.
#include <functional>
#include <list>
#include <mutex>
#include <string>
#include <unordered_map>

#include "base/hash.h"
#include "runner.h"

namespace larder::bench {
namespace {

class MutexLru {
 public:
  static constexpr bool kEvicts = true;

  MutexLru(std::size_t capacity, std::size_t /*value_bytes*/) : capacity_(capacity) {
    index_.reserve(capacity);
  }

  bool view(std::string_view key, std::uint64_t& sum) {
    const std::scoped_lock lock(mutex_);
    const Item* item = find(key);
    if (item != nullptr) sum += first_word(item->value);
    return item != nullptr;
  }

  bool copy(std::string_view key, char* out) {
    const std::scoped_lock lock(mutex_);
    const Item* item = find(key);
    if (item != nullptr) copy_value(item->value, out);
    return item != nullptr;
  }

  void insert(std::string_view key, std::string_view value) {
    const std::scoped_lock lock(mutex_);
    if (Item* item = find(key); item != nullptr) {
      item->value = value;
    } else {
      add(key, value);
    }
  }

  bool get_or_load(std::string_view key, const Load& load, std::uint64_t& sum) {
    const std::scoped_lock lock(mutex_);
    if (const Item* item = find(key); item != nullptr) {
      sum += first_word(item->value);
      return true;
    }
    const std::string_view value = load();
    add(key, value);
    sum += first_word(value);
    return false;
  }

  static double own_bytes_per_entry() { return 0; }

 private:
  struct Item {
    std::string key;
    std::string value;
  };
  struct KeyHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view key) const { return hash_bytes(key); }
  };
  using List = std::list<Item>;

  Item* find(std::string_view key) {
    const auto found = index_.find(key);
    if (found == index_.end()) return nullptr;
    items_.splice(items_.begin(), items_, found->second);
    return &*found->second;
  }

  void add(std::string_view key, std::string_view value) {
    if (index_.size() == capacity_) {
      index_.erase(index_.find(items_.back().key));
      items_.pop_back();
    }
    items_.emplace_front(std::string(key), std::string(value));
    index_.emplace(items_.front().key, items_.begin());
  }

  std::mutex mutex_;
  std::size_t capacity_;
  List items_;  // the most recently used first
  // The keys are those of the items.
  std::unordered_map<std::string_view, List::iterator, KeyHash, std::equal_to<>> index_;
};

}  // namespace

void add_lru(const Flags& flags) { Runner<MutexLru>::add("mutex_lru", flags); }

}  // namespace larder::bench
