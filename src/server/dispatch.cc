// From a command's arguments to its handler: admission, errors, and the plain commands.
#include <fmt/format.h>

#include "server/session.h"

namespace larder::server {

bool Session::answer_near(std::string_view key) {
  const Hash hash = hash_bytes(key);
  switch (context_.node->read_now(key, hash, now_,
                                  [this](std::string_view value) { writer_.bulk(value); })) {
    case cache::Node::Quick::hit: return true;
    case cache::Node::Quick::absent: writer_.null(); return true;
    case cache::Node::Quick::miss: break;
  }
  return false;
}

// The order of these checks, and the texts, are Redis's.
bool Session::admit(const CommandRow* row, Args args) {
  if (row == nullptr) {
    multi_failed_ |= in_multi_;
    unknown_command(args);
    return false;
  }
  if (!row->arity_fits(args.size())) {
    multi_failed_ |= in_multi_;
    wrong_arity(row->name);
    return false;
  }
  if (ready_) return true;
  if (!authenticated_ && (row->flags & kWithoutAuth) == 0) {
    multi_failed_ |= in_multi_;
    error("NOAUTH Authentication required.");
    return false;
  }
  if (writer_.protocol() == 2 && (row->flags & kWhenSubscribed) == 0 &&
      !std::ranges::all_of(subscriptions_, [](const auto& names) { return names.empty(); })) {
    error(
        fmt::format("ERR Can't execute '{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT "
                    "/ RESET are allowed in this context",
                    to_lower(args[0])));
    return false;
  }
  if (in_multi_ && (row->flags & kNotInMulti) != 0) {
    multi_failed_ = true;
    error(fmt::format("ERR Command '{}' not allowed inside a transaction", row->name));
    return false;
  }
  return true;
}

bool Session::run_now(Args args) {
  if (args.empty()) return true;
  // CLIENT CACHING is for one command, or one transaction.
  if (tracking_.caching && !in_multi_ && current_ != client_row_) tracking_.caching = false;
  const CommandRow* const row = find_row(args);
  if (!admit(row, args)) return true;
  current_ = row;
  // What it is has to be asked; then it comes here again.
  if (context_.passed != nullptr && row == context_.passed->unlearned()) return false;
  if (in_multi_ && (row->flags & kNeverQueued) == 0) {
    queue(*row, args);
    return true;
  }
  return run_row_now(*row, args);
}

bool Session::run_row_now(const CommandRow& row, Args args) {
  if (tracking_.on) {
    note_reads(row, args, false);
    if (row.plain != nullptr && !run_keys_now(row, args)) {
      if (!passing_) note_reads(row, args, true);
      return false;
    }
    if (row.plain != nullptr) {
      note_lives();
      return true;
    }
    if (row.now == nullptr) note_reads(row, args, true);
  }
  if (row.plain != nullptr) return run_keys_now(row, args);
  if (row.now == nullptr) return false;
  needs_later_ = false;
  (this->*row.now)(args);
  return !needs_later_;
}

Task<void> Session::run_later(const CommandRow& row, Args args) {
  if (std::exchange(passing_, false)) return pass(row, args);
  return row.plain != nullptr ? declared_later(row, args) : (this->*row.later)(args);
}

void Session::error(std::string_view text) {
  context_.stats.errors.fetch_add(1, std::memory_order_relaxed);
  writer_.error(text);
}

void Session::error(const Error& error) { this->error(to_string(error)); }

void Session::wrong_arity(std::string_view command) {
  error(fmt::format("ERR wrong number of arguments for '{}' command", command));
}

bool Session::fits_reply(std::size_t bytes) {
  if (bytes <= context_.limits.reply_bytes) return true;
  error(
      fmt::format("LARDER_OVERLOADED the answer would be larger than {} bytes; ask for fewer keys",
                  context_.limits.reply_bytes));
  return false;
}

// Looks at the values only if there are enough keys that they might be too large together.
bool Session::fits_reply_of(std::span<const std::string_view> keys) {
  if (keys.size() <= context_.limits.reply_bytes / context_.near->max_entry_bytes()) return true;
  std::size_t bytes = 0;
  const auto add = [&](const near::View& view) { bytes += view.value.size(); };
  for (const std::string_view key : keys) context_.near->lookup(key, hash_bytes(key), now_, add);
  return fits_reply(bytes);
}

void Session::unknown_command(Args args) {
  constexpr std::size_t kShown = 128;
  std::string shown;
  for (const std::string_view arg : args.subspan(1)) {
    if (shown.size() >= kShown) break;
    shown += fmt::format("'{}' ", arg.substr(0, kShown - shown.size()));
  }
  error(fmt::format("ERR unknown command '{}', with args beginning with: {}",
                    args[0].substr(0, kShown), shown));
}

void Session::unknown_subcommand(Args args) {
  std::string upper(args[0]);
  for (char& c : upper)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 32);
  error(fmt::format("ERR unknown subcommand '{}'. Try {} HELP.", args[1].substr(0, 128), upper));
}

bool Session::parse_integer(std::string_view text, std::int64_t& n) {
  // Strict, as Redis: no plus sign, no leading zeros, no blanks.
  const std::string_view digits = text.starts_with('-') ? text.substr(1) : text;
  const bool plausible =
      !digits.empty() && digits.size() <= 19 && (digits[0] != '0' || text.size() == 1);
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), n);
  if (plausible && parsed.ec == std::errc() && parsed.ptr == text.data() + text.size()) return true;
  error("ERR value is not an integer or out of range");
  return false;
}

void Session::run_plain(const CommandRow& row, Args args) {
  const std::size_t before = out_.size();
  context_.plain->run(*row.plain, args, now_, writer_);
  if (row.plain->writes) plain_written(row, args, before);
}

bool Session::plain_now(const CommandRow& row, Args args) {
  passing_ = context_.passed != nullptr;
  if (!passing_) run_plain(row, args);
  return !passing_;
}

void Session::run_plain(std::span<const std::string_view> args) {
  const auto* const command = engine::PlainCommands::find(args[0]);
  LARDER_ASSERT(command != nullptr);
  context_.plain->run(*command, args, now_, writer_);
}

std::int64_t Session::plain_integer(std::span<const std::string_view> args) {
  const auto* const command = engine::PlainCommands::find(args[0]);
  LARDER_ASSERT(command != nullptr);
  std::string reply;
  wire::Writer writer(reply);
  context_.plain->run(*command, args, now_, writer);
  std::int64_t n = 0;
  if (reply.starts_with(':')) std::from_chars(reply.data() + 1, reply.data() + reply.size(), n);
  if (command->writes && n > 0) context_.invalidator->changed(args.subspan(1), peer_->id);
  return n;
}

}  // namespace larder::server
