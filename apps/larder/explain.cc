// larder explain, larder warm: LARDER.EXPLAIN and LARDER.WARM for people and scripts.
#include <fmt/format.h>

#include <boost/json.hpp>
#include <cstdlib>

#include "commands.h"
#include "remote.h"

namespace larder::app {
namespace {

namespace json = boost::json;

constexpr int kTimeoutS = 10;
constexpr int kWarmTimeoutS = 3600;

struct Target {
  std::string address = "127.0.0.1:7379";
  bool as_json = false;
};

void add_target(CLI::App& sub, Target& target) {
  sub.add_option("-a,--address", target.address,
                 "Where the node listens; a password is taken from "
                 "LARDER_PASSWORD")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  sub.add_flag("--json", target.as_json, "One JSON object on stdout");
}

// Calls, and prints the map that comes back.
int print_map(const Target& target, const std::vector<std::string>& command, int timeout_s) {
  const char* const password = std::getenv("LARDER_PASSWORD");
  auto remote = Remote::connect(target.address, password != nullptr ? password : "", timeout_s);
  if (!remote) {
    fmt::print(stderr, "{}\n", text_of(remote.error()));
    return kFailed;
  }
  const auto reply = remote->call(command);
  if (!reply) {
    fmt::print(stderr, "{}\n", text_of(reply.error()));
    return kFailed;
  }
  if (reply->type == wire::Reply::Type::error) {
    fmt::print(stderr, "{}\n", reply->text);
    return kFailed;
  }
  json::object object;
  const auto& elements = reply->elements;
  for (std::size_t i = 0; i + 1 < elements.size(); i += 2) {
    const wire::Reply& value = elements[i + 1];
    const bool number = value.type == wire::Reply::Type::integer;
    if (!target.as_json)
      fmt::print("{:<20} {}\n", elements[i].text,
                 number ? std::to_string(value.integer) : value.text);
    else if (number)
      object[elements[i].text] = value.integer;
    else
      object[elements[i].text] = value.text;
  }
  if (target.as_json) fmt::print("{}\n", json::serialize(object));
  return kDone;
}

}  // namespace

void register_explain(CLI::App& app, Run& run) {
  auto* const sub = app.add_subcommand("explain", "Say what a running node knows about a key");
  const auto target = std::make_shared<Target>();
  const auto key = std::make_shared<std::string>();
  sub->add_option("key", *key, "The key")->required()->type_name("KEY");
  add_target(*sub, *target);
  sub->footer("Example:\n  larder explain product:7");
  sub->callback([target, key, &run] {
    run = [target, key] { return print_map(*target, {"LARDER.EXPLAIN", *key}, kTimeoutS); };
  });
}

void register_warm(CLI::App& app, Run& run) {
  auto* const sub = app.add_subcommand("warm", "Load the keys of a cache's `warm` statement");
  const auto target = std::make_shared<Target>();
  const auto cache = std::make_shared<std::string>();
  const auto limit = std::make_shared<std::string>();
  sub->add_option("cache", *cache, "Name of the cache")->required()->type_name("CACHE");
  sub->add_option("n", *limit, "At most so many keys")->type_name("N");
  add_target(*sub, *target);
  sub->footer("Example:\n  larder warm product 1000");
  sub->callback([target, cache, limit, &run] {
    run = [target, cache, limit] {
      std::vector<std::string> command{"LARDER.WARM", *cache};
      if (!limit->empty()) command.push_back(*limit);
      return print_map(*target, command, kWarmTimeoutS);
    };
  });
}

}  // namespace larder::app
