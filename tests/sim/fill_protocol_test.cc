// Every interleaving of the fill protocol as the embedded engine and SQLite have it, on the real
// near::Store and engine::Embedded: breadth first, so a counter-example is a shortest one.
//
// WORLD  One key k that bears one tag t, one source. Transactions are numbered in commit order
// (SQLite
//   serialises writers); a value is the number of the last transaction that it shows.
//   L  a writer through Larder: begin, raise its tombstone, void, commit (or roll back, or crash:
//   then
//      the cache is gone with it and nothing is left to check).
//   F  a foreign writer: begin, commit; its change reaches the feed, which raises and voids later,
//   or
//      finds its history gone and voids everything.
//   Loaders: ticket, snapshot, read, judge, install. With a change table the snapshot and the read
//   are
//      one state; without, the snapshot is a counter that is read before.
//   Faults: the entry is evicted; the database file is replaced by another (a new incarnation).
// PROPERTIES, as in a model of the protocol for PostgreSQL and Redis that Larder grew from
//   A  x was processed (voided) and is visible => no valid entry lacks x.
//   B  everything is quiet and the feed is up to date => a valid entry shows the database's value.
//   C  a write through Larder was acknowledged => no valid entry lacks it.
//   D  as B => a load made now would be stored.
#include <gtest/gtest.h>

#include <deque>
#include <set>

#include "engine/embedded/embedded.h"

namespace larder {
namespace {

constexpr std::string_view kKey = "k";
constexpr std::string_view kTag = "t";
constexpr std::uint64_t kFirstSource = 11;

enum class Phase : std::uint8_t {
  idle,
  running,
  raised,
  voided,
  committed,
  published,
  rolled_back
};

struct Writer {
  bool foreign = false;
  bool tag = false;  // changes the tag's rows instead of the key's own
};

struct Config {
  std::string name;
  std::vector<Writer> writers;
  int loaders = 2;
  bool prepared = true;       // a change table: snapshots are exact, there is a feed
  bool replace = false;       // the file may be replaced once
  bool history_lost = false;  // the feed may find its history gone, and voids everything
  bool by_reset = false;      //   by resetting partitions instead of the cache's tag
  // What a negative control leaves out.
  policy::Rules rules;
  bool void_before_raise = false;
  bool void_after_commit = false;  // and the writer's thread may die in between
  bool snapshot_after_read = false;
  bool publish_before_commit = false;
  bool keep_epoch = false;  // a new incarnation is not announced
};

// Keys that share a bucket share tickets, and hide from each other what a rule would have let in:
// with this seed they do not.
constexpr std::uint64_t kSeed = 7;

// One state, rebuilt by replaying its path on fresh objects: the real ones cannot be copied.
class World {
 public:
  explicit World(const Config& config)
      : config_(config),
        store_({.capacity_bytes = 128 << 10,
                .shards = 1,
                .partitions = 1,
                .tag_slots = 64,
                .rules = config.rules}),
        engine_(store_, {.sources = 1, .tombstone_slots = 64, .rules = config.rules}) {
    new_epoch(kFirstSource);
    for (const Writer& writer : config.writers) writers_.push_back({writer});
    loaders_.resize(static_cast<std::size_t>(config.loaders));
  }

  struct Action {
    int kind;
    int who;
    std::string label;
  };
  enum Kind {
    begin,
    raise,
    void_,
    commit,
    publish,
    roll_back,
    die,
    feed_raise,
    feed_void,
    lose,
    ticket,
    snapshot,
    read,
    judge,
    install,
    evict,
    replace
  };

