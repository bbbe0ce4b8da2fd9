#define BOOST_BEAST_SEPARATE_COMPILATION
#include "net/http.h"

#include <fmt/format.h>

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/status.hpp>
#include <boost/beast/http/string_body.hpp>
#include <map>
#include <memory>

#include "base/sync.h"

namespace larder::net {
namespace {

namespace http = boost::beast::http;
using Code = boost::beast::error_code;
using Handler = std::function<HttpResponse(const HttpRequest&)>;
using RequestParser = http::request_parser<http::string_body>;
using ResponseParser = http::response_parser<http::string_body>;

constexpr std::uint32_t kMaxHeaderBytes = 8 << 10;
constexpr std::uint64_t kMaxBodyBytes = 64 << 10;
constexpr std::uint64_t kMaxAnswerBytes = 64 << 20;  // http_get
constexpr DurationUs kRequestTimeout = 10 * kSecond;
constexpr std::size_t kMaxConnections = 64;
constexpr std::size_t kReadBytes = 16 << 10;

// Shuts a stream down at a time, unless it goes first. On the stream's loop.
class Deadline {
 public:
  Deadline(Stream& stream, TimeUs at) : loop_(*Loop::current()) {
    timer_ = loop_.call_at(at, [this, &stream] {
      passed_ = true;
      stream.shutdown();
    });
  }
  ~Deadline() { loop_.cancel(timer_); }
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;
  bool passed() const { return passed_; }

 private:
  Loop& loop_;
  TimerId timer_ = 0;
  bool passed_ = false;
};

// One call of serve_http: what its connections share.
struct HttpServer {
  HttpServer(TaskGroup& tasks, Handler answer) : group(tasks), handler(std::move(answer)) {}

  TaskGroup& group;
  Handler handler;
  Mutex mutex;
  std::map<Stream*, Loop*> open LARDER_GUARDED_BY(mutex);
  bool closing LARDER_GUARDED_BY(mutex) = false;
  bool has_closer LARDER_GUARDED_BY(mutex) = false;
};

// Shuts down, each on its own loop, the connections that are open when the group stops.
Task<void> close_with_group(std::shared_ptr<HttpServer> server) {
  co_await server->group.sleep_until(kNever);
  std::map<Stream*, Loop*> open;
  {
    MutexLock lock(server->mutex);
    server->closing = true;
    open = server->open;
  }
  for (const auto& [stream, loop] : open) {
    co_await resume_on(*loop);
    MutexLock lock(server->mutex);  // streams leave `open` on this very loop, before they die
    if (server->open.contains(stream)) stream->shutdown();
  }
}

class OpenStream {
 public:
  OpenStream(HttpServer& server, Stream& stream) : server_(server), stream_(stream) {
    MutexLock lock(server_.mutex);
    server_.open.emplace(&stream_, Loop::current());
    closing_ = server_.closing;
  }
  ~OpenStream() {
    MutexLock lock(server_.mutex);
    server_.open.erase(&stream_);
  }
  OpenStream(const OpenStream&) = delete;
  OpenStream& operator=(const OpenStream&) = delete;
  bool closing() const { return closing_; }

