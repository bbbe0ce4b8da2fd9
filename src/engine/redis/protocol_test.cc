// The steps of the fill protocol on a real redis-server: one test for each rule.
#include "engine/redis/protocol.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "engine/redis/url.h"
#include "engine/redis_process.h"

namespace larder::engine::redis {
namespace {

using engine::real::Connection;
using engine::real::parse;
using engine::real::Words;
using policy::Refusal;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::string_view kSchema = "product.1";
constexpr std::uint64_t kSource = 18'000'000'000'000'000'001ULL;  // above 2^63: never a Lua number

policy::Snapshot sees_below(policy::TxnId x) {
  return {.source_id = kSource, .xmin = x, .xmax = x, .in_progress = {}};
}

class ProtocolTest : public engine::real::WithRedis<::testing::Test> {
 protected:
  void SetUp() override {
    WithRedis::SetUp();
    if (!redis_) return;
    redis_->call({"CONFIG", "SET", "maxmemory", "0"});
    new_epoch("e1", 99);
  }

  wire::Reply run(const Step& step) {
    std::string script(step.script);
    if (const std::size_t at = script.find(left_out_); !left_out_.empty() && at != script.npos) {
      script.erase(at, left_out_.size());
      left_out_found_ = true;
    }
    Words words{"EVAL", std::move(script), std::to_string(step.keys.size())};
    words.insert(words.end(), step.keys.begin(), step.keys.end());
    words.insert(words.end(), step.args.begin(), step.args.end());
    wire::Reply reply = parse(redis_->call(words));
    EXPECT_NE(reply.type, wire::Reply::Type::error) << reply.text;
    return reply;
  }

