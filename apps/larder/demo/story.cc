#include "demo/story.h"

#include <fmt/format.h>

#include <chrono>
#include <thread>

#include "base/clock.h"
#include "demo/shop.h"
#include "remote.h"

namespace larder::app {
namespace {

constexpr std::int64_t kProduct = 77'777;  // nobody's favourite: the load rarely asks for it
constexpr double kNewPrice = 4.2;

std::string field(const wire::Reply& map, std::string_view name) {
  for (std::size_t i = 0; i + 1 < map.elements.size(); i += 2) {
    if (map.elements[i].text != name) continue;
    const wire::Reply& value = map.elements[i + 1];
    return value.type == wire::Reply::Type::integer ? std::to_string(value.integer) : value.text;
  }
  return {};
}

std::string shortened(std::string text) {
  constexpr std::size_t kShown = 78;
  if (text.size() > kShown) text = text.substr(0, kShown) + "…";
  return text;
}

class Teller {
 public:
  Teller(Remote client, std::string key) : client_(std::move(client)), key_(std::move(key)) {}

  Result<wire::Reply> ask(const std::vector<std::string>& command) {
    Result<wire::Reply> reply = client_.call(command);
    if (reply && reply->type == wire::Reply::Type::error)
      return fail(ErrorCode::internal, reply->text);
    return reply;
  }

  // LARDER.GET, and what it says. The tier must be `expected`.
  Result<std::string> get(int step, std::string_view title, std::string_view expected) {
    const TimeUs began = monotonic_now_us();
    Result<wire::Reply> reply = ask({"LARDER.GET", key_});
    const TimeUs took = monotonic_now_us() - began;
    if (!reply) return std::unexpected(reply.error());
    const std::string tier = field(*reply, "tier");
    fmt::print(
        "\n{}. {}\n   > LARDER.GET {}\n   {}\n   from {}, {} us for the round trip, age {} ms, ttl "
        "{} ms\n",
        step, title, key_, shortened(field(*reply, "value")), tier, took, field(*reply, "age_ms"),
        field(*reply, "ttl_ms"));
    if (!expected.empty() && tier != expected)
      return fail(ErrorCode::internal, fmt::format("step {} was answered by '{}' instead of '{}'",
                                                   step, tier, expected));
    return field(*reply, "value");
  }

  Result<void> explain() {
    Result<wire::Reply> reply = ask({"LARDER.EXPLAIN", key_});
    if (!reply) return std::unexpected(reply.error());
    fmt::print("   > LARDER.EXPLAIN {}\n", key_);
    for (std::size_t i = 0; i + 1 < reply->elements.size(); i += 2)
      fmt::print("     {:<18} {}\n", reply->elements[i].text, reply->elements[i + 1].text);
    return {};
  }

 private:
  Remote client_;
  std::string key_;
};

}  // namespace

Result<void> tell_story(const std::string& address, const std::string& database) {
  const std::string key = fmt::format("product:{}", kProduct);
  Result<Remote> client = Remote::connect(address, {}, 10);
  if (!client) return std::unexpected(client.error());
  Teller teller(std::move(*client), key);
  auto changer = PriceChanger::open(database);
  if (!changer) return std::unexpected(changer.error());

  fmt::print("\nThe story of one key, {}\n", key);
  if (auto cleared = teller.ask({"LARDER.INVALIDATE", "KEY", key}); !cleared)
    return std::unexpected(cleared.error());
  if (auto miss = teller.get(1, "A miss: nobody holds it, so it is loaded and stored.", "source");
      !miss)
    return std::unexpected(miss.error());
  if (auto hit = teller.get(2, "A hit: the same answer, and the database was not asked.", "near");
      !hit)
    return std::unexpected(hit.error());

  fmt::print(
      "\n3. Somebody changes the price in the database; Larder is not told.\n"
      "   sqlite> UPDATE product SET price = {} WHERE id = {};\n",
      kNewPrice, kProduct);
  if (auto done = (*changer)->set_price(kProduct, kNewPrice); !done) return done;
  const TimeUs committed = monotonic_now_us();

  // Watched through EXPLAIN, which loads nothing.
  std::string by;
  while (by.empty()) {
    Result<wire::Reply> reply = teller.ask({"LARDER.EXPLAIN", key});
    if (!reply) return std::unexpected(reply.error());
    const std::string last = field(*reply, "last_invalidation");
    if (last.find("by shop") != std::string::npos) by = last;
    if (monotonic_now_us() - committed > 5 * kSecond)
      return fail(ErrorCode::timeout, "the change was not noticed within 5 s");
    if (by.empty()) std::this_thread::sleep_for(std::chrono::microseconds(500));
  }
  fmt::print("\n4. Invalidated {:.1f} ms after the COMMIT.\n",
             static_cast<double>(monotonic_now_us() - committed) / kMillisecond);
  if (auto told = teller.explain(); !told) return told;

  Result<std::string> fresh =
      teller.get(5, "Fresh: the next read loads what is there now.", "source");
  if (!fresh) return std::unexpected(fresh.error());
  if (fresh->find(fmt::format("\"price\":{}", kNewPrice)) == std::string::npos)
    return fail(ErrorCode::internal, "the story ended with a stale price: " + *fresh);
  return {};
}

}  // namespace larder::app
