// Several nodes in this process on one real engine and one SQLite file, and a checker of what they
// answer: rows carry versions, writers record what was acknowledged and when, and no read may show
// less than was acknowledged before its bound.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <thread>

#include "base/random.h"
#include "engine/redis_process.h"
#include "server/instance.h"
#include "server/test_client.h"
#include "truth.h"

namespace larder::server {

namespace fs = std::filesystem;

// A redis-server of our own that can be ended, paused and started again on the same socket.
class EngineServer {
 public:
  EngineServer(std::vector<std::string> extra, std::string binary)
      : extra_(std::move(extra)), binary_(std::move(binary)) {
    std::string pattern = (fs::temp_directory_path() / "larder-fleet-XXXXXX").string();
    folder_ = mkdtemp(pattern.data()) != nullptr ? pattern : "";
    start();
  }
  ~EngineServer() {
    stop();
    std::error_code ignored;
    if (!folder_.empty()) fs::remove_all(folder_, ignored);
  }
  EngineServer(const EngineServer&) = delete;
  EngineServer& operator=(const EngineServer&) = delete;

  std::string url() const { return "redis+unix:" + path(); }
  std::string path() const { return folder_ + "/s"; }

  void start() {
    std::vector<std::string> words{
        binary_, "--port",       "0",  "--unixsocket", path(),          "--dir", folder_, "--save",
        "",      "--appendonly", "no", "--logfile",    folder_ + "/log"};
    words.insert(words.end(), extra_.begin(), extra_.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    if (posix_spawn(&pid_, argv[0], nullptr, nullptr, argv.data(), environ) != 0) pid_ = 0;
    for (int tries = 0; tries < 1000 && call({"PING"}).text != "PONG"; ++tries)
      poll(nullptr, 0, 10);
  }
  // At once, as kill -9 does.
  void stop() {
    if (pid_ <= 0) return;
    kill(pid_, SIGCONT);
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
    std::error_code ignored;
    fs::remove(path(), ignored);
  }
  void pause() const { kill(pid_, SIGSTOP); }
  void resume() const { kill(pid_, SIGCONT); }

  // One command on a connection of its own. An error reply "(closed)" if there is none.
  wire::Reply call(const std::vector<std::string>& words) const {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path().copy(address.sun_path, sizeof(address.sun_path) - 1);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    wire::Reply reply;
    reply.type = wire::Reply::Type::error;
    reply.text = "(closed)";
    const std::string request = TestClient::encode(words);
    if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 &&
        send(fd, request.data(), request.size(), MSG_NOSIGNAL) ==
            static_cast<ssize_t>(request.size())) {
      std::string bytes;
      char piece[65536];
      for (ssize_t got = 0; (got = recv(fd, piece, sizeof piece, 0)) > 0;) {
        bytes.append(piece, static_cast<std::size_t>(got));
        std::size_t consumed = 0;
        std::string problem;
        if (auto parsed = wire::parse_reply(bytes, consumed, problem)) {
          reply = std::move(*parsed);
          break;
        }
      }
    }
    close(fd);
    return reply;
  }

