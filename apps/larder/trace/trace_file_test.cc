#include "trace/trace_file.h"

#include <gtest/gtest.h>
#include <zstd.h>

#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "base/random.h"

namespace larder::trace {
namespace {

std::string records(std::size_t count, std::uint64_t seed = 1) {
  Random random(seed);
  std::string bytes;
  for (std::size_t i = 0; i < 8 * count; ++i)
    bytes.push_back(static_cast<char>(random.next() >> (i % 3)));
  return bytes;
}

std::string zipped(const std::string& bytes) {
  std::string result(ZSTD_compressBound(bytes.size()), '\0');
  result.resize(ZSTD_compress(result.data(), result.size(), bytes.data(), bytes.size(), 3));
  return result;
}

std::string as_bytes(std::span<const Request> requests) {
  std::string bytes;
  for (const Request& request : requests)
    for (const std::uint32_t number : {request.key, request.size})
      for (unsigned shift = 0; shift < 32; shift += 8)
        bytes.push_back(static_cast<char>(number >> shift));
  return bytes;
}

struct Outcome {
  std::string bytes;  // of all requests that were read
  std::string error;
};

Outcome read_all(TraceFile file) {
  Outcome outcome;
  while (true) {
    const auto requests = file.next();
    if (!requests) {
      outcome.error = requests.error().message;
      return outcome;
    }
    if (requests->empty()) return outcome;
    outcome.bytes += as_bytes(*requests);
  }
}
Outcome read_all(const std::string& bytes) { return read_all(TraceFile::of_memory(bytes)); }

TEST(TraceFile, NumbersAreLittleEndian) {
  const std::string bytes("\x01\x02\x03\x04\xff\x00\x00\x80", 8);
  TraceFile file = TraceFile::of_memory(bytes);
  const auto requests = file.next();
  ASSERT_TRUE(requests);
  ASSERT_EQ(requests->size(), 1U);
  EXPECT_EQ(requests->front().key, 0x04030201U);
  EXPECT_EQ(requests->front().size, 0x800000ffU);
  const auto end = file.next();
  ASSERT_TRUE(end);
  EXPECT_TRUE(end->empty());
}

TEST(TraceFile, PlainAndCompressedAreTheSame) {
  for (const std::size_t count : {1U, 2U, 65535U, 65536U, 65537U, 300000U}) {
    const std::string bytes = records(count);
    for (const std::string& file : {bytes, zipped(bytes)}) {
      const Outcome outcome = read_all(file);
      EXPECT_EQ(outcome.error, "");
      EXPECT_TRUE(outcome.bytes == bytes) << count;
    }
  }
}

TEST(TraceFile, LongRunsOfTheSameInflateInPieces) {
  const std::string bytes(8'000'000, '\7');
  const std::string file = zipped(bytes);
  ASSERT_LT(file.size(), 10'000U);
  const Outcome outcome = read_all(file);
  EXPECT_EQ(outcome.error, "");
  EXPECT_TRUE(outcome.bytes == bytes);
}

TEST(TraceFile, TheSizeOfTheChunksDoesNotMatter) {
  const std::string bytes = records(40);
  for (const std::string& file : {bytes, zipped(bytes), zipped(bytes) + zipped(bytes)}) {
    const std::string expected = read_all(file).bytes;
    for (std::size_t chunk = 1; chunk <= file.size(); ++chunk) {
      const Outcome outcome = read_all(TraceFile::of_memory(file, chunk));
      ASSERT_EQ(outcome.error, "") << chunk;
      ASSERT_EQ(outcome.bytes, expected) << chunk;
    }
  }
}

TEST(TraceFile, SeveralFramesAreOneTrace) {
  const std::string first = records(1000, 1);
  const std::string second = records(70000, 2);
  const Outcome outcome = read_all(zipped(first) + zipped(second));
  EXPECT_EQ(outcome.error, "");
  EXPECT_TRUE(outcome.bytes == first + second);
}

TEST(TraceFile, ARecordMayLieAcrossFrames) {
  const std::string bytes = records(10);
  const Outcome outcome = read_all(zipped(bytes.substr(0, 13)) + zipped(bytes.substr(13)));
  EXPECT_EQ(outcome.error, "");
  EXPECT_TRUE(outcome.bytes == bytes);
}

TEST(TraceFile, APartOfARecordIsAnError) {
  const std::string bytes = records(3);
  for (std::size_t length = 1; length < bytes.size(); ++length) {
    const std::string cut = bytes.substr(0, length);
    for (const std::string& file : {cut, zipped(cut)}) {
      const Outcome outcome = read_all(file);
      EXPECT_EQ(outcome.bytes, cut.substr(0, length / 8 * 8));
      EXPECT_EQ(outcome.error.empty(), length % 8 == 0) << length << outcome.error;
    }
  }
}

TEST(TraceFile, ACompressedFileThatIsCutOffAnywhereIsAnError) {
  const std::string file = zipped(records(60));
  for (std::size_t length = 4; length < file.size(); ++length)
    EXPECT_NE(read_all(file.substr(0, length)).error, "") << length;
}

TEST(TraceFile, DamageIsAnErrorOrOtherRequestsButNoMore) {
  Random random(3);
  std::string bytes;
  for (int i = 0; i < 4000; ++i) bytes.push_back(static_cast<char>(random.below(4)));
  const std::string file = zipped(bytes);
  unsigned errors = 0;
  for (int i = 0; i < 500; ++i) {
    std::string damaged = file;
    damaged[4 + random.below(damaged.size() - 4)] ^= static_cast<char>(1 + random.below(255));
    const Outcome outcome = read_all(damaged);
    EXPECT_LE(outcome.bytes.size(), 1U << 20);
    errors += outcome.error.empty() ? 0 : 1;
  }
  EXPECT_GT(errors, 0U);
}

TEST(TraceFile, AnEmptyFileIsAnError) {
  EXPECT_NE(read_all("").error.find("holds no request"), std::string::npos);
  EXPECT_NE(read_all(zipped("")).error.find("holds no request"), std::string::npos);
}

TEST(TraceFile, AFrameThatWantsTooMuchMemoryIsRefused) {
  // A window of 2^31 bytes, asked for in the frame's header.
  const std::string file("\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00", 9);
  EXPECT_NE(read_all(file).error, "");
}

TEST(TraceFile, IsReadFromDisk) {
  const auto path = std::filesystem::path(testing::TempDir()) / "larder_trace_file_test.trace";
  const std::string bytes = records(100000);
  std::FILE* file = std::fopen(path.c_str(), "wb");
  ASSERT_NE(file, nullptr);
  std::fwrite(bytes.data(), 1, bytes.size(), file);
  std::fclose(file);
  auto opened = TraceFile::open(path);
  ASSERT_TRUE(opened);
  const Outcome outcome = read_all(std::move(*opened));
  EXPECT_EQ(outcome.error, "");
  EXPECT_TRUE(outcome.bytes == bytes);
  std::filesystem::remove(path);
  const auto gone = TraceFile::open(path);
  ASSERT_FALSE(gone);
  EXPECT_NE(gone.error().message.find("cannot be opened"), std::string::npos);
}

TEST(TraceFile, AFolderIsNoTrace) {
  auto opened = TraceFile::open(testing::TempDir());
  if (opened) EXPECT_NE(read_all(std::move(*opened)).error, "");
}

}  // namespace
}  // namespace larder::trace
