#include "policy/key_pattern.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <optional>
#include <utility>

namespace larder::policy {
namespace {

constexpr std::size_t kMaxPatternBytes = 512;
constexpr std::size_t kMaxParams = 16;
constexpr std::size_t kMaxShownBytes = 64;

bool is_canonical_int(std::string_view text) {
  const std::string_view digits = text.starts_with('-') ? text.substr(1) : text;
  if (digits.empty() || (digits.front() == '0' && text.size() > 1)) return false;
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

bool is_canonical_uuid(std::string_view text) {
  if (text.size() != 36) return false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    const bool hex = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
    if (dash ? c != '-' : !hex) return false;
  }
  return true;
}

bool is_name(std::string_view text) {
  const auto letter = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
  };
  if (text.empty() || !letter(text.front())) return false;
  return std::ranges::all_of(text, [&](char c) { return letter(c) || (c >= '0' && c <= '9'); });
}

std::string_view wanted(ParamType type) {
  switch (type) {
    case ParamType::integer: return "must be an integer in canonical form";
    case ParamType::uuid: return "must be a UUID in lower case";
    case ParamType::text: return "must not be empty";
  }
  return "?";
}

// For error messages: short, and without bytes that a terminal would obey.
std::string shown(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, kMaxShownBytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  if (text.size() > kMaxShownBytes) out += "...";
  return out;
}

enum class Flaw : std::uint8_t { none, prefix, literal, value };

struct Verdict {
  Flaw flaw = Flaw::none;
  std::size_t param = 0;  // which parameter has it
  std::string_view text;  // its text; for Flaw::literal what was left of the key
};

// The one walk over a key. Calls `on_value` for each parameter's text, in order.
template <class OnValue>
Verdict walk(const std::vector<std::string>& literals, const std::vector<KeyParam>& params,
             std::string_view key, OnValue&& on_value) {
  if (!key.starts_with(literals.front())) return {Flaw::prefix, 0, {}};
  std::string_view rest = key.substr(literals.front().size());
  if (params.empty()) return rest.empty() ? Verdict{} : Verdict{Flaw::prefix, 0, {}};
  for (std::size_t i = 0; i < params.size(); ++i) {
    const std::string& literal = literals[i + 1];
    std::size_t end = 0;
    if (i + 1 < params.size()) {
      end = literal.size() == 1 ? rest.find(literal.front()) : rest.find(literal);
      if (end == std::string_view::npos) return {Flaw::literal, i, rest};
    } else {
      // The last one may contain anything: it reaches to the literal at the key's very end.
      if (!rest.ends_with(literal)) return {Flaw::literal, i, rest};
      end = rest.size() - literal.size();
    }
    const std::string_view text = rest.substr(0, end);
    if (!is_canonical(params[i].type, text)) return {Flaw::value, i, text};
    on_value(text);
    rest.remove_prefix(end + literal.size());
  }
  return {};
}

// "name" or "name:type".
Result<KeyParam> parse_param(std::string_view text, std::size_t column) {
  KeyParam param;
  const std::size_t colon = text.find(':');
  param.name = std::string(text.substr(0, colon));
  if (!is_name(param.name))
    return fail(ErrorCode::config,
                fmt::format("'{}' at column {} of the key pattern is not a parameter name: use "
                            "letters, digits and '_'",
                            shown(param.name), column));
  if (colon == std::string_view::npos) return param;
  const std::string_view type = text.substr(colon + 1);
  if (type == "int") {
    param.type = ParamType::integer;
  } else if (type == "uuid") {
    param.type = ParamType::uuid;
  } else if (type != "text") {
    return fail(ErrorCode::config,
                fmt::format("unknown type '{}' of key parameter '{}': use int, uuid or text",
                            shown(type), param.name));
  }
  return param;
}

}  // namespace

bool is_canonical(ParamType type, std::string_view text) {
  switch (type) {
    case ParamType::integer: return is_canonical_int(text);
    case ParamType::uuid: return is_canonical_uuid(text);
    case ParamType::text: return !text.empty();
  }
  return false;
}

