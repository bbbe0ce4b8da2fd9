#include "engine/redis/url.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>

namespace larder::engine::redis {
namespace {

constexpr std::string_view kExamples =
    "use redis://host:6379/0, rediss://, redis+sentinel://host1,host2/mymaster, "
    "redis+cluster://host1:7000,host2:7000 or redis+unix:/path";

Error wrong(std::string_view what) {
  return {ErrorCode::config, fmt::format("engine URL: {}; {}", what, kExamples), {}};
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::optional<std::string> percent_decoded(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    if (i + 2 >= text.size()) return std::nullopt;
    const int high = hex_digit(text[i + 1]);
    const int low = hex_digit(text[i + 2]);
    if (high < 0 || low < 0) return std::nullopt;
    out += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return out;
}

// "host", "host:port", "[v6]", "[v6]:port" with the port filled in.
Result<std::string> endpoint(std::string_view text, std::uint16_t default_port) {
  std::string_view host = text;
  std::string_view port;
  if (text.starts_with('[')) {
    const std::size_t end = text.find(']');
    if (end == std::string_view::npos) return std::unexpected(wrong("a '[' without its ']'"));
    host = text.substr(0, end + 1);
    if (const std::string_view rest = text.substr(end + 1); !rest.empty()) {
      if (rest[0] != ':') return std::unexpected(wrong("what follows ']' must be :port"));
      port = rest.substr(1);
      if (port.empty()) return std::unexpected(wrong("a ':' without a port"));
    }
  } else if (const std::size_t colon = text.find(':'); colon != std::string_view::npos) {
    host = text.substr(0, colon);
    port = text.substr(colon + 1);
    if (port.empty()) return std::unexpected(wrong("a ':' without a port"));
  }
  if (host.empty() || host == "[]") return std::unexpected(wrong("it names no host"));
  std::uint16_t number = default_port;
  if (!port.empty()) {
    const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
    if (error != std::errc() || end != port.data() + port.size() || number == 0)
      return std::unexpected(wrong(fmt::format("'{}' is not a port", port)));
  }
  return fmt::format("{}:{}", host, number);
}

// "user:password@" in front of the hosts; what is left is returned.
Result<std::string_view> read_login(std::string_view authority, Url& url) {
  const std::size_t at = authority.rfind('@');
  if (at == std::string_view::npos) return authority;
  const std::string_view login = authority.substr(0, at);
  const std::size_t colon = login.find(':');
  const auto user = percent_decoded(login.substr(0, colon));
  const auto password =
      colon == std::string_view::npos ? std::string() : percent_decoded(login.substr(colon + 1));
  // Not the text itself: it holds a secret.
  if (!user || !password)
    return std::unexpected(wrong("a '%' in user or password must be two hex digits (%25 is '%')"));
  url.user = *user;
  url.password = *password;
  return authority.substr(at + 1);
}

Result<void> read_parameter(std::string_view name, std::string value, Url& url) {
  if (name == "sentinel_password") {
    url.sentinel_password = std::move(value);
  } else if (name == "ca") {
    url.ca_file = std::move(value);
  } else if (name == "cert") {
    url.cert_file = std::move(value);
  } else if (name == "key") {
    url.key_file = std::move(value);
  } else if (name == "sni") {
    url.server_name = std::move(value);
  } else if (name == "verify") {
    if (value != "on" && value != "off") return std::unexpected(wrong("verify is on or off"));
    url.verify = value == "on";
  } else {
    return std::unexpected(
        wrong(fmt::format("unknown parameter '{}' (there are sentinel_password, ca, cert, key, "
                          "sni, verify)",
                          name)));
  }
  return {};
}

Result<void> read_query(std::string_view query, Url& url) {
  while (!query.empty()) {
    const std::size_t end = query.find('&');
    const std::string_view pair = query.substr(0, end);
    query = end == std::string_view::npos ? std::string_view() : query.substr(end + 1);
    const std::size_t equals = pair.find('=');
    if (equals == std::string_view::npos)
      return std::unexpected(wrong("a parameter must be name=value"));
    auto value = percent_decoded(pair.substr(equals + 1));
    if (!value) return std::unexpected(wrong("a '%' in a parameter must be two hex digits"));
    auto read = read_parameter(pair.substr(0, equals), std::move(*value), url);
    if (!read) return read;
  }
  const bool files = !url.ca_file.empty() || !url.cert_file.empty() || !url.key_file.empty();
  if (!url.tls && (files || !url.server_name.empty() || !url.verify))
    return std::unexpected(wrong("ca, cert, key, sni and verify need rediss://"));
  if (url.cert_file.empty() != url.key_file.empty())
    return std::unexpected(wrong("cert and key belong together"));
  return {};
}

// "/mymaster/0" or "/0".
Result<void> read_path(std::string_view path, Url& url) {
  if (url.kind == Url::Kind::sentinel) {
    const std::size_t slash = path.find('/');
    const auto master = percent_decoded(path.substr(0, slash));
    if (!master || master->empty())
      return std::unexpected(wrong("the path must name the primary that the sentinels monitor"));
    url.master = *master;
    path = slash == std::string_view::npos ? std::string_view() : path.substr(slash + 1);
  }
  if (path.empty()) return {};
  const auto [end, error] = std::from_chars(path.data(), path.data() + path.size(), url.database);
  if (error != std::errc() || end != path.data() + path.size())
    return std::unexpected(wrong(fmt::format("'{}' is not the number of a database", path)));
  if (url.cluster() && url.database != 0)
    return std::unexpected(wrong("a cluster has database 0 alone"));
  return {};
}

struct Scheme {
  std::string_view name;
  Url::Kind kind;
  bool tls;
};
constexpr std::array kSchemes{
    Scheme{"redis", Url::Kind::single, false},
    Scheme{"rediss", Url::Kind::single, true},
    Scheme{"redis+sentinel", Url::Kind::sentinel, false},
    Scheme{"rediss+sentinel", Url::Kind::sentinel, true},
    Scheme{"redis+cluster", Url::Kind::cluster, false},
    Scheme{"rediss+cluster", Url::Kind::cluster, true},
};

}  // namespace

std::string Url::display() const {
  std::string text = kind == Kind::sentinel  ? "redis+sentinel://"
                     : kind == Kind::cluster ? "redis+cluster://"
                                             : "redis://";
  if (tls) text.insert(5, 1, 's');
  if (kind == Kind::single && seeds.front().starts_with("unix:")) return "redis+" + seeds.front();
  text += fmt::format("{}", fmt::join(seeds, ","));
  if (kind == Kind::sentinel) text += "/" + master;
  if (database != 0) text += fmt::format("/{}", database);
  return text;
}

Result<Url> parse_url(std::string_view text) {
  Url url;
  constexpr std::string_view kUnix = "redis+unix:";
  if (text.starts_with(kUnix)) {
    if (text.size() == kUnix.size() || text[kUnix.size()] != '/')
      return std::unexpected(wrong("redis+unix: wants an absolute path"));
    url.seeds.push_back(fmt::format("unix:{}", text.substr(kUnix.size())));
    return url;
  }
  const std::size_t colon = text.find("://");
  if (colon == std::string_view::npos) return std::unexpected(wrong("it has no scheme://"));
  const auto* const scheme = std::ranges::find(kSchemes, text.substr(0, colon), &Scheme::name);
  if (scheme == kSchemes.end()) return std::unexpected(wrong("its scheme is unknown"));
  url.kind = scheme->kind;
  url.tls = scheme->tls;
  std::string_view rest = text.substr(colon + 3);
  std::string_view query;
  // A password may hold '/' and '?' only percent-encoded, so the first ones end the authority.
  if (const std::size_t mark = rest.find('?'); mark != std::string_view::npos) {
    query = rest.substr(mark + 1);
    rest = rest.substr(0, mark);
  }
  const std::size_t slash = rest.find('/');
  const std::string_view path =
      slash == std::string_view::npos ? std::string_view() : rest.substr(slash + 1);
  auto hosts = read_login(rest.substr(0, slash), url);
  if (!hosts) return std::unexpected(hosts.error());
  const std::uint16_t port = url.kind == Url::Kind::sentinel ? 26379 : 6379;
  for (std::string_view left = *hosts;;) {
    const std::size_t comma = left.find(',');
    auto seed = endpoint(left.substr(0, comma), port);
    if (!seed) return std::unexpected(seed.error());
    url.seeds.push_back(std::move(*seed));
    if (comma == std::string_view::npos) break;
    left = left.substr(comma + 1);
  }
  if (url.kind == Url::Kind::single && url.seeds.size() > 1)
    return std::unexpected(wrong("several hosts need redis+cluster:// or redis+sentinel://"));
  if (auto read = read_path(path, url); !read) return std::unexpected(read.error());
  if (auto read = read_query(query, url); !read) return std::unexpected(read.error());
  return url;
}

std::uint32_t slot_of(std::string_view key) {
  if (const std::size_t open = key.find('{'); open != std::string_view::npos) {
    const std::size_t close = key.find('}', open + 1);
    if (close != std::string_view::npos && close != open + 1)
      key = key.substr(open + 1, close - open - 1);
  }
  std::uint32_t crc = 0;  // CRC-16/XMODEM: polynomial 0x1021, most significant bit first
  for (const char c : key) {
    crc ^= static_cast<std::uint32_t>(static_cast<unsigned char>(c)) << 8;
    for (int bit = 0; bit < 8; ++bit)
      crc = ((crc << 1) ^ ((crc & 0x8000) != 0 ? 0x1021U : 0U)) & 0xffff;
  }
  return crc % 16384;
}

}  // namespace larder::engine::redis
