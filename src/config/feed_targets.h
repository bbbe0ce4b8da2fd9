// Which caches a feed's events can make void. Pure.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "cache/spec.h"
#include "feed/spec.h"

namespace larder::config {

// Could a text that begins with `a` be one that begins with `b`? An open pattern goes on with
// something that is not known; one that is not open ends there.
inline bool may_meet(std::string_view a, bool a_open, std::string_view b, bool b_open) {
  if (a == b) return a_open == b_open;
  return (b_open && a.starts_with(b)) || (a_open && b.starts_with(a));
}

inline bool may_name_keys_of(const feed::Rule& rule, const cache::CacheSpec& cache) {
  return rule.key && may_meet(rule.key->prefix(), !rule.key->paths.empty(), cache.key.prefix(),
                              !cache.key.params().empty());
}

inline bool may_name_tags_of(const feed::Rule& rule, const cache::CacheSpec& cache) {
  return rule.tag && std::ranges::any_of(cache.tags, [&](const cache::TagPattern& tag) {
           return may_meet(rule.tag->prefix(), !rule.tag->paths.empty(), tag.literals.front(),
                           !tag.names.empty());
         });
}

// Their names.
inline std::vector<std::string> caches_of(const feed::Rule& rule,
                                          const std::vector<cache::CacheSpec>& caches) {
  std::vector<std::string> names;
  for (const cache::CacheSpec& cache : caches)
    if (may_name_keys_of(rule, cache) || may_name_tags_of(rule, cache)) names.push_back(cache.name);
  return names;
}

}  // namespace larder::config
