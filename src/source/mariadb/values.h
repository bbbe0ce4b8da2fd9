// MariaDB's values and Larder's: what is sent as a parameter, what comes of a column. Pure.
//
// Columns come as text. Numbers (DECIMAL, BIT and booleans, which MariaDB holds as integers,
// included) are written with every digit, JSON as it is, binary as base64, everything else as a
// string; a DATETIME or TIMESTAMP with the T of ISO 8601, in the server's time zone.
#pragma once

#include <mysql.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "source/row_json.h"
#include "source/source.h"

namespace larder::source::mariadb {

enum class ColumnKind : std::uint8_t {
  number,  // integers, reals, DECIMAL, YEAR
  bits,    // BIT(n): bytes, the highest first
  text,    // also DATE, TIME, ENUM, SET, UUID, INET6
  time,    // DATETIME, TIMESTAMP
  bytes,
  json,
};

ColumnKind kind_of(const MYSQL_FIELD& field);

// A value of this kind as a cell. `scratch` holds its bytes where they are not the column's own, as
// long as the cell is used.
Cell cell_of(ColumnKind kind, std::optional<std::string_view> value, std::string& scratch);

// The canonical text of a column, of which keys, tags and RowChange::values are made: that of its
// cell, but a DATETIME as MariaDB writes it. nullopt = NULL.
std::optional<std::string> canonical_text(ColumnKind kind, std::optional<std::string_view> value);

// A parameter as it stands behind USING, whatever the server's sql_mode: numbers in digits, texts
// and bytes in hexadecimal. Errors (bad_value): a real number that is none (infinite, NaN).
Result<std::string> literal_of(const Value& value);

// The same for a text, "" included.
std::string literal_of_text(std::string_view text);

// "select" of "  SELECT 1", in lower case; "(" of "(SELECT 1) UNION ...".
std::string first_word(std::string_view sql);

// Does it read, and give rows?
bool is_query(std::string_view sql);

}  // namespace larder::source::mariadb
