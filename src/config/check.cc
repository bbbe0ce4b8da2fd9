#include "config/check.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <iterator>

#include "base/units.h"
#include "cache/guarantee.h"
#include "config/feed_targets.h"
#include "near/store.h"

namespace larder::config {
namespace {

using cache::CacheSpec;
using cache::Consistency;
using cache::WriteMode;

std::string_view to_string(WriteMode mode) {
  switch (mode) {
    case WriteMode::none: return "none";
    case WriteMode::around: return "around";
    case WriteMode::through: return "through";
    case WriteMode::behind: return "behind";
  }
  return "?";
}

cache::Guarantee guarantee_of(const CacheSpec& spec, const SourceCapabilities& capabilities,
                              bool shared) {
  const auto found = capabilities.find(spec.source);
  return cache::guarantee_of(spec, found == capabilities.end() ? nullptr : &found->second, shared);
}

// ---- warnings ----

class Warnings {
 public:
  Warnings(std::vector<Warning>& out, std::string section)
      : out_(out), section_(std::move(section)) {}
  template <class... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    out_.push_back({section_, fmt::format(format, std::forward<Args>(args)...)});
  }

 private:
  std::vector<Warning>& out_;
  std::string section_;
};

void warn_about_stale(const CacheSpec& spec, Warnings& warn) {
  const bool revalidates = spec.stale_while_revalidate_us > 0;
  const bool on_error = spec.stale_if_error_us > 0;
  if (spec.consistency == Consistency::strong) {
    if (revalidates)
      warn.add("stale_while_revalidate has no effect: a strong cache answers no late value");
    if (on_error) warn.add("stale_if_error has no effect: a strong cache answers no stale value");
    if (spec.soft_timeout_us > 0)
      warn.add("soft_timeout has no effect: a strong cache has no late value to answer");
    return;
  }
  if (spec.consistency == Consistency::bounded && on_error)
    warn.add(
        "stale_if_error: while the source fails, values older than {} are answered (counted, and "
        "marked in LARDER.GET); leave it out if an error is better",
        format_duration(spec.bound_us));
  if (spec.soft_timeout_us > 0 && !revalidates && !on_error)
    warn.add(
        "soft_timeout has no effect without stale_while_revalidate or stale_if_error: there is "
        "no late value to answer");
  if (spec.soft_timeout_us >= spec.load_timeout_us && spec.soft_timeout_us > 0)
    warn.add("soft_timeout {} has no effect: load_timeout {} comes first",
             format_duration(spec.soft_timeout_us), format_duration(spec.load_timeout_us));
}

void warn_about_life(const CacheSpec& spec, const cache::Guarantee& promise, Warnings& warn) {
  if (spec.ttl_us == 0)
    warn.add("ttl 0: every read asks the source; only readers at the same time share a load");
  if (spec.jitter > 0.5)
    warn.add("jitter {}: some entries live only {} of their ttl", spec.jitter,
             spec.jitter >= 1 ? std::string("an instant")
                              : fmt::format("{:.0f}%", 100 - spec.jitter * 100));
  if (spec.ttl_us > 0 && spec.negative_ttl_us > spec.ttl_us)
    warn.add(
        "negative_ttl {} is above ttl {}: a row that appears is noticed later than one that "
        "changes",
        format_duration(spec.negative_ttl_us), format_duration(spec.ttl_us));
  if (spec.sliding && !promise.fed && spec.consistency == Consistency::eventual)
    warn.add(
        "sliding without a feed: what is read often enough is never loaded again, whatever "
        "others change");
  if (promise.ttl_us < spec.ttl_us)
    warn.add("ttl {} acts as {}: {}", format_duration(spec.ttl_us), format_duration(promise.ttl_us),
             promise.feed);
}

void warn_about_writes(const CacheSpec& spec, const cache::Guarantee& promise, Warnings& warn) {
  if (spec.write == WriteMode::none && !spec.store.empty())
    warn.add("store is declared, but write = \"none\": SET answers LARDER_READONLY");
  if (spec.conflict != cache::Conflict::ours && !promise.fed)
    warn.add("conflict has no effect without a feed: nobody tells what others have written ({})",
             promise.feed);
}

void check_cache(const Config& config, const CacheSpec& spec,
                 const SourceCapabilities& capabilities, CheckReport& report) {
  const cache::Guarantee promise =
      guarantee_of(spec, capabilities, config.engine.url != "embedded:");
  report.caches.push_back({.name = spec.name,
                           .key = spec.key.text(),
                           .source = spec.source,
                           .guarantee = promise.name,
                           .rests_on = promise.rests_on,
                           .write = std::string(to_string(spec.write)),
                           .ttl_us = promise.ttl_us});
  Warnings warn(report.warnings, fmt::format("[cache.{}]", spec.name));
  warn_about_life(spec, promise, warn);
  warn_about_stale(spec, warn);
  warn_about_writes(spec, promise, warn);
  if (spec.depends_on.empty() && capabilities.contains(spec.source) &&
      capabilities.at(spec.source).feed)
    warn.add("without depends_on the change feed of source {} tells this cache nothing",
             spec.source);
  if (spec.max_value_bytes > report.memory.max_entry_bytes)
    warn.add(
        "max_value {}: values above {} are served and not held (an eighth of a shard of "
        "near.capacity)",
        format_size(spec.max_value_bytes), format_size(report.memory.max_entry_bytes));
  for (const cache::SourceSpec& source : config.sources)
    if (source.name == spec.source && promise.fed && spec.bound_us > 0 &&
        source.poll_us > spec.bound_us / 5)
      warn.add(
          "source {} is polled every {}: a bound of {} wants a fifth of it or less, else "
          "entries are often past their bound and loaded again",
          source.name, format_duration(source.poll_us), format_duration(spec.bound_us));
}

FeedReport report_of(const Config& config, const feed::Spec& spec) {
  FeedReport report{.name = spec.name, .caches = caches_of(spec.rule, config.caches)};
  const bool stream = !spec.stream.empty();
  report.from = fmt::format("{} {} of {}", stream ? "stream" : "channel",
                            stream ? spec.stream : spec.channel, spec.display_url);
  if (spec.rule.key) report.voids = "key " + spec.rule.key->text;
  if (spec.rule.tag)
    report.voids += (report.voids.empty() ? "tag " : ", tag ") + spec.rule.tag->text;
  report.rests_on =
      stream ? "a position in the stream that survives restarts; what was trimmed away before it "
               "was read makes all entries of these caches void"
             : "a subscription without history; when it is made, or made again, all entries of "
               "these caches become void";
  return report;
}

bool is_loopback(std::string_view address) {
  return address.starts_with("unix:") || address.starts_with("127.") ||
         address.starts_with("localhost:") || address.starts_with("[::1]:");
}

void check_node(const Config& config, CheckReport& report) {
  Warnings node(report.warnings, "[node]");
  for (const std::string& address : config.node.listen)
    if (config.node.requirepass.empty() && !is_loopback(address))
      node.add("listens on {} without requirepass: whoever reaches it can read and change data",
               address);
  if (!config.node.admin.empty() && !is_loopback(config.node.admin))
    node.add("the admin server listens on {} and asks for no password", config.node.admin);
  if (config.caches.empty())
    Warnings(report.warnings, "[cache]").add("no cache is declared: every key is plain");
}

}  // namespace

