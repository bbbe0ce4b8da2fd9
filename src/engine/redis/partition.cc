#include "engine/redis/partition.h"

#include <vector>

namespace larder::engine::redis {
namespace {

// Beyond this a time is "never", in either clock.
constexpr TimeUs kFar = kNever / 2;

}  // namespace

Partition::Partition(Names names, unsigned source, near::Store& near,
                     std::atomic<TimeUs>& heartbeat, const policy::Follower::Rules& rules)
    : names_(std::move(names)),
      source_(source),
      reset_tag_(hash_bytes("@partition:" + names_.state())),
      near_(near),
      heartbeat_(heartbeat),
      follower_(rules) {}

// ---- answers ----

std::uint64_t Partition::generation() const {
  MutexLock lock(mutex_);
  return follower_.generation();
}

void Partition::observe(TimeUs sent, TimeUs engine_now, TimeUs received) {
  MutexLock lock(mutex_);
  clock_.observe(sent, engine_now, received);
}

bool Partition::may_install(const Position& answer, std::uint64_t generation) {
  bool may = false;
  bool reset = false;
  {
    MutexLock lock(mutex_);
    const std::uint64_t before = follower_.generation();
    may = follower_.may_install(answer, generation);
    reset = follower_.generation() != before;
  }
  if (reset) empty();
  return may;
}

TimeUs Partition::to_ours(TimeUs engine_time, TimeUs now) const {
  if (engine_time == 0 || engine_time >= kFar) return engine_time == 0 ? 0 : kNever;
  MutexLock lock(mutex_);
  return clock_.known() ? std::max<TimeUs>(1, clock_.to_ours(engine_time, now)) : 1;
}

TimeUs Partition::to_theirs(TimeUs our_time, TimeUs now) const {
  if (our_time == 0 || our_time >= kFar) return our_time == 0 ? 0 : kFar;
  MutexLock lock(mutex_);
  return clock_.known() ? std::max<TimeUs>(1, clock_.to_theirs(our_time, now)) : 1;
}

// ---- messages ----

Partition::Need Partition::on_message(const Message& message, TimeUs now) {
  using Verdict = policy::Follower::Verdict;
  if (message.kind == Message::Kind::filled) {
    for (const std::string& key : message.keys) wake(key);
    return Need::nothing;
  }
  const bool change = message.kind == Message::Kind::change;
  Verdict verdict = Verdict::gap;
  {
    MutexLock lock(mutex_);
    verdict =
        change ? follower_.on_change(message.position) : follower_.on_heartbeat(message.position);
  }
  switch (verdict) {
    case Verdict::apply:
      if (change) apply(message, now);
      break;
    case Verdict::duplicate: break;
    case Verdict::gap: return Need::look;
    case Verdict::reset: empty(); break;
  }
  if (!change && verdict != Verdict::reset) promise(message.heartbeat, now);
  return Need::nothing;
}

Partition::Need Partition::on_position(const Position& position, TimeUs heartbeat, TimeUs now) {
  using Verdict = policy::Follower::Verdict;
  Verdict verdict = Verdict::gap;
  {
    MutexLock lock(mutex_);
    verdict = follower_.on_heartbeat(position);
    if (verdict == Verdict::gap && !follower_.known()) return Need::nothing;  // it has no state
  }
  if (verdict == Verdict::gap) return Need::look;
  if (verdict == Verdict::reset) {
    empty();
  } else {
    promise(heartbeat, now);
  }
  return Need::nothing;
}

Position Partition::position() const {
  MutexLock lock(mutex_);
  return follower_.known() ? follower_.position() : Position{};
}

void Partition::forget() {
  {
    MutexLock lock(mutex_);
    follower_.reset();
  }
  empty();
}

void Partition::on_lost() {
  heartbeat_.store(0, std::memory_order_release);
  wake_all();
}

void Partition::apply(const Message& message, TimeUs now) {
  for (const std::string& key : message.keys) {
    const bool keep = hooks_ != nullptr && hooks_->keeps_for_error(key);
    near_.invalidate(hash_bytes(key), key, keep);
    wake(key);
  }
  for (const std::string& tag : message.tags) near_.invalidate_tag(hash_bytes(tag));
  if (hooks_ == nullptr) return;
  const TimeUs committed = to_ours(message.committed_at, now);
  hooks_->voided({.source = source_,
                  .keys = message.keys,
                  .tags = message.tags,
                  .x = message.x,
                  .lag_us = committed > 1 ? std::max<DurationUs>(1, now - committed) : 0});
}

void Partition::empty() {
  heartbeat_.store(0, std::memory_order_release);
  near_.invalidate_tag(reset_tag_);
  {
    MutexLock lock(mutex_);
    clock_.forget();  // it may be another server's
  }
  if (hooks_ != nullptr) hooks_->voided({.source = source_, .everything = true});
  wake_all();
}

void Partition::promise(TimeUs engine_time, TimeUs now) {
  const TimeUs ours = to_ours(engine_time, now);
  TimeUs seen = heartbeat_.load(std::memory_order_relaxed);
  while (seen < ours && !heartbeat_.compare_exchange_weak(seen, ours, std::memory_order_release)) {
  }
}

// ---- waiting ----

std::shared_ptr<Waiters> Partition::wait_for(std::string_view key) {
  MutexLock lock(mutex_);
  if (waiting_.size() >= sweep_at_) {
    std::erase_if(waiting_, [](const auto& one) { return one.second.expired(); });
    sweep_at_ = std::max<std::size_t>(64, 2 * waiting_.size());
  }
  std::weak_ptr<Waiters>& slot = waiting_[std::string(key)];
  std::shared_ptr<Waiters> waiters = slot.lock();
  if (!waiters) slot = waiters = std::make_shared<Waiters>();
  return waiters;
}

void Partition::wake(std::string_view key) {
  std::shared_ptr<Waiters> waiters;
  {
    MutexLock lock(mutex_);
    const auto found = waiting_.find(std::string(key));
    if (found == waiting_.end()) return;
    waiters = found->second.lock();
    waiting_.erase(found);
  }
  if (waiters) waiters->notify();
}

void Partition::wake_all() {
  std::vector<std::shared_ptr<Waiters>> all;
  {
    MutexLock lock(mutex_);
    for (const auto& [key, waiters] : waiting_)
      if (auto held = waiters.lock()) all.push_back(std::move(held));
    waiting_.clear();
  }
  for (const auto& waiters : all) waiters->notify();
}

}  // namespace larder::engine::redis
