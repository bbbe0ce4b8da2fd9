#include "feed/event.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <cmath>

namespace larder::feed {
namespace {

namespace json = boost::json;

constexpr std::size_t kMaxTemplateBytes = 512;
constexpr std::size_t kMaxPaths = 16;
constexpr std::size_t kMaxDepth = 32;
// Whole numbers up to here are exact as double: 2^53.
constexpr double kExact = 9007199254740992.0;

std::string joined(const Path& path) { return fmt::format("{}", fmt::join(path, ".")); }

std::unexpected<Error> malformed(std::string what) {
  return fail(ErrorCode::syntax, std::move(what));
}

// The texts of an event's fields: nullopt if there is no such field, or it is no scalar.
struct Found {
  enum class Kind : std::uint8_t { absent, no_scalar, text };
  Kind kind = Kind::absent;
  std::string text;
};

// Fills `template_` with what `look_up` finds for its paths.
template <class LookUp>
Result<std::string> render(const Template& pattern, LookUp&& look_up) {
  std::string out = pattern.literals.front();
  for (std::size_t i = 0; i < pattern.paths.size(); ++i) {
    Found found = look_up(pattern.paths[i]);
    if (found.kind == Found::Kind::absent)
      return malformed(fmt::format("it has no field '{}'", joined(pattern.paths[i])));
    if (found.kind == Found::Kind::no_scalar)
      return malformed(
          fmt::format("its field '{}' is neither a text nor an exact number nor true or false",
                      joined(pattern.paths[i])));
    if (found.text.empty())
      return malformed(fmt::format("its field '{}' is empty", joined(pattern.paths[i])));
    out += found.text;
    out += pattern.literals[i + 1];
  }
  return out;
}

template <class LookUp>
Result<std::optional<Event>> render_all(const Rule& rule, LookUp&& look_up) {
  Event event;
  if (rule.key) {
    auto key = render(*rule.key, look_up);
    if (!key) return std::unexpected(std::move(key.error()));
    event.keys.push_back(std::move(*key));
  }
  if (rule.tag) {
    auto tag = render(*rule.tag, look_up);
    if (!tag) return std::unexpected(std::move(tag.error()));
    if (tag->starts_with('@'))
      return malformed("its tag begins with '@': such tags are Larder's own");
    event.tags.push_back(std::move(*tag));
  }
  return std::optional(std::move(event));
}

// ---- JSON ----

const json::value* at(const json::object& root, const Path& path) {
  const json::object* object = &root;
  for (std::size_t i = 0;; ++i) {
    const json::value* value = object->if_contains(path[i]);
    if (value == nullptr || i + 1 == path.size()) return value;
    object = value->if_object();
    if (object == nullptr) return nullptr;
  }
}

Found scalar(const json::value* value) {
  if (value == nullptr) return {};
  switch (value->kind()) {
    case json::kind::string: return {Found::Kind::text, std::string(value->get_string())};
    case json::kind::int64: return {Found::Kind::text, std::to_string(value->get_int64())};
    case json::kind::uint64: return {Found::Kind::text, std::to_string(value->get_uint64())};
    case json::kind::bool_: return {Found::Kind::text, value->get_bool() ? "true" : "false"};
    case json::kind::double_: {
      // Beyond this a double is no longer the number that was written: it would name another key.
      const double number = value->get_double();
      if (!(std::abs(number) < kExact)) return {Found::Kind::no_scalar, {}};
      if (number == 0) return {Found::Kind::text, "0"};  // -0.0, too
      return {Found::Kind::text, fmt::format("{}", number)};
    }
    default: return {Found::Kind::no_scalar, {}};
  }
}

bool holds(const Condition& condition, const json::object& event) {
  const json::value* value = at(event, condition.path);
  if (value == nullptr) return false;
  struct Equal {
    const json::value& value;
    bool operator()(const std::string& text) const {
      return value.is_string() && std::string_view(value.get_string()) == text;
    }
    bool operator()(std::int64_t number) const {
      if (value.is_int64()) return value.get_int64() == number;
      if (value.is_double())
        return std::abs(value.get_double()) < kExact &&
               value.get_double() == static_cast<double>(number);
      return false;  // uint64: above every int64
    }
    bool operator()(double number) const {
      if (value.is_double()) return value.get_double() == number;
      return value.is_int64() && static_cast<double>(value.get_int64()) == number;
    }
    bool operator()(bool flag) const { return value.is_bool() && value.get_bool() == flag; }
  };
  return std::visit(Equal{*value}, condition.is);
}

// ---- fields ----

std::string text_of(const Constant& constant) {
  struct Text {
    std::string operator()(const std::string& text) const { return text; }
    std::string operator()(std::int64_t number) const { return std::to_string(number); }
    std::string operator()(double number) const { return fmt::format("{}", number); }
    std::string operator()(bool flag) const { return flag ? "true" : "false"; }
  };
  return std::visit(Text{}, constant);
}

}  // namespace

Result<Path> parse_path(std::string_view text) {
  Path path;
  for (std::size_t begin = 0;;) {
    const std::size_t dot = std::min(text.find('.', begin), text.size());
    if (dot == begin)
      return fail(ErrorCode::config,
                  fmt::format("'{}' is not a path to a field: use names with dots between, such as "
                              "user.id",
                              text));
    path.emplace_back(text.substr(begin, dot - begin));
    if (dot == text.size()) break;
    begin = dot + 1;
  }
  if (path.size() > kMaxDepth)
    return fail(ErrorCode::config, fmt::format("'{}' is more than {} deep", text, kMaxDepth));
  return path;
}

Result<Template> Template::parse(std::string_view text) {
  const auto bad = [&](std::size_t column, std::string_view what) {
    return fail(ErrorCode::config, fmt::format("'{}', column {}: {}", text, column + 1, what));
  };
  Template out;
  out.text = std::string(text);
  if (text.empty()) return fail(ErrorCode::config, "it must not be empty");
  if (text.size() > kMaxTemplateBytes)
    return fail(ErrorCode::config, fmt::format("it has more than {} bytes", kMaxTemplateBytes));
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c != '{' && c != '}') {
      out.literals.back() += c;
    } else if (i + 1 < text.size() && text[i + 1] == c) {
      out.literals.back() += c;
      ++i;
    } else if (c == '}') {
      return bad(i, "a '}' that closes nothing; '}}' is a literal brace");
    } else {
      const std::size_t close = text.find('}', i);
      if (close == std::string_view::npos)
        return bad(i, "a '{' that is not closed; '{{' is a literal brace");
      auto path = parse_path(text.substr(i + 1, close - i - 1));
      if (!path) return bad(i, path.error().message);
      if (out.paths.size() == kMaxPaths)
        return bad(i, fmt::format("more than {} fields", kMaxPaths));
      out.paths.push_back(std::move(*path));
      out.literals.emplace_back();
      i = close;
    }
  }
  return out;
}

