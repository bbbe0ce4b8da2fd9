// Waits until a descriptor that a foreign library reads and writes is ready: libpq and libmariadb
// bring their own protocol and TLS, and only have to be told when to go on.
#pragma once

#include <memory>

#include "base/clock.h"
#include "base/error.h"
#include "base/loop.h"
#include "base/task.h"

namespace larder::net {

// Bound to the loop on which it was opened. All calls from that loop; the destructor from there
// too, or when the loop does not run any more. It holds a duplicate of the descriptor, so that the
// library may close its own whenever it likes; when the library comes with another one (as libpq
// does while it connects), open another Readiness.
class Readiness {
 public:
  struct Ready {
    bool readable = false;  // or at its end, or broken: reading will tell
    bool writable = false;
    bool cancelled = false;  // cancel() was called
    // None of them: the deadline has passed.
    bool timed_out() const { return !readable && !writable && !cancelled; }
  };

  // `fd` stays the caller's. Errors (io): the kernel takes no more. REQUIRES: the current loop is
  // one of net::Runtime.
  static Result<std::unique_ptr<Readiness>> open(int fd);
  virtual ~Readiness() = default;  // REQUIRES: no wait is pending

  // Suspends until one of what is asked for is the case, the deadline passes, or cancel(). What is
  // ready already ends the wait at once, also if it was so before and nothing was read. One wait
  // at a time. REQUIRES: read or write. Cost: one system call for each direction.
  virtual Task<Ready> wait(bool read, bool write, TimeUs deadline) = 0;

  // Ends the pending wait and every later one. Callable more than once.
  virtual void cancel() = 0;

  virtual Loop& loop() const = 0;

 protected:
  Readiness() = default;
};

}  // namespace larder::net
