// What comes from the engine, messages and answers of scripts, must be survived whatever it is, and
// never be read as more than it holds.
#include "base/error.h"
#include "engine/redis/protocol.h"

using namespace larder::engine::redis;  // NOLINT: a program of one function

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  if (const auto message = parse_message(input)) {
    std::size_t bytes = message->position.replid.size() + message->position.epoch.size();
    for (const std::string& key : message->keys) bytes += key.size() + 2;
    for (const std::string& tag : message->tags) bytes += tag.size() + 2;
    LARDER_ASSERT(bytes <= size);
  }
  std::size_t consumed = 0;
  std::string error;
  const auto reply = larder::wire::parse_reply(input, consumed, error);
  if (!reply) return 0;
  if (const auto answer = lookup_answer(*reply))
    for (const KeyAnswer& found : answer->found) {
      LARDER_ASSERT(found.kind != KeyAnswer::Kind::hit || found.entry.has_value());
      if (found.entry) LARDER_ASSERT(found.entry->value.size() <= size);
    }
  static_cast<void>(fill_answer(*reply));
  static_cast<void>(change_answer(*reply));
  static_cast<void>(state_answer(*reply));
  static_cast<void>(history_answer(*reply));
  // An entry alone, in the place where an answer carries it.
  larder::wire::Reply number{
      .type = larder::wire::Reply::Type::integer, .text = {}, .integer = 1, .elements = {}};
  larder::wire::Reply text{
      .type = larder::wire::Reply::Type::bulk, .text = std::string(input), .elements = {}};
  larder::wire::Reply found{
      .type = larder::wire::Reply::Type::array, .text = {}, .elements = {number, text, number}};
  larder::wire::Reply all{
      .type = larder::wire::Reply::Type::array, .text = {}, .elements = {found}};
  static_cast<void>(lookup_answer({.type = larder::wire::Reply::Type::array,
                                   .text = {},
                                   .elements = {text, text, number, number, number, all}}));
  return 0;
}
