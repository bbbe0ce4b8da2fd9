// larder bench trace: what policies would miss of a recorded access trace.
#include <fmt/format.h>

#include <charconv>
#include <unordered_map>

#include "base/units.h"
#include "commands.h"
#include "trace/simulator.h"
#include "trace/trace_file.h"

namespace larder::app {
namespace {

constexpr std::uint64_t kMaxRequests = 4'000'000'000;  // they are numbered with 32 bits

struct Options {
  std::string file;
  std::string capacity;
  std::string unit = "entries";
  std::vector<std::string> policies{"larder"};
  bool as_json = false;
  std::uint64_t limit = 0;  // 0: all
};

struct Job {
  std::uint64_t capacity = 0;
  trace::Unit unit = trace::Unit::entries;
  std::vector<const trace::Policy*> policies;
};

std::string names_of_policies() {
  std::string names;
  for (const trace::Policy& policy : trace::policies())
    names += fmt::format("{}{}", names.empty() ? "" : ", ", policy.name);
  return names;
}

Result<std::uint64_t> capacity_of(const std::string& text, trace::Unit unit) {
  std::optional<std::uint64_t> capacity;
  if (unit == trace::Unit::bytes) {
    capacity = parse_size(text);
  } else {
    std::uint64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error == std::errc() && end == text.data() + text.size() && number <= kMaxSize)
      capacity = number;
  }
  if (!capacity || *capacity == 0)
    return fail(ErrorCode::config,
                fmt::format("--capacity '{}' is not a capacity in {}: write {}", text,
                            unit == trace::Unit::bytes ? "bytes" : "entries",
                            unit == trace::Unit::bytes ? "a size as 1048576, 64KB or 16MiB"
                                                       : "a number above 0, as 10000; for sizes "
                                                         "as 16MiB add --unit bytes"));
  return *capacity;
}

Result<Job> job_of(const Options& options) {
  Job job;
  job.unit = options.unit == "bytes" ? trace::Unit::bytes : trace::Unit::entries;
  auto capacity = capacity_of(options.capacity, job.unit);
  if (!capacity) return std::unexpected(capacity.error());
  job.capacity = *capacity;
  const auto fits = [&job](const trace::Policy& policy) {
    return job.unit == trace::Unit::bytes ? policy.for_bytes : policy.for_entries;
  };
  for (const std::string& name : options.policies) {
    if (name == "all") {
      for (const trace::Policy& policy : trace::policies())
        if (fits(policy)) job.policies.push_back(&policy);
      continue;
    }
    const trace::Policy* policy = trace::find_policy(name);
    if (policy == nullptr)
      return fail(ErrorCode::config, fmt::format("there is no policy '{}': choose from {}, or all",
                                                 name, names_of_policies()));
    if (!fits(*policy))
      return fail(ErrorCode::config,
                  fmt::format("policy '{}' needs --unit entries: with sizes take {}", name,
                              name == "opt" ? "pfoo-l, a bound" : "another one"));
    job.policies.push_back(policy);
  }
  return job;
}

void print_row(const Job& job, const trace::Policy& policy, std::uint64_t requests,
               std::uint64_t misses, bool as_json) {
  const std::string_view unit = job.unit == trace::Unit::bytes ? "bytes" : "entries";
  const double ratio = static_cast<double>(misses) / static_cast<double>(requests);
  if (as_json)
    fmt::print(
        "{{\"policy\": \"{}\", \"capacity\": {}, \"unit\": \"{}\", \"requests\": {}, "
        "\"misses\": {}, \"miss_ratio\": {:.6f}}}\n",
        policy.name, job.capacity, unit, requests, misses, ratio);
  else
    fmt::print("{:<13} {:>14} {:<8} {:>11} {:>11} {:>10.4f}\n", policy.name, job.capacity, unit,
               requests, misses, ratio);
}

Result<std::uint64_t> feed(const Options& options, const Job& job,
                           std::vector<std::unique_ptr<trace::Simulator>>& simulators) {
  auto file = trace::TraceFile::open(options.file);
  if (!file) return std::unexpected(file.error());
  std::unordered_map<std::uint32_t, std::uint32_t> numbers;  // keys as they first appear
  std::vector<trace::Request> batch;
  std::uint64_t requests = 0;
  while (options.limit == 0 || requests < options.limit) {
    const auto read = file->next();
    if (!read) return std::unexpected(read.error());
    if (read->empty()) break;
    batch.assign(read->begin(), read->end());
    if (options.limit != 0 && batch.size() > options.limit - requests)
      batch.resize(static_cast<std::size_t>(options.limit - requests));
    for (trace::Request& request : batch) {
      request.key = numbers.try_emplace(request.key, static_cast<std::uint32_t>(numbers.size()))
                        .first->second;
      request.size = job.unit == trace::Unit::bytes ? std::max(request.size, 1U) : 1;
    }
    for (const auto& simulator : simulators)
      for (const trace::Request& request : batch) simulator->access(request.key, request.size);
    requests += batch.size();
    if (requests > kMaxRequests)
      return fail(ErrorCode::io,
                  fmt::format("{} has more than {} requests: take a part with --limit",
                              options.file, kMaxRequests));
  }
  return requests;
}

int run_trace(const Options& options) {
  const auto job = job_of(options);
  if (!job) {
    fmt::print(stderr, "{}\n", text_of(job.error()));
    return kUsage;
  }
  std::vector<std::unique_ptr<trace::Simulator>> simulators;
  for (const trace::Policy* policy : job->policies)
    simulators.push_back(policy->make(job->capacity, job->unit));
  const auto requests = feed(options, *job, simulators);
  if (!requests) {
    fmt::print(stderr, "{}\n", text_of(requests.error()));
    return kFailed;
  }
  if (!options.as_json)
    fmt::print("{:<13} {:>14} {:<8} {:>11} {:>11} {:>10}\n", "policy", "capacity", "unit",
               "requests", "misses", "miss ratio");
  for (std::size_t i = 0; i < simulators.size(); ++i)
    print_row(*job, *job->policies[i], *requests, simulators[i]->misses(), options.as_json);
  return kDone;
}

}  // namespace

