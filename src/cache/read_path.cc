// near -> engine -> source, and the fill on the way back.
#include <fmt/format.h>

#include <boost/json.hpp>

#include "cache/impl.h"

namespace larder::cache {
namespace {

constexpr std::uint64_t kNearSample = 32;  // one near hit in so many is timed, and counts for all

// The whole of a load may take a little longer than its deadline (scheduling, the fill); whoever
// waits for it gives it that much.
constexpr DurationUs kGrace = 250 * kMillisecond;

// Two translations of one engine's time into ours differ by less.
constexpr DurationUs kSameExpiry = 10 * kMillisecond;

Reading reading_of(const near::View& view, TimeUs now, Tier tier) {
  return {.found = !view.meta.negative,
          .value = std::string(view.value),
          .tier = tier,
          .age_us = std::max<DurationUs>(0, now - view.meta.as_of),
          .ttl_us = view.meta.soft_expiry > now ? view.meta.soft_expiry - now : 0};
}

Tier home_of(const CacheRuntime& cache) { return cache.spec.near ? Tier::near : Tier::engine; }

}  // namespace

// ---- the near tier ----

policy::Freshness Node::Impl::judge(const CacheRuntime& cache, const near::View& view, TimeUs now,
                                    SourceState source) const {
  policy::FreshnessInput in{
      .now = now,
      .as_of = view.meta.as_of,
      .soft_expiry = view.meta.soft_expiry,
      .load_us = view.meta.load_us,
      .is_void = view.is_void,
      .heartbeat = cache.rules.bound_us && cache.guarantee.fed && !view.meta.alone
                       ? sources[cache.source]->heartbeat_of(view.key)
                       : 0,
      .source_failed = source == SourceState::failed,
      .source_slow = source == SourceState::slow};
  if (cache.rules.refresh_ahead) in.random = dice();
  return policy::decide(in, cache.rules);
}

policy::Freshness Node::Impl::judge_found(const CacheRuntime& cache, const engine::Found& found,
                                          TimeUs now) const {
  policy::FreshnessInput in{
      .now = now,
      .as_of = found.meta.as_of,
      .soft_expiry = found.meta.soft_expiry,
      .load_us = found.meta.load_us,
      .heartbeat = cache.rules.bound_us && cache.guarantee.fed ? found.heartbeat : 0};
  if (cache.rules.refresh_ahead) in.random = dice();
  return policy::decide(in, cache.rules);
}

Node::Quick Node::read_now(std::string_view key, Hash hash, TimeUs now,
                           void (*on_value)(void*, std::string_view), void* context) {
  Quick answer = Quick::miss;
  const CacheRuntime* cache = nullptr;
  policy::Freshness freshness = policy::Freshness::fresh;
  impl_->near.lookup(key, hash, now, [&](const near::View& view) {
    if (view.meta.cache_id == 0) {  // plain: it lives until it expires
      if (view.is_void || view.meta.soft_expiry <= now) return;
      on_value(context, view.value);
      answer = Quick::hit;
      return;
    }
    const CacheRuntime& owner = *impl_->caches[view.meta.cache_id - 1u];
    freshness = impl_->judge(owner, view, now, Impl::SourceState::unknown);
    if (freshness > policy::Freshness::revalidate) return;
    cache = &owner;
    if (view.meta.negative) {
      answer = Quick::absent;
    } else {
      on_value(context, view.value);
      answer = Quick::hit;
    }
  });
  if (!cache) {
    if (answer == Quick::miss && impl_->behind && impl_->behind->pending().any())
      return impl_->read_waiting(key, hash, now, on_value, context);
    return answer;
  }

  const bool late = freshness == policy::Freshness::revalidate;
  const auto tier = static_cast<std::size_t>(late ? Tier::stale : home_of(*cache));
  const CacheMetrics::Pair& series = cache->metrics.by_op_tier[0][tier];
  series.requests->add();
  thread_local std::uint64_t sample = 0;
  if (++sample % kNearSample == 0)
    series.seconds->record(Loop::current()->now_us() - now, kNearSample);
  if (cache->spec.sliding && answer == Quick::hit && !late) impl_->near.touch(key, hash, now);
  if (freshness != policy::Freshness::fresh) {
    if (late) cache->metrics.stale_served[0]->add();
    impl_->refresh_in_background(cache->id - 1u, key, hash);
  }
  return answer;
}

// A write that waits in the journal: found only after a miss, since accepting it has voided what
// was held near, and nothing is stored while it waits.
Node::Quick Node::Impl::read_waiting(std::string_view key, Hash hash, TimeUs now,
                                     void (*on_value)(void*, std::string_view),
                                     void* context) const {
  const int index = cache_of(key);
  if (index < 0) return Quick::miss;
  const CacheRuntime& cache = *caches[static_cast<std::size_t>(index)];
  const std::optional<Reading> waiting = waiting_write(cache, key, hash);
  if (!waiting) return Quick::miss;
  if (waiting->found) on_value(context, waiting->value);
  count(cache, Op::get, static_cast<std::size_t>(Tier::journal), this->now() - now);
  return waiting->found ? Quick::hit : Quick::absent;
}

Node::Impl::NearReading Node::Impl::read_near(const CacheRuntime& cache, std::string_view key,
                                              Hash hash, TimeUs now, SourceState source) {
  NearReading result;
  near.lookup(key, hash, now, [&](const near::View& view) {
    if (view.meta.cache_id != cache.id) return;
    result.freshness = judge(cache, view, now, source);
    const bool on_time = result.freshness <= policy::Freshness::refresh_early;
    result.reading = reading_of(view, now, on_time ? home_of(cache) : Tier::stale);
  });
  return result;
}

// ---- loading ----

source::Params Node::Impl::params_of(const CacheRuntime& cache,
                                     const std::vector<std::string_view>& params) const {
  source::Params result;
  const auto& declared = cache.spec.key.params();
  for (std::size_t i = 0; i < declared.size(); ++i) {
    if (declared[i].type == policy::ParamType::integer) {
      std::int64_t number = 0;
      std::from_chars(params[i].data(), params[i].data() + params[i].size(), number);
      result.push_back({declared[i].name, number});
    } else {
      result.push_back({declared[i].name, std::string(params[i])});
    }
  }
  return result;
}

void Node::Impl::finish(const LoadFlight& flight, Result<std::shared_ptr<const Reading>> reading) {
  flight->outcome.reading = std::move(reading);
  flights.finish(flight);
}

void Node::Impl::start_load(unsigned cache, std::vector<LoadFlight> batch) {
  std::vector<LoadFlight> started = batch;
  if (group.spawn(load(cache, std::move(batch)))) return;
  for (const LoadFlight& flight : started)
    finish(flight, fail(ErrorCode::cancelled, "Larder is shutting down"));
}

void Node::Impl::refresh_in_background(unsigned cache, std::string_view key, Hash hash) {
  LoadFlights::Joined joined = flights.join_or_start(key, hash);
  if (!joined.leads) return;
  near.lookup(key, hash, now(),
              [&](const near::View& view) { joined.flight->held_until = view.meta.soft_expiry; });
  caches[cache]->metrics.early_refreshes->add();
  start_load(cache, {std::move(joined.flight)});
}

// A read of a strong cache on a shared engine joins nobody: the flight may have had its answer from
// the engine before a write on another node which this reader knows of.
LoadFlights::Joined Node::Impl::join(const CacheRuntime& cache, std::string_view key, Hash hash) {
  if (cache.rules.strong && engine.capabilities().shared) return flights.start_alone(key, hash);
  return flights.join_or_start(key, hash);
}

// Does what the engine has end the flight?
bool Node::Impl::answer_from_engine(unsigned index, const LoadFlight& flight,
                                    engine::Found& found) {
  if (!found.has_value || flight->reload) return false;
  const CacheRuntime& cache = *caches[index];
  const policy::Freshness freshness = judge_found(cache, found, now());
  if (freshness > policy::Freshness::revalidate) return false;
  // A reload wants something newer than what is held here.
  if (found.meta.soft_expiry <= saturating_add(flight->held_until, kSameExpiry)) return false;
  const bool late = freshness == policy::Freshness::revalidate;
  if (late) cache.metrics.stale_served[0]->add();
  const TimeUs at = now();
  auto reading = std::make_shared<Reading>(
      Reading{.found = !found.meta.negative,
              .value = std::move(found.value),
              .tier = late ? Tier::stale : Tier::engine,
              .age_us = std::max<DurationUs>(0, at - found.meta.as_of),
              .ttl_us = std::max<DurationUs>(0, found.meta.soft_expiry - at)});
  events.note(flight->hash, {.kind = policy::ProtocolEvent::Kind::engine, .at = at});
  if (flight->held_until != 0) tell({&flight->key, 1}, false);  // it replaces an older one here
  finish(flight, std::shared_ptr<const Reading>(std::move(reading)));
  if (freshness == policy::Freshness::refresh_early) {
    LoadFlights::Joined anew = flights.join_or_start(flight->key, flight->hash);
    if (anew.leads) {
      anew.flight->reload = true;
      cache.metrics.early_refreshes->add();
      start_load(index, {std::move(anew.flight)});
    }
  }
  return true;
}

// Asks the engine for the keys of `batch`; what it does not have, and nobody else loads, is loaded
// by one query.
Task<void> Node::Impl::load(unsigned index, std::vector<LoadFlight> batch) {
  const CacheRuntime& cache = *caches[index];
  engine::Lookup lookup{
      .cache = cache.in_engine(), .keys = {}, .ticket_us = cache.spec.load_timeout_us + kGrace};
  std::vector<LoadFlight> asked = std::move(batch);
  std::vector<LoadFlight> to_load;
  // Twice at most: an entry that is there but will not do is asked for again, with a ticket.
  for (int round = 0; round < 2 && !asked.empty(); ++round) {
    lookup.keys.clear();
    lookup.reload = round == 1;
    lookup.deadline = kNever;
    for (const LoadFlight& flight : asked) {
      if (flight->deadline == 0)
        flight->deadline = saturating_add(now(), cache.spec.load_timeout_us);
      lookup.deadline = std::min(lookup.deadline, flight->deadline);
      lookup.keys.push_back({flight->key, flight->hash});
      if (flight->reload) lookup.reload = true;
    }
    engine::Lookup question = lookup;
    std::vector<engine::Found> found = co_await engine.lookup(std::move(question));
    std::vector<LoadFlight> again;
    for (std::size_t i = 0; i < asked.size(); ++i) {
      LoadFlight& flight = asked[i];
      if (answer_from_engine(index, flight, found[i])) {
        if (found[i].kind != engine::Found::Kind::ticket) continue;
        // It was late: answered already, and ours to load.
        LoadFlights::Joined next = flights.join_or_start(flight->key, flight->hash);
        if (!next.leads) {
          group.spawn(release(index, flight, std::move(found[i].ticket)));
          continue;
        }
        flight = std::move(next.flight);
        flight->deadline = saturating_add(now(), cache.spec.load_timeout_us);
      }
      if (found[i].kind == engine::Found::Kind::ticket) {
        flight->ticket = std::move(found[i].ticket);
        events.note(flight->hash, {.kind = policy::ProtocolEvent::Kind::ticket, .at = now()});
        to_load.push_back(std::move(flight));
      } else if (found[i].kind == engine::Found::Kind::hit) {
        flight->reload = true;
        again.push_back(std::move(flight));
      } else {
        LoadFlight waits = flight;
        if (!group.spawn(look_again(index, std::move(waits), std::move(found[i]))))
          finish(flight, fail(ErrorCode::cancelled, "Larder is shutting down"));
      }
    }
    asked = std::move(again);
  }
  for (const LoadFlight& flight : asked)
    finish(flight, fail(ErrorCode::internal, "the engine gave no ticket for a reload"));
  if (!to_load.empty()) co_await load_from_source(index, std::move(to_load));
}

// Somebody else loads: his fill wakes us, or the end of his ticket does. Whoever has waited for
// half of his time loads for himself: then the answer is late, but there is one.
Task<void> Node::Impl::look_again(unsigned index, LoadFlight flight, engine::Found busy) {
  const TimeUs patience = flight->deadline - caches[index]->spec.load_timeout_us / 2;
  const TimeUs until = std::min(busy.until, patience);
  if (busy.filled) {
    co_await busy.filled->wait_until(until);
  } else {
    co_await group.sleep_until(until);
  }
  flight->reload = false;  // what he has loaded is as good
  std::vector<LoadFlight> batch{std::move(flight)};
  if (now() < patience) {
    co_await load(index, std::move(batch));
    co_return;
  }
  batch.front()->ticket = std::move(busy.ticket);  // it stores nothing
  co_await load_from_source(index, std::move(batch));
}

Task<void> Node::Impl::give_up(unsigned index, LoadFlight flight, Error error) {
  finish(flight, std::unexpected(std::move(error)));
  engine::Ticket ticket = flight->ticket;
  co_await release(index, std::move(flight), std::move(ticket));
}

// Whoever waits for the key on another node may try himself.
Task<void> Node::Impl::release(unsigned index, LoadFlight flight, engine::Ticket ticket) {
  engine::Cache where = caches[index]->in_engine();
  const engine::Key key{flight->key, flight->hash};
  co_await engine.release(where, key, std::move(ticket));
}

Task<void> Node::Impl::load_from_source(unsigned index, std::vector<LoadFlight> batch) {
  const CacheRuntime& cache = *caches[index];
  std::vector<source::Params> keys;
  keys.reserve(batch.size());
  std::vector<std::string_view> params;
  TimeUs deadline = kNever;
  for (const LoadFlight& flight : batch) {
    cache.spec.key.match(flight->key, params);
    keys.push_back(params_of(cache, params));
    deadline = std::min(deadline, flight->deadline);
  }
  const TimeUs asked = now();
  // Whoever has written, or was told that something is newer, asks the source itself.
  const bool newest = cache.rules.strong || std::ranges::any_of(batch, [](const auto& flight) {
                        return flight->newest || flight->reload;
                      });
  const source::LoadTerms terms(deadline, !newest);
  Result<source::Loaded> loaded =
      co_await sources[cache.source]->source->load(index, std::move(keys), terms);
  std::vector<Task<void>> ends;
  if (loaded && loaded->rows.size() == batch.size()) {
    if (loaded->snapshot.known())
      co_await begin_incarnation(cache.source, loaded->snapshot.source_id, asked);
    for (std::size_t i = 0; i < batch.size(); ++i)
      ends.push_back(settle(index, batch[i], std::move(loaded->rows[i]), *loaded));
  } else {
    const Error failure = loaded
                              ? Error{ErrorCode::internal, "the source answered for other keys", {}}
                              : loaded.error();
    for (const LoadFlight& flight : batch) ends.push_back(give_up(index, flight, failure));
  }
  if (ends.size() == 1) {
    Task<void> only = std::move(ends.front());
    co_await only;
  } else {
    co_await when_all(std::move(ends));  // their fills leave together
  }
}

Task<void> Node::Impl::ask_again(unsigned index, LoadFlight flight, bool has_ticket) {
  flight->newest = true;
  if (has_ticket) {
    LoadFlight same = flight;
    engine::Ticket ticket = flight->ticket;
    co_await release(index, std::move(same), std::move(ticket));
  }
  std::vector<LoadFlight> batch{std::move(flight)};
  co_await load(index, std::move(batch));
}

// What is held of the key is void: the row is gone, or what it has become cannot be held.
Task<void> Node::Impl::drop(const CacheRuntime& cache, LoadFlight flight) {
  near.invalidate(flight->hash, flight->key, false);
  // Only a reload can have left an entry in a shared engine.
  if (!engine.capabilities().shared || !flight->reload) co_return;
  std::vector<engine::Change> gone{{.source = cache.source, .keys = {flight->key}, .tags = {}}};
  co_await engine.invalidate(std::move(gone));  // an error: it ends by its TTL
}

std::vector<std::string> Node::Impl::tags_of(
    const CacheRuntime& cache, const std::vector<std::string_view>& params,
    const std::vector<std::optional<std::string>>& tag_values) const {
  std::vector<std::string> tags{cache.cache_tag};
  for (const PartialDependency& partial : cache.partial) {
    std::vector<std::string_view> values;
    values.reserve(partial.params.size());
    for (const int param : partial.params)
      values.push_back(params[static_cast<std::size_t>(param)]);
    tags.push_back(partial_tag(partial.watched_id, cache.spec, values));
  }
  // The same order in which Node::load_statements asked for the columns.
  std::vector<std::string> columns;
  for (const TagPattern& tag : cache.spec.tags)
    for (const std::string& name : tag.names)
      if (cache.spec.key.param_index(name) < 0 && std::ranges::find(columns, name) == columns.end())
        columns.push_back(name);
  for (const TagPattern& pattern : cache.spec.tags) {
    std::string tag = pattern.literals.front();
    bool complete = true;  // a tag of a NULL column is no tag
    for (std::size_t i = 0; i < pattern.names.size() && complete; ++i) {
      const int param = cache.spec.key.param_index(pattern.names[i]);
      if (param >= 0) {
        tag += params[static_cast<std::size_t>(param)];
      } else {
        const auto column = static_cast<std::size_t>(std::ranges::find(columns, pattern.names[i]) -
                                                     columns.begin());
        complete = column < tag_values.size() && tag_values[column].has_value();
        if (complete) tag += *tag_values[column];
      }
      tag += pattern.literals[i + 1];
    }
    if (complete) tags.push_back(std::move(tag));
  }
  return tags;
}

// Ends one flight: judges the row, fills, publishes the outcome.
Task<void> Node::Impl::settle(unsigned index, LoadFlight flight, Result<source::Row> row,
                              const source::Loaded& loaded) {
  const CacheRuntime& cache = *caches[index];
  const CacheSpec& spec = cache.spec;
  // Of what a replica says only that is answered which may be stored: whatever has been invalidated
  // is seen by it then.
  if (loaded.replica &&
      (!row || (!row->found && spec.negative_ttl_us == 0) ||
       (cache.rules.bound_us != 0 && loaded.as_of < now() - cache.rules.bound_us))) {
    co_await ask_again(index, std::move(flight), true);
    co_return;
  }
  if (row && row->value.size() > spec.max_value_bytes)
    row = fail(ErrorCode::too_large,
               fmt::format("the value of '{}' has {} bytes; max_value of cache '{}' is {}",
                           flight->key, row->value.size(), spec.name, spec.max_value_bytes));
  if (!row) {
    // A newer row that cannot be held must not leave an older one in its place.
    if (row.error().code == ErrorCode::too_large) co_await drop(cache, flight);
    co_await give_up(index, flight, std::move(row.error()));
    co_return;
  }

  auto reading = std::make_shared<Reading>();
  reading->found = row->found;
  reading->value = std::move(row->value);
  reading->tier = Tier::source;
  const TimeUs began = loaded.as_of;
  reading->age_us = std::max<DurationUs>(0, now() - began);

  std::vector<std::string_view> params;
  spec.key.match(flight->key, params);
  policy::Refusal refusal = policy::Refusal::none;
  // A collation may find a row of another key ('ANN' for 'ann'): answer it, but store nothing that
  // an invalidation of that row would not find.
  std::vector<std::string_view> of_row = params;
  for (std::size_t i = 0; row->found && i < of_row.size() && i < row->key_values.size(); ++i)
    if (row->key_values[i]) of_row[i] = *row->key_values[i];
  if (of_row != params) refusal = policy::Refusal::key_mismatch;

  DurationUs life =
      flight->life_us.value_or(row->found ? cache.guarantee.ttl_us : spec.negative_ttl_us);
  if (cache.rules.bound_us && !cache.guarantee.fed) life = std::min(life, cache.rules.bound_us);
  if (!flight->life_us && spec.jitter > 0)
    life -= static_cast<DurationUs>(static_cast<double>(life) * spec.jitter * (1.0 - dice()));
  bool fills = false;
  if (!row->found && life == 0) {
    // The row is gone: what is held is void, and so is every older load that still saw it.
    co_await drop(cache, flight);
  } else if (behind && behind->pending().holds(flight->key, flight->hash)) {
    // The database does not have it yet. What was written while this load ran has voided its
    // ticket; what was written before that is what the next reader gets.
    refusal = policy::Refusal::ticket;
  } else if (refusal == policy::Refusal::none) {
    near::Meta meta{
        .cache_id = cache.id,
        .negative = !row->found,
        .load_us = static_cast<std::uint32_t>(std::min<DurationUs>(loaded.took_us, UINT32_MAX)),
        .ttl_us = life,
        .as_of = began,
        .soft_expiry = saturating_add(began, life)};
    // A negative entry is worth nothing when it is late.
    meta.useless_at =
        row->found ? policy::useless_at(meta.soft_expiry, cache.rules) : meta.soft_expiry;
    const std::vector<std::string> tags = tags_of(cache, params, row->tag_values);
    engine::Fill request{.cache = cache.in_engine(),
                         .key = {flight->key, flight->hash},
                         .ticket = flight->ticket,
                         .snapshot = loaded.snapshot,
                         .value = reading->value,
                         .meta = meta,
                         .tags = tags,
                         .deadline = saturating_add(flight->deadline, kGrace)};
    fills = true;
    refusal = co_await engine.fill(request);
    if (refusal == policy::Refusal::none) reading->ttl_us = life;
  }
  if (loaded.replica && refusal != policy::Refusal::none && refusal != policy::Refusal::no_room) {
    co_await ask_again(index, std::move(flight), !fills);
    co_return;
  }
  using Kind = policy::ProtocolEvent::Kind;
  events.note(flight->hash, {.kind = Kind::load,
                             .at = began,
                             .x = loaded.snapshot.xmax,
                             .source_id = loaded.snapshot.source_id});
  reading->not_stored = refusal;
  if (refusal == policy::Refusal::too_large || refusal == policy::Refusal::key_mismatch ||
      refusal == policy::Refusal::no_room)
    co_await drop(cache, flight);  // as above
  if (refusal == policy::Refusal::none) {
    cache.metrics.fills->add();
    if (fills) events.note(flight->hash, {.kind = Kind::stored, .at = now()});
  } else {
    cache.metrics.fills_refused[static_cast<std::size_t>(refusal)]->add();
    events.note(flight->hash, {.kind = Kind::refused, .refusal = refusal, .at = now()});
  }
  tell({&flight->key, 1}, false);
  finish(flight, std::shared_ptr<const Reading>(std::move(reading)));
  if (fills) co_return;
  engine::Ticket ticket = flight->ticket;
  co_await release(index, std::move(flight), std::move(ticket));
}

// ---- answering ----

// The source failed: a late value, where the cache allows it.
Result<Reading> Node::Impl::after_failure(const CacheRuntime& cache, std::string_view key,
                                          Hash hash, Error error) {
  const bool down = error.code == ErrorCode::source_down || error.code == ErrorCode::timeout ||
                    error.code == ErrorCode::overloaded || error.code == ErrorCode::source_refused;
  if (down) {
    NearReading near_reading = read_near(cache, key, hash, now(), SourceState::failed);
    if (near_reading.reading && near_reading.freshness != policy::Freshness::unusable) {
      if (near_reading.freshness == policy::Freshness::stale_if_error) {
        near_reading.reading->tier = Tier::stale;
        cache.metrics.stale_served[1]->add();
      }
      return std::move(*near_reading.reading);
    }
  }
  return std::unexpected(std::move(error));
}

Task<Result<Reading>> Node::Impl::await_flight(unsigned index, LoadFlight flight, TimeUs began) {
  const CacheRuntime& cache = *caches[index];
  const DurationUs soft = cache.spec.soft_timeout_us;
  bool done = flight->done.notified();
  if (!done) {
    if (waiting.fetch_add(1, std::memory_order_relaxed) >= max_waiters) {
      waiting.fetch_sub(1, std::memory_order_relaxed);
      co_return fail(ErrorCode::overloaded,
                     fmt::format("{} readers wait for loads already; the source is too slow for "
                                 "this many misses",
                                 max_waiters));
    }
    if (soft > 0 && soft < cache.spec.load_timeout_us) {
      done = co_await flight->done.wait_until(saturating_add(began, soft));
      if (!done) {  // answer late if there is something to answer; the load goes on
        NearReading late = read_near(cache, flight->key, flight->hash, now(), SourceState::slow);
        if (late.reading && late.freshness == policy::Freshness::stale_if_error) {
          waiting.fetch_sub(1, std::memory_order_relaxed);
          late.reading->tier = Tier::stale;
          cache.metrics.stale_served[0]->add();
          co_return std::move(*late.reading);
        }
      }
    }
    if (!done) {
      const TimeUs deadline = saturating_add(began, cache.spec.load_timeout_us + kGrace);
      done = co_await flight->done.wait_until(deadline);
    }
    waiting.fetch_sub(1, std::memory_order_relaxed);
  }
  if (!done) {
    Error late{
        ErrorCode::timeout,
        fmt::format("no answer from source '{}' within load_timeout", sources[cache.source]->name),
        {}};
    co_return after_failure(cache, flight->key, flight->hash, std::move(late));
  }
  // It was written while the load ran, or the load was asked for in spite of that.
  if (auto waiting_now = waiting_write(cache, flight->key, flight->hash))
    co_return std::move(*waiting_now);
  if (!flight->outcome.reading) {
    Error error = flight->outcome.reading.error();
    co_return after_failure(cache, flight->key, flight->hash, std::move(error));
  }
  co_return Reading(**flight->outcome.reading);
}

Task<Result<Reading>> Node::get(std::string key) {
  std::vector<std::string> keys;
  keys.push_back(std::move(key));
  std::vector<Result<Reading>> readings = co_await get_many(std::move(keys));
  co_return std::move(readings.front());
}

Task<std::vector<Result<Reading>>> Node::get_many(std::vector<std::string> keys) {
  Impl& self = *impl_;
  const TimeUs began = self.now();
  struct Pending {
    std::size_t position;
    unsigned cache;
    LoadFlight flight;
  };
  std::vector<Result<Reading>> answers(keys.size(), fail(ErrorCode::internal, "not read"));
  std::vector<Pending> pending;
  std::vector<std::vector<LoadFlight>> to_load(self.caches.size());

  for (std::size_t i = 0; i < keys.size(); ++i) {
    const Route where = route(keys[i]);
    if (where.match != policy::Match::yes) {
      answers[i] =
          where.match == policy::Match::bad_part
              ? Result<Reading>(std::unexpected(bad_key(where, keys[i])))
              : fail(ErrorCode::bad_key, fmt::format("no cache is declared for '{}'", keys[i]));
      continue;
    }
    const auto index = static_cast<unsigned>(where.cache);
    const CacheRuntime& cache = *self.caches[index];
    const Hash hash = hash_bytes(keys[i]);
    if (auto waiting = self.waiting_write(cache, keys[i], hash)) {
      self.count(cache, Op::get, static_cast<std::size_t>(Tier::journal), self.now() - began);
      answers[i] = std::move(*waiting);
      continue;
    }
    Impl::NearReading held =
        self.read_near(cache, keys[i], hash, began, Impl::SourceState::unknown);
    if (held.reading && held.freshness <= policy::Freshness::revalidate) {
      if (held.freshness == policy::Freshness::revalidate) cache.metrics.stale_served[0]->add();
      if (held.freshness != policy::Freshness::fresh)
        self.refresh_in_background(index, keys[i], hash);
      else if (cache.spec.sliding && held.reading->found)
        self.near.touch(keys[i], hash, began);
      self.count(cache, Op::get, static_cast<std::size_t>(held.reading->tier), self.now() - began);
      answers[i] = std::move(*held.reading);
      continue;
    }
    LoadFlights::Joined joined = self.join(cache, keys[i], hash);
    if (!joined.flight) {
      answers[i] = fail(ErrorCode::overloaded, "too many loads are under way");
      continue;
    }
    if (joined.leads) {
      // Another's flight may have landed since the look above: then its entry is the answer.
      held = self.read_near(cache, keys[i], hash, began, Impl::SourceState::unknown);
      if (held.reading && held.freshness <= policy::Freshness::refresh_early) {
        auto found = std::make_shared<Reading>(std::move(*held.reading));
        joined.flight->outcome.reading = std::shared_ptr<const Reading>(std::move(found));
        self.flights.finish(joined.flight);
      } else {
        to_load[index].push_back(joined.flight);
      }
    }
    pending.push_back({i, index, std::move(joined.flight)});
  }

  for (unsigned index = 0; index < to_load.size(); ++index)
    if (!to_load[index].empty()) self.start_load(index, std::move(to_load[index]));
  for (Pending& one : pending) {
    const CacheRuntime& cache = *self.caches[one.cache];
    Result<Reading> answer = co_await self.await_flight(one.cache, std::move(one.flight), began);
    self.count(cache, Op::get, answer ? static_cast<std::size_t>(answer->tier) : kErrorTier,
               self.now() - began);
    answers[one.position] = std::move(answer);
  }
  co_return answers;
}

Task<Result<Reading>> Node::refresh(std::string key) {
  Impl& self = *impl_;
  const TimeUs began = self.now();
  const Route where = route(key);
  if (where.match == policy::Match::bad_part) co_return std::unexpected(bad_key(where, key));
  if (where.match != policy::Match::yes)
    co_return fail(ErrorCode::bad_key, fmt::format("no cache is declared for '{}'", key));
  const Hash hash = hash_bytes(key);
  // Not a flight that is under way: what it read may be older than this call.
  self.flights.close(key, hash);
  LoadFlights::Joined joined = self.flights.join_or_start(key, hash);
  if (!joined.flight) co_return fail(ErrorCode::overloaded, "too many loads are under way");
  const auto index = static_cast<unsigned>(where.cache);
  LoadFlight flight = joined.flight;
  if (joined.leads) {
    joined.flight->reload = true;
    self.start_load(index, {std::move(joined.flight)});
  }
  Result<Reading> answer = co_await self.await_flight(index, std::move(flight), began);
  co_return answer;
}

// After a COMMIT: all keys in one query, under one deadline. What fails or comes late is the next
// reader's load; the write itself is done.
Task<void> Node::Impl::refill(unsigned index, std::vector<std::string> keys,
                              std::vector<std::optional<DurationUs>> lives_us) {
  const CacheRuntime& cache = *caches[index];
  std::vector<LoadFlight> all;
  std::vector<LoadFlight> mine;
  std::vector<std::optional<DurationUs>> owed;  // parallel to all: lives that others' loads ignore
  for (std::size_t i = 0; i < keys.size(); ++i) {
    LoadFlights::Joined joined = flights.join_or_start(keys[i], hash_bytes(keys[i]));
    if (!joined.flight) continue;
    if (joined.leads) {
      joined.flight->life_us = lives_us[i];
      mine.push_back(joined.flight);
    }
    owed.push_back(joined.leads ? std::nullopt : lives_us[i]);
    all.push_back(std::move(joined.flight));
  }
  if (!mine.empty()) start_load(index, std::move(mine));
  const TimeUs deadline = saturating_add(now(), cache.spec.load_timeout_us + kGrace);
  for (std::size_t i = 0; i < all.size(); ++i) {
    co_await all[i]->done.wait_until(deadline);
    if (!owed[i]) continue;
    const TimeUs end = saturating_add(now(), *owed[i]);
    near.set_expiry(all[i]->key, all[i]->hash, now(), end, policy::useless_at(end, cache.rules));
  }
}

// ---- warming ----

Task<Result<Warmed>> Node::warm(std::string name, std::uint64_t limit) {
  Impl& self = *impl_;
  const TimeUs began = self.now();
  const CacheRuntime* cache = self.by_name(name);
  if (!cache) co_return fail(ErrorCode::bad_key, fmt::format("there is no cache '{}'", name));
  const CacheSpec& spec = cache->spec;
  if (spec.warm.empty())
    co_return fail(ErrorCode::unsupported,
                   fmt::format("cache '{}' declares no `warm`; add a statement that gives its key "
                               "columns, best first: warm = \"SELECT ... LIMIT :n\"",
                               name));
  source::Params params{
      {"n", static_cast<std::int64_t>(std::min<std::uint64_t>(limit, INT64_MAX))}};
  if (source::SqlText::parse(spec.warm, spec.dialect)->names().empty()) params.clear();
  const auto statement = static_cast<std::uint32_t>(self.caches.size() + cache->id - 1u);
  const TimeUs deadline =
      saturating_add(began, std::max<DurationUs>(spec.load_timeout_us, 30 * kSecond));
  std::vector<source::Params> queries{std::move(params)};
  Result<source::Loaded> listed =
      co_await self.sources[cache->source]->source->load(statement, std::move(queries), deadline);
  if (!listed) co_return std::unexpected(listed.error());
  if (!listed->rows.front()) co_return std::unexpected(listed->rows.front().error());

  boost::system::error_code ec;
  const boost::json::value rows =
      boost::json::parse(listed->rows.front()->found ? listed->rows.front()->value : "[]", ec);
  if (ec || !rows.is_array()) co_return fail(ErrorCode::internal, "the warm list is not an array");
  std::vector<std::string> keys;
  for (const auto& row : rows.as_array()) {
    if (keys.size() >= limit) break;
    std::vector<std::string> texts;
    for (const auto& param : spec.key.params()) {
      const boost::json::value* field = row.as_object().if_contains(param.name);
      if (!field)
        co_return fail(ErrorCode::config,
                       fmt::format("`warm` of cache '{}' gives no column '{}'", name, param.name));
      texts.push_back(field->is_string() ? std::string(field->as_string())
                                         : boost::json::serialize(*field));
    }
    const std::vector<std::string_view> views(texts.begin(), texts.end());
    Result<std::string> key = spec.key.render(views);
    if (key) keys.push_back(std::move(*key));
  }
  Warmed warmed;
  constexpr std::size_t kChunk = 256;
  for (std::size_t from = 0; from < keys.size() && !self.draining; from += kChunk) {
    const std::size_t to = std::min(from + kChunk, keys.size());
    std::vector<std::string> chunk(keys.begin() + static_cast<std::ptrdiff_t>(from),
                                   keys.begin() + static_cast<std::ptrdiff_t>(to));
    std::vector<Result<Reading>> readings = co_await get_many(std::move(chunk));
    for (const auto& reading : readings) ++(reading ? warmed.keys : warmed.failed);
  }
  warmed.took_us = self.now() - began;
  co_return warmed;
}

// ---- what is held ----

std::optional<Held> Node::held(std::string_view key, TimeUs now) {
  const Route where = route(key);
  if (where.match != policy::Match::yes) return std::nullopt;
  const CacheRuntime& cache = *impl_->caches[static_cast<std::size_t>(where.cache)];
  if (const auto waiting = impl_->waiting_write(cache, key, hash_bytes(key)))
    return Held{!waiting->found, waiting->ttl_us};
  const Impl::NearReading held =
      impl_->read_near(cache, key, hash_bytes(key), now, Impl::SourceState::unknown);
  if (!held.reading || held.freshness > policy::Freshness::revalidate) return std::nullopt;
  return Held{!held.reading->found, held.reading->ttl_us};
}

bool Node::set_ttl(std::string_view key, TimeUs now, DurationUs ttl_us) {
  const Route where = route(key);
  if (where.match != policy::Match::yes) return false;
  const CacheRuntime& cache = *impl_->caches[static_cast<std::size_t>(where.cache)];
  const TimeUs end = saturating_add(now, ttl_us);
  return impl_->near.set_expiry(key, hash_bytes(key), now, end,
                                policy::useless_at(end, cache.rules));
}

}  // namespace larder::cache
