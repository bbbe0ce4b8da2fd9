#include "source/mariadb/numbers.h"

#include <algorithm>
#include <charconv>

namespace larder::source::mariadb {
namespace {

bool whole_number(std::string_view text, std::uint64_t& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

std::optional<LogPosition> LogPosition::parse(std::string_view file, std::string_view offset) {
  const std::size_t dot = file.rfind('.');
  if (dot == std::string_view::npos) return std::nullopt;
  LogPosition out;
  if (!whole_number(file.substr(dot + 1), out.file) || !whole_number(offset, out.offset))
    return std::nullopt;
  return out;
}

policy::TxnId Numbers::begin(std::uint64_t server) {
  const MutexLock lock(mutex_);
  open_.emplace(++last_, Open{.server = server, .lock = {}});
  return last_;
}

void Numbers::end(policy::TxnId x) {
  const MutexLock lock(mutex_);
  open_.erase(x);
}

void Numbers::doubt(policy::TxnId x, std::string name) {
  const MutexLock lock(mutex_);
  if (const auto found = open_.find(x); found != open_.end()) found->second.lock = std::move(name);
}

void Numbers::committed(policy::TxnId x, std::string gtid) {
  const MutexLock lock(mutex_);
  if (!follows_ || !ours_.emplace(gtid, x).second) return;
  ours_order_.push_back(std::move(gtid));
  if (ours_order_.size() <= kMostTold) return;
  ours_.erase(ours_order_.front());
  ours_order_.pop_front();
}

std::optional<policy::TxnId> Numbers::ours(const std::string& gtid) {
  const MutexLock lock(mutex_);
  const auto found = ours_.find(gtid);
  if (found == ours_.end()) return std::nullopt;
  const policy::TxnId x = found->second;
  ours_.erase(found);
  std::erase(ours_order_, gtid);
  return x;
}

void Numbers::commit_begins() {
  const MutexLock lock(mutex_);
  ++committing_;
}

void Numbers::commit_ends() {
  const MutexLock lock(mutex_);
  --committing_;
}

bool Numbers::committing() const {
  const MutexLock lock(mutex_);
  return committing_ > 0;
}

std::vector<Numbers::Doubt> Numbers::doubts(std::uint64_t server, std::size_t most) const {
  std::vector<Doubt> out;
  const MutexLock lock(mutex_);
  for (const auto& [x, open] : open_)
    if (out.size() < most && open.server == server && !open.lock.empty())
      out.push_back({.x = x, .lock = open.lock});
  return out;
}

policy::TxnId Numbers::begin_log(LogPosition at) {
  {
    const MutexLock lock(mutex_);
    told_.clear();
    forgotten_ = {};
  }
  return tell(at);
}

policy::TxnId Numbers::tell(LogPosition end) {
  const MutexLock lock(mutex_);
  follows_ = true;
  told_.push_back({.x = ++last_, .end = end});
  if (told_.size() > kMostTold) {
    forgotten_ = told_.front().end;
    told_.pop_front();
  }
  return last_;
}

bool Numbers::follows_log() const {
  const MutexLock lock(mutex_);
  return follows_;
}

Numbers::Moment Numbers::now(std::uint64_t server) const {
  const MutexLock lock(mutex_);
  Moment out{.last = last_, .open = {}};
  for (const auto& [x, open] : open_)
    if (open.server == server) out.open.push_back(x);
  return out;
}

policy::Snapshot Numbers::seen(const Moment& moment, std::optional<LogPosition> at,
                               std::uint64_t server) const {
  policy::Snapshot out{.source_id = server,
                       .xmin = moment.last + 1,
                       .xmax = moment.last + 1,
                       .in_progress = moment.open};
  {
    const MutexLock lock(mutex_);
    // A load that began before anybody told has nothing to have seen of it.
    if (follows_ && (!at || *at < forgotten_)) {
      out.xmin = out.xmax = 1;
      out.in_progress.clear();
      return out;
    }
    if (at) {
      auto first = std::ranges::upper_bound(told_, *at, {}, &Told::end);
      for (; first != told_.end() && first->x <= moment.last; ++first)
        out.in_progress.push_back(first->x);
    }
  }
  std::ranges::sort(out.in_progress);
  if (!out.in_progress.empty()) out.xmin = out.in_progress.front();
  return out;
}

}  // namespace larder::source::mariadb
