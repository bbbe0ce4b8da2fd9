// Everything that may happen to one partition of a shared engine, and what must hold.
//
// WORLD  Key 1 bears tag 1; key 2 is another key of the partition.
//   Database: transactions take their number when they start, their commit record reaches the log
//     (where the feed may read it), then they become visible. A value is the set of transactions
//     that it shows; a snapshot is xmin, xmax and what runs between, as PostgreSQL gives them.
//     L  through Larder: invalidates with its own number before its COMMIT.
//     F  foreign: only the feed tells.       E  foreign, no feed: the application tells, without a
//     number.                                T  foreign, of a source without snapshots: the feed
//     tells once it is visible.
//     Each changes: k the key's row, t a row behind the tag, o the other key, b the key's row, by a
//     writer that knows another version of the cache.
//   Feeds deliver the log's changes and begin new epochs, where one is needed and, up to a budget,
//     where none is. Loaders take one ticket each. Near tiers get any message that was ever
//     published, at any time, in any order, any number of times, or never.
//   Faults: see faults() below.
// PROPERTIES
//   A  x was processed by the engine (in the history that survives; x of the incarnation that the
//      engine knows) and is visible => no valid entry lacks x; and likewise for each near tier and
//      the x up to the n that it has applied.
//   B  everything is quiet, the feed is at the log's end => each tier shows the database's value.
//   C  a write through Larder was acknowledged => the engine has no valid entry without it, as long
//      as neither engine nor database fails over.
//   D  as B => a load made now would be stored.
//   M  a valid entry is not replaced by one that shows less.
// NOT HERE  Times (as-of, heartbeats as promises, how long a ticket lives: it may end at any
// moment),
//   standbys, a node's own write path, an engine that is written to after another has taken over.
#pragma once

#include <fmt/format.h>

#include <functional>

#include "engine_state.h"

namespace larder::sim {

using engine::redis::TxnRule;

class World {
 public:
  using Label = std::function<std::string()>;
  using Out = std::function<void(const State&, const Label&)>;

  explicit World(const Config& config) : config_(config) {
    for (std::size_t i = 0; i < config.txs.size(); ++i)
      if (!changes(i, "ktb").empty()) ours_ |= bit(i);
  }

  State first() const {
    State s;
    s.shared.engine.epoch = 1;
    s.shared.engine.source = 1;
    for (Near& near : s.nears) {
      near.follower = Follower(config_.follower);
      near.follower.on_heartbeat(position_of(1, 1, 0));
    }
    return s;
  }

  // Calls `out` with every state that may come next.
  void next(const State& s, const Out& out) const {
    for (std::size_t i = 0; i < config_.txs.size(); ++i) database(s, i, out);
    if (config_.db_failover && s.db.source == 1) database_fails(s, out);
    if (feeds())
      for (std::size_t i = 0; i < static_cast<std::size_t>(config_.feeds); ++i) feed(s, i, out);
    for (std::size_t i = 0; i < config_.loaders.size(); ++i) load(s, i, out);
    for (std::size_t i = 0; i < static_cast<std::size_t>(config_.nears); ++i) near(s, i, out);
    faults(s, out);
  }

  std::string violated(const State& s) const {
    std::string bad;
    const unsigned visible = value_of(s.db);
    const Engine& e = s.shared.engine;
    const Engine::Entry* entry = e.answered(1, 1, config_.rules);
    const unsigned lacks = entry != nullptr ? visible & ~entry->value : 0;
    bool stale = entry != nullptr && entry->value != visible;
    bool a = (s.shared.processed & lacks) != 0;
    for (const Near& n : s.nears) {
      if (!n.entry) continue;
      a = a || (n.heard & visible & ~n.value) != 0;
      const bool there =
          n.follower.known() && n.follower.position() == position_of(s.shared.replid, e.epoch, e.n);
      stale = stale || (there && n.value != visible);
    }
    if (a) bad += "A";
    if ((s.db.acknowledged & lacks) != 0 && s.shared.replid == 1 && s.db.source == 1) bad += "C";
    if (quiet(s)) {
      if (stale) bad += "B";
      if (would_refuse(s) != Refusal::none) bad += "D";
    }
    if (s.went_back) bad += "M";
    std::erase_if(bad, [&](char c) { return config_.check.find(c) == std::string::npos; });
    return bad;
  }

