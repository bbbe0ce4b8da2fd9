// What a cache promises, and what that rests on: one place, for the node that keeps it, for EXPLAIN
// and for `larder config check`. Pure.
#pragma once

#include <string>

#include "cache/spec.h"
#include "source/source.h"

namespace larder::cache {

struct Guarantee {
  std::string name;       // "bounded:1s"
  std::string rests_on;   // one sentence
  std::string feed;       // what tells the cache of changes by others, or why nothing does
  bool fed = false;       // the source has a feed, and depends_on says which tables matter
  DurationUs ttl_us = 0;  // effective: min(ttl, bound) for a bounded cache that is not fed
};

// `source`: what the cache's source can do; null if it could not be opened. `shared`: nodes share
// an engine.
Guarantee guarantee_of(const CacheSpec& spec, const source::Capabilities* source, bool shared);

// Does what is promised of an entry still hold when this node was away for a while? Only where its
// age is all that is promised: nobody has listened to the feed meanwhile.
inline bool outlives_the_node(const CacheSpec& spec, const Guarantee& guarantee) {
  return !guarantee.fed && spec.consistency != Consistency::strong;
}

}  // namespace larder::cache
