// Access traces: a request is two little-endian 32-bit numbers, key and size in bytes, one after
// the other, plain or in a zstd file.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/error.h"

namespace larder::trace {

struct Request {
  std::uint32_t key = 0;
  std::uint32_t size = 0;
};

// Reads from the beginning to the end, once. Memory: a few buffers, and what zstd needs for its
// window (128 MiB at most; files that want more are refused).
class TraceFile {
 public:
  static constexpr std::size_t kChunkBytes = 128U << 10;

  // Error io: cannot be opened. What is in it shows in next().
  static Result<TraceFile> open(const std::string& path);
  // Plain records or zstd from memory, read in chunks of that size; for tests. `bytes` must outlive
  // it.
  static TraceFile of_memory(std::span<const char> bytes, std::size_t chunk = kChunkBytes);

  TraceFile(TraceFile&&) noexcept;
  TraceFile& operator=(TraceFile&&) noexcept;
  ~TraceFile();

  // Some further requests, valid until the next call; none at the end. Error io: the file cannot be
  // read, is cut off, is not zstd although it begins like it, has no request, or a part of one.
  Result<std::span<const Request>> next();

 private:
  class Impl;
  explicit TraceFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace larder::trace
