// Trace files: whatever is read is whole requests, and chunks of another size change nothing.
#include <cstdint>
#include <span>
#include <vector>

#include "base/error.h"
#include "trace/trace_file.h"

namespace {

struct Read {
  std::uint64_t requests = 0;
  std::uint64_t sum = 0;
  bool failed = false;

  friend bool operator==(const Read&, const Read&) = default;
};

Read read_all(larder::trace::TraceFile file) {
  constexpr std::uint64_t kEnough = 1U << 22;  // a zstd bomb is long, but not deep
  Read read;
  while (read.requests < kEnough) {
    const auto requests = file.next();
    read.failed = !requests;
    if (!requests || requests->empty()) return read;
    read.requests += requests->size();
    for (const larder::trace::Request& request : *requests)
      read.sum = read.sum * 31 + request.key + request.size;
  }
  return read;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::span<const char> bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const Read whole = read_all(larder::trace::TraceFile::of_memory(bytes));
  const Read parts = read_all(larder::trace::TraceFile::of_memory(bytes, 1 + data[0]));
  // How much of a damaged file is read until the damage shows depends on the chunks.
  LARDER_ASSERT(whole.failed == parts.failed);
  LARDER_ASSERT(whole.failed || whole == parts);
  return 0;
}
