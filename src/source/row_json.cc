#include "source/row_json.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

namespace larder::source {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

struct Sequence {
  std::size_t size = 1;  // how much to consume
  bool valid = false;
};

// The UTF-8 sequence at the start of `s` (Unicode 15, table 3-7). If it is ill-formed, `size` is
// its maximal subpart: one U+FFFD for each, as the standard recommends. REQUIRES: s[0] >= 0x80.
Sequence utf8_sequence(std::string_view s) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(s[i]); };
  const unsigned char first = byte(0);
  std::size_t need = 0;
  unsigned char low = 0x80, high = 0xBF;  // of the second byte
  if (first >= 0xC2 && first <= 0xDF) {
    need = 1;
  } else if (first >= 0xE0 && first <= 0xEF) {
    need = 2;
    if (first == 0xE0) low = 0xA0;   // overlong
    if (first == 0xED) high = 0x9F;  // surrogates
  } else if (first >= 0xF0 && first <= 0xF4) {
    need = 3;
    if (first == 0xF0) low = 0x90;   // overlong
    if (first == 0xF4) high = 0x8F;  // beyond U+10FFFF
  } else {
    return {};
  }
  for (std::size_t i = 1; i <= need; ++i) {
    if (i >= s.size() || byte(i) < low || byte(i) > high) return {.size = i, .valid = false};
    low = 0x80;
    high = 0xBF;
  }
  return {.size = need + 1, .valid = true};
}

void append_escape(std::string& out, char c) {
  switch (c) {
    case '"': out += "\\\""; return;
    case '\\': out += "\\\\"; return;
    case '\b': out += "\\b"; return;
    case '\f': out += "\\f"; return;
    case '\n': out += "\\n"; return;
    case '\r': out += "\\r"; return;
    case '\t': out += "\\t"; return;
    default: fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<unsigned>(c));
  }
}

void append_integer(std::string& out, std::int64_t value) {
  char buffer[24];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
  out.append(buffer, end);
}

void append_cell(std::string& out, const Cell& cell) {
  switch (cell.type) {
    case Cell::Type::null: out += "null"; return;
    case Cell::Type::integer: append_integer(out, cell.integer); return;
    case Cell::Type::real:
      if (std::isfinite(cell.real))
        append_real(out, cell.real);
      else
        out += "null";
      return;
    case Cell::Type::text: append_json_string(out, cell.bytes); return;
    case Cell::Type::json: out += cell.bytes; return;
    case Cell::Type::blob:
      out += '"';
      append_base64(out, cell.bytes);
      out += '"';
      return;
  }
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

}  // namespace

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  std::size_t clean = 0;  // [clean, i) can be copied as it is
  std::size_t i = 0;
  while (i < text.size()) {
    const char c = text[i];
    if (static_cast<unsigned char>(c) >= 0x80) {
      const Sequence sequence = utf8_sequence(text.substr(i));
      if (!sequence.valid) {
        out.append(text, clean, i - clean);
        out += kReplacement;
        clean = i + sequence.size;
      }
      i += sequence.size;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == '"' || c == '\\') {
      out.append(text, clean, i - clean);
      append_escape(out, c);
      clean = ++i;
    } else {
      ++i;
    }
  }
  out.append(text, clean);
  out += '"';
}

void append_base64(std::string& out, std::string_view bytes) {
  static constexpr char kDigits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t left = std::min<std::size_t>(3, bytes.size() - i);
    std::uint32_t group = 0;
    for (std::size_t j = 0; j < 3; ++j)
      group = (group << 8) | (j < left ? static_cast<unsigned char>(bytes[i + j]) : 0U);
    for (std::size_t j = 0; j < 4; ++j)
      out += j <= left ? kDigits[(group >> (18 - 6 * j)) & 63U] : '=';
  }
}

