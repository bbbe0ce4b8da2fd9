// larder source prepare: what a source needs so that changes by others are seen.
#include <fmt/format.h>

#include "cache/node.h"
#include "commands.h"
#include "source/sqlite/prepare.h"
#include "source/sqlite/sqlite.h"

namespace larder::app {
namespace {

struct Options {
  std::string file = "larder.toml";
  std::string name;
  bool dry_run = false;
};

int complain(const Error& error) {
  fmt::print(stderr, "{}\n", text_of(error));
  return error.code == ErrorCode::config ? kUsage : kFailed;
}

int prepare(const Options& options) {
  namespace sqlite = source::sqlite;
  const auto config = load_or_complain(options.file);
  if (!config) return kUsage;
  const auto spec = std::ranges::find(config->sources, options.name, &cache::SourceSpec::name);
  if (spec == config->sources.end()) {
    fmt::print(stderr, "{} declares no [source.{}]\n", options.file, options.name);
    return kUsage;
  }
  if (spec->url.starts_with("postgres")) {
    fmt::print("nothing to do: source {} is PostgreSQL, which this version prepares nothing in\n",
               spec->name);
    return kDone;
  }
  const auto path = sqlite::path_of_url(spec->url);
  if (!path) return complain(path.error());
  const auto watched = cache::Node::watched_tables(config->caches, spec->name);
  if (watched.empty()) {
    fmt::print("nothing to do: no cache of source {} has depends_on\n", spec->name);
    return kDone;
  }
  const auto plan = sqlite::plan(*path, watched);
  if (!plan) return complain(plan.error());
  if (plan->empty()) {
    fmt::print("nothing to do: {} is prepared\n", spec->display_url);
    return kDone;
  }
  if (options.dry_run) {
    for (const std::string& statement : *plan) fmt::print("{};\n", statement);
    return kDone;
  }
  const auto applied = sqlite::apply(*path, watched);
  if (!applied) return complain(applied.error());
  fmt::print("prepared {}: {} statement{}; changes by anyone are now seen\n", spec->display_url,
             plan->size(), plan->size() == 1 ? "" : "s");
  return kDone;
}

}  // namespace

void register_source_prepare(CLI::App& app, Run& run) {
  auto* const group = app.add_subcommand("source", "Work on a source");
  group->require_subcommand(1);
  group->footer("Example:\n  larder source prepare --config larder.toml shop");
  auto* const sub = group->add_subcommand(
      "prepare", "Give a source the change table and triggers that its caches' depends_on need");
  const auto options = std::make_shared<Options>();
  sub->add_option("-c,--config", options->file, "Configuration (TOML)")
      ->type_name("FILE")
      ->capture_default_str();
  sub->add_option("name", options->name, "Name of the source")->required()->type_name("NAME");
  sub->add_flag("--dry-run", options->dry_run, "Print the SQL, change nothing");
  sub->footer(
      "Example:\n"
      "  larder source prepare --config larder.toml shop --dry-run   shows the SQL\n"
      "  larder source prepare --config larder.toml shop             runs it, in one "
      "transaction\n\n"
      "Repeatable: what is there already stays. Without it, changes by others show only when an\n"
      "entry's ttl ends.");
  sub->callback([options, &run] { run = [options] { return prepare(*options); }; });
}

}  // namespace larder::app
