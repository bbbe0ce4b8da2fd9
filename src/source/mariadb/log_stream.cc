#include "source/mariadb/log_stream.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <random>

namespace larder::source::mariadb {
namespace {

constexpr DurationUs kHeartbeat = kSecond;

std::unexpected<Error> failed(MYSQL* mysql) {
  const unsigned number = mysql_errno(mysql);
  if (number == 0 || (number >= 2000 && number < 3000))
    return fail(ErrorCode::source_down,
                fmt::format("the connection on which the binary log is read has ended: {}",
                            one_line(mysql_error(mysql))),
                "mariadb");
  return fail(ErrorCode::source_refused,
              fmt::format("{} (error {})", one_line(mysql_error(mysql)), number), "mariadb");
}

}  // namespace

Result<std::unique_ptr<LogStream>> LogStream::open(std::unique_ptr<Setup> db,
                                                   const std::string& file, std::uint64_t offset) {
  // Else the server takes us for a reader who knows no checksums.
  for (const std::string& sql :
       {std::string("SET SESSION max_statement_time = 0"),
        std::string("SET @master_binlog_checksum = @@GLOBAL.binlog_checksum"),
        std::string("SET @mariadb_slave_capability = 4"),
        fmt::format("SET @master_heartbeat_period = {}", kHeartbeat * 1000)})
    if (auto set = db->query(sql); !set) return std::unexpected(set.error());
  MYSQL* const mysql = db->raw();
  std::unique_ptr<LogStream> stream(new LogStream(std::move(db)));
  stream->rpl_ = mariadb_rpl_init(mysql);
  if (!stream->rpl_) return fail(ErrorCode::out_of_memory, "no memory to read a log", "mariadb");
  // Two readers with one number throw each other out.
  std::random_device device;
  const unsigned int number = device() | 0x80000000U;
  mariadb_rpl_optionsv(stream->rpl_, MARIADB_RPL_SERVER_ID, number);
  mariadb_rpl_optionsv(stream->rpl_, MARIADB_RPL_FILENAME, file.c_str(), file.size());
  mariadb_rpl_optionsv(stream->rpl_, MARIADB_RPL_START, static_cast<unsigned long>(offset));
  mariadb_rpl_optionsv(stream->rpl_, MARIADB_RPL_FLAGS, 0U);
  if (mariadb_rpl_open(stream->rpl_) != 0) return failed(mysql);
  return stream;
}

LogStream::~LogStream() {
  mariadb_free_rpl_event(event_);
  if (rpl_) mariadb_rpl_close(rpl_);
}

Result<std::string_view> LogStream::next() {
  // After an error libmariadb may have freed an event that it was given to fill.
  mariadb_free_rpl_event(event_);
  event_ = mariadb_rpl_fetch(rpl_, nullptr);
  if (!event_) return failed(db_->raw());
  const std::string_view raw(reinterpret_cast<const char*>(event_->raw_data),
                             event_->raw_data_size);
  return raw.substr(std::min(raw.size(), event_->raw_data_ofs));
}

void LogStream::interrupt() { ::shutdown(mysql_get_socket(db_->raw()), SHUT_RDWR); }

}  // namespace larder::source::mariadb
