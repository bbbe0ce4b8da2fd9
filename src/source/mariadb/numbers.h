// Numbers of transactions where the database gives none that are known before COMMIT: a GTID comes
// with the commit itself. So this process numbers what it writes, and what a log tells it, in one
// sequence. They mean something within this process only.
//
// What a load has seen is read before the load begins: a transaction that has ended by then is seen
// (its COMMIT had been answered, or it can never commit), one that is open, or begins later, is
// not. What the log tells has a place in the log, and is seen if the snapshot of the load contains
// that place (InnoDB's snapshots and the log agree on the order of commits).
#pragma once

#include <compare>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/sync.h"
#include "policy/snapshot.h"

namespace larder::source::mariadb {

// A place between two transactions in a server's log.
struct LogPosition {
  std::uint64_t file = 0;  // 42 of "binlog.000042"
  std::uint64_t offset = 0;
  friend auto operator<=>(const LogPosition&, const LogPosition&) = default;

  // nullopt: it is something else.
  static std::optional<LogPosition> parse(std::string_view file, std::string_view offset);
};

// Thread-safe.
class Numbers {
 public:
  // A transaction whose connection was lost while COMMIT ran: it may still commit, until the
  // session has ended. `lock` is the user lock that the session holds.
  struct Doubt {
    policy::TxnId x = 0;
    std::string lock;
  };
  // What was known when a load began.
  struct Moment {
    policy::TxnId last = 0;           // the highest number that was given
    std::vector<policy::TxnId> open;  // ascending
  };

  // A transaction of ours begins on that server (an incarnation, see Loaded::snapshot).
  policy::TxnId begin(std::uint64_t server);
  // It has been committed, or never will be.
  void end(policy::TxnId x);
  void doubt(policy::TxnId x, std::string lock);
  // It has been committed under this GTID, by which the log will name it. Bounded: of the oldest it
  // is forgotten that they were ours.
  void committed(policy::TxnId x, std::string gtid);
  // COMMITs that have been sent and not been answered.
  void commit_begins();
  void commit_ends();
  bool committing() const;
  // Those of that server, `most` at most.
  std::vector<Doubt> doubts(std::uint64_t server, std::size_t most) const;

  // A log is read from here on, be it another one than before. The number of all that ends before:
  // what has not seen it has to be void, and then nothing more need be known of what was told.
  policy::TxnId begin_log(LogPosition at);
  // A transaction ends here in the server's log. Ascending. Bounded: of the oldest it is remembered
  // only that a snapshot from before them claims nothing.
  policy::TxnId tell(LogPosition end);
  // The number that it has already, if it is one of ours. Once.
  std::optional<policy::TxnId> ours(const std::string& gtid);
  // Has anybody ever told? Else loads need not ask for their place in the log.
  bool follows_log() const;

  Moment now(std::uint64_t server) const;
  // What a load has seen that began at `moment` and, where it has asked, reads as of `at`.
  policy::Snapshot seen(const Moment& moment, std::optional<LogPosition> at,
                        std::uint64_t server) const;

  static constexpr std::size_t kMostTold = 10'000;

 private:
  struct Open {
    std::uint64_t server = 0;
    std::string lock;  // "" = no doubt
  };
  struct Told {
    policy::TxnId x = 0;
    LogPosition end;
  };

  mutable Mutex mutex_;
  policy::TxnId last_ LARDER_GUARDED_BY(mutex_) = 0;
  std::map<policy::TxnId, Open> open_ LARDER_GUARDED_BY(mutex_);
  std::deque<Told> told_ LARDER_GUARDED_BY(mutex_);
  LogPosition forgotten_ LARDER_GUARDED_BY(mutex_);
  bool follows_ LARDER_GUARDED_BY(mutex_) = false;
  std::unordered_map<std::string, policy::TxnId> ours_ LARDER_GUARDED_BY(mutex_);
  std::deque<std::string> ours_order_ LARDER_GUARDED_BY(mutex_);
  std::size_t committing_ LARDER_GUARDED_BY(mutex_) = 0;
};

}  // namespace larder::source::mariadb