namespace {

// The fill protocol's scripts and ACL of today came with 6.2.
bool too_old(std::string_view version) {
  return version.size() > 1 && version[1] == '.' &&
         (version[0] < '6' || version.starts_with("6.0") || version.starts_with("6.1"));
}

}  // namespace

void check_engine(const EngineFacts& facts, std::vector<Warning>& warnings) {
  Warnings warn(warnings, "[engine]");
  if (!facts.problem.empty()) {
    warn.add("it could not be asked ({}): what follows from its settings is not known",
             facts.problem);
    return;
  }
  if (!facts.version.empty() && too_old(facts.version))
    warn.add("server {} is too old: Larder needs Redis 6.2 or later, or Valkey", facts.version);
  const std::string& policy = facts.maxmemory_policy;
  if (policy.starts_with("allkeys"))
    warn.add(
        "maxmemory-policy {} may evict Larder's coordination state; that is noticed, and every "
        "entry of the partition is void then. Entries and tickets have a TTL, the state has none: "
        "CONFIG SET maxmemory-policy volatile-lru",
        policy);
  if (policy == "noeviction" && facts.maxmemory_bytes > 0)
    warn.add(
        "maxmemory-policy noeviction: when its {} are full nothing more is stored, and reads go to "
        "the sources. To make room by evicting entries: CONFIG SET maxmemory-policy volatile-lru",
        format_size(facts.maxmemory_bytes));
  if (!facts.saves)
    warn.add(
        "it saves nothing: after a restart plain keys are gone and all entries are loaded anew. "
        "To keep them: CONFIG SET appendonly yes");
  if (facts.replicas == 0)
    warn.add("it has no replica: while its server is down, reads go to the sources");
}

