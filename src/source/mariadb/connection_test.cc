#include "source/mariadb/connection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "source/mariadb/mariadb.h"
#include "source/mariadb/numbers.h"
#include "source/mariadb/testing.h"
#include "source/mariadb/values.h"

namespace larder::source::mariadb {
namespace {

using source::testing::RuntimeLoop;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::OtherClient;
using testing::Server;

TimeUs soon() { return monotonic_now_us() + 20 * kSecond; }

// ---- values ----

TEST(MariadbValues, Parameters) {
  EXPECT_EQ(literal_of(Value(nullptr)), "NULL");
  EXPECT_EQ(literal_of(Value(std::int64_t{-5})), "-5");
  EXPECT_EQ(literal_of(Value(0.1)), "0.1e0");
  EXPECT_EQ(literal_of(Value(1e300)), "1e+300");
  EXPECT_EQ(literal_of(Value(std::string("a'\\"))), "_utf8mb4 x'61275c'");
  EXPECT_EQ(literal_of(Value(std::string())), "_utf8mb4 x''");
  EXPECT_EQ(literal_of(Value(std::vector<std::byte>{std::byte{0}, std::byte{0xfa}})), "x'00fa'");
  const auto infinite = literal_of(Value(std::numeric_limits<double>::infinity()));
  ASSERT_FALSE(infinite);
  EXPECT_EQ(infinite.error().code, ErrorCode::bad_value);
}

TEST(MariadbValues, WhatAStatementIs) {
  EXPECT_EQ(first_word("\n  SeLeCt*"), "select");
  for (const char* const query : {"SELECT 1", "with x AS (SELECT 1) SELECT 2", "(SELECT 1)"})
    EXPECT_TRUE(is_query(query)) << query;
  for (const char* const other : {"INSERT INTO a VALUES (1) RETURNING id", "DROP TABLE a", "", "5"})
    EXPECT_FALSE(is_query(other)) << other;
}

// ---- numbers ----

TEST(MariadbNumbers, AnOpenTransactionIsSeenByNobody) {
  Numbers numbers;
  const auto before = numbers.seen(numbers.now(1), {}, 1);
  EXPECT_TRUE(before.known());
  const auto x = numbers.begin(1);
  const auto y = numbers.begin(1);
  EXPECT_FALSE(before.sees(x));
  numbers.end(y);
  const auto meanwhile = numbers.now(1);
  EXPECT_FALSE(numbers.seen(meanwhile, {}, 1).sees(x));
  EXPECT_TRUE(numbers.seen(meanwhile, {}, 1).sees(y));
  EXPECT_FALSE(numbers.seen(meanwhile, {}, 1).sees_all_up_to(y));
  numbers.end(x);
  EXPECT_FALSE(numbers.seen(meanwhile, {}, 1).sees(x));  // it ended after that load had begun
  EXPECT_TRUE(numbers.seen(numbers.now(1), {}, 1).sees_all_up_to(y));
  // What is open on one server says nothing of another.
  const auto z = numbers.begin(1);
  EXPECT_TRUE(numbers.seen(numbers.now(2), {}, 2).sees(z));
}

TEST(MariadbNumbers, ADoubtIsOpenUntilItIsResolved) {
  Numbers numbers;
  const auto x = numbers.begin(1);
  const auto y = numbers.begin(1);
  numbers.doubt(x, "larder_x");
  EXPECT_FALSE(numbers.seen(numbers.now(1), {}, 1).sees(x));
  const auto doubts = numbers.doubts(1, 10);
  ASSERT_EQ(doubts.size(), 1U);
  EXPECT_EQ(doubts[0].x, x);
  EXPECT_EQ(doubts[0].lock, "larder_x");
  EXPECT_TRUE(numbers.doubts(2, 10).empty());
  EXPECT_TRUE(numbers.doubts(1, 0).empty());
  numbers.end(x);
  EXPECT_TRUE(numbers.doubts(1, 10).empty());
  EXPECT_TRUE(numbers.seen(numbers.now(1), {}, 1).sees(x));
  numbers.end(y);
}

TEST(MariadbNumbers, WhatTheLogTellsIsSeenByItsPlace) {
  Numbers numbers;
  EXPECT_FALSE(numbers.follows_log());
  const auto unaware = numbers.now(1);
  const auto a = numbers.tell({.file = 1, .offset = 900});
  const auto b = numbers.tell({.file = 2, .offset = 100});
  EXPECT_TRUE(numbers.follows_log());
  const auto moment = numbers.now(1);
  const auto at_a = numbers.seen(moment, LogPosition{.file = 1, .offset = 900}, 1);
  EXPECT_TRUE(at_a.sees(a));
  EXPECT_FALSE(at_a.sees(b));
  EXPECT_THAT(at_a.in_progress, ElementsAre(b));
  EXPECT_FALSE(numbers.seen(moment, LogPosition{.file = 1, .offset = 899}, 1).sees(a));
  EXPECT_TRUE(numbers.seen(moment, LogPosition{.file = 2, .offset = 100}, 1).sees(b));
  // Told after the load began, or a load that did not ask for its place: not seen.
  EXPECT_FALSE(numbers.seen(unaware, LogPosition{.file = 9, .offset = 0}, 1).sees(a));
  EXPECT_FALSE(numbers.seen(moment, {}, 1).sees(a));
  // From before what is remembered: nothing is claimed.
  for (std::size_t i = 0; i < Numbers::kMostTold; ++i) numbers.tell({.file = 3, .offset = i});
  const auto old = numbers.seen(numbers.now(1), LogPosition{.file = 1, .offset = 899}, 1);
  EXPECT_FALSE(old.sees(a));
  EXPECT_TRUE(numbers.seen(numbers.now(1), LogPosition{.file = 3, .offset = 99'999}, 1).sees(a));
}

TEST(MariadbNumbers, PlacesInTheLog) {
  EXPECT_EQ(LogPosition::parse("binlog.000042", "4711"), (LogPosition{.file = 42, .offset = 4711}));
  EXPECT_EQ(LogPosition::parse("a.b.000001", "4"), (LogPosition{.file = 1, .offset = 4}));
  for (const char* const wrong : {"", "binlog", "binlog.", "binlog.x1", ".-1"})
    EXPECT_FALSE(LogPosition::parse(wrong, "4")) << wrong;
  EXPECT_FALSE(LogPosition::parse("binlog.000001", ""));
  EXPECT_LT((LogPosition{.file = 1, .offset = 9}), (LogPosition{.file = 2, .offset = 1}));
}

// ---- errors ----

TEST(MariadbErrors, SayWhatToDo) {
  const auto said = [](unsigned number, std::string_view message) {
    const Error error = server_error(number, message);
    EXPECT_EQ(error.origin, "mariadb");
    return std::pair(error.code, error.message);
  };
  EXPECT_EQ(said(1062, "Duplicate entry").first, ErrorCode::source_refused);
  EXPECT_EQ(said(1969, "max_statement_time exceeded").first, ErrorCode::timeout);
  EXPECT_EQ(said(1213, "Deadlock found").first, ErrorCode::source_down);
  EXPECT_THAT(said(1213, "Deadlock found").second, HasSubstr("repeat it"));
  EXPECT_THAT(said(1040, "Too many connections").second, HasSubstr("max_connections"));
  EXPECT_THAT(said(1290, "with the --read-only option").second, HasSubstr("primary"));
  EXPECT_EQ(said(1290, "with the --read-only option").first, ErrorCode::source_down);
  EXPECT_EQ(said(1290, "with the --secure-file-priv option").first, ErrorCode::source_refused);
  EXPECT_EQ(said(1153, "Got a packet bigger").first, ErrorCode::too_large);
  EXPECT_EQ(said(1064, "You have an error\nin two lines").second, "You have an error (error 1064)");
}

// ---- URLs ----

TEST(MariadbUrl, SaysWhereAndHow) {
  const auto url = Url::parse("mariadb://u:p%40ss@h,[::1]:7/d%20b?ca=/a.pem&cert=c&key=k");
  ASSERT_TRUE(url) << url.error().message;
  EXPECT_EQ(url->user, "u");
  EXPECT_EQ(url->password, "p@ss");
  EXPECT_EQ(url->database, "d b");
  ASSERT_EQ(url->hosts.size(), 2U);
  EXPECT_EQ(url->hosts[0].name, "h");
  EXPECT_EQ(url->hosts[0].port, 3306);
  EXPECT_EQ(url->hosts[1].name, "::1");
  EXPECT_EQ(url->hosts[1].port, 7);
  EXPECT_TRUE(url->tls && url->verify);
  EXPECT_EQ(url->ca + url->cert + url->key, "/a.pemck");
  EXPECT_THAT(check_url("mariadb://h,i/d").error().message, HasSubstr("names one server"));
  EXPECT_TRUE(check_url("mariadb://h/d"));
  const auto local = Url::parse("mysql://u@/d?socket=/run/s.sock");
  ASSERT_TRUE(local) << local.error().message;
  EXPECT_EQ(local->socket, "/run/s.sock");
  EXPECT_FALSE(local->tls);
  EXPECT_FALSE(Url::parse("mariadb://h/d?tls=on&verify=off")->verify);
}

TEST(MariadbUrl, WhatIsWrongIsSaidWithoutSecrets) {
  for (const char* const bad :
       {"mariadb://u:hunter2@h:port/d", "mariadb://u:hunter2%zz@h/d", "mariadb://u:hunter2@h",
        "mariadb://u:hunter2@/d", "mariadb://h/d?password=hunter2", "mariadb://[hunter2/d",
        "mariadb://u:hunter2@h:0/d", "mariadb://u:hunter2@h:65536/d", "mariadb:hunter2",
        "mariadb://h/d?tls=hunter2", "mariadb://h/d?cert=hunter2",
        "mariadb://h/d?ca=", "mariadb://h/d?socket=hunter2", "mariadb://h/d?ca=hunter2&tls=off",
        "mariadb://h/%00", "mariadb://h,,hunter2/d", "mariadb://[::1]hunter2/d"}) {
    const auto parsed = Url::parse(bad);
    ASSERT_FALSE(parsed) << bad;
    EXPECT_EQ(parsed.error().code, ErrorCode::config);
    EXPECT_THAT(parsed.error().message, Not(HasSubstr("hunter2"))) << bad;
  }
}

TEST(MariadbUrl, NamesTheHostsToTry) {
  RuntimeLoop loop;
  const auto targets = [&](const std::string& text) {
    std::vector<std::string> out;
    auto found = loop.run(targets_of(*Url::parse(text), soon()));
    EXPECT_TRUE(found.has_value());
    for (const Target& target : *found)
      out.push_back(target.name + " " + target.host + " " + std::to_string(target.port));
    return out;
  };
  EXPECT_THAT(targets("mariadb://127.0.0.1:1,127.0.0.2:2/d"),
              ElementsAre("127.0.0.1:1/d 127.0.0.1 1", "127.0.0.2:2/d 127.0.0.2 2"));
  EXPECT_THAT(targets("mariadb://u@/d?socket=/s"), ElementsAre("/s/d  0"));
  EXPECT_THAT(targets("mariadb://localhost:7/d?tls=on"), ElementsAre("localhost:7/d localhost 7"));
  for (const std::string& one : targets("mariadb://localhost:7/d"))
    EXPECT_THAT(one, HasSubstr("localhost:7/d "));
  for (const std::string& one : targets("mariadb://localhost:7/d"))
    EXPECT_THAT(one, Not(HasSubstr(" localhost ")));
}

// ---- a real server ----

class MariadbConnection : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Server::available()) GTEST_SKIP() << "MariaDB's server is not installed";
  }
  Result<std::unique_ptr<Connection>> try_connect(const std::string& url,
                                                  TimeUs deadline = soon()) {
    return loop_.run(Connection::connect(*Url::parse(url), deadline));
  }
  std::unique_ptr<Connection> connect(const std::string& url) {
    auto connected = try_connect(url);
    EXPECT_TRUE(connected.has_value()) << connected.error().message;
    return connected ? std::move(*connected) : nullptr;
  }
  std::unique_ptr<Connection> connect() { return connect(Server::get().url("mysql")); }
  Result<std::vector<Reply>> run(Connection& connection, const std::vector<std::string>& statements,
                                 TimeUs deadline = soon()) {
    Batch batch;
    for (const std::string& statement : statements) batch.add(statement);
    return loop_.run(connection.run(std::move(batch), deadline));
  }
  std::string one(Connection& connection, std::string sql) {
    auto reply = loop_.run(connection.run_one(std::move(sql), soon()));
    if (!reply) return reply.error().message;
    return reply->next() ? std::string(reply->value(0).value_or("NULL")) : "no row";
  }

  RuntimeLoop loop_;
};

TEST_F(MariadbConnection, Connects) {
  const std::string port = std::to_string(Server::get().port());
  for (const std::string& url :
       {Server::get().url("mysql"), Server::get().local_url("mysql"),
        "mysql://larder:hunter2@localhost:" + port + "/mysql",
        // The first cannot be reached.
        "mariadb://larder:hunter2@127.0.0.1:1,127.0.0.1:" + port + "/mysql"}) {
    const auto connection = connect(url);
    ASSERT_TRUE(connection) << url;
    EXPECT_EQ(one(*connection, "SELECT DATABASE()"), "mysql");
    EXPECT_EQ(one(*connection, "SELECT @@character_set_client"), "utf8mb4");
    EXPECT_EQ(one(*connection, "SELECT CONNECTION_ID()"), std::to_string(connection->thread_id()));
  }
}

TEST_F(MariadbConnection, SaysWhyItCannot) {
  const auto refused = try_connect("mariadb://u:hunter2@127.0.0.1:1/d");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::source_down);
  EXPECT_THAT(refused.error().message, HasSubstr("127.0.0.1:1/d"));
  EXPECT_THAT(refused.error().message, Not(HasSubstr("hunter2")));
  const auto database = try_connect(Server::get().url("nosuch"));
  ASSERT_FALSE(database);
  EXPECT_EQ(database.error().code, ErrorCode::source_down);
  EXPECT_THAT(database.error().message, HasSubstr("Unknown database 'nosuch'"));
  const std::string port = std::to_string(Server::get().port());
  const auto password = try_connect("mariadb://larder:wrong@127.0.0.1:" + port + "/mysql");
  ASSERT_FALSE(password);
  EXPECT_THAT(password.error().message, HasSubstr("Access denied"));
  const auto late = try_connect(Server::get().url("mysql"), 1);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::timeout);
}

