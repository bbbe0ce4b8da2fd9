// Random steps of the fill protocol, on the model that tests/sim/engine_protocol_test.cc explores
// and, as scripts, on a real redis-server: every answer, every message and, after each step,
// everything that lies in the server must be what the model says.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <deque>
#include <map>

#include "base/random.h"
#include "engine/redis/model.h"
#include "engine/redis/protocol.h"
#include "engine/redis_process.h"

namespace larder::engine::redis {
namespace {

using policy::Refusal;
using real::Connection;
using real::parse;
using real::Words;

using N = std::uint64_t;
template <class T>
using Vector = std::vector<T>;
using Engine = model::Engine<N, Vector>;

constexpr TimeUs kFar = 4'000'000'000'000'000;  // in 2096
constexpr TimeUs kPast = 1'000'000'000'000'000;
constexpr TimeUs kCommitted = 1'700'000'000'000'007;
constexpr unsigned kKeys = 5, kTags = 3, kSchemas = 2;

std::string schema_name(N schema) { return fmt::format("c.{}", schema); }
std::string key_name(N key) { return fmt::format("k:{}", key); }
std::string tag_name(N tag) { return fmt::format("t {}", tag); }
std::string epoch_name(N epoch) { return epoch == 0 ? "" : fmt::format("e{}", epoch); }
std::string token_name(N token) { return fmt::format("w{}", token); }

// What differs from one sequence to the next.
struct Setting {
  std::uint64_t seed = 1;
  Bounds bounds;
  N first_x = 100;
  N first_position = 10;
  model::Rules rules = {};  // of the model, for negative controls
};

class Pair {
 public:
  Pair(Connection& redis, Connection& listener, const Setting& setting)
      : redis_(redis),
        listener_(listener),
        setting_(setting),
        random_(setting.seed),
        next_x_(setting.first_x),
        position_(setting.first_position) {}

  // "" or what differs, with the steps before it.
  std::string run(int steps) {
    redis_.call({"FLUSHALL"});
    for (int i = 0; i < steps && differs_.empty(); ++i) {
      step();
      compare_messages();
      compare_state();
    }
    if (differs_.empty()) return {};
    std::string text = fmt::format("seed {}: {}\nafter:", setting_.seed, differs_);
    for (const std::string& line : lines_) text += "\n  " + line;
    return text;
  }
  const std::map<std::string, int>& outcomes() const { return outcomes_; }

 private:
  // ---- the two sides ----

  wire::Reply script(const Step& step) {
    Words words{"EVAL", std::string(step.script), std::to_string(step.keys.size())};
    words.insert(words.end(), step.keys.begin(), step.keys.end());
    words.insert(words.end(), step.args.begin(), step.args.end());
    wire::Reply reply = parse(redis_.call(words));
    if (reply.type == wire::Reply::Type::error) differ("the script", reply.text, "no error");
    return reply;
  }
  template <class A, class B>
  void expect(std::string_view what, const A& server, const B& model) {
    if (!(server == model)) differ(what, fmt::format("{}", server), fmt::format("{}", model));
  }
  void differ(std::string_view what, std::string_view server, std::string_view model) {
    if (differs_.empty())
      differs_ = fmt::format("{} is {} in the server, {} in the model", what, server, model);
  }
  void note(std::string line) {
    lines_.push_back(std::move(line));
    if (lines_.size() > 25) lines_.pop_front();
  }
  void count(std::string outcome) { ++outcomes_[std::move(outcome)]; }

  void expect_position(const Position& position) {
    expect("the epoch", position.epoch, epoch_name(model_.epoch));
    expect("n", position.n, model_.n);
    if (replid_.empty()) replid_ = position.replid;
    expect("the replication id", position.replid, replid_);
  }

  // ---- what to do next ----

