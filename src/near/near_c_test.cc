// The C API against stores in real shared memory, in one process: names, lives, errors, counts.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <memory>
#include <thread>

#include "larder/near.h"
#include "near/hits.h"
#include "near/store_testing.h"

namespace larder::near {
namespace {

constexpr DurationUs kLease = 60 * kSecond;

// The node's side: a store in shared memory, in one of its lives.
class Node {
 public:
  explicit Node(const std::string& name, const Options& options = small_options())
      : Node(options, *Arena::open_shared(name, options.shape())) {}

  Store& store() { return store_; }
  ArenaHeader& header() { return header_; }
  void publish() {
    store_.publish_cache(1, true, 0, 0);
    store_.publish(monotonic_now_us(), kLease, clock_anchor_us());
  }

 private:
  Node(const Options& options, Arena arena)
      : header_(arena.header()), store_(options, std::move(arena)) {
    store_.take_over(monotonic_now_us(), clock_anchor_us(),
                     [](std::uint16_t) { return Store::Trust::full; });
    publish();
  }
  ArenaHeader& header_;
  Store store_;
};

class NearC : public testing::Test {
 protected:
  NearC() : name_("test-near-" + std::to_string(getpid())) {}
  ~NearC() override {
    larder_near_close(handle_);
    shm_unlink(object().c_str());
    shm_unlink(shared_hits(name_).c_str());
  }

