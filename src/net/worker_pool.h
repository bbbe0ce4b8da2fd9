// Threads for work that blocks (SQLite, files), with a bounded queue.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/task.h"

namespace larder::net {

// Thread-safe. Each thread has an index, so that it can own a resource (a connection).
class WorkerPool {
 public:
  using Job = std::move_only_function<void(unsigned thread_index)>;

  WorkerPool(unsigned threads, std::size_t queue_limit, std::string name);
  ~WorkerPool();  // finishes what is queued, then joins

  // Runs `job` on a thread of the pool, resumes the caller on its loop afterwards. False: the queue
  // is at its limit, the job was not taken.
  auto run(Job job) { return Awaiter{*this, std::move(job)}; }

  std::size_t queued() const;
  unsigned threads() const { return static_cast<unsigned>(threads_.size()); }

 private:
  struct Awaiter {
    WorkerPool& pool;
    Job job;
    bool accepted = false;
    bool await_ready() const { return false; }
    bool await_suspend(std::coroutine_handle<> handle);
    bool await_resume() const { return accepted; }
  };
  bool push(Job job);
  void work(unsigned index);

  const std::size_t limit_;
  mutable std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Job> queue_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace larder::net
