#include "policy/follower.h"

#include <gtest/gtest.h>

#include <deque>
#include <optional>
#include <set>
#include <vector>

namespace larder::policy {
namespace {

using Verdict = Follower::Verdict;

Position at(std::uint64_t n, const std::string& replid = "r", const std::string& epoch = "e") {
  return {.replid = replid, .epoch = epoch, .n = n};
}

Follower following(std::uint64_t n) {
  Follower f;
  EXPECT_EQ(f.on_heartbeat(at(n)), Verdict::apply);
  return f;
}

TEST(Follower, AppliesChangesInOrderOnce) {
  Follower f = following(5);
  EXPECT_EQ(f.on_change(at(6)), Verdict::apply);
  EXPECT_EQ(f.on_change(at(6)), Verdict::duplicate);
  EXPECT_EQ(f.on_change(at(1)), Verdict::duplicate);
  EXPECT_EQ(f.position(), at(6));
}

TEST(Follower, AGapStaysUntilItIsRepaired) {
  Follower f = following(5);
  EXPECT_EQ(f.on_change(at(8)), Verdict::gap);
  EXPECT_EQ(f.on_heartbeat(at(8)), Verdict::gap);
  EXPECT_EQ(f.position(), at(5));
  for (std::uint64_t n = 6; n <= 8; ++n) EXPECT_EQ(f.on_change(at(n)), Verdict::apply);
  EXPECT_EQ(f.on_heartbeat(at(8)), Verdict::apply);
}

TEST(Follower, AnotherServerOrEpochResets) {
  for (const Position& other : {at(6, "other"), at(6, "r", "other")}) {
    for (const bool heartbeat : {false, true}) {
      Follower f = following(5);
      const std::uint64_t before = f.generation();
      EXPECT_EQ(heartbeat ? f.on_heartbeat(other) : f.on_change(other), Verdict::reset);
      EXPECT_FALSE(f.known());
      EXPECT_NE(f.generation(), before);
    }
  }
}

TEST(Follower, AnOldHeartbeatIsADuplicate) {
  Follower f = following(5);
  EXPECT_EQ(f.on_heartbeat(at(4)), Verdict::duplicate);
  EXPECT_EQ(f.position(), at(5));
}

TEST(Follower, WithoutAPositionChangesApplyAndSetNone) {
  Follower f;
  EXPECT_EQ(f.on_change(at(9)), Verdict::apply);
  EXPECT_FALSE(f.known());
}

TEST(Follower, AnEngineWithoutStateGivesNoPosition) {
  Follower f;
  EXPECT_EQ(f.on_heartbeat(at(0, "r", "")), Verdict::gap);
  EXPECT_FALSE(f.may_install(at(0, "r", ""), f.generation()));
  EXPECT_FALSE(f.known());
  f = following(5);
  EXPECT_EQ(f.on_heartbeat(at(0, "r", "")), Verdict::reset);
  f = following(5);
  EXPECT_FALSE(f.may_install(at(5, "r", ""), f.generation()));
  EXPECT_FALSE(f.known());
}

TEST(Follower, InstallsWhatIsNotOlder) {
  Follower f = following(5);
  EXPECT_FALSE(f.may_install(at(4), f.generation()));
  EXPECT_TRUE(f.may_install(at(5), f.generation()));
  EXPECT_TRUE(f.may_install(at(7), f.generation()));
  EXPECT_EQ(f.position(), at(5)) << "6 and 7 are still to be applied";
}

TEST(Follower, AnAnswerFromBeforeAResetIsRefused) {
  Follower f = following(5);
  const std::uint64_t before = f.generation();
  f.reset();
  EXPECT_FALSE(f.may_install(at(9), before));
  EXPECT_FALSE(f.known());
  EXPECT_TRUE(f.may_install(at(9), f.generation()));
  EXPECT_EQ(f.position(), at(9));
}

TEST(Follower, AnAnswerFromAnotherHistoryResets) {
  Follower f = following(5);
  const std::uint64_t before = f.generation();
  EXPECT_FALSE(f.may_install(at(9, "other"), before));
  EXPECT_FALSE(f.known());
  EXPECT_FALSE(f.may_install(at(9, "other"), before)) << "asked for before the reset";
  EXPECT_TRUE(f.may_install(at(9, "other"), f.generation()));
}

// ---- every interleaving ----
//
// WORLD  One key, and another one for the messages between. Writes are numbered; an entry is the
//   number of the last one (`written`) that its load saw. A change tells the engine of one more
//   (`processed`), drops its entry, and becomes message n. A message may come
//   late, twice, out of order or never. The engine fails over once to an older prefix, whose feed
//   then tells it the rest again; or gets a new epoch. One near tier: an entry, an answer on its
//   way. Its ticket for the key is left out, on purpose: the rules here must hold without it.
// PROPERTIES, as in the model of the whole protocol
//   A  The near tier's entry shows every change up to the near tier's position.
//   B  All told, and the near tier is where the engine is => its entry shows the database's value.

struct Note {
  int replid, epoch, n, value;
  auto operator<=>(const Note&) const = default;
};

struct Engine {
  int replid = 0, epoch = 1;
  int processed = 0;
  int entry = -1;         // -1: none
  std::vector<Note> log;  // n = its size
  auto operator<=>(const Engine&) const = default;
};

struct Answer {
  std::uint64_t generation = 0;
  Note at{};          // value: the entry's
  int processed = 0;  // of the engine, then
  auto operator<=>(const Answer&) const = default;
};

struct World {
  const std::string* writes = nullptr;  // of each: 'k' = the key, 'o' = another
  int written = 0;
  Engine engine;
  std::optional<Engine> replica;  // where it stopped
  std::vector<Note> sent;
  Follower follower;
  int entry = -1;
  int applied = 0;  // ghost
  int replid = 0;   // ghost: of the server that `applied` counts for
  int resets = 0;
  std::optional<Answer> answer;

