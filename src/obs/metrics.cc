#include "obs/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <iterator>
#include <map>

#include "base/error.h"

namespace larder::obs {

unsigned stripe() {
  static std::atomic<unsigned> next{0};
  thread_local const unsigned mine = next.fetch_add(1, std::memory_order_relaxed) % kStripes;
  return mine;
}

std::uint64_t Counter::value() const {
  std::uint64_t sum = 0;
  for (const Cell& cell : cells_) sum += cell.value.load(std::memory_order_relaxed);
  return sum;
}

// ---- histogram ----

unsigned Histogram::bucket_of(DurationUs us) {
  if (us <= 1) return 0;
  const auto width = static_cast<unsigned>(std::bit_width(static_cast<std::uint64_t>(us) - 1));
  return std::min(width, kBuckets - 1);
}

Histogram::Summary Histogram::summary() const {
  Summary sum;
  for (const Stripe& s : stripes_) {
    for (unsigned b = 0; b < kBuckets; ++b) {
      const std::uint64_t n = s.counts[b].load(std::memory_order_relaxed);
      sum.counts[b] += n;
      sum.count += n;  // the sum of the buckets, so that the two always agree
    }
    sum.sum_us += s.sum_us.load(std::memory_order_relaxed);
  }
  return sum;
}

double Histogram::Summary::quantile_us(double q) const {
  if (count == 0) return 0;
  const double rank = std::clamp(q, 0.0, 1.0) * static_cast<double>(count);
  double below = 0;
  for (unsigned b = 0; b < kBuckets; ++b) {
    if (counts[b] == 0) continue;
    const auto here = static_cast<double>(counts[b]);
    if (below + here >= rank) {
      const double low = b == 0 ? 0 : std::ldexp(1.0, static_cast<int>(b) - 1);
      if (b == kBuckets - 1) return low;  // the last bucket has no upper end
      const double high = std::ldexp(1.0, static_cast<int>(b));
      return low + (high - low) * std::max(0.0, rank - below) / here;
    }
    below += here;
  }
  return std::ldexp(1.0, kBuckets - 2);
}

Histogram::Summary Histogram::Summary::since(const Summary& earlier) const {
  Summary out;
  const auto minus = [](std::uint64_t a, std::uint64_t b) { return a > b ? a - b : 0; };
  for (unsigned b = 0; b < kBuckets; ++b) {
    out.counts[b] = minus(counts[b], earlier.counts[b]);
    out.count += out.counts[b];
  }
  out.sum_us = minus(sum_us, earlier.sum_us);
  return out;
}

void Histogram::Summary::merge(const Summary& other) {
  for (unsigned b = 0; b < kBuckets; ++b) counts[b] += other.counts[b];
  count += other.count;
  sum_us += other.sum_us;
}

// ---- registry ----

namespace {

std::string escaped(std::string_view text, bool quote) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    if (c == '\\') {
      out += "\\\\";
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '"' && quote) {
      out += "\\\"";
    } else {
      out += c;
    }
  }
  return out;
}

// cache="product",op="get" (without the braces).
std::string label_text(const Labels& labels) {
  std::string out;
  for (const auto& [name, value] : labels)
    fmt::format_to(std::back_inserter(out), "{}{}=\"{}\"", out.empty() ? "" : ",", name,
                   escaped(value, true));
  return out;
}

// The same for every order of the labels.
std::string identity(Labels labels) {
  std::ranges::sort(labels);
  return label_text(labels);
}

std::string braced(std::string_view inside) {
  return inside.empty() ? std::string() : fmt::format("{{{}}}", inside);
}

// Prometheus writes infinities its own way; whole numbers need no exponent.
std::string number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  if (std::trunc(value) == value && std::abs(value) < 1e15) return fmt::format("{:.0f}", value);
  return fmt::format("{}", value);
}

struct Read {
  std::function<double()> read;
  const void* owner;
};

struct Series {
  Labels labels;
  std::string text;  // label_text, as first given
  std::unique_ptr<Counter> counter;
  std::unique_ptr<Histogram> histogram;
  std::vector<Read> reads;  // more than one owner: their sum
};

enum class Type : std::uint8_t { counter, gauge, histogram };

std::string_view type_name(Type type) {
  switch (type) {
    case Type::counter: return "counter";
    case Type::gauge: return "gauge";
    case Type::histogram: return "histogram";
  }
  return "untyped";
}

struct Family {
  Type type;
  std::string help;
  std::map<std::string, Series> series;  // by identity
};