 private:
  static N bit(std::size_t i) { return static_cast<N>(1U << i); }
  char kind(std::size_t i) const { return config_.txs[i][0]; }
  // Which of `targets` transaction i changes.
  std::string changes(std::size_t i, std::string_view targets) const {
    std::string found;
    for (const char c : std::string_view(config_.txs[i]).substr(1))
      if (targets.find(c) != std::string_view::npos) found += c;
    return found;
  }
  bool feeds() const {
    return std::ranges::any_of(config_.txs, [](const auto& t) { return t[0] != 'E'; }) &&
           config_.before_commit;
  }

  // ---- the database ----

  static bool runs(const Txn& t) {
    return t.phase == Phase::running || t.phase == Phase::invalidated || t.phase == Phase::logged;
  }
  unsigned value_of(const Database& db) const {
    unsigned value = 0;
    for (std::size_t i = 0; i < config_.txs.size(); ++i)
      if (db.txs[i].phase == Phase::visible) value |= bit(i);
    return value & ours_;
  }
  Snapshot snapshot(const Database& db) const {
    Snapshot s{db.source, static_cast<N>(db.done + 1), static_cast<N>(db.done + 1), {}};
    if (!config_.snapshots) return {db.source, 0, 0, {}};
    for (const Txn& t : db.txs) {
      if (!runs(t) || t.x >= s.xmax) continue;
      s.running.push_back(t.x);
      s.xmin = std::min(s.xmin, t.x);
    }
    std::sort(s.running.begin(), s.running.end());
    return s;
  }
  // pg_current_xact_id() in a transaction that ends at once.
  static N allocate(Database& db) {
    db.done = std::max(db.done, db.next);
    return db.next++;
  }

  void database(const State& s, std::size_t i, const Out& out) const {
    const Txn& tx = s.db.txs[i];
    const auto step = [&](Phase phase, const char* what) {
      State t = s;
      Txn& mine = t.db.txs[i];
      mine.phase = phase;
      if (phase == Phase::running) mine.x = t.db.next++;
      if (phase == Phase::logged) t.db.log.push_back(static_cast<N>(i));
      if (phase == Phase::visible || phase == Phase::aborted)
        t.db.done = std::max(t.db.done, mine.x);
      if (phase == Phase::visible && kind(i) == 'L' && config_.before_commit)
        t.db.acknowledged |= bit(i);
      out(t, [&, what] { return fmt::format("{}{} {}", kind(i), i, what); });
    };
    const bool larder = kind(i) == 'L';
    if (tx.phase == Phase::none) step(Phase::running, "begins");
    if (tx.phase == Phase::running || tx.phase == Phase::invalidated) {
      step(Phase::aborted, "rolls back, or its writer crashes");
      if (!larder || tx.phase == Phase::invalidated || !config_.before_commit)
        step(Phase::logged, "commits: it is in the log, not yet visible");
    }
    if (tx.phase == Phase::logged) step(Phase::visible, "becomes visible");
    if (larder) writer(s, i, out);
    if (kind(i) == 'E') event(s, i, out);
  }

  void writer(const State& s, std::size_t i, const Out& out) const {
    const Txn& tx = s.db.txs[i];
    const bool late = tx.phase == Phase::lost && !tx.told;  // sent before the database failed over
    const bool now =
        config_.before_commit ? tx.phase == Phase::running : tx.phase == Phase::visible && !tx.told;
    if (now || late) {
      State t = s;
      t.db.txs[i].told = true;
      if (tx.phase == Phase::running) t.db.txs[i].phase = Phase::invalidated;
      if (tx.phase == Phase::visible) t.db.acknowledged |= bit(i);
      change(t, i, tx.x, TxnRule::exact, late ? N{1} : s.db.source);
      out(t,
          [i, late] { return fmt::format("L{}'s writer invalidates{}", i, late ? ", late" : ""); });
    }
    if (now && !config_.before_commit) {
      State t = s;
      t.db.txs[i].told = true;
      out(t, [i] { return fmt::format("L{}'s writer crashes", i); });
    }
  }

  void event(const State& s, std::size_t i, const Out& out) const {
    const Txn& tx = s.db.txs[i];
    if (tx.told || !(runs(tx) || tx.phase == Phase::visible)) return;
    State t = s;
    Txn& mine = t.db.txs[i];
    if (tx.event == 0) {
      mine.event = allocate(t.db);
      out(t, [i] { return fmt::format("the event of E{} takes a number", i); });
    } else {
      mine.told = true;
      change(t, i, mine.event, TxnRule::below, s.db.source);
      out(t, [i] { return fmt::format("the event of E{} invalidates", i); });
    }
  }

