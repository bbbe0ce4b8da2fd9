#include "feed/intake.h"

#include <algorithm>

namespace larder::feed {
namespace {

constexpr DurationUs kFirstPause = 100 * kMillisecond;
constexpr DurationUs kLongestPause = 5 * kSecond;

}  // namespace

void SayRarely::operator()(TimeUs now, std::string what) {
  if (!log_) return;
  std::uint64_t unsaid = 0;
  {
    MutexLock lock(mutex_);
    if (now < next_) {
      ++unsaid_;
      return;
    }
    next_ = now + every_us_;
    unsaid = std::exchange(unsaid_, 0);
  }
  if (unsaid > 0) what += fmt::format(" (and {} more since the last such line)", unsaid);
  log_(std::move(what));
}

Intake::Intake(const Spec& spec, Actions actions, obs::Registry& metrics, const Log& log)
    : spec_(spec),
      actions_(std::move(actions)),
      metrics_(metrics),
      applied_(count("applied")),
      ignored_(count("ignored")),
      malformed_(count("malformed")),
      say_malformed_(log),
      say_failed_(log),
      say_other_(log) {}

obs::Counter& Intake::count(std::string_view result) {
  return metrics_.counter("larder_feed_events_total",
                          {{"feed", spec_.name}, {"result", std::string(result)}},
                          "Events of an application's own feeds, by what became of them");
}

void Intake::say(std::string_view what) {
  say_other_(Loop::current()->now_us(), fmt::format("feed {}: {}", spec_.name, what));
}

void Intake::malformed(TimeUs now, std::string_view why) {
  malformed_.add();
  say_malformed_(now, fmt::format("feed {}: an event is malformed: {}", spec_.name, why));
}

std::optional<Event> Intake::judge(Result<std::optional<Event>> event, TimeUs now) {
  if (!event) {
    malformed(now, event.error().message);
    return std::nullopt;
  }
  if (!*event) {
    ignored_.add();
    return std::nullopt;
  }
  for (const std::string& key : (*event)->keys)
    if (!actions_.declared(key)) {
      malformed(now,
                fmt::format("no cache declares the key that '{}' gives", spec_.rule.key->text));
      return std::nullopt;
    }
  return std::move(*event);
}

std::optional<Event> Intake::read(std::string_view bytes, TimeUs now) {
  return judge(read_event(bytes, spec_.rule, spec_.max_event_bytes), now);
}

std::optional<Event> Intake::read(std::span<const Field> fields, TimeUs now) {
  return judge(read_fields(fields, spec_.rule, spec_.max_event_bytes), now);
}

Task<bool> Intake::pause(TaskGroup& group, unsigned attempt) {
  const DurationUs length = std::min(kFirstPause << std::min(attempt, 10U), kLongestPause);
  const bool stopping = co_await group.sleep_until(Loop::current()->now_us() + length);
  co_return !stopping;
}

Task<bool> Intake::apply(TaskGroup& group, std::vector<std::string> keys,
                         std::vector<std::string> tags) {
  if (keys.empty() && tags.empty()) co_return true;
  for (unsigned attempt = 0;; ++attempt) {
    Result<void> done = co_await actions_.apply(keys, tags);
    if (done) co_return true;
    say_failed_(Loop::current()->now_us(),
                fmt::format("feed {}: {} keys and {} tags cannot be made void yet: {}", spec_.name,
                            keys.size(), tags.size(), to_string(done.error())));
    const bool go_on = co_await pause(group, attempt);
    if (!go_on) co_return false;
  }
}

Task<bool> Intake::everything(TaskGroup& group, std::string_view reason) {
  metrics_
      .counter("larder_feed_everything_total",
               {{"feed", spec_.name}, {"reason", std::string(reason)}},
               "How often a feed has made all entries of its caches void, because it may have "
               "missed events")
      .add();
  for (unsigned attempt = 0;; ++attempt) {
    Result<void> done = co_await actions_.everything();
    if (done) co_return true;
    say_failed_(Loop::current()->now_us(),
                fmt::format("feed {}: the entries of its caches cannot be made void yet: {}",
                            spec_.name, to_string(done.error())));
    const bool go_on = co_await pause(group, attempt);
    if (!go_on) co_return false;
  }
}

}  // namespace larder::feed
