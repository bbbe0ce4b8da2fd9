// A [feed.NAME] of the configuration, checked and ready to run.
#pragma once

#include <cstdint>
#include <string>

#include "feed/event.h"

namespace larder::feed {

struct Spec {
  std::string name;
  std::string channel;  // Pub/Sub; or
  std::string stream;   // the key of a Redis Stream: one of both is ""
  std::string field;    // stream: the entry's field that holds JSON; "": the fields are the event
  Rule rule;
  std::string url;               // may carry a secret: never print it, print `display_url`
  std::string display_url;       // where the events come from
  std::uint32_t queue = 10'000;  // keys and tags that may wait to be made void
  std::uint64_t max_event_bytes = 64 << 10;
};

}  // namespace larder::feed
