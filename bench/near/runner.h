// Runs one system of the near bench through its operations, as Google Benchmark's benchmarks.
//
// A System is a thin adapter of a cache:
//
//   System(std::size_t capacity, std::size_t value_bytes)   room for `capacity` such entries
//   static constexpr bool kEvicts                           false: only hits are measured
//   bool view(std::string_view key, std::uint64_t& sum)     hit: adds first_word() of the value
//   where
//                                                           it lies, without copying the value
//   bool copy(std::string_view key, char* out)              hit: copies the whole value
//   void insert(std::string_view key, std::string_view value)
//   bool get_or_load(std::string_view key, const Load& load, std::uint64_t& sum)   true: a hit
//   double own_bytes_per_entry()                            what it counts itself; 0: it does not
//
// Keys and values given are copied in, and hashing a key is part of each operation.
#pragma once

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "workload.h"

namespace larder::bench {

struct Flags {
  std::string system;
  std::vector<std::string> operations = {"get_view", "get_copy", "get_zipf", "get_or_load",
                                         "insert"};
  std::size_t entries = 100'000;
  std::size_t value_bytes = 128;
  int threads = 1;
  int repetitions = 3;
  double seconds = 0.3;
  std::string sequences;  // the folder
};
inline constexpr int kMaxThreads = 16;

// The value of a key, as if read from somewhere: made anew for each miss, by the caller's thread.
class Load {
 public:
  Load(std::string& buffer, std::uint32_t number) : buffer_(buffer), number_(number) {}
  std::string_view operator()() const {
    const std::uint64_t word = number_;
    std::copy_n(reinterpret_cast<const char*>(&word), sizeof word, buffer_.data());
    return buffer_;
  }

 private:
  std::string& buffer_;
  std::uint32_t number_;
};

benchmark::internal::Benchmark* registered(const std::string& name, void (*run)(benchmark::State&));

// Resident memory of this process.
std::uint64_t resident_bytes();
// What reading the clock twice takes: to be taken off each sample.
std::uint32_t clock_pair_ns();

// The samples of all threads of one repetition; the last one reports.
class Samples {
 public:
  void add(benchmark::State& state, std::vector<std::uint32_t>&& samples);

 private:
  std::mutex mutex_;
  std::vector<std::uint32_t> samples_;
  int threads_ = 0;
};

template <class System>
class Runner {
 public:
  static void add(const char* name, const Flags& flags) {
    flags_ = flags;
    for (const std::string& op : flags.operations) {
      const auto title = fmt::format("{}/{}/{}/{}", op, name, flags.entries, flags.value_bytes);
      if (op == "memory") {
        registered(title, memory)->Iterations(1);
      } else if (op == "get_view") {
        timed(registered(title, get_view)->Setup(held_uniform));
      } else if (op == "get_zipf") {
        timed(registered(title, get_view)->Setup(held_zipf));
      } else if (op == "get_copy") {
        timed(registered(title, get_copy)->Setup(held_uniform));
      } else if constexpr (System::kEvicts) {
        if (op == "get_or_load") {
          chunk_ = Sequence::read(load_file(0));
          whole(registered(title, get_or_load)->Setup(next_chunk));
        } else if (op == "insert") {
          timed(registered(title, insert)->Setup(full));
        }
      }
    }
  }

 private:
  enum class Content : std::uint8_t { none, held, full };

  struct Tally {
    std::uint64_t hits = 0;
    std::uint64_t sum = 0;
  };

  static std::string sequence_file(const char* what) {
    return fmt::format("{}/{}-{}.u32", flags_.sequences, what, flags_.entries);
  }
  static std::string load_file(int chunk) {
    return fmt::format("{}/load-{}-{}.u32", flags_.sequences, flags_.entries, chunk);
  }

