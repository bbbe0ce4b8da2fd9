#include "source/postgres/feed_session.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace larder::source::postgres {
namespace {

constexpr DurationUs kPatience = 10 * kSecond;         // of a statement, and of connecting
constexpr DurationUs kSlotPatience = 600 * kSecond;    // it waits for the transactions that run
constexpr DurationUs kSlowSlot = 5 * kSecond;          // after which one is told what it waits for
constexpr DurationUs kLookAgain = 500 * kMillisecond;  // is the slot free?
constexpr DurationUs kQuickLook = 20 * kMillisecond;
constexpr int kQuickLooks = 20;
constexpr DurationUs kStatusEvery = kSecond;
constexpr DurationUs kAskAfter = 10 * kSecond;  // of silence: are you there?
constexpr DurationUs kLostAfter = 30 * kSecond;
constexpr DurationUs kRefusedPause = 50 * kMillisecond;
constexpr std::size_t kMostRows = 1'000;    // in a batch, but for one large transaction
constexpr std::size_t kMostBlocks = 1'000;  // read before what is ready is delivered
constexpr int kMostOrders = 16;             // in a row

std::string_view text(const Reply& reply, int column) {
  return reply.value(0, column).value_or("");
}
template <class Number>
Number number(std::string_view digits) {
  Number value = 0;
  std::from_chars(digits.data(), digits.data() + digits.size(), value);
  return value;
}

}  // namespace

// ---- Turn ----

Task<void> Turn::take() {
  while (taken_) {
    const auto turn = std::make_shared<Waiters>();
    waiting_.push_back(turn);
    co_await turn->wait();
  }
  taken_ = true;
}

void Turn::give() {
  taken_ = false;
  if (waiting_.empty()) return;
  const auto next = std::move(waiting_.front());
  waiting_.pop_front();
  next->notify();
}

// ---- the period ----

Task<Result<void>> FeedSession::run() {
  Result<void> done = co_await open();
  if (done) {
    TaskGroup helpers;
    helpers.spawn(beat(helpers));
    done = co_await hello();
    if (done) {
      state_.note("");
      done = co_await read();
    }
    helpers.stop();
    sql_->interrupt();
    co_await helpers.join();
  }
  if (failure_) co_return std::unexpected(*failure_);
  co_return done;
}

void FeedSession::interrupt() {
  interrupted_ = true;
  if (sql_) sql_->interrupt();
  if (stream_) stream_->interrupt();
}

void FeedSession::fail_with(Error error) {
  if (!failure_) failure_ = std::move(error);
  if (stream_) stream_->interrupt();
}

Result<void> FeedSession::going_on() const {
  if (interrupted_ || group_.stopping())
    return fail(ErrorCode::cancelled, "Larder is shutting down");
  return failure_ ? std::unexpected(*failure_) : Result<void>{};
}

Task<Result<Reply>> FeedSession::ask(Command command) {
  co_await turn_.take();
  const TimeUs deadline = monotonic_now_us() + kPatience;
  auto reply = co_await sql_->run_one(std::move(command), deadline);
  turn_.give();
  co_return reply;
}

// ---- open ----

Task<Result<void>> FeedSession::open() {
  Result<void> done = co_await open_sql();
  if (done) done = co_await look_at_tables();
  if (done && !state_.fleet()) done = co_await open_stream();
  while (done) {
    done = co_await take_slot();
    if (done && !stream_) done = co_await open_stream();
    if (!done) break;
    const auto started = co_await start();
    if (!started) co_return std::unexpected(started.error());
    if (*started) break;  // else another node was faster
  }
  co_return done;
}

