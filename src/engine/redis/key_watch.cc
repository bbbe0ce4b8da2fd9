#include "engine/redis/key_watch.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>

#include "engine/redis/plain.h"

namespace larder::engine::redis {
namespace {

// The servers may be others: looked at this often, and when somebody begins to wait.
constexpr DurationUs kLookEvery = 50 * kMillisecond;
constexpr DurationUs kRetryEvery = 100 * kMillisecond;

std::string command(std::vector<std::string_view> args) {
  std::string bytes;
  wire::write_command(bytes, args);
  return bytes;
}

}  // namespace

std::set<std::string> KeyWatch::wanted_addresses() const {
  std::set<std::string> wanted;
  if (options_.wanted && !options_.wanted()) return wanted;
  for (const ServerInfo& node : client_.nodes())
    if (node.primary) wanted.insert(node.address);
  return wanted;
}

Task<void> KeyWatch::run(TaskGroup& group) {
  for (;;) {
    look(group);
    const bool stopping = co_await group.sleep_until(monotonic_now_us() + kLookEvery);
    if (stopping) break;
  }
  for (const auto& post : posts_) post->over = true;
}

void KeyWatch::look(TaskGroup& group) {
  std::set<std::string> wanted = wanted_addresses();
  std::erase_if(posts_, [&](const auto& post) {
    post->over = wanted.erase(post->address) == 0;
    return post->over;
  });
  for (const std::string& address : wanted) {
    const auto& post = posts_.emplace_back(std::make_shared<Post>(address));
    group.spawn(watch(group, post));
  }
  judge();
}

// Up while every primary is watched.
void KeyWatch::judge() {
  const bool all = !posts_.empty() && std::ranges::all_of(posts_, &Post::up);
  if (all == up()) return;
  if (all) {
    listener_.on_up();
    up_.store(true, std::memory_order_release);
    std::shared_ptr<Waiters> changed;
    {
      MutexLock lock(mutex_);
      changed = std::exchange(changed_, std::make_shared<Waiters>());
    }
    changed->notify();
  } else {
    up_.store(false, std::memory_order_release);
    listener_.on_down();
  }
}

Task<Result<void>> KeyWatch::wait_up(TimeUs deadline) {
  for (;;) {
    std::shared_ptr<Waiters> changed;
    {
      MutexLock lock(mutex_);
      changed = changed_;
    }
    if (up()) co_return Result<void>{};
    const bool came = co_await changed->wait_until(deadline);
    if (!came && !up())
      co_return fail(ErrorCode::engine_down, "the engine does not tell of changed keys now",
                     "redis");
  }
}

Task<void> KeyWatch::watch(TaskGroup& group, std::shared_ptr<Post> post) {
  while (!post->over && !group.stopping()) {
    const std::string why = co_await listen(group, post);
    const bool was_up = std::exchange(post->up, false);
    if (was_up && !post->over) {
      judge();
      if (options_.log)
        options_.log(
            fmt::format("{} does not tell of changed keys any more: {}", post->address, why));
    }
    const bool stopping = co_await group.sleep_until(monotonic_now_us() + kRetryEvery);
    if (stopping) break;
  }
}

// Until the connection is lost or silent; says why.
Task<std::string> KeyWatch::listen(TaskGroup& group, std::shared_ptr<Post> post) {
  const DurationUs bound = options_.bound_us;
  Route route{.node = post->address, .protocol = 3, .own = true};
  auto made = co_await client_.dedicate(std::move(route), monotonic_now_us() + bound);
  if (!made) co_return made.error().message;
  const std::unique_ptr<Dedicated> own = std::move(*made);
  if (own->protocol() != 3)
    co_return "it does not speak RESP3 (HELLO 3), in which alone changes are told: allow HELLO";
  std::vector<std::string_view> begin{"CLIENT", "TRACKING", "ON", "BCAST"};
  for (const std::string& prefix : options_.prefixes) {
    begin.push_back("PREFIX");
    begin.push_back(prefix);
  }
  TimeUs proven = monotonic_now_us();  // all that was changed before this has been told
  auto sent = co_await own->send(command(std::move(begin)));
  if (!sent) co_return sent.error().message;
  std::deque<TimeUs> pings{proven};  // sent and not answered; the first is TRACKING itself
  TimeUs next_ping = proven + bound / 5;
  while (!post->over && !group.stopping()) {
    if (monotonic_now_us() >= next_ping) {
      pings.push_back(monotonic_now_us());
      next_ping = pings.back() + bound / 5;
      sent = co_await own->send(command({"PING"}));
      if (!sent) co_return sent.error().message;
    }
    const TimeUs until = std::min(next_ping, proven + bound);
    Result<Answer> answer = co_await own->receive(until);
    if (!answer && answer.error().code != ErrorCode::timeout) co_return answer.error().message;
    if (answer && answer->bytes.starts_with('>')) {
      if (post->up) hear(answer->bytes);  // before that, nothing is held
    } else if (answer) {
      if (answer->is_error()) co_return std::string(answer->error());
      if (pings.empty()) co_return "it answers what it was not asked";
      proven = pings.front();
      pings.pop_front();
      if (!post->up) {
        post->up = true;
        judge();
      }
    }
    if (monotonic_now_us() >= proven + bound) co_return "it is silent";
  }
  co_return "it is not watched any more";
}

void KeyWatch::hear(std::string_view push) {
  if (!up()) return;
  const auto parts = elements_of(push);
  if (parts.size() != 2 || parts[0] != "$10\r\ninvalidate\r\n") return;
  if (!parts[1].starts_with('*')) return listener_.on_flush();
  std::vector<std::string_view> keys;
  for (std::string_view element : elements_of(parts[1])) {
    const std::size_t header = element.find("\r\n");
    element.remove_prefix(header + 2);
    element.remove_suffix(2);
    keys.push_back(element);
  }
  listener_.on_changed(keys);
}

}  // namespace larder::engine::redis
