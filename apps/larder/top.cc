// larder top: who answers how many requests, now.
#include <fmt/format.h>
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <map>
#include <thread>

#include "commands.h"
#include "remote.h"

namespace larder::app {
namespace {

constexpr int kTimeoutS = 10;

struct Options {
  std::string admin = "127.0.0.1:7380";
  double interval_s = 1;
  int rounds = 0;  // 0: until Ctrl-C
};

// cache -> tier -> reads
using Reads = std::map<std::string, std::map<std::string, double>>;

struct Sample {
  Reads reads;
  double clients = 0;
  double near_bytes = 0;
  double near_capacity = 0;
  double commands = 0;
};

std::string label(std::string_view labels, std::string_view name) {
  const std::string wanted = fmt::format("{}=\"", name);
  const std::size_t at = labels.find(wanted);
  if (at == std::string_view::npos) return {};
  const std::string_view rest = labels.substr(at + wanted.size());
  return std::string(rest.substr(0, rest.find('"')));
}

Sample parse(std::string_view text) {
  Sample sample;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    const std::size_t space = line.rfind(' ');
    if (line.starts_with('#') || space == std::string_view::npos) continue;
    double value = 0;
    std::from_chars(line.data() + space + 1, line.data() + line.size(), value);
    const std::string_view name = line.substr(0, std::min(line.find('{'), space));
    if (name == "larder_requests_total" && label(line, "op") == "get")
      sample.reads[label(line, "cache")][label(line, "tier")] = value;
    else if (name == "larder_connected_clients")
      sample.clients = value;
    else if (name == "larder_near_bytes")
      sample.near_bytes = value;
    else if (name == "larder_near_capacity_bytes")
      sample.near_capacity = value;
    else if (name == "larder_commands_total")
      sample.commands = value;
  }
  return sample;
}

double count(const Reads& reads, const std::string& cache, const std::string& tier) {
  const auto tiers = reads.find(cache);
  if (tiers == reads.end()) return 0;
  const auto found = tiers->second.find(tier);
  return found == tiers->second.end() ? 0 : found->second;
}

void print(const Sample& now, const Sample& before, double seconds) {
  const double commands = (now.commands - before.commands) / seconds;
  fmt::print("{:.0f} clients, {:.0f} commands/s, near tier {:.1f} of {:.1f} MiB\n", now.clients,
             commands, now.near_bytes / 1048576, now.near_capacity / 1048576);
  fmt::print("{:<24}{:>12}{:>8}{:>12}{:>12}{:>10}{:>10}\n", "cache", "reads/s", "hit %", "near/s",
             "source/s", "stale/s", "errors/s");
  for (const auto& entry : now.reads) {
    const std::string& name = entry.first;
    const auto rate = [&](const std::string& tier) {
      return (count(now.reads, name, tier) - count(before.reads, name, tier)) / seconds;
    };
    const double near = rate("near") + rate("engine");
    const double all = near + rate("source") + rate("stale") + rate("error");
    fmt::print("{:<24}{:>12.0f}{:>8.1f}{:>12.0f}{:>12.0f}{:>10.0f}{:>10.0f}\n", name, all,
               all > 0 ? 100 * near / all : 0.0, near, rate("source"), rate("stale"),
               rate("error"));
  }
  (void)std::fflush(stdout);
}

int top(const Options& options) {
  Sample before;
  const bool terminal = isatty(STDOUT_FILENO) == 1;
  for (int round = 0; options.rounds == 0 || round <= options.rounds; ++round) {
    const auto text = admin_get(options.admin, "/metrics", kTimeoutS);
    if (!text) {
      fmt::print(stderr, "{}\n", text_of(text.error()));
      return kFailed;
    }
    const Sample now = parse(*text);
    if (round > 0) {
      if (terminal) fmt::print("\033[H\033[2J");
      print(now, before, options.interval_s);
    }
    before = now;
    if (options.rounds == 0 || round < options.rounds)
      std::this_thread::sleep_for(std::chrono::duration<double>(options.interval_s));
  }
  return kDone;
}

}  // namespace

void register_top(CLI::App& app, Run& run) {
  auto* const sub = app.add_subcommand("top", "Show requests by cache and tier, once a second");
  const auto options = std::make_shared<Options>();
  sub->add_option("-a,--admin", options->admin, "The admin address of the node")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  sub->add_option("-i,--interval", options->interval_s, "Seconds between two lines")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  sub->add_option("-n,--rounds", options->rounds, "End after so many; 0: at Ctrl-C")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  sub->footer("Example:\n  larder top --admin 127.0.0.1:7380 -n 5");
  sub->callback([options, &run] { run = [options] { return top(*options); }; });
}

}  // namespace larder::app