// It accepts, and says nothing: the deadline ends the wait, and nothing is left of it.
TEST_F(MariadbConnection, AServerThatHangsWhileItIsConnectedTo) {
  Server::get().freeze();
  for (const std::string& url : {Server::get().url("mysql"), Server::get().local_url("mysql")}) {
    const auto late = try_connect(url, monotonic_now_us() + 30 * kMillisecond);
    ASSERT_FALSE(late);
    EXPECT_EQ(late.error().code, ErrorCode::timeout);
  }
  Server::get().thaw();
  EXPECT_TRUE(connect());
}

TEST_F(MariadbConnection, ABatchIsOneRoundTripAndStopsAtAnError) {
  const auto connection = connect();
  auto replies = run(*connection, {"SELECT 41 + 1", "SET @a = 7", "SELECT @a, NULL",
                                   "SELECT * FROM nosuch", "SELECT 3"});
  ASSERT_TRUE(replies) << replies.error().message;
  ASSERT_EQ(replies->size(), 4U);
  ASSERT_TRUE((*replies)[0].next());
  EXPECT_EQ((*replies)[0].value(0), "42");
  EXPECT_FALSE((*replies)[0].next());
  EXPECT_FALSE((*replies)[1].has_rows());
  ASSERT_TRUE((*replies)[2].next());
  EXPECT_EQ((*replies)[2].value(0), "7");
  EXPECT_EQ((*replies)[2].value(1), std::nullopt);
  EXPECT_EQ((*replies)[3].error_number(), 1146U);
  EXPECT_EQ((*replies)[3].error().code, ErrorCode::source_refused);
  EXPECT_EQ(connection->round_trips(), 1U);
  EXPECT_FALSE(connection->broken());
  EXPECT_EQ(one(*connection, "SELECT 5"), "5");
}

