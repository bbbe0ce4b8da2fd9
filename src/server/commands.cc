#include "server/commands.h"

#include "server/session.h"

namespace larder::server {
namespace {

constexpr std::size_t kLongestName = 32;

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

// Of a name in lower case. The table is fixed: nobody can aim for collisions.
std::size_t name_hash(std::string_view name) {
  std::uint64_t h = name.size();
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x9e3779b97f4a7c15ULL;
  return static_cast<std::size_t>(h >> 40);
}

struct VerbName {
  std::string_view name;
  Verb verb;
};
constexpr VerbName kVerbs[] = {
    {"get", Verb::get},
    {"mget", Verb::mget},
    {"set", Verb::set},
    {"setex", Verb::setex},
    {"psetex", Verb::psetex},
    {"mset", Verb::mset},
    {"del", Verb::del},
    {"unlink", Verb::del},
    {"exists", Verb::exists},
    {"touch", Verb::touch},
    {"type", Verb::type},
    {"ttl", Verb::ttl},
    {"pttl", Verb::pttl},
    {"expiretime", Verb::expiretime},
    {"pexpiretime", Verb::pexpiretime},
    {"expire", Verb::expire},
    {"pexpire", Verb::pexpire},
    {"expireat", Verb::expireat},
    {"pexpireat", Verb::pexpireat},
    {"incr", Verb::incr},
    {"incrby", Verb::incrby},
    {"decr", Verb::decr},
    {"decrby", Verb::decrby},
    {"strlen", Verb::strlen},
    {"getrange", Verb::getrange},
    {"substr", Verb::getrange},
    {"flushdb", Verb::flush},
    {"flushall", Verb::flush},
};

Verb verb_of(std::string_view name) {
  for (const VerbName& row : kVerbs)
    if (row.name == name) return row.verb;
  return Verb::other;
}

}  // namespace

bool equals_ignoring_case(std::string_view text, std::string_view lower_case) {
  return text.size() == lower_case.size() &&
         std::ranges::equal(text, lower_case, [](char a, char b) { return lower(a) == b; });
}

std::string to_lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = lower(c);
  return result;
}

