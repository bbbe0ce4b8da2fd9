#include "engine/redis/protocol.h"

#include <fmt/format.h>

#include <charconv>

#include "base/hash.h"
#include "engine/redis/scripts.h"
#include "engine/redis/url.h"

namespace larder::engine::redis {
namespace {

using wire::Reply;

constexpr std::size_t kMaxParts = 1 << 20;  // of a message: keys and tags of one change

Error unexpected_answer() {
  return {ErrorCode::internal, "the engine's answer to a script is not what the script gives",
          "redis"};
}

bool is_array(const Reply& reply, std::size_t size) {
  return reply.type == Reply::Type::array && reply.elements.size() == size;
}
bool is_text(const Reply& reply) {
  return reply.type == Reply::Type::bulk || reply.type == Reply::Type::simple;
}
bool is_number(const Reply& reply) { return reply.type == Reply::Type::integer; }

template <class T>
bool parse_number(std::string_view text, T& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return !text.empty() && error == std::errc() && end == text.data() + text.size();
}

// Takes the next word and the blank behind it.
std::string_view next_word(std::string_view& text) {
  const std::size_t blank = text.find(' ');
  const std::string_view word = text.substr(0, blank);
  text = blank == std::string_view::npos ? std::string_view() : text.substr(blank + 1);
  return word;
}

// Takes "<size>:<bytes>".
bool next_part(std::string_view& text, std::string_view& part) {
  const std::size_t colon = text.find(':');
  std::size_t size = 0;
  if (colon == std::string_view::npos || !parse_number(text.substr(0, colon), size)) return false;
  text.remove_prefix(colon + 1);
  if (size > text.size()) return false;
  part = text.substr(0, size);
  text.remove_prefix(size);
  return true;
}

std::optional<StoredEntry> parse_entry(std::string_view raw) {
  const std::size_t line = raw.find('\n');
  std::size_t size = 0;
  if (line == std::string_view::npos || !parse_number(raw.substr(0, line), size)) return {};
  raw.remove_prefix(line + 1);
  if (size > raw.size()) return {};
  std::string_view header = raw.substr(0, size);
  StoredEntry entry;
  entry.value = raw.substr(size);
  next_word(header);  // e and the ticket's n are the scripts' business
  next_word(header);
  entry.negative = next_word(header) == "1";
  std::size_t tags = 0;
  const bool numbers = parse_number(next_word(header), entry.load_us) &&
                       parse_number(next_word(header), entry.ttl_us) &&
                       parse_number(next_word(header), entry.as_of) &&
                       parse_number(next_word(header), entry.soft_expiry) &&
                       parse_number(next_word(header), entry.useless_at) &&
                       parse_number(next_word(header), entry.snapshot.xmin) &&
                       parse_number(next_word(header), entry.snapshot.xmax) &&
                       parse_number(next_word(header), entry.snapshot.source_id);
  if (!numbers) return {};
  std::string_view running = next_word(header);
  while (running != "-" && !running.empty()) {
    const std::size_t comma = running.find(',');
    policy::TxnId x = 0;
    if (!parse_number(running.substr(0, comma), x)) return {};
    entry.snapshot.in_progress.push_back(x);
    running = comma == std::string_view::npos ? std::string_view() : running.substr(comma + 1);
  }
  if (!parse_number(next_word(header), tags) || tags > 255) return {};
  for (std::size_t i = 0; i < tags; ++i) {
    std::string_view tag;
    if (!next_part(header, tag)) return {};
    if (header.starts_with(' ')) header.remove_prefix(1);
    entry.tags.emplace_back(tag);
  }
  return entry;
}

policy::Refusal refusal_named(std::string_view name) {
  if (name.empty()) return policy::Refusal::none;
  for (std::size_t i = 1; i < policy::kRefusals; ++i)
    if (to_string(static_cast<policy::Refusal>(i)) == name) return static_cast<policy::Refusal>(i);
  return policy::Refusal::no_state;
}

std::string_view rule_code(TxnRule rule) {
  switch (rule) {
    case TxnRule::exact: return "e";
    case TxnRule::below: return "b";
    case TxnRule::tickets: return "t";
  }
  return "t";
}

Step change_step(const Names& names, std::string_view mode, const FeedStep& feed,
                 const Bounds& bounds) {
  Step step{.script = scripts::change(), .keys = {names.state(), names.stream()}, .args = {}};
  step.args = {std::string(mode),
               std::to_string(feed.expected),
               std::to_string(feed.position),
               std::to_string(feed.heartbeat),
               std::to_string(feed.source_id),
               std::to_string(feed.xmin),
               std::to_string(feed.committed_at),
               names.channel(),
               std::string(names.publish()),
               std::to_string(bounds.stream),
               std::to_string(bounds.tombstones),
               std::to_string(bounds.most_tombstones),
               std::to_string(feed.changes.size())};
  for (const Invalidation& change : feed.changes) {
    step.args.push_back(std::to_string(change.x));
    step.args.emplace_back(rule_code(change.rule));
    step.args.push_back(std::to_string(change.source_id));
    step.args.push_back(std::to_string(change.keys.size()));
    step.args.push_back(std::to_string(change.tags.size()));
    for (const Invalidation::Key& key : change.keys) {
      step.args.push_back(key.text);
      step.args.push_back(std::to_string(key.schemas.size()));
      for (const std::string& schema : key.schemas) {
        step.keys.push_back(names.entry(schema, key.text));
        step.keys.push_back(names.ticket(schema, key.text));
      }
    }
    step.args.insert(step.args.end(), change.tags.begin(), change.tags.end());
  }
  return step;
}

}  // namespace

// ---- names ----

Names::Names(std::string_view name_space, std::string_view source, unsigned partition,
             unsigned partitions, bool sharded)
    : source_(source), sharded_(sharded) {
  // A tag in the partition's own range of slots, so that servers with equal shares of the slots
  // have equal shares of the partitions. About `partitions` tries.
  for (unsigned salt = 0;; ++salt) {
    const std::string tag = fmt::format("{{{}.{}}}", partition, salt);
    slot_ = slot_of(tag);
    if (slot_ * std::uint64_t{partitions} / 16384 != partition) continue;
    prefix_ = fmt::format("{}:{}:", name_space, tag);
    break;
  }
  state_ = fmt::format("{}s:{}", prefix_, source);
  stream_ = fmt::format("{}x:{}", prefix_, source);
  channel_ = fmt::format("{}c:{}", prefix_, source);
}

std::string Names::entry(std::string_view schema, std::string_view key) const {
  return fmt::format("{}e:{}:{}", prefix_, schema, key);
}

std::string Names::ticket(std::string_view schema, std::string_view key) const {
  return fmt::format("{}l:{}:{}", prefix_, schema, key);
}

// ---- miss(k) ----

Step lookup_step(const Names& names, const std::vector<LookupKey>& keys, DurationUs ticket_us) {
  Step step{.script = scripts::lookup(), .keys = {names.state()}, .args = {}};
  const DurationUs least = ticket_us == 0 ? 0 : 1;
  step.args.push_back(std::to_string(std::max(least, ticket_us / kMillisecond)));
  for (const LookupKey& key : keys) {
    step.keys.push_back(names.entry(key.schema, key.key));
    step.keys.push_back(names.ticket(key.schema, key.key));
    step.args.emplace_back(key.token);
    step.args.emplace_back(key.wants_ticket ? "1" : "0");
    step.args.emplace_back(key.waits ? "1" : "0");
    step.args.emplace_back(key.key);
  }
  return step;
}

Result<LookupAnswer> lookup_answer(const Reply& reply) {
  if (!is_array(reply, 6) || !is_text(reply.elements[0]) || !is_text(reply.elements[1]) ||
      !is_number(reply.elements[2]) || !is_number(reply.elements[3]) ||
      !is_number(reply.elements[4]) || reply.elements[5].type != Reply::Type::array)
    return std::unexpected(unexpected_answer());
  LookupAnswer answer;
  answer.position = {reply.elements[0].text, reply.elements[1].text,
                     static_cast<std::uint64_t>(reply.elements[2].integer)};
  answer.heartbeat = reply.elements[3].integer;
  answer.engine_now = reply.elements[4].integer;
  for (const Reply& one : reply.elements[5].elements) {
    if (!is_array(one, 3) || !is_number(one.elements[0]) || !is_text(one.elements[1]) ||
        !is_number(one.elements[2]) || one.elements[0].integer < 0 || one.elements[0].integer > 3)
      return std::unexpected(unexpected_answer());
    KeyAnswer found{.kind = static_cast<KeyAnswer::Kind>(one.elements[0].integer)};
    if (!one.elements[1].text.empty()) {
      found.entry = parse_entry(one.elements[1].text);
      if (!found.entry) return std::unexpected(unexpected_answer());
    }
    if (found.kind == KeyAnswer::Kind::hit && !found.entry)
      return std::unexpected(unexpected_answer());
    found.ticket_us = std::max<std::int64_t>(0, one.elements[2].integer) * kMillisecond;
    answer.found.push_back(std::move(found));
  }
  return answer;
}

// ---- fill ----

Step fill_step(const Names& names, const FillRequest& request) {
  const StoredEntry& entry = request.entry;
  Step step{.script = scripts::fill(),
            .keys = {names.state(), names.entry(request.schema, request.key),
                     names.ticket(request.schema, request.key)},
            .args = {}};
  const DurationUs keep_us = entry.useless_at - entry.as_of;
  step.args = {std::string(request.token),
               std::string(request.epoch),
               std::to_string(entry.snapshot.source_id),
               std::to_string(entry.snapshot.xmin),
               std::to_string(entry.snapshot.xmax),
               entry.snapshot.in_progress.empty()
                   ? "-"
                   : fmt::format("{}", fmt::join(entry.snapshot.in_progress, ",")),
               std::to_string(std::max<DurationUs>(1, keep_us / kMillisecond)),
               fmt::format("{} {} {} {} {} {}", entry.negative ? 1 : 0, entry.load_us, entry.ttl_us,
                           entry.as_of, entry.soft_expiry, entry.useless_at),
               entry.value,
               std::string(request.key),
               names.channel(),
               std::string(names.publish())};
  step.args.insert(step.args.end(), entry.tags.begin(), entry.tags.end());
  return step;
}

Result<FillAnswer> fill_answer(const Reply& reply) {
  if (!is_array(reply, 5) || !is_text(reply.elements[0]) || !is_text(reply.elements[1]) ||
      !is_number(reply.elements[2]) || !is_text(reply.elements[4]))
    return std::unexpected(unexpected_answer());
  return FillAnswer{.position = {reply.elements[0].text, reply.elements[1].text,
                                 static_cast<std::uint64_t>(reply.elements[2].integer)},
                    .refusal = refusal_named(reply.elements[4].text)};
}

// ---- changes ----

Step invalidate_step(const Names& names, std::vector<Invalidation> changes, const Bounds& bounds) {
  const FeedStep all{.changes = std::move(changes)};
  return change_step(names, "i", all, bounds);
}

Step feed_step(const Names& names, const FeedStep& feed, const Bounds& bounds) {
  return change_step(names, "f", feed, bounds);
}

Result<ChangeAnswer> change_answer(const Reply& reply) {
  ChangeAnswer answer;
  if (!is_array(reply, 7) || !is_text(reply.elements[0]) || !is_text(reply.elements[1]) ||
      !is_number(reply.elements[2]) || !is_number(reply.elements[3]) ||
      !parse_number(reply.elements[4].text, answer.feed_position) ||
      !parse_number(reply.elements[5].text, answer.source_id) || !is_number(reply.elements[6]))
    return std::unexpected(unexpected_answer());
  answer.position = {reply.elements[0].text, reply.elements[1].text,
                     static_cast<std::uint64_t>(reply.elements[2].integer)};
  answer.applied = reply.elements[3].integer == 1;
  answer.engine_now = reply.elements[6].integer;
  return answer;
}

Step read_step(const Names& names) {
  return {.script = scripts::read(), .keys = {names.state()}, .args = {}};
}

Result<StateAnswer> state_answer(const Reply& reply) {
  StateAnswer answer;
  if (!is_array(reply, 7) || !is_text(reply.elements[0]) || !is_text(reply.elements[1]) ||
      !is_number(reply.elements[2]) ||
      !parse_number(reply.elements[3].text, answer.feed_position) ||
      !parse_number(reply.elements[4].text, answer.source_id) || !is_number(reply.elements[5]) ||
      !is_number(reply.elements[6]))
    return std::unexpected(unexpected_answer());
  answer.position = {reply.elements[0].text, reply.elements[1].text,
                     static_cast<std::uint64_t>(reply.elements[2].integer)};
  answer.heartbeat = reply.elements[5].integer;
  answer.engine_now = reply.elements[6].integer;
  return answer;
}

// ---- a new epoch ----

Step epoch_begin_step(const Names& names, std::string_view mark, std::uint64_t source_id) {
  return {.script = scripts::epoch_begin(),
          .keys = {names.state()},
          .args = {std::string(mark), std::to_string(source_id)}};
}

Step epoch_write_step(const Names& names, const NewEpoch& epoch) {
  return {.script = scripts::epoch_write(),
          .keys = {names.state(), names.stream()},
          .args = {std::string(epoch.mark), std::string(epoch.epoch), std::to_string(epoch.floor),
                   std::to_string(epoch.feed_position), std::to_string(epoch.source_id),
                   std::to_string(epoch.heartbeat), names.channel(), std::string(names.publish())}};
}

// ---- messages ----

Result<Message> parse_message(std::string_view text) {
  const auto wrong = [] {
    return fail(ErrorCode::internal, "a message of another form on Larder's channel", "redis");
  };
  std::string_view kind, replid, epoch, n, heartbeat, committed, x, keys;
  for (std::string_view* part : {&kind, &replid, &epoch, &n, &heartbeat, &committed, &x, &keys})
    if (!next_part(text, *part)) return wrong();
  Message message;
  if (kind == "c")
    message.kind = Message::Kind::change;
  else if (kind == "h")
    message.kind = Message::Kind::heartbeat;
  else if (kind == "f")
    message.kind = Message::Kind::filled;
  else if (kind == "e")
    message.kind = Message::Kind::epoch;
  else
    return wrong();
  message.position.replid = replid;
  message.position.epoch = epoch;
  std::size_t key_count = 0;
  if (!parse_number(n, message.position.n) || !parse_number(heartbeat, message.heartbeat) ||
      !parse_number(committed, message.committed_at) || !parse_number(x, message.x) ||
      !parse_number(keys, key_count))
    return wrong();
  while (!text.empty()) {
    std::string_view part;
    if (!next_part(text, part) || message.keys.size() + message.tags.size() >= kMaxParts)
      return wrong();
    (message.keys.size() < key_count ? message.keys : message.tags).emplace_back(part);
  }
  if (message.keys.size() != key_count) return wrong();
  return message;
}

Step history_step(const Names& names, std::uint64_t after, unsigned most) {
  return {.script = scripts::history(),
          .keys = {names.state(), names.stream()},
          .args = {std::to_string(after), std::to_string(most)}};
}

Result<std::vector<Message>> history_answer(const Reply& reply) {
  if (reply.type != Reply::Type::array) return std::unexpected(unexpected_answer());
  std::vector<Message> messages;
  for (const Reply& one : reply.elements) {
    Result<Message> message = parse_message(one.text);
    if (!message) return std::unexpected(message.error());
    messages.push_back(std::move(*message));
  }
  return messages;
}

}  // namespace larder::engine::redis
