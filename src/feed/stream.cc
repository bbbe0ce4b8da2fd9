#include "feed/stream.h"

#include <algorithm>
#include <iterator>

namespace larder::feed {
namespace {

using engine::redis::Answer;
using engine::redis::Client;

constexpr std::size_t kBatch = 1000;
constexpr DurationUs kCallTimeout = 5 * kSecond;
// How long a read waits in the server for an entry; the answer may take a little longer.
constexpr DurationUs kBlock = 5 * kSecond;

// Sets the position unless the one that is there is further on. ARGV: the position, "1" to go back.
constexpr std::string_view kSave = R"lua(
local function before(a, b)
  if #a ~= #b then return #a < #b end
  return a < b
end
local had = redis.call('GET', KEYS[1])
if had and ARGV[2] == '0' then
  local ms, seq = string.match(had, '^(%d+)-(%d+)')
  local new_ms, new_seq = string.match(ARGV[1], '^(%d+)-(%d+)')
  if ms and (before(new_ms, ms) or (new_ms == ms and before(new_seq, seq))) then return 0 end
end
redis.call('SET', KEYS[1], ARGV[1])
return 1
)lua";

std::string command(std::initializer_list<std::string_view> words) {
  const std::vector<std::string_view> args(words);
  std::string out;
  wire::write_command(out, args);
  return out;
}

TimeUs deadline(DurationUs within) { return Loop::current()->now_us() + within; }

Error engine_error(const Answer& answer) {
  return {
      .code = ErrorCode::engine_down, .message = std::string(answer.error()), .origin = "redis"};
}

}  // namespace

StreamFeed::StreamFeed(const Spec& spec, std::string position_key, Client& client,
                       const Actions& actions, obs::Registry& metrics, const Log& log)
    : spec_(spec),
      position_key_(std::move(position_key)),
      client_(client),
      metrics_(metrics),
      intake_(spec, actions, metrics, log),
      say_(log) {
  metrics_.callback(
      obs::Registry::Kind::gauge, "larder_feed_up", {{"feed", spec.name}},
      "1 while a feed hears what its application says",
      [this] { return up_.load(std::memory_order_relaxed) ? 1.0 : 0.0; }, this);
}

StreamFeed::~StreamFeed() { metrics_.remove_callbacks(this); }

void StreamFeed::wake() {
  if (connection_) connection_->shutdown();
}

Task<void> StreamFeed::run(TaskGroup& group) {
  unsigned attempt = 0;
  while (!group.stopping()) {
    Result<void> served = co_await load_position();
    if (served) {
      served = co_await serve(group);
      if (up_.exchange(false)) attempt = 0;
    }
    connection_.reset();
    if (group.stopping()) co_return;
    if (!served)
      say_(Loop::current()->now_us(),
           fmt::format("feed {}: stream {} cannot be read now: {}", spec_.name, spec_.stream,
                       to_string(served.error())));
    const bool go_on = co_await Intake::pause(group, attempt++);
    if (!go_on) co_return;
  }
}

Task<Result<void>> StreamFeed::load_position() {
  if (loaded_) co_return Result<void>{};
  const engine::redis::Route route{.slot = engine::redis::slot_of(position_key_),
                                   .repeatable = true};
  std::vector<std::string> get{"GET", position_key_};
  Result<Answer> answer = co_await client_.call(route, std::move(get), deadline(kCallTimeout));
  if (!answer) co_return std::unexpected(answer.error());
  if (answer->is_error()) co_return std::unexpected(engine_error(*answer));
  const wire::Reply reply = answer->parse();
  if (reply.type != wire::Reply::Type::null) {
    cursor_ = parse_cursor(reply.text);
    if (!cursor_)
      intake_.say(fmt::format("key {} holds no position: it begins anew", position_key_));
  }
  loaded_ = true;
  co_return Result<void>{};
}

// On one connection, until it fails.
Task<Result<void>> StreamFeed::serve(TaskGroup& group) {
  const engine::redis::Route route{.slot = engine::redis::slot_of(spec_.stream)};
  auto connection = co_await client_.dedicate(route, deadline(kCallTimeout));
  if (!connection) co_return std::unexpected(connection.error());
  connection_ = std::move(*connection);
  while (!group.stopping()) {
    Result<Batch> batch = co_await read_batch();
    if (!batch) co_return std::unexpected(batch.error());
    up_ = true;
    const bool go_on = co_await apply(group, *batch);
    if (!go_on) break;
    if (batch->entries.size() == kBatch) continue;
    Result<void> waited = co_await wait_for_more();
    if (!waited) co_return waited;
  }
  co_return Result<void>{};
}

Task<Result<wire::Reply>> StreamFeed::receive(DurationUs within) {
  Result<Answer> answer = co_await connection_->receive(deadline(within));
  if (!answer) co_return std::unexpected(answer.error());
  if (answer->is_error()) co_return std::unexpected(engine_error(*answer));
  co_return answer->parse();
}

