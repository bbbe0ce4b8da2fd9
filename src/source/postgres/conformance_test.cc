// The suite of every source, over a real PostgreSQL.
#include "source/conformance.h"

#include "source/postgres/postgres.h"
#include "source/postgres/prepare.h"
#include "source/postgres/testing.h"

namespace larder::source::testing {
namespace {

template <FeedFor kFor, postgres::Means kMeans = postgres::Means::log>
struct PostgresHarness {
  using Loop = RuntimeLoop;
  static constexpr bool kFeed = true;
  static constexpr bool kChanges = kMeans == postgres::Means::triggers;
  static constexpr bool kLeavesOut = false;
  static bool available() { return postgres::testing::Server::available(); }

  PostgresHarness() {
    other.exec("CREATE TABLE item(id integer PRIMARY KEY, name text, grp integer)");
    other.exec("INSERT INTO item VALUES (1, 'one', 10), (2, 'two', 10), (3, NULL, 20)");
  }
  Result<std::unique_ptr<Source>> open(std::vector<LoadStatement> statements,
                                       std::vector<WatchedTable> watched) {
    const postgres::PrepareOptions wanted{.means = kMeans,
                                          .source = "shop",
                                          .slot = feed,
                                          .publication = feed,
                                          .feed_for = kFor,
                                          .watched = watched};
    const auto found = postgres::examine_now(url, wanted, soon());
    if (!found) return std::unexpected(found.error());
    if (const auto done = postgres::apply_now(url, *found, soon()); !done)
      return std::unexpected(done.error());
    return postgres::open_postgres({.name = "shop",
                                    .url = url,
                                    .pool = 2,
                                    .queue = 16,
                                    .feed_for = kFor,
                                    .means = kMeans,
                                    .slot = feed,
                                    .publication = feed,
                                    .heartbeat_us = 20 * kMillisecond,
                                    .check_us = 20 * kMillisecond,
                                    .statements = std::move(statements),
                                    .watched = std::move(watched)});
  }
  ~PostgresHarness() { server.drop_slots(database); }
  void foreign(const std::string& sql) { other.exec(sql); }

  postgres::testing::Server& server = postgres::testing::Server::get();
  std::string database = server.fresh_database();
  std::string url = server.url(database);
  std::string feed = postgres::feed_name("test", database);
  postgres::testing::OtherClient other{url};
};

using Forms = ::testing::Types<PostgresHarness<FeedFor::node>, PostgresHarness<FeedFor::fleet>,
                               PostgresHarness<FeedFor::node, postgres::Means::triggers>,
                               PostgresHarness<FeedFor::fleet, postgres::Means::triggers>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Postgres, SourceConformance, Forms);

}  // namespace
}  // namespace larder::source::testing
