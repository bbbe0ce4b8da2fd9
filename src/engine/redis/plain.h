// Plain keys on a Redis or Valkey engine: what has to be known of a command to pass it on (where
// its keys are, whether it waits), and the commands that are put together from the answers of
// several servers, or from which Larder's own keys are left out.
//
// Answers are bytes in the protocol version that was asked for. Thread-safe; calls suspend and
// resume on the caller's loop.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/task.h"
#include "engine/redis/client.h"

namespace larder::engine::redis {

using Args = std::span<const std::string_view>;

// What the server's own COMMAND INFO says.
struct CommandInfo {
  std::string name;        // lower case; "object|encoding" for a subcommand
  int arity = 0;           // as Redis counts
  bool writes = false;     // not flagged readonly
  bool blocking = false;   // may wait for others
  bool movable = false;    // its keys are not at fixed places (or not all of them)
  bool container = false;  // has subcommands, which are commands of their own
  bool admin = false;
  int first_key = 0;
  int last_key = 0;
  int key_step = 0;
};

// Appends the keys of a command whose keys are not at fixed places. False: it is none of those that
// are known here, ask the server (Plain::ask_keys). `name` in lower case. Pure.
bool movable_keys(std::string_view name, Args args, std::vector<std::string_view>& keys);

// Whether a command that may wait does: XREAD waits only with BLOCK. Pure.
bool waits(std::string_view name, Args args);

// The answer to COMMAND INFO, with the subcommands; empty: unknown, or not understood. Pure.
std::vector<CommandInfo> parse_command_info(const wire::Reply& reply);

// The elements of an array (set, push) as they came; the views point into `reply`. Empty for a null
// array, and for what is none. Pure.
std::vector<std::string_view> elements_of(std::string_view reply);

class Plain {
 public:
  struct Options {
    std::string name_space = "larder";
    DurationUs timeout_us = 30 * kSecond;  // of one command
  };
  // The client outlives it.
  Plain(Client& client, const Options& options)
      : client_(client), prefix_(options.name_space + ":{"), timeout_us_(options.timeout_us) {}

  Client& client() { return client_; }
  TimeUs deadline() const { return saturating_add(monotonic_now_us(), timeout_us_); }
  // Larder's own keys: nobody may name them.
  bool internal(std::string_view key) const { return key.starts_with(prefix_); }
  bool cluster() const { return client_.cluster(); }
  // Of all of these; nullopt: they differ. Of one server, or without keys: any.
  std::optional<std::uint32_t> slot(std::span<const std::string_view> keys) const;

  Task<Result<std::vector<CommandInfo>>> info(std::string name);
  // COMMAND GETKEYS; empty: it has none.
  Task<Result<std::vector<std::string>>> ask_keys(std::vector<std::string> args);

  // One command, whole.
  Task<Result<Answer>> call(std::uint32_t slot, int protocol, std::vector<std::string> args);

  // ---- put together ----

  // MGET, MSET, DEL, UNLINK, EXISTS, TOUCH whose keys may lie on several servers.
  static bool splits(std::string_view name);
  Task<Result<Answer>> split(int protocol, std::vector<std::string> args);
  // The cursor names the server, too.
  Task<Result<Answer>> scan(int protocol, std::vector<std::string> args);
  Task<Result<Answer>> keys(int protocol, std::vector<std::string> args);
  Task<Result<Answer>> random_key(int protocol);
  // Larder's own keys are counted: nobody knows their number.
  Task<Result<Answer>> database_size(int protocol);
  // On every primary: the first error, else the last answer.
  Task<Result<Answer>> everywhere(int protocol, std::vector<std::string> args);
  // Deletes every key but Larder's own, piece by piece.
  Task<Result<void>> remove_all();

 private:
  std::vector<std::string> primaries() const;
  Task<Result<Answer>> call_node(std::string node, int protocol, std::vector<std::string> args);

  Client& client_;
  const std::string prefix_;
  const DurationUs timeout_us_;
};

}  // namespace larder::engine::redis
