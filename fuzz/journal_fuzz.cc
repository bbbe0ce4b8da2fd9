// Whatever lies in a journal's segment: it is read without going beyond it, what is found is
// numbered without a gap, and what is cut off after it leaves exactly that.
#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"
#include "journal/frame.h"

namespace journal = larder::journal;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  // The first byte: how the others become a segment; checksums are not found by chance.
  if (rest.empty()) return 0;
  const unsigned how = static_cast<unsigned char>(rest.front());
  rest.remove_prefix(1);
  constexpr std::uint64_t kId = 9;
  std::string bytes = how % 4 == 0 ? std::string() : encode(journal::SegmentHeader{kId, 1});
  if (how % 4 >= 2) {
    journal::FrameWriter writer;
    writer.add(rest.substr(0, rest.size() / 2));
    writer.add("");
    bytes += writer.finish(kId, 1);
    if (how % 4 == 3 && bytes.size() > how) bytes[how] = static_cast<char>(bytes[how] ^ 1);
  }
  bytes += rest;
  journal::Seq expected = 1;
  const journal::Scan found =
      journal::scan(bytes, kId, [&](journal::Seq seq, std::string_view record) {
        LARDER_ASSERT(!expected || seq >= expected);
        LARDER_ASSERT(record.data() >= bytes.data() &&
                      record.data() + record.size() <= bytes.data() + bytes.size());
        expected = seq + 1;
      });
  LARDER_ASSERT(found.good <= bytes.size());
  LARDER_ASSERT(!found.behind || *found.behind >= found.good);
  if (!found.header) return 0;
  const journal::Scan again = journal::scan(std::string_view(bytes).substr(0, found.good), kId, {});
  LARDER_ASSERT(again.good == found.good && again.next == found.next && !again.behind);
  return 0;
}
