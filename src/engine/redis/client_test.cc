#include <future>
#include <mutex>

#include "engine/redis/client_testing.h"

namespace larder::engine::redis {
namespace {

class RedisClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (real::find_redis().empty()) GTEST_SKIP() << "redis-server is missing";
    server_ = std::make_unique<TestServer>();
    ASSERT_NO_FATAL_FAILURE(server_->start());
  }
  std::string url() const { return "redis://" + server_->address(); }
  std::unique_ptr<TestServer> server_;
};

std::string info_field(const std::string& info, const std::string& name) {
  const std::size_t at = info.find(name + ":");
  if (at == std::string::npos) return {};
  const std::size_t begin = at + name.size() + 1;
  return info.substr(begin, info.find('\r', begin) - begin);
}

// INCRs, one after the other; counts answers by what they were.
struct Load {
  std::atomic<int> answered = 0;
  std::atomic<int> failed = 0;
  std::atomic<int> running = 0;
};
Task<void> increment(Client& client, std::string key, int times, Load& load) {
  for (int i = 0; i < times; ++i) {
    auto answer = co_await client.call({.slot = slot_of(key)}, {"INCR", key}, TestUse::soon());
    ++(answer && answer->bytes.starts_with(':') ? load.answered : load.failed);
  }
  --load.running;
}

TEST_F(RedisClientTest, ManyCallsShareOneConnectionOfTheirLoop) {
  TestUse use(url(), 2);
  Load load;
  constexpr int kCallers = 500;
  load.running = 2 * kCallers;
  for (unsigned loop = 0; loop < 2; ++loop) {
    use.runtime().call(
        [&] {
          for (int i = 0; i < kCallers; ++i) {
            use.runtime().group().spawn(increment(*use, "n", 4, load));
          }
        },
        loop);
  }
  ASSERT_TRUE(eventually([&] { return load.running == 0; }));
  EXPECT_EQ(load.answered, 2 * kCallers * 4);
  EXPECT_EQ(use.text({"GET", "n"}), "$4\r\n4000\r\n");
  const std::string stats = server_->call({"INFO", "stats"});
  // Two of ours, and those of this test.
  EXPECT_LE(std::stoi(info_field(stats, "total_connections_received")), 2 + 3) << stats;
  EXPECT_TRUE(use->up());
  EXPECT_FALSE(use->server_version().empty());
  ASSERT_EQ(use->nodes().size(), 1u);
  EXPECT_EQ(use->nodes()[0].address, server_->address());
  EXPECT_TRUE(use->nodes()[0].up);
}

TEST_F(RedisClientTest, AnswersComeInTheProtocolThatWasAskedFor) {
  TestUse use(url());
  EXPECT_EQ(use.text({"HSET", "h", "f", "v"}), ":1\r\n");
  EXPECT_EQ(use.text({"HGETALL", "h"}, {.protocol = 3}), "%1\r\n$1\r\nf\r\n$1\r\nv\r\n");
  EXPECT_EQ(use.text({"HGETALL", "h"}, {.protocol = 2}), "*2\r\n$1\r\nf\r\n$1\r\nv\r\n");
  const auto wrong = use.call({"INCR", "h"});
  ASSERT_TRUE(wrong && wrong->is_error());
  EXPECT_TRUE(wrong->error().starts_with("WRONGTYPE")) << wrong->error();
}

TEST_F(RedisClientTest, AServerWithoutHelloIsSpokenToInResp2) {
  TestServer old({"--rename-command", "HELLO", "", "--requirepass", "secret"});
  ASSERT_NO_FATAL_FAILURE(old.start());
  TestUse use("redis://:secret@" + old.address() + "/3");
  EXPECT_EQ(use.text({"HSET", "h", "f", "v"}), ":1\r\n");
  EXPECT_EQ(use.text({"HGETALL", "h"}, {.protocol = 3}), "*2\r\n$1\r\nf\r\n$1\r\nv\r\n");
  EXPECT_EQ(use->server_version().substr(0, 2), "7.");
  EXPECT_NE(use.text({"CLIENT", "INFO"}).find(" db=3 "), std::string::npos);
}

TEST_F(RedisClientTest, UserAndDatabaseComeFromTheUrlAndARefusalSaysWhatToDo) {
  server_->call({"ACL", "SETUSER", "app", "on", ">right", "~*", "&*", "+@all"});
  {
    TestUse use("redis://app:right@" + server_->address() + "/5");
    const std::string info = use.text({"CLIENT", "INFO"});
    EXPECT_NE(info.find("user=app"), std::string::npos) << info;
    EXPECT_NE(info.find(" db=5 "), std::string::npos) << info;
  }
  TestUse use("redis://app:wrong-secret@" + server_->address());
  const auto refused = use.call({"GET", "k"});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::engine_down);
  EXPECT_TRUE(refused.error().message.contains("password of 'app'")) << refused.error().message;
  EXPECT_FALSE(refused.error().message.contains("wrong-secret"));
  EXPECT_FALSE(use->up());
}

