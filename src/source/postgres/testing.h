// A real PostgreSQL for tests, one a program: data folder and port of its own, started when it is
// first asked for, gone with the program. As root it runs as `postgres`, or as `nobody`, since
// PostgreSQL refuses root.
#pragma once

#include <arpa/inet.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <libpq-fe.h>
#include <netinet/in.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "source/testing.h"

namespace larder::source::postgres::testing {

using source::testing::TempFolder;

// The programs of the newest server that is installed; "" if none is.
inline std::string server_programs() {
  std::string best;
  int newest = 0;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/usr/lib/postgresql", ignored)) {
    const int version = std::atoi(entry.path().filename().c_str());
    const std::string programs = entry.path() / "bin";
    if (version > newest && std::filesystem::exists(programs + "/initdb", ignored)) {
      newest = version;
      best = programs;
    }
  }
  return best;
}

// Another program that uses the database: plain libpq, nothing of Larder.
class OtherClient {
 public:
  explicit OtherClient(const std::string& url) : conn_(PQconnectdb(url.c_str())) {
    EXPECT_EQ(PQstatus(conn_), CONNECTION_OK) << PQerrorMessage(conn_);
    PQsetNoticeProcessor(conn_, [](void*, const char*) {}, nullptr);
  }
  ~OtherClient() { PQfinish(conn_); }
  OtherClient(const OtherClient&) = delete;
  OtherClient& operator=(const OtherClient&) = delete;

  void exec(const std::string& sql) {
    PGresult* const result = PQexec(conn_, sql.c_str());
    const ExecStatusType status = PQresultStatus(result);
    EXPECT_TRUE(status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK)
        << PQerrorMessage(conn_) << " in " << sql;
    PQclear(result);
  }
  // What may fail.
  bool try_exec(const std::string& sql) {
    if (PQstatus(conn_) != CONNECTION_OK) PQreset(conn_);
    PGresult* const result = PQexec(conn_, sql.c_str());
    const ExecStatusType status = PQresultStatus(result);
    PQclear(result);
    return status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK;
  }
  // "a|b" for each row, separated by spaces.
  std::string query(const std::string& sql) {
    PGresult* const result = PQexec(conn_, sql.c_str());
    EXPECT_EQ(PQresultStatus(result), PGRES_TUPLES_OK) << PQerrorMessage(conn_) << " in " << sql;
    std::string out;
    for (int row = 0; row < PQntuples(result); ++row)
      for (int column = 0; column < PQnfields(result); ++column) {
        if (column > 0)
          out += '|';
        else if (row > 0)
          out += ' ';
        out += PQgetisnull(result, row, column) ? "NULL" : PQgetvalue(result, row, column);
      }
    PQclear(result);
    return out;
  }
  PGconn* raw() { return conn_; }

 private:
  PGconn* conn_;
};

class Server {
 public:
  // The one of this program. It can be had where available() is true.
  static Server& get() {
    static Server server(nullptr);
    return server;
  }
  static bool available() {
    static const bool there = !server_programs().empty();
    // Where tests must not be skipped, its absence is a failure.
    if (!there && std::getenv("CI")) ADD_FAILURE() << "PostgreSQL's server is not installed";
    return there;
  }

  // A standby, which follows `primary` until it is promoted.
  explicit Server(const Server* primary);
  ~Server() { kill(); }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  std::string url(const std::string& database) const {
    return "postgresql://larder@127.0.0.1:" + std::to_string(port_) + "/" + database;
  }
  // By its Unix socket.
  std::string local_url(const std::string& database) const {
    return "postgresql://larder@/" + database + "?host=" + (folder_ / "socket") +
           "&port=" + std::to_string(port_);
  }
  std::uint16_t port() const { return port_; }

  // A database that nobody has used. Returns its name.
  std::string fresh_database() {
    const std::string name = "db" + std::to_string(++databases_);
    OtherClient admin(url("postgres"));
    admin.exec("CREATE DATABASE " + name + " TEMPLATE template0 STRATEGY wal_log");
    return name;
  }

  // Ends whoever reads the log of the database, and gives up their slots.
  void drop_slots(const std::string& database) {
    OtherClient admin(url("postgres"));
    const std::string ours = " FROM pg_replication_slots WHERE database = '" + database + "'";
    admin.query("SELECT pg_terminate_backend(active_pid, 10000)" + ours +
                " AND active_pid IS NOT NULL");
    admin.query("SELECT pg_drop_replication_slot(slot_name)" + ours);
  }
  // Drops what fresh_database() has made, but for the last: a standby has less to copy then.
  void drop_old_databases() {
    OtherClient admin(url("postgres"));
    for (; dropped_ + 1 < databases_; ++dropped_)
      admin.exec("DROP DATABASE db" + std::to_string(dropped_ + 1) + " WITH (FORCE)");
  }

