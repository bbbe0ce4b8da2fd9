// A real MariaDB for tests, one a program: data folder, socket and port of its own, started when it
// is first asked for, gone with the program. Its log is on, as a feed would want it.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <mysql.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "source/mariadb/connection.h"
#include "source/testing.h"

namespace larder::source::mariadb::testing {

using source::testing::TempFolder;

// The first of these folders that has the program; "" if none has.
inline std::string program(const std::string& name) {
  for (const char* const folder :
       {"/usr/sbin/", "/usr/bin/", "/usr/local/sbin/", "/usr/local/bin/"})
    if (std::filesystem::exists(folder + name)) return folder + name;
  return {};
}

// Another program that uses the database: plain libmariadb, nothing of Larder.
class OtherClient {
 public:
  explicit OtherClient(const std::string& url) : url_(*Url::parse(url)) { connect(); }
  ~OtherClient() { mysql_close(mysql_); }
  OtherClient(const OtherClient&) = delete;
  OtherClient& operator=(const OtherClient&) = delete;

  void exec(const std::string& sql) {
    EXPECT_TRUE(run(sql, nullptr)) << mysql_error(mysql_) << " in " << sql;
  }
  // What may fail.
  bool try_exec(const std::string& sql) { return run(sql, nullptr); }
  // "a|b" for each row, separated by spaces.
  std::string query(const std::string& sql) {
    std::string out;
    EXPECT_TRUE(run(sql, &out)) << mysql_error(mysql_) << " in " << sql;
    return out;
  }
  unsigned long thread_id() const { return mysql_thread_id(mysql_); }

 private:
  void connect() {
    mysql_ = new_handle();
    set_options(mysql_, url_);
    const bool local = url_.hosts.empty();
    const MYSQL* const connected = mysql_real_connect(
        mysql_, local ? nullptr : url_.hosts[0].name.c_str(), url_.user.c_str(),
        url_.password.c_str(), url_.database.c_str(), local ? 0 : url_.hosts[0].port,
        local ? url_.socket.c_str() : nullptr, kClientFlags);
    EXPECT_NE(connected, nullptr) << mysql_error(mysql_);
  }
  bool run(const std::string& sql, std::string* out) {
    if (mysql_real_query(mysql_, sql.data(), sql.size()) != 0) return false;
    MYSQL_RES* const rows = mysql_store_result(mysql_);
    if (!rows) return mysql_errno(mysql_) == 0;
    bool first = true;
    while (const MYSQL_ROW row = mysql_fetch_row(rows)) {
      if (out && !first) *out += ' ';
      first = false;
      for (unsigned i = 0; out && i < mysql_num_fields(rows); ++i)
        *out += (i > 0 ? "|" : "") + std::string(row[i] ? row[i] : "NULL");
    }
    mysql_free_result(rows);
    return true;
  }

  const Url url_;
  MYSQL* mysql_ = nullptr;
};

class Server {
 public:
  // The one of this program. It can be had where available() is true.
  static Server& get() {
    static Server server;
    return server;
  }
  static bool available() {
    static const bool there =
        !program("mariadbd").empty() && !program("mariadb-install-db").empty();
    // Where tests must not be skipped, its absence is a failure.
    if (!there && std::getenv("CI")) ADD_FAILURE() << "MariaDB's server is not installed";
    return there;
  }

  Server() : port_(free_port()) {
    const std::string folder = folder_ / "data";
    std::vector<std::string> words = {program("mariadb-install-db"),
                                      "--no-defaults",
                                      "--datadir=" + folder,
                                      "--auth-root-authentication-method=normal",
                                      "--skip-test-db",
                                      "--skip-name-resolve",
                                      "--innodb-log-file-size=8M"};
    if (geteuid() == 0) words.emplace_back("--user=root");
    const pid_t init = spawn(std::move(words));
    int status = -1;
    waitpid(init, &status, 0);
    EXPECT_EQ(status, 0) << "mariadb-install-db failed, see " << (folder_ / "log");
    make_certificate();
    start();
    OtherClient admin("mariadb://root@/mysql?socket=" + socket());
    admin.try_exec("DROP USER ''@'localhost'");
    for (const char* const host : {"%", "localhost"}) {
      const std::string user = std::string("larder@'") + host + "'";
      admin.exec("CREATE USER " + user + " IDENTIFIED BY 'hunter2'");
      admin.exec("GRANT ALL ON *.* TO " + user + " WITH GRANT OPTION");
    }
  }
  ~Server() { kill(); }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  std::string url(const std::string& database) const {
    return "mariadb://larder:hunter2@127.0.0.1:" + std::to_string(port_) + "/" + database;
  }
  // By its Unix socket.
  std::string local_url(const std::string& database) const {
    return "mariadb://larder:hunter2@/" + database + "?socket=" + socket();
  }
  std::uint16_t port() const { return port_; }
  std::string socket() const { return folder_ / "sock"; }
  // Vouches for its certificate, which is for localhost; "" if there is no openssl to make one.
  const std::string& authority() const { return certificate_; }