  // What decides the future. The generation counts from the answer's: only equality matters.
  auto digest() const {
    const Position p = follower.known() ? follower.position() : Position{};
    const bool fresh = answer && answer->generation == follower.generation();
    std::optional<Answer> on_way = answer;
    if (on_way) on_way->generation = fresh ? 1 : 0;
    return std::tuple(written, engine, replica, sent, follower.known(), p.replid, p.epoch, p.n,
                      entry, applied, replid, resets, on_way);
  }
};

constexpr int kResets = 1;

Position position(const Note& note) {
  return at(static_cast<std::uint64_t>(note.n), "r" + std::to_string(note.replid),
            "e" + std::to_string(note.epoch));
}

Note here(const Engine& engine, int value) {
  return {engine.replid, engine.epoch, static_cast<int>(engine.log.size()), value};
}

bool is_key(const World& w, int write) {
  return (*w.writes)[static_cast<std::size_t>(write) - 1] == 'k';
}

// Does an entry that shows the writes up to `entry` lack one of the key up to `until`?
bool lacks(const World& w, int entry, int until) {
  for (int write = entry + 1; write <= until; ++write)
    if (is_key(w, write)) return true;
  return false;
}

void forget(World& w) {
  w.entry = -1;
  w.applied = 0;
}

void apply(World& w, const Note& note) {
  if (is_key(w, note.value)) w.entry = -1;
  if (w.replid == note.replid) w.applied = std::max(w.applied, note.value);
}

// The changes after the near tier's position, if the engine still has that history.
void repair(World& w, const Follower::Rules& rules) {
  const Position from = w.follower.position();
  if (rules.history && !from.same_history(position(here(w.engine, 0)))) {
    w.follower.reset();
    return forget(w);
  }
  for (const Note& note : w.engine.log)
    if (w.follower.on_change(position(note)) == Verdict::apply) apply(w, note);
}

void hear(World& w, const Note& note, bool change, const Follower::Rules& rules) {
  const bool known = w.follower.known();
  const Verdict verdict =
      change ? w.follower.on_change(position(note)) : w.follower.on_heartbeat(position(note));
  if (verdict == Verdict::reset) forget(w);
  if (verdict == Verdict::gap) repair(w, rules);
  if (verdict != Verdict::apply) return;
  // Voided while the position was unknown counts for nothing: the answer that sets the position may
  // be older, and then the change is still to come.
  if (change && !known && is_key(w, note.value)) w.entry = -1;
  if (change && known) apply(w, note);
  if (!change && !known) {  // a reading: the near tier is empty, and at the engine's position
    w.replid = note.replid;
    w.applied = w.engine.processed;
  }
}

std::vector<World> next(const World& w, const Follower::Rules& rules) {
  std::vector<World> out;
  const auto add = [&](auto&& change) {
    World copy = w;
    change(copy);
    out.push_back(std::move(copy));
  };
  const Engine& g = w.engine;
  if (w.written < static_cast<int>(w.writes->size())) add([](World& x) { ++x.written; });
  if (g.processed < w.written)
    add([](World& x) {
      Engine& e = x.engine;
      ++e.processed;
      if (is_key(x, e.processed)) e.entry = -1;
      Note note = here(e, e.processed);
      ++note.n;
      e.log.push_back(note);
      x.sent.push_back(note);
    });
  if (g.entry < 0) add([](World& x) { x.engine.entry = x.written; });
  if (!w.replica) add([](World& x) { x.replica = x.engine; });
  if (w.replica && g.replid == 0)
    add([](World& x) {
      x.engine = *x.replica;
      x.engine.replid = 1;
    });
  if (g.epoch == 1)
    add([](World& x) {
      x.engine = {.replid = x.engine.replid, .epoch = 2, .processed = x.engine.processed};
    });
  for (const Note& note : w.sent) add([&](World& x) { hear(x, note, true, rules); });
  add([&](World& x) { hear(x, here(x.engine, 0), false, rules); });
  if (w.resets < kResets)
    add([](World& x) {
      ++x.resets;
      x.follower.reset();
      forget(x);
    });
  if (!w.answer && g.entry >= 0)
    add([](World& x) {
      x.answer =
          Answer{x.follower.generation(), here(x.engine, x.engine.entry), x.engine.processed};
    });
  if (w.answer)
    add([&](World& x) {
      const Answer a = *x.answer;
      x.answer.reset();
      const bool known = x.follower.known();
      if (!x.follower.may_install(position(a.at), a.generation)) {
        if (known && !x.follower.known()) forget(x);
        return;
      }
      x.entry = a.at.value;
      if (!known) {
        if (x.replid != a.at.replid) x.applied = 0;
        x.replid = a.at.replid;
        x.applied = std::max(x.applied, a.processed);
      }
    });
  return out;
}

std::string violated(const World& w, const Follower::Rules& rules) {
  if (w.entry >= 0 && lacks(w, w.entry, w.applied)) return "A";
  if (w.entry < 0 || w.engine.processed < w.written || !w.follower.known()) return "";
  const Position p = w.follower.position(), e = position(here(w.engine, 0));
  // Who does not compare histories believes to be there when n is.
  const bool there = rules.history ? p == e : p.n >= e.n;
  return there && lacks(w, w.entry, w.written) ? "B" : "";
}

struct Explored {
  std::string violation;
  std::size_t states = 0;
};

Explored explore(const std::string& writes, const Follower::Rules& rules) {
  World first;
  first.writes = &writes;
  first.follower = Follower(rules);
  first.follower.on_heartbeat(position(here(first.engine, 0)));
  std::set<decltype(first.digest())> seen{first.digest()};
  std::deque<World> queue{first};
  while (!queue.empty()) {
    const World w = std::move(queue.front());
    queue.pop_front();
    for (World& n : next(w, rules)) {
      if (!seen.insert(n.digest()).second) continue;
      const std::string bad = violated(n, rules);
      if (!bad.empty()) return {bad, seen.size()};
      queue.push_back(std::move(n));
    }
  }
  return {"", seen.size()};
}

const std::vector<std::string> kWorlds = {"kk", "ko"};

TEST(Follower, HoldsInEveryInterleaving) {
  for (const std::string& writes : kWorlds) {
    const Explored found = explore(writes, {});
    EXPECT_EQ(found.violation, "") << writes;
    EXPECT_GT(found.states, 1000U);
    std::printf("%s: %zu states\n", writes.c_str(), found.states);
  }
}

TEST(Follower, EveryRuleIsNeeded) {
  struct Control {
    const char* name;
    bool Follower::Rules::* rule;
    const char* writes;
  };
  for (const Control& control : {Control{"history", &Follower::Rules::history, "kk"},
                                 Control{"gap", &Follower::Rules::gap, "ko"},
                                 Control{"generation", &Follower::Rules::generation, "kk"},
                                 Control{"order", &Follower::Rules::order, "kk"}}) {
    Follower::Rules rules;
    rules.*control.rule = false;
    const Explored found = explore(control.writes, rules);
    EXPECT_NE(found.violation, "") << control.name << " can be left out unnoticed";
    std::printf("%-10s left out: %s after %zu states\n", control.name, found.violation.c_str(),
                found.states);
  }
}

}  // namespace
}  // namespace larder::policy
