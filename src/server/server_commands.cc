// Commands about the server: INFO, CONFIG, COMMAND, CLUSTER, ...
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>

#include "engine/embedded/glob.h"
#include "server/session.h"

namespace larder::server {
namespace {

std::uint64_t resident_bytes() {
  std::uint64_t pages = 0;
  if (std::FILE* const file = std::fopen("/proc/self/statm", "re")) {
    unsigned long long total = 0;
    unsigned long long resident = 0;
    if (std::fscanf(file, "%llu %llu", &total, &resident) == 2) pages = resident;
    (void)std::fclose(file);
  }
  return pages * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

std::string human(std::uint64_t bytes) {
  constexpr std::string_view kUnits = "BKMGT";
  double n = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (n >= 1024 && unit + 1 < kUnits.size()) {
    n /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{}B", bytes) : fmt::format("{:.2f}{}", n, kUnits[unit]);
}

double seconds(const timeval& t) {
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
}

// "127.0.0.1:7379" -> 127.0.0.1, 7379. A Unix socket has neither.
std::pair<std::string, std::int64_t> host_and_port(std::string_view address) {
  const std::size_t colon = address.rfind(':');
  std::int64_t port = 0;
  if (address.starts_with("unix:") || colon == std::string_view::npos) return {"", 0};
  std::from_chars(address.data() + colon + 1, address.data() + address.size(), port);
  std::string_view host = address.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  return {std::string(host), port};
}

// Redis Cluster's slot of a key: CRC16/XMODEM of the hash tag, or of all, modulo 16384.
unsigned key_slot(std::string_view key) {
  if (const std::size_t open = key.find('{'); open != std::string_view::npos) {
    const std::size_t close = key.find('}', open + 1);
    if (close != std::string_view::npos && close > open + 1)
      key = key.substr(open + 1, close - open - 1);
  }
  unsigned crc = 0;
  for (const char c : key) {
    crc ^= static_cast<unsigned>(static_cast<unsigned char>(c)) << 8;
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 0x8000U) != 0 ? (crc << 1) ^ 0x1021U : crc << 1;
  }
  return crc & 16383U;
}

}  // namespace

void Session::help(std::initializer_list<std::string_view> lines) {
  writer_.array(lines.size());
  for (const std::string_view line : lines) writer_.simple(line);
}

// ---- INFO ----

std::string Session::info_section(std::string_view section) const {
  const near::Stats near = context_.near->stats();
  const SessionStats& stats = context_.stats;
  const auto read = [](const std::atomic<std::uint64_t>& n) {
    return n.load(std::memory_order_relaxed);
  };
  if (section == "server") {
    const DurationUs up = monotonic_now_us() - context_.started;
    return fmt::format(
        "# Server\r\nredis_version:{}\r\nlarder_version:{}\r\nredis_git_sha1:00000000\r\n"
        "redis_git_dirty:0\r\nredis_mode:standalone\r\nos:Linux\r\narch_bits:64\r\n"
        "multiplexing_api:epoll\r\nprocess_id:{}\r\nrun_id:{}\r\ntcp_port:{}\r\n"
        "server_time_usec:{}\r\nuptime_in_seconds:{}\r\nuptime_in_days:{}\r\nhz:10\r\n"
        "io_threads_active:{}\r\n",
        kSpokenVersion, LARDER_VERSION, getpid(), context_.run_id,
        host_and_port(context_.address).second, monotonic_now_us(), up / kSecond,
        up / kSecond / 86400, context_.threads > 1 ? 1 : 0);
  }
  if (section == "clients") {
    std::size_t in_channels = 0;
    context_.clients->each([&](const Peer& peer) {
      in_channels += peer.channels.load(std::memory_order_relaxed) > 0 ||
                     peer.patterns.load(std::memory_order_relaxed) > 0;
    });
    return fmt::format(
        "# Clients\r\nconnected_clients:{}\r\ncluster_connections:0\r\nmaxclients:{}"
        "\r\nblocked_clients:0\r\ntracking_clients:{}\r\npubsub_clients:{}\r\n",
        context_.clients->count(), context_.max_connections,
        context_.invalidator->table().clients(), in_channels);
  }
  if (section == "memory") {
    const std::uint64_t capacity = context_.near->capacity_bytes();
    const std::uint64_t resident = resident_bytes();
    return fmt::format(
        "# Memory\r\nused_memory:{}\r\nused_memory_human:{}\r\nused_memory_rss:{}\r\n"
        "used_memory_rss_human:{}\r\nused_memory_dataset:{}\r\nmaxmemory:{}\r\n"
        "maxmemory_human:{}\r\nmaxmemory_policy:{}\r\nmem_fragmentation_ratio:{:.2f}\r\n",
        near.bytes, human(near.bytes), resident, human(resident), near.bytes, capacity,
        human(capacity), policy_name(),
        static_cast<double>(resident) /
            static_cast<double>(std::max<std::uint64_t>(near.bytes, 1)));
  }
  if (section == "persistence")
    return "# Persistence\r\nloading:0\r\nasync_loading:0\r\nrdb_changes_since_last_save:0\r\n"
           "rdb_bgsave_in_progress:0\r\nrdb_last_bgsave_status:ok\r\naof_enabled:0\r\n"
           "aof_rewrite_in_progress:0\r\naof_last_write_status:ok\r\n";
  if (section == "stats")
    return fmt::format(
        "# Stats\r\ntotal_connections_received:{}\r\ntotal_commands_processed:{}\r\n"
        "total_net_input_bytes:{}\r\ntotal_net_output_bytes:{}\r\nexpired_keys:{}\r\n"
        "evicted_keys:{}\r\npubsub_channels:{}\r\npubsub_patterns:{}\r\npubsubshard_channels:{}\r\n"
        "tracking_total_items:{}\r\ntotal_error_replies:{}\r\n",
        context_.clients->total(), read(stats.commands), read(stats.input_bytes),
        read(stats.output_bytes), near.expirations, near.evictions,
        context_.pubsub->count(ChannelKind::channel), context_.pubsub->count(ChannelKind::pattern),
        context_.pubsub->count(ChannelKind::shard), context_.invalidator->table().reads(),
        read(stats.errors));
  if (section == "replication")
    return fmt::format(
        "# Replication\r\nrole:master\r\nconnected_slaves:0\r\n"
        "master_failover_state:no-failover\r\nmaster_replid:{}\r\n"
        "master_repl_offset:0\r\n",
        context_.run_id);
  if (section == "cpu") {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return fmt::format(
        "# CPU\r\nused_cpu_sys:{:.6f}\r\nused_cpu_user:{:.6f}\r\n"
        "used_cpu_sys_children:0.000000\r\nused_cpu_user_children:0.000000\r\n",
        seconds(usage.ru_stime), seconds(usage.ru_utime));
  }
  if (section == "cluster") return "# Cluster\r\ncluster_enabled:0\r\n";
  if (section == "keyspace") {
    if (near.entries == 0) return "# Keyspace\r\n";
    return fmt::format("# Keyspace\r\ndb0:keys={},expires=0,avg_ttl=0\r\n", near.entries);
  }
  return {};
}

std::string_view Session::policy_name() const {
  return context_.evict_plain ? "allkeys-lru" : "noeviction";
}

void Session::do_info(Args args) {
  static constexpr std::string_view kSections[] = {"server",      "clients", "memory",
                                                   "persistence", "stats",   "replication",
                                                   "cpu",         "cluster", "keyspace"};
  std::set<std::string> wanted;
  bool all = args.size() == 1;
  for (const std::string_view arg : args.subspan(1)) {
    const std::string name = to_lower(arg.substr(0, 32));
    all |= name == "all" || name == "everything" || name == "default";
    wanted.insert(name);
  }
  std::string text;
  for (const std::string_view section : kSections) {
    if (!all && !wanted.contains(std::string(section))) continue;
    if (!text.empty()) text += "\r\n";
    text += info_section(section);
  }
  writer_.verbatim(text);
}

// ---- CONFIG ----

void Session::do_config(Args args) {
  const std::string what = to_lower(args[1].substr(0, 32));
  if (what == "set" && args.size() >= 4)
    return error(
        "ERR Larder is configured by its TOML file: change it there and restart; `larder "
        "config check FILE` checks it first");
  if (what == "rewrite" && args.size() == 2)
    return error("ERR Larder never writes its configuration file");
  if (what == "resetstat" && args.size() == 2) return writer_.ok();
  if (what == "help")
    return help({"CONFIG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:", "GET <pattern>",
                 "    What tools ask for. The configuration itself is the TOML file.", "HELP"});
  if (what == "set" || what == "rewrite" || what == "resetstat" ||
      (what == "get" && args.size() < 3))
    return wrong_arity("config|" + what);
  if (what != "get") return unknown_subcommand(args);
  // What monitors and client libraries ask for, with the value that is nearest to the truth.
  const std::pair<std::string_view, std::string> values[] = {
      {"appendonly", "no"},
      {"bind", host_and_port(context_.address).first},
      {"client-output-buffer-limit",
       fmt::format("normal 0 0 0 slave 0 0 0 pubsub {} 0 0", context_.limits.push_bytes)},
      {"cluster-enabled", "no"},
      {"databases", "1"},
      {"dir", ""},
      {"io-threads", std::to_string(context_.threads)},
      {"lazyfree-lazy-eviction", "no"},
      {"maxclients", std::to_string(context_.max_connections)},
      {"maxmemory", std::to_string(context_.near->capacity_bytes())},
      {"maxmemory-policy", std::string(policy_name())},
      {"notify-keyspace-events", ""},
      {"port", std::to_string(host_and_port(context_.address).second)},
      {"proto-max-bulk-len", std::to_string(context_.limits.wire.max_bulk_bytes)},
      {"save", ""},
      {"slowlog-log-slower-than", "-1"},
      {"slowlog-max-len", "0"},
      {"tcp-keepalive", "0"},
      {"timeout", "0"},
      {"tracking-table-max-keys", std::to_string(context_.max_tracked)},
  };
  std::vector<const std::pair<std::string_view, std::string>*> found;
  for (const auto& value : values)
    for (const std::string_view pattern : args.subspan(2))
      if (engine::glob_match(to_lower(pattern), value.first)) {
        found.push_back(&value);
        break;
      }
  writer_.map(found.size());
  for (const auto* value : found) {
    writer_.bulk(value->first);
    writer_.bulk(value->second);
  }
}

// ---- COMMAND ----

void Session::command_info(const CommandRow& row) {
  const bool writes = row.plain != nullptr && row.plain->writes;
  std::vector<std::string_view> flags;
  if (row.plain != nullptr) flags.push_back(writes ? "write" : "readonly");
  if (row.plain != nullptr && row.plain->may_grow) flags.push_back("denyoom");
  if ((row.flags & kAdmin) != 0) flags.push_back("admin");
  if ((row.flags & kPubSub) != 0) flags.push_back("pubsub");
  if ((row.flags & kWithoutAuth) != 0) flags.push_back("no_auth");
  if ((row.flags & kFast) != 0) flags.push_back("fast");
  writer_.array(10);
  writer_.bulk(row.name);
  writer_.integer(row.arity);
  writer_.set(flags.size());
  for (const std::string_view flag : flags) writer_.simple(flag);
  writer_.integer(row.first_key);
  writer_.integer(row.last_key);
  writer_.integer(row.key_step);
  writer_.set(row.plain != nullptr ? 2 : 1);
  if (row.plain != nullptr) writer_.simple(writes ? "@write" : "@read");
  writer_.simple(row.group == "string" ? "@string" : "@slow");
  writer_.array(0);
  writer_.array(0);
  writer_.array(0);
}

void Session::command_docs(Args names) {
  std::vector<const CommandRow*> rows;
  if (names.empty())
    for (const CommandRow& row : table_.rows()) rows.push_back(&row);
  for (const std::string_view name : names)
    if (const CommandRow* const row = table_.find(name)) rows.push_back(row);
  writer_.map(rows.size());
  for (const CommandRow* const row : rows) {
    writer_.bulk(row->name);
    writer_.map(3);
    writer_.bulk("summary");
    writer_.bulk(row->summary);
    writer_.bulk("since");
    writer_.bulk("1.0.0");
    writer_.bulk("group");
    writer_.bulk(row->group);
  }
}

void Session::do_command(Args args) {
  const std::string what = args.size() > 1 ? to_lower(args[1].substr(0, 32)) : "";
  if (args.size() == 1 || (what == "info" && args.size() == 2)) {
    writer_.array(table_.rows().size());
    for (const CommandRow& row : table_.rows()) command_info(row);
  } else if (what == "count") {
    if (args.size() != 2) return wrong_arity("command|count");
    writer_.integer(static_cast<std::int64_t>(table_.rows().size()));
  } else if (what == "info") {
    writer_.array(args.size() - 2);
    for (const std::string_view name : args.subspan(2)) {
      if (const CommandRow* const row = table_.find(name))
        command_info(*row);
      else
        writer_.null();
    }
  } else if (what == "docs") {
    command_docs(args.subspan(2));
  } else if (what == "list") {
    std::string_view pattern = "*";
    if (args.size() == 5 && equals_ignoring_case(args[2], "filterby") &&
        equals_ignoring_case(args[3], "pattern"))
      pattern = args[4];
    else if (args.size() != 2)
      return error("ERR syntax error");
    std::vector<std::string_view> names;
    for (const CommandRow& row : table_.rows())
      if (engine::glob_match(to_lower(pattern), row.name)) names.push_back(row.name);
    writer_.array(names.size());
    for (const std::string_view name : names) writer_.bulk(name);
  } else if (what == "getkeys") {
    if (args.size() < 3) return wrong_arity("command|getkeys");
    const CommandRow* const row = table_.find(args[2]);
    if (row == nullptr) return error("ERR Invalid command specified");
    const Args command = args.subspan(2);
    if (row->first_key == 0) return error("ERR The command has no key arguments");
    if (!row->arity_fits(command.size()))
      return error("ERR Invalid number of arguments specified for command");
    std::vector<std::string_view> keys;
    append_keys(*row, command, keys);
    writer_.array(keys.size());
    for (const std::string_view key : keys) writer_.bulk(key);
  } else if (what == "help") {
    help(
        {"COMMAND <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
         "(no subcommand), COUNT, DOCS [<command>...], GETKEYS <full-command>, INFO [<command>...],"
         " LIST [FILTERBY PATTERN <pattern>], HELP"});
  } else {
    unknown_subcommand(args);
  }
}

// ---- CLUSTER: one shard. HELLO and INFO say "standalone", so nobody takes Larder for a cluster;
// a client that was told to use one finds all slots here. ----

void Session::do_cluster(Args args) {
  const std::string what = to_lower(args[1].substr(0, 32));
  const auto& id = context_.run_id;
  const auto [host, port] = host_and_port(peer_->local);
  if (what == "info") {
    writer_.verbatim(
        "cluster_enabled:0\r\ncluster_state:ok\r\ncluster_slots_assigned:16384\r\n"
        "cluster_slots_ok:16384\r\ncluster_slots_pfail:0\r\ncluster_slots_fail:0\r\n"
        "cluster_known_nodes:1\r\ncluster_size:1\r\ncluster_current_epoch:1\r\n"
        "cluster_my_epoch:1\r\n");
  } else if (what == "myid") {
    writer_.bulk(id);
  } else if (what == "slots") {
    writer_.array(1);
    writer_.array(3);
    writer_.integer(0);
    writer_.integer(16383);
    writer_.array(4);
    writer_.bulk(host);
    writer_.integer(port);
    writer_.bulk(id);
    writer_.array(0);
  } else if (what == "shards") {
    writer_.array(1);
    writer_.map(2);
    writer_.bulk("slots");
    writer_.array(2);
    writer_.integer(0);
    writer_.integer(16383);
    writer_.bulk("nodes");
    writer_.array(1);
    writer_.map(7);
    const std::pair<std::string_view, std::string> texts[] = {
        {"id", id}, {"ip", host}, {"endpoint", host}, {"role", "master"}, {"health", "online"}};
    for (const auto& [name, text] : texts) {
      writer_.bulk(name);
      writer_.bulk(text);
    }
    writer_.bulk("port");
    writer_.integer(port);
    writer_.bulk("replication-offset");
    writer_.integer(0);
  } else if (what == "nodes") {
    writer_.verbatim(
        fmt::format("{} {}:{}@0 myself,master - 0 0 1 connected 0-16383\n", id, host, port));
  } else if (what == "keyslot") {
    if (args.size() != 3) return wrong_arity("cluster|keyslot");
    writer_.integer(key_slot(args[2]));
  } else if (what == "help") {
    help({"CLUSTER <subcommand> [<arg> [value] [opt] ...]. Larder is one shard. Subcommands are:",
          "INFO, KEYSLOT <key>, MYID, NODES, SHARDS, SLOTS, HELP"});
  } else {
    unknown_subcommand(args);
  }
}

// ---- what tools ask for ----

void Session::do_slowlog(Args args) {
  const std::string what = to_lower(args[1].substr(0, 32));
  if (what == "get")
    writer_.array(0);
  else if (what == "len")
    writer_.integer(0);
  else if (what == "reset")
    writer_.ok();
  else
    unknown_subcommand(args);
}

void Session::do_latency(Args args) {
  const std::string what = to_lower(args[1].substr(0, 32));
  if (what == "latest" || what == "history")
    writer_.array(0);
  else if (what == "reset")
    writer_.integer(0);
  else
    unknown_subcommand(args);
}

void Session::do_memory(Args args) {
  if (!equals_ignoring_case(args[1], "usage") || args.size() < 3) return unknown_subcommand(args);
  std::optional<std::size_t> bytes;
  const auto measure = [&](const near::View& view) {
    if (!view.is_void) bytes = view.key.size() + view.value.size();
  };
  context_.near->lookup(args[2], hash_bytes(args[2]), now_, measure);
  if (bytes)
    writer_.integer(static_cast<std::int64_t>(*bytes));
  else
    writer_.null();
}

void Session::do_time(Args) {
  const TimeUs now = monotonic_now_us();
  writer_.array(2);
  writer_.bulk(std::to_string(now / kSecond));
  writer_.bulk(std::to_string(now % kSecond));
}

void Session::do_role(Args) {
  writer_.array(3);
  writer_.bulk("master");
  writer_.integer(0);
  writer_.array(0);
}

void Session::do_lastsave(Args) { writer_.integer(context_.started / kSecond); }

void Session::do_wait(Args args) {
  std::int64_t n = 0;
  if (parse_integer(args[1], n) && parse_integer(args[2], n)) writer_.integer(0);
}

void Session::do_unsupported(Args) { error("ERR This instance has cluster support disabled"); }

}  // namespace larder::server
