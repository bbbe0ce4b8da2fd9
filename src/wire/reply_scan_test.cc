#include "wire/reply_scan.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace larder::wire {
namespace {

using Status = ReplyScanner::Status;
using namespace std::string_literals;

std::string repeat(std::string_view text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

const std::vector<std::string>& replies() {
  static const std::vector<std::string> all = {
      "+OK\r\n",
      "+\r\n",
      "-ERR no\r\n",
      ":0\r\n",
      ":-12\r\n",
      ":+7\r\n",
      "_\r\n",
      "#t\r\n",
      "#f\r\n",
      ",1.5e3\r\n",
      ",inf\r\n",
      ",-inf\r\n",
      ",nan\r\n",
      "(123456789012345678901234\r\n",
      "$0\r\n\r\n",
      "$5\r\na\r\nbc\r\n",
      "$-1\r\n",
      "$4\r\n\0$1\r\r\n"s,
      "!7\r\nERR bad\r\n",
      "=7\r\ntxt:abc\r\n",
      "=4\r\nmkd:\r\n",
      "*0\r\n",
      "*-1\r\n",
      "%0\r\n",
      "~0\r\n",
      ">0\r\n",
      "*3\r\n:1\r\n$-1\r\n*-1\r\n",
      "%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n_\r\n",
      "~2\r\n#t\r\n,2\r\n",
      ">3\r\n+message\r\n$1\r\nc\r\n$2\r\nhi\r\n",
      "*2\r\n*2\r\n*0\r\n%0\r\n*1\r\n~1\r\n:1\r\n",
      "|1\r\n+ttl\r\n:9\r\n$1\r\nx\r\n",
      "|0\r\n|0\r\n*1\r\n|1\r\n|0\r\n+k\r\n*1\r\n:1\r\n:2\r\n",
      "*2\r\n|1\r\n+a\r\n+b\r\n*0\r\n:5\r\n",
      repeat("*1\r\n", 31) + ":1\r\n",
      repeat("|0\r\n", 32) + "+OK\r\n"};
  return all;
}

// In one piece; "" if it is no error.
std::string error_of(std::string_view input, const Limits& limits = {}) {
  ReplyScanner scanner(limits);
  const Status status = scanner.next(input);
  EXPECT_EQ(status == Status::error, !scanner.error().empty());
  return scanner.error();
}

Status status_of(std::string_view input, const Limits& limits = {}) {
  return ReplyScanner(limits).next(input);
}

TEST(ReplyScanner, EndsWhereParseReplyDoes) {
  for (const std::string& reply : replies()) {
    SCOPED_TRACE(reply);
    const std::string data = reply + "+next\r\n";
    ReplyScanner scanner;
    ASSERT_EQ(scanner.next(data), Status::complete) << scanner.error();
    EXPECT_EQ(scanner.consumed(), reply.size());
    std::size_t consumed = 0;
    std::string error;
    ASSERT_TRUE(parse_reply(data, consumed, error)) << error;
    EXPECT_EQ(scanner.consumed(), consumed);
  }
}

TEST(ReplyScanner, AnySplitPoint) {
  for (const std::string& reply : replies()) {
    SCOPED_TRACE(reply);
    for (std::size_t cut = 0; cut < reply.size(); ++cut) {
      ReplyScanner scanner;
      ASSERT_EQ(scanner.next(std::string(reply, 0, cut)), Status::incomplete) << cut;
      ASSERT_LE(scanner.wants(), reply.size());
      ASSERT_EQ(scanner.next(std::string(reply)), Status::complete) << cut;
      ASSERT_EQ(scanner.consumed(), reply.size());
    }
  }
}

TEST(ReplyScanner, ManyRepliesByteByByte) {
  ReplyScanner scanner;  // one for all: no state may stay behind
  for (int round = 0; round < 2; ++round) {
    for (const std::string& reply : replies()) {
      SCOPED_TRACE(reply);
      for (std::size_t n = 1; n < reply.size(); ++n) {
        ASSERT_EQ(scanner.next(std::string(reply, 0, n)), Status::incomplete) << n;
      }
      ASSERT_EQ(scanner.next(reply), Status::complete);
      ASSERT_EQ(scanner.consumed(), reply.size());
    }
  }
}

// What makes it linear: bytes of finished lines and bulks are not read again.
TEST(ReplyScanner, DoesNotLookBack) {
  ReplyScanner scanner;
  std::string data = "*500\r\n";
  for (int i = 0; i < 500; ++i) {
    ASSERT_EQ(scanner.next(data), Status::incomplete);
    data.assign(data.size(), '?');
    data += i % 2 == 0 ? "$3\r\nabc\r\n" : "*1\r\n:1\r\n";
  }
  ASSERT_EQ(scanner.next(data), Status::complete);
  EXPECT_EQ(scanner.consumed(), data.size());
}

TEST(ReplyScanner, WantsTheRestOfABulk) {
  ReplyScanner scanner;
  ASSERT_EQ(scanner.next("*1\r\n$100"), Status::incomplete);
  EXPECT_EQ(scanner.wants(), 0u);
  ASSERT_EQ(scanner.next("*1\r\n$100\r\nabc"), Status::incomplete);
  EXPECT_EQ(scanner.wants(), 4u + 6 + 100 + 2);
}

TEST(ReplyScanner, RefusesWhatIsMalformedAsParseReplyDoes) {
  const std::vector<std::string> bad = {"\r\n",
                                        "?\r\n",
                                        "OK\r\n",
                                        "+OK\rx",
                                        "+OK\r\r\n",
                                        ":\r\n",
                                        ":1x\r\n",
                                        ":01\r\n",
                                        ":-0\r\n",
                                        ":9223372036854775808\r\n",
                                        "_x\r\n",
                                        "#\r\n",
                                        "#true\r\n",
                                        ",\r\n",
                                        ",1.5x\r\n",
                                        "$\r\n",
                                        "$-2\r\n",
                                        "$1\r\nabc",
                                        "$1\r\na\rx",
                                        "!-1\r\n",
                                        "=-1\r\n",
                                        "=3\r\ntxt\r\n",
                                        "=5\r\ntext:\r\n",
                                        "*-2\r\n",
                                        "%-1\r\n",
                                        "~-1\r\n",
                                        ">-1\r\n",
                                        "|-1\r\n",
                                        "*1\r\n\r\n",
                                        "$?\r\n",
                                        "*?\r\n",
                                        "*2\r\n:1\r\n;1\r\n",
                                        "|1\r\n+a\r\n#x\r\n",
                                        repeat("*1\r\n", 32),
                                        repeat("|1\r\n", 32),
                                        repeat("|0\r\n", 33),
                                        "$18446744073709551616\r\n"};
  for (const std::string& input : bad) {
    SCOPED_TRACE(input);
    std::size_t consumed = 0;
    std::string error;
    EXPECT_FALSE(parse_reply(input, consumed, error));
    EXPECT_NE(error, "");
    EXPECT_EQ(error_of(input), error);
    ReplyScanner scanner;
    Status status = Status::incomplete;
    for (std::size_t n = 1; n <= input.size() && status == Status::incomplete; ++n) {
      status = scanner.next(std::string(input, 0, n));
    }
    EXPECT_EQ(status, Status::error);
    EXPECT_EQ(scanner.error(), error);
    EXPECT_EQ(scanner.next("+OK\r\n"), Status::error);  // stays so
  }
}

TEST(ReplyScanner, Limits) {
  const Limits limits{
      .max_arguments = 2, .max_bulk_bytes = 10, .max_inline_bytes = 8, .max_command_bytes = 20};
  EXPECT_EQ(status_of("*2\r\n:1\r\n:2\r\n", limits), Status::complete);
  EXPECT_EQ(error_of("*3\r\n", limits), "Protocol error: invalid multibulk length");
  EXPECT_EQ(error_of("|3\r\n", limits), "Protocol error: invalid multibulk length");
  EXPECT_EQ(status_of("$10\r\n0123456789\r\n", limits), Status::complete);
  EXPECT_EQ(error_of("$11\r\n", limits), "Protocol error: invalid bulk length");
  EXPECT_EQ(status_of("+1234567\r\n", limits), Status::complete);
  EXPECT_EQ(status_of("+1234567", limits), Status::incomplete);
  EXPECT_EQ(error_of("+12345678", limits), "Protocol error: too big reply line");
  // 20 bytes in whole, and one more: by a line, and by a bulk.
  EXPECT_EQ(status_of("*2\r\n+23456\r\n+23456\r\n", limits), Status::complete);
  EXPECT_EQ(error_of("*2\r\n+23456\r\n+234567\r\n", limits), "Protocol error: too big reply");
  EXPECT_EQ(status_of("*1\r\n*1\r\n$6\r\n123456\r\n", limits), Status::complete);
  EXPECT_EQ(error_of("*1\r\n*1\r\n$7\r\n", limits), "Protocol error: too big reply");
}

}  // namespace
}  // namespace larder::wire
