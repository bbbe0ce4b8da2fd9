// Servers that tests of the client start, kill, freeze and start again; and a client on loops of
// its own.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/prctl.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/redis/client.h"
#include "engine/redis_process.h"
#include "net/net_testing.h"

namespace larder::engine::redis {

using real::Words;

// A free port. Another program may take it before it is used: then a test fails, and says so.
inline std::uint16_t free_port() {
  const net::UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  return ntohs(address.sin_port);
}

// In a folder: a CA ("ca.crt"), a certificate for localhost and 127.0.0.1 that it signed
// ("server"), one for a client ("client"), and the CA of a stranger ("other.crt").
class Certificates {
 public:
  static bool can_be_made() { return std::system("openssl version >/dev/null 2>&1") == 0; }
  bool make() const {
    return ca("ca") && ca("other") && certificate("server", "DNS:localhost,IP:127.0.0.1") &&
           certificate("client", "DNS:client");
  }
  std::string operator/(const std::string& name) const { return folder_ / name; }
  // For a redis-server.
  Words server_words() const {
    return {"--tls-cert-file",    *this / "server.crt", "--tls-key-file",     *this / "server.key",
            "--tls-ca-cert-file", *this / "ca.crt",     "--tls-auth-clients", "optional"};
  }

 private:
  bool run(const std::string& arguments) const {
    return std::system(("cd " + (folder_ / ".") + " && openssl " + arguments + " >/dev/null 2>&1")
                           .c_str()) == 0;
  }
  bool ca(const std::string& name) const {
    return run(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=" +
        name + " -keyout " + name + ".key -out " + name + ".crt");
  }
  bool certificate(const std::string& name, const std::string& names) const {
    return run("req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=" + name +
               " -addext subjectAltName=" + names + " -keyout " + name + ".key -out " + name +
               ".csr") &&
           run("x509 -req -days 2 -copy_extensions copy -CAcreateserial -CA ca.crt -CAkey ca.key" +
               (" -in " + name) + ".csr -out " + name + ".crt");
  }

  net::TempFolder folder_;
};

// A redis-server on a port of its own (or a Sentinel, with {"--sentinel"} and a file).
class TestServer {
 public:
  explicit TestServer(Words more = {}, bool tls = false)
      : more_(std::move(more)), port_(free_port()), tls_(tls) {}
  ~TestServer() { kill(); }
  TestServer(const TestServer&) = delete;
  TestServer& operator=(const TestServer&) = delete;

  // Returns when it answers (TLS: when it listens).
  void start() {
    const std::string port = std::to_string(port_);
    Words words{real::find_redis()};
    if (!file_.empty()) words.push_back(file_);
    for (const std::string& word :
         Words{"--port", tls_ ? "0" : port, "--tls-port", tls_ ? port : "0", "--dir", folder_ / ".",
               "--save", "", "--appendonly", "no", "--loglevel", "notice", "--logfile", "log",
               "--bind", "127.0.0.1", "--enable-debug-command", "yes"}) {
      words.push_back(word);
    }
    words.insert(words.end(), more_.begin(), more_.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    // It must not outlive this process, even one that is killed.
    const pid_t parent = getpid();
    pid_ = fork();
    ASSERT_GE(pid_, 0);
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() == parent) execve(argv[0], argv.data(), environ);
      _exit(1);
    }
    for (int tries = 0; tries < 2000; ++tries) {
      ASSERT_EQ(waitpid(pid_, nullptr, WNOHANG), 0) << "redis-server has ended";
      const std::string answer = tls_ ? listening() : call({"PING"});
      if (answer.starts_with("+PONG") || answer.starts_with("-NOAUTH")) return;
      poll(nullptr, 0, 5);  // it is starting
    }
    FAIL() << "redis-server does not answer";
  }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  void freeze() const { ::kill(pid_, SIGSTOP); }
  void thaw() const { ::kill(pid_, SIGCONT); }

