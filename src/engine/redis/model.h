// A model of one partition of the engine, for tests: the decisions of scripts.cc on plain values.
// tests/sim/engine_protocol_test.cc explores what may happen to it;
// tests/integration/engine_differential_test.cc compares it, step by step, with the scripts on a
// real server. What differs from there: names (keys, tags, schemas, epochs, marks, tokens) are
// numbers, and there are no times but "late" for "the soft expiry has passed".
//
// `N` holds every number, and 0 is always "none": an exploration wants states of a few bytes, a
// comparison numbers like those of a source. `List<T>` is std::vector or Few.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <tuple>

#include "engine/redis/protocol.h"

namespace larder::engine::redis::model {

// A vector in place, for states that are copied by the million. Too many elements end the test.
template <class T, unsigned kMost>
class Few {
 public:
  const T* begin() const { return items_.data(); }
  const T* end() const { return items_.data() + size_; }
  T* begin() { return items_.data(); }
  T* end() { return items_.data() + size_; }
  unsigned size() const { return size_; }
  bool empty() const { return size_ == 0; }
  const T& front() const { return items_[0]; }
  T& operator[](std::size_t i) { return items_[i]; }
  const T& operator[](std::size_t i) const { return items_[i]; }
  void clear() { size_ = 0; }
  void push_back(const T& item) {
    if (size_ == kMost) std::abort();
    items_[size_++] = item;
  }
  T* insert(T* at, const T& item) {
    if (size_ == kMost) std::abort();
    std::copy_backward(at, end(), end() + 1);
    *at = item;
    ++size_;
    return at;
  }
  T* erase(T* at) {
    std::copy(at + 1, end(), at);
    --size_;
    return at;
  }

 private:
  std::array<T, kMost> items_{};
  std::uint8_t size_ = 0;
};

// For negative controls: each `false` leaves one rule of the scripts out.
struct Rules {
  unsigned most_x = 8;          // of one tombstone; beyond, the lowest collapse
  bool every_x = true;          // a tombstone holds all its x, not the highest only
  bool collapsed_below = true;  // a collapsed x must lie below xmin; else: be visible
  bool ticket = true;           // fill: the ticket is the one that was given
  bool fill_epoch = true;       // fill: the epoch is that of the ticket
  bool entry_epoch = true;      // lookup: the epoch is that of the entry
  bool source = true;           // fill: the load's source is the hash's
  bool floor = true;            // fill: F < xmin
  bool tombstone = true;        // fill: every x of the key is visible
  bool tag_at_fill = true;      // fill: every x of each tag is visible
  bool tag_at_lookup = true;    // lookup: likewise in what the entry's load has seen
  bool tag_floor = true;        // Ft lies below the xmin of an entry with tags
  bool stamp = true;            // a ticket of an entry with tags is as late as their n-stamps
  bool stamp_floor = true;      //   and as Fn
  bool key_at_lookup = true;    // lookup: as tag_at_lookup, for the key
  bool versions = true;         // a change voids entries and tickets of versions it does not name
  bool later = true;            // fill: what is there does not come from a later load
  bool position = true;         // the feed's step compares A
  bool mark = true;             // epoch_write compares the mark
  bool change_source = true;    // an x of another incarnation is not recorded
};

template <class N, template <class> class List>
struct Engine {
  struct Snapshot {
    N source = 0, xmin = 0, xmax = 0;  // xmax = 0: the source has no snapshots
    List<N> running;
    bool sees(N x) const {
      return x < xmin ||
             (x < xmax && std::find(running.begin(), running.end(), x) == running.end());
    }
  };
  struct Tombstone {
    bool tag = false;
    N id = 0;         // of the key or tag
    N collapsed = 0;  // must lie below xmin
    N stamp = 0;      // the ticket's n must reach it
    List<N> xs;       // all must be visible; ascending
    N high() const { return std::max<N>(collapsed, xs.empty() ? N{0} : xs[xs.size() - 1]); }
  };
  struct Entry {
    N schema = 0, key = 0, epoch = 0;
    N ticket_n = 0;
    Snapshot snapshot;
    List<N> tags;
    N value = 0;
    bool late = false;
  };
  struct Ticket {
    N schema = 0, key = 0, token = 0, epoch = 0, n = 0;
    bool waits = false;
  };
  struct Message {
    redis::Message::Kind kind = redis::Message::Kind::change;
    N epoch = 0, n = 0, heartbeat = 0, x = 0;
    List<N> keys, tags;
  };
  struct KeyChange {
    N key = 0;
    List<N> schemas;
  };
  struct Change {
    List<KeyChange> keys;
    List<N> tags;
    N x = 0;
    TxnRule rule = TxnRule::exact;
    N source = 0;
  };
  struct Feed {
    N expected = 0, position = 0, heartbeat = 0, source = 0, xmin = 0;
  };
  using Kind = KeyAnswer::Kind;
  using Refusal = policy::Refusal;