  bool chance(unsigned percent) { return random_.below(100) < percent; }
  N pick(N most) { return 1 + random_.below(most); }
  N some_source() { return chance(94) ? kSource : kOther; }
  // Around the newest numbers, so that some are seen and some are not.
  N some_x() {
    if (chance(60)) return next_x_++;
    return std::max(setting_.first_x, next_x_ - std::min<N>(next_x_ - 1, random_.below(12)));
  }
  Engine::Snapshot some_snapshot() {
    if (chance(15)) return {some_source(), 0, 0, {}};
    Engine::Snapshot s{some_source(), 0, 0, {}};
    s.xmax = next_x_ - random_.below(chance(70) ? 2 : 8);
    s.xmin = s.xmax;
    if (chance(50)) {
      s.xmin = s.xmax - 1 - random_.below(6);
      s.running.push_back(s.xmin);
      for (N x = s.xmin + 1; x < s.xmax; ++x)
        if (chance(30)) s.running.push_back(x);
    }
    return s;
  }
  std::vector<N> some_tags() {
    std::vector<N> tags;
    for (N tag = 1; tag <= kTags; ++tag)
      if (chance(30)) tags.push_back(tag);
    return tags;
  }
  std::vector<Engine::Change> some_changes() {
    std::vector<Engine::Change> changes(pick(2));
    for (Engine::Change& change : changes) {
      const unsigned dice = static_cast<unsigned>(random_.below(10));
      change.rule = dice < 6 ? TxnRule::exact : dice < 7 ? TxnRule::below : TxnRule::tickets;
      change.x = change.rule == TxnRule::tickets ? 0 : some_x();
      change.source = chance(30) ? 0 : some_source();
      for (N i = random_.below(3); i > 0; --i) {
        Engine::KeyChange key{pick(kKeys), {}};
        for (N schema = 1; schema <= kSchemas; ++schema)
          if (chance(70)) key.schemas.push_back(schema);
        change.keys.push_back(std::move(key));
      }
      if (chance(25)) change.tags.push_back(pick(kTags));
    }
    return changes;
  }

  void step() {
    const auto dice = random_.below(1000);
    messages_.clear();
    committed_ = 0;
    // Without an epoch little can be seen: not for long.
    if (model_.epoch == 0 && chance(25)) return model_.mark == 0 ? epoch_begin() : epoch_write();
    if (dice < 330) return lookup();
    if (dice < 680) return fill();
    if (dice < 770) return invalidate();
    if (dice < 890) return feed();
    if (dice < 915) return read();
    if (dice < 930) return history();
    if (dice < 935) return epoch_begin();
    if (dice < 940) return epoch_write();
    fault();
  }

  // ---- steps ----

  void lookup() {
    std::vector<LookupKey> keys(pick(3));
    std::vector<std::string> texts;  // of schema, key and token of each
    struct Wanted {
      N schema, key, token;
      bool wants, waits;
    };
    std::vector<Wanted> wanted;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      wanted.push_back({pick(kSchemas), pick(kKeys), ++tokens_, chance(40), chance(50)});
      texts.push_back(schema_name(wanted[i].schema));
      texts.push_back(key_name(wanted[i].key));
      texts.push_back(token_name(wanted[i].token));
    }
    for (std::size_t i = 0; i < keys.size(); ++i) {
      keys[i] = {texts[3 * i], texts[3 * i + 1], texts[3 * i + 2], wanted[i].wants,
                 wanted[i].waits};
      note(fmt::format("lookup of {} {}, wants {} waits {}", keys[i].schema, keys[i].key,
                       wanted[i].wants, wanted[i].waits));
    }
    const auto answer = lookup_answer(script(lookup_step(names_, keys, 1000 * kSecond)));
    if (!answer || answer->found.size() != keys.size())
      return differ("a lookup", "not answered", "answered");
    expect_position(answer->position);
    expect("the heartbeat", static_cast<N>(answer->heartbeat), model_.heartbeat);
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const Wanted& w = wanted[i];
      const auto found = model_.lookup(w.schema, w.key, w.token, w.wants, w.waits, setting_.rules);
      const KeyAnswer& theirs = answer->found[i];
      expect("the kind", static_cast<int>(theirs.kind), static_cast<int>(found.kind));
      expect("an entry", theirs.entry.has_value(), found.entry != nullptr);
      if (theirs.entry && found.entry != nullptr) compare_entry(*theirs.entry, *found.entry);
      if (found.kind == KeyAnswer::Kind::ticket)
        held_.push_back({w.schema, w.key, w.token, model_.epoch});
      if (held_.size() > 8) held_.pop_front();
      count(fmt::format("lookup {}", static_cast<int>(found.kind)));
    }
  }

