// Near get by another process through shared memory, beside the node's own (copying, 1 and 2
// threads)
//
// `node_private`: Store::lookup and a copy, in private memory (huge pages where allowed), at a time
// that is a constant. `node_shared`: the same over the shared arena. `node_clock`: the same with
// the clock read each time, as the node itself looks up. `reader`: larder_near_get() of
// liblarder_near.so, which maps the arena once more, read-only, as another process would: it reads
// the clock, too, and checks the node's lease and freshness.
//
// 1,000 entries are in the first caches: what is to be done. 100,000 and more are not: what is to
// be waited for.
#include <benchmark/benchmark.h>
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/clock.h"
#include "larder/near.h"
#include "near/store.h"

namespace larder::bench {
namespace {

constexpr std::size_t kKeyBytes = 16;
constexpr std::size_t kValueBytes = 128;
using Key = std::array<char, kKeyBytes>;

Key key_of(std::uint64_t number) {
  Key key{};
  std::snprintf(key.data(), key.size(), "key:%011lu", static_cast<unsigned long>(number));
  return key;
}

struct Library {
  decltype(&larder_near_open) open;
  decltype(&larder_near_get) get;
};

const Library& library() {
  static const Library loaded = [] {
    const auto folder = std::filesystem::read_symlink("/proc/self/exe").parent_path();
    void* const file = dlopen((folder.parent_path() / "liblarder_near.so").c_str(), RTLD_NOW);
    if (file == nullptr) {
      std::fprintf(stderr, "%s\n", dlerror());
      std::exit(1);
    }
    return Library{reinterpret_cast<decltype(&larder_near_open)>(dlsym(file, "larder_near_open")),
                   reinterpret_cast<decltype(&larder_near_get)>(dlsym(file, "larder_near_get"))};
  }();
  return loaded;
}

// Stores of so many entries, one in private and one in shared memory, and a reader of the latter.
struct Stores {
  explicit Stores(std::size_t count) : entries(count), name("bench-" + std::to_string(getpid())) {
    near::Options options{.capacity_bytes =
                              (16'384 + entries) * (kKeyBytes + kValueBytes + 64) * 3 / 2};
    private_store = std::make_unique<near::Store>(options);
    auto arena = near::Arena::open_shared(name, options.shape());
    if (!arena) {
      std::fprintf(stderr, "%s\n", to_string(arena.error()).c_str());
      std::exit(1);
    }
    shared_store = std::make_unique<near::Store>(options, std::move(*arena));
    fill(*private_store);
    fill(*shared_store);
    shared_store->publish_cache(1, true, 0, 0);
    shared_store->publish(monotonic_now_us(), 3600 * kSecond, clock_anchor_us());
    if (library().open(name.c_str(), &reader) != LARDER_NEAR_FOUND) std::exit(1);
    shm_unlink(near::shared_object(name).c_str());
    std::mt19937_64 random(1);
    for (std::size_t i = 0; i < entries * 2; ++i) order.push_back(key_of(random() % entries));
  }

  void fill(near::Store& store) const {
    const std::string value(kValueBytes, 'v');
    for (std::size_t i = 0; i < entries; ++i) {
      const Key key = key_of(i);
      const std::string_view text(key.data(), key.size());
      const Hash hash = hash_bytes(text);
      store.fill(store.ticket(hash), text, hash, value, {.cache_id = 1}, {});
      for (int hit = 0; hit < 3; ++hit) store.lookup(text, hash, 1, [](const near::View&) {});
    }
    if (store.stats().evictions == 0) return;
    std::fputs("there is not room for all\n", stderr);
    std::exit(1);
  }

  static Stores& of(std::size_t entries) {
    static std::unique_ptr<Stores> stores;
    if (!stores || stores->entries != entries) {
      stores.reset();
      stores = std::make_unique<Stores>(entries);
    }
    return *stores;
  }

  std::size_t entries;
  std::string name;
  std::unique_ptr<near::Store> private_store;
  std::unique_ptr<near::Store> shared_store;
  larder_near* reader = nullptr;
  std::vector<Key> order;
};

template <class Get>
void run(benchmark::State& state, Get&& get) {
  static Stores* stores = nullptr;
  if (state.thread_index() == 0) stores = &Stores::of(static_cast<std::size_t>(state.range(0)));
  std::array<char, 256> buffer{};
  std::uint64_t sum = 0;
  std::size_t at = static_cast<std::size_t>(state.thread_index()) * 7919;
  for (auto _ : state) {
    const Key& key = stores->order[at % stores->order.size()];
    ++at;
    if (!get(*stores, key, buffer)) {
      state.SkipWithError("a miss");
      return;
    }
    sum += static_cast<unsigned char>(buffer[100]);
  }
  benchmark::DoNotOptimize(sum);
  state.SetItemsProcessed(state.iterations());
}

bool copy(near::Store& store, const Key& key, std::array<char, 256>& buffer, TimeUs now = 1) {
  const std::string_view text(key.data(), key.size());
  return store.lookup(text, hash_bytes(text), now, [&](const near::View& view) {
    std::memcpy(buffer.data(), view.value.data(), view.value.size());
  });
}

void node_private(benchmark::State& state) {
  run(state, [](Stores& stores, const Key& key, auto& buffer) {
    return copy(*stores.private_store, key, buffer);
  });
}

void node_shared(benchmark::State& state) {
  run(state, [](Stores& stores, const Key& key, auto& buffer) {
    return copy(*stores.shared_store, key, buffer);
  });
}

void node_clock(benchmark::State& state) {
  run(state, [](Stores& stores, const Key& key, auto& buffer) {
    return copy(*stores.shared_store, key, buffer, monotonic_now_us());
  });
}

void reader(benchmark::State& state) {
  run(state, [](Stores& stores, const Key& key, auto& buffer) {
    std::size_t size = 0;
    return library().get(stores.reader, key.data(), key.size(), buffer.data(), buffer.size(),
                         &size) == LARDER_NEAR_FOUND;
  });
}

constexpr auto sizes = [](benchmark::internal::Benchmark* bench) {
  bench->Arg(1000)->Arg(100'000)->Arg(1'000'000)->Threads(1)->Threads(2)->UseRealTime();
};
BENCHMARK(node_private)->Apply(sizes);
BENCHMARK(node_shared)->Apply(sizes);
BENCHMARK(node_clock)->Apply(sizes);
BENCHMARK(reader)->Apply(sizes);

}  // namespace
}  // namespace larder::bench

BENCHMARK_MAIN();
