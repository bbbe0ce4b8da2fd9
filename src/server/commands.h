// The table of all commands: those on plain keys (engine/embedded/plain.h) and the server's own.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/task.h"
#include "engine/embedded/plain.h"

namespace larder::server {

using engine::Args;
class Session;

// What a command on a declared key means; `other` are the plain commands that make no sense there.
enum class Verb : std::uint8_t {
  other,
  get,
  mget,
  set,
  setex,
  psetex,
  mset,
  del,
  exists,
  touch,
  type,
  ttl,
  pttl,
  expiretime,
  pexpiretime,
  expire,
  pexpire,
  expireat,
  pexpireat,
  incr,
  incrby,
  decr,
  decrby,
  strlen,
  getrange,
  flush,
};

enum CommandFlag : std::uint16_t {
  kWithoutAuth = 1,     // before AUTH
  kWhenSubscribed = 2,  // by a RESP2 client that is in a channel
  kNeverQueued = 4,     // runs inside MULTI
  kNotInMulti = 8,      // refused inside MULTI
  kAdmin = 16,
  kFast = 32,
  kPubSub = 64,
  kReads = 128,  // a client may keep its answer (CLIENT TRACKING); plain commands say it themselves
  kPassed = 256,      // learned from the engine (passed.h)
  kBlocking = 512,    // may wait
  kMovable = 1024,    // its keys are not at fixed places
  kContainer = 2048,  // has subcommands
  kEngine = 4096,     // with plain keys on an engine, the engine's own is meant
};

struct CommandRow {
  std::string_view name;  // lower case
  int arity = 0;          // as Redis counts; negative: at least
  std::uint16_t flags = 0;
  int first_key = 0;
  int last_key = 0;
  int key_step = 0;
  std::string_view group;
  std::string_view summary;
  // `now` answers, or sets needs_later_ and is followed by `later`; `plain` are the others.
  void (Session::*now)(Args) = nullptr;
  Task<void> (Session::*later)(Args) = nullptr;
  const engine::PlainCommand* plain = nullptr;
  Verb verb = Verb::other;

  bool arity_fits(std::size_t args) const {
    return arity >= 0 ? args == static_cast<std::size_t>(arity)
                      : args >= static_cast<std::size_t>(-arity);
  }
};

// Made once; immutable, so thread-safe.
class CommandTable {
 public:
  static const CommandTable& instance();

  // In any case; null if unknown. Cost: one hash of up to 32 bytes, one compare.
  const CommandRow* find(std::string_view name) const;
  std::span<const CommandRow> rows() const { return rows_; }

 private:
  CommandTable();
  std::vector<CommandRow> rows_;
  std::vector<std::uint16_t> slots_;  // 1 + index into rows_; open addressing
};

// ASCII, for names of commands and options.
bool equals_ignoring_case(std::string_view text, std::string_view lower);
std::string to_lower(std::string_view text);

// Appends a command's keys. REQUIRES: its arity fits.
void append_keys(const CommandRow& row, Args args, std::vector<std::string_view>& keys);

}  // namespace larder::server
