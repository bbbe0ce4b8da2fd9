// Plain keys on the embedded engine: the string commands of Redis over near::Store.
//
// A command is data (its row in the table: arity, flags, where its keys are) and a function that
// runs under the locks of its keys. MULTI/EXEC is the same with the union of the locks, so a
// transaction is seen whole or not at all. Thread-safe; nothing suspends.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "near/store.h"
#include "wire/resp.h"

namespace larder::engine {

using Args = std::span<const std::string_view>;

struct PlainCommand {
  std::string_view name;  // lower case
  int arity;              // Redis's: the number of arguments with the name; negative: at least
  bool writes;
  bool may_grow;  // may use more memory (Redis's denyoom)
  int first_key;  // 1-based; 0: no keys
  int last_key;   // negative: from the end
  int key_step;
  bool whole_keyspace;  // SCAN, KEYS, DBSIZE, ...: takes all locks (or, alone, walks without)
};

// For WATCH: what a key looked like.
struct Watch {
  std::string key;
  std::uint64_t version;
};

// A command queued by MULTI.
struct QueuedCommand {
  std::vector<std::string> args;
};

class PlainCommands {
 public:
  // Declared entries are part of SCAN, KEYS and DBSIZE: they describe the cache.
  explicit PlainCommands(near::Store& store) : store_(store) {}

  // The row for a name in any case; null: not a command on plain keys.
  static const PlainCommand* find(std::string_view name);
  static std::span<const PlainCommand> table();
  // The keys of a command with these arguments. REQUIRES: its arity fits.
  static void keys_of(const PlainCommand& command, Args args, std::vector<std::string_view>& keys);
  static bool arity_fits(const PlainCommand& command, std::size_t args);

  // Runs one command and appends its reply. REQUIRES: command == *find(args[0]), arity_fits.
  void run(const PlainCommand& command, Args args, TimeUs now, wire::Writer& out);

  // Runs queued commands as one step and appends the array of their replies; appends a null array
  // and runs nothing if a watched key has changed.

  void run_transaction(std::span<const QueuedCommand> commands, std::span<const Watch> watches,
                       TimeUs now, wire::Writer& out);

  Watch watch(std::string_view key, TimeUs now);
  // Has none of them changed?
  bool unchanged(std::span<const Watch> watches, TimeUs now);

 private:
  near::Store& store_;
};

}  // namespace larder::engine
