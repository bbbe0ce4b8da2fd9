#include "source/postgres/feed_session.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace larder::source::postgres {
namespace {

constexpr DurationUs kStatusEvery = kSecond;
constexpr DurationUs kAskAfter = 10 * kSecond;  // of silence: are you there?
constexpr DurationUs kLostAfter = 30 * kSecond;
constexpr DurationUs kRefusedPause = 50 * kMillisecond;
constexpr std::size_t kMostRows = 1'000;    // in a batch, but for one large transaction
constexpr std::size_t kMostBlocks = 1'000;  // read before what is ready is delivered
constexpr int kMostOrders = 16;             // in a row

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
    if (done) done = co_await read();
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
  Result<void> done = co_await obey(*order);
  if (done && !state.owes_everything) done = co_await note_tables();
  if (!done || !state.owes_everything) co_return done;
  ChangeBatch all{.changes = {}, .everything = true, .source_id = state.source_id};
  all.from = all.to = state.log.position();
  order = co_await deliver(std::move(all));
  if (!order) co_return std::unexpected(order.error());
  state.owes_everything = false;
  done = co_await obey(*order);
  if (done) done = co_await note_tables();
  co_return done;
}

// ---- read ----

Task<Result<void>> FeedSession::read() {
  reading_ = state_.was_there = true;
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
  Result<void> ended = co_await stream_->finish_copy(false, monotonic_now_us() + kPatience);
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
  if (batch.heartbeat > heartbeat_) {
    heartbeat_ = batch.heartbeat;
    state_.note("");
    // Of what the log does not tell nothing is known since.
    batch.heartbeat = std::min(batch.heartbeat, looked_at_);
  }
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
  const Result<void> obeyed = co_await obey(*order);
  co_return obeyed;
}

Task<Result<FeedOrder>> FeedSession::deliver(ChangeBatch batch) {
  Waiters done;
  Result<FeedOrder> order = FeedOrder{};
  const TimeUs began = monotonic_now_us();
  std::vector<Task<void>> both;
  both.push_back(hand_over(std::move(batch), order, done));
  both.push_back(keep_alive(done));
  co_await when_all(std::move(both));
  heard_at_ += monotonic_now_us() - began;  // nobody has listened meanwhile
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
  while (!helpers.stopping()) {
    const TimeUs at = monotonic_now_us();
    Result<void> done;
    if (at >= looked_at_ + state_.options.check_us) done = co_await check();
    Result<std::string> emitted;
    if (done) emitted = co_await emit(at);
    if (!emitted) done = std::unexpected(emitted.error());
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
  Result<void> right = co_await look_at_tables();
  if (right) right = co_await note_tables();
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
