#include "net/asio_stream.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <boost/asio/basic_stream_socket.hpp>
#include <boost/asio/detail/reactor.hpp>
#include <boost/asio/detail/reactor_op.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <cerrno>
#include <coroutine>
#include <cstring>

#include "net/asio_loop.h"

namespace larder::net {
namespace {

namespace asio = boost::asio;
using Code = boost::system::error_code;

namespace detail = asio::detail;

// The wait for one transfer. It lives in the coroutine's frame, so it costs no allocation, and goes
// straight to Asio's reactor, below its sockets: those take a short read for no sign that the
// socket is empty, and so pay for a second recv(), which fails, on every request (measured: strace
// -c). The reason is good: data and FIN may come as one edge, and who believes the short read never
// hears of the end. But Linux can tell (TCP_INQ counts a FIN as one byte), and then both are had.
class Transfer : public detail::reactor_op {
 public:
  Code code() const { return ec_; }
  std::size_t size() const { return bytes_transferred_; }
  bool await_ready() const { return false; }
  void await_resume() const {}

 protected:
  Transfer(int fd, perform_func_type perform)
      : detail::reactor_op(Code(), perform, &Transfer::complete), fd_(fd) {}

  // Sets the result of a system call. True if there is one: else it would have to wait.
  bool finish(ssize_t result) {
    if (result < 0) {
      if (errno == EAGAIN || errno == EWOULDBLOCK) return false;
      ec_ = Code(errno, boost::system::system_category());
    } else {
      bytes_transferred_ = static_cast<std::size_t>(result);
    }
    return true;
  }

  int fd_;
  std::coroutine_handle<> handle_ = {};

 private:
  // `owner` is null when the reactor goes down with the operation pending: then nobody is resumed.
  static void complete(void* owner, detail::operation* base, const Code&, std::size_t) {
    if (owner) static_cast<Transfer*>(base)->handle_.resume();
  }
};

// A socket that is registered with the reactor of a loop.
class Registration {
 public:
  Registration(asio::io_context& io, UniqueFd fd)
      : reactor_(asio::use_service<detail::reactor>(io)), fd_(std::move(fd)) {
    reactor_.init_task();
  }
  ~Registration() {
    if (!registered_) return;
    reactor_.deregister_descriptor(fd_.get(), data_, true);
    reactor_.cleanup_descriptor_data(data_);
  }
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;

  Code open() {
    const int error = reactor_.register_descriptor(fd_.get(), data_);
    registered_ = error == 0;
    return {error, boost::system::system_category()};
  }
  void start(int type, Transfer& operation) {
    reactor_.start_op(type, fd_.get(), data_, &operation, false, true);
  }
  void cancel() { reactor_.cancel_ops(fd_.get(), data_); }
  int fd() const { return fd_.get(); }

 private:
  detail::reactor& reactor_;
  detail::reactor::per_descriptor_data data_ = {};
  UniqueFd fd_;
  bool registered_ = false;
};

class Read : public Transfer {
 public:
  Read(Registration& socket, char* buffer, std::size_t size)
      : Transfer(socket.fd(), &Read::perform), socket_(socket), buffer_{buffer, size} {}

  void await_suspend(std::coroutine_handle<> handle) {
    handle_ = handle;
    socket_.start(detail::reactor::read_op, *this);
  }

 private:
  static status perform(detail::reactor_op* base) {
    auto* const self = static_cast<Read*>(base);
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    msghdr message = {};
    message.msg_iov = &self->buffer_;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    ssize_t result = 0;
    do result = ::recvmsg(self->fd_, &message, 0);
    while (result < 0 && errno == EINTR);
    if (!self->finish(result)) return not_done;
    return result == 0 || drained(message) ? done_and_exhausted : done;
  }

  // True if the kernel says that there is nothing more, not even an end.
  static bool drained(msghdr& message) {
    const cmsghdr* const header = CMSG_FIRSTHDR(&message);
    if (!header || header->cmsg_level != SOL_TCP || header->cmsg_type != TCP_CM_INQ) return false;
    int left = 0;
    std::memcpy(&left, CMSG_DATA(header), sizeof left);
    return left == 0;
  }

  Registration& socket_;
  iovec buffer_;
};

class Write : public Transfer {
 public:
  Write(Registration& socket, std::string_view bytes)
      : Transfer(socket.fd(), &Write::perform), socket_(socket), bytes_(bytes) {}

  void await_suspend(std::coroutine_handle<> handle) {
    handle_ = handle;
    socket_.start(detail::reactor::write_op, *this);
  }

 private:
  static status perform(detail::reactor_op* base) {
    auto* const self = static_cast<Write*>(base);
    ssize_t result = 0;
    do result = ::send(self->fd_, self->bytes_.data(), self->bytes_.size(), MSG_NOSIGNAL);
    while (result < 0 && errno == EINTR);
    if (!self->finish(result)) return not_done;
    // A short write means that the socket is full; room for more is a new edge.
    return self->size() < self->bytes_.size() ? done_and_exhausted : done;
  }

