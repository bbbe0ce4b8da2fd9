// What the tests of net/ share: a runtime on a thread, and a client that blocks.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <filesystem>
#include <future>
#include <thread>

#include "net/address.h"
#include "net/runtime.h"

namespace larder::net {

// A runtime that runs on a thread, with a group for its connections. Goes down in the order that is
// prescribed for programs: no new connections, the group, the loops.
class TestRuntime {
 public:
  explicit TestRuntime(unsigned threads = 1) : runtime_(Runtime::create(threads)) {
    thread_ = std::thread([this] { runtime_->run(); });
  }
  ~TestRuntime() {
    if (!down_) down();
  }

  Runtime& operator*() { return *runtime_; }
  Runtime* operator->() { return runtime_.get(); }
  TaskGroup& group() { return group_; }

  void down() {
    down_ = true;
    runtime_->loop(0).post([this] { tasks_.spawn(end()); });
    thread_.join();
  }

  // Runs `work` on a loop and waits for it.
  void call(const std::function<void()>& work, unsigned loop = 0) {
    std::promise<void> done;
    runtime_->loop(loop).post([&] {
      work();
      done.set_value();
    });
    done.get_future().wait();
  }

  // Runs the task that `make` makes, on loop 0, and waits for its result.
  template <class T>
  T await(const std::function<Task<T>()>& make) {
    std::promise<T> done;
    runtime_->loop(0).post([&] { tasks_.spawn(keep(make(), done)); });
    return done.get_future().get();
  }

 private:
  template <class T>
  static Task<void> keep(Task<T> task, std::promise<T>& done) {
    T value = co_await task;
    done.set_value(std::move(value));
  }
  Task<void> end() {
    runtime_->stop_listening();
    group_.stop();
    co_await group_.join();
    runtime_->stop();
  }

  std::unique_ptr<Runtime> runtime_;
  TaskGroup group_;
  TaskGroup tasks_;
  std::thread thread_;
  bool down_ = false;
};

// A blocking client. Its time limit only keeps a broken test from hanging.
class TestClient {
 public:
  explicit TestClient(const std::string& address) {
    const auto parsed = parse_address(address);
    SocketAddress target;
    EXPECT_TRUE(parsed && numeric_address(*parsed, target)) << address;
    fd_ = UniqueFd(::socket(target.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
    const timeval limit{.tv_sec = 60, .tv_usec = 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    connected_ = ::connect(fd_.get(), target.get(), target.size) == 0;
  }

  bool connected() const { return connected_; }
  int fd() const { return fd_.get(); }
  void close() { fd_ = UniqueFd(); }
  void end_writing() { ::shutdown(fd_.get(), SHUT_WR); }

  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(sent));
    }
    return true;
  }

  // Until there are `size` bytes, or the end.
  std::string read(std::size_t size) {
    std::string out(size, '\0');
    std::size_t got = 0;
    while (got < size) {
      const ssize_t n = ::recv(fd_.get(), out.data() + got, size - got, 0);
      if (n <= 0) break;
      got += static_cast<std::size_t>(n);
    }
    out.resize(got);
    return out;
  }
  std::string read_to_end() {
    std::string out;
    for (;;) {
      const std::string more = read(4096);
      out += more;
      if (more.size() < 4096) return out;
    }
  }

 private:
  UniqueFd fd_;
  bool connected_ = false;
};

class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "larder-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace larder::net