  void database_fails(const State& s, const Out& out) const {
    for (unsigned kept = 0; kept <= s.db.log.size(); ++kept) {
      State t = s;
      Database& db = t.db;
      db.old = snapshot(s.db);
      db.old_value = static_cast<N>(value_of(s.db));
      db.source = 2;
      db.log.clear();
      db.next = 1;
      for (Txn& tx : db.txs)
        if (tx.phase != Phase::none) tx.phase = Phase::lost;
      for (unsigned j = 0; j < kept; ++j) {
        Txn& tx = db.txs[s.db.log[j]];
        tx.phase = Phase::visible;
        db.log.push_back(s.db.log[j]);
        db.next = std::max<N>(db.next, tx.x + 1);  // numbers above are given again
      }
      db.done = db.next - 1;
      out(t, [kept] {
        return fmt::format("DATABASE FAILOVER to a standby with {} of the commits", kept);
      });
    }
  }

  // ---- the engine ----

  Engine::Change change_of(std::size_t i, N x, TxnRule rule, N source) const {
    Engine::Change c{{}, {}, x, rule, source};
    for (const char target : changes(i, "ktob")) {
      if (target == 't') {
        c.tags.push_back(1);
        continue;
      }
      Engine::KeyChange key{static_cast<N>(target == 'o' ? 2 : 1), {}};
      if (target == 'k') key.schemas.push_back(1);
      c.keys.push_back(key);
    }
    return c;
  }
  bool change(State& t, std::size_t i, N x, TxnRule rule, N source,
              const Engine::Feed* feed = nullptr) const {
    Small<Engine::Change> all;
    all.push_back(change_of(i, x, rule, source));
    Small<Engine::Message> messages;
    if (!t.shared.engine.change(all, feed, kNoTrim, config_.rules, messages)) return false;
    // Of another incarnation the engine knows nothing before the feed has begun an epoch for it.
    const N known = t.shared.engine.source;
    const N processed = known == 0 || source == 0 || known == source ? bit(i) : N{0};
    t.shared.processed |= processed;
    publish(t, messages, processed);
    return true;
  }
  // What is in the stream may also come from the set of all that was sent.
  void publish(State& t, const Small<Engine::Message>& messages, N txs) const {
    t.shared.engine.stream.clear();
    if (config_.nears == 0) return;
    for (const Engine::Message& m : messages) {
      if (m.kind == engine::redis::Message::Kind::filled) continue;  // not for the follower
      Sent sent{m.kind, t.shared.replid,    m.epoch, m.n,
                0,      t.shared.processed, false,   !m.tags.empty()};
      if (m.kind == engine::redis::Message::Kind::change) sent.txs = txs;
      for (const N key : m.keys) sent.key = sent.key || key == 1;
      if (std::find(t.sent.begin(), t.sent.end(), sent) == t.sent.end()) t.sent.push_back(sent);
    }
  }

  // ---- feeds ----

  bool needs_epoch(const State& s) const {
    return s.shared.engine.epoch == 0 || s.shared.engine.source != s.db.source;
  }

  void feed(const State& s, std::size_t i, const Out& out) const {
    const FeedState& f = s.feeds[i];
    const std::string who = config_.feeds > 1 ? fmt::format("feed {}", i) : "the feed";
    if (f.step != 0) return epoch(s, i, who, out);
    const Engine& e = s.shared.engine;
    if (!needs_epoch(s)) {
      const bool more = f.at < s.db.log.size();
      const N tx = more ? s.db.log[f.at] : N{0};
      if (more && (kind(tx) != 'T' || s.db.txs[tx].phase == Phase::visible))
        step_of_feed(s, i, tx, true, who, out);
      if (f.at != e.feed_position || config_.nears > 0) step_of_feed(s, i, 0, false, who, out);
    }
    const bool needless = !needs_epoch(s) && s.needless < config_.epochs;
    const int most = config_.losses + config_.epochs + config_.feeds + 1;
    if ((!needs_epoch(s) && !needless) || s.marks >= most) return;
    State t = s;
    if (needless) ++t.needless;
    if (config_.floor == Floor::before_mark) {
      t.feeds[i].floor = allocate(t.db);
      t.feeds[i].step = 4;
      out(t, [&, f = t.feeds[i].floor] {
        return fmt::format("{}, epoch: F={} from the primary", who, f);
      });
    } else {
      mark(t, i);
      out(t, [&] { return fmt::format("{}, epoch: the state is replaced by a mark", who); });
    }
  }

