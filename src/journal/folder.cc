// storage.h on POSIX files.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "journal/storage.h"

namespace larder::journal {
namespace {

constexpr std::string_view kLock = "lock";
constexpr std::string_view kUnfinished = ".new";

std::unexpected<Error> failed(std::string_view what, const std::string& path, int error) {
  if (error == ENOSPC || error == EDQUOT)
    return fail(ErrorCode::overloaded,
                fmt::format("the disk is full: {} could not {}; make room, nothing that was "
                            "acknowledged is lost",
                            path, what),
                "journal");
  return fail(ErrorCode::io, fmt::format("{} could not {}: {}", path, what, std::strerror(error)),
              "journal");
}

class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_;
};

Result<void> write_all(int fd, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failed("be written", path, errno);
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  return {};
}

class PosixFile final : public Storage::File {
 public:
  PosixFile(Descriptor fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}

  Result<void> append(std::string_view bytes) override {
    return write_all(fd_.get(), bytes, path_);
  }
  Result<void> sync() override {
    if (::fdatasync(fd_.get()) != 0) return failed("be made durable", path_, errno);
    return {};
  }
  Result<void> cut(std::uint64_t size) override {
    if (::ftruncate(fd_.get(), static_cast<off_t>(size)) != 0)
      return failed("be cut", path_, errno);
    return {};
  }

 private:
  Descriptor fd_;
  const std::string path_;
};

class Folder final : public Storage {
 public:
  Folder(std::string path, Descriptor folder, Descriptor lock)
      : path_(std::move(path)), folder_(std::move(folder)), lock_(std::move(lock)) {}

  Result<std::vector<std::string>> list() override {
    std::vector<std::string> names;
    std::error_code error;
    for (std::filesystem::directory_iterator at(path_, error), end; !error && at != end;
         at.increment(error)) {
      std::string name = at->path().filename().string();
      if (name != kLock && !name.ends_with(kUnfinished)) names.push_back(std::move(name));
    }
    if (error) return failed("be listed", path_, error.value());
    std::ranges::sort(names);
    return names;
  }

  Result<std::string> read(const std::string& name) override {
    const std::string path = path_of(name);
    const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat about{};
    if (!fd || ::fstat(fd.get(), &about) != 0) return failed("be opened", path, errno);
    std::string bytes(static_cast<std::size_t>(about.st_size), '\0');
    std::size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t n =
          ::pread(fd.get(), bytes.data() + done, bytes.size() - done, static_cast<off_t>(done));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return failed("be read", path, errno);
      if (n == 0) break;
      done += static_cast<std::size_t>(n);
    }
    bytes.resize(done);
    return bytes;
  }

  Result<std::unique_ptr<File>> open(const std::string& name) override {
    const std::string path = path_of(name);
    Descriptor fd(::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
    if (!fd) return failed("be opened", path, errno);
    return std::make_unique<PosixFile>(std::move(fd), path);
  }

  Result<void> replace(const std::string& name, std::string_view bytes) override {
    const std::string path = path_of(name);
    const std::string unfinished = path + std::string(kUnfinished);
    {
      const Descriptor fd(
          ::open(unfinished.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
      if (!fd) return failed("be created", unfinished, errno);
      Result<void> written = write_all(fd.get(), bytes, unfinished);
      if (!written) return written;
      if (::fsync(fd.get()) != 0) return failed("be made durable", unfinished, errno);
    }
    if (::rename(unfinished.c_str(), path.c_str()) != 0)
      return failed("be renamed", unfinished, errno);
    return sync_names();
  }

  Result<void> remove(const std::string& name) override {
    const std::string path = path_of(name);
    if (::unlink(path.c_str()) != 0) return failed("be removed", path, errno);
    return {};
  }

  Result<void> sync_names() override {
    if (::fsync(folder_.get()) != 0) return failed("be made durable", path_, errno);
    return {};
  }

 private:
  std::string path_of(const std::string& name) const { return path_ + "/" + name; }

  const std::string path_;
  const Descriptor folder_;
  const Descriptor lock_;
};

Result<void> sync_folder(const std::filesystem::path& path) {
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd || ::fsync(fd.get()) != 0) return failed("be made durable", path.string(), errno);
  return {};
}

// The folder and those above it, durably.
Result<void> make(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error) && path.has_relative_path()) {
    Result<void> above = make(path.parent_path());
    if (!above) return above;
    std::filesystem::create_directory(path, error);
    if (error) return failed("be made", path.string(), error.value());
  }
  return path.has_relative_path() ? sync_folder(path.parent_path()) : Result<void>{};
}

}  // namespace

Result<std::unique_ptr<Storage>> open_folder(const std::string& path) {
  Result<void> made = make(std::filesystem::absolute(path).lexically_normal());
  if (!made) return std::unexpected(std::move(made.error()));
  Descriptor folder(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder) return failed("be opened", path, errno);
  const std::string lock_path = path + "/" + std::string(kLock);
  Descriptor lock(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock) return failed("be opened", lock_path, errno);
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return failed("be locked", lock_path, errno);
    return fail(ErrorCode::config,
                fmt::format("another process has the journal in {}: each node needs a data_dir of "
                            "its own",
                            path),
                "journal");
  }
  return std::make_unique<Folder>(path, std::move(folder), std::move(lock));
}

}  // namespace larder::journal
