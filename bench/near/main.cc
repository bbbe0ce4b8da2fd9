// See bench/near.py, which runs this program and those of other languages, and shows the results.
#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>

#include "runner.h"
#include "workload.h"

namespace larder::bench {

benchmark::internal::Benchmark* registered(const std::string& name,
                                           void (*run)(benchmark::State&)) {
  auto* benchmark = new benchmark::internal::FunctionBenchmark(name.c_str(), run);
  // It is the library's from here on. NOLINTNEXTLINE(clang-analyzer-cplusplus.NewDeleteLeaks)
  return benchmark::internal::RegisterBenchmarkInternal(benchmark);
}

std::uint64_t resident_bytes() {
  unsigned long long size = 0;
  unsigned long long resident = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r"); file != nullptr) {
    if (std::fscanf(file, "%llu %llu", &size, &resident) != 2) resident = 0;
    std::fclose(file);
  }
  return resident * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

std::uint32_t clock_pair_ns() {
  using Clock = std::chrono::steady_clock;
  std::array<std::uint32_t, 1001> pairs{};
  for (auto& pair : pairs) {
    const auto start = Clock::now();
    pair = static_cast<std::uint32_t>((Clock::now() - start).count());
  }
  std::nth_element(pairs.begin(), pairs.begin() + pairs.size() / 2, pairs.end());
  return pairs[pairs.size() / 2];
}

void Samples::add(benchmark::State& state, std::vector<std::uint32_t>&& samples) {
  const std::scoped_lock lock(mutex_);
  samples_.insert(samples_.end(), samples.begin(), samples.end());
  if (++threads_ < state.threads()) return;
  std::sort(samples_.begin(), samples_.end());
  const auto at = [this](double share) {
    return static_cast<double>(
        samples_[static_cast<std::size_t>(share * static_cast<double>(samples_.size()))]);
  };
  state.counters["p50_ns"] = at(0.5);
  state.counters["p99_ns"] = at(0.99);
  state.counters["p999_ns"] = at(0.999);
  samples_.clear();
  threads_ = 0;
}

namespace {

using Add = void (*)(const Flags&);

const std::map<std::string, Add>& systems() {
  static const std::map<std::string, Add> all = {
      {"larder", add_larder},
      {"mutex_lru", add_lru},
#ifdef NEAR_BENCH_BOOST
      {"boost_flat_map", add_boost_flat_map},
#endif
#ifdef NEAR_BENCH_TBB
      {"tbb_hash_map", add_tbb_hash_map},
#endif
#ifdef NEAR_BENCH_ROCKSDB
      {"rocksdb_hyperclock", add_rocksdb_hyperclock},
      {"rocksdb_lru", add_rocksdb_lru},
#endif
  };
  return all;
}

[[noreturn]] void usage(std::string_view what) {
  fmt::print(stderr, "near_bench: {}\n", what);
  fmt::print(stderr, R"(
  near_bench --systems
  near_bench --write_sequences=FOLDER --entries=N --chunks=N --chunk_keys=N
  near_bench --sequences=FOLDER --system=NAME --entries=N --value_bytes=N --threads=N
             --seconds=S --repetitions=N --operations=get_view,get_copy,get_zipf,get_or_load,insert,memory
             [--benchmark_... of Google Benchmark]
)");
  std::exit(2);
}

template <class Number>
Number number(const std::string& text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) usage("not a number: " + text);
  return value;
}

std::vector<std::string> words(const std::string& text) {
  std::vector<std::string> all(1);
  for (const char c : text) {
    if (c == ',') {
      all.emplace_back();
    } else {
      all.back() += c;
    }
  }
  return all;
}

// Takes its own flags off the command line; what is left is Google Benchmark's.
std::map<std::string, std::string> own_flags(int& argc, char** argv) {
  std::map<std::string, std::string> own;
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (!word.starts_with("--") || word.starts_with("--benchmark_")) {
      argv[kept++] = argv[i];
      continue;
    }
    const auto equals = word.find('=');
    own[word.substr(2, equals - 2)] = equals == std::string::npos ? "" : word.substr(equals + 1);
  }
  argc = kept;
  return own;
}

Flags flags_of(const std::map<std::string, std::string>& own) {
  Flags flags;
  for (const auto& [name, value] : own) {
    if (name == "system") {
      flags.system = value;
    } else if (name == "operations") {
      flags.operations = words(value);
    } else if (name == "entries") {
      flags.entries = number<std::size_t>(value);
    } else if (name == "value_bytes") {
      flags.value_bytes = number<std::size_t>(value);
    } else if (name == "threads") {
      flags.threads = number<int>(value);
    } else if (name == "repetitions") {
      flags.repetitions = number<int>(value);
    } else if (name == "seconds") {
      flags.seconds = number<double>(value);
    } else if (name == "sequences") {
      flags.sequences = value;
    } else {
      usage("unknown flag --" + name);
    }
  }
  if (flags.sequences.empty() || flags.value_bytes < 8 || flags.threads < 1 ||
      flags.threads > kMaxThreads || !systems().contains(flags.system)) {
    usage("it takes --sequences, a --system of --systems, 8 bytes of value, 1 to 16 threads");
  }
  return flags;
}

int main_of(int argc, char** argv) {
  auto own = own_flags(argc, argv);
  if (own.contains("systems")) {
    for (const auto& [name, add] : systems()) fmt::print("{}\n", name);
    return 0;
  }
  if (own.contains("write_sequences")) {
    write_sequences(own["write_sequences"], number<std::size_t>(own["entries"]),
                    number<std::size_t>(own["chunks"]), number<std::size_t>(own["chunk_keys"]));
    return 0;
  }
  const Flags flags = flags_of(own);
  systems().at(flags.system)(flags);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace
}  // namespace larder::bench

int main(int argc, char** argv) { return larder::bench::main_of(argc, argv); }
