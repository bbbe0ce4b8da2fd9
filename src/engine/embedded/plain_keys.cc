// Plain commands about keys: life, names, the key space.
#include <fmt/format.h>

#include <cerrno>
#include <cstdlib>

#include "base/clock.h"
#include "base/hash.h"
#include "base/random.h"
#include "engine/embedded/glob.h"
#include "engine/embedded/plain_run.h"

namespace larder::engine::plain {
namespace {

constexpr unsigned kWalkBuckets = 256;             // at once, under one lock
constexpr std::int64_t kMaxScanBuckets = 1 << 20;  // of one SCAN, whatever its COUNT

struct ExpireFlags {
  bool nx = false;
  bool xx = false;
  bool gt = false;
  bool lt = false;

  // May the end of life be `when_ms` instead of the entry's?
  bool allow(TimeUs expiry, std::int64_t when_ms) const {
    const bool never = expiry == kNever;
    const std::int64_t current_ms = expiry / 1000;
    if (nx && !never) return false;
    if (xx && never) return false;
    if (gt && (never || when_ms <= current_ms)) return false;  // never is later than any time
    if (lt && !never && when_ms >= current_ms) return false;
    return true;
  }
};

bool parse_flags(Run& run, Args args, ExpireFlags& flags) {
  for (const std::string_view option : args.subspan(3)) {
    if (equals_nocase(option, "nx")) {
      flags.nx = true;
    } else if (equals_nocase(option, "xx")) {
      flags.xx = true;
    } else if (equals_nocase(option, "gt")) {
      flags.gt = true;
    } else if (equals_nocase(option, "lt")) {
      flags.lt = true;
    } else {
      run.out.error(fmt::format("ERR Unsupported option {}", option));
      return false;
    }
  }
  if (flags.nx && (flags.xx || flags.gt || flags.lt)) {
    run.out.error("ERR NX and XX, GT or LT options at the same time are not compatible");
    return false;
  }
  if (flags.gt && flags.lt) {
    run.out.error("ERR GT and LT options at the same time are not compatible");
    return false;
  }
  return true;
}

void expire(Run& run, Args args, Unit unit, std::int64_t base_ms) {
  ExpireFlags flags;
  if (!parse_flags(run, args, flags)) return;
  const auto given = parse_integer(args[2]);
  if (!given) return run.out.error(kNotInteger);
  std::int64_t when_ms = *given;
  if ((unit == Unit::seconds && __builtin_mul_overflow(when_ms, std::int64_t{1000}, &when_ms)) ||
      __builtin_add_overflow(when_ms, base_ms, &when_ms))
    return run.invalid_expiry();
  const near::View* view = run.find(args[1]);
  if (view == nullptr || !flags.allow(view->meta.useless_at, when_ms)) return run.out.integer(0);
  if (when_ms <= run.now_ms())
    run.erase(args[1]);
  else
    run.set_expiry(args[1], expiry_of(when_ms));
  run.out.integer(1);
}

// -2: no key; -1: no end of life.
void reply_life(Run& run, std::string_view key, Unit unit, bool absolute) {
  const near::View* view = run.find(key);
  if (view == nullptr) return run.out.integer(-2);
  if (view->meta.useless_at == kNever) return run.out.integer(-1);
  const std::int64_t expiry_ms = view->meta.useless_at / 1000;
  const std::int64_t ms =
      absolute ? expiry_ms : std::max<std::int64_t>(expiry_ms - run.now_ms(), 0);
  run.out.integer(unit == Unit::seconds ? (ms + 500) / 1000 : ms);
}

// Is it a key that a client may see? Declared entries while they are valid and say that there is
// something.
bool visible(const near::View& view, TimeUs now) {
  return !view.is_void && !view.meta.negative && view.meta.soft_expiry > now;
}

void reply_keys(Run& run, const std::vector<std::string>& keys) {
  run.out.array(keys.size());
  for (const std::string& key : keys) run.out.bulk(key);
}

struct ScanOptions {
  std::uint64_t cursor = 0;
  std::int64_t count = 10;
  std::string_view match = "*";
  bool strings = true;  // TYPE string, or none given
};

bool parse_cursor(std::string_view text, std::uint64_t& cursor) {
  const std::string copy(text.substr(0, 32));
  if (copy.empty() || copy.size() != text.size() || copy.find('\0') != std::string::npos ||
      std::isspace(static_cast<unsigned char>(copy[0])) != 0)
    return text.empty();
  char* end = nullptr;
  errno = 0;
  cursor = std::strtoull(copy.c_str(), &end, 10);
  return *end == '\0' && errno != ERANGE;
}

bool parse_scan(Run& run, Args args, ScanOptions& options) {
  if (!parse_cursor(args[1], options.cursor)) {
    run.out.error("ERR invalid cursor");
    return false;
  }
  for (std::size_t i = 2; i < args.size(); i += 2) {
    if (i + 1 < args.size() && equals_nocase(args[i], "count")) {
      const auto count = parse_integer(args[i + 1]);
      if (!count) {
        run.out.error(kNotInteger);
        return false;
      }
      if (*count < 1) {
        run.out.error(kSyntax);
        return false;
      }
      options.count = *count;
    } else if (i + 1 < args.size() && equals_nocase(args[i], "match")) {
      options.match = args[i + 1];
    } else if (i + 1 < args.size() && equals_nocase(args[i], "type")) {
      options.strings = equals_nocase(args[i + 1], "string");
    } else {
      run.out.error(kSyntax);
      return false;
    }
  }
  return true;
}

void rename(Run& run, Args args, bool only_new) {
  const std::string_view from = args[1];
  const std::string_view to = args[2];
  const near::View* view = run.find(from);
  if (view == nullptr) return run.out.error("ERR no such key");
  const std::string value(view->value);
  const TimeUs expiry = view->meta.useless_at;
  if (only_new && (from == to || run.find(to) != nullptr)) return run.out.integer(0);
  if (from != to) {
    run.erase(from);  // first: there may be no room for both
    if (!run.put(to, value, expiry)) {
      run.locked->put(from, hash_bytes(from), value, expiry);
      return;
    }
  }
  if (only_new) return run.out.integer(1);
  run.out.ok();
}

}  // namespace

void do_del(Run& run, Args args) {
  std::int64_t count = 0;
  for (const std::string_view key : args.subspan(1)) {
    if (run.find(key) != nullptr) ++count;
    run.erase(key);  // absent or not: it voids leases
  }
  run.out.integer(count);
}

void do_exists(Run& run, Args args) {
  std::int64_t count = 0;
  for (const std::string_view key : args.subspan(1))
    if (run.find(key) != nullptr) ++count;
  run.out.integer(count);
}

void do_expire(Run& run, Args args) { expire(run, args, Unit::seconds, run.now_ms()); }
void do_pexpire(Run& run, Args args) { expire(run, args, Unit::milliseconds, run.now_ms()); }
void do_expireat(Run& run, Args args) { expire(run, args, Unit::seconds, 0); }
void do_pexpireat(Run& run, Args args) { expire(run, args, Unit::milliseconds, 0); }
void do_ttl(Run& run, Args args) { reply_life(run, args[1], Unit::seconds, false); }
void do_pttl(Run& run, Args args) { reply_life(run, args[1], Unit::milliseconds, false); }
void do_expiretime(Run& run, Args args) { reply_life(run, args[1], Unit::seconds, true); }
void do_pexpiretime(Run& run, Args args) { reply_life(run, args[1], Unit::milliseconds, true); }

void do_persist(Run& run, Args args) {
  const near::View* view = run.find(args[1]);
  if (view == nullptr || view->meta.useless_at == kNever) return run.out.integer(0);
  run.set_expiry(args[1], kNever);
  run.out.integer(1);
}

void do_type(Run& run, Args args) {
  run.out.simple(run.find(args[1]) != nullptr ? "string" : "none");
}

void do_scan(Run& run, Args args) {
  ScanOptions options;
  if (!parse_scan(run, args, options)) return;
  std::vector<std::string> keys;
  const auto buckets = static_cast<unsigned>(std::min(options.count, kMaxScanBuckets));
  const std::uint64_t next = run.scan(options.cursor, buckets, [&](const near::View& view) {
    if (options.strings && visible(view, run.now) && glob_match(options.match, view.key))
      keys.emplace_back(view.key);
  });
  const fmt::format_int text(next);
  run.out.array(2);
  run.out.bulk({text.data(), text.size()});
  reply_keys(run, keys);
}

void do_keys(Run& run, Args args) {
  std::vector<std::string> keys;
  std::uint64_t cursor = 0;
  do {
    cursor = run.scan(cursor, kWalkBuckets, [&](const near::View& view) {
      if (visible(view, run.now) && glob_match(args[1], view.key)) keys.emplace_back(view.key);
    });
  } while (cursor != 0);
  // The index may have doubled meanwhile: what was seen before can come again.
  if (run.locked == nullptr) {
    std::ranges::sort(keys);
    keys.erase(std::ranges::unique(keys).begin(), keys.end());
  }
  reply_keys(run, keys);
}

void do_dbsize(Run& run, Args) {
  std::int64_t count = 0;
  std::uint64_t cursor = 0;
  do {
    cursor = run.scan(cursor, kWalkBuckets, [&](const near::View& view) {
      if (visible(view, run.now)) ++count;
    });
  } while (cursor != 0);
  run.out.integer(count);
}

void do_randomkey(Run& run, Args) {
  thread_local Random random(hash_bytes("randomkey") ^ static_cast<Hash>(monotonic_now_us()));
  std::string chosen;
  std::uint64_t seen = 0;
  const auto visit = [&](const near::View& view) {
    if (visible(view, run.now) && random.below(++seen) == 0) chosen = view.key;
  };
  // From a random place to the end, then from the beginning: the first buckets that hold anything.
  std::uint64_t cursor = random.next();
  do {
    cursor = run.scan(cursor, 16, visit);
  } while (cursor != 0 && seen == 0);
  if (seen == 0) do {
      cursor = run.scan(cursor, 16, visit);
    } while (cursor != 0 && seen == 0);
  if (seen == 0) return run.out.null();
  run.out.bulk(chosen);
}

void do_rename(Run& run, Args args) { rename(run, args, false); }
void do_renamenx(Run& run, Args args) { rename(run, args, true); }

void do_flush(Run& run, Args args) {
  if (args.size() > 2 ||
      (args.size() == 2 && !equals_nocase(args[1], "sync") && !equals_nocase(args[1], "async")))
    return run.out.error(kSyntax);
  run.locked->clear(false);
  run.out.ok();
}

}  // namespace larder::engine::plain
