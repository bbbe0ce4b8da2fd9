#include "demo/picture.h"

#include <fmt/format.h>

#include <cmath>

namespace larder::app {
namespace {

constexpr std::array<std::string_view, 5> kTiers{"near", "engine", "source", "stale", "error"};

std::string_view label(const obs::Labels& labels, std::string_view name) {
  for (const auto& [key, value] : labels)
    if (key == name) return value;
  return {};
}

std::size_t tier_of(const obs::Labels& labels) {
  const auto found = std::ranges::find(kTiers, label(labels, "tier"));
  return static_cast<std::size_t>(found - kTiers.begin());
}

// 1234567 -> "1,234,567"
std::string grouped(std::uint64_t n) {
  std::string digits = std::to_string(n);
  for (int at = static_cast<int>(digits.size()) - 3; at > 0; at -= 3)
    digits.insert(static_cast<std::size_t>(at), ",");
  return digits;
}

std::string time_text(double us) {
  if (us < 1) return "<1us";
  if (us < 1'000) return fmt::format("{:.0f}us", us);
  if (us < 1'000'000) return fmt::format("{:.1f}ms", us / 1'000);
  return fmt::format("{:.1f}s", us / 1'000'000);
}

std::string bar(double share, unsigned width) {
  std::string text;
  const auto full = static_cast<unsigned>(std::lround(share * width));
  for (unsigned i = 0; i < width; ++i) text += i < full ? "█" : "░";
  return text;
}

double share_of(std::uint64_t part, std::uint64_t whole) {
  return whole ? static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

double rate(std::uint64_t now, std::uint64_t before, double seconds) {
  return seconds > 0 ? static_cast<double>(now - before) / seconds : 0.0;
}

}  // namespace

void DemoFigures::saw_fresh(DurationUs us) {
  MutexLock lock(mutex_);
  until_fresh_.push_back(us);
}

double DemoFigures::until_fresh_us(double quantile) const {
  MutexLock lock(mutex_);
  if (until_fresh_.empty()) return 0;
  std::vector<DurationUs> sorted = until_fresh_;
  std::ranges::sort(sorted);
  return static_cast<double>(sorted[static_cast<std::size_t>(
      std::lround(quantile * static_cast<double>(sorted.size() - 1)))]);
}

std::uint64_t DemoFigures::seen() const {
  MutexLock lock(mutex_);
  return until_fresh_.size();
}

DemoSample take_sample(const obs::Registry& registry, double seconds) {
  DemoSample sample;
  sample.seconds = seconds;
  registry.each_counter("larder_requests_total", [&](const obs::Labels& labels, std::uint64_t n) {
    const std::size_t tier = tier_of(labels);
    if (label(labels, "op") != "get" || tier >= kTiers.size()) return;
    sample.by_tier[tier] += n;
    sample.reads += n;
  });
  registry.each_histogram("larder_request_seconds",
                          [&](const obs::Labels& labels, const obs::Histogram::Summary& summary) {
                            const std::size_t tier = tier_of(labels);
                            if (label(labels, "op") == "get" && tier < kTiers.size())
                              sample.latency[tier].merge(summary);
                          });
  registry.each_counter("larder_source_queries_total",
                        [&](const obs::Labels& labels, std::uint64_t n) {
                          if (label(labels, "op") == "load") sample.queries += n;
                        });
  registry.each_counter("larder_invalidations_total",
                        [&](const obs::Labels&, std::uint64_t n) { sample.invalidations += n; });
  return sample;
}

std::vector<std::string> paint(const DemoSample& now, const DemoSample& before,
                               const DemoFigures& figures, bool colour) {
  const double step = now.seconds - before.seconds;
  const std::string bold = colour ? "\x1b[1m" : "";
  const std::string dim = colour ? "\x1b[2m" : "";
  const std::string plain = colour ? "\x1b[0m" : "";
  std::vector<std::string> lines;
  lines.push_back(
      fmt::format("{}  Larder  {}in front of a SQLite shop: 100,000 products, {:>3.0f} s", bold,
                  plain, now.seconds));
  lines.emplace_back();
  lines.push_back(
      fmt::format("  reads            {}{:>12}{} /s      {:>14} in all, {} errors", bold,
                  grouped(static_cast<std::uint64_t>(rate(now.reads, before.reads, step))), plain,
                  grouped(now.reads), figures.errors.load()));
  lines.push_back(
      fmt::format("  database queries {}{:>12}{} /s      {:>14} in all", bold,
                  grouped(static_cast<std::uint64_t>(rate(now.queries, before.queries, step))),
                  plain, grouped(now.queries)));
  const std::uint64_t saved = now.reads > now.queries ? now.reads - now.queries : 0;
  lines.push_back(fmt::format("  queries saved    {}{:>12.2f}{} %       {:>14} in all", bold,
                              100.0 * share_of(saved, now.reads), plain, grouped(saved)));
  lines.emplace_back();
  lines.push_back(
      fmt::format("  {}answered by     share of reads               p50      p99   inside Larder{}",
                  dim, plain));
  const std::uint64_t reads = now.reads - before.reads;
  for (std::size_t tier = 0; tier < kTiers.size(); ++tier) {
    const std::uint64_t n = now.by_tier[tier] - before.by_tier[tier];
    if (now.by_tier[tier] == 0) continue;
    const obs::Histogram::Summary recent = now.latency[tier].since(before.latency[tier]);
    lines.push_back(fmt::format("  {:<10} {:>6.2f}% {} {:>8} {:>8}", kTiers[tier],
                                100.0 * share_of(n, reads), bar(share_of(n, reads), 20),
                                recent.count ? time_text(recent.quantile_us(0.5)) : "-",
                                recent.count ? time_text(recent.quantile_us(0.99)) : "-"));
  }
  lines.emplace_back();
  lines.push_back(
      fmt::format("  prices changed directly in the database: {}; {} entries invalidated",
                  figures.changes.load(), now.invalidations));
  lines.push_back(
      fmt::format("  from COMMIT until a reader saw the new price: p50 {}, p99 {} ({} watched)",
                  time_text(figures.until_fresh_us(0.5)), time_text(figures.until_fresh_us(0.99)),
                  figures.seen()));
  return lines;
}

std::string paint_line(const DemoSample& now, const DemoSample& before,
                       const DemoFigures& figures) {
  const double step = now.seconds - before.seconds;
  const std::uint64_t reads = now.reads - before.reads;
  return fmt::format(
      "{:>4.0f} s  {:>9} reads/s  near hits {:>6.2f} %  {:>7} queries/s  changed {:>4}, fresh p50 "
      "{} p99 {}",
      now.seconds, grouped(static_cast<std::uint64_t>(rate(now.reads, before.reads, step))),
      100.0 * share_of(now.by_tier[0] - before.by_tier[0], reads),
      grouped(static_cast<std::uint64_t>(rate(now.queries, before.queries, step))),
      figures.changes.load(), time_text(figures.until_fresh_us(0.5)),
      time_text(figures.until_fresh_us(0.99)));
}

}  // namespace larder::app
