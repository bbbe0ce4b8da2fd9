#include "source/reporting.h"

#include <fmt/format.h>

#include <algorithm>

namespace larder::source {

std::string shortened_sql(std::string_view sql) {
  constexpr std::size_t kMost = 100;
  std::string out;
  for (const char c : sql) {
    const bool blank = c == ' ' || c == '\n' || c == '\t' || c == '\r';
    if (blank && (out.empty() || out.back() == ' ')) continue;
    out += blank ? ' ' : c;
    if (out.size() >= kMost) return out + "...";
  }
  return out;
}

Error config_error(const Error& error, std::string_view what, std::string_view origin) {
  const bool wrong = error.code == ErrorCode::source_refused || error.code == ErrorCode::config ||
                     error.code == ErrorCode::too_large;
  return {wrong ? ErrorCode::config : error.code, fmt::format("{}: {}", what, error.message),
          error.origin.empty() ? std::string(origin) : error.origin};
}

Result<void> check_key_params(const SqlText& sql, const LoadStatement& spec) {
  for (const std::string& name : sql.names())
    if (std::ranges::find(spec.key_params, name) == spec.key_params.end())
      return fail(ErrorCode::config,
                  fmt::format("the placeholder :{} is not a parameter of the key ({})", name,
                              spec.key_params.empty()
                                  ? "it has none"
                                  : fmt::format("{}", fmt::join(spec.key_params, ", "))));
  return {};
}

void Health::note(const Error* error, bool down) {
  if (error && !down) return;
  const bool works = !error;
  if (works_.load(std::memory_order_relaxed) == works) return;
  if (works_.exchange(works) == works || !log_) return;
  log_(fmt::format("source \"{}\": {}", source_,
                   works ? std::string("works again") : error->message));
}

QueryMetrics QueryMetrics::of(obs::Registry* metrics, const std::string& source) {
  if (!metrics) return {};
  const auto op = [&](const char* name) {
    return &metrics->counter("larder_source_queries_total", {{"source", source}, {"op", name}},
                             "Statements sent to the source.");
  };
  return {.loads = op("load"),
          .writes = op("write"),
          .seconds = &metrics->histogram("larder_source_seconds", {{"source", source}},
                                         "Time that the source took for a load or a write.")};
}

}  // namespace larder::source