void append_real(std::string& out, double value) {
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
  const std::string_view text(buffer, static_cast<std::size_t>(end - buffer));
  out += text;
  if (std::isfinite(value) && text.find_first_of(".e") == std::string_view::npos) out += ".0";
}

std::optional<std::string> cell_text(const Cell& cell) {
  std::string out;
  switch (cell.type) {
    case Cell::Type::null: return std::nullopt;
    case Cell::Type::integer: append_integer(out, cell.integer); break;
    case Cell::Type::real: append_real(out, cell.real); break;
    case Cell::Type::text:
    case Cell::Type::json: out = cell.bytes; break;
    case Cell::Type::blob: append_base64(out, cell.bytes); break;
  }
  return out;
}

int find_column(std::span<const std::string> columns, std::string_view name) {
  for (std::size_t i = 0; i < columns.size(); ++i)
    if (columns[i] == name) return static_cast<int>(i);
  for (std::size_t i = 0; i < columns.size(); ++i)
    if (std::ranges::equal(columns[i], name, {}, lower, lower)) return static_cast<int>(i);
  return -1;
}

Result<RowLayout> RowLayout::make(ResultShape shape, std::vector<std::string> columns) {
  RowLayout layout;
  layout.shape_ = shape;
  layout.raw_ = shape == ResultShape::value ||
                (shape == ResultShape::object && columns.size() == 1 && columns[0] == "value");
  if (shape == ResultShape::value && columns.size() != 1)
    return fail(ErrorCode::source_refused,
                fmt::format("result = \"value\" needs exactly one column, but the load statement "
                            "gives {}: select one, or use result = \"object\"",
                            columns.size()));
  for (std::size_t i = 0; i < columns.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j)
      if (columns[i] == columns[j])
        return fail(ErrorCode::source_refused,
                    fmt::format("the load statement gives two columns named \"{0}\": name one of "
                                "them otherwise (... AS other_name)",
                                columns[i]));
    std::string name;
    append_json_string(name, columns[i]);
    layout.names_.push_back(name + ":");
  }
  layout.columns_ = std::move(columns);
  return layout;
}

void RowBuilder::add(std::span<const Cell> cells) {
  if (error_) return;
  LARDER_ASSERT(cells.size() == layout_->columns_.size());
  if (rows_++ > 0 && layout_->shape_ != ResultShape::array) {
    error_ = Error{ErrorCode::source_refused,
                   "the load statement gave several rows for one key: make it select one "
                   "(LIMIT 1), or use result = \"array\"",
                   ""};
    return;
  }
  std::size_t bytes = out_.size();
  for (const Cell& cell : cells) bytes += cell.bytes.size();
  if (bytes <= max_bytes_) {
    if (layout_->raw_) {
      const Cell& cell = cells[0];
      raw_null_ = cell.type == Cell::Type::null;
      out_ = cell.type == Cell::Type::blob ? std::string(cell.bytes)
                                           : cell_text(cell).value_or(std::string());
    } else {
      if (layout_->shape_ == ResultShape::array) out_ += rows_ == 1 ? '[' : ',';
      out_ += '{';
      for (std::size_t i = 0; i < cells.size(); ++i) {
        if (i > 0) out_ += ',';
        out_ += layout_->names_[i];
        append_cell(out_, cells[i]);
      }
      out_ += '}';
    }
  }
  if (std::max(bytes, out_.size()) > max_bytes_) {
    error_ = Error{
        ErrorCode::too_large,
        fmt::format("what was loaded for one key is larger than {} bytes: select less", max_bytes_),
        ""};
    out_ = {};
  }
}

Result<Row> RowBuilder::finish() {
  if (error_) return std::unexpected(std::move(*error_));
  Row row;
  row.found = rows_ > 0 && !raw_null_;
  if (layout_->shape_ == ResultShape::array) {
    row.found = true;
    out_ += rows_ == 0 ? "[]" : "]";
  }
  row.value = std::move(out_);
  return row;
}

}  // namespace larder::source
