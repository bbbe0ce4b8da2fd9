#include "config/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <map>

#include "base/units.h"
#include "config/reader.h"
#include "config/sections.h"
#include "engine/redis/url.h"

namespace larder::config {
namespace {

constexpr std::size_t kMaxSecretBytes = 64 << 10;
constexpr std::size_t kMaxSections = 1000;

// At most `limit` bytes of a file.
Result<std::string> read_file(const std::string& path, std::size_t limit) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return fail(ErrorCode::io, "it cannot be opened");
  std::string content(limit + 1, '\0');
  file.read(content.data(), static_cast<std::streamsize>(content.size()));
  if (file.bad()) return fail(ErrorCode::io, "it cannot be read");
  content.resize(static_cast<std::size_t>(file.gcount()));
  if (content.size() > limit)
    return fail(ErrorCode::too_large, fmt::format("it has more than {} bytes", limit));
  return content;
}

// host:port or [v6]:port, with a port that exists.
bool is_endpoint(std::string_view text) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return false;
  const std::string_view host = text.substr(0, colon);
  const std::string_view port = text.substr(colon + 1);
  const bool bracketed = host.starts_with('[') && host.ends_with(']') && host.size() > 2;
  if (!bracketed && host.find_first_of(":[]/ ") != std::string_view::npos) return false;
  std::uint16_t number = 0;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
  return error == std::errc() && !port.empty() && end == port.data() + port.size();
}

// A section that is a table, or null and a problem.
const toml::table* table_at(Reader& reader, const toml::table& root, std::string_view key,
                            std::string_view label) {
  const toml::node* node = root.get(key);
  if (node == nullptr || node->is_table()) return node == nullptr ? nullptr : node->as_table();
  reader.problem(node->source().begin,
                 fmt::format("{} must be a table, got {}", label, described(*node)));
  return nullptr;
}

// The part of `key` that is wanted, as an unsigned number.
void count(Section& s, std::string_view key, std::int64_t max, std::uint64_t& out) {
  std::int64_t value = 0;
  if (s.integer(key, 1, max, value)) out = static_cast<std::uint64_t>(value);
}