  static void timed(benchmark::internal::Benchmark* b) {
    b->MinWarmUpTime(flags_.seconds)->MinTime(flags_.seconds);
    b->Repetitions(flags_.repetitions)->Threads(flags_.threads)->UseRealTime();
  }
  // Each repetition is three quarters of a chunk; the last quarter is for the samples.
  static void whole(benchmark::internal::Benchmark* b) {
    b->Iterations(static_cast<benchmark::IterationCount>(share() * 3 / 4));
    b->Repetitions(flags_.repetitions)->Threads(flags_.threads)->UseRealTime();
  }
  static std::size_t share() { return chunk_.size() / static_cast<std::size_t>(flags_.threads); }

  static void put(std::uint32_t number, std::string& value) {
    std::array<char, kKeyBytes> key{};
    write_key(number, key.data());
    system_->insert({key.data(), key.size()}, Load(value, number)());
  }

  // All N keys are there: a quarter more room than they need.
  static void hold(const char* file) {
    if (content_ != Content::held) {
      system_.reset();
      system_ = std::make_unique<System>(flags_.entries * 5 / 4, flags_.value_bytes);
      std::string value(flags_.value_bytes, 'v');
      for (std::uint32_t i = 0; i < flags_.entries; ++i) put(i, value);
      content_ = Content::held;
    }
    request(file, [&] { return Sequence::read(sequence_file(file)); });
  }
  static void held_uniform(const benchmark::State& /*state*/) { hold("get"); }
  static void held_zipf(const benchmark::State& /*state*/) { hold("zipf"); }

  template <class Make>
  static void request(const std::string& name, Make&& make) {
    if (requests_name_ == name) return;
    requests_name_ = name;
    requests_ = make();
    const std::size_t part = requests_.size() / static_cast<std::size_t>(flags_.threads);
    for (std::size_t t = 0; t < next_.size(); ++t) next_[t] = t * part;
  }

  // As full as it gets with room for N, by what was asked for.
  static void fill() {
    system_.reset();
    system_ = std::make_unique<System>(flags_.entries, flags_.value_bytes);
    std::string value(flags_.value_bytes, 'v');
    const auto order = Sequence::read(sequence_file("order"));
    for (std::size_t i = 0; i < order.size(); ++i) put(order.number(i), value);
    Tally tally;
    for (std::size_t i = 0; i < chunk_.size(); ++i) {
      tally.hits += system_->get_or_load(chunk_.key(i), Load(value, chunk_.number(i)), tally.sum);
    }
    content_ = Content::full;
  }

  static void next_chunk(const benchmark::State& /*state*/) {
    if constexpr (System::kEvicts) {
      if (content_ != Content::full) fill();
      chunk_ = Sequence::read(load_file(++chunks_used_));
      for (std::size_t t = 0; t < next_.size(); ++t) next_[t] = t * share();
    }
  }

  static void full(const benchmark::State& /*state*/) {
    if (content_ != Content::full) fill();
    // When they come round again they are long gone: four times what fits.
    request("insert", [] {
      return Sequence::range(static_cast<std::uint32_t>(2 * flags_.entries),
                             std::max<std::size_t>(4 * flags_.entries, 1 << 20));
    });
  }

  // ---- operations ----

