#include "source/postgres/connection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "source/postgres/hosts.h"
#include "source/postgres/testing.h"
#include "source/postgres/values.h"

namespace larder::source::postgres {
namespace {

using source::testing::RuntimeLoop;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::OtherClient;
using testing::Server;

TimeUs soon() { return monotonic_now_us() + 20 * kSecond; }

// ---- values ----

TEST(PostgresValues, Snapshots) {
  const auto plain = parse_snapshot("758:758:");
  ASSERT_TRUE(plain);
  EXPECT_EQ(plain->xmin, 758U);
  EXPECT_EQ(plain->xmax, 758U);
  EXPECT_THAT(plain->in_progress, ElementsAre());
  const auto busy = parse_snapshot("4294967300:4294967310:4294967300,4294967303,4294967309");
  ASSERT_TRUE(busy);
  EXPECT_THAT(busy->in_progress, ElementsAre(4294967300U, 4294967303U, 4294967309U));
  EXPECT_FALSE(busy->sees(4294967303U));
  EXPECT_TRUE(busy->sees(4294967304U));
  EXPECT_FALSE(busy->sees(4294967310U));
  for (const char* const wrong : {"", "1", "1:2", "1:2:x", "1:2:3,", "1:2:,",
                                  "2:1:", "0:1:", "1:9:3,2", ":1:", "1:2:3 ", "-1:2:"})
    EXPECT_FALSE(parse_snapshot(wrong)) << wrong;
}

TEST(PostgresValues, Parameters) {
  EXPECT_EQ(param_of(Value(nullptr)), std::nullopt);
  EXPECT_EQ(param_of(Value(std::int64_t{-5})), "-5");
  EXPECT_EQ(param_of(Value(0.1)), "0.1");
  EXPECT_EQ(param_of(Value(std::string("a'b"))), "a'b");
  EXPECT_EQ(param_of(Value(std::vector<std::byte>{std::byte{0}, std::byte{0xfa}})), "\\x00fa");
  const auto zero = param_of(Value(std::string("a\0b", 3)));
  ASSERT_FALSE(zero);
  EXPECT_EQ(zero.error().code, ErrorCode::bad_value);
}

TEST(PostgresValues, Bytea) {
  EXPECT_EQ(bytes_of("\\x00ff41"), std::string("\0\xff\x41", 3));
  EXPECT_EQ(bytes_of("\\x"), "");
  EXPECT_EQ(bytes_of("a\\\\b\\000\\377"), std::string("a\\b\0\xff", 5));
}

// ---- URLs ----

TEST(PostgresUrl, WhatIsWrongIsSaidWithoutSecrets) {
  for (const char* const good :
       {"postgresql://", "postgresql://h", "postgres://u:p@h:1,i:2/d?sslmode=require",
        "postgresql:///d?host=/run/postgresql", "postgresql://[::1]/d"})
    EXPECT_TRUE(check_url(good)) << good;
  for (const char* const bad :
       {"postgresql://u:hunter2@h:port/d", "postgresql://u:hunter2%zz@h/d",
        "postgresql://h/d?password=hunter2&nonsense=hunter2", "postgresql://u:hunter2@h/d?=hunter2",
        "postgresql://u@[hunter2/d", "postgresql://h/d?password=a=hunter2"}) {
    const auto checked = check_url(bad);
    ASSERT_FALSE(checked) << bad;
    EXPECT_EQ(checked.error().code, ErrorCode::config);
    EXPECT_THAT(checked.error().message, Not(HasSubstr("hunter2"))) << bad;
  }
}

TEST(PostgresUrl, NamesTheHostsToTry) {
  RuntimeLoop loop;
  const auto targets = [&](std::string url) {
    std::vector<std::string> out;
    auto found = loop.run(targets_of(std::move(url), {}, soon()));
    EXPECT_TRUE(found.has_value());
    for (const Target& target : *found) {
      out.push_back(target.name);
      for (const auto& [keyword, value] : target.settings)
        out.back() += " " + keyword + "=" + value;
    }
    return out;
  };
  EXPECT_THAT(targets("postgresql://u@127.0.0.1:7/d"),
              ElementsAre("127.0.0.1:7/d host=127.0.0.1 port=7"));
  EXPECT_THAT(
      targets("postgresql://127.0.0.1:1,127.0.0.2:2/d"),
      ElementsAre("127.0.0.1:1/d host=127.0.0.1 port=1", "127.0.0.2:2/d host=127.0.0.2 port=2"));
  EXPECT_THAT(targets("postgresql:///d?host=/a,/b&port=5"),
              ElementsAre("/a:5/d host=/a port=5", "/b:5/d host=/b port=5"));
  EXPECT_THAT(
      targets("postgresql://127.0.0.1,127.0.0.2:2/d?target_session_attrs=prefer-standby").size(),
      4U);
  for (const std::string& one : targets("postgresql://localhost:7/d"))
    EXPECT_THAT(one, HasSubstr("localhost:7/d host=localhost port=7 hostaddr="));
}

// ---- a real server ----

class ConnectionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Server::available()) GTEST_SKIP() << "PostgreSQL's server is not installed";
  }
  std::unique_ptr<Connection> connect(std::string url, Connection::Settings settings = {}) {
    auto connected = loop_.run(Connection::connect(std::move(url), std::move(settings), soon()));
    EXPECT_TRUE(connected.has_value()) << connected.error().message;
    return connected ? std::move(*connected) : nullptr;
  }
  std::unique_ptr<Connection> connect() { return connect(Server::get().url("postgres")); }
  Result<std::vector<Reply>> run(Connection& connection, std::vector<Command> commands,
                                 TimeUs deadline = soon()) {
    return loop_.run(connection.run(std::move(commands), deadline));
  }
  std::string one(Connection& connection, std::string sql) {
    auto reply = loop_.run(connection.run_one(Command::query(std::move(sql)), soon()));
    if (!reply) return reply.error().message;
    return reply->rows() == 0 ? "no row" : std::string(reply->value(0, 0).value_or("NULL"));
  }

  RuntimeLoop loop_;
};

