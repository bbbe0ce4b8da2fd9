// The same commands to a real redis-server and to PlainCommands must give the same bytes.
#include <gtest/gtest.h>

#include <set>

#include "base/hash.h"
#include "base/random.h"
#include "engine/embedded/plain.h"
#include "engine/redis_process.h"

namespace larder::engine {
namespace {

using real::parse;
using real::Words;

TimeUs wall_now() {
  using namespace std::chrono;
  return duration_cast<microseconds>(system_clock::now().time_since_epoch()).count();
}

// Random commands over few keys, so that they meet; arguments that are often at an edge.
class Generator {
 public:
  explicit Generator(std::uint64_t seed) : random_(seed) {}

  static Words keys() { return {"a", "b", "c", "d", "key:1", "key:2", "\xff\x01", ""}; }

  Words next() {
    const auto table = PlainCommands::table();
    for (;;) {
      const PlainCommand& command = table[random_.below(table.size())];
      if (command.name.starts_with("flush") && !random_.chance(0.1)) continue;
      Words words{cased(command.name)};
      fill(std::string(command.name), words);
      if (PlainCommands::arity_fits(command, words.size())) return words;
    }
  }

  template <class... Texts>
  std::string any(const Texts&... texts) {
    const std::array<std::string, sizeof...(texts)> all{std::string(texts)...};
    return all[random_.below(all.size())];
  }
  std::uint64_t below(std::uint64_t bound) { return random_.below(bound); }

 private:
  std::string cased(std::string_view name) {
    std::string text(name);
    for (char& c : text)
      if (random_.chance(0.3)) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    return text;
  }
  std::string key() { return keys()[random_.below(keys().size())]; }
  std::string integer() {
    return any("0", "1", "-1", "7", "100", "-30", "9223372036854775807", "-9223372036854775808",
               "9223372036854775808", "007", "+1", " 1", "1 ", "", "-0", "1.5", "x",
               "99999999999999999999999", "9223372036854775", "-9223372036854775");
  }
  std::string real() {
    return any("0", "1.5", "-1.5", "0.1", "1e3", "-1e-5", "3.0", "1e400", "inf", "-inf", "nan",
               "1e4000", "1e5000", "0x1p3", " 1", "", "abc", "1,5", "12345678901234567890.25");
  }
  std::string value() {
    switch (random_.below(4)) {
      case 0: return integer();
      case 1: return real();
      default: return any("", "hello", "hello world", std::string("\0\r\n\xff", 4), "10", "3.25");
    }
  }
  // Far enough from now that neither side sees them end during the test; or long ago.
  std::string relative() {
    return any("1000", "5000", "100000", "0", "-1", "-100000", "x", "9223372036854775807",
               "9223372036854775", "", "1.5");
  }
  std::string relative_ms() {
    return any("1000000", "5000000", "100000000", "0", "-1", "x", "9223372036854775807", "1.5");
  }
  std::string absolute() {
    return any("4000000000", "5000000000", "1", "0", "-1", "x", "9223372036854775807",
               "9223372036854776");
  }
  std::string absolute_ms() { return any("4000000000000", "5000000000000", "1", "0", "-1", "x"); }

  void time_option(Words& words) {
    switch (random_.below(4)) {
      case 0: words.insert(words.end(), {cased("EX"), relative()}); return;
      case 1: words.insert(words.end(), {cased("PX"), relative_ms()}); return;
      case 2: words.insert(words.end(), {cased("EXAT"), absolute()}); return;
      default: words.insert(words.end(), {cased("PXAT"), absolute_ms()}); return;
    }
  }

