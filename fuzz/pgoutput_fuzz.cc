// Whatever a walsender says: no message makes the reader fail otherwise than by an error, positions
// only go up, and a change names as many values as its table has watched columns.
#include <algorithm>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "source/postgres/pgoutput.h"
#include "source/postgres/replication.h"

namespace postgres = larder::source::postgres;

namespace {

constexpr std::size_t kMost = 50;  // changes of a transaction

void look_at(postgres::ChangeLog& log) {
  if (!log.ready()) return;
  const postgres::Lsn before = log.position();
  const auto next = log.next();
  const larder::source::ChangeBatch& batch = next.batch;
  LARDER_ASSERT(batch.from == before && batch.to >= before && log.position() == batch.to);
  LARDER_ASSERT(!batch.everything || batch.changes.empty());
  for (const auto& change : batch.changes)
    LARDER_ASSERT(change.values.size() == (change.watched_id == 8 ? 2 : 1));
}

}  // namespace

// Frames, each after its length in two bytes.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  postgres::ChangeLog log({.tables = {{{7, "item", {"id"}}, "public", "item"},
                                      {{8, "item", {"grp", "id"}}, "public", "item"},
                                      {{9, "parts", {"grp"}}, "public", "parts", true}},
                           .token = "me",
                           .most_changes = kMost});
  log.begin_stream(1'000);
  while (rest.size() >= 2) {
    const std::size_t length =
        static_cast<unsigned char>(rest[0]) << 8 | static_cast<unsigned char>(rest[1]);
    rest.remove_prefix(2);
    const std::string_view bytes = rest.substr(0, length);
    rest.remove_prefix(bytes.size());
    const auto frame = postgres::parse_frame(bytes);
    if (!frame) continue;
    if (const auto* const alive = std::get_if<postgres::Keepalive>(&*frame)) {
      log.take(*alive);
    } else {
      const auto message =
          postgres::pgoutput::parse_message(std::get<postgres::XLogData>(*frame).payload);
      if (message && !log.take(*message)) log.begin_stream(1'000);
    }
    if (length % 2 == 0) look_at(log);
  }
  look_at(log);
  return 0;
}