 private:
  HttpServer& server_;
  Stream& stream_;
  bool closing_ = false;
};

// Feeds `pending` to the parser and drops from it what was used. False if the parser is content
// with what it got but wants more.
template <class Parser>
bool feed(Parser& parser, std::string& pending, Code& code) {
  while (!code && !parser.is_done() && !pending.empty()) {
    const std::size_t used = parser.put(boost::asio::buffer(pending), code);
    pending.erase(0, used);
    if (code == http::error::need_more) {
      code = {};
      return false;
    }
  }
  return code || parser.is_done();
}

// Reads until the message is whole. Ok(false): the connection ended before its first byte.
template <class Parser>
Task<Result<bool>> read_message(Stream& stream, Parser& parser, std::string& pending, Code& code) {
  while (!feed(parser, pending, code)) {
    const std::size_t old = pending.size();
    pending.resize(old + kReadBytes);
    const auto size = co_await stream.read_some(pending.data() + old, kReadBytes);
    pending.resize(old + size.value_or(0));
    if (!size) co_return std::unexpected(size.error());
    if (*size == 0) {
      if (!parser.got_some()) co_return false;
      parser.put_eof(code);
      co_return true;
    }
  }
  co_return true;
}

std::string render(const HttpResponse& response, bool keep_alive, bool with_body) {
  const auto reason = http::obsolete_reason(http::int_to_status(response.status));
  std::string out = fmt::format(
      "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: {}\r\n"
      "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\r\n",
      response.status, std::string_view(reason.data(), reason.size()), response.content_type,
      response.body.size(), keep_alive ? "keep-alive" : "close");
  if (with_body) out += response.body;
  return out;
}

HttpResponse refusal_of(const Code& code) {
  if (code == http::error::header_limit) return {.status = 431, .body = "header too large\n"};
  if (code == http::error::body_limit) return {.status = 413, .body = "body too large\n"};
  return {.status = 400, .body = code.message() + "\n"};
}

HttpRequest request_of(const RequestParser& parser) {
  const auto& message = parser.get();
  HttpRequest request;
  // Asking for the head is asking for the same thing: handlers need not know.
  if (message.method() == http::verb::head)
    request.method = "GET";
  else
    request.method = std::string(message.method_string());
  const std::string target(message.target());
  const std::size_t mark = target.find('?');
  request.path = target.substr(0, mark);
  if (mark != std::string::npos) request.query = target.substr(mark + 1);
  return request;
}

// One request and its answer. False: the connection is to be closed.
Task<bool> serve_request(Stream& stream, const HttpServer& server, std::string& pending) {
  const Deadline deadline(stream, Loop::current()->now_us() + kRequestTimeout);
  RequestParser parser;
  parser.eager(true);
  parser.header_limit(kMaxHeaderBytes);
  parser.body_limit(kMaxBodyBytes);
  Code code;
  const auto whole = co_await read_message(stream, parser, pending, code);
  if (!whole || !*whole) co_return false;
  std::string answer;
  bool keep_alive = false;
  if (code) {
    answer = render(refusal_of(code), false, true);
  } else {
    keep_alive = parser.keep_alive() && !server.group.stopping();
    const bool with_body = parser.get().method() != http::verb::head;
    answer = render(server.handler(request_of(parser)), keep_alive, with_body);
  }
  const auto written = co_await stream.write_all(answer);
  co_return keep_alive&& written.has_value();
}

Task<void> serve_connection(std::shared_ptr<HttpServer> server, std::unique_ptr<Stream> stream) {
  bool first = false;
  {
    MutexLock lock(server->mutex);
    first = !std::exchange(server->has_closer, true);
  }
  if (first) server->group.spawn(close_with_group(server));
  const OpenStream open(*server, *stream);
  if (open.closing()) co_return;
  std::string pending;
  for (bool more = true; more;) {
    more = co_await serve_request(*stream, *server, pending);
  }
  stream->shutdown();
}

}  // namespace

Result<std::string> serve_http(Runtime& runtime, const std::string& address, TaskGroup& group,
                               std::function<HttpResponse(const HttpRequest&)> handler) {
  auto server = std::make_shared<HttpServer>(group, std::move(handler));
  auto bound = runtime.listen(
      address, group,
      [server](std::unique_ptr<Stream> stream) {
        return serve_connection(server, std::move(stream));
      },
      kMaxConnections, render({.status = 503, .body = "too many connections\n"}, false, true));
  if (!bound) {
    // The runtime can only guess which setting the address came from.
    std::string& message = bound.error().message;
    const std::string_view guess = "[node] listen";
    if (message.ends_with(guess)) {
      message.replace(message.size() - guess.size(), guess.size(), "[node] admin");
    }
  }
  return bound;
}

Task<Result<std::string>> http_get(Runtime& runtime, std::string address, std::string target,
                                   TimeUs deadline) {
  auto connected = co_await runtime.connect(address, deadline);
  if (!connected) co_return std::unexpected(std::move(connected.error()));
  Stream& stream = **connected;
  const Deadline limit(stream, deadline);
  const std::string host = address.starts_with("unix:") ? "localhost" : address;
  const std::string request =
      fmt::format("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", target, host);
  const auto written = co_await stream.write_all(request);
  ResponseParser parser;
  parser.eager(true);
  parser.body_limit(kMaxAnswerBytes);
  std::string pending;
  Code code;
  auto whole = Result<bool>(false);
  // A server that refuses may close before it has read: what it said is worth more than our error.
  whole = co_await read_message(stream, parser, pending, code);
  if (limit.passed()) co_return fail(ErrorCode::timeout, "no answer from " + address + " in time");
  if (!written && !(whole && *whole)) co_return std::unexpected(written.error());
  if (!whole) co_return std::unexpected(whole.error());
  if (!*whole) co_return fail(ErrorCode::io, address + " closed the connection without an answer");
  if (code) co_return fail(ErrorCode::io, address + ": " + code.message());
  if (const unsigned status = parser.get().result_int(); status != 200) {
    co_return fail(ErrorCode::io, fmt::format("{} answered {} to {}", address, status, target));
  }
  co_return std::move(parser.get().body());
}

}  // namespace larder::net
