// What the tests of feeds share: a client without anything clever (each call connects anew), whose
// subscription the test itself plays; and actions that write down what they are asked to do.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/redis/client.h"
#include "feed/intake.h"
#include "net/runtime.h"

namespace larder::feed {

class PlainDedicated final : public engine::redis::Dedicated {
 public:
  explicit PlainDedicated(std::unique_ptr<net::Stream> stream) : stream_(std::move(stream)) {}
  Task<Result<void>> send(std::string bytes) override {
    Result<void> sent = co_await stream_->write_all(bytes);
    co_return sent;
  }
  Task<Result<engine::redis::Answer>> receive(TimeUs /*deadline*/) override {
    for (;;) {
      std::size_t consumed = 0;
      std::string error;
      if (wire::parse_reply(buffer_, consumed, error)) {
        engine::redis::Answer answer{buffer_.substr(0, consumed)};
        buffer_.erase(0, consumed);
        co_return answer;
      }
      char piece[4096];
      Result<std::size_t> got = co_await stream_->read_some(piece, sizeof piece);
      if (!got) co_return std::unexpected(got.error());
      if (*got == 0) co_return fail(ErrorCode::engine_down, "closed");
      buffer_.append(piece, *got);
    }
  }
  void shutdown() override { stream_->shutdown(); }
  int protocol() const override { return 2; }

 private:
  std::unique_ptr<net::Stream> stream_;
  std::string buffer_;
};

class PlainClient final : public engine::redis::Client {
 public:
  // `address` "" : nothing can be reached.
  PlainClient(net::Runtime& runtime, std::string address)
      : runtime_(runtime), address_(std::move(address)) {}

  Task<void> run(TaskGroup& /*group*/) override { co_return; }
  Task<Result<engine::redis::Answer>> call(engine::redis::Route route,
                                           std::vector<std::string> args,
                                           TimeUs deadline) override {
    auto connection = co_await dedicate(route, deadline);
    if (!connection) co_return std::unexpected(connection.error());
    const std::vector<std::string_view> words(args.begin(), args.end());
    std::string bytes;
    wire::write_command(bytes, words);
    Result<void> sent = co_await (*connection)->send(std::move(bytes));
    if (!sent) co_return std::unexpected(sent.error());
    Result<engine::redis::Answer> answer = co_await (*connection)->receive(deadline);
    co_return answer;
  }
  Task<Result<engine::redis::Answer>> forward(engine::redis::Route, std::string, TimeUs) override {
    co_return fail(ErrorCode::unsupported, "forward");
  }
  Task<Result<engine::redis::Answer>> eval(const Script& script, std::vector<std::string> keys,
                                           std::vector<std::string> args, bool /*repeatable*/,
                                           TimeUs deadline) override {
    std::vector<std::string> words{"EVAL", std::string(script.text), std::to_string(keys.size())};
    words.insert(words.end(), keys.begin(), keys.end());
    words.insert(words.end(), args.begin(), args.end());
    Result<engine::redis::Answer> answer = co_await call({}, std::move(words), deadline);
    co_return answer;
  }
  Task<Result<std::unique_ptr<engine::redis::Dedicated>>> dedicate(engine::redis::Route,
                                                                   TimeUs deadline) override {
    if (address_.empty()) co_return fail(ErrorCode::engine_down, "there is none");
    auto stream = co_await runtime_.connect(address_, deadline);
    if (!stream) co_return std::unexpected(stream.error());
    co_return std::unique_ptr<engine::redis::Dedicated>(
        std::make_unique<PlainDedicated>(std::move(*stream)));
  }
  void subscribe(std::vector<std::string> channels, bool sharded,
                 engine::redis::Subscriber& to) override {
    EXPECT_FALSE(sharded);
    subscribed = std::move(channels);
    subscriber = &to;
  }
  Task<void> unsubscribe(engine::redis::Subscriber& from) override {
    EXPECT_EQ(subscriber, &from);
    subscriber = nullptr;
    co_return;
  }
  bool cluster() const override { return false; }
  bool sharded_channels() const override { return false; }
  bool up() const override { return true; }
  std::string server_version() const override { return {}; }
  std::vector<engine::redis::ServerInfo> nodes() const override { return {}; }

