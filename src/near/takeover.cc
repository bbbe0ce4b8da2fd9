// A warm start: what an earlier life left, in shared memory or in a snapshot file, is put into a
// store that is made anew. Nothing but the index and the entries of the old one is trusted, and of
// those only what its bounds allow, since it may have ended in the middle of a change: that loses
// the entry which was being changed, at most.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <unordered_set>

#include "near/shard.h"

namespace larder::near {
namespace {

constexpr std::uint64_t kSnapshotMagic = 0x3130'5041'4e53'444cULL;  // "LDSNAP01" backwards

// In front of the shards' regions, as they lay in the arena, and a checksum of each behind them.
struct SnapshotHeader {
  std::uint64_t magic;
  ArenaHeader::Fixed fixed;
  TimeUs saved_at;
  std::uint64_t tag_clock;
  std::uint64_t checksum;  // of what precedes it
};

std::uint64_t checksum_of(const void* bytes, std::size_t size) {
  return hash_bytes({static_cast<const char*>(bytes), size}, kSnapshotMagic);
}

// From one clock to another. Nobody's clock is set by over a century.
DurationUs shift_between(std::int64_t from_anchor_us, std::int64_t to_anchor_us) {
  constexpr DurationUs kCentury = 100LL * 365 * 24 * 3600 * kSecond;
  const auto sane = [](std::int64_t anchor) { return anchor >= -kCentury && anchor <= kCentury; };
  return sane(from_anchor_us) && sane(to_anchor_us) ? to_anchor_us - from_anchor_us : 0;
}

class File {
 public:
  explicit File(int fd) : fd_(fd) {}
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  bool open() const { return fd_ >= 0; }
  bool write(const void* bytes, std::size_t size) {
    const auto* at = static_cast<const char*>(bytes);
    while (size > 0) {
      const ssize_t done = ::write(fd_, at, size);
      if (done < 0 && errno == EINTR) continue;
      if (done <= 0) return false;
      at += done;
      size -= static_cast<std::size_t>(done);
    }
    return true;
  }
  bool read(void* bytes, std::size_t size) {
    auto* at = static_cast<char*>(bytes);
    while (size > 0) {
      const ssize_t done = ::read(fd_, at, size);
      if (done < 0 && errno == EINTR) continue;
      if (done <= 0) return false;
      at += done;
      size -= static_cast<std::size_t>(done);
    }
    return true;
  }
  bool sync() { return fsync(fd_) == 0; }

 private:
  int fd_;
};

Error file_error(std::string_view path, std::string_view what) {
  return {ErrorCode::io,
          fmt::format("near.snapshot: cannot {} {}: {}", what, path, std::strerror(errno)),
          {}};
}

// Memory as the arena's is: buckets begin at cache lines.
class Copy {
 public:
  explicit Copy(std::uint64_t size)
      : bytes_(static_cast<char*>(std::aligned_alloc(Bucket::kLine, size))), size_(size) {
    LARDER_ASSERT(bytes_ != nullptr);
  }
  char* data() { return bytes_.get(); }
  std::uint64_t size() const { return size_; }
  std::span<const char> span() const { return {bytes_.get(), size_}; }

 private:
  struct Free {
    void operator()(char* bytes) const { std::free(bytes); }
  };
  std::unique_ptr<char, Free> bytes_;
  std::uint64_t size_;  // a multiple of the alignment: shards are
};

}  // namespace

// The entries of an old shard's region, each with its block's bounds checked.
class Store::Remains {
 public:
  Remains(std::span<const char> region, const ArenaLayout& layout)
      : region_(region), layout_(layout) {}

  // How many the index had; at most what an eighth of the region holds.
  std::uint32_t buckets() const {
    const auto& index = reinterpret_cast<const ShardState*>(region_.data())->index;
    const std::uint32_t count = index.buckets[(index.growth.load() >> 33) & 1].load();
    const std::uint64_t most = region_.size() / 8 / (sizeof(Bucket) + sizeof(Timer));
    return count <= most ? count : 0;
  }

