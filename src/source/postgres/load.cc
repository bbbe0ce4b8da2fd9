#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "source/postgres/impl.h"

namespace larder::source::postgres {
namespace {

constexpr DurationUs kStandbyLife = 60 * kSecond;
constexpr DurationUs kUnfit = kSecond;  // until a replica is tried again

const Value* find_value(const Params& params, std::string_view name) {
  const auto found = std::ranges::find(params, name, &NamedValue::name);
  return found == params.end() ? nullptr : &found->value;
}

Result<Texts> texts_of(const SqlText& sql, const Params& params) {
  Texts out;
  out.reserve(sql.names().size());
  for (const std::string& name : sql.names()) {
    const Value* const value = find_value(params, name);
    if (!value)
      return fail(ErrorCode::bad_key, fmt::format("the key gives no value for :{}", name));
    auto text = param_of(*value);
    if (!text)
      return fail(ErrorCode::bad_key, fmt::format(":{} is {}", name, text.error().message));
    out.push_back(std::move(*text));
  }
  return out;
}

// May the statement be another one by now than the one that was prepared? A changed table, a
// statement that a connection pooler has lost, a search_path.
bool asks_for_describe(std::string_view sqlstate) {
  static constexpr std::string_view kStates[] = {
      "0A000",   // cached plan must not change result type
      "26000",   // prepared statement does not exist
      "42P05",   // prepared statement exists already
      "42703",   // undefined column
      "42P01",   // undefined table
      "42883",   // undefined function
      "42804"};  // datatype mismatch
  return std::ranges::find(kStates, sqlstate) != std::end(kStates);
}

}  // namespace

void Session::settle() {
  if (broken()) return;
  if (PQtransactionStatus(connection->raw()) != PQTRANS_IDLE)
    connection->send_and_forget(Command::query("ROLLBACK"));
}

Task<Result<Loaded>> Impl::load(std::uint32_t statement_id, std::vector<Params> keys,
                                LoadTerms terms) {
  const TimeUs deadline = terms.deadline;
  const auto plan = plans_.find(statement_id);
  LARDER_ASSERT(plan != plans_.end());
  Loop* const home = Loop::current();
  end_setup();
  Load load{.plan = plan->second, .deadline = deadline, .which = {}, .params = {}, .out = {}};
  load.out.rows.resize(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    auto texts = texts_of(plan->second.sql, keys[i]);
    if (!texts) {
      load.out.rows[i] = std::unexpected(texts.error());
      continue;
    }
    load.which.push_back(i);
    load.params.push_back(std::move(*texts));
  }
  if (load.which.empty() && !keys.empty()) co_return std::move(load.out);
  if (terms.may_be_older && !replicas_.empty())
    if (Replica* const replica = fit_replica()) {
      const bool answered = co_await load_from(*replica, load);
      co_await resume_on(*home);
      if (answered) co_return std::move(load.out);
      load.deadline = deadline;
      load.out = {};
      load.out.rows.resize(keys.size());
    }
  auto lease = co_await pool_->take(deadline);
  if (!lease) {
    health_.note(&lease.error(), lease.error().code == ErrorCode::source_down);
    co_return std::unexpected(lease.error());
  }
  Session& session = **lease;
  const Result<void> done = co_await load_on(session, load);
  session.settle();
  const bool down = session.broken() && !done && done.error().code == ErrorCode::source_down;
  lease->give_back();
  co_await resume_on(*home);
  health_.note(done ? nullptr : &done.error(), down);
  if (!done) co_return std::unexpected(done.error());
  co_return std::move(load.out);
}

// In turn, but for those that were found unfit a moment ago. Which server is the right one is not
// known before the primary has been asked once.
Impl::Replica* Impl::fit_replica() {
  if (primary_.load(std::memory_order_relaxed) == 0) return nullptr;
  const TimeUs now = monotonic_now_us();
  const std::size_t first = next_replica_.fetch_add(1, std::memory_order_relaxed);
  for (std::size_t i = 0; i < replicas_.size(); ++i) {
    Replica& replica = *replicas_[(first + i) % replicas_.size()];
    if (replica.unfit_until.load(std::memory_order_relaxed) <= now) return &replica;
  }
  return nullptr;
}

// False: somebody else has to answer; there is time left for that.
Task<bool> Impl::load_from(Replica& replica, Load& load) {
  const TimeUs now = monotonic_now_us();
  if (load.deadline != kNever) load.deadline = now + (load.deadline - now) / 2;
  bool answered = false;
  auto lease = co_await replica.pool->take(load.deadline);
  if (lease) {
    Session& session = **lease;
    const Result<void> done = co_await load_on(session, load);
    session.settle();
    // One that follows another primary, or none, is another server.
    const bool same = session.identity.source_id() == primary_.load(std::memory_order_relaxed);
    if (!same) session.retired = true;
    const DurationUs lag = now - load.out.as_of;
    if (done && load.out.as_of != 0) replica.lag_us.store(std::max<DurationUs>(0, lag));
    answered = done && same && load.out.as_of != 0 && lag <= options_.replica_lag_us;
    lease->give_back();
  }
  load.out.replica = true;
  if (!answered) replica.unfit_until.store(monotonic_now_us() + kUnfit, std::memory_order_relaxed);
  if (obs::Counter* const counter = answered ? replica.loads : replica.passed) counter->add();
  co_return answered;
}

Task<Result<void>> Impl::load_on(Session& session, Load& load) {
  Form form = load.which.size() == 1 ? Form::single : Form::together;
  bool described = false;
  for (;;) {
    if (!session.loads[load.plan.spec.id].layout) {
      session.loads[load.plan.spec.id].layout = layout_of(load.plan.spec.id);
      if (!session.loads[load.plan.spec.id].layout) {
        const Result<void> done = co_await describe(session, load.plan, load.deadline);
        if (!done) co_return done;
        described = true;
      }
    }
    std::vector<std::size_t> at;  // where the keys' replies are
    std::optional<std::size_t> prepare;
    std::vector<Command> commands = commands_of(session, load, form, at, prepare);
    if (metrics_.loads) metrics_.loads->add();
    const TimeUs sent = monotonic_now_us();
    auto replies = co_await run(session, std::move(commands), load.deadline);
    const DurationUs took = monotonic_now_us() - sent;
    if (metrics_.seconds) metrics_.seconds->record(took);
    if (!replies) co_return std::unexpected(replies.error());
    load.out.took_us += took;
    if (prepare) {
      Session::Prepared& prepared = session.loads[load.plan.spec.id];
      const Reply& reply = (*replies)[*prepare];
      if (!reply.ok()) {
        prepared.name.clear();
        if (described || !asks_for_describe(reply.sqlstate()))
          co_return std::unexpected(reply.error());
        session.settle();
        const Result<void> done = co_await describe(session, load.plan, load.deadline);
        if (!done) co_return done;
        described = true;
        continue;
      }
    }
    const auto next = read_replies(session, load, form, std::move(*replies), at, sent, !described);
    if (!next) co_return std::unexpected(next.error());
    if (*next == Next::done) co_return Result<void>();
    if (*next == Next::ask_apart) form = Form::apart;
    if (*next == Next::describe_again) {
      session.settle();
      const Result<void> done = co_await describe(session, load.plan, load.deadline);
      if (!done) co_return done;
      described = true;
    }
  }
}

std::vector<Command> Impl::commands_of(Session& session, const Load& load, Form form,
                                       std::vector<std::size_t>& at,
                                       std::optional<std::size_t>& prepare) {
  std::vector<Command> out;
  std::size_t replies = 0;
  const auto add = [&](Command command) {
    if (command.kind != Command::Kind::sync) ++replies;
    out.push_back(std::move(command));
  };
  Session::Prepared& prepared = session.loads[load.plan.spec.id];
  const auto prepare_once = [&] {
    if (!prepared.name.empty()) return;
    prepared.name = session.new_name();
    prepare = replies;
    add(Command::prepare(prepared.name, prepared.layout->sql));
  };
  if (form == Form::apart) {
    add(Command::query("ROLLBACK"));  // what `together` has left
    add(Command::sync());
  }
  // First of all: a level can be chosen only before anything has looked at the database.
  if (form != Form::single) add(Command::query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"));
  prepare_once();
  if (form == Form::apart) {
    add(Command::query("SAVEPOINT larder"));
    add(Command::sync());
  }
  for (const Texts& params : load.params) {
    at.push_back(replies);
    add(Command::execute(prepared.name, params));
    if (form != Form::apart) continue;
    add(Command::sync());
    add(Command::query("ROLLBACK TO larder"));
    add(Command::sync());
  }
  if (form != Form::single) add(Command::query("COMMIT"));
  return out;
}

Result<Impl::Next> Impl::read_replies(Session& session, Load& load, Form form,
                                      std::vector<Reply> replies,
                                      const std::vector<std::size_t>& at, TimeUs sent,
                                      bool may_describe) {
  Session::Prepared& prepared = session.loads[load.plan.spec.id];
  // What stands around the keys: if it has failed, they are not of one state.
  for (std::size_t i = 0; i < replies.size(); ++i) {
    const Reply& reply = replies[i];
    if (reply.ok() || std::ranges::binary_search(at, i)) continue;
    if (form == Form::together && reply.skipped()) continue;  // COMMIT, behind a key that failed
    return std::unexpected(reply.error());
  }
  bool state_known = false;
  bool failed = false;
  for (std::size_t i = 0; i < at.size(); ++i) {
    const Reply& reply = replies[at[i]];
    Result<Row>& row = load.out.rows[load.which[i]];
    if (!reply.ok()) {
      if (may_describe && asks_for_describe(reply.sqlstate())) return Next::describe_again;
      const Error error = reply.error();
      // What is wrong with the whole: the time is up, the server goes down, all is locked.
      if (error.code == ErrorCode::timeout || error.code == ErrorCode::source_down)
        return std::unexpected(error);
      failed = true;
      row = std::unexpected(error);
      continue;
    }
    if (!prepared.checked && !prepared.layout->fits(reply)) {
      if (may_describe) return Next::describe_again;
      return fail(ErrorCode::source_down, "the table changes faster than it can be described");
    }
    prepared.checked = true;
    if (!state_known) {
      if (auto read = read_state(session, reply, sent, load.out); !read)
        return std::unexpected(read.error());
      if (!capabilities_.snapshots) load.out.snapshot = {};
      state_known = true;
    }
    row = prepared.layout->read(reply);
  }
  // One key that the database refuses has ended the transaction for those behind it.
  if (failed && form == Form::together) return Next::ask_apart;
  return Next::done;
}

// A server that we know as a standby, and that says it is a primary, was promoted between the
// snapshot and the question, or before; its timeline is another one now, so the session goes.
Result<void> Impl::read_state(Session& session, const Reply& reply, TimeUs sent, Loaded& out) {
  const auto unreadable = [&] {
    return fail(ErrorCode::source_down,
                session.connection->name() + " gives a snapshot that cannot be read", "postgres");
  };
  if (reply.rows() == 0) return unreadable();
  auto snapshot =
      parse_snapshot(reply.value(0, LoadLayout::kSnapshot).value_or(std::string_view()));
  if (!snapshot) return unreadable();
  out.snapshot = std::move(*snapshot);
  out.snapshot.source_id = session.identity.source_id();
  out.as_of = sent;
  const auto lag_text = reply.value(0, LoadLayout::kLag);
  const bool replays = lag_text.has_value();
  if (replays != session.identity.in_recovery) session.retired = true;
  // A standby keeps its sessions when it follows another primary, of another timeline. Until then
  // it claims the old one, and its loads are refused where the new one is known.
  if (replays && sent - session.identified_at > kStandbyLife) session.retired = true;
  if (!replays && !session.identity.in_recovery) return {};
  out.snapshot.xmax = out.snapshot.xmin;
  out.snapshot.in_progress.clear();
  DurationUs lag = -1;
  if (lag_text) std::from_chars(lag_text->data(), lag_text->data() + lag_text->size(), lag);
  out.as_of = lag < 0 ? 0 : sent - lag;
  return {};
}

Task<Result<void>> Impl::describe(Session& session, const LoadPlan& plan, TimeUs deadline) {
  Session::Prepared& prepared = session.loads[plan.spec.id];
  if (!prepared.name.empty())
    session.connection->send_and_forget(Command::query("DEALLOCATE " + prepared.name));
  prepared = {};
  std::vector<Command> commands;
  commands.push_back(Command::prepare("", plan.text));
  commands.push_back(Command::describe(""));
  auto replies = co_await run(session, std::move(commands), deadline);
  if (!replies) co_return std::unexpected(replies.error());
  for (const Reply& reply : *replies)
    if (!reply.ok() && !reply.skipped()) co_return std::unexpected(reply.error());
  auto layout = LoadLayout::make(plan.spec, plan.text, replies->back());
  if (!layout) co_return std::unexpected(layout.error());
  prepared.layout = std::make_shared<const LoadLayout>(std::move(*layout));
  MutexLock lock(layouts_mutex_);
  layouts_[plan.spec.id] = prepared.layout;
  co_return Result<void>();
}

std::shared_ptr<const LoadLayout> Impl::layout_of(std::uint32_t id) {
  MutexLock lock(layouts_mutex_);
  const auto found = layouts_.find(id);
  return found == layouts_.end() ? nullptr : found->second;
}

Task<Result<std::vector<Reply>>> Impl::run(Session& session, std::vector<Command> commands,
                                           TimeUs deadline) {
  ++round_trips_;
  auto replies = co_await session.connection->run(std::move(commands), deadline);
  co_return replies;
}

}  // namespace larder::source::postgres
