// The first line is a pattern, the rest a key: whatever matches must render back to the same bytes,
// and match() and explain_bad_part() must agree.
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "policy/key_pattern.h"

using larder::policy::KeyPattern;
using larder::policy::Match;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t line = input.find('\n');
  if (line == std::string_view::npos) return 0;
  const auto pattern = KeyPattern::parse(input.substr(0, line));
  if (!pattern) {
    LARDER_ASSERT(!pattern.error().message.empty());
    return 0;
  }
  const std::string_view key = input.substr(line + 1);
  std::vector<std::string_view> values;
  const Match match = pattern->match(key, values);
  LARDER_ASSERT((match == Match::yes) == pattern->explain_bad_part(key).empty());
  LARDER_ASSERT(match != Match::yes || values.size() == pattern->params().size());
  if (match != Match::yes) return 0;
  const auto rendered = pattern->render(values);
  LARDER_ASSERT(rendered && *rendered == key);
  LARDER_ASSERT(KeyPattern::overlap(*pattern, *pattern));
  return 0;
}
