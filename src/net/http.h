// A small HTTP/1.1 server for health, metrics, the API and the page (Boost.Beast).
#pragma once

#include <functional>
#include <string>

#include "base/error.h"
#include "base/task.h"
#include "net/runtime.h"

namespace larder::net {

struct HttpRequest {
  std::string method;  // HEAD arrives as GET; its answer goes without the body
  std::string path;    // without the query
  std::string query;   // behind the '?'
};

struct HttpResponse {
  unsigned status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};

// Serves until runtime.stop_listening(); connections end with `group`. Limits: 8 KiB of header, 64
// KiB of body (which is read and dropped), 10 s a request, waiting for it included, 64 connections.
// `handler` runs on the connection's loop, on several at once, and must not block.
Result<std::string> serve_http(Runtime& runtime, const std::string& address, TaskGroup& group,
                               std::function<HttpResponse(const HttpRequest&)> handler);

// One GET, for the tools (larder top, the demo). Body of a 200; else an error.
Task<Result<std::string>> http_get(Runtime& runtime, std::string address, std::string target,
                                   TimeUs deadline);

}  // namespace larder::net
