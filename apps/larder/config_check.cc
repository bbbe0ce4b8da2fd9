// larder config check: is the configuration right, and what does each cache guarantee?
#include <fmt/format.h>

#include <boost/json.hpp>

#include "cache/node.h"
#include "commands.h"
#include "config/check.h"
#include "server/engine_facts.h"
#include "server/sources.h"

namespace larder::app {
namespace {

namespace json = boost::json;

int report_problems(const std::vector<config::Problem>& problems, bool as_json) {
  if (!as_json) {
    fmt::print(stderr, "{}", config::to_string(problems));
    return kUsage;
  }
  json::array list;
  for (const config::Problem& problem : problems) {
    json::object one{{"file", problem.file},
                     {"line", problem.line},
                     {"column", problem.column},
                     {"message", problem.message}};
    if (!problem.suggestion.empty()) one["suggestion"] = problem.suggestion;
    list.push_back(std::move(one));
  }
  const json::object report{{"problems", std::move(list)}};
  fmt::print("{}\n", json::serialize(report));
  return kUsage;
}

int check(const std::string& file, bool as_json) {
  const auto loaded = config::load_config_file(file);
  if (!loaded) return report_problems(loaded.error(), as_json);
  const config::Config& config = *loaded;
  // The file is right; what a cache guarantees depends on its source, which has to be looked at.
  config::SourceCapabilities capabilities;
  int code = kDone;
  for (const cache::SourceSpec& spec : config.sources) {
    obs::Registry metrics;
    auto source = server::open_source(spec, config, metrics, {});
    if (source) {
      capabilities[spec.name] = (*source)->capabilities();
      continue;
    }
    code = std::max(code, source.error().code == ErrorCode::config ? kUsage : kFailed);
    fmt::print(stderr, "source {} cannot be used as it is: {}\n", spec.name,
               text_of(source.error()));
  }
  config::CheckReport report = config::check(config, capabilities);
  if (config.engine.url != "embedded:") {
    const config::EngineFacts facts = server::ask_engine(config);
    if (!facts.problem.empty()) code = std::max(code, static_cast<int>(kFailed));
    config::check_engine(facts, report.warnings);
  }
  fmt::print("{}{}", as_json ? config::to_json(report) : config::to_text(report),
             as_json ? "\n" : "");
  return code;
}

}  // namespace

void register_config_check(CLI::App& app, Run& run) {
  auto* const group = app.add_subcommand("config", "Look at a configuration");
  group->require_subcommand(1);
  group->footer("Example:\n  larder config check larder.toml");
  auto* const sub = group->add_subcommand(
      "check", "Report everything that is wrong; then what each cache guarantees");
  auto* const file = sub->add_option("file", "Configuration (TOML)")->type_name("FILE")->required();
  auto* const as_json = sub->add_flag("--json")->description("One JSON object on stdout");
  sub->footer(
      "Example:\n"
      "  larder config check larder.toml\n"
      "  larder config check --json larder.toml | jq .problems\n\n"
      "Exit codes: 0 right, 1 right but a source or the engine cannot be used now, 2 wrong.");
  sub->callback([file, as_json, &run] {
    run = [name = file->as<std::string>(), in_json = as_json->count() > 0] {
      return check(name, in_json);
    };
  });
}

}  // namespace larder::app
