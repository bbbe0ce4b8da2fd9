// Where a feed stands in a Redis Stream, and whether entries went before they were read. Pure.
//
// XREAD skips silently what was trimmed or deleted. What gives it away is the stream's count of all
// entries ever added (entries-added, Redis 7): at the end of the stream it must be the count at the
// position plus what was read since. Where that count is not known (Redis 6, or a position in the
// middle), the first entry, the largest deleted one (max-deleted-entry-id) and the number trimmed
// away decide; in doubt something is missed: that costs loads, the opposite would cost truth.
// One thing leaves no trace: a stream that is created, filled and deleted as a whole between two
// looks.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "wire/resp.h"

namespace larder::feed {

struct EntryId {
  std::uint64_t ms = 0;
  std::uint64_t seq = 0;
  auto operator<=>(const EntryId&) const = default;
};
std::string to_string(EntryId id);  // "1700000000000-0"
std::optional<EntryId> parse_entry_id(std::string_view text);

// What XINFO STREAM says, as far as it matters. A stream that does not exist is an empty one.
struct StreamState {
  bool exists = false;
  std::uint64_t length = 0;
  EntryId first;                       // of what is left; where length > 0
  EntryId last;                        // the largest id ever
  std::optional<EntryId> max_deleted;  // nullopt: the server does not say
  std::optional<std::uint64_t> added;  // likewise
};
// Error: what the server says, or that the answer is not one.
Result<StreamState> stream_state(const wire::Reply& xinfo);

struct StreamEntry {
  EntryId id;
  std::vector<std::pair<std::string, std::string>> fields;
};
// Of one stream. Both protocols; null is none.
Result<std::vector<StreamEntry>> stream_entries(const wire::Reply& xread);

struct Cursor {
  EntryId at;                          // all entries up to here have been applied
  std::optional<std::uint64_t> count;  // so many had ever been added up to here
  friend bool operator==(const Cursor&, const Cursor&) = default;
};
std::string to_string(const Cursor& cursor);  // "1700000000000-0 17", "1700000000000-0"
std::optional<Cursor> parse_cursor(std::string_view text);

// Behind all that is in the stream.
Cursor end_of(const StreamState& state);

struct Advance {
  Cursor next;
  bool missed = false;    // entries are gone that nobody has read
  bool replaced = false;  // another stream has this name now: `next` may lie before `from`
};
// `state` and what was read from `from` on are of one instant (MULTI). `read`: how many entries,
// the last of them `last`; `to_the_end`: there are no more.
Advance advance(const Cursor& from, const StreamState& state, std::size_t read, EntryId last,
                bool to_the_end);

}  // namespace larder::feed
