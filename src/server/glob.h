// Redis's glob patterns: * ? [abc] [^abc] [a-z] \x. For channels and CONFIG GET.
#pragma once

#include <string_view>

namespace larder::server {

// Cost: at most pattern * text steps, whatever the pattern.
bool glob_match(std::string_view pattern, std::string_view text, bool ignore_case = false);

}  // namespace larder::server
