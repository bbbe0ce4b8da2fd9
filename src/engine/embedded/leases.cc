#include "engine/embedded/leases.h"

#include <fmt/format.h>

#include <atomic>
#include <list>
#include <optional>
#include <random>
#include <unordered_map>

#include "base/hash.h"
#include "base/loop.h"
#include "base/random.h"
#include "base/sync.h"

namespace larder::engine {
namespace {

std::uint64_t seed_of(std::uint64_t given) {
  if (given != 0) return given;
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

TimeUs time_now() {
  const Loop* const loop = Loop::current();
  return loop != nullptr ? loop->now_us() : monotonic_now_us();
}

}  // namespace

struct Leases::Impl {
  struct Holder {
    std::string key;
    std::string token;
    policy::Ticket ticket;
    TimeUs until = 0;
    std::shared_ptr<Waiters> waiters = std::make_shared<Waiters>();
  };
  using Holders = std::list<Holder>;

  // What one look at a key says: an answer, or whom to wait for.
  struct Look {
    std::optional<Result<Lease>> answer;
    std::shared_ptr<Waiters> holder;
    TimeUs until = 0;
    std::vector<std::shared_ptr<Waiters>> ended;  // to be notified outside of the lock
  };

  Impl(near::Store& store_in, const Options& options_in)
      : store(store_in), options(options_in), random(seed_of(options_in.seed)) {}

  std::optional<std::string> value_of(std::string_view key, Hash hash, TimeUs now) const {
    std::optional<std::string> value;
    store.lookup(key, hash, now, [&](const near::View& view) {
      if (view.meta.cache_id == 0 && !view.is_void) value.emplace(view.value);
    });
    return value;
  }

  bool is_void(const Holder& holder, const policy::Ticket& current) const {
    return policy::judge_install(holder.ticket, current) != policy::Refusal::none;
  }

  std::shared_ptr<Waiters> drop(Holders::iterator holder) LARDER_REQUIRES(mutex) {
    std::shared_ptr<Waiters> waiters = std::move(holder->waiters);
    by_key.erase(holder->key);
    holders.erase(holder);
    return waiters;
  }

  Look look(const std::string& key, Hash hash, TimeUs now, bool may_wait);
  Result<Lease> grant(const std::string& key, const policy::Ticket& ticket, TimeUs now)
      LARDER_REQUIRES(mutex);

  near::Store& store;
  const Options options;
  mutable Mutex mutex;                       // taken before a shard's
  Holders holders LARDER_GUARDED_BY(mutex);  // all last equally long: the first ends first
  std::unordered_map<std::string_view, Holders::iterator> by_key LARDER_GUARDED_BY(mutex);
  Random random LARDER_GUARDED_BY(mutex);
  std::atomic<std::size_t> waiting{0};
};

Result<Lease> Leases::Impl::grant(const std::string& key, const policy::Ticket& ticket,
                                  TimeUs now) {
  if (holders.size() >= options.max_leases)
    return fail(ErrorCode::overloaded, fmt::format("{} leases are out already", holders.size()));
  Holder holder{.key = key,
                .token = fmt::format("{:016x}{:016x}", random.next(), random.next()),
                .ticket = ticket,
                .until = saturating_add(now, options.lease_us)};
  holders.push_back(std::move(holder));
  by_key.emplace(holders.back().key, std::prev(holders.end()));
  return Lease{Lease::Kind::ticket, holders.back().token};
}

Leases::Impl::Look Leases::Impl::look(const std::string& key, Hash hash, TimeUs now,
                                      bool may_wait) {
  Look look;
  const MutexLock lock(mutex);
  while (!holders.empty() && holders.front().until <= now)
    look.ended.push_back(drop(holders.begin()));
  // The ticket before the look: a change between the two leaves it void. And both under the lock: a
  // fill that has ended its lease is seen.
  const policy::Ticket ticket = store.ticket(hash);
  if (auto value = value_of(key, hash, now)) {
    look.answer = Lease{Lease::Kind::value, std::move(*value)};
    return look;
  }
  const auto found = by_key.find(key);
  if (found != by_key.end() && !is_void(*found->second, ticket)) {
    if (!may_wait) {
      look.answer = Lease{};
      return look;
    }
    look.holder = found->second->waiters;
    look.until = found->second->until;
    return look;
  }
  if (found != by_key.end()) look.ended.push_back(drop(found->second));
  look.answer = grant(key, ticket, now);
  return look;
}

Leases::Leases(near::Store& store, const Options& options)
    : impl_(std::make_unique<Impl>(store, options)) {}
Leases::~Leases() = default;

Task<Result<Lease>> Leases::lease(std::string key, DurationUs wait_us) {
  const Hash hash = hash_bytes(key);
  TimeUs now = time_now();
  const TimeUs deadline = saturating_add(now, wait_us);
  if (auto value = impl_->value_of(key, hash, now))  // the usual case, without our own lock
    co_return Lease{Lease::Kind::value, std::move(*value)};
  for (;;) {
    Impl::Look look = impl_->look(key, hash, now, now < deadline);
    for (const auto& waiters : look.ended) waiters->notify();
    if (look.answer) co_return std::move(*look.answer);
    if (impl_->waiting.fetch_add(1) >= impl_->options.max_waiters) {
      impl_->waiting.fetch_sub(1);
      co_return fail(ErrorCode::overloaded, "too many callers wait for leases");
    }
    co_await look.holder->wait_until(std::min(deadline, look.until));
    impl_->waiting.fetch_sub(1);
    now = time_now();
  }
}

Result<bool> Leases::fill(std::string_view key, std::string_view ticket, std::string_view value,
                          TimeUs now, TimeUs expiry, const std::vector<std::string>& tags) {
  std::vector<Hash> hashes;
  hashes.reserve(tags.size());
  for (const std::string& tag : tags) hashes.push_back(hash_bytes(tag));
  const near::Meta meta{
      .tag_count = static_cast<std::uint8_t>(std::min<std::size_t>(tags.size(), 255)),
      .as_of = now,
      .soft_expiry = expiry,
      .useless_at = expiry};
  policy::Refusal refusal = policy::Refusal::ticket;
  std::shared_ptr<Waiters> waiters;
  {
    const MutexLock lock(impl_->mutex);
    const auto found = impl_->by_key.find(key);
    if (found == impl_->by_key.end() || found->second->token != ticket) return false;
    if (found->second->until > now)
      refusal = impl_->store.fill(found->second->ticket, key, hash_bytes(key), value, meta, hashes);
    waiters = impl_->drop(found->second);
  }
  waiters->notify();  // stored or not: the lease has ended
  switch (refusal) {
    case policy::Refusal::none: return true;
    case policy::Refusal::too_large:
      if (tags.size() > 255)
        return fail(ErrorCode::syntax, fmt::format("{} tags, at most 255", tags.size()));
      return fail(ErrorCode::syntax,
                  fmt::format("value of {} bytes does not fit: the largest entry is {} bytes; "
                              "raise [near] capacity",
                              value.size(), impl_->store.max_entry_bytes()));
    case policy::Refusal::no_room:
      return fail(ErrorCode::out_of_memory, "command not allowed when used memory > 'maxmemory'.");
    default: return false;
  }
}

std::size_t Leases::count() const {
  const MutexLock lock(impl_->mutex);
  return impl_->holders.size();
}

}  // namespace larder::engine
