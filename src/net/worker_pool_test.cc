#include "net/worker_pool.h"

#include <gtest/gtest.h>

#include <atomic>

#include "net/net_testing.h"

namespace larder::net {
namespace {

Task<bool> run_job(WorkerPool& pool, std::function<void(unsigned)> work) {
  WorkerPool::Job job = std::move(work);
  Loop* const home = Loop::current();
  const bool ran = co_await pool.run(std::move(job));
  EXPECT_EQ(Loop::current(), home);
  co_return ran;
}

TEST(WorkerPool, RunsElsewhereAndComesBack) {
  WorkerPool pool(2, 10, "test");
  TestRuntime runtime;
  for (int i = 0; i < 100; ++i) {
    std::thread::id worker;
    Loop* loop = &runtime->loop(0);
    const bool ran = runtime.await<bool>([&] {
      return run_job(pool, [&](unsigned index) {
        EXPECT_LT(index, 2u);
        worker = std::this_thread::get_id();
        loop = Loop::current();
      });
    });
    EXPECT_TRUE(ran);
    EXPECT_NE(worker, std::this_thread::get_id());
    EXPECT_EQ(loop, nullptr);
  }
}

// Holds a worker until it is opened.
struct Gate {
  std::promise<void> reached;
  std::promise<void> opened;
  void pass() {
    reached.set_value();
    opened.get_future().wait();
  }
};

Task<void> count_refusals(WorkerPool& pool, std::function<void(unsigned)> work, int& refused) {
  const bool taken = co_await run_job(pool, std::move(work));
  if (!taken) ++refused;
}

TEST(WorkerPool, RefusesBeyondItsQueue) {
  WorkerPool pool(1, 2, "test");
  TestRuntime runtime;
  Gate gate;
  std::atomic<int> ran = 0;
  int refused = 0;
  runtime.call([&] {
    runtime.group().spawn(count_refusals(pool, [&](unsigned) { gate.pass(); }, refused));
  });
  gate.reached.get_future().wait();
  runtime.call([&] {
    for (int i = 0; i < 3; ++i) {
      runtime.group().spawn(count_refusals(pool, [&](unsigned) { ++ran; }, refused));
    }
    EXPECT_EQ(refused, 1);  // at once, without a wait
    EXPECT_EQ(pool.queued(), 2u);
    gate.opened.set_value();
  });
  runtime.down();
  EXPECT_EQ(ran, 2);
  EXPECT_EQ(refused, 1);
  EXPECT_EQ(pool.queued(), 0u);
}

TEST(WorkerPool, FinishesWhatIsQueued) {
  TestRuntime runtime;
  std::atomic<int> ran = 0;
  {
    WorkerPool pool(2, 100, "a name that is far too long");
    runtime.call([&] {
      for (int i = 0; i < 50; ++i) {
        runtime.group().spawn([](WorkerPool& p, std::atomic<int>& n) -> Task<void> {
          const bool taken = co_await run_job(p, [&n](unsigned) { ++n; });
          EXPECT_TRUE(taken);
        }(pool, ran));
      }
    });
  }
  EXPECT_EQ(ran, 50);
}

TEST(WorkerPool, EachThreadHasItsIndex) {
  constexpr unsigned kThreads = 4;
  WorkerPool pool(kThreads, 100, "test");
  EXPECT_EQ(pool.threads(), kThreads);
  TestRuntime runtime;
  std::array<std::atomic<int>, kThreads> busy = {};
  std::atomic<int> clashes = 0;
  runtime.call([&] {
    for (int i = 0; i < 90; ++i) {
      runtime.group().spawn([](WorkerPool& p, std::array<std::atomic<int>, kThreads>& b,
                               std::atomic<int>& c) -> Task<void> {
        const bool taken = co_await run_job(p, [&](unsigned index) {
          if (++b[index] != 1) ++c;
          --b[index];
        });
        EXPECT_TRUE(taken);
      }(pool, busy, clashes));
    }
  });
  runtime.down();
  EXPECT_EQ(clashes, 0);
}

}  // namespace
}  // namespace larder::net
