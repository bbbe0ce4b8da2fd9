// Any text either loads or is refused with problems that have a place; what loads can be checked
// and explained. Nothing of the process (variables, files) is touched.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "config/check.h"
#include "config/config.h"

using namespace larder;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const config::Outside nothing = {
      .environment = [](const std::string& name) -> std::optional<std::string> {
        return name == "SET" ? std::optional<std::string>("value") : std::nullopt;
      },
      .secret_file = [](const std::string&) -> Result<std::string> {
        return fail(ErrorCode::io, "there are no files here");
      }};
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto loaded = config::load_config(text, "fuzz.toml", nothing);
  if (!loaded) {
    LARDER_ASSERT(!loaded.error().empty());
    for (const config::Problem& p : loaded.error()) LARDER_ASSERT(!p.message.empty());
    LARDER_ASSERT(!config::to_string(loaded.error()).empty());
    return 0;
  }
  for (const auto& cache : loaded->caches) LARDER_ASSERT(!cache.key.text().empty());
  const config::CheckReport report = config::check(*loaded, {});
  LARDER_ASSERT(!config::to_text(report).empty());
  LARDER_ASSERT(!config::to_json(report).empty());
  return 0;
}
