// Random steps against what the store must hold.
#include <functional>
#include <map>

#include "base/random.h"
#include "near/store_testing.h"

namespace larder::near {
namespace {

// What the store must hold if nothing is evicted.
class Model {
 public:
  struct Entry {
    std::string value;
    TimeUs useless_at = kNever;
    bool filled = false;
    bool is_void = false;
    std::uint16_t cache_id = 0;
    std::vector<Hash> tags;
  };

  const Entry* find(const std::string& key, TimeUs now) {
    const auto found = entries.find(key);
    if (found == entries.end()) return nullptr;
    if (found->second.useless_at <= now) {
      entries.erase(found);
      return nullptr;
    }
    return &found->second;
  }
  void void_if(const std::function<bool(const std::string&, const Entry&)>& which) {
    for (auto& [key, entry] : entries)
      if (entry.filled && which(key, entry)) entry.is_void = true;
  }

  std::map<std::string, Entry> entries;
};

class Walk {
 public:
  Walk(std::uint64_t seed, std::uint64_t capacity_bytes, bool may_evict)
      : random_(seed), may_evict_(may_evict), store_([&] {
          Options options = small_options();
          options.capacity_bytes = capacity_bytes;
          return options;
        }()) {}

  void run(int steps) {
    for (int i = 0; i < steps && !testing::Test::HasFatalFailure(); ++i) {
      now_ += static_cast<TimeUs>(random_.below(3));
      step();
      ASSERT_LE(store_.stats().bytes, store_.capacity_bytes());
      if (i % 100 == 0) ASSERT_EQ(store_.verify(), "");
    }
    for (int i = 0; i < kKeys; ++i) check(key(i));
  }

 private:
  static constexpr int kKeys = 300;
  static constexpr int kTags = 5;
  static std::string key(std::uint64_t i) { return "key:" + std::to_string(i); }
  static Hash tag(std::uint64_t i) { return i; }  // as it is: no two share a slot
  std::string any_key() { return key(random_.below(kKeys)); }
  TimeUs any_expiry() {
    return random_.chance(0.5) ? kNever : now_ + static_cast<TimeUs>(random_.below(2000));
  }
  std::string any_value() {
    return std::to_string(random_.next()) + std::string(random_.below(200), '.');
  }

  void step() {
    const std::string k = any_key();
    const Hash hash = hash_bytes(k);
    switch (random_.below(20)) {
      case 0:
      case 1:
      case 2: return fill(k, hash);
      case 3:
      case 4: return put(k, hash);
      case 5: {
        const bool was = erase_at_now(k, hash);
        const Model::Entry* entry = model_.find(k, now_);
        if (!may_evict_) ASSERT_EQ(was, entry && !entry->cache_id && !entry->is_void);
        if (entry && entry->cache_id == 0) model_.entries.erase(k);
        return;
      }
      case 6:
      case 7: {
        const bool keep = random_.chance(0.5);
        store_.invalidate(hash, k, keep);
        if (const Model::Entry* entry = model_.find(k, now_); entry && keep && entry->filled)
          model_.entries[k].is_void = true;
        else
          model_.entries.erase(k);
        return;
      }
      case 8: {
        if (random_.chance(0.8)) return;
        const Hash t = tag(random_.below(kTags));
        store_.invalidate_tag(t);
        model_.void_if([&](const auto&, const Model::Entry& entry) {
          return std::ranges::find(entry.tags, t) != entry.tags.end();
        });
        return;
      }
      case 9: {
        if (random_.chance(0.9)) return;
        const auto p = static_cast<unsigned>(random_.below(8));
        store_.reset(p);
        model_.void_if([&](const std::string& key, const Model::Entry&) {
          return store_.partition_of(hash_bytes(key)) == p;
        });
        return;
      }
      case 10: {
        if (random_.chance(0.98)) return;
        const bool which = random_.chance(0.5);
        store_.clear(which);
        std::erase_if(model_.entries,
                      [&](const auto& e) { return (e.second.cache_id != 0) == which; });
        return;
      }
      case 11: {
        const TimeUs expiry = any_expiry();
        const Model::Entry* entry = model_.find(k, now_);
        const bool done = store_.set_expiry(k, hash, now_, expiry, expiry);
        if (!may_evict_) ASSERT_EQ(done, entry && !entry->is_void);
        if (entry && !entry->is_void) model_.entries[k].useless_at = expiry;
        return;
      }
      case 12: store_.expire(now_, 5); return;
      default: return check(k);
    }
  }

  bool erase_at_now(const std::string& k, Hash hash) {
    Store::Locked locked(store_, {&hash, 1});
    locked.find(k, hash, now_);
    return locked.erase(k, hash);
  }

  void fill(const std::string& k, Hash hash) {
    std::vector<Hash> tags;
    for (std::uint64_t i = random_.below(3); i > 0; --i) tags.push_back(tag(random_.below(kTags)));
    const policy::Ticket ticket = store_.ticket(hash);
    const bool raced = random_.chance(0.2);
    if (raced) {
      store_.invalidate(hash, k, false);
      model_.entries.erase(k);
    }
    const auto id = static_cast<std::uint16_t>(random_.below(3));
    const TimeUs expiry = any_expiry();
    const std::string value = any_value();
    const Refusal refusal = store_.fill(ticket, k, hash, value, declared(expiry, id), tags);
    ASSERT_EQ(refusal, raced ? Refusal::ticket : Refusal::none);
    if (!raced) model_.entries[k] = {value, expiry, true, false, id, tags};
  }

  void put(const std::string& k, Hash hash) {
    const std::string value = any_value();
    const TimeUs expiry = any_expiry();
    Store::Locked locked(store_, {&hash, 1});
    ASSERT_EQ(locked.put(k, hash, value, expiry), Refusal::none);
    model_.entries[k] = {value, expiry, false, false, 0, {}};
  }

  void check(const std::string& k) {
    const Model::Entry* entry = model_.find(k, now_);
    const auto seen = look(store_, k, now_);
    if (!seen) {
      if (!may_evict_) ASSERT_EQ(entry, nullptr) << k;
      return;
    }
    ASSERT_NE(entry, nullptr) << k;
    ASSERT_EQ(seen->value, entry->value);
    ASSERT_EQ(seen->is_void, entry->is_void);
    ASSERT_EQ(seen->meta.useless_at, entry->useless_at);
    ASSERT_EQ(seen->meta.cache_id, entry->cache_id);
  }

  Random random_;
  bool may_evict_;
  TimeUs now_ = kStart;
  Store store_;
  Model model_;
};

TEST(StoreModel, HoldsExactlyWhatItShould) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    Walk(seed, 4 << 20, false).run(5000);
    if (HasFatalFailure()) return;
  }
}

TEST(StoreModel, EvictsButNeverLies) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    Walk(seed, 96 << 10, true).run(5000);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace larder::near
