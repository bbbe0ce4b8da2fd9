// A node that changes its near tier in all ways at once, and processes that read it meanwhile and
// are killed at random. LARDER_STRESS_SECONDS=60 for a longer look (3 s otherwise).
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "near/hits.h"
#include "near/store.h"
#include "stress.h"

extern char** environ;

namespace larder::stress {
namespace {

using near::Store;

constexpr unsigned kWriters = 2;
constexpr unsigned kTags = 64;  // a tag is of one writer, as its keys are

// A process of tests/near_readers/reader_process.cc.
class ReaderProcess {
 public:
  ReaderProcess(const std::string& name, const std::string& page, const char* how) {
    std::vector<std::string> words{LARDER_READER_PROCESS, name, page, "2", how};
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    if (posix_spawn(&pid_, argv[0], nullptr, nullptr, argv.data(), environ) != 0) std::abort();
  }
  ReaderProcess(const ReaderProcess&) = delete;
  ReaderProcess& operator=(const ReaderProcess&) = delete;
  ~ReaderProcess() {
    if (pid_ > 0) kill();
  }
  void kill() {
    ::kill(pid_, SIGKILL);
    wait();
  }
  int wait() {
    int status = 0;
    waitpid(std::exchange(pid_, -1), &status, 0);
    return status;
  }

 private:
  pid_t pid_ = -1;
};

class Node {
 public:
  explicit Node(const std::string& name, const policy::Rules& rules = {})
      : name_(name),
        page_name_("/" + name + "-page"),
        page_(*map_page(page_name_, true)),
        store_(std::make_unique<Store>(options(rules),
                                       *near::Arena::open_shared(name, options(rules).shape()))),
        hits_(*near::HitRing::create(name)) {
    // The index as large as it will ever be: it never shrinks. Some more, until it is done growing.
    std::uint64_t i = 0;
    while (store_->stats().evictions == 0) put(key_of(i++), "", kNever);
    for (const std::uint64_t end = 2 * i; i < end; ++i) put(key_of(i), "", kNever);
    store_->clear(false);
    at_start_ = store_->stats();
    publish();
  }
  ~Node() {
    shm_unlink(near::shared_object(name_).c_str());
    shm_unlink(near::shared_hits(name_).c_str());
    shm_unlink(page_name_.c_str());
    munmap(&page_, sizeof page_);
  }

  Page& page() { return page_; }
  Store& store() { return *store_; }
  const near::Stats& at_start() const { return at_start_; }
  ReaderProcess reader(const char* how) { return {name_, page_name_, how}; }

