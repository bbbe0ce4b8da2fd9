#include "commands.h"
#include "demo/demo.h"

namespace larder::app {

void register_demo(CLI::App& app, Run& run) {
  static DemoOptions options;
  CLI::App* demo = app.add_subcommand(
      "demo",
      "A cache tier at work: a SQLite shop, a node, readers, and somebody who changes prices");
  demo->add_option("--seconds", options.seconds, "How long the load runs before the story is told")
      ->check(CLI::Range(1, 3'600))
      ->capture_default_str();
  demo->add_flag("--keep", options.keep, "Go on afterwards, and say how to try it with redis-cli");
  demo->footer(
      "Needs nothing: the shop is made in a temporary folder and removed at the end.\n\n"
      "Examples:\n"
      "  larder demo                   20 seconds, then the story of one key\n"
      "  larder demo --seconds 5 --keep");
  demo->callback([&run] { run = [] { return run_demo(options); }; });
}

}  // namespace larder::app
