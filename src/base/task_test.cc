#include "base/task.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <thread>

namespace larder {
namespace {

using testing::ElementsAre;

// One thread, a clock that moves only when told.
class FakeLoop : public Loop {
 public:
  FakeLoop() { set_current(this); }
  ~FakeLoop() override { set_current(nullptr); }

  void post(Callback callback) override { queue_.push_back(std::move(callback)); }
  TimerId call_at(TimeUs at, Callback callback) override {
    timers_.emplace(std::pair(at, ++last_timer_), std::move(callback));
    return last_timer_;
  }
  void cancel(TimerId timer) override {
    std::erase_if(timers_, [&](const auto& t) { return t.first.second == timer; });
  }
  TimeUs now_us() const override { return now_; }

  std::size_t timers() const { return timers_.size(); }
  std::size_t queued() const { return queue_.size(); }

  void run() {
    while (!queue_.empty()) {
      Callback callback = std::move(queue_.front());
      queue_.pop_front();
      callback();
    }
  }
  // Runs due timers only: for states in which a timer overtakes what is posted.
  void fire_timers(TimeUs now) {
    now_ = now;
    while (!timers_.empty() && timers_.begin()->first.first <= now_) {
      Callback callback = std::move(timers_.begin()->second);
      timers_.erase(timers_.begin());
      callback();
    }
  }
  void advance_to(TimeUs now) {
    fire_timers(now);
    run();
  }

 private:
  std::deque<Callback> queue_;
  std::map<std::pair<TimeUs, TimerId>, Callback> timers_;
  TimerId last_timer_ = 0;
  TimeUs now_ = 0;
};

// A thread with a queue; timers are checked when it wakes, and it wakes often enough.
class ThreadLoop : public Loop {
 public:
  ThreadLoop() : thread_([this] { work(); }) {}
  ~ThreadLoop() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    ready_.notify_one();
    thread_.join();
  }

  void post(Callback callback) override {
    {
      std::lock_guard lock(mutex_);
      queue_.push_back(std::move(callback));
    }
    ready_.notify_one();
  }
  TimerId call_at(TimeUs at, Callback callback) override {
    timers_.emplace(std::pair(at, ++last_timer_), std::move(callback));
    return last_timer_;
  }
  void cancel(TimerId timer) override {
    std::erase_if(timers_, [&](const auto& t) { return t.first.second == timer; });
  }
  TimeUs now_us() const override { return monotonic_now_us(); }

