// Which keys the auditor looks at, and when: what has changed, what lies there, what differed.
#include <algorithm>

#include "cache/auditor.h"

namespace larder::cache {
namespace {

constexpr unsigned kBucketsAtOnce = 4;
constexpr unsigned kMostScans = 64;  // for the keys of one moment; beyond, nearly all are plain

}  // namespace

void Auditor::changed(std::string_view key, Hash hash, TimeUs at, std::string_view feed) {
  // Its own repairs are looked at as suspects.
  if (most_changes_ == 0 || feed == kFeed) return;
  MutexLock lock(mutex_);
  if (waiting_.contains(hash)) return;
  if (changes_.size() >= most_changes_) {
    dropped_.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  waiting_.insert(hash);
  changes_.push_back({std::string(key), hash, saturating_add(at, spec_.delay_us)});
}

void Auditor::keep(Suspect suspect) {
  if (!spec_.enabled) return;  // nobody would look
  MutexLock lock(mutex_);
  if (suspects_.size() < kMostSuspects)
    suspects_.push_back(std::move(suspect));
  else
    dropped_.fetch_add(1, std::memory_order_relaxed);
}

bool Auditor::scan(std::deque<Target>& into) {
  const std::uint64_t next =
      node_.near.scan(cursor_.load(), kBucketsAtOnce, node_.now(), [&](const near::View& view) {
        const std::uint16_t id = view.meta.cache_id;
        if (id == 0 || id > node_.caches.size() || view.is_void || !audits(id - 1u)) return;
        into.push_back({.cache = id - 1u, .key = std::string(view.key), .hash = 0});
      });
  cursor_.store(next);
  return next == 0;
}

// A turn through a small store takes as long as a stale entry is left alone: so each is met, and
// counted, about once before it is repaired.
std::vector<Auditor::Target> Auditor::sample(std::size_t most, TimeUs now) {
  std::deque<Target> found;
  TimeUs began = 0;
  {
    MutexLock lock(mutex_);
    found.swap(sampled_);
    began = turn_began_ != 0 ? turn_began_ : now;
  }
  for (unsigned i = 0; i < kMostScans && found.size() < most && now >= began; ++i)
    if (scan(found)) began = std::max(now, saturating_add(began, ages_[1]));
  std::vector<Target> chosen;
  for (; chosen.size() < most && !found.empty(); found.pop_front()) {
    chosen.push_back(std::move(found.front()));
    chosen.back().hash = hash_bytes(chosen.back().key);
  }
  MutexLock lock(mutex_);
  sampled_ = std::move(found);
  turn_began_ = began;
  return chosen;
}

// From where the cursor is, once around the store at least, if that is needed.
Task<std::vector<Auditor::Target>> Auditor::gather(std::size_t most) {
  std::vector<Target> chosen;
  std::unordered_set<Hash> known;
  std::deque<Target> found;
  for (unsigned ends = 0, scans = 1; ends < 2 && chosen.size() < most; ++scans) {
    ends += scan(found) ? 1 : 0;
    for (; !found.empty() && chosen.size() < most; found.pop_front()) {
      Target& one = found.front();
      one.hash = hash_bytes(one.key);
      if (known.insert(one.hash).second) chosen.push_back(std::move(one));
    }
    if (scans % kMostScans != 0) continue;
    const TimeUs at = node_.now();  // others want the loop, too
    const bool stopping = co_await node_.group.sleep_until(at);
    if (stopping) break;
  }
  co_return chosen;
}

std::vector<Auditor::Target> Auditor::changes_due(TimeUs now, std::size_t most) {
  std::vector<Target> due;
  MutexLock lock(mutex_);
  while (due.size() < most && !changes_.empty() && changes_.front().due <= now) {
    Change change = std::move(changes_.front());
    changes_.pop_front();
    waiting_.erase(change.hash);
    const int cache = node_.cache_of(change.key);
    if (cache >= 0 && audits(static_cast<unsigned>(cache)))
      due.push_back({static_cast<unsigned>(cache), std::move(change.key), change.hash});
  }
  return due;
}

std::vector<Auditor::Suspect> Auditor::suspects_due(TimeUs now) {
  std::vector<Suspect> due;
  MutexLock lock(mutex_);
  for (std::size_t i = 0; i < suspects_.size() && due.size() < kBatch;) {
    if (suspects_[i].due > now) {
      ++i;
      continue;
    }
    due.push_back(std::move(suspects_[i]));
    if (i + 1 < suspects_.size()) suspects_[i] = std::move(suspects_.back());
    suspects_.pop_back();
  }
  return due;
}

TimeUs Auditor::next_suspect() const {
  MutexLock lock(mutex_);
  TimeUs next = kNever;
  for (const Suspect& suspect : suspects_) next = std::min(next, suspect.due);
  return next;
}

bool Auditor::skips(const Target& target, TimeUs now) const {
  MutexLock lock(mutex_);
  return now < pauses_[node_.caches[target.cache]->source].until ||
         std::ranges::any_of(
             suspects_,
             [&](const Suspect& one) {
               return one.target.hash == target.hash && one.target.key == target.key;
             });
}

void Auditor::source_answered(unsigned cache, const std::optional<Error>& failed) {
  const SourceRuntime& source = *node_.sources[node_.caches[cache]->source];
  MutexLock lock(mutex_);
  SourcePause& pause = pauses_[node_.caches[cache]->source];
  if (!failed) {
    pause.backoff.reset();
    pause.until = 0;
    return;
  }
  pause.until = saturating_add(node_.now(), pause.backoff.next(random_));
  problem_ = fmt::format("source {}: {}", source.name, to_string(*failed));
}

}  // namespace larder::cache
