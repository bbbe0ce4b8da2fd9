// Real servers for tests: a redis-server of one's own, and a blocking connection to it.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "wire/resp.h"

extern char** environ;  // NOLINT: POSIX

namespace larder::engine::real {

using Words = std::vector<std::string>;

// LARDER_REDIS_SERVER names another one than the system's, for tests with other versions.
inline std::string find_redis() {
  if (const char* const named = std::getenv("LARDER_REDIS_SERVER")) return named;
  for (const char* folder : {"/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"}) {
    std::string path = std::string(folder) + "/redis-server";
    if (access(path.c_str(), X_OK) == 0) return path;
  }
  return {};
}

// A redis-server of our own, in a folder of its own, on a socket in it.
class RedisServer {
 public:
  explicit RedisServer(const std::string& binary) {
    std::string pattern = (std::filesystem::temp_directory_path() / "larder-redis-XXXXXX").string();
    folder_ = mkdtemp(pattern.data()) != nullptr ? pattern : "";
    const Words words{binary,    "--port",      "0",  "--unixsocket", path(), "--dir",
                      folder_,   "--save",      "",   "--appendonly", "no",   "--loglevel",
                      "warning", "--daemonize", "no", "--logfile",    "log"};
    std::vector<char*> argv;
    for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    if (posix_spawn(&pid_, binary.c_str(), nullptr, nullptr, argv.data(), environ) != 0) pid_ = 0;
  }
  ~RedisServer() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    std::error_code ignored;
    if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
  }
  RedisServer(const RedisServer&) = delete;
  RedisServer& operator=(const RedisServer&) = delete;
  std::string path() const { return folder_ + "/s"; }
  bool running() const { return pid_ > 0 && waitpid(pid_, nullptr, WNOHANG) == 0; }

 private:
  std::string folder_;
  pid_t pid_ = 0;
};

class Connection {
 public:
  explicit Connection(const RedisServer& server) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    server.path().copy(address.sun_path, sizeof(address.sun_path) - 1);
    for (int tries = 0; tries < 3000 && server.running(); ++tries) {
      fd_ = socket(AF_UNIX, SOCK_STREAM, 0);
      if (fd_ < 0) return;
      if (connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) return;
      close(fd_);
      fd_ = -1;
      poll(nullptr, 0, 10);  // it is starting
    }
  }
  ~Connection() {
    if (fd_ >= 0) close(fd_);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  bool connected() const { return fd_ >= 0; }

  // The bytes of one reply.
  std::string call(const Words& words) {
    const std::vector<std::string_view> args(words.begin(), words.end());
    std::string request;
    wire::write_command(request, args);
    if (write(fd_, request.data(), request.size()) != static_cast<ssize_t>(request.size()))
      return "(cannot write)";
    return receive();
  }

  // Of the next one: an answer, or a message of a subscription.
  std::string receive() {
    for (;;) {
      std::size_t consumed = 0;
      std::string error;
      if (wire::parse_reply(buffer_, consumed, error)) {
        std::string reply = buffer_.substr(0, consumed);
        buffer_.erase(0, consumed);
        return reply;
      }
      std::array<char, 65536> piece{};
      const ssize_t got = read(fd_, piece.data(), piece.size());
      if (got <= 0 || !error.empty()) return "(closed) " + error;
      buffer_.append(piece.data(), static_cast<std::size_t>(got));
    }
  }

 private:
  int fd_ = -1;
  std::string buffer_;
};

inline wire::Reply parse(const std::string& bytes) {
  std::size_t consumed = 0;
  std::string error;
  return wire::parse_reply(bytes, consumed, error).value_or(wire::Reply{});
}

// Tests that share one server, each on a connection of its own and with nothing in it. `Base` is
// ::testing::Test or TestWithParam.
template <class Base>
class WithRedis : public Base {
 protected:
  static void SetUpTestSuite() {
    const std::string binary = find_redis();
    if (!binary.empty()) server_ = new RedisServer(binary);
  }
  static void TearDownTestSuite() {
    delete server_;
    server_ = nullptr;
  }
  void SetUp() override {
    if (server_ == nullptr) GTEST_SKIP() << "redis-server is missing";
    redis_ = std::make_unique<Connection>(*server_);
    ASSERT_TRUE(redis_->connected());
    redis_->call({"FLUSHALL"});
  }

  static inline RedisServer* server_ = nullptr;
  std::unique_ptr<Connection> redis_;
};

}  // namespace larder::engine::real
