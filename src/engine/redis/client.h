// A client of one Redis or Valkey deployment: a single server, a Sentinel group, a Cluster.
//
// Commands are pipelined over few connections: one multiplexed connection for each loop, server and
// protocol version, so a call never changes threads. Blocking and stateful commands (BLPOP, MULTI,
// SUBSCRIBE, WATCH) take a connection of their own from a bounded pool (dedicate()). Subscriptions
// that the node itself holds live on connections of their own, too (subscribe()).
//
// Where a command goes is topology's decision (topology.h, without I/O): the client follows MOVED
// and ASK, waits out TRYAGAIN, CLUSTERDOWN and a failover until the deadline, and connects again
// with backoff and jitter. A command is sent again only if it certainly did not run (never
// written, or refused with MOVED, ASK, TRYAGAIN, LOADING, MASTERDOWN, CLUSTERDOWN, READONLY), or if
// the caller says that running it twice is harmless. Commands of one loop for one slot that are all
// sent on (MOVED, ASK) keep their order; those that wait do not (Route::overtaken).
//
// Where nobody can take over, a server that is down is an error at once: a single one, or all.
//
// Thread-safe. Calls suspend and resume on the caller's loop, which must be one of the runtime's.
// Errors: engine_down (no connection, or it was lost before the answer), timeout, overloaded (a
// queue or pool is at its bound), too_large (the answer; its connection is lost), cancelled
// (shutting down). What the server answers, its errors included, is an Answer; at the deadline its
// last refusal is one, too.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/task.h"
#include "engine/redis/url.h"
#include "net/runtime.h"
#include "obs/metrics.h"
#include "wire/resp.h"

namespace larder::engine::redis {

// The bytes of one reply, as they came; whole and well formed.
struct Answer {
  std::string bytes;

  bool is_error() const { return !bytes.empty() && (bytes[0] == '-' || bytes[0] == '!'); }
  // The text behind '-', without CRLF. REQUIRES: is_error().
  std::string_view error() const;
  wire::Reply parse() const;
};

// Where a command goes.
struct Route {
  static constexpr std::uint32_t kAnySlot = UINT32_MAX;
  std::uint32_t slot = kAnySlot;  // 0..16383 (slot_of); kAnySlot: any primary
  std::string node;               // one server by its address (see nodes()); "" = by slot
  bool replica = false;           // a replica may answer (READONLY): the healthiest and nearest
  int protocol = 3;               // what the answer is to look like
  bool repeatable = false;  // running it twice is harmless: send again after a lost connection
  bool own = false;         // dedicate(): for the node itself, not counted against max_dedicated
  // Has the caller sent something since that must not run before this? Then it does not wait to be
  // sent again: its refusal is its answer. Asked on the caller's loop. Empty: no.
  std::function<bool()> overtaken = {};
};

struct Options {
  Url url;
  std::size_t max_in_flight = 100'000;       // commands that wait for answers, of one connection
  std::size_t max_queued_bytes = 64u << 20;  // of these, not yet taken by the socket
  std::size_t max_dedicated = 1'000;  // connections given out by dedicate(), of the whole client
  std::size_t max_reply_bytes = 512u << 20;
  DurationUs connect_timeout_us = 1 * kSecond;
  DurationUs probe_us = 1 * kSecond;  // health: how often each server is pinged while idle
  obs::Registry* metrics = nullptr;   // may be null; else outlives the client
  std::function<void(std::string)>
      log;  // changes of state, one line each; any thread; may be empty
};

// What the client knows of one server, for CLUSTER-wide commands, replica choice and pages.
struct ServerInfo {
  std::string address;  // host:port
  bool primary = true;
  bool up = false;
  DurationUs latency_us = 0;  // smoothed
};

// A connection of one's own, for one client that is in a state. Used from one loop.
class Dedicated {
 public:
  virtual ~Dedicated() = default;  // closes it, or gives it back if nothing was left in it (RESET)
  // Writes the bytes of one or more commands. One writer at a time.
  virtual Task<Result<void>> send(std::string bytes) = 0;
  // The next reply or push, whenever it comes. One reader at a time.
  virtual Task<Result<Answer>> receive(TimeUs deadline) = 0;
  // Ends pending and later calls. Callable more than once.
  virtual void shutdown() = 0;
  virtual int protocol() const = 0;  // that is spoken on it: 2 where the server knows no HELLO
};

// A subscription that outlives connections: made again after each loss.
class Subscriber {
 public:
  virtual ~Subscriber() = default;
  // Called on the loop that called subscribe(); loop 0 if none did.
  virtual void on_message(std::string_view channel, std::string_view message) = 0;
  // From here on every message on `channel` will be seen (also after a reconnect).
  virtual void on_subscribed(std::string_view channel) = 0;
  // Messages on `channel` may be lost from here on.
  virtual void on_lost(std::string_view channel) = 0;
};

class Client {
 public:
  // Nothing is connected yet. `runtime` outlives the client.
  static Result<std::unique_ptr<Client>> create(net::Runtime& runtime, Options options);
  virtual ~Client() = default;

  // Discovers the topology and keeps it, watches health, holds the subscriptions. Spawn it once
  // into a group that is stopped and joined before the client goes.
  virtual Task<void> run(TaskGroup& group) = 0;

  // One command. `args` are copied into the connection's buffer before this suspends.
  virtual Task<Result<Answer>> call(Route route, std::vector<std::string> args,
                                    TimeUs deadline) = 0;

  // Bytes of one command as a client sent it, and its slot in `route`: the same without parsing.
  virtual Task<Result<Answer>> forward(Route route, std::string bytes, TimeUs deadline) = 0;

  // EVALSHA, with EVAL where the server does not have the script. `keys` share one slot.
  struct Script {
    std::string_view text;
    std::string sha1;  // 40 hex digits
  };
  static Script script(std::string_view text);  // a view of `text`
  virtual Task<Result<Answer>> eval(const Script& script, std::vector<std::string> keys,
                                    std::vector<std::string> args, bool repeatable,
                                    TimeUs deadline) = 0;

  // Error overloaded: max_dedicated are in use (Route::own: never). With url.cluster() the
  // connection is to the slot's primary, and redirections are the caller's business.
  virtual Task<Result<std::unique_ptr<Dedicated>>> dedicate(Route route, TimeUs deadline) = 0;

  // Until unsubscribe(), whose end no callback outlives. `sharded`: SSUBSCRIBE at the primary of
  // the channel's slot where the deployment is a cluster that knows it, else SUBSCRIBE. The
  // subscriber outlives it.
  virtual void subscribe(std::vector<std::string> channels, bool sharded, Subscriber& to) = 0;
  virtual Task<void> unsubscribe(Subscriber& from) = 0;

  virtual bool cluster() const = 0;
  // Does PUBLISH have to be SPUBLISH for subscribe(sharded = true)?
  virtual bool sharded_channels() const = 0;
  // A primary for every slot is known and connected.
  virtual bool up() const = 0;
  // The server's own version ("7.0.15"; "" before the first connection).
  virtual std::string server_version() const = 0;
  virtual std::vector<ServerInfo> nodes() const = 0;
};

}  // namespace larder::engine::redis
