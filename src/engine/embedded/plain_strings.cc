// Plain commands that read and change values.
#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "base/hash.h"
#include "engine/embedded/plain_run.h"

namespace larder::engine::plain {
namespace {

constexpr std::string_view kTooLong =
    "ERR string exceeds maximum allowed size (proto-max-bulk-len)";
constexpr std::string_view kNotFloat = "ERR value is not a valid float";

// The options of SET and GETEX, with Redis's rules about which exclude each other.
struct Options {
  bool nx = false;
  bool xx = false;
  bool get = false;
  bool keep_ttl = false;
  bool persist = false;
  enum class When : std::uint8_t { none, ex, px, exat, pxat } when = When::none;
  std::string_view time;

  Unit unit() const {
    return when == When::ex || when == When::exat ? Unit::seconds : Unit::milliseconds;
  }
  bool relative() const { return when == When::ex || when == When::px; }
};

bool parse_time_option(Options& options, std::string_view option, Args args, std::size_t& i) {
  using When = Options::When;
  When when = When::none;
  if (equals_nocase(option, "ex")) when = When::ex;
  if (equals_nocase(option, "px")) when = When::px;
  if (equals_nocase(option, "exat")) when = When::exat;
  if (equals_nocase(option, "pxat")) when = When::pxat;
  if (when == When::none || options.keep_ttl || options.persist || i + 1 >= args.size())
    return false;
  if (options.when != When::none && options.when != when) return false;
  options.when = when;
  options.time = args[++i];
  return true;
}

bool parse_options(Args args, std::size_t first, bool is_set, Options& options) {
  const auto timed = [&] { return options.when != Options::When::none; };
  for (std::size_t i = first; i < args.size(); ++i) {
    const std::string_view option = args[i];
    if (is_set && equals_nocase(option, "nx") && !options.xx)
      options.nx = true;
    else if (is_set && equals_nocase(option, "xx") && !options.nx)
      options.xx = true;
    else if (is_set && equals_nocase(option, "get"))
      options.get = true;
    else if (is_set && equals_nocase(option, "keepttl") && !timed())
      options.keep_ttl = true;
    else if (!is_set && equals_nocase(option, "persist") && !timed())
      options.persist = true;
    else if (!parse_time_option(options, option, args, i))
      return false;
  }
  return true;
}

// Sets a key for so long, answers OK.
void set_for(Run& run, Args args, Unit unit) {
  const auto ms = expire_time_ms(run, args[2], unit, true);
  if (ms && run.put(args[1], args[3], expiry_of(*ms))) run.out.ok();
}

// What a key holds, with its end of life, kept past the next change.
struct Held {
  bool found = false;
  std::string value;
  TimeUs expiry = kNever;
};

Held hold(const Run& run, std::string_view key) {
  const near::View* view = run.find(key);
  if (view == nullptr) return {};
  return {true, std::string(view->value), view->meta.useless_at};
}

void reply_held(const Run& run, const Held& held) {
  if (held.found)
    run.out.bulk(held.value);
  else
    run.out.null();
}

// All or nothing: puts the former values back if one does not fit.
bool set_all(Run& run, Args args) {
  struct Former {
    std::string_view key;
    Held held;
  };
  std::vector<Former> formers;
  formers.reserve(args.size() / 2);
  for (std::size_t i = 1; i < args.size(); i += 2) {
    formers.push_back({args[i], hold(run, args[i])});
    if (run.put(args[i], args[i + 1], kNever)) continue;
    formers.pop_back();  // unchanged
    for (; !formers.empty(); formers.pop_back()) {
      const Former& former = formers.back();
      run.erase(former.key);
      // There is room: it was there before, and whatever has taken it since has just been undone.
      if (former.held.found)
        run.locked->put(former.key, hash_bytes(former.key), former.held.value, former.held.expiry);
    }
    return false;
  }
  return true;
}

void add(Run& run, std::string_view key, std::int64_t delta) {
  const near::View* view = run.find(key);
  const TimeUs expiry = view != nullptr ? view->meta.useless_at : kNever;
  const auto old = view != nullptr ? parse_integer(view->value) : 0;
  std::int64_t sum = 0;
  if (!old) return run.out.error(kNotInteger);
  if (__builtin_add_overflow(*old, delta, &sum))
    return run.out.error("ERR increment or decrement would overflow");
  const fmt::format_int text(sum);
  if (run.put(key, {text.data(), text.size()}, expiry)) run.out.integer(sum);
}

std::optional<long double> parse_float(std::string_view text) {
  std::array<char, std::size_t{5} * 1024> buffer;  // NOLINT: only what is written is read
  if (text.empty() || text.size() >= buffer.size()) return std::nullopt;
  text.copy(buffer.data(), text.size());
  buffer[text.size()] = '\0';
  if (std::isspace(static_cast<unsigned char>(buffer[0])) != 0) return std::nullopt;
  char* end = nullptr;
  errno = 0;
  const long double value = std::strtold(buffer.data(), &end);
  if (end != buffer.data() + text.size() || errno == EINVAL || std::isnan(value))
    return std::nullopt;
  if (errno == ERANGE && (std::isinf(value) || value == 0)) return std::nullopt;
  return value;
}

// Without exponent, at most 17 digits behind the point, no zeros at the end.
std::string float_text(long double value) {
  std::array<char, std::size_t{5} * 1024> buffer;  // NOLINT: only what is written is read
  const int size = std::snprintf(buffer.data(), buffer.size(), "%.17Lf", value);
  std::string text(buffer.data(), static_cast<std::size_t>(size));
  if (text.find('.') != std::string::npos) {
    text.erase(text.find_last_not_of('0') + 1);
    if (text.ends_with('.')) text.pop_back();
  }
  return text == "-0" ? "0" : text;
}

bool length_fits(Run& run, std::int64_t size, std::int64_t more) {
  std::int64_t total = 0;
  if (!__builtin_add_overflow(size, more, &total) && total <= kMaxValueBytes) return true;
  run.out.error(kTooLong);
  return false;
}

}  // namespace

void do_get(Run& run, Args args) { run.reply_value(run.find(args[1])); }

void do_mget(Run& run, Args args) {
  run.out.array(args.size() - 1);
  for (const std::string_view key : args.subspan(1)) run.reply_value(run.find(key));
}

void do_set(Run& run, Args args) {
  Options options;
  if (!parse_options(args, 3, true, options)) return run.out.error(kSyntax);
  TimeUs expiry = kNever;
  if (options.when != Options::When::none) {
    const auto ms = expire_time_ms(run, options.time, options.unit(), options.relative());
    if (!ms) return;
    expiry = expiry_of(*ms);
  }
  Held old;
  if (options.nx || options.xx || options.keep_ttl || options.get) {
    const near::View* view = run.find(args[1]);
    old.found = view != nullptr;
    if (view != nullptr && options.keep_ttl) expiry = view->meta.useless_at;
    if (view != nullptr && options.get) old.value = view->value;
  }
  if ((options.nx && old.found) || (options.xx && !old.found)) {
    if (options.get) return reply_held(run, old);
    return run.out.null();
  }
  if (!run.put(args[1], args[2], expiry)) return;
  if (options.get) return reply_held(run, old);
  run.out.ok();
}

void do_setex(Run& run, Args args) { set_for(run, args, Unit::seconds); }
void do_psetex(Run& run, Args args) { set_for(run, args, Unit::milliseconds); }

void do_setnx(Run& run, Args args) {
  if (run.find(args[1]) != nullptr) return run.out.integer(0);
  if (run.put(args[1], args[2], kNever)) run.out.integer(1);
}

void do_mset(Run& run, Args args) {
  if (args.size() % 2 == 0) return run.wrong_arity();
  if (set_all(run, args)) run.out.ok();
}

void do_msetnx(Run& run, Args args) {
  if (args.size() % 2 == 0) return run.wrong_arity();
  for (std::size_t i = 1; i < args.size(); i += 2)
    if (run.find(args[i]) != nullptr) return run.out.integer(0);
  if (set_all(run, args)) run.out.integer(1);
}

void do_getset(Run& run, Args args) {
  const Held old = hold(run, args[1]);
  if (run.put(args[1], args[2], kNever)) reply_held(run, old);
}

void do_getex(Run& run, Args args) {
  Options options;
  if (!parse_options(args, 2, false, options)) return run.out.error(kSyntax);
  const near::View* view = run.find(args[1]);
  if (view == nullptr) return run.out.null();
  if (options.when == Options::When::none) {
    run.out.bulk(view->value);
    if (options.persist && view->meta.useless_at != kNever) run.set_expiry(args[1], kNever);
    return;
  }
  const auto ms = expire_time_ms(run, options.time, options.unit(), options.relative());
  if (!ms) return;
  run.out.bulk(view->value);
  if (*ms <= run.now_ms())
    run.erase(args[1]);
  else
    run.set_expiry(args[1], expiry_of(*ms));
}

void do_getdel(Run& run, Args args) {
  run.reply_value(run.find(args[1]));
  run.erase(args[1]);
}

void do_incr(Run& run, Args args) { add(run, args[1], 1); }
void do_decr(Run& run, Args args) { add(run, args[1], -1); }

void do_incrby(Run& run, Args args) {
  const auto delta = parse_integer(args[2]);
  if (!delta) return run.out.error(kNotInteger);
  add(run, args[1], *delta);
}

void do_decrby(Run& run, Args args) {
  const auto delta = parse_integer(args[2]);
  if (!delta) return run.out.error(kNotInteger);
  if (*delta == INT64_MIN) return run.out.error("ERR decrement would overflow");
  add(run, args[1], -*delta);
}

void do_incrbyfloat(Run& run, Args args) {
  const near::View* view = run.find(args[1]);
  const TimeUs expiry = view != nullptr ? view->meta.useless_at : kNever;
  const auto old = view != nullptr ? parse_float(view->value) : 0.0L;
  const auto delta = parse_float(args[2]);
  if (!old || !delta) return run.out.error(kNotFloat);
  const long double sum = *old + *delta;
  if (!std::isfinite(sum)) return run.out.error("ERR increment would produce NaN or Infinity");
  const std::string text = float_text(sum);
  if (run.put(args[1], text, expiry)) run.out.bulk(text);
}

void do_append(Run& run, Args args) {
  const near::View* view = run.find(args[1]);
  const std::string_view old = view != nullptr ? view->value : std::string_view{};
  const TimeUs expiry = view != nullptr ? view->meta.useless_at : kNever;
  if (view != nullptr && !length_fits(run, static_cast<std::int64_t>(old.size()),
                                      static_cast<std::int64_t>(args[2].size())))
    return;
  std::string value;
  value.reserve(old.size() + args[2].size());
  value.append(old).append(args[2]);
  if (run.put(args[1], value, expiry)) run.out.integer(static_cast<std::int64_t>(value.size()));
}

void do_strlen(Run& run, Args args) {
  const near::View* view = run.find(args[1]);
  run.out.integer(view != nullptr ? static_cast<std::int64_t>(view->value.size()) : 0);
}

void do_getrange(Run& run, Args args) {
  const auto first = parse_integer(args[2]);
  const auto last = first ? parse_integer(args[3]) : std::nullopt;
  if (!last) return run.out.error(kNotInteger);
  const near::View* view = run.find(args[1]);
  const auto size = view != nullptr ? static_cast<std::int64_t>(view->value.size()) : 0;
  std::int64_t start = *first;
  std::int64_t end = *last;
  if (size == 0 || (start < 0 && end < 0 && start > end)) return run.out.bulk("");
  if (start < 0) start = std::max<std::int64_t>(start + size, 0);
  if (end < 0) end = std::max<std::int64_t>(end + size, 0);
  end = std::min(end, size - 1);
  if (start > end) return run.out.bulk("");
  run.out.bulk(view->value.substr(static_cast<std::size_t>(start),
                                  static_cast<std::size_t>(end - start + 1)));
}

void do_setrange(Run& run, Args args) {
  const auto offset = parse_integer(args[2]);
  if (!offset) return run.out.error(kNotInteger);
  if (*offset < 0) return run.out.error("ERR offset is out of range");
  const near::View* view = run.find(args[1]);
  const std::string_view old = view != nullptr ? view->value : std::string_view{};
  const TimeUs expiry = view != nullptr ? view->meta.useless_at : kNever;
  const std::string_view patch = args[3];
  if (patch.empty()) return run.out.integer(static_cast<std::int64_t>(old.size()));
  if (!length_fits(run, *offset, static_cast<std::int64_t>(patch.size()))) return;
  const auto at = static_cast<std::size_t>(*offset);
  // Before the buffer is made: a far offset must not cost its memory for nothing.
  const std::size_t size = std::max(old.size(), at + patch.size());
  if (size > run.store.max_entry_bytes()) return run.too_large(size);
  std::string value(size, '\0');
  old.copy(value.data(), old.size());
  patch.copy(value.data() + at, patch.size());
  if (run.put(args[1], value, expiry)) run.out.integer(static_cast<std::int64_t>(value.size()));
}

}  // namespace larder::engine::plain