Result<KeyPattern> KeyPattern::parse(std::string_view text) {
  const auto bad = [](std::string message) { return fail(ErrorCode::config, std::move(message)); };
  if (text.empty()) return bad("a key pattern must not be empty");
  if (text.size() > kMaxPatternBytes)
    return bad(fmt::format("a key pattern has at most {} bytes", kMaxPatternBytes));
  KeyPattern pattern;
  pattern.text_ = std::string(text);
  pattern.literals_.clear();
  std::string literal;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c != '{' && c != '}') {
      literal += c;
      continue;
    }
    if (i + 1 < text.size() && text[i + 1] == c) {  // {{ or }}
      literal += c;
      ++i;
      continue;
    }
    if (c == '}')
      return bad(
          fmt::format("'}}' at column {} of the key pattern opens nowhere; '}}}}' is a "
                      "literal brace",
                      i + 1));
    const std::size_t close = text.find('}', i);
    if (close == std::string_view::npos)
      return bad(
          fmt::format("'{{' at column {} of the key pattern is not closed; '{{{{' is a "
                      "literal brace",
                      i + 1));
    auto param = parse_param(text.substr(i + 1, close - i - 1), i + 1);
    if (!param) return std::unexpected(std::move(param.error()));
    if (literal.empty()) {
      if (pattern.params_.empty())
        return bad("a key pattern must begin with a literal, such as 'product:'");
      return bad(fmt::format("key parameters '{}' and '{}' touch: put a literal between them",
                             pattern.params_.back().name, param->name));
    }
    if (pattern.param_index(param->name) >= 0)
      return bad(fmt::format("key parameter '{}' appears twice", param->name));
    if (pattern.params_.size() == kMaxParams)
      return bad(fmt::format("a key pattern has at most {} parameters", kMaxParams));
    pattern.literals_.push_back(std::exchange(literal, {}));
    pattern.params_.push_back(std::move(*param));
    i = close;
  }
  pattern.literals_.push_back(std::move(literal));
  return pattern;
}

int KeyPattern::param_index(std::string_view name) const {
  for (std::size_t i = 0; i < params_.size(); ++i)
    if (params_[i].name == name) return static_cast<int>(i);
  return -1;
}

Match KeyPattern::match(std::string_view key, std::vector<std::string_view>& values) const {
  values.clear();
  const Verdict verdict =
      walk(literals_, params_, key, [&](std::string_view text) { values.push_back(text); });
  if (verdict.flaw == Flaw::none) return Match::yes;
  values.clear();
  return verdict.flaw == Flaw::prefix ? Match::no : Match::bad_part;
}

Result<std::string> KeyPattern::render(const std::vector<std::string_view>& values) const {
  LARDER_ASSERT(values.size() == params_.size());
  std::size_t size = literals_.front().size();
  for (std::size_t i = 0; i < values.size(); ++i)
    size += values[i].size() + literals_[i + 1].size();
  std::string key;
  key.reserve(size);
  key += literals_.front();
  for (std::size_t i = 0; i < values.size(); ++i) {
    const KeyParam& param = params_[i];
    if (!is_canonical(param.type, values[i]))
      return fail(ErrorCode::bad_key, fmt::format("{} {} (got '{}')", param.name,
                                                  wanted(param.type), shown(values[i])));
    const std::size_t start = key.size();
    key += values[i];
    key += literals_[i + 1];
    // Looked for in value and literal together: ":" before "::" would be cut off one too early.
    if (i + 1 < params_.size() && key.find(literals_[i + 1], start) != start + values[i].size())
      return fail(ErrorCode::bad_key,
                  fmt::format("{} must not contain '{}', which ends it in the key (got '{}')",
                              param.name, literals_[i + 1], shown(values[i])));
  }
  return key;
}

std::string KeyPattern::explain_bad_part(std::string_view key) const {
  const Verdict verdict = walk(literals_, params_, key, [](std::string_view) {});
  switch (verdict.flaw) {
    case Flaw::none: return {};
    case Flaw::prefix: return fmt::format("the key does not begin with '{}'", literals_.front());
    case Flaw::literal:
      return fmt::format("'{}' must follow {} (got '{}')", literals_[verdict.param + 1],
                         params_[verdict.param].name, shown(verdict.text));
    case Flaw::value: {
      const KeyParam& param = params_[verdict.param];
      if (verdict.text.empty()) return fmt::format("{} must not be empty", param.name);
      return fmt::format("{} {} (got '{}')", param.name, wanted(param.type), shown(verdict.text));
    }
  }
  return {};
}

bool KeyPattern::overlap(const KeyPattern& a, const KeyPattern& b) {
  const auto owns = [](const KeyPattern& owner, const KeyPattern& other) {
    return owner.params_.empty() ? other.params_.empty() && owner.prefix() == other.prefix()
                                 : other.prefix().starts_with(owner.prefix());
  };
  return owns(a, b) || owns(b, a);
}

}  // namespace larder::policy
