#include "engine/redis/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "base/random.h"

namespace larder::engine::redis {
namespace {

// After a step that got no answer in time, the engine is left alone for so long: whoever reads
// meanwhile goes to the source at once.
constexpr DurationUs kSuspect = 200 * kMillisecond;
constexpr unsigned kHistory = 1'000;  // messages fetched at once
constexpr DurationUs kFarUs = 3650LL * 24 * 3600 * kSecond;

std::string new_token() {
  thread_local Random random(mix64(static_cast<std::uint64_t>(monotonic_now_us())) ^
                             reinterpret_cast<std::uintptr_t>(&random) ^ hash_seed());
  return fmt::format("{:016x}{:016x}", random.next(), random.next());
}

std::uint32_t to_load_us(DurationUs us) {
  return static_cast<std::uint32_t>(std::clamp<DurationUs>(us, 0, UINT32_MAX));
}

}  // namespace

RedisEngine::RedisEngine(Client& client, near::Store& near, Options options)
    : client_(client), near_(near), options_(std::move(options)), steps_(client, options_.edit) {
  capabilities_ = {.kind = "redis", .shared = true};
  for (unsigned s = 0; s < options_.sources.size(); ++s) {
    auto source = std::make_unique<Source>();
    source->heartbeats = std::vector<std::atomic<TimeUs>>(options_.partitions);
    std::vector<Partition*> all;
    for (unsigned p = 0; p < options_.partitions; ++p) {
      Names names(options_.name_space, options_.sources[s], p, options_.partitions,
                  client.cluster());
      source->partitions.push_back(std::make_unique<Partition>(
          std::move(names), s, near, source->heartbeats[p], options_.follower));
      all.push_back(source->partitions.back().get());
      following_[all.back()->names().channel()].partition = all.back();
    }
    source->feeder = std::make_unique<Feeder>(client, steps_, std::move(all), options_.beat_us,
                                              options_.timeout_us, &hooks_);
    capabilities_.heartbeats.emplace_back(source->heartbeats);
    sources_.push_back(std::move(source));
  }
}

RedisEngine::~RedisEngine() = default;

void RedisEngine::start(TaskGroup& group, Hooks hooks) {
  group_ = &group;
  hooks_ = std::move(hooks);
  LARDER_ASSERT(hooks_.sources.size() == sources_.size());
  std::vector<std::string> channels;
  for (std::size_t s = 0; s < sources_.size(); ++s) {
    Source& source = *sources_[s];
    for (const auto& partition : source.partitions) {
      partition->set_hooks(&hooks_);
      channels.push_back(partition->names().channel());
    }
    // Five beats a bound, so that one may be late.
    if (const DurationUs bound = hooks_.sources[s].bound_us; bound != 0)
      source.feeder->set_beat(std::min(options_.beat_us, bound / 5));
    if (!hooks_.sources[s].feeds) group.spawn(source.feeder->keep_epochs(group));
  }
  if (!channels.empty()) client_.subscribe(std::move(channels), client_.cluster(), *this);
}

Task<void> RedisEngine::stop() {
  if (group_ == nullptr) co_return;
  co_await client_.unsubscribe(*this);
  for (const auto& source : sources_) co_await source->feeder->give_up_lease();
}

Partition& RedisEngine::partition_of_key(unsigned source, std::string_view key) const {
  return *sources_[source]->partitions[partition_of(key, options_.partitions)];
}

bool RedisEngine::suspect(TimeUs now) const {
  return now < suspect_until_.load(std::memory_order_relaxed);
}

void RedisEngine::judge_call(const Error* error, TimeUs now) {
  if (error != nullptr && error->code == ErrorCode::timeout)
    suspect_until_.store(now + kSuspect, std::memory_order_relaxed);
}

// ---- lookup ----

Task<std::vector<Found>> RedisEngine::lookup(Lookup lookup) {
  std::vector<Found> found(lookup.keys.size());
  std::map<Partition*, std::vector<std::size_t>> by_partition;
  for (std::size_t i = 0; i < lookup.keys.size(); ++i)
    by_partition[&partition_of_key(lookup.cache.source, lookup.keys[i].text)].push_back(i);
  std::vector<Task<void>> tasks;
  tasks.reserve(by_partition.size());
  for (auto& [partition, which] : by_partition)
    tasks.push_back(lookup_in(lookup, *partition, std::move(which), false, found));
  if (tasks.size() == 1) {
    Task<void> only = std::move(tasks.front());
    co_await only;
  } else {
    co_await when_all(std::move(tasks));
  }
  co_return found;
}

// What `found` says before the engine has answered: load, and store nothing.
Task<void> RedisEngine::lookup_in(const Lookup& lookup, Partition& partition,
                                  std::vector<std::size_t> which, bool waits,
                                  std::vector<Found>& found) {
  const TimeUs sent = Loop::current()->now_us();
  std::vector<LookupKey> keys;
  std::vector<std::string> tokens;
  tokens.reserve(which.size());
  const std::uint64_t generation = partition.generation();
  for (const std::size_t i : which) {
    Found& one = found[i];
    // Before the question: what is voided from here on is not installed.
    one.ticket = {.near = near_.ticket(lookup.keys[i].hash), .generation = generation};
    tokens.push_back(lookup.peek ? std::string() : new_token());
    keys.push_back({.schema = lookup.cache.schema,
                    .key = lookup.keys[i].text,
                    .token = tokens.back(),
                    .wants_ticket = lookup.reload,
                    .waits = waits});
    if (waits) one.filled = partition.wait_for(lookup.keys[i].text);
  }
  Error error{ErrorCode::timeout, "", {}};
  Result<LookupAnswer> answer = std::unexpected(error);
  if (!suspect(sent)) {
    Step step = lookup_step(partition.names(), keys, lookup.peek ? 0 : lookup.ticket_us);
    const TimeUs deadline = std::min(lookup.deadline, sent + options_.timeout_us);
    auto reply = co_await steps_.run(std::move(step), false, deadline);
    judge_call(reply || deadline < sent + options_.timeout_us ? nullptr : &reply.error(),
               Loop::current()->now_us());
    if (reply) answer = lookup_answer(*reply);
  }
  if (!answer || answer->found.size() != which.size()) {
    for (const std::size_t i : which) {
      found[i].kind = Found::Kind::ticket;
      found[i].ticket.near_only = true;
    }
    co_return;
  }
  const TimeUs now = Loop::current()->now_us();
  partition.observe(sent, answer->engine_now, now);
  for (std::size_t i = 0; i < which.size(); ++i) found[which[i]].ticket.token = tokens[i];
  take(lookup, partition, *answer, now, which, found);
  if (waits) co_return;
  // Somebody else loads. His fill may have been told already: wait first, then ask once more.
  std::vector<std::size_t> busy;
  for (const std::size_t i : which)
    if (found[i].kind == Found::Kind::busy) busy.push_back(i);
  if (busy.empty()) co_return;
  Task<void> again = lookup_in(lookup, partition, std::move(busy), true, found);
  co_await again;
}

void RedisEngine::take(const Lookup& lookup, Partition& partition, const LookupAnswer& answer,
                       TimeUs now, const std::vector<std::size_t>& which,
                       std::vector<Found>& found) {
  using Kind = KeyAnswer::Kind;
  const TimeUs heartbeat = partition.to_ours(answer.heartbeat, now);
  struct Install {
    std::size_t key;
    const std::vector<std::string>* tags;
  };
  std::vector<Install> installs;
  for (std::size_t i = 0; i < which.size(); ++i) {
    const KeyAnswer& theirs = answer.found[i];
    engine::Found& ours = found[which[i]];
    ours.heartbeat = heartbeat;
    ours.kind = theirs.kind == Kind::hit    ? engine::Found::Kind::hit
                : theirs.kind == Kind::busy ? engine::Found::Kind::busy
                                            : engine::Found::Kind::ticket;
    if (theirs.kind != Kind::ticket) ours.ticket.token.clear();
    ours.ticket.epoch = answer.position.epoch;
    ours.until = now + theirs.ticket_us;
    ours.has_value = theirs.entry.has_value();
    if (!ours.has_value) continue;
    const StoredEntry& entry = *theirs.entry;
    ours.value = entry.value;
    ours.meta = {.cache_id = lookup.cache.near_id,
                 .negative = entry.negative,
                 .load_us = entry.load_us,
                 .ttl_us = entry.ttl_us,
                 .as_of = partition.to_ours(entry.as_of, now),
                 .soft_expiry = partition.to_ours(entry.soft_expiry, now),
                 .useless_at = partition.to_ours(entry.useless_at, now)};
    if (ours.kind != engine::Found::Kind::busy) installs.push_back({which[i], &entry.tags});
  }
  // After the times were read: another history may be another server's, with its own clock.
  for (const Install& one : installs) {
    const engine::Found& ours = found[one.key];
    if (lookup.peek || !lookup.cache.near ||
        !partition.may_install(answer.position, ours.ticket.generation))
      continue;
    install(partition, lookup.keys[one.key], ours.ticket, ours.meta, ours.value, *one.tags);
  }
}

void RedisEngine::install(Partition& partition, Key key, const Ticket& ticket,
                          const near::Meta& meta, std::string_view value,
                          const std::vector<std::string>& tags) {
  std::vector<Hash> hashes;
  hashes.reserve(tags.size() + 1);
  for (const std::string& tag : tags) hashes.push_back(hash_bytes(tag));
  hashes.push_back(partition.reset_tag());
  near_.fill(ticket.near, key.text, key.hash, value, meta, hashes);
}

// ---- fill ----

Task<policy::Refusal> RedisEngine::fill(Fill fill) {
  Partition& partition = partition_of_key(fill.cache.source, fill.key.text);
  const std::vector<std::string> tags(fill.tags.begin(), fill.tags.end());
  if (fill.ticket.token.empty()) {
    // Somebody else's ticket, or no state to give one.
    if (!fill.ticket.near_only)
      co_return fill.ticket.epoch.empty() ? policy::Refusal::no_state : policy::Refusal::ticket;
    if (!fill.cache.near) co_return policy::Refusal::no_state;
    // The engine is down. What changes now may not be told to us: a short life, whatever a feed
    // promises of the others.
    fill.meta.alone = true;
    const DurationUs life = fill.cache.bound_us != 0 ? fill.cache.bound_us : options_.near_only_us;
    fill.meta.soft_expiry = std::min(fill.meta.soft_expiry, fill.meta.as_of + life);
    fill.meta.useless_at = std::max(fill.meta.soft_expiry, fill.meta.useless_at);
    install(partition, fill.key, fill.ticket, fill.meta, fill.value, tags);
    co_return policy::Refusal::no_state;
  }
  const TimeUs sent = Loop::current()->now_us();
  FillRequest request{.schema = fill.cache.schema,
                      .key = fill.key.text,
                      .token = fill.ticket.token,
                      .epoch = fill.ticket.epoch,
                      .entry = {}};
  StoredEntry& entry = request.entry;
  entry.snapshot = fill.snapshot;
  entry.negative = fill.meta.negative;
  entry.load_us = to_load_us(fill.meta.load_us);
  entry.ttl_us = fill.meta.ttl_us;
  entry.as_of = partition.to_theirs(fill.meta.as_of, sent);
  entry.soft_expiry = partition.to_theirs(fill.meta.soft_expiry, sent);
  entry.useless_at =
      std::min(partition.to_theirs(fill.meta.useless_at, sent), entry.as_of + kFarUs);
  entry.tags = tags;
  entry.value = fill.value;
  Step step = fill_step(partition.names(), request);
  const TimeUs deadline = std::min(fill.deadline, sent + options_.timeout_us);
  auto reply = co_await steps_.run(std::move(step), false, deadline);
  // A caller in a hurry says nothing about the engine.
  judge_call(reply || deadline < sent + options_.timeout_us ? nullptr : &reply.error(),
             Loop::current()->now_us());
  const auto answer =
      reply ? fill_answer(*reply) : Result<FillAnswer>(std::unexpected(reply.error()));
  if (!answer) co_return policy::Refusal::no_state;
  if (answer->refusal == policy::Refusal::none && fill.cache.near &&
      partition.may_install(answer->position, fill.ticket.generation))
    install(partition, fill.key, fill.ticket, fill.meta, fill.value, tags);
  co_return answer->refusal;
}

Task<void> RedisEngine::release(Cache cache, Key key, Ticket ticket) {
  if (ticket.token.empty()) co_return;
  Partition& partition = partition_of_key(cache.source, key.text);
  // A fill for no epoch is refused, and a refused fill ends its ticket.
  const FillRequest request{
      .schema = cache.schema, .key = key.text, .token = ticket.token, .epoch = "-", .entry = {}};
  Step step = fill_step(partition.names(), request);
  const TimeUs deadline = Loop::current()->now_us() + options_.timeout_us;
  co_await steps_.run(std::move(step), true, deadline);
}

// ---- invalidate ----

Task<void> RedisEngine::change_in(Partition& partition, std::vector<Invalidation> changes,
                                  Result<void>& outcome) {
  const TimeUs sent = Loop::current()->now_us();
  if (suspect(sent)) {  // a writer holds his transaction open meanwhile
    outcome = fail(ErrorCode::engine_down, "the engine has not answered in time", "redis");
    co_return;
  }
  Step step = invalidate_step(partition.names(), std::move(changes));
  auto reply = co_await steps_.run(std::move(step), true, sent + options_.timeout_us);
  judge_call(reply ? nullptr : &reply.error(), Loop::current()->now_us());
  const auto answer =
      reply ? change_answer(*reply) : Result<ChangeAnswer>(std::unexpected(reply.error()));
  if (!answer)
    outcome = std::unexpected(answer.error());
  else
    partition.observe(sent, answer->engine_now, Loop::current()->now_us());
}

Task<Result<void>> RedisEngine::invalidate(std::vector<Change> changes) {
  std::map<unsigned, std::vector<std::vector<Invalidation>>> by_source;
  for (const Change& change : changes) {
    auto& split = by_source[change.source];
    split.resize(options_.partitions);
    split_change(change, hooks_, options_.partitions, split);
  }
  Result<void> outcome;
  std::vector<Task<void>> tasks;
  for (auto& [source, split] : by_source)
    for (unsigned p = 0; p < options_.partitions; ++p)
      if (!split[p].empty())
        tasks.push_back(change_in(*sources_[source]->partitions[p], std::move(split[p]), outcome));
  co_await when_all(std::move(tasks));
  // After the engine, so that nobody brings here what it still had; and also if it is down.
  for (const Change& change : changes) {
    for (std::size_t i = 0; i < change.keys.size(); ++i) {
      const std::string& key = change.keys[i];
      const bool keep = !change.keep_for_error.empty() && change.keep_for_error[i];
      near_.invalidate(hash_bytes(key), key, keep);
      partition_of_key(change.source, key).wake(key);
    }
    for (const std::string& tag : change.tags) near_.invalidate_tag(hash_bytes(tag));
  }
  co_return outcome;
}

Task<Result<void>> RedisEngine::new_epoch(unsigned /*source*/, std::uint64_t /*source_id*/) {
  co_return fail(ErrorCode::internal, "epochs of a shared engine are begun by the feed", "redis");
}

Task<Result<FeedOrder>> RedisEngine::feed(unsigned source, FeedBatch batch) {
  auto order = co_await sources_[source]->feeder->deliver(std::move(batch), *group_);
  co_return order;
}

// ---- following ----

void RedisEngine::on_message(std::string_view channel, std::string_view text) {
  const auto found = following_.find(std::string(channel));
  if (found == following_.end()) return;
  Following& following = found->second;
  const auto message = parse_message(text);
  if (!message) {  // another version of Larder, or somebody else: who knows what it said
    following.partition->forget();
    look(following);
    return;
  }
  const TimeUs now = Loop::current()->now_us();
  if (following.partition->on_message(*message, now) == Partition::Need::look) look(following);
}

void RedisEngine::on_subscribed(std::string_view channel) {
  const auto found = following_.find(std::string(channel));
  if (found == following_.end()) return;
  found->second.live = true;
  look(found->second);
}

void RedisEngine::on_lost(std::string_view channel) {
  const auto found = following_.find(std::string(channel));
  if (found == following_.end()) return;
  found->second.live = false;
  found->second.partition->on_lost();
}

void RedisEngine::look(Following& following) {
  following.again = true;
  if (following.looking) return;
  following.looking = true;
  if (!group_->spawn(catch_up(following))) following.looking = false;
}

// Reads what there is until nothing is missing. One at a time for each partition.
Task<void> RedisEngine::catch_up(Following& following) {
  Partition& partition = *following.partition;
  while (following.live && following.again) {
    following.again = false;
    const bool done = co_await catch_up_once(partition);
    if (group_->stopping()) break;
    if (done) continue;
    following.again = true;
    const TimeUs next = Loop::current()->now_us() + kSuspect;
    co_await group_->sleep_until(next);
  }
  following.looking = false;
}

// False: the engine did not answer.
Task<bool> RedisEngine::catch_up_once(Partition& partition) {
  for (;;) {
    const TimeUs sent = Loop::current()->now_us();
    Step step = read_step(partition.names());
    auto reply = co_await steps_.run(std::move(step), true, sent + options_.timeout_us);
    const auto state =
        reply ? state_answer(*reply) : Result<StateAnswer>(std::unexpected(reply.error()));
    if (!state) co_return false;
    const TimeUs now = Loop::current()->now_us();
    partition.observe(sent, state->engine_now, now);
    if (partition.on_position(state->position, state->heartbeat, now) == Partition::Need::nothing)
      co_return true;
    const std::uint64_t after = partition.position().n;
    step = history_step(partition.names(), after, kHistory);
    reply = co_await steps_.run(std::move(step), true, now + options_.timeout_us);
    const auto history = reply ? history_answer(*reply)
                               : Result<std::vector<Message>>(std::unexpected(reply.error()));
    if (!history) {
      if (!reply && reply.error().code != ErrorCode::too_large) co_return false;
      partition.forget();  // it cannot be read: another version's, or too large
      continue;
    }
    // What is there must begin where we are, or too much is gone.
    if (history->empty() || history->front().position.n > after + 1) partition.forget();
    for (const Message& message : *history) {
      if (partition.on_message(message, now) != Partition::Need::look) continue;
      partition.forget();
      break;
    }
  }
}

}  // namespace larder::engine::redis
