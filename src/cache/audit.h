// What the auditor reports: of one run, or of all since the start. ADR 11; docs/audit.md.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"

namespace larder::cache {

struct AuditCounts {
  std::string cache;
  std::uint64_t checked = 0;         // entries that were compared with the source
  std::vector<std::uint64_t> stale;  // by age (AuditReport::ages): differed for at least so long
  std::uint64_t violations = 0;      // of those, beyond what the cache guarantees
  std::uint64_t repaired = 0;        // made void
  std::uint64_t moved = 0;           // replaced or voided while we looked: not in `checked`
  std::uint64_t skipped = 0;         // the source did not answer: not in `checked`
};

// An entry that differed from its source at two looks, or against the guarantee.
struct AuditFinding {
  std::string cache;
  std::string key;
  std::string tiers;        // "near", "engine", "near, engine"
  TimeUs found_at = 0;      // when that was certain
  DurationUs stale_us = 0;  // it has differed for at least so long
  DurationUs entry_us = 0;  // the entry's age: it has differed for at most so long
  bool violation = false;
  std::string cause;
  std::string repair;              // "done", or why it failed
  std::vector<std::string> steps;  // the last steps of the key, oldest first
};

struct AuditReport {
  TimeUs at = 0;
  std::vector<std::string> ages;       // "0", "1m", "5m", "10m"
  std::vector<AuditCounts> caches;     // all that are audited, in order of declaration
  std::vector<AuditFinding> findings;  // the latest, oldest first
  std::uint64_t pending = 0;           // keys that wait for their look
  std::uint64_t dropped = 0;           // that found no room to wait
  std::string problem;                 // the last thing that kept it from looking; "" = nothing
};

std::string to_json(const AuditReport& report);

}  // namespace larder::cache