void register_bench(CLI::App& app, Run& run) {
  auto* const bench = app.add_subcommand("bench", "Measure policies against recorded traces");
  bench->require_subcommand(1);
  auto* const sub = bench->add_subcommand(
      "trace",
      "What a cache of some capacity would miss of a recorded trace, under Larder's policy and\n"
      "others. A trace is a file of requests, each two little-endian 32-bit numbers: key and size\n"
      "in bytes; plain, or compressed with zstd.");
  const auto options = std::make_shared<Options>();
  sub->add_option("file", options->file, "The trace")->required()->type_name("FILE");
  sub->add_option("--capacity", options->capacity,
                  "Entries as 10000; with --unit bytes, a size as 1048576 or 16MiB")
      ->required()
      ->type_name("N");
  sub->add_option("--unit", options->unit,
                  "What the capacity counts: every entry as 1, or the bytes of the values")
      ->check(CLI::IsMember({"entries", "bytes"}))
      ->capture_default_str();
  sub->add_option("--policy", options->policies, "One or more of the list below, or all")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("NAME,...")
      ->capture_default_str();
  sub->add_option("--limit", options->limit, "Only the first N requests")->type_name("N");
  sub->add_flag("--json", options->as_json, "One JSON object a line");
  std::string footer = "Policies:\n";
  for (const trace::Policy& policy : trace::policies())
    footer += fmt::format("  {:<13} {}{}\n", policy.name, policy.about,
                          policy.for_bytes ? "" : "; entries only");
  footer +=
      "\nA miss of an object counts as one, whatever its size. opt and pfoo-l keep the whole "
      "trace\n"
      "in memory, 12 bytes a request; the others some bytes a key. The controller looks at every "
      "key\n"
      "of a small cache here; a node looks at a sample, which a small cache may be too small "
      "for.\n\n"
      "Example:\n  larder bench trace orders.trace.zst --capacity 64MiB --unit bytes --policy all";
  sub->footer(footer);
  sub->callback([options, &run] { run = [options] { return run_trace(*options); }; });
}

}  // namespace larder::app