  void step_of_feed(const State& s, std::size_t i, N tx, bool more, const std::string& who,
                    const Out& out) const {
    State t = s;
    FeedState& f = t.feeds[i];
    Engine& e = t.shared.engine;
    const Engine::Feed step{config_.replay ? f.at : e.feed_position,
                            static_cast<N>(f.at + (more ? 1 : 0)), 1, s.db.source, 0};
    const bool numbered = more && kind(tx) != 'T';
    bool applied = false;
    if (more) {
      applied = change(t, tx, numbered ? t.db.txs[tx].x : N{0},
                       numbered ? TxnRule::exact : TxnRule::tickets, numbered ? s.db.source : N{0},
                       &step);
    } else {
      Small<Engine::Message> messages;
      applied = e.change({}, &step, kNoTrim, config_.rules, messages);
      publish(t, messages, 0);
    }
    f.at = applied ? step.position : e.feed_position;
    out(t, [&, applied] {
      if (!applied) return fmt::format("{} is behind or ahead, goes to A={}", who, f.at);
      return more ? fmt::format("{} applies {}{}, A={}", who, kind(tx), tx, f.at)
                  : fmt::format("{} beats, A={}", who, f.at);
    });
  }

  static void mark(State& t, std::size_t i) {
    t.shared.engine.epoch_begin(++t.marks, t.db.source);
    t.feeds[i].mark = t.marks;
    t.feeds[i].step = 1;
  }

  // A source without snapshots tells of what is visible.
  unsigned end_of_log(const Database& db) const {
    unsigned end = 0;
    while (end < db.log.size() &&
           (config_.snapshots || db.txs[db.log[end]].phase == Phase::visible))
      ++end;
    return end;
  }

  // 1 mark written, 2 A is read, 3 F is allocated; 4 (before_mark) F, but no mark yet.
  void epoch(const State& s, std::size_t i, const std::string& who, const Out& out) const {
    State t = s;
    FeedState& f = t.feeds[i];
    const auto read_position = [&](N then) {
      f.position = static_cast<N>(end_of_log(t.db));
      f.source = t.db.source;
      f.step = then;
      out(t, [&] { return fmt::format("{}, epoch: A={} is read", who, f.position); });
    };
    const auto take_floor = [&](N then) {
      f.floor = config_.floor == Floor::xmax ? static_cast<N>(t.db.done + 1) : allocate(t.db);
      f.step = then;
      out(t, [&] { return fmt::format("{}, epoch: F={} from the primary", who, f.floor); });
    };
    switch (f.step) {
      case 1:
        if (config_.floor == Floor::before_mark) return read_position(3);
        if (config_.floor == Floor::before_position) return take_floor(2);
        return read_position(2);
      case 2: return config_.floor == Floor::before_position ? read_position(3) : take_floor(3);
      case 4: {
        mark(t, i);
        out(t, [&] { return fmt::format("{}, epoch: the state is replaced by a mark", who); });
        return;
      }
      default: break;
    }
    Small<Engine::Message> messages;
    const bool written =
        t.shared.engine.epoch_write(f.mark, static_cast<N>(t.epochs + 1), f.floor, f.position,
                                    f.source, 1, config_.rules, messages);
    if (written) ++t.epochs;
    publish(t, messages, 0);
    f = {.at = written ? f.position : f.at};
    out(t, [&, written] {
      return fmt::format("{}, epoch: {}", who, written ? "WRITTEN" : "given up, the mark is gone");
    });
  }

  // ---- loaders ----