Task<Result<void>> FeedSession::open_sql() {
  Connection::Settings settings;
  auto connected = co_await Connection::connect(state_.options.url, std::move(settings),
                                                monotonic_now_us() + kPatience);
  if (!connected) co_return std::unexpected(connected.error());
  sql_ = std::move(*connected);
  if (auto on = going_on(); !on) co_return on;
  // What is written to the log has to get to the disk soon, or the walsender does not see it; no
  // standby need have it.
  std::vector<Command> settle;
  for (const char* sql : {"SET synchronous_commit = local", "SET statement_timeout = 0",
                          "SET lock_timeout = 0", "SET idle_in_transaction_session_timeout = 0"})
    settle.push_back(Command::query(sql));
  const auto settled = co_await sql_->run(std::move(settle), monotonic_now_us() + kPatience);
  if (!settled) co_return std::unexpected(settled.error());
  const auto identity = co_await sql_->identify(monotonic_now_us() + kPatience);
  if (!identity) co_return std::unexpected(identity.error());
  if (identity->in_recovery)
    co_return fail(ErrorCode::source_down,
                   fmt::format("{} is a standby: name the primary in the url", sql_->name()),
                   "postgres");
  if (const std::uint64_t id = identity->source_id(); id != state_.source_id) {
    state_.source_id = id;
    state_.position.reset();  // of another log
  }
  co_return Result<void>{};
}

Task<Result<void>> FeedSession::look_at_tables() {
  co_await turn_.take();
  PrepareOptions options = state_.prepare_options();
  auto found = co_await examine(*sql_, std::move(options), monotonic_now_us() + kPatience);
  turn_.give();
  if (!found) co_return std::unexpected(found.error());
  if (!found->complete()) {
    state_.owes_everything = true;  // once it is right again: who knows what was missed
    co_return fail(ErrorCode::source_down, found->why_not(state_.options.name), "postgres");
  }
  if (!reading_) state_.log.set_tables(std::move(found->tables));
  co_return Result<void>{};
}

Task<Result<void>> FeedSession::open_stream() {
  Connection::Settings settings = {{"replication", "database"}};
  auto connected = co_await Connection::connect(state_.options.url, std::move(settings),
                                                monotonic_now_us() + kPatience);
  if (!connected) co_return std::unexpected(connected.error());
  stream_ = std::move(*connected);
  if (auto on = going_on(); !on) co_return on;
  // Texts of values as everybody expects them. And a node that has vanished without a word is to be
  // noticed soon, so that another one can take its place: a status is sent every second.
  const auto set = co_await stream_->simple(
      "SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET extra_float_digits = 1;"
      " SET bytea_output = 'hex'; SET TimeZone = 'UTC'; SET wal_sender_timeout = '15s'",
      monotonic_now_us() + kPatience);
  if (!set) co_return std::unexpected(set.error());
  co_return Result<void>{};
}

Task<Result<void>> FeedSession::take_slot() {
  if (!state_.fleet()) {
    // It goes with the connection.
    slot_ = fmt::format("{}_{:08x}", state_.options.slot.substr(0, 54),
                        static_cast<std::uint32_t>(state_.random.next()));
    const Result<void> created = co_await create_slot();
    co_return created;
  }
  slot_ = state_.options.slot;
  for (int looks = 0;; ++looks) {
    const auto free = co_await slot_is_free();
    if (!free) co_return std::unexpected(free.error());
    if (*free) co_return Result<void>{};
    // At first it may be our own walsender that has not noticed yet that we left.
    const DurationUs pause = looks < kQuickLooks ? kQuickLook : kLookAgain;
    if (looks >= kQuickLooks)
      state_.note(fmt::format("another node reads slot {}; this one stands by", slot_));
    const TimeUs next =
        monotonic_now_us() + pause + static_cast<DurationUs>(state_.random.below(pause / 4));
    co_await group_.sleep_until(next);
    if (auto on = going_on(); !on) co_return on;
  }
}