  std::vector<Action> actions() const {
    std::vector<Action> list;
    const auto add = [&](Kind kind, int who, const std::string& label) {
      list.push_back({kind, who, label});
    };
    const bool locked = std::ranges::any_of(writers_, [](const auto& w) {
      return w.phase == Phase::running || w.phase == Phase::raised || w.phase == Phase::voided;
    });
    for (int i = 0; i < static_cast<int>(writers_.size()); ++i) {
      const WriterState& w = writers_[static_cast<std::size_t>(i)];
      const std::string name = (w.what.foreign ? "F" : "L") + std::to_string(i);
      const bool late = config_.void_after_commit;
      if (w.phase == Phase::idle && !locked && unpublished() == 0) add(begin, i, name + " begins");
      if (w.what.foreign) {
        if (w.phase == Phase::running) {
          add(commit, i, name + " commits");
          add(roll_back, i, name + " rolls back");
        }
        if (config_.prepared && w.phase == Phase::committed && next_of_feed() == i) {
          if (!w.feed_raised) add(feed_raise, i, "the feed raises " + name);
          if (w.feed_raised && !w.processed) add(feed_void, i, "the feed voids " + name);
          if (config_.history_lost && !w.feed_raised)
            add(lose, i, "the feed finds its history gone, voids everything");
        }
        continue;
      }
      if (w.phase == Phase::running && !late) {
        if (config_.void_before_raise)
          add(void_, i, name + " voids");
        else
          add(raise, i, name + " raises its tombstone");
      }
      if (w.phase == Phase::raised)
        config_.void_before_raise ? add(raise, i, name + " raises its tombstone")
                                  : add(void_, i, name + " voids");
      if (w.phase == Phase::voided || (late && w.phase == Phase::running)) {
        add(commit, i, name + " commits");
        add(roll_back, i, name + " fails to commit");
      }
      if (w.phase == Phase::committed && !w.published) add(publish, i, name + " acknowledges");
      if (late && w.phase == Phase::committed && w.published && !w.processed && !w.dead) {
        add(void_, i, name + " voids, late");
        add(die, i, name + "'s thread fails before it voids");
      }
    }
    for (int i = 0; i < config_.loaders; ++i) {
      const Loader& l = loaders_[static_cast<std::size_t>(i)];
      const std::string name = "loader " + std::to_string(i);
      if (l.step == 0) add(ticket, i, name + " gets a ticket");
      if (config_.prepared) {
        if (l.step == 1) add(read, i, name + " reads value and snapshot");
      } else {
        const int first = config_.snapshot_after_read ? read : snapshot;
        if (l.step == 1)
          add(static_cast<Kind>(first), i,
              name + (first == read ? " reads" : " takes its snapshot"));
        if (l.step == 2)
          add(first == read ? snapshot : read, i,
              name + (first == read ? " takes its snapshot" : " reads"));
      }
      if (l.step == 3) add(judge, i, name + " is judged");
      if (l.step == 4) add(install, i, name + " installs");
    }
    if (entry().present) add(evict, 0, "the entry is evicted");
    if (config_.replace && source_ == kFirstSource && !locked)
      add(replace, 0, "the FILE IS REPLACED");
    return list;
  }

  void apply(const Action& action) {
    const auto at = static_cast<std::size_t>(action.who);
    switch (static_cast<Kind>(action.kind)) {
      case begin: {
        WriterState& w = writers_[at];
        w.phase = Phase::running;
        w.x = ++allocated_;
        break;
      }
      case raise: {
        WriterState& w = writers_[at];
        engine_.raise(change(w));
        w.phase = config_.void_before_raise ? Phase::voided : Phase::raised;
        break;
      }
      case void_: {
        WriterState& w = writers_[at];
        if (w.phase == Phase::committed) engine_.raise(change(w));
        void_now(change(w));
        w.processed = true;
        if (w.phase != Phase::committed)
          w.phase = config_.void_before_raise ? Phase::raised : Phase::voided;
        break;
      }
      case commit: {
        WriterState& w = writers_[at];
        w.phase = Phase::committed;
        committed_ = w.x;
        break;
      }
      case publish: {  // the writer's COMMIT has returned: the counter of a source without a table
                       // moves
        writers_[at].published = true;
        ended_ = writers_[at].x;
        break;
      }
      case roll_back: {
        WriterState& w = writers_[at];
        // With a change table a number that was handed out and lost is skipped by a small
        // transaction, so that nobody waits for it for ever; a foreign one is simply given again.
        w.phase = Phase::rolled_back;
        if (w.what.foreign) allocated_ = w.x - 1;
        ended_ = std::max(ended_, w.what.foreign ? ended_ : w.x);
        skipped_ = std::max(skipped_, w.what.foreign ? skipped_ : w.x);
        w.published = true;
        break;
      }
      case die: writers_[at].dead = true; break;
      case feed_raise: {
        engine_.raise(change(writers_[at]));
        writers_[at].feed_raised = true;
        break;
      }
      case feed_void: {
        void_now(change(writers_[at]));
        writers_[at].processed = true;
        break;
      }
      case lose: {
        for (WriterState& w : writers_)
          if (w.what.foreign && w.phase == Phase::committed) w.feed_raised = w.processed = true;
        void_everything();
        break;
      }
      case ticket: {
        loaders_[at].ticket = store_.ticket(hash_bytes(kKey));
        loaders_[at].step = 1;
        break;
      }
      case snapshot: {
        loaders_[at].snapshot = snapshot_of(ended_);
        ++loaders_[at].step;
        break;
      }
      case read: {
        Loader& l = loaders_[at];
        l.value = committed_;
        l.read_source = source_;
        if (config_.prepared) {
          l.snapshot = snapshot_of(std::max(committed_, skipped_));
          l.step = 3;
        } else {
          ++l.step;
        }
        break;
      }
      case judge: {
        Loader& l = loaders_[at];
        const std::string value = std::to_string(l.value);
        const engine::Ticket held{.near = l.ticket};
        l.step = engine_.judge(fill_of(l, held, value)) == policy::Refusal::none ? 4 : 5;
        break;
      }
      case install: {
        Loader& l = loaders_[at];
        const std::string value = std::to_string(l.value);
        const engine::Ticket held{.near = l.ticket};
        const engine::Fill fill = fill_of(l, held, value);
        const Hash tags[] = {hash_bytes(fill.tags[0]), hash_bytes(fill.tags[1])};
        const auto refusal = store_.fill(l.ticket, kKey, hash_bytes(kKey), value, fill.meta, tags);
        if (refusal == policy::Refusal::none) entry_source_ = l.read_source;
        l.step = 5;
        break;
      }
      case evict: store_.erase(kKey, hash_bytes(kKey)); break;
      case replace: {
        // Another file: its numbers begin again, and the first look at it begins a new incarnation.
        source_ = kFirstSource + 1;
        allocated_ = committed_ = ended_ = skipped_ = 0;
        for (WriterState& w : writers_) {
          if (w.phase == Phase::committed) w.processed = w.published = true;
          w.forgotten = w.phase != Phase::idle;
        }
        if (!config_.keep_epoch) {
          new_epoch(source_);
          void_everything();
        }
        break;
      }
    }
  }