void render_histogram(std::string& out, std::string_view name, const Series& series) {
  const auto end = std::back_inserter(out);
  const Histogram::Summary sum = series.histogram->summary();
  const std::string_view comma = series.text.empty() ? "" : ",";
  std::uint64_t cumulative = 0;
  for (unsigned b = 0; b < Histogram::kBuckets; ++b) {
    cumulative += sum.counts[b];
    const std::string le = b == Histogram::kBuckets - 1
                               ? std::string("+Inf")
                               : fmt::format("{}", std::ldexp(1.0, static_cast<int>(b)) / 1e6);
    fmt::format_to(end, "{}_bucket{{{}{}le=\"{}\"}} {}\n", name, series.text, comma, le,
                   cumulative);
  }
  fmt::format_to(end, "{}_sum{} {}\n", name, braced(series.text),
                 number(static_cast<double>(sum.sum_us) / 1e6));
  fmt::format_to(end, "{}_count{} {}\n", name, braced(series.text), cumulative);
}

void render_value(std::string& out, std::string_view name, const Series& series) {
  const auto end = std::back_inserter(out);
  if (series.reads.empty()) {  // exact beyond 2^53, which a double is not
    fmt::format_to(end, "{}{} {}\n", name, braced(series.text), series.counter->value());
    return;
  }
  double sum = series.counter ? static_cast<double>(series.counter->value()) : 0;
  for (const Read& r : series.reads) sum += r.read();
  fmt::format_to(end, "{}{} {}\n", name, braced(series.text), number(sum));
}

}  // namespace

struct Registry::Impl {
  mutable Mutex mutex;
  std::map<std::string, Family, std::less<>> families LARDER_GUARDED_BY(mutex);

  // The series, made if it is new. One name has one type: anything else is a bug of the caller.
  Series& find_or_make(Type type, std::string_view name, Labels&& labels, std::string_view help)
      LARDER_REQUIRES(mutex) {
    auto family = families.find(name);
    if (family == families.end())
      family = families.emplace(name, Family{type, std::string(help), {}}).first;
    LARDER_ASSERT(family->second.type == type);
    Series& series = family->second.series[identity(labels)];
    if (series.text.empty() && !labels.empty()) {
      series.text = label_text(labels);
      series.labels = std::move(labels);
    }
    return series;
  }
};

Registry::Registry() : impl_(std::make_unique<Impl>()) {}
Registry::~Registry() = default;

Counter& Registry::counter(std::string_view name, Labels labels, std::string_view help) {
  MutexLock lock(impl_->mutex);
  Series& series = impl_->find_or_make(Type::counter, name, std::move(labels), help);
  if (!series.counter) series.counter = std::make_unique<Counter>();
  return *series.counter;
}

Histogram& Registry::histogram(std::string_view name, Labels labels, std::string_view help) {
  MutexLock lock(impl_->mutex);
  Series& series = impl_->find_or_make(Type::histogram, name, std::move(labels), help);
  if (!series.histogram) series.histogram = std::make_unique<Histogram>();
  return *series.histogram;
}

void Registry::callback(Kind kind, std::string_view name, Labels labels, std::string_view help,
                        std::function<double()> read, const void* owner) {
  MutexLock lock(impl_->mutex);
  const Type type = kind == Kind::counter ? Type::counter : Type::gauge;
  Series& series = impl_->find_or_make(type, name, std::move(labels), help);
  std::erase_if(series.reads, [owner](const Read& r) { return r.owner == owner; });
  series.reads.push_back(Read{std::move(read), owner});
}

void Registry::remove_callbacks(const void* owner) {
  MutexLock lock(impl_->mutex);
  for (auto& [name, family] : impl_->families) {
    for (auto& [id, series] : family.series)
      std::erase_if(series.reads, [owner](const Read& r) { return r.owner == owner; });
    std::erase_if(family.series, [](const auto& item) {
      const Series& s = item.second;
      return s.reads.empty() && !s.counter && !s.histogram;
    });
  }
  std::erase_if(impl_->families, [](const auto& item) { return item.second.series.empty(); });
}

std::string Registry::prometheus() const {
  MutexLock lock(impl_->mutex);
  std::string out;
  for (const auto& [name, family] : impl_->families) {
    fmt::format_to(std::back_inserter(out), "# HELP {} {}\n# TYPE {} {}\n", name,
                   escaped(family.help, false), name, type_name(family.type));
    for (const auto& [id, series] : family.series) {
      if (family.type == Type::histogram) {
        render_histogram(out, name, series);
      } else {
        render_value(out, name, series);
      }
    }
  }
  return out;
}

void Registry::each_counter(std::string_view name,
                            const std::function<void(const Labels&, std::uint64_t)>& visit) const {
  MutexLock lock(impl_->mutex);
  const auto family = impl_->families.find(name);
  if (family == impl_->families.end()) return;
  for (const auto& [id, series] : family->second.series)
    if (series.counter) visit(series.labels, series.counter->value());
}

void Registry::each_histogram(
    std::string_view name,
    const std::function<void(const Labels&, const Histogram::Summary&)>& visit) const {
  MutexLock lock(impl_->mutex);
  const auto family = impl_->families.find(name);
  if (family == impl_->families.end()) return;
  for (const auto& [id, series] : family->second.series)
    if (series.histogram) visit(series.labels, series.histogram->summary());
}

}  // namespace larder::obs
