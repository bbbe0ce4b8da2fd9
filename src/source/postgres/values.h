// PostgreSQL's values and Larder's: what is sent as a parameter, what comes of a column. Pure.
//
// Columns come as text. What JSON has (booleans, numbers, json) is written as it is, bytea as
// base64, text as a string; for everything else (dates, arrays, composites, enums, ranges, ...) the
// server is asked for to_json() of it, so that it looks as row_to_json shows it.
#pragma once

#include <postgres_ext.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "source/row_json.h"
#include "source/source.h"

namespace larder::source::postgres {

enum class ColumnKind : std::uint8_t {
  boolean,
  number,  // integers, reals, numeric
  text,    // also char, name and uuid
  bytes,
  json,   // json and jsonb
  other,  // ask the server for to_json()
};

// By the type's OID, that of the base type for a domain: so libpq gives it.
ColumnKind kind_of(Oid type);

// A value of this kind as a cell. `scratch` holds the bytes of bytea, as long as the cell is used.
// An `other` is taken for text.
Cell cell_of(ColumnKind kind, std::optional<std::string_view> value, std::string& scratch);

// The canonical text of a column, of which keys, tags and RowChange::values are made: true and
// false, base64 for bytea, else PostgreSQL's own text. nullopt = NULL.
std::optional<std::string> canonical_text(Oid type, std::optional<std::string_view> value);

// The bytes that the text form of a bytea stands for ("\x00ff", or the old escapes).
std::string bytes_of(std::string_view bytea);

// The text of a parameter; nullopt = NULL. Errors (bad_value): a text with a zero byte, which
// PostgreSQL has not.
Result<std::optional<std::string>> param_of(const Value& value);

// What pg_current_snapshot() says, "xmin:xmax:xip,xip". nullopt: it is something else.
std::optional<policy::Snapshot> parse_snapshot(std::string_view text);

}  // namespace larder::source::postgres