  // "" or the letter of the violated property.
  std::string violated() const {
    const Entry held = entry();
    const bool valid = held.present && !held.is_void;
    const bool other = valid && entry_source_ != source_;
    for (const WriterState& w : writers_) {
      const bool visible = w.phase == Phase::committed && !w.forgotten;
      if (!visible || !valid) continue;
      if (w.processed && (other || held.value < w.x)) return "A";
      if (!w.what.foreign && w.published && (other || held.value < w.x)) return "C";
    }
    for (const WriterState& w : writers_) {
      if (w.forgotten) continue;
      if (w.phase == Phase::running || w.phase == Phase::raised || w.phase == Phase::voided)
        return "";
      if (w.phase == Phase::committed && !w.published && !w.what.foreign) return "";
      if (w.phase == Phase::committed && !w.processed && w.what.foreign && config_.prepared)
        return "";
      if (config_.void_after_commit && w.phase == Phase::committed && !w.processed && !w.dead)
        return "";
      // Without a feed nobody promises anything about foreign changes but the TTL.
      if (w.phase == Phase::committed && w.what.foreign && !config_.prepared) return "";
    }
    if (valid && (other || held.value != committed_)) return "B";
    Loader fresh;
    fresh.ticket = store_.ticket(hash_bytes(kKey));
    fresh.snapshot = snapshot_of(config_.prepared ? std::max(committed_, skipped_) : ended_);
    const std::string value = std::to_string(committed_);
    const engine::Ticket fresh_ticket{.near = fresh.ticket};
    if (engine_.judge(fill_of(fresh, fresh_ticket, value)) != policy::Refusal::none) return "D";
    return "";
  }

  // Everything that decides the future.
  std::string digest() const {
    std::string d;
    const auto put = [&](std::uint64_t n) { d += static_cast<char>('0' + n % 64); };
    for (const WriterState& w : writers_) {
      put(static_cast<std::uint64_t>(w.phase));
      put(w.x);
      put(w.feed_raised + 2u * w.processed + 4u * w.published + 8u * w.dead + 16u * w.forgotten);
    }
    for (const Loader& l : loaders_) {
      put(static_cast<std::uint64_t>(l.step));
      put(l.ticket.version);
      put(l.ticket.stamp);
      put(l.ticket.generation);
      put(l.value);
      put(l.snapshot.xmin);
      put(l.snapshot.source_id);
      put(l.read_source);
    }
    const Entry held = entry();
    put(held.present + 2u * held.is_void);
    put(held.value);
    put(entry_source_);
    const policy::Ticket now = store_.ticket(hash_bytes(kKey));
    put(now.version);
    put(now.stamp);
    put(now.generation);
    put(source_);
    put(allocated_);
    put(committed_);
    put(ended_);
    put(skipped_);
    return d;
  }