  void load(const State& s, std::size_t i, const Out& out) const {
    State t = s;
    Loader& l = t.loaders[i];
    if (l.step == 0) {
      const auto found =
          t.shared.engine.lookup(1, 1, static_cast<N>(i + 1), true, false, config_.rules);
      if (found.kind != Engine::Kind::ticket) return;
      l.step = 1;
      l.epoch = t.shared.engine.epoch;
      if (config_.nears > 0) {
        l.generation = near_of(t, i).follower.generation();
        l.held = true;
      }
      out(t, [i] { return fmt::format("loader {} gets a ticket", i); });
    } else if (l.step == 1) {
      l.step = 2;
      l.snapshot = snapshot(t.db);
      l.value = static_cast<N>(value_of(t.db));
      out(t, [&] {
        return fmt::format("loader {} reads {} (xmin {}, xmax {})", i, show(l.value),
                           l.snapshot.xmin, l.snapshot.xmax);
      });
      if (config_.loaders[i] != 'O' || t.db.source == 1) return;
      l.snapshot = t.db.old;
      l.value = t.db.old_value;
      out(t,
          [&] { return fmt::format("loader {} reads {} on the old primary", i, show(l.value)); });
    } else if (l.step == 2) {
      fill(t, i, out);
    }
  }

  Near& near_of(State& t, std::size_t i) const {
    return t.nears[i % static_cast<std::size_t>(config_.nears)];
  }
  static Engine::Entry entry_of(const Snapshot& snapshot, N value) {
    Engine::Entry entry{1, 1, 0, 0, snapshot, {}, value, false};
    entry.tags.push_back(1);
    return entry;
  }

  void fill(State& t, std::size_t i, const Out& out) const {
    Loader& l = t.loaders[i];
    Engine& e = t.shared.engine;
    const Engine::Entry* there = e.answered(1, 1, config_.rules);
    const unsigned before =
        there != nullptr && there->snapshot.source == l.snapshot.source ? there->value : 0U;
    Small<Engine::Message> messages;
    const Refusal refusal = e.fill(entry_of(l.snapshot, l.value), static_cast<N>(i + 1), l.epoch,
                                   config_.rules, messages);
    const Loader was = l;
    l = {.step = 3};
    if (refusal != Refusal::none) {
      out(t, [&] {
        return fmt::format("loader {}'s fill is refused: {}", i, policy::to_string(refusal));
      });
      return;
    }
    t.went_back = (before & ~was.value) != 0;
    if (config_.nears > 0 && !near_of(t, i).flight.on)
      near_of(t, i).flight = {true,    was.held, true,           was.value,         t.shared.replid,
                              e.epoch, e.n,      was.generation, t.shared.processed};
    out(t, [&] { return fmt::format("loader {}: {} IS STORED", i, show(was.value)); });
  }

  // ---- near tiers ----

  void near(const State& s, std::size_t i, const Out& out) const {
    for (const Sent& m : s.sent) deliver(s, i, m, out);
    const Near& near = s.nears[i];
    {
      State t = s;
      t.nears[i].follower.reset();
      t.nears[i].entry = false;
      out(t, [i] { return fmt::format("near tier {} resets", i); });
    }
    const Engine& e = s.shared.engine;
    const Engine::Entry* entry = e.answered(1, 1, config_.rules);
    if (near.flight.on) {
      arrive(s, i, out);
    } else if (!near.entry && (entry != nullptr || e.epoch == 0)) {
      State t = s;
      t.nears[i].flight = {true,
                           true,
                           entry != nullptr,
                           entry != nullptr ? entry->value : N{0},
                           s.shared.replid,
                           e.epoch,
                           e.n,
                           near.follower.generation(),
                           s.shared.processed};
      out(t, [&, i] {
        return fmt::format("near tier {} asks; the answer is {} at n={}", i,
                           entry != nullptr ? show(entry->value) : "no state", e.n);
      });
    }
  }

  static void adopt(Near& near, N replid, N processed) {
    near.heard = static_cast<N>(processed | (near.replid == replid ? near.heard : 0));
    near.replid = replid;
  }

  void deliver(const State& s, std::size_t i, const Sent& m, const Out& out) const {
    State t = s;
    Near& near = t.nears[i];
    const auto position = position_of(m.replid, m.epoch, m.n);
    const bool is_change = m.kind == engine::redis::Message::Kind::change;
    const bool known = near.follower.known();
    const auto verdict =
        is_change ? near.follower.on_change(position) : near.follower.on_heartbeat(position);
    const char* what = "";
    switch (verdict) {
      case Follower::Verdict::apply:
        what = "applies";
        if (is_change) {
          apply(t, i, m);
        } else if (!known) {
          adopt(near, m.replid, m.processed);
          what = "takes its position from";
        }
        break;
      case Follower::Verdict::duplicate: return;
      case Follower::Verdict::gap: return;  // what is missing comes by itself, or a reset does
      case Follower::Verdict::reset:
        near.entry = false;
        what = "is reset by";
        break;
    }
    out(t, [&, what] {
      return fmt::format("near tier {} {} the {} n={}", i, what, is_change ? "change" : "heartbeat",
                         m.n);
    });
  }