Task<Result<bool>> FeedSession::slot_is_free() {
  Command look = Command::query(
      "SELECT active, coalesce(wal_status, 'lost'), pg_wal_lsn_diff(pg_current_wal_insert_lsn(),"
      " restart_lsn)::bigint FROM pg_replication_slots WHERE slot_name = $1",
      {slot_});
  const auto slot = co_await ask(std::move(look));
  if (!slot) co_return std::unexpected(slot.error());
  if (slot->rows() == 0) {
    const Result<void> created = co_await create_slot();
    if (created) co_return true;
    // Somebody else did it at the same time.
    if (created.error().message.contains("SQLSTATE 42710")) co_return false;
    co_return std::unexpected(created.error());
  }
  if (text(*slot, 0) == "t") co_return false;
  const std::uint64_t limit = state_.options.slot_limit_bytes;
  const auto bytes = number<std::uint64_t>(text(*slot, 2));
  std::string why;
  if (std::exchange(state_.slot_is_useless, false))
    why = "the publication was made anew, and the server cannot read the log before that";
  else if (text(*slot, 1) == "lost")
    why = "the server has removed the log that it needs (max_slot_wal_keep_size)";
  else if (limit != 0 && bytes > limit)
    why = fmt::format("it holds back {} bytes of the log, more than {}", bytes, limit);
  if (why.empty()) co_return true;
  Result<void> done = co_await drop_slot(std::move(why));
  if (done) done = co_await create_slot();
  if (!done) co_return std::unexpected(done.error());
  co_return true;
}

Task<Result<void>> FeedSession::drop_slot(std::string why) {
  state_.say(fmt::format("slot {} is dropped and made anew, all entries of the source are void: {}",
                         slot_, why));
  Command drop = Command::query("SELECT pg_drop_replication_slot($1)", {slot_});
  const auto dropped = co_await ask(std::move(drop));
  if (!dropped) co_return std::unexpected(dropped.error());
  co_return Result<void>{};
}

Task<Result<void>> FeedSession::create_slot() {
  TaskGroup waiting;
  waiting.spawn(say_if_slow(waiting));
  Result<void> done;
  const TimeUs patience = monotonic_now_us() + kSlotPatience;
  if (state_.fleet()) {
    Command command =
        Command::query("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", {slot_});
    const auto made = co_await sql_->run_one(std::move(command), patience);
    if (!made) done = std::unexpected(made.error());
  } else {
    std::string sql = fmt::format(
        "CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT", slot_);
    const auto made = co_await stream_->simple(std::move(sql), patience);
    if (!made) done = std::unexpected(made.error());
  }
  waiting.stop();
  co_await waiting.join();
  co_return done;
}

Task<void> FeedSession::say_if_slow(TaskGroup& waiting) {
  const bool made = co_await waiting.sleep_until(monotonic_now_us() + kSlowSlot);
  if (!made)
    state_.note(
        fmt::format("slot {} is made when the transactions that run have ended; until then "
                    "changes by others are not seen (see pg_stat_activity for the oldest)",
                    slot_));
}

// False: another node holds the slot.
Task<Result<bool>> FeedSession::start() {
  std::string sql = fmt::format(
      "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names '{}', "
      "messages 'true')",
      slot_, state_.options.publication);
  const auto started = co_await stream_->simple(std::move(sql), monotonic_now_us() + kPatience);
  if (!started) {
    if (state_.fleet() && started.error().message.contains("SQLSTATE 55006")) co_return false;
    co_return std::unexpected(started.error());
  }
  Command look = Command::query(
      "SELECT confirmed_flush_lsn, pg_current_wal_insert_lsn(),"
      " pg_snapshot_xmin(pg_current_snapshot()) FROM pg_replication_slots WHERE slot_name = $1",
      {slot_});
  const auto facts = co_await ask(std::move(look));
  if (!facts) co_return std::unexpected(facts.error());
  const auto confirmed = facts->rows() == 1 ? parse_lsn(text(*facts, 0)) : std::nullopt;
  const auto end = facts->rows() == 1 ? parse_lsn(text(*facts, 1)) : std::nullopt;
  if (!confirmed || !end)
    co_return fail(ErrorCode::source_down, fmt::format("slot {} has gone", slot_), "postgres");
  confirmed_ = may_confirm_ = *confirmed;
  received_ = *end;
  heard_at_ = monotonic_now_us();
  state_.log.begin_stream(number<policy::TxnId>(text(*facts, 2)));
  co_return true;
}

