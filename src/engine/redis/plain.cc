#include "engine/redis/plain.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <map>

#include "wire/reply_scan.h"

namespace larder::engine::redis {
namespace {

constexpr wire::Limits kNoLimits{.max_arguments = SIZE_MAX,
                                 .max_bulk_bytes = SIZE_MAX,
                                 .max_inline_bytes = SIZE_MAX,
                                 .max_command_bytes = SIZE_MAX};
// A cursor of several servers is the server's own times this, plus which server.
constexpr std::uint64_t kServers = 1024;

bool equals_nocase(std::string_view text, std::string_view lower) {
  return std::ranges::equal(text, lower, [](char a, char b) {
    return (a >= 'A' && a <= 'Z' ? static_cast<char>(a + 32) : a) == b;
  });
}

template <class T>
bool parse_number(std::string_view text, T& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return !text.empty() && error == std::errc() && end == text.data() + text.size();
}

// `count` keys from args[at + 1] on, where args[at] says how many.
void counted(Args args, std::size_t at, std::vector<std::string_view>& keys) {
  std::size_t count = 0;
  if (at >= args.size() || !parse_number(args[at], count)) return;
  for (std::size_t i = at + 1; i < args.size() && i - at <= count; ++i) keys.push_back(args[i]);
}

// Where the number of keys stands.
std::size_t count_at(std::string_view name) {
  struct Row {
    std::string_view name;
    std::size_t at;
  };
  static constexpr Row kRows[] = {{"blmpop", 2},     {"bzmpop", 2},     {"eval", 2},
                                  {"eval_ro", 2},    {"evalsha", 2},    {"evalsha_ro", 2},
                                  {"fcall", 2},      {"fcall_ro", 2},   {"lmpop", 1},
                                  {"sintercard", 1}, {"zdiff", 1},      {"zdiffstore", 2},
                                  {"zinter", 1},     {"zintercard", 1}, {"zinterstore", 2},
                                  {"zmpop", 1},      {"zunion", 1},     {"zunionstore", 2}};
  for (const Row& row : kRows)
    if (row.name == name) return row.at;
  return 0;
}

// The keys of XREAD and XREADGROUP: the first half of what stands behind STREAMS.
void stream_keys(Args args, std::vector<std::string_view>& keys) {
  for (std::size_t i = 1; i < args.size(); ++i) {
    if (!equals_nocase(args[i], "streams")) continue;
    const std::size_t count = (args.size() - i - 1) / 2;
    for (std::size_t k = 1; k <= count; ++k) keys.push_back(args[i + k]);
    return;
  }
}

// The key behind each of these options.
void option_keys(Args args, std::initializer_list<std::string_view> options,
                 std::vector<std::string_view>& keys) {
  for (std::size_t i = 2; i + 1 < args.size(); ++i)
    if (std::ranges::any_of(options, [&](auto option) { return equals_nocase(args[i], option); }))
      keys.push_back(args[i + 1]);
}

Answer whole(std::string bytes) { return Answer{std::move(bytes)}; }

std::unexpected<Error> not_understood(std::string_view command) {
  return fail(ErrorCode::internal,
              fmt::format("the engine's answer to {} is not what it gives", command), "redis");
}

// The text of a bulk or simple string.
std::optional<std::string> text_of(std::string_view element) {
  std::size_t consumed = 0;
  std::string problem;
  auto reply = wire::parse_reply(element, consumed, problem, kNoLimits);
  if (!reply ||
      (reply->type != wire::Reply::Type::bulk && reply->type != wire::Reply::Type::simple))
    return std::nullopt;
  return std::move(reply->text);
}

// Runs calls side by side; the results are parallel to them.
struct Call {
  Route route;
  std::string bytes;
  Result<Answer> answer = fail(ErrorCode::internal, "not asked");
};
Task<void> run_call(Client& client, Call& call, TimeUs deadline) {
  call.answer = co_await client.forward(std::move(call.route), std::move(call.bytes), deadline);
}
Task<void> run_calls(Client& client, std::vector<Call>& calls, TimeUs deadline) {
  TaskGroup group;
  for (Call& call : calls) group.spawn(run_call(client, call, deadline));
  group.stop();
  co_await group.join();
}

std::string encode(const std::vector<std::string>& args) {
  const std::vector<std::string_view> views(args.begin(), args.end());
  std::string bytes;
  wire::write_command(bytes, views);
  return bytes;
}

}  // namespace

// ---- what commands are ----

bool movable_keys(std::string_view name, Args args, std::vector<std::string_view>& keys) {
  if (const std::size_t at = count_at(name); at != 0) {
    if (name.ends_with("store")) keys.push_back(args[1]);
    counted(args, at, keys);
    return true;
  }
  if (name == "xread" || name == "xreadgroup") {
    stream_keys(args, keys);
    return true;
  }
  if (name == "sort" || name == "sort_ro") {
    keys.push_back(args[1]);
    option_keys(args, {"store"}, keys);
    return true;
  }
  if (name.starts_with("georadius")) {
    keys.push_back(args[1]);
    option_keys(args, {"store", "storedist"}, keys);
    return true;
  }
  return false;
}

bool waits(std::string_view name, Args args) {
  if (name != "xread" && name != "xreadgroup") return true;
  for (const std::string_view arg : args) {
    if (equals_nocase(arg, "block")) return true;
    if (equals_nocase(arg, "streams")) break;
  }
  return false;
}

std::vector<CommandInfo> parse_command_info(const wire::Reply& reply) {
  std::vector<CommandInfo> all;
  const auto add = [&](const wire::Reply& row, auto& self) -> void {
    if (row.elements.size() < 6) return;
    CommandInfo info{.name = row.elements[0].text};
    const auto number = [&](std::size_t i) { return static_cast<int>(row.elements[i].integer); };
    info.arity = number(1);
    info.writes = true;
    for (const wire::Reply& flag : row.elements[2].elements) {
      info.writes &= flag.text != "readonly";
      info.blocking |= flag.text == "blocking";
      info.movable |= flag.text == "movablekeys";
      info.admin |= flag.text == "admin";
    }
    info.first_key = number(3);
    info.last_key = number(4);
    info.key_step = number(5);
    info.container = row.elements.size() > 9 && !row.elements[9].elements.empty();
    all.push_back(std::move(info));
    if (row.elements.size() > 9)
      for (const wire::Reply& sub : row.elements[9].elements) self(sub, self);
  };
  for (const wire::Reply& row : reply.elements) add(row, add);
  return all;
}

std::vector<std::string_view> elements_of(std::string_view reply) {
  std::vector<std::string_view> elements;
  const std::size_t header = reply.find("\r\n");
  if (header == std::string_view::npos || header < 2 || reply[1] == '-') return elements;
  if (reply[0] != '*' && reply[0] != '~' && reply[0] != '>') return elements;
  reply.remove_prefix(header + 2);
  wire::ReplyScanner scanner(kNoLimits);
  while (!reply.empty() && scanner.next(reply) == wire::ReplyScanner::Status::complete) {
    elements.push_back(reply.substr(0, scanner.consumed()));
    reply.remove_prefix(scanner.consumed());
  }
  return elements;
}

// ---- one command ----

std::optional<std::uint32_t> Plain::slot(std::span<const std::string_view> keys) const {
  if (keys.empty() || !client_.cluster()) return Route::kAnySlot;
  const std::uint32_t slot = slot_of(keys[0]);
  for (const std::string_view key : keys.subspan(1))
    if (slot_of(key) != slot) return std::nullopt;
  return slot;
}

Task<Result<Answer>> Plain::call(std::uint32_t slot, int protocol, std::vector<std::string> args) {
  Route route{.slot = slot, .node = {}, .protocol = protocol};
  auto answer = co_await client_.forward(std::move(route), encode(args), deadline());
  co_return answer;
}

Task<Result<Answer>> Plain::call_node(std::string node, int protocol,
                                      std::vector<std::string> args) {
  Route route{.node = std::move(node), .protocol = protocol};
  auto answer = co_await client_.forward(std::move(route), encode(args), deadline());
  co_return answer;
}

Task<Result<std::vector<CommandInfo>>> Plain::info(std::string name) {
  std::vector<std::string> args{"COMMAND", "INFO", std::move(name)};
  Result<Answer> answer = co_await call(Route::kAnySlot, 3, std::move(args));
  if (!answer) co_return std::unexpected(answer.error());
  if (answer->is_error()) co_return std::vector<CommandInfo>{};
  co_return parse_command_info(answer->parse());
}

Task<Result<std::vector<std::string>>> Plain::ask_keys(std::vector<std::string> args) {
  std::vector<std::string> ask{"COMMAND", "GETKEYS"};
  ask.insert(ask.end(), args.begin(), args.end());
  Result<Answer> answer = co_await call(Route::kAnySlot, 3, std::move(ask));
  if (!answer) co_return std::unexpected(answer.error());
  std::vector<std::string> keys;
  if (answer->is_error()) co_return keys;  // it has none, or is malformed: the server will say so
  for (const std::string_view element : elements_of(answer->bytes))
    if (auto key = text_of(element)) keys.push_back(std::move(*key));
  co_return keys;
}

// ---- several servers ----

std::vector<std::string> Plain::primaries() const {
  std::vector<std::string> all;
  for (const ServerInfo& node : client_.nodes())
    if (node.primary) all.push_back(node.address);
  std::ranges::sort(all);
  return all;
}

bool Plain::splits(std::string_view name) {
  static constexpr std::string_view kNames[] = {"mget", "mset", "del", "unlink", "exists", "touch"};
  return std::ranges::find(kNames, name) != std::end(kNames);
}

namespace {

// The pieces of one command, one for each slot, and which of its keys each has.
struct Pieces {
  std::vector<Call> calls;
  std::vector<std::vector<std::size_t>> keys;  // parallel to calls
};

Pieces cut(int protocol, const std::vector<std::string>& args, std::size_t step) {
  std::map<std::uint32_t, std::vector<std::size_t>> by_slot;
  for (std::size_t i = 1; i < args.size(); i += step)
    by_slot[slot_of(args[i])].push_back((i - 1) / step);
  Pieces pieces;
  for (auto& [slot, keys] : by_slot) {
    std::vector<std::string> part{args[0]};
    for (const std::size_t key : keys)
      for (std::size_t i = 0; i < step && 1 + key * step + i < args.size(); ++i)
        part.push_back(args[1 + key * step + i]);
    pieces.calls.push_back(
        {.route = {.slot = slot, .node = {}, .protocol = protocol}, .bytes = encode(part)});
    pieces.keys.push_back(std::move(keys));
  }
  return pieces;
}

}  // namespace

Task<Result<Answer>> Plain::split(int protocol, std::vector<std::string> args) {
  const bool values = equals_nocase(args[0], "mget");
  const bool sets = equals_nocase(args[0], "mset");
  Pieces pieces = cut(protocol, args, sets ? 2 : 1);
  co_await run_calls(client_, pieces.calls, deadline());
  std::int64_t sum = 0;
  std::vector<std::string_view> found(args.size() - 1);
  for (std::size_t i = 0; i < pieces.calls.size(); ++i) {
    Result<Answer>& answer = pieces.calls[i].answer;
    if (!answer || answer->is_error()) co_return std::move(answer);
    if (values) {
      const auto elements = elements_of(answer->bytes);
      if (elements.size() != pieces.keys[i].size()) co_return not_understood("MGET");
      for (std::size_t k = 0; k < elements.size(); ++k) found[pieces.keys[i][k]] = elements[k];
    } else if (!sets) {
      std::int64_t n = 0;
      const std::string_view bytes = answer->bytes;
      if (bytes.size() < 4 || !parse_number(bytes.substr(1, bytes.size() - 3), n))
        co_return not_understood(args[0]);
      sum += n;
    }
  }
  if (sets) co_return whole("+OK\r\n");
  if (!values) co_return whole(fmt::format(":{}\r\n", sum));
  std::string out = fmt::format("*{}\r\n", found.size());
  for (const std::string_view value : found) out += value;
  co_return whole(std::move(out));
}

Task<Result<Answer>> Plain::scan(int protocol, std::vector<std::string> args) {
  const std::vector<std::string> nodes = primaries();
  std::uint64_t cursor = 0;
  // What is wrong with it, the server says.
  const bool valid = args.size() > 1 && parse_number(args[1], cursor);
  std::size_t node = 0;
  if (valid && cluster()) {
    node = cursor % kServers;
    args[1] = std::to_string(cursor / kServers);
  }
  if (node >= nodes.size())
    co_return nodes.empty() ? Result<Answer>(fail(ErrorCode::engine_down, "no primary is known"))
                            : Result<Answer>(whole("*2\r\n$1\r\n0\r\n*0\r\n"));
  Result<Answer> answer = co_await call_node(nodes[node], protocol, args);
  if (!answer || answer->is_error()) co_return answer;
  const auto parts = elements_of(answer->bytes);
  const auto next = parts.size() == 2 ? text_of(parts[0]) : std::nullopt;
  if (!next || !parse_number(*next, cursor)) co_return not_understood("SCAN");
  if (cluster()) {
    if (cursor == 0 && ++node == nodes.size()) node = 0;
    cursor = cursor * kServers + node;
  }
  std::size_t count = 0;
  std::string shown;
  for (const std::string_view element : elements_of(parts[1])) {
    const auto key = text_of(element);
    if (key && internal(*key)) continue;
    ++count;
    shown += element;
  }
  const std::string text = std::to_string(cursor);
  co_return whole(fmt::format("*2\r\n${}\r\n{}\r\n*{}\r\n{}", text.size(), text, count, shown));
}

Task<Result<Answer>> Plain::keys(int protocol, std::vector<std::string> args) {
  std::vector<Call> calls;
  for (const std::string& node : primaries())
    calls.push_back({.route = {.node = node, .protocol = protocol}, .bytes = encode(args)});
  co_await run_calls(client_, calls, deadline());
  std::size_t count = 0;
  std::string shown;
  for (Call& call : calls) {
    if (!call.answer || call.answer->is_error()) co_return std::move(call.answer);
    for (const std::string_view element : elements_of(call.answer->bytes)) {
      const auto key = text_of(element);
      if (key && internal(*key)) continue;
      ++count;
      shown += element;
    }
  }
  co_return whole(fmt::format("*{}\r\n{}", count, shown));
}

Task<Result<Answer>> Plain::random_key(int protocol) {
  constexpr int kTries =
      100;  // where nearly all keys are Larder's own, it may say that there are none
  const std::vector<std::string> nodes = primaries();
  static std::atomic<unsigned> turn = 0;
  const unsigned first = turn.fetch_add(1, std::memory_order_relaxed);
  Result<Answer> answer = fail(ErrorCode::engine_down, "no primary is known");
  for (int i = 0; i < kTries && !nodes.empty(); ++i) {
    std::vector<std::string> args{"RANDOMKEY"};
    const std::size_t node = (first + static_cast<unsigned>(i)) % nodes.size();
    answer = co_await call_node(nodes[node], protocol, std::move(args));
    if (!answer || answer->is_error()) co_return answer;
    const auto key = text_of(answer->bytes);
    if (key && !internal(*key)) co_return answer;
    if (!key && nodes.size() == 1) co_return answer;
  }
  if (answer) answer = whole(protocol == 3 ? "_\r\n" : "$-1\r\n");
  co_return answer;
}

Task<Result<Answer>> Plain::database_size(int protocol) {
  std::vector<Call> calls;
  for (const std::string& node : primaries())
    calls.push_back({.route = {.node = node, .protocol = protocol}, .bytes = encode({"DBSIZE"})});
  co_await run_calls(client_, calls, deadline());
  std::int64_t sum = 0;
  for (Call& call : calls) {
    if (!call.answer || call.answer->is_error()) co_return std::move(call.answer);
    sum += call.answer->parse().integer;
  }
  co_return whole(fmt::format(":{}\r\n", sum));
}

Task<Result<Answer>> Plain::everywhere(int protocol, std::vector<std::string> args) {
  std::vector<Call> calls;
  for (const std::string& node : primaries())
    calls.push_back({.route = {.node = node, .protocol = protocol}, .bytes = encode(args)});
  if (calls.empty()) co_return fail(ErrorCode::engine_down, "no primary is known");
  co_await run_calls(client_, calls, deadline());
  for (Call& call : calls)
    if (!call.answer || call.answer->is_error()) co_return std::move(call.answer);
  co_return std::move(calls.back().answer);
}

Task<Result<void>> Plain::remove_all() {
  constexpr std::size_t kAtOnce = 1'000;
  const std::vector<std::string> nodes = primaries();
  if (nodes.empty()) co_return fail(ErrorCode::engine_down, "no primary is known");
  for (const std::string& node : nodes) {
    std::string cursor = "0";
    do {
      std::vector<std::string> scan{"SCAN", cursor, "COUNT", std::to_string(kAtOnce)};
      Result<Answer> answer = co_await call_node(node, 3, std::move(scan));
      if (!answer) co_return std::unexpected(answer.error());
      const auto parts = elements_of(answer->bytes);
      const auto next = parts.size() == 2 ? text_of(parts[0]) : std::nullopt;
      if (!next) co_return not_understood("SCAN");
      // In a cluster the keys of one command share a slot: many commands, in flight together.
      std::vector<Call> calls;
      std::vector<std::string> together{"UNLINK"};
      for (const std::string_view element : elements_of(parts[1])) {
        auto key = text_of(element);
        if (!key || internal(*key)) continue;
        if (cluster())
          calls.push_back({.route = {.slot = slot_of(*key), .node = {}},
                           .bytes = encode({"UNLINK", std::move(*key)})});
        else
          together.push_back(std::move(*key));
      }
      if (together.size() > 1)
        calls.push_back({.route = {.node = node}, .bytes = encode(together)});
      co_await run_calls(client_, calls, deadline());
      for (const Call& call : calls) {
        if (!call.answer) co_return std::unexpected(call.answer.error());
        if (call.answer->is_error())
          co_return fail(ErrorCode::engine_down, std::string(call.answer->error()), "redis");
      }
      cursor = *next;
    } while (cursor != "0");
  }
  co_return Result<void>{};
}

}  // namespace larder::engine::redis
