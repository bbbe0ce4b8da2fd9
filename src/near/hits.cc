#include "near/hits.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "near/arena.h"

namespace larder::near {
namespace {

// Of the file's owner alone, or of others who may write it, too: nothing but a regular file.
bool is_file(int fd) {
  struct stat status{};
  return fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

}  // namespace

std::string shared_hits(std::string_view name) { return shared_object(name) + ".hits"; }

// ---- the node ----

Result<HitRing> HitRing::create(std::string_view name) {
  const std::string object = shared_hits(name);
  const auto refuse = [&](const char* what) {
    return fail(ErrorCode::config, std::string("near.shared: cannot ") + what + " /dev/shm" +
                                       object + ": " + std::strerror(errno));
  };
  const int fd = shm_open(object.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0660);
  if (fd < 0) return refuse("open");
  HitRing ring(fd);
  if (!is_file(fd)) {
    errno = EINVAL;
    return refuse("use");
  }
  // The usual umask takes from the group what this file is there for. An earlier owner's file, or
  // one that another user has put there, is as good: its content is untrusted anyway.
  if (fchmod(fd, 0660) != 0 && errno != EPERM) return refuse("permit");
  if (ftruncate(fd, 0) != 0 || ftruncate(fd, kHitBytes) != 0) return refuse("size");
  return ring;
}

HitRing::HitRing(HitRing&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), batches_(std::move(other.batches_)), seen_(other.seen_) {}

HitRing::~HitRing() {
  if (fd_ >= 0) close(fd_);
}

std::size_t HitRing::fetch() {
  const ssize_t size = pread(fd_, batches_->data(), kHitBytes, 0);
  return size > 0 ? static_cast<std::size_t>(size) / sizeof(HitBatch) : 0;
}

// ---- readers ----

HitWriter::HitWriter(std::string_view name) {
  fd_ = shm_open(shared_hits(name).c_str(), O_RDWR | O_CLOEXEC, 0);
  if (fd_ >= 0 && !is_file(fd_)) close(std::exchange(fd_, -1));
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  salt_ = mix64(static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'007ULL +
                static_cast<std::uint64_t>(now.tv_nsec)) ^
          reinterpret_cast<std::uintptr_t>(this);
}

HitWriter::~HitWriter() {
  if (fd_ >= 0) close(fd_);
}

void HitWriter::record(unsigned number, Hash hash, TimeUs now) {
  if (fd_ < 0) return drop(1);
  Lane& lane = lanes_[number % kLanes];
  if (lane.busy.exchange(true, std::memory_order_acquire)) return drop(1);
  lane.batch.hashes[lane.count++] = hash;
  if (lane.count == HitBatch::kHashes || now - lane.written_at >= kWait) {
    write(lane);
    lane.written_at = now;
  }
  lane.busy.store(false, std::memory_order_release);
}

void HitWriter::write(Lane& lane) {
  const auto process = static_cast<std::uint64_t>(getpid());  // fork() copies the rest
  const auto number = static_cast<std::uint64_t>(&lane - lanes_.data());
  const std::uint64_t random =
      mix64(salt_ ^ mix64((process << 32 | number) + (++lane.serial << 6)));
  lane.batch.stamp = random | 1;
  std::fill(lane.batch.hashes.begin() + lane.count, lane.batch.hashes.end(), 0);
  const std::uint64_t slot = (random >> 32) % kHitSlots;
  // A process that may not write files would be killed for it by a signal.
  rlimit limit{};
  const bool may = getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur >= kHitBytes;
  if (!may ||
      pwrite(fd_, &lane.batch, sizeof lane.batch, static_cast<off_t>(slot * sizeof lane.batch)) !=
          static_cast<ssize_t>(sizeof lane.batch))
    drop(lane.count);
  lane.count = 0;
}

}  // namespace larder::near
