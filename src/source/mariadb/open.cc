#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <random>

#include "base/hash.h"
#include "source/mariadb/impl.h"

namespace larder::source::mariadb {
namespace {

constexpr unsigned long kOldestServer = 100300;  // EXECUTE ... USING takes expressions
// A transaction of a node that is gone without a word gives its locks back after this.
constexpr int kLongestHoldSeconds = 60;

std::string too_old(unsigned long version) {
  return fmt::format("the server is MariaDB (or MySQL) {}.{}, Larder needs MariaDB 10.3 or newer",
                     version / 10'000, version / 100 % 100);
}

bool is_mariadb(MYSQL* mysql) {
  return mariadb_connection(mysql) != 0 && mysql_get_server_version(mysql) >= kOldestServer;
}

Result<void> only_placeholders(const SqlText& sql, std::size_t parameters) {
  if (parameters == sql.placeholders().size()) return {};
  return fail(ErrorCode::config, "placeholders are written :name, not ?");
}

}  // namespace

// ---- Setup ----

Result<std::unique_ptr<Setup>> Setup::open(const std::string& text, DurationUs patience_us) {
  const auto url = Url::parse(text);
  if (!url) return std::unexpected(url.error());
  std::vector<Host> hosts = url->hosts;
  if (hosts.empty()) hosts.push_back({.name = {}, .port = 0});  // the socket
  Error last;
  for (const Host& host : hosts) {
    auto setup = std::make_unique<Setup>();
    setup->mysql_.reset(new_handle());
    MYSQL* const mysql = setup->mysql_.get();
    if (!mysql) return fail(ErrorCode::out_of_memory, "no memory for a connection", "mariadb");
    set_options(mysql, *url);
    const auto patience = static_cast<unsigned int>(patience_us / kSecond);
    for (const auto option :
         {MYSQL_OPT_CONNECT_TIMEOUT, MYSQL_OPT_READ_TIMEOUT, MYSQL_OPT_WRITE_TIMEOUT})
      mysql_options(mysql, option, &patience);
    const auto or_null = [](const std::string& s) { return s.empty() ? nullptr : s.c_str(); };
    if (!mysql_real_connect(mysql, or_null(host.name), or_null(url->user), url->password.c_str(),
                            url->database.c_str(), host.port, or_null(url->socket), kClientFlags)) {
      const unsigned number = mysql_errno(mysql);
      last = {ErrorCode::source_down,
              number >= 2000 && number < 3000 ? one_line(mysql_error(mysql))
                                              : server_error(number, mysql_error(mysql)).message,
              "mariadb"};
      continue;
    }
    if (!is_mariadb(mysql))
      return fail(ErrorCode::config, too_old(mysql_get_server_version(mysql)), "mariadb");
    if (auto limited = setup->query("SET SESSION max_statement_time = 10"); !limited)
      return std::unexpected(limited.error());
    return setup;
  }
  return std::unexpected(std::move(last));
}

Result<Reply> Setup::query(const std::string& sql) {
  MYSQL* const mysql = mysql_.get();
  if (mysql_real_query(mysql, sql.data(), sql.size()) != 0)
    return std::unexpected(server_error(mysql_errno(mysql), mysql_error(mysql)));
  MYSQL_RES* const rows = mysql_store_result(mysql);
  if (!rows && mysql_errno(mysql) != 0)
    return std::unexpected(server_error(mysql_errno(mysql), mysql_error(mysql)));
  const auto affected = static_cast<std::int64_t>(mysql_affected_rows(mysql));
  return rows ? Reply::of_rows(rows, affected) : Reply::of_count(affected);
}

Result<Setup::Described> Setup::describe(const std::string& sql) {
  std::unique_ptr<MYSQL_STMT, CloseStatement> statement(mysql_stmt_init(mysql_.get()));
  if (!statement) return fail(ErrorCode::out_of_memory, "no memory for a statement", "mariadb");
  if (mysql_stmt_prepare(statement.get(), sql.data(), sql.size()) != 0) {
    const unsigned number = mysql_stmt_errno(statement.get());
    if (number >= 2000 && number < 3000)
      return fail(ErrorCode::source_down, one_line(mysql_stmt_error(statement.get())), "mariadb");
    return std::unexpected(server_error(number, mysql_stmt_error(statement.get())));
  }
  MYSQL_RES* const columns = mysql_stmt_result_metadata(statement.get());
  const std::size_t parameters = mysql_stmt_param_count(statement.get());
  return Described{.statement = std::move(statement),
                   .columns = columns ? Reply::of_rows(columns, 0) : Reply::of_count(0),
                   .parameters = parameters};
}

// ---- Impl ----

Result<void> check_url(const std::string& url) {
  const auto parsed = Url::parse(url);
  if (!parsed) return std::unexpected(parsed.error());
  // A second one may be a replica: what a load from it has not seen yet nobody could tell.
  if (parsed->hosts.size() > 1)
    return fail(
        ErrorCode::config,
        "a mariadb:// url names one server: another may be a replica, which is behind. Name "
        "the primary, or an address that always leads to it",
        "mariadb");
  return {};
}

Result<std::unique_ptr<MariadbSource>> open_mariadb(const Options& options) {
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
  if (auto good = check_url(options_.url); !good)
    return std::unexpected(config_error(good.error(), where, "mariadb"));
  auto url = Url::parse(options_.url);
  url_ = std::move(*url);
  auto setup = Setup::open(options_.url);
  if (!setup) return std::unexpected(config_error(setup.error(), where, "mariadb"));
  for (const LoadStatement& spec : options_.statements)
    if (auto checked = check_load(**setup, spec); !checked)
      return std::unexpected(config_error(
          checked.error(), fmt::format("{}, load statement `{}`", where, shortened_sql(spec.sql)),
          "mariadb"));
  for (const WatchedTable& table : options_.watched)
    if (auto checked = check_watched(**setup, table); !checked)
      return std::unexpected(config_error(checked.error(), where, "mariadb"));
  // Our numbers are this process's own: they order nothing for nodes that share an engine.
  capabilities_ = {
      .kind = "mariadb", .snapshots = options_.feed_for == FeedFor::node, .number_texts = true};
  std::random_device device;
  salt_ = (std::uint64_t{device()} << 32U) | device();
  if (auto fed = open_feed(); !fed)
    return std::unexpected(config_error(fed.error(), where, "mariadb"));
  pool_ = std::make_unique<SessionPool>(
      SessionPool::Options{.name = options_.name,
                           .most = std::max(1U, options_.pool),
                           .queue = options_.queue,
                           .backoff = {.first_us = 20 * kMillisecond, .most_us = 1 * kSecond},
                           .seed = salt_},
      [this](TimeUs deadline) { return open_session(deadline); });
  if (options_.metrics) show_pool(*options_.metrics, options_.name, *pool_, this);
  const MutexLock lock(setup_mutex_);
  setup_ = std::move(*setup);
  set_up_ = true;
  return {};
}

Result<void> Impl::check_load(Setup& db, const LoadStatement& spec) {
  auto sql = SqlText::parse(spec.sql, Dialect::mariadb);
  if (!sql) return std::unexpected(sql.error());
  if (auto given = check_key_params(*sql, spec); !given) return given;
  if (!is_query(sql->text()))
    return fail(ErrorCode::config, "only SELECT (or WITH ... SELECT) may stand here");
  LoadPlan plan{.spec = spec, .sql = std::move(*sql), .text = {}};
  plan.text = plan.sql.positional();
  const auto described = db.describe(plan.text);
  if (!described) return std::unexpected(described.error());
  if (auto good = only_placeholders(plan.sql, described->parameters); !good) return good;
  if (const auto layout = LoadLayout::make(spec, described->columns); !layout)
    return std::unexpected(layout.error());
  plans_.emplace(spec.id, std::move(plan));
  return {};
}

// A change names a key by the column's text. If a key's text could find the row by other texts too
// ('07' finds the integer 7, and 7 the text '07'), the entries of those would never be invalidated.
Result<void> Impl::check_watched(Setup& db, const WatchedTable& table) {
  for (std::size_t i = 0; i < table.types.size(); ++i) {
    auto found = db.query(
        fmt::format("SELECT DATA_TYPE FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = "
                    "DATABASE() AND TABLE_NAME = {} AND COLUMN_NAME = {}",
                    literal_of_text(table.table), literal_of_text(table.columns[i])));
    if (!found) return std::unexpected(found.error());
    if (!found->next())
      return fail(ErrorCode::config, fmt::format("depends_on: there is no column {}.{}",
                                                 table.table, table.columns[i]));
    const std::string type(found->value(0).value_or(""));
    const bool texts = type.ends_with("char") || type.ends_with("text") || type == "enum";
    const bool integers = type.ends_with("int") || type == "decimal" || type == "bit";
    bool fits = true;
    switch (table.types[i]) {
      case policy::ParamType::integer: fits = integers; break;
      case policy::ParamType::uuid: fits = type == "uuid" || texts; break;
      case policy::ParamType::text: fits = texts; break;
    }
    if (fits) continue;
    return fail(ErrorCode::config,
                fmt::format("depends_on: column {}.{} is {}, but its key parameter is of another "
                            "type: other keys would find the same row and never be invalidated; "
                            "declare the parameter by the column's type: {{name:int}}, "
                            "{{name:text}}, {{name:uuid}}",
                            table.table, table.columns[i], type));
  }
  return {};
}

Result<void> Impl::check_statement(std::string_view text) {
  const auto sql = SqlText::parse(text, Dialect::mariadb);
  if (!sql) return std::unexpected(sql.error());
  static constexpr std::string_view kWrites[] = {"insert", "update", "delete", "replace"};
  if (!is_query(sql->text()) &&
      std::ranges::find(kWrites, first_word(sql->text())) == std::end(kWrites))
    return fail(ErrorCode::config,
                "only SELECT, INSERT, UPDATE, DELETE and REPLACE may stand here: whatever else "
                "could end the transaction");
  const MutexLock lock(setup_mutex_);
  if (!setup_) {
    auto opened = Setup::open(options_.url);
    if (!opened) return std::unexpected(opened.error());
    setup_ = std::move(*opened);
    set_up_ = true;
  }
  const auto described = setup_->describe(sql->positional());
  if (!described)
    return std::unexpected(config_error(described.error(), "the database refuses it", "mariadb"));
  return only_placeholders(*sql, described->parameters);
}

void Impl::end_setup() {
  if (!set_up_.load(std::memory_order_acquire)) return;
  std::unique_ptr<Setup> gone;
  const MutexLock lock(setup_mutex_);
  set_up_ = false;
  gone = std::move(setup_);
}

Task<Result<std::unique_ptr<Session>>> Impl::open_session(TimeUs deadline) {
  Url url = url_;
  auto connected = co_await Connection::connect(std::move(url), deadline);
  if (!connected) co_return std::unexpected(connected.error());
  auto session = std::make_unique<Session>();
  session->connection = std::move(*connected);
  Connection& connection = *session->connection;
  if (!is_mariadb(connection.raw()))
    co_return fail(ErrorCode::source_down,
                   fmt::format("{}: {}", connection.name(),
                               too_old(mysql_get_server_version(connection.raw()))),
                   "mariadb");
  session->lock = fmt::format("larder_{:016x}_{}", salt_, ++sessions_);
  Batch batch;
  batch.add(fmt::format(
      "SET SESSION max_statement_time = {:.3f}, idle_transaction_timeout = {}, autocommit = 1",
      static_cast<double>(std::max(kMillisecond, options_.statement_timeout_us)) / kSecond,
      kLongestHoldSeconds));
  // A load by itself is a transaction of the server's default level; this one shows what may yet be
  // rolled back.
  batch.add(
      "SET SESSION tx_isolation = IF(@@tx_isolation = 'READ-UNCOMMITTED', 'READ-COMMITTED', "
      "@@tx_isolation)");
  batch.add(std::string(kIncarnationSql));
  batch.add(fmt::format("SELECT @@max_allowed_packet, GET_LOCK('{}', 0)", session->lock));
  auto replies = co_await connection.run(std::move(batch), deadline);
  if (!replies) co_return std::unexpected(replies.error());
  Reply& facts = replies->back();
  if (!facts.ok()) co_return std::unexpected(facts.error());
  if (!facts.next() || facts.value(1) != "1")
    co_return fail(ErrorCode::source_down,
                   connection.name() + " does not give a lock that nobody else can have",
                   "mariadb");
  session->server = incarnation_of((*replies)[replies->size() - 2], salt_);
  const std::string_view packet = facts.value(0).value_or("");
  std::from_chars(packet.data(), packet.data() + packet.size(), session->most_packet);
  co_return session;
}

std::uint64_t incarnation_of(Reply& reply, std::uint64_t salt) {
  std::string who;
  if (reply.next())
    for (unsigned i = 0; i < reply.columns(); ++i)
      who += std::string(reply.value(i).value_or("")) + '\n';
  return mix64(salt ^ hash_bytes(who, salt)) | 1U;  // never 0
}

Result<void> Impl::open_feed() {
  if (options_.feed_for == FeedFor::fleet) {
    capabilities_.why_no_feed =
        "nodes that share an engine would need numbers of transactions that all of them know, "
        "and MariaDB gives none before COMMIT: changes by others show when an entry's ttl ends, "
        "or by LARDER.INVALIDATE";
    return {};
  }
  if (options_.watched.empty()) {
    capabilities_.why_no_feed =
        "no cache of this source declares depends_on: there is nothing to watch";
    return {};
  }
  auto missing = what_is_missing(options_.url, options_.watched);
  if (!missing) return std::unexpected(std::move(missing.error()));
  capabilities_.feed = missing->empty();
  capabilities_.why_no_feed = fmt::format("{}", fmt::join(*missing, "; "));
  if (!capabilities_.feed) return {};
  capabilities_.feed_rests_on = kRestsOn;
  capabilities_.echoes = true;
  feed_ = std::make_unique<Feed>(FeedOptions{.name = options_.name,
                                             .url = options_.url,
                                             .watched = options_.watched,
                                             .heartbeat_us = options_.heartbeat_us,
                                             .salt = salt_,
                                             .log = options_.log},
                                 numbers_);
  return {};
}

Task<void> Impl::run_feed(TaskGroup& group, ChangeSink sink) {
  if (feed_) co_await feed_->run(group, std::move(sink));
}

}  // namespace larder::source::mariadb
