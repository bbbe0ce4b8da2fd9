#include "near/arena.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/hash.h"

namespace larder::near {
namespace {

constexpr std::uint64_t kLine = 64;
constexpr std::uint64_t kHugePage = 2 << 20;

constexpr std::uint64_t up(std::uint64_t bytes, std::uint64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

std::uint64_t page() {
  static const auto bytes = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

Error system_error(ErrorCode code, std::string what) {
  return Error{code, fmt::format("{}: {}", what, std::strerror(errno)), {}};
}

ArenaHeader::Fixed fixed_of(const ArenaShape& shape) {
  ArenaHeader::Fixed fixed{.magic = ArenaHeader::kMagic,
                           .layout = ArenaHeader::kLayout,
                           .shards = shape.shards,
                           .partitions = shape.partitions,
                           .tag_slots = shape.tag_slots,
                           .caches = shape.caches,
                           .unused = 0,
                           .bytes = shape.bytes,
                           .shard_bytes = 0,
                           .fingerprint = shape.fingerprint,
                           .hash_seed = hash_seed()};
  // Stamps of tags take at most a 64th of the arena.
  while (fixed.tag_slots > 64 && fixed.tag_slots * 8ULL * 64 > shape.bytes) fixed.tag_slots /= 2;
  const std::uint64_t tables =
      up(sizeof(ArenaHeader), kLine) + up(fixed.caches * sizeof(CacheSlot), kLine) +
      up(fixed.partitions * sizeof(Partition), kLine) + up(fixed.tag_slots * 8ULL, kLine);
  if (tables < shape.bytes)
    fixed.shard_bytes = (shape.bytes - tables) / shape.shards / kLine * kLine;
  return fixed;
}

void advise_huge(char* base, std::uint64_t bytes) {
  if (bytes >= kHugePage) madvise(base, bytes, MADV_HUGEPAGE);  // a wish: nothing to be mended
}

}  // namespace

Result<Arena> Arena::make_private(const ArenaShape& shape) {
  const ArenaHeader::Fixed fixed = fixed_of(shape);
  auto layout = ArenaLayout::of(fixed);
  if (!layout) return std::unexpected(layout.error());
  const std::uint64_t size = up(shape.bytes, page());
  void* base = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED)
    return std::unexpected(system_error(
        ErrorCode::out_of_memory, fmt::format("no {} bytes for [near] capacity", shape.bytes)));
  advise_huge(static_cast<char*>(base), size);
  Arena arena(static_cast<char*>(base), -1, *layout, false);
  arena.header().fixed = fixed;
  arena.header().checksum = checksum_of(fixed);
  return arena;
}

namespace {

struct File {
  int fd = -1;
  ~File() {
    if (fd >= 0) close(fd);
  }
};

// Is there an arena of just this shape and configuration in it?
bool continues(int fd, const ArenaHeader::Fixed& wanted) {
  ArenaHeader::Fixed fixed{};
  std::uint64_t checksum = 0;
  struct stat status{};
  if (pread(fd, &fixed, sizeof fixed, 0) != sizeof fixed ||
      pread(fd, &checksum, sizeof checksum, offsetof(ArenaHeader, checksum)) != sizeof checksum ||
      fstat(fd, &status) != 0)
    return false;
  ArenaHeader::Fixed same_seed = wanted;
  same_seed.hash_seed = fixed.hash_seed;  // a random number of the last life
  return checksum == checksum_of(fixed) && std::memcmp(&fixed, &same_seed, sizeof fixed) == 0 &&
         static_cast<std::uint64_t>(status.st_size) == up(wanted.bytes, page());
}

// Tells those who have mapped the old object that there is another one.
void abandon(int fd) {
  struct stat status{};
  if (fstat(fd, &status) != 0 || status.st_size < static_cast<off_t>(sizeof(ArenaHeader))) return;
  void* base = mmap(nullptr, sizeof(ArenaHeader), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED) return;
  static_cast<ArenaHeader*>(base)->state.store(ArenaHeader::State::gone);
  munmap(base, sizeof(ArenaHeader));
}

}  // namespace

Result<Arena> Arena::open_shared(std::string_view name, const ArenaShape& shape) {
  const ArenaHeader::Fixed fixed = fixed_of(shape);
  auto layout = ArenaLayout::of(fixed);
  if (!layout) return std::unexpected(layout.error());
  if (!is_shared_name(name))
    return fail(
        ErrorCode::config,
        fmt::format("near.shared = \"{}\": letters, digits, '.', '_' and '-', please", name));
  const std::string object = shared_object(name);
  const std::uint64_t size = up(shape.bytes, page());
  const auto refuse = [&](std::string_view what) {
    return std::unexpected(system_error(
        ErrorCode::config,
        fmt::format("near.shared = \"{}\": cannot {} /dev/shm{}", name, what, object)));
  };

  bool found = false;
  File file;
  for (int attempt = 0; file.fd < 0; ++attempt) {
    file.fd = shm_open(object.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0640);
    if (file.fd < 0) return refuse("open");
    if (flock(file.fd, LOCK_EX | LOCK_NB) != 0)
      return fail(
          ErrorCode::config,
          fmt::format("near.shared = \"{}\" belongs to another running node: choose another "
                      "name, or stop that one",
                      name));
    struct stat status{};
    if (fstat(file.fd, &status) != 0) return refuse("look at");
    if (status.st_nlink == 0) {  // its owner replaced it while we waited for it
      close(std::exchange(file.fd, -1));
      continue;
    }
    if (status.st_size == 0) break;
    found = continues(file.fd, fixed);
    if (found) break;
    // Of another shape: whoever has it open keeps it; the name goes to a new one.
    abandon(file.fd);
    if (shm_unlink(object.c_str()) != 0 || attempt > 0) return refuse("replace");
    close(std::exchange(file.fd, -1));
  }
  if (!found) {
    if (ftruncate(file.fd, static_cast<off_t>(size)) != 0) return refuse("size");
    if (const int error = posix_fallocate(file.fd, 0, static_cast<off_t>(size)); error != 0) {
      shm_unlink(object.c_str());
      return fail(ErrorCode::config,
                  fmt::format("near.shared = \"{}\": no {} bytes in /dev/shm ({}): lower [near] "
                              "capacity or enlarge /dev/shm",
                              name, size, std::strerror(error)));
    }
  }
  void* base = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file.fd, 0);
  if (base == MAP_FAILED) return refuse("map");
  advise_huge(static_cast<char*>(base), size);
  Arena arena(static_cast<char*>(base), std::exchange(file.fd, -1), *layout, found);
  if (!found) {
    arena.header().fixed = fixed;
    arena.header().checksum = checksum_of(fixed);
  }
  return arena;
}

Arena::Arena(Arena&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)),
      fd_(std::exchange(other.fd_, -1)),
      layout_(other.layout_),
      found_(other.found_) {}

Arena::~Arena() {
  if (base_ != nullptr) munmap(base_, up(bytes(), page()));
  if (fd_ >= 0) close(fd_);  // and with it, the lock
}

}  // namespace larder::near
