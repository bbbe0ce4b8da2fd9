// Typed access to a TOML document that collects problems instead of stopping at one. Private to
// config/.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config/config.h"
#include "config/toml.h"

namespace larder::config {

// The candidate that `word` was probably meant to be; "" if none is near. (Edit distance with
// transpositions, at most a third of the word.)
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

// 'a', 'b' or 'c'
std::string listed(const std::vector<std::string>& words, std::string_view last = "or");

// `line` with passwords masked: those in URLs, and the value of a key that holds a secret.
std::string masked(std::string_view line);
// The same for one URL: "postgresql://u:***@h/db".
std::string masked_url(std::string_view url);

// The document's text, and what is wrong with it.
class Reader {
 public:
  Reader(std::string_view text, std::string_view filename, const Outside& outside);

  std::string printable_line(std::size_t line) const;
  void problem(toml::source_position at, std::string message, std::string suggestion = {});
  std::vector<Problem> take_problems();  // in the order of the file
  bool failed() const { return !problems_.empty(); }

  // Replaces ${NAME}; `$${` is a literal `${`. nullopt: reported.
  std::optional<std::string> expanded(std::string_view text, toml::source_position at);
  // The same, and a text that begins with file: is the content of that file.
  std::optional<std::string> secret(std::string_view text, toml::source_position at);

 private:
  std::string filename_;
  const Outside& outside_;
  std::vector<std::string_view> lines_;
  std::vector<Problem> problems_;
};

// One table, such as [cache.product]. Each read names the key that is allowed: finish() reports all
// others. A read leaves `out` alone if the key is absent or wrong, and returns true if it was set.
class Section {
 public:
  // `label` as it is printed: "[cache.product]".
  Section(Reader& reader, const toml::table& table, std::string label);

  bool text(std::string_view key, std::string& out);       // with ${NAME} replaced
  bool statement(std::string_view key, std::string& out);  // as it stands
  bool secret(std::string_view key, std::string& out);     // ${NAME} and file:
  bool boolean(std::string_view key, bool& out);
  bool integer(std::string_view key, std::int64_t min, std::int64_t max, std::int64_t& out);
  bool number(std::string_view key, double min, double max, double& out);
  bool duration(std::string_view key, DurationUs& out);
  bool size(std::string_view key, std::uint64_t& out);
  // One of `words`: its index.
  bool choice(std::string_view key, const std::vector<std::string>& words, std::size_t& out);

  // Null if absent or reported. What is in it is the caller's to check.
  const toml::table* table(std::string_view key);

  struct Item {
    std::string text;
    toml::source_position at;
  };
  bool texts(std::string_view key, std::vector<Item>& out);       // with ${NAME} replaced
  bool statements(std::string_view key, std::vector<Item>& out);  // as they stand

  // The problem "needs `key`", at the section's head.
  void missing(std::string_view key, std::string_view why);
  void problem_at(std::string_view key, std::string message, std::string suggestion = {});
  // "cache.product.ttl", for messages.
  std::string path(std::string_view key) const;

  bool has(std::string_view key) const { return table_.contains(key); }
  toml::source_position where(std::string_view key) const;
  toml::source_position head() const { return head_; }
  const std::string& label() const { return label_; }
  Reader& reader() { return reader_; }

  // Keys that nobody asked for.
  void finish();

 private:
  // The node, noting that the key is allowed; null if absent.
  const toml::node* find(std::string_view key);
  // The text at `key`; null if absent, or reported as something else.
  const std::string* raw_text(std::string_view key, std::string_view what);
  bool items(std::string_view key, bool expand, std::vector<Item>& out);
  void expected(std::string_view key, std::string_view what, std::string suggestion = {});

  Reader& reader_;
  const toml::table& table_;
  std::string label_;
  toml::source_position head_;
  std::vector<std::string> known_;
};

// "integer 5", "string \"x\"", "a table".
std::string described(const toml::node& node);

}  // namespace larder::config
