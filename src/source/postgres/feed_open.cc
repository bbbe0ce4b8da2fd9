// FeedSession: from nothing to a stream that has begun.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/hash.h"
#include "source/postgres/feed_session.h"

namespace larder::source::postgres {
namespace {

constexpr DurationUs kSlotPatience = 600 * kSecond;    // it waits for the transactions that run
constexpr DurationUs kSlowSlot = 5 * kSecond;          // after which one is told what it waits for
constexpr DurationUs kLookAgain = 500 * kMillisecond;  // is the slot free?
constexpr DurationUs kQuickLook = 20 * kMillisecond;
constexpr int kQuickLooks = 20;

}  // namespace

Task<Result<void>> FeedSession::open() {
  Result<void> done = co_await open_sql();
  if (done) done = co_await look_at_tables();
  if (done && !state_.fleet()) done = co_await open_stream();
  while (done) {
    done = co_await take_slot();
    if (done && !stream_) done = co_await open_stream();
    // Whoever read before us has looked until he ended: what has changed since?
    if (done && state_.fleet()) done = co_await look_at_tables();
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
    state_.storage.clear();
  }
  co_return Result<void>{};
}

Task<Result<void>> FeedSession::look_at_tables() {
  const TimeUs began = monotonic_now_us();
  co_await turn_.take();
  PrepareOptions options = state_.prepare_options();
  auto found = co_await examine(*sql_, std::move(options), monotonic_now_us() + kPatience);
  turn_.give();
  if (!found) co_return std::unexpected(found.error());
  if (!found->works()) {
    state_.owes_everything = true;  // once it is right again: who knows what was missed
    co_return fail(ErrorCode::source_down, found->why_not(state_.options.name), "postgres");
  }
  if (const std::string missing = found->why_not(state_.options.name); missing != state_.missing) {
    state_.missing = missing;
    if (!missing.empty())
      state_.say(fmt::format("until it is done, many changes void all entries of the source: {}",
                             missing));
  }
  const bool same = state_.storage.empty() || found->storage == state_.storage;
  may_note_ = found->may_note;
  noted_ = std::move(found->noted);
  state_.storage = std::move(found->storage);
  if (!same) {
    state_.owes_everything = true;
    co_return fail(ErrorCode::source_down,
                   "a watched table was rewritten, or not published for a while, or got or lost a "
                   "part, or one was truncated: the log does not tell its rows, all entries of "
                   "the source are void",
                   "postgres");
  }
  // Did the one who read before us see it like this? Where nobody may leave a note, only our own
  // memory tells.
  const bool holds_slot = state_.fleet() && !reading_ && !slot_.empty();
  if (holds_slot && noted_ != note_of_tables() && (may_note_ ? !noted_.empty() : !state_.was_there))
    state_.owes_everything = true;
  if (!reading_) state_.log.set_tables(std::move(found->tables));
  looked_at_ = began;
  co_return Result<void>{};
}

std::string FeedSession::note_of_tables() const {
  constexpr std::uint64_t kSeed = 0;  // the same everywhere
  return fmt::format("Larder has read the changes of {:016x}",
                     hash_bytes(fmt::format("{}", fmt::join(state_.storage, ",")), kSeed));
}

// For whoever reads after us. Only what has been acted on may be noted.
Task<Result<void>> FeedSession::note_tables() {
  std::string line = note_of_tables();
  if (!state_.fleet() || !may_note_ || line == noted_) co_return Result<void>{};
  noted_ = line;
  co_await turn_.take();
  const Result<void> done = co_await note(*sql_, state_.options.publication, std::move(line),
                                          monotonic_now_us() + kPatience);
  turn_.give();
  co_return done;
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
  const Result<void> same = co_await same_server();
  co_return same;
}

// A url with several hosts may lead to another one than before.
Task<Result<void>> FeedSession::same_server() {
  const TimeUs deadline = monotonic_now_us() + kPatience;
  const auto who = co_await stream_->simple("IDENTIFY_SYSTEM", deadline);
  if (!who) co_return std::unexpected(who.error());
  const std::uint64_t id = ServerIdentity::source_id_of(number<std::uint64_t>(text(*who, 0)),
                                                        number<std::uint32_t>(text(*who, 1)));
  if (id == state_.source_id) co_return Result<void>{};
  co_return fail(ErrorCode::source_down,
                 fmt::format("{} and {} are not the same server: name the primary in the url",
                             sql_->name(), stream_->name()),
                 "postgres");
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
    state_.was_there = true;
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

}  // namespace larder::source::postgres
