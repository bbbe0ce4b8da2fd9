#include "source/row_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/random.h"

namespace larder::source {
namespace {

using ::testing::HasSubstr;

std::string quoted(std::string_view text) {
  std::string out;
  append_json_string(out, text);
  return out;
}

std::string base64(std::string_view bytes) {
  std::string out;
  append_base64(out, bytes);
  return out;
}

std::string real(double value) {
  std::string out;
  append_real(out, value);
  return out;
}

Result<Row> rows_of(ResultShape shape, std::vector<std::string> columns,
                    const std::vector<std::vector<Cell>>& rows, std::size_t max = 1 << 20) {
  const auto layout = RowLayout::make(shape, std::move(columns));
  if (!layout) return std::unexpected(layout.error());
  RowBuilder builder(*layout, max);
  for (const auto& row : rows) builder.add(row);
  return builder.finish();
}

TEST(RowJson, Object) {
  const auto row = rows_of(ResultShape::object, {"id", "a\"b", "r", "n", "bin"},
                           {{Cell::of(INT64_MAX), Cell::text("x\ny"), Cell::of(2.0), Cell{},
                             Cell::blob(std::string_view("\0\xFF", 2))}});
  ASSERT_TRUE(row);
  EXPECT_TRUE(row->found);
  EXPECT_EQ(row->value,
            R"({"id":9223372036854775807,"a\"b":"x\ny","r":2.0,"n":null,"bin":"AP8="})");
}

TEST(RowJson, IntegersAreExact) {
  const auto row = rows_of(
      ResultShape::object, {"a", "b", "c"},
      {{Cell::of(INT64_MIN), Cell::of(std::int64_t{0}), Cell::of(std::int64_t{9007199254740993})}});
  EXPECT_EQ(row->value, R"({"a":-9223372036854775808,"b":0,"c":9007199254740993})");
}

TEST(RowJson, RealsStayRealsAndReadBack) {
  EXPECT_EQ(real(1), "1.0");
  EXPECT_EQ(real(-0.0), "-0.0");
  EXPECT_EQ(real(0.1), "0.1");
  EXPECT_EQ(real(1e300), "1e+300");
  EXPECT_EQ(real(123456789012345680.0).find_first_of(".e") != std::string::npos, true);
  Random dice(7);
  for (int i = 0; i < 20'000; ++i) {
    const double value = std::bit_cast<double>(dice.next());
    if (!std::isfinite(value)) continue;
    const std::string text = real(value);
    EXPECT_EQ(std::bit_cast<std::uint64_t>(std::strtod(text.c_str(), nullptr)),
              std::bit_cast<std::uint64_t>(value))
        << text;
    EXPECT_NE(text.find_first_of(".e"), std::string::npos) << text;
  }
}

TEST(RowJson, NoNumberIsNull) {
  const double inf = std::numeric_limits<double>::infinity();
  EXPECT_EQ(rows_of(ResultShape::object, {"a", "b", "c"},
                    {{Cell::of(inf), Cell::of(-inf), Cell::of(std::nan(""))}})
                ->value,
            R"({"a":null,"b":null,"c":null})");
}

TEST(RowJson, EscapesText) {
  EXPECT_EQ(quoted("a\"\\/\b\f\n\r\t\x01\x1f\x7f"),
            "\"a\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u001f\x7f\"");
  EXPECT_EQ(quoted(std::string_view("\0", 1)), "\"\\u0000\"");
  EXPECT_EQ(quoted("\u00e4\u20ac\U0001F600"), "\"\u00e4\u20ac\U0001F600\"");
}

TEST(RowJson, ReplacesWhatIsNotUtf8) {
  const std::string bad = "\xEF\xBF\xBD";
  EXPECT_EQ(quoted("a\x80z"), "\"a" + bad + "z\"");                  // lone continuation
  EXPECT_EQ(quoted("\xC0\xAF"), "\"" + bad + bad + "\"");            // overlong
  EXPECT_EQ(quoted("\xED\xA0\x80"), "\"" + bad + bad + bad + "\"");  // surrogate
  EXPECT_EQ(quoted("\xF5\x80"), "\"" + bad + bad + "\"");            // beyond Unicode
  EXPECT_EQ(quoted("\xF4\x90\x80\x80"), "\"" + bad + bad + bad + bad + "\"");
  EXPECT_EQ(quoted("\xE2\x82"
                   "x"),
            "\"" + bad + "x\"");  // cut: one for the part
  EXPECT_EQ(quoted("\xF0\x9F\x98"), "\"" + bad + "\"");
  EXPECT_EQ(quoted("\xC3\""), "\"" + bad + "\\\"\"");
}

TEST(RowJson, Base64) {
  EXPECT_EQ(base64(""), "");
  EXPECT_EQ(base64("f"), "Zg==");
  EXPECT_EQ(base64("fo"), "Zm8=");
  EXPECT_EQ(base64("foo"), "Zm9v");
  EXPECT_EQ(base64("foobar"), "Zm9vYmFy");
  EXPECT_EQ(base64("\xFF\xEF\xBE"), "/+++");
}

TEST(RowJson, Array) {
  EXPECT_EQ(rows_of(ResultShape::array, {"a"}, {})->value, "[]");
  EXPECT_TRUE(rows_of(ResultShape::array, {"a"}, {})->found);
  EXPECT_EQ(rows_of(ResultShape::array, {"value"}, {{Cell::text("x")}, {Cell{}}})->value,
            R"([{"value":"x"},{"value":null}])");
}

TEST(RowJson, ValueGivesBytes) {
  const std::string bytes("\0\xFF\"", 3);
  EXPECT_EQ(rows_of(ResultShape::value, {"x"}, {{Cell::blob(bytes)}})->value, bytes);
  EXPECT_EQ(rows_of(ResultShape::value, {"x"}, {{Cell::text("\xFF")}})->value, "\xFF");
  EXPECT_EQ(rows_of(ResultShape::value, {"x"}, {{Cell::of(std::int64_t{-5})}})->value, "-5");
  EXPECT_EQ(rows_of(ResultShape::object, {"value"}, {{Cell::text("{}")}})->value, "{}");
  EXPECT_EQ(rows_of(ResultShape::object, {"value", "b"}, {{Cell::text("x"), Cell{}}})->value,
            R"({"value":"x","b":null})");
  EXPECT_FALSE(rows_of(ResultShape::value, {"x"}, {{Cell{}}})->found);
  EXPECT_TRUE(rows_of(ResultShape::value, {"x"}, {{Cell::text("")}})->found);
  EXPECT_FALSE(rows_of(ResultShape::object, {"x"}, {})->found);
}

TEST(RowJson, RefusesSeveralRows) {
  for (const auto shape : {ResultShape::object, ResultShape::value}) {
    const auto row = rows_of(shape, {"x"}, {{Cell{}}, {Cell{}}});
    ASSERT_FALSE(row);
    EXPECT_EQ(row.error().code, ErrorCode::source_refused);
    EXPECT_THAT(row.error().message, HasSubstr("result = \"array\""));
  }
}

TEST(RowJson, RefusesColumnsThatClash) {
  for (const auto shape : {ResultShape::object, ResultShape::array}) {
    const auto row = rows_of(shape, {"id", "x", "id"}, {});
    ASSERT_FALSE(row);
    EXPECT_EQ(row.error().code, ErrorCode::source_refused);
    EXPECT_THAT(row.error().message, HasSubstr("two columns named \"id\""));
  }
  EXPECT_THAT(rows_of(ResultShape::value, {"a", "b"}, {}).error().message, HasSubstr("gives 2"));
}

TEST(RowJson, IsBounded) {
  const std::string big(100, 'x');
  const auto row = rows_of(ResultShape::array, {"x"}, {{Cell::text(big)}, {Cell::text(big)}}, 150);
  ASSERT_FALSE(row);
  EXPECT_EQ(row.error().code, ErrorCode::too_large);
  EXPECT_TRUE(rows_of(ResultShape::array, {"x"}, {{Cell::text(big)}}, 150));
}

TEST(RowJson, CanonicalTexts) {
  EXPECT_EQ(cell_text(Cell{}), std::nullopt);
  EXPECT_EQ(cell_text(Cell::of(std::int64_t{7})), "7");
  EXPECT_EQ(cell_text(Cell::of(7.0)), "7.0");
  EXPECT_EQ(cell_text(Cell::text("a b")), "a b");
  EXPECT_EQ(cell_text(Cell::blob("foo")), "Zm9v");
}

TEST(RowJson, FindsColumns) {
  const std::vector<std::string> columns = {"ID", "id", "Name"};
  EXPECT_EQ(find_column(columns, "id"), 1);
  EXPECT_EQ(find_column(columns, "name"), 2);
  EXPECT_EQ(find_column(columns, "nam"), -1);
}

}  // namespace
}  // namespace larder::source
