// The C API over an Attachment: no exception leaves here.
#include <algorithm>
#include <cstring>
#include <new>
#include <string_view>

#include "larder/near.h"
#include "near/attachment.h"

struct larder_near {
  std::unique_ptr<larder::near::Attachment> attachment;
};

using larder::near::Attachment;

extern "C" {

larder_near_result larder_near_open(const char* name, larder_near** handle) {
  if (handle == nullptr) return LARDER_NEAR_INVALID;
  *handle = nullptr;
  if (name == nullptr) return LARDER_NEAR_INVALID;
  try {
    auto attachment = Attachment::open(name);
    if (!attachment) return attachment.error();
    *handle = new larder_near{std::move(*attachment)};
    return LARDER_NEAR_FOUND;
  } catch (const std::exception&) {
    return LARDER_NEAR_SYSTEM;
  }
}

larder_near_result larder_near_get(larder_near* handle, const void* key, size_t key_size,
                                   void* buffer, size_t capacity, size_t* size) {
  if (size == nullptr) return LARDER_NEAR_INVALID;
  *size = 0;
  if (handle == nullptr || (key == nullptr && key_size > 0) || (buffer == nullptr && capacity > 0))
    return LARDER_NEAR_INVALID;
  try {
    const Attachment::Got got = handle->attachment->get({static_cast<const char*>(key), key_size},
                                                        static_cast<char*>(buffer), capacity);
    *size = got.size;
    return got.result;
  } catch (const std::exception&) {
    return LARDER_NEAR_SYSTEM;  // a node has come again, and there is no memory to follow it
  }
}

larder_near_result larder_near_stats(larder_near* handle, larder_near_info* info,
                                     size_t info_size) {
  if (handle == nullptr || info == nullptr) return LARDER_NEAR_INVALID;
  const larder_near_info all = handle->attachment->info();
  std::memset(info, 0, info_size);
  std::memcpy(info, &all, std::min(info_size, sizeof all));
  return LARDER_NEAR_FOUND;
}

void larder_near_close(larder_near* handle) { delete handle; }

const char* larder_near_text(larder_near_result result) {
  switch (result) {
    case LARDER_NEAR_FOUND: return "found";
    case LARDER_NEAR_ABSENT: return "the source has no such row";
    case LARDER_NEAR_MISS: return "not in the near tier: ask the node";
    case LARDER_NEAR_TOO_SMALL: return "the buffer is too small";
    case LARDER_NEAR_NODE_DOWN: return "the node is not alive";
    case LARDER_NEAR_RESTARTED: return "the node has started again";
    case LARDER_NEAR_INVALID: return "invalid argument";
    case LARDER_NEAR_NOT_FOUND: return "there is no near tier of this name";
    case LARDER_NEAR_DENIED: return "no permission to read the near tier, or it is not safe";
    case LARDER_NEAR_VERSION: return "the near tier is that of another version of Larder";
    case LARDER_NEAR_CORRUPT: return "the near tier is damaged";
    case LARDER_NEAR_SYSTEM: return "out of memory or file descriptors";
  }
  return "unknown result";
}

const char* larder_near_version(void) { return LARDER_VERSION; }

}  // extern "C"