  std::uint16_t port() const { return port_; }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  std::string folder() const { return folder_ / "."; }
  void use_file(std::string file) { file_ = std::move(file); }  // of configuration

  // One command on a connection of its own; "" if it cannot be reached.
  std::string call(const Words& words) const {
    const net::UniqueFd fd = connect();
    if (!fd) return {};
    const std::vector<std::string_view> args(words.begin(), words.end());
    std::string request;
    wire::write_command(request, args);
    if (::send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL) < 0) return {};
    std::string reply;
    for (;;) {
      std::array<char, 65536> piece{};
      const ssize_t got = ::recv(fd.get(), piece.data(), piece.size(), 0);
      if (got <= 0) return {};
      reply.append(piece.data(), static_cast<std::size_t>(got));
      std::size_t consumed = 0;
      std::string error;
      if (wire::parse_reply(reply, consumed, error)) return reply;
    }
  }

 private:
  net::UniqueFd connect() const {
    net::UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port_);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      return net::UniqueFd();
    }
    const timeval limit{.tv_sec = 5, .tv_usec = 0};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return fd;
  }
  std::string listening() const { return connect() ? "+PONG" : ""; }

  net::TempFolder folder_;
  Words more_;
  std::uint16_t port_;
  bool tls_;
  std::string file_;
  pid_t pid_ = 0;
};

// A client that runs; goes down in the prescribed order.
class TestUse {
 public:
  explicit TestUse(const std::string& url, unsigned threads = 1,
                   const std::function<void(Options&)>& change = {})
      : runtime_(threads) {
    auto parsed = parse_url(url);
    EXPECT_TRUE(parsed) << to_string(parsed.error());
    Options options;
    options.url = std::move(*parsed);
    if (std::getenv("LARDER_TEST_LOG")) {
      options.log = [](std::string line) {
        std::fprintf(stderr, "%.3f %s\n", static_cast<double>(monotonic_now_us()) / 1e6,
                     line.c_str());
      };
    }
    if (change) change(options);
    auto made = Client::create(*runtime_, std::move(options));
    EXPECT_TRUE(made) << to_string(made.error());
    client_ = std::move(*made);
    runtime_.call([this] { runtime_.group().spawn(client_->run(runtime_.group())); });
  }
  ~TestUse() {
    if (!down_) down();
  }
  void down() {
    down_ = true;
    runtime_.down();
  }

  Client& operator*() { return *client_; }
  Client* operator->() { return client_.get(); }
  net::TestRuntime& runtime() { return runtime_; }

  static TimeUs soon() { return monotonic_now_us() + 20 * kSecond; }

  // From a loop, waited for.
  Result<Answer> call(Words args, Route route = {}, unsigned loop = 0, TimeUs deadline = soon()) {
    return runtime_.await<Result<Answer>>(
        [&] { return on_loop(runtime_->loop(loop), route, args, deadline); });
  }
  // The bytes of the answer, or what went wrong.
  std::string text(Words args, Route route = {}, unsigned loop = 0) {
    const auto answer = call(std::move(args), std::move(route), loop);
    return answer ? answer->bytes : to_string(answer.error());
  }

 private:
  Task<Result<Answer>> on_loop(Loop& loop, Route route, Words args, TimeUs deadline) {
    Loop& home = *Loop::current();
    co_await resume_on(loop);
    auto answer = co_await client_->call(std::move(route), std::move(args), deadline);
    EXPECT_EQ(Loop::current(), &loop);
    co_await resume_on(home);
    co_return answer;
  }

  net::TestRuntime runtime_;
  std::unique_ptr<Client> client_;
  bool down_ = false;
};

// Waits for something that will come; the limit only ends a broken test.
template <class Condition>
bool eventually(const Condition& condition, DurationUs limit = 20 * kSecond) {
  const TimeUs until = monotonic_now_us() + limit;
  while (monotonic_now_us() < until) {
    if (condition()) return true;
    poll(nullptr, 0, 2);
  }
  return condition();
}

}  // namespace larder::engine::redis
