#include "net/tls.h"

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <array>

#include "net/address.h"

namespace larder::net {
namespace {

struct Free {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  void operator()(SSL* ssl) const { SSL_free(ssl); }
};

// The oldest of OpenSSL's errors on this thread; empties the queue.
std::string openssl_error() {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  if (code == 0) return "no reason given";
  std::array<char, 256> text{};
  ERR_error_string_n(code, text.data(), text.size());
  const char* const reason = ERR_reason_error_string(code);
  return reason ? reason : text.data();
}

// TLS over another stream. OpenSSL works on two buffers of memory; what moves their bytes are the
// coroutines below, so that nothing blocks and no second way to the socket is needed.
class TlsStream final : public Stream {
 public:
  TlsStream(std::unique_ptr<SSL, Free> ssl, std::unique_ptr<Stream> plain)
      : ssl_(std::move(ssl)), plain_(std::move(plain)), encrypted_(kRecords, '\0') {
    received_ = BIO_new(BIO_s_mem());
    to_send_ = BIO_new(BIO_s_mem());
    SSL_set_bio(ssl_.get(), received_, to_send_);  // which owns them
  }

  Task<Result<void>> handshake(bool verify, std::string name);

  Task<Result<std::size_t>> read_some(char* buffer, std::size_t size) override;
  Result<std::size_t> write_now(std::string_view) override { return std::size_t{0}; }
  Task<Result<void>> write_all(std::string_view bytes) override;
  void shutdown() override { plain_->shutdown(); }

  std::string peer() const override { return plain_->peer(); }
  std::string local() const override { return plain_->local(); }
  int fd() const override { return plain_->fd(); }

 private:
  static constexpr std::size_t kRecords = 32 << 10;  // two records, the largest of which is 16 KiB

  Task<Result<std::size_t>> receive();
  Task<Result<void>> flush();
  std::unexpected<Error> failed(std::string_view what) const {
    return fail(ErrorCode::io, fmt::format("TLS with {}: {}: {}", peer(), what, openssl_error()));
  }

  std::unique_ptr<SSL, Free> ssl_;
  std::unique_ptr<Stream> plain_;
  BIO* received_ = nullptr;
  BIO* to_send_ = nullptr;
  std::string encrypted_;
  std::string sending_;
  std::shared_ptr<Waiters> flushing_;  // somebody sends; null: nobody
  bool broken_ = false;                // a write failed
};

// More of what the peer sent, for OpenSSL. 0: the end.
Task<Result<std::size_t>> TlsStream::receive() {
  const auto size = co_await plain_->read_some(encrypted_.data(), encrypted_.size());
  if (size && *size > 0) BIO_write(received_, encrypted_.data(), static_cast<int>(*size));
  co_return size;
}

// Sends what OpenSSL has made. The reader may have to do so, too (an answer to a new key), and two
// must not write to one socket: who comes second waits for the first, who sends for both.
Task<Result<void>> TlsStream::flush() {
  while (flushing_) {
    const std::shared_ptr<Waiters> other = flushing_;
    co_await other->wait();
  }
  Result<void> result;
  if (broken_) result = fail(ErrorCode::io, "the connection to " + peer() + " is broken");
  if (broken_ || BIO_pending(to_send_) == 0) co_return result;
  flushing_ = std::make_shared<Waiters>();
  for (int size = BIO_pending(to_send_); result && size > 0; size = BIO_pending(to_send_)) {
    sending_.resize(static_cast<std::size_t>(size));
    BIO_read(to_send_, sending_.data(), size);
    result = co_await plain_->write_all(sending_);
  }
  broken_ = !result;
  const std::shared_ptr<Waiters> done = std::exchange(flushing_, nullptr);
  done->notify();
  co_return result;
}

Task<Result<void>> TlsStream::handshake(bool verify, std::string name) {
  for (;;) {
    ERR_clear_error();
    const int done = SSL_connect(ssl_.get());
    const int problem = done == 1 ? SSL_ERROR_NONE : SSL_get_error(ssl_.get(), done);
    if (done != 1 && problem != SSL_ERROR_WANT_READ) {
      const long verdict = SSL_get_verify_result(ssl_.get());
      Result<void> result = failed("handshake");
      if (verify && verdict != X509_V_OK) {
        result = fail(ErrorCode::io,
                      fmt::format("TLS with {}: its certificate is not accepted for '{}': {}; set "
                                  "the CA that signed it (ca=file) or the name in it (sni=name)",
                                  peer(), name, X509_verify_cert_error_string(verdict)));
      }
      (void)co_await flush();  // the alert that tells the peer
      co_return result;
    }
    const auto sent = co_await flush();
    if (!sent) co_return std::unexpected(sent.error());
    if (done == 1) co_return Result<void>();
    const auto size = co_await receive();
    if (!size) co_return std::unexpected(size.error());
    if (*size == 0) {
      co_return fail(ErrorCode::io,
                     fmt::format("TLS with {}: closed during the handshake; does it speak TLS on "
                                 "this port?",
                                 peer()));
    }
  }
}

Task<Result<std::size_t>> TlsStream::read_some(char* buffer, std::size_t size) {
  for (;;) {
    ERR_clear_error();
    std::size_t taken = 0;
    const int done = SSL_read_ex(ssl_.get(), buffer, size, &taken);
    if (done == 1) co_return taken;
    const int problem = SSL_get_error(ssl_.get(), done);
    if (problem == SSL_ERROR_ZERO_RETURN) co_return std::size_t{0};
    // A server that asks for our certificate says only now, under TLS 1.3, that it wants another.
    if (problem != SSL_ERROR_WANT_READ) co_return failed("read");
    if (BIO_pending(to_send_) > 0 && !flushing_) {
      const auto sent = co_await flush();
      if (!sent) co_return std::unexpected(sent.error());
    }
    const auto more = co_await receive();
    if (!more || *more == 0) co_return more;
  }
}

Task<Result<void>> TlsStream::write_all(std::string_view bytes) {
  while (!bytes.empty()) {
    ERR_clear_error();
    std::size_t taken = 0;
    // At most so many at once: what OpenSSL makes of them lies in memory.
    const std::string_view piece = bytes.substr(0, 256 << 10);
    const int done = SSL_write_ex(ssl_.get(), piece.data(), piece.size(), &taken);
    if (done != 1) co_return failed("write");
    bytes.remove_prefix(taken);
    const auto sent = co_await flush();
    if (!sent) co_return std::unexpected(sent.error());
  }
  co_return Result<void>();
}

class Context final : public TlsContext {
 public:
  Context(std::unique_ptr<SSL_CTX, Free> context, TlsOptions options)
      : context_(std::move(context)), options_(std::move(options)) {}

