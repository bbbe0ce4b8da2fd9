// How entries are named inside a shard: a number that means the same in every process.
#pragma once

#include <cstdint>

namespace larder::near {

using Ref = std::uint32_t;
inline constexpr Ref kNoRef = 0;

}  // namespace larder::near
