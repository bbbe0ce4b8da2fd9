// Rows to bytes: the shapes of source.h, for every source that has rows. Pure.
//
// NULL is null. 64-bit integers are exact. Reals are the shortest text that reads back as the same
// double and stay reals (`1.0`, not `1`); NaN and infinities, which JSON has not, are null. Text is
// escaped as little as JSON allows; a byte sequence that is not UTF-8 becomes U+FFFD. Binary is
// base64.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "source/source.h"

namespace larder::source {

// One value of a row; a view, valid as long as the row is.
struct Cell {
  enum class Type : std::uint8_t { null, integer, real, text, blob, json };
  Type type = Type::null;
  std::int64_t integer = 0;
  double real = 0;
  std::string_view bytes;  // text, blob and json: what is JSON already

  static Cell of(std::int64_t value) { return {.type = Type::integer, .integer = value}; }
  static Cell of(double value) { return {.type = Type::real, .real = value}; }
  static Cell text(std::string_view value) { return {.type = Type::text, .bytes = value}; }
  static Cell blob(std::string_view value) { return {.type = Type::blob, .bytes = value}; }
  static Cell json(std::string_view value) { return {.type = Type::json, .bytes = value}; }
};

void append_json_string(std::string& out, std::string_view text);  // with its quotes
void append_base64(std::string& out, std::string_view bytes);      // RFC 4648, padded
void append_real(std::string& out, double value);                  // "inf", "nan" as they are

// The canonical text of a value (decimal, shortest real, text and JSON as they are, base64): what
// keys, tags and RowChange::values are made of. nullopt = NULL.
std::optional<std::string> cell_text(const Cell& cell);

// The index of the column `name`: exactly, else without regard to ASCII case; -1 if there is none.
int find_column(std::span<const std::string> columns, std::string_view name);

// What the rows of one statement look like, made once for each statement.
class RowLayout {
 public:
  // Errors (source_refused): two columns of one name; not exactly one column for
  // ResultShape::value.
  static Result<RowLayout> make(ResultShape shape, std::vector<std::string> columns);

  ResultShape shape() const { return shape_; }
  const std::vector<std::string>& columns() const { return columns_; }
  // The value is the bytes of the one column.
  bool raw() const { return raw_; }

 private:
  friend class RowBuilder;
  ResultShape shape_ = ResultShape::object;
  bool raw_ = false;
  std::vector<std::string> columns_;
  std::vector<std::string> names_;  // `"name":`
};

// Collects the rows of one key. Bounded: beyond `max_bytes` it is an error, not an allocation.
class RowBuilder {
 public:
  static constexpr std::size_t kMaxBytes = 64 << 20;

  // REQUIRES: `layout` outlives this.
  explicit RowBuilder(const RowLayout& layout, std::size_t max_bytes = kMaxBytes)
      : layout_(&layout), max_bytes_(max_bytes) {}

  // REQUIRES: one cell a column. After an error finish() gives it again.
  void add(std::span<const Cell> cells);

  // Is it clear already that finish() gives an error? Then further rows need not be read.
  bool failed() const { return error_.has_value(); }

  // found and value of Row. An array of no rows is found and "[]"; a lone NULL as raw value is not
  // found, as it has no bytes. Errors: source_refused (several rows where one is right), too_large.
  Result<Row> finish();

 private:
  const RowLayout* layout_;
  std::size_t max_bytes_;
  std::size_t rows_ = 0;
  bool raw_null_ = false;
  std::string out_;
  std::optional<Error> error_;
};

}  // namespace larder::source
