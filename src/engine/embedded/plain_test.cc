#include "engine/embedded/plain.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "base/hash.h"

namespace larder::engine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Words = std::vector<std::string>;

constexpr TimeUs kStart = 1'700'000'000'000'000;

class PlainTest : public testing::Test {
 protected:
  std::string call(const Words& words, int protocol = 2) {
    std::string reply;
    wire::Writer out(reply, protocol);
    const std::vector<std::string_view> args(words.begin(), words.end());
    const PlainCommand* command = PlainCommands::find(args[0]);
    EXPECT_NE(command, nullptr);
    EXPECT_TRUE(PlainCommands::arity_fits(*command, args.size()));
    commands_.run(*command, args, now_, out);
    return reply;
  }
  std::string exec(const std::vector<Words>& commands, const std::vector<Watch>& watches = {}) {
    std::string reply;
    wire::Writer out(reply);
    std::vector<QueuedCommand> queued;
    queued.reserve(commands.size());
    for (const Words& words : commands) queued.push_back({words});
    commands_.run_transaction(queued, watches, now_, out);
    return reply;
  }
  void fill_declared(const std::string& key, near::Meta meta) {
    meta.as_of = now_;
    const Hash hash = hash_bytes(key);
    ASSERT_EQ(store_.fill(store_.ticket(hash), key, hash, "{}", meta, {}), policy::Refusal::none);
  }

  TimeUs now_ = kStart;
  near::Store store_{{.capacity_bytes = 4 << 20}};
  PlainCommands commands_{store_};
};

TEST_F(PlainTest, TheTableIsFoundInAnyCase) {
  for (const PlainCommand& command : PlainCommands::table()) {
    EXPECT_EQ(PlainCommands::find(command.name), &command);
    std::string upper(command.name);
    for (char& c : upper) c = static_cast<char>(std::toupper(c));
    EXPECT_EQ(PlainCommands::find(upper), &command);
  }
  for (const std::string_view name :
       {"", "ge", "gett", "zzz", "a", "lpush", "averyveryverylongname"})
    EXPECT_EQ(PlainCommands::find(name), nullptr) << name;
}

TEST_F(PlainTest, KeysOfCommands) {
  const auto keys = [](std::vector<std::string_view> args) {
    std::vector<std::string_view> found;
    PlainCommands::keys_of(*PlainCommands::find(args[0]), args, found);
    return found;
  };
  EXPECT_THAT(keys({"GET", "a"}), ElementsAre("a"));
  EXPECT_THAT(keys({"SET", "a", "b", "EX", "1"}), ElementsAre("a"));
  EXPECT_THAT(keys({"MGET", "a", "b", "c"}), ElementsAre("a", "b", "c"));
  EXPECT_THAT(keys({"MSET", "a", "1", "b", "2"}), ElementsAre("a", "b"));
  EXPECT_THAT(keys({"RENAME", "a", "b"}), ElementsAre("a", "b"));
  EXPECT_THAT(keys({"SCAN", "0"}), ElementsAre());
}

TEST_F(PlainTest, LivesEndWhenTheyShould) {
  EXPECT_EQ(call({"SET", "k", "v", "PX", "100"}), "+OK\r\n");
  now_ += 40 * kMillisecond;
  EXPECT_EQ(call({"PTTL", "k"}), ":60\r\n");
  EXPECT_EQ(call({"PERSIST", "k"}), ":1\r\n");
  EXPECT_EQ(call({"PERSIST", "k"}), ":0\r\n");
  EXPECT_EQ(call({"TTL", "k"}), ":-1\r\n");
  EXPECT_EQ(call({"EXPIRE", "k", "10"}), ":1\r\n");
  EXPECT_EQ(call({"SET", "k", "w", "KEEPTTL"}), "+OK\r\n");
  EXPECT_EQ(call({"TTL", "k"}), ":10\r\n");
  EXPECT_EQ(call({"APPEND", "k", "x"}), ":2\r\n");
  EXPECT_EQ(call({"TTL", "k"}), ":10\r\n");
  EXPECT_EQ(call({"RENAME", "k", "l"}), "+OK\r\n");
  now_ += 9 * kSecond;
  EXPECT_EQ(call({"TTL", "l"}), ":1\r\n");
  now_ += kSecond;
  EXPECT_EQ(call({"GET", "l"}), "$-1\r\n");
  EXPECT_EQ(call({"DBSIZE"}), ":0\r\n");
  EXPECT_EQ(call({"SET", "far", "v", "PXAT", "9223372036854775807"}), "+OK\r\n");
  EXPECT_EQ(call({"GET", "far"}), "$1\r\nv\r\n");
  EXPECT_THAT(call({"PTTL", "far"}), HasSubstr(":7")) << "clipped to our range, and finite";
}

