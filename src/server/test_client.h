// A blocking RESP client for tests, on a thread of its own: it has nothing in common with the code
// under test but the reply parser.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "wire/resp.h"

namespace larder::server {

class TestClient {
 public:
  using Reply = wire::Reply;

  // "127.0.0.1:port". Whoever waits longer than `patience_s` for an answer fails.
  explicit TestClient(const std::string& address, int patience_s = 30) {
    const std::size_t colon = address.rfind(':');
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<std::uint16_t>(std::stoi(address.substr(colon + 1))));
    inet_pton(AF_INET, address.substr(0, colon).c_str(), &to.sin_addr);
    fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const timeval patience{.tv_sec = patience_s, .tv_usec = 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    const int one = 1;
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof to) != 0)
      ADD_FAILURE() << "cannot connect to " << address;
  }
  ~TestClient() { close(fd_); }
  TestClient(const TestClient&) = delete;
  TestClient& operator=(const TestClient&) = delete;

  static std::string encode(const std::vector<std::string>& args) {
    const std::vector<std::string_view> views(args.begin(), args.end());
    std::string out;
    wire::write_command(out, views);
    return out;
  }

  bool send_raw(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(n));
    }
    return true;
  }
  void send(const std::vector<std::string>& args) { send_raw(encode(args)); }

  // The next reply. A closed connection is an error reply "closed".
  Reply receive() {
    for (;;) {
      std::size_t consumed = 0;
      std::string problem;
      const std::string_view held = std::string_view(buffer_).substr(begin_);
      if (!held.empty()) {
        if (auto reply = wire::parse_reply(held, consumed, problem)) {
          last_raw_ = held.substr(0, consumed);
          begin_ += consumed;
          if (begin_ == buffer_.size()) {
            buffer_.clear();
            begin_ = 0;
          }
          return std::move(*reply);
        }
        if (!problem.empty()) return closed("malformed: " + problem);
      }
      if (!receive_more()) return closed("closed");
    }
  }

  Reply call(const std::vector<std::string>& args) {
    send(args);
    return receive();
  }
  // As sent: "+OK", ":1", "$-1", "-ERR ...", or the text of a bulk.
  std::string text(const std::vector<std::string>& args) { return to_text(call(args)); }

  // Everything until the server closes.
  std::string read_to_end() {
    while (receive_more()) {
    }
    return buffer_.substr(begin_);
  }

  const std::string& last_raw() const { return last_raw_; }
  int fd() const { return fd_; }

  // "(nil)", "(int) 1", "-ERR ...", "text", "[a, b]".
  static std::string to_text(const Reply& reply) {
    using Type = Reply::Type;
    switch (reply.type) {
      case Type::null: return "(nil)";
      case Type::integer:
      case Type::boolean: return "(int) " + std::to_string(reply.integer);
      case Type::error: return "-" + reply.text;
      case Type::array:
      case Type::map:
      case Type::set:
      case Type::push: {
        std::string all = "[";
        for (const Reply& element : reply.elements) {
          if (all.size() > 1) all += ", ";
          all += to_text(element);
        }
        return all + "]";
      }
      default: return reply.text;
    }
  }

 private:
  static Reply closed(std::string why) {
    Reply reply;
    reply.type = Reply::Type::error;
    reply.text = std::move(why);
    return reply;
  }
  bool receive_more() {
    char chunk[64 << 10];
    const ssize_t n = recv(fd_, chunk, sizeof chunk, 0);
    if (n <= 0) return false;
    buffer_.append(chunk, static_cast<std::size_t>(n));
    return true;
  }

  int fd_ = -1;
  std::string buffer_;
  std::size_t begin_ = 0;
  std::string last_raw_;
};

}  // namespace larder::server