 private:
  std::vector<std::string> extra_;
  std::string binary_;
  std::string folder_;
  pid_t pid_ = 0;
};

// Between one node and the engine. It can be cut without anybody being told, or refuse.
class Proxy {
 public:
  explicit Proxy(std::string to) : to_(std::move(to)) {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
        listen(listener_, 64) != 0 ||
        getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) != 0)
      ADD_FAILURE() << "no port for the proxy";
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { run(); });
  }
  ~Proxy() {
    over_ = true;
    thread_.join();
    close(listener_);
  }
  Proxy(const Proxy&) = delete;
  Proxy& operator=(const Proxy&) = delete;
  std::string url() const { return "redis://127.0.0.1:" + std::to_string(port_); }
  void cut() { cut_ = true; }
  void refuse() { refuse_ = true; }
  void mend() { cut_ = refuse_ = false; }

 private:
  void run() {
    std::vector<std::pair<int, int>> pairs;  // client, server
    while (!over_) {
      std::vector<pollfd> wanted{{listener_, POLLIN, 0}};
      for (const auto& [client, server] : pairs) {
        wanted.push_back({client, POLLIN, 0});
        wanted.push_back({server, POLLIN, 0});
      }
      if (cut_) {
        poll(nullptr, 0, 5);
        continue;
      }
      poll(wanted.data(), wanted.size(), 5);
      for (std::size_t i = pairs.size(); i-- > 0;) {
        const auto [client, server] = pairs[i];
        if (!refuse_ && pass(wanted[1 + 2 * i], server) && pass(wanted[2 + 2 * i], client))
          continue;
        close(client);
        close(server);
        pairs.erase(pairs.begin() + static_cast<std::ptrdiff_t>(i));
      }
      if ((wanted[0].revents & POLLIN) == 0) continue;
      const int client = accept(listener_, nullptr, nullptr);
      const int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
      sockaddr_un address{};
      address.sun_family = AF_UNIX;
      to_.copy(address.sun_path, sizeof(address.sun_path) - 1);
      if (!refuse_ && connect(server, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) {
        pairs.emplace_back(client, server);
      } else {
        close(client);
        close(server);
      }
    }
    for (const auto& [client, server] : pairs) {
      close(client);
      close(server);
    }
  }
  static bool pass(const pollfd& from, int to) {
    if (from.revents == 0) return true;
    char piece[65536];
    const ssize_t got = recv(from.fd, piece, sizeof piece, MSG_DONTWAIT);
    if (got <= 0) return got < 0 && errno == EAGAIN;
    return send(to, piece, static_cast<std::size_t>(got), MSG_NOSIGNAL) == got;
  }

  const std::string to_;
  int listener_ = -1;
  int port_ = 0;
  std::atomic<bool> over_{false};
  std::atomic<bool> cut_{false};
  std::atomic<bool> refuse_{false};
  std::thread thread_;
};

inline constexpr int kRows = 8;
inline constexpr unsigned kHasty = 4;  // ms between writes: one after another through Larder
inline constexpr DurationUs kBound = 500 * kMillisecond;

inline std::string fleet_config(const std::string& source, const std::string& engine_url) {
  std::string text = R"toml(
[node]
listen = ["127.0.0.1:0"]
admin = ""
threads = 1
[near]
capacity = "16MiB"
[engine]
url = "{URL}"
partitions = 16
[source.shop]
{SOURCE}
)toml";
  const auto cache = [](std::string_view name, std::string_view consistency) {
    return "[cache." + std::string(name) + "]\nkey = \"" + std::string(name) +
           ":{id:int}\"\nsource = \"shop\"\n"
           "load = \"SELECT id, v FROM item WHERE id = :id\"\n"
           "store = \"UPDATE item SET v = :v WHERE id = :id\"\nwrite = \"through\"\n"
           "ttl = \"10m\"\ntags = [\"all\"]\nload_timeout = \"3s\"\n"
           "depends_on = [\"item(id -> id)\"]\nconsistency = \"" +
           std::string(consistency) + "\"\n";
  };
  text += cache("b", "bounded:500ms") + cache("s", "strong") + cache("e", "eventual");
  const auto put = [&](std::string_view from, const std::string& to) {
    for (std::size_t at = 0; (at = text.find(from)) != std::string::npos;)
      text.replace(at, from.size(), to);
  };
  put("{SOURCE}", source);
  put("{URL}", engine_url);
  return text;
}

