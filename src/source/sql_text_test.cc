#include "source/sql_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace larder::source {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> occurrences(const SqlText& sql) {
  std::vector<std::string> names;
  for (const auto& p : sql.placeholders()) names.push_back(p.name);
  return names;
}

std::string error_of(std::string_view sql, Dialect dialect = Dialect::sqlite) {
  const auto parsed = SqlText::parse(sql, dialect);
  if (parsed) return "";
  EXPECT_EQ(parsed.error().code, ErrorCode::config);
  return parsed.error().message;
}

TEST(SqlText, FindsPlaceholdersInOrder) {
  const auto sql = SqlText::parse("SELECT * FROM t WHERE a = :a AND b=:b_2 OR (:a)IS NULL");
  ASSERT_TRUE(sql);
  EXPECT_THAT(occurrences(*sql), ElementsAre("a", "b_2", "a"));
  EXPECT_THAT(sql->names(), ElementsAre("a", "b_2"));
}

TEST(SqlText, KnowsWhatIsNoPlaceholder) {
  const auto sql = SqlText::parse(
      "SELECT ':s', 'it''s :t', \":i\", \"a\"\":j\", [:k], `:l`, x::text, y:: int -- :m\n"
      "/* :n ' */ , :yes FROM t /* end :o */ -- :p");
  ASSERT_TRUE(sql);
  EXPECT_THAT(sql->names(), ElementsAre("yes"));
}

TEST(SqlText, CastOfAPlaceholder) {
  const auto sql = SqlText::parse("SELECT :id::bigint, :x::text::int", Dialect::postgres);
  ASSERT_TRUE(sql);
  EXPECT_THAT(sql->names(), ElementsAre("id", "x"));
  EXPECT_EQ(sql->numbered(0, '$'), "SELECT $1::bigint, $2::text::int");
}

TEST(SqlText, Numbers) {
  const auto sql = SqlText::parse("SELECT ':a' WHERE a=:a AND b=:b AND c=:a");
  ASSERT_TRUE(sql);
  EXPECT_EQ(sql->numbered(), "SELECT ':a' WHERE a=?1 AND b=?2 AND c=?1");
  EXPECT_EQ(sql->numbered(510), "SELECT ':a' WHERE a=?511 AND b=?512 AND c=?511");
  EXPECT_EQ(sql->positional(), "SELECT ':a' WHERE a=? AND b=? AND c=?");
}

TEST(SqlText, TextCanStandInParentheses) {
  for (const char* sql : {"SELECT 1", " \n SELECT 1;", "-- why\nSELECT 1 ; -- because",
                          "/* a */;;SELECT 1;;/* b */", "SELECT 1 -- c"})
    EXPECT_EQ(SqlText::parse(sql)->text(), "SELECT 1") << sql;
  EXPECT_EQ(SqlText::parse("SELECT /* in */ 1")->text(), "SELECT /* in */ 1");
}

TEST(SqlText, RefusesWhatDoesNotEnd) {
  EXPECT_THAT(error_of("SELECT 'abc"), HasSubstr("string that begins at byte 8"));
  EXPECT_THAT(error_of("SELECT 'abc''"), HasSubstr("byte 8"));
  EXPECT_THAT(error_of("SELECT \"abc"), HasSubstr("quoted name that begins at byte 8"));
  EXPECT_THAT(error_of("SELECT `abc"), HasSubstr("byte 8"));
  EXPECT_THAT(error_of("SELECT [abc"), HasSubstr("byte 8"));
  EXPECT_THAT(error_of("SELECT 1 /* abc"), HasSubstr("comment that begins at byte 10"));
  EXPECT_THAT(error_of("SELECT $q$ :a $x$", Dialect::postgres), HasSubstr("byte 8"));
  EXPECT_THAT(error_of("SELECT /* /* */", Dialect::postgres), HasSubstr("byte 8"));
}

TEST(SqlText, RefusesNothingManyAndTooLong) {
  EXPECT_THAT(error_of(""), HasSubstr("empty"));
  EXPECT_THAT(error_of(" ; -- x"), HasSubstr("empty"));
  EXPECT_THAT(error_of("SELECT 1; SELECT 2"), HasSubstr("second one begins at byte 11"));
  EXPECT_THAT(error_of(std::string_view("SELECT \0", 8)), HasSubstr("NUL"));
  EXPECT_THAT(error_of("SELECT :n\xC3\xA4me"), HasSubstr("byte 8"));
  EXPECT_EQ(error_of("SELECT " + std::string(SqlText::kMaxBytes - 8, '1')), "");
  EXPECT_THAT(error_of("SELECT " + std::string(SqlText::kMaxBytes - 6, '1')),
              HasSubstr("longer than"));
}

// Its number would become part of it: id$1 is a name in PostgreSQL, and $$ begins a string.
TEST(SqlText, RefusesAPlaceholderRightBehindAWord) {
  for (const char* sql :
       {"SELECT id:a", "SELECT 1:a", "SELECT a$:a", "SELECT $:a", "SELECT \xC3\xA4:a"})
    for (const Dialect dialect : {Dialect::sqlite, Dialect::postgres, Dialect::mariadb})
      EXPECT_THAT(error_of(sql, dialect), HasSubstr("put a blank before it")) << sql;
}

TEST(SqlText, ColonsThatAreNothing) {
  const auto sql = SqlText::parse("SELECT a : b, :1, : x, ':' :: y, :: z:");
  ASSERT_TRUE(sql);
  EXPECT_THAT(sql->names(), ElementsAre());
}

TEST(SqlText, Dialects) {
  const auto slice =
      SqlText::parse("SELECT a[:i], $$ :n $$, $t$ :n $$ $t$, E'\\':n', c$d$ :e", Dialect::postgres);
  ASSERT_TRUE(slice);
  EXPECT_THAT(slice->names(), ElementsAre("i", "e"));
  const auto maria = SqlText::parse("SELECT 'a\\':n', `x`, :y # :z\n, [:w]", Dialect::mariadb);
  ASSERT_TRUE(maria);
  EXPECT_THAT(maria->names(), ElementsAre("y", "w"));
  const auto nested = SqlText::parse("SELECT /* /* :a */ :b */ :c", Dialect::postgres);
  ASSERT_TRUE(nested);
  EXPECT_THAT(nested->names(), ElementsAre("c"));
}

// Each prefix of a statement parses or is refused, and the placeholders of one that parses are a
// prefix of the whole's.
TEST(SqlText, EverySplitPoint) {
  const std::string sql =
      "SELECT ':a', \":b\", [:c], :d::int /* :e */ , :f -- :g\n, `:h`, :i ; -- x";
  const auto whole = SqlText::parse(sql);
  ASSERT_TRUE(whole);
  EXPECT_THAT(whole->names(), ElementsAre("d", "f", "i"));
  for (std::size_t size = 0; size <= sql.size(); ++size) {
    const auto part = SqlText::parse(sql.substr(0, size));
    if (!part) continue;
    ASSERT_LE(part->names().size(), 3U);
    for (std::size_t i = 0; i < part->names().size(); ++i)
      EXPECT_EQ(part->names()[i], whole->names()[i]) << size;
  }
}

}  // namespace
}  // namespace larder::source
