// A blocking RESP client for the tools and the demo.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "wire/resp.h"

namespace larder::app {

// One connection; used by one thread. Errors: io (not reachable, closed, silent for `timeout_ms`).
class RespClient {
 public:
  // "host:port" or "unix:/path".
  static Result<RespClient> connect(const std::string& address, int timeout_ms = 10'000);
  RespClient(RespClient&& other) noexcept;
  RespClient& operator=(RespClient&&) = delete;
  ~RespClient();

  Result<wire::Reply> call(const std::vector<std::string>& args);

  // Several commands at once: one write, then their replies in order.
  Result<std::vector<wire::Reply>> pipeline(const std::vector<std::vector<std::string>>& commands);

 private:
  explicit RespClient(int fd) : fd_(fd) {}
  Result<void> send(std::string_view bytes);
  Result<wire::Reply> receive();

  int fd_;
  std::string in_;
  std::size_t parsed_ = 0;  // bytes of in_ that are answered
};

}  // namespace larder::app
