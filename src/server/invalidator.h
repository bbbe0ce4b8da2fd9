// Tells clients what their own caches may no longer hold: the table of tracking.h, and the pushes
// that come out of it (RESP3 `invalidate`; through REDIRECT, `__redis__:invalidate`).
//
// A push goes behind whatever its client is being answered. A client that does not take its pushes
// is closed: what it holds is then worth nothing, and it knows. Thread-safe; nothing suspends.
#pragma once

#include <span>
#include <string_view>

#include "obs/metrics.h"
#include "server/clients.h"
#include "server/pubsub.h"
#include "server/tracking.h"

namespace larder::server {

// Where RESP2 clients are told, through REDIRECT.
inline constexpr std::string_view kInvalidations = "__redis__:invalidate";

class Invalidator {
 public:
  // `dropped` counts clients that were closed. All outlive it.
  Invalidator(Clients& clients, PubSub& pubsub, std::size_t max_reads, obs::Counter& dropped)
      : clients_(clients), pubsub_(pubsub), dropped_(dropped), table_(max_reads) {}

  Tracking& table() { return table_; }

  // See Tracking. To be called before the value is looked up.
  bool read(Tracking::Client client, std::string_view key, bool pending) {
    Tracking::Messages messages;
    const bool added = table_.read(client, key, pending, messages);
    if (!messages.empty()) send(messages);
    return added;
  }
  // To be called after the change. Free while nobody tracks.
  void changed(std::span<const std::string_view> keys, Tracking::Client by = 0);
  void changed(std::string_view key, Tracking::Client by = 0) { changed({&key, 1}, by); }
  void everything(Tracking::Client by = 0);
  // Several times a second: what has ended by itself. True: call again soon.
  bool expire(TimeUs now);
  // To one client, whoever else has read the key.
  void tell(Tracking::Client client, Tracking::Client redirect, std::string_view key);

 private:
  void send(const Tracking::Messages& messages);
  void send(const Tracking::Message& message);
  void redirect_is_gone(const Tracking::Message& message);

  Clients& clients_;
  PubSub& pubsub_;
  obs::Counter& dropped_;
  Tracking table_;
};

}  // namespace larder::server
