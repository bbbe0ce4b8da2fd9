#include "engine/redis/url.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace larder::engine::redis {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

TEST(EngineUrl, SingleServerWithAllParts) {
  const auto url = parse_url("redis://app:p%40ss%2F1@cache.example:6380/3");
  ASSERT_TRUE(url) << url.error().message;
  EXPECT_EQ(url->kind, Url::Kind::single);
  EXPECT_FALSE(url->tls);
  EXPECT_THAT(url->seeds, ElementsAre("cache.example:6380"));
  EXPECT_EQ(url->user, "app");
  EXPECT_EQ(url->password, "p@ss/1");
  EXPECT_EQ(url->database, 3U);
  EXPECT_EQ(url->display(), "redis://cache.example:6380/3");
}

TEST(EngineUrl, FillsInPortsAndReadsIPv6) {
  EXPECT_THAT(parse_url("redis://h")->seeds, ElementsAre("h:6379"));
  EXPECT_THAT(parse_url("redis://[::1]")->seeds, ElementsAre("[::1]:6379"));
  EXPECT_THAT(parse_url("redis://[::1]:7000/0")->seeds, ElementsAre("[::1]:7000"));
  EXPECT_THAT(parse_url("redis+unix:/run/redis.sock")->seeds, ElementsAre("unix:/run/redis.sock"));
  EXPECT_EQ(parse_url("redis+unix:/run/redis.sock")->display(), "redis+unix:/run/redis.sock");
}

TEST(EngineUrl, PasswordWithoutUser) {
  const auto url = parse_url("redis://:secret@h");
  EXPECT_EQ(url->user, "");
  EXPECT_EQ(url->password, "secret");
}

TEST(EngineUrl, SentinelAndCluster) {
  const auto sentinel = parse_url("redis+sentinel://s1,s2:26380/mymaster/2?sentinel_password=x");
  ASSERT_TRUE(sentinel) << sentinel.error().message;
  EXPECT_THAT(sentinel->seeds, ElementsAre("s1:26379", "s2:26380"));
  EXPECT_EQ(sentinel->master, "mymaster");
  EXPECT_EQ(sentinel->database, 2U);
  EXPECT_EQ(sentinel->sentinel_password, "x");
  EXPECT_EQ(sentinel->display(), "redis+sentinel://s1:26379,s2:26380/mymaster/2");
  const auto cluster = parse_url("rediss+cluster://a:7000,b:7001?ca=/etc/ca.pem&verify=off&sni=n");
  ASSERT_TRUE(cluster) << cluster.error().message;
  EXPECT_TRUE(cluster->cluster());
  EXPECT_TRUE(cluster->tls);
  EXPECT_EQ(cluster->ca_file, "/etc/ca.pem");
  EXPECT_FALSE(cluster->verify);
  EXPECT_EQ(cluster->display(), "rediss+cluster://a:7000,b:7001");
}

TEST(EngineUrl, ErrorsSayWhatToDoAndKeepTheSecret) {
  for (const std::string_view text :
       {"", "h:6379", "http://h", "redis://", "redis://:hunter2@", "redis://u:hunter2@h:0",
        "redis://u:hunter2@h:port", "redis://u:hunter2%@h", "redis://u:hunter2@h/x",
        "redis://u:hunter2@a,b", "redis+sentinel://u:hunter2@a", "redis+cluster://u:hunter2@a/1",
        "redis://u:hunter2@h?ca=f", "rediss://u:hunter2@h?cert=f", "redis://u:hunter2@h?nope=1",
        "rediss://u:hunter2@h?verify=maybe", "redis://u:hunter2@[::1", "redis+unix:x"}) {
    const auto url = parse_url(text);
    ASSERT_FALSE(url) << text;
    EXPECT_EQ(url.error().code, ErrorCode::config);
    EXPECT_THAT(url.error().message, HasSubstr("redis+cluster://"));
    EXPECT_THAT(url.error().message, Not(HasSubstr("hunter2"))) << text;
  }
}

TEST(SlotOf, IsThatOfRedisCluster) {
  EXPECT_EQ(slot_of("123456789"), 0x31C3U);  // the check value of CRC-16/XMODEM
  EXPECT_EQ(slot_of("foo"), 12182U);         // CLUSTER KEYSLOT foo
  EXPECT_EQ(slot_of("{user1000}.following"), slot_of("{user1000}.followers"));
  EXPECT_EQ(slot_of("foo{}{bar}"), 8363U);  // an empty tag is none: CRC of the whole key
  EXPECT_EQ(slot_of("foo{{bar}}zap"), slot_of("{bar"));
  EXPECT_EQ(slot_of("foo{bar}{zap}"), slot_of("bar"));
  EXPECT_EQ(slot_of(""), 0U);
}

}  // namespace
}  // namespace larder::engine::redis