  void compare_entry(const StoredEntry& theirs, const Engine::Entry& ours) {
    expect("the value", theirs.value, std::to_string(ours.value));
    expect("xmin", theirs.snapshot.xmin, ours.snapshot.xmin);
    expect("xmax", theirs.snapshot.xmax, ours.snapshot.xmax);
    expect("what was running", fmt::format("{}", fmt::join(theirs.snapshot.in_progress, ",")),
           fmt::format("{}", fmt::join(ours.snapshot.running, ",")));
    expect("the entry's source", theirs.snapshot.source_id, ours.snapshot.source);
    expect("late", theirs.soft_expiry == kPast, ours.late);
    std::vector<std::string> tags;
    for (const N tag : ours.tags) tags.push_back(tag_name(tag));
    expect("the tags", fmt::format("{}", fmt::join(theirs.tags, ",")),
           fmt::format("{}", fmt::join(tags, ",")));
  }

  StoredEntry stored(const Engine::Entry& entry) const {
    StoredEntry s{.snapshot = {.source_id = entry.snapshot.source,
                               .xmin = entry.snapshot.xmin,
                               .xmax = entry.snapshot.xmax,
                               .in_progress = entry.snapshot.running},
                  .load_us = 1,
                  .ttl_us = 2,
                  .as_of = 3,
                  .soft_expiry = entry.late ? kPast : kFar,
                  .useless_at = kFar,
                  .value = std::to_string(entry.value)};
    for (const N tag : entry.tags) s.tags.push_back(tag_name(tag));
    return s;
  }

  void fill() {
    Held held{pick(kSchemas), pick(kKeys), 0, model_.epoch};
    if (!held_.empty() && chance(95)) {
      const auto at = held_.begin() + static_cast<std::ptrdiff_t>(random_.below(held_.size()));
      held = *at;
      if (chance(90)) held_.erase(at);
    }
    if (chance(4)) held.epoch = model_.epoch + 1;
    if (chance(3)) held.epoch = 0;  // a release
    Engine::Entry entry{held.schema,     held.key,    0,         0,
                        some_snapshot(), some_tags(), ++values_, chance(20)};
    const std::string schema = schema_name(held.schema);
    const std::string key = key_name(held.key);
    const std::string token = token_name(held.token);
    const std::string epoch = held.epoch == 0 ? "-" : epoch_name(held.epoch);
    note(fmt::format("fill of {} {} with {} of {}: {} tags, xmin {} xmax {} running {}", schema,
                     key, token, epoch, entry.tags.size(), entry.snapshot.xmin, entry.snapshot.xmax,
                     fmt::join(entry.snapshot.running, ",")));
    const auto answer = fill_answer(script(fill_step(
        names_,
        {.schema = schema, .key = key, .token = token, .epoch = epoch, .entry = stored(entry)})));
    if (!answer) return differ("a fill", "not answered", "answered");
    const Refusal refusal = model_.fill(entry, held.token, held.epoch, setting_.rules, messages_);
    expect_position(answer->position);
    expect("the refusal", policy::to_string(answer->refusal), policy::to_string(refusal));
    count(fmt::format("fill {}", policy::to_string(refusal)));
  }

