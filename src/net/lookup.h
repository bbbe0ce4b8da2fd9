// Names to addresses, without blocking. Internal to Larder.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "base/task.h"
#include "net/address.h"

namespace larder::net {

// All addresses of `address`, a name or a number, in the order of the system's preference; at least
// one. Errors: io (what the resolver says), timeout. REQUIRES: the current loop is one of
// net::Runtime, which must outlive the lookup: giving up at the deadline does not end it.
Task<Result<std::vector<SocketAddress>>> look_up(Address address, TimeUs deadline);

// "127.0.0.1", "::1".
std::string host_text(const SocketAddress& address);

}  // namespace larder::net
