#include "source/sqlite/writer_thread.h"

#include <algorithm>
#include <chrono>

#include "base/error.h"

namespace larder::source::sqlite {

WriterThread::WriterThread(std::size_t queue_limit)
    : limit_(queue_limit), thread_([this] { loop(); }) {}

void WriterThread::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  ready_.notify_one();
  if (thread_.joinable()) thread_.join();
}

bool WriterThread::Awaiter::await_suspend(std::coroutine_handle<> resume) {
  loop = Loop::current();
  LARDER_ASSERT(loop != nullptr);
  handle = resume;
  {
    const std::lock_guard lock(thread.mutex_);
    if (turn == Turn::wait && thread.waiting_.size() >= thread.limit_) {
      outcome = Outcome::overloaded;
      return false;
    }
    auto& queue = turn == Turn::now ? thread.now_ : thread.waiting_;
    queue.push_back({std::move(work), turn == Turn::now ? kNever : deadline, this});
    // Under the lock: once it is free, the work may end and the thread's owner go.
    thread.ready_.notify_one();
  }
  return true;
}

void WriterThread::post(Work work) {
  const std::lock_guard lock(mutex_);
  now_.push_back({std::move(work), kNever, nullptr});
  ready_.notify_one();
}

void WriterThread::hold(TimeUs until, Work expired) {
  held_ = true;
  held_until_ = until;
  expired_ = std::move(expired);
}

void WriterThread::release() {
  held_ = false;
  held_until_ = kNever;
}

void WriterThread::later(TimeUs at, Work work) {
  later_at_ = at;
  later_ = std::move(work);
}

void WriterThread::finish(Queued& job, Outcome outcome) {
  job.work = nullptr;  // what it captured may go with the waiter
  if (!job.waiter) return;
  Awaiter* const waiter = job.waiter;
  waiter->outcome = outcome;
  waiter->loop->post([handle = waiter->handle] { handle.resume(); });
}

// Runs what is due, if anything is. The lock is free meanwhile.
bool WriterThread::run_one(std::unique_lock<std::mutex>& lock) {
  const TimeUs now = monotonic_now_us();
  const auto run = [&](std::deque<Queued>& queue) {
    Queued job = std::move(queue.front());
    queue.pop_front();
    lock.unlock();
    const bool late = job.deadline <= now;
    if (!late) job.work();
    finish(job, late ? Outcome::timeout : Outcome::done);
    lock.lock();
    return true;
  };
  const auto run_own = [&](Work& own) {
    Work work = std::exchange(own, nullptr);
    lock.unlock();
    work();
    lock.lock();
    return true;
  };
  if (!now_.empty()) return run(now_);
  if (held_ && (stopping_ || held_until_ <= now)) return run_own(expired_);
  if (held_) return false;
  if (later_at_ <= now) {
    later_at_ = kNever;
    return run_own(later_);
  }
  return !waiting_.empty() && run(waiting_);
}

void WriterThread::expire_waiting(TimeUs now) {
  for (auto job = waiting_.begin(); job != waiting_.end();) {
    if (job->deadline > now) {
      ++job;
      continue;
    }
    finish(*job, Outcome::timeout);
    job = waiting_.erase(job);
  }
}

TimeUs WriterThread::next_event() const {
  TimeUs at = std::min(held_ ? held_until_ : kNever, held_ ? kNever : later_at_);
  for (const Queued& job : waiting_) at = std::min(at, job.deadline);
  return at;
}

void WriterThread::loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    if (run_one(lock)) continue;
    if (stopping_ && !held_ && waiting_.empty()) return;
    const TimeUs now = monotonic_now_us();
    expire_waiting(now);
    const TimeUs at = next_event();
    if (at == kNever) {
      ready_.wait(lock);
    } else {
      ready_.wait_for(lock, std::chrono::microseconds(std::max<DurationUs>(0, at - now)));
    }
  }
}

}  // namespace larder::source::sqlite
