// The read and write paths, one behaviour at a time, in virtual time: a source that answers what
// the test says, when the test says.
#include <gtest/gtest.h>

#include <cmath>

#include "cache/node.h"
#include "engine/embedded/embedded.h"
#include "policy/succession.h"
#include "scripted.h"

namespace larder::sim {
namespace {

using cache::Node;
using cache::Reading;

struct Paths : testing::Test {
  static cache::CacheSpec basic() {
    cache::CacheSpec spec{.name = "p",
                          .key = *policy::KeyPattern::parse("p:{id:int}"),
                          .source = "s",
                          .load = "SELECT v FROM p WHERE id = :id",
                          .store = "UPDATE p SET v = :value WHERE id = :id",
                          .remove = "DELETE FROM p WHERE id = :id",
                          .increment = "UPDATE p SET v = v + :delta WHERE id = :id",
                          .warm = {}};
    spec.result = source::ResultShape::value;
    spec.write = cache::WriteMode::through;
    spec.ttl_us = 10 * kSecond;
    spec.load_timeout_us = 500 * kMillisecond;
    spec.depends_on = {{"p", {{"id", "id"}}}};
    return spec;
  }

  // Runs the scene to its end on a node with this cache. Scenes do not capture: they are
  // coroutines.
  void play(cache::CacheSpec spec, Task<void> (*scene)(Paths&)) {
    node.emplace(cache::Parts{.caches = {std::move(spec)},
                              .source_names = {"s"},
                              .sources = {&source},
                              .near = &store,
                              .engine = &engine,
                              .metrics = &metrics,
                              .seed = 1});
    node->start();
    bool ended = false;
    TaskGroup group;
    group.spawn(whole(scene, ended));
    ASSERT_TRUE(loop.run());
    ASSERT_TRUE(ended) << "the scene hangs";
  }
  Task<void> whole(Task<void> (*scene)(Paths&), bool& ended) {
    co_await scene(*this);
    co_await node->stop();
    ended = true;
  }

  // The value and the tier: "v1 source"; or "none", or the first word of the error.
  Task<std::string> get(std::string key) {
    Result<Reading> reading = co_await node->get(std::move(key));
    co_return describe(reading);
  }
  static std::string describe(const Result<Reading>& reading) {
    if (!reading) return std::string(error_prefix(reading.error().code));
    return (reading->found ? reading->value : "none") + " " + std::string(to_string(reading->tier));
  }
  // The same without suspending: "v1", "none" or "miss".
  std::string quick(std::string_view key) {
    std::string value;
    switch (node->read_now(key, hash_bytes(key), loop.now_us(),
                           [&](std::string_view v) { value = v; })) {
      case Node::Quick::hit: return value;
      case Node::Quick::absent: return "none";
      case Node::Quick::miss: break;
    }
    return "miss";
  }
  Task<std::string> set(std::string key, std::string value) {
    std::vector<cache::WriteOp> ops{{.key = std::move(key), .value = std::move(value)}};
    auto done = co_await node->write(std::move(ops));
    co_return done ? "OK" : std::string(error_prefix(done.error().code));
  }
  Task<void> change_by_others(std::vector<std::optional<std::string>> values) {
    source::ChangeBatch batch;
    batch.source_id = source.source_id;
    batch.changes.push_back({0, std::move(values), ++source.seq});
    batch.heartbeat = loop.now_us();
    const Result<source::FeedOrder> applied = co_await source.sink(std::move(batch));
    EXPECT_TRUE(applied.has_value());
  }
  std::uint64_t counter(std::string_view name, std::string_view label, std::string_view value) {
    std::uint64_t sum = 0;
    metrics.each_counter(name, [&](const obs::Labels& labels, std::uint64_t n) {
      for (const auto& [k, v] : labels)
        if (k == label && v == value) sum += n;
    });
    return sum;
  }

