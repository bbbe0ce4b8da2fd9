#include "demo/load.h"

#include <fmt/format.h>

#include <chrono>
#include <thread>

#include <cmath>

#include "base/clock.h"
#include "base/random.h"
#include "remote.h"

namespace larder::app {
namespace {

constexpr int kReaders = 2;
constexpr std::size_t kInFlight = 32;

// "price":12.5 in a product's JSON.
bool shows_price(const std::string& json, double price) {
  return json.find(fmt::format("\"price\":{}", price)) != std::string::npos;
}

}  // namespace

DemoLoad::DemoLoad(std::string address, std::string database, const ShopSize& size,
                   DemoFigures& figures)
    : address_(std::move(address)), database_(std::move(database)), size_(size), figures_(figures) {
  double sum = 0;
  popularity_.reserve(static_cast<std::size_t>(size.products));
  for (std::int64_t rank = 1; rank <= size.products; ++rank)
    popularity_.push_back(sum += 1.0 / static_cast<double>(rank));
}

DemoLoad::~DemoLoad() { stop(); }

void DemoLoad::start() {
  for (int i = 0; i < kReaders; ++i)
    threads_.emplace_back([this, i] { read(static_cast<std::uint64_t>(i) + 1); });
  threads_.emplace_back([this] { change_prices(); });
}

void DemoLoad::stop() {
  stopping_ = true;
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

std::string DemoLoad::failure() const {
  MutexLock lock(mutex_);
  return failure_;
}

void DemoLoad::failed(const std::string& what) {
  if (stopping_) return;  // the node goes away first
  MutexLock lock(mutex_);
  if (failure_.empty()) failure_ = what;
}

void DemoLoad::read(std::uint64_t seed) {
  Result<Remote> client = Remote::connect(address_, {}, 10);
  if (!client) return failed(client.error().message);
  Random random(seed);
  // Popular products are not the ones with small ids: an odd factor spreads the ranks.
  const auto product = [&] {
    const double at = random.unit() * popularity_.back();
    const auto rank = std::ranges::lower_bound(popularity_, at) - popularity_.begin();
    return static_cast<std::int64_t>(static_cast<std::uint64_t>(rank) * 7'919 %
                                     static_cast<std::uint64_t>(size_.products)) +
           1;
  };
  std::vector<std::vector<std::string>> commands(kInFlight);
  while (!stopping_) {
    for (auto& command : commands) {
      const std::uint64_t kind = random.below(100);
      command = {"GET", kind < 90 ? fmt::format("product:{}", product())
                        : kind < 95
                            ? fmt::format("user:{}",
                                          1 + random.below(static_cast<std::uint64_t>(size_.users)))
                            : fmt::format("reviews:{}", product())};
    }
    const auto replies = client->pipeline(commands);
    if (!replies) return failed(replies.error().message);
    for (const wire::Reply& reply : *replies)
      if (reply.type == wire::Reply::Type::error) {
        figures_.errors.fetch_add(1);
        failed(reply.text);
      }
    figures_.reads.fetch_add(replies->size());
  }
}

// Changes a popular price by SQL, as any other program would, and watches as a reader until it
// shows.
void DemoLoad::change_prices() {
  auto changer = PriceChanger::open(database_);
  if (!changer) return failed(changer.error().message);
  Result<Remote> client = Remote::connect(address_, {}, 10);
  if (!client) return failed(client.error().message);
  Random random(99);
  while (!stopping_) {
    // Not in step with the feed's polls.
    std::this_thread::sleep_for(std::chrono::microseconds(20'000 + random.below(30'000)));
    const std::int64_t id = static_cast<std::int64_t>(random.below(200) * 7'919 %
                                                      static_cast<std::uint64_t>(size_.products)) +
                            1;
    const std::string key = fmt::format("product:{}", id);
    if (auto warm = client->call({"GET", key}); !warm) return failed(warm.error().message);
    // A price that nobody had before: a half cent marks it.
    const double price = static_cast<double>(100 + random.below(20'000)) / 100.0 + 0.005;
    if (auto done = (*changer)->set_price(id, price); !done) return failed(done.error().message);
    const TimeUs committed = monotonic_now_us();
    figures_.changes.fetch_add(1);
    while (!stopping_) {
      const auto reply = client->call({"GET", key});
      if (!reply) return failed(reply.error().message);
      if (!shows_price(reply->text, price)) {
        std::this_thread::sleep_for(std::chrono::microseconds(200));
        continue;
      }
      figures_.saw_fresh(monotonic_now_us() - committed);
      break;
    }
  }
}

}  // namespace larder::app
