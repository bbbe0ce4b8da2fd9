#include "config/reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "base/units.h"

namespace larder::config {
namespace {

constexpr std::size_t kMaxProblems = 100;
constexpr std::size_t kMaxShownBytes = 60;
constexpr std::size_t kMaxLineBytes = 160;

std::string shown(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, kMaxShownBytes))
    out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
  if (text.size() > kMaxShownBytes) out += "...";
  return out;
}

std::string_view kind(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::table: return "a table";
    case toml::node_type::array: return "an array";
    case toml::node_type::string: return "a string";
    case toml::node_type::integer: return "an integer";
    case toml::node_type::floating_point: return "a float";
    case toml::node_type::boolean: return "a boolean";
    default: return "a date or time";
  }
}

// Optimal string alignment: insert, delete, replace, and swap of neighbours cost 1.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before(b.size() + 1);
  std::vector<std::size_t> last(b.size() + 1);
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t cost = a[i - 1] == b[j - 1] ? 0 : 1;
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + cost});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], before[j - 2] + 1);
    }
    before.swap(last);
    last.swap(row);
  }
  return last[b.size()];
}

// "64MiB" for "64m", "64 MB" and "64mib".
std::string near_size(std::string_view text) {
  const std::size_t digits = std::min(text.find_first_not_of("0123456789."), text.size());
  const std::size_t letter = text.find_first_not_of(' ', digits);
  if (letter == std::string_view::npos) return {};
  for (const std::string_view unit : {"KiB", "MiB", "GiB"}) {
    const std::string whole = fmt::format("{}{}", text.substr(0, digits), unit);
    if ((text[letter] & ~0x20) == unit.front() && parse_size(whole)) return whole;
  }
  return {};
}

bool is_name_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

}  // namespace

std::string nearest(std::string_view word, const std::vector<std::string>& candidates) {
  if (word.size() > 64) return {};
  std::string best;
  std::size_t least = word.size() < 4 ? 2 : std::max<std::size_t>(word.size() / 3, 2) + 1;
  for (const std::string& candidate : candidates) {
    const std::size_t d = distance(word, candidate);
    if (d >= least || d >= candidate.size()) continue;
    least = d;
    best = candidate;
  }
  return best;
}

std::string listed(const std::vector<std::string>& words, std::string_view last) {
  std::string out;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (i > 0) out += i + 1 == words.size() ? fmt::format(" {} ", last) : ", ";
    out += fmt::format("'{}'", words[i]);
  }
  return out;
}

std::string masked_url(std::string_view url) {
  std::string out(url);
  // Up to the last @: a password may contain one, and hiding too much does no harm.
  if (const std::size_t scheme = out.find("://"); scheme != std::string::npos) {
    const std::size_t end = out.find('?', scheme);
    const std::size_t at = out.rfind('@', end);
    const std::size_t colon = out.find(':', scheme + 3);
    if (at != std::string::npos && colon < at) out.replace(colon + 1, at - colon - 1, "***");
  }
  for (std::size_t from = 0; (from = out.find("password=", from)) != std::string::npos;) {
    from += std::string_view("password=").size();
    const std::size_t end = std::min(out.find_first_of("& \"'", from), out.size());
    out.replace(from, end - from, "***");
  }
  return out;
}

std::string masked(std::string_view line) {
  // By part of a name, so that a misspelt one is masked as well.
  for (const std::string_view word : {"pas", "pw", "secret", "token"}) {
    const std::size_t at = line.find(word);
    const std::size_t equals = line.find('=', std::min(at, line.size()));
    if (equals == std::string_view::npos || line.find("://") < at) continue;
    std::string_view value = line.substr(equals + 1);
    value.remove_prefix(std::min(value.find_first_not_of(" \t\"'"), value.size()));
    if (value.starts_with("${") || value.starts_with("file:")) continue;
    return fmt::format("{} ***", line.substr(0, equals + 1));
  }
  return masked_url(line);
}

// ---- problems ----

