#include "source/mariadb/url.h"

#include <fmt/format.h>

#include <charconv>
#include <optional>

#include "net/lookup.h"

namespace larder::source::mariadb {
namespace {

std::unexpected<Error> wrong(std::string_view what) {
  return fail(ErrorCode::config,
              fmt::format("the url {}; write mariadb://user:password@host:3306/database?tls=on, or "
                          "mariadb://user@/database?socket=/path",
                          what),
              "mariadb");
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// nullopt: a % that is not followed by two hexadecimal digits, or a zero byte.
std::optional<std::string> decoded(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '%') {
      if (i + 2 >= text.size()) return std::nullopt;
      const int high = hex_digit(text[i + 1]), low = hex_digit(text[i + 2]);
      if (high < 0 || low < 0) return std::nullopt;
      c = static_cast<char>(high * 16 + low);
      i += 2;
    }
    if (c == '\0') return std::nullopt;
    out += c;
  }
  return out;
}

// Cuts `text` at the first `c`; all of it if there is none.
std::string_view take_until(std::string_view& text, char c) {
  const std::size_t at = text.find(c);
  const std::string_view taken = text.substr(0, at);
  text.remove_prefix(at == std::string_view::npos ? text.size() : at + 1);
  return taken;
}

Result<Host> host_of(std::string_view text) {
  Host host;
  std::string_view name = text, port;
  if (text.starts_with('[')) {
    const std::size_t end = text.find(']');
    if (end == std::string_view::npos) return wrong("has a '[' without its ']'");
    name = text.substr(1, end - 1);
    port = text.substr(end + 1);
  } else if (const std::size_t colon = text.find(':'); colon != std::string_view::npos) {
    name = text.substr(0, colon);
    port = text.substr(colon);
  }
  const auto plain = decoded(name);
  if (!plain) return wrong("has a bad % escape");
  if (plain->empty()) return wrong("names no host");
  host.name = *plain;
  if (port.empty()) return host;
  if (port[0] != ':') return wrong("has something between a host and its port");
  port.remove_prefix(1);
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), host.port);
  if (error != std::errc() || end != port.data() + port.size() || host.port == 0)
    return wrong("names a port that is no number from 1 to 65535");
  return host;
}

Result<void> set_option(Url& url, std::string_view name, std::string value, bool& files) {
  const auto on_or_off = [&](bool& out) -> Result<void> {
    if (value != "on" && value != "off") return wrong("says something else than on or off");
    out = value == "on";
    return {};
  };
  if (name == "socket") {
    url.socket = std::move(value);
  } else if (name == "tls") {
    return on_or_off(url.tls);
  } else if (name == "verify") {
    return on_or_off(url.verify);
  } else if (name == "ca" || name == "cert" || name == "key") {
    (name == "ca" ? url.ca : name == "cert" ? url.cert : url.key) = std::move(value);
    files = true;
  } else {
    return wrong("has an option that is not known (known: socket, tls, ca, cert, key, verify)");
  }
  return {};
}

}  // namespace

Result<Url> Url::parse(const std::string& text) {
  std::string_view rest = text;
  const std::size_t scheme = rest.find("://");
  if (scheme == std::string_view::npos ||
      (rest.substr(0, scheme) != "mariadb" && rest.substr(0, scheme) != "mysql"))
    return wrong("does not begin with mariadb://");
  rest.remove_prefix(scheme + 3);
  Url url;
  std::string_view place = take_until(rest, '?');
  std::string_view options = rest;
  std::string_view authority = take_until(place, '/');
  const auto database = decoded(place);
  if (!database) return wrong("has a bad % escape");
  if (database->empty()) return wrong("names no database");
  url.database = *database;
  if (const std::size_t at = authority.rfind('@'); at != std::string_view::npos) {
    std::string_view login = authority.substr(0, at);
    authority.remove_prefix(at + 1);
    const auto user = decoded(take_until(login, ':'));
    const auto password = decoded(login);
    if (!user || !password) return wrong("has a bad % escape");
    url.user = *user;
    url.password = *password;
  }
  bool files = false, tls_said = false;
  while (!options.empty()) {
    std::string_view option = take_until(options, '&');
    if (option.empty()) continue;
    const std::string_view name = take_until(option, '=');
    auto value = decoded(option);
    if (!value || value->empty()) return wrong("has an option without a value");
    tls_said |= name == "tls";
    if (auto set = set_option(url, name, std::move(*value), files); !set)
      return std::unexpected(set.error());
  }
  if (files && !tls_said) url.tls = true;
  if (files && !url.tls) return wrong("names files for TLS and says tls=off");
  if (url.cert.empty() != url.key.empty()) return wrong("names one of cert and key alone");
  while (!authority.empty()) {
    auto host = host_of(take_until(authority, ','));
    if (!host) return std::unexpected(host.error());
    url.hosts.push_back(std::move(*host));
  }
  if (url.hosts.empty() == url.socket.empty())
    return wrong(url.socket.empty() ? "names no host" : "names a host beside a socket");
  return url;
}

Task<Result<std::vector<Target>>> targets_of(Url url, TimeUs deadline) {
  std::vector<Target> targets;
  if (!url.socket.empty()) {
    targets.push_back(
        {.name = fmt::format("{}/{}", url.socket, url.database), .host = {}, .port = 0});
    co_return targets;
  }
  Error unknown;
  for (const Host& host : url.hosts) {
    Target target{.name = fmt::format("{}:{}/{}", host.name, host.port, url.database),
                  .host = host.name,
                  .port = host.port};
    net::SocketAddress ignored;
    if (net::numeric_address({.unix_path = false, .host = host.name, .port = 1}, ignored)) {
      targets.push_back(std::move(target));
      continue;
    }
    net::Address name{.unix_path = false, .host = host.name, .port = 0};
    const auto found = co_await net::look_up(std::move(name), deadline);
    if (!found) {
      unknown = found.error();
      continue;
    }
    if (url.tls && url.verify) {
      targets.push_back(std::move(target));
      continue;
    }
    for (const net::SocketAddress& address : *found) {
      Target one = target;
      one.host = net::host_text(address);
      targets.push_back(std::move(one));
    }
  }
  if (targets.empty())
    co_return fail(unknown.code == ErrorCode::timeout ? ErrorCode::timeout : ErrorCode::source_down,
                   unknown.message, "mariadb");
  co_return targets;
}

}  // namespace larder::source::mariadb
