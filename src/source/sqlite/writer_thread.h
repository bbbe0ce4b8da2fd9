// The one thread that writes to a SQLite database: a bounded queue of work in front of a resource
// that an open transaction may hold between two pieces of work.
#pragma once

#include <condition_variable>
#include <coroutine>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "base/clock.h"
#include "base/loop.h"

namespace larder::source::sqlite {

// Thread-safe, but for what is said to be called from work only.
class WriterThread {
 public:
  using Work = std::move_only_function<void()>;
  enum class Outcome : std::uint8_t {
    done,
    overloaded,  // the queue is at its limit; the work was dropped
    timeout,     // its turn did not come before the deadline; the work was dropped
  };
  enum class Turn : std::uint8_t {
    wait,  // in order of arrival, when nothing is held
    now,   // before all others, also while something is held: for the holder
  };

  explicit WriterThread(std::size_t queue_limit);
  ~WriterThread() { stop(); }

  // Gives up what is held, finishes what is queued, joins. Work may still call this object
  // meanwhile.
  void stop();

  // Runs `work` on the thread, then resumes the caller on its loop with the outcome. The deadline
  // is that of the wait for the turn. REQUIRES: Loop::current().
  auto run(Turn turn, TimeUs deadline, Work work) {
    return Awaiter{*this, turn, deadline, std::move(work)};
  }

  // Runs `work` with Turn::now; nobody waits for it.
  void post(Work work);

  // ---- from work only ----

  // Until release() nothing but Turn::now runs. If that does not come before `until`, `expired`
  // runs, which releases.
  void hold(TimeUs until, Work expired);
  void release();
  // Runs `work` once at `at` or later, when nothing is held. A later call replaces it.
  void later(TimeUs at, Work work);

 private:
  struct Awaiter;
  struct Queued {
    Work work;
    TimeUs deadline = kNever;
    Awaiter* waiter = nullptr;
  };
  struct Awaiter {
    WriterThread& thread;
    Turn turn;
    TimeUs deadline;
    Work work;
    Outcome outcome = Outcome::done;
    Loop* loop = nullptr;
    std::coroutine_handle<> handle = {};
    bool await_ready() const { return false; }
    bool await_suspend(std::coroutine_handle<> resume);
    Outcome await_resume() const { return outcome; }
  };

  void loop();
  bool run_one(std::unique_lock<std::mutex>& lock);
  void expire_waiting(TimeUs now);
  TimeUs next_event() const;
  static void finish(Queued& job, Outcome outcome);

  const std::size_t limit_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Queued> now_;
  std::deque<Queued> waiting_;
  bool stopping_ = false;
  // Of the thread alone.
  bool held_ = false;
  TimeUs held_until_ = kNever;
  Work expired_;
  TimeUs later_at_ = kNever;
  Work later_;
  std::thread thread_;
};

}  // namespace larder::source::sqlite
