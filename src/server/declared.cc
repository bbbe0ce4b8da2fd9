// What the commands of Redis mean on declared keys (design section 5).
#include <fmt/format.h>

#include <map>
#include <set>

#include "server/session.h"

namespace larder::server {
namespace {

constexpr std::string_view kCall = "call";  // the feed of invalidations by command

// What to do instead of a command that makes no sense on a declared key.
std::string_view advice(std::string_view command) {
  struct Row {
    std::string_view command;
    std::string_view advice;
  };
  static constexpr Row kAdvice[] = {
      {"append", "write the whole value with SET"},
      {"setrange", "write the whole value with SET"},
      {"incrbyfloat", "write the whole value with SET, or declare `increment` and use INCRBY"},
      {"getset", "use GET, then SET"},
      {"getdel", "use GET, then DEL (drops the entry) or LARDER.REMOVE (removes the row)"},
      {"getex", "use GET; the cache's ttl, or EXPIRE, sets the entry's life"},
      {"setnx", "use SET; the database's own constraints decide whether a row may be new"},
      {"msetnx", "use MSET; the database's own constraints decide whether a row may be new"},
      {"persist", "an entry always expires; use EXPIRE for another life"},
      {"rename", "use SET on the new key and LARDER.REMOVE on the old one"},
      {"renamenx", "use SET on the new key and LARDER.REMOVE on the old one"},
      {"copy", "use GET, then SET"},
      {"watch", "let the `store` or `increment` statement check what it expects"},
      {"larder.lease", "use GET: it loads once for all readers"},
      {"larder.fill", "use GET to load it, or SET to write it"},
  };
  for (const Row& row : kAdvice)
    if (row.command == command) return row.advice;
  return "use GET, MGET, SET, DEL, EXPIRE, TTL or the LARDER commands";
}

std::int64_t rounded(DurationUs us, DurationUs unit) { return (us + unit / 2) / unit; }

// Longer than this is "for ever" to TTL.
constexpr DurationUs kForEver = 1000LL * 365 * 86400 * kSecond;

}  // namespace

const cache::CacheSpec& Session::spec(int cache) const {
  return context_.node->caches()[static_cast<std::size_t>(cache)];
}

bool Session::route(std::string_view key, int& cache) {
  cache = -1;
  if (!has_caches_) return true;
  const cache::Node::Route route = context_.node->route(key);
  if (route.match == policy::Match::bad_part) {
    error(context_.node->bad_key(route, key));
    return false;
  }
  if (route.match == policy::Match::yes) cache = route.cache;
  return true;
}

void Session::refuse_declared(const CommandRow& row, std::string_view key, int cache) {
  error(fmt::format("ERR '{}' does not work on key '{}' of the declared cache '{}': {}", row.name,
                    key.substr(0, 128), spec(cache).name, advice(row.name)));
}

// ---- without suspending ----

bool Session::run_keys_now(const CommandRow& row, Args args) {
  const bool passed = context_.passed != nullptr;
  if (!passed && row.verb == Verb::mget && !fits_reply_of(args.subspan(1))) return true;
  if (!has_caches_ && !passed) return plain_now(row, args);
  if (row.verb == Verb::flush) return false;
  int cache = -1;
  if (!passed && row.first_key != 0 && row.first_key == row.last_key) {
    const std::string_view key = args[static_cast<std::size_t>(row.first_key)];
    if (!route(key, cache)) return true;
    return cache >= 0 ? declared_now(row, args, key, cache) : plain_now(row, args);
  }
  keys_.clear();
  // Keys that only the engine can tell, and channels, are no declared ones before it has.
  if (!keys_of(row, args, keys_) || keys_.empty() || (row.flags & kPubSub) != 0)
    return plain_now(row, args);
  std::size_t declared = 0;
  for (const std::string_view key : keys_) {
    if (passed && refuse_internal(key)) return true;
    if (!route(key, cache)) return true;
    declared += cache >= 0 ? 1 : 0;
  }
  if (declared == 0) return plain_now(row, args);
  if (keys_.size() == 1 && row.first_key == row.last_key) {
    route(keys_[0], cache);
    return declared_now(row, args, keys_[0], cache);
  }
  return run_many_now(row, args, declared);
}

// A command on several keys of which some are declared.
bool Session::run_many_now(const CommandRow& row, Args args, std::size_t declared) {
  const bool mixed = declared != keys_.size();
  switch (row.verb) {
    case Verb::mget: return mget_now(args);
    case Verb::exists:
    case Verb::touch:
      if (mixed && context_.passed != nullptr) return false;
      count_held(row);
      return true;
    case Verb::del: return false;
    case Verb::mset:
      if (!mixed) return false;
      error(
          "ERR MSET cannot mix declared and plain keys: the former are one database transaction; "
          "send two commands");
      return true;
    default: break;
  }
  for (const std::string_view key : keys_) {
    int cache = -1;
    route(key, cache);
    if (cache < 0) continue;
    refuse_declared(row, key, cache);
    break;
  }
  return true;
}

// Answers what can be answered from memory. At the first key that must be loaded, keeps what it has
// for declared_mget() and says false.
bool Session::mget_now(Args args) {
  const std::size_t before = out_.size();
  writer_.array(args.size() - 1);
  for (std::size_t i = 1; i < args.size(); ++i) {
    int cache = -1;
    route(args[i], cache);
    if ((cache >= 0 || own_ == nullptr) && answer_near(args[i])) continue;
    if (cache >= 0 || context_.passed != nullptr) {
      partial_.assign(out_, before);
      partial_keys_ = i;
      out_.resize(before);
      return false;
    }
    const std::string_view get[] = {"get", args[i]};
    run_plain(get);
  }
  return true;
}

void Session::count_held(const CommandRow& row) {
  std::int64_t n = 0;
  std::vector<std::string_view> plain{row.name};
  for (const std::string_view key : keys_) {
    int cache = -1;
    route(key, cache);
    if (cache < 0) {
      plain.push_back(key);
    } else if (const auto held = context_.node->held(key, now_); held && !held->negative) {
      ++n;
    }
  }
  if (plain.size() > 1) n += plain_integer(plain);
  writer_.integer(n);
}

bool Session::declared_now(const CommandRow& row, Args args, std::string_view key, int cache) {
  switch (row.verb) {
    case Verb::exists:
    case Verb::touch:
      keys_.assign(1, key);
      count_held(row);
      return true;
    case Verb::type:
    case Verb::ttl:
    case Verb::pttl:
    case Verb::expiretime:
    case Verb::pexpiretime: declared_life(row, key); return true;
    case Verb::expire:
    case Verb::pexpire:
    case Verb::expireat:
    case Verb::pexpireat: return declared_expire(row, args, cache);
    case Verb::mget: return mget_now(args);
    case Verb::get:
      // The fast path has looked, unless it was not open to this client.
      return !ready_ && answer_near(key);
    case Verb::incr:
    case Verb::incrby:
    case Verb::decr:
    case Verb::decrby:
      if (!spec(cache).increment.empty()) return false;
      error(
          fmt::format("ERR '{}' does not work on key '{}' of the declared cache '{}': declare "
                      "`increment` in [cache.{}], or write the whole value with SET",
                      row.name, key.substr(0, 128), spec(cache).name, spec(cache).name));
      return true;
    case Verb::set:
    case Verb::setex:
    case Verb::psetex:
    case Verb::mset:
    case Verb::del:
    case Verb::strlen:
    case Verb::getrange: return false;
    case Verb::other:
    case Verb::flush: break;
  }
  refuse_declared(row, key, cache);
  return true;
}

void Session::declared_life(const CommandRow& row, std::string_view key) {
  const auto held = context_.node->held(key, now_);
  const bool there = held && !held->negative;
  if (row.verb == Verb::type) {
    writer_.simple(there ? "string" : "none");
    return;
  }
  if (!there || held->ttl_us > kForEver) {
    writer_.integer(there ? -1 : -2);
    return;
  }
  const DurationUs left = std::max<DurationUs>(held->ttl_us, 0);
  switch (row.verb) {
    case Verb::ttl: return writer_.integer(rounded(left, kSecond));
    case Verb::pttl: return writer_.integer(rounded(left, kMillisecond));
    case Verb::expiretime: return writer_.integer(rounded(now_ + left, kSecond));
    default: return writer_.integer(rounded(now_ + left, kMillisecond));
  }
}

bool Session::declared_expire(const CommandRow& row, Args args, int cache) {
  std::int64_t n = 0;
  if (!parse_integer(args[2], n)) return true;
  if (args.size() > 3) {
    error(
        fmt::format("ERR '{}' with options does not work on key '{}' of the declared cache '{}': "
                    "use it without them",
                    row.name, args[1].substr(0, 128), spec(cache).name));
    return true;
  }
  const bool seconds = row.verb == Verb::expire || row.verb == Verb::expireat;
  const bool absolute = row.verb == Verb::expireat || row.verb == Verb::pexpireat;
  std::int64_t us = 0;
  if (__builtin_mul_overflow(n, seconds ? kSecond : kMillisecond, &us)) {
    error(fmt::format("ERR invalid expire time in '{}' command", row.name));
    return true;
  }
  const DurationUs ttl = absolute ? saturating_add(us, -now_) : us;
  if (ttl <= 0) return false;
  const bool held = context_.node->set_ttl(args[1], now_, ttl);
  if (held) context_.invalidator->changed(args[1], peer_->id);
  writer_.integer(held ? 1 : 0);
  return true;
}

// ---- writes ----

// The options of SET that mean something on a declared key: how long the entry lives.
bool Session::parse_set(Args args, int cache, std::optional<DurationUs>& ttl_us) {
  for (std::size_t i = 3; i < args.size(); ++i) {
    const std::string option = to_lower(args[i].substr(0, 16));
    if (option == "nx" || option == "xx" || option == "get" || option == "keepttl") {
      error(fmt::format("ERR SET with {} does not work on key '{}' of the declared cache '{}': {}",
                        args[i], args[1].substr(0, 128), spec(cache).name,
                        option == "get"       ? "use GET, then SET"
                        : option == "keepttl" ? "a write gives the entry a new life; use EX or PX"
                                              : "let the `store` statement decide"));
      return false;
    }
    const bool absolute = option.ends_with("at");
    const bool known = option == "ex" || option == "px" || option == "exat" || option == "pxat";
    if (!known || ttl_us || i + 1 >= args.size()) {
      error("ERR syntax error");
      return false;
    }
    if (!parse_life("set", args[++i], option[0] == 'e', absolute, ttl_us)) return false;
  }
  return true;
}

bool Session::parse_life(std::string_view command, std::string_view text, bool seconds,
                         bool absolute, std::optional<DurationUs>& ttl_us) {
  std::int64_t n = 0;
  if (!parse_integer(text, n)) return false;
  std::int64_t us = 0;
  if (n <= 0 || __builtin_mul_overflow(n, seconds ? kSecond : kMillisecond, &us)) {
    error(fmt::format("ERR invalid expire time in '{}' command", command));
    return false;
  }
  // A time that has passed: written, and over at once.
  ttl_us = absolute ? std::max<DurationUs>(us - now_, 1) : us;
  return true;
}

// The operations of one command on declared keys; answers the error and says false if they are
// none.
bool Session::write_op(const CommandRow& row, Args args, std::vector<cache::WriteOp>& ops) {
  using Kind = cache::WriteOp::Kind;
  int cache = -1;
  if (!route(args[1], cache)) return false;
  cache::WriteOp op{.key = std::string(args[1])};
  switch (row.verb) {
    case Verb::set:
      if (!parse_set(args, cache, op.ttl_us)) return false;
      op.value = args[2];
      break;
    case Verb::setex:
    case Verb::psetex:
      if (!parse_life(row.name, args[2], row.verb == Verb::setex, false, op.ttl_us)) return false;
      op.value = args[3];
      break;
    case Verb::mset:
      if (args.size() % 2 == 0) {
        wrong_arity(row.name);
        return false;
      }
      for (std::size_t i = 1; i < args.size(); i += 2)
        ops.push_back({.key = std::string(args[i]), .value = std::string(args[i + 1])});
      return true;
    case Verb::incr:
    case Verb::decr:
      op.kind = Kind::increment;
      op.delta = row.verb == Verb::incr ? 1 : -1;
      break;
    case Verb::incrby:
    case Verb::decrby:
      op.kind = Kind::increment;
      if (!parse_integer(args[2], op.delta)) return false;
      if (row.verb == Verb::incrby) break;
      if (op.delta == INT64_MIN) {
        error("ERR decrement would overflow");
        return false;
      }
      op.delta = -op.delta;
      break;
    default:
      for (const std::string_view key : args.subspan(1))
        ops.push_back({.kind = Kind::remove, .key = std::string(key)});
      return true;
  }
  ops.push_back(std::move(op));
  return true;
}

void Session::write_answer(const CommandRow& row, std::span<const cache::Written> written) {
  switch (row.verb) {
    case Verb::set:
    case Verb::setex:
    case Verb::psetex:
    case Verb::mset: return writer_.ok();
    case Verb::del: {
      std::int64_t rows = 0;
      for (const cache::Written& one : written) rows += one.affected;
      return writer_.integer(rows);
    }
    default: {
      const std::string& value = written.front().value;
      std::int64_t n = 0;
      const auto parsed = std::from_chars(value.data(), value.data() + value.size(), n);
      if (parsed.ec == std::errc() && parsed.ptr == value.data() + value.size())
        writer_.integer(n);
      else
        writer_.bulk(value);
    }
  }
}

// ---- with suspending ----

Task<void> Session::declared_later(const CommandRow& row, Args args) {
  switch (row.verb) {
    case Verb::get:
    case Verb::strlen:
    case Verb::getrange: return declared_get(row, args);
    case Verb::mget: return declared_mget(args);
    case Verb::exists:
    case Verb::touch: return held_later(row, args);
    case Verb::del: return declared_del(args);
    case Verb::expire:
    case Verb::pexpire:
    case Verb::expireat:
    case Verb::pexpireat: return declared_invalidate(args[1]);
    case Verb::flush: return flush_all(row, args);
    default: return declared_write(row, args);
  }
}

Task<void> Session::declared_get(const CommandRow& row, Args args) {
  std::int64_t from = 0;
  std::int64_t to = 0;
  if (row.verb == Verb::getrange && (!parse_integer(args[2], from) || !parse_integer(args[3], to)))
    co_return;
  const auto reading = co_await context_.node->get(std::string(args[1]));
  settle_read(args[1], reading ? &*reading : nullptr);
  if (!reading) {
    error(reading.error());
    co_return;
  }
  const auto size = static_cast<std::int64_t>(reading->value.size());
  if (row.verb == Verb::strlen) {
    writer_.integer(size);
  } else if (row.verb == Verb::getrange) {
    if (from < 0) from = std::max<std::int64_t>(from + size, 0);
    if (to < 0) to = std::max<std::int64_t>(to + size, 0);
    to = std::min(to, size - 1);
    const bool empty = from > to || size == 0;
    writer_.bulk(empty ? std::string_view()
                       : std::string_view(reading->value)
                             .substr(static_cast<std::size_t>(from),
                                     static_cast<std::size_t>(to - from + 1)));
  } else if (reading->found) {
    writer_.bulk(reading->value);
  } else {
    writer_.null();
  }
}

// EXISTS and TOUCH of declared keys beside plain ones that the engine has.
Task<void> Session::held_later(const CommandRow& row, Args args) {
  std::vector<std::string> plain{std::string(row.name)};
  std::int64_t n = 0;
  for (const std::string_view key : args.subspan(1)) {
    int cache = -1;
    route(key, cache);
    if (cache < 0) {
      plain.emplace_back(key);
    } else if (const auto held = context_.node->held(key, now_); held && !held->negative) {
      ++n;
    }
  }
  const auto count = co_await pass_count(std::move(plain));
  for (const std::string_view key : args.subspan(1)) settle_read(key, nullptr);
  if (count)
    writer_.integer(n + *count);
  else
    error(count.error());
}

// Goes on where mget_now() had to stop: everything that is missing comes with one load a cache.
Task<void> Session::declared_mget(Args args) {
  constexpr std::size_t kReady = static_cast<std::size_t>(-1);
  const bool passed = context_.passed != nullptr;
  std::vector<std::string> asked;  // plain keys that the engine has; their answers are `ready`
  std::vector<std::size_t> asked_at;
  std::string out = std::move(partial_);
  partial_.clear();
  std::vector<std::string> ready;      // encoded answers, for those with kReady
  std::vector<std::size_t> wanted_at;  // for each key: its place in `wanted`, or kReady
  std::vector<std::string> wanted;
  const std::size_t before = out_.size();
  for (std::size_t i = partial_keys_; i < args.size(); ++i) {
    int cache = -1;
    route(args[i], cache);
    const bool hit = (cache >= 0 || own_ == nullptr) && answer_near(args[i]);
    if (!hit && cache >= 0) {
      wanted_at.push_back(wanted.size());
      wanted.emplace_back(args[i]);
      continue;
    }
    if (out_.size() == before && passed) {
      asked.emplace_back(args[i]);
      asked_at.push_back(ready.size());
    } else if (out_.size() == before) {
      const std::string_view get[] = {"get", args[i]};
      run_plain(get);
    }
    wanted_at.push_back(kReady);
    ready.push_back(out_.substr(before));
    out_.resize(before);
  }
  const auto readings = co_await context_.node->get_many(std::move(wanted));
  for (std::size_t i = 1; tracking_.on && i < args.size(); ++i) {
    const std::size_t at = i < partial_keys_ ? kReady : wanted_at[i - partial_keys_];
    settle_read(args[i], at != kReady && readings[at] ? &*readings[at] : nullptr);
  }
  if (!asked.empty()) {
    auto values = co_await pass_values(std::move(asked));
    if (!values) {
      error(values.error());
      co_return;
    }
    for (std::size_t i = 0; i < asked_at.size(); ++i) ready[asked_at[i]] = std::move((*values)[i]);
  }
  std::size_t bytes = out.size();
  for (const auto& reading : readings) bytes += reading ? reading->value.size() : 0;
  if (!fits_reply(bytes)) co_return;
  std::size_t next_ready = 0;
  wire::Writer writer(out, writer_.protocol());
  for (const std::size_t at : wanted_at) {
    if (at == kReady) {
      out += ready[next_ready++];
    } else if (!readings[at]) {
      // One answer for all, as clients expect of MGET: an error inside the array surprises them.
      error(readings[at].error());
      co_return;
    } else if (readings[at]->found) {
      writer.bulk(readings[at]->value);
    } else {
      writer.null();
    }
  }
  out_ += out;
}

Task<void> Session::declared_write(const CommandRow& row, Args args) {
  std::vector<cache::WriteOp> ops;
  if (!write_op(row, args, ops)) co_return;
  const auto written = co_await context_.node->write(std::move(ops));
  if (written)
    write_answer(row, *written);
  else
    error(written.error());
}

Task<void> Session::declared_del(Args args) {
  std::vector<std::string> voided;
  std::set<std::string_view> seen;
  std::vector<std::string_view> plain{"del"};
  // Rows to remove: one transaction for each source.
  std::map<std::string_view, std::vector<cache::WriteOp>> removed;
  for (const std::string_view key : args.subspan(1)) {
    int cache = -1;
    if (!route(key, cache)) co_return;
    if (!seen.insert(key).second) continue;
    if (cache < 0)
      plain.push_back(key);
    else if (spec(cache).on_del_removes)
      removed[spec(cache).source].push_back(
          {.kind = cache::WriteOp::Kind::remove, .key = std::string(key)});
    else
      voided.emplace_back(key);
  }
  std::int64_t n = 0;
  for (auto& [source, ops] : removed) {
    const auto written = co_await context_.node->write(std::move(ops));
    if (!written) {
      error(written.error());
      co_return;
    }
    for (const cache::Written& one : *written) n += one.affected;
  }
  if (!voided.empty()) {
    const auto count = co_await context_.node->invalidate_keys(std::move(voided), kCall);
    if (!count) {
      error(count.error());
      co_return;
    }
    n += *count;
  }
  if (plain.size() > 1 && context_.passed != nullptr) {
    const auto count = co_await pass_count({plain.begin(), plain.end()});
    if (!count) {
      error(count.error());
      co_return;
    }
    n += *count;
  } else if (plain.size() > 1) {
    n += plain_integer(plain);
  }
  writer_.integer(n);
}

Task<void> Session::declared_invalidate(std::string_view key) {
  std::vector<std::string> keys{std::string(key)};
  const auto count = co_await context_.node->invalidate_keys(std::move(keys), kCall);
  if (count)
    writer_.integer(*count);
  else
    error(count.error());
}

Task<void> Session::flush_all(const CommandRow& row, Args args) {
  const auto voided = co_await context_.node->invalidate_all(kCall);
  if (!voided)
    error(voided.error());
  else if (context_.passed != nullptr)
    co_await pass_flush(args);
  else
    run_plain(row, args);
}

}  // namespace larder::server
