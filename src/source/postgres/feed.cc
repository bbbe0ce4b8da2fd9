#include "source/postgres/feed.h"

#include <fmt/format.h>

#include <random>

#include "resilience/backoff.h"
#include "source/postgres/feed_session.h"

namespace larder::source::postgres {
namespace {

constexpr resilience::BackoffLimits kReconnect = {.first_us = 50 * kMillisecond,
                                                  .most_us = 2 * kSecond};

std::uint64_t seed() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

}  // namespace

FeedState::FeedState(FeedOptions given)
    : options(std::move(given)),
      random(seed()),
      token(fmt::format("{:016x}", random.next())),
      log({.tables = {}, .token = token}) {}

void FeedState::say(std::string_view line) const {
  if (options.log) options.log(fmt::format("source {}: {}", options.name, line));
}

void FeedState::note(std::string now) {
  if (now == condition) return;
  condition = std::move(now);
  say(condition.empty() ? "its log is read again" : condition);
}

PrepareOptions FeedState::prepare_options() const {
  return {.source = options.name,
          .slot = options.slot,
          .publication = options.publication,
          .feed_for = options.feed_for,
          .watched = options.watched};
}

Feed::Feed(FeedOptions options) : state_(std::make_unique<FeedState>(std::move(options))) {
  FeedState& state = *state_;
  if (state.options.metrics)
    state.options.metrics->callback(
        obs::Registry::Kind::gauge, "larder_source_slot_bytes", {{"source", state.options.name}},
        "Log that the source keeps because this node has not confirmed it",
        [&state] { return state.slot_bytes.load(std::memory_order_relaxed); }, this);
}

Feed::~Feed() {
  if (state_->options.metrics) state_->options.metrics->remove_callbacks(this);
}

Task<void> Feed::run(TaskGroup& group, ChangeSink sink) {
  TaskGroup watching;
  watching.spawn(interrupt_at_stop(group));
  resilience::Backoff backoff(kReconnect);
  while (!group.stopping()) {
    session_ = std::make_unique<FeedSession>(*state_, group, sink);
    const Result<void> ended = co_await session_->run();
    if (session_->has_read()) backoff.reset();
    session_.reset();
    state_->slot_bytes.store(0, std::memory_order_relaxed);
    if (group.stopping() || ended) continue;
    state_->note(fmt::format("its log cannot be read, changes by others are not seen: {}",
                             ended.error().message));
    const TimeUs next = monotonic_now_us() + backoff.next(state_->random);
    co_await group.sleep_until(next);
  }
  watching.stop();
  co_await watching.join();
}

Task<void> Feed::interrupt_at_stop(TaskGroup& group) {
  co_await group.sleep_until(kNever);
  if (session_) session_->interrupt();
}

}  // namespace larder::source::postgres
