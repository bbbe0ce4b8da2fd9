// One SQL statement with `:name` placeholders, as the configuration declares it. Pure.
//
// Knows what is not a placeholder: `::` casts, 'strings', "identifiers", `identifiers`,
// [identifiers],
// -- and /* */ comments, and what the dialect adds to them. It does not know SQL beyond that:
// whether the statement is right is for the database to say.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace larder::source {

enum class Dialect : std::uint8_t {
  sqlite,    // [identifiers]; comments do not nest
  postgres,  // $tag$strings$tag$, E'\'' strings, nested comments; [ ] are subscripts
  mariadb,   // backslash escapes, # comments; [ ] have no meaning
};

class SqlText {
 public:
  // A name and where it stands in text(), from the colon to behind its last character.
  struct Placeholder {
    std::string name;  // without the colon: [A-Za-z_][A-Za-z0-9_]*
    std::size_t begin = 0;
    std::size_t end = 0;
  };

  // Errors (config): nothing but blanks and comments, more than one statement, a quote or a comment
  // that does not end, a text over kMaxBytes. The message gives the place, counted in bytes from 1.
  static Result<SqlText> parse(std::string_view sql, Dialect dialect = Dialect::sqlite);
  static constexpr std::size_t kMaxBytes = 256 << 10;

  // The statement without what surrounds it: no blanks or comments at its ends, no semicolon. So it
  // may stand in parentheses.
  const std::string& text() const { return text_; }

  // Every occurrence, in order.
  const std::vector<Placeholder>& placeholders() const { return placeholders_; }

  // Each name once, in the order of its first occurrence.
  const std::vector<std::string>& names() const { return names_; }

  // The text with each placeholder replaced by `sigil` and the number of its name in names(), which
  // counts from `offset` + 1: `?3` for SQLite, `$3` for PostgreSQL. With offsets that are multiples
  // of names().size() one statement can stand in a compound query many times.
  std::string numbered(std::size_t offset = 0, char sigil = '?') const;

  // The text with `?` for each placeholder: bind values in the order of placeholders().
  std::string positional() const;

 private:
  template <class Write>
  std::string rewrite(Write write) const;

  std::string text_;
  std::vector<Placeholder> placeholders_;
  std::vector<std::string> names_;
};

}  // namespace larder::source
