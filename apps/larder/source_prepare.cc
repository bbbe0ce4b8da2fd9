// larder source prepare: what a source needs so that changes by others are seen.
#include <fmt/format.h>

#include "cache/journal_sql.h"
#include "cache/node.h"
#include "commands.h"
#include "server/sources.h"
#include "source/mariadb/mariadb.h"
#include "source/postgres/prepare.h"
#include "source/sqlite/db.h"
#include "source/sqlite/prepare.h"
#include "source/sqlite/sqlite.h"

namespace larder::app {
namespace {

constexpr DurationUs kPatience = 60 * kSecond;  // a slot waits for what runs to end

bool is_postgres(std::string_view url) {
  return url.starts_with("postgres:") || url.starts_with("postgresql:");
}
bool is_mariadb(std::string_view url) {
  return url.starts_with("mariadb:") || url.starts_with("mysql:");
}

struct Options {
  std::string file = "larder.toml";
  std::string name;
  bool dry_run = false;
};

int complain(const Error& error) {
  fmt::print(stderr, "{}\n", text_of(error));
  return error.code == ErrorCode::config ? kUsage : kFailed;
}

using Watched = std::vector<source::WatchedTable>;

int nothing_to_do(const cache::SourceSpec& spec) {
  fmt::print("nothing to do: {} is prepared\n", spec.display_url);
  return kDone;
}

int prepare_sqlite(const cache::SourceSpec& spec, const Watched& watched, bool dry_run) {
  namespace sqlite = source::sqlite;
  const auto path = sqlite::path_of_url(spec.url);
  if (!path) return complain(path.error());
  const auto plan = sqlite::plan(*path, watched);
  if (!plan) return complain(plan.error());
  if (plan->empty()) return nothing_to_do(spec);
  if (dry_run) {
    for (const std::string& statement : *plan) fmt::print("{};\n", statement);
    return kDone;
  }
  const auto applied = sqlite::apply(*path, watched);
  if (!applied) return complain(applied.error());
  fmt::print("prepared {}: {} statement{}; changes by anyone are now seen\n", spec.display_url,
             plan->size(), plan->size() == 1 ? "" : "s");
  return kDone;
}

// What an administrator has to do; the rest is SQL that can be piped into psql.
void print_comments(std::string_view kind, const std::vector<std::string>& lines) {
  for (const std::string& line : lines) fmt::print("-- {}: {}\n", kind, line);
}

void print_steps(const std::vector<source::postgres::Preparation::Step>& steps) {
  for (const auto& step : steps) {
    fmt::print("-- {}\n", step.why);
    if (!step.needs.empty()) fmt::print("-- needs {}\n", step.needs);
    fmt::print("{};\n", step.sql);
  }
}

int prepare_postgres(const cache::SourceSpec& spec, const config::Config& config,
                     const Watched& watched, bool dry_run) {
  namespace postgres = source::postgres;
  const std::string name = postgres::feed_name(config.engine.name_space, spec.name);
  const postgres::PrepareOptions wanted{
      .means = spec.triggers ? postgres::Means::triggers : postgres::Means::log,
      .source = spec.name,
      .slot = name,
      .publication = name,
      .feed_for = server::feed_for(config),
      .watched = watched};
  const auto found = postgres::examine_now(spec.url, wanted, monotonic_now_us() + kPatience);
  if (!found) return complain(found.error());
  print_comments("missing", found->obstacles);
  print_comments("warning", found->warnings);
  const std::size_t steps = found->steps.size() + found->slot.size();
  if (dry_run) {
    if (found->steps.size() > 1) fmt::print("BEGIN;\n");
    print_steps(found->steps);
    if (found->steps.size() > 1) fmt::print("COMMIT;\n");
    print_steps(found->slot);
  }
  if (!found->obstacles.empty()) {
    fmt::print(stderr, "{} is not prepared: see what is missing above\n", spec.display_url);
    return kFailed;
  }
  if (steps == 0) return nothing_to_do(spec);
  if (dry_run) return kDone;
  const auto applied = postgres::apply_now(spec.url, *found, monotonic_now_us() + kPatience);
  if (!applied) return complain(applied.error());
  fmt::print("prepared {}: {} statement{}; changes by anyone are now seen\n", spec.display_url,
             steps, steps == 1 ? "" : "s");
  return kDone;
}

// Whatever is missing is an administrator's business.
int look_at_mariadb(const cache::SourceSpec& spec,
                    const std::vector<source::WatchedTable>& watched) {
  const auto missing = source::mariadb::what_is_missing(spec.url, watched);
  if (!missing) return complain(missing.error());
  for (const std::string& line : *missing) fmt::print("-- {}\n", line);
  if (!missing->empty()) return kFailed;
  fmt::print("nothing to do: {} tells of changes by its binary log\n", spec.display_url);
  return kDone;
}

Result<void> run(const std::string& url, const std::vector<std::string>& statements) {
  if (is_postgres(url)) {
    source::postgres::Preparation preparation;
    for (const std::string& sql : statements)
      preparation.steps.push_back({.sql = sql, .why = "write-behind", .needs = {}});
    return source::postgres::apply_now(url, preparation, monotonic_now_us() + kPatience);
  }
  if (is_mariadb(url)) return source::mariadb::run_now(url, statements);
  const auto path = source::sqlite::path_of_url(url);
  if (!path) return std::unexpected(path.error());
  const auto db = source::sqlite::Connection::open(*path, source::sqlite::Connection::Mode::write);
  if (!db) return std::unexpected(db.error());
  for (const std::string& sql : statements)
    if (auto done = (*db)->exec(sql); !done) return done;
  return {};
}

// The tables of write = "behind". -> kDone, or why not
int prepare_journal(const cache::SourceSpec& spec, source::Dialect dialect, bool dry_run) {
  const std::vector<std::string> statements = cache::journal_sql::tables(dialect);
  if (dry_run) {
    fmt::print(
        "-- for write = \"behind\": what the database has of the journal, and what it "
        "refused\n");
    for (const std::string& statement : statements) fmt::print("{};\n", statement);
    return kDone;
  }
  const auto done = run(spec.url, statements);
  if (!done) return complain(done.error());
  fmt::print("{} has the tables of write = \"behind\"\n", spec.display_url);
  return kDone;
}

int prepare(const Options& options) {
  const auto config = load_or_complain(options.file);
  if (!config) return kUsage;
  const auto spec = std::ranges::find(config->sources, options.name, &cache::SourceSpec::name);
  if (spec == config->sources.end()) {
    fmt::print(stderr, "{} declares no [source.{}]\n", options.file, options.name);
    return kUsage;
  }
  const auto behind = std::ranges::find_if(config->caches, [&](const cache::CacheSpec& cache) {
    return cache.source == spec->name && cache.write == cache::WriteMode::behind;
  });
  if (behind != config->caches.end())
    if (const int code = prepare_journal(*spec, behind->dialect, options.dry_run); code != kDone)
      return code;
  const auto watched = cache::Node::watched_tables(config->caches, spec->name);
  if (watched.empty()) {
    if (behind == config->caches.end())
      fmt::print("nothing to do: no cache of source {} has depends_on\n", spec->name);
    return kDone;
  }
  if (is_postgres(spec->url)) return prepare_postgres(*spec, *config, watched, options.dry_run);
  if (is_mariadb(spec->url)) return look_at_mariadb(*spec, watched);
  return prepare_sqlite(*spec, watched, options.dry_run);
}

}  // namespace

void register_source_prepare(CLI::App& app, Run& run) {
  auto* const group = app.add_subcommand("source", "Work on a source");
  group->require_subcommand(1);
  group->footer("Example:\n  larder source prepare --config larder.toml shop");
  auto* const sub = group->add_subcommand(
      "prepare", "Give a source what it needs so that changes by others are seen (depends_on)");
  const auto options = std::make_shared<Options>();
  sub->add_option("-c,--config", options->file, "Configuration (TOML)")
      ->type_name("FILE")
      ->capture_default_str();
  sub->add_option("name", options->name, "Name of the source")->required()->type_name("NAME");
  sub->add_flag("--dry-run", options->dry_run, "Print the SQL, change nothing");
  sub->footer(
      "Example:\n"
      "  larder source prepare --config larder.toml shop --dry-run   shows the SQL\n"
      "  larder source prepare --config larder.toml shop             runs it, in one "
      "transaction\n\n"
      "SQLite: a change table and triggers. PostgreSQL: a publication, REPLICA IDENTITY where a\n"
      "table's key does not cover the columns, a replication slot; it says what only an\n"
      "administrator can do. Repeatable: what is there already stays. Without it, changes by\n"
      "others show only when an entry's ttl ends.\n\n"
      "Where a cache has write = \"behind\": the tables larder_applied and larder_dead_letter.");
  sub->callback([options, &run] { run = [options] { return prepare(*options); }; });
}

}  // namespace larder::app
