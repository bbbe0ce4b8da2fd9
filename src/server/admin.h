// What the admin port answers: health, metrics, status, and a page that points to them.
#pragma once

#include <functional>

#include "cache/node.h"
#include "near/store.h"
#include "net/http.h"
#include "obs/metrics.h"
#include "server/clients.h"

namespace larder::server {

// Everything pointed to outlives the handler's use. Thread-safe.
struct AdminContext {
  const cache::Node* node = nullptr;
  const near::Store* near = nullptr;
  const obs::Registry* metrics = nullptr;
  const Clients* clients = nullptr;
  std::function<bool()> ready;  // accepts clients, and is not shutting down
  TimeUs started = 0;
  std::string listening;  // for the page
};

net::HttpResponse answer_admin(const AdminContext& context, const net::HttpRequest& request);

}  // namespace larder::server
