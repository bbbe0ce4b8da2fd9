// A process that reads the near tier of the stress test, and looks at every byte of it.
//
//   near_reader_process NAME PAGE THREADS validated|careless
//
// `careless` reads without proof that nothing moved meanwhile: the negative control.
#include <cstdio>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "larder/near.h"
#include "near/reader.h"
#include "stress.h"

namespace larder::stress {
namespace {

class Source {
 public:
  virtual ~Source() = default;
  virtual larder_near_result get(std::string_view key, std::string& buffer, std::size_t& size) = 0;
};

class Validated : public Source {
 public:
  explicit Validated(const char* name) {
    if (larder_near_open(name, &handle_) != LARDER_NEAR_FOUND) std::abort();
  }
  ~Validated() override { larder_near_close(handle_); }
  larder_near_result get(std::string_view key, std::string& buffer, std::size_t& size) override {
    return larder_near_get(handle_, key.data(), key.size(), buffer.data(), buffer.size(), &size);
  }

 private:
  larder_near* handle_ = nullptr;
};

class Careless : public Source {
 public:
  explicit Careless(const char* name) : reader_(over(name)) {}
  larder_near_result get(std::string_view key, std::string& buffer, std::size_t& size) override {
    const near::Reader::Read read = reader_.get(key, buffer.data(), buffer.size());
    size = read.size;
    return read.answer == near::Answer::found ? LARDER_NEAR_FOUND : LARDER_NEAR_MISS;
  }

 private:
  static near::Reader over(const char* name) {
    const int fd = shm_open(near::shared_object(name).c_str(), O_RDONLY, 0);
    const off_t size = lseek(fd, 0, SEEK_END);
    void* base = mmap(nullptr, static_cast<std::size_t>(size), PROT_READ, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) std::abort();
    close(fd);
    return *near::Reader::over({static_cast<const char*>(base), static_cast<std::size_t>(size)},
                               {.validate = false});
  }
  near::Reader reader_;
};

class Loop {
 public:
  Loop(Page& page, Source& source, unsigned seed) : page_(page), source_(source), random_(seed) {}

  void run() {
    while (page_.stop.load(std::memory_order_relaxed) == 0)
      random_() % 8 == 0 ? read_pair() : read_key();
  }

 private:
  larder_near_result get(const std::string& key) {
    page_.reads.fetch_add(1, std::memory_order_relaxed);
    const larder_near_result result = source_.get(key, buffer_, size_);
    if (result == LARDER_NEAR_FOUND)
      page_.found.fetch_add(1, std::memory_order_relaxed);
    else if (result != LARDER_NEAR_MISS && result != LARDER_NEAR_NODE_DOWN)
      page_.strange.fetch_add(1);
    return result;
  }

  void read_key() {
    // Some are read far more often than others.
    const std::uint64_t key = random_() % (random_() % 2 == 0 ? kKeys / 16 : kKeys);
    const std::uint64_t confirmed = page_.confirmed[key].load(std::memory_order_acquire);
    const TimeUs start = monotonic_now_us();
    if (get(key_of(key)) != LARDER_NEAR_FOUND) return;
    Stamp stamp{};
    if (!parse({buffer_.data(), size_}, key, stamp)) {
      page_.torn.fetch_add(1);
      return;
    }
    if (stamp.version < confirmed) page_.stale.fetch_add(1);
    // The processes' wall clocks were read at different moments; nobody steps them by a second.
    if (stamp.expiry + kSecond <= start) page_.late.fetch_add(1);
  }

  void read_pair() {
    const std::uint64_t pair = random_() % kPairs;
    Stamp left{};
    Stamp right{};
    if (get(pair_key(pair, 0)) != LARDER_NEAR_FOUND) return;
    if (!parse({buffer_.data(), size_}, pair, left)) page_.torn.fetch_add(1);
    if (get(pair_key(pair, 1)) != LARDER_NEAR_FOUND) return;
    if (!parse({buffer_.data(), size_}, pair, right)) page_.torn.fetch_add(1);
    page_.pairs.fetch_add(1, std::memory_order_relaxed);
    if (right.version < left.version) page_.halves.fetch_add(1);
  }

  Page& page_;
  Source& source_;
  std::mt19937 random_;
  std::string buffer_ = std::string(kMaxValue + sizeof(Stamp), '\0');
  std::size_t size_ = 0;
};

int run(char** argv) {
  Page& page = *map_page(argv[2], false);
  std::unique_ptr<Source> source;
  if (std::string_view(argv[4]) == "careless")
    source = std::make_unique<Careless>(argv[1]);
  else
    source = std::make_unique<Validated>(argv[1]);
  std::vector<std::thread> threads;
  std::random_device seed;
  for (int i = std::atoi(argv[3]); i > 0; --i)
    threads.emplace_back([&, random = seed()] { Loop(page, *source, random).run(); });
  for (std::thread& thread : threads) thread.join();
  return 0;
}

}  // namespace
}  // namespace larder::stress

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fputs("near_reader_process NAME PAGE THREADS validated|careless\n", stderr);
    return 2;
  }
  return larder::stress::run(argv);
}
