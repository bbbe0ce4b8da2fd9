// MULTI, EXEC, WATCH. Plain commands are one step of the engine; declared writes become one
// transaction of their source; declared reads run at EXEC, in their place.
#include <fmt/format.h>

#include "server/session.h"

namespace larder::server {

void Session::do_multi(Args) {
  if (in_multi_) {
    error("ERR MULTI calls can not be nested");
    return;
  }
  in_multi_ = true;
  multi_failed_ = false;
  peer_->queued_commands.store(0, std::memory_order_relaxed);
  update_ready();
  writer_.ok();
}

void Session::end_multi() {
  in_multi_ = false;
  multi_failed_ = false;
  queued_.clear();
  queued_bytes_ = 0;
  watches_.clear();
  watched_bytes_ = 0;
  release_own();
  peer_->queued_commands.store(-1, std::memory_order_relaxed);
  update_ready();
}

void Session::do_discard(Args) {
  if (!in_multi_) {
    error("ERR DISCARD without MULTI");
    return;
  }
  end_multi();
  writer_.ok();
}

void Session::do_watch(Args args) {
  if (in_multi_) {
    error("ERR WATCH inside MULTI is not allowed");
    return;
  }
  if (context_.passed != nullptr) {
    needs_later_ = true;
    return;
  }
  if (watches_.size() + args.size() > context_.limits.watches) {
    error(fmt::format("ERR too many watched keys, at most {}", context_.limits.watches));
    return;
  }
  for (const std::string_view key : args.subspan(1)) {
    int cache = -1;
    if (!route(key, cache)) return;
    if (cache >= 0) {
      refuse_declared(*table_.find("watch"), key, cache);
      return;
    }
  }
  std::size_t bytes = watched_bytes_;
  for (const std::string_view key : args.subspan(1)) bytes += key.size();
  if (bytes > context_.limits.watched_bytes) {
    error(
        fmt::format("ERR the watched keys have more than {} bytes", context_.limits.watched_bytes));
    return;
  }
  watched_bytes_ = bytes;
  for (const std::string_view key : args.subspan(1))
    watches_.push_back(context_.plain->watch(key, now_));
  writer_.ok();
}

void Session::do_unwatch(Args args) {
  if (context_.passed != nullptr && own_ != nullptr && own_->database != 0) {
    needs_later_ = true;  // the connection stays: it has to be told
    return;
  }
  (void)args;
  release_own();
  watches_.clear();
  watched_bytes_ = 0;
  writer_.ok();
}

// Whatever can be refused without running it is refused here, so that EXEC never stops half-way.
bool Session::check_queued(const CommandRow& row, Args args) {
  if (row.plain == nullptr || (!has_caches_ && context_.passed == nullptr)) return true;
  std::vector<std::string_view> keys;
  if (!keys_of(row, args, keys)) {  // only the engine can tell, and nobody asks it here
    error(fmt::format("ERR '{}' does not pass through Larder inside MULTI: send it by itself",
                      row.name));
    return false;
  }
  std::size_t declared = 0;
  int cache = -1;
  int one = -1;
  std::string_view one_key;
  for (const std::string_view key : keys) {
    if (context_.passed != nullptr && refuse_internal(key)) return false;
    if (!route(key, cache)) return false;
    if (cache < 0) continue;
    ++declared;
    one = cache;
    one_key = key;
  }
  if (declared == 0) return true;
  if (declared != keys.size()) {
    error(
        fmt::format("ERR '{}' inside MULTI cannot mix declared and plain keys: use one command "
                    "for each",
                    row.name));
    return false;
  }
  std::vector<cache::WriteOp> ops;
  switch (row.verb) {
    case Verb::other:
    case Verb::flush: refuse_declared(row, one_key, one); return false;
    case Verb::incr:
    case Verb::incrby:
    case Verb::decr:
    case Verb::decrby:
      if (spec(one).increment.empty()) return !declared_now(row, args, one_key, one);
      return write_op(row, args, ops);
    case Verb::set:
    case Verb::setex:
    case Verb::psetex:
    case Verb::mset: return write_op(row, args, ops);
    default: return true;
  }
}

void Session::queue(const CommandRow& row, Args args) {
  std::size_t bytes = 0;
  for (const std::string_view arg : args) bytes += arg.size() + sizeof(std::string);
  if (queued_.size() >= context_.limits.queued_commands ||
      queued_bytes_ + bytes > context_.limits.queued_bytes) {
    multi_failed_ = true;
    error("LARDER_OVERLOADED the transaction is too large");
    return;
  }
  if (!check_queued(row, args)) {
    multi_failed_ = true;
    return;
  }
  queued_bytes_ += bytes;
  queued_.push_back({{args.begin(), args.end()}});
  peer_->queued_commands.store(static_cast<std::int64_t>(queued_.size()),
                               std::memory_order_relaxed);
  writer_.simple("QUEUED");
}

Session::Kind Session::kind_of(const CommandRow& row, Args args) {
  if (row.plain == nullptr) return {};
  const bool passed = context_.passed != nullptr;
  if ((has_caches_ || passed) && row.verb == Verb::flush) return {.flushes = true};
  // Larder's own keys have to be left out of these.
  if (passed && row.plain->whole_keyspace) return {};
  Kind kind{.part = Part::plain, .writes_plain = row.plain->writes};
  // A module's command may have a first key by its row, and be called without.
  if (!has_caches_ || row.first_key <= 0 || static_cast<std::size_t>(row.first_key) >= args.size())
    return kind;
  // check_queued() has seen that all keys are declared, or none.
  int cache = -1;
  route(args[static_cast<std::size_t>(row.first_key)], cache);
  if (cache < 0) return kind;
  switch (row.verb) {
    case Verb::del:
      return spec(cache).on_del_removes ? Kind{.part = Part::declared_write, .cache = cache}
                                        : Kind{};
    case Verb::set:
    case Verb::setex:
    case Verb::psetex:
    case Verb::mset:
    case Verb::incr:
    case Verb::incrby:
    case Verb::decr:
    case Verb::decrby: return {.part = Part::declared_write, .cache = cache};
    default: return {};
  }
}

std::string Session::conflict(std::span<const Kind> kinds) const {
  int first = -1;
  bool plain_writes = false;
  bool flushes = false;
  for (const Kind& kind : kinds) {
    plain_writes |= kind.writes_plain;
    flushes |= kind.flushes;
    if (kind.part != Part::declared_write) continue;
    if (first < 0) first = kind.cache;
    if (spec(first).source != spec(kind.cache).source)
      return fmt::format(
          "EXECABORT Transaction discarded: caches '{}' and '{}' have different "
          "sources ('{}' and '{}'), which cannot share one transaction",
          spec(first).name, spec(kind.cache).name, spec(first).source, spec(kind.cache).source);
  }
  if (flushes && plain_writes)
    return "EXECABORT Transaction discarded: FLUSHDB and FLUSHALL void declared caches too, and "
           "cannot be one step with writes to plain keys; use two transactions";
  if (first >= 0 && plain_writes)
    return fmt::format(
        "EXECABORT Transaction discarded: writes to the declared cache '{}' are a "
        "database transaction and cannot be atomic with writes to plain keys; use "
        "two transactions",
        spec(first).name);
  return {};
}

void Session::run_plain_transaction(std::span<const engine::QueuedCommand> commands,
                                    std::span<const engine::Watch> watches, wire::Writer& out) {
  std::vector<std::string_view> read;
  for (const engine::QueuedCommand& command : commands) {
    if (!tracking_.on) break;
    const std::vector<std::string_view> args(command.args.begin(), command.args.end());
    note_reads(*table_.find(args[0]), args, false);
    read.insert(read.end(), noted_reads_.begin(), noted_reads_.end());
  }
  const std::size_t before = out.buffer().size();
  context_.plain->run_transaction(commands, watches, now_, out);
  const std::string_view answer = std::string_view(out.buffer()).substr(before);
  if (answer.starts_with("*-") || answer.starts_with('_')) return;  // a watched key had changed
  plain_written(commands);
  for (const std::string_view key : read) note_life(key);
}

void Session::do_exec(Args) {
  if (!in_multi_) {
    error("ERR EXEC without MULTI");
    return;
  }
  if (multi_failed_) {
    end_multi();
    error("EXECABORT Transaction discarded because of previous errors.");
    return;
  }
  std::vector<std::string_view> keys;
  for (const engine::QueuedCommand& command : queued_) {
    const std::vector<std::string_view> args(command.args.begin(), command.args.end());
    append_keys(*find_row(args), args, keys);
  }
  if (context_.passed == nullptr && !fits_reply_of(keys)) return end_multi();
  // The usual case, without suspending: plain commands, which are all of one step.
  const bool only_plain = std::ranges::all_of(queued_, [&](const engine::QueuedCommand& command) {
    const std::vector<std::string_view> args(command.args.begin(), command.args.end());
    return kind_of(*find_row(args), args).part == Part::plain;
  });
  if (!only_plain || context_.passed != nullptr) {
    needs_later_ = true;
    return;
  }
  const auto commands = std::move(queued_);
  const auto watches = std::move(watches_);
  end_multi();
  run_plain_transaction(commands, watches, writer_);
}

namespace {

// Cuts the array of replies that a transaction gave into its elements; empty for a null array.
std::vector<std::string> elements_of(std::string_view reply) {
  std::vector<std::string> elements;
  const std::size_t header = reply.find("\r\n");
  if (header == std::string_view::npos || reply[0] != '*' || reply[1] == '-') return elements;
  reply.remove_prefix(header + 2);
  std::size_t consumed = 0;
  std::string problem;
  constexpr wire::Limits kOurOwn{.max_arguments = SIZE_MAX,
                                 .max_bulk_bytes = SIZE_MAX,
                                 .max_inline_bytes = SIZE_MAX,
                                 .max_command_bytes = SIZE_MAX};
  while (!reply.empty() && wire::parse_reply(reply, consumed, problem, kOurOwn)) {
    elements.emplace_back(reply.substr(0, consumed));
    reply.remove_prefix(consumed);
  }
  return elements;
}

}  // namespace

Task<void> Session::exec_mixed(Args) {
  const auto commands = std::move(queued_);
  const auto watches = std::move(watches_);
  auto own = std::move(own_);
  end_multi();
  own_ = std::move(own);
  update_ready();
  std::vector<std::vector<std::string_view>> args;
  std::vector<const CommandRow*> rows;
  std::vector<Kind> kinds;
  std::vector<engine::QueuedCommand> plain;
  for (const auto& command : commands) {
    args.emplace_back(command.args.begin(), command.args.end());
    rows.push_back(find_row(args.back()));
    kinds.push_back(kind_of(*rows.back(), args.back()));
    if (kinds.back().part == Part::plain) plain.push_back(command);
  }
  if (const std::string why = conflict(kinds); !why.empty()) {
    release_own();
    error(why);
    co_return;
  }
  std::vector<std::string> plain_replies;
  const bool watching = own_ != nullptr && own_->watching;
  if (context_.passed != nullptr) {
    if (!plain.empty() || watching) {
      const std::size_t wanted = plain.size();
      const auto reply = co_await pass_transaction(std::move(plain));
      if (!reply) {
        release_own();
        error(reply.error());
        co_return;
      }
      for (const std::string_view element : engine::redis::elements_of(*reply))
        plain_replies.emplace_back(element);
      if (plain_replies.size() != wanted || reply->starts_with("*-") || reply->starts_with('_') ||
          reply->starts_with('-')) {
        out_ += *reply;  // a watched key had changed, or the engine refuses
        co_return;
      }
    }
  } else if (!plain.empty()) {
    std::string reply;
    wire::Writer writer(reply, writer_.protocol());
    run_plain_transaction(plain, watches, writer);
    plain_replies = elements_of(reply);
    if (plain_replies.size() != plain.size()) {
      writer_.null_array();
      co_return;
    }
  } else if (!watches.empty() && !context_.plain->unchanged(watches, now_)) {
    writer_.null_array();
    co_return;
  }

  std::vector<cache::WriteOp> ops;
  std::vector<std::size_t> ops_of;  // of each declared write, in order
  for (std::size_t i = 0; i < commands.size(); ++i) {
    if (kinds[i].part != Part::declared_write) continue;
    const std::size_t before = ops.size();
    const bool valid = write_op(*rows[i], args[i], ops);
    LARDER_ASSERT(valid);  // check_queued() has seen it
    ops_of.push_back(ops.size() - before);
  }

  writer_.array(commands.size());
  std::size_t next_plain = 0;
  std::size_t next_write = 0;
  std::size_t next_op = 0;
  Result<std::vector<cache::Written>> written;
  for (std::size_t i = 0; i < commands.size(); ++i) {
    now_ = monotonic_now_us();
    if (out_.size() > context_.limits.reply_bytes && kinds[i].part == Part::own) {
      error("LARDER_OVERLOADED the answers of this transaction are too large; this was not run");
    } else if (kinds[i].part == Part::plain) {
      out_ += plain_replies[next_plain++];
    } else if (kinds[i].part == Part::declared_write) {
      // All of them at the place of the first: what was read before it shows the state before.
      if (next_write == 0) written = co_await context_.node->write(std::exchange(ops, {}));
      const std::size_t count = ops_of[next_write++];
      if (written)
        write_answer(*rows[i], std::span(*written).subspan(next_op, count));
      else
        error(written.error());
      next_op += count;
    } else if (!run_row_now(*rows[i], args[i])) {
      co_await run_later(*rows[i], args[i]);
    }
  }
}

}  // namespace larder::server