  std::vector<Invalidation> to_steps(const std::vector<Engine::Change>& changes) {
    std::vector<Invalidation> steps;
    for (const Engine::Change& change : changes) {
      Invalidation step{.x = change.x, .rule = change.rule, .source_id = change.source};
      std::string text;
      for (const Engine::KeyChange& key : change.keys) {
        step.keys.push_back({key_name(key.key), {}});
        text += " " + key_name(key.key);
        for (const N schema : key.schemas) step.keys.back().schemas.push_back(schema_name(schema));
        text += fmt::format("({})", fmt::join(step.keys.back().schemas, ","));
      }
      for (const N tag : change.tags) {
        step.tags.push_back(tag_name(tag));
        text += " tag " + tag_name(tag);
      }
      note(fmt::format("  change {} rule {} of source {}:{}", change.x,
                       static_cast<int>(change.rule), change.source, text));
      steps.push_back(std::move(step));
    }
    return steps;
  }

  void invalidate() {
    note("a writer invalidates");
    const auto changes = some_changes();
    const auto answer =
        change_answer(script(invalidate_step(names_, to_steps(changes), setting_.bounds)));
    const bool applied =
        model_.change(changes, nullptr, setting_.bounds, setting_.rules, messages_);
    compare_change(answer, applied);
  }

  void feed() {
    const N expected = chance(85) ? model_.feed_position : model_.feed_position + 1;
    position_ += pick(3);
    const N beat = chance(40) ? static_cast<N>(kPast) + position_ % 1000 : 0;
    // Often a long transaction runs.
    const N xmin = chance(20) ? 0 : next_x_ - std::min<N>(next_x_ - 1, random_.below(30));
    const Engine::Feed ours{expected, position_, beat, some_source(), xmin};
    note(fmt::format("the feed: {} -> {}, xmin {}", expected, position_, xmin));
    const auto changes = some_changes();
    committed_ = kCommitted;
    const auto answer =
        change_answer(script(feed_step(names_,
                                       {.expected = ours.expected,
                                        .position = ours.position,
                                        .heartbeat = static_cast<TimeUs>(ours.heartbeat),
                                        .source_id = ours.source,
                                        .xmin = ours.xmin,
                                        .committed_at = kCommitted,
                                        .changes = to_steps(changes)},
                                       setting_.bounds)));
    const bool applied = model_.change(changes, &ours, setting_.bounds, setting_.rules, messages_);
    count(applied ? "feed applied" : "feed mismatch");
    compare_change(answer, applied);
  }

  void compare_change(const Result<ChangeAnswer>& answer, bool applied) {
    if (!answer) return differ("a change", "not answered", "answered");
    expect_position(answer->position);
    expect("applied", answer->applied, applied);
    expect("A", answer->feed_position, model_.feed_position);
    expect("the source", answer->source_id, model_.source);
  }

  void read() {
    note("reads the state");
    const auto answer = state_answer(script(read_step(names_)));
    if (!answer) return differ("a reading", "not answered", "answered");
    expect_position(answer->position);
    expect("A", answer->feed_position, model_.feed_position);
    expect("the source", answer->source_id, model_.source);
    expect("the heartbeat", static_cast<N>(answer->heartbeat), model_.heartbeat);
  }

  void history() {
    const N after = model_.n - std::min<N>(model_.n, random_.below(6));
    const N most = pick(4);
    note(fmt::format("reads the history after {}, {} at most", after, most));
    const auto answer =
        history_answer(script(history_step(names_, after, static_cast<unsigned>(most))));
    if (!answer) return differ("the history", "not answered", "answered");
    std::vector<Engine::Message> ours;
    for (const Engine::Message& message : model_.stream)
      if (message.n > after && ours.size() < most) ours.push_back(message);
    expect("the length of the history", answer->size(), ours.size());
    for (std::size_t i = 0; i < ours.size() && i < answer->size(); ++i)
      compare_message((*answer)[i], ours[i]);
  }

  void epoch_begin() {
    const N source = chance(50) ? 0 : some_source();
    note(fmt::format("an epoch begins, of source {}", source));
    model_.epoch_begin(++marks_, source);
    const auto answer =
        change_answer(script(epoch_begin_step(names_, fmt::format("m{}", marks_), source)));
    compare_change(answer, true);
  }

