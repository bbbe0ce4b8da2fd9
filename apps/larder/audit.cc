// larder audit: LARDER.AUDIT for people and scripts.
#include <fmt/format.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "commands.h"
#include "remote.h"

namespace larder::app {
namespace {

namespace json = boost::json;

constexpr int kTimeoutS = 600;

struct Options {
  std::string address = "127.0.0.1:7379";
  int sample = 100;
  bool as_json = false;
  bool watch = false;
  double interval_s = 5;
  int rounds = 0;
};

std::string text(const json::object& from, std::string_view name) {
  const json::value* value = from.if_contains(name);
  return value != nullptr && value->is_string() ? std::string(value->as_string()) : std::string();
}

double number(const json::object& from, std::string_view name) {
  const json::value* value = from.if_contains(name);
  return value != nullptr && value->is_number() ? value->to_number<double>() : 0;
}

const json::array& list(const json::object& from, std::string_view name) {
  static const json::array none;
  const json::value* value = from.if_contains(name);
  return value != nullptr && value->is_array() ? value->as_array() : none;
}

std::string age(double ms) {
  if (ms < 1'000) return fmt::format("{:.0f} ms", ms);
  return ms < 120'000 ? fmt::format("{:.1f} s", ms / 1'000)
                      : fmt::format("{:.0f} min", ms / 60'000);
}

// "99.9995 (5.3)": enough places to tell the nines; ">2.5" where nothing was stale.
std::string consistent(const json::object& at, double checked) {
  if (checked == 0) return "-";
  const json::value* at_least = at.if_contains("at_least");
  const bool none = at_least != nullptr && at_least->is_bool() && at_least->as_bool();
  const double percent = 100 * number(at, "consistent");
  return fmt::format("{} ({}{:.1f})", none ? "100" : fmt::format("{:.7g}", percent),
                     none ? ">" : "", number(at, "nines"));
}

// Rows of equal width; the first column is left aligned.
void print_table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths(rows.front().size());
  for (const auto& row : rows)
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  for (const auto& row : rows) {
    fmt::print("{:<{}}", row[0], widths[0]);
    for (std::size_t i = 1; i < row.size(); ++i) fmt::print("  {:>{}}", row[i], widths[i]);
    fmt::print("\n");
  }
}

// The entries that were stale.
double stale_in(const json::object& report) {
  double stale = 0;
  for (const json::value& cache : list(report, "caches"))
    if (const json::array& ages = list(cache.as_object(), "stale"); !ages.empty())
      stale += number(ages.front().as_object(), "entries");
  return stale;
}

double skipped_in(const json::object& report) {
  double skipped = 0;
  for (const json::value& cache : list(report, "caches"))
    skipped += number(cache.as_object(), "skipped");
  return skipped;
}

void print_report(const json::object& report) {
  std::vector<std::vector<std::string>> rows{{"cache", "checked", "stale"}};
  const json::array& ages = list(report, "ages");
  for (std::size_t i = 1; i < ages.size(); ++i)
    rows[0].push_back("after " + std::string(ages[i].as_string()));
  for (const char* name : {"violations", "repaired", "skipped"}) rows[0].emplace_back(name);
  for (const json::value& a : ages)
    rows[0].push_back(fmt::format("% ok at {}", std::string_view(a.as_string())));
  for (const json::value& one : list(report, "caches")) {
    const json::object& cache = one.as_object();
    const double checked = number(cache, "checked");
    std::vector<std::string> row{text(cache, "cache"), fmt::format("{:.0f}", checked)};
    for (const json::value& at : list(cache, "stale"))
      row.push_back(fmt::format("{:.0f}", number(at.as_object(), "entries")));
    for (const char* name : {"violations", "repaired", "skipped"})
      row.push_back(fmt::format("{:.0f}", number(cache, name)));
    for (const json::value& at : list(cache, "stale"))
      row.push_back(consistent(at.as_object(), checked));
    rows.push_back(std::move(row));
  }
  print_table(rows);
  for (const json::value& one : list(report, "findings")) {
    const json::object& found = one.as_object();
    const json::value* violation = found.if_contains("violation");
    fmt::print("\n{} ({}): stale for at least {}, at most {}{}; repair: {}\n  {}\n",
               text(found, "key"), text(found, "tiers"), age(number(found, "stale_ms")),
               age(number(found, "entry_age_ms")),
               violation != nullptr && violation->is_bool() && violation->as_bool()
                   ? ", against the guarantee"
                   : "",
               text(found, "repair"), text(found, "cause"));
    for (const json::value& step : list(found, "steps"))
      fmt::print("    {}\n", std::string_view(step.as_string()));
  }
  if (const std::string problem = text(report, "problem"); !problem.empty())
    fmt::print("\nnot all could be compared: {}\n", problem);
  (void)std::fflush(stdout);
}

int failed(const std::string& problem) {
  fmt::print(stderr, "{}\n", problem);
  return kFailed;
}

int audit(const Options& options) {
  const char* const password = std::getenv("LARDER_PASSWORD");
  auto remote = Remote::connect(options.address, password != nullptr ? password : "", kTimeoutS);
  if (!remote) return failed(text_of(remote.error()));
  const bool terminal = isatty(STDOUT_FILENO) == 1;
  double before = 0;
  double stale = 0;
  double skipped = 0;
  for (int round = 0; round == 0 || (options.watch && round != options.rounds); ++round) {
    if (round > 0) std::this_thread::sleep_for(std::chrono::duration<double>(options.interval_s));
    const auto reply =
        remote->call({"LARDER.AUDIT", options.watch ? "STATUS" : std::to_string(options.sample)});
    if (!reply) return failed(text_of(reply.error()));
    if (reply->type == wire::Reply::Type::error) return failed(reply->text);
    boost::system::error_code ec;
    const json::value parsed = json::parse(reply->text, ec);
    if (ec || !parsed.is_object()) return failed("the node's answer is no JSON object");
    const json::object& report = parsed.as_object();
    if (options.watch && terminal && !options.as_json) fmt::print("\033[H\033[2J");
    if (options.as_json)
      fmt::print("{}\n", reply->text);
    else
      print_report(report);
    (void)std::fflush(stdout);
    stale = stale_in(report);
    skipped = skipped_in(report);
    if (options.watch && round == 0) before = stale;
  }
  return stale > before || (!options.watch && skipped > 0) ? kFailed : kDone;
}

}  // namespace

void register_audit(CLI::App& app, Run& run) {
  auto* const sub = app.add_subcommand(
      "audit", "Compare entries of a running node with their sources, and repair what differs");
  const auto options = std::make_shared<Options>();
  sub->add_option("-a,--address", options->address,
                  "Where the node listens; a password is taken from LARDER_PASSWORD")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  sub->add_option("-s,--sample", options->sample, "How many entries")
      ->check(CLI::Range(1, 100'000))
      ->type_name("N")
      ->capture_default_str();
  sub->add_flag("-w,--watch", options->watch,
                "Show what the node has audited by itself since it started, again and again; "
                "asks no source");
  sub->add_option("-i,--interval", options->interval_s, "Seconds between two looks of --watch")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  sub->add_option("-n,--rounds", options->rounds, "End --watch after so many; 0: at Ctrl-C")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  sub->add_flag("--json", options->as_json, "One JSON object a line on stdout");
  sub->footer(
      "Each entry is read as a reader would get it, its row is loaded, and the entry is read "
      "again:\n"
      "only if the same entry is there still, and is not what the source says, it is stale. What "
      "is\n"
      "stale is looked at once more a second later, and repaired: the next read loads it.\n\n"
      "  checked     entries that were compared\n"
      "  stale       of those, differed from the source\n"
      "  after 1m    ... and have done so for at least a minute\n"
      "  violations  ... and the cache's guarantee excludes it (`larder config check` names it);\n"
      "              the rest is allowed: a change on its way, a TTL without a feed\n"
      "  skipped     the source did not answer for them\n"
      "  % ok at 1m  share that was not stale for a minute (and its nines; > : none was stale, so\n"
      "              more than that with 95 % confidence: a larger sample says more)\n\n"
      "Below the table: each stale entry, the reason, and the last steps of its key.\n\n"
      "Examples:\n"
      "  larder audit --sample 1000\n"
      "  larder audit --json | jq '.findings'\n"
      "  larder audit --watch\n\n"
      "Exit codes: 0 nothing was stale (with --watch: while it ran), 1 something was, or could not "
      "be\n"
      "compared, 2 wrong usage.");
  sub->callback([options, &run] { run = [options] { return audit(*options); }; });
}

}  // namespace larder::app