  std::vector<std::string> subscribed;
  engine::redis::Subscriber* subscriber = nullptr;

 private:
  net::Runtime& runtime_;
  const std::string address_;
};

// Thread-safe. A test waits for what is to be done; the time limit only ends a broken one.
class Deeds {
 public:
  Actions actions() {
    return {.declared = [](std::string_view key) { return key.starts_with("user:"); },
            .apply =
                [this](std::vector<std::string> keys, std::vector<std::string> tags) {
                  return apply(std::move(keys), std::move(tags));
                },
            .everything = [this] { return everything(); }};
  }

  // Calls fail so often from now on.
  void fail_next(int calls) {
    const std::scoped_lock lock(mutex_);
    failures_ = calls;
  }
  // Calls of apply wait until release().
  void hold() {
    const std::scoped_lock lock(mutex_);
    gate_ = std::make_shared<Waiters>();
  }
  void release() {
    std::shared_ptr<Waiters> gate;
    {
      const std::scoped_lock lock(mutex_);
      gate = std::exchange(gate_, nullptr);
    }
    gate->notify();
  }

  template <class Condition>
  [[nodiscard]] bool wait(Condition&& holds) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(60), [&] { return holds(*this); });
  }
  [[nodiscard]] bool wait_for_keys(const std::vector<std::string>& wanted) {
    return wait([&](Deeds& d) {
      const std::set<std::string> seen(d.keys.begin(), d.keys.end());
      return std::ranges::all_of(wanted, [&](const auto& key) { return seen.contains(key); });
    });
  }
  [[nodiscard]] bool wait_for_everything(int times) {
    return wait([&](Deeds& d) { return d.everythings >= times; });
  }

  // Under wait(), or when the feed has ended.
  std::vector<std::string> keys, tags;  // in the order in which they were made void
  int applications = 0;                 // calls of apply that began
  int everythings = 0;

 private:
  Task<Result<void>> apply(std::vector<std::string> some_keys, std::vector<std::string> some_tags) {
    std::shared_ptr<Waiters> gate;
    {
      const std::scoped_lock lock(mutex_);
      ++applications;
      gate = gate_;
    }
    changed_.notify_all();
    if (gate) co_await gate->wait();
    const std::scoped_lock lock(mutex_);
    changed_.notify_all();
    if (failures_ > 0) {
      --failures_;
      co_return fail(ErrorCode::engine_down, "not now");
    }
    keys.insert(keys.end(), some_keys.begin(), some_keys.end());
    tags.insert(tags.end(), some_tags.begin(), some_tags.end());
    co_return Result<void>{};
  }
  Task<Result<void>> everything() {
    const std::scoped_lock lock(mutex_);
    changed_.notify_all();
    if (failures_ > 0) {
      --failures_;
      co_return fail(ErrorCode::engine_down, "not now");
    }
    ++everythings;
    co_return Result<void>{};
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  int failures_ = 0;
  std::shared_ptr<Waiters> gate_;
};

// What a counter of feed "events" says.
inline std::uint64_t counted(const obs::Registry& metrics, std::string_view name,
                             std::string_view label) {
  std::uint64_t out = 0;
  metrics.each_counter(name, [&](const obs::Labels& labels, std::uint64_t value) {
    for (const auto& [key, text] : labels)
      if (key != "feed" && text == label) out += value;
  });
  return out;
}

inline Spec user_spec() {
  Spec spec;
  spec.name = "events";
  spec.rule = {.match = {{{"type"}, "user"}}, .key = *Template::parse("user:{id}"), .tag = {}};
  return spec;
}

}  // namespace larder::feed
