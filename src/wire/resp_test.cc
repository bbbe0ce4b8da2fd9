#include "wire/resp.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/random.h"

namespace larder::wire {
namespace {

using Status = CommandParser::Status;
using testing::ElementsAre;
using testing::IsEmpty;
using Command = std::vector<std::string>;

Command copy(const CommandParser& parser) { return {parser.args().begin(), parser.args().end()}; }

// All commands in `input`, fed in pieces that end at `cuts`; a last element "!text" is an error.
std::vector<Command> parse_cut(std::string_view input, const std::vector<std::size_t>& cuts,
                               const Limits& limits = {}) {
  std::vector<Command> commands;
  CommandParser parser(limits);
  std::size_t begin = 0;
  for (std::size_t cut : cuts) {
    for (;;) {
      // A copy of its own for each call: the parser must not keep pointers into an older one.
      const std::string piece(input.substr(begin, cut - begin));
      const Status status = parser.next(piece);
      if (status == Status::error) {
        commands.push_back({"!" + parser.error()});
        return commands;
      }
      if (status == Status::incomplete) break;
      commands.push_back(copy(parser));
      begin += parser.consumed();
    }
  }
  return commands;
}

std::vector<Command> parse_all(std::string_view input, const Limits& limits = {}) {
  return parse_cut(input, {input.size()}, limits);
}

std::string parse_error(std::string_view input, const Limits& limits = {}) {
  const auto commands = parse_all(input, limits);
  if (commands.empty() || commands.back().size() != 1) return "no error";
  return commands.back()[0];
}

std::string array_of(const Command& words) {
  std::string out;
  const std::vector<std::string_view> views(words.begin(), words.end());
  write_command(out, views);
  return out;
}

TEST(CommandParser, ParsesArraysOfBulks) {
  EXPECT_THAT(parse_all("*2\r\n$3\r\nGET\r\n$5\r\nhello\r\n"),
              ElementsAre(Command{"GET", "hello"}));
  EXPECT_THAT(parse_all("*1\r\n$0\r\n\r\n"), ElementsAre(Command{""}));
  EXPECT_THAT(parse_all("*1\r\n$4\r\n\r\n\r\n\r\n"), ElementsAre(Command{"\r\n\r\n"}));
}

TEST(CommandParser, EmptyCommandsAreComplete) {
  EXPECT_THAT(parse_all("*0\r\n*-1\r\n\r\n  \n"),
              ElementsAre(Command{}, Command{}, Command{}, Command{}));
}

TEST(CommandParser, ReportsWhatItConsumed) {
  CommandParser parser;
  const std::string input = "*1\r\n$4\r\nPING\r\n*1\r\n";
  ASSERT_EQ(parser.next(input), Status::complete);
  EXPECT_EQ(parser.consumed(), 14u);
  ASSERT_EQ(parser.next(std::string_view(input).substr(14)), Status::incomplete);
}

TEST(CommandParser, ArgumentsAreViewsIntoTheBuffer) {
  CommandParser parser;
  const std::string input = array_of({"SET", "k", std::string(20'000, 'v')});
  ASSERT_EQ(parser.next(input), Status::complete);
  for (const auto arg : parser.args()) {
    EXPECT_GE(arg.data(), input.data());
    EXPECT_LE(arg.data() + arg.size(), input.data() + input.size());
  }
}

TEST(CommandParser, InlineCommandsFollowRedisQuoting) {
  EXPECT_THAT(parse_all("PING\r\n"), ElementsAre(Command{"PING"}));
  EXPECT_THAT(parse_all("  SET a\tb  \n"), ElementsAre(Command{"SET", "a", "b"}));
  EXPECT_THAT(parse_all("SET \"a b\" 'c d'\r\n"), ElementsAre(Command{"SET", "a b", "c d"}));
  EXPECT_THAT(parse_all(R"(ECHO "\n\r\t\b\a\\\"\q\x41\xfF\xZZ")"
                        "\r\n"),
              ElementsAre(Command{"ECHO", "\n\r\t\b\a\\\"qA\xffxZZ"}));
  EXPECT_THAT(parse_all(R"(ECHO 'it\'s \n')"
                        "\r\n"),
              ElementsAre(Command{"ECHO", "it's \\n"}));
  EXPECT_THAT(parse_all("ECHO foo\"bar baz\"\r\n"), ElementsAre(Command{"ECHO", "foobar baz"}));
  EXPECT_THAT(parse_all("ECHO \"\" ''\r\n"), ElementsAre(Command{"ECHO", "", ""}));
  EXPECT_THAT(parse_all(std::string_view("A B\0C D\r\n", 9)), ElementsAre(Command{"A", "B"}));
}

TEST(CommandParser, UnbalancedQuotesAreAnError) {
  for (const char* line :
       {"A \"b\r\n", "A 'b\r\n", "A \"b\"c\r\n", "A 'b'c\r\n", "A \"b\\\"\r\n"}) {
    EXPECT_EQ(parse_error(line), "!Protocol error: unbalanced quotes in request") << line;
  }
}

TEST(CommandParser, ErrorTextsAreThoseOfRedis) {
  const std::pair<const char*, const char*> cases[] = {
      {"*x\r\n", "invalid multibulk length"},
      {"*\r\n", "invalid multibulk length"},
      {"*+1\r\n", "invalid multibulk length"},
      {"*01\r\n", "invalid multibulk length"},
      {"* 1\r\n", "invalid multibulk length"},
      {"*-0\r\n", "invalid multibulk length"},
      {"*1048577\r\n", "invalid multibulk length"},
      {"*99999999999999999999\r\n", "invalid multibulk length"},
      {"*1\r\nxyz\r\n", "expected '$', got 'x'"},
      {"*1\r\n:1\r\n", "expected '$', got ':'"},
      {"*1\r\n$-1\r\n", "invalid bulk length"},
      {"*1\r\n$\r\n", "invalid bulk length"},
      {"*1\r\n$1a\r\n", "invalid bulk length"},
      {"*1\r\n$00\r\n", "invalid bulk length"},
      {"*1\r\n$536870913\r\n", "invalid bulk length"},
  };
  for (const auto& [input, text] : cases) {
    EXPECT_EQ(parse_error(input), std::string("!Protocol error: ") + text) << input;
  }
}

TEST(CommandParser, LinesHaveALimit) {
  const std::string longer(65'537, '1');
  const std::string just(65'536, 'a');
  EXPECT_EQ(parse_error(std::string(65'537, 'a')), "!Protocol error: too big inline request");
  EXPECT_EQ(parse_error(std::string(65'537, 'a') + "\r\n"),
            "!Protocol error: too big inline request");
  EXPECT_THAT(parse_all(just), IsEmpty());
  EXPECT_EQ(parse_error("*" + longer), "!Protocol error: too big mbulk count string");
  EXPECT_EQ(parse_error("*" + longer + "\r\n"), "!Protocol error: too big mbulk count string");
  EXPECT_EQ(parse_error("*1\r\n$" + longer), "!Protocol error: too big bulk count string");
}

TEST(CommandParser, LimitsHoldOnEveryPath) {
  const Limits arguments{.max_arguments = 2};
  EXPECT_THAT(parse_all(array_of({"a", "b"}), arguments), ElementsAre(Command{"a", "b"}));
  EXPECT_EQ(parse_error(array_of({"a", "b", "c"}), arguments),
            "!Protocol error: invalid multibulk length");
  EXPECT_EQ(parse_error("a b c\r\n", arguments), "!Protocol error: invalid multibulk length");

  const Limits bulk{.max_bulk_bytes = 3};
  EXPECT_THAT(parse_all(array_of({"abc"}), bulk), ElementsAre(Command{"abc"}));
  EXPECT_EQ(parse_error(array_of({"abcd"}), bulk), "!Protocol error: invalid bulk length");

  const Limits total{.max_command_bytes = 5};
  EXPECT_THAT(parse_all(array_of({"abc", "de"}), total), ElementsAre(Command{"abc", "de"}));
  EXPECT_EQ(parse_error(array_of({"abc", "def"}), total), "!Protocol error: invalid bulk length");
  // The total begins anew with each command.
  EXPECT_EQ(parse_all(array_of({"abc"}) + array_of({"def"}), total).size(), 2u);
}

TEST(CommandParser, AnErrorLasts) {
  CommandParser parser;
  EXPECT_EQ(parser.next("*x\r\n"), Status::error);
  EXPECT_EQ(parser.next("*1\r\n$4\r\nPING\r\n"), Status::error);
  EXPECT_EQ(parser.error(), "Protocol error: invalid multibulk length");
}

TEST(CommandParser, SaysHowMuchItWants) {
  CommandParser parser;
  std::string input = "*2\r\n$3\r\nSET\r\n$100000\r\n";
  ASSERT_EQ(parser.next(input), Status::incomplete);
  EXPECT_EQ(parser.wants(), input.size() + 100'002);
  input += std::string(100'000, 'v') + "\r\n";
  ASSERT_EQ(parser.next(input), Status::complete);
  ASSERT_EQ(parser.next("*1\r\n"), Status::incomplete);
  EXPECT_EQ(parser.wants(), 0u);
}

TEST(CommandParser, AClaimAllocatesNothing) {
  // A million connections may claim this much; each costs as much as it has sent.
  CommandParser parser;
  ASSERT_EQ(parser.next("*1048576\r\n$536870912\r\n"), Status::incomplete);
  EXPECT_TRUE(parser.args().empty());
}

// Everything that a connection may see, in one stream.
std::string sample_stream() {
  return array_of({"GET", "k"}) + "PING\r\n" + array_of({"SET", "key", std::string(300, 'x'), ""}) +
         "*0\r\n\r\nSET \"a\\x41\" 'b'\n" + array_of(Command(40, "argument")) +
         "*3\r\n$3\r\nSET\r\n$2\r\n\r\n\r\n$1\r\n$\r\n";
}

TEST(CommandParser, EverySplitPoint) {
  const std::string input = sample_stream();
  const auto whole = parse_all(input);
  ASSERT_EQ(whole.size(), 8u);
  for (std::size_t cut = 0; cut <= input.size(); ++cut) {
    ASSERT_EQ(parse_cut(input, {cut, input.size()}), whole) << cut;
  }
  std::vector<std::size_t> each(input.size());
  for (std::size_t i = 0; i < each.size(); ++i) each[i] = i + 1;
  EXPECT_EQ(parse_cut(input, each), whole);
}

TEST(CommandParser, ErrorsAtEverySplitPoint) {
  for (const std::string input :
       {"*1\r\n$x\r\n", "*1\r\n$3\r\nabc\r\n*z\r\n", "*2\r\n$1\r\na\r\n?", "PING 'a\r\n"}) {
    const auto whole = parse_all(input);
    for (std::size_t cut = 0; cut <= input.size(); ++cut) {
      ASSERT_EQ(parse_cut(input, {cut, input.size()}), whole) << input << cut;
    }
  }
}

TEST(CommandParser, RandomCommandsInRandomPieces) {
  Random random(7);
  for (int round = 0; round < 200; ++round) {
    std::vector<Command> commands;
    std::string input;
    for (std::uint64_t n = random.below(5) + 1; n > 0; --n) {
      Command command;
      for (std::uint64_t m = random.below(50) + 1; m > 0; --m) {
        std::string word(random.chance(0.05) ? random.below(30'000) : random.below(20), '\0');
        for (char& c : word) c = static_cast<char>(random.next());
        command.push_back(std::move(word));
      }
      input += array_of(command);
      commands.push_back(std::move(command));
    }
    std::vector<std::size_t> cuts;
    for (std::size_t at = 0; at < input.size();) {
      at = std::min(input.size(), at + random.below(5'000) + 1);
      cuts.push_back(at);
    }
    ASSERT_EQ(parse_cut(input, cuts), commands);
  }
}

// --- Writer and replies ---

Reply must_parse(std::string_view data) {
  std::size_t consumed = 0;
  std::string error;
  auto reply = parse_reply(data, consumed, error);
  EXPECT_TRUE(reply.has_value()) << data << ": " << error;
  EXPECT_EQ(consumed, data.size());
  return reply ? std::move(*reply) : Reply{};
}

std::string reply_error(std::string_view data, const Limits& limits = {}) {
  std::size_t consumed = 0;
  std::string error;
  const auto reply = parse_reply(data, consumed, error, limits);
  EXPECT_FALSE(reply.has_value()) << data;
  return error;
}

template <class F>
std::string written(int protocol, F&& write) {
  std::string out;
  Writer writer(out, protocol);
  write(writer);
  return out;
}

TEST(Writer, WritesBothProtocols) {
  struct {
    std::function<void(Writer&)> write;
    const char* resp2;
    const char* resp3;
  } const cases[] = {
      {[](Writer& w) { w.ok(); }, "+OK\r\n", "+OK\r\n"},
      {[](Writer& w) { w.simple("PONG"); }, "+PONG\r\n", "+PONG\r\n"},
      {[](Writer& w) { w.error("ERR a\r\nb"); }, "-ERR a  b\r\n", "-ERR a  b\r\n"},
      {[](Writer& w) { w.integer(7); }, ":7\r\n", ":7\r\n"},
      {[](Writer& w) { w.integer(10); }, ":10\r\n", ":10\r\n"},
      {[](Writer& w) { w.integer(INT64_MIN); }, ":-9223372036854775808\r\n",
       ":-9223372036854775808\r\n"},
      {[](Writer& w) { w.bulk(""); }, "$0\r\n\r\n", "$0\r\n\r\n"},
      {[](Writer& w) { w.bulk("0123456789"); }, "$10\r\n0123456789\r\n", "$10\r\n0123456789\r\n"},
      {[](Writer& w) { w.null(); }, "$-1\r\n", "_\r\n"},
      {[](Writer& w) { w.null_array(); }, "*-1\r\n", "_\r\n"},
      {[](Writer& w) { w.array(3); }, "*3\r\n", "*3\r\n"},
      {[](Writer& w) { w.map(6); }, "*12\r\n", "%6\r\n"},
      {[](Writer& w) { w.set(1); }, "*1\r\n", "~1\r\n"},
      {[](Writer& w) { w.push(2); }, "*2\r\n", ">2\r\n"},
      {[](Writer& w) { w.real(1.5); }, "$3\r\n1.5\r\n", ",1.5\r\n"},
      {[](Writer& w) { w.real(-3); }, "$2\r\n-3\r\n", ",-3\r\n"},
      {[](Writer& w) { w.real(-INFINITY); }, "$4\r\n-inf\r\n", ",-inf\r\n"},
      {[](Writer& w) { w.real(-NAN); }, "$3\r\nnan\r\n", ",nan\r\n"},
      {[](Writer& w) { w.boolean(true); }, ":1\r\n", "#t\r\n"},
      {[](Writer& w) { w.boolean(false); }, ":0\r\n", "#f\r\n"},
      {[](Writer& w) { w.verbatim("hi"); }, "$2\r\nhi\r\n", "=6\r\ntxt:hi\r\n"},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(written(2, c.write), c.resp2);
    EXPECT_EQ(written(3, c.write), c.resp3);
  }
}

void write_everything(Writer& w) {
  w.array(10);
  w.simple("OK");
  w.error("ERR no");
  w.integer(-12);
  w.bulk(std::string_view("a\r\n\0b", 5));
  w.null();
  w.map(1);
  w.bulk("k");
  w.real(0.1);
  w.set(1);
  w.boolean(true);
  w.verbatim("text");
  w.null_array();
  w.push(0);
}

TEST(Reply, RoundTripInResp3) {
  using enum Reply::Type;
  const Reply reply = must_parse(written(3, write_everything));
  ASSERT_EQ(reply.type, array);
  std::vector<Reply::Type> types;
  for (const Reply& e : reply.elements) types.push_back(e.type);
  EXPECT_THAT(types,
              ElementsAre(simple, error, integer, bulk, null, map, set, verbatim, null, push));
  EXPECT_EQ(reply.elements[2].integer, -12);
  EXPECT_EQ(reply.elements[3].text, std::string("a\r\n\0b", 5));
  ASSERT_EQ(reply.elements[5].elements.size(), 2u);
  EXPECT_EQ(reply.elements[5].elements[1].real, 0.1);
  EXPECT_EQ(reply.elements[6].elements[0].type, boolean);
  EXPECT_EQ(reply.elements[6].elements[0].integer, 1);
  EXPECT_EQ(reply.elements[7].text, "text");
}

TEST(Reply, RoundTripInResp2) {
  using enum Reply::Type;
  const Reply reply = must_parse(written(2, write_everything));
  std::vector<Reply::Type> types;
  for (const Reply& e : reply.elements) types.push_back(e.type);
  EXPECT_THAT(types,
              ElementsAre(simple, error, integer, bulk, null, array, array, bulk, null, array));
  EXPECT_EQ(reply.elements[5].elements[1].text, "0.1");
}

TEST(Reply, DoublesSurvive) {
  Random random(1);
  for (int i = 0; i < 1'000; ++i) {
    const double value = std::bit_cast<double>(random.next());
    if (std::isnan(value)) continue;
    EXPECT_EQ(must_parse(written(3, [&](Writer& w) { w.real(value); })).real, value);
  }
  EXPECT_TRUE(std::isnan(must_parse(",nan\r\n").real));
}

TEST(Reply, WhatOnlyServersSend) {
  EXPECT_EQ(must_parse("(3492890328409238509324850943850943825024385\r\n").type,
            Reply::Type::big_number);
  EXPECT_EQ(must_parse("!5\r\nERR x\r\n").type, Reply::Type::error);
  EXPECT_EQ(must_parse(":+5\r\n").integer, 5);
  const Reply behind_attribute = must_parse("|1\r\n+ttl\r\n:3600\r\n$1\r\nv\r\n");
  EXPECT_EQ(behind_attribute.type, Reply::Type::bulk);
  EXPECT_EQ(behind_attribute.text, "v");
}

TEST(Reply, EverySplitPointIsIncomplete) {
  for (int protocol : {2, 3}) {
    const std::string data = written(protocol, write_everything);
    for (std::size_t cut = 0; cut < data.size(); ++cut) {
      EXPECT_EQ(reply_error(data.substr(0, cut)), "") << cut;
    }
  }
}

TEST(Reply, MalformedIsAnError) {
  for (const char* data :
       {"x\r\n", "\r\n", ":a\r\n", ":\r\n", "$-2\r\n", "$a\r\n", "*-2\r\n", "%-1\r\n", "#x\r\n",
        "_x\r\n", ",1,5\r\n", "=2\r\nab\r\n", "$1\r\nabc\r\n", "+a\rb\r\n", "$536870913\r\n",
        "*1048577\r\n", "*1\r\n?\r\n"}) {
    EXPECT_NE(reply_error(data), "") << data;
  }
}

TEST(Reply, LimitsHold) {
  std::string nested;
  for (int i = 0; i < 31; ++i) nested += "*1\r\n";
  EXPECT_EQ(must_parse(nested + ":1\r\n").type, Reply::Type::array);
  EXPECT_NE(reply_error("*1\r\n" + nested + ":1\r\n"), "");
  EXPECT_NE(reply_error(std::string(70'000, '+')), "");
  EXPECT_NE(reply_error("$4\r\nabcd\r\n", {.max_bulk_bytes = 3}), "");
  EXPECT_NE(reply_error("*3\r\n", {.max_arguments = 2}), "");
  std::string attributes;
  for (int i = 0; i < 100; ++i) attributes += "|0\r\n";
  EXPECT_NE(reply_error(attributes + ":1\r\n"), "");
}

}  // namespace
}  // namespace larder::wire
