// What a load has seen, in the terms of the source's transactions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace larder::policy {

// Identifies one transaction of one source. PostgreSQL: xid8. SQLite: the number of a change, which
// grows in commit order because writers are serialised. 0 = none.
using TxnId = std::uint64_t;

// The transactions that a load saw as ended: every x < xmin, and every x < xmax that is not in
// `in_progress`. SQLite's snapshots have xmin == xmax and an empty list.
struct Snapshot {
  std::uint64_t source_id = 0;  // which incarnation of the source answered (system id, timeline)
  TxnId xmin = 0;
  TxnId xmax = 0;  // 0: the source has no snapshots; then the ticket alone is the safety
  std::vector<TxnId> in_progress;  // ascending

  bool known() const { return xmax != 0; }

  // Did transaction x end before this snapshot was taken? (Committed or not: an aborted transaction
  // changes nothing.) Never true for a snapshot that is not known.
  bool sees(TxnId x) const {
    if (x < xmin) return true;
    if (x >= xmax) return false;
    return !std::ranges::binary_search(in_progress, x);
  }

  // The same for x and every number below it: for who remembers only the highest of several.
  bool sees_all_up_to(TxnId x) const {
    if (x < xmin) return true;
    if (x >= xmax) return false;
    return in_progress.empty() || in_progress.front() > x;
  }
};

}  // namespace larder::policy
