#include "source/postgres/connection.h"

#include <fmt/format.h>
#include <openssl/ssl.h>
#include <poll.h>

#include <algorithm>
#include <charconv>

#include "base/hash.h"
#include "source/postgres/hosts.h"

namespace larder::source::postgres {
namespace {

constexpr std::size_t kMostMessage = 500;

void ignore_notice(void*, const PGresult*) {}

std::vector<const char*> pointers_of(const std::vector<std::optional<std::string>>& params) {
  std::vector<const char*> out;
  out.reserve(params.size());
  for (const auto& param : params) out.push_back(param ? param->c_str() : nullptr);
  return out;
}

}  // namespace

std::string one_line(std::string_view message) {
  message = message.substr(0, message.find('\n'));
  while (!message.empty() && message.back() == ' ') message.remove_suffix(1);
  return std::string(message.substr(0, kMostMessage));
}

Error server_error(std::string_view sqlstate, std::string_view message, std::string_view detail,
                   std::string_view hint) {
  std::string text = one_line(message);
  if (!detail.empty()) text += fmt::format("; {}", one_line(detail));
  if (!hint.empty()) text += fmt::format("; {}", one_line(hint));
  text += fmt::format(" (SQLSTATE {})", sqlstate.empty() ? "unknown" : sqlstate);
  const auto is = [&](ErrorCode code, std::string_view advice = {}) {
    if (!advice.empty()) text += fmt::format(": {}", advice);
    return Error{code, std::move(text), "postgres"};
  };
  const std::string_view group = sqlstate.substr(0, 2);
  // Whoever is cancelled by the server (statement_timeout, an administrator) has run out of time.
  if (sqlstate == "57014") return is(ErrorCode::timeout);
  if (sqlstate == "53300")
    return is(ErrorCode::source_down, "raise max_connections, or lower `pool`");
  if (sqlstate == "40001" || sqlstate == "40P01" || sqlstate == "55P03")
    return is(ErrorCode::source_down, "other transactions were in the way; repeat it");
  if (sqlstate == "25006")
    return is(ErrorCode::source_down,
              "this is a standby or read-only: name the primary in the url, or several hosts with "
              "target_session_attrs=read-write");
  if (group == "08" || group == "57" || group == "58" || group == "53")
    return is(ErrorCode::source_down);
  if (group == "54") return is(ErrorCode::too_large);
  return is(ErrorCode::source_refused);
}

// ---- Reply ----

bool Reply::ok() const {
  switch (status()) {
    case PGRES_TUPLES_OK:
    case PGRES_COMMAND_OK:
    case PGRES_EMPTY_QUERY:
    case PGRES_COPY_BOTH:
    case PGRES_COPY_IN:
    case PGRES_COPY_OUT: return true;
    default: return false;
  }
}

Error Reply::error() const {
  if (skipped())
    return {ErrorCode::internal, "not run, because an earlier command failed", "postgres"};
  const auto field = [&](int code) {
    const char* const text = PQresultErrorField(result_.get(), code);
    return std::string_view(text ? text : "");
  };
  std::string_view message = field(PG_DIAG_MESSAGE_PRIMARY);
  if (message.empty()) message = PQresultErrorMessage(result_.get());
  return server_error(sqlstate(), message, field(PG_DIAG_MESSAGE_DETAIL),
                      field(PG_DIAG_MESSAGE_HINT));
}

std::string_view Reply::sqlstate() const {
  const char* const text = PQresultErrorField(result_.get(), PG_DIAG_SQLSTATE);
  return text ? text : "";
}

std::optional<std::string_view> Reply::value(int row, int column) const {
  if (PQgetisnull(result_.get(), row, column)) return std::nullopt;
  return std::string_view(PQgetvalue(result_.get(), row, column),
                          static_cast<std::size_t>(PQgetlength(result_.get(), row, column)));
}

std::int64_t Reply::affected() const {
  if (tag().starts_with("SELECT")) return 0;
  const std::string_view count = PQcmdTuples(result_.get());
  std::int64_t rows = 0;
  std::from_chars(count.data(), count.data() + count.size(), rows);
  return rows;
}

// ---- Command ----

Command Command::query(std::string sql, std::vector<std::optional<std::string>> params) {
  return {.kind = Kind::query, .name = {}, .sql = std::move(sql), .params = std::move(params)};
}
Command Command::prepare(std::string name, std::string sql) {
  return {.kind = Kind::prepare, .name = std::move(name), .sql = std::move(sql), .params = {}};
}
Command Command::describe(std::string name) {
  return {.kind = Kind::describe, .name = std::move(name), .sql = {}, .params = {}};
}
Command Command::execute(std::string name, std::vector<std::optional<std::string>> params) {
  return {.kind = Kind::execute, .name = std::move(name), .sql = {}, .params = std::move(params)};
}
Command Command::sync() { return {.kind = Kind::sync, .name = {}, .sql = {}, .params = {}}; }

// ---- ServerIdentity ----

std::uint64_t ServerIdentity::source_id_of(std::uint64_t system_id, std::uint32_t timeline) {
  const std::uint64_t id = mix64(mix64(system_id) ^ timeline);
  return id == 0 ? 1 : id;
}

// ---- Connection ----

Connection::~Connection() = default;

Task<Result<std::unique_ptr<Connection>>> Connection::connect(std::string url, Settings settings,
                                                              TimeUs deadline) {
  auto found = co_await targets_of(url, settings, deadline);
  if (!found) co_return std::unexpected(found.error());
  const std::vector<Target> targets = std::move(*found);
  Error last{ErrorCode::source_down, "the url names no host", "postgres"};
  for (std::size_t i = 0; i < targets.size(); ++i) {
    const TimeUs now = monotonic_now_us();
    if (now >= deadline)
      co_return fail(ErrorCode::timeout, "no connection to the server in time", "postgres");
    // A host that does not answer must leave time for the next.
    const auto left = static_cast<DurationUs>(targets.size() - i);
    const TimeUs until = left > 1 && deadline != kNever ? now + (deadline - now) / left : deadline;
    std::unique_ptr<Connection> connection(new Connection());
    Settings of_target = settings;
    for (const auto& setting : targets[i].settings) of_target.push_back(setting);
    connection->name_ = targets[i].name;
    connection->loop_ = Loop::current();
    Result<void> done = connection->start(url, of_target);
    if (done) done = co_await connection->finish_connect(until);
    if (done) co_return connection;
    last = std::move(done.error());
  }
  co_return std::unexpected(std::move(last));
}

Result<void> Connection::start(const std::string& url, const Settings& settings) {
  std::vector<const char*> keywords = {"fallback_application_name", "dbname"};
  std::vector<const char*> values = {"larder", url.c_str()};
  for (const auto& [keyword, value] : settings) {
    keywords.push_back(keyword.c_str());
    values.push_back(value.c_str());
  }
  keywords.push_back("client_encoding");
  values.push_back("UTF8");
  keywords.push_back(nullptr);
  values.push_back(nullptr);
  conn_.reset(PQconnectStartParams(keywords.data(), values.data(), 1));
  if (!conn_) return fail(ErrorCode::out_of_memory, "no memory for a connection", "postgres");
  PQsetNoticeReceiver(conn_.get(), ignore_notice, nullptr);
  if (PQstatus(conn_.get()) == CONNECTION_BAD) return lost("connect");
  return {};
}

Task<Result<void>> Connection::finish_connect(TimeUs deadline) {
  PostgresPollingStatusType next = PGRES_POLLING_WRITING;
  while (next != PGRES_POLLING_OK) {
    if (next == PGRES_POLLING_FAILED) co_return lost("connect");
    // Each step anew: libpq may have closed its socket and opened another of the same number.
    if (auto watched = watch(); !watched) co_return watched;
    const auto ready = co_await readiness_->wait(next == PGRES_POLLING_READING,
                                                 next == PGRES_POLLING_WRITING, deadline);
    if (ready.timed_out()) co_return out_of_time("connecting");
    readiness_.reset();
    next = PQconnectPoll(conn_.get());
  }
  if (PQsetnonblocking(conn_.get(), 1) != 0) co_return lost("connect");
  co_return watch();
}

Result<void> Connection::watch() {
  auto opened = net::Readiness::open(PQsocket(conn_.get()));
  if (!opened) {
    broken_ = true;
    return fail(ErrorCode::source_down,
                fmt::format("cannot connect to {}: {}", name_, opened.error().message), "postgres");
  }
  readiness_ = std::move(*opened);
  return {};
}

std::unexpected<Error> Connection::lost(std::string_view doing) {
  broken_ = true;
  std::string why = one_line(PQerrorMessage(conn_.get()));
  if (why.empty()) why = "the server closed the connection";
  return fail(ErrorCode::source_down,
              doing == "connect"
                  ? fmt::format("cannot connect to {}: {}", name_, why)
                  : fmt::format("the connection to {} was lost while {}: {}", name_, doing, why),
              "postgres");
}

std::unexpected<Error> Connection::out_of_time(std::string_view doing) {
  broken_ = true;
  return fail(ErrorCode::timeout,
              fmt::format("{} did not answer before the deadline, while {}", name_, doing),
              "postgres");
}

bool Connection::send(const Command& command) {
  PGconn* const conn = conn_.get();
  const int count = static_cast<int>(command.params.size());
  const auto params = pointers_of(command.params);
  int sent = 0;
  switch (command.kind) {
    case Command::Kind::query:
      sent = PQsendQueryParams(conn, command.sql.c_str(), count, nullptr, params.data(), nullptr,
                               nullptr, 0);
      break;
    case Command::Kind::prepare:
      sent = PQsendPrepare(conn, command.name.c_str(), command.sql.c_str(), 0, nullptr);
      break;
    case Command::Kind::describe: sent = PQsendDescribePrepared(conn, command.name.c_str()); break;
    case Command::Kind::execute:
      sent = PQsendQueryPrepared(conn, command.name.c_str(), count, params.data(), nullptr, nullptr,
                                 0);
      break;
    case Command::Kind::sync:
      sent = PQpipelineSync(conn);
      ++pipelines_;
      break;
  }
  if (sent != 0) owed_.push_back(command.kind);
  return sent != 0;
}

bool Connection::send_and_forget(const Command& command) {
  if (broken_) return false;
  broken_ = PQenterPipelineMode(conn_.get()) == 0 || !send(command) || !send(Command::sync()) ||
            // What does not fit into the socket now would wait for the next run().
            PQflush(conn_.get()) != 0;
  return !broken_;
}

// What has come. With TLS more may lie decrypted in OpenSSL than libpq has room for at once, and
// the socket would not tell of it again.
bool Connection::consume() {
  do {
    if (PQconsumeInput(conn_.get()) == 0) return false;
    if (!PQsslInUse(conn_.get())) return true;
    auto* const ssl = static_cast<SSL*>(PQsslStruct(conn_.get(), "OpenSSL"));
    if (!ssl || SSL_pending(ssl) == 0) return true;
  } while (PQstatus(conn_.get()) == CONNECTION_OK);
  return false;
}

Task<Result<void>> Connection::wait(bool write, TimeUs deadline) {
  const auto ready = co_await readiness_->wait(true, write, deadline);
  if (ready.cancelled) {
    interrupted_ = true;
    co_return fail(ErrorCode::cancelled, "the wait for the server was interrupted", "postgres");
  }
  if (ready.timed_out()) co_return fail(ErrorCode::timeout, "");
  if (ready.readable && !consume()) co_return lost("waiting for it");
  co_return Result<void>();
}

// The server may fill its side of the connection before it has read all of ours: so it is read
// while we write.
Task<Result<void>> Connection::flush(TimeUs deadline) {
  for (;;) {
    const int left = PQflush(conn_.get());
    if (left == 0) co_return Result<void>();
    if (left < 0) co_return lost("writing to it");
    const Result<void> ready = co_await wait(true, deadline);
    if (ready) continue;
    broken_ = true;
    if (ready.error().code == ErrorCode::timeout) co_return out_of_time("it was written to");
    co_return ready;
  }
}

Task<Result<PGresult*>> Connection::next_result(TimeUs deadline) {
  while (PQisBusy(conn_.get()) != 0) {
    const Result<void> ready = co_await wait(false, deadline);
    if (ready) continue;
    broken_ = true;
    if (ready.error().code == ErrorCode::timeout) co_return out_of_time("a statement ran");
    co_return std::unexpected(ready.error());
  }
  co_return PQgetResult(conn_.get());
}

Task<Result<std::vector<Reply>>> Connection::run(std::vector<Command> commands, TimeUs deadline) {
  if (broken_) co_return lost("it lay idle");
  const std::size_t skip = owed_.size();
  if (PQenterPipelineMode(conn_.get()) == 0) co_return lost("writing to it");
  if (commands.empty() || commands.back().kind != Command::Kind::sync)
    commands.push_back(Command::sync());
  for (const Command& command : commands)
    if (!send(command)) co_return lost("writing to it");
  const Result<void> flushed = co_await flush(deadline);
  if (!flushed) co_return std::unexpected(flushed.error());

  std::vector<Reply> replies;
  replies.reserve(commands.size());
  for (std::size_t i = 0; !owed_.empty(); ++i) {
    const bool sync = owed_.front() == Command::Kind::sync;
    bool first = true;
    for (;;) {
      auto result = co_await next_result(deadline);
      if (!result) co_return std::unexpected(result.error());
      if (*result == nullptr) break;
      Reply reply(*result);
      // A connection that goes down says so as the answer to whatever was asked.
      if (PQstatus(conn_.get()) == CONNECTION_BAD) co_return lost("a statement ran");
      if (first && !sync && i >= skip) replies.push_back(std::move(reply));
      first = false;
      if (sync) break;  // no null follows it
    }
    if (first) co_return lost("a statement ran");  // libpq owes one result for each command
    owed_.pop_front();
  }
  co_return replies;
}

Task<Result<Reply>> Connection::run_one(Command command, TimeUs deadline) {
  std::vector<Command> commands;
  commands.push_back(std::move(command));
  auto replies = co_await run(std::move(commands), deadline);
  if (!replies) co_return std::unexpected(replies.error());
  if (!replies->front().ok()) co_return std::unexpected(replies->front().error());
  co_return std::move(replies->front());
}

Task<Result<Reply>> Connection::simple(std::string sql, TimeUs deadline) {
  if (broken_) co_return lost("it lay idle");
  if (!owed_.empty()) {
    std::vector<Command> none;
    const auto drained = co_await run(std::move(none), deadline);
    if (!drained) co_return std::unexpected(drained.error());
  }
  if (PQexitPipelineMode(conn_.get()) == 0 || PQsendQuery(conn_.get(), sql.c_str()) == 0)
    co_return lost("writing to it");
  const Result<void> flushed = co_await flush(deadline);
  if (!flushed) co_return std::unexpected(flushed.error());
  std::optional<Reply> last;
  for (;;) {
    auto result = co_await next_result(deadline);
    if (!result) co_return std::unexpected(result.error());
    if (*result == nullptr) break;
    Reply reply(*result);
    if (PQstatus(conn_.get()) == CONNECTION_BAD) co_return lost("a statement ran");
    const ExecStatusType status = reply.status();
    if (!last || last->ok()) last = std::move(reply);
    if (status == PGRES_COPY_BOTH || status == PGRES_COPY_IN || status == PGRES_COPY_OUT) break;
  }
  if (!last) co_return lost("a statement ran");
  if (!last->ok()) co_return std::unexpected(last->error());
  co_return std::move(*last);
}

Task<Result<std::optional<CopyBlock>>> Connection::receive_copy(TimeUs deadline) {
  for (;;) {
    char* bytes = nullptr;
    const int size = PQgetCopyData(conn_.get(), &bytes, 1);
    if (size > 0) co_return CopyBlock(bytes, static_cast<std::size_t>(size));
    if (size == -1) co_return std::optional<CopyBlock>();
    if (size < 0) co_return lost("it sent a stream");
    const Result<void> ready = co_await wait(false, deadline);
    if (ready) continue;
    if (ready.error().code == ErrorCode::timeout)
      co_return fail(ErrorCode::timeout, "nothing came before the deadline", "postgres");
    co_return std::unexpected(ready.error());
  }
}

Task<Result<void>> Connection::send_copy(std::string bytes, TimeUs deadline) {
  for (;;) {
    const int put = PQputCopyData(conn_.get(), bytes.data(), static_cast<int>(bytes.size()));
    if (put < 0) co_return lost("writing to it");
    const Result<void> flushed = co_await flush(deadline);
    if (!flushed || put > 0) co_return flushed;
  }
}

Task<Result<void>> Connection::finish_copy(bool send_end, TimeUs deadline) {
  if (send_end && PQputCopyEnd(conn_.get(), nullptr) < 0) co_return lost("writing to it");
  const Result<void> flushed = co_await flush(deadline);
  if (!flushed) co_return flushed;
  Result<void> outcome;
  for (;;) {
    auto result = co_await next_result(deadline);
    if (!result) co_return std::unexpected(result.error());
    if (*result == nullptr) break;
    const Reply reply(*result);
    if (PQstatus(conn_.get()) == CONNECTION_BAD) co_return lost("it ended a stream");
    if (reply.status() == PGRES_COPY_BOTH || reply.status() == PGRES_COPY_OUT) {
      // It goes on sending until it has read our end.
      for (;;) {
        auto block = co_await receive_copy(deadline);
        if (!block) {
          broken_ = true;
          co_return std::unexpected(block.error());
        }
        if (!*block) break;
      }
      continue;
    }
    if (reply.status() == PGRES_COPY_IN) {  // the server has ended its side and waits for ours
      if (PQputCopyEnd(conn_.get(), nullptr) < 0) co_return lost("writing to it");
      const Result<void> ended = co_await flush(deadline);
      if (!ended) co_return ended;
      continue;
    }
    if (outcome && !reply.ok()) outcome = std::unexpected(reply.error());
  }
  co_return outcome;
}

Task<Result<ServerIdentity>> Connection::identify(TimeUs deadline) {
  // CASE: neither function works where the other one does.
  Command ask = Command::query(
      "SELECT system_identifier, pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() THEN "
      "(SELECT timeline_id FROM pg_control_checkpoint()) ELSE ('x' || "
      "left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer END "
      "FROM pg_control_system()");
  auto reply = co_await run_one(std::move(ask), deadline);
  if (!reply) co_return std::unexpected(reply.error());
  ServerIdentity identity;
  std::int64_t system = 0;  // shown as a signed number
  const auto number = [&](int column, auto& out) {
    const std::string_view text = reply->value(0, column).value_or("");
    return std::from_chars(text.data(), text.data() + text.size(), out).ec == std::errc();
  };
  if (reply->rows() != 1 || !number(0, system) || !number(2, identity.timeline))
    co_return fail(ErrorCode::source_down, name_ + " does not say which server it is", "postgres");
  identity.system_id = static_cast<std::uint64_t>(system);
  identity.in_recovery = reply->value(0, 1) == "t";
  co_return identity;
}

void Connection::interrupt() {
  if (readiness_) readiness_->cancel();
}

bool Connection::stale() {
  if (broken_) return true;
  // The reply to what was sent and forgotten, a notice or a changed parameter is no bad sign; an
  // end is, and what a server says before it closes comes in front of it.
  for (int i = 0; i < 4; ++i) {
    pollfd look = {.fd = PQsocket(conn_.get()), .events = POLLIN, .revents = 0};
    if (::poll(&look, 1, 0) == 0) return false;
    if (!consume() || PQstatus(conn_.get()) == CONNECTION_BAD) break;
  }
  broken_ = true;
  return broken_;
}

std::string Connection::parameter(const char* name) const {
  const char* const value = PQparameterStatus(conn_.get(), name);
  return value ? value : "";
}

}  // namespace larder::source::postgres