// The stream's state and what follows the position, of one instant.
Task<Result<StreamFeed::Batch>> StreamFeed::read_batch() {
  // Without a position nothing is read: it begins at the end.
  const std::string after = cursor_ ? to_string(cursor_->at) : "$";
  const std::string most = std::to_string(kBatch);
  std::string bytes = command({"MULTI"}) + command({"XINFO", "STREAM", spec_.stream}) +
                      command({"XREAD", "COUNT", most, "STREAMS", spec_.stream, after}) +
                      command({"EXEC"});
  Result<void> sent = co_await connection_->send(std::move(bytes));
  if (!sent) co_return std::unexpected(sent.error());
  wire::Reply last;
  for (int i = 0; i < 4; ++i) {
    Result<wire::Reply> reply = co_await receive(kCallTimeout);
    if (!reply) co_return std::unexpected(reply.error());
    last = std::move(*reply);
  }
  if (last.type != wire::Reply::Type::array || last.elements.size() != 2)
    co_return fail(ErrorCode::engine_down, "the answer to EXEC cannot be read");
  auto state = stream_state(last.elements[0]);
  if (!state) co_return std::unexpected(state.error());
  auto entries = stream_entries(last.elements[1]);
  if (!entries) co_return std::unexpected(entries.error());
  co_return Batch{.state = *state, .entries = std::move(*entries)};
}

// Until there is something behind the position, or for a while. What it is read_batch() reads.
Task<Result<void>> StreamFeed::wait_for_more() {
  const std::string after = to_string(cursor_->at);
  const std::string block = std::to_string(kBlock / kMillisecond);
  std::string bytes =
      command({"XREAD", "COUNT", "1", "BLOCK", block, "STREAMS", spec_.stream, after});
  Result<void> sent = co_await connection_->send(std::move(bytes));
  if (!sent) co_return sent;
  Result<wire::Reply> reply = co_await receive(kBlock + kCallTimeout);
  if (!reply) co_return std::unexpected(reply.error());
  co_return Result<void>{};
}

// What was loaded before the position was taken may be older than it.
Task<bool> StreamFeed::begin(TaskGroup& group, const StreamState& state) {
  cursor_ = end_of(state);
  const bool done = co_await intake_.everything(group, "begun");
  if (done) co_await save(true);
  co_return done;
}

Task<bool> StreamFeed::apply(TaskGroup& group, const Batch& batch) {
  if (!cursor_) {
    const bool begun = co_await begin(group, batch.state);
    co_return begun;
  }
  const EntryId last = batch.entries.empty() ? EntryId{} : batch.entries.back().id;
  const Advance step =
      advance(*cursor_, batch.state, batch.entries.size(), last, batch.entries.size() < kBatch);
  if (step.missed) {
    intake_.say(
        fmt::format("entries of stream {} went before they were read: all entries of its "
                    "caches go",
                    spec_.stream));
    const bool done = co_await intake_.everything(group, "missed");
    if (!done) co_return false;
  }
  Event all;
  std::uint64_t events = 0;
  const TimeUs now = Loop::current()->now_us();
  for (const StreamEntry& entry : batch.entries) {
    std::optional<Event> event = event_of(entry, now);
    if (!event) continue;
    ++events;
    std::ranges::move(event->keys, std::back_inserter(all.keys));
    std::ranges::move(event->tags, std::back_inserter(all.tags));
  }
  for (auto* names : {&all.keys, &all.tags}) {
    std::ranges::sort(*names);
    const auto repeated = std::ranges::unique(*names);
    names->erase(repeated.begin(), repeated.end());
  }
  const bool done = co_await intake_.apply(group, std::move(all.keys), std::move(all.tags));
  if (!done) co_return false;
  intake_.applied(events);
  const bool moved = *cursor_ != step.next;
  cursor_ = step.next;
  if (moved) co_await save(step.replaced);
  co_return true;
}

std::optional<Event> StreamFeed::event_of(const StreamEntry& entry, TimeUs now) {
  std::vector<Field> fields;
  fields.reserve(entry.fields.size());
  for (const auto& [name, value] : entry.fields) {
    if (name == spec_.field && !name.empty()) return intake_.read(value, now);
    fields.emplace_back(name, value);
  }
  if (spec_.field.empty()) return intake_.read(std::span<const Field>(fields), now);
  intake_.malformed(now, fmt::format("it has no field '{}'", spec_.field));
  return std::nullopt;
}

// A failure costs that a restart applies a few entries again; the next save makes up for it.
Task<void> StreamFeed::save(bool replaced) {
  static const Client::Script script = Client::script(kSave);
  std::vector<std::string> keys{position_key_};
  std::vector<std::string> args{to_string(*cursor_), replaced ? "1" : "0"};
  Result<Answer> answer =
      co_await client_.eval(script, std::move(keys), std::move(args), true, deadline(kCallTimeout));
  std::string why;
  if (!answer) why = to_string(answer.error());
  if (answer && answer->is_error()) why = std::string(answer->error());
  if (!why.empty())
    say_(Loop::current()->now_us(),
         fmt::format("feed {}: its position is not stored: {}", spec_.name, why));
}

}  // namespace larder::feed
