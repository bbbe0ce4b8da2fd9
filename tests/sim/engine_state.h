// One state of a shared engine's world: database, engine, feeds, loaders, near tiers, and what is
// on its way between them; and its digest. See engine_world.h for what may happen to it.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/hash.h"
#include "engine/redis/model.h"
#include "policy/follower.h"

namespace larder::sim {

namespace model = engine::redis::model;
using policy::Follower;
using policy::Refusal;

using N = std::uint8_t;
template <class T>
using Small = model::Few<T, 3>;
using Engine = model::Engine<N, Small>;
using Snapshot = Engine::Snapshot;

enum class Floor : std::uint8_t { right, before_mark, before_position, xmax };

struct Config {
  std::string name;
  std::vector<std::string> txs = {"Lk", "Fk"};
  std::string loaders = "P";  // P reads the primary; O perhaps one that has been replaced
  int nears = 0;
  int feeds = 1;
  bool trim = false;
  int losses = 0;            // how often the state is lost
  int epochs = 0;            // how many are begun without need
  bool failover = false;     // of the engine, to a replica that lags
  bool db_failover = false;  // of the database, to a standby that lags
  bool snapshots = true;     // the source has them
  // What a negative control leaves out.
  model::Rules rules = {};
  Follower::Rules follower = {};
  Floor floor = Floor::right;
  bool near_ticket = true;    // a change voids the answer on its way
  bool replay = true;         // the feed goes back to A when the engine has
  bool before_commit = true;  // writers invalidate before COMMIT; else after, unless they crash
  std::string check = "ABCDM";
};

// ---- state ----

enum class Phase : std::uint8_t { none, running, invalidated, logged, visible, aborted, lost };

struct Txn {
  Phase phase = Phase::none;
  N x = 0;
  N event = 0;        // E: the number taken for it
  bool told = false;  // its writer has told the engine, or never will
};

struct Database {
  std::array<Txn, 3> txs;
  N next = 1;            // number of the next transaction
  N done = 0;            // highest that has ended
  model::Few<N, 3> log;  // transactions by commit record
  N source = 1;
  N acknowledged = 0;
  Snapshot old;  // of the primary that was replaced
  N old_value = 0;
};

struct FeedState {
  N at = 0;    // the A that it believes
  N step = 0;  // of a new epoch
  N mark = 0, position = 0, floor = 0, source = 0;
};

struct Loader {
  N step = 0;
  N epoch = 0;  // of its ticket
  N value = 0;
  Snapshot snapshot;
  std::uint64_t generation = 0;  // of its near tier, and whether the near ticket holds
  bool held = false;
};

struct Flight {  // an answer of the engine on its way to a near tier
  bool on = false;
  bool held = false;  // the near tier's own ticket
  bool entry = false;
  N value = 0;
  N replid = 0, epoch = 0, n = 0;
  std::uint64_t generation = 0;
  N processed = 0;
};

struct Near {
  Follower follower;
  bool entry = false;
  N value = 0;
  N heard = 0;  // which transactions it has applied, in the engine's history `replid`
  N replid = 1;
  Flight flight;
};

struct Sent {
  engine::redis::Message::Kind kind = engine::redis::Message::Kind::change;
  N replid = 0, epoch = 0, n = 0;
  N txs = 0;        // that it tells of
  N processed = 0;  // that were processed before it
  bool key = false, tag = false;
  friend bool operator==(const Sent&, const Sent&) = default;
};

struct Shared {  // what a failover takes back
  Engine engine;
  N replid = 1;
  N processed = 0;  // transactions
};

struct State {
  Database db;
  Shared shared;
  Shared replica;
  bool has_replica = false;
  std::array<FeedState, 2> feeds;
  std::array<Loader, 2> loaders;
  std::array<Near, 2> nears;
  model::Few<Sent, 24> sent;
  N epochs = 1, marks = 0;  // given so far: none is used twice
  N losses = 0, needless = 0;
  bool went_back = false;
};

// ---- everything that decides the future, as a number of 128 bits ----

struct Digest {
  std::uint64_t a = 1, b = 2;
  friend bool operator==(const Digest&, const Digest&) = default;
};
struct DigestHash {
  std::size_t operator()(const Digest& d) const { return d.a; }
};

class Digester {
 public:
  template <class... Ts>
  void put(Ts... values) {
    ((put_byte(static_cast<std::uint8_t>(values))), ...);
  }
  Digest done() {
    while (used_ != 0) put_byte(0);
    return digest_;
  }

