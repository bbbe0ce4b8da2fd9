// Where coroutines run. net/ implements it on Asio, tests/sim on a virtual clock; everything
// between knows only this.
#pragma once

#include <cstdint>
#include <functional>

#include "base/clock.h"

namespace larder {

using Callback = std::move_only_function<void()>;
using TimerId = std::uint64_t;  // 0 = no timer

class Loop {
 public:
  virtual ~Loop() = default;

  // Runs `callback` on this loop's thread, later, in the order of posting. Thread-safe.
  virtual void post(Callback callback) = 0;

  // Runs `callback` on this loop's thread at or after `at`. Only from this loop's thread.
  virtual TimerId call_at(TimeUs at, Callback callback) = 0;

  // After this returns the callback will not run. Only from this loop's thread; an id that already
  // ran, and 0, are ignored.
  virtual void cancel(TimerId timer) = 0;

  // Thread-safe.
  virtual TimeUs now_us() const = 0;

  // The loop that runs the calling code; null outside of any.
  static Loop* current() { return current_; }

 protected:
  // Implementations set it for as long as they run callbacks.
  static void set_current(Loop* loop) { current_ = loop; }

 private:
  static inline thread_local Loop* current_ = nullptr;
};

}  // namespace larder
