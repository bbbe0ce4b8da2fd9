#include "source/postgres/values.h"

#include <algorithm>
#include <charconv>

namespace larder::source::postgres {
namespace {

// From PostgreSQL's pg_type.dat; they never change.
constexpr Oid kBool = 16, kBytea = 17, kChar = 18, kName = 19, kInt8 = 20, kInt2 = 21, kInt4 = 23,
              kText = 25, kOid = 26, kJson = 114, kFloat4 = 700, kFloat8 = 701, kBpchar = 1042,
              kVarchar = 1043, kNumeric = 1700, kUuid = 2950, kJsonb = 3802;

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return 0;
}

// NaN and the infinities are no numbers in JSON; PostgreSQL writes them as strings.
bool is_finite(std::string_view number) {
  const char last = number.empty() ? '\0' : number.back();
  return last >= '0' && last <= '9';
}

bool take_number(std::string_view& text, char end, policy::TxnId& out) {
  const auto [at, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (error != std::errc()) return false;
  text.remove_prefix(static_cast<std::size_t>(at - text.data()));
  if (text.empty()) return end == '\0';
  if (text[0] != end) return false;
  text.remove_prefix(1);
  return true;
}

}  // namespace

ColumnKind kind_of(Oid type) {
  switch (type) {
    case kBool: return ColumnKind::boolean;
    case kInt2:
    case kInt4:
    case kInt8:
    case kFloat4:
    case kFloat8:
    case kNumeric: return ColumnKind::number;
    case kChar:
    case kName:
    case kText:
    case kBpchar:
    case kVarchar:
    case kUuid:
    case kOid: return ColumnKind::text;
    case kBytea: return ColumnKind::bytes;
    case kJson:
    case kJsonb: return ColumnKind::json;
    default: return ColumnKind::other;
  }
}

Cell cell_of(ColumnKind kind, std::optional<std::string_view> value, std::string& scratch) {
  if (!value) return {};
  switch (kind) {
    case ColumnKind::boolean: return Cell::json(*value == "t" ? "true" : "false");
    case ColumnKind::number: return is_finite(*value) ? Cell::json(*value) : Cell::text(*value);
    case ColumnKind::json: return Cell::json(*value);
    case ColumnKind::bytes: scratch = bytes_of(*value); return Cell::blob(scratch);
    case ColumnKind::text:
    case ColumnKind::other: break;
  }
  return Cell::text(*value);
}

std::optional<std::string> canonical_text(Oid type, std::optional<std::string_view> value) {
  std::string scratch;
  return cell_text(cell_of(kind_of(type), value, scratch));
}

std::string bytes_of(std::string_view bytea) {
  std::string out;
  if (bytea.starts_with("\\x")) {
    out.reserve(bytea.size() / 2);
    for (std::size_t i = 2; i + 1 < bytea.size(); i += 2)
      out += static_cast<char>(hex_digit(bytea[i]) << 4 | hex_digit(bytea[i + 1]));
    return out;
  }
  for (std::size_t i = 0; i < bytea.size(); ++i) {
    if (bytea[i] != '\\') {
      out += bytea[i];
    } else if (i + 1 < bytea.size() && bytea[i + 1] == '\\') {
      out += bytea[++i];
    } else if (i + 3 < bytea.size()) {
      out += static_cast<char>((bytea[i + 1] - '0') << 6 | (bytea[i + 2] - '0') << 3 |
                               (bytea[i + 3] - '0'));
      i += 3;
    }
  }
  return out;
}

Result<std::optional<std::string>> param_of(const Value& value) {
  if (std::holds_alternative<std::nullptr_t>(value)) return std::nullopt;
  if (const auto* const integer = std::get_if<std::int64_t>(&value))
    return std::to_string(*integer);
  if (const auto* const real = std::get_if<double>(&value)) {
    std::string out;
    append_real(out, *real);
    return out;
  }
  if (const auto* const text = std::get_if<std::string>(&value)) {
    if (text->find('\0') != std::string::npos)
      return fail(ErrorCode::bad_value,
                  "a text with a zero byte, which PostgreSQL cannot store: use a bytea column");
    return *text;
  }
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out = "\\x";
  for (const std::byte byte : std::get<std::vector<std::byte>>(value)) {
    out += kDigits[std::to_integer<unsigned>(byte) >> 4U];
    out += kDigits[std::to_integer<unsigned>(byte) & 15U];
  }
  return out;
}

std::optional<policy::Snapshot> parse_snapshot(std::string_view text) {
  policy::Snapshot out;
  if (!take_number(text, ':', out.xmin) || !take_number(text, ':', out.xmax)) return std::nullopt;
  for (bool more = !text.empty(); more;) {
    more = text.find(',') != std::string_view::npos;
    if (!take_number(text, more ? ',' : '\0', out.in_progress.emplace_back())) return std::nullopt;
  }
  const bool ordered =
      out.xmin > 0 && out.xmin <= out.xmax && std::ranges::is_sorted(out.in_progress);
  return ordered ? std::optional(std::move(out)) : std::nullopt;
}

}  // namespace larder::source::postgres
