#include "engine/redis/plain.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/redis_process.h"

namespace larder::engine::redis {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

using Keys = std::vector<std::string_view>;

TEST(PlainKeys, AreFoundWhereverTheyStand) {
  const auto keys = [](std::vector<std::string_view> args) {
    Keys found;
    std::string name(args[0]);
    EXPECT_TRUE(movable_keys(name, args, found)) << name;
    return found;
  };
  EXPECT_THAT(keys({"eval", "return 1", "2", "a", "b", "arg"}), ElementsAre("a", "b"));
  EXPECT_THAT(keys({"eval", "return 1", "0", "arg"}), IsEmpty());
  EXPECT_THAT(keys({"fcall_ro", "f", "1", "a"}), ElementsAre("a"));
  EXPECT_THAT(keys({"zunionstore", "to", "2", "a", "b", "WEIGHTS", "1", "2"}),
              ElementsAre("to", "a", "b"));
  EXPECT_THAT(keys({"zinter", "1", "a", "WITHSCORES"}), ElementsAre("a"));
  EXPECT_THAT(keys({"lmpop", "2", "a", "b", "LEFT"}), ElementsAre("a", "b"));
  EXPECT_THAT(keys({"blmpop", "0", "2", "a", "b", "LEFT"}), ElementsAre("a", "b"));
  EXPECT_THAT(keys({"xread", "COUNT", "1", "STREAMS", "a", "b", "0", "0"}), ElementsAre("a", "b"));
  EXPECT_THAT(keys({"xreadgroup", "GROUP", "g", "c", "streams", "a", ">"}), ElementsAre("a"));
  EXPECT_THAT(keys({"sort", "a", "BY", "x", "STORE", "to"}), ElementsAre("a", "to"));
  EXPECT_THAT(keys({"georadius", "a", "1", "1", "1", "m", "storedist", "to"}),
              ElementsAre("a", "to"));
}

// Whatever a client sends: no argument is looked for where there is none.
TEST(PlainKeys, MalformedCommandsHaveNoKeysTooMany) {
  for (const char* name : {"eval", "zunionstore", "lmpop", "blmpop", "xread", "sort", "georadius"})
    for (const char* count : {"-1", "x", "999999999999999999999", "3", ""})
      for (std::size_t size = 2; size < 6; ++size) {
        std::vector<std::string_view> args(size, count);
        args[0] = name;
        Keys found;
        EXPECT_TRUE(movable_keys(name, args, found));
        EXPECT_LE(found.size(), size);
      }
  std::vector<std::string_view> args{"nosuch", "a"};
  Keys found;
  EXPECT_FALSE(movable_keys("nosuch", args, found));
}

TEST(PlainKeys, OnlyXreadWithBlockWaits) {
  const std::vector<std::string_view> blocks{"XREAD", "Block", "0", "STREAMS", "a", "0"};
  const std::vector<std::string_view> reads{"XREAD", "STREAMS", "block", "0"};
  EXPECT_TRUE(waits("xread", blocks));
  EXPECT_FALSE(waits("xread", reads));
  EXPECT_TRUE(waits("blpop", reads));
}

TEST(PlainReplies, AreCutIntoTheirElements) {
  EXPECT_THAT(elements_of("*3\r\n$1\r\na\r\n*2\r\n:1\r\n:2\r\n$-1\r\n"),
              ElementsAre("$1\r\na\r\n", "*2\r\n:1\r\n:2\r\n", "$-1\r\n"));
  EXPECT_THAT(elements_of(">2\r\n+a\r\n%1\r\n+k\r\n,1.5\r\n"),
              ElementsAre("+a\r\n", "%1\r\n+k\r\n,1.5\r\n"));
  for (const char* none : {"*0\r\n", "*-1\r\n", "_\r\n", "$1\r\na\r\n", "-ERR x\r\n", "", "*"})
    EXPECT_THAT(elements_of(none), IsEmpty()) << none;
}

struct PlainInfo : real::WithRedis<testing::Test> {
  std::vector<CommandInfo> info(const std::string& name) {
    return parse_command_info(real::parse(redis_->call({"COMMAND", "INFO", name})));
  }
};

TEST_F(PlainInfo, IsReadFromARealServer) {
  const auto get = info("get");
  ASSERT_EQ(get.size(), 1U);
  EXPECT_EQ(get[0].name, "get");
  EXPECT_EQ(get[0].arity, 2);
  EXPECT_FALSE(get[0].writes);
  EXPECT_EQ(get[0].first_key, 1);
  const auto pop = info("BLPOP");
  ASSERT_EQ(pop.size(), 1U);
  EXPECT_TRUE(pop[0].blocking && pop[0].writes);
  EXPECT_EQ(pop[0].last_key, -2);
  const auto eval = info("eval");
  ASSERT_EQ(eval.size(), 1U);
  EXPECT_TRUE(eval[0].movable);
  const auto object = info("object");
  ASSERT_GT(object.size(), 1U);
  EXPECT_TRUE(object[0].container);
  const auto encoding = std::ranges::find(object, "object|encoding", &CommandInfo::name);
  ASSERT_NE(encoding, object.end());
  EXPECT_EQ(encoding->first_key, 2);
  EXPECT_THAT(info("nosuch"), IsEmpty());
}

// Every command of this server whose keys move is known here, or is asked for: none is forgotten.
TEST_F(PlainInfo, KeysOfAllMovableCommandsAgreeWithTheServers) {
  const std::vector<real::Words> commands = {
      {"EVAL", "x", "1", "a", "b"},
      {"SORT", "a", "STORE", "b"},
      {"ZUNIONSTORE", "d", "2", "a", "b"},
      {"ZDIFF", "2", "a", "b"},
      {"SINTERCARD", "2", "a", "b"},
      {"LMPOP", "1", "a", "LEFT"},
      {"BZMPOP", "0", "1", "a", "MIN"},
      {"XREAD", "STREAMS", "a", "b", "0", "0"},
      {"GEORADIUS", "a", "1", "1", "1", "m", "STORE", "b"},
      {"GEORADIUSBYMEMBER", "a", "m", "1", "m", "STORE", "b"}};
  for (const real::Words& words : commands) {
    real::Words ask{"COMMAND", "GETKEYS"};
    ask.insert(ask.end(), words.begin(), words.end());
    std::vector<std::string> expected;
    for (const auto& element : real::parse(redis_->call(ask)).elements)
      expected.push_back(element.text);
    const std::vector<std::string_view> args(words.begin(), words.end());
    std::string name = words[0];
    for (char& c : name) c = static_cast<char>(std::tolower(c));
    Keys found;
    ASSERT_TRUE(movable_keys(name, args, found)) << name;
    EXPECT_EQ(std::vector<std::string>(found.begin(), found.end()), expected) << name;
  }
}

}  // namespace
}  // namespace larder::engine::redis
