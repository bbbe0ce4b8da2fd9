#include "engine/redis/feeder.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

namespace larder::engine::redis {
namespace {

constexpr DurationUs kLease = 3 * kSecond;
constexpr DurationUs kRenewEvery = kSecond;
constexpr DurationUs kLookAgain = 250 * kMillisecond;
constexpr int kTries = 3;

std::uint64_t seed() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

std::string hex(Random& random) {
  return fmt::format("{:016x}{:016x}", random.next(), random.next());
}

void keep_first(Result<void>& outcome, Error error) {
  if (outcome) outcome = std::unexpected(std::move(error));
}

}  // namespace

void split_change(const Change& change, const Hooks& hooks, unsigned partitions,
                  std::vector<std::vector<Invalidation>>& into) {
  const TxnRule rule = change.x == 0 ? TxnRule::tickets : TxnRule::exact;
  std::vector<bool> begun(partitions, false);
  const auto of = [&](unsigned partition) -> Invalidation& {
    if (!begun[partition]) {
      into[partition].push_back(
          {.keys = {}, .tags = {}, .x = change.x, .rule = rule, .source_id = change.source_id});
      begun[partition] = true;
    }
    return into[partition].back();
  };
  for (const std::string& key : change.keys) {
    Invalidation::Key named{key, {}};
    if (const std::string_view schema = hooks.schema_of(key); !schema.empty())
      named.schemas.emplace_back(schema);
    of(partition_of(key, partitions)).keys.push_back(std::move(named));
  }
  // Entries of any partition may bear a tag.
  for (const std::string& tag : change.tags)
    for (unsigned partition = 0; partition < partitions; ++partition)
      of(partition).tags.push_back(tag);
}

Feeder::Feeder(Client& client, const Steps& steps, std::vector<Partition*> partitions,
               DurationUs beat_us, DurationUs timeout_us, const Hooks* hooks)
    : client_(client),
      steps_(steps),
      partitions_(std::move(partitions)),
      hooks_(hooks),
      beat_us_(beat_us),
      timeout_us_(timeout_us),
      random_(seed()),
      token_(hex(random_)),
      states_(partitions_.size()) {}

std::string Feeder::unique() { return hex(random_); }

FeedOrder Feeder::order() const {
  return {.go_on_from = delivered_,
          .new_epoch = std::ranges::any_of(states_, [](const State& s) { return !s.known; }),
          .confirm_up_to = confirmed_.position()};
}

std::vector<Feeder::State*> Feeder::beyond(const FeedBatch& batch) {
  std::vector<State*> result;
  for (State& state : states_)
    if (state.known && state.position > batch.to) result.push_back(&state);
  return result;
}

void Feeder::note_applied() {
  std::uint64_t lowest = delivered_;
  for (const State& state : states_) {
    if (!state.known) return confirmed_.hold();  // its epoch will begin at the log's end
    lowest = std::min(lowest, state.position);
  }
  confirmed_.note(Loop::current()->now_us(), lowest);
}

// ---- the lease ----

Task<Result<bool>> Feeder::take_lease() {
  const TimeUs now = Loop::current()->now_us();
  if (leased_at_ != 0 && now - leased_at_ < kRenewEvery) co_return true;
  const Names& names = partitions_.front()->names();
  const Route route{.slot = names.slot()};
  const std::string life = std::to_string(kLease / kMillisecond);
  const TimeUs deadline = now + timeout_us_;
  std::vector<std::string> args = {"SET", names.lease(), token_, "NX", "PX", life};
  auto set = co_await client_.call(route, std::move(args), deadline);
  if (!set) co_return std::unexpected(set.error());
  if (set->is_error()) co_return fail(ErrorCode::engine_down, std::string(set->error()), "redis");
  bool mine = set->parse().text == "OK";
  if (!mine) {
    args = {"GET", names.lease()};
    auto held = co_await client_.call(route, std::move(args), deadline);
    if (!held) co_return std::unexpected(held.error());
    mine = held->parse().text == token_;
    if (mine) {
      args = {"PEXPIRE", names.lease(), life};
      auto kept = co_await client_.call(route, std::move(args), deadline);
      if (!kept) co_return std::unexpected(kept.error());
    }
  }
  // Who has lost it in between cannot know what was applied meanwhile.
  if (!mine || (leased_at_ != 0 && now - leased_at_ > kLease)) began_ = false;
  leased_at_ = mine ? now : 0;
  co_return mine;
}

Task<void> Feeder::give_up_lease() {
  const TimeUs now = Loop::current()->now_us();
  if (std::exchange(leased_at_, 0) + kRenewEvery < now) co_return;  // it may be another's already
  const Names& names = partitions_.front()->names();
  const Route route{.slot = names.slot()};
  std::vector<std::string> args = {"DEL", names.lease()};
  co_await client_.call(route, std::move(args), now + timeout_us_);  // else it ends by itself
}

Task<Result<void>> Feeder::wait_for_lease(TaskGroup& group) {
  for (;;) {
    const auto taken = co_await take_lease();
    if (!taken) co_return std::unexpected(taken.error());
    if (*taken) co_return Result<void>{};
    const TimeUs next = Loop::current()->now_us() + kLookAgain;
    const bool stopping = co_await group.sleep_until(next);
    if (stopping) co_return fail(ErrorCode::cancelled, "Larder is shutting down");
  }
}

// ---- positions and epochs ----

Task<void> Feeder::read_one(std::size_t index, std::uint64_t source_id, Result<void>& outcome) {
  Partition& partition = *partitions_[index];
  const TimeUs sent = Loop::current()->now_us();
  Step step = read_step(partition.names());
  auto reply = co_await steps_.run(std::move(step), true, sent + timeout_us_);
  const auto answer =
      reply ? state_answer(*reply) : Result<StateAnswer>(std::unexpected(reply.error()));
  if (!answer) {
    keep_first(outcome, answer.error());
    co_return;
  }
  partition.observe(sent, answer->engine_now, Loop::current()->now_us());
  State& state = states_[index];
  state.known = answer->position.has_state() && answer->source_id == source_id;
  state.position = answer->feed_position;
  state.mark.clear();
}

Task<Result<void>> Feeder::read_all(std::uint64_t source_id) {
  Result<void> outcome;
  std::vector<Task<void>> tasks;
  tasks.reserve(partitions_.size());
  for (std::size_t i = 0; i < partitions_.size(); ++i)
    tasks.push_back(read_one(i, source_id, outcome));
  co_await when_all(std::move(tasks));
  co_return outcome;
}

Task<void> Feeder::begin_epoch(std::size_t index, Result<void>& outcome) {
  State& state = states_[index];
  state.mark = unique();
  Step step = epoch_begin_step(partitions_[index]->names(), state.mark, source_id_);
  const TimeUs deadline = Loop::current()->now_us() + timeout_us_;
  auto reply = co_await steps_.run(std::move(step), false, deadline);
  if (reply) co_return;
  state.mark.clear();
  keep_first(outcome, reply.error());
}

Task<Result<void>> Feeder::mark_missing() {
  Result<void> outcome;
  std::vector<Task<void>> tasks;
  for (std::size_t i = 0; i < states_.size(); ++i)
    if (!states_[i].known) tasks.push_back(begin_epoch(i, outcome));
  co_await when_all(std::move(tasks));
  co_return outcome;
}

Task<void> Feeder::write_epoch(std::size_t index, const FeedBatch& batch, Result<void>& outcome) {
  State& state = states_[index];
  Partition& partition = *partitions_[index];
  const TimeUs now = Loop::current()->now_us();
  const std::string epoch = unique();
  const NewEpoch begun{.mark = state.mark,
                       .epoch = epoch,
                       .floor = *batch.floor,
                       .feed_position = batch.to,
                       .source_id = batch.source_id,
                       .heartbeat = 0};
  Step step = epoch_write_step(partition.names(), begun);
  auto reply = co_await steps_.run(std::move(step), false, now + timeout_us_);
  const auto answer =
      reply ? change_answer(*reply) : Result<ChangeAnswer>(std::unexpected(reply.error()));
  state.mark.clear();
  if (!answer) {
    keep_first(outcome, answer.error());
    co_return;
  }
  partition.observe(now, answer->engine_now, Loop::current()->now_us());
  state.known = answer->applied;
  state.position = batch.to;
}

Task<void> Feeder::keep_epochs(TaskGroup& group) {
  const FeedBatch nothing{.floor = 0};
  while (!group.stopping()) {
    const auto leased = co_await wait_for_lease(group);
    Result<void> outcome = leased;
    if (leased) outcome = co_await read_all(0);
    if (outcome) outcome = co_await mark_missing();
    if (outcome) {
      std::vector<Task<void>> tasks;
      for (std::size_t i = 0; i < states_.size(); ++i)
        if (!states_[i].mark.empty()) tasks.push_back(write_epoch(i, nothing, outcome));
      co_await when_all(std::move(tasks));
    }
    const TimeUs next = Loop::current()->now_us() + kLookAgain;
    co_await group.sleep_until(next);
  }
}

// ---- changes ----

std::vector<std::vector<Invalidation>> Feeder::by_partition(const FeedBatch& batch) const {
  std::vector<std::vector<Invalidation>> result(partitions_.size());
  for (const Change& change : batch.changes)
    split_change(change, *hooks_, static_cast<unsigned>(partitions_.size()), result);
  return result;
}

Task<void> Feeder::apply(std::size_t index, const FeedBatch& batch,
                         std::vector<Invalidation> changes, bool beats, Result<void>& outcome) {
  State& state = states_[index];
  Partition& partition = *partitions_[index];
  for (int attempt = 0; attempt < kTries; ++attempt) {
    const TimeUs now = Loop::current()->now_us();
    const bool ahead = state.position >= batch.to;
    if (ahead && !beats) co_return;
    FeedStep feed{.expected = state.position,
                  .position = std::max(state.position, batch.to),
                  .heartbeat = beats ? partition.to_theirs(batch.heartbeat, now) : 0,
                  .source_id = batch.source_id,
                  .xmin = batch.xmin,
                  .committed_at = partition.to_theirs(batch.committed_at, now)};
    if (!ahead) feed.changes = changes;
    const std::uint64_t position = feed.position;
    Step step = feed_step(partition.names(), feed);
    auto reply = co_await steps_.run(std::move(step), true, now + timeout_us_);
    const auto answer =
        reply ? change_answer(*reply) : Result<ChangeAnswer>(std::unexpected(reply.error()));
    if (!answer) {
      keep_first(outcome, answer.error());
      co_return;
    }
    partition.observe(now, answer->engine_now, Loop::current()->now_us());
    if (answer->applied) {
      state.position = position;
      co_return;
    }
    if (!answer->position.has_state() || answer->source_id != batch.source_id) {
      state.known = false;
      co_return;
    }
    const std::uint64_t before = state.position;
    state.position = answer->feed_position;
    if (state.position > batch.to) break;
    // A failover has lost the last steps. What of them is older than this batch has to be read
    // again; the rest the batch has.
    if (state.position < before && state.position < batch.from) {
      delivered_ = std::min(delivered_, state.position);
      co_return;
    }
  }
  keep_first(outcome, {ErrorCode::engine_down, "another feed is faster", "redis"});
}

Task<Result<void>> Feeder::apply_all(FeedBatch& batch) {
  const TimeUs now = Loop::current()->now_us();
  const bool beats = batch.heartbeat != 0 && now - beat_at_ >= beat_us_;
  auto changes = by_partition(batch);
  Result<void> outcome;
  std::vector<Task<void>> tasks;
  for (std::size_t i = 0; i < partitions_.size(); ++i)
    if (beats || !changes[i].empty())
      tasks.push_back(apply(i, batch, std::move(changes[i]), beats, outcome));
  co_await when_all(std::move(tasks));
  if (outcome && beats) beat_at_ = now;
  co_return outcome;
}

Task<Result<FeedOrder>> Feeder::deliver(FeedBatch batch, TaskGroup& group) {
  const auto leased = co_await wait_for_lease(group);
  if (!leased) co_return std::unexpected(leased.error());
  Result<void> done;
  if (batch.source_id != source_id_) {
    began_ = false;
    confirmed_.reset();
  }
  source_id_ = batch.source_id;
  if (!began_) {
    done = co_await read_all(batch.source_id);
    if (!done) co_return std::unexpected(done.error());
    began_ = true;
    delivered_ = batch.everything ? batch.from : batch.to;
    for (const State& state : states_)
      if (state.known) delivered_ = std::min(delivered_, state.position);
    batch.floor.reset();  // it was read for marks of an earlier lease
    // It may also have been read before the lease was ours, while another feed was further.
    if (!batch.everything && !beyond(batch).empty()) co_return order();
    if (!order().new_epoch && delivered_ != batch.from) co_return order();
  } else if (batch.heartbeat != 0) {
    // Nobody but us moves A, and this is the log's end: A is of another log, or of a later state of
    // a database that was put back. What comes now would be taken for what is known.
    for (State* const state : beyond(batch)) state->known = false;
  }
  if (batch.floor) {
    const bool some = std::ranges::any_of(states_, [](const State& s) { return s.known; });
    std::vector<Task<void>> tasks;
    for (std::size_t i = 0; i < states_.size(); ++i)
      if (!states_[i].mark.empty()) tasks.push_back(write_epoch(i, batch, done));
    co_await when_all(std::move(tasks));
    if (!some) delivered_ = batch.to;
  } else if (batch.everything) {
    for (State& state : states_) state.known = false;
  } else if (!order().new_epoch) {
    if (batch.from != delivered_) co_return order();
    done = co_await apply_all(batch);
    if (done && delivered_ == batch.from && !order().new_epoch) delivered_ = batch.to;
  }
  if (done) done = co_await mark_missing();
  if (!done) {
    began_ = false;  // what was applied and what not is not known
    co_return std::unexpected(done.error());
  }
  note_applied();
  co_return order();
}

}  // namespace larder::engine::redis
