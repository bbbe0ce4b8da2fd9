// Real deployments for tests: a cluster of six, a primary behind three Sentinels.
#pragma once

#include <algorithm>
#include <array>
#include <fstream>

#include "engine/redis/client_testing.h"

namespace larder::engine::redis {

// A cluster of six: three primaries, each with a replica. One for a whole test suite.
class RedisCluster {
 public:
  static void start() {
    if (real::find_redis().empty()) return;
    std::vector<int> buses;
    for (int i = 0; i < 6; ++i) {
      const int bus = free_port();
      nodes_.push_back(std::make_unique<TestServer>(Words{
          "--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port",
          std::to_string(bus), "--repl-diskless-sync-delay", "0",
          "--cluster-allow-replica-migration", "no", "--cluster-replica-validity-factor", "0"}));
      ASSERT_NO_FATAL_FAILURE(nodes_.back()->start());
      ids_.push_back(real::parse(nodes_.back()->call({"CLUSTER", "MYID"})).text);
      // With one epoch they would have to settle it first.
      ASSERT_EQ(nodes_.back()->call({"CLUSTER", "SET-CONFIG-EPOCH", std::to_string(i + 1)}),
                "+OK\r\n");
      // All pairs, at once: gossip alone would take seconds.
      for (std::size_t other = 0; other < buses.size(); ++other) {
        ASSERT_EQ(nodes_.back()->call({"CLUSTER", "MEET", "127.0.0.1",
                                       std::to_string(nodes_[other]->port()),
                                       std::to_string(buses[other])}),
                  "+OK\r\n");
      }
      buses.push_back(bus);
    }
    const std::array<int, 4> bounds = {0, 5461, 10923, 16384};
    for (std::size_t i = 0; i < 3; ++i) {
      ASSERT_EQ(nodes_[i]->call({"CLUSTER", "ADDSLOTSRANGE", std::to_string(bounds[i]),
                                 std::to_string(bounds[i + 1] - 1)}),
                "+OK\r\n");
    }
    for (std::size_t i = 3; i < 6; ++i) {
      ASSERT_TRUE(eventually(
          [&] { return nodes_[i]->call({"CLUSTER", "REPLICATE", ids_[i - 3]}) == "+OK\r\n"; }));
    }
    ASSERT_TRUE(eventually(healthy));
  }
  static void stop() { nodes_.clear(); }

  // All agree, and every primary has its replica.
  static bool healthy() {
    return std::ranges::all_of(nodes_, [](const auto& node) {
      const std::string info = node->call({"CLUSTER", "INFO"});
      const std::string replication = node->call({"INFO", "replication"});
      const auto slots = real::parse(node->call({"CLUSTER", "SLOTS"}));
      return info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:6") &&
             info.contains("cluster_slots_ok:16384") && !slots.elements.empty() &&
             std::ranges::all_of(slots.elements,
                                 [](const auto& range) { return range.elements.size() == 4; }) &&
             (replication.contains("role:master") || replication.contains("master_link_status:up"));
    });
  }
  static std::string url() {
    return "redis+cluster://" + nodes_[0]->address() + "," + nodes_[4]->address();
  }
  static std::size_t index_of(const std::string& address) {
    const auto found =
        std::ranges::find_if(nodes_, [&](const auto& node) { return node->address() == address; });
    return static_cast<std::size_t>(found - nodes_.begin());
  }
  // Of `slot`, as node 0 or, if it is dead, another one has it.
  static std::size_t owner_of(std::uint32_t slot) {
    for (const auto& node : nodes_) {
      const auto slots = real::parse(node->call({"CLUSTER", "SLOTS"}));
      for (const auto& range : slots.elements) {
        if (range.elements[0].integer <= slot && slot <= range.elements[1].integer) {
          return index_of("127.0.0.1:" + std::to_string(range.elements[2].elements[1].integer));
        }
      }
    }
    return nodes_.size();
  }
  // Moves a slot with its keys, as redis-cli does.
  static void move(std::uint32_t slot, std::size_t from, std::size_t to) {
    const std::string text = std::to_string(slot);
    ASSERT_EQ(nodes_[to]->call({"CLUSTER", "SETSLOT", text, "IMPORTING", ids_[from]}), "+OK\r\n");
    ASSERT_EQ(nodes_[from]->call({"CLUSTER", "SETSLOT", text, "MIGRATING", ids_[to]}), "+OK\r\n");
    for (;;) {
      const auto keys = real::parse(nodes_[from]->call({"CLUSTER", "GETKEYSINSLOT", text, "1"}));
      if (keys.elements.empty()) break;
      ASSERT_EQ(nodes_[from]->call({"MIGRATE", "127.0.0.1", std::to_string(nodes_[to]->port()),
                                    keys.elements[0].text, "0", "5000"}),
                "+OK\r\n");
      poll(nullptr, 0, 2);  // the load meets the slot in this state
    }
    for (const std::size_t node : {to, from}) {
      ASSERT_EQ(nodes_[node]->call({"CLUSTER", "SETSLOT", text, "NODE", ids_[to]}), "+OK\r\n");
    }
  }

