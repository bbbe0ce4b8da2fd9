// An engine: where nodes share entries and coordinate. One narrow interface; what an engine cannot
// do is data (Capabilities).
//
// It speaks the three verbs: lookup gives a ticket on a miss, fill stores under it, invalidate
// voids. Thread-safe; calls suspend and resume on the caller's loop.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "base/task.h"
#include "near/store.h"
#include "policy/fill_rules.h"

namespace larder::engine {

struct Capabilities {
  std::string kind;                   // "embedded"
  bool entries_live_in_near = false;  // a stored entry is in the near tier already: it is held once
};

struct Key {
  std::string_view text;
  Hash hash;  // hash_bytes(text)
};

// The unit of invalidation: what transaction x of a source changed.
struct Change {
  unsigned source = 0;  // index of the source that x belongs to
  policy::TxnId x = 0;  // 0: a call or an event without one; then the tickets are the safety
  std::uint64_t source_id = 0;  // the incarnation that x belongs to; 0: the present one
  std::vector<std::string> keys;
  std::vector<std::string> tags;
};

struct Fill {
  Key key;
  unsigned source = 0;
  policy::Ticket ticket;
  const policy::Snapshot& snapshot;
  std::string_view value;
  near::Meta meta;
  std::span<const Hash> tags;  // hash_bytes of their names
};

class Engine {
 public:
  virtual ~Engine() = default;
  virtual const Capabilities& capabilities() const = 0;

  // The right to fill. Take it before the source is read.
  virtual Task<Result<policy::Ticket>> ticket(Key key, unsigned source) = 0;

  // Stores unless the rules refuse; the refusal is a value.
  virtual Task<Result<policy::Refusal>> fill(Fill fill) = 0;

  // Voids entries and tickets; when it returns, no reader of this engine gets them any more.
  // `keep_for_error`: parallel to change.keys; keep the value for stale-if-error.
  virtual Task<Result<void>> invalidate(const Change& change, std::vector<bool> keep_for_error) = 0;

  // The source is now incarnation `source_id`: what was filled from another one is void.
  virtual Task<Result<void>> new_epoch(unsigned source, std::uint64_t source_id) = 0;
};

}  // namespace larder::engine