class FleetTest : public testing::Test {
 protected:
  void SetUp() override {
    if (engine::real::find_redis().empty()) GTEST_SKIP() << "redis-server is missing";
    std::string name = (fs::temp_directory_path() / "larder-nodes-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    dir_ = name;
    truth_ = make_truth();
  }
  void TearDown() override {
    nodes_.clear();
    engine_.reset();
    truth_.reset();
    if (!dir_.empty()) fs::remove_all(dir_);
  }

  virtual std::unique_ptr<Truth> make_truth() { return std::make_unique<SqliteTruth>(dir_); }

  void start_engine(std::vector<std::string> extra = {},
                    const std::string& binary = engine::real::find_redis()) {
    engine_ = std::make_unique<EngineServer>(std::move(extra), binary);
  }
  void start_nodes(int count, const engine::redis::RedisEngine::Options& options = {},
                   std::string url = "") {
    if (url.empty()) url = engine_->url();
    for (int i = 0; i < count; ++i) {
      const std::string text = fleet_config(truth_->source(nodes_.size()), url) + more_config_;
      auto config = config::load_config(text, "test");
      ASSERT_TRUE(config) << config::to_string(config.error());
      if (nodes_.empty()) ASSERT_NO_FATAL_FAILURE(truth_->prepare(*config));
      auto started = Instance::start(*config, {}, options);
      ASSERT_TRUE(started) << to_string(started.error());
      nodes_.push_back(std::move(*started));
    }
  }

  // As somebody else's program would.
  void sql(const std::string& text) const { EXPECT_TRUE(truth_->connect()->exec(text)) << text; }

  // Loads that the database itself has seen.
  int loads() const {
    int n = 0;
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      std::ifstream log(dir_ / ("queries-" + std::to_string(i) + ".log"));
      for (std::string line; std::getline(log, line);)
        n += line.find("v FROM item") != std::string::npos;
    }
    return n;
  }

  std::string address(std::size_t node) const { return nodes_[node]->addresses().front(); }

  // What LARDER.GET says of a key.
  struct Answer {
    std::string value;
    std::string tier;
  };
  static Answer get(TestClient& client, const std::string& key) {
    const wire::Reply reply = client.call({"LARDER.GET", key});
    Answer answer;
    for (std::size_t i = 0; i + 1 < reply.elements.size(); i += 2) {
      if (reply.elements[i].text == "value") answer.value = reply.elements[i + 1].text;
      if (reply.elements[i].text == "tier") answer.tier = reply.elements[i + 1].text;
    }
    if (reply.type == wire::Reply::Type::error) answer.value = "-" + reply.text;
    return answer;
  }
  Answer get(std::size_t node, const std::string& key) const {
    TestClient client(address(node));
    return get(client, key);
  }
  // Until an answer of the node comes from `tier`: a fleet needs a moment to begin.
  Answer get_from(std::size_t node, const std::string& key, std::string_view tier) const {
    TestClient client(address(node));
    Answer answer;
    for (int tries = 0; tries < 2000 && answer.tier != tier; ++tries) {
      if (tries > 0) poll(nullptr, 0, 5);
      answer = get(client, key);
    }
    return answer;
  }

  fs::path dir_;
  std::string more_config_;
  std::unique_ptr<Truth> truth_;
  std::unique_ptr<EngineServer> engine_;
  std::vector<std::unique_ptr<Instance>> nodes_;
};

// What was acknowledged when.
class Ledger {
 public:
  Ledger() {
    for (auto& row : rows_) row = {{0, 1}};
  }
  void acknowledged(int row, std::int64_t version) {
    const std::lock_guard lock(mutex_);
    rows_[static_cast<std::size_t>(row)].emplace_back(monotonic_now_us(), version);
  }
  // The least that a read which begins at `began` may show.
  std::int64_t least(int row, TimeUs began) const {
    const std::lock_guard lock(mutex_);
    std::int64_t version = 0;
    for (const auto& [at, acked] : rows_[static_cast<std::size_t>(row)])
      if (at <= began) version = std::max(version, acked);
    return version;
  }

 private:
  mutable std::mutex mutex_;
  std::array<std::vector<std::pair<TimeUs, std::int64_t>>, kRows> rows_;
};

inline std::int64_t version_in(std::string_view value) {
  const std::size_t at = value.find("\"v\":");
  return at == std::string_view::npos ? -1 : std::atoll(value.data() + at + 4);
}

// Readers on every node, one writer through the nodes (even rows), one past them (odd rows), while
// `faults` runs.
class Load {
 public:
  struct Counts {
    std::atomic<std::uint64_t> reads{0}, near{0}, engine{0}, source{0}, errors{0}, writes{0},
        write_errors{0};
  };

