#include "trace/trace_file.h"

#include <fmt/format.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

namespace larder::trace {
namespace {

constexpr std::size_t kRecordBytes = 8;
constexpr std::size_t kOutputBytes = (std::size_t{64} << 10) * kRecordBytes;
constexpr std::size_t kMagicBytes = 4;
constexpr std::uint32_t kZstdMagic = 0xFD2FB528;

std::uint32_t little_endian(const char* at) {
  std::uint32_t value = 0;
  for (unsigned i = 0; i < 4; ++i)
    value |= static_cast<std::uint32_t>(static_cast<unsigned char>(at[i])) << (8 * i);
  return value;
}

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
struct FreeContext {
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

}  // namespace

class TraceFile::Impl {
 public:
  Impl(std::string name, std::FILE* file, std::span<const char> memory, std::size_t chunk)
      : name_(std::move(name)),
        file_(file),
        memory_(memory),
        input_(std::max(chunk, kMagicBytes)) {}

  Result<std::span<const Request>> next() {
    while (true) {
      // A part of a record may be left over from the last time; it stays at the front.
      const Result<bool> more = zstd_ ? inflate() : copy();
      if (!more) return std::unexpected(more.error());
      const std::size_t whole = filled_ / kRecordBytes;
      if (whole == 0 && *more) continue;
      if (whole == 0 && filled_ > 0)
        return problem("ends in the middle of a request: its length must be a multiple of 8 bytes");
      if (whole == 0 && !any_)
        return problem("holds no request: expected pairs of two 32-bit numbers, key and size");
      take(whole);
      return std::span<const Request>(requests_);
    }
  }

 private:
  std::unexpected<Error> problem(std::string_view what) const {
    return fail(ErrorCode::io, fmt::format("{} {}", name_, what));
  }

  void take(std::size_t count) {
    requests_.resize(count);
    for (std::size_t i = 0; i < count; ++i) {
      const char* at = output_.data() + i * kRecordBytes;
      requests_[i] = {.key = little_endian(at), .size = little_endian(at + 4)};
    }
    const std::size_t used = count * kRecordBytes;
    std::memmove(output_.data(), output_.data() + used, filled_ - used);
    filled_ -= used;
    any_ = any_ || count > 0;
  }

  // Reads on when all input is used. False at the end.
  Result<bool> refill() {
    if (at_ < end_) return true;
    at_ = 0;
    if (file_ != nullptr) {
      end_ = std::fread(input_.data(), 1, input_.size(), file_.get());
      if (std::ferror(file_.get()) != 0)
        return problem(fmt::format("cannot be read: {}", std::strerror(errno)));
    } else {
      end_ = std::min(input_.size(), memory_.size());
      std::copy_n(memory_.data(), end_, input_.data());
      memory_ = memory_.subspan(end_);
    }
    if (first_ && end_ >= kMagicBytes && little_endian(input_.data()) == kZstdMagic) {
      zstd_.reset(ZSTD_createDCtx());
      frame_open_ = true;
    }
    first_ = false;
    return end_ > 0;
  }

  Result<bool> copy() {
    const Result<bool> more = refill();
    if (!more || !*more) return more;
    if (zstd_) return inflate();
    const std::size_t count = std::min(end_ - at_, output_.size() - filled_);
    std::copy_n(input_.data() + at_, count, output_.data() + filled_);
    at_ += count;
    filled_ += count;
    return true;
  }

  Result<bool> inflate() {
    const Result<bool> more = refill();
    if (!more) return more;
    if (!*more && !pending_) {
      if (frame_open_) return problem("is cut off: the compressed data ends too early");
      return false;
    }
    ZSTD_inBuffer in{input_.data(), end_, at_};
    ZSTD_outBuffer out{output_.data(), output_.size(), filled_};
    const std::size_t left = ZSTD_decompressStream(zstd_.get(), &out, &in);
    if (ZSTD_isError(left) != 0)
      return problem(fmt::format("is not a sound zstd file: {}", ZSTD_getErrorName(left)));
    const bool progress = in.pos > at_ || out.pos > filled_;
    at_ = in.pos;
    filled_ = out.pos;
    frame_open_ = left != 0;
    pending_ = frame_open_ && out.pos == out.size;  // zstd may hold back more of what it has read
    if (!progress && !*more) pending_ = false;
    return true;
  }

  std::string name_;
  std::unique_ptr<std::FILE, CloseFile> file_;
  std::span<const char> memory_;
  std::vector<char> input_;
  std::size_t at_ = 0;
  std::size_t end_ = 0;
  std::unique_ptr<ZSTD_DCtx, FreeContext> zstd_;
  bool first_ = true;
  bool frame_open_ = false;
  bool pending_ = false;
  bool any_ = false;
  std::vector<char> output_ = std::vector<char>(kOutputBytes);
  std::size_t filled_ = 0;
  std::vector<Request> requests_;
};

TraceFile::TraceFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TraceFile::TraceFile(TraceFile&&) noexcept = default;
TraceFile& TraceFile::operator=(TraceFile&&) noexcept = default;
TraceFile::~TraceFile() = default;

Result<TraceFile> TraceFile::open(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr)
    return fail(ErrorCode::io, fmt::format("{} cannot be opened: {}", path, std::strerror(errno)));
  return TraceFile(std::make_unique<Impl>(path, file, std::span<const char>{}, kChunkBytes));
}

TraceFile TraceFile::of_memory(std::span<const char> bytes, std::size_t chunk) {
  return TraceFile(std::make_unique<Impl>("memory", nullptr, bytes, chunk));
}

Result<std::span<const Request>> TraceFile::next() { return impl_->next(); }

}  // namespace larder::trace