 private:
  struct WriterState {
    Writer what;
    Phase phase = Phase::idle;
    policy::TxnId x = 0;
    bool feed_raised = false;
    bool processed = false;  // voided
    bool published = false;  // its COMMIT returned; acknowledged
    bool dead = false;
    bool forgotten = false;  // the file that it wrote to is gone
  };
  struct Loader {
    int step = 0;
    policy::Ticket ticket;
    policy::Snapshot snapshot;
    policy::TxnId value = 0;
    std::uint64_t read_source = 0;
  };
  struct Entry {
    bool present = false;
    bool is_void = false;
    policy::TxnId value = 0;
  };

  Entry entry() const {
    Entry e;
    const_cast<near::Store&>(store_).lookup(kKey, hash_bytes(kKey), 1, [&](const near::View& view) {
      e = {true, view.is_void, std::stoull(std::string(view.value))};
    });
    return e;
  }
  policy::Snapshot snapshot_of(policy::TxnId seen) const {
    return {.source_id = source_, .xmin = seen + 1, .xmax = seen + 1, .in_progress = {}};
  }
  engine::Change change(const WriterState& w) const {
    engine::Change c{.source = 0, .x = w.x, .keys = {}, .tags = {}};
    (w.what.tag ? c.tags : c.keys).emplace_back(w.what.tag ? kTag : kKey);
    return c;
  }
  void void_now(const engine::Change& c) { engine_.void_all(c); }
  void void_everything() {
    if (config_.by_reset)
      store_.reset_all();
    else
      store_.invalidate_tag(hash_bytes("@cache:c"));
  }
  engine::Fill fill_of(const Loader& l, const engine::Ticket& ticket,
                       std::string_view value) const {
    static const std::vector<std::string> tags{"@cache:c", std::string(kTag)};
    return {.cache = {},
            .key = {kKey, hash_bytes(kKey)},
            .ticket = ticket,
            .snapshot = l.snapshot,
            .value = value,
            .meta = {.cache_id = 1},
            .tags = tags};
  }
  void new_epoch(std::uint64_t id) {
    // The embedded engine's does not suspend: started, it is done.
    struct Immediate {
      struct promise_type {
        Immediate get_return_object() { return {}; }
        std::suspend_never initial_suspend() noexcept { return {}; }
        std::suspend_never final_suspend() noexcept { return {}; }
        void return_void() {}
        void unhandled_exception() { std::terminate(); }
      };
    };
    const auto run = [](engine::Embedded& engine, std::uint64_t source) -> Immediate {
      Task<Result<void>> task = engine.new_epoch(0, source);
      co_await task;
    };
    run(engine_, id);
  }
  int next_of_feed() const {  // changes are delivered in commit order
    int next = -1;
    for (int i = 0; i < static_cast<int>(writers_.size()); ++i) {
      const WriterState& w = writers_[static_cast<std::size_t>(i)];
      if (!w.what.foreign || w.phase != Phase::committed || w.processed) continue;
      if (next < 0 || w.x < writers_[static_cast<std::size_t>(next)].x) next = i;
    }
    return next;
  }
  int unpublished() const {  // the writer's mutex is held until COMMIT has returned
    return static_cast<int>(std::ranges::count_if(writers_, [](const auto& w) {
      return !w.what.foreign && w.phase == Phase::committed && !w.published;
    }));
  }

