// What a mariadb:// URL names: hosts to try, one after the other, and how to speak to them.
//
//   mariadb://user:password@host:3306,other/database?tls=on&ca=file&cert=file&key=file&verify=off
//   mariadb://user@/database?socket=/run/mysqld/mysqld.sock
//
// mysql:// means the same. User, password, database and what stands behind a = are percent-decoded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/task.h"

namespace larder::source::mariadb {

struct Host {
  std::string name;  // as written; an IPv6 address without its brackets
  std::uint16_t port = 3306;
};

struct Url {
  std::string user;
  std::string password;
  std::string database;
  std::vector<Host> hosts;  // at least one, unless there is a socket
  std::string socket;       // a path
  // TLS is asked for by tls=on, or by naming one of its files. The server's certificate and its
  // name are verified unless verify=off.
  bool tls = false;
  bool verify = true;
  std::string ca, cert, key;

  // Errors (config) quote nothing of the URL, which may hold a password.
  static Result<Url> parse(const std::string& text);
};

// One attempt to connect.
struct Target {
  std::string name;  // "db.example:3306/shop", "/run/mysqld.sock/shop"; for messages
  std::string host;  // an address, or (with a verified certificate) the name; "": the socket
  std::uint16_t port = 0;
};

// In the order of the URL; all addresses of a name, in the order of the system's preference. Where
// the name of a certificate is verified, libmariadb must be given that name, and looks it up by
// itself, blocking; it is looked up here first, so that what caches names has it. Errors:
// source_down (no name could be looked up), timeout. REQUIRES: the current loop is one of
// net::Runtime.
Task<Result<std::vector<Target>>> targets_of(Url url, TimeUs deadline);

}  // namespace larder::source::mariadb
