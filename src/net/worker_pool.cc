#include "net/worker_pool.h"

#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>

namespace larder::net {

WorkerPool::WorkerPool(unsigned threads, std::size_t queue_limit, std::string name)
    : limit_(queue_limit) {
  for (unsigned i = 0; i < std::max(1u, threads); ++i) {
    threads_.emplace_back([this, i] { work(i); });
    // The kernel keeps 15 characters; the index must be among them.
    const std::string title = fmt::format("{:.11}-{}", name, i).substr(0, 15);
    ::pthread_setname_np(threads_.back().native_handle(), title.c_str());
  }
}

WorkerPool::~WorkerPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  ready_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool WorkerPool::push(Job job) {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_ || queue_.size() >= limit_) return false;
    queue_.push_back(std::move(job));
  }
  ready_.notify_one();
  return true;
}

void WorkerPool::work(unsigned index) {
  for (;;) {
    Job job;
    {
      std::unique_lock lock(mutex_);
      ready_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      job = std::move(queue_.front());
      queue_.pop_front();
    }
    job(index);
  }
}

std::size_t WorkerPool::queued() const {
  const std::lock_guard lock(mutex_);
  return queue_.size();
}

bool WorkerPool::Awaiter::await_suspend(std::coroutine_handle<> handle) {
  Loop* const home = Loop::current();
  LARDER_ASSERT(home != nullptr);
  // Before push(): the job may run, though not resume us, before it returns.
  accepted = true;
  const bool pushed = pool.push([this, home, handle](unsigned index) {
    job(index);
    home->post([handle] { handle.resume(); });
  });
  if (!pushed) accepted = false;
  return pushed;
}

}  // namespace larder::net
