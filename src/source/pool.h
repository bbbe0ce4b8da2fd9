// A bounded pool of connections, whatever they connect to.
//
// A connection lives on the loop on which it was opened, and whoever takes one goes there. Who
// takes one prefers those of his own loop, then a new one, then those of other loops; when all are
// taken, he waits in order of arrival, in a queue with a bound, until his deadline.
//
// When no connection can be had, those who come fail at once with the last error, and one at a time
// tries again, with growing pauses: a server that is down costs its readers no time, and is not
// flooded when it comes back.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/random.h"
#include "base/sync.h"
#include "base/task.h"
#include "resilience/backoff.h"

namespace larder::source {

// C is a connection:
//   Loop& loop() const;   // where it lives: used and destroyed there only
//   bool broken() const;  // good for nothing more
//   bool stale();         // the same, found out by looking at it; on its loop, does not block
//
// Thread-safe. The pool outlives every lease and every take().
template <class C>
class Pool {
 public:
  struct Options {
    std::string name;          // of the source, for messages
    std::size_t most = 8;      // connections
    std::size_t queue = 1024;  // who may wait for one; beyond: overloaded
    resilience::BackoffLimits backoff = {};
    std::uint64_t seed = 0;
  };
  // Opens a connection on the current loop. Outlives the pool's use.
  using Open = std::function<Task<Result<std::unique_ptr<C>>>(TimeUs deadline)>;

  // A connection that is one's own for a while. Goes back when this goes, on any thread.
  class Lease {
   public:
    Lease() = default;
    Lease(Pool& pool, std::unique_ptr<C> connection)
        : pool_(&pool), connection_(std::move(connection)) {}
    Lease(Lease&& other) noexcept = default;
    Lease& operator=(Lease&& other) noexcept {
      if (this != &other) {
        give_back();
        pool_ = other.pool_;
        connection_ = std::move(other.connection_);
      }
      return *this;
    }
    ~Lease() { give_back(); }

    C* operator->() const { return connection_.get(); }
    C& operator*() const { return *connection_; }
    explicit operator bool() const { return connection_ != nullptr; }
    void give_back() {
      if (connection_) pool_->give_back(std::move(connection_));
    }

   private:
    Pool* pool_ = nullptr;
    std::unique_ptr<C> connection_;
  };

  Pool(Options options, Open open)
      : options_(std::move(options)),
        open_(std::move(open)),
        backoff_(options_.backoff),
        random_(options_.seed) {}

