// RocksDB's block caches, charged with the bytes of keys and values alone.
#include <rocksdb/cache.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>

#include "runner.h"

namespace larder::bench {
namespace {

using rocksdb::Cache;

void release(const rocksdb::Slice& /*key*/, void* value) { delete[] static_cast<char*>(value); }

// HyperClockCache of this age takes keys of 16 bytes only: padded, for both.
class Key {
 public:
  explicit Key(std::string_view key) { std::copy_n(key.begin(), kKeyBytes, bytes_.begin()); }
  rocksdb::Slice slice() const { return {bytes_.data(), bytes_.size()}; }

 private:
  std::array<char, 16> bytes_{};
};

class RocksCache {
 public:
  static constexpr bool kEvicts = true;

  RocksCache(std::shared_ptr<Cache> cache, std::size_t charge)
      : cache_(std::move(cache)), value_bytes_(charge - kKeyBytes) {}

  bool view(std::string_view key, std::uint64_t& sum) {
    Cache::Handle* found = cache_->Lookup(Key(key).slice());
    if (found == nullptr) return false;
    sum += first_word(value_of(found));
    cache_->Release(found);
    return true;
  }

  bool copy(std::string_view key, char* out) {
    Cache::Handle* found = cache_->Lookup(Key(key).slice());
    if (found == nullptr) return false;
    copy_value(value_of(found), out);
    cache_->Release(found);
    return true;
  }

  void insert(std::string_view key, std::string_view value) {
    auto* own = new char[value.size()];
    copy_value(value, own);
    if (!cache_->Insert(Key(key).slice(), own, kKeyBytes + value.size(), release).ok()) {
      std::abort();
    }
  }

  bool get_or_load(std::string_view key, const Load& load, std::uint64_t& sum) {
    if (view(key, sum)) return true;
    const std::string_view value = load();
    insert(key, value);
    sum += first_word(value);
    return false;
  }

  static double own_bytes_per_entry() { return 0; }

 private:
  std::string_view value_of(Cache::Handle* handle) const {
    return {static_cast<const char*>(cache_->Value(handle)), value_bytes_};
  }

  std::shared_ptr<Cache> cache_;
  std::size_t value_bytes_;
};

class HyperClock : public RocksCache {
 public:
  HyperClock(std::size_t capacity, std::size_t value_bytes)
      : RocksCache(make(capacity, kKeyBytes + value_bytes), kKeyBytes + value_bytes) {}

 private:
  static std::shared_ptr<Cache> make(std::size_t capacity, std::size_t charge) {
    rocksdb::HyperClockCacheOptions options(capacity * charge, charge);
    options.metadata_charge_policy = rocksdb::kDontChargeCacheMetadata;
    return options.MakeSharedCache();
  }
};

class Lru : public RocksCache {
 public:
  Lru(std::size_t capacity, std::size_t value_bytes)
      : RocksCache(make(capacity, kKeyBytes + value_bytes), kKeyBytes + value_bytes) {}

 private:
  static std::shared_ptr<Cache> make(std::size_t capacity, std::size_t charge) {
    rocksdb::LRUCacheOptions options;
    options.capacity = capacity * charge;
    options.metadata_charge_policy = rocksdb::kDontChargeCacheMetadata;
    return rocksdb::NewLRUCache(options);
  }
};

}  // namespace

void add_rocksdb_hyperclock(const Flags& flags) {
  Runner<HyperClock>::add("rocksdb_hyperclock", flags);
}
void add_rocksdb_lru(const Flags& flags) { Runner<Lru>::add("rocksdb_lru", flags); }

}  // namespace larder::bench
