// A blocking connection to a node that runs, for the tools and the demo. Used by one thread.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "wire/resp.h"

namespace larder::app {

class Remote {
 public:
  // "host:port" or "unix:/path". Whoever answers nothing for `timeout_s` is an error.
  static Result<Remote> connect(const std::string& address, const std::string& password,
                                int timeout_s);
  Remote(Remote&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), in_(std::move(other.in_)), parsed_(other.parsed_) {}
  Remote& operator=(Remote&&) = delete;
  ~Remote();

  // An error reply is a Reply; an error is one of the connection.
  Result<wire::Reply> call(const std::vector<std::string>& args);
  // Several commands by one write; their replies in order.
  Result<std::vector<wire::Reply>> pipeline(const std::vector<std::vector<std::string>>& commands);

 private:
  explicit Remote(int fd) : fd_(fd) {}
  Result<wire::Reply> receive();

  int fd_;
  std::string in_;
  std::size_t parsed_ = 0;  // bytes of in_ that are answered
};

// A GET of the admin port; the body of a 200.
Result<std::string> admin_get(const std::string& address, const std::string& path, int timeout_s);

}  // namespace larder::app