TEST_F(PlainTest, TheKeySpaceShowsValidDeclaredEntries) {
  call({"SET", "plain", "v"});
  const TimeUs end = kStart + 1000;
  fill_declared("product:1", {.cache_id = 1, .soft_expiry = end, .useless_at = kNever});
  fill_declared("product:2",
                {.cache_id = 1, .negative = true, .soft_expiry = end, .useless_at = end});
  fill_declared("product:3", {.cache_id = 1, .soft_expiry = end, .useless_at = kNever});
  store_.invalidate(hash_bytes("product:3"), "product:3", true);
  EXPECT_EQ(call({"DBSIZE"}), ":2\r\n");
  EXPECT_EQ(call({"KEYS", "product:*"}), "*1\r\n$9\r\nproduct:1\r\n");
  EXPECT_EQ(call({"SCAN", "0", "COUNT", "1000000", "MATCH", "p[r]*"}),
            "*2\r\n$1\r\n0\r\n*1\r\n$9\r\nproduct:1\r\n");
  EXPECT_EQ(call({"GET", "product:1"}), "$-1\r\n") << "not a plain key";
  now_ = end;
  EXPECT_EQ(call({"DBSIZE"}), ":1\r\n") << "its TTL has passed";
  EXPECT_EQ(call({"FLUSHALL"}), "+OK\r\n");
  EXPECT_EQ(call({"RANDOMKEY"}), "$-1\r\n");
  now_ = kStart;
  EXPECT_EQ(call({"RANDOMKEY"}), "$9\r\nproduct:1\r\n") << "the server voids declared ones";
}

TEST_F(PlainTest, ScanMeetsEverythingOnce) {
  std::vector<std::string> keys;
  for (int i = 0; i < 500; ++i) {
    keys.push_back("key:" + std::to_string(i));
    call({"SET", keys.back(), "v"});
  }
  std::vector<std::string> met;
  std::string cursor = "0";
  do {
    const std::string reply = call({"SCAN", cursor, "COUNT", "7"});
    std::size_t consumed = 0;
    std::string error;
    const auto parsed = wire::parse_reply(reply, consumed, error);
    ASSERT_TRUE(parsed);
    cursor = parsed->elements[0].text;
    for (const wire::Reply& key : parsed->elements[1].elements) met.push_back(key.text);
  } while (cursor != "0");
  EXPECT_THAT(met, testing::UnorderedElementsAreArray(keys));
  EXPECT_EQ(call({"SCAN", "0", "TYPE", "list", "COUNT", "10000000"}), "*2\r\n$1\r\n0\r\n*0\r\n");
}

TEST_F(PlainTest, TransactionsRunWholeOrNotAtAll) {
  EXPECT_EQ(exec({}), "*0\r\n");
  EXPECT_EQ(exec({{"SET", "a", "1"},
                  {"INCR", "a"},
                  {"INCR", "a", "b"},
                  {"NOPE"},
                  {"DBSIZE"},
                  {"KEYS", "*"},
                  {"SCAN", "0", "COUNT", "9999999"},
                  {"FLUSHALL"},
                  {"RANDOMKEY"}}),
            "*9\r\n+OK\r\n:2\r\n-ERR wrong number of arguments for 'incr' command\r\n"
            "-ERR unknown command\r\n:1\r\n*1\r\n$1\r\na\r\n*2\r\n$1\r\n0\r\n*1\r\n$1\r\na\r\n"
            "+OK\r\n$-1\r\n");
}

TEST_F(PlainTest, WatchNoticesEveryChange) {
  const std::vector<Words> changes{{"SET", "k", "v"},
                                   {"SET", "k", "v"},
                                   {"APPEND", "k", "x"},
                                   {"EXPIRE", "k", "100"},
                                   {"PERSIST", "k"},
                                   {"DEL", "k"},
                                   {"MSET", "k", "1"},
                                   {"INCR", "k"},
                                   {"GETEX", "k", "EX", "9"},
                                   {"GETDEL", "k"},
                                   {"SETRANGE", "k", "3", "x"},
                                   {"RENAME", "k", "l"},
                                   {"RENAME", "l", "k"},
                                   {"FLUSHDB"}};
  for (const Words& change : changes) {
    const Watch watch = commands_.watch("k", now_);
    EXPECT_TRUE(commands_.unchanged({&watch, 1}, now_));
    EXPECT_EQ(exec({{"STRLEN", "none"}}, {watch}), "*1\r\n:0\r\n");
    call(change);
    EXPECT_FALSE(commands_.unchanged({&watch, 1}, now_)) << change[0];
    EXPECT_EQ(exec({{"SET", "done", "1"}}, {watch}), "*-1\r\n") << change[0];
  }
  EXPECT_EQ(call({"GET", "done"}), "$-1\r\n");
  call({"SET", "k", "v", "PX", "5"});
  const Watch watch = commands_.watch("k", now_);
  for (const Words& reading : std::vector<Words>{
           {"GET", "k"}, {"TTL", "k"}, {"TOUCH", "k"}, {"SET", "k", "w", "NX"}, {"KEYS", "*"}})
    call(reading);
  EXPECT_TRUE(commands_.unchanged({&watch, 1}, now_));
  // Other keys may change, but for one that happens to lie in the same bucket.
  unsigned unmoved = 0;
  for (int i = 0; i < 16; ++i) {
    const Watch anew = commands_.watch("k", now_);
    call({"SET", "other" + std::to_string(i), "w"});
    unmoved += commands_.unchanged({&anew, 1}, now_) ? 1 : 0;
  }
  EXPECT_GT(unmoved, 8U);
  const Watch expires = commands_.watch("k", now_);
  now_ += 5 * kMillisecond;
  EXPECT_FALSE(commands_.unchanged({&expires, 1}, now_)) << "expired";
}