// The sink says where it stands, and whether it needs an epoch.
Task<Result<void>> FeedSession::hello() {
  FeedState& state = state_;
  ChangeBatch batch{.changes = {}, .source_id = state.source_id};
  if (!state.fleet()) {
    // What was committed before the slot is not in it; what comes is told from its beginning.
    state.log.seek(confirmed_);
    state.position = confirmed_;
    auto floor = co_await epoch();
    if (!floor) co_return std::unexpected(floor.error());
    batch.from = batch.to = confirmed_;
    batch.everything = true;
    batch.floor = floor->floor;
    const auto order = co_await deliver(std::move(batch));
    if (!order) co_return std::unexpected(order.error());
    state.owes_everything = false;
    co_return Result<void>{};
  }
  // The log's end, so that it does not keep back a sink that knows better where to go on.
  batch.from = batch.to = received_;
  state.log.seek(state.position.value_or(batch.to));
  auto order = co_await deliver(std::move(batch));
  if (!order) co_return std::unexpected(order.error());
  Result<void> done = co_await obey(std::move(*order));
  if (!done || !state.owes_everything) co_return done;
  ChangeBatch all{.changes = {}, .everything = true, .source_id = state.source_id};
  all.from = all.to = state.log.position();
  order = co_await deliver(std::move(all));
  if (!order) co_return std::unexpected(order.error());
  state.owes_everything = false;
  done = co_await obey(std::move(*order));
  co_return done;
}

// ---- read ----

Task<Result<void>> FeedSession::read() {
  reading_ = true;
  std::size_t blocks = 0;  // since something is ready
  for (;;) {
    if (auto on = going_on(); !on || again_) co_return on;
    const TimeUs now = monotonic_now_us();
    if (stream_->broken() || now - heard_at_ > kLostAfter)
      co_return fail(ErrorCode::source_down,
                     fmt::format("{} has said nothing, or taken nothing, for {} s", sql_->name(),
                                 (stream_->broken() ? kPatience : kLostAfter) / kSecond),
                     "postgres");
    if (now - status_at_ >= kStatusEvery) {
      const Result<void> sent = co_await send_status(now - heard_at_ > kAskAfter);
      if (!sent) co_return sent;
    }
    // What is there already goes into the same batch.
    const bool some = state_.log.ready();
    blocks = some ? blocks + 1 : 0;
    Result<void> taken = fail(ErrorCode::timeout, "");
    if (state_.log.waiting() < kMostRows && blocks < kMostBlocks)
      taken = co_await take_next(some ? now : status_at_ + kStatusEvery);
    if (!taken && taken.error().code != ErrorCode::timeout) co_return taken;
    if (taken || !some) continue;
    blocks = 0;
    const Result<void> delivered = co_await deliver_ready();
    if (!delivered) co_return delivered;
  }
}

// Errors: timeout, there is nothing yet.
Task<Result<void>> FeedSession::take_next(TimeUs deadline) {
  auto block = co_await stream_->receive_copy(deadline);
  if (!block) co_return std::unexpected(block.error());
  if (*block) {
    heard_at_ = monotonic_now_us();
    const Result<void> taken = co_await take(std::move(**block));
    co_return taken;
  }
  Result<void> ended = co_await stream_->finish_copy(true, monotonic_now_us() + kPatience);
  if (ended) ended = fail(ErrorCode::source_down, "the server has ended the stream", "postgres");
  // It looks for the publication in the catalogs as they were when the log was written.
  if (state_.fleet() && ended.error().message.contains("SQLSTATE 42704"))
    state_.slot_is_useless = true;
  co_return ended;
}

Task<Result<void>> FeedSession::take(CopyBlock block) {
  const auto frame = parse_frame(block.bytes());
  if (!frame) co_return std::unexpected(frame.error());
  if (const auto* const alive = std::get_if<Keepalive>(&*frame)) {
    received_ = std::max(received_, alive->end);
    state_.log.take(*alive);
    if (!alive->reply_wanted) co_return Result<void>{};
    const Result<void> sent = co_await send_status(false);
    co_return sent;
  }
  const auto& data = std::get<XLogData>(*frame);
  received_ = std::max(received_, data.start);
  const auto message = pgoutput::parse_message(data.payload);
  if (!message) co_return std::unexpected(message.error());
  co_return state_.log.take(*message);
}