TEST_F(MariadbConnection, MoreThanTheSocketHoldsBothWays) {
  const auto connection = connect();
  const std::string large(1 << 19, 'x');
  const std::vector<std::string> statements(20, "SELECT '" + large + "'");
  auto replies = run(*connection, statements);
  ASSERT_TRUE(replies) << replies.error().message;
  for (Reply& reply : *replies) {
    ASSERT_TRUE(reply.next());
    EXPECT_EQ(reply.value(0)->size(), large.size());
  }
}

TEST_F(MariadbConnection, SpeaksTls) {
  const std::string authority = Server::get().authority();
  if (authority.empty()) GTEST_SKIP() << "openssl is missing";
  const std::string url =
      "mariadb://larder:hunter2@localhost:" + std::to_string(Server::get().port()) + "/mysql?ca=";
  const auto connection = connect(url + authority);
  ASSERT_TRUE(connection);
  EXPECT_NE(one(*connection,
                "SELECT VARIABLE_VALUE FROM information_schema.SESSION_STATUS WHERE "
                "VARIABLE_NAME = 'Ssl_cipher'"),
            "");
  // Rows that do not fit a record of TLS, nor what libmariadb reads at once.
  for (const int size : {100, 8'000, 16'300, 16'400, 33'000, 100'000, 5'000'000})
    EXPECT_EQ(one(*connection, "SELECT REPEAT('x', " + std::to_string(size) + ")").size(),
              static_cast<std::size_t>(size));
  std::vector<std::string> statements(20, "SELECT '" + std::string(300'000, 'x') + "'");
  auto replies = run(*connection, statements);
  ASSERT_TRUE(replies) << replies.error().message;
  ASSERT_TRUE(replies->back().next());
  EXPECT_EQ(replies->back().value(0)->size(), 300'000U);
  EXPECT_FALSE(connection->stale());
  const auto late = run(*connection, {"SELECT SLEEP(60)"}, monotonic_now_us() + 20 * kMillisecond);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::timeout);

  const auto stranger = try_connect(url + "/nowhere/ca.crt");
  ASSERT_FALSE(stranger);
  const auto other_name =
      try_connect("mariadb://larder:hunter2@127.0.0.1:" + std::to_string(Server::get().port()) +
                  "/mysql?ca=" + authority);
  ASSERT_FALSE(other_name);
  EXPECT_EQ(other_name.error().code, ErrorCode::source_down);
  EXPECT_TRUE(connect("mariadb://larder:hunter2@127.0.0.1:" + std::to_string(Server::get().port()) +
                      "/mysql?tls=on&verify=off"));
}

TEST_F(MariadbConnection, WhatIsForgottenIsDroppedByTheNext) {
  const auto connection = connect();
  EXPECT_EQ(one(*connection, "SELECT 1"), "1");
  EXPECT_TRUE(connection->send_and_forget("ROLLBACK"));
  EXPECT_FALSE(connection->stale());
  EXPECT_EQ(one(*connection, "SELECT 2"), "2");
  EXPECT_TRUE(connection->send_and_forget("NONSENSE"));
  EXPECT_EQ(one(*connection, "SELECT 3"), "3");
  EXPECT_FALSE(connection->stale());
}

TEST_F(MariadbConnection, ADeadlineThatPassesBreaksIt) {
  const auto connection = connect();
  const auto late = run(*connection, {"SELECT SLEEP(60)"}, monotonic_now_us() + 20 * kMillisecond);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::timeout);
  EXPECT_TRUE(connection->broken());
  EXPECT_FALSE(run(*connection, {"SELECT 1"}));
}

TEST_F(MariadbConnection, TheServersOwnTimeoutIsATimeoutToo) {
  const auto connection = connect();
  one(*connection, "SET max_statement_time = 0.01");
  auto late = run(*connection, {"SELECT SLEEP(60)", "SELECT 1"});
  ASSERT_TRUE(late) << late.error().message;
  ASSERT_EQ(late->size(), 1U);
  EXPECT_EQ(late->back().error().code, ErrorCode::timeout);
  EXPECT_FALSE(connection->broken());
}

TEST_F(MariadbConnection, SeesThatTheServerHasClosedIt) {
  const auto connection = connect();
  EXPECT_FALSE(connection->stale());
  OtherClient other(Server::get().url("mysql"));
  other.exec("KILL CONNECTION " + std::to_string(connection->thread_id()));
  loop_.run_until([&] { return connection->stale(); });
  EXPECT_TRUE(connection->broken());
}

TEST_F(MariadbConnection, AConnectionThatIsLostIsSourceDown) {
  const auto connection = connect();
  const auto lost = loop_.run(connection->run_one("KILL CONNECTION CONNECTION_ID()", soon()));
  ASSERT_FALSE(lost);
  EXPECT_NE(lost.error().code, ErrorCode::source_refused) << lost.error().message;
  const auto after = loop_.run(connection->run_one("SELECT 1", soon()));
  ASSERT_FALSE(after);
  EXPECT_EQ(after.error().code, ErrorCode::source_down);
  EXPECT_TRUE(connection->broken());
}

TEST_F(MariadbConnection, InterruptEndsTheWait) {
  const auto connection = connect();
  TaskGroup group;
  struct Interrupter {
    static Task<void> run(Connection& connection, TaskGroup& group) {
      co_await group.sleep_until(monotonic_now_us() + kMillisecond);
      connection.interrupt();
    }
  };
  loop_.spawn(group, Interrupter::run(*connection, group));
  const auto ended = loop_.run(connection->run_one("SELECT SLEEP(60)", soon()));
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().code, ErrorCode::cancelled);
  EXPECT_TRUE(connection->broken());
}

}  // namespace
}  // namespace larder::source::mariadb
