#include "source/sql_text.h"

#include <fmt/format.h>

#include <algorithm>

namespace larder::source {
namespace {

// Not <cctype>: SQL is ASCII whatever the locale says.
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_blank(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v';
}
// Letters of other scripts belong to identifiers, but not to the names of placeholders.
bool is_word(char c) {
  return is_letter(c) || is_digit(c) || static_cast<unsigned char>(c) >= 0x80;
}

class Scanner {
 public:
  Scanner(std::string_view sql, Dialect dialect) : sql_(sql), dialect_(dialect) {}

  struct Outcome {
    std::size_t begin = 0, end = 0;  // of the statement proper
    std::vector<SqlText::Placeholder> placeholders;
  };

  Result<Outcome> run() {
    while (at_ < sql_.size()) {
      auto step = next();
      if (!step) return std::unexpected(step.error());
    }
    if (!begun_) return fail(ErrorCode::config, "the SQL statement is empty");
    return std::move(out_);
  }

 private:
  char peek(std::size_t ahead = 0) const {
    return at_ + ahead < sql_.size() ? sql_[at_ + ahead] : '\0';
  }

  // Consumes one token; notes how far the statement proper reaches.
  Result<void> next() {
    const char c = peek();
    if (is_blank(c)) {
      ++at_;
      return {};
    }
    if (c == '-' && peek(1) == '-') return line_comment();
    if (c == '#' && dialect_ == Dialect::mariadb) return line_comment();
    if (c == '/' && peek(1) == '*') return block_comment();
    if (c == ';') {
      ++at_;
      // Semicolons before the statement, and more than one behind it, are nothing.
      if (begun_) ended_ = true;
      return {};
    }
    if (ended_)
      return fail(ErrorCode::config,
                  fmt::format("only one SQL statement is allowed, a second one begins at byte {}",
                              at_ + 1));
    if (!begun_) {
      begun_ = true;
      out_.begin = at_;
    }
    auto result = token(c);
    out_.end = at_;
    return result;
  }

  Result<void> token(char c) {
    switch (c) {
      case '\'': return quoted('\'', "string", dialect_ == Dialect::mariadb || escape_string());
      case '"': return quoted('"', "quoted name", dialect_ == Dialect::mariadb);
      case '`': return quoted('`', "quoted name", false);
      case '[':
        if (dialect_ == Dialect::sqlite) return bracketed();
        break;
      case '$':
        if (dialect_ == Dialect::postgres && !word_before()) return dollar();
        break;
      case ':':
        if (peek(1) == ':') {
          at_ += 2;
          return {};
        }
        if (is_letter(peek(1))) return placeholder();
        break;
      default: break;
    }
    ++at_;
    return {};
  }

  Result<void> placeholder() {
    const std::size_t begin = at_;
    // What takes its place would become part of the word: id$1 is a name in PostgreSQL.
    if (word_before())
      return fail(
          ErrorCode::config,
          fmt::format("the placeholder at byte {} follows a word: put a blank before it, or, "
                      "if it is none (as in a slice), behind the colon",
                      begin + 1));
    ++at_;
    while (is_letter(peek()) || is_digit(peek())) ++at_;
    if (static_cast<unsigned char>(peek()) >= 0x80 || peek() == '$')
      return fail(
          ErrorCode::config,
          fmt::format("the placeholder at byte {} may have only letters, digits and _", begin + 1));
    out_.placeholders.push_back({std::string(sql_.substr(begin + 1, at_ - begin - 1)), begin, at_});
    return {};
  }

  // A doubled quote is a quote within.
  Result<void> quoted(char quote, std::string_view what, bool backslash) {
    const std::size_t begin = at_++;
    while (at_ < sql_.size()) {
      const char c = sql_[at_++];
      if (c == '\\' && backslash) {
        if (at_ < sql_.size()) ++at_;
      } else if (c == quote) {
        if (peek() != quote) return {};
        ++at_;
      }
    }
    return open_end(what, begin);
  }

  Result<void> bracketed() {
    const std::size_t begin = at_;
    const std::size_t close = sql_.find(']', at_);
    if (close == std::string_view::npos) return open_end("[name]", begin);
    at_ = close + 1;
    return {};
  }

