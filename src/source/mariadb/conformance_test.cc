// The suite of every source, over a real MariaDB.
#include "source/conformance.h"

#include "source/mariadb/mariadb.h"
#include "source/mariadb/testing.h"

namespace larder::source::testing {
namespace {

struct MariadbHarness {
  using Loop = RuntimeLoop;
  static constexpr bool kFeed = true;
  static constexpr bool kChanges = false;
  static constexpr bool kLeavesOut = false;
  static bool available() { return mariadb::testing::Server::available(); }

  MariadbHarness() {
    other.exec("CREATE TABLE item(id integer PRIMARY KEY, name text, grp integer)");
    other.exec("INSERT INTO item VALUES (1, 'one', 10), (2, 'two', 10), (3, NULL, 20)");
  }
  Result<std::unique_ptr<Source>> open(std::vector<LoadStatement> statements,
                                       std::vector<WatchedTable> watched) {
    return mariadb::open_mariadb({.name = "shop",
                                  .url = url,
                                  .pool = 2,
                                  .queue = 16,
                                  .heartbeat_us = 20 * kMillisecond,
                                  .statements = std::move(statements),
                                  .watched = std::move(watched)});
  }
  void foreign(const std::string& sql) { other.exec(sql); }

  mariadb::testing::Server& server = mariadb::testing::Server::get();
  std::string url = server.url(server.fresh_database());
  mariadb::testing::OtherClient other{url};
};

INSTANTIATE_TYPED_TEST_SUITE_P(Mariadb, SourceConformance, MariadbHarness);

}  // namespace
}  // namespace larder::source::testing
