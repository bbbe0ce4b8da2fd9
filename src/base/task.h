// Coroutines: Task (lazy, one awaiter), TaskGroup (owns what runs on its own), Waiters (resume
// many, across loops, with deadlines), sleep_until.
//
// Write `co_await` alone on the right of a named initialisation, an assignment or a `return`, with
// named arguments moved in (docs/adr/0002). Never hold a lock across it. A coroutine's parameters
// are values, or references to what provably outlives it.
#pragma once

#include <coroutine>
#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/loop.h"
#include "base/sync.h"

namespace larder {

template <class T>
class Task;

namespace detail {

struct PromiseBase {
  std::coroutine_handle<> continuation;

  std::suspend_always initial_suspend() noexcept { return {}; }
  struct Final {
    bool await_ready() noexcept { return false; }
    template <class P>
    std::coroutine_handle<> await_suspend(std::coroutine_handle<P> self) noexcept {
      auto next = self.promise().continuation;
      return next ? next : std::noop_coroutine();
    }
    void await_resume() noexcept {}
  };
  Final final_suspend() noexcept { return {}; }
  // Exceptions do not cross modules; one that gets here is a bug or an exhausted machine.
  [[noreturn]] void unhandled_exception() noexcept { std::terminate(); }
};

template <class T>
struct Promise : PromiseBase {
  std::optional<T> value;
  Task<T> get_return_object();
  template <class U = T>  // so that `co_return {...}` works
  void return_value(U&& result) {
    value.emplace(std::forward<U>(result));
  }
};

template <>
struct Promise<void> : PromiseBase {
  Task<void> get_return_object();
  void return_void() {}
};

}  // namespace detail

// A coroutine that starts when it is awaited, and resumes its awaiter when it ends (symmetric
// transfer, no queue between). Destroying an unfinished Task destroys the coroutine where it is
// suspended: only the owner of everything that it waits for may do that.
template <class T = void>
class [[nodiscard]] Task {
 public:
  using promise_type = detail::Promise<T>;
  using Handle = std::coroutine_handle<promise_type>;

  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, {})) {}
  Task& operator=(Task&& other) noexcept {
    if (this != &other) {
      if (handle_) handle_.destroy();
      handle_ = std::exchange(other.handle_, {});
    }
    return *this;
  }
  ~Task() {
    if (handle_) handle_.destroy();
  }

  bool await_ready() const noexcept { return false; }
  std::coroutine_handle<> await_suspend(std::coroutine_handle<> awaiter) noexcept {
    handle_.promise().continuation = awaiter;
    return handle_;
  }
  T await_resume() {
    if constexpr (!std::is_void_v<T>) return std::move(*handle_.promise().value);
  }

 private:
  friend promise_type;
  explicit Task(Handle handle) : handle_(handle) {}
  Handle handle_;
};

template <class T>
Task<T> detail::Promise<T>::get_return_object() {
  return Task<T>(std::coroutine_handle<Promise>::from_promise(*this));
}
inline Task<void> detail::Promise<void>::get_return_object() {
  return Task<void>(std::coroutine_handle<Promise>::from_promise(*this));
}

// Many coroutines wait, one event wakes them. Each is resumed on the loop on which it waited.
//
// Thread-safe. The object must outlive its waiters. Cost of a wait: no allocation but the timer's.
class Waiters {
 public:
  Waiters() = default;
  ~Waiters();
  Waiters(const Waiters&) = delete;
  Waiters& operator=(const Waiters&) = delete;

  // Suspends until notify(), or until `deadline`. Returns at once after notify(). Result: true if
  // notified, false if the deadline passed first. REQUIRES: Loop::current().
  auto wait_until(TimeUs deadline) { return Awaiter(*this, deadline); }
  auto wait() { return Awaiter(*this, kNever); }

  // Wakes all who wait, first come first, and all who will (one-shot). Callable from any thread,
  // more than once.
  void notify();

  bool notified() const {
    MutexLock lock(mutex_);
    return notified_;
  }

 private:
  struct Node {
    Loop* loop = nullptr;
    std::coroutine_handle<> handle;
    TimerId timer = 0;
    bool linked = false;
    bool timed_out = false;
    Node* prev = nullptr;
    Node* next = nullptr;
  };
  class Awaiter : Node {
   public:
    Awaiter(Waiters& owner, TimeUs deadline) : owner_(owner), deadline_(deadline) {}
    bool await_ready() const { return owner_.notified(); }
    bool await_suspend(std::coroutine_handle<> handle);
    bool await_resume() const { return !timed_out; }

   private:
    Waiters& owner_;
    TimeUs deadline_;
  };

  void unlink(Node& node) LARDER_REQUIRES(mutex_);

  mutable Mutex mutex_;
  bool notified_ LARDER_GUARDED_BY(mutex_) = false;
  Node* head_ LARDER_GUARDED_BY(mutex_) = nullptr;
};

// Owns coroutines that nobody awaits: a load that goes on after its reader left, a feed. Nothing in
// Larder runs outside a group, and every group is joined before what its tasks use goes away.
//
// Thread-safe. A task starts at once on the calling loop and stays on it (unless it moves).
class TaskGroup {
 public:
  TaskGroup() = default;
  ~TaskGroup();  // REQUIRES: joined, or nothing was ever spawned
  TaskGroup(const TaskGroup&) = delete;
  TaskGroup& operator=(const TaskGroup&) = delete;

  // Runs `task` until its first suspension, keeps it until its end. False (and the task is dropped
  // unstarted) after stop().
  bool spawn(Task<void> task);

  // Asks the tasks to end: stopping() turns true, sleeps in this group end at once.
  void stop();
  bool stopping() const { return stop_.notified(); }

  // Sleeps on the current loop until `at`, or until stop(). True if the group is stopping.
  auto sleep_until(TimeUs at) { return stop_.wait_until(at); }

  // Ends when all tasks have ended. Call stop() before. One caller.
  Task<void> join();

  std::size_t running() const;

 private:
  struct Driver;
  Driver drive(Task<void> task);
  void finished();

  Waiters stop_;
  Waiters idle_;
  mutable Mutex mutex_;
  std::size_t running_ LARDER_GUARDED_BY(mutex_) = 0;
  bool joining_ LARDER_GUARDED_BY(mutex_) = false;
  bool closed_ LARDER_GUARDED_BY(mutex_) = false;
};

// Runs all at once on the current loop, and ends when all have ended.
Task<void> when_all(std::vector<Task<void>> tasks);

// Continues the coroutine on `loop`'s thread.
inline auto resume_on(Loop& loop) {
  struct Awaiter {
    Loop& loop;
    bool await_ready() const { return Loop::current() == &loop; }
    void await_suspend(std::coroutine_handle<> handle) {
      loop.post([handle] { handle.resume(); });
    }
    void await_resume() const {}
  };
  return Awaiter{loop};
}

}  // namespace larder
