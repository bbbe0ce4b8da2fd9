// The shared arena as an attaching process sees it: whatever stands in it, a reader stays inside,
// ends, and answers something. The input is a list of changes to a small valid arena; the arena is
// copied into a block of just its size, so that a byte beyond it is found out.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "near/reader.h"
#include "near/store.h"

namespace {

using larder::Hash;
using larder::TimeUs;
using namespace larder::near;

constexpr TimeUs kNow = 1'000'000;

// A valid arena with entries of every kind, and their keys.
struct Sample {
  std::vector<char> bytes;
  std::vector<std::string> keys;
};

void add(Store& store, std::vector<std::string>& keys, unsigned i) {
  keys.push_back("key:" + std::to_string(i) + std::string(i % 9, '.'));
  const std::string& key = keys.back();
  const Hash hash = larder::hash_bytes(key);
  const std::string value(i * 3 % 200, 'v');
  if (i % 4 == 0) {
    Store::Locked locked(store, {&hash, 1});
    locked.put(key, hash, value, i % 8 == 0 ? larder::kNever : kNow + 1000);
    return;
  }
  const std::vector<Hash> tags(i % 5, i);
  const Meta meta{.cache_id = static_cast<std::uint16_t>(i % 3),
                  .negative = i % 7 == 0,
                  .as_of = kNow,
                  .soft_expiry = i % 2 == 0 ? larder::kNever : kNow + 1000,
                  .useless_at = i % 2 == 0 ? larder::kNever : kNow + 2000};
  store.fill(store.ticket(hash), key, hash, value, meta, tags);
}

const Sample& sample() {
  static const Sample made = [] {
    larder::set_hash_seed(1);  // inputs mean the same in every run
    const Options options{
        .capacity_bytes = 64 << 10, .shards = 1, .partitions = 2, .tag_slots = 64, .caches = 2};
    Arena arena = *Arena::make_private(options.shape());
    const char* const base = arena.base();
    Store store(options, std::move(arena));
    Sample sample;
    for (unsigned i = 0; i < 200; ++i) add(store, sample.keys, i);
    store.publish_cache(1, true, 0, 0);
    store.publish_cache(2, true, 1'000'000, kNow);
    store.publish(kNow, larder::kSecond, 0);
    sample.bytes.assign(base, base + options.capacity_bytes);
    return sample;
  }();
  return made;
}

class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : at_(data), left_(size) {}
  bool more() const { return left_ > 0; }
  std::uint64_t take(std::size_t bytes) {
    std::uint64_t number = 0;
    bytes = std::min(bytes, left_);
    std::memcpy(&number, at_, bytes);
    at_ += bytes;
    left_ -= bytes;
    return number;
  }

 private:
  const std::uint8_t* at_;
  std::size_t left_;
};

void check(const Reader& reader, std::string_view key, std::size_t capacity) {
  const std::unique_ptr<char[]> buffer(new char[capacity]);
  const Reader::Read read = reader.get(key, buffer.get(), capacity);
  if (read.answer == Answer::found && read.size > capacity) std::abort();
  if (read.answer == Answer::too_small && read.size <= capacity) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const Sample& valid = sample();
  Input input(data, size);
  const auto how = static_cast<unsigned>(input.take(1));
  void* block = nullptr;
  // Cut short, sometimes.
  const std::size_t bytes = valid.bytes.size() - ((how & 4) != 0 ? input.take(2) : 0);
  if (posix_memalign(&block, 64, bytes) != 0) return 0;
  const std::unique_ptr<void, decltype(&std::free)> owner(block, &std::free);
  char* const memory = static_cast<char*>(block);
  std::memcpy(memory, valid.bytes.data(), bytes);
  while (input.more() && bytes >= sizeof(std::uint64_t)) {
    const std::uint64_t place = input.take(3);
    const std::uint64_t value = input.take(8);
    // A word, half of one, or a byte.
    const std::size_t count = std::size_t{8} >> (place & 3);
    const std::size_t at = (place >> 2) % (bytes / count) * count;
    std::memcpy(memory + at, &value, count);
  }
  // Mostly as a hostile writer would leave it, who knows how to make a checksum.
  if (auto& header = *reinterpret_cast<ArenaHeader*>(memory);
      (how & 1) != 0 && bytes >= sizeof header)
    header.checksum = checksum_of(header.fixed);
  const ReaderRules rules{.now = (how & 2) != 0 ? TimeUs{0} : kNow};
  const auto reader = Reader::over({memory, bytes}, rules);
  if (!reader) return 0;
  for (const std::string& key : valid.keys) check(*reader, key, how & 8 ? 512 : 20);
  for (unsigned i = 0; i < 16; ++i) check(*reader, std::string(i * i, 'k'), 0);
  (void)reader->lease_left();
  return 0;
}
