#include "engine/redis/dedicated.h"

#include <fmt/format.h>

#include <deque>

namespace larder::engine::redis {
namespace {

constexpr std::size_t kReadAheadBytes = 1u << 20;

// Shared by the connection's owner and its reader: each may go first.
struct Own final : Held {
  explicit Own(Peer greeted) : peer(std::move(greeted)) {}
  void stop() override {
    if (std::exchange(closed, true)) return;
    peer.stream->shutdown();
    wake();
  }
  void wake() {
    if (news) std::exchange(news, nullptr)->notify();
    if (room) std::exchange(room, nullptr)->notify();
  }

  Peer peer;
  std::deque<std::string> inbox;
  std::size_t inbox_bytes = 0;
  std::shared_ptr<Waiters> news;  // somebody waits for a reply
  std::shared_ptr<Waiters> room;  // the reader waits for somebody to take them
  bool closed = false;
  std::string why = "the connection was shut down";
  std::shared_ptr<HeldSet> held;
  std::shared_ptr<void> seat;
};

Task<void> read_ahead(std::shared_ptr<Own> own) {
  while (!own->closed) {
    if (own->inbox_bytes > kReadAheadBytes) {
      const auto room = own->room = std::make_shared<Waiters>();
      co_await room->wait();
      continue;
    }
    auto reply = co_await own->peer.receive();
    if (!reply) {
      own->why = reply.error().message;
      own->stop();
      break;
    }
    own->inbox_bytes += reply->size();
    own->inbox.push_back(std::move(*reply));
    if (own->news) std::exchange(own->news, nullptr)->notify();
  }
  own->held->erase(own.get());
  own->seat = nullptr;
}

class OwnConnection final : public Dedicated {
 public:
  explicit OwnConnection(std::shared_ptr<Own> own) : own_(std::move(own)) {}
  ~OwnConnection() override { own_->stop(); }

  Task<Result<void>> send(std::string bytes) override {
    const std::shared_ptr<Own> own = own_;
    if (own->closed) co_return fail(ErrorCode::engine_down, own->why);
    const auto written = co_await own->peer.stream->write_all(bytes);
    if (!written) co_return fail(ErrorCode::engine_down, written.error().message);
    co_return Result<void>();
  }

  Task<Result<Answer>> receive(TimeUs deadline) override {
    const std::shared_ptr<Own> own = own_;
    for (;;) {
      if (!own->inbox.empty()) {
        Answer answer{std::move(own->inbox.front())};
        own->inbox.pop_front();
        own->inbox_bytes -= answer.bytes.size();
        if (own->room && own->inbox_bytes <= kReadAheadBytes / 2) {
          std::exchange(own->room, nullptr)->notify();
        }
        co_return answer;
      }
      if (own->closed) co_return fail(ErrorCode::engine_down, own->why);
      const auto news = own->news = std::make_shared<Waiters>();
      const bool came = co_await news->wait_until(deadline);
      if (!came) {
        own->news = nullptr;
        co_return fail(ErrorCode::timeout, "no answer in time");
      }
    }
  }

  void shutdown() override { own_->stop(); }
  int protocol() const override { return own_->peer.protocol; }

 private:
  std::shared_ptr<Own> own_;
};

}  // namespace

Result<std::unique_ptr<Dedicated>> make_dedicated(Core& core, Peer peer,
                                                  std::shared_ptr<HeldSet> held,
                                                  std::shared_ptr<void> seat) {
  auto own = std::make_shared<Own>(std::move(peer));
  own->held = std::move(held);
  own->seat = std::move(seat);
  own->held->insert(own.get());
  if (!core.group.load()->spawn(read_ahead(own))) {
    own->held->erase(own.get());
    return fail(ErrorCode::cancelled, kShuttingDown);
  }
  return std::make_unique<OwnConnection>(std::move(own));
}

}  // namespace larder::engine::redis
