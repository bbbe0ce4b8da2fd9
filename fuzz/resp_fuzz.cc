// Commands fed in random pieces must parse as when fed whole; the reply parser must survive
// anything.
#include "wire/resp.h"

#include "base/error.h"
#include "base/random.h"

namespace {

using larder::wire::CommandParser;

// Small limits, so that the fuzzer reaches them.
constexpr larder::wire::Limits kLimits{
    .max_arguments = 64, .max_bulk_bytes = 512, .max_inline_bytes = 64, .max_command_bytes = 1024};

// Every command and error in `input`, each word ended by its length: one string to compare.
std::string parse(std::string_view input, std::uint64_t seed) {
  std::string seen;
  larder::Random random(seed);
  CommandParser parser(kLimits);
  std::size_t begin = 0;
  std::size_t end = seed == 0 ? input.size() : 0;
  for (;;) {
    const std::string piece(input.substr(begin, end - begin));
    switch (parser.next(piece)) {
      case CommandParser::Status::error: return seen + parser.error();
      case CommandParser::Status::complete:
        LARDER_ASSERT(parser.consumed() > 0 && parser.consumed() <= piece.size());
        for (const auto arg : parser.args()) {
          seen += arg;
          seen += std::to_string(arg.size()) + ',';
        }
        seen += ';';
        begin += parser.consumed();
        break;
      case CommandParser::Status::incomplete:
        if (end == input.size()) return seen;
        end = std::min(input.size(), end + 1 + random.below(16));
        break;
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::string whole = parse(input, 0);
  LARDER_ASSERT(parse(input, size + 1) == whole);
  LARDER_ASSERT(parse(input, size * 31 + 7) == whole);

  std::size_t consumed = 0;
  std::string error;
  const auto reply = larder::wire::parse_reply(input, consumed, error, kLimits);
  LARDER_ASSERT(!reply || (consumed > 0 && consumed <= size && error.empty()));
  return 0;
}