  static inline std::vector<std::unique_ptr<TestServer>> nodes_;
  static inline std::vector<std::string> ids_;
};

// A primary with two replicas, watched by three Sentinels under the name "shop". One for a whole
// test suite.
class RedisSentinels {
 public:
  static constexpr int kSentinels = 3;

  static void start() {
    if (real::find_redis().empty()) return;
    servers_.push_back(std::make_unique<TestServer>());
    ASSERT_NO_FATAL_FAILURE(servers_[0]->start());
    for (int i = 0; i < 2; ++i) {
      servers_.push_back(std::make_unique<TestServer>(
          Words{"--replicaof", "127.0.0.1 " + std::to_string(servers_[0]->port()),
                "--repl-diskless-sync-delay", "0"}));
      ASSERT_NO_FATAL_FAILURE(servers_.back()->start());
    }
    ASSERT_TRUE(eventually([&] {
      return servers_[0]->call({"INFO", "replication"}).contains("connected_slaves:2") &&
             !servers_[0]->call({"INFO", "replication"}).contains("state=wait_bgsave") &&
             servers_[1]->call({"INFO", "replication"}).contains("master_link_status:up") &&
             servers_[2]->call({"INFO", "replication"}).contains("master_link_status:up");
    }));
    for (int i = 0; i < kSentinels; ++i) {
      sentinels_.push_back(std::make_unique<TestServer>(Words{"--sentinel"}));
      TestServer& sentinel = *sentinels_.back();
      const std::string file = sentinel.folder() + "/sentinel.conf";
      std::ofstream(file) << "sentinel monitor shop 127.0.0.1 " << servers_[0]->port() << " 2\n"
                          << "sentinel down-after-milliseconds shop 500\n"
                          << "sentinel failover-timeout shop 1000\n";
      sentinel.use_file(file);
      ASSERT_NO_FATAL_FAILURE(sentinel.start());
      // It looks once in 1 to 10 seconds by default.
      ASSERT_EQ(sentinel.call({"SENTINEL", "DEBUG", "INFO-PERIOD", "500", "PUBLISH-PERIOD", "200",
                               "PING-PERIOD", "200", "ASK-PERIOD", "200"}),
                "+OK\r\n");
    }
    // Each knows the replicas and the other Sentinels, or there will be no failover.
    for (const auto& sentinel : sentinels_) {
      ASSERT_TRUE(eventually([&] {
        const auto master = real::parse(sentinel->call({"SENTINEL", "MASTER", "shop"}));
        std::string slaves;
        std::string others;
        for (std::size_t i = 0; i + 1 < master.elements.size(); i += 2) {
          if (master.elements[i].text == "num-slaves") slaves = master.elements[i + 1].text;
          if (master.elements[i].text == "num-other-sentinels") {
            others = master.elements[i + 1].text;
          }
        }
        return slaves == "2" && others == "2";
      }));
    }
  }
  static void stop() {
    sentinels_.clear();
    servers_.clear();
  }

  // `hosts`: others before ours.
  static std::string url(int sentinels, std::string hosts = "") {
    for (int i = 0; i < sentinels; ++i) {
      hosts += (hosts.empty() ? "" : ",") + sentinels_[static_cast<std::size_t>(i)]->address();
    }
    return "redis+sentinel://" + hosts + "/shop";
  }
  // The present primary, by its own word.
  static TestServer& primary() {
    for (const auto& server : servers_) {
      if (server->call({"ROLE"}).contains("master")) return *server;
    }
    return *servers_[0];
  }

  static inline std::vector<std::unique_ptr<TestServer>> servers_;
  static inline std::vector<std::unique_ptr<TestServer>> sentinels_;
};

}  // namespace larder::engine::redis
