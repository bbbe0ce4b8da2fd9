// What a user declares, checked and ready to run: config/ makes it, cache/ runs it. Design
// section 4.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "policy/key_pattern.h"
#include "source/source.h"
#include "source/sql_text.h"

namespace larder::cache {

enum class WriteMode : std::uint8_t { none, around, through, behind };
// What a write that waits in the journal does when others have written to its row meanwhile.
enum class Conflict : std::uint8_t {
  ours,         // overwrites it
  theirs,       // is dropped
  dead_letter,  // is kept with the dead letters
};
enum class Consistency : std::uint8_t { eventual, bounded, strong };

// "category:{category}": literals around the names of columns or key parameters.
struct TagPattern {
  std::string text;
  std::vector<std::string> literals;  // one more than names
  std::vector<std::string> names;
};

// "review(product_id -> id, lang -> lang)": a change of a row of `table` changes the entries whose
// key parameters have the values of these columns. Parameters that are not named may have any
// value.
struct Dependency {
  std::string table;
  std::vector<std::pair<std::string, std::string>> columns;  // column, key parameter
};

struct CacheSpec {
  std::string name;
  policy::KeyPattern key;
  std::string source;
  source::Dialect dialect = source::Dialect::sqlite;  // of its statements: that of its source
  std::string load;
  std::string store;  // "" = not declared
  std::string remove;
  std::string increment;
  std::string warm;  // gives the key columns of the rows to warm, best first; may use :n
  source::ResultShape result = source::ResultShape::object;
  WriteMode write = WriteMode::none;
  Conflict conflict = Conflict::ours;  // of write = "behind"
  bool on_del_removes = false;         // on_del = "remove"
  DurationUs ttl_us = 60 * kSecond;
  double jitter = 0.0;  // 0..1, only ever shortens
  DurationUs negative_ttl_us = 0;
  bool sliding = false;
  bool refresh_ahead = false;
  DurationUs stale_while_revalidate_us = 0;
  DurationUs stale_if_error_us = 0;
  DurationUs soft_timeout_us = 0;  // 0 = none
  DurationUs load_timeout_us = 5 * kSecond;
  Consistency consistency = Consistency::eventual;
  DurationUs bound_us = 0;  // of bounded:<time>
  bool near = true;
  std::uint64_t max_value_bytes = 1 << 20;
  std::vector<TagPattern> tags;
  std::vector<Dependency> depends_on;
};

struct SourceSpec {
  std::string name;
  std::string url;  // may carry a secret: never print it, print `display_url`
  std::string display_url;
  std::vector<std::string> replicas = {};  // PostgreSQL: urls of standbys; may carry secrets
  DurationUs replica_lag_us = kSecond;     // farther behind they are not asked
  std::uint32_t pool = 8;
  std::uint32_t queue =
      1024;               // loads and writes that may wait for the pool; beyond: -LARDER_OVERLOADED
  bool triggers = false;  // PostgreSQL: changes are learned from triggers, not from the log
  DurationUs poll_us = 10 * kMillisecond;  // how often a change table is looked at
  std::uint64_t slot_limit_bytes = 0;  // PostgreSQL: log that its slot may hold back; 0: no limit
  std::string query_log;  // a file to which the database's own trace of statements goes; "" = none
};

// What the auditor does by itself (cache/auditor.h).
struct AuditSpec {
  bool enabled = true;  // false: only when it is asked
  unsigned rate = 10;   // keys a second, at most
  // Changed keys are looked at so long after their change; nothing is looked at sooner after start.
  DurationUs delay_us = 60 * kSecond;
  // What differs is looked at again at these ages. Ascending, at most kMostRechecks.
  std::vector<DurationUs> recheck_us = {60 * kSecond, 300 * kSecond, 600 * kSecond};
  std::vector<std::string> except;  // names of caches that are left alone
  static constexpr std::size_t kMostRechecks = 8;
};

// The journal of write = "behind".
struct JournalSpec {
  std::uint64_t capacity_bytes = std::uint64_t{256}
                                 << 20;       // on the disk; beyond: -LARDER_OVERLOADED
  DurationUs drain_timeout_us = 5 * kSecond;  // a stop flushes so long
};

struct PlainSpec {
  bool evict = true;  // false: answer -OOM instead
  // On an engine that tracks:
  std::vector<std::string> near;         // prefixes of keys that may be held in the near tier
  DurationUs near_bound_us = kSecond;    // how long a lost change may go unnoticed
  DurationUs timeout_us = 30 * kSecond;  // of one command that is passed on
};

}  // namespace larder::cache
