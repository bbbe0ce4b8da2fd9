// Four nodes on one Redis: one truth. Coherence, stampede, and what faults of the engine do, with
// the same checker catching every rule that is taken out.
#include "fleet.h"

#include <gmock/gmock.h>

namespace larder::server {
namespace {

using testing::HasSubstr;

TEST_F(FleetTest, OneNodeLoadsForAll) {
  start_engine();
  start_nodes(2);
  ASSERT_EQ(get_from(0, "b:900", "near").value, "{\"id\":900,\"v\":1}");
  const int before = loads();
  EXPECT_EQ(get(0, "b:7").tier, "source");
  EXPECT_EQ(get(0, "b:7").tier, "near");
  EXPECT_EQ(get(1, "b:7").tier, "engine");
  EXPECT_EQ(get(1, "b:7").tier, "near");
  EXPECT_EQ(loads(), before + 1);
  // A strong cache asks the engine for each read.
  EXPECT_EQ(get(0, "s:7").tier, "source");
  EXPECT_EQ(get(1, "s:7").tier, "engine");
  EXPECT_EQ(get(1, "s:7").tier, "engine");
}

TEST_F(FleetTest, AWriteThroughOneNodeIsSeenByTheOthers) {
  start_engine();
  start_nodes(2);
  get_from(0, "b:5", "near");
  get_from(1, "b:5", "near");
  TestClient writer(address(0));
  EXPECT_EQ(writer.text({"SET", "b:5", R"({"v":42})"}), "OK");
  EXPECT_EQ(version_in(get(0, "b:5").value), 42);
  TestClient other(address(1));
  const TimeUs until = monotonic_now_us() + 10 * kSecond;
  std::int64_t seen = 0;
  while (seen != 42 && monotonic_now_us() < until) seen = version_in(get(other, "b:5").value);
  EXPECT_EQ(seen, 42);
  // The strong cache sees it at once.
  EXPECT_EQ(writer.text({"SET", "s:5", R"({"v":43})"}), "OK");
  EXPECT_EQ(version_in(get(1, "s:5").value), 43);
}

TEST_F(FleetTest, AChangePastLarderIsSeenByAll) {
  start_engine();
  start_nodes(3);
  for (std::size_t node = 0; node < 3; ++node) get_from(node, "e:3", "near");
  sql("UPDATE item SET v = 9 WHERE id = 3");
  const TimeUs until = monotonic_now_us() + 10 * kSecond;
  for (std::size_t node = 0; node < 3; ++node) {
    TestClient client(address(node));
    std::int64_t seen = 0;
    while (seen != 9 && monotonic_now_us() < until) seen = version_in(get(client, "e:3").value);
    EXPECT_EQ(seen, 9) << node;
  }
}

// While no node runs, an older state of the database is put in its place: the engine holds values
// and a position of a future that never was.
TEST_F(FleetTest, ADatabaseThatWasPutBackIsNoticed) {
  start_engine();
  start_nodes(1);
  get_from(0, "e:3", "near");
  const fs::path file = dir_ / "shop.db";
  const auto checkpoint = [&] { sql("PRAGMA wal_checkpoint(TRUNCATE)"); };
  checkpoint();
  fs::copy_file(file, dir_ / "backup.db");
  for (int v = 2; v <= 20; ++v) sql("UPDATE item SET v = " + std::to_string(v) + " WHERE id = 3");
  TestClient client(address(0));
  const TimeUs until = monotonic_now_us() + 10 * kSecond;
  while (version_in(get(client, "e:3").value) != 20 && monotonic_now_us() < until) {
  }
  ASSERT_EQ(version_in(get_from(0, "e:3", "near").value), 20);
  nodes_.clear();
  checkpoint();
  // The same file, as a restoring tool would write it.
  std::ofstream(file, std::ios::binary | std::ios::trunc)
      << std::ifstream(dir_ / "backup.db", std::ios::binary).rdbuf();
  start_nodes(1);
  sql("UPDATE item SET v = 7 WHERE id = 3");
  TestClient again(address(0));
  const TimeUs soon = monotonic_now_us() + 10 * kSecond;
  std::int64_t seen = 0;
  while (seen != 7 && monotonic_now_us() < soon) seen = version_in(get(again, "e:3").value);
  EXPECT_EQ(seen, 7);
}

TEST_F(FleetTest, TagsCachesAndKeysAreVoidEverywhere) {
  start_engine();
  start_nodes(2);
  TestClient teller(address(0));
  const std::vector<std::vector<std::string>> ways = {{"LARDER.INVALIDATE", "KEY", "e:4"},
                                                      {"LARDER.INVALIDATE", "TAG", "all"},
                                                      {"LARDER.INVALIDATE", "CACHE", "e"},
                                                      {"DEL", "e:4"}};
  for (const auto& way : ways) {
    get_from(0, "e:4", "near");
    get_from(1, "e:4", "near");
    EXPECT_EQ(teller.call(way).type, wire::Reply::Type::integer) << way[1];
    EXPECT_THAT(get(0, "e:4").tier, testing::AnyOf("source", "engine")) << way[1];
    TestClient other(address(1));
    const TimeUs until = monotonic_now_us() + 10 * kSecond;
    std::string tier = "near";
    while (tier == "near" && monotonic_now_us() < until) tier = get(other, "e:4").tier;
    EXPECT_EQ(tier, "engine") << way[1];
  }
}

TEST_F(FleetTest, ARefusalNamesTheDeclaredKey) {
  start_engine();
  start_nodes(1);
  TestClient client(address(0));
  const std::vector<std::vector<std::string>> commands = {
      {"EVAL", "return 1", "1", "e:4"}, {"XREAD", "STREAMS", "e:4", "0"},
      {"OBJECT", "ENCODING", "e:4"},    {"LPUSH", "e:4", "x"},
      {"BITOP", "NOT", "plain", "e:4"}, {"APPEND", "e:4", "x"}};
  for (const auto& command : commands)
    EXPECT_THAT(client.text(command), HasSubstr("key 'e:4' of the declared cache 'e'"))
        << command[0];
}

TEST_F(FleetTest, AThousandReadersOnFourNodesCauseOneLoad) {
  start_engine();
  start_nodes(4);
  for (std::size_t node = 0; node < 4; ++node) get_from(node, "b:900", "near");
  std::vector<std::unique_ptr<TestClient>> readers;
  for (int i = 0; i < 1'000; ++i)
    readers.push_back(std::make_unique<TestClient>(address(static_cast<std::size_t>(i) % 4)));
  for (const char* key : {"b:77", "s:78", "e:79"}) {
    const int before = loads();
    for (const auto& reader : readers) reader->send({"GET", key});
    for (const auto& reader : readers) ASSERT_EQ(version_in(reader->receive().text), 1);
    EXPECT_EQ(loads(), before + 1) << key;
  }
}

TEST_F(FleetTest, AnOwnerThatIsGoneIsReplaced) {
  start_engine();
  start_nodes(1);
  ASSERT_EQ(get_from(0, "b:900", "near").tier, "near");
  // Somebody took the ticket of b:11 and died: its text is found out from one that is taken.
  sql("BEGIN EXCLUSIVE; SELECT 1; COMMIT");
  const wire::Reply keys = engine_->call({"KEYS", "larder:*e:b.*:b:900"});
  ASSERT_EQ(keys.elements.size(), 1U);
  const std::string schema =
      keys.elements[0].text.substr(keys.elements[0].text.find("e:b."), 20).substr(2);
  const unsigned partition = engine::partition_of("b:11", 16);
  const engine::redis::Names names("larder", "shop", partition, 16);
  const std::string ticket = names.ticket(schema, "b:11");
  engine_->call({"SET", ticket, "0abc e 0", "PX", "400"});
  ASSERT_EQ(engine_->call({"EXISTS", ticket}).integer, 1);
  const Answer answer = get(0, "b:11");
  EXPECT_EQ(version_in(answer.value), 1);
  EXPECT_EQ(answer.tier, "source");
}

TEST_F(FleetTest, WithoutTheEngineReadsGoToTheSourceAndStrongWritesAreRefused) {
  start_engine();
  start_nodes(2);
  get_from(0, "b:5", "near");
  engine_->stop();
  TestClient client(address(0));
  EXPECT_EQ(version_in(get(client, "b:6").value), 1);
  EXPECT_EQ(version_in(get(client, "s:6").value), 1);
  EXPECT_EQ(version_in(get(client, "e:6").value), 1);
  EXPECT_THAT(client.text({"SET", "s:6", R"({"v":2})"}), HasSubstr("LARDER_ENGINE_DOWN"));
  EXPECT_EQ(version_in(get(client, "s:6").value), 1);
  // A feed covers the table: it will tell.
  EXPECT_EQ(client.text({"SET", "b:6", R"({"v":2})"}), "OK");
  EXPECT_EQ(version_in(get(client, "b:6").value), 2);
  engine_->start();
  EXPECT_EQ(version_in(get_from(1, "b:6", "near").value), 2);
}

TEST_F(FleetTest, AFlushedEngineFailsClosedAndBeginsAnew) {
  start_engine();
  start_nodes(2);
  get_from(0, "e:5", "near");
  get_from(1, "e:5", "near");
  engine_->call({"FLUSHALL"});
  sql("UPDATE item SET v = 5 WHERE id = 5");
  const TimeUs until = monotonic_now_us() + 10 * kSecond;
  for (std::size_t node = 0; node < 2; ++node) {
    TestClient client(address(node));
    std::int64_t seen = 0;
    while (seen != 5 && monotonic_now_us() < until) seen = version_in(get(client, "e:5").value);
    EXPECT_EQ(seen, 5);
    EXPECT_EQ(version_in(get_from(node, "e:5", "near").value), 5);
  }
}

// ---- under load ----

TEST_F(Chaos, Undisturbed) {
  start_engine();
  start_nodes(4);
  run(true, [] { pass(2'000); });
  expect_coherent();
  EXPECT_EQ(load_->counts.errors.load(), 0U);
  EXPECT_EQ(load_->counts.write_errors.load(), 0U);
  EXPECT_GT(load_->counts.near.load(), load_->counts.source.load());
  EXPECT_GT(load_->counts.engine.load(), 0U);
}

TEST_F(Chaos, ScriptsAreFlushedAndConnectionsKilled) {
  start_engine();
  start_nodes(4);
  run(false, [&] {
    for (int i = 0; i < 6; ++i) {
      pass(200);
      engine_->call({"SCRIPT", "FLUSH"});
      engine_->call({"CLIENT", "KILL", "TYPE", i % 2 == 0 ? "pubsub" : "normal"});
    }
    pass(400);
  });
  expect_coherent();
}

TEST_F(Chaos, TheEngineIsFlushed) {
  start_engine();
  start_nodes(4);
  run(false, [&] {
    for (int i = 0; i < 4; ++i) {
      pass(400);
      engine_->call({"FLUSHALL"});
    }
    pass(800);
  });
  expect_coherent();
}

TEST_F(Chaos, TheEngineIsKilledAndComesBackEmpty) {
  start_engine();
  start_nodes(4);
  run(false, [&] {
    for (int i = 0; i < 2; ++i) {
      pass(400);
      engine_->stop();
      pass(500);
      engine_->start();
    }
    pass(1'500);
  });
  expect_coherent();
}

TEST_F(Chaos, TheEngineIsPaused) {
  start_engine();
  start_nodes(4);
  run(false, [&] {
    for (int i = 0; i < 2; ++i) {
      pass(400);
      engine_->pause();
      pass(900);
      engine_->resume();
    }
    pass(1'000);
  });
  expect_coherent();
}

// Its connections stay open and say nothing, while the others go on.
TEST_F(Chaos, OneNodeIsCutOff) {
  start_engine();
  start_nodes(3);
  Proxy proxy(engine_->path());
  start_nodes(1, {}, proxy.url());
  run(false, [&] {
    for (int i = 0; i < 2; ++i) {
      pass(300);
      proxy.cut();
      pass(1'500);
      proxy.mend();
    }
    pass(500);
  });
  expect_coherent();
  nodes_.clear();  // before the proxy
}

TEST_F(Chaos, MemoryRunsOut) {
  start_engine({"--maxmemory-policy", "noeviction"});
  start_nodes(4);
  run(false, [&] {
    for (int i = 0; i < 3; ++i) {
      pass(300);
      engine_->call({"CONFIG", "SET", "maxmemory", "1"});
      pass(400);
      engine_->call({"CONFIG", "SET", "maxmemory", "0"});
    }
    pass(500);
  });
  expect_coherent();
}

TEST_F(Chaos, StateIsEvicted) {
  start_engine({"--maxmemory-policy", "allkeys-random"});
  start_nodes(4);
  run(false, [&] {
    for (int i = 0; i < 3; ++i) {
      pass(300);
      engine_->call({"CONFIG", "SET", "maxmemory", "1"});
      pass(100);
      engine_->call({"CONFIG", "SET", "maxmemory", "0"});
    }
    pass(800);
  });
  expect_coherent();
}

// ---- negative controls: the same checker, a rule less ----

std::string without(std::string_view script, std::string_view line) {
  std::string text(script);
  const std::size_t at = text.find(line);
  if (at != std::string::npos) text.erase(at, line.size());
  return text;
}

class Weakened : public Chaos {
 protected:
  template <class Fault>
  void expect_caught(const engine::redis::RedisEngine::Options& options, unsigned pause_ms,
                     Fault&& fault) {
    start_engine();
    start_nodes(4, options);
    run(
        true,
        [&] {
          for (int i = 0; i < 200 && !load_->failed(); ++i) fault();
        },
        pause_ms);
    EXPECT_TRUE(load_->failed()) << "the checker saw nothing";
    if (load_->failed()) std::printf("  caught: %s\n", load_->stale().c_str());
  }
};

TEST_F(Weakened, TombstonesNotChecked) {
  expect_caught(
      {.edit =
           [](std::string_view script) {
             std::string text = without(script,
                                        "  if not seen(redis.call('HGET', S, 'k:' .. ARGV[10]), "
                                        "snap, tn) then return 'tombstone' "
                                        "end\n");
             return without(
                 text,
                 "    if h and not seen(redis.call('HGET', S, 'k:' .. ARGV[at + 3]), h.snap, "
                 "h.tn) then h = nil end\n");
           }},
      kHasty, [] { pass(100); });
}

TEST_F(Weakened, HistoriesNotCompared) {
  engine::redis::RedisEngine::Options options;
  options.follower.history = false;
  expect_caught(options, 600, [&] {
    pass(100);
    engine_->call({"FLUSHALL"});
  });
}

// A node that was away while a row changed: what it holds of the row afterwards, for a second or
// until it is the new version.
class Away : public FleetTest {
 protected:
  std::int64_t held_after(const policy::Follower::Rules& rules) {
    start_engine();
    start_nodes(1);
    Proxy proxy(engine_->path());
    engine::redis::RedisEngine::Options options;
    options.follower = rules;
    start_nodes(1, options, proxy.url());
    get_from(1, "e:5", "near");
    get_from(1, "e:6", "near");
    proxy.refuse();
    sql("UPDATE item SET v = 7 WHERE id = 5");
    TestClient present(address(0));
    while (version_in(get(present, "e:5").value) != 7) {
    }
    proxy.mend();
    // It listens again: a change of another row arrives.
    TestClient away(address(1));
    for (int v = 2; version_in(get(away, "e:6").value) < 2; ++v) {
      sql("UPDATE item SET v = " + std::to_string(v) + " WHERE id = 6");
      poll(nullptr, 0, 20);
    }
    std::int64_t held = 0;
    for (int tries = 0; tries < 200 && held != 7; ++tries) {
      held = version_in(get(away, "e:5").value);
      poll(nullptr, 0, 5);
    }
    nodes_.clear();  // before the proxy
    return held;
  }
};

TEST_F(Away, WhatWasMissedIsFetched) { EXPECT_EQ(held_after({}), 7); }

TEST_F(Away, WithoutLookingForGapsItStaysOld) { EXPECT_EQ(held_after({.gap = false}), 1); }

}  // namespace
}  // namespace larder::server
