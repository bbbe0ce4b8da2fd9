#include <fmt/format.h>

#include <algorithm>

#include "base/hash.h"
#include "source/postgres/impl.h"

namespace larder::source::postgres {
namespace {

constexpr int kOldestServer = 130000;       // pg_current_snapshot()
constexpr int kChecksConnections = 140000;  // client_connection_check_interval
// A transaction of a node that is gone without a word gives its locks back after this.
constexpr std::string_view kLongestHold = "60000";

}  // namespace

Result<std::unique_ptr<Setup>> Setup::open(const std::string& url) {
  if (auto good = check_url(url); !good) return std::unexpected(good.error());
  const char* const keywords[] = {"connect_timeout", "fallback_application_name", "dbname",
                                  "client_encoding", nullptr};
  const char* const values[] = {"10", "larder", url.c_str(), "UTF8", nullptr};
  auto setup = std::make_unique<Setup>();
  setup->conn_.reset(PQconnectdbParams(keywords, values, 1));
  if (!setup->conn_) return fail(ErrorCode::out_of_memory, "no memory for a connection");
  PGconn* const conn = setup->conn_.get();
  PQsetNoticeReceiver(conn, [](void*, const PGresult*) {}, nullptr);
  if (PQstatus(conn) != CONNECTION_OK)
    return fail(ErrorCode::source_down, one_line(PQerrorMessage(conn)), "postgres");
  if (PQserverVersion(conn) < kOldestServer)
    return fail(ErrorCode::config,
                fmt::format("the server is PostgreSQL {}, Larder needs 13 or newer: its snapshots "
                            "cannot be read",
                            PQserverVersion(conn) / 10'000),
                "postgres");
  if (auto limited = setup->query("SET statement_timeout = '10s'"); !limited)
    return std::unexpected(limited.error());
  return setup;
}

Result<Reply> Setup::query(const std::string& sql) {
  Reply reply(PQexecParams(conn_.get(), sql.c_str(), 0, nullptr, nullptr, nullptr, nullptr, 0));
  if (PQstatus(conn_.get()) != CONNECTION_OK)
    return fail(ErrorCode::source_down, one_line(PQerrorMessage(conn_.get())), "postgres");
  if (!reply.ok()) return std::unexpected(reply.error());
  return reply;
}

Result<Reply> Setup::describe(const std::string& sql) {
  const Reply prepared(PQprepare(conn_.get(), "", sql.c_str(), 0, nullptr));
  if (PQstatus(conn_.get()) != CONNECTION_OK)
    return fail(ErrorCode::source_down, one_line(PQerrorMessage(conn_.get())), "postgres");
  if (!prepared.ok()) return std::unexpected(prepared.error());
  Reply described(PQdescribePrepared(conn_.get(), ""));
  if (!described.ok()) return std::unexpected(described.error());
  return described;
}

Result<std::unique_ptr<PostgresSource>> open_postgres(const Options& options) {
  auto source = std::make_unique<Impl>(options);
  if (auto opened = source->open(); !opened) return std::unexpected(opened.error());
  return source;
}

Impl::Impl(const Options& options)
    : options_(options),
      metrics_(QueryMetrics::of(options.metrics, options.name)),
      health_(options.name, options.log) {}

Impl::~Impl() {
  if (options_.metrics) options_.metrics->remove_callbacks(this);
}

Result<void> Impl::open() {
  const std::string where = fmt::format("source \"{}\"", options_.name);
  auto setup = Setup::open(options_.url);
  if (!setup) return std::unexpected(config_error(setup.error(), where, "postgres"));
  for (const LoadStatement& spec : options_.statements)
    if (auto checked = check_load(**setup, spec); !checked)
      return std::unexpected(config_error(
          checked.error(), fmt::format("{}, load statement `{}`", where, shortened_sql(spec.sql)),
          "postgres"));
  for (const WatchedTable& table : options_.watched)
    if (auto checked = check_watched(**setup, table); !checked)
      return std::unexpected(config_error(checked.error(), where, "postgres"));
  capabilities_ = {.kind = "postgres", .snapshots = true, .typed_texts = true};
  if (auto looked = open_feed(); !looked)
    return std::unexpected(config_error(looked.error(), where, "postgres"));
  // Nodes that share an engine judge by snapshots only what the feed has told them; without one
  // nobody could begin an epoch of this server.
  capabilities_.snapshots = capabilities_.feed || options_.feed_for == FeedFor::node;
  pool_ = make_pool(options_.url);
  open_replicas();
  if (options_.metrics) show_pool(*options_.metrics, options_.name, *pool_, this);
  const MutexLock lock(setup_mutex_);
  setup_ = std::move(*setup);
  set_up_ = true;
  return {};
}

std::unique_ptr<SessionPool> Impl::make_pool(const std::string& url) {
  return std::make_unique<SessionPool>(
      SessionPool::Options{
          .name = options_.name,
          .most = std::max(1U, options_.pool),
          .queue = options_.queue,
          .backoff = {.first_us = 20 * kMillisecond, .most_us = 1 * kSecond},
          .seed = static_cast<std::uint64_t>(monotonic_now_us()) ^ hash_bytes(url)},
      [this, url](TimeUs deadline) { return open_session(url, deadline); });
}

// They need not be there yet.
void Impl::open_replicas() {
  for (const std::string& url : options_.replicas) {
    Replica& replica = *replicas_.emplace_back(std::make_unique<Replica>());
    replica.url = url;
    replica.pool = make_pool(url);
    if (!options_.metrics) continue;
    const obs::Labels labels = {{"source", options_.name},
                                {"replica", std::to_string(replicas_.size())}};
    replica.loads = &options_.metrics->counter("larder_source_replica_loads_total", labels,
                                               "Loads that a replica has answered");
    replica.passed = &options_.metrics->counter(
        "larder_source_replica_passed_total", labels,
        "Loads that went to the primary because the replica was down, another server, or behind");
    options_.metrics->callback(
        obs::Registry::Kind::gauge, "larder_source_replica_lag_seconds", labels,
        "How far the replica was behind when it last answered",
        [&replica] { return static_cast<double>(replica.lag_us.load()) / kSecond; }, this);
  }
}

// What others change shows by the log, if the server can tell it.
Result<void> Impl::open_feed() {
  Capabilities& can = capabilities_;
  if (options_.slot.empty() || options_.watched.empty()) {
    can.why_no_feed = "no cache of this source declares depends_on: there is nothing to watch";
    return {};
  }
  constexpr DurationUs kPatience = 10 * kSecond;
  const PrepareOptions wanted{.means = options_.means,
                              .source = options_.name,
                              .slot = options_.slot,
                              .publication = options_.publication,
                              .feed_for = options_.feed_for,
                              .watched = options_.watched};
  const auto found = examine_now(options_.url, wanted, monotonic_now_us() + kPatience);
  if (!found) return std::unexpected(found.error());
  can.feed = found->works();
  if (!can.feed) {
    can.why_no_feed = found->why_not(options_.name);
    return {};
  }
  can.feed_rests_on = rests_on(wanted);
  can.echoes = options_.feed_for == FeedFor::node;
  FeedOptions feed{.name = options_.name,
                   .url = options_.url,
                   .feed_for = options_.feed_for,
                   .slot = options_.slot,
                   .publication = options_.publication,
                   .heartbeat_us = options_.heartbeat_us,
                   .check_us = options_.check_us,
                   .slot_limit_bytes = options_.slot_limit_bytes,
                   .watched = options_.watched,
                   .metrics = options_.metrics,
                   .log = options_.log};
  if (options_.means == Means::log) {
    feed_ = std::make_unique<Feed>(std::move(feed));
    return {};
  }
  change_reader_ = own_changes(ChangeTable(options_.slot), found->tables);
  table_feed_ = std::make_unique<TableFeed>(std::move(feed), options_.poll_us);
  return {};
}

Result<void> Impl::check_load(Setup& db, const LoadStatement& spec) {
  auto sql = SqlText::parse(spec.sql, Dialect::postgres);
  if (!sql) return std::unexpected(sql.error());
  if (auto given = check_key_params(*sql, spec); !given) return given;
  LoadPlan plan{.spec = spec, .sql = std::move(*sql), .text = {}};
  plan.text = plan.sql.numbered(0, '$');
  const auto described = db.describe(plan.text);
  if (!described) return std::unexpected(described.error());
  if (static_cast<std::size_t>(described->parameters()) != plan.sql.names().size())
    return fail(ErrorCode::config, "placeholders are written :name, not $1");
  auto layout = LoadLayout::make(spec, plan.text, *described);
  if (!layout) return std::unexpected(layout.error());
  // As it will run: a statement that writes, for one, cannot stand in a FROM.
  if (const auto taken = db.describe(layout->sql); !taken) return std::unexpected(taken.error());
  {
    const MutexLock lock(layouts_mutex_);
    layouts_[spec.id] = std::make_shared<const LoadLayout>(std::move(*layout));
  }
  plans_.emplace(spec.id, std::move(plan));
  return {};
}

// A change names a key by the column's text. If a key's text could find the row by other texts too
// ('07' finds the integer 7), the entries of those would never be invalidated.
Result<void> Impl::check_watched(Setup& db, const WatchedTable& table) {
  for (std::size_t i = 0; i < table.types.size(); ++i) {
    const auto quoted = [](std::string_view text) {
      std::string out = "'";
      for (const char c : text) out += c == '\'' ? std::string("''") : std::string(1, c);
      return out + "'";
    };
    const auto found = db.query(fmt::format(
        "SELECT t.typcategory, format_type(t.oid, NULL) FROM pg_attribute a JOIN pg_type d ON "
        "d.oid "
        "= a.atttypid JOIN pg_type t ON t.oid = CASE d.typtype WHEN 'd' THEN d.typbasetype ELSE "
        "d.oid END WHERE a.attrelid = to_regclass({0}) AND a.attname IN ({1}, lower({1})) AND "
        "a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attname = {1} DESC LIMIT 1",
        quoted(table.table), quoted(table.columns[i])));
    if (!found) return std::unexpected(found.error());
    if (found->rows() == 0)
      return fail(ErrorCode::config, fmt::format("depends_on: there is no column {}.{}",
                                                 table.table, table.columns[i]));
    const std::string category(found->value(0, 0).value_or(""));
    const std::string type(found->value(0, 1).value_or(""));
    bool fits = true;
    switch (table.types[i]) {
      case policy::ParamType::integer: fits = type != "real" && type != "double precision"; break;
      case policy::ParamType::uuid: fits = type == "uuid" || category == "S"; break;
      case policy::ParamType::text: fits = category == "S" || category == "E"; break;
    }
    if (fits) continue;
    return fail(ErrorCode::config,
                fmt::format("depends_on: column {}.{} is {}, but its key parameter is of another "
                            "type: other keys would find the same row and never be invalidated; "
                            "declare the parameter as int or uuid: {{name:int}}",
                            table.table, table.columns[i], type));
  }
  return {};
}

Result<void> Impl::check_statement(std::string_view text) {
  const auto sql = SqlText::parse(text, Dialect::postgres);
  if (!sql) return std::unexpected(sql.error());
  const MutexLock lock(setup_mutex_);
  if (!setup_) {
    auto opened = Setup::open(options_.url);
    if (!opened) return std::unexpected(opened.error());
    setup_ = std::move(*opened);
    set_up_ = true;
  }
  // The statement of that name, not the protocol's: it takes no COMMIT and no CREATE.
  const auto prepared = setup_->query("PREPARE larder_check AS\n" + sql->numbered(0, '$'));
  if (!prepared) {
    const bool syntax = prepared.error().message.find("42601") != std::string::npos;
    Error error = config_error(prepared.error(), "the database refuses it", "postgres");
    if (syntax) error.message += ": only SELECT, INSERT, UPDATE, DELETE and MERGE may stand here";
    return std::unexpected(std::move(error));
  }
  const auto dropped = setup_->query("DEALLOCATE larder_check");
  return dropped ? Result<void>{} : std::unexpected(dropped.error());
}

void Impl::end_setup() {
  if (!set_up_.load(std::memory_order_acquire)) return;
  std::unique_ptr<Setup> gone;
  const MutexLock lock(setup_mutex_);
  set_up_ = false;
  gone = std::move(setup_);
}

Task<Result<std::unique_ptr<Session>>> Impl::open_session(const std::string& url, TimeUs deadline) {
  auto connected = co_await Connection::connect(url, {}, deadline);
  if (!connected) co_return std::unexpected(connected.error());
  auto session = std::make_unique<Session>();
  session->connection = std::move(*connected);
  Connection& connection = *session->connection;
  if (connection.server_version() < kOldestServer)
    co_return fail(ErrorCode::source_down,
                   fmt::format("{} is PostgreSQL {}, Larder needs 13 or newer", connection.name(),
                               connection.server_version() / 10'000),
                   "postgres");
  const auto timeout = std::max<DurationUs>(1, options_.statement_timeout_us / kMillisecond);
  std::string settings = fmt::format(
      "SELECT set_config('statement_timeout', '{}', false), "
      "set_config('idle_in_transaction_session_timeout', '{}', false), "
      "set_config('DateStyle', 'ISO', false)",
      timeout, kLongestHold);
  // A statement whose caller has gone then ends within a second, and not with its own timeout.
  if (connection.server_version() >= kChecksConnections)
    settings += ", set_config('client_connection_check_interval', '1000', false)";
  Command command = Command::query(std::move(settings));
  const auto set = co_await connection.run_one(std::move(command), deadline);
  if (!set) co_return std::unexpected(set.error());
  const auto identity = co_await connection.identify(deadline);
  if (!identity) co_return std::unexpected(identity.error());
  session->identity = *identity;
  if (url == options_.url) primary_.store(identity->source_id(), std::memory_order_relaxed);
  session->identified_at = monotonic_now_us();
  co_return session;
}

Task<void> Impl::run_feed(TaskGroup& group, ChangeSink sink) {
  if (feed_)
    co_await feed_->run(group, std::move(sink));
  else if (table_feed_)
    co_await table_feed_->run(group, std::move(sink));
}

}  // namespace larder::source::postgres
