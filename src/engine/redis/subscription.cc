#include "engine/redis/subscription.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/redis/lane.h"

namespace larder::engine::redis {

Subscription::Subscription(Core& core, Loop& loop, std::vector<std::string> channels,
                           Subscriber& to, Mode mode, Place place)
    : core_(core),
      loop_(loop),
      to_(to),
      mode_(std::move(mode)),
      place_(std::move(place)),
      random_(new_seed()) {
  for (std::string& channel : channels) where_.emplace(std::move(channel), nullptr);
}

void Subscription::stop() {
  stopped_ = true;
  news_->notify();
  for (const SessionPtr& session : sessions_) close(*session);
}

Task<void> Subscription::run(std::shared_ptr<Subscription> self) {
  Subscription& s = *self;
  while (!s.stopped_) {
    s.retry_at_ = kNever;
    const std::uint64_t version = s.core_.directory.version();
    if (s.choose_mode()) s.assign();
    // The map changes elsewhere, on other threads: what is looked at twice a second is a number.
    while (!s.stopped_ && s.loop_.now_us() < s.retry_at_ &&
           version == s.core_.directory.version() && s.sharded_ == s.mode_()) {
      const std::shared_ptr<Waiters> news = s.news_ = std::make_shared<Waiters>();
      co_await news->wait_until(std::min(s.retry_at_, s.loop_.now_us() + 500 * kMillisecond));
    }
  }
}

// False if it is not known yet.
bool Subscription::choose_mode() {
  const std::optional<bool> mode = mode_();
  if (sharded_ && mode != sharded_) {  // servers were replaced by older or newer ones
    for (const SessionPtr& session : sessions_) close(*session);
    for (auto& [channel, session] : where_) {
      if (const SessionPtr old = session) lose(old, channel);
    }
  }
  sharded_ = mode;
  if (!mode) wake(loop_.now_us() + 50 * kMillisecond);
  return mode.has_value() && !stopped_;
}

// Brings every channel to where it belongs.
void Subscription::assign() {
  std::map<std::string, std::vector<std::string>> wanted;
  for (auto& [channel, session] : where_) {
    const std::string held = session ? session->address : "";
    const std::string address = place_(channel, held, *sharded_);
    if (session && (address == held || address.empty())) continue;
    if (session) {
      const SessionPtr old = session;
      queue(*old, encode({*sharded_ ? "SUNSUBSCRIBE" : "UNSUBSCRIBE", channel}));
      lose(old, channel);
      if (stopped_) return;
    }
    if (!address.empty()) {
      wanted[address].push_back(channel);
    } else {
      wake(loop_.now_us() + 50 * kMillisecond);
    }
  }
  for (const auto& [address, channels] : wanted) {
    const auto open = std::ranges::find_if(
        sessions_, [&](const SessionPtr& s) { return !s->closed && s->address == address; });
    SessionPtr session = open == sessions_.end() ? nullptr : *open;
    const bool fresh = !session;
    if (fresh) {
      session = std::make_shared<Session>();
      session->address = address;
      sessions_.insert(session);
    }
    for (const std::string& channel : channels) where_[channel] = session;
    request(*session, channels);
    if (fresh && !core_.group.load()->spawn(serve(shared_from_this(), session))) {
      sessions_.erase(session);
    }
    if (stopped_) return;
  }
  for (const SessionPtr& session : sessions_) {
    const bool used =
        std::ranges::any_of(where_, [&](const auto& entry) { return entry.second == session; });
    if (!used) close(*session);
  }
}

// Channels of a cluster's shard go slot by slot: one command must not name several.
void Subscription::request(Session& session, const std::vector<std::string>& channels) {
  std::map<std::uint32_t, std::vector<std::string>> groups;
  for (const std::string& channel : channels) {
    groups[*sharded_ ? slot_of(channel) : 0].push_back(channel);
  }
  for (auto& [slot, group] : groups) {
    std::vector<std::string> command = {*sharded_ ? "SSUBSCRIBE" : "SUBSCRIBE"};
    command.insert(command.end(), group.begin(), group.end());
    session.requested.push_back(std::move(group));
    queue(session, encode(command));
  }
}

void Subscription::queue(Session& session, std::string_view bytes) {
  session.queued += bytes;
  if (session.idle) std::exchange(session.idle, nullptr)->notify();
}

void Subscription::close(Session& session) {
  if (std::exchange(session.closed, true)) return;
  if (session.peer) session.peer->stream->shutdown();
  if (session.idle) std::exchange(session.idle, nullptr)->notify();
}

Task<void> Subscription::write(SessionPtr session) {
  while (!session->closed) {
    if (session->queued.empty()) {
      const std::shared_ptr<Waiters> idle = session->idle = std::make_shared<Waiters>();
      co_await idle->wait();
      continue;
    }
    session->writing = std::exchange(session->queued, {});
    const auto written = co_await session->peer->stream->write_all(session->writing);
    if (!written) close(*session);
  }
}

// From connecting until the connection is lost.
Task<void> Subscription::serve(std::shared_ptr<Subscription> self, SessionPtr session) {
  const TimeUs limit = self->loop_.now_us() + self->core_.options.connect_timeout_us;
  auto peer = co_await self->core_.dialer.dial(session->address, 3, false, limit);
  std::string why;
  if (!peer) {
    why = peer.error().message;
  } else if (!session->closed) {
    session->peer = std::make_unique<Peer>(std::move(*peer));
    if (!self->core_.group.load()->spawn(write(session))) close(*session);
    self->tick(session);
    why = co_await self->read(session);
  }
  close(*session);
  self->loop_.cancel(session->timer);
  self->ended(session, why);
}

// Returns why it ended.
Task<std::string> Subscription::read(SessionPtr session) {
  while (!session->closed) {
    const auto reply = co_await session->peer->receive();
    if (session->closed) break;
    if (!reply) co_return reply.error().message;
    session->heard_at = loop_.now_us();
    if (stopped_) break;
    std::size_t consumed = 0;
    std::string problem;
    const auto message = wire::parse_reply(*reply, consumed, problem);
    if (message) problem = take(session, *message);
    if (!problem.empty()) co_return problem;
  }
  co_return "";
}

// "" or why the connection is of no use.
std::string Subscription::take(const SessionPtr& session, const wire::Reply& message) {
  if (message.type == wire::Reply::Type::error) return refused(*session, message.text);
  if (message.elements.size() < 3) return {};
  const std::string& kind = message.elements[0].text;
  const std::string& channel = message.elements[1].text;
  const auto found = where_.find(channel);
  const bool ours = found != where_.end() && found->second == session;
  if (kind == "message" || kind == "smessage") {
    if (ours && session->live.contains(channel)) {
      to_.on_message(channel, message.elements[2].text);
    }
  } else if (kind == "subscribe" || kind == "ssubscribe") {
    if (!session->requested.empty()) {
      std::erase(session->requested.front(), channel);
      if (session->requested.front().empty()) session->requested.pop_front();
    }
    if (ours && session->live.insert(channel).second) {
      session->was_live = true;
      backoff_.reset();
      to_.on_subscribed(channel);
    }
  } else if ((kind == "unsubscribe" || kind == "sunsubscribe") && ours &&
             session->live.contains(channel)) {
    core_.directory.trouble();  // the slot has moved: the server takes it from us
    lose(session, channel);
    wake(loop_.now_us() + backoff_.next(random_));
  }
  return {};
}

// The answer to the oldest command that has none. Answers come in order.
std::string Subscription::refused(Session& session, std::string_view error) {
  const Refusal refusal = parse_refusal(error, session.address);
  if (refusal.kind == Refusal::Kind::none || session.requested.empty()) return std::string(error);
  const std::vector<std::string> channels = std::move(session.requested.front());
  session.requested.pop_front();
  if (refusal.kind == Refusal::Kind::moved) {
    core_.directory.moved(refusal.slot, refusal.address);
  } else {
    core_.directory.trouble();
  }
  for (const std::string& channel : channels) {
    const auto found = where_.find(channel);
    if (found != where_.end() && found->second.get() == &session) found->second = nullptr;
  }
  wake(loop_.now_us() + backoff_.next(random_));
  return {};
}

void Subscription::ended(const SessionPtr& session, const std::string& why) {
  sessions_.erase(session);
  if (stopped_) return;
  if (!why.empty() && why != complaint_) core_.log("subscription: " + why);
  complaint_ = session->was_live ? "" : why;
  if (core_.options.url.kind != Url::Kind::single) core_.directory.trouble();
  bool any = false;
  for (auto& [channel, holder] : where_) {
    if (holder != session) continue;
    any = true;
    lose(session, channel);
    if (stopped_) return;
  }
  if (any) wake(session->was_live ? loop_.now_us() : loop_.now_us() + backoff_.next(random_));
}

void Subscription::lose(const SessionPtr& session, const std::string& channel) {
  where_[channel] = nullptr;
  if (session->live.erase(channel) > 0) to_.on_lost(channel);
}

// run() looks again then, at the latest.
void Subscription::wake(TimeUs at) {
  retry_at_ = std::min(retry_at_, at);
  news_->notify();
}

// The server is pinged, so that the loss of a silent connection is noticed.
void Subscription::tick(const SessionPtr& session) {
  const TimeUs now = loop_.now_us();
  if (session->closed) return;
  if (session->heard_at == 0) session->heard_at = now;
  if (now - session->heard_at > kSilentProbes * core_.options.probe_us) {
    close(*session);
    return;
  }
  queue(*session, "*1\r\n$4\r\nPING\r\n");
  session->timer = loop_.call_at(now + core_.options.probe_us, [this, session] { tick(session); });
}

}  // namespace larder::engine::redis