Task<Result<void>> FeedSession::deliver_ready() {
  ChangeLog::Batch ready = state_.log.next();
  for (const std::string& line : ready.why) state_.say(line);
  ChangeBatch batch = std::move(ready.batch);
  batch.source_id = state_.source_id;
  heartbeat_ = std::max(heartbeat_, batch.heartbeat);
  if (batch.everything && !state_.fleet()) {
    // A load may not see yet what the log shows already.
    const auto floor = co_await epoch();
    if (!floor) co_return std::unexpected(floor.error());
    batch.floor = floor->floor;
  }
  const Lsn to = batch.to;
  auto order = co_await deliver(std::move(batch));
  if (!order) co_return std::unexpected(order.error());
  state_.position = to;
  const Result<void> obeyed = co_await obey(std::move(*order));
  co_return obeyed;
}

Task<Result<FeedOrder>> FeedSession::deliver(ChangeBatch batch) {
  Waiters done;
  Result<FeedOrder> order = FeedOrder{};
  std::vector<Task<void>> both;
  both.push_back(hand_over(std::move(batch), order, done));
  both.push_back(keep_alive(done));
  co_await when_all(std::move(both));
  co_return order;
}

Task<void> FeedSession::hand_over(ChangeBatch batch, Result<FeedOrder>& order, Waiters& done) {
  for (;;) {
    ChangeBatch copy = batch;
    order = co_await sink_(std::move(copy));
    if (order || !going_on()) break;
    // The same again, later.
    const TimeUs next = monotonic_now_us() + kRefusedPause;
    co_await group_.sleep_until(next);
  }
  done.notify();
}

// The sink may take its time: the server must not take us for dead meanwhile.
Task<void> FeedSession::keep_alive(Waiters& done) {
  for (;;) {
    const bool ended = co_await done.wait_until(status_at_ + kStatusEvery);
    if (ended) co_return;
    const Result<void> sent = co_await send_status(false);
    if (sent) continue;
    fail_with(sent.error());
    co_await done.wait();
    co_return;
  }
}

Task<Result<void>> FeedSession::obey(FeedOrder order) {
  ChangeLog& log = state_.log;
  for (int orders = 0; orders < kMostOrders; ++orders) {
    if (auto on = going_on(); !on) co_return on;
    const Lsn from = order.go_on_from.value_or(log.position());
    ChangeBatch batch{.changes = {}, .source_id = state_.source_id};
    if (order.new_epoch) {
      auto begun = co_await epoch();
      if (!begun) co_return std::unexpected(begun.error());
      batch = std::move(*begun);
    } else if (from < confirmed_) {
      state_.say(
          "the log does not reach back to where it would have to be read again: all entries "
          "of the source are void");
      batch.from = from;
      batch.to = std::max(log.position(), confirmed_);
      batch.everything = true;
    } else {
      may_confirm_ = std::max(may_confirm_, std::min(from, order.confirm_up_to.value_or(from)));
      state_.position = from;
      again_ = reading_ && from < log.position();
      if (from != log.position() && !again_) log.seek(from);
      co_return Result<void>{};
    }
    const std::optional<Lsn> gone = batch.everything ? std::optional(batch.to) : std::nullopt;
    auto next = co_await deliver(std::move(batch));
    if (!next) co_return std::unexpected(next.error());
    if (gone) log.seek(*gone);
    order = *next;
  }
  co_return fail(ErrorCode::internal, "the engine asks for one thing again and again", "postgres");
}

// Where the log ends, and then a transaction that ends at once.
Task<Result<ChangeBatch>> FeedSession::epoch() {
  std::vector<Command> commands;
  commands.push_back(Command::query("SELECT pg_current_wal_insert_lsn()"));
  commands.push_back(Command::sync());
  commands.push_back(
      Command::query("SELECT pg_snapshot_xmin(pg_current_snapshot()), pg_current_xact_id()"));
  co_await turn_.take();
  const auto replies = co_await sql_->run(std::move(commands), monotonic_now_us() + kPatience);
  turn_.give();
  if (!replies) co_return std::unexpected(replies.error());
  for (const Reply& reply : *replies)
    if (!reply.ok()) co_return std::unexpected(reply.error());
  const auto end = parse_lsn(text((*replies)[0], 0));
  const auto floor = number<policy::TxnId>(text((*replies)[1], 1));
  if (!end || floor == 0)
    co_return fail(ErrorCode::source_down, "the server does not say where its log ends",
                   "postgres");
  ChangeBatch batch{.from = *end, .to = *end};
  batch.source_id = state_.source_id;
  batch.xmin = number<policy::TxnId>(text((*replies)[1], 0));
  batch.floor = floor;
  co_return batch;
}