 private:
  void work() {
    set_current(this);
    for (;;) {
      Callback callback;
      {
        std::unique_lock lock(mutex_);
        ready_.wait_for(lock, std::chrono::milliseconds(timers_.empty() ? 1'000 : 1),
                        [&] { return stopping_ || !queue_.empty(); });
        if (queue_.empty() && stopping_) break;
        if (!queue_.empty()) {
          callback = std::move(queue_.front());
          queue_.pop_front();
        }
      }
      if (callback) callback();
      while (!timers_.empty() && timers_.begin()->first.first <= now_us()) {
        Callback timer = std::move(timers_.begin()->second);
        timers_.erase(timers_.begin());
        timer();
      }
    }
    set_current(nullptr);
  }

  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Callback> queue_;
  bool stopping_ = false;
  std::map<std::pair<TimeUs, TimerId>, Callback> timers_;  // of the thread alone
  TimerId last_timer_ = 0;
  std::thread thread_;
};

struct Counted {
  explicit Counted(int& alive) : alive_(&alive) { ++*alive_; }
  Counted(Counted&& other) noexcept : alive_(other.alive_) { ++*alive_; }
  Counted& operator=(Counted&&) = delete;
  ~Counted() { --*alive_; }
  int* alive_;
};

Task<int> answer() { co_return 42; }
Task<std::unique_ptr<int>> boxed(int n) { co_return std::make_unique<int>(n); }
Task<Result<int>> refuse() { co_return fail(ErrorCode::timeout, "late"); }
Task<std::pair<int, int>> braced() { co_return {1, 2}; }

Task<void> set_to_answer(int& out) {
  const int value = co_await answer();
  out = value;
}

TEST(Task, StartsWhenAwaited) {
  FakeLoop loop;
  int value = 0;
  Task<void> task = set_to_answer(value);
  EXPECT_EQ(value, 0);
  TaskGroup group;
  EXPECT_TRUE(group.spawn(std::move(task)));
  EXPECT_EQ(value, 42);
  EXPECT_EQ(group.running(), 0u);
}

Task<void> collect(std::vector<std::string>& out) {
  auto box = co_await boxed(7);
  out.push_back(std::to_string(*box));
  auto refused = co_await refuse();
  out.push_back(refused.error().message);
  auto pair = co_await braced();
  out.push_back(std::to_string(pair.second));
}

TEST(Task, CarriesValuesAndErrors) {
  FakeLoop loop;
  std::vector<std::string> seen;
  TaskGroup group;
  group.spawn(collect(seen));
  EXPECT_THAT(seen, ElementsAre("7", "late", "2"));
}

Task<void> await_many(int n, long& sum) {
  for (int i = 0; i < n; ++i) {
    const int value = co_await answer();
    sum += value;
  }
}

TEST(Task, AwaitsInConstantStack) {
  FakeLoop loop;
  long sum = 0;
  TaskGroup group;
  group.spawn(await_many(300'000, sum));
  EXPECT_EQ(sum, 300'000L * 42);
}

Task<void> hold(Counted counted) { co_return (void) counted; }

TEST(Task, UnstartedTaskFreesItsParameters) {
  int alive = 0;
  {
    Task<void> task = hold(Counted(alive));
    EXPECT_EQ(alive, 1);
  }
  EXPECT_EQ(alive, 0);
}

Task<void> wait_for(Waiters& waiters, TimeUs deadline, std::vector<std::string>& log,
                    std::string name) {
  const bool notified = co_await waiters.wait_until(deadline);
  log.push_back(name + (notified ? " notified" : " late"));
}

TEST(Waiters, NotifyWakesInOrderOfArrival) {
  FakeLoop loop;
  Waiters waiters;
  TaskGroup group;
  std::vector<std::string> log;
  for (const char* name : {"a", "b", "c"}) group.spawn(wait_for(waiters, kNever, log, name));
  EXPECT_EQ(loop.timers(), 0u);
  waiters.notify();
  EXPECT_TRUE(log.empty());  // never on the notifier's stack
  loop.run();
  EXPECT_THAT(log, ElementsAre("a notified", "b notified", "c notified"));
}

TEST(Waiters, AfterNotifyNobodyWaits) {
  FakeLoop loop;
  Waiters waiters;
  TaskGroup group;
  std::vector<std::string> log;
  waiters.notify();
  waiters.notify();
  group.spawn(wait_for(waiters, 10, log, "a"));
  EXPECT_THAT(log, ElementsAre("a notified"));
  EXPECT_EQ(loop.timers(), 0u);
}

TEST(Waiters, DeadlineEndsOneWaitAlone) {
  FakeLoop loop;
  Waiters waiters;
  TaskGroup group;
  std::vector<std::string> log;
  group.spawn(wait_for(waiters, 30, log, "a"));
  group.spawn(wait_for(waiters, 10, log, "b"));
  group.spawn(wait_for(waiters, 20, log, "c"));
  loop.advance_to(10);
  EXPECT_THAT(log, ElementsAre("b late"));
  loop.advance_to(20);
  EXPECT_THAT(log, ElementsAre("b late", "c late"));
  waiters.notify();
  loop.run();
  EXPECT_THAT(log, ElementsAre("b late", "c late", "a notified"));
  EXPECT_EQ(loop.timers(), 0u);
}

TEST(Waiters, DeadlineBetweenNotifyAndResumptionLoses) {
  FakeLoop loop;
  Waiters waiters;
  TaskGroup group;
  std::vector<std::string> log;
  group.spawn(wait_for(waiters, 10, log, "a"));
  waiters.notify();
  loop.fire_timers(10);
  EXPECT_TRUE(log.empty());
  loop.run();
  EXPECT_THAT(log, ElementsAre("a notified"));
}

TEST(Waiters, NotifyAfterDeadlineDoesNotResumeAgain) {
  FakeLoop loop;
  Waiters waiters;
  TaskGroup group;
  std::vector<std::string> log;
  group.spawn(wait_for(waiters, 10, log, "a"));
  loop.fire_timers(10);
  waiters.notify();
  loop.run();
  EXPECT_THAT(log, ElementsAre("a late"));
}

Task<void> sleeper(TaskGroup& group, TimeUs at, std::vector<std::string>& log) {
  const bool stopping = co_await group.sleep_until(at);
  log.emplace_back(stopping ? "stopped" : "slept");
}

Task<void> joiner(TaskGroup& group, bool& joined) {
  co_await group.join();
  joined = true;
}

TEST(TaskGroup, StopEndsSleepsAndJoinWaitsForTheTasks) {
  FakeLoop loop;
  TaskGroup group;
  TaskGroup outer;
  std::vector<std::string> log;
  bool joined = false;
  group.spawn(sleeper(group, 5, log));
  group.spawn(sleeper(group, 1'000'000, log));
  EXPECT_EQ(group.running(), 2u);
  loop.advance_to(5);
  EXPECT_THAT(log, ElementsAre("slept"));
  group.stop();
  EXPECT_TRUE(group.stopping());
  outer.spawn(joiner(group, joined));
  EXPECT_FALSE(joined);
  loop.run();
  EXPECT_THAT(log, ElementsAre("slept", "stopped"));
  EXPECT_TRUE(joined);
  EXPECT_EQ(loop.timers(), 0u);
}

TEST(TaskGroup, JoinOfAnIdleGroupEndsAtOnce) {
  FakeLoop loop;
  TaskGroup group;
  TaskGroup outer;
  bool joined = false;
  group.stop();
  outer.spawn(joiner(group, joined));
  EXPECT_TRUE(joined);
}

TEST(TaskGroup, RefusesAfterStopAndDropsTheTask) {
  FakeLoop loop;
  TaskGroup group;
  int alive = 0;
  group.stop();
  EXPECT_FALSE(group.spawn(hold(Counted(alive))));
  EXPECT_EQ(alive, 0);
  EXPECT_EQ(group.running(), 0u);
}

// Its parameter stands for what the owner of the group frees after the join.
Task<void> wait_and_hold(Waiters& waiters, Counted counted) {
  co_await waiters.wait();
  (void)counted;
}

Task<void> join_and_look(TaskGroup& group, int& alive, int& seen) {
  co_await group.join();
  seen = alive;
}

TEST(TaskGroup, FramesAreGoneWhenJoinEnds) {
  FakeLoop loop;
  Waiters waiters;
  TaskGroup group;
  TaskGroup outer;
  int alive = 0;
  int seen = -1;
  for (int i = 0; i < 3; ++i) group.spawn(wait_and_hold(waiters, Counted(alive)));
  EXPECT_EQ(alive, 3);
  group.stop();
  outer.spawn(join_and_look(group, alive, seen));
  waiters.notify();
  loop.run();
  EXPECT_EQ(seen, 0);
}

// --- On threads (the interesting assertions are ThreadSanitizer's) ---

// Blocks the test's thread until `n` arrivals.
class Latch {
 public:
  explicit Latch(int n) : left_(n) {}
  void arrive() {
    std::lock_guard lock(mutex_);
    if (--left_ == 0) done_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return left_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable done_;
  int left_;
};

Task<void> hop(Loop& a, Loop& b, int n, int& wrong) {
  for (int i = 0; i < n; ++i) {
    Loop& target = i % 2 == 0 ? a : b;
    co_await resume_on(target);
    if (Loop::current() != &target) ++wrong;
  }
}

Task<void> stop_and_join(TaskGroup& group, Latch& latch) {
  group.stop();
  co_await group.join();
  latch.arrive();
}

TEST(TaskThreads, ResumeOnMovesBetweenLoops) {
  ThreadLoop a;
  ThreadLoop b;
  TaskGroup group;
  TaskGroup outer;
  int wrong = 0;
  Latch latch(1);
  a.post([&] {
    group.spawn(hop(a, b, 1'000, wrong));
    outer.spawn(stop_and_join(group, latch));
  });
  latch.wait();
  EXPECT_EQ(wrong, 0);
  Latch drained(2);  // the outer task has left its loop
  for (Loop* loop : std::initializer_list<Loop*>{&a, &b}) loop->post([&] { drained.arrive(); });
  drained.wait();
}

Task<void> race(Waiters& waiters, Loop& home, TimeUs deadline, std::atomic<int>& notified,
                std::atomic<int>& late, std::atomic<int>& astray) {
  const bool woken = co_await waiters.wait_until(deadline);
  ++(woken ? notified : late);
  if (Loop::current() != &home) ++astray;
}

// Deadlines and notify() race on purpose; each waiter must be resumed once, on its own loop.
TEST(TaskThreads, NotifyRacesWithDeadlines) {
  constexpr int kRounds = 100;
  constexpr int kWaiters = 10;
  ThreadLoop loops[3];
  std::atomic<int> notified = 0;
  std::atomic<int> late = 0;
  std::atomic<int> astray = 0;
  for (int round = 0; round < kRounds; ++round) {
    Waiters waiters;
    TaskGroup group;
    TaskGroup outer;
    Latch spawned(3);
    for (ThreadLoop& loop : loops) {
      loop.post([&] {
        for (int i = 0; i < kWaiters; ++i) {
          const TimeUs deadline = i % 2 == 0 ? kNever : loop.now_us() + i * 100;
          group.spawn(race(waiters, loop, deadline, notified, late, astray));
        }
        spawned.arrive();
      });
    }
    if (round % 2 == 0) spawned.wait();
    waiters.notify();
    spawned.wait();
    Latch joined(1);
    loops[round % 3].post([&] { outer.spawn(stop_and_join(group, joined)); });
    joined.wait();
    Latch drained(3);
    for (ThreadLoop& loop : loops) loop.post([&] { drained.arrive(); });
    drained.wait();
  }
  EXPECT_EQ(notified + late, kRounds * 3 * kWaiters);
  EXPECT_EQ(astray, 0);
}

Task<void> spin(TaskGroup& group) {
  for (;;) {
    const TimeUs next = Loop::current()->now_us() + 50;
    const bool stopping = co_await group.sleep_until(next);
    if (stopping) co_return;
  }
}

Task<void> join_and_free(std::unique_ptr<TaskGroup> group, Latch& latch) {
  group->stop();
  co_await group->join();
  group.reset();
  latch.arrive();
}

// The last task ends on one thread while another frees the group: join() must keep them apart.
TEST(TaskThreads, GroupMayBeFreedOnceJoined) {
  ThreadLoop loops[2];
  for (int round = 0; round < 200; ++round) {
    auto group = std::make_unique<TaskGroup>();
    TaskGroup outer;
    Latch spawned(2);
    for (ThreadLoop& loop : loops) {
      loop.post([&] {
        group->spawn(spin(*group));
        spawned.arrive();
      });
    }
    spawned.wait();
    Latch freed(1);
    loops[round % 2].post([&] { outer.spawn(join_and_free(std::move(group), freed)); });
    freed.wait();
    Latch drained(2);
    for (ThreadLoop& loop : loops) loop.post([&] { drained.arrive(); });
    drained.wait();
  }
}

}  // namespace
}  // namespace larder