void read_node(Section& s, NodeConfig& node) {
  std::vector<Section::Item> items;
  if (s.texts("listen", items)) {
    node.listen.clear();
    for (const auto& [text, at] : items) {
      const bool unix_path = text.starts_with("unix:") && text.size() > 5;
      if (!unix_path && !is_endpoint(text))
        s.reader().problem(at, fmt::format("'{}' is not an address to listen on: use host:port, "
                                           "[v6]:port or unix:/path",
                                           text));
      if (std::ranges::find(node.listen, text) != node.listen.end())
        s.reader().problem(at, fmt::format("'{}' is listed twice in {}", text, s.path("listen")));
      node.listen.push_back(text);
    }
    if (node.listen.empty() && !s.reader().failed())
      s.problem_at("listen", "'listen' in [node] must name at least one address");
  }
  if (s.text("admin", node.admin) && !node.admin.empty() && !is_endpoint(node.admin))
    s.problem_at("admin", fmt::format("'{}' is not an address: use host:port, or \"\" for no admin "
                                      "server",
                                      node.admin));
  std::int64_t threads = node.threads;
  if (s.integer("threads", 0, 1024, threads)) node.threads = static_cast<unsigned>(threads);
  if (s.text("data_dir", node.data_dir) && node.data_dir.empty())
    s.problem_at("data_dir", "'data_dir' in [node] must not be empty");
  if (s.secret("requirepass", node.requirepass) && node.requirepass.empty())
    s.problem_at("requirepass", "'requirepass' in [node] must not be empty: leave it out for none");
  count(s, "max_clients", 1'000'000, node.max_clients);
  count(s, "max_loads", 10'000'000, node.max_loads);
  count(s, "max_waiters", 10'000'000, node.max_waiters);
  count(s, "max_tracked_keys", 1'000'000'000, node.max_tracked_keys);
  const auto bytes = [&](std::string_view key, std::uint64_t& out) {
    if (s.size(key, out) && (out < 1024 || out > (1ULL << 30)))
      s.problem_at(key, fmt::format("{} must be from 1KiB to 1GiB", s.path(key)));
  };
  bytes("max_request", node.max_request_bytes);
  bytes("max_output", node.max_output_bytes);
  s.finish();
}

void read_near(Section& s, NearConfig& near) {
  if (s.size("capacity", near.capacity_bytes) && near.capacity_bytes < (1 << 20))
    s.problem_at("capacity", "'capacity' in [near] must be at least 1MiB");
  if (s.text("shared", near.shared) && !near.shared.empty() && !near::is_shared_name(near.shared))
    s.problem_at("shared",
                 "'shared' in [near] names an object in shared memory: up to 100 letters, digits, "
                 "'.', '_' and '-'");
  if (s.text("snapshot", near.snapshot) && !near.snapshot.empty() && !near.shared.empty())
    s.problem_at("snapshot",
                 "'snapshot' in [near] is for private memory: with 'shared' the near tier outlives "
                 "the node anyway; leave one of them out");
  std::size_t cost = 0;
  if (s.choice("cost", {"one", "bytes", "load_time"}, cost))
    near.cost = static_cast<near::Cost>(cost);
  s.finish();
}

void read_engine(Section& s, EngineConfig& engine) {
  static const std::vector<std::string> kRedis = {
      "redis",           "rediss",        "redis+unix",    "redis+sentinel",
      "rediss+sentinel", "redis+cluster", "rediss+cluster"};
  static const std::vector<std::string> kLater = {"memcached", "hazelcast", "ignite"};
  if (s.secret("url", engine.url) && engine.url != "embedded:") {
    const std::string scheme(scheme_of(engine.url));
    if (std::ranges::find(kRedis, scheme) != kRedis.end()) {
      const auto url = engine::redis::parse_url(engine.url);
      if (!url) s.problem_at("url", url.error().message);
    } else if (std::ranges::find(kLater, scheme) != kLater.end()) {
      s.problem_at("url", fmt::format("engine '{}' is not in this version: use \"embedded:\" or "
                                      "\"redis://host:6379\"",
                                      scheme));
    } else {
      std::vector<std::string> all = kRedis;
      all.emplace_back("embedded");
      const std::string near_one = nearest(scheme, all);
      s.problem_at("url",
                   scheme.empty()
                       ? std::string("'url' in [engine] has no scheme: use \"embedded:\" or "
                                     "\"redis://host:6379\"")
                       : fmt::format("unknown engine '{}': use \"embedded:\" or "
                                     "\"redis://host:6379\"",
                                     scheme),
                   near_one.empty() ? near_one : near_one + ":");
    }
  }
  if (s.text("namespace", engine.name_space) && !is_section_name(engine.name_space))
    s.problem_at("namespace",
                 "'namespace' in [engine] must be 1 to 64 letters, digits, '_' or '-'");
  std::int64_t partitions = engine.partitions;
  if (s.integer("partitions", 1, 1024, partitions)) {
    engine.partitions = static_cast<unsigned>(partitions);
    if (!std::has_single_bit(engine.partitions))
      s.problem_at(
          "partitions",
          fmt::format("'partitions' in [engine] must be a power of two, got {}", partitions),
          std::to_string(std::bit_ceil(engine.partitions)));
  }
  s.finish();
}

// `tracks`: the engine tells of changed keys.
void read_plain(Section& s, cache::PlainSpec& plain, bool tracks) {
  std::size_t policy = 0;
  if (s.choice("policy", {"evict", "refuse"}, policy)) plain.evict = policy == 0;
  std::vector<Section::Item> prefixes;
  if (s.texts("near", prefixes) && !prefixes.empty() && !tracks)
    s.problem_at("near",
                 "'near' in [plain] needs an engine that tracks (redis:// and its kin); the "
                 "embedded one holds every plain key in the near tier anyway");
  for (const auto& [text, at] : prefixes) {
    if (text.empty()) s.reader().problem(at, "a prefix in 'near' in [plain] must not be empty");
    for (const std::string& other : plain.near)
      if (text.starts_with(other) || other.starts_with(text))
        s.reader().problem(
            at, fmt::format("'{}' overlaps with '{}' in {}", text, other, s.path("near")));
    plain.near.push_back(text);
  }
  const auto time = [&](std::string_view key, DurationUs least, DurationUs& out) {
    if (s.duration(key, out) && (out < least || out > 3600 * kSecond))
      s.problem_at(key,
                   fmt::format("{} must be from {}ms to 1h", s.path(key), least / kMillisecond));
  };
  time("near_bound", 50 * kMillisecond, plain.near_bound_us);
  time("timeout", 10 * kMillisecond, plain.timeout_us);
  s.finish();
}

// The ages at which what differs is looked at again: a few, each later than the one before.
void read_recheck(Section& s, std::vector<DurationUs>& ages) {
  std::vector<Section::Item> items;
  if (!s.texts("recheck", items)) return;
  ages.clear();
  ages.reserve(items.size());
  for (const auto& [text, at] : items) {
    const auto age = parse_duration(text);
    const DurationUs after = ages.empty() ? 10 * kMillisecond - 1 : ages.back();
    if (!age || *age <= after || *age > DurationUs{24} * 3600 * kSecond)
      s.reader().problem(
          at, fmt::format("'{}' in {} must be a time such as 5m, from 10ms to 1d, and longer than "
                          "the one before it",
                          text, s.path("recheck")));
    else
      ages.push_back(*age);
  }
  if (items.empty() || items.size() > cache::AuditSpec::kMostRechecks)
    s.problem_at("recheck", fmt::format("{} must name 1 to {} ages; to audit nothing: enabled = "
                                        "false",
                                        s.path("recheck"), cache::AuditSpec::kMostRechecks));
}

void read_audit(Section& s, cache::AuditSpec& audit, const std::vector<cache::CacheSpec>& caches) {
  s.boolean("enabled", audit.enabled);
  std::int64_t rate = audit.rate;
  if (s.integer("rate", 1, 1000, rate)) audit.rate = static_cast<unsigned>(rate);
  if (s.duration("delay", audit.delay_us) &&
      (audit.delay_us < 10 * kMillisecond || audit.delay_us > 3600 * kSecond))
    s.problem_at("delay", fmt::format("{} must be from 10ms to 1h", s.path("delay")));
  read_recheck(s, audit.recheck_us);
  std::vector<Section::Item> except;
  s.texts("except", except);
  std::vector<std::string> names;
  names.reserve(caches.size());
  for (const cache::CacheSpec& spec : caches) names.push_back(spec.name);
  for (const auto& [name, at] : except) {
    if (std::ranges::find(names, name) == names.end())
      s.reader().problem(
          at, fmt::format("{} names a cache that is not declared: '{}'", s.path("except"), name),
          nearest(name, names));
    audit.except.push_back(name);
  }
  s.finish();
}

// Write-behind lives where the engine lives.
void read_journal(Section& s, cache::JournalSpec& journal) {
  constexpr std::uint64_t kLeast = std::uint64_t{1} << 20;
  if (s.size("capacity", journal.capacity_bytes) && journal.capacity_bytes < kLeast)
    s.problem_at("capacity", fmt::format("{} must be at least 1MiB", s.path("capacity")));
  s.duration("drain_timeout", journal.drain_timeout_us);
  s.finish();
}

void check_behind(Reader& reader, const toml::table& root, const Config& config) {
  if (config.engine.url == "embedded:") return;
  for (const cache::CacheSpec& spec : config.caches)
    if (spec.write == cache::WriteMode::behind)
      reader.problem(
          root["cache"][spec.name]["write"].node()->source().begin,
          fmt::format("write = \"behind\" in [cache.{}] needs engine.url = \"embedded:\" in this "
                      "version: the journal is this node's own, and other nodes would not see "
                      "what waits in it; use \"through\"",
                      spec.name));
}

// Every table below `group`, such as [cache.product] below cache.
template <class Read>
void each_section(Reader& reader, const toml::table& root, std::string_view group, Read&& read) {
  const toml::table* tables = table_at(reader, root, group, fmt::format("[{}]", group));
  if (tables == nullptr) return;
  if (tables->size() > kMaxSections) {
    reader.problem(tables->source().begin,
                   fmt::format("more than {} sections [{}.<name>]", kMaxSections, group));
    return;
  }
  for (const auto& [key, node] : *tables) {
    const std::string_view name = key.str();
    if (!node.is_table()) {
      reader.problem(key.source().begin,
                     fmt::format("'{}' in [{}] must be a table [{}.<name>], got {}", name, group,
                                 group, described(node)));
      continue;
    }
    if (!is_section_name(name))
      reader.problem(
          key.source().begin,
          fmt::format("the name of a {} must be 1 to 64 letters, digits, '_' or '-'", group));
    Section section(reader, *node.as_table(), fmt::format("[{}.{}]", group, name));
    read(section, name);
  }
}

void check_overlaps(Reader& reader, const toml::table& root,
                    const std::vector<cache::CacheSpec>& caches) {
  const auto place = [&](const cache::CacheSpec& c) {
    return root["cache"][c.name]["key"].node()->source().begin;
  };
  for (std::size_t i = 0; i < caches.size(); ++i)
    for (std::size_t j = i + 1; j < caches.size(); ++j) {
      const cache::CacheSpec* first = &caches[i];
      const cache::CacheSpec* second = &caches[j];
      // A pattern that could not be read has no text.
      if (first->key.text().empty() || second->key.text().empty()) continue;
      if (!policy::KeyPattern::overlap(first->key, second->key)) continue;
      if (place(*second).line < place(*first).line) std::swap(first, second);
      reader.problem(
          place(*second),
          fmt::format(
              "the keys of [cache.{}] overlap those of [cache.{}] (line {}): both begin with "
              "'{}'; give one of them a prefix of its own",
              second->name, first->name, place(*first).line,
              std::min(first->key.prefix(), second->key.prefix(),
                       [](const auto& a, const auto& b) { return a.size() < b.size(); })));
    }
}

void check_top_level(Reader& reader, const toml::table& root) {
  static const std::vector<std::string> kKnown = {"node",  "near", "engine", "plain",  "source",
                                                  "cache", "feed", "audit",  "journal"};
  for (const auto& [key, node] : root) {
    const std::string_view name = key.str();
    if (std::ranges::find(kKnown, name) == kKnown.end()) {
      reader.problem(key.source().begin,
                     fmt::format("unknown {} '{}'", node.is_table() ? "section" : "key", name),
                     nearest(name, kKnown));
    }
  }
}

Config read_all(Reader& reader, const toml::table& root) {
  Config config;
  check_top_level(reader, root);
  const auto one = [&](std::string_view name, auto&& read, auto& out) {
    const std::string label = fmt::format("[{}]", name);
    if (const toml::table* table = table_at(reader, root, name, label)) {
      Section section(reader, *table, label);
      read(section, out);
    }
  };
  one("node", read_node, config.node);
  one("near", read_near, config.near);
  one("engine", read_engine, config.engine);
  const std::string_view scheme = scheme_of(config.engine.url);
  const bool tracks = scheme.starts_with("redis") || scheme.starts_with("valkey");
  one(
      "plain",
      [&](Section& section, cache::PlainSpec& plain) { read_plain(section, plain, tracks); },
      config.plain);
  std::vector<std::string> names;
  each_section(reader, root, "source", [&](Section& section, std::string_view name) {
    names.emplace_back(name);
    config.sources.push_back(read_source(section, name));
  });
  each_section(reader, root, "cache", [&](Section& section, std::string_view name) {
    config.caches.push_back(read_cache(section, name, names, config.sources));
  });
  check_overlaps(reader, root, config.caches);
  check_behind(reader, root, config);
  one("journal", read_journal, config.journal);
  one(
      "audit",
      [&](Section& section, cache::AuditSpec& audit) { read_audit(section, audit, config.caches); },
      config.audit);
  each_section(reader, root, "feed", [&](Section& section, std::string_view name) {
    config.feeds.push_back(read_feed(section, name, config.engine, config.caches));
  });
  return config;
}

}  // namespace

