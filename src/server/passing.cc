// Plain commands on a Redis or Valkey engine: passed on as they came, their answers passed back.
//
// Consecutive ones of a pipeline are in the air together (fly, land). What needs a connection of
// its own (WATCH, EXEC, SELECT, a command that waits, channels, MONITOR) takes one from the
// client's bounded pool for as long as its state lasts.
#include <fmt/format.h>
#include <poll.h>

#include "server/session.h"

namespace larder::server {
namespace {

namespace redis = engine::redis;

constexpr std::size_t kFlightsAtOnce = 1'000;
constexpr std::size_t kFlyingBytes = 4 << 20;
// A waiting command looks up this often: has its client left, is the node stopping?
constexpr DurationUs kWaitSlice = 200 * kMillisecond;
constexpr std::string_view kCrossSlot = "CROSSSLOT Keys in request don't hash to the same slot";

std::string encoded(Args args) {
  std::string bytes;
  wire::write_command(bytes, args);
  return bytes;
}

std::string encoded(const std::vector<std::string>& words) {
  const std::vector<std::string_view> args(words.begin(), words.end());
  return encoded(Args(args));
}

std::optional<std::string_view> bulk_of(std::string_view element) {
  if (!element.starts_with('$') || element.starts_with("$-")) return std::nullopt;
  const std::size_t header = element.find("\r\n");
  return element.substr(header + 2, element.size() - header - 4);
}

}  // namespace

// ---- what a command names ----

// False: only the engine can tell.
bool Session::keys_of(const CommandRow& row, Args args, std::vector<std::string_view>& keys) {
  if ((row.flags & kPubSub) != 0 || (row.flags & kPassed) == 0 || (row.flags & kMovable) == 0) {
    append_keys(row, args, keys);
    return true;
  }
  return redis::movable_keys(row.name, args, keys);
}

bool Session::refuse_internal(std::string_view key) {
  if (!context_.passed->plain().internal(key)) return false;
  error(fmt::format("ERR '{}' is Larder's own: no client may name it", key.substr(0, 128)));
  return true;
}

const CommandRow* Session::find_row(Args args) const {
  const CommandRow* const row = table_.find(args[0]);
  if (context_.passed == nullptr || (row != nullptr && (row->flags & kEngine) == 0)) return row;
  return context_.passed->find(args);
}

// ---- in the air ----

// Starts a command whose answer is wanted only when the ones before it have theirs. False: it is
// not of this kind, run_now() decides.
bool Session::fly(Args args) {
  if (args.empty() || !authenticated_ || in_multi_ || reply_mode_ != ReplyMode::on ||
      own_ != nullptr || flights_.size() >= kFlightsAtOnce || flying_bytes_ >= kFlyingBytes)
    return false;
  if (writer_.protocol() == 2 && !ready_ && subscribed()) return false;
  const CommandRow* const row = find_row(args);
  if (row == nullptr || row->plain == nullptr || !row->arity_fits(args.size()) ||
      row->plain->whole_keyspace)
    return false;
  if ((row->flags & kBlocking) != 0 && redis::waits(row->name, args)) return false;
  keys_.clear();
  if (!keys_of(*row, args, keys_)) return false;
  Passed& passed = *context_.passed;
  for (const std::string_view key : keys_) {
    if ((row->flags & kPubSub) != 0) break;
    if (has_caches_ && context_.node->route(key).match != policy::Match::no)
      return row->verb == Verb::get && declared_flight(key);
    if (passed.plain().internal(key)) return false;
  }
  const auto slot = passed.plain().slot(keys_);
  if (!slot || (keys_.empty() && everywhere(*row, args))) return false;
  if (tracking_.caching && current_ != client_row_) tracking_.caching = false;
  current_ = row;
  if (tracking_.on) note_reads(*row, args, false);
  Flight& flight = flights_.emplace_back();
  flight.row = row;
  flight.slot = *slot;
  flight.place = sent_order_.add(keys_, row->plain->writes || (row->flags & kPubSub) != 0);
  if (row->plain->writes) {
    for (const std::string_view key : keys_)
      if (passed.near(key)) flight.keys.emplace_back(key);
    near_write_flies_ |= !flight.keys.empty();
  } else if ((row->verb == Verb::get || row->verb == Verb::mget) && near_flight(args, flight)) {
    return true;
  }
  flight.bytes = encoded(args);
  flying_bytes_ += flight.bytes.size();
  if (!flight_group_) flight_group_.emplace();
  flight_group_->spawn(run_flight(flight));
  return true;
}

// A near hit of a declared key between plain commands: those behind it need not wait for it.
bool Session::declared_flight(std::string_view key) {
  if (!ready_) return false;
  std::string answer;
  wire::Writer writer(answer, writer_.protocol());
  switch (context_.node->read_now(key, hash_bytes(key), now_,
                                  [&](std::string_view value) { writer.bulk(value); })) {
    case cache::Node::Quick::hit: break;
    case cache::Node::Quick::absent: writer.null(); break;
    case cache::Node::Quick::miss: return false;
  }
  current_ = get_row_;
  flights_.emplace_back().answer = redis::Answer{std::move(answer)};
  return true;
}

// Answers it from memory, or says what may be kept of its answer.
bool Session::near_flight(Args args, Flight& flight) {
  Passed& passed = *context_.passed;
  std::string answer;
  wire::Writer writer(answer, writer_.protocol());
  flight.many = flight.row->verb == Verb::mget;
  if (flight.many) writer.array(args.size() - 1);
  bool all = true;
  for (std::size_t i = 1; i < args.size(); ++i) {
    const std::string_view key = args[i];
    // Behind a write of this client's that is in the air, memory is not asked.
    const bool hit = !near_write_flies_ && passed.near(key) &&
                     context_.node->read_now(key, hash_bytes(key), now_,
                                             [&](std::string_view value) { writer.bulk(value); }) ==
                         cache::Node::Quick::hit;
    all &= hit;
    if (hit) continue;
    if (const auto ticket = passed.ticket(key))
      flight.near.push_back({std::string(key), *ticket, i - 1, 0});
  }
  if (!all) return false;
  flight.answer = redis::Answer{std::move(answer)};
  return true;
}

Task<void> Session::ask_life(Flight::Near& near, std::uint32_t slot) {
  redis::Plain& plain = context_.passed->plain();
  std::vector<std::string> args{"PTTL", near.key};
  const auto answer = co_await plain.call(slot, 3, std::move(args));
  near.life_ms = -2;
  if (!answer || !answer->bytes.starts_with(':')) co_return;
  std::from_chars(answer->bytes.data() + 1, answer->bytes.data() + answer->bytes.size(),
                  near.life_ms);
}

Task<void> Session::run_flight(Flight& flight) {
  flight.asked_at = monotonic_now_us();
  Passed& passed = *context_.passed;
  redis::Route route{
      .slot = flight.slot,
      .node = {},
      .protocol = writer_.protocol(),
      .overtaken = [this, place = flight.place] { return sent_order_.overtaken(place); }};
  std::optional<TaskGroup> lives;
  if (!flight.near.empty()) {
    lives.emplace();
    // Before the value: what is left of its life then is never more than what is left now.
    for (Flight::Near& near : flight.near) lives->spawn(ask_life(near, flight.slot));
  }
  flight.answer = co_await passed.plain().client().forward(
      std::move(route), std::move(flight.bytes), passed.plain().deadline());
  if (lives) {
    lives->stop();
    co_await lives->join();
    keep_near(flight);
  }
  if (!flight.keys.empty()) {
    const std::vector<std::string_view> keys(flight.keys.begin(), flight.keys.end());
    passed.written(keys);
  }
}

void Session::keep_near(const Flight& flight) {
  if (!flight.answer || flight.answer->is_error()) return;
  std::vector<std::string_view> elements{flight.answer->bytes};
  if (flight.many) elements = redis::elements_of(flight.answer->bytes);
  for (const Flight::Near& near : flight.near) {
    const std::size_t at = flight.many ? near.element : 0;
    const auto value = at < elements.size() ? bulk_of(elements[at]) : std::nullopt;
    if (value) context_.passed->fill(near.ticket, near.key, *value, flight.asked_at, near.life_ms);
  }
}

// Waits for everything that is in the air, and answers it in order.
Task<void> Session::land() {
  if (flight_group_) {
    flight_group_->stop();
    co_await flight_group_->join();
    flight_group_.reset();
  }
  for (Flight& flight : flights_) append_answer(flight.answer);
  flights_.clear();
  near_write_flies_ = false;
  sent_order_.clear();
  flying_bytes_ = 0;
  now_ = monotonic_now_us();
}

void Session::append_answer(const Result<redis::Answer>& answer) {
  if (!answer) return error(answer.error());
  if (answer->is_error()) context_.stats.errors.fetch_add(1, std::memory_order_relaxed);
  out_ += answer->bytes;
}

// ---- one at a time ----

Task<void> Session::pass_unlearned(Args args) {
  Passed& passed = *context_.passed;
  const auto known = co_await passed.learn(to_lower(args[0].substr(0, 64)));
  if (!known) {
    multi_failed_ |= in_multi_;
    error(known.error());
    co_return;
  }
  if (!*known) {
    multi_failed_ |= in_multi_;
    unknown_command(args);
    co_return;
  }
  if (!run_now(args)) co_await run_later(*current_, args);
}

// Commands of the engine that are about itself, and needed on each of its servers.
bool Session::everywhere(const CommandRow& row, Args args) const {
  if (!context_.passed->plain().cluster() || args.size() < 2) return false;
  static constexpr std::string_view kNames[] = {"script|load",    "script|flush",
                                                "function|load",  "function|delete",
                                                "function|flush", "function|restore"};
  return std::ranges::find(kNames, row.name) != std::end(kNames);
}

Task<void> Session::pass(const CommandRow& row, Args args) {
  Passed& passed = *context_.passed;
  redis::Plain& plain = passed.plain();
  // Of the engine as a whole, which nodes share: who says SHUTDOWN here means Larder.
  static constexpr std::string_view kRefused[] = {"sync",     "psync",     "replconf", "swapdb",
                                                  "shutdown", "replicaof", "slaveof",  "failover"};
  if (std::ranges::find(kRefused, row.name) != std::end(kRefused)) {
    error(
        fmt::format("ERR '{}' does not pass through Larder: use the engine's own port", row.name));
    co_return;
  }
  std::vector<std::string_view> keys;
  std::vector<std::string> asked;
  std::vector<std::string> words(args.begin(), args.end());
  if (!keys_of(row, args, keys)) {
    auto answer = co_await plain.ask_keys(words);
    if (!answer) {
      error(answer.error());
      co_return;
    }
    asked = std::move(*answer);
    keys.assign(asked.begin(), asked.end());
    if (!all_plain(row, keys)) co_return;
  }
  if (row.name == "monitor") {
    co_await start_monitor();
    co_return;
  }
  const auto slot = plain.slot(keys);
  const bool waits = (row.flags & kBlocking) != 0 && redis::waits(row.name, args);
  const int protocol = writer_.protocol();
  Result<redis::Answer> answer;
  if (own_ != nullptr && !(row.plain->whole_keyspace && own_->database == 0)) {
    answer = co_await over_own(encoded(args), waits);
  } else if (row.plain->whole_keyspace) {
    answer = co_await pass_keyspace(row, std::move(words));
  } else if (!slot && row.verb == Verb::mset && args.size() % 2 == 0) {
    wrong_arity(row.name);
    co_return;
  } else if (!slot && redis::Plain::splits(row.name)) {
    answer = co_await plain.split(protocol, std::move(words));
  } else if (!slot) {
    error(kCrossSlot);
    co_return;
  } else if (waits) {
    answer = co_await pass_waiting(*slot, encoded(args));
  } else if (everywhere(row, args)) {
    answer = co_await plain.everywhere(protocol, std::move(words));
  } else {
    answer = co_await plain.call(*slot, protocol, std::move(words));
  }
  if (row.plain->writes) passed.written(keys);
  append_answer(answer);
}

// Are they, by what the engine says? Else answers why not.
bool Session::all_plain(const CommandRow& row, std::span<const std::string_view> keys) {
  for (const std::string_view key : keys) {
    if (refuse_internal(key)) return false;
    int cache = -1;
    if (!route(key, cache)) return false;
    if (cache < 0) continue;
    refuse_declared(row, key, cache);
    return false;
  }
  return true;
}

Task<Result<redis::Answer>> Session::pass_keyspace(const CommandRow& row,
                                                   std::vector<std::string> words) {
  redis::Plain& plain = context_.passed->plain();
  const int protocol = writer_.protocol();
  if (row.name == "scan") return plain.scan(protocol, std::move(words));
  if (row.name == "keys") return plain.keys(protocol, std::move(words));
  if (row.name == "randomkey") return plain.random_key(protocol);
  return plain.database_size(protocol);
}

// FLUSHDB and FLUSHALL: plain keys one by one, so that Larder's own state stays.
Task<void> Session::pass_flush(Args args) {
  const bool mode = args.size() == 2 && (equals_ignoring_case(args[1], "async") ||
                                         equals_ignoring_case(args[1], "sync"));
  if (args.size() > 2 || (args.size() == 2 && !mode)) {
    error("ERR syntax error");
    co_return;
  }
  if (own_ != nullptr && own_->database != 0 && equals_ignoring_case(args[0], "flushdb")) {
    const auto answer = co_await over_own(encoded(args), false);
    append_answer(answer);
    co_return;
  }
  const auto removed = co_await context_.passed->plain().remove_all();
  context_.passed->flushed();
  if (context_.invalidator->table().active()) context_.invalidator->everything(peer_->id);
  if (removed)
    writer_.ok();
  else
    error(removed.error());
}

// An integer from the engine, for a part of a command's keys.
Task<Result<std::int64_t>> Session::pass_count(std::vector<std::string> words) {
  redis::Plain& plain = context_.passed->plain();
  const std::vector<std::string_view> views(words.begin(), words.end());
  const auto keys = std::span(views).subspan(1);
  for (const std::string_view key : keys)
    if (plain.internal(key))
      co_return fail(ErrorCode::syntax, fmt::format("'{}' is Larder's own", key.substr(0, 128)));
  const auto slot = plain.slot(keys);
  Result<redis::Answer> answer;
  if (own_ != nullptr)
    answer = co_await over_own(encoded(Args(views)), false);
  else if (slot)
    answer = co_await plain.call(*slot, 3, words);
  else
    answer = co_await plain.split(3, words);
  context_.passed->written(keys);
  if (!answer) co_return std::unexpected(answer.error());
  if (answer->is_error())
    co_return fail(ErrorCode::engine_down, std::string(answer->error()), "redis");
  co_return answer->parse().integer;
}

// The answers of an MGET, one by one, in the client's protocol.
Task<Result<std::vector<std::string>>> Session::pass_values(std::vector<std::string> keys) {
  redis::Plain& plain = context_.passed->plain();
  const std::vector<std::string_view> views(keys.begin(), keys.end());
  const auto slot = plain.slot(views);
  std::vector<std::string> words{"MGET"};
  words.insert(words.end(), keys.begin(), keys.end());
  Result<redis::Answer> answer;
  if (own_ != nullptr)
    answer = co_await over_own(encoded(words), false);
  else if (slot)
    answer = co_await plain.call(*slot, writer_.protocol(), std::move(words));
  else
    answer = co_await plain.split(writer_.protocol(), std::move(words));
  if (!answer) co_return std::unexpected(answer.error());
  const auto elements = redis::elements_of(answer->bytes);
  if (elements.size() != keys.size())
    co_return fail(ErrorCode::engine_down,
                   answer->is_error() ? std::string(answer->error()) : "no answer to MGET",
                   "redis");
  co_return std::vector<std::string>(elements.begin(), elements.end());
}

// ---- a connection of one's own ----

Task<Result<void>> Session::take_own(std::uint32_t slot, std::int64_t database) {
  redis::Plain& plain = context_.passed->plain();
  redis::Route route{.slot = slot, .node = {}, .protocol = writer_.protocol()};
  auto link = co_await plain.client().dedicate(std::move(route), plain.deadline());
  if (!link) co_return std::unexpected(link.error());
  own_ = std::make_unique<OwnLink>();
  own_->link = std::move(*link);
  update_ready();
  if (database == 0) co_return Result<void>{};
  const std::string number = std::to_string(database);
  const std::string_view select[] = {"SELECT", number};
  auto selected = co_await over_own(encoded(Args(select)), false);
  if (!selected) co_return std::unexpected(selected.error());
  own_->database = database;
  if (!selected->is_error()) co_return Result<void>{};
  drop_own();
  co_return fail(ErrorCode::syntax, std::string(selected->error().substr(4)));
}

// The next reply of a connection of one's own. `waits`: for as long as the client does.
Task<Result<redis::Answer>> Session::own_reply(redis::Dedicated& link, bool waits) {
  const TimeUs deadline = context_.passed->plain().deadline();
  for (;;) {
    TimeUs until = deadline;
    if (waits) until = monotonic_now_us() + kWaitSlice;
    auto answer = co_await link.receive(until);
    if (answer || !waits || answer.error().code != ErrorCode::timeout) co_return answer;
    pollfd look{.fd = peer_->fd, .events = POLLRDHUP, .revents = 0};
    const bool left = peer_->fd >= 0 && ::poll(&look, 1, 0) > 0;
    if (left || closing_ || context_.group->stopping()) {
      closing_ = true;
      co_return fail(ErrorCode::cancelled, "the connection ends");
    }
  }
}

Task<Result<redis::Answer>> Session::over_own(std::string bytes, bool waits) {
  const auto sent = co_await own_->link->send(std::move(bytes));
  if (!sent) {
    lose_own();
    co_return std::unexpected(sent.error());
  }
  auto answer = co_await own_reply(*own_->link, waits);
  if (!answer) lose_own();
  co_return answer;
}

Task<Result<redis::Answer>> Session::pass_waiting(std::uint32_t slot, std::string bytes) {
  redis::Plain& plain = context_.passed->plain();
  redis::Route route{.slot = slot, .node = {}, .protocol = writer_.protocol()};
  auto link = co_await plain.client().dedicate(std::move(route), plain.deadline());
  if (!link) co_return std::unexpected(link.error());
  const auto sent = co_await (*link)->send(std::move(bytes));
  if (!sent) co_return std::unexpected(sent.error());
  auto answer = co_await own_reply(**link, true);
  co_return answer;
}

Task<void> Session::pass_watch(Args args) {
  const Args keys = args.subspan(1);
  co_await forget_watches();
  if (!all_plain(*table_.find("watch"), keys)) co_return;
  const auto slot = context_.passed->plain().slot(keys);
  if (!slot) {
    error(kCrossSlot);
    co_return;
  }
  if (own_ == nullptr) {
    const auto taken = co_await take_own(*slot, 0);
    if (!taken) {
      error(taken.error());
      co_return;
    }
  }
  const auto answer = co_await over_own(encoded(args), false);
  if (own_ != nullptr) own_->watching = true;
  append_answer(answer);
}

Task<void> Session::pass_unwatch(Args args) {
  const auto answer = co_await over_own(encoded(args), false);
  if (own_ != nullptr) own_->watching = false;
  append_answer(answer);
}

// Clients that track are told of changes of plain keys, too, before they are told that they are.
Task<void> Session::pass_client(Args args) {
  const auto watched = co_await context_.passed->watch_for_clients();
  if (watched)
    client_tracking(args);
  else
    error(watched.error());
}

// Ends WATCH; a selected database stays.
void Session::release_own() {
  if (own_ == nullptr) return;
  if (own_->database == 0) return drop_own();
  own_->stale |= std::exchange(own_->watching, false);
}

Task<void> Session::forget_watches() {
  if (own_ == nullptr || !std::exchange(own_->stale, false)) co_return;
  const std::string_view unwatch[] = {"UNWATCH"};
  co_await over_own(encoded(Args(unwatch)), false);
}

// The engine's side is gone, and with it what it knew of this client: a client in another database,
// or one that watches, must not go on as if nothing had happened.
void Session::lose_own() {
  if (own_ != nullptr && (own_->database != 0 || own_->watching)) closing_ = true;
  drop_own();
}

void Session::drop_own() {
  own_.reset();
  update_ready();
}

Task<void> Session::pass_select(Args args) {
  std::int64_t index = 0;
  if (!parse_integer(args[1], index)) co_return;
  const bool watching = own_ != nullptr && own_->watching;
  if (context_.passed->plain().cluster() && index != 0) {
    error("ERR SELECT is not allowed in cluster mode");
    co_return;
  }
  if (index == 0 && !watching) {
    drop_own();
    writer_.ok();
    co_return;
  }
  if (own_ == nullptr) {
    const auto taken = co_await take_own(redis::Route::kAnySlot, index);
    if (taken)
      writer_.ok();
    else
      error(taken.error());
    co_return;
  }
  const auto answer = co_await over_own(encoded(args), false);
  if (own_ != nullptr && answer && !answer->is_error()) own_->database = index;
  append_answer(answer);
}

// The array of replies, as the engine gave it; null if a watched key had changed.
Task<Result<std::string>> Session::pass_transaction(std::vector<engine::QueuedCommand> commands) {
  std::string bytes;
  std::vector<std::string_view> args{"MULTI"};
  wire::write_command(bytes, args);
  std::vector<std::string_view> keys;
  std::vector<std::string_view> written;
  for (const engine::QueuedCommand& command : commands) {
    args.assign(command.args.begin(), command.args.end());
    wire::write_command(bytes, args);
    const CommandRow* const row = find_row(args);
    const std::size_t before = keys.size();
    if (!keys_of(*row, args, keys)) continue;
    if (row->plain->writes) written.insert(written.end(), keys.begin() + before, keys.end());
    if (tracking_.on) note_reads(*row, args, false);
  }
  args.assign({"EXEC"});
  wire::write_command(bytes, args);
  const auto slot = context_.passed->plain().slot(keys);
  if (!slot) co_return fail(ErrorCode::syntax, std::string(kCrossSlot));
  co_await forget_watches();
  if (own_ == nullptr) {
    const auto taken = co_await take_own(*slot, 0);
    if (!taken) co_return std::unexpected(taken.error());
  }
  own_->watching = false;  // whatever comes of it
  Result<redis::Answer> answer = co_await over_own(std::move(bytes), false);
  for (std::size_t i = 0; answer && i <= commands.size(); ++i)
    answer = co_await own_reply(*own_->link, false);
  context_.passed->written(written);
  if (!answer) {
    lose_own();
    co_return std::unexpected(answer.error());
  }
  release_own();
  co_return std::move(answer->bytes);
}

// ---- channels and MONITOR ----

namespace {

// Is it the answer to a command, rather than a message?
bool confirms(std::string_view bytes) {
  if (bytes.starts_with('-') || bytes.starts_with('+')) return true;
  const auto parts = redis::elements_of(bytes);
  if (parts.empty()) return false;
  const auto kind = bulk_of(parts[0]);
  return kind && kind->ends_with("subscribe");
}

}  // namespace

// Everything that comes over the connection goes on to the client as pushes.
Task<void> Session::run_relay(std::shared_ptr<Relay> relay, std::shared_ptr<Peer> peer) {
  for (;;) {
    const auto answer = co_await relay->link->receive(kNever);
    if (!answer) break;
    const bool monitored = answer->bytes.starts_with('+') && !answer->bytes.starts_with("+OK");
    if (!monitored && confirms(answer->bytes)) ++relay->confirmed;
    peer->push(answer->bytes);
    if (relay->news) std::exchange(relay->news, nullptr)->notify();
  }
  // Messages may be lost from here on: the client has to know.
  if (!relay->over) peer->kill();
  relay->over = true;
  if (relay->news) std::exchange(relay->news, nullptr)->notify();
}

void Session::end_relay() {
  if (relay_ == nullptr) return;
  relay_->over = true;
  relay_->link->shutdown();
  relay_.reset();
}

// Sends it, and waits until `answers` have come: they are in out_ then, in their place.
Task<void> Session::over_relay(std::string bytes, int answers, std::uint32_t slot) {
  if (relay_ == nullptr) {
    redis::Plain& plain = context_.passed->plain();
    redis::Route route{.slot = slot, .node = {}, .protocol = writer_.protocol()};
    auto link = co_await plain.client().dedicate(std::move(route), plain.deadline());
    if (!link) {
      error(link.error());
      co_return;
    }
    const auto relay = std::make_shared<Relay>();
    relay->link = std::move(*link);
    if (!context_.group->spawn(run_relay(relay, peer_))) {
      error(Error{ErrorCode::cancelled, "Larder is shutting down", {}});
      co_return;
    }
    relay_ = relay;
  }
  const std::shared_ptr<Relay> to = relay_;
  const int wanted = to->confirmed + answers;
  const auto sent = co_await to->link->send(std::move(bytes));
  const TimeUs deadline = context_.passed->plain().deadline();
  while (sent && to->confirmed < wanted && !to->over && monotonic_now_us() < deadline) {
    const auto news = to->news = std::make_shared<Waiters>();
    co_await news->wait_until(deadline);
  }
  if (to->confirmed < wanted) {
    closing_ = true;  // it would take what comes later for something else
    error("LARDER_ENGINE_DOWN the engine does not answer to a subscription");
  }
  take_pushes();
}

Task<void> Session::start_monitor() {
  const std::string_view monitor[] = {"MONITOR"};
  co_await over_relay(encoded(Args(monitor)), 1, redis::Route::kAnySlot);
}

Task<void> Session::pass_subscribe(Args args) {
  const ChannelKind kind = channel_kind(args[0]);
  auto& names = subscriptions_[static_cast<std::size_t>(kind)];
  const bool leaves =
      equals_ignoring_case(args[0].substr(args[0].size() == 11 ? 0 : 1), "unsubscribe");
  int answers = static_cast<int>(args.size()) - 1;
  if (leaves) {
    // The channel of invalidations is Larder's own, and not known to the engine.
    if (names.contains(kInvalidations) && (args.size() == 1 || args[1] == kInvalidations)) {
      const std::string_view own[] = {args[0], kInvalidations};
      unsubscribe(kind, own);
      if (args.size() == 2 || names.empty()) co_return note_subscriptions();
    }
    if (args.size() == 1) answers = std::max(static_cast<int>(names.size()), 1);
    if (args.size() == 1) names.clear();
    for (const std::string_view name : args.subspan(1)) names.erase(std::string(name));
  } else {
    if (names.size() + args.size() > context_.limits.subscriptions) {
      error(fmt::format("LARDER_OVERLOADED at most {} channels a client",
                        context_.limits.subscriptions));
      co_return;
    }
    for (const std::string_view name : args.subspan(1)) names.emplace(name);
  }
  std::uint32_t slot = redis::Route::kAnySlot;
  if (kind == ChannelKind::shard && args.size() > 1) slot = redis::slot_of(args[1]);
  co_await over_relay(encoded(args), answers, slot);
  if (!subscribed()) end_relay();
  note_subscriptions();
}

bool Session::subscribed() const {
  return std::ranges::any_of(subscriptions_, [](const auto& names) { return !names.empty(); });
}

}  // namespace larder::server
