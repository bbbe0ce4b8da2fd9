#include "net/address.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstring>
#include <system_error>

namespace larder::net {
namespace {

constexpr int kBacklog = 1024;

void set_unix(std::string_view path, SocketAddress& out) {
  auto* const address = reinterpret_cast<sockaddr_un*>(&out.storage);
  address->sun_family = AF_UNIX;
  std::memcpy(address->sun_path, path.data(), path.size());
  address->sun_path[path.size()] = '\0';
  out.size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1);
}

UniqueFd open_socket(int family) {
  return UniqueFd(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

std::unexpected<Error> bind_failed(const std::string& text, int error) {
  switch (error) {
    case EADDRINUSE:
      return fail(ErrorCode::io,
                  fmt::format("{} is in use by another process; stop it, or choose another {} in "
                              "[node] listen",
                              text, text.starts_with("unix:") ? "path" : "port"));
    case EADDRNOTAVAIL:
      return fail(ErrorCode::io, fmt::format("{}: this machine has no such address", text));
    case EACCES:
      return fail(ErrorCode::io,
                  fmt::format("{}: permission denied; choose {}", text,
                              text.starts_with("unix:") ? "a folder that may be written"
                                                        : "a port above 1023"));
    default: return fail(ErrorCode::io, fmt::format("{}: {}", text, errno_text(error)));
  }
}

// Removes the socket file of a process that is gone.
Result<void> replace_stale(const std::string& text, const Address& address) {
  struct stat status{};
  if (::lstat(address.host.c_str(), &status) != 0) return {};
  if (!S_ISSOCK(status.st_mode)) {
    return fail(ErrorCode::io,
                fmt::format("{}: there is a file of that name which is not a socket", text));
  }
  SocketAddress target;
  set_unix(address.host, target);
  const UniqueFd probe = open_socket(AF_UNIX);
  if (!probe) return bind_failed(text, errno);
  // Whoever lets us in, or only lets us wait, is alive.
  if (::connect(probe.get(), target.get(), target.size) == 0 || errno == EAGAIN) {
    return bind_failed(text, EADDRINUSE);
  }
  if (errno != ECONNREFUSED) return bind_failed(text, errno);
  if (::unlink(address.host.c_str()) != 0) return bind_failed(text, errno);
  return {};
}

Result<UniqueFd> bind_to(const std::string& text, const SocketAddress& address, bool dual) {
  UniqueFd fd = open_socket(address.family());
  if (!fd) return bind_failed(text, errno);
  const int on = 1;
  const int only_v6 = dual ? 0 : 1;
  if (address.family() != AF_UNIX) {
    ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  }
  if (address.family() == AF_INET6) {
    ::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &only_v6, sizeof only_v6);
  }
  if (::bind(fd.get(), address.get(), address.size) != 0) return bind_failed(text, errno);
  if (::listen(fd.get(), kBacklog) != 0) return bind_failed(text, errno);
  return fd;
}

SocketAddress any_address(int family, std::uint16_t port) {
  SocketAddress out;
  if (family == AF_INET6) {
    auto* const v6 = reinterpret_cast<sockaddr_in6*>(&out.storage);
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    out.size = sizeof *v6;
  } else {
    auto* const v4 = reinterpret_cast<sockaddr_in*>(&out.storage);
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
    out.size = sizeof *v4;
  }
  return out;
}

Result<SocketAddress> look_up(const std::string& text, const Address& address) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const std::string port = std::to_string(address.port);
  const int code = ::getaddrinfo(address.host.c_str(), port.c_str(), &hints, &found);
  if (code != 0) {
    return fail(ErrorCode::io, fmt::format("{}: {}", text, ::gai_strerror(code)));
  }
  SocketAddress out;
  std::memcpy(&out.storage, found->ai_addr, found->ai_addrlen);
  out.size = found->ai_addrlen;
  ::freeaddrinfo(found);
  return out;
}

}  // namespace

