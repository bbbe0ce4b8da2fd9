#include "net/readiness.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>

#include "net/net_testing.h"

namespace larder::net {
namespace {

struct Pair {
  Pair() {
    int fds[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    ours = UniqueFd(fds[0]);
    theirs = UniqueFd(fds[1]);
  }
  void send() const { EXPECT_EQ(::send(theirs.get(), "x", 1, MSG_NOSIGNAL), 1); }
  // Until the socket takes no more.
  void fill() const {
    const std::string block(64 << 10, 'x');
    while (::send(ours.get(), block.data(), block.size(), MSG_NOSIGNAL) > 0) continue;
  }
  UniqueFd ours, theirs;
};

TimeUs soon() { return monotonic_now_us() + 20 * kSecond; }

struct Seen {
  std::vector<Readiness::Ready> waits;
};

Task<Seen> see(const Pair& pair, std::vector<std::pair<bool, bool>> wanted, TimeUs deadline) {
  Seen seen;
  auto readiness = Readiness::open(pair.ours.get());
  EXPECT_TRUE(readiness.has_value());
  for (const auto& [read, write] : wanted) {
    const auto ready = co_await (*readiness)->wait(read, write, deadline);
    seen.waits.push_back(ready);
  }
  co_return seen;
}

TEST(Readiness, TellsWhatIsReadyAlready) {
  TestRuntime runtime;
  const Pair pair;
  pair.send();
  // Nothing is read between the waits: the descriptor is ready as before, and must be reported.
  const Seen seen = runtime.await<Seen>([&] {
    return see(pair, {{true, false}, {true, false}, {false, true}, {true, false}}, soon());
  });
  EXPECT_TRUE(seen.waits[0].readable);
  EXPECT_FALSE(seen.waits[0].writable);
  EXPECT_TRUE(seen.waits[1].readable);
  EXPECT_TRUE(seen.waits[2].writable);
  EXPECT_FALSE(seen.waits[2].readable);
  EXPECT_TRUE(seen.waits[3].readable);
}

TEST(Readiness, WaitsForWhatComes) {
  TestRuntime runtime;
  const Pair pair;
  pair.fill();
  std::thread other([&] {
    pollfd full = {.fd = pair.ours.get(), .events = POLLOUT, .revents = 0};
    EXPECT_EQ(::poll(&full, 1, 0), 0);
    pair.send();
  });
  const Seen seen = runtime.await<Seen>([&] { return see(pair, {{true, true}}, soon()); });
  other.join();
  EXPECT_TRUE(seen.waits[0].readable);
  EXPECT_FALSE(seen.waits[0].timed_out());
}

TEST(Readiness, WhatPassesTheDeadlineIsNeither) {
  TestRuntime runtime;
  const Pair pair;
  pair.fill();
  const Seen seen = runtime.await<Seen>([&] {
    return see(pair, {{true, true}, {true, false}, {false, true}},
               monotonic_now_us() + kMillisecond);
  });
  for (const auto& ready : seen.waits) EXPECT_TRUE(ready.timed_out());
}

TEST(Readiness, TheEndIsReadable) {
  TestRuntime runtime;
  Pair pair;
  pair.theirs = UniqueFd();
  const Seen seen = runtime.await<Seen>([&] { return see(pair, {{true, false}}, soon()); });
  EXPECT_TRUE(seen.waits[0].readable);
}

Task<Seen> cancelled(const Pair& pair, TaskGroup& group) {
  Seen seen;
  auto opened = Readiness::open(pair.ours.get());
  EXPECT_TRUE(opened.has_value());
  Readiness& readiness = **opened;
  struct Canceller {
    static Task<void> run(Readiness& readiness, TaskGroup& group) {
      co_await group.sleep_until(monotonic_now_us() + kMillisecond);
      readiness.cancel();
    }
  };
  group.spawn(Canceller::run(readiness, group));
  for (int i = 0; i < 2; ++i) {
    const auto ready = co_await readiness.wait(true, false, kNever);
    seen.waits.push_back(ready);
  }
  co_return seen;
}

TEST(Readiness, CancelEndsThisWaitAndAllLaterOnes) {
  TestRuntime runtime;
  const Pair pair;
  const Seen seen = runtime.await<Seen>([&] { return cancelled(pair, runtime.group()); });
  ASSERT_EQ(seen.waits.size(), 2U);
  for (const auto& ready : seen.waits) {
    EXPECT_TRUE(ready.cancelled);
    EXPECT_FALSE(ready.readable);
  }
}

Task<Seen> reopened(Pair& pair) {
  Seen seen;
  auto readiness = Readiness::open(pair.ours.get());
  EXPECT_TRUE(readiness.has_value());
  // The library closes its own descriptor, and its next one has the same number.
  const int number = pair.ours.get();
  Pair next;
  EXPECT_EQ(::dup3(next.ours.get(), number, O_CLOEXEC), number);
  next.send();
  auto again = Readiness::open(number);
  EXPECT_TRUE(again.has_value());
  const auto now = co_await (*again)->wait(true, false, soon());
  seen.waits.push_back(now);
  readiness->reset();
  const auto later = co_await (*again)->wait(true, false, soon());
  seen.waits.push_back(later);
  co_return seen;
}

TEST(Readiness, OutlivesTheDescriptorThatItWasOpenedFor) {
  TestRuntime runtime;
  Pair pair;
  const Seen seen = runtime.await<Seen>([&] { return reopened(pair); });
  for (const auto& ready : seen.waits) EXPECT_TRUE(ready.readable);
}

}  // namespace
}  // namespace larder::net
