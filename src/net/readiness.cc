#include "net/readiness.h"

#include <fcntl.h>

#include <boost/asio/posix/basic_stream_descriptor.hpp>
#include <cerrno>
#include <coroutine>

#include "net/address.h"
#include "net/asio_loop.h"

namespace larder::net {
namespace {

namespace asio = boost::asio;
using Code = boost::system::error_code;
using Descriptor = asio::posix::basic_stream_descriptor<asio::io_context::executor_type>;

class AsioReadiness final : public Readiness {
 public:
  explicit AsioReadiness(AsioLoop& loop) : loop_(loop), descriptor_(loop.io().get_executor()) {}

  Code assign(UniqueFd fd) {
    Code code;
    descriptor_.assign(fd.get(), code);
    if (!code) (void)fd.release();
    return code;
  }

  Task<Ready> wait(bool read, bool write, TimeUs deadline) override {
    LARDER_ASSERT(read || write);
    LARDER_ASSERT(Loop::current() == &loop_);
    Waiting waiting(*this, read, write, deadline);
    co_await waiting;
    co_return waiting.ready;
  }

  void cancel() override {
    cancelled_ = true;
    Code ignored;
    descriptor_.cancel(ignored);
  }

  Loop& loop() const override { return loop_; }

 private:
  // Lives in the frame of wait(). Ends when both of Asio's waits have ended: whichever comes first
  // cancels the other.
  struct Waiting {
    Waiting(AsioReadiness& in, bool wants_read, bool wants_write, TimeUs until)
        : owner(in), read(wants_read), write(wants_write), deadline(until) {}

    bool await_ready() {
      ready.cancelled = owner.cancelled_;
      return ready.cancelled;
    }
    void await_suspend(std::coroutine_handle<> resume) {
      handle = resume;
      if (deadline != kNever) timer = owner.loop_.call_at(deadline, [this] { end(); });
      // Asio arms by modifying the descriptor in the epoll set, which reports anew what is ready
      // already: that it waits for edges is nothing to the library that reads.
      if (read) start(Descriptor::wait_read, ready.readable);
      if (write) start(Descriptor::wait_write, ready.writable);
    }
    void await_resume() {}

    void start(Descriptor::wait_type type, bool& flag) {
      ++pending;
      owner.descriptor_.async_wait(type, [this, &flag](const Code& code) {
        if (code != asio::error::operation_aborted) flag = true;
        if (--pending > 0) return end();
        owner.loop_.cancel(timer);
        if (owner.cancelled_) ready.cancelled = true;
        handle.resume();
      });
    }
    void end() {
      Code ignored;
      owner.descriptor_.cancel(ignored);
    }

    AsioReadiness& owner;
    bool read, write;
    TimeUs deadline;
    Ready ready = {};
    int pending = 0;
    TimerId timer = 0;
    std::coroutine_handle<> handle = {};
  };

  AsioLoop& loop_;
  Descriptor descriptor_;
  bool cancelled_ = false;
};

}  // namespace

Result<std::unique_ptr<Readiness>> Readiness::open(int fd) {
  AsioLoop& loop = AsioLoop::here();
  UniqueFd duplicate(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (duplicate.get() < 0)
    return fail(ErrorCode::io, "cannot duplicate a descriptor: " + errno_text(errno));
  auto made = std::make_unique<AsioReadiness>(loop);
  if (const Code code = made->assign(std::move(duplicate)))
    return fail(ErrorCode::io, "cannot wait for a descriptor: " + code.message());
  return std::unique_ptr<Readiness>(std::move(made));
}

}  // namespace larder::net
