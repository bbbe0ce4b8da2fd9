// Reads an arena that another process writes: by copy and validate.
//
// A reader holds no lock and no pin, so whatever it looks at may be changed, moved or used for
// something else at any moment. It copies what it needs, and then proves by the home bucket's
// control word, the growth of the index and the node's instance and state that nothing of it had
// changed (a seqlock; the copies are atomic word by word, see words.h). An entry's block is used
// again only after its bucket's sequence has stepped. If there is no proof it tries again, a few
// times, and then it is a miss.
//
// The sequence has 32 bits and would come round again under a reader that is stopped for minutes.
// What the node last said of the time (saved_at) tells: that must not have moved far meanwhile.
//
// Nothing in the arena is trusted, except that its writer means well: every place and size is
// checked against the shard's region before it is used, chains and attempts are bounded. What
// cannot be, and was proven to stand there, is `corrupt`.
//
// What may be answered is what the node would answer as fresh (Store::is_void, policy::decide),
// never more. Thread-safe and without state of its own; a view, cheap to copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string_view>

#include "base/clock.h"
#include "base/hash.h"
#include "near/arena.h"
#include "policy/freshness.h"

namespace larder::near {

enum class Answer : std::uint8_t {
  found,
  absent,     // negative entry: the source has no such row
  miss,       // ask the node
  too_small,  // found, but it does not fit
  node_down,  // not serving, or its lease has run out
  restarted,  // the node has another life than when this reader was made: make another one
  corrupt,
};

// For tests only.
struct ReaderRules {
  bool validate = true;  // false: a negative control
  TimeUs now = 0;        // the node's time; 0: by the clock
};

class Reader {
 public:
  enum class Unfit : std::uint8_t { being_made, other_version, corrupt };

  // `memory` begins at a multiple of 64, and outlives this.
  static std::expected<Reader, Unfit> over(std::span<const char> memory,
                                           const ReaderRules& rules = {});

  struct Read {
    Answer answer = Answer::miss;
    bool counts = false;   // a hit that the node should hear of
    std::size_t size = 0;  // of the value: found and too_small
    Hash hash = 0;         // of the key
  };

  // Copies the value to `buffer`, whose contents are undefined if the answer is not `found`. Cost:
  // four or five cache lines and the copy; at most kAttempts of it.
  Read get(std::string_view key, char* buffer, std::size_t capacity) const;

  ArenaHeader::State state() const { return header().state.load(std::memory_order_acquire); }
  // The node's life that this reader was made in, and that in which it is now.
  std::uint64_t instance() const { return instance_; }
  std::uint64_t instance_now() const { return header().instance.load(std::memory_order_acquire); }
  std::uint64_t bytes() const { return fixed_.bytes; }
  // The node's time.
  TimeUs now() const;
  // How long the node's lease lasts from now; 0 or below: it has run out.
  DurationUs lease_left() const;

  static constexpr unsigned kAttempts = 8;
  static constexpr unsigned kMaxChain = 64;  // buckets
  // Of the node's time, during one attempt. The sequence takes minutes to come round.
  static constexpr DurationUs kLongestCopy = 10 * kSecond;

 private:
  // An entry that bears the key, as far as an unproven look can say.
  struct Look {
    bool malformed = false;
    std::uint32_t tags = 0;
    const char* block = nullptr;  // null: there is none
    std::uint64_t word = 0;
    std::uint64_t text = 0;  // where the key begins in the block
  };
  // What must not have changed when all is done.
  struct Proof {
    TimeUs saved_at;
    const std::atomic<std::uint64_t>* control;
    std::uint64_t control_was;
    const std::atomic<std::uint64_t>* growth;
    std::uint64_t growth_was;
    Hash hash;
  };
  struct Terms {
    bool answerable = false;
    TimeUs as_of = 0;
    TimeUs soft_expiry = 0;
    TimeUs heartbeat = 0;
    DurationUs bound = 0;
  };

  Reader(const char* base, const ArenaHeader::Fixed& fixed, const ArenaLayout& layout,
         std::uint64_t instance, const ReaderRules& rules);

  const ArenaHeader& header() const { return *reinterpret_cast<const ArenaHeader*>(base_); }
  const Partition& partition_of(Hash hash) const {
    return partitions_[(hash >> 48) & partition_mask_];
  }
  const char* shard_of(Hash hash) const {
    return shards_ + ((hash >> 58) & shard_mask_) * shard_bytes_;
  }
  bool within(std::uint64_t at, std::uint64_t bytes) const {
    return at + bytes <= shard_bytes_;  // both are below 2^36: no overflow
  }

  bool try_get(std::string_view key, char* buffer, std::size_t capacity, Read& read) const;
  Read get_again(std::string_view key, char* buffer, std::size_t capacity, Hash hash) const;
  const char* bucket_at(const char* shard, std::uint64_t growth, Hash hash) const;
  Look look_for(std::string_view key, Hash hash, const char* shard, const char* home) const;
  bool look_at(std::string_view key, const char* shard, Ref ref, Look& look) const;
  bool shape_of(const char* block, std::uint64_t room, Look& look) const;
  Terms terms_of(const Look& look, Hash hash) const;
  bool is_void(const Look& look, Hash hash) const;
  bool tags_are_void(const Look& look) const;
  bool same_life() const {
    return instance_now() == instance_ && state() == ArenaHeader::State::serving;
  }
  bool holds(const Proof& proof) const;
  TimeUs saved_at() const { return header().saved_at.load(std::memory_order_relaxed); }
  static bool met(const Terms& terms, TimeUs now);
  TimeUs node_time(TimeUs steady) const;

  const char* base_;
  const char* shards_;
  const Partition* partitions_;
  const CacheSlot* caches_;
  const std::atomic<std::uint64_t>* tag_stamps_;
  std::uint32_t shard_mask_;
  std::uint32_t partition_mask_;
  std::uint64_t shard_bytes_;
  std::uint64_t max_buckets_;
  std::uint64_t instance_;
  ArenaHeader::Fixed fixed_;
  ArenaLayout layout_;
  ReaderRules rules_;
};

}  // namespace larder::near