  void apply(State& t, std::size_t i, const Sent& m) const {
    Near& near = t.nears[i];
    if (m.key || m.tag) near.entry = false;
    if (near.replid == m.replid) near.heard |= m.txs;
    if (!(m.key || m.tag) || !config_.near_ticket) return;  // the near store's tickets know both
    near.flight.held = false;
    for (std::size_t l = 0; l < config_.loaders.size(); ++l)
      if (&near_of(t, l) == &near) t.loaders[l].held = false;
  }

  void arrive(const State& s, std::size_t i, const Out& out) const {
    State t = s;
    Near& near = t.nears[i];
    const Flight flight = near.flight;
    near.flight = {};
    const bool known = near.follower.known();
    const auto generation = near.follower.generation();
    const bool may = near.follower.may_install(position_of(flight.replid, flight.epoch, flight.n),
                                               flight.generation);
    if (near.follower.generation() != generation) near.entry = false;
    if (!known && near.follower.known()) adopt(near, flight.replid, flight.processed);
    const bool installs = may && flight.held && flight.entry;
    if (installs) {
      near.entry = true;
      near.value = flight.value;
    }
    if (!near.entry) near.value = 0;
    out(t, [&, installs] {
      return fmt::format("near tier {} {}", i,
                         installs ? "INSTALLS " + show(flight.value) : "does not install it");
    });
  }

  // ---- faults ----

  void faults(const State& s, const Out& out) const {
    const auto step = [&](const char* what, auto&& how) {
      State t = s;
      how(t);
      out(t, [what] { return std::string(what); });
    };
    const Engine& e = s.shared.engine;
    if (!e.tickets.empty())
      step("the ticket ends", [](State& t) { t.shared.engine.drop_ticket(1, 1); });
    if (!e.entries.empty())
      step("the entry is evicted", [](State& t) { t.shared.engine.drop_entry(1, 1); });
    if (config_.trim && !e.tombstones.empty())
      step("the lowest tombstone is trimmed",
           [](State& t) { t.shared.engine.trim(t.shared.engine.tombstones.size() - 1, 0, 0); });
    if (s.losses < config_.losses && e.records()) {
      step("the STATE IS LOST", [](State& t) {
        ++t.losses;
        t.shared.engine.lose_state();
      });
      step("FLUSHALL", [](State& t) {
        ++t.losses;
        t.shared.engine.lose_everything();
      });
    }
    if (!config_.failover || s.shared.replid != 1) return;
    if (!s.has_replica) {
      step("(here the replica stops)", [](State& t) {
        t.has_replica = true;
        t.replica = t.shared;
      });
    } else {
      step("ENGINE FAILOVER to the replica", [](State& t) {
        t.shared = t.replica;
        t.shared.replid = 2;
        t.has_replica = false;
        t.replica = {};
      });
    }
  }

  // ---- properties ----

  bool quiet(const State& s) const {
    for (std::size_t i = 0; i < config_.txs.size(); ++i) {
      const Txn& tx = s.db.txs[i];
      if (runs(tx)) return false;
      const bool tells = kind(i) == 'E' || (kind(i) == 'L' && !config_.before_commit);
      if (tx.phase == Phase::visible && tells && !tx.told) return false;
    }
    if (!feeds()) return true;
    for (const FeedState& f : s.feeds)
      if (f.step != 0) return false;
    return !needs_epoch(s) && s.shared.engine.feed_position == s.db.log.size();
  }

  Refusal would_refuse(const State& s) const {
    Engine e = s.shared.engine;
    e.drop_ticket(1, 1);
    e.lookup(1, 1, 9, true, false, config_.rules);
    Small<Engine::Message> messages;
    return e.fill(entry_of(snapshot(s.db), static_cast<N>(value_of(s.db))), 9, e.epoch,
                  config_.rules, messages);
  }

  static constexpr engine::redis::Bounds kNoTrim{};
  const Config& config_;
  unsigned ours_ = 0;  // transactions that change the key's value
};

}  // namespace larder::sim
