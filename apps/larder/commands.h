// The subcommands, one file each. A `register_` function declares its options and, when it is the
// one that was asked for, leaves in `run` what is to be done.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <optional>
#include <string>

#include "config/config.h"

namespace larder::app {

// Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
inline constexpr int kDone = 0;
inline constexpr int kFailed = 1;
inline constexpr int kUsage = 2;

using Run = std::function<int()>;

void register_serve(CLI::App& app, Run& run);
void register_demo(CLI::App& app, Run& run);
void register_config_check(CLI::App& app, Run& run);
void register_source_prepare(CLI::App& app, Run& run);
void register_explain(CLI::App& app, Run& run);
void register_warm(CLI::App& app, Run& run);
void register_audit(CLI::App& app, Run& run);
void register_journal(CLI::App& app, Run& run);
void register_top(CLI::App& app, Run& run);
void register_bench(CLI::App& app, Run& run);

// For people: without the code of the RESP error.
inline std::string text_of(const Error& error) {
  return error.origin.empty() ? error.message : error.message + " (" + error.origin + ")";
}

// Reads a configuration; prints what is wrong with it to stderr.
std::optional<config::Config> load_or_complain(const std::string& file);

}  // namespace larder::app