  // `pause_ms`: at most, between the writes of one writer.
  Load(std::vector<std::string> addresses, const Truth& truth, bool strong, unsigned pause_ms)
      : addresses_(std::move(addresses)), truth_(truth), strong_(strong), pause_ms_(pause_ms) {}

  template <class Faults>
  void run(Faults&& faults) {
    std::vector<std::thread> threads;
    for (std::size_t node = 0; node < addresses_.size(); ++node)
      threads.emplace_back([this, node] { read(node); });
    threads.emplace_back([this] { write_through(); });
    threads.emplace_back([this] { write_past(); });
    faults();
    over_ = true;
    for (std::thread& thread : threads) thread.join();
  }
  bool failed() const {
    const std::lock_guard lock(mutex_);
    return !stale_.empty();
  }
  std::string stale() const {
    const std::lock_guard lock(mutex_);
    return stale_;
  }
  std::string first_error() const {
    const std::lock_guard lock(mutex_);
    return error_;
  }
  std::int64_t written(int row) const { return versions_[static_cast<std::size_t>(row)]; }
  Counts counts;

 private:
  void read(std::size_t node) {
    Random random(node + 1);
    auto client = std::make_unique<TestClient>(addresses_[node]);
    while (!over_) {
      const int row = static_cast<int>(random.next() % kRows);
      const bool strong = strong_ && row % 2 == 0 && random.next() % 4 == 0;
      const TimeUs began = monotonic_now_us();
      const wire::Reply reply =
          client->call({"LARDER.GET", (strong ? "s:" : "b:") + std::to_string(row + 1)});
      ++counts.reads;
      std::string value, tier;
      for (std::size_t i = 0; i + 1 < reply.elements.size(); i += 2) {
        if (reply.elements[i].text == "value") value = reply.elements[i + 1].text;
        if (reply.elements[i].text == "tier") tier = reply.elements[i + 1].text;
      }
      const std::int64_t version = version_in(value);
      if (version < 0) {
        ++counts.errors;
        if (const std::lock_guard lock(mutex_); error_.empty()) error_ = reply.text;
        if (reply.text == "closed") client = std::make_unique<TestClient>(addresses_[node]);
        continue;
      }
      (tier == "near" ? counts.near : tier == "engine" ? counts.engine : counts.source)++;
      const std::int64_t least = ledger_.least(row, strong ? began : began - kBound);
      if (version >= least) continue;
      const std::lock_guard lock(mutex_);
      if (stale_.empty())
        stale_ = "node " + std::to_string(node) + " answered version " + std::to_string(version) +
                 " of row " + std::to_string(row) + " (" + (strong ? "strong" : "bounded") +
                 ", tier " + tier + ") although " + std::to_string(least) +
                 " had been acknowledged";
    }
  }

  void write_through() {
    Random random(77);
    std::vector<std::unique_ptr<TestClient>> clients;
    for (const std::string& address : addresses_)
      clients.push_back(std::make_unique<TestClient>(address));
    while (!over_) {
      const int row = static_cast<int>(random.next() % (kRows / 2)) * 2;
      const std::int64_t version = ++versions_[static_cast<std::size_t>(row)];
      TestClient& client = *clients[random.next() % clients.size()];
      const char* cache = strong_ ? "s:" : "b:";
      const wire::Reply reply = client.call(
          {"SET", cache + std::to_string(row + 1), "{\"v\":" + std::to_string(version) + "}"});
      ++counts.writes;
      if (reply.text == "OK")
        ledger_.acknowledged(row, version);
      else
        ++counts.write_errors;
      if (pause_ms_ > kHasty) poll(nullptr, 0, static_cast<int>(random.next() % pause_ms_));
    }
  }