  Registration& socket_;
  std::string_view bytes_;
};

class AsioStream final : public Stream {
 public:
  AsioStream(asio::io_context& io, UniqueFd fd, std::string peer)
      : socket_(io, std::move(fd)), peer_(std::move(peer)) {}

  Code open() { return socket_.open(); }

  Task<Result<std::size_t>> read_some(char* buffer, std::size_t size) override {
    if (ended_) co_return std::size_t{0};
    Read read(socket_, buffer, size);
    co_await read;
    const Code code = read.code();
    if (!code) co_return read.size();
    // The end of a connection is no error to a server, in whichever way it came.
    if (ended_ || code == asio::error::connection_reset) co_return std::size_t{0};
    co_return failed("read from", code.message());
  }

  Result<std::size_t> write_now(std::string_view bytes) override {
    if (ended_) return ended();
    const ssize_t sent = ::send(fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent >= 0) return static_cast<std::size_t>(sent);
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return std::size_t{0};
    return failed("write to", errno_text(errno));
  }

  Task<Result<void>> write_all(std::string_view bytes) override {
    const auto taken = write_now(bytes);
    if (!taken) co_return std::unexpected(taken.error());
    bytes.remove_prefix(*taken);
    while (!bytes.empty()) {
      Write write(socket_, bytes);
      co_await write;
      if (ended_) co_return ended();
      if (write.code()) co_return failed("write to", write.code().message());
      bytes.remove_prefix(write.size());
    }
    co_return Result<void>();
  }

  void shutdown() override {
    if (std::exchange(ended_, true)) return;
    ::shutdown(fd(), SHUT_RDWR);
    socket_.cancel();
  }

  std::string peer() const override { return peer_; }

  std::string local() const override {
    SocketAddress address;
    if (::getsockname(fd(), address.get(), &address.size) != 0) return "?";
    return to_string(address);
  }

  int fd() const override { return socket_.fd(); }

 private:
  std::unexpected<Error> failed(std::string_view what, const std::string& why) const {
    return fail(ErrorCode::io, fmt::format("cannot {} {}: {}", what, peer_, why));
  }
  static std::unexpected<Error> ended() {
    return fail(ErrorCode::cancelled, "the connection was shut down");
  }

  Registration socket_;
  std::string peer_;
  bool ended_ = false;
};

// One connect, which Asio's own socket does; the rest of its life is Registration's.
struct Connect {
  using Socket =
      asio::basic_stream_socket<asio::generic::stream_protocol, asio::io_context::executor_type>;
  Socket& socket;
  asio::generic::stream_protocol::endpoint endpoint;
  Code code = {};

  bool await_ready() const { return false; }
  void await_suspend(std::coroutine_handle<> handle) {
    socket.async_connect(endpoint, [this, handle](const Code& result) {
      code = result;
      handle.resume();
    });
  }
  void await_resume() const {}
};

}  // namespace

Result<std::unique_ptr<Stream>> adopt_stream(asio::io_context& io, UniqueFd fd,
                                             const SocketAddress& peer) {
  if (peer.family() != AF_UNIX) {
    const int on = 1;
    ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    ::setsockopt(fd.get(), IPPROTO_TCP, TCP_INQ, &on, sizeof on);
  }
  auto stream = std::make_unique<AsioStream>(io, std::move(fd), to_string(peer));
  if (const Code code = stream->open()) {
    return fail(ErrorCode::io, fmt::format("{}: {}", to_string(peer), code.message()));
  }
  return stream;
}

Task<Result<std::unique_ptr<Stream>>> connect_stream(SocketAddress target, TimeUs deadline) {
  AsioLoop& loop = AsioLoop::here();
  Connect::Socket socket(loop.io().get_executor());
  Code code;
  // Asio wants a protocol beside the family, and a Unix socket has none.
  socket.open({target.family(), target.family() == AF_UNIX ? 0 : IPPROTO_TCP}, code);
  if (!code) {
    bool late = false;
    TimerId timer = 0;
    if (deadline != kNever) {
      timer = loop.call_at(deadline, [&] {
        late = true;
        Code ignored;
        socket.cancel(ignored);
      });
    }
    Connect connect{.socket = socket, .endpoint = {target.get(), target.size}};
    co_await connect;
    loop.cancel(timer);
    code = connect.code;
    if (code && late) {
      co_return fail(ErrorCode::timeout, "no connection to " + to_string(target) + " in time");
    }
  }
  if (!code) {
    UniqueFd fd(socket.release(code));
    if (!code) {
      ::fcntl(fd.get(), F_SETFL, O_NONBLOCK);
      ::fcntl(fd.get(), F_SETFD, FD_CLOEXEC);
      co_return adopt_stream(loop.io(), std::move(fd), target);
    }
  }
  co_return fail(ErrorCode::io,
                 fmt::format("cannot connect to {}: {}", to_string(target), code.message()));
}

}  // namespace larder::net
