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
    Queue& queue = queues_[shared->source];
    queue.waiting.push_back({seq, shared});
    queue.bytes += size_of(*shared);
  }
  for (const Op& op : shared->ops) {
    Shard& at = shard(hash_bytes(op.key));
    MutexLock lock(at.mutex);
    const auto [entry, added] = at.held.try_emplace(op.key);
    if (added) keys_.fetch_add(1, std::memory_order_seq_cst);
    entry->second = {.value = {.removed = op.kind == Op::Kind::remove,
                               .value = op.value,
                               .written_at = shared->written_at},
                     .last = seq};
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

std::vector<Pending::Waiting> Pending::first(std::string_view source, std::size_t most_records,
                                             std::size_t most_bytes) const {
  std::vector<Waiting> result;
  std::uint64_t bytes = 0;
  MutexLock lock(mutex_);
  const auto queue = queues_.find(source);
  if (queue == queues_.end()) return result;
  for (const Waiting& one : queue->second.waiting) {
    bytes += size_of(*one.record);
    if (result.size() >= most_records || (bytes > most_bytes && !result.empty())) break;
    result.push_back(one);
  }
  return result;
}

void Pending::applied(std::string_view source, Seq seq) {
  std::vector<Waiting> gone;
  {
    MutexLock lock(mutex_);
    const auto found = queues_.find(source);
    if (found == queues_.end()) return;
    Queue& queue = found->second;
    while (!queue.waiting.empty() && queue.waiting.front().seq <= seq) {
      queue.bytes -= size_of(*queue.waiting.front().record);
      gone.push_back(std::move(queue.waiting.front()));
      queue.waiting.pop_front();
    }
    if (queue.waiting.empty()) queues_.erase(found);
  }
  for (const Waiting& one : gone)
    for (const Op& op : one.record->ops) {
      Shard& at = shard(hash_bytes(op.key));
      MutexLock lock(at.mutex);
      const auto held = at.held.find(op.key);
      if (held == at.held.end() || held->second.last != one.seq) continue;  // written again since
      at.held.erase(held);
      keys_.fetch_sub(1, std::memory_order_seq_cst);
    }
}

Pending::Depth Pending::depth(std::string_view source) const {
  MutexLock lock(mutex_);
  const auto queue = queues_.find(source);
  if (queue == queues_.end()) return {};
  const std::deque<Waiting>& waiting = queue->second.waiting;
  return {.records = waiting.size(),
          .bytes = queue->second.bytes,
          .oldest = waiting.front().record->written_at};
}

std::optional<Seq> Pending::oldest() const {
  std::optional<Seq> oldest;
  MutexLock lock(mutex_);
  for (const auto& [source, queue] : queues_) {
    const Seq seq = queue.waiting.front().seq;
    oldest = std::min(oldest.value_or(seq), seq);
  }
  return oldest;
}

std::vector<std::string> Pending::sources() const {
  std::vector<std::string> names;
  MutexLock lock(mutex_);
  names.reserve(queues_.size());
  for (const auto& [source, queue] : queues_) names.push_back(source);
  return names;
}

std::vector<Op> coalesce(const std::vector<Pending::Waiting>& records) {
  struct Place {
    std::optional<std::size_t> absolute;   // of the key's set or remove
    std::optional<std::size_t> increment;  // that counts on top of it
  };
  std::vector<std::optional<Op>> ops;
  std::unordered_map<std::string_view, Place> places;
  for (const Pending::Waiting& waiting : records)
    for (const Op& op : waiting.record->ops) {
      Place& place = places[op.key];
      if (op.kind != Op::Kind::increment) {
        const auto at = place.absolute ? place.absolute : place.increment;
        if (place.increment && place.increment != at) ops[*place.increment].reset();
        place = {.absolute = at.value_or(ops.size()), .increment = {}};
        if (at)
          ops[*at] = op;
        else
          ops.emplace_back(op);
        continue;
      }
      std::int64_t sum = op.delta;
      if (place.increment &&
          !__builtin_add_overflow(ops[*place.increment]->delta, op.delta, &sum)) {
        ops[*place.increment]->delta = sum;
        ops[*place.increment]->value = op.value;
        continue;
      }
      place.increment = ops.size();
      ops.emplace_back(op);
    }
  std::vector<Op> result;
  for (std::optional<Op>& op : ops)
    if (op) result.push_back(std::move(*op));
  return result;
}

}  // namespace larder::journal
