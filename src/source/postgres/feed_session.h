// One period in which the log is read: from connecting to the loss of the connection, or until the
// sink wants to go back. Internal to feed.h.
#pragma once

#include <atomic>
#include <charconv>
#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "base/random.h"
#include "source/postgres/feed.h"

namespace larder::source::postgres {

inline constexpr DurationUs kPatience = 10 * kSecond;  // of a statement, and of connecting

// Of the first row; "" = NULL.
inline std::string_view text(const Reply& reply, int column) {
  return reply.value(0, column).value_or("");
}
template <class Number>
Number number(std::string_view digits) {  // 0: not one
  Number value = 0;
  std::from_chars(digits.data(), digits.data() + digits.size(), value);
  return value;
}

// What outlives a connection. Used on the feed's loop but for `slot_bytes`.
struct FeedState {
  explicit FeedState(FeedOptions options);

  // What has become of the feed; "" = it reads. Logged when it changes.
  void note(std::string condition);
  void say(std::string_view line) const;
  PrepareOptions prepare_options() const;
  bool fleet() const { return options.feed_for == FeedFor::fleet; }

  const FeedOptions options;
  Random random;
  const std::string token;  // of our heartbeats
  ChangeLog log;
  std::optional<Lsn> position;    // what the sink has; from here it wants to go on
  std::uint64_t source_id = 0;    // that `position` belongs to
  std::set<std::string> storage;  // of the tables, when they were looked at last
  bool was_there = false;         // while somebody read
  bool owes_everything = false;   // changes may have been missed
  bool slot_is_useless = false;   // it has to be made anew
  std::atomic<double> slot_bytes{0};
  std::string condition;
  std::string missing;  // of what is not vital
};

// Lets coroutines of one loop pass one at a time, in their order.
class Turn {
 public:
  Task<void> take();
  void give();

 private:
  bool taken_ = false;
  std::deque<std::shared_ptr<Waiters>> waiting_;
};

class FeedSession {
 public:
  // All outlive it. `group` is the one whose end is this feed's.
  FeedSession(FeedState& state, TaskGroup& group, const ChangeSink& sink)
      : state_(state), group_(group), sink_(sink) {}

  // Until the connection is lost (an error), or until it has to begin again at state.position.
  Task<Result<void>> run();
  void interrupt();
  // A heartbeat of ours has come back.
  bool has_read() const { return heartbeat_ != 0; }

 private:
  // open
  Task<Result<void>> open();
  Task<Result<void>> open_sql();
  Task<Result<void>> open_stream();
  Task<Result<void>> look_at_tables();
  std::string note_of_tables() const;
  Task<Result<void>> note_tables();
  Task<Result<void>> take_slot();
  Task<Result<bool>> slot_is_free();
  Task<Result<void>> create_slot();
  Task<Result<void>> drop_slot(std::string why);
  Task<Result<void>> same_server();
  Task<Result<bool>> start();
  Task<Result<void>> hello();

  // read
  Task<Result<void>> read();
  Task<Result<void>> take_next(TimeUs deadline);
  Task<Result<void>> take(CopyBlock block);
  Task<Result<void>> deliver_ready();
  Task<Result<FeedOrder>> deliver(ChangeBatch batch);
  Task<void> hand_over(ChangeBatch batch, Result<FeedOrder>& order, Waiters& done);
  Task<void> keep_alive(Waiters& done);
  Task<Result<void>> obey(FeedOrder order);
  Task<Result<ChangeBatch>> epoch();
  Task<Result<void>> send_status(bool reply_wanted);

  // beside it
  Task<void> beat(TaskGroup& helpers);
  Task<Result<std::string>> emit(TimeUs at);
  Task<Result<void>> check();
  Task<void> say_if_slow(TaskGroup& waiting);

  Task<Result<Reply>> ask(Command command);
  Result<void> going_on() const;
  void fail_with(Error error);

  FeedState& state_;
  TaskGroup& group_;
  const ChangeSink& sink_;
  std::unique_ptr<Connection> sql_;     // statements, one at a time by turn_
  std::unique_ptr<Connection> stream_;  // the log
  Turn turn_;
  std::string slot_;
  std::optional<Error> failure_;
  bool interrupted_ = false;
  bool reading_ = false;
  bool again_ = false;  // begin again at state.position
  bool warned_of_slot_ = false;
  Lsn received_ = 0;
  Lsn confirmed_ = 0;    // the log is kept from here; never told less
  Lsn may_confirm_ = 0;  // the sink will not ask for what lies before
  TimeUs status_at_ = 0;
  TimeUs heard_at_ = 0;   // anything from the server
  TimeUs heartbeat_ = 0;  // that came back last
  TimeUs looked_at_ = 0;  // the tables: until then the log told everything
  bool may_note_ = false;
  std::string noted_;
};

}  // namespace larder::source::postgres