TEST_F(ConnectionTest, Connects) {
  for (const std::string& url :
       {Server::get().url("postgres"), Server::get().local_url("postgres"),
        "postgresql://larder@localhost:" + std::to_string(Server::get().port()) + "/postgres",
        // The first two cannot be reached.
        "postgresql://larder@/postgres?host=127.0.0.1,/nowhere,127.0.0.1&port=1,2," +
            std::to_string(Server::get().port())}) {
    const auto connection = connect(url);
    ASSERT_TRUE(connection) << url;
    EXPECT_EQ(one(*connection, "SHOW application_name"), "larder");
    EXPECT_EQ(connection->parameter("client_encoding"), "UTF8");
    EXPECT_GE(connection->server_version(), 130000);
    EXPECT_EQ(one(*connection, "SELECT pg_backend_pid()"),
              std::to_string(connection->backend_pid()));
  }
  const auto named = connect(Server::get().url("postgres") + "?application_name=shop");
  EXPECT_EQ(one(*named, "SHOW application_name"), "shop");
}

TEST_F(ConnectionTest, SaysWhyItCannot) {
  const auto refused =
      loop_.run(Connection::connect("postgresql://u:hunter2@127.0.0.1:1/d", {}, soon()));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::source_down);
  EXPECT_THAT(refused.error().message, HasSubstr("127.0.0.1:1/d"));
  EXPECT_THAT(refused.error().message, HasSubstr("refused"));
  EXPECT_THAT(refused.error().message, Not(HasSubstr("hunter2")));
  const auto database = loop_.run(Connection::connect(Server::get().url("nosuch"), {}, soon()));
  ASSERT_FALSE(database);
  EXPECT_EQ(database.error().code, ErrorCode::source_down);
  EXPECT_THAT(database.error().message, HasSubstr("\"nosuch\" does not exist"));
  const auto late = loop_.run(Connection::connect(Server::get().url("postgres"), {}, 1));
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::timeout);
}

TEST_F(ConnectionTest, APipelineStopsAtAnErrorUntilTheNextSync) {
  const auto connection = connect();
  std::vector<Command> commands;
  commands.push_back(Command::query("SELECT $1::int + 1", {"41"}));
  commands.push_back(Command::query("SELECT 1 / $1::int", {"0"}));
  commands.push_back(Command::query("SELECT 3"));
  commands.push_back(Command::sync());
  commands.push_back(Command::prepare("p", "SELECT $1::text || 'x'"));
  commands.push_back(Command::describe("p"));
  commands.push_back(Command::execute("p", {std::nullopt}));
  const auto replies = run(*connection, std::move(commands));
  ASSERT_TRUE(replies) << replies.error().message;
  ASSERT_EQ(replies->size(), 6U);
  EXPECT_EQ((*replies)[0].value(0, 0), "42");
  ASSERT_FALSE((*replies)[1].ok());
  EXPECT_EQ((*replies)[1].sqlstate(), "22012");
  EXPECT_EQ((*replies)[1].error().code, ErrorCode::source_refused);
  EXPECT_EQ((*replies)[1].error().message, "division by zero (SQLSTATE 22012)");
  EXPECT_TRUE((*replies)[2].skipped());
  EXPECT_TRUE((*replies)[3].ok());
  EXPECT_EQ((*replies)[4].columns(), 1);
  EXPECT_EQ((*replies)[4].parameters(), 1);
  EXPECT_EQ((*replies)[5].value(0, 0), std::nullopt);
  EXPECT_EQ(connection->pipelines(), 2U);
}

