#include <fmt/format.h>

#include <algorithm>

#include "config/sections.h"
#include "source/mariadb/mariadb.h"
#include "source/postgres/hosts.h"

namespace larder::config {
namespace {

constexpr std::size_t kMaxName = 64;
constexpr std::string_view kUse =
    "use \"sqlite:<path>\", \"postgresql://<host>/<database>\" or \"mariadb://<host>/<database>\"";

bool is_postgres(std::string_view url) {
  return url.starts_with("postgresql://") || url.starts_with("postgres://");
}

bool is_mariadb(std::string_view url) {
  return url.starts_with("mariadb:") || url.starts_with("mysql:");
}

void read_url(Section& s, cache::SourceSpec& spec) {
  static const std::vector<std::string> kLater = {"http", "https"};
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
  } else if (is_postgres(spec.url)) {
    // What libpq says of it quotes nothing.
    if (const auto good = source::postgres::check_url(spec.url); !good)
      s.problem_at("url", fmt::format("{}: {}", s.path("url"), good.error().message));
  } else if (is_mariadb(spec.url)) {
    if (const auto good = source::mariadb::check_url(spec.url); !good)
      s.problem_at("url", fmt::format("{}: {}", s.path("url"), good.error().message));
  } else if (std::ranges::find(kLater, scheme) != kLater.end()) {
    s.problem_at("url", fmt::format("source '{}' is not in this version: {}", scheme, kUse));
  } else if (scheme.empty()) {
    s.problem_at("url", fmt::format("{} has no scheme: {}", s.path("url"), kUse));
  } else {
    std::vector<std::string> all = kLater;
    for (const char* const known : {"sqlite", "postgresql", "postgres", "mariadb", "mysql"})
      all.emplace_back(known);
    s.problem_at("url", fmt::format("unknown kind of source '{}': {}", scheme, kUse),
                 nearest(scheme, all));
  }
}

// What is wrong is said without quoting: they may hold secrets.
void read_replicas(Section& s, cache::SourceSpec& spec) {
  std::vector<Section::Item> urls;
  s.statements("replicas", urls);
  if (s.duration("replica_lag", spec.replica_lag_us) &&
      (spec.replica_lag_us < kMillisecond || spec.replica_lag_us > 3600 * kSecond))
    s.problem_at("replica_lag", fmt::format("{} must be from 1ms to 1h", s.path("replica_lag")));
  if ((s.has("replicas") || s.has("replica_lag")) && !is_postgres(spec.url)) {
    s.problem_at(s.has("replicas") ? "replicas" : "replica_lag",
                 fmt::format("{} is for PostgreSQL; leave it out", s.path("replicas")));
    return;
  }
  for (const Section::Item& item : urls) {
    auto url = s.reader().secret(item.text, item.at);
    if (!url) continue;
    if (const auto good = is_postgres(*url)
                              ? source::postgres::check_url(*url)
                              : Result<void>(fail(ErrorCode::config, "postgresql://... is needed"));
        !good)
      s.reader().problem(item.at, fmt::format("{}: {}", s.path("replicas"), good.error().message));
    else
      spec.replicas.push_back(std::move(*url));
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
  s.size("slot_limit", spec.slot_limit_bytes);
  const bool postgres = is_postgres(spec.url);
  std::size_t means = 0;
  if (s.choice("feed", {"log", "triggers"}, means)) spec.triggers = means == 1;
  if (!postgres && s.has("feed"))
    s.problem_at("feed", fmt::format("{} is for PostgreSQL; leave it out", s.path("feed")));
  read_replicas(s, spec);
  if (postgres || is_mariadb(spec.url)) {
    const std::string_view kind = postgres ? "PostgreSQL" : "MariaDB";
    if (s.has("poll") && !spec.triggers)
      s.problem_at("poll", fmt::format("{}: {} is not polled; leave it out", s.path("poll"), kind));
    if (s.has("query_log"))
      s.problem_at(
          "query_log",
          fmt::format("{} is for SQLite: {} writes its own, see its {}", s.path("query_log"), kind,
                      postgres ? "log_statement and log_min_duration_statement"
                               : "general_log and slow_query_log"));
  }
  if (!postgres && s.has("slot_limit")) {
    s.problem_at("slot_limit", fmt::format("{} is for PostgreSQL's replication slot; leave it out",
                                           s.path("slot_limit")));
  }
  s.finish();
  return spec;
}

}  // namespace larder::config