  void epoch_write() {
    const N mark = chance(90) ? model_.mark : marks_ + 1;
    const N floor = next_x_ - std::min<N>(next_x_ - 1, random_.below(10));
    position_ += pick(3);
    const N source = some_source();
    const N beat = static_cast<N>(kPast) + 1;
    note(fmt::format("epoch {} is written: mark {}, F {}, A {}", epochs_ + 1, mark, floor,
                     position_));
    const auto answer =
        change_answer(script(epoch_write_step(names_, {.mark = fmt::format("m{}", mark),
                                                       .epoch = epoch_name(epochs_ + 1),
                                                       .floor = floor,
                                                       .feed_position = position_,
                                                       .source_id = source,
                                                       .heartbeat = static_cast<TimeUs>(beat)})));
    const bool written = mark != 0 && model_.epoch_write(mark, epochs_ + 1, floor, position_,
                                                         source, beat, setting_.rules, messages_);
    if (written) ++epochs_;
    count(written ? "epoch written" : "epoch refused");
    compare_change(answer, written);
  }

  void fault() {
    const auto dice = random_.below(20);
    if (dice < 1) {
      note("the state is lost");
      redis_.call({"DEL", names_.state()});
      model_.lose_state();
    } else if (dice < 2) {
      note("FLUSHALL");
      redis_.call({"FLUSHALL"});
      model_.lose_everything();
    } else {
      const N schema = pick(kSchemas);
      const N key = pick(kKeys);
      const bool entry = dice < 11;
      note(fmt::format("{} of {} {} goes", entry ? "the entry" : "the ticket", schema, key));
      redis_.call({"DEL", entry ? names_.entry(schema_name(schema), key_name(key))
                                : names_.ticket(schema_name(schema), key_name(key))});
      entry ? model_.drop_entry(schema, key) : model_.drop_ticket(schema, key);
    }
  }

  // ---- after each step ----

  void compare_message(const Message& theirs, const Engine::Message& ours) {
    expect("the message's kind", static_cast<int>(theirs.kind), static_cast<int>(ours.kind));
    expect("the message's epoch", theirs.position.epoch, epoch_name(ours.epoch));
    expect("the message's server", theirs.position.replid, replid_);
    expect("the message's n", theirs.position.n, ours.n);
    expect("the message's heartbeat", static_cast<N>(theirs.heartbeat), ours.heartbeat);
    expect("the message's x", theirs.x, ours.x);
    std::vector<std::string> keys, tags;
    for (const N key : ours.keys) keys.push_back(key_name(key));
    for (const N tag : ours.tags) tags.push_back(tag_name(tag));
    expect("the message's keys", fmt::format("{}", fmt::join(theirs.keys, ",")),
           fmt::format("{}", fmt::join(keys, ",")));
    expect("the message's tags", fmt::format("{}", fmt::join(theirs.tags, ",")),
           fmt::format("{}", fmt::join(tags, ",")));
  }

  void compare_messages() {
    redis_.call({"PUBLISH", names_.channel(), "end"});
    std::size_t at = 0;
    for (;; ++at) {
      const wire::Reply reply = parse(listener_.receive());
      if (reply.elements.size() != 3) return differ("a message", "of another form", "not");
      if (reply.elements[2].text == "end") break;
      const auto message = parse_message(reply.elements[2].text);
      if (!message || at >= messages_.size()) {
        differ("a message", reply.elements[2].text, "not sent");
        continue;
      }
      compare_message(*message, messages_[at]);
      if (message->kind == Message::Kind::change)
        expect("the message's commit", message->committed_at, committed_);
    }
    expect("the number of messages", at, messages_.size());
  }

  std::string tombstone_text(const Engine::Tombstone& t) const {
    return fmt::format("{};{};{}",
                       t.collapsed == 0 ? std::string("-1") : std::to_string(t.collapsed), t.stamp,
                       fmt::join(t.xs, ","));
  }