  std::string object() const { return shared_object(name_); }
  larder_near_result open() { return larder_near_open(name_.c_str(), &handle_); }
  // "+value", or the result's name.
  std::string get(std::string_view key) {
    std::array<char, 4096> buffer{};
    std::size_t size = 77;
    const larder_near_result result =
        larder_near_get(handle_, key.data(), key.size(), buffer.data(), buffer.size(), &size);
    if (result == LARDER_NEAR_FOUND) return "+" + std::string(buffer.data(), size);
    EXPECT_EQ(size, 0U);
    return names_.at(result);
  }
  // As often as it takes: for what takes a moment.
  std::string get_until(std::string_view key, const std::string& wanted) {
    std::string got;
    for (int i = 0; i < 10'000 && got != wanted; ++i) {
      got = get(key);
      if (got != wanted) usleep(1000);
    }
    return got;
  }
  void write_object(std::string_view bytes, mode_t mode = 0640) {
    shm_unlink(object().c_str());
    const int fd = shm_open(object().c_str(), O_RDWR | O_CREAT, mode);
    ASSERT_GE(fd, 0);
    ASSERT_EQ(fchmod(fd, mode), 0);
    ASSERT_EQ(write(fd, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
    close(fd);
  }

  const std::map<larder_near_result, std::string> names_{
      {LARDER_NEAR_ABSENT, "absent"},       {LARDER_NEAR_MISS, "miss"},
      {LARDER_NEAR_NODE_DOWN, "node_down"}, {LARDER_NEAR_RESTARTED, "restarted"},
      {LARDER_NEAR_CORRUPT, "corrupt"},     {LARDER_NEAR_VERSION, "version"}};
  std::string name_;
  larder_near* handle_ = nullptr;
};

TEST_F(NearC, ReadsWhatTheNodeHolds) {
  Node node(name_);
  ASSERT_EQ(open(), LARDER_NEAR_FOUND);
  EXPECT_EQ(get("key"), "miss");
  put_now(node.store(), "key", std::string("a\0b", 3));
  EXPECT_EQ(get("key"), "+" + std::string("a\0b", 3));
  Meta negative = declared();
  negative.negative = true;
  fill_now(node.store(), "none", "", negative);
  EXPECT_EQ(get("none"), "absent");
  std::size_t size = 0;
  EXPECT_EQ(larder_near_get(handle_, "key", 3, nullptr, 0, &size), LARDER_NEAR_TOO_SMALL);
  EXPECT_EQ(size, 3U);
  EXPECT_EQ(get(std::string(2 << 20, 'k')), "miss");  // longer than a key can be
}

TEST_F(NearC, RefusesWhatCannotBe) {
  EXPECT_EQ(larder_near_open(nullptr, &handle_), LARDER_NEAR_INVALID);
  EXPECT_EQ(larder_near_open("name", nullptr), LARDER_NEAR_INVALID);
  for (const std::string name : {"", "a/b", "../a", "a b", "\xff"})
    EXPECT_EQ(larder_near_open(name.c_str(), &handle_), LARDER_NEAR_INVALID) << name;
  EXPECT_EQ(handle_, nullptr);
  Node node(name_);
  ASSERT_EQ(open(), LARDER_NEAR_FOUND);
  char byte = 0;
  std::size_t size = 1;
  EXPECT_EQ(larder_near_get(nullptr, "k", 1, &byte, 1, &size), LARDER_NEAR_INVALID);
  EXPECT_EQ(size, 0U);
  EXPECT_EQ(larder_near_get(handle_, nullptr, 1, &byte, 1, &size), LARDER_NEAR_INVALID);
  EXPECT_EQ(larder_near_get(handle_, "k", 1, nullptr, 1, &size), LARDER_NEAR_INVALID);
  EXPECT_EQ(larder_near_get(handle_, "k", 1, &byte, 1, nullptr), LARDER_NEAR_INVALID);
  EXPECT_EQ(larder_near_get(handle_, nullptr, 0, nullptr, 0, &size), LARDER_NEAR_MISS);
  EXPECT_EQ(larder_near_stats(handle_, nullptr, 0), LARDER_NEAR_INVALID);
  larder_near_close(nullptr);
}

TEST_F(NearC, SaysWhyItCannotOpen) {
  EXPECT_EQ(open(), LARDER_NEAR_NOT_FOUND);
  write_object("");
  EXPECT_EQ(open(), LARDER_NEAR_NOT_FOUND);  // it is being made
  std::string bytes(8192, '\0');
  write_object(bytes);
  EXPECT_EQ(open(), LARDER_NEAR_NOT_FOUND);
  auto& header = *reinterpret_cast<ArenaHeader*>(bytes.data());
  header.state.store(ArenaHeader::State::serving);
  write_object(bytes);
  EXPECT_EQ(open(), LARDER_NEAR_CORRUPT);
  header.fixed.magic = ArenaHeader::kMagic;
  header.fixed.layout = ArenaHeader::kLayout + 1;
  write_object(bytes);
  EXPECT_EQ(open(), LARDER_NEAR_VERSION);
  write_object(bytes, 0666);
  EXPECT_EQ(open(), LARDER_NEAR_DENIED);
  if (geteuid() != 0) {
    write_object(bytes, 0000);
    EXPECT_EQ(open(), LARDER_NEAR_DENIED);
  }
  EXPECT_EQ(handle_, nullptr);
}

TEST_F(NearC, SaysWhenTheNodeIsDown) {
  Node node(name_);
  put_now(node.store(), "key", "value");
  ASSERT_EQ(open(), LARDER_NEAR_FOUND);
  node.store().publish(monotonic_now_us(), -1, clock_anchor_us());
  EXPECT_EQ(get("key"), "node_down");
  node.publish();
  EXPECT_EQ(get("key"), "+value");
  node.store().close_shared();
  EXPECT_EQ(get("key"), "node_down");
}

TEST_F(NearC, TellsOnceThatTheNodeHasStartedAgain) {
  auto node = std::make_unique<Node>(name_);
  ASSERT_EQ(open(), LARDER_NEAR_FOUND);
  for (int life = 0; life < 3; ++life) {
    put_now(node->store(), "key", "value" + std::to_string(life));
    EXPECT_EQ(get("key"), "+value" + std::to_string(life));
    node->store().close_shared();
    node.reset();
    EXPECT_EQ(get("key"), "node_down");
    node = std::make_unique<Node>(name_);
    EXPECT_EQ(get("key"), "restarted");
    EXPECT_EQ(get("key"), "+value" + std::to_string(life));  // taken over
  }
}

// What a node leaves that is killed: the object as it was, with its lease.
TEST_F(NearC, FollowsANodeThatTookOverWithAnotherSeed) {
  auto node = std::make_unique<Node>(name_);
  ASSERT_EQ(open(), LARDER_NEAR_FOUND);
  put_now(node->store(), "key", "value");
  EXPECT_EQ(get("key"), "+value");
  node.reset();
  EXPECT_EQ(get("key"), "+value");  // its lease has not run out
  const std::uint64_t seed = hash_seed();
  set_hash_seed(seed + 1);
  node = std::make_unique<Node>(name_);
  EXPECT_EQ(get("key"), "restarted");
  EXPECT_EQ(get("key"), "+value");
  set_hash_seed(seed);
}

TEST_F(NearC, FollowsTheNameToAnotherObject) {
  auto node = std::make_unique<Node>(name_);
  ASSERT_EQ(open(), LARDER_NEAR_FOUND);
  put_now(node->store(), "key", "value");
  EXPECT_EQ(get("key"), "+value");
  node.reset();
  Options larger = small_options();
  larger.capacity_bytes *= 2;
  node = std::make_unique<Node>(name_, larger);
  EXPECT_EQ(get_until("key", "restarted"), "restarted");
  EXPECT_EQ(get("key"), "miss");
  put_now(node->store(), "key", "other");
  EXPECT_EQ(get("key"), "+other");
  larder_near_info info{};
  ASSERT_EQ(larder_near_stats(handle_, &info, sizeof info), LARDER_NEAR_FOUND);
  EXPECT_EQ(info.bytes, larger.capacity_bytes);
}

TEST_F(NearC, FindsAnObjectThatTookTheNameSilently) {
  auto node = std::make_unique<Node>(name_);
  put_now(node->store(), "key", "value");
  ASSERT_EQ(open(), LARDER_NEAR_FOUND);
  node->store().publish(monotonic_now_us(), -1, clock_anchor_us());  // killed long ago
  node.reset();
  shm_unlink(object().c_str());  // by hand
  EXPECT_EQ(get("key"), "node_down");
  node = std::make_unique<Node>(name_);
  EXPECT_EQ(get_until("key", "restarted"), "restarted");
  EXPECT_EQ(get("key"), "miss");
}

TEST_F(NearC, CountsWhatItAnswers) {
  Node node(name_);
  put_now(node.store(), "key", "value");
  ASSERT_EQ(open(), LARDER_NEAR_FOUND);
  for (int i = 0; i < 5; ++i) get("key");
  for (int i = 0; i < 3; ++i) get("unknown");
  std::size_t size = 0;
  larder_near_get(handle_, "key", 3, nullptr, 0, &size);
  larder_near_info info{};
  ASSERT_EQ(larder_near_stats(handle_, &info, sizeof info), LARDER_NEAR_FOUND);
  EXPECT_EQ(info.found, 5U);
  EXPECT_EQ(info.misses, 3U);
  EXPECT_EQ(info.too_small, 1U);
  EXPECT_EQ(info.absent + info.node_down + info.restarted + info.corrupt, 0U);
  EXPECT_EQ(info.bytes, small_options().capacity_bytes);
  EXPECT_GT(info.lease_us, 0);
  EXPECT_LE(info.lease_us, kLease);
  // A program that was built with an older version knows less of it, one with a newer one more.
  std::array<std::uint64_t, 32> more{};
  more.fill(~0ULL);
  ASSERT_EQ(larder_near_stats(handle_, reinterpret_cast<larder_near_info*>(more.data()), 8),
            LARDER_NEAR_FOUND);
  EXPECT_EQ(more[0], 5U);
  EXPECT_EQ(more[1], ~0ULL);
  ASSERT_EQ(
      larder_near_stats(handle_, reinterpret_cast<larder_near_info*>(more.data()), sizeof more),
      LARDER_NEAR_FOUND);
  EXPECT_EQ(more[31], 0U);
  node.store().close_shared();
  ASSERT_EQ(larder_near_stats(handle_, &info, sizeof info), LARDER_NEAR_FOUND);
  EXPECT_LE(info.lease_us, 0);
}

TEST_F(NearC, TellsTheNodeOfItsHits) {
  Node node(name_);
  HitRing ring = *HitRing::create(name_);
  put_now(node.store(), "key", "value");
  ASSERT_EQ(open(), LARDER_NEAR_FOUND);
  EXPECT_EQ(get("key"), "+value");
  std::map<Hash, int> hits;
  ring.drain([&](Hash hash) {
    ++hits[hash];
    node.store().count_hit(hash);
  });
  EXPECT_EQ(hits, (std::map<Hash, int>{{hash_bytes("key"), 1}}));
}

TEST_F(NearC, IsForAllThreadsWhileNodesComeAndGo) {
  auto node = std::make_unique<Node>(name_);
  put_now(node->store(), "key", "value");
  ASSERT_EQ(open(), LARDER_NEAR_FOUND);
  std::atomic<bool> done{false};
  std::atomic<int> found{0};
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      while (!done.load()) {
        const std::string got = get("key");
        if (got == "+value") ++found;
        if (got[0] == '+' && got != "+value") ++wrong;
        if (got == "corrupt" || got == "version") ++wrong;
      }
    });
  for (int life = 0; life < 20; ++life) {
    Options options = small_options();
    if (life % 3 == 0) options.capacity_bytes *= 2;
    const int before = found.load();
    node.reset();
    node = std::make_unique<Node>(name_, options);
    put_now(node->store(), "key", "value");
    while (found.load() < before + 10) std::this_thread::yield();
  }
  done = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong.load(), 0);
}

TEST_F(NearC, SaysEverythingInWords) {
  for (int result = -7; result < 7; ++result)
    EXPECT_NE(std::string(larder_near_text(static_cast<larder_near_result>(result))), "");
  EXPECT_EQ(std::string(larder_near_version()), LARDER_VERSION);
}

}  // namespace
}  // namespace larder::near
