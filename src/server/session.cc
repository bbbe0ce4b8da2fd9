#include "server/session.h"

#include <cstring>

namespace larder::server {
namespace {

// Before AUTH a stranger may not make us hold much (as Redis).
wire::Limits limits_before_login(wire::Limits limits) {
  limits.max_arguments = std::min<std::size_t>(limits.max_arguments, 10);
  limits.max_bulk_bytes = std::min<std::size_t>(limits.max_bulk_bytes, 16 << 10);
  return limits;
}

// "GET" in any case.
bool is_get(std::string_view name) {
  return name.size() == 3 && (name[0] | 0x20) == 'g' && (name[1] | 0x20) == 'e' &&
         (name[2] | 0x20) == 't';
}

constexpr std::size_t kKeepOutputBytes = 256 << 10;

}  // namespace

Session::Session(SessionContext& context, std::unique_ptr<net::Stream> stream)
    : context_(context),
      stream_(std::move(stream)),
      has_caches_(!context.node->caches().empty()),
      peer_(std::make_shared<Peer>(context.clients->next_id(), stream_->peer(), stream_->local(),
                                   stream_->fd(), *Loop::current(), monotonic_now_us(),
                                   context.limits.push_bytes, *this)),
      parser_(context.password.empty() ? context.limits.wire
                                       : limits_before_login(context.limits.wire)),
      parser_is_limited_(!context.password.empty()),
      table_(CommandTable::instance()),
      get_row_(table_.find("get")),
      client_row_(table_.find("client")),
      authenticated_(context.password.empty()) {
  update_ready();
  context_.clients->add(peer_);
}

Session::~Session() = default;

void Session::update_ready() {
  const bool in_channels =
      std::ranges::any_of(subscriptions_, [](const auto& names) { return !names.empty(); });
  // Whoever watches, or has selected another database, reads from the engine alone.
  ready_ = authenticated_ && !in_multi_ && !tracking_.on && own_ == nullptr &&
           reply_mode_ == ReplyMode::on && (writer_.protocol() == 3 || !in_channels);
}

// Room for the next read behind end_: grows for a command that does not fit, but never faster than
// its bytes come, whatever size it announces.
void Session::reserve_input() {
  if (begin_ == end_) begin_ = end_ = 0;
  const std::size_t standard = context_.limits.input_bytes;
  if (input_capacity_ == 0) {
    input_ = std::make_unique_for_overwrite<char[]>(standard);
    input_capacity_ = standard;
  }
  if (begin_ == end_ && input_capacity_ > standard) {
    input_ = std::make_unique_for_overwrite<char[]>(standard);
    input_capacity_ = standard;
    return;
  }
  if (input_capacity_ - end_ >= standard / 4) return;
  const std::size_t held = end_ - begin_;
  if (held <= input_capacity_ / 2 && input_capacity_ - held >= standard / 4) {
    std::memmove(input_.get(), input_.get() + begin_, held);
  } else {
    const std::size_t wanted = std::max(parser_.wants() + 512, held + standard);
    const std::size_t capacity = std::min(wanted, std::max(2 * input_capacity_, 2 * standard));
    auto larger = std::make_unique_for_overwrite<char[]>(std::max(capacity, held + standard / 2));
    input_capacity_ = std::max(capacity, held + standard / 2);
    std::memcpy(larger.get(), input_.get() + begin_, held);
    input_ = std::move(larger);
  }
  begin_ = 0;
  end_ = held;
}

void Session::apply_reply_mode(std::size_t before) {
  if (reply_mode_ == ReplyMode::on) return;
  out_.resize(before);
  if (reply_mode_ == ReplyMode::skip_this)
    reply_mode_ = ReplyMode::on;
  else if (reply_mode_ == ReplyMode::skip_next)
    reply_mode_ = ReplyMode::skip_this;
  update_ready();
}

Task<void> Session::run() {
  while (!closing_ && !context_.group->stopping()) {
    reserve_input();
    reading_ = true;
    const auto got = co_await stream_->read_some(input_.get() + end_, input_capacity_ - end_);
    reading_ = false;
    if (!got || *got == 0) break;
    end_ += *got;
    now_ = monotonic_now_us();
    std::uint64_t commands = 0;
    auto status = wire::CommandParser::Status::incomplete;
    while (!closing_ && begin_ < end_) {
      status = parser_.next({input_.get() + begin_, end_ - begin_});
      if (status != wire::CommandParser::Status::complete) break;
      ++commands;
      const Args args = parser_.args();
      if (ready_ && args.size() == 2 && is_get(args[0]) && flights_.empty() &&
          answer_near(args[1])) {
        current_ = get_row_;
      } else if (context_.passed != nullptr && fly(args)) {
        // Its answer comes with those around it.
      } else if (!flights_.empty()) {
        co_await land();
        --commands;
        continue;  // with the same command, which is not consumed
      } else {
        std::size_t before = out_.size();
        if (!run_now(args)) {
          // What is answered already need not wait for a load.
          if (!out_.empty() || pushes_waiting_) co_await flush();
          before = out_.size();
          co_await run_later(*current_, args);
          now_ = monotonic_now_us();
        }
        apply_reply_mode(before);
      }
      begin_ += parser_.consumed();
      constexpr std::size_t kKeepArguments = 1'024;
      if (args.size() > kKeepArguments)  // its vectors would stay with an idle client
        parser_ = wire::CommandParser(context_.limits.wire);
      if (parser_is_limited_ && authenticated_) {
        parser_ = wire::CommandParser(context_.limits.wire);
        parser_is_limited_ = false;
      }
      if (out_.size() >= context_.limits.output_soft_bytes) {
        co_await flush();
        now_ = monotonic_now_us();  // the client may have let us wait
      }
    }
    if (!flights_.empty()) co_await land();
    if (status == wire::CommandParser::Status::error) {
      error("ERR " + parser_.error());
      closing_ = true;
    }
    context_.stats.commands.fetch_add(commands, std::memory_order_relaxed);
    context_.stats.input_bytes.fetch_add(*got, std::memory_order_relaxed);
    peer_->last_active.store(now_, std::memory_order_relaxed);
    peer_->last_command.store(current_, std::memory_order_relaxed);
    if (!pushing_ && !pushes_waiting_ && !broken_ && !out_.empty()) {
      // The usual end of a batch, without a coroutine.
      const auto written = stream_->write_now(out_);
      if (written && *written == out_.size()) {
        context_.stats.output_bytes.fetch_add(out_.size(), std::memory_order_relaxed);
        out_.clear();
      } else if (written) {
        out_.erase(0, *written);
      } else {
        broken_ = true;
      }
    }
    if (!out_.empty() || pushes_waiting_ || pushing_) co_await flush();
    if (out_.capacity() > kKeepOutputBytes) {
      out_.clear();
      out_.shrink_to_fit();
    }
    if (broken_) break;
  }
  co_await end();
}

Task<void> Session::end() {
  closing_ = true;
  end_tracking();
  unsubscribe_all();
  own_.reset();
  peer_->detach();
  context_.clients->remove(peer_->id);
  stream_->shutdown();
  if (pushing_) co_await pushed_->wait();
}

// Writes everything, pushes behind answers. The client that does not read keeps us here, and so
// unread: that is the backpressure.
Task<void> Session::flush() {
  while (!broken_) {
    if (pushing_) {
      yield_to_run_ = true;
      co_await pushed_->wait();
      yield_to_run_ = false;
      continue;
    }
    std::size_t pushed = 0;
    if (pushes_waiting_) {
      pushes_waiting_ = false;
      const std::size_t before = out_.size();
      peer_->take_pushes(out_);
      pushed = out_.size() - before;
    }
    if (out_.empty()) co_return;
    const auto written = stream_->write_now(out_);
    if (!written) {
      broken_ = closing_ = true;
      co_return;
    }
    if (*written < out_.size()) {
      const std::string_view rest = std::string_view(out_).substr(*written);
      const auto wrote_rest = co_await stream_->write_all(rest);
      if (!wrote_rest) broken_ = closing_ = true;
    }
    context_.stats.output_bytes.fetch_add(out_.size(), std::memory_order_relaxed);
    if (pushed > 0) peer_->sent(pushed);
    out_.clear();
  }
}

void Session::on_pushes() {
  if (!reading_ || pushing_) {
    pushes_waiting_ = true;
    return;
  }
  peer_->take_pushes(pushes_);
  const auto written = stream_->write_now(pushes_);
  if (!written) {
    on_kill();
    return;
  }
  peer_->sent(*written);
  context_.stats.output_bytes.fetch_add(*written, std::memory_order_relaxed);
  pushes_.erase(0, *written);
  if (pushes_.empty()) return;
  pushing_ = true;
  pushed_.emplace();
  if (context_.group->spawn(write_pushes())) return;
  pushing_ = false;
  on_kill();
}

Task<void> Session::write_pushes() {
  while (!pushes_.empty() && !broken_) {
    const auto written = co_await stream_->write_all(pushes_);
    peer_->sent(pushes_.size());
    pushes_.clear();
    if (!written) {
      on_kill();
      break;
    }
    // Within a command nothing more is pushed: the invalidation of what it reads must not come
    // before its answer. run() sends what waits.
    if (yield_to_run_ || !reading_) break;
    pushes_waiting_ = false;
    peer_->take_pushes(pushes_);
  }
  pushing_ = false;
  pushed_->notify();
}

void Session::on_kill() {
  closing_ = broken_ = true;
  stream_->shutdown();
}

void Session::on_finish() {
  closing_ = true;
  if (reading_ && !pushing_) stream_->shutdown();
}

}  // namespace larder::server
