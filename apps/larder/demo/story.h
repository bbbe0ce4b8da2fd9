// The story of one key: miss, hit, changed in the database, invalidated, fresh.
#pragma once

#include <string>

#include "base/error.h"

namespace larder::app {

// Tells it to standard output; the commands are real, their answers are what the node said. An
// error if the story does not end well (an answer was not what it had to be).
Result<void> tell_story(const std::string& address, const std::string& database);

}  // namespace larder::app
