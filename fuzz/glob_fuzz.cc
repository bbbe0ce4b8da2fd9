// Any pattern on any text ends soon and reads nothing outside of either.
#include <cstdint>
#include <string>

#include "base/error.h"
#include "engine/embedded/glob.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::size_t split = data[0] % size;
  // Blocks of their own, so that a byte too far is seen.
  const std::string pattern(reinterpret_cast<const char*>(data + 1), split);
  const std::string text(reinterpret_cast<const char*>(data + 1 + split), size - 1 - split);
  const bool match = larder::engine::glob_match(pattern, text);
  // A star more in front and behind never loses a match.
  if (match) LARDER_ASSERT(larder::engine::glob_match("*" + pattern, text));
  LARDER_ASSERT(larder::engine::glob_match("*", text));
  return 0;
}
