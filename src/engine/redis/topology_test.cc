#include "engine/redis/topology.h"

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <set>

namespace larder::engine::redis {
namespace {

using Kind = Refusal::Kind;

wire::Reply parse(const std::string& bytes) {
  std::size_t consumed = 0;
  std::string error;
  auto reply = wire::parse_reply(bytes, consumed, error);
  EXPECT_TRUE(reply && consumed == bytes.size()) << error;
  return reply.value_or(wire::Reply{});
}

std::string bulk(const std::string& text) {
  return fmt::format("${}\r\n{}\r\n", text.size(), text);
}
std::string server(const std::string& host, int port) {
  return fmt::format("*4\r\n{}:{}\r\n{}*0\r\n", bulk(host), port, bulk("id"));
}
std::string range(int begin, int end, const std::vector<std::string>& servers) {
  std::string text = fmt::format("*{}\r\n:{}\r\n:{}\r\n", servers.size() + 2, begin, end);
  for (const std::string& one : servers) text += one;
  return text;
}
wire::Reply info(std::uint64_t epoch) {
  return parse(bulk(fmt::format("cluster_state:ok\r\ncluster_current_epoch:{}\r\n", epoch)));
}

View view_of(const std::string& primary, std::uint64_t epoch) {
  View view;
  view.map.shards.push_back({.primary = primary, .replicas = {}});
  view.epoch = epoch;
  return view;
}

TEST(Topology, RefusalsAreToldFromErrorsOfTheCommand) {
  const struct {
    const char* text;
    Kind kind;
    std::uint32_t slot;
    const char* address;
  } cases[] = {
      {"MOVED 3999 127.0.0.1:6381", Kind::moved, 3999, "127.0.0.1:6381"},
      {"ASK 0 host.example:1", Kind::ask, 0, "host.example:1"},
      {"MOVED 16383 :7001", Kind::moved, 16383, "from:7001"},
      {"MOVED 1 ::1:7001", Kind::moved, 1, "[::1]:7001"},
      {"MOVED 1 [::1]:7001", Kind::moved, 1, "[::1]:7001"},
      {"MOVED 16384 127.0.0.1:1", Kind::none, 0, ""},
      {"MOVED -1 127.0.0.1:1", Kind::none, 0, ""},
      {"MOVED 1", Kind::none, 0, ""},
      {"MOVED 1 ", Kind::none, 0, ""},
      {"MOVED 1 host:", Kind::none, 0, ""},
      {"MOVED 1 host", Kind::none, 0, ""},
      {"MOVED", Kind::none, 0, ""},
      {"MOVEDX 1 a:1", Kind::none, 0, ""},
      {"TRYAGAIN Multiple keys request during rehashing of slot", Kind::try_again, 0, ""},
      {"CLUSTERDOWN The cluster is down", Kind::cluster_down, 0, ""},
      {"LOADING Redis is loading the dataset in memory", Kind::loading, 0, ""},
      {"MASTERDOWN Link with MASTER is down", Kind::master_down, 0, ""},
      {"READONLY You can't write against a read only replica.", Kind::read_only, 0, ""},
      {"ERR MOVED 1 a:1", Kind::none, 0, ""},
      {"", Kind::none, 0, ""},
  };
  for (const auto& one : cases) {
    const Refusal refusal = parse_refusal(one.text, "from:7000");
    EXPECT_EQ(refusal.kind, one.kind) << one.text;
    EXPECT_EQ(refusal.address, one.address) << one.text;
    if (refusal.kind != Kind::none) EXPECT_EQ(refusal.slot, one.slot) << one.text;
  }
}

TEST(Topology, ReadsSlotsWithReplicasAndHostsThatAreMissing) {
  const auto view =
      cluster_view(parse("*3\r\n" + range(0, 99, {server("10.0.0.1", 1), server("10.0.0.2", 2)}) +
                         range(200, 16383, {server("", 3), server("", 5), server("::1", 4)}) +
                         range(100, 199, {server("10.0.0.1", 1), server("10.0.0.2", 2)})),
                   info(7), "9.9.9.9:3");
  ASSERT_TRUE(view) << to_string(view.error());
  EXPECT_EQ(view->epoch, 7u);
  ASSERT_EQ(view->map.shards.size(), 2u);
  EXPECT_TRUE(view->map.complete());
  for (std::uint32_t slot = 0; slot < kSlots; ++slot) {
    ASSERT_EQ(view->map.shard_of(slot), slot < 200 ? 0 : 1) << slot;
  }
  EXPECT_EQ(view->map.shards[0].primary, "10.0.0.1:1");
  EXPECT_EQ(view->map.shards[1].primary, "9.9.9.9:3");
  EXPECT_EQ(view->map.shards[1].replicas, (std::vector<std::string>{"9.9.9.9:5", "[::1]:4"}));
  EXPECT_TRUE(view->map.has("[::1]:4"));
  EXPECT_FALSE(view->map.has("10.0.0.3:1"));
}

TEST(Topology, WrongAnswersAreErrorsAndGapsAreGaps) {
  EXPECT_FALSE(
      cluster_view(parse("-ERR This instance has cluster support disabled\r\n"), info(1), "h:1"));
  EXPECT_FALSE(cluster_view(parse("*0\r\n"), info(1), "h:1"));
  EXPECT_FALSE(cluster_view(parse("*1\r\n" + range(0, 16384, {server("h", 1)})), info(1), "h:1"));
  EXPECT_FALSE(cluster_view(parse("*1\r\n" + range(-1, 2, {server("h", 1)})), info(1), "h:1"));
  EXPECT_FALSE(cluster_view(parse("*1\r\n" + range(5, 2, {server("h", 1)})), info(1), "h:1"));
  EXPECT_FALSE(cluster_view(parse("*1\r\n*2\r\n:1\r\n:2\r\n"), info(1), "h:1"));
  EXPECT_FALSE(cluster_view(parse("*1\r\n" + range(0, 1, {server("h", 0)})), info(1), "h:1"));
  const auto gap =
      cluster_view(parse("*1\r\n" + range(1, 16383, {server("h", 1)})), info(1), "h:1");
  ASSERT_TRUE(gap);
  EXPECT_FALSE(gap->map.complete());
  EXPECT_EQ(gap->map.shard_of(0), Map::kNobody);
}

TEST(Topology, ReadsWhatASentinelSays) {
  const auto map = [](const std::vector<std::string>& words, char type) {
    std::string text = fmt::format("{}{}\r\n", type, type == '%' ? words.size() / 2 : words.size());
    for (const std::string& word : words) text += bulk(word);
    return text;
  };
  for (const char type : {'%', '*'}) {
    const auto view = sentinel_view(
        parse("*2\r\n" + bulk("10.0.0.1") + bulk("6379")),
        parse(map({"name", "m", "ip", "10.0.0.7", "port", "6379", "config-epoch", "4"}, type)),
        parse("*3\r\n" + map({"ip", "10.0.0.1", "port", "6379", "flags", "slave"}, type) +
              map({"ip", "10.0.0.2", "port", "6379", "flags", "slave"}, type) +
              map({"ip", "10.0.0.3", "port", "6379", "flags", "slave,s_down,disconnected"}, type)),
        parse("*1\r\n" + map({"ip", "10.0.0.9", "port", "26379"}, type)));
    ASSERT_TRUE(view);
    EXPECT_EQ(view->epoch, 4u);
    ASSERT_EQ(view->map.shards.size(), 1u);
    EXPECT_EQ(view->map.shards[0].primary, "10.0.0.1:6379");
    EXPECT_EQ(view->map.shards[0].replicas, std::vector<std::string>{"10.0.0.2:6379"});
    EXPECT_EQ(view->sentinels, std::vector<std::string>{"10.0.0.9:26379"});
    EXPECT_TRUE(view->map.complete());
    EXPECT_EQ(view->map.shard_of(12345), 0);
  }
  const auto unknown =
      sentinel_view(parse("*-1\r\n"), parse("-ERR No such master with that name\r\n"),
                    parse("*0\r\n"), parse("*0\r\n"));
  ASSERT_FALSE(unknown);
  EXPECT_TRUE(unknown.error().message.contains("name of the primary"));
}

// Every order in which three servers can answer, one of which was cut off before the failover.
TEST(Topology, AnOldViewNeverReplacesANewerOne) {
  const std::vector<View> views = {view_of("old:1", 1), view_of("new:1", 2), view_of("newer:1", 3)};
  std::vector<int> order = {0, 1, 2};
  do {
    Topology topology{Map{}};
    std::uint64_t highest = 0;
    TimeUs now = kSecond;
    for (const int index : order) {
      const View& view = views[static_cast<std::size_t>(index)];
      EXPECT_EQ(topology.learn(view, ++now), view.epoch > highest);
      highest = std::max(highest, view.epoch);
      EXPECT_EQ(topology.map()->shards[0].primary, views[highest - 1].map.shards[0].primary);
    }
    EXPECT_EQ(topology.map()->shards[0].primary, "newer:1");
  } while (std::ranges::next_permutation(order).found);
}

TEST(Topology, AnotherDeploymentBehindTheSameAddressesIsBelievedInTheEnd) {
  Topology topology{Map{}};
  EXPECT_TRUE(topology.learn(view_of("a:1", 9), kSecond));
  EXPECT_FALSE(topology.learn(view_of("b:1", 1), 20 * kSecond));
  EXPECT_TRUE(topology.learn(view_of("a:1", 9), 25 * kSecond));
  EXPECT_FALSE(topology.learn(view_of("b:1", 1), 54 * kSecond));
  EXPECT_TRUE(topology.learn(view_of("b:1", 1), 55 * kSecond));
  EXPECT_EQ(topology.map()->shards[0].primary, "b:1");
}

TEST(Topology, MovedChangesOneSlotAndIsAReasonToAsk) {
  const auto view = cluster_view(
      parse("*1\r\n" + range(0, 16383, {server("h", 1), server("h", 2)})), info(1), "h:1");
  ASSERT_TRUE(view);
  for (const std::string to : {"h:1", "h:2", "h:3"}) {
    for (const std::uint32_t slot : {0u, 77u, 16383u}) {
      Topology topology{Map{}};
      ASSERT_TRUE(topology.learn(*view, kSecond));
      topology.asked(kSecond);
      const std::uint64_t version = topology.version();
      topology.moved(slot, to);
      EXPECT_EQ(topology.version() == version, to == "h:1");
      EXPECT_LT(topology.ask_at(), 2 * kSecond);
      for (std::uint32_t other : {0u, 1u, 77u, 16383u}) {
        const Map& map = *topology.map();
        EXPECT_EQ(map.shards[map.shard_of(other)].primary, other == slot ? to : "h:1");
      }
      ASSERT_TRUE(topology.learn(*view, 2 * kSecond));  // which overrides what one server said
      EXPECT_EQ(*topology.map(), view->map);
    }
  }
}

TEST(Topology, AsksAtOnceWithoutAReasonSeldomAndInTroubleLessAndLessOften) {
  Topology topology{Map{}};
  EXPECT_EQ(topology.ask_at(), 0);
  TimeUs now = 100 * kSecond;
  topology.asked(now);
  EXPECT_EQ(topology.ask_at(), now + 5 * kSecond);
  now += 5 * kSecond;
  topology.trouble();
  EXPECT_LE(topology.ask_at(), now);  // the last question was long ago
  DurationUs last = 0;
  for (int i = 0; i < 12; ++i) {  // nothing changes: pauses grow to a bound
    topology.asked(now);
    topology.trouble();
    const DurationUs pause = topology.ask_at() - now;
    EXPECT_GE(pause, last);
    EXPECT_GE(pause, 20 * kMillisecond);
    EXPECT_LE(pause, kSecond);
    last = pause;
    now += pause;
  }
  EXPECT_EQ(last, kSecond);
  EXPECT_TRUE(topology.learn(view_of("a:1", 1), now));  // a change: quick again
  topology.asked(now);
  topology.trouble();
  EXPECT_LE(topology.ask_at() - now, 50 * kMillisecond);
}

TEST(Topology, ChoosesAmongThoseThatAreUpAndPrefersTheNear) {
  Random random(1);
  EXPECT_EQ(choose({}, random), std::nullopt);
  // Every set of servers that are up, of four.
  for (unsigned set = 0; set < 16; ++set) {
    std::vector<Health> all;
    for (unsigned i = 0; i < 4; ++i) {
      all.push_back({.up = (set & (1u << i)) != 0, .latency_us = 100 * (i + 1)});
    }
    std::vector<int> count(4, 0);
    for (int i = 0; i < 2000; ++i) {
      const auto chosen = choose(all, random);
      ASSERT_EQ(chosen.has_value(), set != 0);
      if (chosen) ++count[*chosen];
    }
    int last = INT32_MAX;
    const int up = std::popcount(set);
    int index = 0;
    for (unsigned i = 0; i < 4; ++i) {
      if (!all[i].up) {
        EXPECT_EQ(count[i], 0);
        continue;
      }
      EXPECT_LE(count[i], last) << set;  // the nearer one, the more
      last = count[i];
      // The farthest one loses every comparison; everybody else gets a share.
      if (up == 1 || ++index < up) EXPECT_GT(count[i], 0) << set;
    }
  }
}

}  // namespace
}  // namespace larder::engine::redis
