#include "server/engine_facts.h"

#include <charconv>

#include "engine/redis/client.h"

namespace larder::server {
namespace {

constexpr DurationUs kPatience = 3 * kSecond;

// "name:value" of INFO.
std::string field(std::string_view info, std::string_view name) {
  const std::string wanted = std::string("\n") + std::string(name) + ":";
  const std::size_t at = info.find(wanted);
  if (at == std::string_view::npos) return {};
  info.remove_prefix(at + wanted.size());
  return std::string(info.substr(0, info.find_first_of("\r\n")));
}

std::uint64_t number(std::string_view text) {
  std::uint64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

Task<void> ask(engine::redis::Client& client, config::EngineFacts& facts) {
  const TimeUs deadline = Loop::current()->now_us() + kPatience;
  std::vector<std::string> args{"INFO"};
  auto info = co_await client.call({.repeatable = true}, std::move(args), deadline);
  if (!info || info->is_error()) {
    facts.problem = info ? std::string(info->error()) : info.error().message;
    co_return;
  }
  const std::string text = info->parse().text;
  facts.version = field(text, "valkey_version").empty() ? field(text, "redis_version")
                                                        : field(text, "valkey_version");
  facts.maxmemory_bytes = number(field(text, "maxmemory"));
  facts.maxmemory_policy = field(text, "maxmemory_policy");
  facts.saves = field(text, "aof_enabled") == "1";
  facts.replicas = number(field(text, "connected_slaves"));
  args = {"CONFIG", "GET", "save"};
  auto save = co_await client.call({.repeatable = true}, std::move(args), deadline);
  if (!save || save->is_error()) co_return;  // not allowed to: what INFO says must do
  const wire::Reply reply = save->parse();
  if (reply.elements.size() == 2 && !reply.elements[1].text.empty()) facts.saves = true;
}

}  // namespace

config::EngineFacts ask_engine(const config::Config& config) {
  config::EngineFacts facts;
  auto url = engine::redis::parse_url(config.engine.url);
  if (!url) return {.problem = url.error().message};
  const auto runtime = net::Runtime::create(1);
  auto client = engine::redis::Client::create(*runtime, {.url = std::move(*url)});
  if (!client) return {.problem = client.error().message};
  TaskGroup running;
  TaskGroup asking;
  const auto work = [](net::Runtime& runtime, engine::redis::Client& client, TaskGroup& running,
                       config::EngineFacts& facts) -> Task<void> {
    running.spawn(client.run(running));
    co_await ask(client, facts);
    running.stop();
    co_await running.join();
    runtime.stop();
  };
  runtime->loop(0).post([&] { asking.spawn(work(*runtime, **client, running, facts)); });
  runtime->run();
  return facts;
}

}  // namespace larder::server