  Task<Result<std::unique_ptr<Stream>>> wrap(std::unique_ptr<Stream> plain, std::string host,
                                             TimeUs deadline) const override;

 private:
  Result<std::unique_ptr<SSL, Free>> make(const std::string& name) const;

  std::unique_ptr<SSL_CTX, Free> context_;
  TlsOptions options_;
};

Result<std::unique_ptr<SSL, Free>> Context::make(const std::string& name) const {
  std::unique_ptr<SSL, Free> ssl(SSL_new(context_.get()));
  if (!ssl) return fail(ErrorCode::io, "TLS: " + openssl_error());
  SocketAddress ignored;
  const bool numeric = numeric_address({.host = name, .port = 1}, ignored);
  // The name in the greeting lets a server choose its certificate; numbers are not allowed there.
  if (!numeric) SSL_set_tlsext_host_name(ssl.get(), name.c_str());
  if (options_.verify) {
    SSL_set_verify(ssl.get(), SSL_VERIFY_PEER, nullptr);
    SSL_set_hostflags(ssl.get(), X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    const int set = numeric ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl.get()), name.c_str())
                            : SSL_set1_host(ssl.get(), name.c_str());
    if (set != 1) return fail(ErrorCode::io, "TLS: '" + name + "' cannot be a server's name");
  }
  return ssl;
}

Task<Result<std::unique_ptr<Stream>>> Context::wrap(std::unique_ptr<Stream> plain, std::string host,
                                                    TimeUs deadline) const {
  std::string name = options_.server_name.empty() ? host : options_.server_name;
  auto ssl = make(name);
  if (!ssl) co_return std::unexpected(ssl.error());
  auto stream = std::make_unique<TlsStream>(std::move(*ssl), std::move(plain));
  Loop& loop = *Loop::current();
  bool late = false;
  TimerId timer = 0;
  if (deadline != kNever) {
    timer = loop.call_at(deadline, [&late, raw = stream.get()] {
      late = true;
      raw->shutdown();
    });
  }
  const auto done = co_await stream->handshake(options_.verify, std::move(name));
  loop.cancel(timer);
  if (late) {
    co_return fail(ErrorCode::timeout, "no TLS handshake with " + stream->peer() + " in time");
  }
  if (!done) co_return std::unexpected(done.error());
  co_return std::move(stream);
}

}  // namespace

Result<std::shared_ptr<const TlsContext>> TlsContext::create(TlsOptions options) {
  const auto bad = [](const std::string& what) {
    return fail(ErrorCode::config, fmt::format("TLS: {}: {}", what, openssl_error()));
  };
  ERR_clear_error();
  std::unique_ptr<SSL_CTX, Free> context(SSL_CTX_new(TLS_client_method()));
  if (!context) return bad("OpenSSL");
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  if (options.verify) {
    if (options.ca_file.empty()) {
      if (SSL_CTX_set_default_verify_paths(context.get()) != 1) return bad("the system's CAs");
    } else if (SSL_CTX_load_verify_file(context.get(), options.ca_file.c_str()) != 1) {
      return bad("cannot read CA certificates from " + options.ca_file);
    }
  }
  if (!options.cert_file.empty()) {
    if (SSL_CTX_use_certificate_chain_file(context.get(), options.cert_file.c_str()) != 1) {
      return bad("cannot read a certificate from " + options.cert_file);
    }
    const std::string& key = options.key_file.empty() ? options.cert_file : options.key_file;
    if (SSL_CTX_use_PrivateKey_file(context.get(), key.c_str(), SSL_FILETYPE_PEM) != 1) {
      return bad("cannot read the certificate's key from " + key);
    }
  } else if (!options.key_file.empty()) {
    return fail(ErrorCode::config, "TLS: a key without a certificate: " + options.key_file);
  }
  return std::make_shared<Context>(std::move(context), std::move(options));
}

Task<Result<std::unique_ptr<Stream>>> connect_tls(Runtime& runtime, std::string address,
                                                  std::shared_ptr<const TlsContext> tls,
                                                  TimeUs deadline) {
  const auto parsed = parse_address(address);
  if (!parsed) co_return std::unexpected(parsed.error());
  auto plain = co_await runtime.connect(address, deadline);
  if (!plain) co_return std::unexpected(plain.error());
  std::unique_ptr<Stream> connected = std::move(*plain);
  auto stream = co_await tls->wrap(std::move(connected), parsed->host, deadline);
  co_return stream;
}

}  // namespace larder::net
