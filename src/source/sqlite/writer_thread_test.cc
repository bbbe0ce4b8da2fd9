#include "source/sqlite/writer_thread.h"

#include <gmock/gmock.h>

#include <semaphore>

#include "source/testing.h"

namespace larder::source::sqlite {
namespace {

using Outcome = WriterThread::Outcome;
using Turn = WriterThread::Turn;

Task<Outcome> run(WriterThread& thread, Turn turn, TimeUs deadline, WriterThread::Work work) {
  const Outcome outcome = co_await thread.run(turn, deadline, std::move(work));
  co_return outcome;
}

Task<void> run_into(WriterThread& thread, Turn turn, TimeUs deadline, WriterThread::Work work,
                    std::optional<Outcome>& out) {
  const Outcome outcome = co_await thread.run(turn, deadline, std::move(work));
  out = outcome;
}

TEST(WriterThread, RunsInOrder) {
  testing::TestLoop loop;
  WriterThread thread(10);
  std::vector<int> order;
  for (int i = 0; i < 5; ++i)
    EXPECT_EQ(loop.run(run(thread, Turn::wait, kNever, [&order, i] { order.push_back(i); })),
              Outcome::done);
  EXPECT_THAT(order, ::testing::ElementsAre(0, 1, 2, 3, 4));
}

TEST(WriterThread, TheHolderGoesFirst) {
  testing::TestLoop loop;
  WriterThread thread(10);
  std::vector<std::string> order;
  loop.run(run(thread, Turn::wait, kNever, [&] { thread.hold(kNever, [] {}); }));
  TaskGroup group;
  std::optional<Outcome> waited;
  loop.spawn(group,
             run_into(thread, Turn::wait, kNever, [&] { order.push_back("other"); }, waited));
  loop.run(run(thread, Turn::now, kNever, [&] { order.push_back("holder"); }));
  EXPECT_FALSE(waited);
  loop.run(run(thread, Turn::now, kNever, [&] { thread.release(); }));
  loop.run_until([&] { return waited.has_value(); });
  loop.join(group);
  EXPECT_THAT(order, ::testing::ElementsAre("holder", "other"));
}

TEST(WriterThread, IsBounded) {
  testing::TestLoop loop;
  WriterThread thread(1);
  loop.run(
      run(thread, Turn::wait, kNever, [&] { thread.hold(kNever, [&] { thread.release(); }); }));
  TaskGroup group;
  std::optional<Outcome> first;
  loop.spawn(group, run_into(thread, Turn::wait, kNever, [] {}, first));
  bool ran = false;
  EXPECT_EQ(loop.run(run(thread, Turn::wait, kNever, [&] { ran = true; })), Outcome::overloaded);
  EXPECT_FALSE(ran);
  loop.run(run(thread, Turn::now, kNever, [&] { thread.release(); }));
  loop.run_until([&] { return first.has_value(); });
  EXPECT_EQ(*first, Outcome::done);
  loop.join(group);
}

TEST(WriterThread, WhoWaitsTooLongIsTold) {
  testing::TestLoop loop;
  WriterThread thread(10);
  loop.run(
      run(thread, Turn::wait, kNever, [&] { thread.hold(kNever, [&] { thread.release(); }); }));
  bool ran = false;
  EXPECT_EQ(
      loop.run(run(thread, Turn::wait, monotonic_now_us() + 5 * kMillisecond, [&] { ran = true; })),
      Outcome::timeout);
  EXPECT_FALSE(ran);
}

TEST(WriterThread, AHoldExpires) {
  testing::TestLoop loop;
  WriterThread thread(10);
  bool expired = false;
  loop.run(run(thread, Turn::wait, kNever, [&] {
    thread.hold(monotonic_now_us() + 5 * kMillisecond, [&] {
      expired = true;
      thread.release();
    });
  }));
  EXPECT_EQ(loop.run(run(thread, Turn::wait, kNever, [&] { EXPECT_TRUE(expired); })),
            Outcome::done);
}

TEST(WriterThread, StopGivesUpWhatIsHeld) {
  testing::TestLoop loop;
  bool expired = false;
  {
    WriterThread thread(10);
    loop.run(run(thread, Turn::wait, kNever, [&] {
      thread.hold(kNever, [&] {
        expired = true;
        thread.release();
      });
    }));
  }
  EXPECT_TRUE(expired);
}

TEST(WriterThread, LaterRunsWhenNothingIsHeld) {
  testing::TestLoop loop;
  WriterThread thread(10);
  std::binary_semaphore ran{0};
  loop.run(run(thread, Turn::wait, kNever,
               [&] { thread.later(monotonic_now_us() + kMillisecond, [&] { ran.release(); }); }));
  ran.acquire();
}

}  // namespace
}  // namespace larder::source::sqlite
