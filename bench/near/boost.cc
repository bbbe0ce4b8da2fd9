// Boost's concurrent_flat_map: a map, no cache, so there are only hits.
#include <boost/unordered/concurrent_flat_map.hpp>
#include <functional>
#include <string>

#include "base/hash.h"
#include "runner.h"

namespace larder::bench {
namespace {

struct KeyHash {
  using is_transparent = void;
  using is_avalanching = void;
  std::size_t operator()(std::string_view key) const { return hash_bytes(key); }
};

class BoostFlatMap {
 public:
  static constexpr bool kEvicts = false;

  BoostFlatMap(std::size_t capacity, std::size_t /*value_bytes*/) : map_(capacity) {}

  bool view(std::string_view key, std::uint64_t& sum) const {
    return map_.cvisit(key, [&](const auto& entry) { sum += first_word(entry.second); }) > 0;
  }

  bool copy(std::string_view key, char* out) const {
    return map_.cvisit(key, [&](const auto& entry) { copy_value(entry.second, out); }) > 0;
  }

  void insert(std::string_view key, std::string_view value) {
    map_.insert_or_assign(std::string(key), std::string(value));
  }

  static double own_bytes_per_entry() { return 0; }

 private:
  boost::concurrent_flat_map<std::string, std::string, KeyHash, std::equal_to<>> map_;
};

}  // namespace

void add_boost_flat_map(const Flags& flags) { Runner<BoostFlatMap>::add("boost_flat_map", flags); }

}  // namespace larder::bench
