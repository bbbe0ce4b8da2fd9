#include "feed/cursor.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace larder::feed {
namespace {

using wire::Reply;

std::optional<std::uint64_t> number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::unexpected<Error> unreadable(std::string_view what) {
  return fail(ErrorCode::engine_down, fmt::format("the answer to {} cannot be read", what));
}

bool is_list(const Reply& reply) {
  return reply.type == Reply::Type::array || reply.type == Reply::Type::map;
}

}  // namespace

std::string to_string(EntryId id) { return fmt::format("{}-{}", id.ms, id.seq); }

std::optional<EntryId> parse_entry_id(std::string_view text) {
  const std::size_t dash = text.find('-');
  if (dash == std::string_view::npos) return std::nullopt;
  const auto ms = number(text.substr(0, dash));
  const auto seq = number(text.substr(dash + 1));
  if (!ms || !seq) return std::nullopt;
  return EntryId{*ms, *seq};
}

Result<StreamState> stream_state(const Reply& xinfo) {
  if (xinfo.type == Reply::Type::error) {
    if (xinfo.text.starts_with("ERR no such key")) return StreamState{};
    return fail(ErrorCode::engine_down, xinfo.text);
  }
  if (!is_list(xinfo) || xinfo.elements.size() % 2 != 0) return unreadable("XINFO");
  StreamState state{.exists = true};
  bool has_last = false;
  for (std::size_t i = 0; i < xinfo.elements.size(); i += 2) {
    const std::string& name = xinfo.elements[i].text;
    const Reply& value = xinfo.elements[i + 1];
    if (name == "length") {
      if (value.type != Reply::Type::integer || value.integer < 0) return unreadable("XINFO");
      state.length = static_cast<std::uint64_t>(value.integer);
    } else if (name == "entries-added") {
      if (value.type != Reply::Type::integer || value.integer < 0) return unreadable("XINFO");
      state.added = static_cast<std::uint64_t>(value.integer);
    } else if (name == "last-generated-id" || name == "max-deleted-entry-id") {
      const auto id = parse_entry_id(value.text);
      if (!id) return unreadable("XINFO");
      if (name == "last-generated-id") {
        state.last = *id;
        has_last = true;
      } else {
        state.max_deleted = *id;
      }
    } else if (name == "first-entry" && value.type == Reply::Type::array) {
      const auto id =
          value.elements.empty() ? std::nullopt : parse_entry_id(value.elements.front().text);
      if (!id) return unreadable("XINFO");
      state.first = *id;
    }
  }
  if (!has_last) return unreadable("XINFO");
  return state;
}

Result<std::vector<StreamEntry>> stream_entries(const Reply& xread) {
  std::vector<StreamEntry> entries;
  if (xread.type == Reply::Type::null) return entries;
  if (xread.type == Reply::Type::error) return fail(ErrorCode::engine_down, xread.text);
  if (!is_list(xread)) return unreadable("XREAD");
  if (xread.elements.empty()) return entries;
  // RESP3: name, entries. RESP2: [name, entries].
  const Reply& pair = xread.type == Reply::Type::map ? xread : xread.elements.front();
  if (!is_list(pair) || pair.elements.size() != 2 || !is_list(pair.elements[1]))
    return unreadable("XREAD");
  for (const Reply& each : pair.elements[1].elements) {
    if (!is_list(each) || each.elements.size() != 2) return unreadable("XREAD");
    const auto id = parse_entry_id(each.elements[0].text);
    const Reply& fields = each.elements[1];
    if (!id || !is_list(fields) || fields.elements.size() % 2 != 0) return unreadable("XREAD");
    StreamEntry entry{.id = *id, .fields = {}};
    for (std::size_t i = 0; i < fields.elements.size(); i += 2)
      entry.fields.emplace_back(fields.elements[i].text, fields.elements[i + 1].text);
    entries.push_back(std::move(entry));
  }
  return entries;
}

std::string to_string(const Cursor& cursor) {
  return cursor.count ? fmt::format("{} {}", to_string(cursor.at), *cursor.count)
                      : to_string(cursor.at);
}

std::optional<Cursor> parse_cursor(std::string_view text) {
  const std::size_t space = text.find(' ');
  const auto at = parse_entry_id(text.substr(0, space));
  if (!at) return std::nullopt;
  Cursor cursor{.at = *at, .count = {}};
  if (space == std::string_view::npos) return cursor;
  cursor.count = number(text.substr(space + 1));
  if (!cursor.count) return std::nullopt;
  return cursor;
}

Cursor end_of(const StreamState& state) {
  if (!state.exists) return {.at = {}, .count = 0};
  return {.at = state.last, .count = state.added};
}

Advance advance(const Cursor& from, const StreamState& state, std::size_t read, EntryId last,
                bool to_the_end) {
  constexpr EntryId kBeginning{};
  if (!state.exists || state.last < from.at) {
    // Gone, or emptied and begun anew: whatever was added to it meanwhile nobody can tell.
    const bool had_any = from.at != kBeginning || (from.count && *from.count > 0);
    return {.next = {.at = {}, .count = 0}, .missed = had_any, .replaced = had_any};
  }
  const auto count = from.at == kBeginning ? std::optional<std::uint64_t>(0) : from.count;
  const bool counted = count && state.added;
  Advance out{.next = {.at = read > 0 ? last : from.at, .count = {}}};
  if (to_the_end) {
    const EntryId oldest = state.length > 0 ? state.first : state.last;
    out.missed = counted ? *count + read != *state.added
                         : from.at < oldest || (state.max_deleted && from.at < *state.max_deleted);
    out.next = {.at = state.last, .count = state.added};
    return out;
  }
  // In the middle: what was deleted among the rest is noticed at the end.
  const bool cut = from.at < state.first;
  out.missed = cut && (!counted || *count < *state.added - std::min(state.length, *state.added));
  if (counted && !out.missed) out.next.count = *count + read;
  return out;
}

}  // namespace larder::feed
