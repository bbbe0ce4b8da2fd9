// Event loops on Asio, one a thread; listeners; byte streams; a pool of threads for blocking work.
// With http.h the only place that knows Asio.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/loop.h"
#include "base/task.h"

namespace larder::net {

// A connected byte stream (TCP or Unix socket), bound to one loop; used from that loop only.
class Stream {
 public:
  virtual ~Stream() = default;

  // Reads what is there, at least one byte, into `buffer` (which must stay until then). 0 = the
  // peer has closed, or shutdown() was called. One reader at a time.
  virtual Task<Result<std::size_t>> read_some(char* buffer, std::size_t size) = 0;

  // Writes now what the socket takes, without suspending: the number of bytes taken, maybe 0.
  virtual Result<std::size_t> write_now(std::string_view bytes) = 0;

  // Writes all of `bytes` (which must stay until then). One writer at a time.
  virtual Task<Result<void>> write_all(std::string_view bytes) = 0;

  // Ends pending and later reads and writes. Callable more than once.
  virtual void shutdown() = 0;

  virtual std::string peer() const = 0;  // "127.0.0.1:53211", "unix:/path"
  virtual std::string local() const = 0;
  virtual int fd() const = 0;
};

// The loops of a program and their threads. Loop 0 runs on the thread that calls run().
class Runtime {
 public:
  // threads = 0: one a core.
  static std::unique_ptr<Runtime> create(unsigned threads);
  virtual ~Runtime() = default;

  virtual unsigned size() const = 0;
  virtual Loop& loop(unsigned index) = 0;

  // Runs loop 0 here and the others on threads of their own until stop(). Returns when all have
  // ended; whatever was posted before stop() has run.
  virtual void run() = 0;
  virtual void stop() = 0;  // thread-safe

  // Calls `handler` (from loop 0) at SIGINT and SIGTERM instead of ending the process.
  virtual void on_signal(std::function<void(int)> handler) = 0;

  // Listens on "host:port" ("127.0.0.1:0" takes a free port, "[::1]:7379" is IPv6, "*:7379" all
  // addresses) or "unix:/path" (a stale socket file is replaced, a live one is an error). Hands
  // each connection to the loop with the fewest, where `accept` is called with it and spawned into
  // `group` by the runtime; the connection is counted until that task ends. At most
  // `max_connections` of this address; one more is told `refusal` and closed. Returns the bound
  // address with the real port. `accept` is called from several loops at once, and outlives every
  // task it made. Thread-safe.
  virtual Result<std::string> listen(const std::string& address, TaskGroup& group,
                                     std::function<Task<void>(std::unique_ptr<Stream>)> accept,
                                     std::size_t max_connections, std::string refusal) = 0;
  // Closes all listeners. Open connections stay. From loop 0.
  virtual void stop_listening() = 0;
  virtual std::size_t connections() const = 0;

  // Connects to "host:port" or "unix:/path" on the current loop.
  virtual Task<Result<std::unique_ptr<Stream>>> connect(std::string address, TimeUs deadline) = 0;

 protected:
  Runtime() = default;
};

}  // namespace larder::net
