// What channels and streams share: the door through which events come in, and what is done then.
#pragma once

#include <fmt/format.h>

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/sync.h"
#include "base/task.h"
#include "feed/event.h"
#include "feed/spec.h"
#include "obs/metrics.h"

namespace larder::feed {

// One line for the people who run it. Called from any thread; may be empty.
using Log = std::function<void(std::string)>;

// What the composition does for a feed. Called from the loop on which the feed was started, but
// `declared`: from any thread. What they use outlives the feed.
struct Actions {
  // Does a cache own this key, and is it canonical?
  std::function<bool(std::string_view key)> declared;
  // Makes these void. An error: nothing is known, it is done again.
  std::function<Task<Result<void>>(std::vector<std::string> keys, std::vector<std::string> tags)>
      apply;
  // Makes void whatever this feed's events could name: events were missed.
  std::function<Task<Result<void>>()> everything;
};

// Says a thing that may happen very often at most every `every_us`, and then how often it happened.
// Thread-safe.
class SayRarely {
 public:
  explicit SayRarely(Log log, DurationUs every_us = 10 * kSecond)
      : log_(std::move(log)), every_us_(every_us) {}
  void operator()(TimeUs now, std::string what);

 private:
  const Log log_;
  const DurationUs every_us_;
  Mutex mutex_;
  TimeUs next_ LARDER_GUARDED_BY(mutex_) = 0;
  std::uint64_t unsaid_ LARDER_GUARDED_BY(mutex_) = 0;
};

// Turns events into what is to be made void, counts all of them and says what is wrong with some:
// larder_feed_events_total{feed, result = applied | ignored | malformed}. Thread-safe.
class Intake {
 public:
  Intake(const Spec& spec, Actions actions, obs::Registry& metrics, const Log& log);

  // nullopt: nothing is to be done for it, and it has been counted.
  std::optional<Event> read(std::string_view bytes, TimeUs now);
  std::optional<Event> read(std::span<const Field> fields, TimeUs now);
  // An event that cannot even be read, such as an entry of a stream without the declared field.
  void malformed(TimeUs now, std::string_view why);
  // Of events that read() returned.
  void applied(std::uint64_t events) { applied_.add(events); }

  // Applies, and does it again until it succeeds or `group` stops (false). An empty `keys` and
  // `tags` is nothing. `everything` with its reason: larder_feed_everything_total{feed, reason}.
  Task<bool> apply(TaskGroup& group, std::vector<std::string> keys, std::vector<std::string> tags);
  Task<bool> everything(TaskGroup& group, std::string_view reason);

  // Sleeps before the next attempt at something that failed for the `attempt`th time (from 0), with
  // growing pauses. False: `group` stops.
  static Task<bool> pause(TaskGroup& group, unsigned attempt);

  // What else is worth a line, at a bounded rate, too. Called on a loop.
  void say(std::string_view what);

 private:
  std::optional<Event> judge(Result<std::optional<Event>> event, TimeUs now);
  obs::Counter& count(std::string_view result);

  const Spec& spec_;
  const Actions actions_;
  obs::Registry& metrics_;
  obs::Counter& applied_;
  obs::Counter& ignored_;
  obs::Counter& malformed_;
  SayRarely say_malformed_;
  SayRarely say_failed_;
  SayRarely say_other_;
};

}  // namespace larder::feed