Task<Result<void>> FeedSession::send_status(bool reply_wanted) {
  status_at_ = monotonic_now_us();
  confirmed_ = std::max(confirmed_, may_confirm_);
  std::string status =
      status_update(std::max(received_, confirmed_), confirmed_, status_at_, reply_wanted);
  const Result<void> sent = co_await stream_->send_copy(std::move(status), status_at_ + kPatience);
  co_return sent;
}

// ---- beside it ----

Task<void> FeedSession::beat(TaskGroup& helpers) {
  const DurationUs every = std::max(state_.options.heartbeat_us, kMillisecond);
  TimeUs check_at = monotonic_now_us() + state_.options.check_us;
  while (!helpers.stopping()) {
    const TimeUs at = monotonic_now_us();
    const auto emitted = co_await emit(at);
    Result<void> done;
    if (!emitted) done = std::unexpected(emitted.error());
    if (done && at >= check_at) {
      check_at = at + state_.options.check_us;
      done = co_await check();
    }
    if (!done) {
      if (!helpers.stopping()) fail_with(done.error());
      co_return;
    }
    // On a quiet server nobody else's commit takes our message to the disk soon. A commit of our
    // own does; a busy server is spared it.
    if (!emitted->empty()) {
      const bool ended = co_await helpers.sleep_until(at + every / 4);
      if (ended) co_return;
      if (heartbeat_ < at) {
        Command flush = Command::query(
            "SELECT CASE WHEN pg_current_wal_flush_lsn() < $1::pg_lsn THEN"
            " pg_logical_emit_message(true, 'larder', '') END",
            {*emitted});
        const auto flushed = co_await ask(std::move(flush));
        if (!flushed && !helpers.stopping()) fail_with(flushed.error());
        if (!flushed) co_return;
      }
    }
    co_await helpers.sleep_until(at + every);
  }
}

// The message's position; "" if it is on the disk.
Task<Result<std::string>> FeedSession::emit(TimeUs at) {
  const bool flushes = sql_->server_version() >= 170'000;
  Command write =
      Command::query(fmt::format("SELECT pg_logical_emit_message(false, 'larder',"
                                 " $1 || pg_snapshot_xmin(pg_current_snapshot())::text{})",
                                 flushes ? ", true" : ""),
                     {heartbeat_text(state_.token, at)});
  const auto reply = co_await ask(std::move(write));
  if (!reply) co_return std::unexpected(reply.error());
  co_return flushes ? std::string() : std::string(text(*reply, 0));
}

Task<Result<void>> FeedSession::check() {
  const Result<void> right = co_await look_at_tables();
  if (!right) co_return right;
  Command look = Command::query(
      "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn)::bigint"
      " FROM pg_replication_slots WHERE slot_name = $1",
      {slot_});
  const auto slot = co_await ask(std::move(look));
  if (!slot) co_return std::unexpected(slot.error());
  const auto bytes = slot->rows() == 1 ? number<std::uint64_t>(text(*slot, 0)) : 0;
  state_.slot_bytes.store(static_cast<double>(bytes), std::memory_order_relaxed);
  const std::uint64_t limit = state_.options.slot_limit_bytes;
  if (!state_.fleet() || limit == 0 || bytes <= limit / 2) co_return Result<void>{};
  if (bytes > limit)
    co_return fail(
        ErrorCode::source_down,
        fmt::format("slot {} holds back {} bytes of the log, more than {}", slot_, bytes, limit),
        "postgres");
  if (!std::exchange(warned_of_slot_, true))
    state_.say(fmt::format("slot {} holds back {} bytes of the log; at {} it is dropped", slot_,
                           bytes, limit));
  co_return Result<void>{};
}

}  // namespace larder::source::postgres
