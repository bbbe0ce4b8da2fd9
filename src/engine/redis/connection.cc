#include "engine/redis/connection.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "wire/resp.h"

namespace larder::engine::redis {
namespace {

constexpr std::size_t kBufferBytes = 16u << 10;
constexpr std::size_t kKeptBytes = 1u << 20;  // a larger buffer is given back when it is empty

std::unexpected<Error> down(const std::string& address, std::string_view why) {
  return fail(ErrorCode::engine_down, fmt::format("{}: {}", address, why));
}

std::string_view error_of(std::string_view reply) {
  if (reply.empty() || reply[0] != '-') return {};
  return reply.substr(1, reply.size() - 3);
}

// "7.0.15" behind "redis_version:" (INFO).
std::string field(std::string_view text, std::string_view name) {
  const std::size_t at = text.find(name);
  if (at == std::string_view::npos) return {};
  text.remove_prefix(at + name.size());
  return std::string(text.substr(0, text.find('\r')));
}

}  // namespace

std::string encode(const std::vector<std::string>& args) {
  const std::vector<std::string_view> views(args.begin(), args.end());
  std::string out;
  wire::write_command(out, views);
  return out;
}

// ---- ReplyBuffer ----

ReplyBuffer::ReplyBuffer(std::size_t max_reply_bytes)
    : scanner_({.max_arguments = std::max<std::size_t>(1 << 20, max_reply_bytes / 4),
                .max_bulk_bytes = max_reply_bytes,
                .max_command_bytes = max_reply_bytes}) {}

std::span<char> ReplyBuffer::space() {
  const std::size_t held = end_ - begin_;
  if (held == 0 && capacity_ > kKeptBytes) capacity_ = 0;
  if (held == 0) begin_ = end_ = 0;
  const std::size_t needed = std::max(held + kBufferBytes / 2, wants_);
  if (capacity_ - begin_ < needed || capacity_ == 0) {
    // To the front, into a larger one if need be: doubled, so that a reply of many parts is moved
    // a few times only.
    const std::size_t size =
        needed <= capacity_ ? capacity_ : std::max({kBufferBytes, needed, 2 * held});
    if (size == capacity_) {
      std::memmove(bytes_.get(), bytes_.get() + begin_, held);
    } else {
      auto larger = std::make_unique_for_overwrite<char[]>(size);
      if (held > 0) std::memcpy(larger.get(), bytes_.get() + begin_, held);
      bytes_ = std::move(larger);
      capacity_ = size;
    }
    begin_ = 0;
    end_ = held;
  }
  return {bytes_.get() + end_, capacity_ - end_};
}

std::optional<std::string_view> ReplyBuffer::next() {
  const std::string_view held(bytes_.get() + begin_, end_ - begin_);
  wants_ = 0;
  if (held.empty()) return std::nullopt;
  if (scanner_.next(held) != wire::ReplyScanner::Status::complete) {
    wants_ = scanner_.wants();
    return std::nullopt;
  }
  begin_ += scanner_.consumed();
  return held.substr(0, scanner_.consumed());
}

// ---- Peer, Alarm ----

Task<Result<std::string>> Peer::receive() {
  for (;;) {
    if (const auto reply = buffer.next()) co_return std::string(*reply);
    if (!buffer.error().empty()) co_return down(stream->peer(), buffer.error());
    const std::span<char> space = buffer.space();
    const auto size = co_await stream->read_some(space.data(), space.size());
    if (!size) co_return fail(ErrorCode::engine_down, size.error().message);
    if (*size == 0) co_return down(stream->peer(), "the server has closed the connection");
    buffer.filled(*size);
  }
}

Alarm::Alarm(net::Stream& stream, TimeUs deadline) : loop_(*Loop::current()) {
  if (deadline == kNever) return;
  timer_ = loop_.call_at(deadline, [this, &stream] {
    rang_ = true;
    timer_ = 0;
    stream.shutdown();
  });
}

// ---- Dialer ----

Error Dialer::explain(const std::string& address, std::string_view answer) const {
  std::string advice;
  if (answer.starts_with("NOAUTH")) {
    advice = "; put user and password into the engine's URL: redis://user:password@host:port";
  } else if (answer.starts_with("WRONGPASS") || answer.contains("invalid password")) {
    advice = fmt::format("; correct the password of '{}' in the engine's URL",
                         url_.user.empty() ? "default" : url_.user);
  } else if (answer.starts_with("NOPERM")) {
    advice = fmt::format("; grant it: ACL SETUSER {} on ~* &* +@all",
                         url_.user.empty() ? "default" : url_.user);
  } else if (answer.contains("DB index")) {
    advice = fmt::format("; there is no database {}: see `databases` in the server's configuration",
                         url_.database);
  } else if (answer.contains("max number of clients")) {
    advice = "; see `maxclients` in the server's configuration";
  }
  return {ErrorCode::engine_down, fmt::format("{}: {}{}", address, answer, advice), "redis"};
}

Task<Result<Peer>> Dialer::open(std::string address, TimeUs deadline) const {
  Result<std::unique_ptr<net::Stream>> stream;
  if (tls_) {
    stream = co_await net::connect_tls(runtime_, address, tls_, deadline);
  } else {
    stream = co_await runtime_.connect(address, deadline);
  }
  if (stream) co_return Peer{.stream = std::move(*stream), .buffer = ReplyBuffer(max_bytes_)};
  Error error = std::move(stream.error());
  if (error.code == ErrorCode::io) error.code = ErrorCode::engine_down;
  co_return std::unexpected(std::move(error));
}

Task<Result<Peer>> Dialer::dial(std::string address, int protocol, bool readonly,
                                TimeUs deadline) const {
  auto peer = co_await open(address, deadline);
  if (!peer) co_return peer;
  Alarm alarm(*peer->stream, deadline);
  Login login{.user = url_.user,
              .password = url_.password,
              .database = url_.cluster() ? 0 : url_.database,
              .readonly = readonly};
  const auto greeted = co_await greet(*peer, address, protocol, std::move(login));
  if (alarm.rang()) {
    co_return fail(ErrorCode::timeout, fmt::format("{} does not answer HELLO in time", address));
  }
  if (!greeted) co_return std::unexpected(greeted.error());
  co_return peer;
}

Task<Result<Peer>> Dialer::dial_sentinel(std::string address, TimeUs deadline) const {
  auto peer = co_await open(address, deadline);
  if (!peer || url_.sentinel_password.empty()) co_return peer;
  Alarm alarm(*peer->stream, deadline);
  const std::string command = encode({"AUTH", url_.sentinel_password});
  const auto sent = co_await peer->stream->write_all(command);
  Result<std::string> answer;
  if (sent) answer = co_await peer->receive();
  if (alarm.rang()) co_return fail(ErrorCode::timeout, address + " does not answer AUTH in time");
  if (!sent) co_return fail(ErrorCode::engine_down, sent.error().message);
  if (!answer) co_return std::unexpected(answer.error());
  if (answer->starts_with('-')) co_return std::unexpected(explain(address, error_of(*answer)));
  co_return peer;
}

Task<Result<void>> Dialer::greet(Peer& peer, std::string address, int protocol, Login login) const {
  std::vector<std::string> hello = {"HELLO", std::to_string(protocol)};
  if (!login.user.empty() || !login.password.empty()) {
    hello.insert(hello.end(),
                 {"AUTH", login.user.empty() ? "default" : login.user, login.password});
  }
  hello.insert(hello.end(), {"SETNAME", "larder"});
  std::string bytes = encode(hello);
  const auto sent = co_await peer.stream->write_all(bytes);
  if (!sent) co_return down(address, sent.error().message);
  auto answer = co_await peer.receive();
  if (!answer) co_return std::unexpected(answer.error());
  const std::string_view refused = error_of(*answer);
  if (refused.starts_with("ERR unknown command") || refused.starts_with("NOPROTO")) {
    const auto old = co_await greet_old(peer, address, login);
    if (!old) co_return old;
  } else if (!refused.empty()) {
    co_return std::unexpected(explain(address, refused));
  } else {
    std::size_t consumed = 0;
    std::string problem;
    const auto reply = wire::parse_reply(*answer, consumed, problem);
    if (!reply) co_return down(address, problem);
    peer.protocol = protocol;
    for (std::size_t i = 0; i + 1 < reply->elements.size(); i += 2) {
      const wire::Reply& value = reply->elements[i + 1];
      if (reply->elements[i].text == "version") peer.version = value.text;
      if (reply->elements[i].text == "role") peer.primary = value.text == "master";
    }
  }

  std::vector<std::string> rest;
  if (login.database != 0) rest.push_back(encode({"SELECT", std::to_string(login.database)}));
  if (login.readonly) rest.push_back(encode({"READONLY"}));
  for (const std::string& command : rest) {
    const auto written = co_await peer.stream->write_all(command);
    if (!written) co_return down(address, written.error().message);
    const auto reply = co_await peer.receive();
    if (!reply) co_return std::unexpected(reply.error());
    if (reply->starts_with('-')) co_return std::unexpected(explain(address, error_of(*reply)));
  }
  co_return Result<void>();
}

// For servers before 6, and those that have HELLO renamed away.
Task<Result<void>> Dialer::greet_old(Peer& peer, std::string address, Login login) const {
  peer.protocol = 2;
  std::vector<std::string> commands;
  if (!login.password.empty()) {
    commands.push_back(login.user.empty() ? encode({"AUTH", login.password})
                                          : encode({"AUTH", login.user, login.password}));
  }
  commands.push_back(encode({"INFO", "server"}));
  commands.push_back(encode({"INFO", "replication"}));
  std::string info;
  for (const std::string& command : commands) {
    const auto written = co_await peer.stream->write_all(command);
    if (!written) co_return down(address, written.error().message);
    const auto reply = co_await peer.receive();
    if (!reply) co_return std::unexpected(reply.error());
    if (reply->starts_with('-')) co_return std::unexpected(explain(address, error_of(*reply)));
    info += *reply;
  }
  peer.version = field(info, "redis_version:");
  peer.primary = field(info, "role:") != "slave";
  co_return Result<void>();
}

// ---- Exchange ----

bool Exchange::await_suspend(std::coroutine_handle<> handle) {
  Connection& connection = connection_;
  LARDER_ASSERT(Loop::current() == &connection.loop_);
  if (connection.closed_) {
    fate_ = Fate::unsent;
    return false;
  }
  // One command may be larger than the bound, if it is alone.
  const std::size_t queued = connection.queued_.size();
  if (connection.slots_.size() >= connection.max_in_flight_ ||
      (queued > 0 && queued + bytes_.size() > connection.max_queued_bytes_)) {
    fate_ = Fate::overloaded;
    return false;
  }
  if (deadline_ <= connection.loop_.now_us()) {
    fate_ = Fate::timeout;
    return false;
  }
  handle_ = handle;
  if (asking_) connection.push(nullptr, "*1\r\n$6\r\nASKING\r\n");
  number_ = connection.first_ + connection.slots_.size();
  connection.push(this, bytes_);
  if (deadline_ != kNever) {
    timer_ = connection.loop_.call_at(deadline_, [this] {
      timer_ = 0;
      connection_.forget(number_);
      finish(Fate::timeout);
    });
  }
  return true;
}

void Exchange::finish(Fate fate) {
  connection_.loop_.cancel(timer_);
  fate_ = fate;
  handle_.resume();  // which ends this object
}

// ---- Connection ----

Connection::Connection(Peer peer, std::size_t max_in_flight, std::size_t max_queued_bytes)
    : loop_(*Loop::current()),
      peer_(std::move(peer)),
      max_in_flight_(max_in_flight),
      max_queued_bytes_(max_queued_bytes) {}

void Connection::push(Exchange* exchange, std::string_view bytes) {
  if (slots_.empty()) heard_at_ = loop_.now_us();
  queued_ += bytes;
  total_ += bytes.size();
  slots_.push_back({.exchange = exchange, .end = total_});
  wake_writer();
}

// Later in this turn: what others queue until then leaves with it.
void Connection::wake_writer() {
  if (!writer_) return;
  const std::coroutine_handle<> writer = std::exchange(writer_, nullptr);
  loop_.post([self = shared_from_this(), writer] { writer.resume(); });
}

Task<void> Connection::write(std::shared_ptr<Connection> self) {
  Connection& c = *self;
  while (!c.closed_) {
    if (c.queued_.empty()) {
      Wake wake{c};
      co_await wake;
      continue;
    }
    c.writing_.clear();
    if (c.writing_.capacity() > kKeptBytes) c.writing_.shrink_to_fit();
    c.writing_.swap(c.queued_);
    c.handed_ = c.total_;
    const auto written = co_await c.peer_.stream->write_all(c.writing_);
    if (!written) c.close();
  }
}

Task<std::string> Connection::read(std::shared_ptr<Connection> self) {
  Connection& c = *self;
  std::string why;
  while (why.empty()) {
    const std::span<char> space = c.peer_.buffer.space();
    const auto size = co_await c.peer_.stream->read_some(space.data(), space.size());
    if (!size) {
      why = size.error().message;
    } else if (*size == 0) {
      why = c.closed_ ? "shut down" : "the server has closed the connection";
    } else {
      c.peer_.buffer.filled(*size);
      c.heard_at_ = c.loop_.now_us();
      for (auto reply = c.peer_.buffer.next(); reply; reply = c.peer_.buffer.next()) {
        if (!c.deliver(*reply)) why = "an answer to nothing";
      }
      if (why.empty()) why = c.peer_.buffer.error();
    }
  }
  c.close();
  co_return why;
}

// False if nobody can have asked for it.
bool Connection::deliver(std::string_view reply) {
  if (reply[0] == '>') return true;  // nobody subscribes here
  if (slots_.empty()) return false;
  const Slot slot = slots_.front();
  slots_.pop_front();
  const std::uint64_t number = first_++;
  if (probed_at_ != 0 && number == probe_) {
    const DurationUs took = std::max<DurationUs>(1, heard_at_ - std::exchange(probed_at_, 0));
    latency_us_ = latency_us_ == 0 ? took : (7 * latency_us_ + took) / 8;
  }
  if (slot.exchange) {
    slot.exchange->reply.assign(reply);
    slot.exchange->finish(Fate::answered);
  }
  return true;
}

void Connection::close() {
  if (std::exchange(closed_, true)) return;
  peer_.stream->shutdown();
  wake_writer();
}

void Connection::fail() {
  LARDER_ASSERT(closed_);
  const std::deque<Slot> slots = std::exchange(slots_, {});
  first_ += slots.size();
  bool large = peer_.buffer.error().contains("too big") || peer_.buffer.error().contains("length");
  // Whoever is resumed may do anything but wait here: the connection is closed. Nobody else's slot
  // can be forgotten meanwhile, as no timer fires.
  for (const Slot& slot : slots) {
    const bool first = std::exchange(large, false);
    if (!slot.exchange) continue;
    slot.exchange->finish(slot.end > handed_ ? Fate::unsent : first ? Fate::too_large : Fate::lost);
  }
}

DurationUs Connection::probe() {
  const TimeUs now = loop_.now_us();
  if (closed_) return 0;
  if (!slots_.empty() && now - heard_at_ > 0 && probed_at_ != 0) return now - heard_at_;
  if (probed_at_ == 0) {
    probe_ = first_ + slots_.size();
    probed_at_ = now;
    push(nullptr, "*1\r\n$4\r\nPING\r\n");
  }
  return 0;
}

}  // namespace larder::engine::redis
