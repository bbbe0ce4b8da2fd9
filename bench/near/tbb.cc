// oneTBB's concurrent_hash_map: a map, no cache, so there are only hits.
#include <oneapi/tbb/concurrent_hash_map.h>

#include <string>

#include "base/hash.h"
#include "runner.h"

namespace larder::bench {
namespace {

struct HashCompare {
  using is_transparent = void;
  static std::size_t hash(std::string_view key) { return hash_bytes(key); }
  static bool equal(std::string_view a, std::string_view b) { return a == b; }
};

class TbbHashMap {
 public:
  static constexpr bool kEvicts = false;

  TbbHashMap(std::size_t capacity, std::size_t /*value_bytes*/) : map_(capacity) {}

  // Not const: only so does it find by another type than its key.
  bool view(std::string_view key, std::uint64_t& sum) {
    Map::const_accessor found;
    if (!map_.find(found, key)) return false;
    sum += first_word(found->second);
    return true;
  }

  bool copy(std::string_view key, char* out) {
    Map::const_accessor found;
    if (!map_.find(found, key)) return false;
    copy_value(found->second, out);
    return true;
  }

  void insert(std::string_view key, std::string_view value) {
    Map::accessor entry;
    map_.insert(entry, std::string(key));
    entry->second = value;
  }

  static double own_bytes_per_entry() { return 0; }

 private:
  using Map = tbb::concurrent_hash_map<std::string, std::string, HashCompare>;
  Map map_;
};

}  // namespace

void add_tbb_hash_map(const Flags& flags) { Runner<TbbHashMap>::add("tbb_hash_map", flags); }

}  // namespace larder::bench
