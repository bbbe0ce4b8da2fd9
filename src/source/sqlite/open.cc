#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <random>

#include "base/hash.h"
#include "source/sqlite/impl.h"

namespace larder::source::sqlite {
namespace {

// SQLite and SqlText must see the same parameters: `?`, `?1`, `@a`, `$a` are SQLite's alone.
Result<void> check_parameters(const Stmt& stmt, const SqlText& sql) {
  for (int i = 1; i <= stmt.parameters(); ++i) {
    const char* const name = stmt.parameter(i);
    if (!name || name[0] != ':' ||
        std::ranges::find(sql.names(), std::string_view(name + 1)) == sql.names().end())
      return fail(ErrorCode::config,
                  fmt::format("the placeholder {} is not written as :name", name ? name : "?"));
  }
  return {};
}

}  // namespace

Result<std::string> path_of_url(std::string_view url) {
  constexpr std::string_view kScheme = "sqlite:";
  const auto wrong = [](std::string why) { return fail(ErrorCode::config, std::move(why)); };
  if (!url.starts_with(kScheme)) return wrong("the url of a SQLite source begins with sqlite:");
  std::string_view path = url.substr(kScheme.size());
  if (path.starts_with("//")) {
    path.remove_prefix(2);
    if (!path.starts_with('/'))
      return wrong("a SQLite database has no host: write sqlite:shop.db or sqlite:///var/shop.db");
  }
  if (path == ":memory:" || path.starts_with("file:"))
    return wrong(
        "a database in memory belongs to one connection, a source needs several: name a file "
        "(on a tmpfs, if it shall live in memory)");
  if (path.empty()) return wrong("the url names no file: write sqlite:shop.db");
  if (path.find('?') != std::string_view::npos)
    return wrong("parameters after ? are not supported in the url of a SQLite source");
  return std::string(path);
}

Result<std::unique_ptr<SqliteSource>> open_sqlite(const Options& options) {
  auto source = std::make_unique<Impl>(options);
  if (auto opened = source->open(); !opened) return std::unexpected(opened.error());
  return source;
}

Impl::Impl(const Options& options) : options_(options) {}

Impl::~Impl() {
  // Threads first, in an order in which none needs another that is gone.
  feed_pool_.reset();
  pool_.reset();
  if (writer_thread_) writer_thread_->stop();
}

Result<void> Impl::open() {
  const std::string& path = options_.path;
  const auto file = file_id(path);
  if (!file)
    return fail(
        ErrorCode::config,
        fmt::format("source \"{}\": the database file {} does not exist; create it with its "
                    "tables, or correct the url (a relative path counts from the folder in "
                    "which Larder is started)",
                    options_.name, path),
        "sqlite");
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored))
    return fail(
        ErrorCode::config,
        fmt::format("source \"{}\": {} is a folder, not a database file", options_.name, path),
        "sqlite");
  if (!options_.query_log.empty()) {
    auto log = QueryLog::open(options_.query_log);
    if (!log) return std::unexpected(log.error());
    log_ = std::move(*log);
  }
  const std::string where = fmt::format("source \"{}\"", options_.name);
  auto db = Connection::open(path, Connection::Mode::read);
  if (!db) return std::unexpected(config_error(db.error(), where, "sqlite"));
  (*db)->set_deadline(monotonic_now_us() + 10 * kSecond);
  if (auto begun = (*db)->exec("BEGIN"); !begun)
    return std::unexpected(config_error(begun.error(), where, "sqlite"));
  for (const LoadStatement& spec : options_.statements)
    if (auto checked = check_load(**db, spec); !checked)
      return std::unexpected(config_error(
          checked.error(), fmt::format("{}, load statement `{}`", where, shortened_sql(spec.sql)),
          "sqlite"));
  auto prepared = examine(**db, options_.watched);
  if (!prepared) return std::unexpected(config_error(prepared.error(), where, "sqlite"));
  for (const WatchedTable& table : options_.watched)
    if (auto fits = check_affinities(**db, table); !fits)
      return std::unexpected(config_error(fits.error(), where, "sqlite"));
  prepared_ = prepared->complete;
  const Incarnation identity = renew(*file);
  if (prepared_) {
    const auto position = (*db)->query_integer(kSequenceSql);
    if (!position) return std::unexpected(config_error(position.error(), where, "sqlite"));
    const auto schema = (*db)->query_integer("PRAGMA main.schema_version");
    if (!schema) return std::unexpected(config_error(schema.error(), where, "sqlite"));
    feed_.position = *position;
    feed_.schema = *schema;
    feed_.columns = std::move(prepared->columns);
    feed_.generation = identity.generation;
  }
  describe();
  const QueryMetrics metrics = QueryMetrics::of(options_.metrics, options_.name);
  loads_ = metrics.loads;
  writes_ = metrics.writes;
  seconds_ = metrics.seconds;
  const unsigned threads = std::clamp(options_.pool, 1U, 256U);
  readers_.resize(threads);
  pool_ = std::make_unique<net::WorkerPool>(threads, options_.queue, "sqlite");
  feed_pool_ = std::make_unique<net::WorkerPool>(1, 4, "sqlite-feed");
  writer_thread_ = std::make_unique<WriterThread>(options_.queue);
  return {};
}

