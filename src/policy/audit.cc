#include "policy/audit.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace larder::policy {
namespace {

bool shows(const AuditEntry& entry, const AuditRow& row) {
  if (entry.negative || !row.found) return entry.negative != row.found;
  return entry.digest == row.digest;
}

// Did the load that gave the entry miss this transaction? Of several that began at that moment
// any may have given it.
bool misses(std::span<const ProtocolEvent> events, const AuditEntry& entry,
            const ProtocolEvent& change) {
  if (change.x == 0 || change.source_id == 0) return false;
  bool all = false;
  for (const ProtocolEvent& event : events) {
    if (event.kind != ProtocolEvent::Kind::load || event.at != entry.as_of) continue;
    if (event.x == 0 || event.source_id != change.source_id || change.x < event.x) return false;
    all = true;
  }
  return all;
}

}  // namespace

bool same_entry(const AuditEntry& a, const AuditEntry& b, DurationUs tolerance_us) {
  return a.digest == b.digest && a.negative == b.negative &&
         std::abs(a.as_of - b.as_of) <= tolerance_us;
}

AuditVerdict compare(const std::optional<AuditEntry>& before, const AuditRow& row,
                     const std::optional<AuditEntry>& after, DurationUs tolerance_us) {
  if (!before) return AuditVerdict::absent;
  if (shows(*before, row)) return AuditVerdict::consistent;
  if (saturating_add(row.as_of, tolerance_us) < before->as_of) return AuditVerdict::moved;
  return after && same_entry(*before, *after, tolerance_us) ? AuditVerdict::differs
                                                            : AuditVerdict::moved;
}

AuditProof prove(std::span<const ProtocolEvent> events, const AuditEntry& entry,
                 DurationUs tolerance_us) {
  AuditProof proof;
  for (const ProtocolEvent& event : events) {
    if (event.kind != ProtocolEvent::Kind::invalidated) continue;
    // Its ticket was taken no later than its load began, hence before the invalidation.
    const bool outlived = saturating_add(entry.as_of, tolerance_us) < event.at;
    if (!outlived && !misses(events, entry, event)) continue;
    const TimeUs since = std::max(event.at, entry.as_of);
    if (proof.kind != AuditProof::Kind::none && proof.since <= since) continue;
    proof = {outlived ? AuditProof::Kind::outlived : AuditProof::Kind::unseen, since};
  }
  return proof;
}

std::string_view to_string(AuditCause cause) {
  switch (cause) {
    case AuditCause::outlived:
      return "it was loaded before an invalidation of its key and is still there: Larder or its "
             "engine has lost the invalidation";
    case AuditCause::unseen:
      return "it was stored although its load did not see a change that had invalidated its key: "
             "a rule of the fill protocol did not hold";
    case AuditCause::untold:
      return "the feed has delivered everything and nothing that voids it: depends_on or a trigger "
             "misses what has changed, or the load does not give the same row twice";
    case AuditCause::late:
      return "the feed has not delivered that much yet: the change is on its way, or the feed is "
             "silent";
    case AuditCause::alone:
      return "it was loaded while the engine did not answer: it lives for a moment, and no feed "
             "answers for it";
    case AuditCause::no_feed: return "no feed tells of changes by others: it lives until its TTL";
  }
  return "?";
}

AuditDecision decide(const AuditQuestion& in) {
  AuditDecision out;
  TimeUs since = in.first_seen;
  if (in.proof.kind != AuditProof::Kind::none) {
    since = std::min(since, in.proof.since);
    out.cause =
        in.proof.kind == AuditProof::Kind::outlived ? AuditCause::outlived : AuditCause::unseen;
    out.violation = true;
  } else if (in.alone) {
    out.cause = AuditCause::alone;
  } else if (in.fed) {
    // The row had changed when the look ended. What was committed before the heartbeat is applied.
    out.violation = in.heartbeat > in.first_seen;
    out.cause = out.violation ? AuditCause::untold : AuditCause::late;
  }
  out.age_us = std::max<DurationUs>(0, in.now - since);
  out.repair = out.violation || in.looks >= 2;
  const auto beyond = std::ranges::upper_bound(in.ages, out.age_us);
  out.reached = static_cast<unsigned>(beyond - in.ages.begin());
  if (beyond != in.ages.end()) out.next_look = saturating_add(since, *beyond);
  return out;
}

Consistency consistency_of(std::uint64_t checked, std::uint64_t stale) {
  if (checked == 0) return {};
  const auto all = static_cast<double>(checked);
  const double share = std::min(1.0, static_cast<double>(stale) / all);
  const double bound = stale == 0 ? std::min(1.0, 3.0 / all) : share;
  return {.ratio = 1 - share, .nines = std::max(0.0, -std::log10(bound)), .at_least = stale == 0};
}

}  // namespace larder::policy
