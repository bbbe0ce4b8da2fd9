// Glob patterns as Redis's KEYS, SCAN and PSUBSCRIBE understand them: * ? [abc] [^a-z] \x.
#pragma once

#include <string_view>

namespace larder::engine {

// Does `text` match? Bytes, no case folding. A class without its ] ends with the pattern; a \ at
// the very end stands for itself. Cost: about text + pattern, at worst a bounded multiple of it: a
// pattern made to be slow (many stars on a text of many repeats) stops at that bound and does not
// match.
bool glob_match(std::string_view pattern, std::string_view text);

}  // namespace larder::engine
