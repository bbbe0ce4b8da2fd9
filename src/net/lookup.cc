#include "net/lookup.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>

#include <boost/asio/ip/tcp.hpp>
#include <cstring>

#include "net/asio_loop.h"

namespace larder::net {
namespace {

namespace asio = boost::asio;
using Code = boost::system::error_code;

// A lookup outlives the caller that gave up on it, so it is shared with Asio's callback.
struct Lookup {
  explicit Lookup(asio::io_context& io) : resolver(io) {}
  asio::ip::tcp::resolver resolver;
  Waiters done;
  Code code;
  std::vector<SocketAddress> found;
};

}  // namespace

Task<Result<std::vector<SocketAddress>>> look_up(Address address, TimeUs deadline) {
  auto lookup = std::make_shared<Lookup>(AsioLoop::here().io());
  lookup->resolver.async_resolve(
      address.host, std::to_string(address.port),
      [lookup](const Code& code, const asio::ip::tcp::resolver::results_type& results) {
        lookup->code = code;
        for (const auto& entry : results) {
          const auto endpoint = entry.endpoint();
          SocketAddress& out = lookup->found.emplace_back();
          std::memcpy(&out.storage, endpoint.data(), endpoint.size());
          out.size = static_cast<socklen_t>(endpoint.size());
        }
        lookup->done.notify();
      });
  const bool done = co_await lookup->done.wait_until(deadline);
  if (!done) co_return fail(ErrorCode::timeout, "no address of " + address.host + " in time");
  if (lookup->code || lookup->found.empty()) {
    co_return fail(ErrorCode::io, fmt::format("{}: {}", address.host, lookup->code.message()));
  }
  co_return std::move(lookup->found);
}

std::string host_text(const SocketAddress& address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address.family() == AF_INET6) {
    const auto* const in6 = reinterpret_cast<const sockaddr_in6*>(address.get());
    ::inet_ntop(AF_INET6, &in6->sin6_addr, text, sizeof text);
  } else {
    const auto* const in4 = reinterpret_cast<const sockaddr_in*>(address.get());
    ::inet_ntop(AF_INET, &in4->sin_addr, text, sizeof text);
  }
  return text;
}

}  // namespace larder::net
