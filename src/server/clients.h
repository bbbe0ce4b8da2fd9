// The connected clients as others see them: CLIENT LIST and KILL, and what PUBLISH sends them.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/loop.h"
#include "base/sync.h"

namespace larder::server {

struct CommandRow;

// One connection, seen from outside. The session works on its loop; everybody else reaches it
// through this object, which may outlive it. Thread-safe, except where said.
class Peer : public std::enable_shared_from_this<Peer> {
 public:
  // The session's side. Called on the session's loop, never after detach().
  class Owner {
   public:
    virtual ~Owner() = default;
    virtual void on_pushes() = 0;  // take_pushes() has something
    virtual void on_kill() = 0;    // close now
    virtual void on_finish() = 0;  // answer what is under way, then close
  };

  Peer(std::uint64_t id, std::string address, std::string local, int fd, Loop& loop, TimeUs now,
       std::size_t push_limit, Owner& owner)
      : id(id),
        address(std::move(address)),
        local(std::move(local)),
        fd(fd),
        since(now),
        loop_(loop),
        push_limit_(push_limit),
        owner_(&owner) {}

  const std::uint64_t id;
  const std::string address;
  const std::string local;
  const int fd;
  const TimeUs since;

  // Kept by the session, read by CLIENT LIST. Relaxed: they are only looked at.
  std::atomic<const CommandRow*> last_command{nullptr};
  std::atomic<TimeUs> last_active{0};
  std::atomic<int> protocol{2};
  std::atomic<std::uint32_t> channels{0};
  std::atomic<std::uint32_t> patterns{0};
  std::atomic<std::uint32_t> shard_channels{0};
  std::atomic<std::int64_t> queued_commands{-1};  // by MULTI; -1: not in one
  // CLIENT TRACKING: -1 off; 0 on; else the client that is told in its place.
  std::atomic<std::int64_t> tracking_redirect{-1};
  std::atomic<bool> tracking_broadcast{false};
  std::atomic<bool> redirect_broken{false};  // that client is gone; set by whoever notices

  std::string name() const;
  void set_name(std::string name);

  // Sends bytes (a whole push) behind whatever the session is answering now. False, once: the
  // client does not take its pushes, is over its limit, and gets closed; the bytes are dropped.
  bool push(std::string_view bytes);
  // Closes the connection, soon: at once, or once it has answered what it is working on.
  void kill() { close(Ending::now); }
  void finish() { close(Ending::after_batch); }

  // ---- for the session, on its loop ----

  // Moves what was pushed to the end of `out`. It counts as queued until sent() is told of it.
  void take_pushes(std::string& out);
  void sent(std::size_t bytes);
  void detach() { owner_ = nullptr; }

 private:
  enum class Ending : std::uint8_t { none, after_batch, now };
  void close(Ending ending);
  void deliver();

  Loop& loop_;
  const std::size_t push_limit_;
  Owner* owner_;  // touched on loop_ only
  mutable Mutex mutex_;
  std::string name_ LARDER_GUARDED_BY(mutex_);
  std::string mailbox_ LARDER_GUARDED_BY(mutex_);
  std::size_t queued_ LARDER_GUARDED_BY(mutex_) = 0;  // in the mailbox, and taken but not sent
  bool posted_ LARDER_GUARDED_BY(mutex_) = false;     // deliver() is on its way
  Ending ending_ LARDER_GUARDED_BY(mutex_) = Ending::none;
};

// Thread-safe.
class Clients {
 public:
  std::uint64_t next_id() { return ++last_id_; }
  void add(std::shared_ptr<Peer> peer);
  void remove(std::uint64_t id);
  std::shared_ptr<Peer> find(std::uint64_t id) const;
  // In order of id. `visit` runs under the lock: it must not call Clients.
  void each(const std::function<void(Peer&)>& visit) const;
  std::size_t count() const;
  std::uint64_t total() const { return last_id_; }

 private:
  std::atomic<std::uint64_t> last_id_{0};
  mutable Mutex mutex_;
  std::map<std::uint64_t, std::shared_ptr<Peer>> peers_ LARDER_GUARDED_BY(mutex_);
};

}  // namespace larder::server
