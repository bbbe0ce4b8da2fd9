// Addresses as people write them: "127.0.0.1:7379", "[::1]:7379", "*:7379", "name:7379",
// "unix:/path". Plain POSIX, no Asio. Internal to net/.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"

namespace larder::net {

struct SocketAddress {
  sockaddr_storage storage = {};
  socklen_t size = sizeof(sockaddr_storage);

  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  int family() const { return storage.ss_family; }
};

struct Address {
  bool unix_path = false;
  std::string host;  // or the path; without brackets
  std::uint16_t port = 0;
};

// Syntax only. Error: config.
Result<Address> parse_address(std::string_view text);

// False if `host` is a name, which must be looked up.
bool numeric_address(const Address& address, SocketAddress& out);

// "127.0.0.1:53211", "[::1]:53211", "unix:/path" (or "unix:" if it has no name).
std::string to_string(const SocketAddress& address);

// The text of an errno, as Linux has it.
std::string errno_text(int error);

// A file descriptor that closes itself.
class UniqueFd {
 public:
  explicit UniqueFd(int fd = -1) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  ~UniqueFd();

  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_;
};

// Binds and listens, without blocking afterwards. "*" is all addresses of IPv4 and IPv6. A name is
// looked up, which may block: for the start of a program.
Result<UniqueFd> listen_on(const std::string& text, const Address& address);

}  // namespace larder::net
