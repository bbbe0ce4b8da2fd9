// What waits to be made void, between a subscription and its application. Pure; not thread-safe.
//
// Equal keys and tags wait once. Beyond the bound nothing is dropped silently: everything that the
// feed can name takes the place of what waited.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "feed/event.h"

namespace larder::feed {

class Pending {
 public:
  // Both bounds are of keys and tags together.
  Pending(std::size_t most, std::size_t most_bytes) : most_(most), most_bytes_(most_bytes) {}

  // false: the bound was reached, and everything() took the place of all.
  bool add(Event event) {
    ++events_;
    if (everything_) return true;  // it is among them
    for (std::string& key : event.keys) put(keys_, std::move(key));
    for (std::string& tag : event.tags) put(tags_, std::move(tag));
    if (size() <= most_ && bytes_ <= most_bytes_) return true;
    everything();
    return false;
  }

  // All that the feed can name; what waits is among it.
  void everything() {
    everything_ = true;
    keys_.clear();
    tags_.clear();
    bytes_ = 0;
  }

  struct Batch {
    bool everything = false;
    std::vector<std::string> keys;
    std::vector<std::string> tags;
    std::uint64_t events = 0;  // events all of whose keys and tags have been taken with this batch
  };
  // At most `most` keys and tags; what is taken no longer waits: an equal key that comes now waits
  // again.
  Batch take(std::size_t most) {
    Batch batch{.everything = std::exchange(everything_, false)};
    move_some(keys_, batch.keys, most);
    move_some(tags_, batch.tags, most - batch.keys.size());
    if (size() == 0) batch.events = std::exchange(events_, 0);
    return batch;
  }

  bool empty() const { return !everything_ && size() == 0; }
  std::size_t size() const { return keys_.size() + tags_.size(); }

 private:
  using Set = std::unordered_set<std::string>;

  void put(Set& set, std::string text) {
    const std::size_t bytes = text.size();
    if (set.insert(std::move(text)).second) bytes_ += bytes;
  }
  void move_some(Set& from, std::vector<std::string>& to, std::size_t most) {
    while (to.size() < most && !from.empty()) {
      to.push_back(std::move(from.extract(from.begin()).value()));
      bytes_ -= to.back().size();
    }
  }

  const std::size_t most_;
  const std::size_t most_bytes_;
  Set keys_, tags_;
  std::size_t bytes_ = 0;
  std::uint64_t events_ = 0;
  bool everything_ = false;
};

}  // namespace larder::feed