  // The state hash.
  N epoch = 0, mark = 0, source = 0;
  N floor = 0, tag_floor = 0, stamp_floor = 0;  // F, Ft, Fn
  N feed_position = 0, heartbeat = 0, n = 0;    // A, H, n
  List<Tombstone> tombstones;
  List<N> versions;           // schemas that tickets were given for
  std::size_t looked_at = 0;  // how many there were after the last trimming
  // Beside it.
  List<Message> stream;
  List<Entry> entries;
  List<Ticket> tickets;

  bool records() const { return epoch != 0 || mark != 0; }

  // ---- lookup ----

  struct Found {
    Kind kind = Kind::no_state;
    const Entry* entry = nullptr;  // until the next change
  };
  Found lookup(N schema, N key, N token, bool wants_ticket, bool waits, const Rules& rules) {
    if (epoch == 0) return {};
    const Entry* entry = valid(schema, key, rules);
    if (entry != nullptr && rules.key_at_lookup &&
        !seen(tombstone(false, key), entry->snapshot, entry->ticket_n, rules))
      entry = nullptr;
    if (entry != nullptr && !entry->late && !wants_ticket) return {Kind::hit, entry};
    if (Ticket* ticket = ticket_of(schema, key)) {
      if (waits) ticket->waits = true;
      return {Kind::busy, entry};
    }
    if (std::find(versions.begin(), versions.end(), schema) == versions.end())
      versions.push_back(schema);
    tickets.push_back({schema, key, token, epoch, n, false});
    return {Kind::ticket, entry};
  }

  // ---- fill ----

  // `said` as the ticket came with it; `filled.epoch` and `.ticket_n` are not looked at.
  // `messages` gets what is published.
  Refusal fill(const Entry& filled, N token, N said, const Rules& rules, List<Message>& messages) {
    const Ticket* found = ticket_of(filled.schema, filled.key);
    const Ticket ticket = found != nullptr ? *found : Ticket{};
    const bool mine = ticket.token == token;
    const bool waited = found == nullptr || (mine && ticket.waits);
    const Refusal refusal = judge(filled, ticket, mine, said, rules);
    if (refusal == Refusal::none) {
      drop_entry(filled.schema, filled.key);
      Entry stored = filled;
      stored.epoch = epoch;
      stored.ticket_n = ticket.n;
      entries.push_back(stored);
    }
    if (mine) drop_ticket(filled.schema, filled.key);
    if (waited) {
      Message message{redis::Message::Kind::filled, epoch, n, heartbeat, 0, {}, {}};
      message.keys.push_back(filled.key);
      messages.push_back(message);
    }
    return refusal;
  }

  // ---- changes ----

  // `feed`: null for a writer's. False: a mismatch, nothing has happened.
  bool change(const List<Change>& changes, const Feed* feed, const Bounds& bounds,
              const Rules& rules, List<Message>& messages) {
    if (feed != nullptr && (epoch == 0 || (rules.position && feed_position != feed->expected) ||
                            source != feed->source))
      return false;
    for (const Change& one : changes) apply(one, rules, messages);
    trim_if_due(bounds, feed != nullptr ? feed->xmin : N{0});
    if (feed == nullptr) return true;
    feed_position = feed->position;
    if (feed->heartbeat != 0) {
      heartbeat = feed->heartbeat;
      messages.push_back({redis::Message::Kind::heartbeat, epoch, n, heartbeat, 0, {}, {}});
    }
    return true;
  }

  // A look at all tombstones costs: not before an eighth of the soft limit has come since the last
  // one; and beyond the hard limit more goes than must.
  void trim_if_due(const Bounds& bounds, N xmin) {
    const std::size_t soft = bounds.tombstones;
    const std::size_t hard = std::max(bounds.most_tombstones, bounds.tombstones);
    const std::size_t made = tombstones.size();
    const bool due = made > soft && xmin != 0 && made >= looked_at + soft / 8;
    if (!records() || !(made > hard || due)) return;
    trim(soft / 2, made > hard ? hard - (hard - soft) / 16 : hard, xmin);
    looked_at = tombstones.size();
  }

