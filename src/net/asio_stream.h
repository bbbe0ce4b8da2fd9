// Stream on Asio's reactor, for sockets of any family. Internal to net/.
#pragma once

#include <boost/asio/io_context.hpp>
#include <memory>
#include <string>

#include "net/address.h"
#include "net/runtime.h"

namespace larder::net {

// Takes over a connected, non-blocking socket. On the thread of `io`'s loop. Sets TCP_NODELAY.
Result<std::unique_ptr<Stream>> adopt_stream(boost::asio::io_context& io, UniqueFd fd,
                                             const SocketAddress& peer);

// Connects, until `deadline`. On the current loop.
Task<Result<std::unique_ptr<Stream>>> connect_stream(SocketAddress target, TimeUs deadline);

}  // namespace larder::net
