// Loop on Asio: an io_context for sockets, a queue for what is posted, a heap for timers.
// Internal to net/.
#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <vector>

#include "base/loop.h"
#include "base/sync.h"
#include "net/timers.h"

namespace larder::net {

class AsioLoop final : public Loop {
 public:
  AsioLoop();
  ~AsioLoop() override;

  void post(Callback callback) override;
  TimerId call_at(TimeUs at, Callback callback) override;
  void cancel(TimerId timer) override { timers_.cancel(timer); }
  TimeUs now_us() const override { return monotonic_now_us(); }

  // Runs on the calling thread until stop().
  void run();
  // Thread-safe. What was posted before still runs.
  void stop();

  boost::asio::io_context& io() { return io_; }
  // Connections that were given to this loop and have not ended.
  std::atomic<std::size_t>& connections() { return connections_; }

  // The loop that runs the calling code. REQUIRES: it is one of these.
  static AsioLoop& here();

 private:
  using Executor = boost::asio::io_context::executor_type;

  void drain();
  void arm();
  void fire();

  std::atomic<std::size_t> connections_ = 0;
  // One thread only: Asio then leaves out wake-ups between its own handlers.
  boost::asio::io_context io_{1};
  boost::asio::executor_work_guard<Executor> work_;
  boost::asio::basic_waitable_timer<std::chrono::steady_clock,
                                    boost::asio::wait_traits<std::chrono::steady_clock>, Executor>
      alarm_;
  TimeUs armed_for_ = kNever;
  Timers timers_;

  // Our own queue and not asio::post for each: first in, first out over all threads, and in the
  // steady state no allocation.
  Mutex mutex_;
  std::vector<Callback> posted_ LARDER_GUARDED_BY(mutex_);
  bool scheduled_ LARDER_GUARDED_BY(mutex_) = false;
  std::vector<Callback> draining_;
};

}  // namespace larder::net
