#include <fmt/format.h>

#include <algorithm>

#include "config/feed_targets.h"
#include "config/sections.h"
#include "engine/redis/url.h"

namespace larder::config {
namespace {

constexpr std::size_t kMaxConditions = 16;
constexpr std::size_t kMaxChannelBytes = 512;

// `match`: constants, where { user = { kind = 1 } }, { user.kind = 1 } and { "user.kind" = 1 } are
// the same.
void read_conditions(Section& s, const toml::table& table, const feed::Path& above,
                     std::vector<feed::Condition>& out) {
  for (const auto& [key, node] : table) {
    const auto bad = [&, at = key.source().begin](std::string message) {
      s.reader().problem(at, std::move(message));
    };
    const auto path = feed::parse_path(key.str());
    if (!path) {
      bad(fmt::format("{}: {}", s.path("match"), path.error().message));
      continue;
    }
    feed::Condition condition;
    condition.path = above;
    condition.path.insert(condition.path.end(), path->begin(), path->end());
    if (out.size() == kMaxConditions) {
      bad(fmt::format("{} has more than {} conditions", s.path("match"), kMaxConditions));
      return;
    }
    if (const auto* inner = node.as_table()) {
      read_conditions(s, *inner, condition.path, out);
      continue;
    }
    if (const auto* text = node.as_string()) {
      auto full = s.reader().expanded(text->get(), node.source().begin);
      if (!full) continue;
      condition.is = std::move(*full);
    } else if (const auto* integer = node.as_integer()) {
      condition.is = integer->get();
    } else if (const auto* real = node.as_floating_point()) {
      condition.is = real->get();
    } else if (const auto* flag = node.as_boolean()) {
      condition.is = flag->get();
    } else {
      bad(fmt::format("{} compares '{}' with a constant: a string, a number, true or false, got {}",
                      s.path("match"), key.str(), described(node)));
      continue;
    }
    out.push_back(std::move(condition));
  }
}

// A pattern of a key or tag; nullopt: absent, or reported.
std::optional<feed::Template> read_template(Section& s, std::string_view key) {
  std::string text;
  if (!s.statement(key, text)) return std::nullopt;
  auto parsed = feed::Template::parse(text);
  if (parsed) return std::move(*parsed);
  s.problem_at(key, fmt::format("{}: {}", s.path(key), parsed.error().message));
  return std::nullopt;
}

// A key or tag that nobody bears would be noticed only when its first event has no effect.
void check_targets(Section& s, const feed::Spec& spec,
                   const std::vector<cache::CacheSpec>& caches) {
  std::vector<std::string> prefixes;
  bool key_meets = false;
  bool tag_meets = false;
  for (const cache::CacheSpec& cache : caches) {
    if (cache.key.text().empty()) return;  // reported already; what it owns is not known
    prefixes.push_back(cache.key.prefix());
    key_meets |= may_name_keys_of(spec.rule, cache);
    tag_meets |= may_name_tags_of(spec.rule, cache);
  }
  if (spec.rule.key && !key_meets)
    s.problem_at("key",
                 fmt::format("{}: no cache has keys {} '{}'", s.path("key"),
                             spec.rule.key->paths.empty() ? "such as" : "that begin with",
                             spec.rule.key->prefix()),
                 nearest(spec.rule.key->prefix(), prefixes));
  if (spec.rule.tag && spec.rule.tag->prefix().starts_with('@'))
    s.problem_at("tag",
                 fmt::format("{}: a tag that begins with '@' is Larder's own", s.path("tag")));
  else if (spec.rule.tag && !tag_meets)
    s.problem_at("tag", fmt::format("{}: no cache declares a tag {} '{}'", s.path("tag"),
                                    spec.rule.tag->paths.empty() ? "such as" : "that begins with",
                                    spec.rule.tag->prefix()));
}

void read_url(Section& s, const EngineConfig& engine, feed::Spec& spec) {
  const bool own = s.has("url");
  if (!own) spec.url = engine.url;
  if (own && !s.secret("url", spec.url)) return;
  const auto url = engine::redis::parse_url(spec.url);
  if (url) {
    spec.display_url = url->display();
  } else if (own) {
    s.problem_at("url", fmt::format("{}: {}", s.path("url"), url.error().message));
  } else if (!scheme_of(engine.url).starts_with("redis")) {  // else [engine] is what is wrong
    s.missing("url",
              "a Redis or Valkey that has the events, such as \"redis://localhost:6379\"; the "
              "engine is none");
    std::string ignored;
    s.secret("url", ignored);
  }
}

void read_where(Section& s, feed::Spec& spec) {
  const auto name = [&](std::string_view key, std::string& out) {
    if (!s.text(key, out)) return;
    if (out.empty()) s.problem_at(key, fmt::format("{} must not be empty", s.path(key)));
    if (out.size() > kMaxChannelBytes)
      s.problem_at(key, fmt::format("{} has more than {} bytes", s.path(key), kMaxChannelBytes));
  };
  name("channel", spec.channel);
  name("stream", spec.stream);
  name("field", spec.field);
  if (!s.has("channel") && !s.has("stream"))
    s.missing("channel", "where the events are published; or 'stream', the key of a stream");
  if (s.has("channel") && s.has("stream"))
    s.problem_at("stream", fmt::format("{}: a feed has a channel or a stream, not both: use two "
                                       "sections",
                                       s.path("stream")));
  if (s.has("channel") && s.has("field"))
    s.problem_at("field", fmt::format("{} is for a stream: a message of a channel is JSON itself",
                                      s.path("field")));
}

}  // namespace

feed::Spec read_feed(Section& s, std::string_view name, const EngineConfig& engine,
                     const std::vector<cache::CacheSpec>& caches) {
  feed::Spec spec;
  spec.name = std::string(name);
  read_where(s, spec);
  read_url(s, engine, spec);
  if (const toml::table* match = s.table("match")) read_conditions(s, *match, {}, spec.rule.match);
  spec.rule.key = read_template(s, "key");
  spec.rule.tag = read_template(s, "tag");
  if (!s.has("key") && !s.has("tag"))
    s.missing("key", "what an event makes void, such as \"user:{id}\"; or 'tag'");
  check_targets(s, spec, caches);
  std::int64_t queue = spec.queue;
  if (s.integer("queue", 1, 10'000'000, queue)) spec.queue = static_cast<std::uint32_t>(queue);
  if (s.size("max_event", spec.max_event_bytes) &&
      (spec.max_event_bytes < 16 || spec.max_event_bytes > (16 << 20)))
    s.problem_at("max_event", fmt::format("{} must be from 16 to 16MiB", s.path("max_event")));
  s.finish();
  return spec;
}

}  // namespace larder::config