TEST_F(RedisClientTest, WhoLeavesAtTheDeadlineDoesNotDisturbTheOthers) {
  TestUse use(url());
  ASSERT_EQ(use.text({"SET", "k", "v"}), "+OK\r\n");
  server_->freeze();
  const auto late = use.call({"GET", "k"}, {}, 0, monotonic_now_us() + 20 * kMillisecond);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::timeout);
  server_->thaw();
  EXPECT_EQ(use.text({"SET", "k", "w"}), "+OK\r\n");
  EXPECT_EQ(use.text({"GET", "k"}), "$1\r\nw\r\n");
}

TEST_F(RedisClientTest, RefusesBeyondTheBound) {
  TestUse use(url(), 1, [](Options& options) { options.max_in_flight = 3; });
  ASSERT_EQ(use.text({"PING"}), "+PONG\r\n");
  server_->freeze();
  Load load;
  load.running = 10;
  use.runtime().call([&] {
    for (int i = 0; i < 10; ++i) use.runtime().group().spawn(increment(*use, "n", 1, load));
  });
  EXPECT_TRUE(eventually([&] { return load.failed >= 7; }));
  const auto refused = use.call({"GET", "k"});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::overloaded);
  server_->thaw();
  EXPECT_TRUE(eventually([&] { return load.running == 0; }));
  EXPECT_EQ(load.answered + load.failed, 10);
  EXPECT_GE(load.answered, 1);
}

