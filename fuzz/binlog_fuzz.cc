// Whatever a server sends as its binary log: no event makes the reader fail otherwise than by an
// error, places in one file only go up, and a change names as many values as its table has watched
// columns.
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "base/error.h"
#include "source/mariadb/binlog.h"

namespace mariadb = larder::source::mariadb;

// Events, each after its length in two bytes. Their own length is put right.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  constexpr std::size_t kMost = 50;
  mariadb::BinlogReader log(
      {.tables = {{.schema = "s",
                   .name = "t",
                   .columns = 3,
                   .watched_id = 7,
                   .watched = {{.ordinal = 0}, {.ordinal = 2, .is_unsigned = true}}},
                  {.schema = "s", .name = "u", .watched = {}}},
       .start = {1, 4},
       .most_changes = kMost});
  while (rest.size() >= 2) {
    const std::size_t length = std::min<std::size_t>(
        static_cast<unsigned char>(rest[0]) |
            static_cast<std::size_t>(static_cast<unsigned char>(rest[1])) << 8,
        rest.size() - 2);
    std::string event(rest.substr(2, length));
    rest.remove_prefix(2 + length);
    if (event.size() >= 13) {
      const auto own = static_cast<std::uint32_t>(event.size());
      std::memcpy(event.data() + 9, &own, sizeof own);
    }
    const mariadb::LogPosition before = log.position();
    const auto taken = log.take(event);
    LARDER_ASSERT(log.position().file != before.file || log.position() >= before ||
                  (event.size() > 4 && event[4] == 4));
    if (!taken || !*taken) continue;
    const mariadb::LoggedTransaction& done = **taken;
    LARDER_ASSERT(!done.everything || done.changes.empty());
    LARDER_ASSERT(done.changes.size() <= kMost);
    for (const auto& change : done.changes)
      LARDER_ASSERT(change.watched_id == 7 && change.values.size() == 2);
  }
  return 0;
}