  // Drops tombstones, that with the lowest x first, until `keep` are left; those that do not lie
  // below xmin only beyond `most`.
  void trim(std::size_t keep, std::size_t most, N xmin) {
    while (tombstones.size() > keep) {
      const auto lowest = std::min_element(
          tombstones.begin(), tombstones.end(), [](const Tombstone& a, const Tombstone& b) {
            return std::tuple(a.high(), a.tag, a.id) < std::tuple(b.high(), b.tag, b.id);
          });
      const N high = lowest->high();
      if (high != 0 && high >= xmin && tombstones.size() <= most) return;
      floor = std::max(floor, high);
      if (lowest->tag) {
        tag_floor = std::max(tag_floor, high);
        stamp_floor = std::max(stamp_floor, lowest->stamp);
      }
      tombstones.erase(lowest);
    }
  }

  // ---- epochs ----

  void epoch_begin(N new_mark, N its_source) {
    lose_state();
    mark = new_mark;
    source = its_source;
  }
  bool epoch_write(N its_mark, N new_epoch, N new_floor, N position, N its_source, N beat,
                   const Rules& rules, List<Message>& messages) {
    if (rules.mark && mark != its_mark) return false;
    if (source != 0 && mark != 0 && source != its_source) return false;
    mark = 0;
    stream.clear();
    epoch = new_epoch;
    floor = std::max(floor, new_floor);
    feed_position = position;
    source = its_source;
    heartbeat = beat;
    n = 0;
    messages.push_back({redis::Message::Kind::epoch, epoch, 0, heartbeat, 0, {}, {}});
    return true;
  }

  // ---- faults ----

  void lose_state() {
    epoch = mark = source = floor = tag_floor = stamp_floor = feed_position = heartbeat = n = 0;
    tombstones.clear();
    versions.clear();
    looked_at = 0;
  }
  void lose_everything() {
    lose_state();
    stream.clear();
    entries.clear();
    tickets.clear();
  }
  void drop_entry(N schema, N key) {
    for (auto at = entries.begin(); at != entries.end(); ++at)
      if (at->schema == schema && at->key == key) {
        entries.erase(at);
        return;
      }
  }
  void drop_ticket(N schema, N key) {
    for (auto at = tickets.begin(); at != tickets.end(); ++at)
      if (at->schema == schema && at->key == key) {
        tickets.erase(at);
        return;
      }
  }

  // What a lookup without a ticket would answer: null if not a hit (late or not).
  const Entry* answered(N schema, N key, const Rules& rules) const {
    if (epoch == 0) return nullptr;
    const Entry* entry = valid(schema, key, rules);
    if (entry != nullptr && rules.key_at_lookup &&
        !seen(tombstone(false, key), entry->snapshot, entry->ticket_n, rules))
      return nullptr;
    return entry;
  }

 private:
  const Entry* entry_of(N schema, N key) const {
    for (const Entry& entry : entries)
      if (entry.schema == schema && entry.key == key) return &entry;
    return nullptr;
  }
  Ticket* ticket_of(N schema, N key) {
    for (Ticket& ticket : tickets)
      if (ticket.schema == schema && ticket.key == key) return &ticket;
    return nullptr;
  }
  const Tombstone* tombstone(bool tag, N id) const {
    for (const Tombstone& one : tombstones)
      if (one.tag == tag && one.id == id) return &one;
    return nullptr;
  }

  // Has a load with this snapshot, under a ticket given at `ticket_n`, seen what the tombstone
  // says?
  static bool seen(const Tombstone* t, const Snapshot& snapshot, N ticket_n, const Rules& rules) {
    if (t == nullptr) return true;
    if (rules.stamp && ticket_n < t->stamp) return false;
    if (t->collapsed != 0 &&
        !(rules.collapsed_below ? t->collapsed < snapshot.xmin : snapshot.sees(t->collapsed)))
      return false;
    return std::all_of(t->xs.begin(), t->xs.end(), [&](N x) { return snapshot.sees(x); });
  }
  bool tags_count(const Entry& entry, N ticket_n, bool floors, const Rules& rules) const {
    if (entry.tags.empty()) return true;
    if (rules.stamp_floor && ticket_n < stamp_floor) return false;
    if (floors && rules.tag_floor && tag_floor != 0 && tag_floor >= entry.snapshot.xmin)
      return false;
    return std::all_of(entry.tags.begin(), entry.tags.end(), [&](N tag) {
      return seen(tombstone(true, tag), entry.snapshot, ticket_n, rules);
    });
  }
  const Entry* valid(N schema, N key, const Rules& rules) const {
    const Entry* entry = entry_of(schema, key);
    if (entry == nullptr || (rules.entry_epoch && entry->epoch != epoch)) return nullptr;
    if (rules.tag_at_lookup && !tags_count(*entry, entry->ticket_n, true, rules)) return nullptr;
    return entry;
  }