  template <class Step>
  static void drive(benchmark::State& state, const Sequence& sequence, std::size_t samples,
                    Step&& step) {
    const std::size_t begin =
        next_[static_cast<std::size_t>(state.thread_index())] % sequence.size();
    std::size_t at = begin;
    Tally tally;
    const auto next = [&] {
      step(at, tally);
      if (++at == sequence.size()) at = 0;
    };
    for (auto _ : state) next();
    const auto done = static_cast<std::uint64_t>(state.iterations());
    state.SetItemsProcessed(state.iterations());
    state.counters["hit_ratio"] =
        benchmark::Counter(static_cast<double>(tally.hits) / static_cast<double>(done),
                           benchmark::Counter::kAvgThreads);
    if (tally.sum != sequence.sum(begin, done)) state.SkipWithError("a value of another key");
    if (done >= 10'000) sample(state, samples, next);
    next_[static_cast<std::size_t>(state.thread_index())] = at;
  }

  template <class Next>
  static void sample(benchmark::State& state, std::size_t count, Next&& next) {
    using Clock = std::chrono::steady_clock;
    const std::uint32_t empty = clock_pair_ns();
    std::vector<std::uint32_t> samples(count);
    for (auto& sample : samples) {
      for (unsigned i = 1; i < kSampleEvery; ++i) next();
      const auto start = Clock::now();
      next();
      const auto ns = static_cast<std::uint32_t>((Clock::now() - start).count());
      sample = ns > empty ? ns - empty : 0;
    }
    samples_.add(state, std::move(samples));
  }

  static void only_hits(benchmark::State& state) {
    if (state.counters["hit_ratio"] != 1) state.SkipWithError("not all were hits");
  }

  static constexpr std::size_t kSamples = 1 << 14;

  static void get_view(benchmark::State& state) {
    drive(state, requests_, kSamples, [](std::size_t at, Tally& tally) {
      tally.hits += system_->view(requests_.key(at), tally.sum);
    });
    only_hits(state);
  }

  static void get_copy(benchmark::State& state) {
    std::string out(flags_.value_bytes, '\0');
    drive(state, requests_, kSamples, [&out](std::size_t at, Tally& tally) {
      tally.hits += system_->copy(requests_.key(at), out.data());
      benchmark::DoNotOptimize(out.data());
      benchmark::ClobberMemory();
      tally.sum += first_word(out);
    });
    only_hits(state);
  }

  static void get_or_load(benchmark::State& state) {
    std::string value(flags_.value_bytes, 'v');
    drive(state, chunk_, share() / 4 / kSampleEvery, [&value](std::size_t at, Tally& tally) {
      tally.hits += system_->get_or_load(chunk_.key(at), Load(value, chunk_.number(at)), tally.sum);
    });
  }

  static void insert(benchmark::State& state) {
    std::string value(flags_.value_bytes, 'v');
    drive(state, requests_, kSamples, [&value](std::size_t at, Tally& tally) {
      system_->insert(requests_.key(at), Load(value, requests_.number(at))());
      tally.sum += requests_.number(at);
    });
  }

  // Growth of resident memory by a full cache, evictions included, over what lies in it.
  static void memory(benchmark::State& state) {
    std::string value(flags_.value_bytes, 'v');
    const auto count =
        static_cast<std::uint32_t>(System::kEvicts ? flags_.entries * 5 / 4 : flags_.entries);
    for (auto _ : state) {
      const std::uint64_t before = resident_bytes();
      system_ = std::make_unique<System>(flags_.entries, flags_.value_bytes);
      for (std::uint32_t i = 0; i < count; ++i) put(i, value);
      const auto grown = static_cast<double>(resident_bytes() - before);
      double entries = 0;
      std::uint64_t sum = 0;
      for (std::uint32_t i = 0; i < count; ++i) {
        std::array<char, kKeyBytes> key{};
        write_key(i, key.data());
        entries += system_->view({key.data(), key.size()}, sum) ? 1 : 0;
      }
      const auto held = static_cast<double>(kKeyBytes + flags_.value_bytes);
      state.counters["held_entries"] = entries;
      state.counters["overhead_bytes"] = grown / entries - held;
      if (const double own = system_->own_bytes_per_entry(); own > 0) {
        state.counters["own_overhead_bytes"] = own - held;
      }
    }
  }

  static inline Flags flags_;
  static inline std::unique_ptr<System> system_;
  static inline Content content_ = Content::none;
  static inline Sequence requests_;
  static inline std::string requests_name_;
  static inline Sequence chunk_;
  static inline int chunks_used_ = 0;
  static inline std::array<std::size_t, kMaxThreads> next_{};  // positions in the sequence
  static inline Samples samples_;
};

// Each is defined beside its adapter, if its library was found.
void add_larder(const Flags& flags);
void add_lru(const Flags& flags);
void add_boost_flat_map(const Flags& flags);
void add_tbb_hash_map(const Flags& flags);
void add_rocksdb_hyperclock(const Flags& flags);
void add_rocksdb_lru(const Flags& flags);

}  // namespace larder::bench