  // As in a crash: every connection breaks, what was not committed is gone.
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGQUIT);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  // Returns when it takes connections.
  void start() {
    ASSERT_EQ(pid_, 0);
    pid_ = spawn({programs_ + "/postgres", "-D", folder_ / "data"});
    const std::string where = url("postgres");
    for (int tries = 0; tries < 6000; ++tries) {
      if (PQping(where.c_str()) == PQPING_OK) return;
      ASSERT_EQ(waitpid(pid_, nullptr, WNOHANG), 0)
          << "postgres has ended, see " << (folder_ / "log");
      ::poll(nullptr, 0, 5);  // it is starting
    }
    FAIL() << "postgres does not answer";
  }
  // From now on (until off) it can speak TLS, with a certificate for localhost. Returns the file
  // that vouches for it; "" if there is no openssl to make one.
  std::string tls_on() {
    const std::string key = folder_ / "data/server.key", certificate = folder_ / "data/server.crt";
    const std::string make =
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj "
        "/CN=localhost -addext subjectAltName=DNS:localhost -keyout " +
        key + " -out " + certificate + " >/dev/null 2>&1 && chmod 600 " + key;
    if (std::system(make.c_str()) != 0) return {};
    if (user_) {
      EXPECT_EQ(::chown(key.c_str(), user_->pw_uid, user_->pw_gid), 0);
      EXPECT_EQ(::chown(certificate.c_str(), user_->pw_uid, user_->pw_gid), 0);
    }
    OtherClient admin(url("postgres"));
    admin.exec("ALTER SYSTEM SET ssl = on");
    admin.exec("SELECT pg_reload_conf()");
    return certificate;
  }
  void tls_off() {
    OtherClient admin(url("postgres"));
    admin.exec("ALTER SYSTEM RESET ssl");
    admin.exec("SELECT pg_reload_conf()");
  }

  // As for one that hangs: it takes connections, and answers nothing.
  void freeze() const { ::kill(pid_, SIGSTOP); }
  void thaw() const { ::kill(pid_, SIGCONT); }

 private:
  static std::uint16_t free_port() {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
    ::close(fd);
    return ntohs(address.sin_port);
  }

  // Runs a program as the other user, its output in the log.
  pid_t spawn(std::vector<std::string> words) {
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const std::string log = folder_ / "log";
    const std::string home = folder_ / ".";
    const pid_t parent = getpid();
    const pid_t child = fork();
    EXPECT_GE(child, 0);
    if (child != 0) return child;
    if (user_ &&
        (setgroups(0, nullptr) != 0 || setgid(user_->pw_gid) != 0 || setuid(user_->pw_uid) != 0))
      _exit(1);
    // It must not outlive this process, even one that is killed. Behind setuid(), which undoes it.
    prctl(PR_SET_PDEATHSIG, SIGQUIT);
    if (getppid() != parent || chdir(home.c_str()) != 0) _exit(1);
    if (!std::freopen(log.c_str(), "a", stdout) || dup2(1, 2) < 0) _exit(1);
    std::vector<char*> no_environment{nullptr};
    execve(argv[0], argv.data(), no_environment.data());
    _exit(1);
  }

  TempFolder folder_;
  const std::string programs_;
  const std::uint16_t port_;
  const passwd* user_ = nullptr;
  pid_t pid_ = 0;
  int databases_ = 0;
  int dropped_ = 0;
};

inline Server::Server(const Server* primary) : programs_(server_programs()), port_(free_port()) {
  if (geteuid() == 0) {
    for (const char* const name : {"postgres", "nobody"})
      if (!user_) user_ = getpwnam(name);
    EXPECT_NE(user_, nullptr);
    EXPECT_EQ(::chown((folder_ / ".").c_str(), user_->pw_uid, user_->pw_gid), 0);
  }
  const pid_t init =
      primary ? spawn({programs_ + "/pg_basebackup", "-d", primary->url("postgres"), "-D",
                       folder_ / "data", "-R", "-X", "stream", "-c", "fast", "--no-sync"})
              : spawn({programs_ + "/initdb", "-D", folder_ / "data", "-U", "larder", "-A", "trust",
                       "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"});
  int status = -1;
  waitpid(init, &status, 0);
  EXPECT_EQ(status, 0) << "initdb or pg_basebackup failed, see " << (folder_ / "log");
  std::filesystem::create_directory(folder_ / "socket");
  if (user_) {
    EXPECT_EQ(::chown((folder_ / "socket").c_str(), user_->pw_uid, user_->pw_gid), 0);
  }
  // Not durable, and with all that a log feed needs.
  FILE* const settings = std::fopen((folder_ / "data/postgresql.conf").c_str(), "a");
  EXPECT_NE(settings, nullptr);
  std::fprintf(settings,
               "\nlisten_addresses = '127.0.0.1'\nport = %d\nunix_socket_directories = '%s'\n"
               "fsync = off\nfull_page_writes = off\n"
               "shared_buffers = 32MB\nmax_connections = 100\nwal_level = logical\n"
               "max_wal_senders = 10\nmax_replication_slots = 10\nautovacuum = off\n"
               "log_line_prefix = '%%m [%%p] '\n",
               port_, (folder_ / "socket").c_str());
  std::fclose(settings);
  start();
}

}  // namespace larder::source::postgres::testing
