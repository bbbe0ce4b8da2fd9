#include "near/attachment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <tuple>

namespace larder::near {
namespace {

std::atomic<unsigned> threads{0};
// A constant at first, and in the initial-exec model: without the calls that a library's
// thread-local variables cost otherwise.
[[gnu::tls_model("initial-exec")]] thread_local unsigned lane_plus_one = 0;

unsigned lane_of_thread() {
  if (lane_plus_one == 0) [[unlikely]]
    lane_plus_one = threads.fetch_add(1, std::memory_order_relaxed) % (1U << 30) + 1;
  return lane_plus_one - 1;
}

TimeUs coarse_now() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return TimeUs{now.tv_sec} * kSecond + now.tv_nsec / 1000;
}

larder_near_result result_of(Reader::Unfit unfit) {
  switch (unfit) {
    case Reader::Unfit::being_made: return LARDER_NEAR_NOT_FOUND;
    case Reader::Unfit::other_version: return LARDER_NEAR_VERSION;
    case Reader::Unfit::corrupt: return LARDER_NEAR_CORRUPT;
  }
  return LARDER_NEAR_CORRUPT;
}

}  // namespace

std::expected<std::unique_ptr<Attachment>, larder_near_result> Attachment::open(
    std::string_view name) {
  if (!is_shared_name(name)) return std::unexpected(LARDER_NEAR_INVALID);
  std::unique_ptr<Attachment> attachment(new Attachment(name));
  if (const larder_near_result result = attachment->attach(); result != LARDER_NEAR_FOUND)
    return std::unexpected(result);
  return attachment;
}

Attachment::~Attachment() {
  for (const Mapping& mapping : mappings_) munmap(mapping.base, mapping.size);
}

// Without a base if the name leads to the file that is `known`.
std::expected<Attachment::Mapping, larder_near_result> Attachment::map(std::string_view name,
                                                                       const Mapping& known) {
  const int fd = shm_open(shared_object(name).c_str(), O_RDONLY | O_CLOEXEC, 0);
  if (fd < 0)
    return std::unexpected(errno == ENOENT                     ? LARDER_NEAR_NOT_FOUND
                           : errno == EACCES || errno == ELOOP ? LARDER_NEAR_DENIED
                                                               : LARDER_NEAR_SYSTEM);
  const auto result = [&]() -> std::expected<Mapping, larder_near_result> {
    struct stat status{};
    if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode))
      return std::unexpected(LARDER_NEAR_DENIED);
    // Whoever may write it may also truncate it, which kills those who have it mapped.
    if ((status.st_mode & S_IWOTH) != 0) return std::unexpected(LARDER_NEAR_DENIED);
    Mapping mapping{.device = status.st_dev, .file = status.st_ino};
    if (mapping.same_file(known)) return mapping;
    if (status.st_size < static_cast<off_t>(sizeof(ArenaHeader)))
      return std::unexpected(LARDER_NEAR_NOT_FOUND);  // it is being made
    mapping.size = static_cast<std::size_t>(status.st_size);
    void* base = mmap(nullptr, mapping.size, PROT_READ, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) return std::unexpected(LARDER_NEAR_SYSTEM);
    madvise(base, mapping.size, MADV_HUGEPAGE);  // wishes: nothing to be mended
    madvise(base, mapping.size, MADV_DONTDUMP);
    mapping.base = static_cast<char*>(base);
    return mapping;
  }();
  close(fd);
  return result;
}

