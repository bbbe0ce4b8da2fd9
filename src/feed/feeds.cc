#include "feed/feeds.h"

namespace larder::feed {

Feeds::~Feeds() = default;

Result<std::unique_ptr<Feeds>> Feeds::create(std::vector<Spec> specs, const Parts& parts) {
  std::unique_ptr<Feeds> feeds(new Feeds(std::move(specs)));
  for (const Spec& spec : feeds->specs_) {
    auto& client = feeds->clients_[spec.url];
    if (!client) {
      auto url = engine::redis::parse_url(spec.url);
      if (!url) return std::unexpected(url.error());
      engine::redis::Options options{.url = std::move(*url)};
      if (parts.log)
        options.log = [log = parts.log, name = spec.name](const std::string& line) {
          log(fmt::format("feed {}: {}", name, line));
        };
      auto created = engine::redis::Client::create(*parts.runtime, std::move(options));
      if (!created) return std::unexpected(created.error());
      client = std::move(*created);
    }
    const Actions actions = parts.actions(spec);
    if (spec.stream.empty())
      feeds->channels_.push_back(
          std::make_unique<ChannelFeed>(spec, *client, actions, *parts.metrics, parts.log));
    else
      feeds->streams_.push_back(std::make_unique<StreamFeed>(
          spec, fmt::format("{}:{{feed:{}}}", parts.name_space, spec.name), *client, actions,
          *parts.metrics, parts.log));
  }
  return feeds;
}

void Feeds::start() {
  for (const auto& [url, client] : clients_) connections_.spawn(client->run(connections_));
  for (const auto& channel : channels_) feeds_.spawn(channel->run(feeds_));
  for (const auto& stream : streams_) feeds_.spawn(stream->run(feeds_));
}

Task<void> Feeds::stop() {
  feeds_.stop();
  for (const auto& channel : channels_) channel->wake();
  for (const auto& stream : streams_) stream->wake();
  co_await feeds_.join();
  connections_.stop();
  co_await connections_.join();
}

}  // namespace larder::feed
