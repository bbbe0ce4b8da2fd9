#include "engine/redis/client_testing.h"

namespace larder::engine::redis {
namespace {

class RedisTlsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (real::find_redis().empty()) GTEST_SKIP() << "redis-server is missing";
    if (!Certificates::can_be_made()) GTEST_SKIP() << "openssl is missing";
    ASSERT_TRUE(folder_.make());
    server_ = std::make_unique<TestServer>(folder_.server_words(), true);
    ASSERT_NO_FATAL_FAILURE(server_->start());
  }

  std::string url(const std::string& host, const std::string& query) const {
    return "rediss://" + host + ":" + std::to_string(server_->port()) + "/2?" + query;
  }
  std::string refusal(const std::string& url) {
    TestUse use(url);
    const auto answer = use.call({"PING"});
    EXPECT_FALSE(answer);
    return answer ? "" : answer.error().message;
  }

  Certificates folder_;
  std::unique_ptr<TestServer> server_;
};

TEST_F(RedisTlsTest, SpeaksToAServerThatProvesItsName) {
  for (const std::string host : {"localhost", "127.0.0.1"}) {
    TestUse use(url(host, "ca=" + (folder_ / "ca.crt")));
    EXPECT_EQ(use.text({"PING"}), "+PONG\r\n") << host;
  }
  TestUse use(url("127.0.0.1", "sni=localhost&ca=" + (folder_ / "ca.crt")), 2);
  const std::string large(5u << 20, 'x');
  EXPECT_EQ(use.text({"SET", "large", large}), "+OK\r\n");
  EXPECT_EQ(use.text({"GET", "large"}, {}, 1), "$5242880\r\n" + large + "\r\n");
}

TEST_F(RedisTlsTest, RefusesAStranger) {
  const std::string unsigned_one = refusal(url("localhost", "ca=" + (folder_ / "other.crt")));
  EXPECT_TRUE(unsigned_one.contains("certificate is not accepted")) << unsigned_one;
  const std::string system_only = refusal(url("localhost", ""));
  EXPECT_TRUE(system_only.contains("ca=file")) << system_only;
  const std::string name =
      refusal(url("127.0.0.1", "sni=elsewhere.example&ca=" + (folder_ / "ca.crt")));
  EXPECT_TRUE(name.contains("elsewhere.example")) << name;
  TestUse use(url("127.0.0.1", "verify=off"));
  EXPECT_EQ(use.text({"PING"}), "+PONG\r\n");
}

TEST_F(RedisTlsTest, ShowsACertificateOfItsOwn) {
  TestUse admin(url("localhost", "ca=" + (folder_ / "ca.crt")));
  ASSERT_EQ(admin.text({"CONFIG", "SET", "tls-auth-clients", "yes"}), "+OK\r\n");
  TestUse use(url("localhost", "ca=" + (folder_ / "ca.crt") + "&cert=" + (folder_ / "client.crt") +
                                   "&key=" + (folder_ / "client.key")));
  EXPECT_EQ(use.text({"PING"}), "+PONG\r\n");
  EXPECT_NE(refusal(url("localhost", "ca=" + (folder_ / "ca.crt"))), "");
}

TEST_F(RedisTlsTest, SaysThatAPortDoesNotSpeakTlsAndNamesAFileThatIsMissing) {
  TestServer plain;
  ASSERT_NO_FATAL_FAILURE(plain.start());
  const std::string message =
      refusal("rediss://" + plain.address() + "?ca=" + (folder_ / "ca.crt"));
  EXPECT_TRUE(message.contains("TLS")) << message;

  const auto runtime = net::Runtime::create(1);
  Options options;
  options.url = *parse_url("rediss://localhost:1?ca=" + (folder_ / "none.crt"));
  const auto missing = Client::create(*runtime, std::move(options));
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::config);
  EXPECT_TRUE(missing.error().message.contains("none.crt"));
}

TEST_F(RedisTlsTest, GoesOnAfterARestartAndHoldsSubscriptions) {
  struct Listener final : Subscriber {
    void on_message(std::string_view, std::string_view) override { ++messages; }
    void on_subscribed(std::string_view) override { ++subscribed; }
    void on_lost(std::string_view) override { ++lost; }
    std::atomic<int> messages = 0, subscribed = 0, lost = 0;
  } listener;
  TestUse use(url("localhost", "ca=" + (folder_ / "ca.crt")));
  use->subscribe({"a"}, false, listener);
  ASSERT_TRUE(eventually([&] { return listener.subscribed == 1; }));
  EXPECT_EQ(use.text({"PUBLISH", "a", "m"}), ":1\r\n");
  ASSERT_TRUE(eventually([&] { return listener.messages == 1; }));
  server_->kill();
  ASSERT_TRUE(eventually([&] { return listener.lost == 1 && !use->up(); }));
  ASSERT_NO_FATAL_FAILURE(server_->start());
  ASSERT_TRUE(eventually([&] { return listener.subscribed == 2; }));
  ASSERT_TRUE(eventually([&] { return use.text({"PUBLISH", "a", "m"}) == ":1\r\n"; }));
}

}  // namespace
}  // namespace larder::engine::redis
