// How an arena is laid out and named: all that a reader in another process must know of it, with
// nothing but the standard library.
#include <algorithm>
#include <bit>

#include "base/hash.h"
#include "near/arena.h"

namespace larder::near {
namespace {

constexpr std::uint64_t kLine = 64;
constexpr std::uint64_t kLeastEntryBytes = 24;
constexpr std::uint64_t kGhostShare = 85;  // one 85th of a shard: 1.2 %

constexpr std::uint64_t up(std::uint64_t bytes, std::uint64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace

std::uint64_t checksum_of(const ArenaHeader::Fixed& fixed) {
  return hash_bytes({reinterpret_cast<const char*>(&fixed), sizeof fixed}, ArenaHeader::kMagic);
}

bool is_shared_name(std::string_view name) {
  constexpr std::string_view kAllowed =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  return !name.empty() && name.size() <= 100 &&
         name.find_first_not_of(kAllowed) == std::string_view::npos;
}

std::string shared_object(std::string_view name) { return std::string("/larder-").append(name); }

Result<ArenaLayout> ArenaLayout::of(const ArenaHeader::Fixed& fixed) {
  const auto refuse = [&](std::string_view why) {
    return std::unexpected(Error{ErrorCode::config, std::string("near tier: ").append(why), {}});
  };
  const auto is_power = [](std::uint32_t n, std::uint32_t most) {
    return std::has_single_bit(n) && n <= most;
  };
  if (!is_power(fixed.shards, 64)) return refuse("shards must be a power of two up to 64");
  if (!is_power(fixed.partitions, 1024))
    return refuse("partitions must be a power of two up to 1024");
  if (!is_power(fixed.tag_slots, 1U << 24) || fixed.caches > 65535)
    return refuse("too many tags or caches");
  ArenaLayout layout;
  layout.caches_at = up(sizeof(ArenaHeader), kLine);
  layout.partitions_at = layout.caches_at + up(fixed.caches * sizeof(CacheSlot), kLine);
  layout.tags_at = layout.partitions_at + up(fixed.partitions * sizeof(Partition), kLine);
  layout.shards_at = layout.tags_at + up(fixed.tag_slots * 8ULL, kLine);
  const std::uint64_t shard = fixed.shard_bytes;
  const std::uint64_t segment_entries = std::uint64_t{8} << Index::kSegmentShift;
  layout.max_segments = static_cast<std::uint32_t>(
      std::min<std::uint64_t>(shard / kLeastEntryBytes / segment_entries + 1, 1U << 25));
  layout.directory_at = up(sizeof(ShardState), kLine);
  layout.ghost_at =
      layout.directory_at + up(std::uint64_t{layout.max_segments} * 2 * sizeof(Ref), kLine);
  layout.ghost_rows = shard / kGhostShare / sizeof(GhostRow);
  layout.heap_at = layout.ghost_at + layout.ghost_rows * sizeof(GhostRow);
  constexpr std::uint64_t kLeastHeap = 4096;
  if (shard % kLine != 0 || shard < layout.heap_at + kLeastHeap)
    return refuse(std::to_string(fixed.bytes) + " bytes are too few for " +
                  std::to_string(fixed.shards) + " shards: raise [near] capacity");
  if (shard / kGranule >= 1ULL << 31)
    return refuse("a shard has at most 16 GiB: lower [near] capacity");
  if (layout.shards_at + fixed.shards * shard > fixed.bytes) return refuse("sizes do not add up");
  return layout;
}

}  // namespace larder::near
