#include "net/runtime.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/un.h>

#include <csignal>
#include <fstream>
#include <set>

#include "net/net_testing.h"

namespace larder::net {
namespace {

using testing::HasSubstr;

Task<void> echo(std::unique_ptr<Stream> stream) {
  std::string buffer(64 << 10, '\0');
  for (;;) {
    const auto size = co_await stream->read_some(buffer.data(), buffer.size());
    if (!size || *size == 0) co_return;
    const std::string_view bytes(buffer.data(), *size);
    const auto written = co_await stream->write_all(bytes);
    if (!written) co_return;
  }
}

std::string must_listen(TestRuntime& runtime, const std::string& address,
                        std::function<Task<void>(std::unique_ptr<Stream>)> accept = echo,
                        std::size_t max_connections = 100) {
  const auto bound = runtime->listen(address, runtime.group(), std::move(accept), max_connections,
                                     "-ERR max number of clients reached\r\n");
  EXPECT_TRUE(bound.has_value()) << address << ": " << bound.error().message;
  return bound.value_or("");
}

std::string port_of(const std::string& address) { return address.substr(address.rfind(':') + 1); }

TEST(Address, Parses) {
  const struct {
    const char* text;
    const char* host;
    int port;
  } good[] = {{"127.0.0.1:7379", "127.0.0.1", 7379},
              {"[::1]:0", "::1", 0},
              {"*:65535", "*", 65535},
              {"db.example:1", "db.example", 1},
              {"unix:/tmp/x", "/tmp/x", 0}};
  for (const auto& c : good) {
    const auto address = parse_address(c.text);
    ASSERT_TRUE(address.has_value()) << c.text;
    EXPECT_EQ(address->host, c.host);
    EXPECT_EQ(address->port, c.port);
  }
  for (const std::string text :
       {"", "7379", ":7379", "a:", "a:x", "a:65536", "a:-1", "::1:7379", "unix:", "a:1 ", "[]:1"}) {
    EXPECT_FALSE(parse_address(text).has_value()) << text;
  }
  EXPECT_FALSE(parse_address("unix:/" + std::string(200, 'x')).has_value());
}

TEST(Loop, PostsRunInOrder) {
  TestRuntime runtime(2);
  std::vector<int> seen;
  for (int i = 0; i < 1'000; ++i) runtime->loop(1).post([&seen, i] { seen.push_back(i); });
  runtime.call([] {}, 1);
  ASSERT_EQ(seen.size(), 1'000u);
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
}

TEST(Loop, IsCurrentWhereItRuns) {
  TestRuntime runtime(3);
  EXPECT_EQ(Loop::current(), nullptr);
  std::set<std::thread::id> threads;
  for (unsigned i = 0; i < 3; ++i) {
    runtime.call(
        [&] {
          EXPECT_EQ(Loop::current(), &runtime->loop(i));
          threads.insert(std::this_thread::get_id());
        },
        i);
  }
  EXPECT_EQ(threads.size(), 3u);
}

TEST(Loop, StopRunsWhatWasPostedBefore) {
  auto runtime = Runtime::create(2);
  int ran = 0;
  for (int i = 0; i < 10; ++i) runtime->loop(0).post([&] { ++ran; });
  runtime->stop();
  bool after = false;
  auto guard = std::make_shared<int>(0);
  runtime->loop(0).call_at(kNever - 1, [guard] {});
  runtime->run();
  EXPECT_EQ(ran, 10);
  runtime->loop(1).post([&, guard] { after = true; });
  runtime.reset();
  EXPECT_FALSE(after);
  EXPECT_EQ(guard.use_count(), 1);  // what never ran is freed
}

TEST(Loop, TimersFireInOrderAndNotOnceCancelled) {
  TestRuntime runtime;
  std::string seen;
  std::promise<void> done;
  runtime.call([&] {
    Loop& loop = runtime->loop(0);
    const TimeUs now = loop.now_us();
    loop.call_at(now + 30'000, [&] { done.set_value(); });
    const TimerId cancelled = loop.call_at(now + 1'000, [&] { seen += 'x'; });
    loop.call_at(now + 20'000, [&, now] {
      EXPECT_GE(loop.now_us(), now + 20'000);
      seen += 'c';
    });
    loop.call_at(now + 2'000, [&] { seen += 'b'; });
    loop.call_at(now - 5, [&] { seen += 'a'; });
    loop.cancel(cancelled);
  });
  done.get_future().wait();
  EXPECT_EQ(seen, "abc");
}

TEST(Runtime, EchoesOnEveryKindOfAddress) {
  TestRuntime runtime(2);
  const TempFolder folder;
  for (const std::string& address : std::vector<std::string>{
           "127.0.0.1:0", "[::1]:0", "localhost:0", "*:0", "unix:" + folder / "s"}) {
    if (address.starts_with("[") && ::access("/proc/net/if_inet6", F_OK) != 0) continue;
    std::string bound = must_listen(runtime, address);
    EXPECT_NE(port_of(bound), "0");
    if (bound.starts_with("*")) bound = "127.0.0.1:" + port_of(bound);
    TestClient client(bound);
    ASSERT_TRUE(client.connected()) << bound;
    for (const std::string text : {"hello", "world"}) {
      client.send(text);
      EXPECT_EQ(client.read(5), text);
    }
  }
}

TEST(Runtime, LargeTransfersArriveWhole) {
  TestRuntime runtime;
  TestClient client(must_listen(runtime, "127.0.0.1:0"));
  std::string sent(8 << 20, '\0');
  for (std::size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<char>(i * 31 >> 3);
  std::thread writer([&] { client.send(sent); });
  EXPECT_TRUE(client.read(sent.size()) == sent);
  writer.join();
}

TEST(Runtime, AddressInUseSaysWhatToDo) {
  TestRuntime runtime;
  const std::string bound = must_listen(runtime, "127.0.0.1:0");
  const auto again = runtime->listen(bound, runtime.group(), echo, 1, "");
  ASSERT_FALSE(again.has_value());
  EXPECT_EQ(again.error().message,
            bound +
                " is in use by another process; stop it, or choose another port in "
                "[node] listen");
  EXPECT_FALSE(runtime->listen("192.0.2.1:0", runtime.group(), echo, 1, "").has_value());
}

TEST(Runtime, ReplacesAStaleSocketFileOnly) {
  const TempFolder folder;
  const std::string path = folder / "s";
  {
    SocketAddress address;
    ASSERT_TRUE(numeric_address({.unix_path = true, .host = path}, address));
    const UniqueFd left(::socket(AF_UNIX, SOCK_STREAM, 0));
    ASSERT_EQ(::bind(left.get(), address.get(), address.size), 0);
  }
  ASSERT_TRUE(std::filesystem::exists(path));
  {
    TestRuntime runtime;
    const std::string bound = must_listen(runtime, "unix:" + path);
    EXPECT_EQ(bound, "unix:" + path);
    const auto live = runtime->listen(bound, runtime.group(), echo, 1, "");
    ASSERT_FALSE(live.has_value());
    EXPECT_THAT(live.error().message, HasSubstr("in use by another process"));
    TestClient client(bound);
    client.send("x");
    EXPECT_EQ(client.read(1), "x");
    client.close();
  }
  EXPECT_FALSE(std::filesystem::exists(path));  // its own file goes with it

  std::ofstream(path) << "precious";
  TestRuntime runtime;
  const auto refused = runtime->listen("unix:" + path, runtime.group(), echo, 1, "");
  ASSERT_FALSE(refused.has_value());
  EXPECT_THAT(refused.error().message, HasSubstr("not a socket"));
  EXPECT_TRUE(std::filesystem::exists(path));
}

struct Names {
  std::mutex mutex;
  std::string peer;
  std::string local;
  std::multiset<Loop*> loops;
};

Task<void> record(std::unique_ptr<Stream> stream, Names& names) {
  {
    const std::lock_guard lock(names.mutex);
    names.peer = stream->peer();
    names.local = stream->local();
    names.loops.insert(Loop::current());
  }
  co_await echo(std::move(stream));
}

TEST(Runtime, StreamsKnowTheirNames) {
  TestRuntime runtime;
  Names names;
  const TempFolder folder;
  for (const std::string& address :
       std::vector<std::string>{"127.0.0.1:0", "unix:" + folder / "s"}) {
    const std::string bound = must_listen(
        runtime, address, [&](auto stream) { return record(std::move(stream), names); });
    TestClient client(bound);
    client.send("x");
    client.read(1);
    const std::lock_guard lock(names.mutex);
    EXPECT_EQ(names.local, bound);
    if (address.starts_with("unix:"))
      EXPECT_EQ(names.peer, bound);
    else
      EXPECT_THAT(names.peer, testing::StartsWith("127.0.0.1:"));
  }
}

TEST(Runtime, SpreadsConnectionsOverTheLoops) {
  TestRuntime runtime(2);
  Names names;
  const std::string bound = must_listen(
      runtime, "127.0.0.1:0", [&](auto stream) { return record(std::move(stream), names); });
  std::vector<std::unique_ptr<TestClient>> clients;
  for (int i = 0; i < 6; ++i) {
    clients.push_back(std::make_unique<TestClient>(bound));
    clients.back()->send("x");
    EXPECT_EQ(clients.back()->read(1), "x");
  }
  EXPECT_EQ(runtime->connections(), 6u);
  const std::lock_guard lock(names.mutex);
  EXPECT_EQ(names.loops.count(&runtime->loop(0)), 3u);
  EXPECT_EQ(names.loops.count(&runtime->loop(1)), 3u);
}

TEST(Runtime, RefusesOneTooMany) {
  TestRuntime runtime;
  const std::string bound = must_listen(runtime, "127.0.0.1:0", echo, 1);
  TestClient first(bound);
  first.send("x");
  EXPECT_EQ(first.read(1), "x");
  {
    TestClient second(bound);
    EXPECT_EQ(second.read_to_end(), "-ERR max number of clients reached\r\n");
  }
  first.close();
  // The seat is free again as soon as the server has noticed: then a new client is let in.
  for (;;) {
    TestClient third(bound);
    third.send("y");
    if (third.read(1) == "y") break;
  }
}

TEST(Runtime, StopListeningKeepsOpenConnections) {
  TestRuntime runtime;
  const std::string bound = must_listen(runtime, "127.0.0.1:0");
  TestClient client(bound);
  client.send("x");
  EXPECT_EQ(client.read(1), "x");
  runtime.call([&] { runtime->stop_listening(); });
  client.send("y");
  EXPECT_EQ(client.read(1), "y");
  EXPECT_FALSE(TestClient(bound).connected());
}

// Connections that are on their way to their loop while everything ends.
TEST(Runtime, GoesDownUnderConnectingClients) {
  for (int round = 0; round < 20; ++round) {
    TestRuntime runtime(3);
    const std::string bound = must_listen(runtime, "127.0.0.1:0");
    std::vector<std::unique_ptr<TestClient>> clients;
    for (int i = 0; i < 10; ++i) clients.push_back(std::make_unique<TestClient>(bound));
    std::thread closer([&] { clients.clear(); });
    runtime.down();
    closer.join();
  }
}

// When descriptors run out, accepting pauses; it goes on when there are some.
TEST(Runtime, SurvivesRunningOutOfDescriptors) {
  TestRuntime runtime;
  const std::string bound = must_listen(runtime, "127.0.0.1:0");
  TestClient early(bound);
  early.send("x");
  EXPECT_EQ(early.read(1), "x");

  // Sockets of this test are there beforehand: the limit is for the server alone.
  const UniqueFd waiting(::socket(AF_INET, SOCK_STREAM, 0));
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit low = before;
  const UniqueFd probe(::dup(0));
  low.rlim_cur = static_cast<rlim_t>(probe.get()) + 1;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  SocketAddress target;
  ASSERT_TRUE(numeric_address(*parse_address(bound), target));
  EXPECT_EQ(::connect(waiting.get(), target.get(), target.size), 0);
  EXPECT_EQ(::send(waiting.get(), "z", 1, MSG_NOSIGNAL), 1);
  early.send("y");  // who is in is served
  EXPECT_EQ(early.read(1), "y");
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  char got = 0;
  EXPECT_EQ(::recv(waiting.get(), &got, 1, 0), 1);
  EXPECT_EQ(got, 'z');
}

// --- Streams ---

struct Ends {
  std::promise<std::string> result;
};

void shut_down_soon(Stream& stream) {
  Loop::current()->call_at(Loop::current()->now_us() + 2'000, [&stream] {
    stream.shutdown();
    stream.shutdown();
  });
}

Task<void> read_until_shutdown(std::unique_ptr<Stream> stream, Ends& ends) {
  shut_down_soon(*stream);
  char byte = 0;
  const auto first = co_await stream->read_some(&byte, 1);
  const auto second = co_await stream->read_some(&byte, 1);
  const auto written = stream->write_now("x");
  ends.result.set_value(fmt::format("{} {} {}", first.value_or(99), second.value_or(99),
                                    written ? "written" : "refused"));
}

TEST(Stream, ShutdownWakesAReader) {
  TestRuntime runtime;
  Ends ends;
  const std::string bound = must_listen(runtime, "127.0.0.1:0", [&](auto stream) {
    return read_until_shutdown(std::move(stream), ends);
  });
  TestClient client(bound);
  EXPECT_EQ(ends.result.get_future().get(), "0 0 refused");
  EXPECT_EQ(client.read_to_end(), "");
}

Task<void> write_until_shutdown(std::unique_ptr<Stream> stream, Ends& ends) {
  shut_down_soon(*stream);
  const std::string bytes(64 << 20, 'x');
  const auto written = co_await stream->write_all(bytes);
  ends.result.set_value(written ? "written" : "ended");
}

TEST(Stream, ShutdownWakesAWriter) {
  TestRuntime runtime;
  Ends ends;
  const std::string bound = must_listen(runtime, "127.0.0.1:0", [&](auto stream) {
    return write_until_shutdown(std::move(stream), ends);
  });
  const TestClient client(bound);  // reads nothing
  EXPECT_EQ(ends.result.get_future().get(), "ended");
}

Task<void> write_now_until_full(std::unique_ptr<Stream> stream, std::size_t& total, Ends& ends) {
  const std::string bytes(1 << 20, 'x');
  for (;;) {
    const auto taken = stream->write_now(bytes);
    if (!taken || *taken == 0) {
      ends.result.set_value(taken ? "full" : "error");
      co_return;
    }
    total += *taken;
  }
}

// The end may arrive together with the last bytes, and must be heard all the same.
TEST(Stream, HearsOfTheEndHoweverItComes) {
  TestRuntime runtime;
  const TempFolder folder;
  for (const std::string& address :
       std::vector<std::string>{"127.0.0.1:0", "unix:" + folder / "s"}) {
    const std::string bound = must_listen(runtime, address);
    for (int i = 0; i < 200; ++i) {
      TestClient client(bound);
      // While the loop is held up, data and end become one event.
      std::promise<void> sent;
      runtime->loop(0).post([done = sent.get_future()]() mutable { done.wait(); });
      client.send("last words");
      if (i % 2 == 0) sent.set_value();
      client.end_writing();
      if (i % 2 == 1) sent.set_value();
      ASSERT_EQ(client.read_to_end(), "last words");
    }
  }
}

// A stream that nobody reads for a while has not lost what came meanwhile.
Task<void> read_late(std::unique_ptr<Stream> stream, Ends& ends, TaskGroup& group) {
  std::string all;
  char buffer[3];  // so that reads end short of what is there, and exactly at it
  for (;;) {
    const TimeUs later = Loop::current()->now_us() + 500;
    co_await group.sleep_until(later);
    const auto size = co_await stream->read_some(buffer, sizeof buffer);
    if (!size || *size == 0) break;
    all.append(buffer, *size);
  }
  ends.result.set_value(all);
}

TEST(Stream, KeepsWhatComesBetweenReads) {
  TestRuntime runtime;
  Ends ends;
  const std::string bound = must_listen(runtime, "127.0.0.1:0", [&](auto stream) {
    return read_late(std::move(stream), ends, runtime.group());
  });
  TestClient client(bound);
  for (int i = 0; i < 20; ++i) client.send("abcdef");
  client.end_writing();
  EXPECT_EQ(ends.result.get_future().get().size(), 120u);
}

TEST(Stream, WriteNowNeverWaits) {
  TestRuntime runtime;
  Ends ends;
  std::size_t total = 0;
  const std::string bound = must_listen(runtime, "127.0.0.1:0", [&](auto stream) {
    return write_now_until_full(std::move(stream), total, ends);
  });
  TestClient client(bound);
  EXPECT_EQ(ends.result.get_future().get(), "full");
  EXPECT_EQ(client.read_to_end().size(), total);
}

Task<void> write_to_the_dead(std::unique_ptr<Stream> stream, Ends& ends) {
  char byte = 0;
  const auto end = co_await stream->read_some(&byte, 1);
  const std::string bytes(1 << 20, 'x');
  for (int i = 0; i < 1'000; ++i) {
    const auto written = co_await stream->write_all(bytes);
    if (written) continue;
    ends.result.set_value(fmt::format("{} {}", end.value_or(99), written.error().message));
    co_return;
  }
  ends.result.set_value("never failed");
}

TEST(Stream, AVanishedPeerIsAnErrorAndNoSignal) {
  TestRuntime runtime;
  Ends ends;
  const std::string bound = must_listen(runtime, "127.0.0.1:0", [&](auto stream) {
    return write_to_the_dead(std::move(stream), ends);
  });
  TestClient client(bound);
  client.close();
  EXPECT_THAT(ends.result.get_future().get(), testing::StartsWith("0 cannot write to 127.0.0.1:"));
}

// --- Connecting ---

Task<std::string> ask(Runtime& runtime, std::string address, DurationUs limit) {
  const TimeUs deadline = Loop::current()->now_us() + limit;
  auto stream = co_await runtime.connect(address, deadline);
  if (!stream) {
    co_return (stream.error().code == ErrorCode::timeout ? "timeout: " : "error: ") +
        stream.error().message;
  }
  const auto written = co_await (*stream)->write_all("ping");
  if (!written) co_return "no write";
  char answer[4];
  const auto size = co_await (*stream)->read_some(answer, sizeof answer);
  co_return std::string(answer, size.value_or(0));
}

TEST(Connect, ReachesEveryKindOfAddress) {
  TestRuntime runtime(2);
  const TempFolder folder;
  const std::string tcp = must_listen(runtime, "127.0.0.1:0");
  const std::string unix_address = must_listen(runtime, "unix:" + folder / "s");
  for (const std::string& address :
       std::vector<std::string>{tcp, "localhost:" + port_of(tcp), unix_address}) {
    EXPECT_EQ(runtime.await<std::string>([&] { return ask(*runtime, address, 60 * kSecond); }),
              "ping");
  }
}

TEST(Connect, SaysWhyItFailed) {
  TestRuntime runtime;
  const TempFolder folder;
  const auto attempt = [&](const std::string& address) {
    return runtime.await<std::string>([&] { return ask(*runtime, address, 60 * kSecond); });
  };
  std::string free_port;
  {
    TestRuntime other;
    free_port = must_listen(other, "127.0.0.1:0");
  }
  EXPECT_EQ(attempt(free_port), "error: cannot connect to " + free_port + ": Connection refused");
  EXPECT_THAT(attempt("unix:" + folder / "none"), HasSubstr("No such file"));
  EXPECT_THAT(attempt("nonsense"), HasSubstr("write host:port"));
}

TEST(Connect, EndsAtItsDeadline) {
  TestRuntime runtime;
  // A listener whose queue is full drops what knocks: the connect hangs.
  const UniqueFd deaf(::socket(AF_INET, SOCK_STREAM, 0));
  SocketAddress address;
  ASSERT_TRUE(numeric_address(*parse_address("127.0.0.1:0"), address));
  ASSERT_EQ(::bind(deaf.get(), address.get(), address.size), 0);
  ASSERT_EQ(::listen(deaf.get(), 0), 0);
  ASSERT_EQ(::getsockname(deaf.get(), address.get(), &address.size), 0);
  std::vector<UniqueFd> fillers;
  for (int i = 0; i < 4; ++i) {
    fillers.emplace_back(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    (void)::connect(fillers.back().get(), address.get(), address.size);
  }
  const std::string answer = runtime.await<std::string>(
      [&] { return ask(*runtime, to_string(address), 100 * kMillisecond); });
  EXPECT_THAT(answer, testing::StartsWith("timeout: "));
}

TEST(Runtime, SignalsComeAsCalls) {
  auto runtime = Runtime::create(1);
  std::vector<int> seen;
  runtime->on_signal([&](int signal) {
    seen.push_back(signal);
    if (seen.size() == 1)
      ::raise(SIGINT);
    else
      runtime->stop();
  });
  runtime->loop(0).post([] { ::raise(SIGTERM); });
  runtime->run();
  EXPECT_THAT(seen, testing::ElementsAre(SIGTERM, SIGINT));
}

}  // namespace
}  // namespace larder::net