  // A database that nobody has used. Returns its name.
  std::string fresh_database() {
    const std::string name = "db" + std::to_string(++databases_);
    OtherClient admin(local_url("mysql"));
    admin.exec("CREATE DATABASE " + name + " CHARACTER SET utf8mb4");
    return name;
  }

  // As in a crash: every connection breaks, what was not committed is gone.
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  // Returns when it takes connections.
  void start() {
    ASSERT_EQ(pid_, 0);
    std::vector<std::string> words = {
        program("mariadbd"), "--no-defaults", "--datadir=" + (folder_ / "data"),
        "--socket=" + socket(), "--port=" + std::to_string(port_), "--bind-address=127.0.0.1",
        "--pid-file=" + (folder_ / "pid"), "--tmpdir=" + (folder_ / "."),
        // Durable as far as the system lives, and with all that a feed of its log needs.
        "--innodb-flush-log-at-trx-commit=2", "--sync-binlog=0", "--innodb-doublewrite=0",
        "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M", "--key-buffer-size=1M",
        "--aria-pagecache-buffer-size=8M", "--log-bin=binlog", "--binlog-format=ROW",
        "--binlog-row-image=FULL", "--server-id=7", "--gtid-strict-mode=1", "--skip-name-resolve",
        "--max-connections=100"};
    if (geteuid() == 0) words.emplace_back("--user=root");
    if (!certificate_.empty()) {
      words.push_back("--ssl-cert=" + certificate_);
      words.push_back("--ssl-key=" + (folder_ / "server.key"));
    }
    pid_ = spawn(std::move(words));
    for (int tries = 0; tries < 6000; ++tries) {
      if (answers()) return;
      ASSERT_EQ(waitpid(pid_, nullptr, WNOHANG), 0)
          << "mariadbd has ended, see " << (folder_ / "log");
      ::poll(nullptr, 0, 5);  // it is starting
    }
    FAIL() << "mariadbd does not answer";
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
  // Nobody but root is known before the first start is over.
  bool answers() const {
    MYSQL* const probe = new_handle();
    const bool there =
        mysql_real_connect(probe, nullptr, "root", "", nullptr, 0, socket().c_str(), 0) != nullptr;
    mysql_close(probe);
    return there;
  }
  void make_certificate() {
    const std::string file = folder_ / "server.crt";
    const std::string make =
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj "
        "/CN=localhost -addext subjectAltName=DNS:localhost -keyout " +
        (folder_ / "server.key") + " -out " + file + " >/dev/null 2>&1";
    if (std::system(make.c_str()) == 0) certificate_ = file;
  }
  // Runs a program, its output in the log.
  pid_t spawn(std::vector<std::string> words) {
    std::vector<char*> argv;
    argv.reserve(words.size() + 1);
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const std::string log = folder_ / "log";
    const std::string home = folder_ / ".";
    const pid_t parent = getpid();
    const pid_t child = fork();
    EXPECT_GE(child, 0);
    if (child != 0) return child;
    // It must not outlive this process, even one that is killed.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent || chdir(home.c_str()) != 0) _exit(1);
    if (!std::freopen(log.c_str(), "a", stdout) || dup2(1, 2) < 0) _exit(1);
    std::string path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
    std::vector<char*> environment{path.data(), nullptr};
    execve(argv[0], argv.data(), environment.data());
    _exit(1);
  }

  TempFolder folder_;
  const std::uint16_t port_;
  std::string certificate_;
  pid_t pid_ = 0;
  int databases_ = 0;
};

}  // namespace larder::source::mariadb::testing
