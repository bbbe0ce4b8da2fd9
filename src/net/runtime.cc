#include "net/runtime.h"

#include <fmt/format.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/posix/basic_stream_descriptor.hpp>
#include <boost/asio/signal_set.hpp>
#include <cerrno>
#include <csignal>
#include <thread>

#include "base/sync.h"
#include "net/address.h"
#include "net/asio_loop.h"
#include "net/asio_stream.h"
#include "net/lookup.h"

namespace larder::net {
namespace {

namespace asio = boost::asio;
using Code = boost::system::error_code;
using Accept = std::function<Task<void>(std::unique_ptr<Stream>)>;

constexpr int kAcceptBatch = 64;
constexpr DurationUs kAcceptPause = 100 * kMillisecond;

struct Listener {
  Listener(AsioLoop& loop, TaskGroup& tasks) : waiter(loop.io().get_executor()), group(tasks) {}

  // Waits for the listening socket to be readable; accept4() does the rest.
  asio::posix::basic_stream_descriptor<asio::io_context::executor_type> waiter;
  TaskGroup& group;
  Accept accept;
  std::size_t max_connections = 0;
  std::string refusal;
  std::string unix_path;  // to be removed at the end, if it is still this file
  dev_t device = 0;
  ino_t inode = 0;
  std::atomic<std::size_t> connections = 0;
  bool closed = false;  // loop 0 only, like everything above but `connections`
};

// Counts a connection for as long as it lives.
class Seat {
 public:
  Seat(std::shared_ptr<Listener> listener, AsioLoop& loop)
      : listener_(std::move(listener)), loop_(&loop) {
    ++listener_->connections;
    ++loop_->connections();
  }
  Seat(Seat&&) noexcept = default;
  Seat& operator=(Seat&&) = delete;
  ~Seat() {
    if (!listener_) return;
    --listener_->connections;
    --loop_->connections();
  }
  Listener& listener() const { return *listener_; }
  AsioLoop& loop() const { return *loop_; }

