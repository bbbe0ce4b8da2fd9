#include "source/mariadb/values.h"

#include <charconv>
#include <cmath>

namespace larder::source::mariadb {
namespace {

constexpr unsigned kBinary = 63;  // the character set of what has none

void append_hex(std::string& out, std::string_view bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  out.reserve(out.size() + 2 * bytes.size() + 1);
  for (const char c : bytes) {
    out += kDigits[static_cast<unsigned char>(c) >> 4U];
    out += kDigits[static_cast<unsigned char>(c) & 15U];
  }
}

// JSON knows no zeros in front: those of a ZEROFILL column.
std::string_view without_zerofill(std::string_view number) {
  while (number.size() > 1 && number[0] == '0' && number[1] >= '0' && number[1] <= '9')
    number.remove_prefix(1);
  return number;
}

std::string number_of_bits(std::string_view bytes) {
  std::uint64_t number = 0;
  for (const char byte : bytes) number = number << 8U | static_cast<unsigned char>(byte);
  return std::to_string(number);
}

bool is_json(const MYSQL_FIELD& field) {
  MARIADB_CONST_STRING format = {};
  return mariadb_field_attr(&format, &field, MARIADB_FIELD_ATTR_FORMAT_NAME) == 0 && format.str &&
         std::string_view(format.str, format.length) == "json";
}

}  // namespace

ColumnKind kind_of(const MYSQL_FIELD& field) {
  switch (field.type) {
    case MYSQL_TYPE_TINY:
    case MYSQL_TYPE_SHORT:
    case MYSQL_TYPE_INT24:
    case MYSQL_TYPE_LONG:
    case MYSQL_TYPE_LONGLONG:
    case MYSQL_TYPE_YEAR:
    case MYSQL_TYPE_FLOAT:
    case MYSQL_TYPE_DOUBLE:
    case MYSQL_TYPE_DECIMAL:
    case MYSQL_TYPE_NEWDECIMAL: return ColumnKind::number;
    case MYSQL_TYPE_BIT: return ColumnKind::bits;
    case MYSQL_TYPE_DATETIME:
    case MYSQL_TYPE_DATETIME2:
    case MYSQL_TYPE_TIMESTAMP:
    case MYSQL_TYPE_TIMESTAMP2: return ColumnKind::time;
    case MYSQL_TYPE_JSON: return ColumnKind::json;
    case MYSQL_TYPE_GEOMETRY: return ColumnKind::bytes;
    case MYSQL_TYPE_TINY_BLOB:
    case MYSQL_TYPE_MEDIUM_BLOB:
    case MYSQL_TYPE_LONG_BLOB:
    case MYSQL_TYPE_BLOB:
    case MYSQL_TYPE_VAR_STRING:
    case MYSQL_TYPE_VARCHAR:
    case MYSQL_TYPE_STRING:
      if (field.charsetnr == kBinary) return ColumnKind::bytes;
      return is_json(field) ? ColumnKind::json : ColumnKind::text;
    default: return ColumnKind::text;
  }
}

Cell cell_of(ColumnKind kind, std::optional<std::string_view> value, std::string& scratch) {
  if (!value) return {};
  switch (kind) {
    case ColumnKind::number: return Cell::json(without_zerofill(*value));
    case ColumnKind::bits: scratch = number_of_bits(*value); return Cell::json(scratch);
    case ColumnKind::json: return Cell::json(*value);
    case ColumnKind::bytes: return Cell::blob(*value);
    case ColumnKind::time:
      scratch = *value;
      if (scratch.size() > 10 && scratch[10] == ' ') scratch[10] = 'T';
      return Cell::text(scratch);
    case ColumnKind::text: break;
  }
  return Cell::text(*value);
}

std::optional<std::string> canonical_text(ColumnKind kind, std::optional<std::string_view> value) {
  std::string scratch;
  return cell_text(cell_of(kind == ColumnKind::time ? ColumnKind::text : kind, value, scratch));
}

std::string literal_of_text(std::string_view text) {
  std::string out = "_utf8mb4 x'";
  append_hex(out, text);
  return out + "'";
}

Result<std::string> literal_of(const Value& value) {
  if (std::holds_alternative<std::nullptr_t>(value)) return "NULL";
  if (const auto* const integer = std::get_if<std::int64_t>(&value))
    return std::to_string(*integer);
  if (const auto* const real = std::get_if<double>(&value)) {
    if (!std::isfinite(*real))
      return fail(ErrorCode::bad_value, "a number that is infinite or none, which MariaDB has not");
    char digits[40];
    const auto end = std::to_chars(digits, digits + sizeof digits, *real).ptr;
    std::string out(digits, end);
    if (!out.contains('e')) out += "e0";  // without an exponent it would be a DECIMAL
    return out;
  }
  if (const auto* const text = std::get_if<std::string>(&value)) return literal_of_text(*text);
  const auto& bytes = std::get<std::vector<std::byte>>(value);
  std::string out = "x'";
  append_hex(out, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  return out + "'";
}

std::string first_word(std::string_view sql) {
  const auto is_blank = [](char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; };
  while (!sql.empty() && is_blank(sql[0])) sql.remove_prefix(1);
  if (sql.starts_with('(')) return "(";
  std::string out;
  for (const char c : sql) {
    if (c >= 'A' && c <= 'Z')
      out += static_cast<char>(c - 'A' + 'a');
    else if (c >= 'a' && c <= 'z')
      out += c;
    else
      break;
  }
  return out;
}

bool is_query(std::string_view sql) {
  const std::string word = first_word(sql);
  return word == "select" || word == "with" || word == "(" || word == "values";
}

}  // namespace larder::source::mariadb
