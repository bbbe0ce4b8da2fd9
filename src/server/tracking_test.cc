#include "server/tracking.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <thread>

namespace larder::server {
namespace {

using Keys = std::vector<std::string>;
using Told = std::map<Tracking::Client, Keys>;

struct TrackingTest : testing::Test {
  void track(Tracking::Client client, Tracking::Settings settings = {}, const Keys& prefixes = {}) {
    table.enable(client, settings, prefixes);
  }
  bool read(Tracking::Client client, std::string_view key, bool pending = false) {
    Tracking::Messages messages;
    const bool added = table.read(client, key, pending, messages);
    note(messages);
    return added;
  }
  Told changed(const Keys& keys, Tracking::Client by = 0) {
    const std::vector<std::string_view> views(keys.begin(), keys.end());
    Tracking::Messages messages;
    table.changed(views, by, messages);
    return told(messages);
  }
  Told everything(Tracking::Client by = 0) {
    Tracking::Messages messages;
    table.everything(by, messages);
    return told(messages);
  }
  Told expire(TimeUs now, std::size_t most = 100) {
    Tracking::Messages messages;
    more = table.expire(now, most, messages);
    return told(messages);
  }
  static Told told(const Tracking::Messages& messages) {
    Told result;
    for (const auto& message : messages) {
      EXPECT_FALSE(result.contains(message.client)) << "two messages to one client";
      result[message.client] = message.keys;
    }
    return result;
  }
  void note(const Tracking::Messages& messages) {
    for (const auto& message : messages)
      for (const std::string& key : message.keys) evicted[message.client].push_back(key);
  }

