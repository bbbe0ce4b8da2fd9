// What this node has invalidated itself, before its COMMIT, so that the echo of its own write in
// the source's log does not void again what the writer has filled since. Exactly the names that
// were invalidated are left out: what a trigger or a cascade did besides is not.
//
// Right because of the tombstone that the writer left: whatever was stored since has seen x.
//
// Thread-safe. Bounded: the oldest writes are forgotten, and then voided once more.
#pragma once

#include <algorithm>
#include <deque>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/sync.h"
#include "policy/snapshot.h"

namespace larder::policy {

class OwnWrites {
 public:
  static constexpr std::size_t kMost = 10'000;  // names

  using Names = std::vector<std::string>;

  // Before the COMMIT of transaction x. REQUIRES: x != 0.
  void note(TxnId x, const Names& keys, const Names& tags) LARDER_EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    auto [entry, added] = writes_.try_emplace(x);
    if (added) order_.push_back(x);
    Write& write = entry->second;
    write.keys.insert(write.keys.end(), keys.begin(), keys.end());
    write.tags.insert(write.tags.end(), tags.begin(), tags.end());
    count_ += keys.size() + tags.size();
    while (count_ > kMost) drop_oldest();
  }

  // Leaves out of what the feed tells of transaction x what is known. It tells each once.
  void leave_out(TxnId x, Names& keys, Names& tags) LARDER_EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    const auto known = writes_.find(x);
    if (known == writes_.end()) return;
    remove(known->second.keys, keys);
    remove(known->second.tags, tags);
    count_ -= known->second.size();
    std::erase(order_, x);
    writes_.erase(known);
  }

  // Of another incarnation of the source: its numbers mean nothing.
  void clear() LARDER_EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    writes_.clear();
    order_.clear();
    count_ = 0;
  }

 private:
  struct Write {
    Names keys;
    Names tags;
    std::size_t size() const { return keys.size() + tags.size(); }
  };
  static void remove(Names& known, Names& from) {
    std::ranges::sort(known);
    std::erase_if(from,
                  [&](const std::string& name) { return std::ranges::binary_search(known, name); });
  }
  void drop_oldest() LARDER_REQUIRES(mutex_) {
    const auto oldest = writes_.find(order_.front());
    order_.pop_front();
    count_ -= oldest->second.size();
    writes_.erase(oldest);
  }

  Mutex mutex_;
  std::unordered_map<TxnId, Write> writes_ LARDER_GUARDED_BY(mutex_);
  std::deque<TxnId> order_ LARDER_GUARDED_BY(mutex_);
  std::size_t count_ LARDER_GUARDED_BY(mutex_) = 0;
};

}  // namespace larder::policy
