#include "resp_client.h"

#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace larder::app {
namespace {

std::unexpected<Error> unreachable(const std::string& address, const std::string& why) {
  return fail(ErrorCode::io,
              fmt::format("cannot reach {}: {}; is `larder serve` running there?", address, why));
}

void set_timeouts(int fd, int timeout_ms) {
  const timeval limit{.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

Result<int> connect_unix(const std::string& address, const std::string& path, int timeout_ms) {
  sockaddr_un where{};
  where.sun_family = AF_UNIX;
  if (path.size() >= sizeof where.sun_path) return unreachable(address, "the path is too long");
  std::memcpy(where.sun_path, path.c_str(), path.size() + 1);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return unreachable(address, std::strerror(errno));
  set_timeouts(fd, timeout_ms);
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&where), sizeof where) == 0) return fd;
  const int reason = errno;
  close(fd);
  return unreachable(address, std::strerror(reason));
}

Result<int> connect_tcp(const std::string& address, int timeout_ms) {
  const std::size_t colon = address.rfind(':');
  if (colon == std::string::npos)
    return unreachable(address, "an address is host:port or unix:/path");
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']')
    host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int why = getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found))
    return unreachable(address, gai_strerror(why));
  int reason = 0;
  for (const addrinfo* each = found; each; each = each->ai_next) {
    const int fd = socket(each->ai_family, each->ai_socktype | SOCK_CLOEXEC, each->ai_protocol);
    if (fd < 0) continue;
    set_timeouts(fd, timeout_ms);
    if (::connect(fd, each->ai_addr, each->ai_addrlen) == 0) {
      freeaddrinfo(found);
      const int on = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      return fd;
    }
    reason = errno;
    close(fd);
  }
  freeaddrinfo(found);
  return unreachable(address, std::strerror(reason));
}

}  // namespace

Result<RespClient> RespClient::connect(const std::string& address, int timeout_ms) {
  Result<int> fd = address.starts_with("unix:")
                       ? connect_unix(address, address.substr(5), timeout_ms)
                       : connect_tcp(address, timeout_ms);
  if (!fd) return std::unexpected(fd.error());
  return RespClient(*fd);
}

RespClient::RespClient(RespClient&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), in_(std::move(other.in_)), parsed_(other.parsed_) {}

RespClient::~RespClient() {
  if (fd_ >= 0) close(fd_);
}

Result<void> RespClient::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return fail(ErrorCode::io, fmt::format("sending: {}", std::strerror(errno)));
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  return {};
}

Result<wire::Reply> RespClient::receive() {
  for (;;) {
    std::size_t consumed = 0;
    std::string error;
    auto reply = wire::parse_reply(std::string_view(in_).substr(parsed_), consumed, error);
    if (!error.empty()) return fail(ErrorCode::io, "the server's answer is not RESP: " + error);
    if (reply) {
      parsed_ += consumed;
      if (parsed_ == in_.size()) in_.clear(), parsed_ = 0;
      return std::move(*reply);
    }
    in_.erase(0, std::exchange(parsed_, 0));
    char buffer[64 << 10];
    const ssize_t n = recv(fd_, buffer, sizeof buffer, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0)
      return fail(ErrorCode::io, fmt::format("waiting for an answer: {}", std::strerror(errno)));
    if (n == 0) return fail(ErrorCode::io, "the server closed the connection");
    in_.append(buffer, static_cast<std::size_t>(n));
  }
}

Result<wire::Reply> RespClient::call(const std::vector<std::string>& args) {
  Result<std::vector<wire::Reply>> replies = pipeline({args});
  if (!replies) return std::unexpected(replies.error());
  return std::move(replies->front());
}

Result<std::vector<wire::Reply>> RespClient::pipeline(
    const std::vector<std::vector<std::string>>& commands) {
  std::string out;
  for (const auto& command : commands) {
    const std::vector<std::string_view> args(command.begin(), command.end());
    wire::write_command(out, args);
  }
  Result<void> sent = send(out);
  if (!sent) return std::unexpected(sent.error());
  std::vector<wire::Reply> replies;
  replies.reserve(commands.size());
  while (replies.size() < commands.size()) {
    Result<wire::Reply> reply = receive();
    if (!reply) return std::unexpected(reply.error());
    replies.push_back(std::move(*reply));
  }
  return replies;
}

}  // namespace larder::app
