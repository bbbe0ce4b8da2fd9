#include "obs/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <thread>

namespace larder::obs {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(Counter, SumsWhatAllThreadsAdded) {
  Counter counter;
  std::vector<std::jthread> threads;
  for (int t = 0; t < 12; ++t)  // more than there are stripes
    threads.emplace_back([&counter] {
      for (int i = 0; i < 10'000; ++i) counter.add();
    });
  threads.clear();
  counter.add(5);
  EXPECT_EQ(counter.value(), 120'005U);
}

TEST(Histogram, BucketsEndAtPowersOfTwo) {
  EXPECT_EQ(Histogram::bucket_of(-5), 0U);
  EXPECT_EQ(Histogram::bucket_of(0), 0U);
  EXPECT_EQ(Histogram::bucket_of(1), 0U);
  EXPECT_EQ(Histogram::bucket_of(2), 1U);
  EXPECT_EQ(Histogram::bucket_of(3), 2U);
  EXPECT_EQ(Histogram::bucket_of(4), 2U);
  EXPECT_EQ(Histogram::bucket_of(5), 3U);
  for (unsigned b = 1; b < Histogram::kBuckets - 1; ++b) {
    const DurationUs le = DurationUs{1} << b;
    EXPECT_EQ(Histogram::bucket_of(le), b);
    EXPECT_EQ(Histogram::bucket_of(le + 1), b + 1);
  }
  EXPECT_EQ(Histogram::bucket_of(std::numeric_limits<DurationUs>::max()), Histogram::kBuckets - 1);
}

TEST(Histogram, QuantilesInterpolateWithinTheBucket) {
  Histogram h;
  EXPECT_EQ(h.summary().quantile_us(0.5), 0.0);
  for (int i = 0; i < 100; ++i) h.record(100);  // in (64, 128]
  const Histogram::Summary sum = h.summary();
  EXPECT_EQ(sum.count, 100U);
  EXPECT_EQ(sum.sum_us, 10'000U);
  EXPECT_DOUBLE_EQ(sum.quantile_us(0.0), 64.0);
  EXPECT_DOUBLE_EQ(sum.quantile_us(0.5), 96.0);
  EXPECT_DOUBLE_EQ(sum.quantile_us(1.0), 128.0);
  EXPECT_DOUBLE_EQ(sum.quantile_us(7.0), 128.0);  // clamped
}

TEST(Histogram, QuantilesCrossBuckets) {
  Histogram h;
  for (int i = 0; i < 90; ++i) h.record(1);
  for (int i = 0; i < 10; ++i) h.record(1'000);  // in (512, 1024]
  EXPECT_LE(h.summary().quantile_us(0.9), 1.0);
  EXPECT_GT(h.summary().quantile_us(0.91), 512.0);
  EXPECT_LE(h.summary().quantile_us(0.99), 1024.0);
}

TEST(Histogram, BeyondTheLastBucketTheQuantileIsItsLowerEnd) {
  Histogram h;
  h.record(3'600 * kSecond);
  EXPECT_DOUBLE_EQ(h.summary().quantile_us(0.5), static_cast<double>(1 << 25));
}

TEST(Histogram, NegativeDurationsCountAsZero) {
  Histogram h;
  h.record(-1);
  EXPECT_EQ(h.summary().counts[0], 1U);
  EXPECT_EQ(h.summary().sum_us, 0U);
}

TEST(Histogram, SinceAndMergeAreInverse) {
  Histogram h;
  h.record(10);
  const Histogram::Summary before = h.summary();
  h.record(10);
  h.record(3'000);
  Histogram::Summary delta = h.summary().since(before);
  EXPECT_EQ(delta.count, 2U);
  EXPECT_EQ(delta.sum_us, 3'010U);
  EXPECT_EQ(delta.counts[Histogram::bucket_of(10)], 1U);
  delta.merge(before);
  EXPECT_EQ(delta.count, h.summary().count);
  EXPECT_EQ(delta.sum_us, h.summary().sum_us);
  EXPECT_EQ(delta.counts, h.summary().counts);
}

TEST(Registry, SameNameAndLabelsAreTheSameSeries) {
  Registry registry;
  Counter& a = registry.counter("larder_x_total", {{"cache", "p"}, {"op", "get"}}, "X.");
  Counter& b = registry.counter("larder_x_total", {{"op", "get"}, {"cache", "p"}}, "ignored");
  Counter& c = registry.counter("larder_x_total", {{"cache", "p"}, {"op", "set"}}, "X.");
  EXPECT_EQ(&a, &b);
  EXPECT_NE(&a, &c);
}

TEST(Registry, RendersThePrometheusTextFormat) {
  Registry registry;
  registry.counter("larder_b_total", {{"cache", "user"}}, "B.").add(2);
  registry.counter("larder_b_total", {{"cache", "product"}}, "B.").add(7);
  registry.counter("larder_c_total", {}, "C.").add(1);
  registry.callback(Registry::Kind::gauge, "larder_a_bytes", {}, "A.", [] { return 1.5; }, nullptr);
  EXPECT_EQ(registry.prometheus(),
            "# HELP larder_a_bytes A.\n"
            "# TYPE larder_a_bytes gauge\n"
            "larder_a_bytes 1.5\n"
            "# HELP larder_b_total B.\n"
            "# TYPE larder_b_total counter\n"
            "larder_b_total{cache=\"product\"} 7\n"
            "larder_b_total{cache=\"user\"} 2\n"
            "# HELP larder_c_total C.\n"
            "# TYPE larder_c_total counter\n"
            "larder_c_total 1\n");
}

TEST(Registry, HistogramsAreCumulativeAndInSeconds) {
  Registry registry;
  Histogram& h = registry.histogram("larder_t_seconds", {{"source", "shop"}}, "T.");
  h.record(1);
  h.record(1'000'000);
  h.record(100 * kSecond);
  const std::string text = registry.prometheus();
  EXPECT_THAT(text, HasSubstr("# TYPE larder_t_seconds histogram\n"));
  EXPECT_THAT(text, HasSubstr("larder_t_seconds_bucket{source=\"shop\",le=\"1e-06\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("larder_t_seconds_bucket{source=\"shop\",le=\"0.524288\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("larder_t_seconds_bucket{source=\"shop\",le=\"1.048576\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("larder_t_seconds_bucket{source=\"shop\",le=\"33.554432\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("larder_t_seconds_bucket{source=\"shop\",le=\"+Inf\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("larder_t_seconds_sum{source=\"shop\"} 101.000001\n"));
  EXPECT_THAT(text, HasSubstr("larder_t_seconds_count{source=\"shop\"} 3\n"));
}

TEST(Registry, EscapesLabelsAndHelp) {
  Registry registry;
  registry.counter("larder_e_total", {{"k", "a\"b\\c\nd"}}, "one\ntwo \\ \"three\"").add();
  const std::string text = registry.prometheus();
  EXPECT_THAT(text, HasSubstr(R"(larder_e_total{k="a\"b\\c\nd"} 1)"));
  EXPECT_THAT(text, HasSubstr(R"(# HELP larder_e_total one\ntwo \\ "three")"));
}

TEST(Registry, CountersAreExactBeyondDoubles) {
  Registry registry;
  registry.counter("larder_big_total", {}, "Big.").add((1ULL << 53) + 1);
  EXPECT_THAT(registry.prometheus(), HasSubstr("larder_big_total 9007199254740993\n"));
}

TEST(Registry, CallbacksAreSummedOverOwnersAndGoWithThem) {
  Registry registry;
  const int one = 0;
  const int two = 0;
  using Kind = Registry::Kind;
  registry.callback(Kind::gauge, "larder_g", {{"l", "v"}}, "G.", [] { return 1.0; }, &one);
  registry.callback(Kind::gauge, "larder_g", {{"l", "v"}}, "G.", [] { return 40.0; }, &two);
  EXPECT_THAT(registry.prometheus(), HasSubstr("larder_g{l=\"v\"} 41\n"));
  registry.callback(Kind::gauge, "larder_g", {{"l", "v"}}, "G.", [] { return 2.0; }, &one);
  EXPECT_THAT(registry.prometheus(), HasSubstr("larder_g{l=\"v\"} 42\n"));
  registry.remove_callbacks(&two);
  EXPECT_THAT(registry.prometheus(), HasSubstr("larder_g{l=\"v\"} 2\n"));
  registry.remove_callbacks(&one);
  EXPECT_THAT(registry.prometheus(), Not(HasSubstr("larder_g")));
}

TEST(Registry, InfinityAndNaN) {
  Registry registry;
  registry.callback(Registry::Kind::gauge, "larder_inf", {}, "", [] { return HUGE_VAL; }, nullptr);
  registry.callback(
      Registry::Kind::gauge, "larder_nan", {}, "", [] { return std::nan(""); }, nullptr);
  EXPECT_THAT(registry.prometheus(), HasSubstr("larder_inf +Inf\n"));
  EXPECT_THAT(registry.prometheus(), HasSubstr("larder_nan NaN\n"));
}

TEST(Registry, VisitsTheSeriesOfAFamily) {
  Registry registry;
  registry.counter("larder_v_total", {{"op", "b"}, {"cache", "x"}}, "").add(2);
  registry.counter("larder_v_total", {{"op", "a"}, {"cache", "x"}}, "").add(1);
  registry.histogram("larder_v_seconds", {{"op", "a"}}, "").record(10);
  std::vector<std::pair<std::string, std::uint64_t>> seen;
  registry.each_counter("larder_v_total", [&](const Labels& labels, std::uint64_t n) {
    seen.emplace_back(labels.at(0).second, n);  // in the order in which they were given
  });
  EXPECT_THAT(seen, ::testing::ElementsAre(std::pair("a", 1), std::pair("b", 2)));
  std::uint64_t recorded = 0;
  registry.each_histogram("larder_v_seconds",
                          [&](const Labels&, const Histogram::Summary& s) { recorded += s.count; });
  EXPECT_EQ(recorded, 1U);
  registry.each_counter("larder_none", [](const Labels&, std::uint64_t) { FAIL(); });
}

TEST(Registry, MakingAndReadingFromManyThreads) {
  Registry registry;
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&registry, t] {
      for (int i = 0; i < 200; ++i) {
        registry.counter("larder_m_total", {{"i", std::to_string(i % 20)}}, "M.").add();
        registry.histogram("larder_m_seconds", {{"t", std::to_string(t)}}, "M.").record(i);
        if (i % 50 == 0) EXPECT_FALSE(registry.prometheus().empty());
      }
    });
  threads.clear();
  std::uint64_t sum = 0;
  registry.each_counter("larder_m_total", [&](const Labels&, std::uint64_t n) { sum += n; });
  EXPECT_EQ(sum, 800U);
}

}  // namespace
}  // namespace larder::obs