TEST_F(PlainTest, SaysWhatDoesNotFitAndChangesNothing) {
  const auto largest = store_.max_entry_bytes();
  call({"SET", "k", "old"});
  const std::string expected = "-ERR value of " + std::to_string(largest) +
                               " bytes does not fit: the largest entry is " +
                               std::to_string(largest) + " bytes; raise [near] capacity\r\n";
  const std::string huge(largest, 'x');
  for (const Words& words : std::vector<Words>{{"SET", "k", huge},
                                               {"SET", "k", huge, "GET"},
                                               {"GETSET", "k", huge},
                                               {"MSET", "k", "new", "l", huge},
                                               {"MSETNX", "l", "new", "m", huge}})
    EXPECT_EQ(call(words), expected) << words[0];
  EXPECT_THAT(call({"SETRANGE", "k", "500000000", "x"}), HasSubstr("value of 500000001 bytes"));
  EXPECT_THAT(call({"APPEND", "k", huge}), HasSubstr("does not fit"));
  EXPECT_EQ(call({"GET", "k"}), "$3\r\nold\r\n");
  EXPECT_EQ(call({"DBSIZE"}), ":1\r\n");
}

TEST(PlainRefusing, AnswersOomAndKeepsEverything) {
  near::Store store({.capacity_bytes = 64 << 10, .shards = 1, .evict_plain = false});
  PlainCommands commands(store);
  const auto call = [&](const Words& words) {
    std::string reply;
    wire::Writer out(reply);
    const std::vector<std::string_view> args(words.begin(), words.end());
    commands.run(*PlainCommands::find(args[0]), args, kStart, out);
    return reply;
  };
  const std::string oom = "-OOM command not allowed when used memory > 'maxmemory'.\r\n";
  int stored = 0;
  while (call({"SET", std::to_string(stored), std::string(1000, 'v')}) == "+OK\r\n") ++stored;
  EXPECT_EQ(call({"SET", "x", std::string(1000, 'v')}), oom);
  EXPECT_EQ(call({"MSET", "0", std::string(900, 'w'), "x", std::string(3000, 'v')}), oom);
  EXPECT_EQ(call({"GET", "0"}), "$1000\r\n" + std::string(1000, 'v') + "\r\n") << "rolled back";
  EXPECT_EQ(call({"DBSIZE"}), ":" + std::to_string(stored) + "\r\n");
  EXPECT_EQ(call({"RENAME", "0", "z"}), "+OK\r\n") << "needs no room";
  EXPECT_EQ(call({"DEL", "z", "1"}), ":2\r\n");
  EXPECT_EQ(call({"SET", "x", std::string(1000, 'v')}), "+OK\r\n");
}

TEST(PlainThreads, TransactionsAreSeenWhole) {
  near::Store store({.capacity_bytes = 4 << 20});
  std::atomic<int> torn{0};
  const auto work = [&](int id) {
    PlainCommands commands(store);
    for (int i = 0; i < 3000; ++i) {
      std::string reply;
      wire::Writer out(reply);
      if (id == 0) {
        const std::vector<QueuedCommand> queued{
            {{"INCR", "a"}}, {{"SET", "b", "x"}}, {{"INCR", "c"}}};
        commands.run_transaction(queued, {}, kStart, out);
        continue;
      }
      const std::vector<std::string_view> args{"MGET", "a", "c"};
      commands.run(*PlainCommands::find("mget"), args, kStart, out);
      std::size_t consumed = 0;
      std::string error;
      const auto parsed = wire::parse_reply(reply, consumed, error);
      if (!parsed || parsed->elements[0].text != parsed->elements[1].text) ++torn;
    }
  };
  std::vector<std::jthread> threads;
  threads.reserve(3);
  for (int i = 0; i < 3; ++i) threads.emplace_back(work, i);
  threads.clear();
  EXPECT_EQ(torn, 0);
}

}  // namespace
}  // namespace larder::engine
