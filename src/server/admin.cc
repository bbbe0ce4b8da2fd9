#include "server/admin.h"

#include <fmt/format.h>

namespace larder::server {
namespace {

constexpr std::string_view kJson = "application/json";

std::string page(const AdminContext& context) {
  std::string escaped;
  for (const char c : context.listening)
    escaped += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Larder</title>\n"
      "<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:3em auto;padding:0 "
      "1em}}"
      "code{{background:#8882;padding:.1em .3em}}</style></head><body>\n"
      "<h1>Larder {}</h1>\n<p>Serving RESP on <code>{}</code>.</p>\n<ul>\n"
      "<li><a href=\"/healthz\">/healthz</a>: the process answers</li>\n"
      "<li><a href=\"/readyz\">/readyz</a>: it accepts clients</li>\n"
      "<li><a href=\"/metrics\">/metrics</a>: Prometheus</li>\n"
      "<li><a href=\"/api/v1/status\">/api/v1/status</a>: caches, sources, tiers as JSON</li>\n"
      "</ul>\n</body></html>\n",
      LARDER_VERSION, escaped);
}

// `node` is a JSON object; the server's own fields go in front of its fields.
std::string status(const AdminContext& context) {
  const TimeUs now = monotonic_now_us();
  const near::Stats near = context.near->stats();
  std::string json = fmt::format(
      R"({{"version":"{}","ready":{},"uptime_seconds":{},"connected_clients":{},)"
      R"("near":{{"bytes":{},"capacity_bytes":{},"entries":{},"evictions":{},"expirations":{}}},)"
      R"("node":{}}})",
      LARDER_VERSION, context.ready(), (now - context.started) / kSecond, context.clients->count(),
      near.bytes, context.near->capacity_bytes(), near.entries, near.evictions, near.expirations,
      context.node->status_json(now));
  json += '\n';
  return json;
}

}  // namespace

net::HttpResponse answer_admin(const AdminContext& context, const net::HttpRequest& request) {
  if (request.method != "GET" && request.method != "HEAD")
    return {.status = 405, .body = "only GET\n"};
  if (request.path == "/healthz") return {.body = "ok\n"};
  if (request.path == "/readyz") {
    if (context.ready()) return {.body = "ready\n"};
    return {.status = 503, .body = "not ready\n"};
  }
  if (request.path == "/metrics")
    return {.content_type = "text/plain; version=0.0.4; charset=utf-8",
            .body = context.metrics->prometheus()};
  if (request.path == "/api/v1/status")
    return {.content_type = std::string(kJson), .body = status(context)};
  if (request.path == "/")
    return {.content_type = "text/html; charset=utf-8", .body = page(context)};
  return {.status = 404, .body = "not here; see /\n"};
}

}  // namespace larder::server
