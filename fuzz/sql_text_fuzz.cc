// Any bytes in any dialect: parses or refuses, and what it parsed can be rewritten and parsed again
// with the same placeholders.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "source/sql_text.h"

using larder::source::Dialect;
using larder::source::SqlText;

namespace {
void check(bool ok) {
  if (!ok) std::abort();
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view sql(reinterpret_cast<const char*>(data), size);
  for (const Dialect dialect : {Dialect::sqlite, Dialect::postgres, Dialect::mariadb}) {
    const auto parsed = SqlText::parse(sql, dialect);
    if (!parsed) continue;
    check(!parsed->text().empty() && parsed->text().size() <= sql.size());
    check(parsed->names().size() <= parsed->placeholders().size());
    std::size_t done = 0;
    for (const auto& p : parsed->placeholders()) {
      check(p.begin >= done && p.end > p.begin + 1 && p.end <= parsed->text().size());
      check(parsed->text().substr(p.begin, p.end - p.begin) == ":" + p.name);
      done = p.end;
    }
    const auto again = SqlText::parse(parsed->text(), dialect);
    check(again.has_value() && again->text() == parsed->text());
    check(again->names() == parsed->names());
    const std::string numbered = parsed->numbered(7);
    check(!SqlText::parse(numbered, dialect) ||
          SqlText::parse(numbered, dialect)->placeholders().empty());
    (void)parsed->positional();
  }
  return 0;
}
