// A process's hold on the near tier of a node, by its name: the mapping, a reader of it, hints for
// the node, and counts. Follows the node through its lives: a node that starts again with the same
// shape goes on with the object that is mapped here; else the name leads to another one.
//
// Thread-safe; no call waits for another. Behind the C API (include/larder/near.h).
#pragma once

#include <array>
#include <atomic>
#include <expected>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "larder/near.h"
#include "near/hits.h"
#include "near/reader.h"

namespace larder::near {

class Attachment {
 public:
  // The error is one of LARDER_NEAR_INVALID, NOT_FOUND, DENIED, VERSION, CORRUPT, SYSTEM.
  static std::expected<std::unique_ptr<Attachment>, larder_near_result> open(std::string_view name);
  Attachment(const Attachment&) = delete;
  Attachment& operator=(const Attachment&) = delete;
  ~Attachment();

  struct Got {
    larder_near_result result;
    std::size_t size;
  };
  Got get(std::string_view key, char* buffer, std::size_t capacity);
  larder_near_info info() const;

  // How often a node that is down is looked for under its name.
  static constexpr DurationUs kLookAgain = 20 * kMillisecond;

 private:
  struct Mapping {
    char* base = nullptr;
    std::size_t size = 0;
    std::uint64_t device = 0;
    std::uint64_t file = 0;

    bool same_file(const Mapping& other) const {
      return device == other.device && file == other.file;
    }
    std::span<const char> span() const { return {base, size}; }
  };
  static constexpr std::size_t kLanes = 64;
  static constexpr std::size_t kCorrupt = LARDER_NEAR_RESTARTED + 1;
  static constexpr std::size_t kResults = kCorrupt + 1;  // those from 0 up, and this one
  struct alignas(64) Counts {
    std::array<std::atomic<std::uint64_t>, kResults> of{};
  };

  explicit Attachment(std::string_view name) : name_(name), hits_(name) {}

  static std::expected<Mapping, larder_near_result> map(std::string_view name,
                                                        const Mapping& known);
  larder_near_result attach();
  larder_near_result renew(const Reader* seen);
  larder_near_result renew_now(const Reader* seen);
  void use(const Reader& reader);
  void add(unsigned lane, std::size_t result);

  const std::string name_;
  std::atomic<const Reader*> reader_{nullptr};
  // Changed while `renewing_` is held. What was ever read stays until the end: another thread may
  // look at it still.
  std::atomic<bool> renewing_{false};
  std::vector<std::unique_ptr<const Reader>> readers_;
  std::vector<Mapping> mappings_;  // the last one is current
  std::atomic<TimeUs> look_again_{0};
  std::array<Counts, kLanes> counts_;
  HitWriter hits_;
};

}  // namespace larder::near