UniqueFd& UniqueFd::operator=(UniqueFd&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

UniqueFd::~UniqueFd() {
  if (fd_ >= 0) ::close(fd_);
}

std::string errno_text(int error) { return std::generic_category().message(error); }

Result<Address> parse_address(std::string_view text) {
  Address out;
  if (text.starts_with("unix:")) {
    out.unix_path = true;
    out.host = text.substr(5);
    if (out.host.empty() || out.host.find('\0') != std::string::npos) {
      return fail(ErrorCode::config, fmt::format("'{}': write unix:/path", text));
    }
    if (out.host.size() >= sizeof(sockaddr_un::sun_path)) {
      return fail(ErrorCode::config, fmt::format("'{}': the path of a socket has at most {} bytes",
                                                 text, sizeof(sockaddr_un::sun_path) - 1));
    }
    return out;
  }
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) {
    return fail(ErrorCode::config, fmt::format("'{}' has no port: write host:port", text));
  }
  std::string_view host = text.substr(0, colon);
  const std::string_view port = text.substr(colon + 1);
  const auto [stop, code] = std::from_chars(port.data(), port.data() + port.size(), out.port);
  if (port.empty() || code != std::errc() || stop != port.data() + port.size()) {
    return fail(ErrorCode::config,
                fmt::format("'{}': the port must be a number from 0 to 65535", text));
  }
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find_first_of(":[]") != std::string_view::npos) {
    return fail(ErrorCode::config,
                fmt::format("'{}': write an IPv6 address in brackets, as in [::1]:7379", text));
  }
  if (host.empty() || host.size() > 255) {
    return fail(ErrorCode::config, fmt::format("'{}' has no host: write host:port", text));
  }
  out.host = host;
  return out;
}

bool numeric_address(const Address& address, SocketAddress& out) {
  if (address.unix_path) {
    set_unix(address.host, out);
    return true;
  }
  out = any_address(AF_INET, address.port);
  auto* const v4 = reinterpret_cast<sockaddr_in*>(&out.storage);
  if (::inet_pton(AF_INET, address.host.c_str(), &v4->sin_addr) == 1) return true;
  out = any_address(AF_INET6, address.port);
  auto* const v6 = reinterpret_cast<sockaddr_in6*>(&out.storage);
  return ::inet_pton(AF_INET6, address.host.c_str(), &v6->sin6_addr) == 1;
}

std::string to_string(const SocketAddress& address) {
  char text[INET6_ADDRSTRLEN] = "?";
  switch (address.family()) {
    case AF_UNIX: {
      const auto* const local = reinterpret_cast<const sockaddr_un*>(&address.storage);
      const std::size_t header = offsetof(sockaddr_un, sun_path);
      if (address.size <= header) return "unix:";
      const std::size_t size = ::strnlen(local->sun_path, address.size - header);
      return "unix:" + std::string(local->sun_path, size);
    }
    case AF_INET: {
      const auto* const v4 = reinterpret_cast<const sockaddr_in*>(&address.storage);
      ::inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text);
      return fmt::format("{}:{}", text, ntohs(v4->sin_port));
    }
    case AF_INET6: {
      const auto* const v6 = reinterpret_cast<const sockaddr_in6*>(&address.storage);
      if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr)) {  // an IPv4 peer of a listener on "*"
        ::inet_ntop(AF_INET, v6->sin6_addr.s6_addr + 12, text, sizeof text);
        return fmt::format("{}:{}", text, ntohs(v6->sin6_port));
      }
      ::inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text);
      return fmt::format("[{}]:{}", text, ntohs(v6->sin6_port));
    }
    default: return "?";
  }
}

Result<UniqueFd> listen_on(const std::string& text, const Address& address) {
  if (address.host == "*" && !address.unix_path) {
    auto both = bind_to(text, any_address(AF_INET6, address.port), true);
    // A machine without IPv6 says so at socket() or at bind(); IPv4 then gives the better error.
    if (both) return both;
    return bind_to(text, any_address(AF_INET, address.port), false);
  }
  SocketAddress target;
  if (address.unix_path) {
    const auto replaced = replace_stale(text, address);
    if (!replaced) return std::unexpected(replaced.error());
  }
  if (!numeric_address(address, target)) {
    const auto found = look_up(text, address);
    if (!found) return std::unexpected(found.error());
    target = *found;
  }
  return bind_to(text, target, false);
}

}  // namespace larder::net