  // Calls visit(Entry, word) for every entry that the index names.
  template <class Visit>
  void each(Visit&& visit) const {
    const auto& state = *reinterpret_cast<const ShardState*>(region_.data());
    const std::uint64_t growth = state.index.growth.load();
    std::unordered_set<Ref> overflows;  // a chain that was cut in two may meet another
    for (std::uint64_t hash = 0; hash < 1ULL << 32;) {
      // As Index::id_at(), with numbers that may be anything.
      const unsigned place = IndexState::place(growth, hash);
      const std::uint32_t count = state.index.buckets[place].load();
      if (count == 0 || count > std::uint64_t{layout_.max_segments} << Index::kSegmentShift) return;
      const std::uint32_t number = IndexState::number(hash, count);
      const Bucket* bucket = bucket_at(place, number);
      const std::uint64_t boundary = growth & IndexState::kBoundary;
      const std::uint64_t next = IndexState::first_hash(number + 1, count);
      hash = hash < boundary ? std::min(next, boundary) : next;
      while (bucket != nullptr) {
        for (const auto& slot : bucket->refs)
          if (const auto word = word_of(slot.load(std::memory_order_relaxed)); word != 0)
            visit(entry_at(slot.load(std::memory_order_relaxed)), word);
        const Ref next = bucket->overflow();
        if (next == kNoRef || !overflows.insert(next).second) break;
        bucket = inside(next, Index::kOverflowUnits * kGranule)
                     ? reinterpret_cast<const Bucket*>(region_.data() + offset(next) +
                                                       Index::kOverflowOffset)
                     : nullptr;
      }
    }
  }

 private:
  static std::uint64_t offset(Ref ref) { return std::uint64_t{ref} * kGranule; }
  bool inside(Ref ref, std::uint64_t bytes) const {
    return offset(ref) >= layout_.heap_at && offset(ref) + bytes <= region_.size();
  }
  Entry entry_at(Ref ref) const {
    return Entry(const_cast<char*>(region_.data()) + offset(ref));  // it is only read
  }

  const Bucket* bucket_at(unsigned place, std::uint32_t number) const {
    const auto* directory =
        reinterpret_cast<const std::atomic<Ref>*>(region_.data() + layout_.directory_at);
    const Ref segment =
        directory[place * layout_.max_segments + (number >> Index::kSegmentShift)].load();
    const std::uint32_t count = 1U << Index::kSegmentShift;
    if (!inside(segment, count * (sizeof(Bucket) + sizeof(Timer)))) return nullptr;
    return reinterpret_cast<const Bucket*>(region_.data() + offset(segment)) +
           (number & (count - 1));
  }

  // The first word of a whole entry; 0 if it is none.
  std::uint64_t word_of(Ref ref) const {
    if (ref == kNoRef || !inside(ref, kMinBlockUnits * kGranule)) return 0;
    const Entry entry = entry_at(ref);
    const std::uint64_t word = entry.load_bits();
    if ((word & bits::kEntry) == 0 || (word & (bits::kFree | bits::kLimbo)) != 0) return 0;
    if (Entry::is_filled(word) && !inside(ref, Entry::kFilledText)) return 0;
    const std::uint64_t bytes =
        entry.text_offset(word) + Entry::key_size(word) + Entry::value_size(word);
    return inside(ref, bytes) ? word : 0;
  }

