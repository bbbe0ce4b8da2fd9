#include "cache/guarantee.h"

#include <fmt/format.h>

#include "base/units.h"

namespace larder::cache {
namespace {

std::string name_of(const CacheSpec& spec) {
  switch (spec.consistency) {
    case Consistency::eventual: return "eventual";
    case Consistency::bounded: return "bounded:" + format_duration(spec.bound_us);
    case Consistency::strong: return "strong";
  }
  return "?";
}

void describe_feed(const CacheSpec& spec, const source::Capabilities* source, Guarantee& g) {
  if (!source) {
    g.feed = fmt::format("source {} could not be opened", spec.source);
  } else if (!source->feed) {
    g.feed = fmt::format("source {} has no change feed ({})", spec.source, source->why_no_feed);
  } else if (spec.depends_on.empty()) {
    g.feed = "no depends_on says which tables it is made of";
  } else {
    g.fed = true;
    g.feed = fmt::format("change feed of source {} ({})", spec.source, source->feed_rests_on);
  }
}

std::string rests_on(const CacheSpec& spec, const Guarantee& g, bool shared) {
  const std::string ttl = format_duration(spec.ttl_us);
  switch (spec.consistency) {
    case Consistency::eventual:
      if (g.fed)
        return fmt::format("{}; and at the latest on ttl {}, should the feed fall silent", g.feed,
                           ttl);
      return fmt::format(
          "ttl {} for changes by others, because {}{}", ttl, g.feed,
          spec.write == WriteMode::none ? "" : "; writes through Larder are seen at once");
    case Consistency::bounded:
      if (g.fed) return g.feed;
      return fmt::format("effective TTL is min(ttl, bound) = {} because {}",
                         format_duration(g.ttl_us), g.feed);
    case Consistency::strong:
      return fmt::format(
          "linearizable for writes through Larder{}: they invalidate before they commit, and no "
          "stale value is answered, whatever fails; changes by others: {}",
          shared ? ", until the engine fails over" : "",
          g.fed ? g.feed : fmt::format("ttl {}, because {}", ttl, g.feed));
  }
  return {};
}

}  // namespace

Guarantee guarantee_of(const CacheSpec& spec, const source::Capabilities* source, bool shared) {
  Guarantee g{.name = name_of(spec), .rests_on = {}, .feed = {}, .ttl_us = spec.ttl_us};
  describe_feed(spec, source, g);
  if (spec.consistency == Consistency::bounded && !g.fed)
    g.ttl_us = std::min(spec.ttl_us, spec.bound_us);
  g.rests_on = rests_on(spec, g, shared);
  return g;
}

}  // namespace larder::cache
