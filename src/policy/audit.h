// What the auditor concludes from what it saw: is an entry what the source says; if not, since
// when, may that be, what explains it, is it to be repaired, when is it looked at again. ADR 11.
//
// Pure: no clock, no I/O. audit_test.cc walks through all of it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "base/clock.h"
#include "policy/fill_rules.h"

namespace larder::policy {

// ---- one tier beside the source ----

// What a tier would have answered at one moment.
struct AuditEntry {
  std::uint64_t digest = 0;  // of the value; 0 if negative
  bool negative = false;     // "no such row"
  bool alone = false;        // no feed answers for it: it lives for a moment only
  TimeUs as_of = 0;
};

// One entry seen twice, or two? `tolerance_us`: an engine's times are translated from its clock.
bool same_entry(const AuditEntry& a, const AuditEntry& b, DurationUs tolerance_us);

struct AuditRow {
  std::uint64_t digest = 0;
  bool found = false;
  TimeUs as_of = kNever;  // a standby may show an older state than the entry does
};

enum class AuditVerdict : std::uint8_t {
  absent,      // the tier holds nothing that it would answer
  moved,       // nothing can be said: it was replaced or voided while we looked, or is newer than
               // the row
  consistent,  // it answers what the source says
  differs,     // it answered something else before and after the source was asked
};

// `before` and `after`: around the load that gave `row`.
AuditVerdict compare(const std::optional<AuditEntry>& before, const AuditRow& row,
                     const std::optional<AuditEntry>& after, DurationUs tolerance_us);

// ---- what happened to the key ----

// A step of the fill protocol. The kinds are in the order of what begins at one moment.
struct ProtocolEvent {
  enum class Kind : std::uint8_t {
    ticket,       // given on a miss
    load,         // began; x: the first transaction that its snapshot does not see, 0: no snapshot
    engine,       // an entry of the engine was taken over
    stored,       // the load's value
    refused,      // the load's value, for `refusal`
    invalidated,  // x: the transaction that changed it; 0: none is known
    unanswered,   // the same, but the engine did not confirm it: it proves nothing
  };
  Kind kind = Kind::ticket;
  Refusal refusal = Refusal::none;
  std::uint8_t feed = 0;  // invalidated: by whom (the keeper of events knows the name)
  bool by_tag = false;    // invalidated: all entries with a tag that the key has
  TimeUs at = 0;          // invalidated: when the invalidation began
  TxnId x = 0;
  std::uint64_t source_id = 0;  // load, invalidated: the incarnation that x belongs to; 0: unknown

  static std::pair<TimeUs, Kind> order(const ProtocolEvent& event) {
    return {event.at, event.kind};
  }
};

// What the steps prove of an entry that is still there.
struct AuditProof {
  enum class Kind : std::uint8_t {
    none,
    outlived,  // it was loaded before an invalidation of its key
    unseen,    // its load does not see a transaction that has invalidated its key
  };
  Kind kind = Kind::none;
  TimeUs since = 0;  // the earliest such invalidation
};

// `events`: of the key and of tags that it always has, in any order, noted before the entry was
// last seen. `tolerance_us`: by how much `entry.as_of` may be off.
AuditProof prove(std::span<const ProtocolEvent> events, const AuditEntry& entry,
                 DurationUs tolerance_us);

// ---- what it means ----

enum class AuditCause : std::uint8_t {
  outlived,  // as AuditProof
  unseen,
  untold,   // the feed has delivered everything, and nothing that voids the entry
  late,     // the feed has not delivered that much yet
  alone,    // loaded while the engine did not answer, for a moment
  no_feed,  // nobody tells the cache of changes by others
};
std::string_view to_string(AuditCause cause);

struct AuditQuestion {
  TimeUs now = 0;
  TimeUs first_seen = 0;  // the row was another one by then: the first load that said so had ended
  unsigned looks = 1;     // that have seen it differ
  AuditProof proof;
  bool fed = false;      // a feed covers what the cache is made of
  bool alone = false;    // but not these entries
  TimeUs heartbeat = 0;  // fed: every change committed before it had been applied when the entry
                         // was last seen
  std::span<const DurationUs> ages;  // ascending, from 0
};

struct AuditDecision {
  bool violation = false;  // the cache's guarantee excludes it
  AuditCause cause = AuditCause::no_feed;
  DurationUs age_us = 0;  // it has been so for at least so long
  unsigned reached = 0;   // how many of `ages` are at most that
  bool repair = false;
  TimeUs next_look = kNever;
};

AuditDecision decide(const AuditQuestion& question);

// ---- how often ----

struct Consistency {
  double ratio = 1;      // of the checked entries
  double nines = 0;      // 0.999 has three
  bool at_least = true;  // none was stale: more than `nines`, with 95 % confidence
};

// Cost: a logarithm. The bound for 0 of n is the "rule of three": 3 / n.
Consistency consistency_of(std::uint64_t checked, std::uint64_t stale);

}  // namespace larder::policy
