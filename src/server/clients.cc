#include "server/clients.h"

namespace larder::server {

std::string Peer::name() const {
  MutexLock lock(mutex_);
  return name_;
}

void Peer::set_name(std::string name) {
  MutexLock lock(mutex_);
  name_ = std::move(name);
}

bool Peer::push(std::string_view bytes) {
  bool accepted = false;
  {
    MutexLock lock(mutex_);
    if (ending_ == Ending::now) return true;  // closing already
    accepted = queued_ + bytes.size() <= push_limit_;
    if (accepted) {
      queued_ += bytes.size();
      mailbox_.append(bytes);
    } else {
      ending_ = Ending::now;
    }
    if (posted_) return accepted;
    posted_ = true;
  }
  loop_.post([self = shared_from_this()] { self->deliver(); });
  return accepted;
}

void Peer::close(Ending ending) {
  {
    MutexLock lock(mutex_);
    ending_ = std::max(ending_, ending);
    if (posted_) return;
    posted_ = true;
  }
  loop_.post([self = shared_from_this()] { self->deliver(); });
}

void Peer::deliver() {
  Ending ending = Ending::none;
  {
    MutexLock lock(mutex_);
    posted_ = false;
    ending = ending_;
  }
  if (owner_ == nullptr) return;
  if (ending == Ending::now)
    owner_->on_kill();
  else
    owner_->on_pushes();
  if (ending == Ending::after_batch && owner_ != nullptr) owner_->on_finish();
}

void Peer::take_pushes(std::string& out) {
  MutexLock lock(mutex_);
  if (out.empty())
    out.swap(mailbox_);
  else
    out.append(mailbox_);
  mailbox_.clear();
}

void Peer::sent(std::size_t bytes) {
  MutexLock lock(mutex_);
  queued_ -= std::min(bytes, queued_);
}

void Clients::add(std::shared_ptr<Peer> peer) {
  MutexLock lock(mutex_);
  const std::uint64_t id = peer->id;
  peers_.emplace(id, std::move(peer));
}

void Clients::remove(std::uint64_t id) {
  MutexLock lock(mutex_);
  peers_.erase(id);
}

std::shared_ptr<Peer> Clients::find(std::uint64_t id) const {
  MutexLock lock(mutex_);
  const auto found = peers_.find(id);
  return found == peers_.end() ? nullptr : found->second;
}

void Clients::each(const std::function<void(Peer&)>& visit) const {
  MutexLock lock(mutex_);
  for (const auto& [id, peer] : peers_) visit(*peer);
}

std::size_t Clients::count() const {
  MutexLock lock(mutex_);
  return peers_.size();
}

}  // namespace larder::server