 private:
  void put_byte(std::uint8_t byte) {
    word_ = word_ << 8 | byte;
    if (++used_ < 8) return;
    digest_.a = mix64(digest_.a ^ word_);
    digest_.b = mix64(digest_.b + word_ * 0x9e3779b97f4a7c15ULL);
    word_ = 0;
    used_ = 0;
  }
  Digest digest_;
  std::uint64_t word_ = 0;
  int used_ = 0;
};

template <class List>
void put_all(Digester& d, const List& list) {
  d.put(list.size());
  for (const N x : list) d.put(x);
}
inline void put(Digester& d, const Snapshot& s) {
  d.put(s.source, s.xmin, s.xmax);
  put_all(d, s.running);
}
inline void put(Digester& d, const Shared& shared) {
  const Engine& e = shared.engine;
  d.put(shared.replid, shared.processed, e.epoch, e.mark, e.source, e.floor, e.tag_floor,
        e.stamp_floor, e.feed_position, e.n, e.versions.size(), e.tombstones.size());
  // Few, and seldom in another order: sorted would save little.
  for (const auto& t : e.tombstones) {
    d.put(t.tag, t.id, t.collapsed, t.stamp);
    put_all(d, t.xs);
  }
  d.put(e.entries.size(), e.tickets.size());
  for (const auto& entry : e.entries) {
    d.put(entry.epoch, entry.ticket_n, entry.value);
    put(d, entry.snapshot);
  }
  for (const auto& t : e.tickets) d.put(t.token, t.epoch, t.n);
}

inline Digest digest_of(const State& s, const Config& config) {
  Digester d;
  for (const Txn& t : s.db.txs) d.put(t.phase, t.x, t.event, t.told);
  d.put(s.db.next, s.db.done, s.db.source, s.db.acknowledged, s.db.old_value);
  put_all(d, s.db.log);
  put(d, s.db.old);
  put(d, s.shared);
  d.put(s.has_replica);
  if (s.has_replica) put(d, s.replica);
  for (const FeedState& f : s.feeds) d.put(f.at, f.step, f.mark, f.position, f.floor, f.source);
  for (std::size_t i = 0; i < config.loaders.size(); ++i) {
    const Loader& l = s.loaders[i];
    d.put(l.step, l.epoch, l.value, l.held);
    if (config.nears > 0) {  // what counts is whether a reset came since
      const Near& near = s.nears[i % static_cast<std::size_t>(config.nears)];
      d.put(l.generation == near.follower.generation());
    }
    put(d, l.snapshot);
  }
  for (int i = 0; i < config.nears; ++i) {
    const Near& near = s.nears[static_cast<std::size_t>(i)];
    const Follower& f = near.follower;
    d.put(f.known(), near.entry, near.value, near.heard, near.replid);
    if (f.known()) d.put(f.position().replid[0], f.position().epoch[0], f.position().n);
    const Flight& flight = near.flight;
    d.put(flight.on);
    if (flight.on)
      d.put(flight.held, flight.entry, flight.value, flight.replid, flight.epoch, flight.n,
            flight.generation == f.generation(), flight.processed);
  }
  d.put(s.epochs, s.marks, s.losses, s.needless, s.went_back);
  Digest digest = d.done();
  for (const Sent& m : s.sent) {  // a set: their order is nobody's business
    Digester one;
    one.put(m.kind, m.replid, m.epoch, m.n, m.txs, m.processed, m.key, m.tag);
    const Digest of_one = one.done();
    digest.a += of_one.a;
    digest.b += of_one.b;
  }
  return digest;
}

inline std::string show(unsigned value) {
  std::string text;
  for (unsigned i = 0; i < 8; ++i)
    if ((value >> i & 1) != 0) text += fmt::format("{}{}", text.empty() ? "" : ",", i);
  return "{" + text + "}";
}

inline policy::Position position_of(N replid, N epoch, N n) {
  return {std::string(1, static_cast<char>('A' + replid)),
          epoch == 0 ? std::string() : std::string(1, static_cast<char>('a' + epoch)), n};
}

}  // namespace larder::sim
