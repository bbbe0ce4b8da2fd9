#include "net/http.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "net/net_testing.h"

namespace larder::net {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

HttpResponse answer(const HttpRequest& request) {
  if (request.method != "GET") return {.status = 405, .body = "no\n"};
  if (request.path == "/big") return {.body = std::string(4 << 20, 'b')};
  if (request.path != "/ok") return {.status = 404, .body = "none\n"};
  return {.content_type = "text/html", .body = "hello " + request.query};
}

std::string must_serve(TestRuntime& runtime, const std::string& address = "127.0.0.1:0") {
  const auto bound = serve_http(*runtime, address, runtime.group(), answer);
  EXPECT_TRUE(bound.has_value()) << bound.error().message;
  return bound.value_or("");
}

// One answer, by its Content-Length.
std::string read_answer(TestClient& client, bool with_body = true) {
  std::string out;
  while (!out.ends_with("\r\n\r\n")) {
    const std::string byte = client.read(1);
    if (byte.empty()) return out;
    out += byte;
  }
  const std::size_t at = out.find("Content-Length: ");
  if (with_body && at != std::string::npos) out += client.read(std::stoul(out.substr(at + 16)));
  return out;
}

TEST(Http, AnswersAndKeepsTheConnection) {
  TestRuntime runtime(2);
  TestClient client(must_serve(runtime));
  client.send("GET /ok?a=1&b=2 HTTP/1.1\r\nHost: x\r\n\r\n");
  const std::string first = read_answer(client);
  EXPECT_THAT(first, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(first, HasSubstr("Content-Type: text/html\r\n"));
  EXPECT_THAT(first, HasSubstr("Connection: keep-alive\r\n"));
  EXPECT_THAT(first, EndsWith("\r\n\r\nhello a=1&b=2"));
  client.send("GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(read_answer(client), StartsWith("HTTP/1.1 404 Not Found\r\n"));
  client.send("POST /ok HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
  EXPECT_THAT(read_answer(client), StartsWith("HTTP/1.1 405 Method Not Allowed\r\n"));
  client.send("HEAD /ok HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(read_answer(client, false), HasSubstr("Content-Length: 6\r\n"));
  client.send("GET /ok HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(client.read_to_end(), HasSubstr("Connection: close\r\n"));
}

TEST(Http, ReadsRequestsWhereverTheyAreCut) {
  TestRuntime runtime;
  TestClient client(must_serve(runtime));
  const std::string request =
      "GET /ok?x HTTP/1.1\r\nHost: y\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n";
  for (std::size_t cut = 0; cut <= request.size(); ++cut) {
    client.send(request.substr(0, cut));
    client.send(request.substr(cut));
    ASSERT_THAT(read_answer(client), EndsWith("hello x")) << cut;
  }
  client.send(request + request + request);
  for (int i = 0; i < 3; ++i) EXPECT_THAT(read_answer(client), EndsWith("hello x"));
}

TEST(Http, LargeAnswersArriveWhole) {
  TestRuntime runtime;
  TestClient client(must_serve(runtime));
  client.send("GET /big HTTP/1.0\r\n\r\n");
  EXPECT_THAT(client.read_to_end(), EndsWith("\r\n\r\n" + std::string(4 << 20, 'b')));
}

TEST(Http, RefusesWhatIsTooLargeOrMalformed) {
  TestRuntime runtime;
  const std::string bound = must_serve(runtime);
  const std::pair<std::string, const char*> cases[] = {
      {"nonsense\r\n\r\n", "HTTP/1.1 400 "},
      {"GET /ok HTTP/1.1\r\nContent-Length: x\r\n\r\n", "HTTP/1.1 400 "},
      {"GET /ok HTTP/1.1\r\nX: " + std::string(9 << 10, 'x'), "HTTP/1.1 431 "},
      {"GET /ok HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", "HTTP/1.1 413 "},
  };
  for (const auto& [request, status] : cases) {
    TestClient client(bound);
    client.send(request);
    EXPECT_THAT(client.read_to_end(), StartsWith(status));
  }
  TestClient leaves(bound);
  leaves.send("GET /ok HTT");
  leaves.end_writing();
  EXPECT_THAT(leaves.read_to_end(), StartsWith("HTTP/1.1 400 "));
}

TEST(Http, OneConnectionTooManyIsToldSo) {
  TestRuntime runtime;
  const std::string bound = must_serve(runtime);
  std::vector<std::unique_ptr<TestClient>> clients;
  for (int i = 0; i < 64; ++i) {
    clients.push_back(std::make_unique<TestClient>(bound));
    clients.back()->send("GET /ok HTTP/1.1\r\n\r\n");
    ASSERT_THAT(read_answer(*clients.back()), StartsWith("HTTP/1.1 200 "));
  }
  TestClient refused(bound);
  EXPECT_THAT(refused.read_to_end(), StartsWith("HTTP/1.1 503 "));
}

TEST(Http, IdleConnectionsEndWithTheGroup) {
  TestRuntime runtime(2);
  const std::string bound = must_serve(runtime);
  TestClient a(bound);
  TestClient b(bound);
  TestClient half(bound);
  for (TestClient* client : {&a, &b}) {
    client->send("GET /ok HTTP/1.1\r\n\r\n");
    read_answer(*client);
  }
  half.send("GET /ok");
  runtime.down();
  EXPECT_EQ(a.read_to_end(), "");
  EXPECT_EQ(b.read_to_end(), "");
}

TEST(Http, AnAddressInUseNamesTheRightSetting) {
  TestRuntime runtime;
  const std::string bound = must_serve(runtime);
  const auto again = serve_http(*runtime, bound, runtime.group(), answer);
  ASSERT_FALSE(again.has_value());
  EXPECT_THAT(again.error().message, EndsWith("choose another port in [node] admin"));
}

Task<std::string> get(Runtime& runtime, std::string address, std::string target, TimeUs limit) {
  const TimeUs deadline = Loop::current()->now_us() + limit;
  auto body = co_await http_get(runtime, std::move(address), std::move(target), deadline);
  co_return body ? std::move(*body) : "error: " + body.error().message;
}

Task<void> swallow(std::unique_ptr<Stream> stream) {
  char buffer[1024];
  for (;;) {
    const auto size = co_await stream->read_some(buffer, sizeof buffer);
    if (!size || *size == 0) co_return;
  }
}

TEST(HttpGet, GetsABodyOrSaysWhyNot) {
  TestRuntime runtime(2);
  const TempFolder folder;
  const auto fetch = [&](const std::string& address, const std::string& target,
                         DurationUs limit = 60 * kSecond) {
    return runtime.await<std::string>([&] { return get(*runtime, address, target, limit); });
  };
  const std::string bound = must_serve(runtime);
  EXPECT_EQ(fetch(bound, "/ok?q"), "hello q");
  EXPECT_EQ(fetch(bound, "/big").size(), 4u << 20);
  EXPECT_EQ(fetch(must_serve(runtime, "unix:" + folder / "s"), "/ok?u"), "hello u");
  EXPECT_EQ(fetch(bound, "/none"), "error: " + bound + " answered 404 to /none");
  EXPECT_THAT(fetch("unix:" + folder / "no", "/"), HasSubstr("cannot connect"));

  const auto silent = runtime->listen("127.0.0.1:0", runtime.group(), swallow, 1, "");
  ASSERT_TRUE(silent.has_value());
  EXPECT_EQ(fetch(*silent, "/", 50 * kMillisecond),
            "error: no answer from " + *silent + " in time");
}

}  // namespace
}  // namespace larder::net