// A change names a key by the column's text. A text parameter over a column of numbers would find
// the row by other texts too ('07', '7.0'), and their entries would never be invalidated.
Result<void> Impl::check_affinities(Connection& db, const WatchedTable& table) {
  for (std::size_t i = 0; i < table.types.size(); ++i) {
    const std::optional<std::string> declared = db.declared_type(table.table, table.columns[i]);
    if (!declared) continue;  // examine() has said what is wrong
    const std::string& type = *declared;
    const auto has = [&](std::string_view part) { return type.find(part) != std::string::npos; };
    // SQLite's rules of affinity, in their order.
    const bool integer = has("INT");
    const bool text = !integer && (has("CHAR") || has("CLOB") || has("TEXT"));
    const bool blob = !integer && !text && (has("BLOB") || type.empty());
    const bool real = !integer && !text && !blob && (has("REAL") || has("FLOA") || has("DOUB"));
    const bool wants_integer = table.types[i] == policy::ParamType::integer;
    if (wants_integer ? !real : text || blob) continue;
    return fail(
        ErrorCode::config,
        fmt::format("depends_on: column {}.{} is {}, but its key parameter is {}: other "
                    "keys would find the same row and never be invalidated; {}",
                    table.table, table.columns[i], type, wants_integer ? "an int" : "a text",
                    wants_integer ? "keep such a key in an INTEGER column"
                                  : "declare the parameter as int: {name:int}"),
        "sqlite");
  }
  return {};
}

Result<void> Impl::check_load(Connection& db, const LoadStatement& spec) {
  auto sql = SqlText::parse(spec.sql);
  if (!sql) return std::unexpected(sql.error());
  auto stmt = db.prepare(sql->text(), true);
  if (!stmt) return std::unexpected(stmt.error());
  if (auto same = check_parameters(**stmt, *sql); !same) return same;
  if (!(*stmt)->readonly())
    return fail(ErrorCode::config, "it writes; a load statement may only read");
  if (auto given = check_key_params(*sql, spec); !given) return given;
  std::vector<std::string> columns;
  columns.reserve(static_cast<std::size_t>((*stmt)->columns()));
  for (int i = 0; i < (*stmt)->columns(); ++i) columns.push_back((*stmt)->column_name(i));
  if (columns.empty()) return fail(ErrorCode::config, "it gives no columns");
  const auto layout = RowLayout::make(spec.shape, std::move(columns));
  if (!layout) return std::unexpected(layout.error());
  LoadPlan plan = LoadPlan::make(spec, std::move(*sql), db);
  // The form for many keys must compile too.
  if (auto many = db.prepare(plan.texts.back(), true); !many) return std::unexpected(many.error());
  if (!plans_.emplace(spec.id, std::move(plan)).second)
    return fail(ErrorCode::internal, fmt::format("two load statements with id {}", spec.id));
  return {};
}

void Impl::describe() {
  capabilities_ = {.kind = "sqlite",
                   .snapshots = counts(),
                   .feed = prepared_,
                   .feed_rests_on = {},
                   .why_no_feed = {}};
  if (prepared_)
    capabilities_.feed_rests_on =
        fmt::format("triggers of larder source prepare, polled every {}ms",
                    std::max<DurationUs>(1, options_.poll_us / kMillisecond));
  else
    capabilities_.why_no_feed = fmt::format(
        "the database is not prepared (or depends_on has changed since): run `larder source "
        "prepare "
        "{}`, then restart",
        options_.name);
}

Result<void> Impl::check_statement(std::string_view text) {
  const std::string what =
      fmt::format("source \"{}\", statement `{}`", options_.name, shortened_sql(text));
  const auto sql = SqlText::parse(text);
  if (!sql) return std::unexpected(config_error(sql.error(), what, "sqlite"));
  auto db = Connection::open(options_.path, Connection::Mode::read);
  if (!db) return std::unexpected(config_error(db.error(), what, "sqlite"));
  auto stmt = (*db)->prepare(sql->text(), true);
  if (!stmt) return std::unexpected(config_error(stmt.error(), what, "sqlite"));
  if (auto same = check_parameters(**stmt, *sql); !same)
    return std::unexpected(config_error(same.error(), what, "sqlite"));
  return {};
}

// ---- which file is it? ----

Incarnation Impl::renew(FileId file) {
  std::random_device device;
  const std::uint64_t random = (std::uint64_t{device()} << 32) | device();
  MutexLock lock(identity_mutex_);
  ++identity_.generation;
  identity_.file = file;
  // Nodes that share an engine have to agree on it. (The same file gone back is not told apart by
  // it; then the feed begins a new epoch.)
  const std::uint64_t salt = options_.feed_for == FeedFor::fleet ? 0 : random;
  // Never 0, which means none.
  const auto born = static_cast<std::uint64_t>(file.born_ns);
  identity_.source_id = mix64(salt ^ mix64(file.device ^ mix64(file.inode ^ mix64(born)))) | 1U;
  return identity_;
}

Result<Incarnation> Impl::current() {
  const auto file = file_id(options_.path);
  if (!file)
    return fail(
        ErrorCode::source_down,
        fmt::format("the database file {} is missing: put it back, Larder opens it again by "
                    "itself",
                    options_.path),
        "sqlite");
  {
    MutexLock lock(identity_mutex_);
    if (identity_.file == *file) return identity_;
  }
  return renew(*file);
}

Result<bool> Impl::connect(std::unique_ptr<Connection>& db, std::uint64_t& generation,
                           const Incarnation& wanted, Connection::Mode mode) {
  if (db && db->broken()) db.reset();
  if (db && generation == wanted.generation) return false;
  db.reset();
  auto opened = Connection::open(options_.path, mode, log_.get());
  if (!opened) return std::unexpected(opened.error());
  db = std::move(*opened);
  generation = wanted.generation;
  return true;
}

void Impl::note(const Error* error) {
  const bool works = !error || error->code != ErrorCode::source_down;
  if (works && error) return;  // a refused statement says nothing about the database
  if (works_.exchange(works) == works || !options_.log) return;
  options_.log(fmt::format("source \"{}\": {}", options_.name,
                           works ? std::string("works again") : error->message));
}

}  // namespace larder::source::sqlite
