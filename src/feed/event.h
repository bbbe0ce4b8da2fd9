// What an application's event makes void: from the bytes of an event and the rule of a feed to keys
// and tags. Pure.
//
//   rule   match = { type = "user" }   key = "user:{id}"
//   event  {"type":"user","id":"user-123"}                 makes user:user-123 void
//
// A path such as user.id goes into objects. What it finds must be a text, an integer, a boolean or
// a number that its decimal form names exactly; null, objects and arrays name nothing. Cost: one
// parse of the event.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.h"

namespace larder::feed {

using Path = std::vector<std::string>;  // never empty

// "user.id": names with dots between, none of them empty. Errors: config.
Result<Path> parse_path(std::string_view text);

// "user:{id}:{address.city}": literals around paths. `{{` and `}}` are literal braces.
struct Template {
  std::string text;
  std::vector<std::string> literals = {""};  // one more than paths
  std::vector<Path> paths;

  static Result<Template> parse(std::string_view text);  // errors: config, which say the column
  // What every text begins with that it renders.
  const std::string& prefix() const { return literals.front(); }
};

using Constant = std::variant<std::string, std::int64_t, double, bool>;

struct Condition {
  Path path;
  Constant is;
};

struct Rule {
  std::vector<Condition> match;  // all must hold; an event for which one does not is not ours
  std::optional<Template> key;   // one of both, or both
  std::optional<Template> tag;
};

struct Event {
  std::vector<std::string> keys;
  std::vector<std::string> tags;
  friend bool operator==(const Event&, const Event&) = default;
};

// nullopt: another one's event (a condition does not hold, or its field is missing). Errors, for a
// malformed one: syntax (no JSON object; a field of a template is missing or no scalar), too_large
// (more than `max_bytes`, or nested more than 32 deep). They never contain a value of the event.
Result<std::optional<Event>> read_event(std::string_view bytes, const Rule& rule,
                                        std::size_t max_bytes);

// The same for the fields of a stream's entry, which are all texts and not nested: a path is the
// field's name, dots and all. A condition's number or boolean holds for its decimal or "true".
using Field = std::pair<std::string_view, std::string_view>;
Result<std::optional<Event>> read_fields(std::span<const Field> fields, const Rule& rule,
                                         std::size_t max_bytes);

}  // namespace larder::feed
