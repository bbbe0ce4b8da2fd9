#include "cache/auditor.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>

#include "base/units.h"

namespace larder::cache {
namespace {

// So many loads under way: the source has enough to do.
constexpr std::size_t kBusyLoads = 32;
// Who asks for an audit waits so long for what is on its way.
constexpr DurationUs kSettle = kSecond;
constexpr DurationUs kLogEvery = kSecond;
// A shared engine's times are its own clock's, and its messages come a little after the fact.
constexpr DurationUs kSharedTolerance = kSecond;
constexpr DurationUs kSameEntry = 10 * kMillisecond;
constexpr resilience::BackoffLimits kPause{.first_us = kSecond, .most_us = 60 * kSecond};

}  // namespace

Auditor::Auditor(Node::Impl& node, AuditSpec spec, std::uint64_t seed)
    : node_(node),
      spec_(std::move(spec)),
      engine_holds_(!node.engine.capabilities().entries_live_in_near),
      ages_{0},
      random_(seed) {
  LARDER_ASSERT(!spec_.recheck_us.empty());
  ages_.insert(ages_.end(), spec_.recheck_us.begin(), spec_.recheck_us.end());
  // What falls due while the queue is full, at the rate at which it is emptied.
  const auto during = static_cast<std::uint64_t>(spec_.delay_us) * spec_.rate / kSecond;
  most_changes_ = std::clamp<std::uint64_t>(during, kBatch, kMostChanges);
  if (!spec_.enabled) most_changes_ = 0;
  pauses_.resize(node.sources.size(), {.backoff = resilience::Backoff(kPause)});
  metrics_.resize(node.caches.size());
  for (std::size_t i = 0; i < metrics_.size(); ++i) {
    const std::string& name = node.caches[i]->spec.name;
    if (std::ranges::find(spec_.except, name) != spec_.except.end()) continue;
    Metrics& m = metrics_[i];
    m.checked = &node.metrics.counter("larder_audit_checked_total", {{"cache", name}},
                                      "Entries that were compared with their source");
    for (const std::string& age : age_names())
      m.stale.push_back(
          &node.metrics.counter("larder_audit_stale_total", {{"cache", name}, {"age", age}},
                                "Entries that differed from their source for at least that long"));
    m.violations = &node.metrics.counter(
        "larder_audit_violations_total", {{"cache", name}},
        "Entries that differed from their source although the cache's guarantee excludes it");
    m.repaired = &node.metrics.counter("larder_audit_repaired_total", {{"cache", name}},
                                       "Entries that the auditor made void");
    m.skipped = &node.metrics.counter("larder_audit_skipped_total", {{"cache", name}},
                                      "Entries that the source did not answer for");
    m.moved = std::make_unique<obs::Counter>();
  }
  node.metrics.callback(
      obs::Registry::Kind::gauge, "larder_audit_pending", {},
      "Keys that wait for a look of the auditor",
      [this] {
        MutexLock lock(mutex_);
        return static_cast<double>(changes_.size() + suspects_.size());
      },
      this);
}

Auditor::~Auditor() { node_.metrics.remove_callbacks(this); }

// ---- one look ----

DurationUs Auditor::tolerance(Where where) const { return where == kEngine ? kSameEntry : 0; }

void Auditor::peek_near(const CacheRuntime& cache, const std::vector<Target>& targets,
                        std::vector<Held>& held) const {
  const TimeUs now = node_.now();
  for (std::size_t i = 0; i < targets.size(); ++i)
    node_.near.peek(targets[i].key, targets[i].hash, now, [&](const near::View& view) {
      if (view.meta.cache_id != cache.id) return;
      const policy::Freshness fresh =
          node_.judge(cache, view, now, Node::Impl::SourceState::unknown);
      if (fresh > policy::Freshness::revalidate) return;  // no reader would get it
      held[i][kNear] = {.digest = view.meta.negative ? 0 : hash_bytes(view.value),
                        .negative = view.meta.negative,
                        .alone = view.meta.alone,
                        .as_of = view.meta.as_of};
    });
}

Task<void> Auditor::peek_engine(const CacheRuntime& cache, const std::vector<Target>& targets,
                                std::vector<Held>& held) const {
  engine::Lookup question{.cache = cache.in_engine(),
                          .keys = {},
                          .peek = true,
                          .deadline = saturating_add(node_.now(), cache.spec.load_timeout_us)};
  question.keys.reserve(targets.size());
  for (const Target& target : targets) question.keys.push_back({target.key, target.hash});
  const std::vector<engine::Found> found = co_await node_.engine.lookup(std::move(question));
  const TimeUs now = node_.now();
  for (std::size_t i = 0; i < targets.size(); ++i) {
    const engine::Found& one = found[i];
    if (one.kind != engine::Found::Kind::hit || !one.has_value) continue;
    if (node_.judge_found(cache, one, now) > policy::Freshness::revalidate) continue;
    held[i][kEngine] = {.digest = one.meta.negative ? 0 : hash_bytes(one.value),
                        .negative = one.meta.negative,
                        .as_of = one.meta.as_of};
  }
}

Task<std::vector<Auditor::Held>> Auditor::peek(const CacheRuntime& cache,
                                               const std::vector<Target>& targets) const {
  std::vector<Held> held(targets.size());
  peek_near(cache, targets, held);
  if (engine_holds_) co_await peek_engine(cache, targets, held);
  co_return held;
}

// What the source says of the keys: absent where it cannot tell of that row alone.
Task<Result<std::vector<std::optional<policy::AuditRow>>>> Auditor::rows_of(
    unsigned index, const std::vector<Target>& targets) {
  const CacheRuntime& cache = *node_.caches[index];
  std::vector<source::Params> keys;
  std::vector<std::string_view> params;
  keys.reserve(targets.size());
  for (const Target& target : targets) {
    cache.spec.key.match(target.key, params);
    keys.push_back(node_.params_of(cache, params));
  }
  const TimeUs asked = node_.now();
  const TimeUs deadline = saturating_add(asked, cache.spec.load_timeout_us);
  Result<source::Loaded> loaded =
      co_await node_.sources[cache.source]->source->load(index, std::move(keys), deadline);
  if (!loaded) co_return std::unexpected(std::move(loaded.error()));
  if (loaded->rows.size() != targets.size())
    co_return fail(ErrorCode::internal, "the source answered for other keys");
  if (loaded->snapshot.known())
    co_await node_.begin_incarnation(cache.source, loaded->snapshot.source_id, asked);
  std::vector<std::optional<policy::AuditRow>> rows(targets.size());
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (const Result<source::Row>& row = loaded->rows[i])
      rows[i] = {.digest = row->found ? hash_bytes(row->value) : 0,
                 .found = row->found,
                 .as_of = loaded->as_of};
  co_return rows;
}

Task<Auditor::Looked> Auditor::look(unsigned index, std::vector<Target> targets, bool first,
                                    Tally* tally) {
  Looked result;
  const CacheRuntime& cache = *node_.caches[index];
  const Metrics& metrics = metrics_[index];
  std::vector<Held> before = co_await peek(cache, targets);
  std::vector<std::string_view> params;
  std::size_t held = 0;  // those that are, in front
  for (std::size_t i = 0; i < targets.size(); ++i) {
    if (!before[i][kNear] && !before[i][kEngine]) continue;
    if (cache.spec.key.match(targets[i].key, params) != policy::Match::yes) continue;
    std::swap(targets[held], targets[i]);
    std::swap(before[held], before[i]);
    ++held;
  }
  if (held == 0) co_return result;
  targets.resize(held);
  Result<std::vector<std::optional<policy::AuditRow>>> rows = co_await rows_of(index, targets);
  std::vector<Doubt> doubts;
  for (std::size_t i = 0; i < held; ++i) {
    if (!rows || !(*rows)[i]) {
      if (first) add(index, *metrics.skipped, &AuditCounts::skipped, tally);
      continue;
    }
    const policy::AuditRow row = *(*rows)[i];
    bool equal = true;
    for (const auto& tier : before[i])
      equal &= !tier || policy::compare(tier, row, tier, 0) == policy::AuditVerdict::consistent;
    if (!equal)
      doubts.push_back({std::move(targets[i]), before[i], row});
    else if (first)
      add(index, *metrics.checked, &AuditCounts::checked, tally);
  }
  if (!rows) result.failed = std::move(rows.error());
  if (!doubts.empty()) result.differ = co_await see_again(index, std::move(doubts), first, tally);
  co_return result;
}

// Those of whom the same entry is there still.
Task<std::vector<Auditor::Suspect>> Auditor::see_again(unsigned index, std::vector<Doubt> doubts,
                                                       bool first, Tally* tally) {
  const CacheRuntime& cache = *node_.caches[index];
  const Metrics& metrics = metrics_[index];
  // What is known now had been applied when the entry is seen again below; what becomes known
  // later proves nothing of it.
  std::vector<Suspect> suspects(doubts.size());
  std::vector<Target> targets(doubts.size());
  for (std::size_t i = 0; i < doubts.size(); ++i) {
    targets[i] = doubts[i].target;
    suspects[i] = {.target = targets[i],
                   .held = {},
                   .first_seen = node_.now(),
                   .steps = steps_of(targets[i]),
                   .heartbeat = node_.sources[cache.source]->heartbeat_of(targets[i].key)};
  }
  const std::vector<Held> after = co_await peek(cache, targets);
  std::vector<Suspect> differ;
  for (std::size_t i = 0; i < doubts.size(); ++i) {
    bool differs = false;
    bool consistent = false;
    for (const Where where : {kNear, kEngine}) {
      const auto& was = doubts[i].before[where];
      const policy::AuditVerdict verdict =
          policy::compare(was, doubts[i].row, after[i][where], tolerance(where));
      consistent |= verdict == policy::AuditVerdict::consistent;
      if (verdict != policy::AuditVerdict::differs) continue;
      differs = true;
      suspects[i].held[where] = was;
    }
    if (first && (differs || consistent))
      add(index, *metrics.checked, &AuditCounts::checked, tally);
    if (first && !differs && !consistent) add(index, *metrics.moved, &AuditCounts::moved, tally);
    if (differs) differ.push_back(std::move(suspects[i]));
  }
  co_return differ;
}

// ---- what it means ----

// Of the key, and of what voids it whatever its row says.
std::vector<policy::ProtocolEvent> Auditor::steps_of(const Target& target) const {
  const CacheRuntime& cache = *node_.caches[target.cache];
  std::vector<policy::ProtocolEvent> steps = node_.events.of(target.hash);
  std::vector<std::string_view> params;
  cache.spec.key.match(target.key, params);
  std::vector<std::string> tags{cache.cache_tag};
  for (const PartialDependency& partial : cache.partial) {
    std::vector<std::string_view> values;
    values.reserve(partial.params.size());
    for (const int param : partial.params)
      values.push_back(params[static_cast<std::size_t>(param)]);
    tags.push_back(partial_tag(partial.watched_id, cache.spec, values));
  }
  for (const std::string& tag : tags) {
    const auto of_tag = node_.events.of(hash_bytes(tag));
    steps.insert(steps.end(), of_tag.begin(), of_tag.end());
  }
  std::ranges::sort(steps, {}, &policy::ProtocolEvent::order);
  return steps;
}

AuditFinding Auditor::finding_of(const Suspect& suspect,
                                 const policy::AuditDecision& decision) const {
  const TimeUs now = node_.now();
  AuditFinding found{.cache = node_.caches[suspect.target.cache]->spec.name,
                     .key = suspect.target.key,
                     .tiers = {},
                     .found_at = now,
                     .stale_us = decision.age_us,
                     .violation = decision.violation,
                     .cause = std::string(policy::to_string(decision.cause)),
                     .repair = {},
                     .steps = {}};
  for (const Where where : {kNear, kEngine}) {
    if (!suspect.held[where]) continue;
    found.tiers += found.tiers.empty() ? "" : ", ";
    found.tiers += where == kNear ? "near" : "engine";
    found.entry_us = std::max(found.entry_us, now - suspect.held[where]->as_of);
  }
  for (const policy::ProtocolEvent& step : suspect.steps)
    found.steps.push_back(fmt::format("{} before: {}",
                                      duration(std::max<DurationUs>(0, now - step.at)),
                                      node_.events.text(step)));
  if (decision.cause == policy::AuditCause::no_feed)
    found.cause += fmt::format(" ({})", node_.caches[suspect.target.cache]->guarantee.feed);
  return found;
}

Task<std::string> Auditor::repair(const Suspect& suspect) {
  const CacheRuntime& cache = *node_.caches[suspect.target.cache];
  std::vector<engine::Change> change{
      {.source = cache.source, .keys = {suspect.target.key}, .tags = {}}};
  const Result<void> done = co_await node_.invalidate(std::move(change), kFeed);
  co_return done ? std::string("done") : to_string(done.error());
}

Task<std::optional<Auditor::Suspect>> Auditor::conclude(Suspect suspect, Tally* tally) {
  const unsigned index = suspect.target.cache;
  const CacheRuntime& cache = *node_.caches[index];
  const Metrics& metrics = metrics_[index];
  policy::AuditQuestion question{
      .now = node_.now(),
      .first_seen = suspect.first_seen,
      .looks = suspect.looks,
      .fed = cache.guarantee.fed,
      .alone = std::ranges::none_of(suspect.held,
                                    [](const auto& entry) { return entry && !entry->alone; }),
      .heartbeat = suspect.heartbeat,
      .ages = ages_};
  const bool shared = node_.engine.capabilities().shared;
  for (const auto& entry : suspect.held) {
    if (!entry || entry->alone || question.proof.kind != policy::AuditProof::Kind::none) continue;
    question.proof = policy::prove(suspect.steps, *entry, shared ? kSharedTolerance : 0);
  }
  const policy::AuditDecision decision = policy::decide(question);
  for (; suspect.counted < decision.reached; ++suspect.counted) {
    metrics.stale[suspect.counted]->add();
    if (tally != nullptr) ++(*tally)[index].stale[suspect.counted];
  }
  if (decision.violation && !suspect.violated) {
    suspect.violated = true;
    add(index, *metrics.violations, &AuditCounts::violations, tally);
  }
  if (decision.repair) {
    AuditFinding found = finding_of(suspect, decision);
    found.repair = co_await repair(suspect);
    if (found.repair == "done") add(index, *metrics.repaired, &AuditCounts::repaired, tally);
    tell(suspect, std::move(found));
  }
  if (decision.next_look == kNever) co_return std::nullopt;
  suspect.due = decision.next_look;
  co_return suspect;
}

// Keeps it for whoever asks, and says it in the log: one a second, the rest as a number.
void Auditor::tell(Suspect& suspect, AuditFinding found) {
  std::string line;
  {
    MutexLock lock(mutex_);
    const bool again = suspect.finding != 0;
    if (!again) suspect.finding = ++numbers_;
    const auto known = std::ranges::find(findings_, suspect.finding, &Finding::number);
    if (node_.log && found.found_at >= logged_at_ + kLogEvery) {
      logged_at_ = found.found_at;
      line = fmt::format(
          "audit: {} (cache {}, {}) {} what its source says, for at least {}{}: {}. Repair: {}. "
          "Steps: {}",
          found.key, found.cache, found.tiers, again ? "is still not" : "is not",
          duration(found.stale_us), found.violation ? ", against the guarantee" : "", found.cause,
          found.repair,
          found.steps.empty() ? "none remembered"
                              : fmt::format("{}", fmt::join(found.steps, "; ")));
      if (unlogged_ > 0) line += fmt::format(". And {} others", std::exchange(unlogged_, 0));
    } else {
      ++unlogged_;
    }
    if (known != findings_.end()) {
      known->what = std::move(found);
    } else {
      findings_.push_back({suspect.finding, std::move(found)});
      if (findings_.size() > kMostFindings) findings_.pop_front();
    }
  }
  if (!line.empty()) node_.log(std::move(line));
}

// ---- many ----

Task<std::vector<Auditor::Suspect>> Auditor::look_at(std::vector<Target> targets, Tally* tally) {
  std::vector<Suspect> open;
  std::vector<std::vector<Target>> by_cache(node_.caches.size());
  for (Target& target : targets) by_cache[target.cache].push_back(std::move(target));
  for (unsigned index = 0; index < by_cache.size(); ++index) {
    std::vector<Target>& all = by_cache[index];
    while (!all.empty() && !node_.draining) {
      const auto from = all.end() - static_cast<std::ptrdiff_t>(std::min(all.size(), kBatch));
      std::vector<Target> batch(std::make_move_iterator(from), std::make_move_iterator(all.end()));
      all.erase(from, all.end());
      Looked looked = co_await look(index, std::move(batch), true, tally);
      source_answered(index, looked.failed);
      if (looked.failed) break;
      for (Suspect& one : looked.differ) {
        std::optional<Suspect> rest = co_await conclude(std::move(one), tally);
        if (rest) open.push_back(std::move(*rest));
      }
    }
  }
  co_return open;
}

Task<std::vector<Auditor::Suspect>> Auditor::look_again(std::vector<Suspect> suspects,
                                                        Tally* tally) {
  std::vector<Suspect> open;
  std::ranges::sort(suspects, {}, [](const Suspect& one) { return one.target.cache; });
  for (std::size_t from = 0; from < suspects.size();) {
    const unsigned index = suspects[from].target.cache;
    std::vector<Target> targets;
    std::size_t to = from;
    for (; to < suspects.size() && suspects[to].target.cache == index && to - from < kBatch; ++to)
      targets.push_back(suspects[to].target);
    Looked looked = co_await look(index, std::move(targets), false, tally);
    source_answered(index, looked.failed);
    for (; from < to; ++from) {
      Suspect& suspect = suspects[from];
      if (looked.failed) {  // when it answers again
        suspect.due = saturating_add(node_.now(), kPause.most_us);
        open.push_back(std::move(suspect));
        continue;
      }
      const auto seen = std::ranges::find(looked.differ, suspect.target.key,
                                          [](const Suspect& one) { return one.target.key; });
      if (seen == looked.differ.end()) continue;
      bool same = false;  // another entry would be another story
      for (const Where where : {kNear, kEngine}) {
        auto& held = suspect.held[where];
        if (held && (!seen->held[where] ||
                     !policy::same_entry(*held, *seen->held[where], tolerance(where))))
          held.reset();
        same |= held.has_value();
      }
      if (!same) continue;
      ++suspect.looks;
      suspect.steps = std::move(seen->steps);
      suspect.heartbeat = seen->heartbeat;
      std::optional<Suspect> rest = co_await conclude(std::move(suspect), tally);
      if (rest) open.push_back(std::move(*rest));
    }
  }
  co_return open;
}

// ---- by itself ----

Task<void> Auditor::work(TimeUs now, std::size_t most) {
  // Half for what has changed, half for what lies there; what one does not use the other may.
  std::vector<Target> targets = changes_due(now, most);
  const std::size_t changed = std::min(targets.size(), (most + 1) / 2);
  std::vector<Target> sampled = sample(most - changed, now);
  const std::size_t room = most - sampled.size();
  if (targets.size() > room) {  // the rest goes back: it is due
    MutexLock lock(mutex_);
    while (targets.size() > room) {
      Target& last = targets.back();
      if (waiting_.insert(last.hash).second)
        changes_.push_front({std::move(last.key), last.hash, now});
      targets.pop_back();
    }
  }
  targets.insert(targets.end(), std::make_move_iterator(sampled.begin()),
                 std::make_move_iterator(sampled.end()));
  std::erase_if(targets, [&](const Target& one) { return skips(one, now); });
  std::vector<Suspect> open = co_await look_at(std::move(targets), nullptr);
  for (Suspect& suspect : open) keep(std::move(suspect));
}

Task<void> Auditor::run() {
  if (!spec_.enabled || spec_.rate == 0) co_return;
  const std::size_t most = std::min<std::size_t>(spec_.rate, kBatch);
  const auto period = static_cast<DurationUs>(most) * kSecond / spec_.rate;
  TimeUs next = saturating_add(node_.now(), spec_.delay_us);
  while (true) {
    const TimeUs wake = std::min(next, next_suspect());
    const bool stopping = co_await node_.group.sleep_until(wake);
    if (stopping || node_.draining) co_return;
    TimeUs now = node_.now();
    if (std::vector<Suspect> due = suspects_due(now); !due.empty()) {
      std::vector<Suspect> open = co_await look_again(std::move(due), nullptr);
      for (Suspect& suspect : open) keep(std::move(suspect));
      now = node_.now();
    }
    if (now < next) continue;
    next = saturating_add(now, period);
    if (node_.flights.size() < kBusyLoads) co_await work(now, most);
  }
}

// ---- when it is asked ----

Task<Result<AuditReport>> Auditor::audit(std::uint64_t most) {
  if (asked_.exchange(true))
    co_return fail(ErrorCode::overloaded, "an audit is under way; ask again when it has ended");
  Tally tally = no_counts();
  const std::uint64_t before = [&] {
    MutexLock lock(mutex_);
    problem_.clear();
    return numbers_;
  }();
  std::vector<Target> targets = co_await gather(most);
  std::vector<Suspect> open = co_await look_at(std::move(targets), &tally);
  const bool unsure =
      std::ranges::any_of(open, [](const Suspect& one) { return one.finding == 0; });
  bool stopping = node_.draining;
  if (unsure && !stopping) {
    const TimeUs settled = saturating_add(node_.now(), kSettle);
    stopping = co_await node_.group.sleep_until(settled);
  }
  if (!stopping) open = co_await look_again(std::move(open), &tally);
  for (Suspect& suspect : open) keep(std::move(suspect));
  asked_ = false;
  if (stopping) co_return fail(ErrorCode::cancelled, "Larder is shutting down");
  AuditReport result = report(node_.now());
  std::vector<AuditFinding> found;
  {
    MutexLock lock(mutex_);
    for (const Finding& finding : findings_)
      if (finding.number > before) found.push_back(finding.what);
  }
  result.findings = std::move(found);
  result.caches.clear();
  for (unsigned index = 0; index < tally.size(); ++index)
    if (audits(index)) result.caches.push_back(std::move(tally[index]));
  co_return result;
}

// ---- what it tells ----

void Auditor::add(unsigned cache, obs::Counter& counter, std::uint64_t AuditCounts::* field,
                  Tally* tally) const {
  counter.add();
  if (tally != nullptr) ++((*tally)[cache].*field);
}

std::vector<std::string> Auditor::age_names() const {
  std::vector<std::string> names;
  names.reserve(ages_.size());
  for (const DurationUs age : ages_) names.push_back(format_duration(age));
  return names;
}

Auditor::Tally Auditor::no_counts() const {
  Tally counts;
  for (const auto& cache : node_.caches)
    counts.push_back(
        {.cache = cache->spec.name, .stale = std::vector<std::uint64_t>(ages_.size())});
  return counts;
}

AuditReport Auditor::report(TimeUs now) const {
  AuditReport report{.at = now, .ages = age_names(), .caches = {}, .findings = {}};
  for (unsigned index = 0; index < metrics_.size(); ++index) {
    if (!audits(index)) continue;
    const Metrics& m = metrics_[index];
    AuditCounts counts{.cache = node_.caches[index]->spec.name,
                       .checked = m.checked->value(),
                       .stale = {},
                       .violations = m.violations->value(),
                       .repaired = m.repaired->value(),
                       .moved = m.moved->value(),
                       .skipped = m.skipped->value()};
    for (const obs::Counter* stale : m.stale) counts.stale.push_back(stale->value());
    report.caches.push_back(std::move(counts));
  }
  report.dropped = dropped_.load(std::memory_order_relaxed);
  MutexLock lock(mutex_);
  report.pending = changes_.size() + suspects_.size();
  report.problem = problem_;
  for (const Finding& finding : findings_) report.findings.push_back(finding.what);
  return report;
}

Task<Result<AuditReport>> Node::audit(std::uint64_t most) {
  Result<AuditReport> report = co_await impl_->auditor->audit(most);
  co_return report;
}

AuditReport Node::audited(TimeUs now) const { return impl_->auditor->report(now); }

}  // namespace larder::cache