CheckReport check(const Config& config, const SourceCapabilities& capabilities) {
  CheckReport report;
  report.memory = {.near_capacity_bytes = config.near.capacity_bytes,
                   .max_entry_bytes =
                       near::Store::max_entry_bytes({.capacity_bytes = config.near.capacity_bytes}),
                   .max_clients = config.node.max_clients,
                   .max_request_bytes = config.node.max_request_bytes,
                   .max_output_bytes = config.node.max_output_bytes};
  check_node(config, report);
  for (const cache::SourceSpec& source : config.sources) {
    SourceReport entry = {.name = source.name, .url = source.display_url};
    Warnings warn(report.warnings, fmt::format("[source.{}]", source.name));
    if (const auto found = capabilities.find(source.name); found != capabilities.end()) {
      entry.opened = true;
      entry.kind = found->second.kind;
      entry.feed = found->second.feed ? found->second.feed_rests_on
                                      : fmt::format("none: {}", found->second.why_no_feed);
    } else {
      warn.add("it could not be opened: what rests on it is not known");
    }
    if (std::ranges::find(config.caches, source.name, &CacheSpec::source) == config.caches.end())
      warn.add("no cache uses it");
    report.sources.push_back(std::move(entry));
  }
  for (const CacheSpec& spec : config.caches) check_cache(config, spec, capabilities, report);
  for (const feed::Spec& spec : config.feeds) report.feeds.push_back(report_of(config, spec));
  return report;
}

std::string to_text(const CheckReport& report) {
  std::string out;
  const auto end = std::back_inserter(out);
  std::size_t name = 0;
  std::size_t guarantee = 0;
  for (const CacheReport& c : report.caches) {
    name = std::max(name, c.name.size());
    guarantee = std::max(guarantee, c.guarantee.size());
  }
  fmt::format_to(end, "caches\n");
  for (const CacheReport& c : report.caches) {
    fmt::format_to(end, "  {:<{}}  {:<{}}  rests on: {}\n", c.name, name, c.guarantee, guarantee,
                   c.rests_on);
    fmt::format_to(end, "  {:<{}}  key {}, source {}, write {}, ttl {}\n", "", name, c.key,
                   c.source, c.write, format_duration(c.ttl_us));
  }
  if (report.caches.empty()) fmt::format_to(end, "  none\n");
  fmt::format_to(end, "sources\n");
  for (const SourceReport& s : report.sources)
    fmt::format_to(end, "  {}  {}  {}\n", s.name, s.url,
                   s.opened ? fmt::format("feed: {}", s.feed) : std::string("could not be opened"));
  if (report.sources.empty()) fmt::format_to(end, "  none\n");
  if (!report.feeds.empty()) fmt::format_to(end, "feeds\n");
  for (const FeedReport& f : report.feeds) {
    fmt::format_to(end, "  {}  {}  voids {} (cache {})\n", f.name, f.from, f.voids,
                   fmt::join(f.caches, ", "));
    fmt::format_to(end, "  {:<{}}  rests on: {}\n", "", f.name.size(), f.rests_on);
  }
  const MemoryReport& m = report.memory;
  fmt::format_to(end,
                 "memory\n"
                 "  near tier {} (entries, plain keys and their index), the largest entry {}\n"
                 "  up to {} clients, each with a request of up to {} and {} of unread answers\n",
                 format_size(m.near_capacity_bytes), format_size(m.max_entry_bytes), m.max_clients,
                 format_size(m.max_request_bytes), format_size(m.max_output_bytes));
  if (report.warnings.empty()) return out;
  fmt::format_to(end, "warnings\n");
  for (const Warning& w : report.warnings) fmt::format_to(end, "  {} {}\n", w.section, w.message);
  return out;
}

std::string to_json(const CheckReport& report) {
  namespace json = boost::json;
  json::array caches;
  for (const CacheReport& c : report.caches)
    caches.push_back(json::object{{"name", c.name},
                                  {"key", c.key},
                                  {"source", c.source},
                                  {"guarantee", c.guarantee},
                                  {"rests_on", c.rests_on},
                                  {"write", c.write},
                                  {"ttl_ms", c.ttl_us / kMillisecond}});
  json::array sources;
  for (const SourceReport& s : report.sources)
    sources.push_back(json::object{{"name", s.name},
                                   {"url", s.url},
                                   {"opened", s.opened},
                                   {"kind", s.kind},
                                   {"feed", s.feed}});
  json::array feeds;
  for (const FeedReport& f : report.feeds)
    feeds.push_back(json::object{{"name", f.name},
                                 {"from", f.from},
                                 {"voids", f.voids},
                                 {"caches", json::array(f.caches.begin(), f.caches.end())},
                                 {"rests_on", f.rests_on}});
  json::array warnings;
  for (const Warning& w : report.warnings)
    warnings.push_back(json::object{{"section", w.section}, {"message", w.message}});
  const MemoryReport& m = report.memory;
  const json::object all = {{"caches", std::move(caches)},
                            {"sources", std::move(sources)},
                            {"feeds", std::move(feeds)},
                            {"memory", json::object{{"near_capacity_bytes", m.near_capacity_bytes},
                                                    {"max_entry_bytes", m.max_entry_bytes},
                                                    {"max_clients", m.max_clients},
                                                    {"max_request_bytes", m.max_request_bytes},
                                                    {"max_output_bytes", m.max_output_bytes}}},
                            {"warnings", std::move(warnings)}};
  return json::serialize(all);
}

}  // namespace larder::config