  void new_epoch(std::string_view epoch, policy::TxnId floor, std::uint64_t position = 10) {
    run(epoch_begin_step(names_, "m"));
    const auto written =
        change_answer(run(epoch_write_step(names_, {.mark = "m",
                                                    .epoch = epoch,
                                                    .floor = floor,
                                                    .feed_position = position,
                                                    .source_id = kSource,
                                                    .heartbeat = 1'700'000'000'000'000})));
    ASSERT_TRUE(written && written->applied);
  }

  LookupAnswer lookup(std::string_view key, bool wants_ticket = false) {
    token_ = "t" + std::to_string(++tokens_);
    const auto answer = lookup_answer(run(lookup_step(
        names_, {{.schema = kSchema, .key = key, .token = token_, .wants_ticket = wants_ticket}},
        10 * kSecond)));
    EXPECT_TRUE(answer);
    return answer.value_or(LookupAnswer{});
  }
  KeyAnswer::Kind kind(std::string_view key) { return lookup(key).found.front().kind; }

  StoredEntry entry(policy::TxnId sees, std::string value, std::vector<std::string> tags = {}) {
    const TimeUs now = state().engine_now;
    return {.snapshot = sees_below(sees),
            .load_us = 1234,
            .ttl_us = kMinute,
            .as_of = now,
            .soft_expiry = now + kMinute,
            .useless_at = now + 2 * kMinute,
            .tags = std::move(tags),
            .value = std::move(value)};
  }
  Refusal fill(std::string_view key, const StoredEntry& entry, std::string_view epoch = "e1") {
    const auto answer = fill_answer(run(fill_step(
        names_, {.schema = kSchema, .key = key, .token = token_, .epoch = epoch, .entry = entry})));
    EXPECT_TRUE(answer);
    return answer ? answer->refusal : Refusal::no_state;
  }
  // Looks up (a ticket) and fills.
  Refusal load(std::string_view key, policy::TxnId sees, std::string value,
               std::vector<std::string> tags = {}) {
    lookup(key, true);
    return fill(key, entry(sees, std::move(value), std::move(tags)));
  }
  static Invalidation of_key(std::string key, policy::TxnId x, TxnRule rule = TxnRule::exact) {
    return {.keys = {{std::move(key), {std::string(kSchema)}}}, .tags = {}, .x = x, .rule = rule};
  }
  static Invalidation of_tag(std::string tag, policy::TxnId x, TxnRule rule = TxnRule::exact) {
    return {.keys = {}, .tags = {std::move(tag)}, .x = x, .rule = rule};
  }
  ChangeAnswer invalidate(const Invalidation& what) {
    return change_answer(run(invalidate_step(names_, {what}))).value_or(ChangeAnswer{});
  }
  ChangeAnswer feed(const FeedStep& step, const Bounds& bounds = {}) {
    return change_answer(run(feed_step(names_, step, bounds))).value_or(ChangeAnswer{});
  }
  StateAnswer state() { return state_answer(run(read_step(names_))).value_or(StateAnswer{}); }

  static constexpr DurationUs kMinute = 60 * kSecond;
  Names names_{"larder", "shop", 3, 64};
  std::string token_;
  int tokens_ = 0;
  std::string left_out_;  // negative controls: a rule of the scripts that is not applied
  bool left_out_found_ = false;
};

TEST(Names, PartitionsHaveEqualRangesOfSlots) {
  for (const unsigned partitions : {1U, 16U, 64U, 1024U})
    for (unsigned p = 0; p < partitions; p += partitions / 16 + 1) {
      const Names names("larder", "shop", p, partitions);
      EXPECT_EQ(std::uint64_t{names.slot()} * partitions / 16384, p);
      for (const std::string& name : {names.state(), names.stream(), names.channel(),
                                      names.entry("c.1", "k{x}"), names.ticket("c.1", "}{")})
        EXPECT_EQ(slot_of(name), names.slot()) << name;
    }
}

TEST_F(ProtocolTest, MissFillHit) {
  const LookupAnswer miss = lookup("p:1");
  EXPECT_EQ(miss.found.front().kind, KeyAnswer::Kind::ticket);
  EXPECT_EQ(miss.position.epoch, "e1");
  EXPECT_EQ(miss.position.replid.size(), 40U);
  const StoredEntry stored = entry(101, std::string("a\0\n 7:b", 7), {"cat:\n1", "2:x"});
  EXPECT_EQ(fill("p:1", stored), Refusal::none);
  const LookupAnswer hit = lookup("p:1");
  ASSERT_EQ(hit.found.front().kind, KeyAnswer::Kind::hit);
  const StoredEntry& read = *hit.found.front().entry;
  EXPECT_EQ(read.value, stored.value);
  EXPECT_EQ(read.tags, stored.tags);
  EXPECT_EQ(read.as_of, stored.as_of);
  EXPECT_EQ(read.soft_expiry, stored.soft_expiry);
  EXPECT_EQ(read.useless_at, stored.useless_at);
  EXPECT_EQ(read.load_us, stored.load_us);
  EXPECT_EQ(read.snapshot.source_id, kSource);
  EXPECT_EQ(read.snapshot.xmax, 101U);
  EXPECT_EQ(hit.heartbeat, 1'700'000'000'000'000);
}

TEST_F(ProtocolTest, OneTicketAndTheOthersAreBusy) {
  lookup("p:1");
  const std::string holder = token_;
  const LookupAnswer busy = lookup("p:1");
  EXPECT_EQ(busy.found.front().kind, KeyAnswer::Kind::busy);
  EXPECT_GT(busy.found.front().ticket_us, 0);
  EXPECT_EQ(fill("p:1", entry(101, "mine")), Refusal::ticket);  // token_ is not the holder's
  token_ = holder;
  EXPECT_EQ(fill("p:1", entry(101, "v")), Refusal::none);
}

TEST_F(ProtocolTest, WhoOnlyLooksLeavesNoTrace) {
  const auto peek = [&](std::string_view key) {
    const auto answer =
        lookup_answer(run(lookup_step(names_, {{.schema = kSchema, .key = key}}, 0)));
    EXPECT_TRUE(answer);
    return answer ? answer->found.front() : KeyAnswer{};
  };
  const auto everything = [&] {
    return redis_->call({"DBSIZE"}) + redis_->call({"HGETALL", names_.state()});
  };
  const std::string before = everything();
  EXPECT_EQ(peek("p:1").kind, KeyAnswer::Kind::no_state);
  EXPECT_EQ(everything(), before);
  lookup("p:1");
  EXPECT_EQ(peek("p:1").kind, KeyAnswer::Kind::no_state) << "not busy: nobody is to wake us";
  EXPECT_EQ(fill("p:1", entry(101, "v")), Refusal::none);
  const KeyAnswer hit = peek("p:1");
  EXPECT_EQ(hit.kind, KeyAnswer::Kind::hit);
  ASSERT_TRUE(hit.entry.has_value());
  EXPECT_EQ(hit.entry->value, "v");
  invalidate(of_key("p:1", 102));
  EXPECT_EQ(peek("p:1").kind, KeyAnswer::Kind::no_state);
}

TEST_F(ProtocolTest, AnInvalidationVoidsTicketAndEntry) {
  lookup("p:1");
  const std::string old = token_;
  invalidate(of_key("p:1", 100));
  EXPECT_EQ(kind("p:1"), KeyAnswer::Kind::ticket);
  token_ = old;
  EXPECT_EQ(fill("p:1", entry(101, "v")), Refusal::ticket);
}

TEST_F(ProtocolTest, TombstonesWaitForEveryTransaction) {
  invalidate(of_key("p:1", 105));
  invalidate(of_key("p:1", 102));  // ids are not commit order
  EXPECT_EQ(load("p:1", 105, "old"), Refusal::tombstone);
  lookup("p:1");
  StoredEntry gap = entry(101, "old");
  gap.snapshot = {.source_id = kSource, .xmin = 102, .xmax = 106, .in_progress = {102}};
  EXPECT_EQ(fill("p:1", gap), Refusal::tombstone);  // sees 105, not 102
  EXPECT_EQ(load("p:1", 106, "new"), Refusal::none);
}

TEST_F(ProtocolTest, ManyTombstonesCollapseIntoOneThatNeedsXmin) {
  for (policy::TxnId x = 100; x < 112; ++x) invalidate(of_key("p:1", x));
  lookup("p:1");
  StoredEntry open = entry(0, "v");
  open.snapshot = {.source_id = kSource, .xmin = 100, .xmax = 112, .in_progress = {100}};
  EXPECT_EQ(fill("p:1", open), Refusal::tombstone);
  EXPECT_EQ(load("p:1", 112, "v"), Refusal::none);
}

TEST_F(ProtocolTest, AChangeWithoutItsOwnNumberNeedsXmin) {
  invalidate(of_key("p:1", 105, TxnRule::below));
  lookup("p:1");
  StoredEntry running = entry(0, "v");
  running.snapshot = {.source_id = kSource, .xmin = 103, .xmax = 106, .in_progress = {103}};
  EXPECT_EQ(fill("p:1", running), Refusal::tombstone);
  EXPECT_EQ(load("p:1", 106, "v"), Refusal::none);
}

TEST_F(ProtocolTest, FloorSourceEpochAndLaterRefuse) {
  EXPECT_EQ(load("p:1", 99, "v"), Refusal::floor);
  lookup("p:1");
  StoredEntry other = entry(101, "v");
  other.snapshot.source_id = 7;
  EXPECT_EQ(fill("p:1", other), Refusal::source);
  lookup("p:1");
  EXPECT_EQ(fill("p:1", entry(101, "v"), "e0"), Refusal::epoch);
  EXPECT_EQ(load("p:1", 105, "newer"), Refusal::none);
  EXPECT_EQ(load("p:1", 104, "older"), Refusal::later);
  EXPECT_EQ(lookup("p:1").found.front().entry->value, "newer");
}

TEST_F(ProtocolTest, TagsVoidEntriesAndRefuseFills) {
  EXPECT_EQ(load("p:1", 101, "v", {"cat:1"}), Refusal::none);
  invalidate(of_tag("cat:1", 103));
  EXPECT_EQ(kind("p:1"), KeyAnswer::Kind::ticket);
  EXPECT_EQ(fill("p:1", entry(103, "v", {"cat:1"})), Refusal::tag);
  EXPECT_EQ(load("p:1", 103, "v", {"cat:2"}), Refusal::none);
  EXPECT_EQ(load("p:2", 104, "v", {"cat:1"}), Refusal::none);
}

TEST_F(ProtocolTest, WithoutSnapshotsTheTicketIsTheSafety) {
  StoredEntry blind = entry(0, "v", {"cat:1"});
  lookup("p:1");
  invalidate(of_tag("cat:1", 0, TxnRule::tickets));
  EXPECT_EQ(fill("p:1", blind), Refusal::tag);  // its ticket is older than the tag's change
  lookup("p:1");
  EXPECT_EQ(fill("p:1", blind), Refusal::none);
  EXPECT_EQ(kind("p:1"), KeyAnswer::Kind::hit);
  invalidate(of_tag("cat:1", 0, TxnRule::tickets));
  EXPECT_EQ(kind("p:1"), KeyAnswer::Kind::ticket);
}

TEST_F(ProtocolTest, AnXThatIsKnownChangesNothingMore) {
  invalidate(of_key("p:1", 100));
  EXPECT_EQ(load("p:1", 101, "new"), Refusal::none);
  const std::uint64_t n = state().position.n;
  const ChangeAnswer fed =
      feed({.expected = 10, .position = 11, .source_id = kSource, .changes = {of_key("p:1", 100)}});
  EXPECT_TRUE(fed.applied);
  EXPECT_EQ(fed.position.n, n);
  EXPECT_EQ(kind("p:1"), KeyAnswer::Kind::hit);
}

// Those who wait for the load would not be told: its fill is judged by T anyway.
TEST_F(ProtocolTest, AnXThatIsKnownVoidsNoTicket) {
  invalidate(of_key("p:1", 100));
  EXPECT_EQ(kind("p:1"), KeyAnswer::Kind::ticket);
  feed({.expected = 10, .position = 11, .source_id = kSource, .changes = {of_key("p:1", 100)}});
  EXPECT_EQ(fill("p:1", entry(101, "new")), Refusal::none);
}

TEST_F(ProtocolTest, AChangeVoidsTheEntriesOfVersionsThatTheWriterDidNotName) {
  EXPECT_EQ(load("p:1", 100, "old"), Refusal::none);
  Invalidation of_another_version{.keys = {{"p:1", {"product.2"}}}, .tags = {}, .x = 100};
  invalidate(of_another_version);
  EXPECT_EQ(kind("p:1"), KeyAnswer::Kind::ticket);
}

// Trimmed, a tombstone keeps nothing from view any more; and a change without a number leaves none.
TEST_F(ProtocolTest, AChangeDeletesEntriesAndTicketsOfVersionsThatTheWriterDidNotName) {
  const auto entries = [&] { return redis_->call({"EXISTS", names_.entry(kSchema, "p:1")}); };
  for (const std::vector<std::string>& named :
       {std::vector<std::string>{"product.2"}, std::vector<std::string>{}}) {
    EXPECT_EQ(load("p:1", 110, "old"), Refusal::none);
    lookup("p:1", true);
    invalidate({.keys = {{"p:1", named}}, .tags = {}, .x = 0, .rule = TxnRule::tickets});
    EXPECT_THAT(entries(), HasSubstr("0"));
    EXPECT_EQ(fill("p:1", entry(110, "old")), Refusal::ticket);
  }
  // Not those of another cache.
  EXPECT_EQ(load("p:1", 110, "v"), Refusal::none);
  invalidate({.keys = {{"p:1", {"stock.1"}}}, .tags = {}, .x = 0, .rule = TxnRule::tickets});
  EXPECT_THAT(entries(), HasSubstr("1"));
}

TEST_F(ProtocolTest, ANewEpochKeepsTheFloorOfWhatWasTrimmedMeanwhile) {
  run(epoch_begin_step(names_, "m2"));
  for (policy::TxnId x = 120; x < 132; ++x)
    run(invalidate_step(names_, {of_key("q:" + std::to_string(x), x)},
                        {.stream = 100, .tombstones = 4, .most_tombstones = 8}));
  run(epoch_write_step(names_, {.mark = "m2", .epoch = "e2", .floor = 105, .source_id = kSource}));
  lookup("q:120");
  EXPECT_EQ(fill("q:120", entry(110, "old"), "e2"), Refusal::floor);
}

TEST_F(ProtocolTest, TheFeedComparesItsPosition) {
  const FeedStep step{.expected = 10,
                      .position = 12,
                      .heartbeat = 1'700'000'000'500'000,
                      .source_id = kSource,
                      .changes = {of_key("p:1", 100), of_key("p:2", 101)}};
  EXPECT_TRUE(feed(step).applied);
  EXPECT_EQ(state().feed_position, 12U);
  EXPECT_EQ(state().heartbeat, 1'700'000'000'500'000);
  EXPECT_EQ(state().position.n, 2U);
  const ChangeAnswer again = feed(step);
  EXPECT_FALSE(again.applied);
  EXPECT_EQ(again.feed_position, 12U);
  EXPECT_EQ(state().position.n, 2U);
  FeedStep other = step;
  other.expected = 12;
  other.source_id = 8;
  EXPECT_FALSE(feed(other).applied);
}

TEST_F(ProtocolTest, NoStateNoHitsNoTicketsNoFills) {
  EXPECT_EQ(load("p:1", 101, "v"), Refusal::none);
  lookup("p:1", true);
  redis_->call({"DEL", names_.state()});
  EXPECT_EQ(fill("p:1", entry(102, "w")), Refusal::no_state);
  EXPECT_EQ(kind("p:1"), KeyAnswer::Kind::no_state);
  EXPECT_EQ(invalidate(of_key("p:1", 100)).position.epoch, "");
  EXPECT_FALSE(feed({.expected = 10, .position = 11, .source_id = kSource}).applied);
  EXPECT_THAT(redis_->call({"EXISTS", names_.state()}), HasSubstr("0"));  // still no state
}

TEST_F(ProtocolTest, ANewEpochVoidsEntriesAndKeepsTombstones) {
  EXPECT_EQ(load("p:1", 101, "v"), Refusal::none);
  run(epoch_begin_step(names_, "m2"));
  EXPECT_EQ(kind("p:1"), KeyAnswer::Kind::no_state);
  invalidate(of_key("p:2", 107));  // by a writer, while the epoch is being prepared
  EXPECT_TRUE(
      change_answer(run(epoch_write_step(
                        names_, {.mark = "m2", .epoch = "e2", .floor = 105, .source_id = kSource})))
          ->applied);
  EXPECT_EQ(kind("p:1"), KeyAnswer::Kind::ticket);
  lookup("p:2");
  EXPECT_EQ(fill("p:2", entry(106, "v"), "e2"), Refusal::tombstone);
  lookup("p:2");
  EXPECT_EQ(fill("p:2", entry(108, "v"), "e2"), Refusal::none);
}

TEST_F(ProtocolTest, AnEpochIsGivenUpWhenItsMarkIsGone) {
  run(epoch_begin_step(names_, "m2"));
  run(epoch_begin_step(names_, "m3"));
  EXPECT_FALSE(
      change_answer(run(epoch_write_step(names_, {.mark = "m2", .epoch = "e2"})))->applied);
  EXPECT_EQ(state().position.epoch, "");
}

TEST_F(ProtocolTest, AMarkOfOneIncarnationDoesNotRecordTheChangesOfAnother) {
  run(epoch_begin_step(names_, "m2", kSource));
  Invalidation other = of_key("p:1", 500);
  other.source_id = 7;  // a writer whose database has been replaced
  invalidate(other);
  Invalidation ours = of_key("p:2", 500);
  ours.source_id = kSource;
  invalidate(ours);
  NewEpoch epoch{.mark = "m2", .epoch = "e2", .floor = 105, .source_id = 7};
  EXPECT_FALSE(change_answer(run(epoch_write_step(names_, epoch)))->applied);
  epoch.source_id = kSource;
  EXPECT_TRUE(change_answer(run(epoch_write_step(names_, epoch)))->applied);
  lookup("p:1");
  EXPECT_EQ(fill("p:1", entry(106, "v"), "e2"), Refusal::none);
  lookup("p:2");
  EXPECT_EQ(fill("p:2", entry(106, "v"), "e2"), Refusal::tombstone);
}

TEST_F(ProtocolTest, PositionsMayBeLargerThanLuasNumbers) {
  constexpr std::uint64_t kBig = (std::uint64_t{1} << 60) + 1;
  new_epoch("e2", 99, kBig);
  EXPECT_EQ(state().feed_position, kBig);
  FeedStep step{.expected = kBig - 1, .position = kBig + 1, .source_id = kSource};
  const ChangeAnswer refused = feed(step);  // as doubles they are the same
  EXPECT_FALSE(refused.applied);
  EXPECT_EQ(refused.feed_position, kBig);
  step.expected = kBig;
  EXPECT_EQ(feed(step).feed_position, kBig + 1);
}

// While a long transaction runs: a look at all tombstones at each step would block the server.
TEST_F(ProtocolTest, BeyondTheHardLimitMoreGoesThanMust) {
  const Bounds bounds{.stream = 100, .tombstones = 16, .most_tombstones = 48};
  FeedStep step{.expected = 10, .position = 11, .source_id = kSource, .xmin = 100};
  for (policy::TxnId x = 101; x <= 149; ++x)
    step.changes.push_back(of_key("p:" + std::to_string(x), x));
  EXPECT_TRUE(feed(step, bounds).applied);
  EXPECT_EQ(load("q:1", 103, "v"), Refusal::floor);  // of 49, 46 are left
  EXPECT_EQ(load("q:1", 104, "v"), Refusal::none);
  step = {.expected = 11, .position = 12, .source_id = kSource, .xmin = 100};
  step.changes = {of_key("p:150", 150), of_key("p:151", 151)};
  EXPECT_TRUE(feed(step, bounds).applied);
  EXPECT_EQ(load("q:2", 104, "v"), Refusal::none);
  // When it has ended, what lies below the new xmin goes.
  step = {.expected = 12, .position = 13, .source_id = kSource, .xmin = 152};
  step.changes = {of_key("p:152", 152)};
  EXPECT_TRUE(feed(step, bounds).applied);
  EXPECT_EQ(load("q:3", 144, "v"), Refusal::floor);
  EXPECT_EQ(load("q:3", 145, "v"), Refusal::none);
}

TEST_F(ProtocolTest, TrimmingRaisesTheFloors) {
  const Bounds bounds{.stream = 100, .tombstones = 4, .most_tombstones = 8};
  EXPECT_EQ(load("p:0", 101, "v", {"cat:1"}), Refusal::none);
  FeedStep step{.expected = 10, .position = 11, .source_id = kSource, .xmin = 104};
  step.changes.push_back(of_tag("cat:9", 101));
  for (policy::TxnId x = 102; x < 108; ++x)
    step.changes.push_back(of_key("p:" + std::to_string(x), x));
  EXPECT_TRUE(feed(step, bounds).applied);
  // 101, 102 and 103 lie below xmin and are gone; their floor holds for every key.
  EXPECT_EQ(load("p:7", 103, "v"), Refusal::floor);
  EXPECT_EQ(load("p:105", 105, "v"), Refusal::tombstone);
  EXPECT_EQ(load("p:7", 104, "v"), Refusal::none);
  // The entry of xmin 101 bears a tag whose tombstone may be among the trimmed ones.
  EXPECT_EQ(kind("p:0"), KeyAnswer::Kind::ticket);
  // Beyond the hard limit even what is not below xmin goes.
  step = {.expected = 11, .position = 12, .source_id = kSource};
  for (policy::TxnId x = 110; x < 120; ++x)
    step.changes.push_back(of_key("q:" + std::to_string(x), x));
  EXPECT_TRUE(feed(step, bounds).applied);
  EXPECT_EQ(load("p:7", 110, "v"), Refusal::floor);
  EXPECT_EQ(load("p:7", 120, "v"), Refusal::none);
}

// Negative controls: each rule alone is what refuses; with its line taken out of the script, what
// must not be stored is stored.
TEST_F(ProtocolTest, WithoutItsRuleEachStaleFillIsStored) {
  const auto stale_fill_without = [&](std::string rule, auto&& prepare) {
    redis_->call({"FLUSHALL"});
    left_out_.clear();
    new_epoch("e1", 99);
    left_out_ = std::move(rule);
    left_out_found_ = false;
    const Refusal refusal = prepare();
    EXPECT_TRUE(left_out_found_) << "the scripts have no such line: " << left_out_;
    return refusal;
  };
  EXPECT_EQ(stale_fill_without("if not seen(redis.call('HGET', S, 'k:' .. ARGV[10]), snap, tn) "
                               "then return 'tombstone' end",
                               [&] {
                                 invalidate(of_key("p:1", 105));
                                 return load("p:1", 105, "old");
                               }),
            Refusal::none);
  EXPECT_EQ(stale_fill_without("if st[3] and num(st[3]) >= snap.xmin then return 'floor' end",
                               [&] { return load("p:1", 99, "old"); }),
            Refusal::none);
  EXPECT_EQ(stale_fill_without("if ARGV[3] ~= st[2] then return 'source' end",
                               [&] {
                                 lookup("p:1");
                                 StoredEntry other = entry(101, "old");
                                 other.snapshot.source_id = 7;
                                 return fill("p:1", other);
                               }),
            Refusal::none);
  EXPECT_EQ(stale_fill_without("if not mine or te ~= e then return 'ticket' end",
                               [&] {
                                 lookup("p:1");
                                 invalidate(of_key("p:1", 0, TxnRule::tickets));
                                 return fill("p:1", entry(101, "old"));
                               }),
            Refusal::none);
  EXPECT_EQ(stale_fill_without("if ARGV[2] ~= e then return 'epoch' end",
                               [&] {
                                 lookup("p:1");
                                 return fill("p:1", entry(101, "old"), "e0");
                               }),
            Refusal::none);
  EXPECT_EQ(stale_fill_without("if there.snap.xmax > snap.xmax then return 'later' end",
                               [&] {
                                 load("p:1", 105, "newer");
                                 return load("p:1", 104, "older");
                               }),
            Refusal::none);
  EXPECT_EQ(
      stale_fill_without(
          "if not seen(redis.call('HGET', S, 't:' .. tags[i]), snap, tn) then return 'tag' end",
          [&] {
            invalidate(of_tag("cat:1", 105));
            return load("p:1", 105, "old", {"cat:1"});
          }),
      Refusal::none);
}

TEST_F(ProtocolTest, InvalidatesWhenTheServerIsFull) {
  EXPECT_EQ(load("p:1", 101, "v"), Refusal::none);
  redis_->call({"CONFIG", "SET", "maxmemory-policy", "noeviction"});
  redis_->call({"CONFIG", "SET", "maxmemory", "1"});
  ASSERT_THAT(redis_->call({"SET", "x", "y"}), HasSubstr("OOM"));
  EXPECT_EQ(invalidate(of_key("p:1", 102)).position.n, 1U);
  EXPECT_EQ(invalidate(of_tag("cat:1", 103)).position.n, 2U);
  redis_->call({"CONFIG", "SET", "maxmemory", "0"});
  EXPECT_EQ(load("p:1", 102, "v"), Refusal::tombstone);
}

TEST_F(ProtocolTest, AFullServerAnswersWhatItHasAndStoresNothing) {
  EXPECT_EQ(load("p:1", 101, "v"), Refusal::none);
  EXPECT_EQ(kind("p:2"), KeyAnswer::Kind::ticket);
  redis_->call({"CONFIG", "SET", "maxmemory-policy", "noeviction"});
  redis_->call({"CONFIG", "SET", "maxmemory", "1"});
  EXPECT_EQ(fill("p:2", entry(101, "v")), Refusal::no_room);
  EXPECT_EQ(kind("p:1"), KeyAnswer::Kind::hit);
  EXPECT_EQ(kind("p:2"), KeyAnswer::Kind::no_state);  // no ticket can be given
  redis_->call({"CONFIG", "SET", "maxmemory", "0"});
  EXPECT_EQ(kind("p:2"), KeyAnswer::Kind::ticket);  // that of the refused fill has ended
}

TEST_F(ProtocolTest, MessagesAndHistory) {
  Connection listener(*server_);
  ASSERT_TRUE(listener.connected());
  listener.call({"SUBSCRIBE", names_.channel()});
  const auto next = [&] {
    const wire::Reply reply = parse(listener.receive());
    return parse_message(reply.elements.at(2).text).value();
  };
  const std::string odd("p:\0:5:x\n", 8);
  invalidate({.keys = {{odd, {std::string(kSchema)}}}, .tags = {"cat:1"}, .x = 100});
  const Message change = next();
  EXPECT_EQ(change.kind, Message::Kind::change);
  EXPECT_EQ(change.position, state().position);
  EXPECT_EQ(change.x, 100U);
  EXPECT_THAT(change.keys, ElementsAre(odd));
  EXPECT_THAT(change.tags, ElementsAre("cat:1"));
  feed({.expected = 10, .position = 11, .heartbeat = 1'800'000'000'000'001, .source_id = kSource});
  const Message heartbeat = next();
  EXPECT_EQ(heartbeat.kind, Message::Kind::heartbeat);
  EXPECT_EQ(heartbeat.heartbeat, 1'800'000'000'000'001);
  EXPECT_EQ(heartbeat.position.n, 1U);
  // A fill is told only where somebody waits.
  EXPECT_EQ(load("p:1", 101, "v"), Refusal::none);
  lookup("p:2");
  const std::string holder = token_;
  lookup("p:2");
  token_ = holder;
  EXPECT_EQ(fill("p:2", entry(101, "v")), Refusal::none);
  const Message filled = next();
  EXPECT_EQ(filled.kind, Message::Kind::filled);
  EXPECT_THAT(filled.keys, ElementsAre("p:2"));
  invalidate(of_key("p:3", 102));
  const auto history = history_answer(run(history_step(names_, 1, 10)));
  ASSERT_TRUE(history);
  ASSERT_EQ(history->size(), 1U);
  EXPECT_EQ(history->front().position.n, 2U);
  EXPECT_THAT(history->front().keys, ElementsAre("p:3"));
  new_epoch("e2", 102);
  EXPECT_THAT(*history_answer(run(history_step(names_, 0, 10))), IsEmpty());
  next();
  EXPECT_EQ(next().kind, Message::Kind::epoch);
}

TEST(Message, IsReadWhereverItIsCutOrSpoilt) {
  const std::string good = "1:c2:ab1:e1:71:01:01:91:13:p:12:tg";
  ASSERT_TRUE(parse_message(good));
  // Cut between two tags it is a shorter message; anywhere else it is none.
  for (std::size_t size = 0; size < good.size(); ++size)
    EXPECT_EQ(parse_message(good.substr(0, size)).has_value(), size == good.size() - 4) << size;
  Random random(7);
  for (int i = 0; i < 20'000; ++i) {
    std::string spoilt = good;
    spoilt[random.below(spoilt.size())] = static_cast<char>(random.below(256));
    const auto message = parse_message(spoilt);
    if (message) EXPECT_LE(message->keys.size() + message->tags.size(), good.size());
  }
}

}  // namespace
}  // namespace larder::engine::redis