  void write_past() {
    Random random(78);
    const auto session = truth_.connect();
    while (!over_) {
      const int row = static_cast<int>(random.next() % (kRows / 2)) * 2 + 1;
      const std::int64_t version = ++versions_[static_cast<std::size_t>(row)];
      const std::string text = "UPDATE item SET v = " + std::to_string(version) +
                               " WHERE id = " + std::to_string(row + 1);
      if (session->exec(text)) ledger_.acknowledged(row, version);
      ++counts.writes;
      poll(nullptr, 0, static_cast<int>(random.next() % pause_ms_));
    }
  }

  std::vector<std::string> addresses_;
  const Truth& truth_;
  bool strong_;
  unsigned pause_ms_;
  Ledger ledger_;
  std::array<std::atomic<std::int64_t>, kRows> versions_{1, 1, 1, 1, 1, 1, 1, 1};
  std::atomic<bool> over_{false};
  mutable std::mutex mutex_;
  std::string stale_;
  std::string error_;
};

class Chaos : public FleetTest {
 protected:
  // Each node audits itself, as at work, but for the times.
  void SetUp() override {
    more_config_ = "[audit]\nrate = 200\ndelay = \"50ms\"\nrecheck = [\"300ms\", \"1s\"]\n";
    FleetTest::SetUp();
  }
  // Runs the load while `faults` does its work; what was answered may never be too old.
  template <class Faults>
  void run(bool strong, Faults&& faults, unsigned pause_ms = kHasty) {
    std::vector<std::string> addresses;
    for (std::size_t node = 0; node < nodes_.size(); ++node) {
      addresses.push_back(address(node));
      get_from(node, "b:900", "near");
    }
    load_ = std::make_unique<Load>(addresses, *truth_, strong, pause_ms);
    load_->run(faults);
    const Load::Counts& c = load_->counts;
    std::printf(
        "%-44s %8lu reads: near %lu, engine %lu, source %lu, errors %lu; writes %lu, "
        "refused %lu\n",
        testing::UnitTest::GetInstance()->current_test_info()->name(), c.reads.load(),
        c.near.load(), c.engine.load(), c.source.load(), c.errors.load(), c.writes.load(),
        c.write_errors.load());
    if (std::getenv("LARDER_SHOW_METRICS") != nullptr) {
      for (const auto& node : nodes_) {
        std::istringstream all(node->metrics().prometheus());
        for (std::string line; std::getline(all, line);)
          if (!line.starts_with('#') && !line.ends_with(" 0") &&
              line.find("bucket") == std::string::npos)
            std::printf("    %s\n", line.c_str());
      }
    }
    if (c.errors > 0) std::printf("  an error: %s\n", load_->first_error().c_str());
  }
  void expect_coherent() {
    EXPECT_FALSE(load_->failed()) << load_->stale();
    expect_audited();
    // And in the end everybody shows the last version.
    const TimeUs until = monotonic_now_us() + 20 * kSecond;
    for (std::size_t node = 0; node < nodes_.size(); ++node) {
      TestClient client(address(node));
      for (int row = 0; row < kRows; ++row) {
        const std::string key = "b:" + std::to_string(row + 1);
        std::int64_t seen = 0;
        while (seen != written(row) && monotonic_now_us() < until)
          seen = version_in(get(client, key).value);
        EXPECT_EQ(seen, written(row)) << key << " on node " << node;
      }
    }
  }
  // No auditor objects, whatever happened.
  void expect_audited() {
    std::uint64_t checked = 0;
    for (const auto& node : nodes_) {
      const cache::AuditReport report = node->node().audited(monotonic_now_us());
      for (const cache::AuditCounts& counts : report.caches) {
        checked += counts.checked;
        EXPECT_EQ(counts.violations, 0U) << cache::to_json(report);
      }
    }
    EXPECT_GT(checked, 0U);
    std::printf("  %lu entries audited\n", static_cast<unsigned long>(checked));
  }
  // What the database holds.
  std::int64_t written(int row) const {
    return truth_->connect()->integer("SELECT v FROM item WHERE id = " + std::to_string(row + 1));
  }
  static void pass(int ms) { poll(nullptr, 0, ms); }

  std::unique_ptr<Load> load_;
};

}  // namespace larder::server