  std::span<const char> region_;
  const ArenaLayout& layout_;
};

void Store::restore(std::span<const char> region, const Takeover& how, Restored& restored) {
  const Remains remains(region, arena_.layout());
  std::uint64_t bytes = 0;  // of a damaged index, which may name one entry again and again
  remains.each([&](Entry entry, std::uint64_t word) {
    bytes += entry.block_units(word) * kGranule;
    if (bytes > region.size()) return;
    const std::string_view key = entry.key(word);
    const std::string_view value = entry.value(word);
    const Hash hash = hash_bytes(key);
    Shard& shard = shard_of(hash);
    View view;
    look_at(entry, word, hash, view);
    Meta& meta = view.meta;
    const auto shifted = [&](TimeUs time) {
      return time == kNever ? kNever : saturating_add(time, how.shift_us);
    };
    meta.as_of = shifted(meta.as_of);
    meta.soft_expiry = shifted(meta.soft_expiry);
    meta.useless_at = shifted(meta.useless_at);
    Trust trust = how.trust(meta.cache_id);
    // Tags are known by their slots alone, and generations by partition: both depend on the seed.
    if (Entry::is_filled(word) && !how.same_seed) trust = std::min(trust, Trust::revalidate);
    if (view.is_void) trust = std::min(trust, Trust::revalidate);
    if (trust == Trust::drop || meta.useless_at <= how.now ||
        (trust == Trust::revalidate && (meta.negative || !Entry::is_filled(word)))) {
      ++restored.dropped;
      return;
    }
    std::array<Hash, 255> tags{};
    for (std::size_t i = 0; i < meta.tag_count; ++i) tags[i] = entry.tag_slot(i);
    policy::Ticket ticket{.generation = partitions_[partition_of(hash)].generation.load(),
                          .stamp = meta.tag_count > 0 ? entry.stamp() : 0};
    MutexLock lock(shard.mutex);
    shard.seen_now = std::max(shard.seen_now, how.now);
    Shard::New item{.key = key, .hash = hash, .value = value, .useless_at = meta.useless_at};
    item.restored = true;
    if (Entry::is_filled(word)) {
      item.meta = &meta;
      item.ticket = &ticket;
      item.tags = {tags.data(), meta.tag_count};
    }
    if (shard.install(item) != policy::Refusal::none) {
      ++restored.dropped;
      return;
    }
    const Ref ref = shard.find(key, hash);
    const std::uint8_t hits = hits_of(entry.link()).load(std::memory_order_relaxed);
    hits_of(shard.at(ref).link())
        .store(std::min(hits, std::uint8_t{kMaxHits}), std::memory_order_relaxed);
    if (trust == Trust::revalidate) shard.void_entry(hash, ref);
    ++(trust == Trust::revalidate ? restored.to_revalidate : restored.entries);
  });
}

Store::Restored Store::take_over(TimeUs now, std::int64_t clock_anchor_us,
                                 const std::function<Trust(std::uint16_t)>& trust) {
  ArenaHeader& header = arena_.header();
  Restored restored;
  if (!arena_.found()) return restored;
  header.state.store(ArenaHeader::State::building);
  header.instance.fetch_add(1);  // who reads at this moment has read nothing
  const Takeover how{.now = now,
                     .shift_us = shift_between(header.clock_anchor_us.load(), clock_anchor_us),
                     .same_seed = header.fixed.hash_seed == hash_seed(),
                     .trust = trust};
  header.clock_anchor_us.store(clock_anchor_us);
  // A stamp from the future would refuse its tag's fills until the clock has caught up.
  for (const auto& stamp : tag_stamps_)
    if (stamp.load() > tag_clock_.load()) tag_clock_.store(stamp.load());
  // Copies of all regions before any is made anew: with another seed an entry may change shards.
  std::vector<std::optional<Copy>> regions;
  for (unsigned i = 0; i < options_.shards; ++i) {
    regions.emplace_back(header.fixed.shard_bytes);
    std::memcpy(regions.back()->data(), arena_.shard(i), header.fixed.shard_bytes);
  }
  for (unsigned i = 0; i < options_.shards; ++i) {
    MutexLock lock(shards_[i]->mutex);
    shards_[i]->init(Remains(regions[i]->span(), arena_.layout()).buckets());
  }
  header.fixed.hash_seed = hash_seed();
  header.checksum = near::checksum_of(header.fixed);
  for (std::optional<Copy>& region : regions) {
    restore(region->span(), how, restored);
    region.reset();
  }
  return restored;
}

Result<void> Store::save(const std::string& path, TimeUs now) const {
  const std::string temporary = path + ".new";
  File file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!file.open()) return std::unexpected(file_error(temporary, "write"));
  SnapshotHeader header{};
  header.magic = kSnapshotMagic;
  header.fixed = arena_.header().fixed;
  header.saved_at = now;
  header.tag_clock = tag_clock_.load();
  header.checksum = checksum_of(&header, offsetof(SnapshotHeader, checksum));
  const auto stamps = arena_.tag_stamps();
  const std::size_t stamp_bytes = stamps.size_bytes();
  const std::uint64_t stamps_checksum = checksum_of(stamps.data(), stamp_bytes);
  std::vector<std::uint64_t> generations;
  for (const Partition& partition : partitions_) generations.push_back(partition.generation.load());
  const std::size_t generation_bytes = generations.size() * sizeof(std::uint64_t);
  const std::uint64_t generations_checksum = checksum_of(generations.data(), generation_bytes);
  bool written = file.write(&header, sizeof header) && file.write(stamps.data(), stamp_bytes) &&
                 file.write(&stamps_checksum, sizeof stamps_checksum) &&
                 file.write(generations.data(), generation_bytes) &&
                 file.write(&generations_checksum, sizeof generations_checksum);
  for (unsigned i = 0; i < options_.shards && written; ++i) {
    const MutexLock lock(shards_[i]->mutex);
    const char* region = arena_.shard(i);
    const std::uint64_t checksum = checksum_of(region, header.fixed.shard_bytes);
    written =
        file.write(region, header.fixed.shard_bytes) && file.write(&checksum, sizeof checksum);
  }
  if (!written || !file.sync()) {
    Error error = file_error(temporary, "write");
    unlink(temporary.c_str());
    return std::unexpected(std::move(error));
  }
  if (rename(temporary.c_str(), path.c_str()) != 0) {
    Error error = file_error(path, "replace");
    unlink(temporary.c_str());
    return std::unexpected(std::move(error));
  }
  return {};
}

