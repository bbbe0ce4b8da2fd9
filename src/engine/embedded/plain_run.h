// Inside of the plain commands: what a command's function gets, and what many of them need.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "engine/embedded/plain.h"

namespace larder::engine::plain {

// Redis's proto-max-bulk-len: no value is longer.
inline constexpr std::int64_t kMaxValueBytes = std::int64_t{512} << 20;

inline constexpr std::string_view kNotInteger = "ERR value is not an integer or out of range";
inline constexpr std::string_view kSyntax = "ERR syntax error";

// One command that runs. Times on the wire are in milliseconds, as in Redis.
struct Run {
  near::Store& store;
  near::Store::Locked* locked;  // null: a walk through the key space, alone
  TimeUs now;
  wire::Writer& out;
  std::string_view name;  // of the command, lower case

  std::int64_t now_ms() const { return now / 1000; }
  // The view is valid until the next change.
  const near::View* find(std::string_view key) const {
    return locked->find(key, hash_bytes(key), now);
  }
  // Sets the key, or replies why not and returns false; then nothing has changed.
  bool put(std::string_view key, std::string_view value, TimeUs expiry) const;
  bool erase(std::string_view key) const { return locked->erase(key, hash_bytes(key)); }
  bool set_expiry(std::string_view key, TimeUs expiry) const {
    return locked->set_expiry(key, hash_bytes(key), expiry);
  }
  std::uint64_t scan(std::uint64_t cursor, unsigned count,
                     const std::function<void(const near::View&)>& visit) const;

  void wrong_arity() const;
  void too_large(std::size_t value_bytes) const;
  void invalid_expiry() const;  // "invalid expire time in '...' command"
  // The value or null of a key.
  void reply_value(const near::View* view) const;
};

using Handler = void (*)(Run&, Args);

// Exactly the canonical text of a signed 64-bit integer, as Redis's string2ll.
std::optional<std::int64_t> parse_integer(std::string_view text);
bool equals_nocase(std::string_view text, std::string_view lower);

// A point in time in ms as TimeUs; beyond its range: the last one that is an expiry at all.
TimeUs expiry_of(std::int64_t ms);

enum class Unit : std::uint8_t { seconds, milliseconds };

// The EX, PX, EXAT, PXAT argument of a SET-like command as a point in time in ms; replies and
// answers nothing if it is no good.
std::optional<std::int64_t> expire_time_ms(Run& run, std::string_view text, Unit unit,
                                           bool relative);

// plain_strings.cc
void do_get(Run&, Args);
void do_mget(Run&, Args);
void do_set(Run&, Args);
void do_setex(Run&, Args);
void do_psetex(Run&, Args);
void do_setnx(Run&, Args);
void do_mset(Run&, Args);
void do_msetnx(Run&, Args);
void do_getset(Run&, Args);
void do_getex(Run&, Args);
void do_getdel(Run&, Args);
void do_incr(Run&, Args);
void do_incrby(Run&, Args);
void do_incrbyfloat(Run&, Args);
void do_decr(Run&, Args);
void do_decrby(Run&, Args);
void do_append(Run&, Args);
void do_strlen(Run&, Args);
void do_getrange(Run&, Args);
void do_setrange(Run&, Args);
// plain_keys.cc
void do_del(Run&, Args);
void do_exists(Run&, Args);
void do_expire(Run&, Args);
void do_pexpire(Run&, Args);
void do_expireat(Run&, Args);
void do_pexpireat(Run&, Args);
void do_ttl(Run&, Args);
void do_pttl(Run&, Args);
void do_expiretime(Run&, Args);
void do_pexpiretime(Run&, Args);
void do_persist(Run&, Args);
void do_type(Run&, Args);
void do_scan(Run&, Args);
void do_keys(Run&, Args);
void do_dbsize(Run&, Args);
void do_randomkey(Run&, Args);
void do_rename(Run&, Args);
void do_renamenx(Run&, Args);
void do_flush(Run&, Args);

}  // namespace larder::engine::plain