  Tracking table{1'000};
  Told evicted;
  bool more = false;
};

TEST_F(TrackingTest, WhoHasReadAKeyIsToldOnce) {
  EXPECT_FALSE(table.active());
  track(1);
  track(2);
  EXPECT_TRUE(table.active());
  EXPECT_TRUE(read(1, "a"));
  EXPECT_FALSE(read(1, "a"));
  EXPECT_TRUE(read(2, "a"));
  EXPECT_TRUE(read(2, "b"));
  EXPECT_EQ(table.reads(), 3U);
  EXPECT_EQ(changed({"a"}), (Told{{1, {"a"}}, {2, {"a"}}}));
  EXPECT_EQ(changed({"a"}), Told{});
  EXPECT_EQ(changed({"a", "b"}), (Told{{2, {"b"}}}));
  EXPECT_EQ(table.reads(), 0U);
}

TEST_F(TrackingTest, ManyKeysAreOneMessage) {
  track(1);
  for (const char* key : {"a", "b", "c"}) read(1, key);
  EXPECT_EQ(changed({"a", "x", "b", "c"}), (Told{{1, {"a", "b", "c"}}}));
}

TEST_F(TrackingTest, WhoTracksNoMoreIsNotTold) {
  track(1);
  read(1, "a");
  table.disable(1);
  table.disable(1);
  EXPECT_EQ(table.clients(), 0U);
  track(2);
  EXPECT_EQ(changed({"a"}), Told{});
}

TEST_F(TrackingTest, NoloopIsAboutOnesOwnChangesOnly) {
  track(1, {.noloop = true});
  track(2, {.broadcast = true, .noloop = true}, {""});
  read(1, "a");
  EXPECT_EQ(changed({"a"}, 1), (Told{{2, {"a"}}}));
  EXPECT_EQ(changed({"a"}, 2), Told{}) << "1's copy is its own and is not remembered, as on Redis";
  read(1, "a");
  EXPECT_EQ(changed({"a"}, 2), (Told{{1, {"a"}}}));
  EXPECT_EQ(everything(1), (Told{{2, {}}}));
}

TEST_F(TrackingTest, BroadcastsGoByPrefix) {
  track(1, {.broadcast = true}, {"user:", "session:"});
  track(2, {.broadcast = true}, {""});
  track(3, {.broadcast = true}, {"user:1"});
  EXPECT_EQ(changed({"user:1"}), (Told{{1, {"user:1"}}, {2, {"user:1"}}, {3, {"user:1"}}}));
  EXPECT_EQ(changed({"user:2", "session:9", "x"}),
            (Told{{1, {"user:2", "session:9"}}, {2, {"user:2", "session:9", "x"}}}));
  table.disable(2);
  track(3, {.broadcast = true}, {"z", "z"});
  EXPECT_EQ(table.prefixes(3), (Keys{"user:1", "z"}));
  EXPECT_EQ(changed({"z", "user:1", ""}), (Told{{1, {"user:1"}}, {3, {"z", "user:1"}}}));
  table.disable(3);
  EXPECT_EQ(changed({"z", "user:1", ""}), (Told{{1, {"user:1"}}}));
}

TEST_F(TrackingTest, EverythingReachesEverybody) {
  track(1, {.redirect = 7});
  track(2, {.broadcast = true}, {"p"});
  read(1, "a");
  Tracking::Messages messages;
  table.everything(0, messages);
  ASSERT_EQ(messages.size(), 2U);
  for (const auto& message : messages) {
    EXPECT_EQ(message.redirect, message.client == 1 ? 7U : 0U);
    EXPECT_TRUE(message.keys.empty());
  }
  EXPECT_EQ(table.reads(), 0U);
  EXPECT_EQ(changed({"a"}), Told{});
}

TEST_F(TrackingTest, EverythingIsToldAgainOnlyToWhomMayHoldSomething) {
  track(1);
  track(2, {.broadcast = true}, {"p"});
  track(3, {.noloop = true});
  read(1, "a");
  EXPECT_EQ(everything(), (Told{{1, {}}, {2, {}}, {3, {}}}));
  EXPECT_EQ(everything(), (Told{{2, {}}, {3, {}}}));
  read(1, "a");
  EXPECT_EQ(everything(), (Told{{1, {}}, {2, {}}, {3, {}}}));
}

TEST_F(TrackingTest, APendingReadIsMarkedInsteadOfTold) {
  track(1);
  track(2);
  read(1, "a", true);
  read(2, "a");
  EXPECT_EQ(changed({"a"}), (Told{{2, {"a"}}}));
  EXPECT_TRUE(table.settle(1, "a"));
  EXPECT_FALSE(table.settle(1, "a"));
  EXPECT_EQ(changed({"a"}), (Told{{1, {"a"}}})) << "it is noted all the same";
  read(1, "a", true);
  EXPECT_FALSE(table.settle(1, "a"));
  table.forget(1, "a");
  EXPECT_EQ(changed({"a"}), Told{});
  EXPECT_FALSE(table.settle(1, "a"));
  // A read that was noted already, and is under way once more.
  read(1, "a");
  read(1, "a", true);
  EXPECT_EQ(changed({"a"}), Told{});
  EXPECT_TRUE(table.settle(1, "a"));
}

TEST_F(TrackingTest, LivesEndByThemselves) {
  track(1);
  track(2, {.broadcast = true}, {"b"});
  read(1, "a");
  table.expires("a", 100);
  table.expires("a", 50);
  read(1, "c");
  table.expires("c", 70);
  table.expires("nobody reads it", 10);
  read(2, "b");  // a broadcasting client hears of a life's end by its prefix
  table.expires("b", 60);
  EXPECT_EQ(expire(49), Told{});
  EXPECT_EQ(expire(60), (Told{{1, {"a"}}, {2, {"b"}}}));
  EXPECT_EQ(changed({"c"}), (Told{{1, {"c"}}}));
  EXPECT_EQ(expire(1'000), Told{}) << "it has changed before, and is not read any more";
  for (int i = 0; i < 10; ++i) {
    const std::string key = "k" + std::to_string(i);
    read(1, key);
    table.expires(key, i);
  }
  EXPECT_EQ(expire(100, 4)[1].size(), 4U);
  EXPECT_TRUE(more);
  EXPECT_EQ(expire(100, 10)[1].size(), 6U);
  EXPECT_FALSE(more);
}

TEST(TrackingBound, WhatMakesRoomIsToldToItsReaders) {
  Tracking table(3);
  table.enable(1, {}, {});
  table.enable(2, {}, {});
  std::set<std::pair<Tracking::Client, std::string>> held;
  for (int i = 0; i < 200; ++i) {
    const Tracking::Client client = 1 + static_cast<Tracking::Client>(i % 2);
    const std::string key = "k" + std::to_string(i / 3 % 7);
    Tracking::Messages messages;
    table.read(client, key, false, messages);
    held.emplace(client, key);
    for (const auto& message : messages)
      for (const std::string& gone : message.keys) held.erase({message.client, gone});
    held.emplace(client, key);  // the reader's own key may have been the victim, before this read
    EXPECT_LE(table.reads(), 3U);
    EXPECT_EQ(table.reads(), held.size()) << "somebody lost a key without being told";
  }
  EXPECT_GT(table.evictions(), 0U);
}

// Against the simplest table there is: a set of pairs, a message for each.
TEST(TrackingModel, AgreesWithASetOfPairs) {
  for (std::uint32_t seed = 1; seed <= 40; ++seed) {
    std::mt19937 random(seed);
    const auto pick = [&](unsigned n) {
      return std::uniform_int_distribution<unsigned>(0, n - 1)(random);
    };
    Tracking table(1'000'000);
    struct Client {
      bool on = false;
      Tracking::Settings settings;
      std::set<std::string> prefixes;
    };
    std::array<Client, 6> clients{};
    std::set<std::pair<Tracking::Client, std::string>> reads;  // of clients that may be gone
    using Facts = std::set<std::pair<Tracking::Client, std::string>>;
    for (int step = 0; step < 600; ++step) {
      const Tracking::Client id = 1 + pick(clients.size() - 1);
      Client& client = clients[id];
      const std::string key = std::string(1, "ab"[pick(2)]) + std::to_string(pick(8));
      Tracking::Messages messages;
      Facts expected;
      const auto expect = [&](std::string_view changed, Tracking::Client by) {
        for (Tracking::Client reader = 1; reader < clients.size(); ++reader) {
          const Client& c = clients[reader];
          const bool read = reads.erase({reader, std::string(changed)}) > 0;
          if (!c.on || (c.settings.noloop && by == reader)) continue;
          const bool hears =
              c.settings.broadcast
                  ? std::ranges::any_of(c.prefixes,
                                        [&](const auto& p) { return changed.starts_with(p); })
                  : read;
          if (hears) expected.emplace(reader, changed);
        }
      };
      switch (pick(12)) {
        case 0: {
          if (client.on) break;
          client = {.on = true,
                    .settings = {.broadcast = pick(3) == 0, .noloop = pick(2) == 0, .redirect = 0},
                    .prefixes = {}};
          if (client.settings.broadcast)
            client.prefixes.insert(pick(3) == 0 ? "" : key.substr(0, 1));
          const Keys prefixes(client.prefixes.begin(), client.prefixes.end());
          table.enable(id, client.settings, prefixes);
          break;
        }
        case 1:
          if (pick(4) != 0) break;
          table.disable(id);
          client = {};
          break;
        case 2:
          if (pick(20) != 0) break;
          table.everything(id, messages);
          for (Tracking::Client reader = 1; reader < clients.size(); ++reader) {
            const auto& settings = clients[reader].settings;
            const auto first = reads.lower_bound({reader, ""});
            const bool has_read = first != reads.end() && first->first == reader;
            if (clients[reader].on && !(settings.noloop && reader == id) &&
                (has_read || settings.broadcast || settings.noloop))
              expected.emplace(reader, "");
          }
          reads.clear();
          break;
        case 3:
        case 4: {
          const std::string_view view = key;
          table.changed({&view, 1}, id, messages);
          // While nobody tracks, a change need not be looked at.
          if (std::ranges::any_of(clients, &Client::on)) expect(key, id);
          break;
        }
        default:
          if (!client.on || client.settings.broadcast) break;
          EXPECT_EQ(table.read(id, key, false, messages), reads.emplace(id, key).second);
      }
      Facts actual;
      for (const auto& message : messages) {
        if (message.keys.empty()) actual.emplace(message.client, "");
        for (const std::string& told : message.keys) actual.emplace(message.client, told);
      }
      ASSERT_EQ(actual, expected) << "seed " << seed << ", step " << step;
      ASSERT_EQ(table.reads(), reads.size()) << "seed " << seed << ", step " << step;
    }
  }
}

// Readers note their read, then look; writers write, then announce. Whoever has seen an old value
// is told of it.
TEST(TrackingThreads, NoReaderKeepsAnOldValueUntold) {
  constexpr unsigned kKeys = 4;
  constexpr unsigned kReaders = 2;
  constexpr int kRounds = 20'000;
  Tracking table(64);  // evictions, too
  std::array<std::atomic<int>, kKeys> values{};
  std::array<std::array<std::atomic<int>, kKeys>, kReaders + 1> told{};  // how often
  const auto deliver = [&](const Tracking::Messages& messages) {
    for (const auto& message : messages)
      for (const std::string& key : message.keys)
        told[message.client][static_cast<unsigned>(key[0] - '0')].fetch_add(1);
  };
  for (Tracking::Client client = 1; client <= kReaders; ++client) table.enable(client, {}, {});
  std::array<std::array<int, kKeys>, kReaders + 1> seen{};
  std::array<std::array<int, kKeys>, kReaders + 1> told_before{};
  {
    std::vector<std::jthread> threads;
    for (Tracking::Client client = 1; client <= kReaders; ++client)
      threads.emplace_back([&, client] {
        std::mt19937 random(static_cast<unsigned>(client));
        for (int i = 0; i < kRounds; ++i) {
          const unsigned key = random() % kKeys;
          told_before[client][key] = told[client][key].load();
          Tracking::Messages messages;
          table.read(client, std::to_string(key), false, messages);
          deliver(messages);
          seen[client][key] = values[key].load();
        }
      });
    threads.emplace_back([&] {
      std::mt19937 random(99);
      for (int i = 1; i <= kRounds; ++i) {
        const unsigned key = random() % kKeys;
        values[key].store(i);
        const std::string name = std::to_string(key);
        const std::string_view view = name;
        Tracking::Messages messages;
        table.changed({&view, 1}, 0, messages);
        deliver(messages);
      }
    });
  }
  for (Tracking::Client client = 1; client <= kReaders; ++client)
    for (unsigned key = 0; key < kKeys; ++key)
      EXPECT_TRUE(seen[client][key] == values[key].load() ||
                  told[client][key].load() > told_before[client][key])
          << "client " << client << ", key " << key;
}

}  // namespace
}  // namespace larder::server
