// Is everything in a shard where it should be? For tests: it walks over all of it.
#include <fmt/format.h>

#include <unordered_set>

#include "near/shard.h"

namespace larder::near {

std::string Store::Shard::verify() {
  std::unordered_set<Ref> entries;
  std::uint64_t free_units = 0;
  std::uint64_t limbo_units = 0;
  std::uint64_t overflows = 0;
  bool before_is_free = false;
  for (Ref block = heap.first(); block != heap.end(); block = heap.next(block)) {
    if (block > heap.end() || heap.units(block) == 0)
      return fmt::format("the heap's blocks do not add up at {}", block);
    const std::uint64_t word = at(block).load_bits();
    if (((word & bits::kPrevFree) != 0) != before_is_free)
      return fmt::format("block {} is wrong about the one before it", block);
    if ((word & bits::kFree) != 0) {
      if (before_is_free) return fmt::format("free block {} was not joined", block);
      free_units += heap.units(block);
    } else if ((word & bits::kLimbo) != 0) {
      limbo_units += heap.units(block);
    } else if ((word & bits::kEntry) != 0) {
      entries.insert(block);
    }
    before_is_free = (word & bits::kFree) != 0;
  }
  if (free_units != heap.free_units()) return "the count of free units is wrong";
  if (limbo_units != limbo_units_) return "the count of limbo units is wrong";
  if (entries.size() != stats.entries)
    return fmt::format("{} entries in the heap, {} counted", entries.size(), stats.entries);

  std::uint64_t indexed = 0;
  std::string wrong;
  each_bucket([&](BucketId id) LARDER_NO_ANALYSIS {
    const Bucket& head = index.bucket(id);
    for (Ref next = head.overflow(); next != kNoRef; next = index.overflow_at(next).overflow())
      ++overflows;
    TimeUs earliest = kNever;
    index.each(head, [&](Ref ref) LARDER_NO_ANALYSIS {
      ++indexed;
      if (!entries.contains(ref)) {
        wrong = fmt::format("bucket {} names {}, which is no entry", id, ref);
        return false;
      }
      const Hash hash = hash_of(ref);
      if (index.id_of(hash) != id) wrong = fmt::format("entry {} is in bucket {}", ref, id);
      if (find(at(ref).key(at(ref).load_bits()), hash) != ref)
        wrong = fmt::format("entry {} is not found", ref);
      earliest = std::min(earliest, at(ref).useless_at(at(ref).load_bits()));
      return true;
    });
    if (earliest != kNever && index.timer(id).slot == 0)
      wrong = fmt::format("bucket {} is not in the wheel", id);
  });
  if (!wrong.empty()) return wrong;
  if (indexed != entries.size()) return "an entry is not in the index";
  if (overflows != state.index.overflows) return "the count of overflow buckets is wrong";

  std::uint64_t queued = 0;
  for (unsigned queue = 0; queue < kQueues; ++queue)
    eviction().for_each(queue, [&](Ref ref) {
      ++queued;
      if (!entries.contains(ref) || Entry::queue(at(ref).load_bits()) != queue)
        wrong = fmt::format("{} is in queue {}", ref, queue);
    });
  if (!wrong.empty()) return wrong;
  return queued == entries.size() ? "" : "an entry is in no queue";
}

std::string Store::verify() {
  for (auto& shard : shards_) {
    MutexLock lock(shard->mutex);
    if (std::string wrong = shard->verify(); !wrong.empty()) return wrong;
  }
  return {};
}

}  // namespace larder::near
