#include "source/sqlite/prepare.h"

#include <gmock/gmock.h>

#include "source/testing.h"

namespace larder::source::sqlite {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

class Prepare : public ::testing::Test {
 protected:
  void SetUp() override {
    other.exec(
        "CREATE TABLE product(id INTEGER PRIMARY KEY, sku TEXT COLLATE NOCASE UNIQUE, category)");
  }
  // tbl and k1, k2 of what was logged by the statement.
  std::string log_of(const std::string& sql) {
    other.exec("DELETE FROM larder_change");
    other.exec(sql);
    return other.query("SELECT DISTINCT tbl, k1, k2 FROM larder_change ORDER BY k1, k2");
  }
  std::string error_of(const std::vector<WatchedTable>& watched) {
    const auto planned = plan(path, watched);
    if (planned) return "";
    EXPECT_EQ(planned.error().code, ErrorCode::config);
    return planned.error().message;
  }

  testing::TempFolder folder;
  std::string path = folder / "shop.db";
  testing::OtherClient other{path};
  std::vector<WatchedTable> watched = {{0, "product", {"id", "category"}}};
};

TEST_F(Prepare, IsIdempotent) {
  EXPECT_FALSE(*is_prepared(path, watched));
  EXPECT_FALSE(plan(path, watched)->empty());
  ASSERT_TRUE(sqlite::apply(path, watched));
  EXPECT_TRUE(*is_prepared(path, watched));
  EXPECT_THAT(*plan(path, watched), IsEmpty());
  ASSERT_TRUE(sqlite::apply(path, watched));
  EXPECT_TRUE(*is_prepared(path, watched));
}

TEST_F(Prepare, LogsEveryKindOfChange) {
  ASSERT_TRUE(sqlite::apply(path, watched));
  EXPECT_EQ(log_of("INSERT INTO product VALUES (1, 'a', 'x'), (2, 'b', 'y')"),
            "product|1|x product|2|y");
  EXPECT_EQ(log_of("UPDATE product SET sku = 'aa' WHERE id = 1"), "product|1|x");
  EXPECT_EQ(log_of("UPDATE product SET category = 'z' WHERE id = 1"), "product|1|x product|1|z");
  EXPECT_EQ(log_of("UPDATE product SET id = 5 WHERE id = 1"), "product|1|z product|5|z");
  EXPECT_EQ(log_of("DELETE FROM product"), "product|2|y product|5|z");
  EXPECT_EQ(log_of("SELECT 1"), "");
}

TEST_F(Prepare, LogsWhatCaseOrTypeAloneChanges) {
  watched = {{0, "product", {"sku", "category"}}};
  ASSERT_TRUE(sqlite::apply(path, watched));
  other.exec("INSERT INTO product VALUES (1, 'abc', 1)");
  EXPECT_EQ(log_of("UPDATE product SET sku = 'ABC'"), "product|ABC|1 product|abc|1");
  log_of("UPDATE product SET category = 1.0");  // DISTINCT takes them for one
  EXPECT_EQ(other.query("SELECT k2 FROM larder_change"), "1 1.0");
}

// REPLACE deletes without a trigger, unless the writer has asked for recursive ones.
TEST_F(Prepare, LogsWhatReplaceDeletes) {
  ASSERT_TRUE(sqlite::apply(path, watched));
  other.exec("INSERT INTO product VALUES (1, 'a', 'x'), (2, 'b', 'y'), (3, 'c', 'z')");
  EXPECT_EQ(log_of("INSERT OR REPLACE INTO product VALUES (1, 'a', 'w')"),
            "product|1|w product|1|x");
  // By the unique sku, in its own collation: row 2 goes although only 9 was named.
  EXPECT_EQ(log_of("REPLACE INTO product VALUES (9, 'B', 'n')"), "product|2|y product|9|n");
  // An UPDATE can do it too.
  EXPECT_EQ(log_of("UPDATE OR REPLACE product SET id = 3 WHERE id = 1"),
            "product|1|w product|3|w product|3|z");
  EXPECT_EQ(other.query("SELECT id FROM product ORDER BY id"), "3 9");
  other.exec("PRAGMA recursive_triggers = ON");
  EXPECT_EQ(log_of("REPLACE INTO product VALUES (4, 'b', 'm')"), "product|4|m product|9|n");
}

TEST_F(Prepare, AnOrdinaryUpdateIsLoggedOnce) {
  ASSERT_TRUE(sqlite::apply(path, watched));
  other.exec("INSERT INTO product VALUES (1, 'a', 'x')");
  other.exec("DELETE FROM larder_change");
  other.exec("UPDATE product SET sku = 'q' WHERE id = 1");
  EXPECT_EQ(other.query("SELECT count(*) FROM larder_change"), "1");
}

TEST_F(Prepare, FollowsUpsertsAndCascades) {
  other.exec("PRAGMA foreign_keys = ON");
  other.exec(
      "CREATE TABLE review(pid INTEGER REFERENCES product(id) ON DELETE CASCADE, n INTEGER)");
  watched.push_back({1, "review", {"pid", "n"}});
  ASSERT_TRUE(sqlite::apply(path, watched));
  other.exec("INSERT INTO product VALUES (1, 'a', 'x')");
  other.exec("INSERT INTO review VALUES (1, 7)");
  EXPECT_EQ(log_of("INSERT INTO product VALUES (1, 'b', 'y') ON CONFLICT(id) DO UPDATE SET "
                   "category = excluded.category"),
            "product|1|x product|1|y");
  EXPECT_EQ(log_of("DELETE FROM product"), "review|1|7 product|1|y");
}

TEST_F(Prepare, OldColumnsStayWhereTheyAre) {
  ASSERT_TRUE(sqlite::apply(path, watched));
  const std::vector<WatchedTable> more = {{0, "PRODUCT", {"sku"}}};
  EXPECT_FALSE(*is_prepared(path, more));
  ASSERT_TRUE(sqlite::apply(path, more));
  EXPECT_TRUE(*is_prepared(path, more));
  // What the first service needs is still there, in its place.
  EXPECT_TRUE(*is_prepared(path, watched));
  other.exec("INSERT INTO product VALUES (1, 'a', 'x')");
  EXPECT_EQ(other.query("SELECT k1, k2, k3 FROM larder_change"), "1|x|a");
  EXPECT_EQ(other.query("SELECT tbl, k, col FROM larder_watched ORDER BY k"),
            "product|1|id product|2|category product|3|sku");
}

TEST_F(Prepare, NoticesThatTriggersNoLongerFit) {
  ASSERT_TRUE(sqlite::apply(path, watched));
  other.exec("DROP TRIGGER larder_delete_product");
  EXPECT_FALSE(*is_prepared(path, watched));
  ASSERT_TRUE(sqlite::apply(path, watched));
  EXPECT_TRUE(*is_prepared(path, watched));
  other.exec("CREATE UNIQUE INDEX by_category ON product(category)");
  EXPECT_FALSE(*is_prepared(path, watched));  // one more way in which REPLACE deletes
  ASSERT_TRUE(sqlite::apply(path, watched));
  EXPECT_TRUE(*is_prepared(path, watched));
  // How SQLite's documentation says that tables are altered: the triggers go with the old one.
  other.exec("CREATE TABLE p2(id INTEGER PRIMARY KEY, sku, category)");
  other.exec("DROP TABLE product");
  other.exec("ALTER TABLE p2 RENAME TO product");
  EXPECT_FALSE(*is_prepared(path, watched));
  ASSERT_TRUE(sqlite::apply(path, watched));
  EXPECT_EQ(log_of("INSERT INTO product VALUES (1, 'a', 'x')"), "product|1|x");
}

TEST_F(Prepare, OddNames) {
  other.exec(
      "CREATE TABLE \"my \"\"table's\"(\"a b\" TEXT, \"c'\" INTEGER, PRIMARY KEY(\"a b\")) "
      "WITHOUT ROWID");
  watched = {{0, "my \"table's", {"a b", "C'"}}};
  ASSERT_TRUE(sqlite::apply(path, watched));
  EXPECT_TRUE(*is_prepared(path, watched));
  EXPECT_EQ(log_of("INSERT INTO \"my \"\"table's\" VALUES ('k', 1)"), "my \"table's|k|1");
  EXPECT_EQ(log_of("REPLACE INTO \"my \"\"table's\" VALUES ('k', 2)"),
            "my \"table's|k|1 my \"table's|k|2");
}

TEST_F(Prepare, SaysWhatItCannotWatch) {
  EXPECT_THAT(error_of({{0, "produkt", {"id"}}}), HasSubstr("\"produkt\""));
  EXPECT_THAT(error_of({{0, "product", {"ident"}}}), HasSubstr("which has: id, sku, category"));
  other.exec("CREATE VIEW v AS SELECT id FROM product");
  EXPECT_THAT(error_of({{0, "v", {"id"}}}), HasSubstr("view"));
  other.exec("CREATE TABLE wide(a, b, c, d, e)");
  EXPECT_THAT(error_of({{0, "wide", {"a", "b", "c"}}, {1, "wide", {"d", "e"}}}),
              HasSubstr("5 columns"));
  other.exec("CREATE TABLE odd(a)");
  other.exec("CREATE UNIQUE INDEX odd_lower ON odd(lower(a))");
  EXPECT_THAT(error_of({{0, "odd", {"a"}}}), HasSubstr("odd_lower"));
  const auto missing = plan(folder / "none.db", watched);
  ASSERT_FALSE(missing);
  EXPECT_THAT(missing.error().message, HasSubstr("does not exist"));
  EXPECT_FALSE(file_id(folder / "none.db"));
}

TEST_F(Prepare, RefusesAForeignTableOfItsName) {
  other.exec("CREATE TABLE larder_change(x)");
  EXPECT_THAT(error_of(watched), HasSubstr("not of this version"));
}

TEST_F(Prepare, TheSequenceOutlivesTheRows) {
  ASSERT_TRUE(sqlite::apply(path, watched));
  other.exec("INSERT INTO product VALUES (1, 'a', 'x'), (2, 'b', 'y')");
  other.exec("DELETE FROM larder_change");
  EXPECT_EQ(other.query(kSequenceSql), "2");
  // OR FAIL keeps the rows before the one that fails. Their changes count, whether or not
  // AUTOINCREMENT has noted them.
  other.try_exec("INSERT OR FAIL INTO product VALUES (3, 'c', 'z'), (1, 'd', 'w')");
  EXPECT_EQ(other.query("SELECT k1 FROM larder_change WHERE k1 = 3"), "3");
  EXPECT_EQ(other.query(kSequenceSql), other.query("SELECT max(seq) FROM larder_change"));
}

TEST_F(Prepare, TempTriggersLogTheSame) {
  auto db = Connection::open(path, Connection::Mode::write);
  ASSERT_TRUE(db);
  watched = {{3, "product", {"id"}}, {4, "product", {"category", "sku"}}};
  const auto made = temp_triggers(**db, watched);
  ASSERT_TRUE(made) << made.error().message;
  for (const auto& sql : made->statements) ASSERT_TRUE((*db)->exec(sql)) << sql;
  ASSERT_TRUE((*db)->exec("INSERT INTO product VALUES (1, 'a', x'FF00'), (2, NULL, 1.5)"));
  ASSERT_TRUE((*db)->exec("REPLACE INTO product VALUES (7, 'A', 2)"));
  auto stmt =
      (*db)->prepare("SELECT tbl, k1, k2, k3, k4 FROM temp.larder_change ORDER BY seq", false);
  ASSERT_TRUE(stmt);
  std::vector<RowChange> changes;
  while (*(*stmt)->step()) made->columns.append(**stmt, 0, 9, changes);
  std::vector<std::string> texts;
  for (const auto& change : changes) {
    std::string text = std::to_string(change.watched_id);
    for (const auto& value : change.values) text += " " + value.value_or("NULL");
    texts.push_back(text);
  }
  EXPECT_THAT(texts, UnorderedElementsAre("3 1", "4 /wA= a", "3 2", "4 1.5 NULL", "3 1", "4 /wA= a",
                                          "3 7", "4 2 A"));
  EXPECT_EQ(other.query("SELECT count(*) FROM sqlite_master WHERE name LIKE 'larder%'"), "0");
}

}  // namespace
}  // namespace larder::source::sqlite