std::string to_string(const Problem& problem) {
  std::string out = problem.file;
  if (problem.line > 0) out += fmt::format(":{}:{}", problem.line, problem.column);
  out += ": " + problem.message;
  if (!problem.suggestion.empty()) out += fmt::format("; did you mean '{}'?", problem.suggestion);
  out += '\n';
  if (problem.line == 0 || problem.source_line.empty()) return out;
  out += fmt::format("  {}\n  ", problem.source_line);
  unsigned column = 1;
  for (const char c : problem.source_line) {
    if (column >= problem.column) break;
    if ((static_cast<unsigned char>(c) & 0xc0U) == 0x80) continue;  // inside of a character
    out += c == '\t' ? '\t' : ' ';  // keeps the caret below its place, whatever a tab is
    ++column;
  }
  return out + "^\n";
}

std::string to_string(const std::vector<Problem>& problems) {
  std::string out;
  for (const Problem& p : problems) out += to_string(p);
  return out;
}

// ---- reader ----

Reader::Reader(std::string_view text, std::string_view filename, const Outside& outside)
    : filename_(filename), outside_(outside) {
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    lines_.push_back(line);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

// A line as it may be printed. Where secrets live, only values that are known to be none are shown:
// a list of what looks like a secret would always lack one.
std::string Reader::printable_line(std::size_t line) const {
  const std::string_view text = lines_[line];
  std::string_view section;
  for (std::size_t i = line + 1; i-- > 0 && section.empty();) {
    std::string_view header = lines_[i];
    header.remove_prefix(std::min(header.find_first_not_of(" \t"), header.size()));
    if (header.starts_with('[')) section = header.substr(1);
  }
  const std::size_t equals = text.find('=');
  std::string_view key = text.substr(0, equals);
  key.remove_prefix(std::min(key.find_first_not_of(" \t"), key.size()));
  key = key.substr(0, key.find_first_of(" \t.="));
  const auto guarded = [](std::string_view name) {
    return name.starts_with("node") || name.starts_with("engine") || name.starts_with("source") ||
           name.starts_with("feed");
  };
  if (equals == std::string_view::npos || !(guarded(section) || (section.empty() && guarded(key))))
    return masked(text);
  static constexpr std::string_view kPublic[] = {
      "listen",     "admin",     "threads",     "data_dir",  "max_clients", "max_request",
      "max_output", "max_loads", "max_waiters", "namespace", "partitions",  "pool",
      "queue",      "poll",      "query_log",   "channel",   "stream",      "match",
      "key",        "tag",       "field",       "max_event", "slot_limit",  "feed"};
  if (std::ranges::find(kPublic, key) != std::end(kPublic)) return masked(text);
  if (key == "url" && text.find_first_of("@?") == std::string_view::npos) return masked(text);
  return fmt::format("{} ***", text.substr(0, equals + 1));
}

void Reader::problem(toml::source_position at, std::string message, std::string suggestion) {
  if (problems_.size() >= kMaxProblems) return;
  Problem p{filename_, at.line, at.column, std::move(message), std::move(suggestion), {}};
  if (at.line > 0 && at.line <= lines_.size())
    p.source_line = printable_line(at.line - 1).substr(0, kMaxLineBytes);
  problems_.push_back(std::move(p));
}

std::vector<Problem> Reader::take_problems() {
  std::ranges::sort(problems_, [](const Problem& a, const Problem& b) {
    return std::tie(a.line, a.column, a.message) < std::tie(b.line, b.column, b.message);
  });
  return std::move(problems_);
}

std::optional<std::string> Reader::expanded(std::string_view text, toml::source_position at) {
  std::string out;
  bool complete = true;
  while (!text.empty()) {
    const std::size_t start = text.find("${");
    if (start == std::string_view::npos) {
      out += text;
      break;
    }
    if (start > 0 && text[start - 1] == '$') {  // $${ stands for ${
      out += text.substr(0, start - 1);
      out += "${";
      text.remove_prefix(start + 2);
      continue;
    }
    out += text.substr(0, start);
    const std::size_t end = text.find('}', start);
    const std::string name(
        text.substr(start + 2, end == std::string_view::npos ? end : end - start - 2));
    if (end == std::string_view::npos || name.empty() || !std::ranges::all_of(name, is_name_char)) {
      problem(at, fmt::format("'${{{}' is not the name of an environment variable; '$${{' is a "
                              "literal '${{'",
                              shown(name)));
      return std::nullopt;
    }
    if (const auto value = outside_.environment(name)) {
      out += *value;
    } else {
      problem(at, fmt::format("environment variable '{}' is not set", name));
      complete = false;
    }
    text.remove_prefix(end + 1);
  }
  if (!complete) return std::nullopt;
  return out;
}

std::optional<std::string> Reader::secret(std::string_view text, toml::source_position at) {
  auto value = expanded(text, at);
  if (!value || !text.starts_with("file:")) return value;
  const std::string path = value->substr(5);
  auto content = outside_.secret_file(path);
  if (!content) {
    problem(at, fmt::format("the secret file '{}' cannot be used: {}", shown(path),
                            content.error().message));
    return std::nullopt;
  }
  while (content->ends_with('\n') || content->ends_with('\r')) content->pop_back();
  return std::move(*content);
}

// ---- section ----

std::string described(const toml::node& node) {
  if (const auto* text = node.as_string()) return fmt::format("\"{}\"", shown(text->get()));
  if (const auto* number = node.as_integer()) return fmt::format("integer {}", number->get());
  if (const auto* number = node.as_floating_point()) return fmt::format("float {}", number->get());
  if (const auto* flag = node.as_boolean()) return fmt::format("boolean {}", flag->get());
  return std::string(kind(node));
}

Section::Section(Reader& reader, const toml::table& table, std::string label)
    : reader_(reader), table_(table), label_(std::move(label)), head_(table.source().begin) {}

const toml::node* Section::find(std::string_view key) {
  known_.emplace_back(key);
  return table_.get(key);
}

toml::source_position Section::where(std::string_view key) const {
  const toml::node* node = table_.get(key);
  return node == nullptr ? head_ : node->source().begin;
}

std::string Section::path(std::string_view key) const {
  return fmt::format("'{}' in {}", key, label_);
}

void Section::problem_at(std::string_view key, std::string message, std::string suggestion) {
  reader_.problem(where(key), std::move(message), std::move(suggestion));
}

void Section::missing(std::string_view key, std::string_view why) {
  reader_.problem(head_, fmt::format("{} needs '{}': {}", label_, key, why));
}

void Section::expected(std::string_view key, std::string_view what, std::string suggestion) {
  problem_at(key,
             fmt::format("{} must be {}, got {}", path(key), what, described(*table_.get(key))),
             std::move(suggestion));
}

const std::string* Section::raw_text(std::string_view key, std::string_view what) {
  const toml::node* node = find(key);
  if (node == nullptr) return nullptr;
  if (const auto* text = node->as_string()) return &text->get();
  expected(key, what);
  return nullptr;
}

bool Section::text(std::string_view key, std::string& out) {
  const std::string* raw = raw_text(key, "a string");
  if (raw == nullptr) return false;
  auto full = reader_.expanded(*raw, where(key));
  if (full) out = std::move(*full);
  return full.has_value();
}

bool Section::statement(std::string_view key, std::string& out) {
  const std::string* raw = raw_text(key, "a string");
  if (raw == nullptr) return false;
  out = *raw;
  return true;
}

bool Section::secret(std::string_view key, std::string& out) {
  const toml::node* node = find(key);
  if (node == nullptr) return false;
  if (!node->is_string()) {  // not `expected`: it would print the value
    problem_at(key, fmt::format("{} must be a string, got {}", path(key), kind(*node)));
    return false;
  }
  auto full = reader_.secret(node->as_string()->get(), where(key));
  if (full) out = std::move(*full);
  return full.has_value();
}

const toml::table* Section::table(std::string_view key) {
  const toml::node* node = find(key);
  if (node == nullptr || node->is_table()) return node == nullptr ? nullptr : node->as_table();
  expected(key, "a table");
  return nullptr;
}

bool Section::boolean(std::string_view key, bool& out) {
  const toml::node* node = find(key);
  if (node == nullptr) return false;
  const auto* flag = node->as_boolean();
  if (flag == nullptr) {
    expected(key, "true or false");
    return false;
  }
  out = flag->get();
  return true;
}

bool Section::integer(std::string_view key, std::int64_t min, std::int64_t max, std::int64_t& out) {
  const toml::node* node = find(key);
  if (node == nullptr) return false;
  const auto* number = node->as_integer();
  if (number == nullptr || number->get() < min || number->get() > max) {
    expected(key, fmt::format("an integer from {} to {}", min, max));
    return false;
  }
  out = number->get();
  return true;
}

bool Section::number(std::string_view key, double min, double max, double& out) {
  const toml::node* node = find(key);
  if (node == nullptr) return false;
  double value = 0;
  bool fits = false;
  if (const auto* real = node->as_floating_point()) {
    value = real->get();
    fits = true;
  } else if (const auto* whole = node->as_integer()) {
    value = static_cast<double>(whole->get());
    fits = true;
  }
  if (!fits || !(value >= min && value <= max)) {
    expected(key, fmt::format("a number from {} to {}", min, max));
    return false;
  }
  out = value;
  return true;
}

bool Section::duration(std::string_view key, DurationUs& out) {
  constexpr std::string_view kWhat = R"(a duration such as "5m", "100ms" or "1h30m")";
  const toml::node* node = find(key);
  if (node == nullptr) return false;
  std::optional<DurationUs> value;
  std::string suggestion;
  if (const auto* number = node->as_integer()) {
    if (number->get() == 0) value = 0;
    if (number->get() > 0) suggestion = fmt::format("{}s", number->get());
  } else if (const auto* text = node->as_string()) {
    const auto full = reader_.expanded(text->get(), where(key));
    if (!full) return false;
    value = parse_duration(*full);
    if (!value && parse_duration(*full + "s")) suggestion = *full + "s";
  }
  if (!value) {
    expected(key, kWhat, std::move(suggestion));
    return false;
  }
  out = *value;
  return true;
}

bool Section::size(std::string_view key, std::uint64_t& out) {
  const toml::node* node = find(key);
  if (node == nullptr) return false;
  std::optional<std::uint64_t> value;
  std::string suggestion;
  if (const auto* number = node->as_integer()) {
    if (number->get() >= 0) value = parse_size(std::to_string(number->get()));
  } else if (const auto* text = node->as_string()) {
    const auto full = reader_.expanded(text->get(), where(key));
    if (!full) return false;
    value = parse_size(*full);
    if (!value) suggestion = near_size(*full);
  }
  if (!value) {
    expected(key, R"(a size such as "1MiB", "64KB" or "512")", std::move(suggestion));
    return false;
  }
  out = *value;
  return true;
}

bool Section::choice(std::string_view key, const std::vector<std::string>& words,
                     std::size_t& out) {
  const std::string what = listed(words);
  const std::string* raw = raw_text(key, what);
  if (raw == nullptr) return false;
  const auto full = reader_.expanded(*raw, where(key));
  if (!full) return false;
  const auto found = std::ranges::find(words, *full);
  if (found == words.end()) {
    expected(key, what, nearest(*full, words));
    return false;
  }
  out = static_cast<std::size_t>(found - words.begin());
  return true;
}

bool Section::items(std::string_view key, bool expand, std::vector<Item>& out) {
  const toml::node* node = find(key);
  if (node == nullptr) return false;
  const toml::array* array = node->as_array();
  if (array == nullptr) {
    expected(key, "an array of strings");
    return false;
  }
  std::vector<Item> result;
  for (const toml::node& element : *array) {
    const auto at = element.source().begin;
    const auto* text = element.as_string();
    if (text == nullptr) {
      reader_.problem(at, fmt::format("{} must be an array of strings, got {} in it", path(key),
                                      described(element)));
      continue;
    }
    auto full = expand ? reader_.expanded(text->get(), at) : text->get();
    if (full) result.push_back({std::move(*full), at});
  }
  out = std::move(result);
  return true;
}

bool Section::texts(std::string_view key, std::vector<Item>& out) { return items(key, true, out); }
bool Section::statements(std::string_view key, std::vector<Item>& out) {
  return items(key, false, out);
}

void Section::finish() {
  for (const auto& [key, node] : table_) {
    const std::string_view name = key.str();
    if (std::ranges::find(known_, name) != known_.end()) continue;
    reader_.problem(key.source().begin, fmt::format("unknown key '{}' in {}", shown(name), label_),
                    nearest(name, known_));
  }
}

}  // namespace larder::config
