#include <sys/resource.h>

#include <csignal>
#include <filesystem>
// larder serve: runs a node until SIGINT or SIGTERM.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "commands.h"
#include "server/instance.h"

namespace larder::app {
namespace {

// "redis-cli -h 127.0.0.1 -p 7379", for an address as it was bound.
std::string redis_cli(const std::string& address) {
  if (address.starts_with("unix:")) return fmt::format("redis-cli -s {}", address.substr(5));
  const std::size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  if (host.starts_with('[')) host = host.substr(1, host.size() - 2);
  if (host == "*" || host == "0.0.0.0" || host == "::" || host.empty()) host = "127.0.0.1";
  const std::string port = address.substr(colon + 1);
  return host == "127.0.0.1" ? fmt::format("redis-cli -p {}", port)
                             : fmt::format("redis-cli -h {} -p {}", host, port);
}

// A key of the first cache, to try: product:1.
std::string example_command(const config::Config& config) {
  if (config.caches.empty()) return "SET hello world";
  const policy::KeyPattern& pattern = config.caches.front().key;
  std::vector<std::string_view> values;
  for (const policy::KeyParam& param : pattern.params())
    values.push_back(param.type == policy::ParamType::integer ? "1"
                     : param.type == policy::ParamType::uuid
                         ? "00000000-0000-0000-0000-000000000001"
                         : "a");
  const auto key = pattern.render(values);
  return key ? "GET " + *key : "PING";
}

// Every client is a descriptor; the usual soft limit is below max_clients.
void allow_descriptors() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) spdlog::warn("cannot raise the limit of open files");
}

constexpr const char* kDefaultFile = "larder.toml";

int serve(const std::string& file) {
  std::signal(SIGPIPE, SIG_IGN);  // whoever reads our log may leave
  allow_descriptors();
  config::Config config;
  if (!file.empty()) {
    auto loaded = load_or_complain(file);
    if (!loaded) return kUsage;
    config = std::move(*loaded);
  } else {
    spdlog::info("no --config and no ./{}: a plain cache on the defaults, nothing is declared",
                 kDefaultFile);
  }
  auto instance =
      server::Instance::start(config, [](const std::string& line) { spdlog::warn("{}", line); });
  if (!instance) {
    spdlog::error("cannot start: {}", text_of(instance.error()));
    return instance.error().code == ErrorCode::config ? kUsage : kFailed;
  }
  server::Instance& larder = **instance;
  larder.stop_on_signals();
  const auto& addresses = larder.addresses();
  spdlog::info("larder {} serves RESP on {}, {} thread{}, near tier {} MiB", LARDER_VERSION,
               fmt::join(addresses, ", "), larder.runtime().size(),
               larder.runtime().size() == 1 ? "" : "s", config.near.capacity_bytes >> 20);
  for (std::size_t i = 0; i < config.caches.size(); ++i)
    spdlog::info("cache {} ({}): {}", config.caches[i].name, config.caches[i].key.text(),
                 larder.node().guarantee(i));
  if (!larder.admin_address().empty())
    spdlog::info("health, metrics and status on http://{}/", larder.admin_address());
  if (!addresses.empty())
    spdlog::info("try: {} {}{}", redis_cli(addresses.front()),
                 config.node.requirepass.empty() ? "" : "--askpass ", example_command(config));
  larder.wait();
  spdlog::info("stopped");
  return kDone;
}

}  // namespace

void register_serve(CLI::App& app, Run& run) {
  auto* const sub = app.add_subcommand("serve", "Run a node until Ctrl-C or SIGTERM");
  auto* const file = sub->add_option("-c,--config",
                                     "Configuration (TOML); without it ./larder.toml, "
                                     "or, if there is none, a plain cache on the defaults")
                         ->type_name("FILE");
  sub->footer(
      "Example:\n"
      "  larder serve --config larder.toml &\n"
      "  redis-cli -p 7379 GET product:7\n"
      "  curl http://127.0.0.1:7380/readyz");
  sub->callback([file, &run] {
    std::error_code ignored;
    const std::string name = file->count() > 0 ? file->as<std::string>()
                             : std::filesystem::exists(kDefaultFile, ignored) ? kDefaultFile
                                                                              : "";
    run = [name] { return serve(name); };
  });
}

}  // namespace larder::app