TEST_F(ConnectionTest, MoreThanTheSocketHoldsBothWays) {
  const auto connection = connect();
  const std::string large(1 << 20, 'x');
  std::vector<Command> commands;
  for (int i = 0; i < 30; ++i) commands.push_back(Command::query("SELECT $1::text", {large}));
  const auto replies = run(*connection, std::move(commands));
  ASSERT_TRUE(replies) << replies.error().message;
  for (const Reply& reply : *replies) EXPECT_EQ(reply.value(0, 0)->size(), large.size());
}

TEST_F(ConnectionTest, SpeaksTls) {
  const std::string authority = Server::get().tls_on();
  if (authority.empty()) GTEST_SKIP() << "openssl is missing";
  const std::string url = "postgresql://larder@localhost:" + std::to_string(Server::get().port()) +
                          "/postgres?sslmode=verify-full&sslrootcert=";
  // The server reads its configuration a moment later.
  Result<std::unique_ptr<Connection>> connected;
  do connected = loop_.run(Connection::connect(url + authority, {}, soon()));
  while (!connected && connected.error().message.contains("does not support SSL"));
  ASSERT_TRUE(connected) << connected.error().message;
  Connection& connection = **connected;
  EXPECT_EQ(one(connection, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"), "t");
  // Rows that do not fit a record of TLS, nor what libpq reads at once.
  for (const int size : {100, 8'000, 16'300, 16'400, 33'000, 100'000, 5'000'000})
    EXPECT_EQ(one(connection, "SELECT repeat('x', " + std::to_string(size) + ")").size(),
              static_cast<std::size_t>(size));
  std::vector<Command> commands;
  for (int i = 0; i < 30; ++i)
    commands.push_back(Command::query("SELECT $1::text", {std::string(300'000, 'x')}));
  const auto replies = run(connection, std::move(commands));
  ASSERT_TRUE(replies) << replies.error().message;
  EXPECT_EQ(replies->back().value(0, 0)->size(), 300'000U);
  EXPECT_FALSE(connection.stale());

  const auto stranger = loop_.run(Connection::connect(url + "/nowhere/ca.crt", {}, soon()));
  ASSERT_FALSE(stranger);
  EXPECT_THAT(stranger.error().message, HasSubstr("certificate"));
  Server::get().tls_off();
}

TEST_F(ConnectionTest, WhatIsForgottenIsDroppedByTheNext) {
  const auto connection = connect();
  EXPECT_EQ(one(*connection, "SELECT 1"), "1");
  EXPECT_TRUE(connection->send_and_forget(Command::query("SELECT 'dropped'")));
  EXPECT_TRUE(connection->send_and_forget(Command::query("SELECT 1 / 0")));
  EXPECT_EQ(one(*connection, "SELECT 2"), "2");
  EXPECT_TRUE(connection->send_and_forget(Command::query("SELECT 'dropped'")));
  const auto simple = loop_.run(connection->simple("SELECT 3; SELECT 4", soon()));
  ASSERT_TRUE(simple) << simple.error().message;
  EXPECT_EQ(simple->value(0, 0), "4");
  EXPECT_EQ(one(*connection, "SELECT 5"), "5");
}

TEST_F(ConnectionTest, ADeadlineThatPassesBreaksIt) {
  const auto connection = connect();
  const auto late = loop_.run(connection->run_one(Command::query("SELECT pg_sleep(60)"),
                                                  monotonic_now_us() + 20 * kMillisecond));
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::timeout);
  EXPECT_TRUE(connection->broken());
  const auto after = loop_.run(connection->run_one(Command::query("SELECT 1"), soon()));
  ASSERT_FALSE(after);
}

TEST_F(ConnectionTest, TheServersOwnTimeoutIsATimeoutToo) {
  const auto connection = connect();
  one(*connection, "SET statement_timeout = '10ms'");
  const auto late = loop_.run(connection->run_one(Command::query("SELECT pg_sleep(60)"), soon()));
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::timeout);
  EXPECT_FALSE(connection->broken());
}

TEST_F(ConnectionTest, SeesThatTheServerHasClosedIt) {
  const auto connection = connect();
  EXPECT_FALSE(connection->stale());
  OtherClient other(Server::get().url("postgres"));
  // A changed parameter is told unasked, and no reason to leave.
  const std::string pid = std::to_string(connection->backend_pid());
  EXPECT_TRUE(connection->send_and_forget(Command::query("SET TimeZone = 'Asia/Tokyo'")));
  EXPECT_EQ(one(*connection, "SELECT 1"), "1");
  EXPECT_FALSE(connection->stale());
  other.exec("SELECT pg_terminate_backend(" + pid + ", 10000)");
  loop_.run_until([&] { return connection->stale(); });
  EXPECT_TRUE(connection->broken());
}

TEST_F(ConnectionTest, AConnectionThatIsLostIsSourceDown) {
  const auto connection = connect();
  const auto lost = loop_.run(connection->run_one(
      Command::query("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(60)"), soon()));
  ASSERT_FALSE(lost);
  EXPECT_EQ(lost.error().code, ErrorCode::source_down);
  EXPECT_TRUE(connection->broken());
}

TEST_F(ConnectionTest, InterruptEndsTheWait) {
  const auto connection = connect();
  TaskGroup group;
  struct Interrupter {
    static Task<void> run(Connection& connection, TaskGroup& group) {
      co_await group.sleep_until(monotonic_now_us() + kMillisecond);
      connection.interrupt();
    }
  };
  loop_.spawn(group, Interrupter::run(*connection, group));
  const auto ended = loop_.run(connection->run_one(Command::query("SELECT pg_sleep(60)"), soon()));
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().code, ErrorCode::cancelled);
}

TEST_F(ConnectionTest, KnowsTheServer) {
  const auto connection = connect();
  const auto identity = loop_.run(connection->identify(soon()));
  ASSERT_TRUE(identity) << identity.error().message;
  EXPECT_EQ(identity->timeline, 1U);
  EXPECT_FALSE(identity->in_recovery);
  OtherClient other(Server::get().url("postgres"));
  EXPECT_EQ(std::to_string(static_cast<std::int64_t>(identity->system_id)),
            other.query("SELECT system_identifier FROM pg_control_system()"));
  EXPECT_NE(identity->source_id(), 0U);
  EXPECT_NE(identity->source_id(), ServerIdentity::source_id_of(identity->system_id, 2));
}

// What a log feed does: the simple protocol, a stream both ways, its end.
TEST_F(ConnectionTest, StreamsTheLog) {
  const auto connection = connect(Server::get().url("postgres"), {{"replication", "database"}});
  ASSERT_TRUE(connection);
  const auto system = loop_.run(connection->simple("IDENTIFY_SYSTEM", soon()));
  ASSERT_TRUE(system) << system.error().message;
  EXPECT_EQ(system->value(0, 1), "1");
  const std::string position(system->value(0, 2).value_or(""));
  const auto slot = loop_.run(connection->simple(
      "CREATE_REPLICATION_SLOT larder_test TEMPORARY LOGICAL test_decoding", soon()));
  const bool decodes = slot.has_value();  // the plugin is in a package of its own elsewhere
  const std::string start = decodes ? "START_REPLICATION SLOT larder_test LOGICAL 0/0"
                                    : "START_REPLICATION PHYSICAL " + position + " TIMELINE 1";
  const auto started = loop_.run(connection->simple(start, soon()));
  ASSERT_TRUE(started) << started.error().message;
  EXPECT_EQ(started->status(), PGRES_COPY_BOTH);
  OtherClient other(Server::get().url("postgres"));
  other.exec("CREATE TABLE IF NOT EXISTS streamed(id int)");
  other.exec("INSERT INTO streamed VALUES (1)");
  bool seen = false;
  while (!seen) {
    auto block = loop_.run(connection->receive_copy(soon()));
    ASSERT_TRUE(block && *block) << (block ? "ended" : block.error().message);
    seen = (*block)->bytes().starts_with('w');
  }
  std::string status(34, '\0');  // standby status update, all zero
  status[0] = 'r';
  EXPECT_TRUE(loop_.run(connection->send_copy(status, soon())));
  const auto ended = loop_.run(connection->finish_copy(true, soon()));
  EXPECT_TRUE(ended) << ended.error().message;
  EXPECT_TRUE(loop_.run(connection->simple("IDENTIFY_SYSTEM", soon())));
}

}  // namespace
}  // namespace larder::source::postgres