  // Changes everything until stop(), in threads of its own.
  void start() {
    for (unsigned i = 0; i < kWriters; ++i) threads_.emplace_back([this, i] { write(i); });
    threads_.emplace_back([this] { write_pairs(); });
    threads_.emplace_back([this] { keep(); });
  }
  void stop() {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  static near::Options options(const policy::Rules& rules) {
    return {
        .capacity_bytes = 4 << 20, .shards = 4, .partitions = 8, .tag_slots = 1024, .rules = rules};
  }

  void publish() {
    store_->publish_cache(1, true, 0, 0);
    store_->publish(monotonic_now_us(), kSecond, clock_anchor_us());
  }

  void put(const std::string& key, std::string_view value, TimeUs expiry) {
    const Hash hash = hash_bytes(key);
    Store::Locked locked(*store_, {&hash, 1});
    locked.put(key, hash, value, expiry);
  }

  static std::size_t size_of(std::mt19937& random) {
    switch (random() % 16) {
      case 0: return random() % kMaxValue;
      case 1:
      case 2: return random() % 4096;
      default: return random() % 256;
    }
  }

  // A key's, or a whole tag's, new version: invalidated, confirmed, loaded again.
  void write(unsigned writer) {
    std::mt19937 random(writer);
    while (!stop_) {
      const std::uint64_t key = random() % (kKeys / kWriters) * kWriters + writer;
      const std::string name = key_of(key);
      const Hash hash = hash_bytes(name);
      const Hash tag = hash_bytes("tag:" + std::to_string(key % kTags));
      const policy::Ticket before = store_->ticket(hash);
      if (random() % 256 == 0) {
        for (std::uint64_t other = key % kTags; other < kKeys; other += kTags) ++version_[other];
        store_->invalidate_tag(tag);
        for (std::uint64_t other = key % kTags; other < kKeys; other += kTags)
          page_.confirmed[other].store(version_[other], std::memory_order_release);
      } else {
        ++version_[key];
        store_->invalidate(hash, name, random() % 2 == 0);
        page_.confirmed[key].store(version_[key], std::memory_order_release);
      }
      fill(name, hash, tag, key, version_[key] - 1, random, before);  // too late
      if (random() % 8 != 0)
        fill(name, hash, tag, key, version_[key], random, store_->ticket(hash));
    }
  }

  void fill(const std::string& name, Hash hash, Hash tag, std::uint64_t key, std::uint64_t version,
            std::mt19937& random, const policy::Ticket& ticket) {
    const TimeUs now = monotonic_now_us();
    const TimeUs expiry = now + (random() % 4 == 0 ? 5 * kMillisecond : DurationUs{60} * kSecond);
    const near::Meta meta{
        .cache_id = 1, .as_of = now, .soft_expiry = expiry, .useless_at = expiry + kMillisecond};
    const std::string value = value_of(key, version, expiry, size_of(random));
    const std::array tags{tag};
    store_->fill(ticket, name, hash, value, meta, tags);
  }

  void write_pairs() {
    std::mt19937 random(99);
    for (std::uint64_t version = 1; !stop_; ++version) {
      const std::uint64_t pair = random() % kPairs;
      const std::array keys{pair_key(pair, 0), pair_key(pair, 1)};
      const std::array hashes{hash_bytes(keys[0]), hash_bytes(keys[1])};
      Store::Locked locked(*store_, hashes);
      for (int i = 0; i < 2; ++i)
        locked.put(keys[i], hashes[i], value_of(pair, version, kNever, size_of(random)), kNever);
    }
  }

  void keep() {
    for (unsigned round = 0; !stop_; ++round) {
      store_->expire(monotonic_now_us(), 256);
      publish();
      hits_.drain([this](Hash hash) { store_->count_hit(hash); });
      if (round % 16 == 0) store_->reset(round / 16 % 8);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }

  const std::string name_;
  const std::string page_name_;
  Page& page_;
  std::unique_ptr<Store> store_;
  near::HitRing hits_;
  near::Stats at_start_;
  std::array<std::uint64_t, kKeys> version_{};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

DurationUs duration() {
  const char* seconds = std::getenv("LARDER_STRESS_SECONDS");
  return (seconds != nullptr ? std::max(std::atoi(seconds), 1) : 3) * kSecond;
}

// Sleeps for `most`, or until `done`.
void wait_for(DurationUs most, const std::function<bool()>& done = [] { return false; }) {
  const TimeUs end = monotonic_now_us() + most;
  while (monotonic_now_us() < end && !done()) usleep(5000);
}

std::string name_of(const char* test) {
  return "test-" + std::string(test) + "-" + std::to_string(getpid());
}

TEST(NearReaders, ReadNothingTornNothingStaleAndHoldUpNobody) {
  Node node(name_of("stress"));
  Page& page = node.page();
  node.start();
  std::mt19937 random(1);
  int killed = 0;
  {
    std::vector<std::unique_ptr<ReaderProcess>> readers(2);
    for (auto& reader : readers) reader.reset(new ReaderProcess(node.reader("validated")));
    const TimeUs end = monotonic_now_us() + duration();
    while (monotonic_now_us() < end) {
      wait_for(random() % (200 * kMillisecond));
      readers[random() % readers.size()].reset(new ReaderProcess(node.reader("validated")));
      ++killed;
    }
    // A reader that lived as long as it liked has ended well.
    page.stop = 1;
    for (auto& reader : readers) EXPECT_EQ(reader->wait(), 0);
  }
  node.stop();
  EXPECT_EQ(page.torn.load(), 0U);
  EXPECT_EQ(page.stale.load(), 0U);
  EXPECT_EQ(page.late.load(), 0U);
  EXPECT_EQ(page.halves.load(), 0U);
  EXPECT_EQ(page.strange.load(), 0U);
  EXPECT_GT(page.found.load(), 100U);
  EXPECT_GT(page.pairs.load(), 10U);
  const std::uint64_t evictions = node.store().stats().evictions - node.at_start().evictions;
  EXPECT_GT(evictions, 0U);
  EXPECT_GT(node.store().stats().expirations, 0U);
  EXPECT_EQ(node.store().verify(), "");
  node.store().clear(true);
  node.store().clear(false);
  EXPECT_EQ(node.store().verify(), "");
  // Nothing but the index is left; each of its blocks may have moved into one that is larger by up
  // to two units.
  EXPECT_LE(node.store().stats().bytes, node.at_start().bytes * 129 / 128);
  RecordProperty("reads", std::to_string(page.reads.load()));
  std::printf("%lu reads, %lu found, %lu pairs, %d readers killed, %lu evictions\n",
              page.reads.load(), page.found.load(), page.pairs.load(), killed, evictions);
}

// The checks above can fail: readers without their proof.
TEST(NearReaders, ReadTornValuesWithoutValidation) {
  Node node(name_of("careless"));
  Page& page = node.page();
  node.start();
  ReaderProcess reader = node.reader("careless");
  wait_for(60 * kSecond, [&] { return page.torn.load() > 0; });
  page.stop = 1;
  reader.wait();
  node.stop();
  EXPECT_GT(page.torn.load(), 0U);
}

// A node that lets fills in whose tickets are void.
TEST(NearReaders, ReadStaleValuesWithoutTickets) {
  Node node(name_of("ticketless"), {.ticket = false, .tag_stamp = false, .later = false});
  Page& page = node.page();
  node.start();
  ReaderProcess reader = node.reader("validated");
  wait_for(60 * kSecond, [&] { return page.stale.load() > 0; });
  page.stop = 1;
  reader.wait();
  node.stop();
  EXPECT_GT(page.stale.load(), 0U);
  EXPECT_EQ(page.torn.load(), 0U);
}

}  // namespace
}  // namespace larder::stress
