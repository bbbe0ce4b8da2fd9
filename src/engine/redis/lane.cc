#include "engine/redis/lane.h"

#include <fmt/format.h>

#include <algorithm>

namespace larder::engine::redis {

Lane::Lane(Core& core, std::shared_ptr<Server> server, int protocol, bool readonly)
    : core_(core),
      server_(std::move(server)),
      protocol_(protocol),
      readonly_(readonly),
      random_(new_seed()) {
  begin_attempt();
}

void Lane::begin_attempt() {
  if (!attempt_) attempt_ = std::make_shared<Waiters>();
}

void Lane::end_attempt() {
  if (attempt_) std::exchange(attempt_, nullptr)->notify();
}

Task<Result<std::shared_ptr<Connection>>> Lane::connection(TimeUs deadline) {
  if (connection_ && !connection_->closed()) co_return connection_;
  if (connection_ && !stopped_) begin_attempt();  // which begins as soon as its reader has ended
  if (const std::shared_ptr<Waiters> attempt = attempt_) {
    const std::shared_ptr<Lane> self = shared_from_this();
    const bool ended = co_await attempt->wait_until(deadline);
    if (!ended) co_return fail(ErrorCode::timeout, "no connection to " + server_->address);
    if (connection_ && !connection_->closed()) co_return connection_;
  }
  co_return std::unexpected(last_error_);
}

Task<void> Lane::run(std::shared_ptr<Lane> self) {
  Lane& lane = *self;
  while (!lane.stopped_) {
    lane.begin_attempt();
    const TimeUs limit = Loop::current()->now_us() + lane.core_.options.connect_timeout_us;
    auto peer = co_await lane.core_.dialer.dial(lane.server_->address, lane.protocol_,
                                                lane.readonly_, limit);
    if (lane.stopped_) break;
    if (peer) {
      Peer greeted = std::move(*peer);
      co_await lane.serve(std::move(greeted));
    } else {
      lane.last_error_ = std::move(peer.error());
      lane.last_error_.code = ErrorCode::engine_down;
      if (++lane.server_->failures == 1) lane.core_.log(lane.last_error_.message);
      lane.end_attempt();
      if (lane.retired_) lane.leave();
    }
    // A connection that has answered something was a good one: the first attempt after it is not
    // delayed, and those who wait for it need not hear that there is none.
    if (lane.stopped_ || lane.attempt_) continue;
    const TimeUs until = Loop::current()->now_us() + lane.backoff_.next(lane.random_);
    co_await lane.stopping_->wait_until(until);
  }
}

// Until the connection is lost.
Task<void> Lane::serve(Peer peer) {
  connected(peer);
  connection_ = std::make_shared<Connection>(std::move(peer), core_.options.max_in_flight,
                                             core_.options.max_queued_bytes);
  const std::shared_ptr<Connection> connection = connection_;
  if (!core_.group.load()->spawn(Connection::write(connection))) connection->close();
  end_attempt();
  timer_ = Loop::current()->call_at(Loop::current()->now_us() + core_.options.probe_us,
                                    [this] { tick(); });
  const std::string why = co_await Connection::read(connection);
  Loop::current()->cancel(std::exchange(timer_, 0));
  connection_ = nullptr;
  lost(why);
  if (retired_ && !stopped_) {
    leave();
  } else if (connection->answers() > 0 && !stopped_) {
    backoff_.reset();
    begin_attempt();  // before anybody hears of the loss: who may try again waits for this
  } else {
    end_attempt();
  }
  connection->fail();
}

void Lane::connected(const Peer& peer) {
  server_->primary = peer.primary;
  server_->set_version(peer.version);
  server_->failures = 0;
  if (server_->connections++ == 0) {
    core_.log(fmt::format("{}: connected ({}, {})", server_->address, peer.version,
                          peer.primary ? "primary" : "replica"));
  }
}

void Lane::lost(const std::string& why) {
  last_error_ =
      Error{ErrorCode::engine_down, fmt::format("{}: {}", server_->address, why), "redis"};
  if (--server_->connections == 0 && !stopped_) {
    core_.log(fmt::format("{}: connection lost: {}", server_->address, why));
  }
}

void Lane::tick() {
  timer_ = 0;
  if (!connection_) return;
  if (retired_ && connection_->in_flight() == 0) {
    leave();
    return;
  }
  const DurationUs silent = connection_->probe();
  // A server that is silent is far away, until it answers: replicas are chosen by this.
  const DurationUs latency = std::max(silent, connection_->latency_us());
  if (latency > 0) server_->latency_us = latency;
  if (silent > kSilentProbes * core_.options.probe_us) {
    core_.log(fmt::format("{}: no answer for {} ms", server_->address, silent / kMillisecond));
    connection_->close();
    return;
  }
  timer_ = Loop::current()->call_at(Loop::current()->now_us() + core_.options.probe_us,
                                    [this] { tick(); });
}

void Lane::stop() { end({ErrorCode::cancelled, kShuttingDown, {}}); }

void Lane::retire() {
  retired_ = true;
  if (!connection_) leave();
}

// Who waits for it has somewhere else to go: the client goes on.
void Lane::leave() {
  end({ErrorCode::engine_down, server_->address + " does not belong to the engine any more",
       "redis"});
}

void Lane::end(Error why) {
  stopped_ = true;
  last_error_ = std::move(why);
  stopping_->notify();
  end_attempt();
  if (connection_) connection_->close();
}

void Lane::reconnect() {
  if (connection_) connection_->close();
}

}  // namespace larder::engine::redis
