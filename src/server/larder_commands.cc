// LARDER.*: what Redis has no words for.
#include <fmt/format.h>

#include "server/session.h"

namespace larder::server {
namespace {

constexpr std::string_view kCall = "call";
constexpr std::string_view kNoLeases =
    "ERR LARDER.LEASE and LARDER.FILL are for the embedded engine in this version";
constexpr DurationUs kLongestWait = 60 * kSecond;
constexpr std::int64_t kUsualAudit = 100;
constexpr std::int64_t kUsualLetters = 100;
constexpr std::int64_t kMostAudit = 100'000;
// A waiting client looks up this often: a shutdown need not wait for it.
constexpr DurationUs kWaitSlice = 500 * kMillisecond;

}  // namespace

bool Session::declared_only(Args args, std::string_view key) {
  int cache = -1;
  if (!route(key, cache)) return false;
  if (cache >= 0) return true;
  error(
      fmt::format("ERR '{}' needs a declared key: '{}' matches no cache of the configuration; it "
                  "is plain, use GET, SET and DEL",
                  to_lower(args[0]), key.substr(0, 128)));
  return false;
}

Task<void> Session::larder_get(Args args) {
  if (!declared_only(args, args[1])) co_return;  // a plain key that was noted: told in vain
  const auto reading = co_await context_.node->get(std::string(args[1]));
  settle_read(args[1], reading ? &*reading : nullptr);
  if (!reading) {
    error(reading.error());
    co_return;
  }
  writer_.map(4);
  writer_.bulk("value");
  if (reading->found)
    writer_.bulk(reading->value);
  else
    writer_.null();
  writer_.bulk("tier");
  writer_.bulk(cache::to_string(reading->tier));
  writer_.bulk("age_ms");
  writer_.integer(reading->age_us / kMillisecond);
  writer_.bulk("ttl_ms");
  writer_.integer(reading->ttl_us / kMillisecond);
}

void Session::larder_explain(Args args) {
  int cache = -1;
  if (!route(args[1], cache)) return;
  const cache::Explanation explanation = context_.node->explain(args[1], now_);
  writer_.map(explanation.size());
  for (const auto& [name, text] : explanation) {
    writer_.bulk(name);
    writer_.bulk(text);
  }
}

Task<void> Session::larder_invalidate(Args args) {
  const std::string what = to_lower(args[1].substr(0, 16));
  std::vector<std::string> names(args.begin() + 2, args.end());
  Result<std::int64_t> count = 0;
  if (what == "key") {
    for (const std::string_view key : args.subspan(2))
      if (!declared_only(args, key)) co_return;
    count = co_await context_.node->invalidate_keys(std::move(names), kCall);
  } else if (what == "tag") {
    count = co_await context_.node->invalidate_tags(std::move(names), kCall);
  } else if (what == "cache") {
    if (args.size() != 3) {
      error("ERR LARDER.INVALIDATE CACHE takes one name");
      co_return;
    }
    const auto known = co_await context_.node->invalidate_cache(std::move(names[0]), kCall);
    if (!known)
      count = std::unexpected(known.error());
    else if (*known)
      count = 1;
    else
      count = fail(ErrorCode::syntax, fmt::format("no cache '{}' is declared", args[2]));
  } else {
    count = fail(ErrorCode::syntax, "use LARDER.INVALIDATE KEY key... | TAG tag... | CACHE name");
  }
  if (count)
    writer_.integer(*count);
  else
    error(count.error());
}

Task<void> Session::larder_remove(Args args) {
  if (!declared_only(args, args[1])) co_return;
  std::vector<cache::WriteOp> ops;
  ops.push_back({.kind = cache::WriteOp::Kind::remove, .key = std::string(args[1])});
  const auto written = co_await context_.node->write(std::move(ops));
  if (written)
    writer_.integer(written->front().affected);
  else
    error(written.error());
}

Task<void> Session::larder_refresh(Args args) {
  for (const std::string_view key : args.subspan(1))
    if (!declared_only(args, key)) co_return;
  std::int64_t found = 0;
  for (const std::string_view key : args.subspan(1)) {
    const auto reading = co_await context_.node->refresh(std::string(key));
    if (!reading) {
      error(reading.error());
      co_return;
    }
    found += reading->found ? 1 : 0;
  }
  writer_.integer(found);
}

Task<void> Session::larder_warm(Args args) {
  std::int64_t limit = INT64_MAX;
  if (args.size() > 3) {
    error("ERR use LARDER.WARM cache [n]");
    co_return;
  }
  if (args.size() == 3 && !parse_integer(args[2], limit)) co_return;
  if (limit <= 0) {
    error("ERR LARDER.WARM needs a number above 0");
    co_return;
  }
  const auto warmed =
      co_await context_.node->warm(std::string(args[1]), static_cast<std::uint64_t>(limit));
  if (!warmed) {
    error(warmed.error());
    co_return;
  }
  writer_.map(3);
  writer_.bulk("keys");
  writer_.integer(static_cast<std::int64_t>(warmed->keys));
  writer_.bulk("failed");
  writer_.integer(static_cast<std::int64_t>(warmed->failed));
  writer_.bulk("took_ms");
  writer_.integer(warmed->took_us / kMillisecond);
}

Task<void> Session::larder_audit(Args args) {
  std::int64_t most = kUsualAudit;
  if (args.size() > 2) {
    error("ERR use LARDER.AUDIT [n] | STATUS");
    co_return;
  }
  if (args.size() == 2 && equals_ignoring_case(args[1], "status")) {
    writer_.bulk(cache::to_json(context_.node->audited(now_)));
    co_return;
  }
  if (args.size() == 2 && !parse_integer(args[1], most)) co_return;
  if (most <= 0 || most > kMostAudit) {
    error(fmt::format("ERR LARDER.AUDIT takes a number of entries from 1 to {}", kMostAudit));
    co_return;
  }
  const auto report = co_await context_.node->audit(static_cast<std::uint64_t>(most));
  if (report)
    writer_.bulk(cache::to_json(*report));
  else
    error(report.error());
}

Task<void> Session::larder_journal(Args args) {
  const auto is = [&](std::string_view word, std::size_t least, std::size_t most) {
    return args.size() >= least && args.size() <= most && equals_ignoring_case(args[1], word);
  };
  std::int64_t number = kUsualLetters;
  if (args.size() == 1 || is("status", 2, 2)) {
    writer_.bulk(context_.node->journal_json(now_));
    co_return;
  }
  if (!is("list", 2, 3) && !is("replay", 3, 3) && !is("drop", 3, 3)) {
    error("ERR use LARDER.JOURNAL [STATUS] | LIST [n] | REPLAY number | DROP number");
    co_return;
  }
  if (args.size() == 3 && !parse_integer(args[2], number)) co_return;
  if (number <= 0) {
    error("ERR LARDER.JOURNAL needs a number above 0");
    co_return;
  }
  const auto given = static_cast<std::uint64_t>(number);
  if (is("list", 2, 3)) {
    const auto letters = co_await context_.node->dead_letters(given);
    if (letters)
      writer_.bulk(*letters);
    else
      error(letters.error());
    co_return;
  }
  Result<void> done;
  if (is("replay", 3, 3))
    done = co_await context_.node->replay_dead_letter(given);
  else
    done = co_await context_.node->drop_dead_letter(given);
  if (done)
    writer_.ok();
  else
    error(done.error());
}

Task<void> Session::larder_lease(Args args) {
  int cache = -1;
  if (!route(args[1], cache)) co_return;
  if (cache >= 0) {
    refuse_declared(*table_.find(args[0]), args[1], cache);
    co_return;
  }
  if (context_.leases == nullptr) {
    error(kNoLeases);
    co_return;
  }
  std::int64_t wait_ms = 0;
  if (args.size() != 2 && (args.size() != 4 || !equals_ignoring_case(args[2], "wait"))) {
    error("ERR use LARDER.LEASE key [WAIT ms]");
    co_return;
  }
  if (args.size() == 4 && !parse_integer(args[3], wait_ms)) co_return;
  if (wait_ms < 0 || wait_ms > kLongestWait / kMillisecond) {
    error(fmt::format("ERR WAIT is in milliseconds, from 0 to {}", kLongestWait / kMillisecond));
    co_return;
  }
  const TimeUs until = monotonic_now_us() + wait_ms * kMillisecond;
  Result<engine::Lease> lease;
  for (;;) {
    const DurationUs left = std::max<DurationUs>(until - monotonic_now_us(), 0);
    lease = co_await context_.leases->lease(std::string(args[1]), std::min(left, kWaitSlice));
    if (!lease || lease->kind != engine::Lease::Kind::busy || left <= kWaitSlice || closing_ ||
        context_.group->stopping())
      break;
  }
  if (!lease) {
    error(lease.error());
    co_return;
  }
  writer_.array(2);
  switch (lease->kind) {
    case engine::Lease::Kind::value: writer_.bulk("value"); break;
    case engine::Lease::Kind::ticket: writer_.bulk("ticket"); break;
    case engine::Lease::Kind::busy:
      writer_.bulk("busy");
      writer_.null();
      co_return;
  }
  writer_.bulk(lease->text);
}

void Session::larder_fill(Args args) {
  int cache = -1;
  if (!route(args[1], cache)) return;
  if (cache >= 0) return refuse_declared(*table_.find(args[0]), args[1], cache);
  if (context_.leases == nullptr) return error(kNoLeases);
  std::optional<DurationUs> ttl_us;
  std::vector<std::string> tags;
  for (std::size_t i = 4; i < args.size(); ++i) {
    const bool seconds = equals_ignoring_case(args[i], "ex");
    if ((seconds || equals_ignoring_case(args[i], "px")) && i + 1 < args.size() && !ttl_us) {
      if (!parse_life("larder.fill", args[++i], seconds, false, ttl_us)) return;
    } else if (equals_ignoring_case(args[i], "tags") && i + 1 < args.size()) {
      tags.assign(args.begin() + static_cast<std::ptrdiff_t>(i) + 1, args.end());
      break;
    } else {
      return error("ERR use LARDER.FILL key ticket value [EX seconds | PX ms] [TAGS tag...]");
    }
  }
  const TimeUs expiry = ttl_us ? saturating_add(now_, *ttl_us) : kNever;
  const auto stored = context_.leases->fill(args[1], args[2], args[3], now_, expiry, tags);
  if (stored && *stored) context_.invalidator->changed(args[1], peer_->id);
  if (stored)
    writer_.integer(*stored ? 1 : 0);
  else
    error(stored.error());
}

void Session::larder_stock(Args) {
  error(
      "ERR LARDER.STOCK is not in this version: bounded counters need a durable store in each "
      "region; use INCRBY on a cache that declares `increment`");
}

void Session::larder_help(Args) {
  help({"LARDER.<command>: what Redis has no words for.",
        "LARDER.GET key",
        "    A declared key with the tier that answered, its age and what is left of its life.",
        "LARDER.EXPLAIN key",
        "    Its cache, who holds it, how old, the guarantee, the last invalidation.",
        "LARDER.INVALIDATE KEY key... | TAG tag... | CACHE name",
        "    Voids entries; the rows stay. Answers how many keys, tags or caches.",
        "LARDER.REMOVE key",
        "    Removes the row behind a key.",
        "LARDER.REFRESH key...",
        "    Loads keys anew. Answers how many have a row.",
        "LARDER.WARM cache [n]",
        "    Loads the keys that the cache's `warm` statement gives.",
        "LARDER.AUDIT [n] | STATUS",
        "    Compares n entries with their sources, repairs what differs; or all that was audited.",
        "LARDER.JOURNAL [STATUS] | LIST [n] | REPLAY number | DROP number",
        "    What waits to be written (write = \"behind\"), and what the databases refused.",
        "LARDER.LEASE key [WAIT ms]",
        "    A plain key: [value, v], or [ticket, t]: load it and FILL, or [busy, nil].",
        "LARDER.FILL key ticket value [EX s | PX ms] [TAGS tag...]",
        "    1: stored. 0: refused, the key has changed meanwhile."});
}

}  // namespace larder::server