  SimLoop loop;
  ScriptedSource source;
  obs::Registry metrics;
  near::Store store{{.capacity_bytes = 1 << 20, .shards = 2, .tag_slots = 1024}};
  engine::Embedded engine{store, {.sources = 1, .tombstone_slots = 64}};
  std::optional<Node> node;
};

// EXPECT_EQ for what a coroutine answers.
#define EXPECT_ANSWER(expression, expected)           \
  do {                                                \
    const std::string answer = co_await (expression); \
    EXPECT_EQ(answer, expected);                      \
  } while (false)

TEST_F(Paths, MissThenHitThenExpiry) {
  play(basic(), [](Paths& t) -> Task<void> {
    t.source.rows["7"] = "v1";
    EXPECT_EQ(t.quick("p:7"), "miss");
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    EXPECT_ANSWER(t.get("p:7"), "v1 near");
    EXPECT_EQ(t.quick("p:7"), "v1");
    EXPECT_EQ(t.source.loads, 1u);
    co_await delay(9 * kSecond);
    EXPECT_EQ(t.quick("p:7"), "v1");
    co_await delay(kSecond);
    EXPECT_EQ(t.quick("p:7"), "miss");
    t.source.rows["7"] = "v2";
    EXPECT_ANSWER(t.get("p:7"), "v2 source");
  });
}

TEST_F(Paths, JitterOnlyShortens) {
  cache::CacheSpec spec = basic();
  spec.jitter = 0.5;
  play(std::move(spec), [](Paths& t) -> Task<void> {
    std::set<DurationUs> lives;
    for (int id = 0; id < 50; ++id) {
      t.source.rows[std::to_string(id)] = "v";
      Result<Reading> reading = co_await t.node->get("p:" + std::to_string(id));
      lives.insert(reading->ttl_us);
      EXPECT_LE(reading->ttl_us, 10 * kSecond);
      EXPECT_GE(reading->ttl_us, 5 * kSecond);
    }
    EXPECT_GT(lives.size(), 25u);
  });
}

TEST_F(Paths, NegativeEntriesAndTheirEnd) {
  cache::CacheSpec spec = basic();
  spec.negative_ttl_us = kSecond;
  spec.stale_if_error_us = 60 * kSecond;
  play(std::move(spec), [](Paths& t) -> Task<void> {
    EXPECT_ANSWER(t.get("p:1"), "none source");
    EXPECT_EQ(t.quick("p:1"), "none");
    EXPECT_EQ(t.source.loads, 1u);
    co_await delay(2 * kSecond);
    t.source.down = true;  // "no such row" is never served late
    EXPECT_ANSWER(t.get("p:1"), "LARDER_SOURCE_DOWN");
  });
}

TEST_F(Paths, WithoutNegativeTtlNothingIsKept) {
  play(basic(), [](Paths& t) -> Task<void> {
    EXPECT_ANSWER(t.get("p:1"), "none source");
    EXPECT_ANSWER(t.get("p:1"), "none source");
    EXPECT_EQ(t.source.loads, 2u);
    EXPECT_EQ(t.store.stats().entries, 0u);
  });
}

TEST_F(Paths, SlidingExpiryMovesWithEachHit) {
  cache::CacheSpec spec = basic();
  spec.sliding = true;
  play(std::move(spec), [](Paths& t) -> Task<void> {
    t.source.rows["7"] = "v1";
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    for (int i = 0; i < 5; ++i) {
      co_await delay(8 * kSecond);
      EXPECT_EQ(t.quick("p:7"), "v1");
    }
    co_await delay(11 * kSecond);
    EXPECT_EQ(t.quick("p:7"), "miss");
  });
}

TEST_F(Paths, AThousandReadersOneLoad) {
  play(basic(), [](Paths& t) -> Task<void> {
    t.source.rows["7"] = "v1";
    TaskGroup readers;
    int answered = 0;
    struct Reader {
      static Task<void> read(Paths& test, int& count) {
        EXPECT_ANSWER(test.get("p:7"), "v1 source");
        ++count;
      }
    };
    for (int i = 0; i < 1'000; ++i) readers.spawn(Reader::read(t, answered));
    co_await readers.join();
    EXPECT_EQ(answered, 1'000);
    EXPECT_EQ(t.source.loads, 1u);
  });
}

TEST_F(Paths, ManyKeysOneLoad) {
  play(basic(), [](Paths& t) -> Task<void> {
    std::vector<std::string> keys;
    for (int id = 0; id < 100; ++id) {
      keys.push_back("p:" + std::to_string(id));
      if (id % 2) t.source.rows[std::to_string(id)] = "v" + std::to_string(id);
    }
    keys.emplace_back("p:x");
    keys.emplace_back("p:3");
    auto readings = co_await t.node->get_many(std::move(keys));
    EXPECT_EQ(t.source.loads, 1u);
    EXPECT_EQ(t.source.last_batch, 100u);
    EXPECT_EQ(describe(readings[2]), "none source");
    EXPECT_EQ(describe(readings[3]), "v3 source");
    EXPECT_EQ(describe(readings[100]), "LARDER_BADKEY");
    EXPECT_EQ(describe(readings[101]), "v3 source");
  });
}

TEST_F(Paths, StaleWhileRevalidate) {
  cache::CacheSpec spec = basic();
  spec.stale_while_revalidate_us = 5 * kSecond;
  play(std::move(spec), [](Paths& t) -> Task<void> {
    t.source.rows["7"] = "v1";
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    t.source.rows["7"] = "v2";
    co_await delay(11 * kSecond);
    EXPECT_EQ(t.quick("p:7"), "v1");  // late, and one reload began
    EXPECT_EQ(t.quick("p:7"), "v1");
    co_await delay(10 * kMillisecond);
    EXPECT_EQ(t.quick("p:7"), "v2");
    EXPECT_EQ(t.source.loads, 2u);
    EXPECT_EQ(t.counter("larder_stale_served_total", "reason", "ttl"), 2u);
  });
}

TEST_F(Paths, StaleIfErrorEvenAfterInvalidation) {
  cache::CacheSpec spec = basic();
  spec.stale_if_error_us = 3'600 * kSecond;
  play(std::move(spec), [](Paths& t) -> Task<void> {
    t.source.rows["7"] = "v1";
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    co_await t.change_by_others({"7"});
    EXPECT_EQ(t.quick("p:7"), "miss");
    t.source.down = true;
    EXPECT_ANSWER(t.get("p:7"), "v1 stale");
    EXPECT_EQ(t.counter("larder_stale_served_total", "reason", "error"), 1u);
    t.source.down = false;
    t.source.rows["7"] = "v2";
    EXPECT_ANSWER(t.get("p:7"), "v2 source");
    co_await delay(3'700 * kSecond);
    t.source.down = true;
    EXPECT_ANSWER(t.get("p:7"), "LARDER_SOURCE_DOWN");
  });
}

TEST_F(Paths, StrongNeverServesLate) {
  cache::CacheSpec spec = basic();
  spec.stale_if_error_us = 3'600 * kSecond;
  spec.consistency = cache::Consistency::strong;
  play(std::move(spec), [](Paths& t) -> Task<void> {
    t.source.rows["7"] = "v1";
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    EXPECT_ANSWER(t.get("p:7"), "v1 near");
    co_await t.change_by_others({"7"});
    t.source.down = true;
    EXPECT_ANSWER(t.get("p:7"), "LARDER_SOURCE_DOWN");
  });
}

TEST_F(Paths, BoundedNeedsTheHeartbeat) {
  cache::CacheSpec spec = basic();
  spec.consistency = cache::Consistency::bounded;
  spec.bound_us = kSecond;
  play(std::move(spec), [](Paths& t) -> Task<void> {
    t.source.rows["7"] = "v1";
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    co_await delay(5 * kSecond);
    EXPECT_EQ(t.quick("p:7"), "v1");  // old, but nothing has changed since
    t.source.heartbeats = false;
    co_await delay(1'100 * kMillisecond);
    EXPECT_EQ(t.quick("p:7"), "miss");  // nobody knows any more
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    EXPECT_EQ(t.quick("p:7"), "v1");  // as of the load itself
  });
}

TEST_F(Paths, ABoundIsNotKeptByAFeedThatTellsTheCacheNothing) {
  cache::CacheSpec spec = basic();
  spec.consistency = cache::Consistency::bounded;
  spec.bound_us = kSecond;
  spec.depends_on.clear();
  play(std::move(spec), [](Paths& t) -> Task<void> {
    t.source.rows["7"] = "v1";
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    co_await delay(1'100 * kMillisecond);  // heartbeats go on, but say nothing of this table
    EXPECT_EQ(t.quick("p:7"), "miss");
  });
}

TEST_F(Paths, TimeoutsSoftAndHard) {
  cache::CacheSpec spec = basic();
  spec.stale_if_error_us = 60 * kSecond;
  spec.soft_timeout_us = 50 * kMillisecond;
  play(std::move(spec), [](Paths& t) -> Task<void> {
    t.source.rows["7"] = "v1";
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    co_await delay(11 * kSecond);
    t.source.latency = 200 * kMillisecond;
    t.source.rows["7"] = "v2";
    const TimeUs began = t.loop.now_us();
    EXPECT_ANSWER(t.get("p:7"), "v1 stale");
    EXPECT_EQ(t.loop.now_us() - began, 50 * kMillisecond);
    co_await delay(200 * kMillisecond);
    EXPECT_EQ(t.quick("p:7"), "v2");  // the load went on
    t.source.latency = kSecond;       // beyond load_timeout
    EXPECT_ANSWER(t.get("p:8"), "LARDER_TIMEOUT");
  });
}

TEST_F(Paths, ASlowSourceDoesNotBringBackWhatWasInvalidated) {
  cache::CacheSpec spec = basic();
  spec.stale_if_error_us = 3'600 * kSecond;
  spec.soft_timeout_us = 50 * kMillisecond;
  play(std::move(spec), [](Paths& t) -> Task<void> {
    t.source.rows["7"] = "v1";
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    co_await t.change_by_others({"7"});
    t.source.rows["7"] = "v2";
    t.source.latency = 200 * kMillisecond;
    EXPECT_ANSWER(t.get("p:7"), "v2 source");
  });
}

TEST_F(Paths, AnOlderLoadDoesNotOverwriteALaterOne) {
  play(basic(), [](Paths& t) -> Task<void> {
    t.source.rows["7"] = "v1";
    t.source.latency = 100 * kMillisecond;
    TaskGroup readers;
    struct Reader {
      static Task<void> read(Paths& test) { EXPECT_ANSWER(test.get("p:7"), "v1 source"); }
    };
    t.source.answers_late = true;  // the value is read at once, its answer takes long
    readers.spawn(Reader::read(t));
    co_await delay(10 * kMillisecond);
    t.source.answers_late = false;
    t.source.latency = kMillisecond;
    t.source.rows["7"] = "v2";
    Result<Reading> reading = co_await t.node->refresh("p:7");
    EXPECT_EQ(describe(reading), "v2 source");
    co_await readers.join();
    EXPECT_EQ(t.quick("p:7"), "v2");
    EXPECT_EQ(t.counter("larder_fills_refused_total", "reason", "later"), 1u);
  });
}

TEST_F(Paths, ARowThatGrewTooLargeLeavesNoOlderOneBehind) {
  cache::CacheSpec spec = basic();
  spec.max_value_bytes = 4;
  play(std::move(spec), [](Paths& t) -> Task<void> {
    t.source.rows["7"] = "v1";
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    t.source.rows["7"] = "12345";
    Result<Reading> reading = co_await t.node->refresh("p:7");
    EXPECT_FALSE(reading.has_value());
    EXPECT_EQ(t.quick("p:7"), "miss");
  });
}

TEST_F(Paths, NumbersKeepEveryDigit) {
  cache::CacheSpec spec = basic();
  spec.result = source::ResultShape::object;
  spec.store = "UPDATE p SET price = :price, n = :n, doc = :doc WHERE id = :id";
  play(std::move(spec), [](Paths& t) -> Task<void> {
    Random random(7);
    for (int i = 0; i < 2'000; ++i) {
      const double price = static_cast<double>(random.next() % 1'000'000'007) / 997.0;
      if (price == std::floor(price)) continue;  // that is written as an integer
      std::string json =
          fmt::format(R"({{"doc": {{"a":[1,"}}"]}}, "price":{} ,"n":{}}})", price, INT64_MAX - i);
      EXPECT_ANSWER(t.set("p:7", std::move(json)), "OK");
      for (const source::NamedValue& param : t.source.written[0].params) {
        if (param.name == "price") EXPECT_EQ(std::get<double>(param.value), price);
        if (param.name == "n") EXPECT_EQ(std::get<std::int64_t>(param.value), INT64_MAX - i);
        if (param.name == "doc") EXPECT_EQ(std::get<std::string>(param.value), R"({"a":[1,"}"]})");
      }
    }
    EXPECT_ANSWER(t.set("p:7", R"({"price":1e400,"n":1,"doc":null})"), "LARDER_BADVALUE");
    EXPECT_ANSWER(t.set("p:7", R"({"price":1,"n":9223372036854775808,"doc":null})"),
                  "LARDER_BADVALUE");
    EXPECT_ANSWER(t.set("p:7", R"({"price":1,"n":1,"n":2,"doc":null})"), "LARDER_BADVALUE");
  });
}

TEST_F(Paths, ManyWritesRefillInOneLoad) {
  play(basic(), [](Paths& t) -> Task<void> {
    std::vector<cache::WriteOp> ops;
    for (int id = 0; id < 50; ++id) {
      t.source.rows[std::to_string(id)] = "v";
      ops.push_back({.key = "p:" + std::to_string(id), .value = "v"});
    }
    ops[3].ttl_us = kSecond;
    auto done = co_await t.node->write(std::move(ops));
    EXPECT_TRUE(done.has_value());
    EXPECT_EQ(t.source.loads, 1u);
    EXPECT_EQ(t.source.last_batch, 50u);
    co_await delay(2 * kSecond);
    EXPECT_EQ(t.quick("p:3"), "miss");
    EXPECT_EQ(t.quick("p:4"), "v");
  });
}

TEST_F(Paths, SlidingDoesNotKeepANegativeEntry) {
  cache::CacheSpec spec = basic();
  spec.sliding = true;
  spec.negative_ttl_us = 5 * kSecond;
  play(std::move(spec), [](Paths& t) -> Task<void> {
    EXPECT_ANSWER(t.get("p:7"), "none source");
    t.source.rows["7"] = "v1";
    for (int i = 0; i < 4; ++i) {
      co_await delay(kSecond);
      EXPECT_EQ(t.quick("p:7"), "none");
    }
    co_await delay(kSecond);
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
  });
}

TEST_F(Paths, RefreshAheadReloadsBeforeExpiry) {
  cache::CacheSpec spec = basic();
  spec.refresh_ahead = true;
  play(std::move(spec), [](Paths& t) -> Task<void> {
    t.source.rows["7"] = "v1";
    t.source.latency = 100 * kMillisecond;
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    t.source.rows["7"] = "v2";
    bool missed = false;
    for (int i = 0; i < 12'000 && t.quick("p:7") != "v2"; ++i) {
      missed |= t.quick("p:7") == "miss";
      co_await delay(kMillisecond);
    }
    EXPECT_FALSE(missed);
    EXPECT_EQ(t.quick("p:7"), "v2");
    EXPECT_EQ(t.source.loads, 2u);
  });
}

TEST_F(Paths, WriteThroughIsSeenByTheNextReader) {
  play(basic(), [](Paths& t) -> Task<void> {
    t.source.rows["7"] = "v1";
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    static Paths* test = nullptr;
    test = &t;
    t.source.at_commit = [] { test->source.rows["7"] = "v2"; };
    EXPECT_ANSWER(t.set("p:7", "v2"), "OK");
    EXPECT_EQ(t.quick("p:7"), "v2");
    EXPECT_EQ(t.source.written.size(), 1u);
    EXPECT_EQ(t.source.loads, 2u);
  });
}

TEST_F(Paths, WriteAroundLeavesTheFillToReaders) {
  cache::CacheSpec spec = basic();
  spec.write = cache::WriteMode::around;
  play(std::move(spec), [](Paths& t) -> Task<void> {
    t.source.rows["7"] = "v1";
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    EXPECT_ANSWER(t.set("p:7", "v2"), "OK");
    EXPECT_EQ(t.quick("p:7"), "miss");
    EXPECT_EQ(t.source.loads, 1u);
  });
}

TEST_F(Paths, AFailedCommitIsNotAcknowledgedAndStaysVoid) {
  play(basic(), [](Paths& t) -> Task<void> {
    t.source.rows["7"] = "v1";
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    t.source.commit_fails = true;
    EXPECT_ANSWER(t.set("p:7", "v2"), "LARDER_SOURCE_DOWN");
    EXPECT_EQ(t.quick("p:7"), "miss");
    // The outcome is unknown: loads that have not seen that number end are answered, not stored.
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    EXPECT_EQ(t.quick("p:7"), "miss");
    EXPECT_EQ(t.counter("larder_fills_refused_total", "reason", "tombstone"), 1u);
    t.source.seq += 1;  // the source has skipped the number
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    EXPECT_EQ(t.quick("p:7"), "v1");
  });
}

TEST_F(Paths, WritesThatAreRefused) {
  cache::CacheSpec spec = basic();
  spec.write = cache::WriteMode::none;
  spec.max_value_bytes = 4;
  play(std::move(spec), [](Paths& t) -> Task<void> {
    EXPECT_ANSWER(t.set("p:7", "v"), "LARDER_READONLY");
    EXPECT_ANSWER(t.set("p:x", "v"), "LARDER_BADKEY");
    EXPECT_TRUE(t.source.written.empty());
    t.source.rows["7"] = "12345";  // over max_value: an error, and no entry
    EXPECT_ANSWER(t.get("p:7"), "LARDER_BADVALUE");
    EXPECT_EQ(t.store.stats().entries, 0u);
  });
}

TEST_F(Paths, ObjectsMustFitTheStatement) {
  cache::CacheSpec spec = basic();
  spec.result = source::ResultShape::object;
  spec.store = "INSERT INTO p VALUES (:id, :name, :price)";
  play(std::move(spec), [](Paths& t) -> Task<void> {
    EXPECT_ANSWER(t.set("p:7", R"({"id":7,"name":"a","price":1.5})"), "OK");
    EXPECT_EQ(t.source.written[0].params.size(), 3u);
    EXPECT_ANSWER(t.set("p:7", R"({"name":"a","price":null})"), "OK");
    EXPECT_ANSWER(t.set("p:7", R"({"id":8,"name":"a","price":1})"), "LARDER_BADVALUE");
    EXPECT_ANSWER(t.set("p:7", R"({"name":"a"})"), "LARDER_BADVALUE");
    EXPECT_ANSWER(t.set("p:7", R"({"name":"a","price":1,"colour":"red"})"), "LARDER_BADVALUE");
    EXPECT_ANSWER(t.set("p:7", "[1]"), "LARDER_BADVALUE");
    EXPECT_ANSWER(t.set("p:7", "{"), "LARDER_BADVALUE");
    EXPECT_ANSWER(t.set("p:7", R"({"name":"a","price":18446744073709551615})"), "LARDER_BADVALUE");
  });
}

TEST_F(Paths, IncrementAnswersWhatItsOwnTransactionMade) {
  play(basic(), [](Paths& t) -> Task<void> {
    std::vector<cache::WriteOp> ops{
        {.kind = cache::WriteOp::Kind::increment, .key = "p:7", .delta = 3}};
    auto done = co_await t.node->write(std::move(ops));
    EXPECT_TRUE(done.has_value());
    EXPECT_EQ(done->front().value, "42");
    EXPECT_EQ(t.source.written.size(), 2u);
    EXPECT_TRUE(t.source.written[1].wants_value);
  });
}

TEST_F(Paths, TagsVoidWhatBearsThem) {
  cache::CacheSpec spec = basic();
  spec.tags = {{"category:{c}", {"category:", ""}, {"c"}}, {"id:{id}", {"id:", ""}, {"id"}}};
  play(std::move(spec), [](Paths& t) -> Task<void> {
    t.source.rows = {{"1", "v1"}, {"2", "v2"}};
    EXPECT_ANSWER(t.get("p:1"), "v1 source");
    t.source.category = "b";
    EXPECT_ANSWER(t.get("p:2"), "v2 source");
    std::vector<std::string> tags{"category:a"};
    auto done = co_await t.node->invalidate_tags(std::move(tags), "call");
    EXPECT_TRUE(done.has_value());
    EXPECT_EQ(t.quick("p:1"), "miss");
    EXPECT_EQ(t.quick("p:2"), "v2");
    tags = {"id:2"};
    done = co_await t.node->invalidate_tags(std::move(tags), "call");
    EXPECT_EQ(t.quick("p:2"), "miss");
    auto whole = co_await t.node->invalidate_cache("nobody", "call");
    EXPECT_FALSE(*whole);
    EXPECT_ANSWER(t.get("p:2"), "v2 source");
    whole = co_await t.node->invalidate_cache("p", "call");
    EXPECT_TRUE(*whole);
    EXPECT_EQ(t.quick("p:2"), "miss");
  });
}

TEST_F(Paths, ADependencyOnPartOfTheKeyVoidsAllThatShareIt) {
  cache::CacheSpec spec = basic();
  spec.key = *policy::KeyPattern::parse("p:{id:int}:{lang}");
  play(std::move(spec), [](Paths& t) -> Task<void> {
    t.source.rows = {{"7|en", "chair"}, {"7|de", "Stuhl"}, {"8|en", "lamp"}};
    EXPECT_ANSWER(t.get("p:7:en"), "chair source");
    EXPECT_ANSWER(t.get("p:7:de"), "Stuhl source");
    EXPECT_ANSWER(t.get("p:8:en"), "lamp source");
    co_await t.change_by_others({"7"});
    EXPECT_EQ(t.quick("p:7:en"), "miss");
    EXPECT_EQ(t.quick("p:7:de"), "miss");
    EXPECT_EQ(t.quick("p:8:en"), "lamp");
    co_await t.change_by_others({std::nullopt});  // a NULL names no entry
    EXPECT_EQ(t.quick("p:8:en"), "lamp");
  });
}

TEST_F(Paths, ARowOfAnotherKeyIsAnsweredButNotStored) {
  play(basic(), [](Paths& t) -> Task<void> {
    t.source.rows["7"] = "v1";
    t.source.key_column = "70";
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    EXPECT_EQ(t.quick("p:7"), "miss");
    EXPECT_EQ(t.counter("larder_fills_refused_total", "reason", "key_mismatch"), 1u);
  });
}

TEST_F(Paths, AnotherIncarnationVoidsEverything) {
  play(basic(), [](Paths& t) -> Task<void> {
    t.source.rows = {{"7", "v1"}, {"8", "w1"}};
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    t.source.source_id = 2;
    t.source.seq = 0;
    t.source.rows = {{"7", "v9"}, {"8", "w9"}};
    EXPECT_ANSWER(t.get("p:8"), "w9 source");  // the load that notices it
    EXPECT_EQ(t.quick("p:7"), "miss");
    EXPECT_ANSWER(t.get("p:7"), "v9 source");
    EXPECT_ANSWER(t.get("p:7"), "v9 near");
  });
}

TEST_F(Paths, WhatAReplicaHasNotSeenYetComesFromTheSource) {
  play(basic(), [](Paths& t) -> Task<void> {
    t.source.rows = {{"7", "v1"}};
    t.source.replica = t.source.rows;
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    EXPECT_ANSWER(t.get("p:7"), "v1 near");
    EXPECT_EQ(t.source.loads, 1u);
    t.source.rows["7"] = "v2";
    co_await t.change_by_others({"7"});  // the replica has not replayed it
    EXPECT_ANSWER(t.get("p:7"), "v2 source");
    EXPECT_EQ(t.source.loads, 3u);
    EXPECT_ANSWER(t.get("p:7"), "v2 near");
    t.source.replica = t.source.rows;
    t.source.replica_seq = t.source.seq;
    t.store.reset_all();
    EXPECT_ANSWER(t.get("p:7"), "v2 source");
    EXPECT_EQ(t.source.loads, 4u);
    // Our own writes are loaded again from the source itself.
    t.source.at_commit = [&t] { t.source.rows["7"] = "v3"; };
    EXPECT_ANSWER(t.set("p:7", "v3"), "OK");
    EXPECT_ANSWER(t.get("p:7"), "v3 near");
  });
}

TEST_F(Paths, AReplicaIsNotBelievedThatARowIsGone) {
  cache::CacheSpec spec = basic();
  spec.negative_ttl_us = 0;
  play(std::move(spec), [](Paths& t) -> Task<void> {
    t.source.rows = {{"7", "v1"}};
    t.source.replica.emplace();
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    EXPECT_ANSWER(t.get("p:8"), "none source");
    EXPECT_EQ(t.source.loads, 4u);
  });
}

TEST_F(Paths, AReplicaThatIsFartherBehindThanTheBoundIsOfNoUse) {
  cache::CacheSpec spec = basic();
  spec.consistency = cache::Consistency::bounded;
  spec.bound_us = kSecond;
  play(std::move(spec), [](Paths& t) -> Task<void> {
    t.source.rows = {{"7", "v2"}};
    t.source.replica.emplace()["7"] = "v1";
    t.source.replica_lag_us = 2 * kSecond;
    EXPECT_ANSWER(t.get("p:7"), "v2 source");
    t.store.reset_all();
    t.source.replica_lag_us = kSecond / 2;
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
  });
}

TEST_F(Paths, TheFirstIncarnationComesBack) {
  play(basic(), [](Paths& t) -> Task<void> {
    t.source.rows = {{"7", "v1"}};
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    t.source.source_id = 2;
    t.source.rows = {{"7", "v2"}};
    EXPECT_ANSWER(t.get("p:8"), "none source");
    EXPECT_ANSWER(t.get("p:7"), "v2 source");
    t.source.source_id = 1;
    t.source.rows = {{"7", "v3"}};
    co_await delay(policy::Succession::kSilence + kSecond);  // its feed says it again and again
    EXPECT_ANSWER(t.get("p:7"), "v3 source");
    EXPECT_ANSWER(t.get("p:7"), "v3 near");
  });
}

TEST_F(Paths, TwoServersThatAnswerByTurnsVoidNothing) {
  play(basic(), [](Paths& t) -> Task<void> {
    t.source.heartbeats = false;
    t.source.rows = {{"7", "v1"}, {"8", "w1"}};
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    co_await delay(kSecond);
    t.source.source_id = 2;
    t.source.rows = {{"7", "v2"}, {"8", "w2"}};
    EXPECT_ANSWER(t.get("p:7"), "v1 near");
    EXPECT_ANSWER(t.get("p:8"), "w2 source");
    EXPECT_ANSWER(t.get("p:7"), "v2 source");
    co_await delay(kMillisecond);
    t.source.source_id = 1;  // an old connection
    EXPECT_ANSWER(t.get("p:9"), "none source");
    EXPECT_ANSWER(t.get("p:7"), "v2 near");
  });
}

// The writer has told his number while another incarnation was the present one.
TEST_F(Paths, AWriterIsKnownWhenHisIncarnationComesBack) {
  play(basic(), [](Paths& t) -> Task<void> {
    engine::Embedded& engine = t.engine;
    t.source.heartbeats = false;
    t.source.rows = {{"7", "v1"}};
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    const policy::TxnId x = t.source.seq + 1;
    t.source.source_id = 2;
    EXPECT_ANSWER(t.get("p:8"), "none source");
    std::vector<engine::Change> told{
        {.source = 0, .x = x, .source_id = 1, .keys = {"p:7"}, .tags = {}}};
    co_await engine.invalidate(std::move(told));
    t.source.source_id = 1;
    co_await delay(policy::Succession::kSilence + kSecond);
    EXPECT_ANSWER(t.get("p:7"), "v1 source");  // he may not have ended
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    t.source.seq = x;
    t.source.rows = {{"7", "v2"}};
    EXPECT_ANSWER(t.get("p:7"), "v2 source");
    EXPECT_ANSWER(t.get("p:7"), "v2 near");
  });
}

TEST_F(Paths, RefreshLoadsWhateverIsHeld) {
  play(basic(), [](Paths& t) -> Task<void> {
    t.source.rows["7"] = "v1";
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    t.source.rows["7"] = "v2";
    Result<Reading> reading = co_await t.node->refresh("p:7");
    EXPECT_EQ(describe(reading), "v2 source");
    EXPECT_EQ(t.quick("p:7"), "v2");
  });
}

TEST_F(Paths, WarmLoadsWhatItsStatementNames) {
  cache::CacheSpec spec = basic();
  spec.warm = "SELECT id FROM p LIMIT :n";
  play(std::move(spec), [](Paths& t) -> Task<void> {
    t.source.rows = {
        {"warm", R"([{"id":1},{"id":2},{"id":3}])"}, {"1", "a"}, {"2", "b"}, {"3", "c"}};
    auto warmed = co_await t.node->warm("p", 2);
    EXPECT_TRUE(warmed.has_value());
    EXPECT_EQ(warmed->keys, 2u);
    EXPECT_EQ(t.quick("p:1"), "a");
    EXPECT_EQ(t.quick("p:2"), "b");
    EXPECT_EQ(t.quick("p:3"), "miss");
    EXPECT_EQ(t.source.loads, 2u);
    warmed = co_await t.node->warm("q", 2);
    EXPECT_FALSE(warmed.has_value());
  });
}

TEST_F(Paths, ExplainTellsTheStory) {
  play(basic(), [](Paths& t) -> Task<void> {
    t.source.rows["7"] = "v1";
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    co_await t.change_by_others({"7"});
    EXPECT_ANSWER(t.get("p:7"), "v1 source");
    std::map<std::string, std::string> told;
    for (const auto& [name, text] : t.node->explain("p:7", t.loop.now_us())) told[name] = text;
    EXPECT_EQ(told["cache"], "p");
    EXPECT_EQ(told["state"], "fresh");
    EXPECT_NE(told["last_invalidation"].find("by s, change 1"), std::string::npos)
        << told["last_invalidation"];
    EXPECT_NE(told["guarantee"].find("eventual"), std::string::npos);
    EXPECT_EQ(told["last_fill_refused"], "never");
  });
}

}  // namespace
}  // namespace larder::sim
