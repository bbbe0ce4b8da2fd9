// Every interleaving of the fill protocol as many nodes have it: one partition of a shared engine
// (engine/redis/model.h, which the differential test holds against the real scripts), PostgreSQL as
// the source, the real policy::Follower in the near tiers. Breadth first, so that a counter-example
// is a shortest one. What may happen and what must hold: engine_world.h.
//
// With LARDER_TRACES set it prints the counter-example of each rule that is left out.
#include <gtest/gtest.h>

#include <cstdlib>
#include <deque>
#include <unordered_set>

#include "engine_world.h"

namespace larder::sim {
namespace {

// ---- exploration ----

struct Found {
  std::string violation;
  std::vector<std::string> trace;
  std::size_t states = 0;
};

Found explore(const Config& config, std::size_t limit = 4'000'000) {
  struct Step {
    std::uint32_t from;
    std::uint32_t which;
  };
  const World world(config);
  std::unordered_set<Digest, DigestHash> seen;
  std::vector<Step> steps{{0, 0}};
  std::deque<State> queue{world.first()};
  std::uint32_t from = 0;
  Found found;
  for (; !queue.empty() && found.violation.empty(); ++from, queue.pop_front()) {
    std::uint32_t which = 0;
    world.next(queue.front(), [&](const State& t, const World::Label&) {
      ++which;
      if (!found.violation.empty() || !seen.insert(digest_of(t, config)).second) return;
      steps.push_back({from, which});
      found.violation = world.violated(t);
      queue.push_back(t);
    });
    if (seen.size() > limit) found.violation = "LIMIT";
  }
  found.states = seen.size();
  if (found.violation.empty() || found.violation == "LIMIT") return found;
  std::vector<std::uint32_t> path;
  for (std::size_t at = steps.size() - 1; at != 0; at = steps[at].from)
    path.insert(path.begin(), steps[at].which);
  State state = world.first();
  for (const std::uint32_t wanted : path) {
    std::uint32_t which = 0;
    State reached;
    world.next(state, [&](const State& t, const World::Label& label) {
      if (++which != wanted) return;
      reached = t;
      found.trace.push_back(label());
    });
    state = reached;
  }
  return found;
}

std::string show(const Found& found) {
  std::string text = found.violation + " violated by:\n";
  for (const std::string& step : found.trace) text += "  " + step + "\n";
  return text;
}

TEST(EngineProtocol, HoldsInEveryInterleaving) {
  const std::vector<Config> worlds{
      {.name = "Larder and a foreign writer, two loaders", .loaders = "PP", .trim = true},
      {.name = "two foreign writers, key and tag",
       .txs = {"Fk", "Ft"},
       .loaders = "PP",
       .trim = true},
      {.name = "three transactions, tombstones collapse",
       .txs = {"Lk", "Fk", "Lk"},
       .trim = true,
       .rules = {.most_x = 1}},
      {.name = "both from each transaction, engine failover",
       .txs = {"Fkt", "Ltk"},
       .trim = true,
       .failover = true},
      {.name = "a writer of another version", .txs = {"Lb", "Fk"}, .loaders = "PP", .trim = true},
      {.name = "events without a number", .txs = {"Ek", "Et"}, .trim = true},
      {.name = "a source without snapshots",
       .txs = {"Tk", "Tt"},
       .loaders = "PP",
       .trim = true,
       .snapshots = false},
      {.name = "  a feed of another version",
       .txs = {"Tb", "Tt"},
       .loaders = "PP",
       .snapshots = false},
      {.name = "  the state is lost", .txs = {"Tk", "Tt"}, .losses = 1, .snapshots = false},
      {.name = "  engine failover", .txs = {"Tk", "Tt"}, .failover = true, .snapshots = false},
      {.name = "  near tier", .txs = {"Tk", "Tt"}, .nears = 1, .snapshots = false},
      {.name = "the state is lost", .txs = {"Lk", "Ft"}, .loaders = "PP", .losses = 1},
      {.name = "the state is lost twice", .losses = 2},
      {.name = "an epoch without need, trimming", .trim = true, .epochs = 1},
      {.name = "two feeds, an epoch without need", .txs = {"Lk"}, .feeds = 2, .epochs = 1},
      {.name = "two feeds, the state is lost", .txs = {"Fk"}, .feeds = 2, .losses = 1},
      {.name = "engine failover, two loaders", .loaders = "PP", .failover = true},
      {.name = "engine failover and loss", .losses = 1, .failover = true},
      {.name = "two feeds, engine failover", .feeds = 2, .failover = true},
      {.name = "database failover", .loaders = "O", .db_failover = true},
      {.name = "near tier, key and tag", .txs = {"Lk", "Ft"}, .nears = 1},
      {.name = "two near tiers", .txs = {"Lk"}, .nears = 2},
      {.name = "two near tiers, two loaders", .txs = {"Lkt"}, .loaders = "PP", .nears = 2},
      {.name = "near tier, an epoch without need", .txs = {"Lk"}, .nears = 1, .epochs = 1},
      {.name = "near tier, database failover",
       .txs = {"Lk"},
       .loaders = "O",
       .nears = 1,
       .db_failover = true},
      {.name = "near tier, another key", .txs = {"Fk", "Fo"}, .nears = 1},
      {.name = "near tier, the state is lost", .txs = {"Lk"}, .nears = 1, .losses = 1},
      {.name = "near tier, engine failover", .txs = {"Lk"}, .nears = 1, .failover = true},
  };
  std::size_t states = 0;
  for (const Config& world : worlds) {
    const Found found = explore(world);
    EXPECT_EQ(found.violation, "") << world.name << ": " << show(found);
    EXPECT_GT(found.states, 1000U) << world.name << " explored nothing";
    std::printf("%-50s %9zu states\n", world.name.c_str(), found.states);
    std::fflush(stdout);
    states += found.states;
  }
  std::printf("%-50s %9zu states\n", "together", states);
}

// What is left out must be found out, by a property that it protects; "" where another rule covers
// for it.
struct Control {
  std::string expected;  // any of these letters
  Config world;
};

std::vector<Control> controls_of_the_engine() {
  return {
      {"A",
       {.name = "tombstone of the key",
        .txs = {"Lk"},
        .rules = {.tombstone = false, .key_at_lookup = false}}},
      {"",
       {.name = "  at the fill alone: the lookup looks too",
        .txs = {"Lk"},
        .rules = {.tombstone = false}}},
      {"A",
       {.name = "  but the near tier installs what it filled",
        .txs = {"Lk"},
        .nears = 1,
        .rules = {.tombstone = false}}},
      {"A",
       {.name = "tombstones of the tags",
        .txs = {"Lt"},
        .rules = {.tag_at_fill = false, .tag_at_lookup = false}}},
      {"",
       {.name = "  at the fill alone: the lookup looks too",
        .txs = {"Lt"},
        .rules = {.tag_at_fill = false}}},
      {"A",
       {.name = "  but the near tier installs what it filled",
        .txs = {"Lt"},
        .nears = 1,
        .rules = {.tag_at_fill = false}}},
      {"A",
       {.name = "lookup: tombstones of the tags",
        .txs = {"Lt"},
        .rules = {.tag_at_lookup = false}}},
      {"A",
       {.name = "versions that the writer does not name",
        .txs = {"Lb"},
        .rules = {.key_at_lookup = false, .versions = false}}},
      {"A",
       {.name = "  not voided, but found at the lookup: trimming",
        .txs = {"Lb"},
        .trim = true,
        .rules = {.versions = false}}},
      {"",
       {.name = "  voided, but not looked for at the lookup",
        .txs = {"Lb"},
        .trim = true,
        .rules = {.key_at_lookup = false}}},
      {"A",
       {.name = "  not voided, a source without snapshots",
        .txs = {"Tb"},
        .snapshots = false,
        .rules = {.versions = false}}},
      {"A", {.name = "all x of a key, not the highest", .rules = {.every_x = false}}},
      {"A",
       {.name = "a collapsed x lies below xmin",
        .txs = {"Lk", "Lk", "Lk"},
        .rules = {.most_x = 1, .collapsed_below = false}}},
      {"A",
       {.name = "  the same, an event's number",
        .txs = {"Ek"},
        .rules = {.collapsed_below = false}}},
      {"A",
       {.name = "fill: F < xmin, after trimming",
        .txs = {"Lk"},
        .trim = true,
        .rules = {.floor = false}}},
      {"AB",
       {.name = "fill: F < xmin, after a loss",
        .txs = {"Lk"},
        .losses = 1,
        .rules = {.floor = false}}},
      {"A",
       {.name = "lookup: Ft < xmin", .txs = {"Lt"}, .trim = true, .rules = {.tag_floor = false}}},
      {"A",
       {.name = "Fn, a source without snapshots",
        .txs = {"Tt"},
        .trim = true,
        .snapshots = false,
        .rules = {.stamp_floor = false}}},
      {"A",
       {.name = "stamps of tags, likewise",
        .txs = {"Tt"},
        .snapshots = false,
        .rules = {.stamp = false}}},
      {"A",
       {.name = "fill: the ticket, likewise",
        .txs = {"Tk"},
        .snapshots = false,
        .rules = {.ticket = false}}},
      {"", {.name = "  the ticket, with snapshots", .loaders = "PP", .rules = {.ticket = false}}},
      {"", {.name = "fill: not over a later one", .loaders = "PP", .rules = {.later = false}}},
      {"M",
       {.name = "  neither ticket nor later",
        .loaders = "PP",
        .rules = {.ticket = false, .later = false}}},
      {"AB",
       {.name = "fill: the ticket's epoch, likewise",
        .txs = {"Tk"},
        .losses = 1,
        .snapshots = false,
        .rules = {.fill_epoch = false}}},
      {"",
       {.name = "  the ticket's epoch, with snapshots: F covers",
        .losses = 1,
        .rules = {.fill_epoch = false}}},
      {"AB",
       {.name = "lookup: the entry's epoch",
        .txs = {"Fk"},
        .losses = 1,
        .rules = {.entry_epoch = false}}},
      {"AB",
       {.name = "fill: identity of the source",
        .loaders = "O",
        .db_failover = true,
        .rules = {.source = false}}},
      {"D",
       {.name = "an x of another incarnation is not recorded",
        .txs = {"Lk", "Fo"},
        .db_failover = true,
        .rules = {.change_source = false}}},
      {"AB",
       {.name = "epoch: the mark is compared",
        .txs = {"Lk"},
        .losses = 2,
        .rules = {.mark = false}}},
      {"AB",
       {.name = "epoch: F is allocated after the mark",
        .txs = {"Lk"},
        .losses = 1,
        .floor = Floor::before_mark}},
      {"AB",
       {.name = "epoch: F is allocated after A is read",
        .txs = {"Fk"},
        .losses = 1,
        .floor = Floor::before_position}},
      {"D",
       {.name = "epoch: F is allocated, not xmax",
        .txs = {"Lk"},
        .losses = 1,
        .floor = Floor::xmax}},
      {"AB", {.name = "  the same, safety only", .losses = 1, .floor = Floor::xmax, .check = "AB"}},
      {"B",
       {.name = "feed: A is compared",
        .txs = {"Fk", "Fk"},
        .failover = true,
        .rules = {.position = false}}},
      {"B",
       {.name = "feed: goes back to A after a failover",
        .txs = {"Fk"},
        .failover = true,
        .replay = false}},
      {"B", {.name = "writers invalidate before COMMIT", .txs = {"Lk"}, .before_commit = false}},
  };
}

std::vector<Control> controls_of_near_tiers() {
  return {
      {"A",
       {.name = "near: n of an answer", .txs = {"Lk"}, .nears = 1, .follower = {.order = false}}},
      {"B", {.name = "near: gaps", .txs = {"Fk", "Fo"}, .nears = 1, .follower = {.gap = false}}},
      {"AB",
       {.name = "near: history, the state is lost",
        .txs = {"Fk"},
        .nears = 1,
        .losses = 1,
        .follower = {.history = false}}},
      {"AB",
       {.name = "near: history, engine failover",
        .nears = 1,
        .failover = true,
        .follower = {.history = false}}},
      {"A",
       {.name = "near: generation", .txs = {"Lk"}, .nears = 1, .follower = {.generation = false}}},
      {"A", {.name = "near: its own ticket", .txs = {"Lt"}, .nears = 1, .near_ticket = false}},
  };
}

void report(const Control& control, const Found& found) {
  std::printf("%-50s %-3s after %2zu steps, %7zu states\n", control.world.name.c_str(),
              found.violation.empty() ? "-" : found.violation.c_str(), found.trace.size(),
              found.states);
  if (std::getenv("LARDER_TRACES") != nullptr)
    for (const std::string& step : found.trace) std::printf("      %s\n", step.c_str());
  std::fflush(stdout);
}

TEST(EngineProtocol, EveryRuleIsNeeded) {
  std::vector<Control> controls = controls_of_the_engine();
  for (const Control& control : controls_of_near_tiers()) controls.push_back(control);
  for (const Control& control : controls) {
    const Found found = explore(control.world);
    report(control, found);
    if (control.expected.empty()) {
      EXPECT_EQ(found.violation, "") << control.world.name << ": " << show(found);
      continue;
    }
    EXPECT_FALSE(found.violation.empty()) << control.world.name << " went unnoticed";
    if (!found.violation.empty())
      EXPECT_NE(found.violation.find_first_of(control.expected), std::string::npos)
          << control.world.name << ": " << show(found);
  }
}

}  // namespace
}  // namespace larder::sim
