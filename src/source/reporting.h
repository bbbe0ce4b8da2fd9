// What sources over a database do alike: how they say what is wrong with a configuration, whether
// the database works, and how much they ask of it.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "obs/metrics.h"
#include "source/source.h"
#include "source/sql_text.h"

namespace larder::source {

// The beginning of a statement, on one line, for messages.
std::string shortened_sql(std::string_view sql);

// Whatever is refused while statements are checked is an error of the configuration; what fails
// otherwise stays what it is. `what`: was checked. `origin`: where the error names none.
Error config_error(const Error& error, std::string_view what, std::string_view origin);

// Does the key give each placeholder a value? Error: config.
Result<void> check_key_params(const SqlText& sql, const LoadStatement& spec);

// Remembers whether the database works, and says so when that changes. Thread-safe.
class Health {
 public:
  // `source`: its name. `log`: told one line a change; may be empty.
  Health(std::string source, std::function<void(std::string)> log)
      : source_(std::move(source)), log_(std::move(log)) {}

  // After a load or a write. `error`: null, or why it failed. `down`: because of the database
  // itself; a refused statement says nothing about it.
  void note(const Error* error, bool down);

 private:
  const std::string source_;
  const std::function<void(std::string)> log_;
  std::atomic<bool> works_{true};
};

// Null where nobody counts.
struct QueryMetrics {
  obs::Counter* loads = nullptr;
  obs::Counter* writes = nullptr;
  obs::Histogram* seconds = nullptr;

  // `metrics` may be null.
  static QueryMetrics of(obs::Registry* metrics, const std::string& source);
};

// Shows a pool's connections and who waits for one, until metrics.remove_callbacks(owner).
template <class P>
void show_pool(obs::Registry& metrics, const std::string& source, const P& pool,
               const void* owner) {
  const auto gauge = [&](const char* name, const char* help, std::size_t (P::*read)() const) {
    metrics.callback(
        obs::Registry::Kind::gauge, name, {{"source", source}}, help,
        [&pool, read] { return static_cast<double>((pool.*read)()); }, owner);
  };
  gauge("larder_source_connections", "Connections to the source, at most `pool`.",
        &P::open_connections);
  gauge("larder_source_waiting", "Loads and writes that wait for a connection, at most `queue`.",
        &P::waiting);
}

}  // namespace larder::source
