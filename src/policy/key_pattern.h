// Key patterns: "product:{id:int}", "page:{user}:{lang:text}". Parsing, matching, rendering; pure.
//
// A text parameter ends at the next literal and cannot contain it; only the last may contain
// anything. `{{` and `}}` are literal braces. Two parameters may not touch. Only the canonical text
// of a value matches: product:7, not product:007; a UUID in lower case. Types: int (64-bit,
// signed), uuid, text (the default; never empty). A pattern begins with a literal. One without
// parameters matches one key, and owns no other.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace larder::policy {

enum class ParamType : std::uint8_t { integer, uuid, text };

struct KeyParam {
  std::string name;
  ParamType type = ParamType::text;
};

enum class Match : std::uint8_t {
  no,  // another cache's key, or a plain one
  yes,
  bad_part,  // the declared prefix, but a parameter is not canonical: -LARDER_BADKEY
};

class KeyPattern {
 public:
  static Result<KeyPattern> parse(std::string_view text);

  const std::string& text() const { return text_; }
  const std::vector<KeyParam>& params() const { return params_; }
  // -1 if there is none.
  int param_index(std::string_view name) const;

  // The literal before the first parameter. The pattern owns every key that begins with it.
  const std::string& prefix() const { return literals_.front(); }

  // Splits `key` into the parameters' texts (views into `key`, one for each parameter, in order).
  // `values` is cleared first. Cost: one pass, no allocation once `values` has its capacity.
  Match match(std::string_view key, std::vector<std::string_view>& values) const;

  // The key for these texts; an error if one is not a canonical value of its parameter (wrong type,
  // empty, or a text that contains the literal that follows). REQUIRES: one text for each
  // parameter.
  Result<std::string> render(const std::vector<std::string_view>& values) const;

  // Why `match` says bad_part: "id must be an integer in canonical form (got 'abc')".
  std::string explain_bad_part(std::string_view key) const;

  // Could some key match both? (Prefixes decide: a pattern owns its prefix.)
  static bool overlap(const KeyPattern& a, const KeyPattern& b);

 private:
  std::string text_;
  // The literal before each parameter, and the one after the last.
  std::vector<std::string> literals_ = {""};
  std::vector<KeyParam> params_;
};

// Is `text` the canonical form of a value of `type`?
bool is_canonical(ParamType type, std::string_view text);

}  // namespace larder::policy