// REQUIRES: nobody else does.
larder_near_result Attachment::attach() {
  const auto mapping = map(name_, mappings_.empty() ? Mapping{} : mappings_.back());
  if (!mapping) return mapping.error();
  if (mapping->base == nullptr) return LARDER_NEAR_NODE_DOWN;
  const auto reader = Reader::over(mapping->span());
  if (!reader) {
    munmap(mapping->base, mapping->size);
    return result_of(reader.error());
  }
  // The old object's memory is given back. Its addresses stay: a thread may be reading there, and
  // will find by the header's zeros that it has read nothing.
#if defined(__has_feature) && __has_feature(thread_sanitizer)
  // It takes a mapping for a write to all of it.
#else
  if (!mappings_.empty())
    std::ignore = mmap(mappings_.back().base, mappings_.back().size, PROT_READ,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
#endif
  mappings_.push_back(*mapping);
  use(*reader);
  return LARDER_NEAR_FOUND;
}

void Attachment::use(const Reader& reader) {
  readers_.push_back(std::make_unique<const Reader>(reader));
  reader_.store(readers_.back().get(), std::memory_order_release);
}

// The reader that was `seen` cannot go on. RESTARTED: another one can, and this caller is told.
// FOUND: another thread has found one. Else NODE_DOWN, CORRUPT or VERSION.
larder_near_result Attachment::renew(const Reader* seen) {
  if (renewing_.exchange(true, std::memory_order_acquire)) return LARDER_NEAR_NODE_DOWN;
  struct Release {
    std::atomic<bool>& held;
    ~Release() { held.store(false, std::memory_order_release); }
  };
  const Release release{renewing_};
  return renew_now(seen);
}

larder_near_result Attachment::renew_now(const Reader* seen) {
  if (reader_.load(std::memory_order_acquire) != seen) return LARDER_NEAR_FOUND;
  const bool other_life = seen->instance_now() != seen->instance();
  if (other_life && seen->state() == ArenaHeader::State::serving) {
    const auto reader = Reader::over(mappings_.back().span());
    if (reader) {
      use(*reader);
      return LARDER_NEAR_RESTARTED;
    }
    return reader.error() == Reader::Unfit::being_made ? LARDER_NEAR_NODE_DOWN
                                                       : result_of(reader.error());
  }
  const TimeUs now = coarse_now();
  if (now < look_again_.load(std::memory_order_relaxed)) return LARDER_NEAR_NODE_DOWN;
  look_again_.store(now + kLookAgain, std::memory_order_relaxed);
  const larder_near_result result = attach();
  if (result == LARDER_NEAR_FOUND) return LARDER_NEAR_RESTARTED;
  const bool wrong = result == LARDER_NEAR_VERSION || result == LARDER_NEAR_CORRUPT;
  return wrong ? result : LARDER_NEAR_NODE_DOWN;
}

Attachment::Got Attachment::get(std::string_view key, char* buffer, std::size_t capacity) {
  const unsigned lane = lane_of_thread();
  for (unsigned attempt = 0;; ++attempt) {
    const Reader* const reader = reader_.load(std::memory_order_acquire);
    Reader::Read read;
    [[clang::always_inline]] read = reader->get(key, buffer, capacity);
    if (read.answer == Answer::node_down || read.answer == Answer::restarted) [[unlikely]] {
      const larder_near_result result = renew(reader);
      if (result == LARDER_NEAR_FOUND && attempt == 0) continue;
      const bool down = result == LARDER_NEAR_FOUND || result == LARDER_NEAR_NODE_DOWN;
      if (down) return add(lane, LARDER_NEAR_NODE_DOWN), Got{LARDER_NEAR_NODE_DOWN, 0};
      add(lane, result == LARDER_NEAR_RESTARTED ? LARDER_NEAR_RESTARTED : kCorrupt);
      return {result, 0};
    }
    if (read.counts) hits_.record(lane, read.hash, coarse_now());
    if (read.answer == Answer::found) [[likely]]
      return add(lane, LARDER_NEAR_FOUND), Got{LARDER_NEAR_FOUND, read.size};
    switch (read.answer) {
      case Answer::absent: add(lane, LARDER_NEAR_ABSENT); return {LARDER_NEAR_ABSENT, 0};
      case Answer::too_small:
        add(lane, LARDER_NEAR_TOO_SMALL);
        return {LARDER_NEAR_TOO_SMALL, read.size};
      case Answer::corrupt: add(lane, kCorrupt); return {LARDER_NEAR_CORRUPT, 0};
      default: add(lane, LARDER_NEAR_MISS); return {LARDER_NEAR_MISS, 0};
    }
  }
}

void Attachment::add(unsigned lane, std::size_t what) {
  auto& count = counts_[lane % kLanes].of[what];
  count.store(count.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

larder_near_info Attachment::info() const {
  std::array<std::uint64_t, kResults> sum{};
  for (const Counts& counts : counts_)
    for (std::size_t i = 0; i < kResults; ++i)
      sum[i] += counts.of[i].load(std::memory_order_relaxed);
  const Reader& reader = *reader_.load(std::memory_order_acquire);
  const bool serving = reader.state() == ArenaHeader::State::serving;
  return {.found = sum[LARDER_NEAR_FOUND],
          .absent = sum[LARDER_NEAR_ABSENT],
          .misses = sum[LARDER_NEAR_MISS],
          .too_small = sum[LARDER_NEAR_TOO_SMALL],
          .node_down = sum[LARDER_NEAR_NODE_DOWN],
          .restarted = sum[LARDER_NEAR_RESTARTED],
          .corrupt = sum[kCorrupt],
          .hits_dropped = hits_.dropped(),
          .bytes = reader.bytes(),
          .instance = reader.instance_now(),
          .lease_us = serving ? reader.lease_left() : 0};
}

}  // namespace larder::near