  // $tag$ ... $tag$; a lone $ is a parameter of PostgreSQL's own, which the database will refuse.
  Result<void> dollar() {
    std::size_t end = at_ + 1;
    if (end < sql_.size() && is_digit(sql_[end])) {
      ++at_;
      return {};
    }
    while (end < sql_.size() && is_word(sql_[end])) ++end;
    if (end >= sql_.size() || sql_[end] != '$') {
      ++at_;
      return {};
    }
    const std::string_view tag = sql_.substr(at_, end + 1 - at_);
    const std::size_t close = sql_.find(tag, end + 1);
    if (close == std::string_view::npos) return open_end("$-quoted string", at_);
    at_ = close + tag.size();
    return {};
  }

  Result<void> line_comment() {
    const std::size_t end = sql_.find('\n', at_);
    at_ = end == std::string_view::npos ? sql_.size() : end + 1;
    return {};
  }

  Result<void> block_comment() {
    const std::size_t begin = at_;
    std::size_t depth = 1;
    at_ += 2;
    while (at_ < sql_.size()) {
      if (peek() == '*' && peek(1) == '/') {
        at_ += 2;
        if (--depth == 0) return {};
      } else if (peek() == '/' && peek(1) == '*' && dialect_ == Dialect::postgres) {
        at_ += 2;
        ++depth;
      } else {
        ++at_;
      }
    }
    return open_end("comment", begin);
  }

  bool word_before() const { return at_ > 0 && (is_word(sql_[at_ - 1]) || sql_[at_ - 1] == '$'); }

  // Is the quote at at_ that of E'...'?
  bool escape_string() const {
    if (dialect_ != Dialect::postgres || at_ == 0) return false;
    const char e = sql_[at_ - 1];
    return (e == 'E' || e == 'e') && (at_ < 2 || !is_word(sql_[at_ - 2]));
  }

  static Result<void> open_end(std::string_view what, std::size_t begin) {
    return fail(
        ErrorCode::config,
        fmt::format("the {} that begins at byte {} of the SQL does not end", what, begin + 1));
  }

  std::string_view sql_;
  Dialect dialect_;
  std::size_t at_ = 0;
  bool begun_ = false;
  bool ended_ = false;
  Outcome out_;
};

}  // namespace

Result<SqlText> SqlText::parse(std::string_view sql, Dialect dialect) {
  if (sql.size() > kMaxBytes)
    return fail(ErrorCode::config,
                fmt::format("the SQL statement is longer than {} bytes", kMaxBytes));
  if (const auto nul = sql.find('\0'); nul != std::string_view::npos)
    return fail(ErrorCode::config, fmt::format("the SQL has a NUL byte at byte {}", nul + 1));
  auto scanned = Scanner(sql, dialect).run();
  if (!scanned) return std::unexpected(scanned.error());

  SqlText result;
  result.text_ = sql.substr(scanned->begin, scanned->end - scanned->begin);
  result.placeholders_ = std::move(scanned->placeholders);
  for (Placeholder& p : result.placeholders_) {
    p.begin -= scanned->begin;
    p.end -= scanned->begin;
    if (std::ranges::find(result.names_, p.name) == result.names_.end())
      result.names_.push_back(p.name);
  }
  return result;
}

template <class Write>
std::string SqlText::rewrite(Write write) const {
  std::string out;
  out.reserve(text_.size() + 4 * placeholders_.size());
  std::size_t done = 0;
  for (const Placeholder& p : placeholders_) {
    out.append(text_, done, p.begin - done);
    write(out, p);
    done = p.end;
  }
  out.append(text_, done);
  return out;
}

std::string SqlText::numbered(std::size_t offset, char sigil) const {
  return rewrite([&](std::string& out, const Placeholder& p) {
    const auto index = static_cast<std::size_t>(std::ranges::find(names_, p.name) - names_.begin());
    out += sigil;
    out += std::to_string(offset + index + 1);
  });
}

std::string SqlText::positional() const {
  return rewrite([](std::string& out, const Placeholder&) { out += '?'; });
}

}  // namespace larder::source