Result<Store::Restored> Store::load(const std::string& path, TimeUs now,
                                    const std::function<Trust(std::uint16_t)>& trust) {
  File file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.open()) {
    if (errno == ENOENT) return Restored{};
    return std::unexpected(file_error(path, "read"));
  }
  // Used once: after this moment it would only tell of the past.
  unlink(path.c_str());
  const auto refuse = [&](std::string_view why) {
    return fail(ErrorCode::io, fmt::format("near.snapshot {} is not used: {}", path, why));
  };
  SnapshotHeader header{};
  if (!file.read(&header, sizeof header) || header.magic != kSnapshotMagic ||
      header.checksum != checksum_of(&header, offsetof(SnapshotHeader, checksum)))
    return refuse("it is damaged, or something else");
  ArenaHeader::Fixed wanted = arena_.header().fixed;
  wanted.hash_seed = header.fixed.hash_seed;
  if (std::memcmp(&wanted, &header.fixed, sizeof wanted) != 0)
    return refuse("it was made by another version or configuration");
  if (header.saved_at > now) return refuse("the clock has been set back since it was made");

  const auto read_checked = [&](auto& bytes) {
    std::uint64_t checksum = 0;
    return file.read(bytes.data(), bytes.size()) && file.read(&checksum, sizeof checksum) &&
           checksum == checksum_of(bytes.data(), bytes.size());
  };
  std::vector<char> stamps(tag_stamps_.size_bytes());
  std::vector<char> generations(partitions_.size() * sizeof(std::uint64_t));
  if (!read_checked(stamps) || !read_checked(generations)) return refuse("it is damaged");
  const Takeover how{.now = now,
                     .shift_us = 0,
                     .same_seed = header.fixed.hash_seed == hash_seed(),
                     .trust = trust};
  if (how.same_seed) {
    tag_clock_.store(header.tag_clock);
    for (std::size_t i = 0; i < tag_stamps_.size(); ++i) {
      std::uint64_t stamp = 0;
      std::memcpy(&stamp, stamps.data() + i * sizeof stamp, sizeof stamp);
      tag_stamps_[i].store(stamp);
    }
    for (std::size_t i = 0; i < partitions_.size(); ++i) {
      std::uint64_t generation = 0;
      std::memcpy(&generation, generations.data() + i * sizeof generation, sizeof generation);
      partitions_[i].generation.store(generation);
    }
  }
  Restored restored;
  Copy region(header.fixed.shard_bytes);
  for (unsigned i = 0; i < options_.shards; ++i) {
    if (!read_checked(region)) return refuse("it is damaged; what came before is kept");
    restore(region.span(), how, restored);
  }
  return restored;
}

Result<std::optional<std::uint64_t>> Store::seed_of_snapshot(const std::string& path) {
  File file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.open()) {
    if (errno == ENOENT) return std::nullopt;
    return std::unexpected(file_error(path, "read"));
  }
  SnapshotHeader header{};
  if (!file.read(&header, sizeof header) || header.magic != kSnapshotMagic ||
      header.checksum != checksum_of(&header, offsetof(SnapshotHeader, checksum)))
    return std::nullopt;
  return header.fixed.hash_seed;
}

// ---- what other processes go by ----

void Store::publish(TimeUs now, DurationUs lease_us, std::int64_t clock_anchor_us) {
  ArenaHeader& header = arena_.header();
  header.clock_anchor_us.store(clock_anchor_us, std::memory_order_relaxed);
  header.saved_at.store(now, std::memory_order_relaxed);
  for (Partition& partition : partitions_)
    partition.valid_until.store(now + lease_us, std::memory_order_release);
  header.state.store(ArenaHeader::State::serving, std::memory_order_release);
}

void Store::publish_cache(std::uint16_t cache_id, bool readable, DurationUs bound_us,
                          TimeUs heartbeat) {
  const auto caches = arena_.caches();
  if (cache_id == 0 || cache_id > caches.size()) return;
  CacheSlot& slot = caches[cache_id - 1u];
  slot.heartbeat.store(heartbeat, std::memory_order_release);
  slot.bound.store(bound_us, std::memory_order_release);
  slot.readable.store(readable ? 1 : 0, std::memory_order_release);
}

void Store::close_shared() {
  arena_.header().state.store(ArenaHeader::State::closed, std::memory_order_release);
  for (Partition& partition : partitions_)
    partition.valid_until.store(0, std::memory_order_release);
}

void Store::count_hit(Hash hash) {
  const Pin pin;
  if (!pin.held()) return;
  const Shard& shard = shard_of(hash);
  shard.index.each_like(hash, [&](Ref ref) { larder::near::touch(shard.at(ref).link()); });
}

}  // namespace larder::near