Result<std::optional<Event>> read_event(std::string_view bytes, const Rule& rule,
                                        std::size_t max_bytes) {
  if (bytes.size() > max_bytes)
    return fail(ErrorCode::too_large,
                fmt::format("it has {} bytes, more than {}", bytes.size(), max_bytes));
  std::array<unsigned char, 4096> memory;
  json::monotonic_resource resource(memory.data(), memory.size());
  json::parse_options options;
  options.max_depth = kMaxDepth;
  boost::system::error_code problem;
  const json::value parsed = json::parse(bytes, problem, &resource, options);
  if (problem == json::error::too_deep)
    return fail(ErrorCode::too_large, fmt::format("it is nested more than {} deep", kMaxDepth));
  if (problem) return malformed("it is not JSON: " + problem.message());
  const json::object* event = parsed.if_object();
  if (event == nullptr) return malformed("it is JSON, but no object");
  for (const Condition& condition : rule.match)
    if (!holds(condition, *event)) return std::optional<Event>();
  return render_all(rule, [&](const Path& path) { return scalar(at(*event, path)); });
}

Result<std::optional<Event>> read_fields(std::span<const Field> fields, const Rule& rule,
                                         std::size_t max_bytes) {
  std::size_t size = 0;
  for (const Field& field : fields) size += field.first.size() + field.second.size();
  if (size > max_bytes)
    return fail(ErrorCode::too_large,
                fmt::format("it has {} bytes, more than {}", size, max_bytes));
  const auto look_up = [&](const Path& path) {
    const std::string name = joined(path);
    const auto found = std::ranges::find(fields, std::string_view(name), &Field::first);
    return found == fields.end() ? Found{} : Found{Found::Kind::text, std::string(found->second)};
  };
  for (const Condition& condition : rule.match) {
    const Found found = look_up(condition.path);
    if (found.kind != Found::Kind::text || found.text != text_of(condition.is))
      return std::optional<Event>();
  }
  return render_all(rule, look_up);
}

}  // namespace larder::feed