CommandTable::CommandTable() {
  using S = Session;
  constexpr std::uint16_t login = kWithoutAuth | kFast;
  constexpr std::uint16_t channels = kWhenSubscribed | kPubSub;
  constexpr std::string_view c = "connection";
  constexpr std::string_view s = "server";
  constexpr std::string_view t = "transactions";
  constexpr std::string_view p = "pubsub";
  constexpr std::string_view l = "larder";
  const auto now = [this](std::string_view name, int arity, int flags, std::string_view group,
                          void (S::*handler)(Args), std::string_view summary) {
    rows_.push_back({.name = name,
                     .arity = arity,
                     .flags = static_cast<std::uint16_t>(flags),
                     .group = group,
                     .summary = summary,
                     .now = handler});
  };
  const auto later = [this](std::string_view name, int arity, int first, int last,
                            Task<void> (S::*handler)(Args), std::string_view summary) {
    rows_.push_back({.name = name,
                     .arity = arity,
                     .first_key = first,
                     .last_key = last,
                     .key_step = first > 0 ? 1 : 0,
                     .group = "larder",
                     .summary = summary,
                     .later = handler});
  };

  now("hello", -1, login, c, &S::do_hello, "Handshakes with the server.");
  now("auth", -2, login, c, &S::do_auth, "Authenticates the connection.");
  now("ping", -1, kFast | kWhenSubscribed, c, &S::do_ping, "Tells that the server is there.");
  now("echo", 2, kFast, c, &S::do_echo, "Returns the given text.");
  now("quit", -1, login | kWhenSubscribed | kNeverQueued, c, &S::do_quit, "Closes the connection.");
  now("reset", 1, login | kWhenSubscribed | kNeverQueued, c, &S::do_reset,
      "Resets the connection.");
  now("select", 2, kFast, c, &S::do_select, "Selects database 0, the only one.");
  rows_.back().later = &S::pass_select;
  now("client", -2, 0, c, &S::do_client, "Looks at and controls connections.");
  rows_.back().later = &S::pass_client;
  now("command", -1, kEngine, s, &S::do_command, "Describes the commands.");
  now("info", -1, 0, s, &S::do_info, "Returns information and statistics.");
  now("config", -2, kAdmin, s, &S::do_config, "Reads the configuration.");
  now("cluster", -2, 0, "cluster", &S::do_cluster, "Says that this is one shard.");
  now("slowlog", -2, kAdmin, s, &S::do_slowlog, "An empty slow log.");
  now("latency", -2, kAdmin, s, &S::do_latency, "No latency events.");
  now("memory", -2, kEngine, s, &S::do_memory, "Memory of a key.");
  now("time", 1, kFast, s, &S::do_time, "Returns the server's time.");
  now("role", 1, kFast, s, &S::do_role, "Returns the replication role.");
  now("lastsave", 1, kFast, s, &S::do_lastsave, "When the server started.");
  now("wait", 3, 0, "generic", &S::do_wait, "There are no replicas: 0.");
  for (const std::string_view name : {"readonly", "readwrite", "asking"})
    now(name, 1, kFast, "cluster", &S::do_unsupported, "Clusters only.");

  now("multi", 1, kFast | kNeverQueued, t, &S::do_multi, "Starts a transaction.");
  now("exec", 1, kNeverQueued, t, &S::do_exec, "Executes a transaction.");
  rows_.back().later = &S::exec_mixed;
  now("discard", 1, kFast | kNeverQueued, t, &S::do_discard, "Discards a transaction.");
  now("watch", -2, kFast | kNeverQueued, t, &S::do_watch, "Makes EXEC depend on keys.");
  rows_.back().first_key = rows_.back().key_step = 1;
  rows_.back().last_key = -1;
  rows_.back().later = &S::pass_watch;
  now("unwatch", 1, kFast, t, &S::do_unwatch, "Forgets watched keys.");
  rows_.back().later = &S::pass_unwatch;

  for (const std::string_view name : {"subscribe", "psubscribe", "ssubscribe"}) {
    now(name, -2, channels, p, &S::do_subscribe, "Listens to channels.");
    rows_.back().later = &S::pass_subscribe;
  }
  for (const std::string_view name : {"unsubscribe", "punsubscribe", "sunsubscribe"}) {
    now(name, -1, channels, p, &S::do_unsubscribe, "Stops listening to channels.");
    rows_.back().later = &S::pass_subscribe;
  }
  for (const std::string_view name : {"publish", "spublish"})
    now(name, 3, kPubSub | kFast | kEngine, p, &S::do_publish, "Posts a message to a channel.");
  now("pubsub", -2, kPubSub | kEngine, p, &S::do_pubsub, "Looks at channels.");

  later("larder.get", 2, 1, 1, &S::larder_get, "Reads a declared key; says where it came from.");
  rows_.back().flags = kReads;
  now("larder.explain", 2, kFast, l, &S::larder_explain, "Says what is known about a key.");
  rows_.back().first_key = rows_.back().last_key = rows_.back().key_step = 1;
  later("larder.invalidate", -3, 0, 0, &S::larder_invalidate, "Voids keys, tags or a cache.");
  later("larder.remove", 2, 1, 1, &S::larder_remove, "Removes the row behind a key.");
  later("larder.refresh", -2, 1, -1, &S::larder_refresh, "Loads keys anew.");
  later("larder.warm", -2, 0, 0, &S::larder_warm, "Loads the keys of a cache's warm statement.");
  later("larder.journal", -1, 0, 0, &S::larder_journal,
        "What waits in the journal, and what the databases refused.");
  later("larder.audit", -1, 0, 0, &S::larder_audit, "Compares entries with their sources.");
  later("larder.lease", -2, 1, 1, &S::larder_lease, "Reads a plain key, or the right to fill it.");
  now("larder.fill", -4, kFast, l, &S::larder_fill, "Stores under a ticket of LARDER.LEASE.");
  rows_.back().first_key = rows_.back().last_key = rows_.back().key_step = 1;
  now("larder.stock", -2, 0, l, &S::larder_stock, "Bounded counters.");
  now("larder.help", 1, 0, l, &S::larder_help, "Lists these commands.");

  for (const engine::PlainCommand& plain : engine::PlainCommands::table())
    rows_.push_back({.name = plain.name,
                     .arity = plain.arity,
                     .first_key = plain.first_key,
                     .last_key = plain.last_key,
                     .key_step = plain.key_step,
                     .group = plain.first_key == 0 ? s : "string",
                     .summary = "As in Redis.",
                     .plain = &plain,
                     .verb = verb_of(plain.name)});

  slots_.assign(1024, 0);
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    LARDER_ASSERT(rows_[i].name.size() <= kLongestName && 2 * rows_.size() < slots_.size());
    std::size_t slot = name_hash(rows_[i].name) % slots_.size();
    while (slots_[slot] != 0) slot = (slot + 1) % slots_.size();
    slots_[slot] = static_cast<std::uint16_t>(i + 1);
  }
}

const CommandTable& CommandTable::instance() {
  static const CommandTable table;
  return table;
}

const CommandRow* CommandTable::find(std::string_view name) const {
  if (name.size() > kLongestName) return nullptr;
  char buffer[kLongestName];
  for (std::size_t i = 0; i < name.size(); ++i) buffer[i] = lower(name[i]);
  const std::string_view folded(buffer, name.size());
  for (std::size_t slot = name_hash(folded) & 1023; slots_[slot] != 0; slot = (slot + 1) & 1023) {
    const CommandRow& row = rows_[slots_[slot] - 1U];
    if (row.name == folded) return &row;
  }
  return nullptr;
}

void append_keys(const CommandRow& row, Args args, std::vector<std::string_view>& keys) {
  if (row.first_key == 0) return;
  const int count = static_cast<int>(args.size());
  const int last = row.last_key < 0 ? count + row.last_key : row.last_key;
  for (int i = row.first_key; i <= last && i < count; i += row.key_step)
    keys.push_back(args[static_cast<std::size_t>(i)]);
}

}  // namespace larder::server