  void compare_state() {
    std::map<std::string, std::string> ours;
    const auto put = [&](const char* field, N value) {
      if (value != 0) ours[field] = std::to_string(value);
    };
    if (model_.epoch != 0) ours["e"] = epoch_name(model_.epoch);
    if (model_.mark != 0) ours["mark"] = fmt::format("m{}", model_.mark);
    put("src", model_.source);
    put("F", model_.floor);
    put("Ft", model_.tag_floor);
    put("Fn", model_.stamp_floor);
    put("A", model_.feed_position);
    put("H", model_.heartbeat);
    put("n", model_.n);
    put("tn", model_.tombstones.size());
    put("tl", model_.looked_at);
    for (const N schema : model_.versions)
      ours["v"] += fmt::format("\n{}\n{}\n", names_.entry(schema_name(schema), ""),
                               names_.ticket(schema_name(schema), ""));
    for (const Engine::Tombstone& t : model_.tombstones)
      ours[(t.tag ? "t:" + tag_name(t.id) : "k:" + key_name(t.id))] = tombstone_text(t);
    std::map<std::string, std::string> theirs;
    const wire::Reply all = parse(redis_.call({"HGETALL", names_.state()}));
    for (std::size_t i = 0; i + 1 < all.elements.size(); i += 2)
      if (all.elements[i + 1].text != "0")  // 0 is the same as nothing
        theirs[all.elements[i].text] = all.elements[i + 1].text;
    if (theirs != ours) differ("the state hash", show(theirs), show(ours));

    for (const Engine::Entry& entry : model_.entries) {
      const StoredEntry s = stored(entry);
      std::string header =
          fmt::format("{} {} 0 {} {} {} {} {} {} {} {} {} {}", epoch_name(entry.epoch),
                      entry.ticket_n, s.load_us, s.ttl_us, s.as_of, s.soft_expiry, s.useless_at,
                      s.snapshot.xmin, s.snapshot.xmax, s.snapshot.source_id,
                      s.snapshot.in_progress.empty()
                          ? "-"
                          : fmt::format("{}", fmt::join(s.snapshot.in_progress, ",")),
                      s.tags.size());
      for (const std::string& tag : s.tags) header += fmt::format(" {}:{}", tag.size(), tag);
      expect(
          "an entry",
          parse(redis_.call({"GET", names_.entry(schema_name(entry.schema), key_name(entry.key))}))
              .text,
          fmt::format("{}\n{}{}", header.size(), header, s.value));
    }
    for (const Engine::Ticket& ticket : model_.tickets)
      expect("a ticket",
             parse(redis_.call(
                       {"GET", names_.ticket(schema_name(ticket.schema), key_name(ticket.key))}))
                 .text,
             fmt::format("{}{} {} {}", ticket.waits ? 1 : 0, token_name(ticket.token),
                         epoch_name(ticket.epoch), ticket.n));
    // And nothing else.
    const auto keys = parse(redis_.call({"DBSIZE"})).integer;
    expect("the number of keys", static_cast<std::size_t>(keys),
           model_.entries.size() + model_.tickets.size() + (model_.records() ? 1 : 0) +
               (model_.stream.empty() ? 0 : 1));
  }

  static std::string show(const std::map<std::string, std::string>& fields) {
    std::string text;
    for (const auto& [field, value] : fields) text += fmt::format(" {}={}", field, value);
    return text;
  }

  struct Held {
    N schema, key, token, epoch;
  };
  static constexpr N kSource = 18'000'000'000'000'000'001ULL;  // above 2^63: never a Lua number
  static constexpr N kOther = 18'000'000'000'000'000'002ULL;   // as a double the same

