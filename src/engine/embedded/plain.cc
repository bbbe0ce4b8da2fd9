#include "engine/embedded/plain.h"

#include <fmt/format.h>

#include <array>
#include <charconv>

#include "base/hash.h"
#include "engine/embedded/plain_run.h"

namespace larder::engine {
namespace plain {

bool Run::put(std::string_view key, std::string_view value, TimeUs expiry) const {
  switch (locked->put(key, hash_bytes(key), value, expiry)) {
    case policy::Refusal::none: return true;
    case policy::Refusal::too_large: too_large(value.size()); return false;
    default: out.error("OOM command not allowed when used memory > 'maxmemory'."); return false;
  }
}

std::uint64_t Run::scan(std::uint64_t cursor, unsigned count,
                        const std::function<void(const near::View&)>& visit) const {
  return locked != nullptr ? locked->scan(cursor, count, now, visit)
                           : store.scan(cursor, count, now, visit);
}

void Run::too_large(std::size_t value_bytes) const {
  out.error(
      fmt::format("ERR value of {} bytes does not fit: the largest entry is {} bytes; "
                  "raise [near] capacity",
                  value_bytes, store.max_entry_bytes()));
}

void Run::wrong_arity() const {
  out.error(fmt::format("ERR wrong number of arguments for '{}' command", name));
}

void Run::invalid_expiry() const {
  out.error(fmt::format("ERR invalid expire time in '{}' command", name));
}

void Run::reply_value(const near::View* view) const {
  if (view != nullptr)
    out.bulk(view->value);
  else
    out.null();
}

std::optional<std::int64_t> parse_integer(std::string_view text) {
  if (text == "0") return 0;
  const std::string_view digits = text.substr(text.starts_with('-') ? 1 : 0);
  if (digits.empty() || digits[0] < '1' || digits[0] > '9') return std::nullopt;
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

bool equals_nocase(std::string_view text, std::string_view lower) {
  if (text.size() != lower.size()) return false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if ((c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c) != lower[i]) return false;
  }
  return true;
}

TimeUs expiry_of(std::int64_t ms) {
  constexpr std::int64_t kLastMs = (kNever - 1) / 1000;
  return ms > kLastMs ? kNever - 1 : ms * 1000;
}

std::optional<std::int64_t> expire_time_ms(Run& run, std::string_view text, Unit unit,
                                           bool relative) {
  const auto given = parse_integer(text);
  if (!given) {
    run.out.error(kNotInteger);
    return std::nullopt;
  }
  std::int64_t ms = *given;
  if (ms <= 0 || (unit == Unit::seconds && ms > INT64_MAX / 1000)) {
    run.invalid_expiry();
    return std::nullopt;
  }
  if (unit == Unit::seconds) ms *= 1000;
  if (relative && __builtin_add_overflow(ms, run.now_ms(), &ms)) {
    run.invalid_expiry();
    return std::nullopt;
  }
  return ms;
}

namespace {

struct Row {
  PlainCommand command;
  Handler handler;
};

// name, arity, writes, may_grow, first, last, step, whole key space
constexpr auto kRows = std::to_array<Row>({
    {{"append", 3, true, true, 1, 1, 1, false}, do_append},
    {{"dbsize", 1, false, false, 0, 0, 0, true}, do_dbsize},
    {{"decr", 2, true, true, 1, 1, 1, false}, do_decr},
    {{"decrby", 3, true, true, 1, 1, 1, false}, do_decrby},
    {{"del", -2, true, false, 1, -1, 1, false}, do_del},
    {{"exists", -2, false, false, 1, -1, 1, false}, do_exists},
    {{"expire", -3, true, false, 1, 1, 1, false}, do_expire},
    {{"expireat", -3, true, false, 1, 1, 1, false}, do_expireat},
    {{"expiretime", 2, false, false, 1, 1, 1, false}, do_expiretime},
    {{"flushall", -1, true, false, 0, 0, 0, true}, do_flush},
    {{"flushdb", -1, true, false, 0, 0, 0, true}, do_flush},
    {{"get", 2, false, false, 1, 1, 1, false}, do_get},
    {{"getdel", 2, true, false, 1, 1, 1, false}, do_getdel},
    {{"getex", -2, true, false, 1, 1, 1, false}, do_getex},
    {{"getrange", 4, false, false, 1, 1, 1, false}, do_getrange},
    {{"getset", 3, true, true, 1, 1, 1, false}, do_getset},
    {{"incr", 2, true, true, 1, 1, 1, false}, do_incr},
    {{"incrby", 3, true, true, 1, 1, 1, false}, do_incrby},
    {{"incrbyfloat", 3, true, true, 1, 1, 1, false}, do_incrbyfloat},
    {{"keys", 2, false, false, 0, 0, 0, true}, do_keys},
    {{"mget", -2, false, false, 1, -1, 1, false}, do_mget},
    {{"mset", -3, true, true, 1, -1, 2, false}, do_mset},
    {{"msetnx", -3, true, true, 1, -1, 2, false}, do_msetnx},
    {{"persist", 2, true, false, 1, 1, 1, false}, do_persist},
    {{"pexpire", -3, true, false, 1, 1, 1, false}, do_pexpire},
    {{"pexpireat", -3, true, false, 1, 1, 1, false}, do_pexpireat},
    {{"pexpiretime", 2, false, false, 1, 1, 1, false}, do_pexpiretime},
    {{"psetex", 4, true, true, 1, 1, 1, false}, do_psetex},
    {{"pttl", 2, false, false, 1, 1, 1, false}, do_pttl},
    {{"randomkey", 1, false, false, 0, 0, 0, true}, do_randomkey},
    {{"rename", 3, true, false, 1, 2, 1, false}, do_rename},
    {{"renamenx", 3, true, false, 1, 2, 1, false}, do_renamenx},
    {{"scan", -2, false, false, 0, 0, 0, true}, do_scan},
    {{"set", -3, true, true, 1, 1, 1, false}, do_set},
    {{"setex", 4, true, true, 1, 1, 1, false}, do_setex},
    {{"setnx", 3, true, true, 1, 1, 1, false}, do_setnx},
    {{"setrange", 4, true, true, 1, 1, 1, false}, do_setrange},
    {{"strlen", 2, false, false, 1, 1, 1, false}, do_strlen},
    {{"substr", 4, false, false, 1, 1, 1, false}, do_getrange},
    {{"touch", -2, false, false, 1, -1, 1, false}, do_exists},
    {{"ttl", 2, false, false, 1, 1, 1, false}, do_ttl},
    {{"type", 2, false, false, 1, 1, 1, false}, do_type},
    {{"unlink", -2, true, false, 1, -1, 1, false}, do_del},
});

constexpr auto kCommands = [] {
  std::array<PlainCommand, kRows.size()> commands{};
  for (std::size_t i = 0; i < kRows.size(); ++i) commands[i] = kRows[i].command;
  return commands;
}();
static_assert(std::ranges::is_sorted(kCommands, {}, &PlainCommand::name));

constexpr std::size_t kLongestName = 11;  // incrbyfloat, pexpiretime

Handler handler_of(const PlainCommand& command) { return kRows[&command - &kCommands[0]].handler; }

}  // namespace
}  // namespace plain

const PlainCommand* PlainCommands::find(std::string_view name) {
  std::array<char, plain::kLongestName> lower;  // NOLINT: only what is written is read
  if (name.size() > lower.size()) return nullptr;
  for (std::size_t i = 0; i < name.size(); ++i) {
    const char c = name[i];
    lower[i] = c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c;
  }
  const std::string_view wanted(lower.data(), name.size());
  const auto* const found =
      std::ranges::lower_bound(plain::kCommands, wanted, {}, &PlainCommand::name);
  return found != plain::kCommands.end() && found->name == wanted ? found : nullptr;
}

std::span<const PlainCommand> PlainCommands::table() { return plain::kCommands; }

bool PlainCommands::arity_fits(const PlainCommand& command, std::size_t args) {
  const auto count = static_cast<std::int64_t>(args);
  return command.arity >= 0 ? count == command.arity : count >= -command.arity;
}

void PlainCommands::keys_of(const PlainCommand& command, Args args,
                            std::vector<std::string_view>& keys) {
  if (command.first_key == 0) return;
  const auto count = static_cast<std::int64_t>(args.size());
  const std::int64_t last = command.last_key >= 0 ? command.last_key : count + command.last_key;
  for (std::int64_t i = command.first_key; i <= last && i < count; i += command.key_step)
    keys.push_back(args[static_cast<std::size_t>(i)]);
}

void PlainCommands::run(const PlainCommand& command, Args args, TimeUs now, wire::Writer& out) {
  plain::Run run{store_, nullptr, now, out, command.name};
  const plain::Handler handler = plain::handler_of(command);
  if (command.whole_keyspace) {
    if (!command.writes) return handler(run, args);  // walks, one shard after another
    near::Store::Locked locked(store_);
    run.locked = &locked;
    return handler(run, args);
  }
  if (command.last_key == command.first_key) {
    const Hash hash = hash_bytes(args[static_cast<std::size_t>(command.first_key)]);
    near::Store::Locked locked(store_, {&hash, 1});
    run.locked = &locked;
    return handler(run, args);
  }
  std::vector<std::string_view> keys;
  keys_of(command, args, keys);
  std::vector<Hash> hashes;
  hashes.reserve(keys.size());
  for (const std::string_view key : keys) hashes.push_back(hash_bytes(key));
  near::Store::Locked locked(store_, hashes);
  run.locked = &locked;
  handler(run, args);
}

namespace {

bool all_unchanged(near::Store::Locked& locked, std::span<const Watch> watches, TimeUs now) {
  return std::ranges::all_of(watches, [&](const Watch& watch) {
    return locked.version(watch.key, hash_bytes(watch.key), now) == watch.version;
  });
}

void add_hashes(std::span<const Watch> watches, std::vector<Hash>& hashes) {
  for (const Watch& watch : watches) hashes.push_back(hash_bytes(watch.key));
}

void run_queued(near::Store& store, near::Store::Locked& locked,
                std::span<const QueuedCommand> commands, TimeUs now, wire::Writer& out) {
  constexpr std::size_t kMaxAnswersBytes = 512u << 20;
  const std::size_t begin = out.buffer().size();
  std::vector<std::string_view> args;
  out.array(commands.size());
  for (const QueuedCommand& queued : commands) {
    args.assign(queued.args.begin(), queued.args.end());
    const PlainCommand* command = args.empty() ? nullptr : PlainCommands::find(args[0]);
    if (command == nullptr) {
      out.error("ERR unknown command");
      continue;
    }
    if (out.buffer().size() > begin + kMaxAnswersBytes) {
      out.error(
          "LARDER_OVERLOADED the answers of this transaction are too large; this was not run");
      continue;
    }
    plain::Run run{store, &locked, now, out, command->name};
    if (PlainCommands::arity_fits(*command, args.size()))
      plain::handler_of (*command)(run, args);
    else
      run.wrong_arity();
  }
}

}  // namespace

void PlainCommands::run_transaction(std::span<const QueuedCommand> commands,
                                    std::span<const Watch> watches, TimeUs now, wire::Writer& out) {
  std::vector<Hash> hashes;
  std::vector<std::string_view> args;
  std::vector<std::string_view> keys;
  bool everything = false;
  for (const QueuedCommand& queued : commands) {
    args.assign(queued.args.begin(), queued.args.end());
    const PlainCommand* command = args.empty() ? nullptr : find(args[0]);
    if (command == nullptr || !arity_fits(*command, args.size())) continue;
    everything |= command->whole_keyspace;
    keys.clear();
    keys_of(*command, args, keys);
    for (const std::string_view key : keys) hashes.push_back(hash_bytes(key));
  }
  add_hashes(watches, hashes);
  const auto step = [&](near::Store::Locked& locked) {
    if (all_unchanged(locked, watches, now))
      run_queued(store_, locked, commands, now, out);
    else
      out.null_array();
  };
  if (everything) {
    near::Store::Locked locked(store_);
    step(locked);
  } else {
    near::Store::Locked locked(store_, hashes);
    step(locked);
  }
}

Watch PlainCommands::watch(std::string_view key, TimeUs now) {
  const Hash hash = hash_bytes(key);
  near::Store::Locked locked(store_, {&hash, 1});
  return {std::string(key), locked.version(key, hash, now)};
}

bool PlainCommands::unchanged(std::span<const Watch> watches, TimeUs now) {
  std::vector<Hash> hashes;
  add_hashes(watches, hashes);
  near::Store::Locked locked(store_, hashes);
  return all_unchanged(locked, watches, now);
}

}  // namespace larder::engine
