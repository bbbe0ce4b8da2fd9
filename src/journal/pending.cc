#include "journal/pending.h"

#include <algorithm>

namespace larder::journal {

std::uint64_t Pending::size_of(const Record& record) {
  std::uint64_t size = 0;
  for (const Op& op : record.ops) size += op.key.size() + op.value.size() + sizeof(Op);
  return size;
}

// The queue first: who finds the value can rely on it that it will be applied.
void Pending::add(Seq seq, Record record) {
  const auto shared = std::make_shared<const Record>(std::move(record));
  {
    MutexLock lock(mutex_);
    queues_[shared->source].waiting.push_back({seq, shared});
    for (const Op& op : shared->ops) caches_[op.cache].push_back(shared->written_at);
  }
  for (const Op& op : shared->ops) {
    Shard& at = shard(hash_bytes(op.key));
    MutexLock lock(at.mutex);
    const auto [entry, added] = at.held.try_emplace(op.key);
    if (added) keys_.fetch_add(1, std::memory_order_seq_cst);
    Held& held = entry->second;
    held.value = {.removed = op.kind == Op::Kind::remove,
                  .value = op.value,
                  .written_at = shared->written_at};
    held.last = seq;
    if (op.kind != Op::Kind::increment) held.absolute = seq;
  }
}

std::optional<Pending::Value> Pending::find(std::string_view key, Hash hash) const {
  if (keys_.load(std::memory_order_seq_cst) == 0) return std::nullopt;
  const Shard& at = shard(hash);
  MutexLock lock(at.mutex);
  const auto found = at.held.find(key);
  if (found == at.held.end()) return std::nullopt;
  return found->second.value;
}

bool Pending::holds(std::string_view key, Hash hash) const {
  if (keys_.load(std::memory_order_seq_cst) == 0) return false;
  const Shard& at = shard(hash);
  MutexLock lock(at.mutex);
  return at.held.contains(key);
}

Pending::Batch Pending::first(std::string_view source, std::size_t most_records,
                              std::size_t most_bytes) const {
  Batch batch;
  std::uint64_t bytes = 0;
  MutexLock lock(mutex_);
  const auto found = queues_.find(source);
  if (found == queues_.end()) return batch;
  const Queue& queue = found->second;
  for (const Waiting& one : queue.waiting) {
    bytes += size_of(*one.record);
    if (batch.records.size() >= most_records || (bytes > most_bytes && !batch.records.empty()))
      break;
    batch.records.push_back(one);
  }
  if (!batch.records.empty()) batch.yielded = queue.yielded;
  return batch;
}

void Pending::erase_held(std::string_view key, Seq upto) {
  Shard& at = shard(hash_bytes(key));
  MutexLock lock(at.mutex);
  const auto held = at.held.find(key);
  if (held == at.held.end() || held->second.last > upto) return;  // written again since
  at.held.erase(held);
  keys_.fetch_sub(1, std::memory_order_seq_cst);
}

void Pending::applied(std::string_view source, Seq seq) {
  std::vector<Waiting> gone;
  {
    MutexLock lock(mutex_);
    const auto found = queues_.find(source);
    if (found == queues_.end()) return;
    Queue& queue = found->second;
    queue.applied = std::max(queue.applied, seq);
    while (!queue.waiting.empty() && queue.waiting.front().seq <= seq) {
      gone.push_back(std::move(queue.waiting.front()));
      queue.waiting.pop_front();
    }
    std::erase_if(queue.yielded, [seq](const auto& one) { return one.second <= seq; });
    for (const Waiting& one : gone)
      for (const Op& op : one.record->ops) caches_.find(op.cache)->second.pop_front();
  }
  for (const Waiting& one : gone)
    for (const Op& op : one.record->ops) erase_held(op.key, one.seq);
}

std::optional<Seq> Pending::contested(std::string_view source, std::string_view key,
                                      Hash hash) const {
  if (keys_.load(std::memory_order_seq_cst) == 0) return std::nullopt;
  Seq absolute = 0;
  {
    const Shard& at = shard(hash);
    MutexLock lock(at.mutex);
    const auto held = at.held.find(key);
    if (held == at.held.end()) return std::nullopt;
    absolute = held->second.absolute;
  }
  MutexLock lock(mutex_);
  const auto queue = queues_.find(source);
  if (queue == queues_.end() || absolute <= queue->second.applied) return std::nullopt;
  return absolute;
}

void Pending::yield(std::string_view source, std::string_view key, Seq seq) {
  {
    MutexLock lock(mutex_);
    const auto queue = queues_.find(source);
    if (queue == queues_.end() || seq <= queue->second.applied) return;
    Seq& upto = queue->second.yielded[std::string(key)];
    upto = std::max(upto, seq);
  }
  erase_held(key, seq);
}

Pending::Depth Pending::depth(std::string_view cache) const {
  MutexLock lock(mutex_);
  const auto found = caches_.find(cache);
  if (found == caches_.end() || found->second.empty()) return {};
  return {.waiting = found->second.size(), .oldest = found->second.front()};
}

std::uint64_t Pending::waiting_records(std::string_view source) const {
  MutexLock lock(mutex_);
  const auto queue = queues_.find(source);
  return queue == queues_.end() ? 0 : queue->second.waiting.size();
}

std::optional<Seq> Pending::oldest() const {
  std::optional<Seq> oldest;
  MutexLock lock(mutex_);
  for (const auto& [source, queue] : queues_) {
    if (queue.waiting.empty()) continue;
    const Seq seq = queue.waiting.front().seq;
    oldest = std::min(oldest.value_or(seq), seq);
  }
  return oldest;
}

std::vector<std::string> Pending::sources() const {
  std::vector<std::string> names;
  MutexLock lock(mutex_);
  for (const auto& [source, queue] : queues_)
    if (!queue.waiting.empty()) names.push_back(source);
  return names;
}

Coalesced coalesce(const Pending::Batch& batch) {
  struct Place {
    std::optional<std::size_t> removal;  // comes before `set`
    std::optional<std::size_t> set;
    std::optional<std::size_t> increment;  // counts on top of it
  };
  Coalesced result;
  std::vector<std::optional<Op>> ops;
  std::unordered_map<std::string_view, Place> places;
  const auto replace = [&](std::optional<std::size_t>& at, const Op& op) {
    if (at) {
      ops[*at] = op;
    } else {
      at = ops.size();
      ops.emplace_back(op);
    }
  };
  const auto drop = [&](std::optional<std::size_t>& at) {
    if (at) ops[*at].reset();
    at.reset();
  };
  for (const Pending::Waiting& waiting : batch.records)
    for (const Op& op : waiting.record->ops) {
      const auto yielded = batch.yielded.find(op.key);
      if (yielded != batch.yielded.end() && waiting.seq <= yielded->second) {
        result.yielded.emplace_back(waiting.seq, op);
        continue;
      }
      Place& place = places[op.key];
      switch (op.kind) {
        case Op::Kind::set:
          // Where an increment stood alone the row is where that was.
          if (!place.set && !place.removal) place.set = std::exchange(place.increment, {});
          drop(place.increment);
          replace(place.set, op);
          break;
        case Op::Kind::remove:
          if (!place.removal) place.removal = std::exchange(place.set, {});
          if (!place.removal) place.removal = std::exchange(place.increment, {});
          drop(place.set);
          drop(place.increment);
          replace(place.removal, op);
          break;
        case Op::Kind::increment: {
          std::int64_t sum = 0;
          if (place.increment &&
              !__builtin_add_overflow(ops[*place.increment]->delta, op.delta, &sum)) {
            ops[*place.increment]->delta = sum;
            ops[*place.increment]->value = op.value;
          } else {
            place.increment = ops.size();
            ops.emplace_back(op);
          }
        }
      }
    }
  for (std::optional<Op>& op : ops)
    if (op) result.ops.push_back(std::move(*op));
  return result;
}

}  // namespace larder::journal