  const Config& config_;
  near::Store store_;
  engine::Embedded engine_;
  std::vector<WriterState> writers_;
  std::vector<Loader> loaders_;
  std::uint64_t source_ = kFirstSource;
  std::uint64_t entry_source_ = kFirstSource;
  policy::TxnId allocated_ = 0;  // highest number handed out
  policy::TxnId committed_ = 0;  // the database's value
  policy::TxnId ended_ = 0;      // what a source without a change table knows to have ended
  policy::TxnId skipped_ = 0;    // numbers given up after a failed commit
};

struct Found {
  std::string violation;
  std::vector<std::string> trace;
  std::size_t states = 0;
};

Found explore(const Config& config) {
  std::set<std::string> seen;
  std::deque<std::vector<World::Action>> queue{{}};
  Found found;
  while (!queue.empty()) {
    const std::vector<World::Action> path = std::move(queue.front());
    queue.pop_front();
    std::vector<World::Action> next;
    {
      World world(config);
      for (const auto& action : path) world.apply(action);
      next = world.actions();
    }
    for (const World::Action& action : next) {
      World world(config);
      for (const auto& step : path) world.apply(step);
      world.apply(action);
      if (!seen.insert(world.digest()).second) continue;
      std::vector<World::Action> longer = path;
      longer.push_back(action);
      found.violation = world.violated();
      found.states = seen.size();
      if (!found.violation.empty()) {
        for (const auto& step : longer) found.trace.push_back(step.label);
        return found;
      }
      queue.push_back(std::move(longer));
    }
  }
  return found;
}

std::string show(const Found& found) {
  std::string text = found.violation + " violated by:\n";
  for (const std::string& step : found.trace) text += "  " + step + "\n";
  return text;
}

const Writer kLarder{.foreign = false, .tag = false};
const Writer kLarderTag{.foreign = false, .tag = true};
const Writer kForeign{.foreign = true, .tag = false};
const Writer kForeignTag{.foreign = true, .tag = true};

TEST(FillProtocol, HoldsInEveryInterleaving) {
  set_hash_seed(kSeed);
  const std::vector<Config> worlds{
      {.name = "one writer through Larder, two loaders", .writers = {kLarder}},
      {.name = "two writers through Larder", .writers = {kLarder, kLarder}},
      {.name = "Larder and a foreign writer", .writers = {kLarder, kForeign}},
      {.name = "key and tag", .writers = {kLarder, kLarderTag}},
      {.name = "foreign tag", .writers = {kLarder, kForeignTag}},
      {.name = "history lost", .writers = {kForeign, kForeign}, .history_lost = true},
      {.name = "history lost, by reset",
       .writers = {kForeign, kForeign},
       .history_lost = true,
       .by_reset = true},
      {.name = "the file is replaced",
       .writers = {kLarder, kForeign},
       .loaders = 1,
       .replace = true},
      {.name = "no change table", .writers = {kLarder, kLarderTag}, .prepared = false},
      {.name = "no change table, foreign writer",
       .writers = {kLarder, kForeign},
       .prepared = false},
  };
  for (const Config& world : worlds) {
    const Found found = explore(world);
    EXPECT_EQ(found.violation, "") << world.name << ": " << show(found);
    EXPECT_GT(found.states, 100u) << world.name << " explored nothing";
    std::printf("%-45s %8zu states\n", world.name.c_str(), found.states);
  }
}

// Each rule left out must be found out, by the property that it protects.
TEST(FillProtocol, EveryRuleIsNeeded) {
  set_hash_seed(kSeed);
  struct Control {
    std::string expected;  // any of these letters
    Config world;
  };
  std::vector<Control> controls{
      {"A", {.name = "ticket not checked", .writers = {kForeign}, .rules = {.ticket = false}}},
      {"AC",
       {.name = "tombstone not checked", .writers = {kLarder}, .rules = {.tombstone = false}}},
      {"AC",
       {.name = "tag's tombstone not checked",
        .writers = {kLarderTag},
        .rules = {.tag_tombstone = false}}},
      {"A",
       {.name = "tag's stamp not checked",
        .writers = {kForeignTag},
        .rules = {.tag_stamp = false}}},
      {"AB",
       {.name = "generation not checked",
        .writers = {kForeign, kForeign},
        .history_lost = true,
        .by_reset = true,
        .rules = {.generation = false}}},
      {"AB",
       {.name = "source not compared",
        .writers = {kLarder},
        .loaders = 1,
        .replace = true,
        .rules = {.source = false, .tag_stamp = false}}},
      {"BD",
       {.name = "a new incarnation not announced",
        .writers = {kLarder},
        .loaders = 1,
        .replace = true,
        .keep_epoch = true}},
      {"BC",
       {.name = "void only after COMMIT, writer fails",
        .writers = {kLarder},
        .void_after_commit = true}},
      {"AC",
       {.name = "snapshot taken after the read",
        .writers = {kLarder},
        .prepared = false,
        .snapshot_after_read = true}},
      {"AC",
       {.name = "ticket voided before the tombstone is raised",
        .writers = {kLarder},
        .void_before_raise = true}},
  };
  for (const Control& control : controls) {
    const Found found = explore(control.world);
    std::printf("%-45s %s after %zu steps, %zu states\n", control.world.name.c_str(),
                found.violation.empty() ? "-" : found.violation.c_str(), found.trace.size(),
                found.states);
    EXPECT_FALSE(found.violation.empty()) << control.world.name << " went unnoticed";
    if (!found.violation.empty())
      EXPECT_NE(control.expected.find(found.violation), std::string::npos)
          << control.world.name << ": " << show(found);
  }
}

}  // namespace
}  // namespace larder