  ~Pool() {
    MutexLock lock(mutex_);
    LARDER_ASSERT(waiting_.empty() && total_ == idle_.size());
    for (auto& connection : idle_) dispose(std::move(connection));
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Suspends. Resumes on the loop of the connection, or, with an error, on that of the caller.
  // Errors: timeout (none was free in time), overloaded, and whatever Open gives.
  Task<Result<Lease>> take(TimeUs deadline) {
    Loop* const home = Loop::current();
    for (;;) {
      auto got = co_await get(*home, deadline);
      if (!got) co_return std::unexpected(got.error());
      std::unique_ptr<C> connection = std::move(*got);
      if (!connection) {
        auto opened = co_await open(deadline);
        if (!opened) co_return std::unexpected(opened.error());
        co_return Lease(*this, std::move(*opened));
      }
      co_await resume_on(connection->loop());
      if (!connection->stale()) co_return Lease(*this, std::move(connection));
      give_back(std::move(connection));
      co_await resume_on(*home);
    }
  }

  std::size_t open_connections() const {
    MutexLock lock(mutex_);
    return total_;
  }
  std::size_t idle_connections() const {
    MutexLock lock(mutex_);
    return idle_.size();
  }
  std::size_t waiting() const {
    MutexLock lock(mutex_);
    return waiting_.size();
  }

 private:
  // Stands in the queue; lives in a coroutine's frame. One of the three is what it waits for.
  struct Waiter {
    Waiters event;
    std::unique_ptr<C> connection;
    bool slot = false;  // it may open one
    std::optional<Error> error;
    bool served() const { return connection || slot || error; }
  };

  // A connection, or null: the right to open one.
  Task<Result<std::unique_ptr<C>>> get(Loop& home, TimeUs deadline) {
    Waiter waiter;
    typename std::list<Waiter*>::iterator place;
    {
      MutexLock lock(mutex_);
      const TimeUs now = home.now_us();
      if (now >= deadline) co_return fail(ErrorCode::timeout, late());
      if (auto own = idle_of(&home)) co_return own;
      if (total_ < options_.most && may_open(now)) {
        begin_opening();
        co_return std::unique_ptr<C>();
      }
      if (auto other = idle_of(nullptr)) co_return other;
      if (down_ && total_ == (trying_ ? 1U : 0U)) co_return std::unexpected(*down_);
      if (waiting_.size() >= options_.queue)
        co_return fail(ErrorCode::overloaded,
                       fmt::format("source \"{}\": {} wait already for one of its {} connections; "
                                   "raise its pool or queue, or lower the load",
                                   options_.name, waiting_.size(), options_.most));
      place = waiting_.insert(waiting_.end(), &waiter);
    }
    co_await waiter.event.wait_until(deadline);
    {
      MutexLock lock(mutex_);
      if (!waiter.served()) {
        waiting_.erase(place);
        co_return fail(ErrorCode::timeout, late());
      }
    }
    if (waiter.error) co_return std::unexpected(std::move(*waiter.error));
    co_return std::move(waiter.connection);
  }

  Task<Result<std::unique_ptr<C>>> open(TimeUs deadline) {
    auto opened = co_await open_(deadline);
    {
      MutexLock lock(mutex_);
      trying_ = false;
      if (opened) {
        down_.reset();
        backoff_.reset();
      } else {
        --total_;
        // A caller who had no time left says nothing about the server; but neither is it known to
        // be well, and so the next one waits a little too.
        retry_at_ = monotonic_now_us() + backoff_.next(random_);
        down_ = opened.error();
      }
      serve_waiters();
    }
    co_return opened;
  }

  void give_back(std::unique_ptr<C> connection) {
    std::unique_ptr<C> dead;
    {
      MutexLock lock(mutex_);
      dead = accept(std::move(connection));
      serve_waiters();
    }
    if (dead) dispose(std::move(dead));
  }

  // Gives back what is to be closed.
  std::unique_ptr<C> accept(std::unique_ptr<C> connection) LARDER_REQUIRES(mutex_) {
    if (connection->broken()) {
      --total_;
      return connection;
    }
    if (waiting_.empty()) {
      idle_.push_back(std::move(connection));
    } else {
      Waiter& first = next_waiter();
      first.connection = std::move(connection);
      first.event.notify();  // under the lock: so the waiter is still there
    }
    return nullptr;
  }

  // Whoever may open a connection now is told so; if there are none and none can be had, all are.
  void serve_waiters() LARDER_REQUIRES(mutex_) {
    const TimeUs now = monotonic_now_us();
    while (!waiting_.empty() && total_ < options_.most && may_open(now)) {
      begin_opening();
      Waiter& first = next_waiter();
      first.slot = true;
      first.event.notify();
    }
    if (!down_ || total_ > 0) return;
    while (!waiting_.empty()) {
      Waiter& first = next_waiter();
      first.error = *down_;
      first.event.notify();
    }
  }

  bool may_open(TimeUs now) const LARDER_REQUIRES(mutex_) {
    return !down_ || (!trying_ && now >= retry_at_);
  }
  void begin_opening() LARDER_REQUIRES(mutex_) {
    ++total_;
    if (down_) trying_ = true;
  }
  Waiter& next_waiter() LARDER_REQUIRES(mutex_) {
    Waiter& first = *waiting_.front();
    waiting_.pop_front();
    return first;
  }
  // The one that was used last: the others may grow old and be closed by the server. Null: any.
  std::unique_ptr<C> idle_of(const Loop* loop) LARDER_REQUIRES(mutex_) {
    for (auto at = idle_.rbegin(); at != idle_.rend(); ++at) {
      if (loop && &(*at)->loop() != loop) continue;
      std::unique_ptr<C> found = std::move(*at);
      idle_.erase(std::next(at).base());
      return found;
    }
    return nullptr;
  }
  std::string late() const {
    return fmt::format(
        "source \"{}\": none of its {} connections was free before the deadline; "
        "raise its pool",
        options_.name, options_.most);
  }
  // On its loop; if that runs no more, with what is left in its queue.
  static void dispose(std::unique_ptr<C> connection) {
    Loop& loop = connection->loop();
    if (Loop::current() != &loop) loop.post([connection = std::move(connection)] {});
  }

  const Options options_;
  const Open open_;
  mutable Mutex mutex_;
  std::size_t total_ LARDER_GUARDED_BY(mutex_) = 0;  // idle, leased, and being opened
  std::vector<std::unique_ptr<C>> idle_ LARDER_GUARDED_BY(mutex_);
  std::list<Waiter*> waiting_ LARDER_GUARDED_BY(mutex_);
  std::optional<Error> down_ LARDER_GUARDED_BY(mutex_);  // why the last one could not be opened
  bool trying_ LARDER_GUARDED_BY(mutex_) = false;        // somebody finds out whether it still is
  TimeUs retry_at_ LARDER_GUARDED_BY(mutex_) = 0;
  resilience::Backoff backoff_ LARDER_GUARDED_BY(mutex_);
  Random random_ LARDER_GUARDED_BY(mutex_);
};

}  // namespace larder::source
