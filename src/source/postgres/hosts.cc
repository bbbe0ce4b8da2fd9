#include "source/postgres/hosts.h"

#include <fmt/format.h>
#include <libpq-fe.h>

#include <charconv>
#include <map>
#include <memory>

#include "net/lookup.h"

namespace larder::source::postgres {
namespace {

using Settings = std::vector<std::pair<std::string, std::string>>;

struct Free {
  void operator()(PQconninfoOption* options) const { PQconninfoFree(options); }
};
using Options = std::unique_ptr<PQconninfoOption, Free>;

// Up to what it quotes: that may be a part of a password.
std::string without_quotes(std::string_view message) {
  message = message.substr(0, message.find('\n'));
  const std::size_t quote = message.find('"');
  if (quote != std::string_view::npos) message = message.substr(0, quote);
  while (!message.empty() && (message.back() == ' ' || message.back() == ':'))
    message.remove_suffix(1);
  return std::string(message);
}

Result<std::map<std::string, std::string>> parse(const std::string& url) {
  char* said = nullptr;
  const Options options(PQconninfoParse(url.c_str(), &said));
  const std::unique_ptr<char, decltype(&PQfreemem)> message(said, &PQfreemem);
  if (!options)
    return fail(ErrorCode::config,
                fmt::format("libpq does not take the url: {}; write "
                            "postgresql://user:password@host:5432/database?sslmode=require",
                            without_quotes(said ? said : "no reason given")),
                "postgres");
  std::map<std::string, std::string> out;
  for (const PQconninfoOption* option = options.get(); option->keyword; ++option)
    if (option->val && *option->val) out[option->keyword] = option->val;
  return out;
}

// What libpq takes where a URL says nothing: environment variables and what it was built with.
std::string default_of(const std::string& keyword) {
  const Options options(PQconndefaults());
  for (const PQconninfoOption* option = options.get(); option && option->keyword; ++option)
    if (option->keyword == keyword && option->val) return option->val;
  return {};
}

std::vector<std::string> split(std::string_view list) {
  std::vector<std::string> out;
  for (;;) {
    const std::size_t comma = list.find(',');
    out.emplace_back(list.substr(0, comma));
    if (comma == std::string_view::npos) return out;
    list.remove_prefix(comma + 1);
  }
}

bool is_name(const std::string& host) {
  net::SocketAddress ignored;
  return !host.empty() && host[0] != '/' && host[0] != '@' &&
         !net::numeric_address({.unix_path = false, .host = host, .port = 1}, ignored);
}

}  // namespace

Result<void> check_url(const std::string& url) {
  auto parsed = parse(url);
  if (!parsed) return std::unexpected(parsed.error());
  for (const std::string& port : split((*parsed)["port"])) {  // which libpq looks at later
    int number = 1;
    const auto end = std::from_chars(port.data(), port.data() + port.size(), number).ptr;
    if (end != port.data() + port.size() || number < 1 || number > 65535)
      return fail(ErrorCode::config, "the url names a port that is no number from 1 to 65535",
                  "postgres");
  }
  return {};
}

Task<Result<std::vector<Target>>> targets_of(std::string url, Settings settings, TimeUs deadline) {
  auto parsed = parse(url);
  if (!parsed) co_return std::unexpected(parsed.error());
  std::map<std::string, std::string> said = std::move(*parsed);
  for (const auto& [keyword, value] : settings) said[keyword] = value;
  const auto setting = [&](const std::string& keyword) {
    const auto found = said.find(keyword);
    return found == said.end() ? default_of(keyword) : found->second;
  };
  const std::string database = said.contains("dbname") ? said["dbname"] : setting("user");
  const std::vector<std::string> ports = split(setting("port"));
  const std::string hosts = setting("host");
  std::vector<Target> targets;
  // A service file, or addresses beside names: rare, and libpq's own business, one attempt for all.
  if (said.contains("service") || said.contains("hostaddr")) {
    targets.push_back({.name = fmt::format("{}/{}", hosts, database), .settings = {}});
    co_return targets;
  }
  Error unknown;
  std::size_t index = 0;
  for (const std::string& host : split(hosts)) {
    const std::string port = ports[ports.size() == 1 ? 0 : std::min(index, ports.size() - 1)];
    ++index;
    Target target{.name = fmt::format("{}:{}/{}", host, port, database),
                  .settings = {{"host", host}, {"port", port}}};
    if (!is_name(host)) {
      targets.push_back(std::move(target));
      continue;
    }
    net::Address name{.unix_path = false, .host = host, .port = 0};
    const auto found = co_await net::look_up(std::move(name), deadline);
    if (!found) {
      unknown = found.error();
      continue;
    }
    for (const net::SocketAddress& address : *found) {
      Target one = target;
      one.settings.emplace_back("hostaddr", net::host_text(address));
      targets.push_back(std::move(one));
    }
  }
  if (targets.empty())
    co_return fail(unknown.code == ErrorCode::timeout ? ErrorCode::timeout : ErrorCode::source_down,
                   unknown.message, "postgres");
  if (targets.size() > 1 && setting("target_session_attrs") == "prefer-standby") {
    std::vector<Target> twice;
    for (const std::string attrs : {"standby", "any"})
      for (const Target& target : targets)
        twice.emplace_back(target).settings.emplace_back("target_session_attrs", attrs);
    targets = std::move(twice);
  }
  co_return targets;
}

}  // namespace larder::source::postgres
