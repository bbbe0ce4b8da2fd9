#include "remote.h"

#include <fmt/format.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace larder::app {
namespace {

constexpr std::size_t kMaxAnswer = 256u << 20;

void set_timeout(int fd, int timeout_s) {
  const timeval time{.tv_sec = timeout_s, .tv_usec = 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
}

Result<int> failed(const std::string& address) {
  return fail(ErrorCode::io,
              fmt::format("cannot connect to {}: {}", address, std::strerror(errno)));
}

Result<int> open_unix(const std::string& address, int timeout_s) {
  sockaddr_un to{};
  const std::string path = address.substr(5);
  if (path.size() >= sizeof to.sun_path) return fail(ErrorCode::io, "path too long: " + path);
  to.sun_family = AF_UNIX;
  std::memcpy(to.sun_path, path.c_str(), path.size() + 1);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return failed(address);
  set_timeout(fd, timeout_s);
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0) return fd;
  close(fd);
  return failed(address);
}

Result<int> open_socket(const std::string& address, int timeout_s) {
  if (address.starts_with("unix:")) return open_unix(address, timeout_s);
  const std::size_t colon = address.rfind(':');
  if (colon == std::string::npos)
    return fail(ErrorCode::syntax, fmt::format("'{}' is no host:port", address));
  std::string host = address.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int code = getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found))
    return fail(ErrorCode::io, fmt::format("{}: {}", address, gai_strerror(code)));
  int fd = -1;
  for (const addrinfo* a = found; a != nullptr && fd < 0; a = a->ai_next) {
    fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
    if (fd < 0) continue;
    set_timeout(fd, timeout_s);
    if (::connect(fd, a->ai_addr, a->ai_addrlen) != 0) {
      close(fd);
      fd = -1;
    }
  }
  freeaddrinfo(found);
  if (fd < 0) return failed(address);
  return fd;
}

Result<void> send_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) return fail(ErrorCode::io, fmt::format("cannot send: {}", std::strerror(errno)));
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  return {};
}

// False: the other side has closed.
Result<bool> receive_more(int fd, std::string& buffer) {
  char chunk[16 << 10];
  const ssize_t n = recv(fd, chunk, sizeof chunk, 0);
  if (n < 0) return fail(ErrorCode::io, fmt::format("no answer: {}", std::strerror(errno)));
  if (buffer.size() + static_cast<std::size_t>(n) > kMaxAnswer)
    return fail(ErrorCode::io, "the answer is too long");
  buffer.append(chunk, static_cast<std::size_t>(n));
  return n > 0;
}

}  // namespace

Result<Remote> Remote::connect(const std::string& address, const std::string& password,
                               int timeout_s) {
  const auto fd = open_socket(address, timeout_s);
  if (!fd) return std::unexpected(fd.error());
  Remote remote(*fd);
  if (password.empty()) return remote;
  const auto reply = remote.call({"AUTH", password});
  if (!reply) return std::unexpected(reply.error());
  if (reply->type == wire::Reply::Type::error) return fail(ErrorCode::io, reply->text);
  return remote;
}

Remote::~Remote() {
  if (fd_ >= 0) close(fd_);
}

Result<wire::Reply> Remote::receive() {
  for (;;) {
    std::size_t consumed = 0;
    std::string problem;
    auto reply = wire::parse_reply(std::string_view(in_).substr(parsed_), consumed, problem);
    if (!problem.empty()) return fail(ErrorCode::io, problem);
    if (reply) {
      parsed_ += consumed;
      return std::move(*reply);
    }
    in_.erase(0, std::exchange(parsed_, 0));
    const auto more = receive_more(fd_, in_);
    if (!more) return std::unexpected(more.error());
    if (!*more) return fail(ErrorCode::io, "the node has closed the connection");
  }
}

Result<wire::Reply> Remote::call(const std::vector<std::string>& args) {
  auto replies = pipeline({args});
  if (!replies) return std::unexpected(replies.error());
  return std::move(replies->front());
}

Result<std::vector<wire::Reply>> Remote::pipeline(
    const std::vector<std::vector<std::string>>& commands) {
  std::string out;
  for (const auto& command : commands) {
    const std::vector<std::string_view> args(command.begin(), command.end());
    wire::write_command(out, args);
  }
  if (auto sent = send_all(fd_, out); !sent) return std::unexpected(sent.error());
  std::vector<wire::Reply> replies;
  replies.reserve(commands.size());
  while (replies.size() < commands.size()) {
    auto reply = receive();
    if (!reply) return std::unexpected(reply.error());
    replies.push_back(std::move(*reply));
  }
  return replies;
}

Result<std::string> admin_get(const std::string& address, const std::string& path, int timeout_s) {
  const auto fd = open_socket(address, timeout_s);
  if (!fd) return std::unexpected(fd.error());
  std::string answer;
  Result<void> sent = send_all(
      *fd, fmt::format("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", path, address));
  while (sent) {
    const auto more = receive_more(*fd, answer);
    if (!more) sent = std::unexpected(more.error());
    if (!more || !*more) break;
  }
  close(*fd);
  if (!sent) return std::unexpected(sent.error());
  const std::size_t body = answer.find("\r\n\r\n");
  if (body == std::string::npos || !answer.starts_with("HTTP/1.1 200"))
    return fail(ErrorCode::io,
                fmt::format("{} answers '{}'", address, answer.substr(0, answer.find("\r\n"))));
  return answer.substr(body + 4);
}

}  // namespace larder::app
