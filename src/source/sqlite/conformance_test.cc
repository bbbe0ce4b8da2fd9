// The suite of every source, over SQLite in its four forms.
#include "source/conformance.h"

#include "source/sqlite/prepare.h"
#include "source/sqlite/sqlite.h"

namespace larder::source::testing {
namespace {

template <bool kPrepared, bool kWal>
struct SqliteHarness {
  using Loop = TestLoop;
  static constexpr bool kFeed = kPrepared;
  static constexpr bool kChanges = true;
  static constexpr bool kLeavesOut = true;

  SqliteHarness() {
    other.exec(kWal ? "PRAGMA journal_mode = WAL" : "PRAGMA journal_mode = DELETE");
    other.exec("CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, grp INTEGER)");
    other.exec("INSERT INTO item VALUES (1, 'one', 10), (2, 'two', 10), (3, NULL, 20)");
  }
  Result<std::unique_ptr<Source>> open(std::vector<LoadStatement> statements,
                                       std::vector<WatchedTable> watched) {
    if (kPrepared)
      if (auto done = sqlite::apply(path, watched); !done) return std::unexpected(done.error());
    return sqlite::open_sqlite({.name = "shop",
                                .path = path,
                                .pool = 2,
                                .queue = 16,
                                .poll_us = 1 * kMillisecond,
                                .statements = std::move(statements),
                                .watched = std::move(watched)});
  }
  void foreign(const std::string& sql) { other.exec(sql); }

  TempFolder folder;
  std::string path = folder / "shop.db";
  OtherClient other{path};
};

using Forms = ::testing::Types<SqliteHarness<true, true>, SqliteHarness<true, false>,
                               SqliteHarness<false, true>, SqliteHarness<false, false>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Sqlite, SourceConformance, Forms);

}  // namespace
}  // namespace larder::source::testing
