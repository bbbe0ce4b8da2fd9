// What a postgresql:// URL names: hosts to try, one after the other. libpq looks names up itself,
// and blocks meanwhile; so they are looked up before.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/task.h"

namespace larder::source::postgres {

// One attempt to connect.
struct Target {
  std::string name;  // "db.example:5432/shop", "/run/postgresql/shop"; for messages
  std::vector<std::pair<std::string, std::string>> settings;  // that narrow the URL down to it
};

// Is this what libpq takes? Errors (config) quote nothing of the URL, which may hold a password.
Result<void> check_url(const std::string& url);

// In the order of the URL; all addresses of a name, in the order of the system's preference.
// A host list with target_session_attrs = prefer-standby is gone through twice. Errors: config
// (see check_url), source_down (no name could be looked up), timeout. REQUIRES: the current loop is
// one of net::Runtime.
Task<Result<std::vector<Target>>> targets_of(
    std::string url, std::vector<std::pair<std::string, std::string>> settings, TimeUs deadline);

}  // namespace larder::source::postgres
