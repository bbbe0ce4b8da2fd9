// Which client may hold which key in a cache of its own (CLIENT TRACKING), and who is to be told of
// a change. A table: it sends nothing, the caller sends the messages that come out of it.
//
// The order of steps that makes it right: a client's read is noted BEFORE the value is looked up,
// and a change is announced AFTER it was made. Then a reader either sees the new value, or is in
// the table when the change is announced.
//
// A read that has to wait (for a load) is noted as pending: the load itself announces its key, and
// must not drive the value that it brings out of its own reader's cache. A pending read is marked
// by announcements and not told; whoever ends it with settle() learns that, and has to look.
//
// Bounded: at most `max_reads` pairs of key and client. When it is full, a key goes, and its
// clients are told as if it had changed. Thread-safe; nothing suspends. Cost: one short lock of a
// shard for each key; of the clients' table for each announcement that somebody hears.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/hash.h"
#include "base/sync.h"

namespace larder::server {

class Tracking {
 public:
  using Client = std::uint64_t;  // CLIENT ID; 0: nobody
  struct Settings {
    bool broadcast = false;  // told of every key with one of its prefixes, whether read or not
    bool noloop = false;     // not told of what it changes itself
    Client redirect = 0;     // who is told in its place; 0: itself
  };
  // To one client. No keys: everything.
  struct Message {
    Client client = 0;
    Client redirect = 0;
    std::vector<std::string> keys;
  };
  using Messages = std::vector<Message>;

  explicit Tracking(std::size_t max_reads);

  // ---- clients ----

  // Begins to track, or changes the settings; `prefixes` are added (broadcast; "" = every key).
  void enable(Client client, Settings settings, std::span<const std::string> prefixes);
  // What it has read stays in the table until it changes, and is then of no interest.
  void disable(Client client);
  std::vector<std::string> prefixes(Client client) const;
  std::size_t clients() const { return clients_count_.load(std::memory_order_relaxed); }
  // False: an announcement would reach nobody. To be asked after the change was made.
  bool active() const {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return clients_count_.load(std::memory_order_relaxed) != 0;
  }

  // ---- reads ----

  // To be called before the value is looked up. True if the client was not noted for this key.
  // What had to make room is appended to `out`.
  bool read(Client client, std::string_view key, bool pending, Messages& out);
  // The end of a pending read. True: the key was announced meanwhile.
  bool settle(Client client, std::string_view key);
  void forget(Client client, std::string_view key);
  // The key's life ends by itself at `at`; expire() announces it then.
  void expires(std::string_view key, TimeUs at);

  // ---- announcements ----

  // Each client gets at most one message. `by`: who made the change, for noloop.
  void changed(std::span<const std::string_view> keys, Client by, Messages& out);
  // `everything` is told to those who have read something since the last time, and to all whose
  // copies are not noted (broadcast, noloop).
  void everything(Client by, Messages& out);
  // Announces up to `most` keys whose life has ended by `now`. True: there are more.
  bool expire(TimeUs now, std::size_t most, Messages& out);

  std::size_t reads() const { return reads_count_.load(std::memory_order_relaxed); }
  std::uint64_t evictions() const { return evictions_.load(std::memory_order_relaxed); }

 private:
  struct TextHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return hash_bytes(text); }
  };
  enum class State : std::uint8_t { settled, pending, announced };
  struct Reader {
    Client client;
    State state;
  };
  struct Record {
    std::vector<Reader> readers;  // never empty
    TimeUs expiry = kNever;
  };
  using Records = std::unordered_map<std::string, Record, TextHash, std::equal_to<>>;
  struct Shard {
    Mutex mutex;
    Records records LARDER_GUARDED_BY(mutex);
    std::set<std::pair<TimeUs, std::string>> expiring LARDER_GUARDED_BY(mutex);
    std::size_t reads LARDER_GUARDED_BY(mutex) = 0;
    std::size_t hand LARDER_GUARDED_BY(mutex) = 0;  // bucket from which the next victim is taken
  };
  struct Known {
    Settings settings;
    std::vector<std::string> prefixes;  // sorted
  };
  // A key and who had read it.
  struct Voided {
    std::string key;
    std::vector<Client> readers;
    bool evicted = false;  // broadcasting readers are told by it, too
  };
  class Composer;

  Shard& shard_of(std::string_view key) {
    return shards_[(hash_bytes(key) >> 32) & (shard_count_ - 1)];
  }
  void remove_expiry(Shard& shard, const std::string& key, Record& record)
      LARDER_REQUIRES(shard.mutex);
  void erase(Shard& shard, Records::iterator at) LARDER_REQUIRES(shard.mutex);
  // Takes the key's readers out, but for pending ones, which are marked.
  void take(Shard& shard, std::string_view key, std::vector<Voided>& out)
      LARDER_REQUIRES(shard.mutex);
  void make_room(Shard& shard, std::vector<Voided>& out) LARDER_REQUIRES(shard.mutex);
  void compose(std::span<const Voided> voided, std::span<const std::string_view> keys, Client by,
               Messages& out);

  std::size_t shard_count_;  // a power of two
  std::size_t shard_limit_;
  std::array<Shard, 16> shards_;
  std::atomic<std::size_t> reads_count_{0};
  std::atomic<std::uint64_t> evictions_{0};
  std::atomic<unsigned> expire_next_{0};

  std::atomic<std::size_t> clients_count_{0};
  mutable Mutex mutex_;  // taken while no shard is locked
  std::unordered_map<Client, Known> clients_ LARDER_GUARDED_BY(mutex_);
  std::map<std::string, std::vector<Client>, std::less<>> by_prefix_ LARDER_GUARDED_BY(mutex_);
  std::map<std::size_t, std::size_t> prefix_sizes_ LARDER_GUARDED_BY(mutex_);  // and how many
};

}  // namespace larder::server
