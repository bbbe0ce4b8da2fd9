#include "source/mariadb/connection.h"

#include <errmsg.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <mutex>

namespace larder::source::mariadb {
namespace {

constexpr std::size_t kMostMessage = 500;
constexpr unsigned long kMostPacket = 1UL << 30;  // libmariadb's largest; the server has its own

bool is_of_client(unsigned number) { return number >= CR_MIN_ERROR && number < 3000; }

}  // namespace

std::string one_line(std::string_view message) {
  message = message.substr(0, message.find('\n'));
  while (!message.empty() && message.back() == ' ') message.remove_suffix(1);
  return std::string(message.substr(0, kMostMessage));
}

// ER_OPTION_PREVENTS_STATEMENT names the option; ER_READ_ONLY_MODE.
bool is_read_only(unsigned number, std::string_view message) {
  return number == 1836 || (number == 1290 && message.contains("read-only"));
}

Error server_error(unsigned number, std::string_view message) {
  std::string text = fmt::format("{} (error {})", one_line(message), number);
  const auto is = [&](ErrorCode code, std::string_view advice = {}) {
    if (!advice.empty()) text += fmt::format(": {}", advice);
    return Error{code, std::move(text), "mariadb"};
  };
  if (is_read_only(number, message))
    return is(ErrorCode::source_down,
              "this is a replica or read-only: name the primary in the url, or before it");
  switch (number) {
    case 1969:  // ER_STATEMENT_TIMEOUT
    case 1317:  // ER_QUERY_INTERRUPTED: KILL QUERY
      return is(ErrorCode::timeout);
    case 1040:  // ER_CON_COUNT_ERROR
      return is(ErrorCode::source_down, "raise max_connections, or lower `pool`");
    case 1203:  // ER_TOO_MANY_USER_CONNECTIONS
    case 1226:  // ER_USER_LIMIT_REACHED
      return is(ErrorCode::source_down, "raise the user's limit, or lower `pool`");
    case 1461:  // ER_MAX_PREPARED_STMT_COUNT_REACHED
      return is(ErrorCode::source_down, "raise max_prepared_stmt_count, or lower `pool`");
    case 1020:  // ER_CHECKREAD: changed since it was read
    case 1205:  // ER_LOCK_WAIT_TIMEOUT
    case 1213:  // ER_LOCK_DEADLOCK
    case 1614:  // ER_XA_RBDEADLOCK
    case kDefinitionChanged:
      return is(ErrorCode::source_down, "other transactions were in the way; repeat it");
    case 1053:  // ER_SERVER_SHUTDOWN
    case 1077:  // ER_NORMAL_SHUTDOWN
    case 1079:  // ER_SHUTDOWN_COMPLETE
    case 1927:  // ER_CONNECTION_KILLED
    case 1021:  // ER_DISK_FULL
    case 1026:  // ER_ERROR_ON_WRITE
    case 1037:  // ER_OUTOFMEMORY
    case 1041:  // ER_OUT_OF_RESOURCES
    case 1114:  // ER_RECORD_FILE_FULL
    case 1135:  // ER_CANT_CREATE_THREAD
      return is(ErrorCode::source_down);
    case 1153:  // ER_NET_PACKET_TOO_LARGE
    case 1301:  // ER_WARN_ALLOWED_PACKET_OVERFLOWED
      return is(ErrorCode::too_large, "raise max_allowed_packet");
    default: break;
  }
  return is(ErrorCode::source_refused);
}

MYSQL* new_handle() {
  static std::once_flag once;
  std::call_once(once, [] { mysql_server_init(0, nullptr, nullptr); });
  return mysql_init(nullptr);
}

void set_options(MYSQL* mysql, const Url& url) {
  mysql_options(mysql, MYSQL_SET_CHARSET_NAME, "utf8mb4");
  mysql_options(mysql, MYSQL_OPT_MAX_ALLOWED_PACKET, &kMostPacket);
  // LOAD DATA LOCAL would let a server read our files.
  const unsigned int no = 0;
  mysql_options(mysql, MYSQL_OPT_LOCAL_INFILE, &no);
  const unsigned int protocol = url.socket.empty() ? MYSQL_PROTOCOL_TCP : MYSQL_PROTOCOL_SOCKET;
  mysql_options(mysql, MYSQL_OPT_PROTOCOL, &protocol);
  mysql_optionsv(mysql, MYSQL_OPT_CONNECT_ATTR_ADD, "program_name", "larder");
  const my_bool tls = url.tls ? 1 : 0;
  const my_bool verify = url.tls && url.verify ? 1 : 0;
  mysql_optionsv(mysql, MYSQL_OPT_SSL_ENFORCE, &tls);
  mysql_optionsv(mysql, MYSQL_OPT_SSL_VERIFY_SERVER_CERT, &verify);
  if (!url.ca.empty()) mysql_optionsv(mysql, MYSQL_OPT_SSL_CA, url.ca.c_str());
  if (!url.cert.empty()) mysql_optionsv(mysql, MYSQL_OPT_SSL_CERT, url.cert.c_str());
  if (!url.key.empty()) mysql_optionsv(mysql, MYSQL_OPT_SSL_KEY, url.key.c_str());
}

// ---- Reply ----

Reply Reply::of_rows(MYSQL_RES* rows, std::int64_t affected) {
  Reply reply;
  reply.rows_.reset(rows);
  reply.affected_ = affected;
  return reply;
}

Reply Reply::of_count(std::int64_t affected) {
  Reply reply;
  reply.affected_ = affected;
  return reply;
}

Reply Reply::of_error(unsigned number, std::string_view message) {
  Reply reply;
  reply.number_ = number;
  reply.message_ = message;
  return reply;
}

Error Reply::error() const { return server_error(number_, message_); }

bool Reply::next() {
  if (!rows_) return false;
  row_ = mysql_fetch_row(rows_.get());  // all rows are here: it does not block
  lengths_ = row_ ? mysql_fetch_lengths(rows_.get()) : nullptr;
  return row_ != nullptr;
}

std::optional<std::string_view> Reply::value(unsigned column) const {
  if (!row_ || column >= columns() || !row_[column]) return std::nullopt;
  return std::string_view(row_[column], lengths_[column]);
}

// ---- Batch ----

std::size_t Batch::add(std::string_view statement) {
  if (statements_ > 0) sql_ += ";\n";
  sql_ += statement;
  return statements_++;
}

// ---- Connection ----

Connection::~Connection() {
  if (!mysql_) return;
  // mysql_close() says goodbye, and would wait for a server that reads nothing.
  if (const my_socket fd = mysql_get_socket(mysql_.get()); broken_ && fd >= 0)
    ::shutdown(fd, SHUT_RDWR);
}

Task<Result<std::unique_ptr<Connection>>> Connection::connect(Url url, TimeUs deadline) {
  Url copy = url;
  auto found = co_await targets_of(std::move(copy), deadline);
  if (!found) co_return std::unexpected(found.error());
  const std::vector<Target> targets = std::move(*found);
  Error last{ErrorCode::source_down, "the url names no host", "mariadb"};
  for (std::size_t i = 0; i < targets.size(); ++i) {
    const TimeUs now = monotonic_now_us();
    if (now >= deadline)
      co_return fail(ErrorCode::timeout, "no connection to the server in time", "mariadb");
    // A host that does not answer must leave time for the next.
    const auto left = static_cast<DurationUs>(targets.size() - i);
    const TimeUs until = left > 1 && deadline != kNever ? now + (deadline - now) / left : deadline;
    std::unique_ptr<Connection> connection(new Connection());
    Result<void> done = co_await connection->connect_to(url, targets[i], until);
    if (done) co_return connection;
    last = std::move(done.error());
  }
  co_return std::unexpected(std::move(last));
}

Task<Result<void>> Connection::connect_to(const Url& url, const Target& target, TimeUs deadline) {
  url_ = url;
  target_ = target;
  name_ = target.name;
  loop_ = Loop::current();
  mysql_.reset(new_handle());
  if (!mysql_ || mysql_options(mysql_.get(), MYSQL_OPT_NONBLOCK, nullptr) != 0)
    co_return fail(ErrorCode::out_of_memory, "no memory for a connection", "mariadb");
  set_options(mysql_.get(), url_);
  const Result<void> done = co_await drive(Step::connect, deadline);
  if (!done && done.error().code == ErrorCode::timeout) co_return out_of_time("connecting");
  if (!done) co_return done;
  if (!connect_result_) {
    broken_ = true;
    const unsigned number = mysql_errno(mysql_.get());
    std::string why = is_of_client(number)
                          ? one_line(mysql_error(mysql_.get()))
                          : server_error(number, mysql_error(mysql_.get())).message;
    co_return fail(ErrorCode::source_down, fmt::format("cannot connect to {}: {}", name_, why),
                   "mariadb");
  }
  connected_ = true;
  url_ = {};
  co_return watch();
}

Result<void> Connection::watch() {
  readiness_.reset();
  auto opened = net::Readiness::open(mysql_get_socket(mysql_.get()));
  if (!opened) {
    broken_ = true;
    return fail(ErrorCode::source_down,
                fmt::format("cannot connect to {}: {}", name_, opened.error().message), "mariadb");
  }
  readiness_ = std::move(*opened);
  return {};
}

int Connection::start(Step step) {
  MYSQL* const mysql = mysql_.get();
  const auto text = [](const std::string& s) { return s.empty() ? nullptr : s.c_str(); };
  switch (step) {
    case Step::connect:
      return mysql_real_connect_start(&connect_result_, mysql, text(target_.host), text(url_.user),
                                      url_.password.c_str(), url_.database.c_str(), target_.port,
                                      text(url_.socket), kClientFlags);
    case Step::query: return mysql_real_query_start(&int_result_, mysql, sql_.data(), sql_.size());
    case Step::read_result: return mysql_read_query_result_start(&bool_result_, mysql);
    case Step::store: return mysql_store_result_start(&rows_result_, mysql);
    case Step::next_result: return mysql_next_result_start(&int_result_, mysql);
  }
  return 0;
}

int Connection::resume(Step step, int ready) {
  MYSQL* const mysql = mysql_.get();
  switch (step) {
    case Step::connect: return mysql_real_connect_cont(&connect_result_, mysql, ready);
    case Step::query: return mysql_real_query_cont(&int_result_, mysql, ready);
    case Step::read_result: return mysql_read_query_result_cont(&bool_result_, mysql, ready);
    case Step::store: return mysql_store_result_cont(&rows_result_, mysql, ready);
    case Step::next_result: return mysql_next_result_cont(&int_result_, mysql, ready);
  }
  return 0;
}

Task<Result<void>> Connection::drive(Step step, TimeUs deadline) {
  int waits_for = start(step);
  while (waits_for != 0) {
    if (!connected_) {
      // Each step anew: it may have closed its socket and opened another of the same number.
      if (auto watched = watch(); !watched) {
        abandon(step);
        co_return watched;
      }
    }
    const bool write = (waits_for & MYSQL_WAIT_WRITE) != 0;
    const bool read = (waits_for & MYSQL_WAIT_READ) != 0 || !write;
    const auto ready = co_await readiness_->wait(read, write, deadline);
    if (!connected_) readiness_.reset();
    if (ready.cancelled || ready.timed_out()) {
      abandon(step);
      if (ready.cancelled)
        co_return fail(ErrorCode::cancelled, "the wait for the server was interrupted", "mariadb");
      co_return fail(ErrorCode::timeout, "");
    }
    waits_for = resume(
        step, (ready.readable ? MYSQL_WAIT_READ : 0) | (ready.writable ? MYSQL_WAIT_WRITE : 0));
  }
  co_return Result<void>();
}

// libmariadb's function must come to its end, or it leaves its socket and its memory behind: it is
// told that the time is up, and finds the connection shut whatever it tries.
void Connection::abandon(Step step) {
  constexpr int kMostRounds = 1000;
  broken_ = true;
  int waits_for = MYSQL_WAIT_TIMEOUT;
  for (int i = 0; waits_for != 0 && i < kMostRounds; ++i) {
    if (const my_socket fd = mysql_get_socket(mysql_.get()); fd >= 0) ::shutdown(fd, SHUT_RDWR);
    waits_for = resume(step, MYSQL_WAIT_TIMEOUT);
  }
  if (step == Step::store && rows_result_) mysql_free_result(rows_result_);
  rows_result_ = nullptr;
}

bool Connection::lost_it() const { return is_of_client(mysql_errno(mysql_.get())); }

std::unexpected<Error> Connection::lost(std::string_view doing) {
  const bool before = broken_;
  broken_ = true;
  std::string why = before ? std::string() : one_line(mysql_error(mysql_.get()));
  if (why.empty()) why = "the server closed the connection";
  return fail(ErrorCode::source_down,
              fmt::format("the connection to {} was lost while {}: {}", name_, doing, why),
              "mariadb");
}

std::unexpected<Error> Connection::out_of_time(std::string_view doing) {
  broken_ = true;
  return fail(ErrorCode::timeout,
              fmt::format("{} did not answer before the deadline, while {}", name_, doing),
              "mariadb");
}

bool Connection::send_and_forget(std::string_view sql) {
  if (broken_ || owes_) {
    broken_ = true;
    return false;
  }
  sql_ = sql;
  // What does not fit into the socket now would wait for the next run().
  int failed = 0;
  const int waits_for = mysql_send_query_start(&failed, mysql_.get(), sql_.data(), sql_.size());
  if (waits_for != 0) {
    int left = MYSQL_WAIT_TIMEOUT;
    ::shutdown(mysql_get_socket(mysql_.get()), SHUT_RDWR);
    for (int i = 0; left != 0 && i < 10; ++i)
      left = mysql_send_query_cont(&failed, mysql_.get(), MYSQL_WAIT_TIMEOUT);
  }
  broken_ = waits_for != 0 || failed != 0;
  owes_ = !broken_;
  return !broken_;
}

// Of the statement whose answer has begun: int_result_ says whether it is an error.
Task<Result<Reply>> Connection::read_reply(TimeUs deadline) {
  MYSQL* const mysql = mysql_.get();
  if (int_result_ != 0) {
    if (lost_it()) co_return lost("a statement ran");
    co_return Reply::of_error(mysql_errno(mysql), mysql_error(mysql));
  }
  if (mysql_field_count(mysql) == 0)
    co_return Reply::of_count(static_cast<std::int64_t>(mysql_affected_rows(mysql)));
  const Result<void> stored = co_await drive(Step::store, deadline);
  if (!stored) co_return std::unexpected(stored.error());
  if (!rows_result_) {
    if (lost_it()) co_return lost("rows were read");
    co_return Reply::of_error(mysql_errno(mysql), mysql_error(mysql));
  }
  const auto rows = static_cast<std::int64_t>(mysql_num_rows(rows_result_));
  co_return Reply::of_rows(std::exchange(rows_result_, nullptr), rows);
}

Task<Result<std::vector<Reply>>> Connection::run(Batch batch, TimeUs deadline) {
  if (broken_) co_return lost("it lay idle");
  const auto explained = [this](const Result<void>& done) -> std::unexpected<Error> {
    if (done.error().code == ErrorCode::timeout) return out_of_time("a statement ran");
    return std::unexpected(done.error());
  };
  MYSQL* const mysql = mysql_.get();
  if (owes_) {
    owes_ = false;
    const Result<void> read = co_await drive(Step::read_result, deadline);
    if (!read) co_return explained(read);
    if (bool_result_ != 0 && lost_it()) co_return lost("it lay idle");
  }
  ++round_trips_;
  std::vector<Reply> replies;
  replies.reserve(batch.size());
  sql_ = batch.take_sql();
  Result<void> done = co_await drive(Step::query, deadline);
  sql_ = {};
  for (;;) {
    if (!done) co_return explained(done);
    auto reply = co_await read_reply(deadline);
    if (!reply && reply.error().code == ErrorCode::timeout) co_return out_of_time("rows were read");
    if (!reply) co_return std::unexpected(reply.error());
    replies.push_back(std::move(*reply));
    if (!replies.back().ok() || mysql_more_results(mysql) == 0) break;
    done = co_await drive(Step::next_result, deadline);
  }
  if (replies.back().ok() && replies.size() != batch.size()) {
    broken_ = true;
    co_return fail(ErrorCode::internal, "the server gave another number of replies than asked for",
                   "mariadb");
  }
  co_return replies;
}

Task<Result<Reply>> Connection::run_one(std::string sql, TimeUs deadline) {
  Batch batch;
  batch.add(sql);
  auto replies = co_await run(std::move(batch), deadline);
  if (!replies) co_return std::unexpected(replies.error());
  if (!replies->back().ok()) co_return std::unexpected(replies->back().error());
  co_return std::move(replies->back());
}

void Connection::interrupt() {
  if (readiness_) readiness_->cancel();
}

bool Connection::stale() {
  if (broken_) return true;
  // Unasked the server says nothing but farewell.
  const short events = static_cast<short>(owes_ ? POLLRDHUP : POLLIN | POLLRDHUP);
  pollfd look = {.fd = mysql_get_socket(mysql_.get()), .events = events, .revents = 0};
  broken_ = ::poll(&look, 1, 0) != 0;
  return broken_;
}

}  // namespace larder::source::mariadb
