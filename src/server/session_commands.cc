// Commands about the connection itself: HELLO, AUTH, CLIENT, ...
#include <fmt/format.h>

#include "server/session.h"

namespace larder::server {
namespace {

// Compares secrets in time that depends on the length of the guess alone.
bool same_secret(std::string_view guess, std::string_view secret) {
  unsigned char difference = guess.size() == secret.size() ? 0 : 1;
  for (std::size_t i = 0; i < guess.size(); ++i)
    difference |=
        static_cast<unsigned char>(guess[i] ^ (secret.empty() ? 0 : secret[i % secret.size()]));
  return difference == 0;
}

constexpr std::string_view kWrongPassword =
    "WRONGPASS invalid username-password pair or user is disabled.";
constexpr std::string_view kBadName =
    "ERR Client names cannot contain spaces, newlines or special characters.";

}  // namespace

bool Session::log_in(std::string_view user, std::string_view password) {
  const bool right = context_.password.empty() || same_secret(password, context_.password);
  if (user != "default" || !right) {
    error(kWrongPassword);
    return false;
  }
  authenticated_ = true;
  update_ready();
  return true;
}

bool Session::set_name(std::string_view name) {
  if (!std::ranges::all_of(name, [](char c) { return c >= '!' && c <= '~'; })) {
    error(kBadName);
    return false;
  }
  peer_->set_name(std::string(name.substr(0, 1024)));
  return true;
}

void Session::do_hello(Args args) {
  std::int64_t version = writer_.protocol();
  if (args.size() > 1) {
    const auto parsed = std::from_chars(args[1].data(), args[1].data() + args[1].size(), version);
    if (parsed.ec != std::errc() || parsed.ptr != args[1].data() + args[1].size())
      return error("ERR Protocol version is not an integer or out of range");
    if (version != 2 && version != 3) return error("NOPROTO unsupported protocol version");
  }
  // Answers of these pass on as the engine gives them.
  if (version != writer_.protocol() && (own_ != nullptr || relay_ != nullptr))
    return error("ERR the protocol cannot change after WATCH, SELECT, SUBSCRIBE or MONITOR");
  std::optional<std::string_view> name;
  for (std::size_t i = 2; i < args.size(); ++i) {
    if (equals_ignoring_case(args[i], "auth") && i + 2 < args.size()) {
      if (!log_in(args[i + 1], args[i + 2])) return;
      i += 2;
    } else if (equals_ignoring_case(args[i], "setname") && i + 1 < args.size()) {
      name = args[++i];
    } else {
      return error(fmt::format("ERR Syntax error in HELLO option '{}'", args[i].substr(0, 128)));
    }
  }
  if (!authenticated_)
    return error(
        "NOAUTH HELLO must be called with the client already authenticated, otherwise the "
        "HELLO AUTH <user> <pass> option can be used to authenticate the client and select "
        "the RESP protocol version at the same time");
  if (name && !set_name(*name)) return;
  writer_.set_protocol(static_cast<int>(version));
  peer_->protocol.store(static_cast<int>(version), std::memory_order_relaxed);
  update_ready();
  writer_.map(7);
  writer_.bulk("server");
  writer_.bulk("redis");
  writer_.bulk("version");
  writer_.bulk(kSpokenVersion);
  writer_.bulk("proto");
  writer_.integer(version);
  writer_.bulk("id");
  writer_.integer(static_cast<std::int64_t>(peer_->id));
  writer_.bulk("mode");
  writer_.bulk("standalone");
  writer_.bulk("role");
  writer_.bulk("master");
  writer_.bulk("modules");
  writer_.array(0);
}

void Session::do_auth(Args args) {
  if (args.size() > 3) return error("ERR syntax error");
  if (args.size() == 2 && context_.password.empty())
    return error(
        "ERR AUTH <password> called without any password configured for the default user. "
        "Are you sure your configuration is correct?");
  if (log_in(args.size() == 3 ? args[1] : "default", args.back())) writer_.ok();
}

void Session::do_ping(Args args) {
  if (args.size() > 2) return wrong_arity("ping");
  const bool in_channel =
      std::ranges::any_of(subscriptions_, [](const auto& names) { return !names.empty(); });
  if (writer_.protocol() == 2 && in_channel) {
    writer_.array(2);
    writer_.bulk("pong");
    writer_.bulk(args.size() == 2 ? args[1] : "");
  } else if (args.size() == 2) {
    writer_.bulk(args[1]);
  } else {
    writer_.raw("+PONG\r\n");
  }
}

void Session::do_echo(Args args) { writer_.bulk(args[1]); }

void Session::do_quit(Args) {
  writer_.ok();
  closing_ = true;
}

void Session::do_reset(Args) {
  end_multi();
  end_tracking();
  unsubscribe_all();
  drop_own();
  reply_mode_ = ReplyMode::on;
  writer_.set_protocol(2);
  peer_->protocol.store(2, std::memory_order_relaxed);
  peer_->set_name({});
  authenticated_ = context_.password.empty();
  update_ready();
  writer_.simple("RESET");
}

void Session::do_select(Args args) {
  if (context_.passed != nullptr) {
    needs_later_ = true;
    return;
  }
  std::int64_t index = 0;
  if (!parse_integer(args[1], index)) return;
  if (index != 0) return error("ERR DB index is out of range");
  writer_.ok();
}

// ---- CLIENT ----

std::string Session::describe(const Peer& peer) const {
  const CommandRow* const last = peer.last_command.load(std::memory_order_relaxed);
  const std::uint32_t channels = peer.channels.load(std::memory_order_relaxed);
  const std::uint32_t patterns = peer.patterns.load(std::memory_order_relaxed);
  const std::uint32_t shards = peer.shard_channels.load(std::memory_order_relaxed);
  const std::int64_t queued = peer.queued_commands.load(std::memory_order_relaxed);
  const TimeUs active = std::max(peer.last_active.load(std::memory_order_relaxed), peer.since);
  std::string flags;
  if (channels + patterns + shards > 0) flags += 'P';
  if (queued >= 0) flags += 'x';
  const std::int64_t redirect = peer.tracking_redirect.load(std::memory_order_relaxed);
  if (redirect >= 0) flags += 't';
  if (peer.redirect_broken.load(std::memory_order_relaxed)) flags += 'R';
  if (peer.tracking_broadcast.load(std::memory_order_relaxed)) flags += 'B';
  if (flags.empty()) flags = "N";
  return fmt::format(
      "id={} addr={} laddr={} fd={} name={} age={} idle={} flags={} db=0 sub={} psub={} ssub={} "
      "multi={} qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=0 tot-mem=0 "
      "events=r cmd={} user=default redir={} resp={}\n",
      peer.id, peer.address, peer.local, peer.fd, peer.name(),
      std::max<TimeUs>(now_ - peer.since, 0) / kSecond,
      std::max<TimeUs>(now_ - active, 0) / kSecond, flags, channels, patterns, shards, queued,
      last != nullptr ? last->name : "NULL", redirect,
      peer.protocol.load(std::memory_order_relaxed));
}

void Session::client_list(Args args) {
  std::set<std::uint64_t> ids;
  bool pubsub_only = false;
  bool normal_only = false;
  if (args.size() == 4 && equals_ignoring_case(args[2], "type")) {
    const std::string type = to_lower(args[3].substr(0, 16));
    pubsub_only = type == "pubsub";
    normal_only = type == "normal";
    if (!pubsub_only && !normal_only) {
      if (type == "master" || type == "replica" || type == "slave") return writer_.bulk("");
      return error(fmt::format("ERR Unknown client type '{}'", args[3].substr(0, 128)));
    }
  } else if (args.size() > 3 && equals_ignoring_case(args[2], "id")) {
    for (const std::string_view text : args.subspan(3)) {
      std::int64_t id = 0;
      if (!parse_integer(text, id)) return;
      ids.insert(static_cast<std::uint64_t>(id));
    }
  } else if (args.size() > 2) {
    return error("ERR syntax error");
  }
  std::string list;
  context_.clients->each([&](Peer& peer) {
    const bool subscribed = peer.channels.load(std::memory_order_relaxed) > 0 ||
                            peer.patterns.load(std::memory_order_relaxed) > 0;
    if ((pubsub_only && !subscribed) || (normal_only && subscribed)) return;
    if (!ids.empty() && !ids.contains(peer.id)) return;
    list += describe(peer);
  });
  writer_.verbatim(list);
}

// CLIENT KILL addr:port | ID n | ADDR a | LADDR a | SKIPME yes/no ...
void Session::client_kill(Args args) {
  if (args.size() < 3) return wrong_arity("client|kill");
  std::string_view address;
  std::string_view local;
  std::int64_t id = 0;
  bool skip_me = true;
  const bool old_form = args.size() == 3;
  if (old_form) {
    address = args[2];
    skip_me = false;
  } else if (args.size() % 2 != 0) {
    return error("ERR syntax error");
  }
  for (std::size_t i = 2; !old_form && i < args.size(); i += 2) {
    const std::string option = to_lower(args[i].substr(0, 16));
    if (option == "id") {
      const auto parsed =
          std::from_chars(args[i + 1].data(), args[i + 1].data() + args[i + 1].size(), id);
      if (parsed.ec != std::errc() || id <= 0)
        return error("ERR client-id should be greater than 0");
    } else if (option == "addr") {
      address = args[i + 1];
    } else if (option == "laddr") {
      local = args[i + 1];
    } else if (option == "skipme") {
      skip_me = equals_ignoring_case(args[i + 1], "yes");
    } else {
      return error("ERR syntax error");
    }
  }
  std::int64_t killed = 0;
  context_.clients->each([&](Peer& peer) {
    if (id != 0 && peer.id != static_cast<std::uint64_t>(id)) return;
    if (!address.empty() && peer.address != address) return;
    if (!local.empty() && peer.local != local) return;
    if (&peer == peer_.get()) {
      if (skip_me) return;
      closing_ = true;  // after this answer
    } else {
      peer.kill();
    }
    ++killed;
  });
  if (!old_form)
    writer_.integer(killed);
  else if (killed > 0)
    writer_.ok();
  else
    error("ERR No such client");
}

void Session::client_reply(Args args) {
  if (args.size() != 3) return wrong_arity("client|reply");
  if (equals_ignoring_case(args[2], "on")) {
    reply_mode_ = ReplyMode::on;
    writer_.ok();
  } else if (equals_ignoring_case(args[2], "off")) {
    reply_mode_ = ReplyMode::off;
  } else if (equals_ignoring_case(args[2], "skip")) {
    if (reply_mode_ == ReplyMode::on) reply_mode_ = ReplyMode::skip_next;
  } else {
    return error("ERR syntax error");
  }
  update_ready();
}

void Session::do_client(Args args) {
  const std::string what = to_lower(args[1].substr(0, 32));
  const auto fits = [&](std::size_t count) {
    if (args.size() == count) return true;
    wrong_arity("client|" + what);
    return false;
  };
  if (what == "id") {
    if (fits(2)) writer_.integer(static_cast<std::int64_t>(peer_->id));
  } else if (what == "getname") {
    if (!fits(2)) return;
    const std::string name = peer_->name();
    name.empty() ? writer_.null() : writer_.bulk(name);
  } else if (what == "setname") {
    if (fits(3) && set_name(args[2])) writer_.ok();
  } else if (what == "setinfo") {
    // Redis 7.2's, which newer clients send unasked: the name and version of their library.
    if (fits(4)) writer_.ok();
  } else if (what == "info") {
    if (fits(2)) writer_.verbatim(describe(*peer_));
  } else if (what == "list") {
    client_list(args);
  } else if (what == "kill") {
    client_kill(args);
  } else if (what == "reply") {
    client_reply(args);
  } else if (what == "no-evict" || what == "no-touch") {
    if (!fits(3)) return;
    if (!equals_ignoring_case(args[2], "on") && !equals_ignoring_case(args[2], "off"))
      return error("ERR syntax error");
    writer_.ok();
  } else if (what == "unpause") {
    if (fits(2)) writer_.ok();
  } else if (what == "getredir") {
    if (fits(2)) writer_.integer(peer_->tracking_redirect.load(std::memory_order_relaxed));
  } else if (what == "tracking") {
    if (args.size() < 3) return wrong_arity("client|tracking");
    needs_later_ = context_.passed != nullptr && equals_ignoring_case(args[2], "on");
    if (!needs_later_) client_tracking(args);
  } else if (what == "caching") {
    if (fits(3)) client_caching(args);
  } else if (what == "trackinginfo") {
    if (fits(2)) client_tracking_info();
  } else if (what == "pause" || what == "unblock") {
    error(fmt::format("ERR CLIENT {} is not in this version", args[1]));
  } else if (what == "help") {
    help({"CLIENT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:", "CACHING YES|NO",
          "GETNAME", "GETREDIR", "ID", "INFO",
          "KILL <ip:port> | ID <id> | ADDR <ip:port> | LADDR <ip:port> | SKIPME yes|no",
          "LIST [TYPE normal|pubsub] [ID <id>...]", "NO-EVICT ON|OFF", "NO-TOUCH ON|OFF",
          "REPLY ON|OFF|SKIP", "SETINFO LIB-NAME|LIB-VER <text>", "SETNAME <name>",
          "TRACKING ON|OFF [REDIRECT <id>] [BCAST] [PREFIX <prefix> ...] [OPTIN] [OPTOUT] [NOLOOP]",
          "TRACKINGINFO", "UNPAUSE", "HELP"});
  } else {
    unknown_subcommand(args);
  }
}

}  // namespace larder::server
