#include "net/asio_stream.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <boost/asio/buffer.hpp>
#include <cerrno>
#include <coroutine>

#include "net/asio_loop.h"

namespace larder::net {
namespace {

namespace asio = boost::asio;
using Code = boost::system::error_code;

// One socket operation of a coroutine. Lives in its frame: Asio keeps only a pointer, in memory
// that it recycles, so an operation allocates nothing.
template <class Start>
struct Operation {
  Start start;
  Code code = {};
  std::size_t size = 0;
  std::coroutine_handle<> handle = {};

  struct Handler {
    Operation* self;
    void operator()(const Code& code, std::size_t size = 0) const {
      self->code = code;
      self->size = size;
      self->handle.resume();
    }
  };
  bool await_ready() const { return false; }
  void await_suspend(std::coroutine_handle<> awaiter) {
    handle = awaiter;
    start(Handler{this});
  }
  void await_resume() const {}
};
template <class Start>
Operation(Start) -> Operation<Start>;

class AsioStream final : public Stream {
 public:
  AsioStream(Socket socket, std::string peer)
      : socket_(std::move(socket)), peer_(std::move(peer)) {}

  Task<Result<std::size_t>> read_some(char* buffer, std::size_t size) override {
    if (ended_) co_return std::size_t{0};
    Operation read{[&](auto handler) {
      socket_.async_read_some(asio::buffer(buffer, size), std::move(handler));
    }};
    co_await read;
    if (!read.code) co_return read.size;
    // The end of a connection is no error to a server, in whichever way it came.
    if (ended_ || read.code == asio::error::eof || read.code == asio::error::connection_reset) {
      co_return std::size_t{0};
    }
    co_return failed("read from", read.code.message());
  }

  Result<std::size_t> write_now(std::string_view bytes) override {
    if (ended_) return ended();
    const ssize_t sent = ::send(fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) return static_cast<std::size_t>(sent);
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return std::size_t{0};
    return failed("write to", errno_text(errno));
  }

  Task<Result<void>> write_all(std::string_view bytes) override {
    const auto taken = write_now(bytes);
    if (!taken) co_return std::unexpected(taken.error());
    bytes.remove_prefix(*taken);
    while (!bytes.empty()) {
      Operation write{[&](auto handler) {
        socket_.async_write_some(asio::buffer(bytes.data(), bytes.size()), std::move(handler));
      }};
      co_await write;
      if (ended_) co_return ended();
      if (write.code) co_return failed("write to", write.code.message());
      bytes.remove_prefix(write.size);
    }
    co_return Result<void>();
  }

  void shutdown() override {
    if (std::exchange(ended_, true)) return;
    ::shutdown(fd(), SHUT_RDWR);
    Code ignored;
    socket_.cancel(ignored);
  }

  std::string peer() const override { return peer_; }

  std::string local() const override {
    SocketAddress address;
    if (::getsockname(fd(), address.get(), &address.size) != 0) return "?";
    return to_string(address);
  }

  // Asio declares it non-const, for no reason that matters here.
  int fd() const override { return const_cast<Socket&>(socket_).native_handle(); }

 private:
  std::unexpected<Error> failed(std::string_view what, const std::string& why) const {
    return fail(ErrorCode::io, fmt::format("cannot {} {}: {}", what, peer_, why));
  }
  static std::unexpected<Error> ended() {
    return fail(ErrorCode::cancelled, "the connection was shut down");
  }

  Socket socket_;
  std::string peer_;
  bool ended_ = false;
};

void set_no_delay(int fd, int family) {
  const int on = 1;
  if (family != AF_UNIX) ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

// Asio wants a protocol beside the family, and a Unix socket has none.
asio::generic::stream_protocol protocol_of(int family) {
  return {family, family == AF_UNIX ? 0 : IPPROTO_TCP};
}

}  // namespace

Result<std::unique_ptr<Stream>> adopt_stream(asio::io_context& io, UniqueFd fd,
                                             const SocketAddress& peer) {
  set_no_delay(fd.get(), peer.family());
  Socket socket(io.get_executor());
  Code code;
  socket.assign(protocol_of(peer.family()), fd.get(), code);
  if (code) return fail(ErrorCode::io, fmt::format("{}: {}", to_string(peer), code.message()));
  (void)fd.release();
  return std::make_unique<AsioStream>(std::move(socket), to_string(peer));
}

Task<Result<std::unique_ptr<Stream>>> connect_stream(SocketAddress target, TimeUs deadline) {
  AsioLoop& loop = AsioLoop::here();
  Socket socket(loop.io().get_executor());
  Code code;
  socket.open(protocol_of(target.family()), code);
  if (!code) {
    set_no_delay(socket.native_handle(), target.family());
    bool late = false;
    TimerId timer = 0;
    if (deadline != kNever) {
      timer = loop.call_at(deadline, [&] {
        late = true;
        Code ignored;
        socket.cancel(ignored);
      });
    }
    const asio::generic::stream_protocol::endpoint endpoint(target.get(), target.size);
    Operation connect{[&](auto handler) { socket.async_connect(endpoint, std::move(handler)); }};
    co_await connect;
    loop.cancel(timer);
    code = connect.code;
    if (code && late) {
      co_return fail(ErrorCode::timeout, "no connection to " + to_string(target) + " in time");
    }
  }
  if (code) {
    co_return fail(ErrorCode::io,
                   fmt::format("cannot connect to {}: {}", to_string(target), code.message()));
  }
  co_return std::make_unique<AsioStream>(std::move(socket), to_string(target));
}

}  // namespace larder::net
