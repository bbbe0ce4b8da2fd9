// One connection to one server: dialling it (TLS, HELLO, AUTH, SELECT), whole replies out of its
// bytes, and pipelining. Internal to the engine; all of it belongs to one loop.
#pragma once

#include <coroutine>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/task.h"
#include "engine/redis/url.h"
#include "net/runtime.h"
#include "net/tls.h"
#include "wire/reply_scan.h"

namespace larder::engine::redis {

std::string encode(const std::vector<std::string>& args);

// What was read and not yet taken. Grows to the largest reply, and shrinks again.
class ReplyBuffer {
 public:
  explicit ReplyBuffer(std::size_t max_reply_bytes);

  // Where to read to; filled() says how much came. Ends what next() returned before.
  std::span<char> space();
  void filled(std::size_t bytes) { end_ += bytes; }
  // The next whole reply. nullopt: more bytes are needed, or there is an error().
  std::optional<std::string_view> next();
  // "" or what is wrong with the bytes: not RESP, or a reply over the limit. Stays.
  const std::string& error() const { return scanner_.error(); }

 private:
  wire::ReplyScanner scanner_;
  std::unique_ptr<char[]> bytes_;
  std::size_t capacity_ = 0;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  std::size_t wants_ = 0;
};

// A server that has been greeted.
struct Peer {
  std::unique_ptr<net::Stream> stream;
  ReplyBuffer buffer;
  int protocol = 2;     // that it speaks now
  std::string version;  // "7.0.15"
  bool primary = true;  // as it says itself

  // The next reply. Errors: engine_down.
  Task<Result<std::string>> receive();
};

// Shuts a stream down at a deadline, unless it goes before. Lives in the frame of who waits.
class Alarm {
 public:
  Alarm(net::Stream& stream, TimeUs deadline);
  ~Alarm() { loop_.cancel(timer_); }
  Alarm(const Alarm&) = delete;
  Alarm& operator=(const Alarm&) = delete;
  bool rang() const { return rang_; }

 private:
  Loop& loop_;
  TimerId timer_ = 0;
  bool rang_ = false;
};

// Makes connections. Immutable, thread-safe.
class Dialer {
 public:
  Dialer(net::Runtime& runtime, Url url, std::shared_ptr<const net::TlsContext> tls,
         std::size_t max_reply_bytes)
      : runtime_(runtime),
        url_(std::move(url)),
        tls_(std::move(tls)),
        max_bytes_(max_reply_bytes) {}

  // Connects and greets. `readonly`: the server is a replica in a cluster, and is to answer. A
  // server that does not know HELLO is spoken to in RESP2. Errors (engine_down, timeout) say what
  // to do where that is known, and never a password.
  Task<Result<Peer>> dial(std::string address, int protocol, bool readonly, TimeUs deadline) const;

  // Without AUTH of the data servers, without SELECT: Sentinels have a password of their own.
  Task<Result<Peer>> dial_sentinel(std::string address, TimeUs deadline) const;

 private:
  struct Login {
    std::string user;
    std::string password;
    unsigned database = 0;
    bool readonly = false;
  };
  Task<Result<Peer>> open(std::string address, TimeUs deadline) const;
  Task<Result<void>> greet(Peer& peer, std::string address, int protocol, Login login) const;
  Task<Result<void>> greet_old(Peer& peer, std::string address, Login login) const;
  Error explain(const std::string& address, std::string_view answer) const;

  net::Runtime& runtime_;
  Url url_;
  std::shared_ptr<const net::TlsContext> tls_;
  std::size_t max_bytes_;
};

// What became of a command.
enum class Fate : std::uint8_t {
  answered,
  unsent,      // the connection went before a byte was written: it did not run
  lost,        // the connection went before the answer: it may have run
  timeout,     // likewise
  overloaded,  // too many wait already: it did not run
  too_large,   // the answer is over the limit
};

class Connection;

// One command, awaited: `const Fate fate = co_await exchange;`. The bytes are copied at once. Those
// who leave at their deadline leave their place in the order of the answers behind.
class Exchange {
 public:
  // `asking`: precede it by ASKING, whose answer is dropped.
  Exchange(Connection& connection, std::string_view bytes, TimeUs deadline, bool asking = false)
      : connection_(connection), bytes_(bytes), deadline_(deadline), asking_(asking) {}
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  bool await_ready() const { return false; }
  bool await_suspend(std::coroutine_handle<> handle);
  Fate await_resume() const { return fate_; }
  std::string reply;

 private:
  friend Connection;
  void finish(Fate fate);

  Connection& connection_;
  std::string_view bytes_;
  TimeUs deadline_;
  bool asking_;
  Fate fate_ = Fate::unsent;
  std::uint64_t number_ = 0;
  TimerId timer_ = 0;
  std::coroutine_handle<> handle_;
};

// Commands of many callers over one connection. What is queued in one turn of the loop leaves in
// one write; the answers come back in order.
//
// Its owner runs read() and write(), and calls fail() when read() has ended.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Peer peer, std::size_t max_in_flight, std::size_t max_queued_bytes);

  // Until the connection ends; returns why.
  static Task<std::string> read(std::shared_ptr<Connection> self);
  // Until close().
  static Task<void> write(std::shared_ptr<Connection> self);

  // Ends read() and write(). What is in flight stays so until fail().
  void close();
  void fail();

  // A look at its health: pings, unless a ping is under way. Returns for how long the server owes
  // an answer and has been silent; 0 if it owes none.
  DurationUs probe();

  bool closed() const { return closed_; }
  std::size_t in_flight() const { return slots_.size(); }
  std::uint64_t answers() const { return first_; }
  DurationUs latency_us() const { return latency_us_; }  // of probes, smoothed; 0: none yet
  const Peer& peer() const { return peer_; }

 private:
  friend Exchange;
  struct Slot {
    Exchange* exchange;  // null: nobody waits any more
    std::uint64_t end;   // where its bytes end, counted from the connection's beginning
  };

  void push(Exchange* exchange, std::string_view bytes);
  void forget(std::uint64_t number) { slots_[number - first_].exchange = nullptr; }
  bool deliver(std::string_view reply);
  void wake_writer();

  // Suspends the writer until there is something to write.
  struct Wake {
    Connection& connection;
    bool await_ready() const { return false; }
    void await_suspend(std::coroutine_handle<> handle) { connection.writer_ = handle; }
    void await_resume() const {}
  };

  Loop& loop_;
  Peer peer_;
  std::size_t max_in_flight_;
  std::size_t max_queued_bytes_;
  std::deque<Slot> slots_;
  std::uint64_t first_ = 0;   // the number of slots_.front()
  std::string queued_;        // not yet given to the socket
  std::string writing_;       // is being given to it
  std::uint64_t total_ = 0;   // bytes ever queued
  std::uint64_t handed_ = 0;  // of these, given to the socket
  std::coroutine_handle<> writer_;
  bool closed_ = false;
  TimeUs heard_at_ = 0;      // when something came, or was first owed
  TimeUs probed_at_ = 0;     // a ping is under way since; 0: none
  std::uint64_t probe_ = 0;  // its number
  DurationUs latency_us_ = 0;
};

}  // namespace larder::engine::redis