  void fill(const std::string& name, Words& words) {
    if (name == "set") {
      words.insert(words.end(), {key(), value()});
      for (auto n = random_.below(4); n > 0; --n) {
        if (random_.chance(0.4))
          time_option(words);
        else
          words.push_back(cased(any("NX", "XX", "GET", "KEEPTTL", "PERSIST", "EX", "WHAT")));
      }
    } else if (name == "getex") {
      words.push_back(key());
      for (auto n = random_.below(3); n > 0; --n) {
        if (random_.chance(0.6))
          time_option(words);
        else
          words.push_back(cased(any("PERSIST", "PERSIST", "KEEPTTL", "PX", "NX")));
      }
    } else if (name == "expire" || name == "pexpire") {
      words.insert(words.end(), {key(), name == "expire" ? relative() : relative_ms()});
      for (auto n = random_.below(2); n > 0; --n) words.push_back(cased(any("NX", "XX", "ZZ")));
    } else if (name == "expireat" || name == "pexpireat") {
      words.insert(words.end(), {key(), name == "expireat" ? absolute() : absolute_ms()});
      for (auto n = random_.below(3); n > 0; --n)
        words.push_back(cased(any("NX", "XX", "GT", "LT", "GT", "LT", "ZZ")));
    } else if (name == "setex" || name == "psetex") {
      words.insert(words.end(), {key(), name == "setex" ? relative() : relative_ms(), value()});
    } else if (name == "mset" || name == "msetnx") {
      for (auto n = 2 + random_.below(5); n > 0; --n) words.push_back(n % 2 != 0 ? value() : key());
    } else if (name == "incrby" || name == "decrby") {
      words.insert(words.end(), {key(), integer()});
    } else if (name == "incrbyfloat") {
      words.insert(words.end(), {key(), real()});
    } else if (name == "getrange" || name == "substr") {
      words.insert(words.end(), {key(), integer(), integer()});
    } else if (name == "setrange") {
      words.insert(words.end(),
                   {key(), any("0", "1", "5", "30", "-1", "x", "536870912", "9223372036854775807"),
                    value()});
    } else if (name == "rename" || name == "renamenx") {
      words.insert(words.end(), {key(), key()});
    } else if (name == "append" || name == "getset" || name == "setnx") {
      words.insert(words.end(), {key(), value()});
    } else if (name == "scan") {
      words.push_back(any("0", "x", "", " 0", "0x"));
      if (words[1].empty() || words[1] == "0") words.insert(words.end(), {"COUNT", "100000000"});
      for (auto n = random_.below(3); n > 0; --n)
        words.push_back(any("MATCH", "*", "k*", "[ab]", "TYPE", "string", "COUNT", "0"));
    } else if (name == "keys") {
      words.push_back(any("*", "k*", "[a-c]", "?", "key:[^1]", "", "[", "\\a", "*:*"));
    } else if (name.starts_with("flush")) {
      if (random_.chance(0.5)) words.push_back(cased(any("SYNC", "SYNC", "NOW")));
    } else if (name != "dbsize" && name != "randomkey") {
      words.push_back(key());
      if (PlainCommands::find(name)->arity < 0)
        for (auto n = random_.below(3); n > 0; --n) words.push_back(key());
    }
  }

  Random random_;
};

enum class Compare : std::uint8_t { bytes, time, keys, scan, presence };

Compare comparison(const Words& words) {
  const std::string_view name = PlainCommands::find(words[0])->name;
  if (name.ends_with("ttl") || name.ends_with("expiretime")) return Compare::time;
  if (name == "keys") return Compare::keys;
  if (name == "scan") return Compare::scan;
  if (name == "randomkey") return Compare::presence;
  return Compare::bytes;
}

std::multiset<std::string> texts(const wire::Reply& reply) {
  std::multiset<std::string> all;
  for (const wire::Reply& element : reply.elements) all.insert(element.text);
  return all;
}

bool same(const Words& words, const std::string& ours, const std::string& theirs) {
  if (ours == theirs) return true;
  const wire::Reply a = parse(ours);
  const wire::Reply b = parse(theirs);
  if (a.type != b.type) return false;
  switch (comparison(words)) {
    case Compare::bytes: return false;
    case Compare::time:  // two clocks, read a moment apart; in s or ms
      return a.type == wire::Reply::Type::integer && std::abs(a.integer - b.integer) < 60'000 &&
             (a.integer < 0) == (b.integer < 0);
    case Compare::keys: return texts(a) == texts(b);
    case Compare::scan:
      return a.elements.size() == 2 && b.elements.size() == 2 &&
             a.elements[0].text == b.elements[0].text &&
             texts(a.elements[1]) == texts(b.elements[1]);
    case Compare::presence: return true;
  }
  return false;
}

std::string printable(const Words& words) {
  std::string text;
  for (const std::string& word : words) text += testing::PrintToString(word) + " ";
  return text;
}

class AgainstRedis : public real::WithRedis<testing::TestWithParam<int>> {
 protected:
  void SetUp() override {
    WithRedis::SetUp();
    if (redis_ && GetParam() == 3) redis_->call({"HELLO", "3"});
  }

  std::string ours(const Words& words) {
    std::string reply;
    wire::Writer out(reply, GetParam());
    const std::vector<std::string_view> args(words.begin(), words.end());
    commands_.run(*PlainCommands::find(args[0]), args, wall_now(), out);
    return reply;
  }
  // Both drop what has expired, so that counting it agrees.
  void settle() {
    Words words{"EXISTS"};
    for (const std::string& key : Generator::keys()) words.push_back(key);
    ASSERT_EQ(ours(words), redis_->call(words));
  }

