// CLIENT TRACKING, CACHING and TRACKINGINFO, and what sessions tell the table of tracking.h.
#include <fmt/format.h>

#include "server/session.h"

namespace larder::server {
namespace {

bool prefix_of_one_another(std::string_view a, std::string_view b) {
  return a.starts_with(b) || b.starts_with(a);
}

// Commands whose answer ":0" or null says that nothing has changed.
bool tells_of_change(std::string_view command) {
  static constexpr std::string_view kTelling[] = {"del",       "expire",   "expireat", "getdel",
                                                  "getex",     "msetnx",   "persist",  "pexpire",
                                                  "pexpireat", "renamenx", "setnx",    "unlink"};
  return std::ranges::find(kTelling, command) != std::end(kTelling);
}

}  // namespace

// The order of these checks, and the texts, are Redis's.
bool Session::tracking_fits(const TrackingState& wanted, std::span<const std::string> prefixes) {
  const auto refuse = [this](std::string_view text) {
    error(text);
    return false;
  };
  if (!wanted.broadcast && !prefixes.empty())
    return refuse("ERR PREFIX option requires BCAST mode to be enabled");
  if (tracking_.on && tracking_.broadcast != wanted.broadcast)
    return refuse(
        "ERR You can't switch BCAST mode on/off before disabling tracking for this client, and "
        "then re-enabling it with a different mode.");
  if (wanted.broadcast && (wanted.optin || wanted.optout))
    return refuse("ERR OPTIN and OPTOUT are not compatible with BCAST");
  if (wanted.optin && wanted.optout)
    return refuse("ERR You can't specify both OPTIN mode and OPTOUT mode");
  if ((wanted.optin && tracking_.optout) || (wanted.optout && tracking_.optin))
    return refuse(
        "ERR You can't switch OPTIN/OPTOUT mode before disabling tracking for this client, and "
        "then re-enabling it with a different mode.");
  if (!wanted.broadcast) return true;
  const std::vector<std::string> old = context_.invalidator->table().prefixes(peer_->id);
  if (old.size() + prefixes.size() > context_.limits.tracked_prefixes)
    return refuse(fmt::format("LARDER_OVERLOADED at most {} prefixes a client",
                              context_.limits.tracked_prefixes));
  for (std::size_t i = 0; i < prefixes.size(); ++i) {
    for (const std::string& other : old)
      if (prefix_of_one_another(prefixes[i], other))
        return refuse(
            fmt::format("ERR Prefix '{}' overlaps with an existing prefix '{}'. Prefixes "
                        "for a single client must not overlap.",
                        prefixes[i], other));
    for (std::size_t j = i + 1; j < prefixes.size(); ++j)
      if (prefix_of_one_another(prefixes[i], prefixes[j]))
        return refuse(
            fmt::format("ERR Prefix '{}' overlaps with another provided prefix '{}'. "
                        "Prefixes for a single client must not overlap.",
                        prefixes[i], prefixes[j]));
  }
  return true;
}

// CLIENT TRACKING ON|OFF [REDIRECT id] [PREFIX p]... [BCAST] [OPTIN] [OPTOUT] [NOLOOP]
void Session::client_tracking(Args args) {
  TrackingState wanted{.on = true};
  std::vector<std::string> prefixes;
  for (std::size_t i = 3; i < args.size(); ++i) {
    const std::string option = to_lower(args[i].substr(0, 16));
    if (option == "redirect" && i + 1 < args.size()) {
      if (wanted.redirect != 0)
        return error("ERR A client can only redirect to a single other client");
      std::int64_t id = 0;
      if (!parse_integer(args[++i], id)) return;
      if (id <= 0 || context_.clients->find(static_cast<std::uint64_t>(id)) == nullptr)
        return error("ERR The client ID you want redirect to does not exist");
      wanted.redirect = static_cast<std::uint64_t>(id);
    } else if (option == "bcast") {
      wanted.broadcast = true;
    } else if (option == "optin") {
      wanted.optin = true;
    } else if (option == "optout") {
      wanted.optout = true;
    } else if (option == "noloop") {
      wanted.noloop = true;
    } else if (option == "prefix" && i + 1 < args.size()) {
      prefixes.emplace_back(args[++i]);
    } else {
      return error("ERR syntax error");
    }
  }
  if (equals_ignoring_case(args[2], "off")) {
    end_tracking();
    return writer_.ok();
  }
  if (!equals_ignoring_case(args[2], "on")) return error("ERR syntax error");
  if (!tracking_fits(wanted, prefixes)) return;
  if (wanted.broadcast && prefixes.empty()) prefixes.emplace_back();
  wanted.caching = tracking_.caching;
  tracking_ = wanted;
  context_.invalidator->table().enable(
      peer_->id,
      {.broadcast = wanted.broadcast, .noloop = wanted.noloop, .redirect = wanted.redirect},
      prefixes);
  peer_->redirect_broken.store(false, std::memory_order_relaxed);
  peer_->tracking_broadcast.store(wanted.broadcast, std::memory_order_relaxed);
  peer_->tracking_redirect.store(static_cast<std::int64_t>(wanted.redirect),
                                 std::memory_order_relaxed);
  update_ready();
  writer_.ok();
}

void Session::end_tracking() {
  if (!tracking_.on) return;
  context_.invalidator->table().disable(peer_->id);
  tracking_ = {};
  peer_->tracking_redirect.store(-1, std::memory_order_relaxed);
  peer_->tracking_broadcast.store(false, std::memory_order_relaxed);
  peer_->redirect_broken.store(false, std::memory_order_relaxed);
  update_ready();
}

void Session::client_caching(Args args) {
  if (!tracking_.on)
    return error(
        "ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or "
        "OPTOUT mode enabled");
  if (equals_ignoring_case(args[2], "yes")) {
    if (!tracking_.optin)
      return error("ERR CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode.");
  } else if (equals_ignoring_case(args[2], "no")) {
    if (!tracking_.optout)
      return error("ERR CLIENT CACHING NO is only valid when tracking is enabled in OPTOUT mode.");
  } else {
    return error("ERR syntax error");
  }
  tracking_.caching = true;
  writer_.ok();
}

void Session::client_tracking_info() {
  std::vector<std::string_view> flags{tracking_.on ? "on" : "off"};
  if (tracking_.broadcast) flags.push_back("bcast");
  if (tracking_.optin) flags.push_back("optin");
  if (tracking_.optin && tracking_.caching) flags.push_back("caching-yes");
  if (tracking_.optout) flags.push_back("optout");
  if (tracking_.optout && tracking_.caching) flags.push_back("caching-no");
  if (tracking_.noloop) flags.push_back("noloop");
  if (peer_->redirect_broken.load(std::memory_order_relaxed)) flags.push_back("broken_redirect");
  writer_.map(3);
  writer_.bulk("flags");
  writer_.set(flags.size());
  for (const std::string_view flag : flags) writer_.bulk(flag);
  writer_.bulk("redirect");
  writer_.integer(peer_->tracking_redirect.load(std::memory_order_relaxed));
  writer_.bulk("prefixes");
  const std::vector<std::string> prefixes = context_.invalidator->table().prefixes(peer_->id);
  writer_.array(prefixes.size());
  for (const std::string& prefix : prefixes) writer_.bulk(prefix);
}

// ---- what is read and written ----

void Session::note_reads(const CommandRow& row, Args args, bool pending) {
  reads_noted_ = false;
  noted_reads_.clear();
  const bool reads = row.plain != nullptr ? !row.plain->writes : (row.flags & kReads) != 0;
  std::vector<std::string_view> keys;
  if (!reads || !keys_of(row, args, keys)) return;
  if (tracking_.broadcast) {
    // It hears of changes by prefix; only the ends of lives have to be known key by key.
    noted_reads_ = std::move(keys);
    return;
  }
  if (!tracking_.remembers()) return;
  reads_noted_ = true;
  for (const std::string_view key : keys)
    if (context_.invalidator->read(peer_->id, key, pending)) noted_reads_.push_back(key);
}

void Session::note_life(std::string_view key) {
  TimeUs end = kNever;
  if (context_.passed != nullptr && context_.node->route(key).match == policy::Match::no)
    return;  // the engine tells
  context_.near->lookup(key, hash_bytes(key), now_,
                        [&](const near::View& view) { end = view.meta.soft_expiry; });
  if (end >= kNever - 1) return;
  if (tracking_.broadcast) context_.invalidator->read(peer_->id, key, false);
  context_.invalidator->table().expires(key, end);
}

void Session::note_lives() {
  for (const std::string_view key : noted_reads_) note_life(key);
  noted_reads_.clear();
}

void Session::settle_read(std::string_view key, const cache::Reading* answered) {
  if (!tracking_.on) return;
  if (tracking_.broadcast) return note_life(key);
  if (!reads_noted_) return;
  Invalidator& invalidator = *context_.invalidator;
  if (!invalidator.table().settle(peer_->id, key)) return note_life(key);
  // Announced while this read was under way, most often by its own load. If memory holds just what
  // was answered, the client may keep it: whatever comes after this look is announced again.
  bool same = false;
  const auto compare = [&](const near::View& view) {
    same = answered != nullptr && !view.is_void && view.meta.negative != answered->found &&
           (view.meta.negative || view.value == answered->value);
  };
  context_.near->lookup(key, hash_bytes(key), monotonic_now_us(), compare);
  if (same) return note_life(key);
  invalidator.table().forget(peer_->id, key);
  invalidator.tell(peer_->id, tracking_.redirect, key);
}

void Session::plain_written(const CommandRow& row, Args args, std::size_t reply_at) {
  Invalidator& invalidator = *context_.invalidator;
  if (!invalidator.table().active()) return;
  const std::string_view reply = std::string_view(out_).substr(reply_at);
  if (row.plain->whole_keyspace) {
    if (!reply.starts_with('-')) invalidator.everything(peer_->id);
    return;
  }
  const bool one_key = row.first_key == row.last_key;
  // A command on many keys that failed may have changed some.
  if (reply.starts_with('-') && one_key) return;
  const bool nothing =
      reply.starts_with(":0\r") || reply.starts_with("$-1\r") || reply.starts_with("_\r");
  if (nothing && tells_of_change(row.name)) return;
  if (row.name == "getex" && args.size() == 2) return;
  std::vector<std::string_view> keys;
  append_keys(row, args, keys);
  invalidator.changed(keys, peer_->id);
}

void Session::plain_written(std::span<const engine::QueuedCommand> commands) {
  Invalidator& invalidator = *context_.invalidator;
  if (!invalidator.table().active()) return;
  std::vector<std::string_view> keys;
  for (const engine::QueuedCommand& command : commands) {
    const std::vector<std::string_view> args(command.args.begin(), command.args.end());
    const CommandRow* const row = table_.find(args[0]);
    if (row == nullptr || row->plain == nullptr || !row->plain->writes) continue;
    if (row->plain->whole_keyspace) return invalidator.everything(peer_->id);
    append_keys(*row, args, keys);
  }
  if (!keys.empty()) invalidator.changed(keys, peer_->id);
}

}  // namespace larder::server
