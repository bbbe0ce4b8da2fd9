// larder: serve, check, prepare.
#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include "commands.h"

namespace larder::app {

std::optional<config::Config> load_or_complain(const std::string& file) {
  auto loaded = config::load_config_file(file);
  if (loaded) return std::move(*loaded);
  fmt::print(stderr, "{}", config::to_string(loaded.error()));
  return std::nullopt;
}

namespace {

int run(int argc, char** argv) {
  // Results go to stdout, everything else to stderr.
  spdlog::set_default_logger(spdlog::stderr_color_mt("larder"));
  spdlog::set_pattern("%Y-%m-%d %H:%M:%S.%e %^%l%$ %v");

  CLI::App app(
      "Larder: a caching tier for microservices that speaks the Redis protocol. Declare what\n"
      "is cached and where it comes from; Larder loads, writes, invalidates and keeps answering.",
      "larder");
  app.set_version_flag("--version", std::string("larder ") + LARDER_VERSION);
  app.require_subcommand(1);
  app.footer(
      "Examples:\n"
      "  larder demo                               see it at work in front of a database\n"
      "  larder serve                              a plain cache on 127.0.0.1:7379\n"
      "  larder serve --config larder.toml         with declared caches\n"
      "  larder config check larder.toml           what is wrong, and what each cache guarantees\n"
      "  redis-cli -p 7379 GET product:7           any Redis client can talk to it\n\n"
      "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.");
  Run chosen;
  register_serve(app, chosen);
  register_demo(app, chosen);
  register_config_check(app, chosen);
  register_source_prepare(app, chosen);
  register_explain(app, chosen);
  register_warm(app, chosen);
  register_audit(app, chosen);
  register_journal(app, chosen);
  register_top(app, chosen);
  register_bench(app, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? kDone : kUsage;
  }
  return chosen ? chosen() : kUsage;
}

}  // namespace
}  // namespace larder::app

int main(int argc, char** argv) {
  try {
    return larder::app::run(argc, argv);
  } catch (const std::exception& e) {
    std::fputs("larder: ", stderr);
    std::fputs(e.what(), stderr);
    std::fputs("\n", stderr);
    return larder::app::kFailed;
  }
}
