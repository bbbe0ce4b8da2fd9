// The suite of every source, over a real PostgreSQL.
#include "source/conformance.h"

#include "source/postgres/postgres.h"
#include "source/postgres/testing.h"

namespace larder::source::testing {
namespace {

struct PostgresHarness {
  using Loop = RuntimeLoop;
  static constexpr bool kFeed = false;
  static constexpr bool kChanges = false;

  PostgresHarness() {
    other.exec("CREATE TABLE item(id integer PRIMARY KEY, name text, grp integer)");
    other.exec("INSERT INTO item VALUES (1, 'one', 10), (2, 'two', 10), (3, NULL, 20)");
  }
  Result<std::unique_ptr<Source>> open(std::vector<LoadStatement> statements,
                                       std::vector<WatchedTable> watched) {
    return postgres::open_postgres({.name = "shop",
                                    .url = url,
                                    .pool = 2,
                                    .queue = 16,
                                    .statements = std::move(statements),
                                    .watched = std::move(watched)});
  }
  void foreign(const std::string& sql) { other.exec(sql); }

  postgres::testing::Server& server = postgres::testing::Server::get();
  std::string url = server.url(server.fresh_database());
  postgres::testing::OtherClient other{url};
};

INSTANTIATE_TYPED_TEST_SUITE_P(Postgres, SourceConformance, PostgresHarness);

}  // namespace
}  // namespace larder::source::testing