 private:
  std::shared_ptr<Listener> listener_;
  AsioLoop* loop_;
};

// Begins on loop 0, inside the group, and then moves to its loop: on the way it is already counted
// by the group, which therefore cannot be joined before.
Task<void> serve_connection(Seat seat, UniqueFd fd, SocketAddress peer) {
  AsioLoop& loop = seat.loop();
  co_await resume_on(loop);
  if (seat.listener().group.stopping()) co_return;
  auto stream = adopt_stream(loop.io(), std::move(fd), peer);
  if (!stream) co_return;
  Task<void> task = seat.listener().accept(std::move(*stream));
  co_await task;
}

// Says why, as well as can be without waiting.
void refuse(const UniqueFd& fd, const std::string& refusal) {
  (void)::send(fd.get(), refusal.data(), refusal.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  (void)::shutdown(fd.get(), SHUT_WR);
  // Unread input would turn the close into a reset, which may overtake the text.
  char ignored[4096];
  (void)::recv(fd.get(), ignored, sizeof ignored, MSG_DONTWAIT);
}

class AsioRuntime final : public Runtime {
 public:
  explicit AsioRuntime(unsigned threads) {
    for (unsigned i = 0; i < threads; ++i) loops_.push_back(std::make_unique<AsioLoop>());
  }

  ~AsioRuntime() override { AsioRuntime::stop_listening(); }

  unsigned size() const override { return static_cast<unsigned>(loops_.size()); }
  Loop& loop(unsigned index) override { return *loops_[index]; }

  void run() override;
  void stop() override {
    for (const auto& loop : loops_) loop->stop();
  }

  void on_signal(std::function<void(int)> handler) override;

  Result<std::string> listen(const std::string& address, TaskGroup& group, Accept accept,
                             std::size_t max_connections, std::string refusal) override;
  void stop_listening() override;
  std::size_t connections() const override;

  Task<Result<std::unique_ptr<Stream>>> connect(std::string address, TimeUs deadline) override;

 private:
  void wait_signal();
  void wait_connection(const std::shared_ptr<Listener>& listener);
  void accept_some(const std::shared_ptr<Listener>& listener);
  bool accept_one(const std::shared_ptr<Listener>& listener);
  AsioLoop& least_loaded();

  std::vector<std::unique_ptr<AsioLoop>> loops_;
  std::size_t next_loop_ = 0;
  std::unique_ptr<asio::signal_set> signals_;
  std::function<void(int)> signal_handler_;
  Mutex mutex_;
  std::vector<std::shared_ptr<Listener>> listeners_ LARDER_GUARDED_BY(mutex_);
};

void AsioRuntime::run() {
  std::vector<std::thread> threads;
  for (std::size_t i = 1; i < loops_.size(); ++i) {
    threads.emplace_back([this, i] {
      ::pthread_setname_np(::pthread_self(), fmt::format("loop-{}", i).c_str());
      loops_[i]->run();
    });
  }
  loops_[0]->run();
  for (std::thread& thread : threads) thread.join();
}

void AsioRuntime::on_signal(std::function<void(int)> handler) {
  signal_handler_ = std::move(handler);
  if (signals_) return;
  signals_ = std::make_unique<asio::signal_set>(loops_[0]->io(), SIGINT, SIGTERM);
  wait_signal();
}

void AsioRuntime::wait_signal() {
  signals_->async_wait([this](const Code& code, int signal) {
    if (code) return;
    signal_handler_(signal);
    wait_signal();
  });
}

Result<std::string> AsioRuntime::listen(const std::string& address, TaskGroup& group, Accept accept,
                                        std::size_t max_connections, std::string refusal) {
  const auto parsed = parse_address(address);
  if (!parsed) return std::unexpected(parsed.error());
  auto fd = listen_on(address, *parsed);
  if (!fd) return std::unexpected(fd.error());

  SocketAddress bound;
  if (::getsockname(fd->get(), bound.get(), &bound.size) != 0) {
    return fail(ErrorCode::io, fmt::format("{}: {}", address, errno_text(errno)));
  }
  auto listener = std::make_shared<Listener>(*loops_[0], group);
  listener->accept = std::move(accept);
  listener->max_connections = max_connections;
  listener->refusal = std::move(refusal);
  struct stat status{};
  if (parsed->unix_path && ::stat(parsed->host.c_str(), &status) == 0) {
    listener->unix_path = parsed->host;
    listener->device = status.st_dev;
    listener->inode = status.st_ino;
  }
  Code code;
  listener->waiter.assign(fd->get(), code);
  if (code) return fail(ErrorCode::io, fmt::format("{}: {}", address, code.message()));
  (void)fd->release();
  {
    MutexLock lock(mutex_);
    listeners_.push_back(listener);
  }
  loops_[0]->post([this, listener] { wait_connection(listener); });
  if (parsed->host != "*" || parsed->unix_path) return to_string(bound);
  const std::string name = to_string(bound);
  return "*" + name.substr(name.rfind(':'));
}

void AsioRuntime::stop_listening() {
  std::vector<std::shared_ptr<Listener>> listeners;
  {
    MutexLock lock(mutex_);
    listeners.swap(listeners_);
  }
  for (const auto& listener : listeners) {
    listener->closed = true;
    struct stat status{};
    if (!listener->unix_path.empty() && ::lstat(listener->unix_path.c_str(), &status) == 0 &&
        status.st_dev == listener->device && status.st_ino == listener->inode) {
      ::unlink(listener->unix_path.c_str());
    }
    Code ignored;
    listener->waiter.close(ignored);
  }
}

void AsioRuntime::wait_connection(const std::shared_ptr<Listener>& listener) {
  if (listener->closed) return;
  listener->waiter.async_wait(asio::posix::descriptor_base::wait_read,
                              [this, listener](const Code& code) {
                                if (!code) accept_some(listener);
                              });
}

void AsioRuntime::accept_some(const std::shared_ptr<Listener>& listener) {
  for (int i = 0; i < kAcceptBatch && !listener->closed; ++i) {
    if (accept_one(listener)) continue;
    switch (errno) {
      case EINTR:
      case ECONNABORTED:
      case EPROTO: continue;  // that peer's trouble, not ours
      case EAGAIN: wait_connection(listener); return;
      default:
        // Out of descriptors or memory. The socket stays readable, so waiting for it would spin;
        // and some of our connections will end.
        loops_[0]->call_at(loops_[0]->now_us() + kAcceptPause,
                           [this, listener] { accept_some(listener); });
        return;
    }
  }
  wait_connection(listener);
}

// False with errno if there is no connection.
bool AsioRuntime::accept_one(const std::shared_ptr<Listener>& listener) {
  SocketAddress peer;
  UniqueFd fd(::accept4(listener->waiter.native_handle(), peer.get(), &peer.size,
                        SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!fd) return false;
  if (listener->connections >= listener->max_connections) {
    refuse(fd, listener->refusal);
    return true;
  }
  if (peer.family() == AF_UNIX) {  // clients have no name of their own: show the one they used
    peer.size = sizeof peer.storage;
    (void)::getsockname(fd.get(), peer.get(), &peer.size);
  }
  Seat seat(listener, least_loaded());
  listener->group.spawn(serve_connection(std::move(seat), std::move(fd), peer));
  return true;
}

AsioLoop& AsioRuntime::least_loaded() {
  // Begins elsewhere each time, so that short connections spread too.
  std::size_t best = next_loop_++ % loops_.size();
  for (std::size_t i = 0; i < loops_.size(); ++i) {
    const std::size_t other = (best + 1) % loops_.size();
    if (loops_[other]->connections() < loops_[best]->connections()) best = other;
  }
  return *loops_[best];
}

std::size_t AsioRuntime::connections() const {
  std::size_t sum = 0;
  for (const auto& loop : loops_) sum += loop->connections();
  return sum;
}

Task<Result<std::unique_ptr<Stream>>> AsioRuntime::connect(std::string address, TimeUs deadline) {
  auto parsed = parse_address(address);
  if (!parsed) co_return std::unexpected(parsed.error());
  std::vector<SocketAddress> targets(1);
  if (!numeric_address(*parsed, targets[0])) {
    auto found = co_await look_up(*parsed, deadline);
    if (!found) co_return std::unexpected(found.error());
    targets = std::move(*found);
  }
  Error last{.code = ErrorCode::io, .message = "no address of " + parsed->host};
  for (const SocketAddress& target : targets) {
    auto stream = co_await connect_stream(target, deadline);
    if (stream) co_return stream;
    last = std::move(stream.error());
    if (last.code == ErrorCode::timeout) break;
  }
  co_return std::unexpected(std::move(last));
}

}  // namespace

std::unique_ptr<Runtime> Runtime::create(unsigned threads) {
  if (threads == 0) threads = std::max(1u, std::thread::hardware_concurrency());
  return std::make_unique<AsioRuntime>(threads);
}

}  // namespace larder::net
