// TLS for outgoing connections, on OpenSSL 3. With runtime.h the whole of what others see of it.
#pragma once

#include <memory>
#include <string>

#include "base/error.h"
#include "base/task.h"
#include "net/runtime.h"

namespace larder::net {

struct TlsOptions {
  std::string ca_file;      // PEM; "" = the system's
  std::string cert_file;    // PEM, our own certificate with its chain; "" = none
  std::string key_file;     // PEM, its key; "" = it stands in cert_file
  std::string server_name;  // the name that the peer must prove; "" = the host of the address
  bool verify = true;       // chain and name. Off: anybody may be the peer, for tests
};

// The files, read once; shared by all connections. Immutable, thread-safe.
class TlsContext {
 public:
  // Errors (config) name the file.
  static Result<std::shared_ptr<const TlsContext>> create(TlsOptions options);
  virtual ~TlsContext() = default;

  // Wraps `plain`, which is connected to `host`, and shakes hands. On the stream's loop. Errors: io
  // (with what OpenSSL says, and what to do where that is known), timeout. write_now() of the
  // stream that comes out takes nothing: a record that was made must be sent whole.
  virtual Task<Result<std::unique_ptr<Stream>>> wrap(std::unique_ptr<Stream> plain,
                                                     std::string host, TimeUs deadline) const = 0;

 protected:
  TlsContext() = default;
};

// Connects to "host:port" on the current loop and shakes hands.
Task<Result<std::unique_ptr<Stream>>> connect_tls(Runtime& runtime, std::string address,
                                                  std::shared_ptr<const TlsContext> tls,
                                                  TimeUs deadline);

}  // namespace larder::net
