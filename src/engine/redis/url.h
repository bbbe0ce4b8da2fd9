// Engine URLs: redis:// rediss:// redis+sentinel:// redis+cluster:// (and rediss+sentinel://,
// rediss+cluster://), and which slot a key has. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace larder::engine::redis {

struct Url {
  enum class Kind : std::uint8_t { single, sentinel, cluster };
  Kind kind = Kind::single;
  bool tls = false;
  std::vector<std::string> seeds;  // "host:port", or "unix:/path" for a single server
  std::string master;              // sentinel: the name of the monitored primary
  std::string user;                // ACL; "" = default
  std::string password;            // a secret: never print it; "" = none
  std::string sentinel_password;   // ?sentinel_password=; "" = none
  unsigned database = 0;           // redis://h:6379/3
  // TLS: ?ca=file&cert=file&key=file&verify=off&sni=name. The peer's name is verified by default.
  std::string ca_file, cert_file, key_file, server_name;
  bool verify = true;

  bool cluster() const { return kind == Kind::cluster; }
  // The URL without its secrets, for messages.
  std::string display() const;
};

// "redis://user:password@host:6379/0", "redis+sentinel://h1:26379,h2/mymaster/0",
// "redis+cluster://h1:7000,h2:7000", "redis+unix:/path". User and password are percent-decoded.
// Errors (config) say what is wrong and show a right one; they never contain the password.
Result<Url> parse_url(std::string_view text);

// CRC16 (XMODEM) of the key, or of its hash tag, modulo 16384, as Redis Cluster has it.
std::uint32_t slot_of(std::string_view key);

}  // namespace larder::engine::redis
