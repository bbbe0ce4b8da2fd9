#include "net/asio_loop.h"

#include <boost/asio/post.hpp>

#include "base/error.h"

namespace larder::net {

AsioLoop::AsioLoop() : work_(io_.get_executor()), alarm_(io_.get_executor()) {}

AsioLoop::~AsioLoop() = default;

AsioLoop& AsioLoop::here() {
  auto* const loop = dynamic_cast<AsioLoop*>(Loop::current());
  LARDER_ASSERT(loop != nullptr);
  return *loop;
}

void AsioLoop::post(Callback callback) {
  {
    MutexLock lock(mutex_);
    posted_.push_back(std::move(callback));
    if (std::exchange(scheduled_, true)) return;
  }
  boost::asio::post(io_, [this] { drain(); });
}

void AsioLoop::drain() {
  {
    MutexLock lock(mutex_);
    draining_.swap(posted_);
    // What these callbacks post waits for the next turn, so that sockets get theirs.
    scheduled_ = false;
  }
  for (Callback& callback : draining_) {
    // Moved out: what the callback owns goes when it has run, not when all have.
    Callback current = std::move(callback);
    current();
  }
  draining_.clear();
}

TimerId AsioLoop::call_at(TimeUs at, Callback callback) {
  const TimerId timer = timers_.add(at, std::move(callback));
  arm();
  return timer;
}

// Moves the alarm forward only. If its timer is cancelled it rings for nothing, once: cheaper than
// a system call for every deadline that is set and, in time, cancelled.
void AsioLoop::arm() {
  const TimeUs next = timers_.next();
  if (next >= armed_for_) return;
  armed_for_ = next;
  const DurationUs delay = std::max<DurationUs>(0, next - now_us());
  alarm_.expires_after(std::chrono::microseconds(std::min(delay, 3'600 * kSecond)));
  alarm_.async_wait([this](const boost::system::error_code& error) {
    if (!error) fire();
  });
}

void AsioLoop::fire() {
  armed_for_ = kNever;
  const TimeUs now = now_us();
  const std::uint64_t mark = timers_.mark();
  for (Callback due = timers_.take_due(now, mark); due; due = timers_.take_due(now, mark)) due();
  arm();
}

void AsioLoop::run() {
  set_current(this);
  io_.restart();
  io_.run();
  set_current(nullptr);
}

void AsioLoop::stop() {
  post([this] { io_.stop(); });
}

}  // namespace larder::net
