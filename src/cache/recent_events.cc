#include "cache/recent_events.h"

#include <fmt/format.h>

#include <algorithm>

namespace larder::cache {
namespace {

using Event = RecentEvents::Event;
using Kind = Event::Kind;

constexpr std::size_t kShards = 16;
constexpr std::size_t kMostNames = 255;
constexpr DurationUs kInteresting = 600 * kSecond;

bool is_invalidation(const Event& event) {
  return event.kind == Kind::invalidated || event.kind == Kind::unanswered;
}
bool is_refusal(const Event& event) { return event.kind == Kind::refused; }

}  // namespace

std::vector<std::unique_ptr<RecentEvents::Shard>> RecentEvents::make_shards() {
  std::vector<std::unique_ptr<Shard>> shards;
  shards.reserve(kShards);
  for (std::size_t i = 0; i < kShards; ++i) shards.push_back(std::make_unique<Shard>());
  return shards;
}

void RecentEvents::note(Hash hash, const Event& event) {
  const bool interesting = is_invalidation(event) || is_refusal(event);
  Shard& shard = *shards_[(hash >> 40) % kShards];
  MutexLock lock(shard.mutex);
  Slot& slot = shard.slots[hash % shard.slots.size()];
  if (slot.count == 0 || slot.hash != hash) {
    if (slot.count > 0 && !interesting && event.at < slot.interesting_until) return;
    slot.hash = hash;
    slot.count = 0;
    slot.interesting_until = 0;
  }
  if (interesting) slot.interesting_until = saturating_add(event.at, kInteresting);
  if (slot.count < kEvents) {
    slot.events[slot.count++] = event;
    return;
  }
  Event* invalidation = nullptr;
  Event* refusal = nullptr;
  for (Event& old : slot.events) {
    if (is_invalidation(old) && (invalidation == nullptr || invalidation->at < old.at))
      invalidation = &old;
    if (is_refusal(old) && (refusal == nullptr || refusal->at < old.at)) refusal = &old;
  }
  Event* oldest = nullptr;
  for (Event& old : slot.events)
    if (&old != invalidation && &old != refusal && (oldest == nullptr || old.at < oldest->at))
      oldest = &old;
  *oldest = event;
}

std::uint8_t RecentEvents::feed(std::string_view name) {
  MutexLock lock(names_mutex_);
  const auto found = std::ranges::find(names_, name);
  const auto number = static_cast<std::size_t>(found - names_.begin());
  if (found == names_.end() && number < kMostNames) names_.emplace_back(name);
  return static_cast<std::uint8_t>(std::min(number, kMostNames));
}

std::vector<Event> RecentEvents::of(Hash hash) const {
  std::vector<Event> events;
  const Shard& shard = *shards_[(hash >> 40) % kShards];
  {
    MutexLock lock(shard.mutex);
    const Slot& slot = shard.slots[hash % shard.slots.size()];
    if (slot.hash == hash)
      events.assign(slot.events.begin(),
                    slot.events.begin() + static_cast<std::ptrdiff_t>(slot.count));
  }
  std::ranges::sort(events, {}, &Event::order);
  return events;
}

std::optional<Event> RecentEvents::latest(Hash hash, bool (*wanted)(const Event&)) const {
  std::optional<Event> last;
  for (const Event& event : of(hash))
    if (wanted(event)) last = event;
  return last;
}

std::optional<Event> RecentEvents::last_invalidation(Hash hash) const {
  return latest(hash, is_invalidation);
}

std::optional<Event> RecentEvents::last_refusal(Hash hash) const {
  return latest(hash, is_refusal);
}

std::string RecentEvents::by(const Event& event) const {
  MutexLock lock(names_mutex_);
  return fmt::format("by {}{}{}", event.feed < names_.size() ? names_[event.feed] : "another feed",
                     event.x != 0 ? fmt::format(", change {}", event.x) : std::string(),
                     event.by_tag ? ", tag" : "");
}

std::string RecentEvents::text(const Event& event) const {
  switch (event.kind) {
    case Kind::ticket: return "missed: ticket given";
    case Kind::load:
      return event.x != 0 ? fmt::format("load began; it does not see changes from {} on", event.x)
                          : "load began";
    case Kind::engine: return "taken over from the engine";
    case Kind::stored: return "stored";
    case Kind::refused: return fmt::format("not stored: {}", policy::to_string(event.refusal));
    case Kind::invalidated: return "invalidated " + by(event);
    case Kind::unanswered: return "invalidated here, unconfirmed by the engine, " + by(event);
  }
  return "?";
}

}  // namespace larder::cache
