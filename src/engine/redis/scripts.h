// The Lua texts of the fill protocol's steps. Constants; what they decide is said in protocol.h.
// For Redis 6.2 to 7 and Valkey 8. Internal to engine/redis/.
#pragma once

#include <string_view>

namespace larder::engine::redis::scripts {

std::string_view lookup();
std::string_view fill();
std::string_view change();  // invalidate and feed
std::string_view read();
std::string_view epoch_begin();
std::string_view epoch_write();
std::string_view history();

}  // namespace larder::engine::redis::scripts
