#include <fmt/format.h>

#include <algorithm>

#include "config/sections.h"

namespace larder::config {
namespace {

constexpr std::size_t kMaxName = 64;

void read_url(Section& s, cache::SourceSpec& spec) {
  static const std::vector<std::string> kLater = {"postgresql", "postgres", "mariadb",
                                                  "mysql",      "http",     "https"};
  if (!s.has("url")) {
    s.missing("url", "where the data is, such as \"sqlite:shop.db\"");
    std::string ignored;
    s.secret("url", ignored);
    return;
  }
  if (!s.secret("url", spec.url)) return;
  spec.display_url = masked_url(spec.url);
  // Whatever is wrong below, the URL itself may be a secret: only its scheme is printed.
  const std::string scheme(scheme_of(spec.url));
  if (scheme == "sqlite") {
    const std::string_view path = std::string_view(spec.url).substr(7);
    if (path.empty())
      s.problem_at("url", fmt::format("{} names no file: use \"sqlite:<path>\"", s.path("url")));
    if (path == ":memory:")
      s.problem_at("url", fmt::format("{}: a database in memory belongs to one connection only; "
                                      "use a file",
                                      s.path("url")));
  } else if (std::ranges::find(kLater, scheme) != kLater.end()) {
    s.problem_at("url",
                 fmt::format("source '{}' is not in this version: use \"sqlite:<path>\"", scheme));
  } else if (scheme.empty()) {
    s.problem_at("url", fmt::format("{} has no scheme: use \"sqlite:<path>\"", s.path("url")));
  } else {
    std::vector<std::string> all = kLater;
    all.emplace_back("sqlite");
    s.problem_at("url", fmt::format("unknown kind of source '{}': use \"sqlite:<path>\"", scheme),
                 nearest(scheme, all));
  }
}

}  // namespace

std::string_view scheme_of(std::string_view url) {
  const std::size_t colon = url.find(':');
  if (colon == std::string_view::npos || colon > 32) return {};
  const std::string_view scheme = url.substr(0, colon);
  const bool plausible = std::ranges::all_of(
      scheme, [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '+'; });
  return plausible ? scheme : std::string_view();
}

bool is_section_name(std::string_view name) {
  return !name.empty() && name.size() <= kMaxName && std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
  });
}

cache::SourceSpec read_source(Section& s, std::string_view name) {
  cache::SourceSpec spec;
  spec.name = std::string(name);
  read_url(s, spec);
  std::int64_t number = spec.pool;
  if (s.integer("pool", 1, 1024, number)) spec.pool = static_cast<std::uint32_t>(number);
  number = spec.queue;
  if (s.integer("queue", 1, 1'000'000, number)) spec.queue = static_cast<std::uint32_t>(number);
  if (s.duration("poll", spec.poll_us) &&
      (spec.poll_us < kMillisecond || spec.poll_us > 3600 * kSecond))
    s.problem_at("poll", fmt::format("{} must be from 1ms to 1h", s.path("poll")));
  s.text("query_log", spec.query_log);
  s.finish();
  return spec;
}

}  // namespace larder::config
