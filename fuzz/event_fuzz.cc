// Whatever an application publishes must be survived, and names nothing that is not in it.
#include "base/error.h"
#include "feed/event.h"

using namespace larder::feed;  // NOLINT: a program of one function

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  static const Rule rule = {
      .match = {{*parse_path("type"), "user"}, {*parse_path("meta.v"), std::int64_t{1}}},
      .key = *Template::parse("user:{user.id}"),
      .tag = *Template::parse("{tag}")};
  static const Rule open = {.key = *Template::parse("k:{id}")};
  for (const Rule* each : {&rule, &open}) {
    const auto event = read_event(input, *each, 4096);
    LARDER_ASSERT(!event || size <= 4096);
    if (!event || !*event) continue;
    LARDER_ASSERT((*event)->keys.size() == 1);
    LARDER_ASSERT((*event)->keys[0].starts_with(each->key->prefix()));
    LARDER_ASSERT((*event)->keys[0].size() > each->key->prefix().size());
    for (const std::string& tag : (*event)->tags)
      LARDER_ASSERT(!tag.empty() && !tag.starts_with('@'));
  }
  // The input as a template, and as a path.
  if (const auto pattern = Template::parse(input)) {
    LARDER_ASSERT(pattern->literals.size() == pattern->paths.size() + 1);
    const Rule with = {.key = *pattern};
    static_cast<void>(read_event(R"({"id":"7","a":{"b":1}})", with, 4096));
    const Field field{input, input};
    static_cast<void>(read_fields({&field, 1}, with, 4096));
  }
  static_cast<void>(parse_path(input));
  return 0;
}