  Connection& redis_;
  Connection& listener_;
  const Setting& setting_;
  Random random_;
  Names names_{"larder", "shop", 3, 64};
  Engine model_;
  N next_x_;
  N position_;
  N tokens_ = 0, values_ = 0, marks_ = 0, epochs_ = 0;
  std::deque<Held> held_;                  // tickets that were given
  std::vector<Engine::Message> messages_;  // of this step, as the model would send them
  TimeUs committed_ = 0;
  std::string replid_;
  std::deque<std::string> lines_;
  std::string differs_;
  std::map<std::string, int> outcomes_;
};

class EngineDifferential : public real::WithRedis<::testing::Test> {
 protected:
  void SetUp() override {
    WithRedis::SetUp();
    if (!redis_) return;
    listener_ = std::make_unique<Connection>(*server_);
    ASSERT_TRUE(listener_->connected());
    listener_->call({"SUBSCRIBE", Names("larder", "shop", 3, 64).channel()});
  }
  static std::vector<Setting> settings() {
    constexpr N kBig = N{1} << 52;
    return {
        {.bounds = {.tombstones = 4, .most_tombstones = 6}},
        {.bounds = {.tombstones = 2, .most_tombstones = 7}, .first_position = N{1} << 60},
        {.bounds = {.tombstones = 3, .most_tombstones = 3}, .first_x = kBig},
        {.bounds = {}},
    };
  }
  std::unique_ptr<Connection> listener_;
};

TEST_F(EngineDifferential, TheScriptsDoWhatTheModelSays) {
  std::map<std::string, int> outcomes;
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    Setting setting = settings()[seed % 4];
    setting.seed = seed;
    Pair pair(*redis_, *listener_, setting);
    ASSERT_EQ(pair.run(250), "");
    for (const auto& [outcome, times] : pair.outcomes()) outcomes[outcome] += times;
  }
  for (const auto& [outcome, times] : outcomes) std::printf("%-20s %6d\n", outcome.c_str(), times);
  // Whatever can be answered was answered, more than once.
  for (const char* outcome :
       {"lookup 0", "lookup 1", "lookup 2", "lookup 3", "fill none", "fill no_state", "fill epoch",
        "fill ticket", "fill source", "fill floor", "fill tombstone", "fill tag", "fill later",
        "feed applied", "feed mismatch", "epoch written", "epoch refused"})
    EXPECT_GT(outcomes[outcome], 5) << outcome;
}

// The comparison has teeth: a model with a rule less disagrees with the scripts.
TEST_F(EngineDifferential, AModelWithARuleLessDisagrees) {
  using model::Rules;
  const std::vector<std::pair<const char*, Rules>> fewer{
      {"most_x", {.most_x = 7}},
      {"every_x", {.every_x = false}},
      {"collapsed_below", {.collapsed_below = false}},
      {"ticket", {.ticket = false}},
      {"fill_epoch", {.fill_epoch = false}},
      {"entry_epoch", {.entry_epoch = false}},
      {"source", {.source = false}},
      {"floor", {.floor = false}},
      {"tombstone", {.tombstone = false}},
      {"tag_at_fill", {.tag_at_fill = false}},
      {"tag_at_lookup", {.tag_at_lookup = false}},
      {"tag_floor", {.tag_floor = false}},
      {"stamp", {.stamp = false}},
      {"stamp_floor", {.stamp_floor = false}},
      {"key_at_lookup", {.key_at_lookup = false}},
      {"later", {.later = false}},
      {"position", {.position = false}},
      {"mark", {.mark = false}},
      {"change_source", {.change_source = false}},
      {"versions", {.versions = false}},
  };
  for (const auto& [name, rules] : fewer) {
    std::string differs;
    for (std::uint64_t seed = 1; seed <= 40 && differs.empty(); ++seed) {
      Setting setting = settings()[seed % 4];
      setting.seed = seed;
      setting.rules = rules;
      Pair pair(*redis_, *listener_, setting);
      differs = pair.run(250);
    }
    EXPECT_NE(differs, "") << name << " is not noticed";
  }
}

}  // namespace
}  // namespace larder::engine::redis
