#include "demo/demo.h"

#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "config/config.h"
#include "demo/load.h"
#include "demo/picture.h"
#include "demo/shop.h"
#include "demo/story.h"
#include "server/instance.h"
#include "source/sqlite/prepare.h"

namespace larder::app {
namespace {

namespace fs = std::filesystem;

std::atomic<bool> interrupted{false};

// A folder of its own, gone at the end.
class Folder {
 public:
  Folder() {
    std::string pattern = (fs::temp_directory_path() / "larder-demo-XXXXXX").string();
    if (mkdtemp(pattern.data())) path_ = pattern;
  }
  ~Folder() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

int failed(const std::string& what, const std::string& why) {
  fmt::print(stderr, "larder demo: {}: {}\n", what, why);
  return 1;
}

// Paints until the time is up; the last frame stays.
void watch(server::Instance& instance, DemoFigures& figures, const DemoLoad& load, int seconds) {
  const bool terminal = isatty(STDOUT_FILENO) != 0;
  const auto step = std::chrono::milliseconds(terminal ? 500 : 1'000);
  const TimeUs began = monotonic_now_us();
  DemoSample before = take_sample(instance.metrics(), 0);
  std::size_t painted = 0;
  const auto elapsed = [&] { return static_cast<double>(monotonic_now_us() - began) / kSecond; };
  while (elapsed() < seconds && !interrupted && load.failure().empty()) {
    std::this_thread::sleep_for(step);
    const DemoSample now = take_sample(instance.metrics(), elapsed());
    if (terminal) {
      if (painted) fmt::print("\x1b[{}A", painted);
      const auto lines = paint(now, before, figures, true);
      for (const std::string& line : lines) fmt::print("\x1b[2K{}\n", line);
      painted = std::max(painted, lines.size());
      for (std::size_t i = lines.size(); i < painted; ++i) fmt::print("\x1b[2K\n");
    } else {
      fmt::print("{}\n", paint_line(now, before, figures));
    }
    std::fflush(stdout);
    before = now;
  }
  if (!terminal) {
    const DemoSample now = take_sample(instance.metrics(), elapsed());
    fmt::print("\n");
    DemoSample start;
    for (const std::string& line : paint(now, start, figures, false)) fmt::print("{}\n", line);
  }
}

void how_to_try(const server::Instance& instance, const std::string& database) {
  const std::string& address = instance.addresses().front();
  const std::string port = address.substr(address.rfind(':') + 1);
  fmt::print(
      "\nLarder goes on. Try it from another terminal:\n"
      "  redis-cli -p {0} GET product:7\n"
      "  redis-cli -p {0} MGET product:1 product:2 user:3 reviews:4\n"
      "  sqlite3 {1} \"UPDATE product SET price = 1.5 WHERE id = 7\"\n"
      "  redis-cli -p {0} LARDER.EXPLAIN product:7\n"
      "  redis-cli -p {0} SET cart:1 '{{}}' EX 60            # a plain key\n"
      "  curl {2}/metrics\n"
      "Ctrl-C ends it and removes the shop.\n",
      port, database, instance.admin_address());
  std::fflush(stdout);
}

}  // namespace

int run_demo(const DemoOptions& options) {
  std::signal(SIGINT, [](int) { interrupted = true; });
  std::signal(SIGTERM, [](int) { interrupted = true; });

  const Folder folder;
  if (folder.path().empty()) return failed("making a folder", std::strerror(errno));
  const std::string database = (folder.path() / "shop.db").string();
  const ShopSize size;
  const bool terminal = isatty(STDOUT_FILENO) != 0;
  fmt::print("Making a SQLite shop: {} products, {} users, {} reviews ...{}", size.products,
             size.users, size.reviews, terminal ? "" : "\n");
  std::fflush(stdout);
  Result<void> made = make_shop(database, size, [&](std::int64_t rows) {
    if (!terminal) return;
    fmt::print("\rMaking a SQLite shop: {:>7} rows of {}   ", rows,
               size.products + size.users + size.reviews);
    std::fflush(stdout);
  });
  if (!made) return failed("making the shop", to_string(made.error()));
  if (terminal)
    fmt::print("\r\x1b[2KA SQLite shop with {} rows.\n", size.products + size.users + size.reviews);

  const std::string text = demo_config(database, (folder.path() / "data").string());
  config::Loaded config = config::load_config(text, "demo.toml");
  if (!config) return failed("its configuration", config::to_string(config.error()));
  const auto watched = cache::Node::watched_tables(config->caches, "shop");
  if (Result<void> prepared = source::sqlite::apply(database, watched); !prepared)
    return failed("preparing the shop", to_string(prepared.error()));
  Result<std::unique_ptr<server::Instance>> started = server::Instance::start(*config);
  if (!started) return failed("starting a node", to_string(started.error()));
  server::Instance& instance = **started;
  fmt::print("A node on {} (metrics on http://{}/metrics), one thread.\n\n",
             instance.addresses().front(), instance.admin_address());

  DemoFigures figures;
  DemoLoad load(instance.addresses().front(), database, size, figures);
  load.start();
  watch(instance, figures, load, options.seconds);
  std::string failure = load.failure();
  Result<void> told = {};
  if (failure.empty() && !interrupted) told = tell_story(instance.addresses().front(), database);
  if (options.keep && failure.empty() && told && !interrupted) {
    how_to_try(instance, database);
    while (!interrupted && load.failure().empty())
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    failure = load.failure();
  }
  load.stop();
  instance.request_stop();
  instance.wait();
  if (!failure.empty()) return failed("the load", failure);
  if (!told) return failed("the story", to_string(told.error()));
  return 0;
}

}  // namespace larder::app
