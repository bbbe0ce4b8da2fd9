// What the tests of the store share.
#pragma once

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "near/store.h"

namespace larder::near {

using policy::Refusal;

inline constexpr TimeUs kStart = 1'000'000;

inline Options small_options() {
  return {.capacity_bytes = 4 << 20, .shards = 4, .partitions = 8, .tag_slots = 256};
}

inline Meta declared(TimeUs useless_at = kNever, std::uint16_t cache_id = 1) {
  return {.cache_id = cache_id, .soft_expiry = useless_at, .useless_at = useless_at};
}

struct Seen {
  std::string value;
  bool is_void = false;
  Meta meta;
};

inline std::optional<Seen> look(Store& store, std::string_view key, TimeUs now = kStart) {
  std::optional<Seen> seen;
  const bool visited = store.lookup(key, hash_bytes(key), now, [&](const View& view) {
    EXPECT_EQ(view.key, key);
    seen = Seen{std::string(view.value), view.is_void, view.meta};
  });
  EXPECT_EQ(visited, seen.has_value());
  return seen;
}

// The value that a reader may use.
inline std::string valid(Store& store, std::string_view key, TimeUs now = kStart) {
  const auto seen = look(store, key, now);
  return seen && !seen->is_void ? seen->value : "-";
}

inline Refusal fill_now(Store& store, std::string_view key, std::string_view value,
                        const Meta& meta = declared(), const std::vector<Hash>& tags = {}) {
  const Hash hash = hash_bytes(key);
  return store.fill(store.ticket(hash), key, hash, value, meta, tags);
}

inline Refusal put_now(Store& store, std::string_view key, std::string_view value,
                       TimeUs expiry = kNever) {
  const Hash hash = hash_bytes(key);
  Store::Locked locked(store, {&hash, 1});
  return locked.put(key, hash, value, expiry);
}

inline bool erase_now(Store& store, std::string_view key) {
  const Hash hash = hash_bytes(key);
  Store::Locked locked(store, {&hash, 1});
  return locked.erase(key, hash);
}

}  // namespace larder::near