  Refusal judge(const Entry& filled, const Ticket& ticket, bool mine, N said,
                const Rules& rules) const {
    const Snapshot& snapshot = filled.snapshot;
    if (epoch == 0) return Refusal::no_state;
    if (rules.fill_epoch && said != epoch) return Refusal::epoch;
    if (rules.ticket && (!mine || (rules.fill_epoch && ticket.epoch != epoch)))
      return Refusal::ticket;
    const bool tags_seen =
        !rules.tag_at_fill || tags_count(filled, ticket.n, snapshot.xmax != 0, rules);
    if (snapshot.xmax == 0) return tags_seen ? Refusal::none : Refusal::tag;
    if (rules.source && snapshot.source != source) return Refusal::source;
    if (rules.floor && floor >= snapshot.xmin) return Refusal::floor;
    if (rules.tombstone && !seen(tombstone(false, filled.key), snapshot, ticket.n, rules))
      return Refusal::tombstone;
    if (!tags_seen) return Refusal::tag;
    const Entry* there = valid(filled.schema, filled.key, rules);
    if (!rules.later || there == nullptr || there->snapshot.source != snapshot.source)
      return Refusal::none;
    const bool later = there->snapshot.xmax > snapshot.xmax ||
                       std::any_of(snapshot.running.begin(), snapshot.running.end(),
                                   [&](N x) { return there->snapshot.sees(x); });
    return later ? Refusal::later : Refusal::none;
  }

  // False: this x stands there already.
  bool record(bool tag, N id, const Change& change, N stamp, const Rules& rules) {
    auto* t = const_cast<Tombstone*>(tombstone(tag, id));
    const bool exact = change.rule == TxnRule::exact;
    if (t != nullptr && exact && std::find(t->xs.begin(), t->xs.end(), change.x) != t->xs.end())
      return false;
    if (t == nullptr) {
      tombstones.push_back({tag, id, 0, 0, {}});
      t = &tombstones[tombstones.size() - 1];
    }
    if (exact) {
      t->xs.insert(std::lower_bound(t->xs.begin(), t->xs.end(), change.x), change.x);
      while (!rules.every_x && t->xs.size() > 1) t->xs.erase(t->xs.begin());
      while (t->xs.size() > rules.most_x) {
        t->collapsed = std::max<N>(t->collapsed, t->xs.front());
        t->xs.erase(t->xs.begin());
      }
    } else if (change.rule == TxnRule::below) {
      t->collapsed = std::max<N>(t->collapsed, change.x);
    } else {
      t->stamp = stamp;
    }
    return true;
  }

  void apply(const Change& change, const Rules& rules, List<Message>& messages) {
    const bool tickets_only = change.rule == TxnRule::tickets;
    const bool known = records() && (!rules.change_source || change.source == 0 || source == 0 ||
                                     change.source == source);
    Message message{redis::Message::Kind::change, epoch, 0, heartbeat, change.x, {}, {}};
    for (const KeyChange& key : change.keys) {
      const bool fresh = !known || tickets_only || record(false, key.key, change, 0, rules);
      List<N> schemas = key.schemas;
      for (const N schema : versions)
        if (rules.versions && std::find(schemas.begin(), schemas.end(), schema) == schemas.end())
          schemas.push_back(schema);
      for (const N schema : schemas) {
        const Entry* there = entry_of(schema, key.key);
        if (fresh || (there != nullptr && !there->snapshot.sees(change.x)))
          drop_entry(schema, key.key);
        if (fresh) drop_ticket(schema, key.key);
      }
      if (fresh) message.keys.push_back(key.key);
    }
    for (const N tag : change.tags) {
      const bool records_tag = known && (!tickets_only || epoch != 0);
      if (!records_tag || record(true, tag, change, static_cast<N>(n + 1), rules))
        message.tags.push_back(tag);
    }
    if (epoch == 0 || (message.keys.empty() && message.tags.empty())) return;
    message.n = ++n;
    stream.push_back(message);
    messages.push_back(message);
  }
};

}  // namespace larder::engine::redis::model