  near::Store store_{{.capacity_bytes = 64 << 20}};
  PlainCommands commands_{store_};
};

TEST_P(AgainstRedis, RandomCommandsGiveTheSameBytes) {
  Generator generator(static_cast<std::uint64_t>(GetParam()));
  std::vector<std::string> history;
  for (int i = 0; i < 30'000; ++i) {
    const Words words = generator.next();
    history.push_back(printable(words));
    const std::string_view name = PlainCommands::find(words[0])->name;
    if (name == "dbsize" || name == "randomkey") settle();
    const std::string theirs = redis_->call(words);
    const std::string mine = ours(words);
    std::string last;
    if (!same(words, mine, theirs))
      for (std::size_t k = history.size() > 6 ? history.size() - 6 : 0; k < history.size(); ++k)
        last += history[k] + "\n";
    ASSERT_TRUE(same(words, mine, theirs)) << last << "ours:   " << testing::PrintToString(mine)
                                           << "\nredis's: " << testing::PrintToString(theirs);
  }
}

TEST_P(AgainstRedis, SoDoTransactions) {
  Generator generator(100 + static_cast<std::uint64_t>(GetParam()));
  for (int i = 0; i < 1500; ++i) {
    settle();
    std::vector<QueuedCommand> queued;
    ASSERT_EQ(redis_->call({"MULTI"}), "+OK\r\n");
    for (auto n = generator.below(6); n > 0;) {
      const Words words = generator.next();
      // Those whose bytes depend on the clock, the order of keys or on when expired keys go.
      if (comparison(words) != Compare::bytes || PlainCommands::find(words[0])->name == "dbsize")
        continue;
      --n;
      ASSERT_EQ(redis_->call(words), "+QUEUED\r\n") << printable(words);
      queued.push_back({words});
    }
    std::string mine;
    wire::Writer out(mine, GetParam());
    commands_.run_transaction(queued, {}, wall_now(), out);
    std::string all;
    for (const QueuedCommand& command : queued) all += printable(command.args) + "\n";
    ASSERT_EQ(mine, redis_->call({"EXEC"})) << all;
  }
}

TEST_P(AgainstRedis, PatternsMatchTheSameKeys) {
  Random random(static_cast<std::uint64_t>(GetParam()));
  const auto draw = [&](std::string_view letters, std::uint64_t most) {
    std::string text;
    for (auto n = random.below(most); n > 0; --n) text += letters[random.below(letters.size())];
    return text;
  };
  for (int i = 0; i < 300; ++i) {
    // Never the empty key: Redis's "**" misses it, though its "*" does not.
    const Words words{"SET", draw("ab]-^\\[\xff", 5) + draw("ab]-^\\[\xff", 2), "v"};
    if (words[1].empty()) continue;
    ASSERT_EQ(ours(words), redis_->call(words));
  }
  for (int i = 0; i < 5000; ++i) {
    const Words words{"KEYS", draw("ab*?[]]-^^\\\xff", 9)};
    const std::string mine = ours(words);
    const std::string theirs = redis_->call(words);
    if (same(words, mine, theirs)) continue;
    std::string differences;
    for (const std::string& key : texts(parse(mine)))
      if (!texts(parse(theirs)).contains(key)) differences += " only ours " + printable({key});
    for (const std::string& key : texts(parse(theirs)))
      if (!texts(parse(mine)).contains(key)) differences += " only theirs " + printable({key});
    ADD_FAILURE() << printable(words) << differences;
  }
}

TEST_P(AgainstRedis, TheTableSaysWhatRedisSays) {
  for (const PlainCommand& command : PlainCommands::table()) {
    const wire::Reply info = parse(redis_->call({"COMMAND", "INFO", std::string(command.name)}));
    ASSERT_EQ(info.elements.size(), 1U);
    const auto& row = info.elements[0].elements;
    ASSERT_GE(row.size(), 6U) << command.name;
    EXPECT_EQ(row[1].integer, command.arity) << command.name;
    const auto flags = texts(row[2]);
    EXPECT_EQ(flags.contains("write"), command.writes) << command.name;
    EXPECT_EQ(flags.contains("denyoom"), command.may_grow) << command.name;
    EXPECT_EQ(row[3].integer, command.first_key) << command.name;
    EXPECT_EQ(row[4].integer, command.last_key) << command.name;
    EXPECT_EQ(row[5].integer, command.key_step) << command.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Resp, AgainstRedis, testing::Values(2, 3));

}  // namespace
}  // namespace larder::engine