TEST_F(RedisClientTest, RefusesBytesBeyondTheBound) {
  TestUse use(url(), 1, [](Options& options) { options.max_queued_bytes = 1u << 20; });
  const std::string large(3u << 20, 'x');
  ASSERT_EQ(use.text({"SET", "k", large}), "+OK\r\n");  // alone, it may be larger
  server_->freeze();
  struct Write {
    static Task<void> run(Client& client, std::string value, Load& load, int& overloaded) {
      auto answer = co_await client.call({}, {"SET", "k", std::move(value)}, TestUse::soon());
      ++(answer ? load.answered : load.failed);
      if (!answer && answer.error().code == ErrorCode::overloaded) ++overloaded;
      --load.running;
    }
  };
  Load load;
  int overloaded = 0;
  load.running = 200;
  use.runtime().call([&] {
    for (int i = 0; i < 200; ++i) {
      use.runtime().group().spawn(Write::run(*use, std::string(100'000, 'y'), load, overloaded));
    }
    EXPECT_EQ(overloaded, 190);
  });
  server_->thaw();
  EXPECT_TRUE(eventually([&] { return load.running == 0; }));
  EXPECT_EQ(load.answered, 10);
}

TEST_F(RedisClientTest, SurvivesARestart) {
  TestUse use(url(), 2);
  ASSERT_EQ(use.text({"SET", "k", "v"}), "+OK\r\n");
  ASSERT_EQ(use.text({"SET", "k", "v"}, {}, 1), "+OK\r\n");
  server_->kill();
  ASSERT_TRUE(eventually([&] { return !use->up(); }));
  const auto down = use.call({"GET", "k"});
  ASSERT_FALSE(down);
  EXPECT_EQ(down.error().code, ErrorCode::engine_down) << down.error().message;
  ASSERT_NO_FATAL_FAILURE(server_->start());
  for (unsigned loop = 0; loop < 2; ++loop) {
    ASSERT_TRUE(eventually([&] {
      return use.text({"GET", "k"}, {}, loop) == "$-1\r\n" ||
             use.text({"GET", "k"}, {}, loop) == "_\r\n";
    }));
  }
  EXPECT_TRUE(use->up());
}

// What was in flight when the server died may have run: only who says that it does no harm is
// served by its successor.
TEST_F(RedisClientTest, OnlyTheRepeatableIsSentAgain) {
  TestUse use(url());
  ASSERT_EQ(use.text({"PING"}), "+PONG\r\n");
  server_->freeze();
  std::promise<Result<Answer>> once;
  std::promise<Result<Answer>> again;
  struct Ask {
    static Task<void> run(Client& client, Route route, std::promise<Result<Answer>>& to) {
      auto answer = co_await client.call(std::move(route), {"INCR", "n"}, TestUse::soon());
      to.set_value(std::move(answer));
    }
  };
  use.runtime().call([&] {
    use.runtime().group().spawn(Ask::run(*use, {}, once));
    use.runtime().group().spawn(Ask::run(*use, {.repeatable = true}, again));
  });
  use.runtime().call([] {});  // the writer has had its turn
  TestServer& server = *server_;
  server.kill();
  ASSERT_NO_FATAL_FAILURE(server.start());
  const auto lost = once.get_future().get();
  ASSERT_FALSE(lost);
  EXPECT_EQ(lost.error().code, ErrorCode::engine_down);
  const auto served = again.get_future().get();
  // Connecting may have failed while the server was starting: then engine_down is right as well.
  if (served) EXPECT_EQ(served->bytes, ":1\r\n");
  EXPECT_TRUE(eventually([&] { return use.text({"PING"}) == "+PONG\r\n"; }));
}

TEST_F(RedisClientTest, AScriptIsSentWholeWhereItIsNotKnown) {
  TestUse use(url());
  const auto script = Client::script("return {KEYS[1], ARGV[1]}");
  EXPECT_EQ(script.sha1.size(), 40u);
  const auto eval = [&] {
    return use.runtime().await<Result<Answer>>(
        [&] { return use->eval(script, {"k"}, {"a"}, false, TestUse::soon()); });
  };
  for (int round = 0; round < 2; ++round) {
    const auto first = eval();
    ASSERT_TRUE(first);
    EXPECT_EQ(first->bytes, "*2\r\n$1\r\nk\r\n$1\r\na\r\n");
    EXPECT_EQ(use.text({"SCRIPT", "EXISTS", script.sha1}), "*1\r\n:1\r\n");
    const auto second = eval();
    EXPECT_TRUE(second && second->bytes == first->bytes);
    ASSERT_EQ(use.text({"SCRIPT", "FLUSH"}), "+OK\r\n");
  }
}

// ---- dedicate() ----

struct OwnUse {
  static Task<Result<std::string>> say(Dedicated& own, std::string bytes, int answers,
                                       TimeUs deadline) {
    const auto sent = co_await own.send(std::move(bytes));
    if (!sent) co_return std::unexpected(sent.error());
    std::string all;
    for (int i = 0; i < answers; ++i) {
      auto answer = co_await own.receive(deadline);
      if (!answer) co_return std::unexpected(answer.error());
      all += answer->bytes;
    }
    co_return all;
  }
};
using OwnResult = Result<std::unique_ptr<Dedicated>>;

TEST_F(RedisClientTest, AConnectionOfOnesOwnBlocksAndKeepsState) {
  TestUse use(url(), 1, [](Options& options) { options.max_dedicated = 2; });
  const auto dedicate = [&] {
    return use.runtime().await<OwnResult>([&] { return use->dedicate({}, TestUse::soon()); });
  };
  auto blocking = dedicate();
  ASSERT_TRUE(blocking);
  auto stateful = dedicate();
  ASSERT_TRUE(stateful);
  const auto third = dedicate();
  ASSERT_FALSE(third);
  EXPECT_EQ(third.error().code, ErrorCode::overloaded);

  const auto say = [&](Dedicated& own, const std::string& bytes, int answers) {
    return use.runtime().await<Result<std::string>>(
        [&] { return OwnUse::say(own, bytes, answers, TestUse::soon()); });
  };
  std::promise<Result<std::string>> popped;
  struct Pop {
    static Task<void> run(Dedicated& own, std::promise<Result<std::string>>& to) {
      auto answer = co_await OwnUse::say(own, "BLPOP q 0\r\n", 1, TestUse::soon());
      to.set_value(std::move(answer));
    }
  };
  use.runtime().call([&] { use.runtime().group().spawn(Pop::run(**blocking, popped)); });
  EXPECT_EQ(*say(**stateful, "MULTI\r\nSET k v\r\nGET k\r\nEXEC\r\n", 4),
            "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n$1\r\nv\r\n");
  EXPECT_EQ(use.text({"RPUSH", "q", "x"}), ":1\r\n");
  const auto got = popped.get_future().get();
  ASSERT_TRUE(got);
  EXPECT_EQ(*got, "*2\r\n$1\r\nq\r\n$1\r\nx\r\n");

  // Its end gives the seat back, and ends it at the server.
  use.runtime().call([&] { blocking->reset(); });
  EXPECT_TRUE(eventually([&] {
    auto next = dedicate();
    const bool ok = next.has_value();
    use.runtime().call([&] { next = OwnResult(); });
    return ok;
  }));
  server_->kill();
  const auto late = say(**stateful, "PING\r\n", 1);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::engine_down);
  use.runtime().call([&] { stateful->reset(); });
}

// ---- subscribe() ----

class Listener final : public Subscriber {
 public:
  void on_message(std::string_view channel, std::string_view message) override {
    note("message " + std::string(channel) + " " + std::string(message));
  }
  void on_subscribed(std::string_view channel) override {
    note("subscribed " + std::string(channel));
  }
  void on_lost(std::string_view channel) override { note("lost " + std::string(channel)); }

  std::size_t count(const std::string& what) const {
    const std::lock_guard lock(mutex_);
    return static_cast<std::size_t>(std::ranges::count(events_, what));
  }
  std::size_t size() const {
    const std::lock_guard lock(mutex_);
    return events_.size();
  }

 private:
  void note(std::string what) {
    const std::lock_guard lock(mutex_);
    events_.push_back(std::move(what));
  }
  mutable std::mutex mutex_;
  std::vector<std::string> events_;
};

Task<bool> unsubscribed(Client& client, Subscriber& from) {
  co_await client.unsubscribe(from);
  co_return true;
}

TEST_F(RedisClientTest, ASubscriptionSurvivesARestart) {
  TestUse use(url(), 2);
  Listener listener;
  use->subscribe({"a", "b"}, true, listener);
  ASSERT_TRUE(eventually(
      [&] { return listener.count("subscribed a") == 1 && listener.count("subscribed b") == 1; }));
  EXPECT_EQ(use.text({"PUBLISH", "a", "1"}), ":1\r\n");
  ASSERT_TRUE(eventually([&] { return listener.count("message a 1") == 1; }));
  server_->kill();
  ASSERT_TRUE(
      eventually([&] { return listener.count("lost a") == 1 && listener.count("lost b") == 1; }));
  ASSERT_NO_FATAL_FAILURE(server_->start());
  ASSERT_TRUE(eventually(
      [&] { return listener.count("subscribed a") == 2 && listener.count("subscribed b") == 2; }));
  ASSERT_TRUE(eventually([&] { return use.text({"PUBLISH", "b", "2"}) == ":1\r\n"; }));
  ASSERT_TRUE(eventually([&] { return listener.count("message b 2") == 1; }));

  EXPECT_TRUE(use.runtime().await<bool>([&] { return unsubscribed(*use, listener); }));
  const std::size_t events = listener.size();
  EXPECT_TRUE(eventually([&] { return use.text({"PUBLISH", "b", "3"}) == ":0\r\n"; }));
  EXPECT_EQ(listener.size(), events);
}

TEST_F(RedisClientTest, ASubscriptionThatIsCutOffIsMadeAgain) {
  TestUse use(url());
  Listener listener;
  use->subscribe({"a"}, false, listener);
  ASSERT_TRUE(eventually([&] { return listener.count("subscribed a") == 1; }));
  EXPECT_EQ(use.text({"CLIENT", "KILL", "TYPE", "pubsub"}), ":1\r\n");
  ASSERT_TRUE(eventually([&] { return listener.count("subscribed a") == 2; }));
  EXPECT_EQ(listener.count("lost a"), 1u);
}

// ---- the end ----

TEST_F(RedisClientTest, GoesDownWithCallsUnderWay) {
  Load load;
  Listener listener;
  {
    TestUse use(url(), 2);
    use->subscribe({"a"}, false, listener);
    auto own = use.runtime().await<OwnResult>([&] { return use->dedicate({}, TestUse::soon()); });
    ASSERT_TRUE(own);
    ASSERT_EQ(use.text({"PING"}), "+PONG\r\n");
    ASSERT_TRUE(eventually([&] { return listener.count("subscribed a") == 1; }));
    server_->freeze();
    load.running = 20;
    for (unsigned loop = 0; loop < 2; ++loop) {
      use.runtime().call(
          [&] {
            for (int i = 0; i < 10; ++i) use.runtime().group().spawn(increment(*use, "n", 3, load));
          },
          loop);
    }
    use.down();  // which joins: nothing may be left behind
    EXPECT_EQ(load.running, 0);
    EXPECT_EQ(load.failed, 60);
  }
  server_->thaw();
}

TEST_F(RedisClientTest, GoesDownWithNobodyThere) {
  server_->kill();
  TestUse use(url());
  Listener listener;
  use->subscribe({"a"}, false, listener);
  const auto refused = use.call({"PING"});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::engine_down);
  use.down();
  EXPECT_EQ(listener.size(), 0u);
}

TEST_F(RedisClientTest, ALargeAnswerArrivesWholeAndATooLargeOneIsRefused) {
  TestUse use(url(), 1, [](Options& options) { options.max_reply_bytes = 4u << 20; });
  const std::string large(3u << 20, 'x');
  ASSERT_EQ(use.text({"SET", "large", large}), "+OK\r\n");
  EXPECT_EQ(use.text({"GET", "large"}), "$3145728\r\n" + large + "\r\n");
  ASSERT_EQ(use.text({"APPEND", "large", large}), ":6291456\r\n");
  const auto refused = use.call({"GET", "large"});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::too_large) << refused.error().message;
  EXPECT_TRUE(eventually([&] { return use.text({"PING"}) == "+PONG\r\n"; }));
}

}  // namespace
}  // namespace larder::engine::redis
