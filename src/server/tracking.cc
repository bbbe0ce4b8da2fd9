#include "server/tracking.h"

#include <algorithm>

namespace larder::server {

Tracking::Tracking(std::size_t max_reads) {
  // Small tables are one shard: a bound of a few reads cannot be divided fairly.
  shard_count_ = max_reads >= 4096 ? 16 : 1;
  shard_limit_ = std::max<std::size_t>(max_reads / shard_count_, 1);
}

// ---- clients ----

void Tracking::enable(Client client, Settings settings, std::span<const std::string> prefixes) {
  MutexLock lock(mutex_);
  const auto [at, added] = clients_.try_emplace(client);
  at->second.settings = settings;
  for (const std::string& prefix : prefixes) {
    if (std::ranges::find(at->second.prefixes, prefix) != at->second.prefixes.end()) continue;
    at->second.prefixes.insert(std::ranges::upper_bound(at->second.prefixes, prefix), prefix);
    std::vector<Client>& listeners = by_prefix_[prefix];
    if (listeners.empty()) ++prefix_sizes_[prefix.size()];
    listeners.push_back(client);
  }
  if (added) clients_count_.fetch_add(1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // beside active()'s
}

void Tracking::disable(Client client) {
  MutexLock lock(mutex_);
  const auto at = clients_.find(client);
  if (at == clients_.end()) return;
  for (const std::string& prefix : at->second.prefixes) {
    const auto listeners = by_prefix_.find(prefix);
    std::erase(listeners->second, client);
    if (!listeners->second.empty()) continue;
    by_prefix_.erase(listeners);
    const auto size = prefix_sizes_.find(prefix.size());
    if (--size->second == 0) prefix_sizes_.erase(size);
  }
  clients_.erase(at);
  clients_count_.fetch_sub(1, std::memory_order_relaxed);
}

std::vector<std::string> Tracking::prefixes(Client client) const {
  MutexLock lock(mutex_);
  const auto at = clients_.find(client);
  return at == clients_.end() ? std::vector<std::string>{} : at->second.prefixes;
}

// ---- reads ----

void Tracking::remove_expiry(Shard& shard, const std::string& key, Record& record) {
  if (record.expiry == kNever) return;
  shard.expiring.erase({record.expiry, key});
  record.expiry = kNever;
}

void Tracking::erase(Shard& shard, Records::iterator at) {
  remove_expiry(shard, at->first, at->second);
  shard.records.erase(at);
}

void Tracking::make_room(Shard& shard, std::vector<Voided>& out) {
  while (shard.reads >= shard_limit_ && !shard.records.empty()) {
    const std::size_t buckets = shard.records.bucket_count();
    shard.hand %= buckets;
    while (shard.records.bucket_size(shard.hand) == 0) shard.hand = (shard.hand + 1) % buckets;
    Voided& victim = out.emplace_back();
    victim.key = shard.records.begin(shard.hand)->first;
    shard.hand = (shard.hand + 1) % buckets;
    victim.evicted = true;
    const auto at = shard.records.find(victim.key);
    for (const Reader& reader : at->second.readers) victim.readers.push_back(reader.client);
    shard.reads -= victim.readers.size();
    reads_count_.fetch_sub(victim.readers.size(), std::memory_order_relaxed);
    evictions_.fetch_add(1, std::memory_order_relaxed);
    erase(shard, at);
  }
}

bool Tracking::read(Client client, std::string_view key, bool pending, Messages& out) {
  Shard& shard = shard_of(key);
  std::vector<Voided> evicted;
  {
    MutexLock lock(shard.mutex);
    if (const auto at = shard.records.find(key); at != shard.records.end()) {
      for (Reader& reader : at->second.readers) {
        if (reader.client != client) continue;
        reader.state = pending ? State::pending : State::settled;
        return false;
      }
    }
    make_room(shard, evicted);
    auto at = shard.records.find(key);  // its record may have been the victim
    if (at == shard.records.end()) at = shard.records.emplace(key, Record{}).first;
    at->second.readers.push_back({client, pending ? State::pending : State::settled});
    ++shard.reads;
    reads_count_.fetch_add(1, std::memory_order_relaxed);
  }
  if (!evicted.empty()) compose(evicted, {}, 0, out);
  return true;
}

bool Tracking::settle(Client client, std::string_view key) {
  Shard& shard = shard_of(key);
  MutexLock lock(shard.mutex);
  const auto at = shard.records.find(key);
  if (at == shard.records.end()) return false;  // it was told
  for (Reader& reader : at->second.readers) {
    if (reader.client != client) continue;
    const bool announced = reader.state == State::announced;
    reader.state = State::settled;
    return announced;
  }
  return false;
}

void Tracking::forget(Client client, std::string_view key) {
  Shard& shard = shard_of(key);
  MutexLock lock(shard.mutex);
  const auto at = shard.records.find(key);
  if (at == shard.records.end()) return;
  const std::size_t gone = std::erase_if(
      at->second.readers, [client](const Reader& reader) { return reader.client == client; });
  shard.reads -= gone;
  reads_count_.fetch_sub(gone, std::memory_order_relaxed);
  if (at->second.readers.empty()) erase(shard, at);
}

void Tracking::expires(std::string_view key, TimeUs at) {
  Shard& shard = shard_of(key);
  MutexLock lock(shard.mutex);
  const auto found = shard.records.find(key);
  if (found == shard.records.end()) return;
  remove_expiry(shard, found->first, found->second);
  if (at == kNever) return;
  found->second.expiry = at;
  shard.expiring.emplace(at, found->first);
}

// ---- announcements ----

void Tracking::take(Shard& shard, std::string_view key, std::vector<Voided>& out) {
  const auto at = shard.records.find(key);
  if (at == shard.records.end()) return;
  Voided& voided = out.emplace_back();
  voided.key = at->first;
  std::erase_if(at->second.readers, [&](Reader& reader) {
    if (reader.state == State::settled) {
      voided.readers.push_back(reader.client);
      return true;
    }
    reader.state = State::announced;
    return false;
  });
  shard.reads -= voided.readers.size();
  reads_count_.fetch_sub(voided.readers.size(), std::memory_order_relaxed);
  remove_expiry(shard, at->first, at->second);
  if (at->second.readers.empty()) erase(shard, at);
}

// Collects the messages, one for each client. REQUIRES: the clients' table is locked.
class Tracking::Composer {
 public:
  Composer(Messages& out, Client by) : out_(out), by_(by) {}

  void add(Client client, const Settings& settings, std::string_view key) {
    if (settings.noloop && client == by_) return;
    const auto [at, added] = places_.try_emplace(client, out_.size());
    if (added) out_.push_back({client, settings.redirect, {}});
    std::vector<std::string>& keys = out_[at->second].keys;
    // The same key may come by two prefixes, never far apart.
    if (keys.empty() || keys.back() != key) keys.emplace_back(key);
  }

 private:
  Messages& out_;
  const Client by_;
  std::unordered_map<Client, std::size_t> places_;
};

void Tracking::compose(std::span<const Voided> voided, std::span<const std::string_view> keys,
                       Client by, Messages& out) {
  MutexLock lock(mutex_);
  Composer composer(out, by);
  for (const Voided& one : voided)
    for (const Client reader : one.readers) {
      const auto at = clients_.find(reader);
      if (at == clients_.end() || (at->second.settings.broadcast && !one.evicted)) continue;
      composer.add(reader, at->second.settings, one.key);
    }
  if (by_prefix_.empty()) return;
  for (const std::string_view key : keys)
    for (const auto& [size, count] : prefix_sizes_) {
      if (size > key.size()) break;
      const auto at = by_prefix_.find(key.substr(0, size));
      if (at == by_prefix_.end()) continue;
      for (const Client listener : at->second)
        composer.add(listener, clients_.find(listener)->second.settings, key);
    }
}

void Tracking::changed(std::span<const std::string_view> keys, Client by, Messages& out) {
  if (!active()) return;
  std::vector<Voided> voided;
  for (const std::string_view key : keys) {
    Shard& shard = shard_of(key);
    MutexLock lock(shard.mutex);
    take(shard, key, voided);
  }
  compose(voided, keys, by, out);
}

void Tracking::everything(Client by, Messages& out) {
  if (!active()) return;
  std::set<Client> holders;
  for (Shard& shard : shards_) {
    MutexLock lock(shard.mutex);
    for (const auto& [key, record] : shard.records)
      for (const Reader& reader : record.readers) holders.insert(reader.client);
    reads_count_.fetch_sub(shard.reads, std::memory_order_relaxed);
    shard.records.clear();
    shard.expiring.clear();
    shard.reads = 0;
  }
  MutexLock lock(mutex_);
  for (const auto& [client, known] : clients_) {
    // Of several in a row (a tag has news from each partition) the first leaves nothing to tell;
    // but what one has written oneself is held and not noted (noloop).
    const bool unnoted = known.settings.broadcast || known.settings.noloop;
    if (!unnoted && !holders.contains(client)) continue;
    if (!known.settings.noloop || client != by)
      out.push_back({client, known.settings.redirect, {}});
  }
}

bool Tracking::expire(TimeUs now, std::size_t most, Messages& out) {
  std::vector<Voided> voided;
  std::vector<std::string> ended;
  bool more = false;
  const unsigned first = expire_next_.fetch_add(1, std::memory_order_relaxed);
  for (std::size_t i = 0; i < shard_count_; ++i) {
    Shard& shard = shards_[(first + i) & (shard_count_ - 1)];
    MutexLock lock(shard.mutex);
    while (!shard.expiring.empty() && shard.expiring.begin()->first <= now) {
      more = ended.size() >= most;
      if (more) break;
      ended.push_back(shard.expiring.begin()->second);
      take(shard, ended.back(), voided);
    }
    if (more) break;
  }
  if (ended.empty()) return false;
  const std::vector<std::string_view> keys(ended.begin(), ended.end());
  compose(voided, keys, 0, out);
  return more;
}

}  // namespace larder::server