Outside Outside::real() {
  return {.environment = [](const std::string& name) -> std::optional<std::string> {
            const char* value = std::getenv(name.c_str());
            return value == nullptr ? std::nullopt : std::optional<std::string>(value);
          },
          .secret_file = [](const std::string& path) { return read_file(path, kMaxSecretBytes); }};
}

Loaded load_config(std::string_view text, std::string_view filename, const Outside& outside) {
  if (text.size() > kMaxConfigBytes) {
    Problem p{.file = std::string(filename),
              .message = fmt::format("the file has more than {} bytes", kMaxConfigBytes)};
    return std::unexpected(std::vector<Problem>{std::move(p)});
  }
  Reader reader(text, filename, outside);
  toml::table root;
  try {
    root = toml::parse(text, filename);
  } catch (const toml::parse_error& error) {
    reader.problem(error.source().begin, std::string(error.description()));
    return std::unexpected(reader.take_problems());
  }
  Config config = read_all(reader, root);
  if (reader.failed()) return std::unexpected(reader.take_problems());
  return config;
}

Loaded load_config_file(const std::string& path, const Outside& outside) {
  const auto text = read_file(path, kMaxConfigBytes);
  if (text) return load_config(*text, path, outside);
  Problem p{.file = path, .message = text.error().message};
  return std::unexpected(std::vector<Problem>{std::move(p)});
}

}  // namespace larder::config
