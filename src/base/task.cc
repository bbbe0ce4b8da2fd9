#include "base/task.h"

namespace larder {

Waiters::~Waiters() {
  MutexLock lock(mutex_);
  LARDER_ASSERT(head_ == nullptr);
}

void Waiters::unlink(Node& node) {
  if (node.prev)
    node.prev->next = node.next;
  else
    head_ = node.next;
  if (node.next) node.next->prev = node.prev;
  node.prev = node.next = nullptr;
  node.linked = false;
}

bool Waiters::Awaiter::await_suspend(std::coroutine_handle<> resume) {
  loop = Loop::current();
  LARDER_ASSERT(loop != nullptr);
  handle = resume;
  // The timer first: once linked, another thread may resume and end this coroutine's wait. Its
  // resumption is posted to this very thread, so it cannot overtake the lines below.
  if (deadline_ != kNever) {
    timer = loop->call_at(deadline_, [this] {
      {
        MutexLock lock(owner_.mutex_);
        if (!linked) return;  // notified already: its resumption is on the way
        owner_.unlink(*this);
      }
      timer = 0;
      timed_out = true;
      handle.resume();
    });
  }
  {
    MutexLock lock(owner_.mutex_);
    if (!owner_.notified_) {
      linked = true;
      next = owner_.head_;
      if (next) next->prev = this;
      owner_.head_ = this;
      return true;
    }
  }
  loop->cancel(timer);
  return false;
}

void Waiters::notify() {
  Node* node = nullptr;
  {
    MutexLock lock(mutex_);
    notified_ = true;
    // Unlinked nodes stay alive until their posted resumption runs: only that ends their wait. The
    // list is newest first; it is turned round, so that who waited first resumes first.
    for (Node* n = std::exchange(head_, nullptr); n;) {
      n->linked = false;
      Node* const newer = std::exchange(node, n);
      n = std::exchange(n->next, newer);
    }
  }
  while (node) {
    Node* const current = std::exchange(node, node->next);
    current->loop->post([current] {
      current->loop->cancel(current->timer);
      current->handle.resume();
    });
  }
}

// The frame that owns a spawned task. It destroys itself at its end.
struct TaskGroup::Driver {
  struct promise_type {
    Driver get_return_object() {
      return {std::coroutine_handle<promise_type>::from_promise(*this)};
    }
    std::suspend_always initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() {}
    [[noreturn]] void unhandled_exception() noexcept { std::terminate(); }
  };
  std::coroutine_handle<promise_type> handle;
};

TaskGroup::~TaskGroup() {
  MutexLock lock(mutex_);
  LARDER_ASSERT(running_ == 0);
}

TaskGroup::Driver TaskGroup::drive(Task<void> task) {
  {
    Task<void> owned = std::move(task);
    co_await owned;
  }  // the task's frame goes before the group hears of its end
  finished();
}

bool TaskGroup::spawn(Task<void> task) {
  {
    MutexLock lock(mutex_);
    if (closed_) return false;
    ++running_;
  }
  drive(std::move(task)).handle.resume();
  return true;
}

void TaskGroup::finished() {
  // Notify under the lock: join() takes it once more, so the group outlives this call.
  MutexLock lock(mutex_);
  if (--running_ == 0 && joining_) idle_.notify();
}

void TaskGroup::stop() {
  {
    MutexLock lock(mutex_);
    closed_ = true;
  }
  stop_.notify();
}

Task<void> TaskGroup::join() {
  {
    MutexLock lock(mutex_);
    joining_ = true;
    if (running_ == 0) idle_.notify();
  }
  co_await idle_.wait();
  MutexLock lock(mutex_);
}

std::size_t TaskGroup::running() const {
  MutexLock lock(mutex_);
  return running_;
}

Task<void> when_all(std::vector<Task<void>> tasks) {
  TaskGroup group;
  for (Task<void>& task : tasks) group.spawn(std::move(task));
  group.stop();
  co_await group.join();
}

}  // namespace larder
