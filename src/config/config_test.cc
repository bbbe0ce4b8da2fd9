#include "config/config.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "config/reader.h"

namespace larder::config {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// Neither variables nor files but these.
Outside outside(const std::map<std::string, std::string>& variables = {},
                const std::map<std::string, std::string>& files = {}) {
  return {.environment = [variables](const std::string& name) -> std::optional<std::string> {
            const auto found = variables.find(name);
            return found == variables.end() ? std::nullopt : std::optional(found->second);
          },
          .secret_file = [files](const std::string& path) -> Result<std::string> {
            const auto found = files.find(path);
            if (found == files.end()) return fail(ErrorCode::io, "it cannot be opened");
            return found->second;
          }};
}

Config good(std::string_view text, const Outside& out = outside()) {
  auto loaded = load_config(text, "larder.toml", out);
  EXPECT_TRUE(loaded.has_value()) << (loaded ? "" : to_string(loaded.error()));
  return loaded ? *loaded : Config{};
}

std::string errors(std::string_view text, const Outside& out = outside()) {
  const auto loaded = load_config(text, "larder.toml", out);
  return loaded ? "" : to_string(loaded.error());
}

// The messages alone, with their places: one a line.
std::vector<std::string> messages(std::string_view text, const Outside& out = outside()) {
  const auto loaded = load_config(text, "t", out);
  std::vector<std::string> result;
  if (loaded) return result;
  for (Problem p : loaded.error()) {
    p.source_line.clear();
    std::string line = to_string(p);
    line.pop_back();
    result.push_back(std::move(line));
  }
  return result;
}

// A cache that is right, with more lines; they begin at line 4 in the file, at line 3 of the
// section.
std::string product(std::string_view lines, std::string_view key = "product:{id:int}") {
  return fmt::format(
      "[source.shop]\nurl = \"sqlite:shop.db\"\n[cache.product]\n{}\nkey = \"{}\"\n"
      "load = \"SELECT * FROM product WHERE id = :id\"\n",
      lines, key);
}

// ---- what is right ----

TEST(Config, AnEmptyFileIsAllDefaults) {
  const Config c = good("");
  EXPECT_THAT(c.node.listen, ElementsAre("127.0.0.1:7379"));
  EXPECT_EQ(c.node.admin, "127.0.0.1:7380");
  EXPECT_EQ(c.node.max_clients, 10'000U);
  EXPECT_EQ(c.near.capacity_bytes, 256U << 20);
  EXPECT_EQ(c.engine.url, "embedded:");
  EXPECT_EQ(c.engine.partitions, 64U);
  EXPECT_TRUE(c.plain.evict);
  EXPECT_TRUE(c.audit.enabled);
  EXPECT_EQ(c.audit.rate, 10U);
  EXPECT_EQ(c.audit.delay_us, 60 * kSecond);
  EXPECT_THAT(c.audit.recheck_us, ElementsAre(60 * kSecond, 300 * kSecond, 600 * kSecond));
  EXPECT_THAT(c.audit.except, IsEmpty());
  EXPECT_THAT(c.sources, IsEmpty());
  EXPECT_THAT(c.caches, IsEmpty());
}

TEST(Config, TheExampleLoads) {
  const auto path = std::filesystem::path(__FILE__).parent_path() / "../../examples/larder.toml";
  const auto loaded = load_config_file(path.string(), outside());
  ASSERT_TRUE(loaded.has_value()) << to_string(loaded.error());
  ASSERT_EQ(loaded->caches.size(), 3U);
  const cache::CacheSpec& product = loaded->caches[0];
  EXPECT_EQ(product.name, "product");
  EXPECT_EQ(product.key.text(), "product:{id:int}");
  EXPECT_EQ(product.write, cache::WriteMode::through);
  EXPECT_EQ(product.ttl_us, 300 * kSecond);
  EXPECT_EQ(product.jitter, 0.1);
  EXPECT_EQ(product.negative_ttl_us, 5 * kSecond);
  EXPECT_TRUE(product.refresh_ahead);
  EXPECT_EQ(product.stale_while_revalidate_us, 30 * kSecond);
  EXPECT_EQ(product.stale_if_error_us, 3'600 * kSecond);
  EXPECT_EQ(product.soft_timeout_us, 100 * kMillisecond);
  EXPECT_EQ(product.load_timeout_us, 2 * kSecond);
  EXPECT_EQ(product.consistency, cache::Consistency::bounded);
  EXPECT_EQ(product.bound_us, kSecond);
  EXPECT_TRUE(product.near);
  ASSERT_EQ(product.tags.size(), 1U);
  EXPECT_THAT(product.tags[0].literals, ElementsAre("category:", ""));
  EXPECT_THAT(product.tags[0].names, ElementsAre("category"));
  ASSERT_EQ(product.depends_on.size(), 1U);
  EXPECT_EQ(product.depends_on[0].table, "product");
  EXPECT_THAT(product.depends_on[0].columns, ElementsAre(std::pair("id", "id")));
  EXPECT_EQ(loaded->caches[1].result, source::ResultShape::array);
  EXPECT_EQ(loaded->caches[2].consistency, cache::Consistency::strong);
  EXPECT_FALSE(loaded->caches[2].near);
  ASSERT_EQ(loaded->sources.size(), 1U);
  EXPECT_EQ(loaded->sources[0].url, "sqlite:shop.db");
  EXPECT_EQ(loaded->sources[0].poll_us, 10 * kMillisecond);
}

TEST(Config, DefaultsOfACache) {
  const cache::CacheSpec c = good(product("")).caches.at(0);
  EXPECT_EQ(c.source, "shop");  // the only one goes without saying
  EXPECT_EQ(c.ttl_us, 60 * kSecond);
  EXPECT_EQ(c.write, cache::WriteMode::none);
  EXPECT_EQ(c.consistency, cache::Consistency::eventual);
  EXPECT_EQ(c.result, source::ResultShape::object);
  EXPECT_EQ(c.max_value_bytes, 1U << 20);
  EXPECT_FALSE(c.refresh_ahead || c.sliding || c.on_del_removes);
}

TEST(Config, EverythingElseThatCanBeSet) {
  const Config c = good(R"toml(
[node]
listen = ["[::1]:7379", "unix:/run/larder.sock", "localhost:0"]
admin = ""
threads = 4
data_dir = "/var/lib/larder"
requirepass = "p"
max_clients = 5
max_request = "2MiB"
max_output = 4096
max_loads = 7
max_waiters = 8
max_tracked_keys = 9
[near]
capacity = "1GiB"
shared = ""
[engine]
url = "embedded:"
namespace = "shop-1"
partitions = 128
[plain]
policy = "refuse"
near = []
near_bound = "2s"
timeout = "5s"
[audit]
enabled = false
rate = 100
delay = "2m"
recheck = ["30s", "1h"]
except = ["stock"]
[source.db]
url = "sqlite:/data/shop.db"
pool = 2
queue = 10
poll = "50ms"
query_log = "queries.log"
[cache.stock]
key = "stock:{sku}"
load = "SELECT n FROM stock WHERE sku = :sku"
store = "UPDATE stock SET n = :value WHERE sku = :sku"
remove = "DELETE FROM stock WHERE sku = :sku"
increment = "UPDATE stock SET n = n + :delta WHERE sku = :sku"
warm = "SELECT sku FROM stock LIMIT :n"
result = "value"
write = "around"
on_del = "remove"
sliding = true
near = false
ttl = 0
max_value = "1KiB"
tags = ["all", "{{x}}{sku}"]
depends_on = ["main.stock( sku->sku )", "price()"]
)toml");
  EXPECT_THAT(c.node.listen, ElementsAre("[::1]:7379", "unix:/run/larder.sock", "localhost:0"));
  EXPECT_EQ(c.node.admin, "");
  EXPECT_EQ(c.node.threads, 4U);
  EXPECT_EQ(c.node.requirepass, "p");
  EXPECT_EQ(c.node.max_request_bytes, 2U << 20);
  EXPECT_EQ(c.node.max_output_bytes, 4096U);
  EXPECT_EQ(c.node.max_loads, 7U);
  EXPECT_EQ(c.node.max_waiters, 8U);
  EXPECT_EQ(c.node.max_tracked_keys, 9U);
  EXPECT_EQ(c.engine.name_space, "shop-1");
  EXPECT_EQ(c.engine.partitions, 128U);
  EXPECT_FALSE(c.plain.evict);
  EXPECT_EQ(c.plain.near_bound_us, 2 * kSecond);
  EXPECT_EQ(c.plain.timeout_us, 5 * kSecond);
  EXPECT_FALSE(c.audit.enabled);
  EXPECT_EQ(c.audit.rate, 100U);
  EXPECT_EQ(c.audit.delay_us, 120 * kSecond);
  EXPECT_THAT(c.audit.recheck_us, ElementsAre(30 * kSecond, 3600 * kSecond));
  EXPECT_THAT(c.audit.except, ElementsAre("stock"));
  EXPECT_EQ(c.sources.at(0).query_log, "queries.log");
  EXPECT_EQ(c.sources.at(0).queue, 10U);
  const cache::CacheSpec& stock = c.caches.at(0);
  EXPECT_TRUE(stock.on_del_removes);
  EXPECT_EQ(stock.result, source::ResultShape::value);
  EXPECT_EQ(stock.ttl_us, 0);
  EXPECT_THAT(stock.tags.at(1).literals, ElementsAre("{x}", ""));
  EXPECT_EQ(stock.depends_on.at(0).table, "main.stock");
  EXPECT_THAT(stock.depends_on.at(1).columns, IsEmpty());
  EXPECT_THAT(stock.warm, HasSubstr(":n"));
}

// ---- what is wrong: the whole text ----

TEST(ConfigErrors, AreAllReportedInOrderWithPlaceAndSuggestion) {
  EXPECT_EQ(errors(R"toml([node]
threads = "two"

[source.shop]
url = "sqlite:shop.db"

[cache.product]
key  = "product:{id:int}"
load = "SELECT * FROM product WHERE id = :idd"
tll  = "5m"
ttl  = 60
)toml"),
            R"(larder.toml:2:11: 'threads' in [node] must be an integer from 0 to 1024, got "two"
  threads = "two"
            ^
larder.toml:9:8: unknown placeholder ':idd' in 'load' in [cache.product]: it may use 'id'; did you mean ':id'?
  load = "SELECT * FROM product WHERE id = :idd"
         ^
larder.toml:10:1: unknown key 'tll' in [cache.product]; did you mean 'ttl'?
  tll  = "5m"
  ^
larder.toml:11:8: 'ttl' in [cache.product] must be a duration such as "5m", "100ms" or "1h30m", got integer 60; did you mean '60s'?
  ttl  = 60
         ^
)");
}

TEST(ConfigErrors, SyntaxHasItsPlace) {
  const std::string text = errors("[node]\nthreads = = 2\n");
  EXPECT_THAT(text, HasSubstr("larder.toml:2:11: "));
  EXPECT_THAT(text, HasSubstr("  threads = = 2\n            ^\n"));
  EXPECT_THAT(errors("[cache.a]\nttl = 1\nttl = 2\n"), HasSubstr("larder.toml:3:"));
  EXPECT_THAT(errors("x = \"\xff\""), HasSubstr("larder.toml:1:"));
}

TEST(ConfigErrors, TheCaretStandsBelowItsPlaceAfterTabsAndUmlauts) {
  EXPECT_EQ(errors("[node]\n\tthreads = \"zw\xc3\xb6lf\" \n"),
            "larder.toml:2:12: 'threads' in [node] must be an integer from 0 to 1024, got "
            "\"zw\xc3\xb6lf\"\n"
            "  \tthreads = \"zw\xc3\xb6lf\" \n"
            "  \t          ^\n");
  EXPECT_THAT(errors("near = { \"\xc3\xb6\" = 1 }"),
              HasSubstr("  near = { \"\xc3\xb6\" = 1 }\n           ^"));
}

TEST(ConfigErrors, LinesWhereSecretsLiveShowNoValues) {
  for (const char* text :
       {"node = { listen = [\"tcp://127.0.0.1:7379\"], requirepass = \"hunter2\" }",
        "[node]\nauth = \"hunter2\"", "[node]\nrequirepass = 5 # hunter2",
        "[source.s]\nurl = \"postgresql://h/db?user=u&pass=hunter2\"",
        "[engine]\nurl = \"redis://:hunter2@h:port\""}) {
    const std::string told = errors(text);
    EXPECT_NE(told, "") << text;
    EXPECT_EQ(told.find("hunter2"), std::string::npos) << told;
  }
}

TEST(ConfigErrors, MissingFileAndTooLargeText) {
  const auto loaded = load_config_file("/nonexistent/larder.toml", outside());
  ASSERT_FALSE(loaded.has_value());
  EXPECT_EQ(to_string(loaded.error()), "/nonexistent/larder.toml: it cannot be opened\n");
  const std::string comment = "#" + std::string(kMaxConfigBytes - 1, 'x');
  EXPECT_TRUE(load_config(comment, "t", outside()).has_value());
  EXPECT_EQ(errors(comment + "x"), "larder.toml: the file has more than 1048576 bytes\n");
}

// ---- what is wrong: one by one ----

struct Wrong {
  const char* text;
  const char* message;
};

TEST(ConfigErrors, Sections) {
  const Wrong rows[] = {
      {"[caches.a]\n", "t:1:2: unknown section 'caches'; did you mean 'cache'?"},
      {"listen = []\n", "t:1:1: unknown key 'listen'"},
      {"node = 5\n", "t:1:8: [node] must be a table, got integer 5"},
      {"[cache]\nproduct = \"x\"\n",
       "t:2:1: 'product' in [cache] must be a table [cache.<name>], got \"x\""},
      {"[source.\"a b\"]\nurl = \"sqlite:x\"\n",
       "t:1:9: the name of a source must be 1 to 64 letters, digits, '_' or '-'"},
      {"[node]\nlisten = [\"7379\"]\n",
       "t:2:11: '7379' is not an address to listen on: use host:port, [v6]:port or unix:/path"},
      {"[node]\nlisten = [\"a:1\", \"a:1\"]\n",
       "t:2:18: 'a:1' is listed twice in 'listen' in [node]"},
      {"[node]\nlisten = []\n", "t:2:10: 'listen' in [node] must name at least one address"},
      {"[node]\nlisten = \"a:1\"\n",
       "t:2:10: 'listen' in [node] must be an array of strings, got \"a:1\""},
      {"[node]\nadmin = \"a:70000\"\n",
       "t:2:9: 'a:70000' is not an address: use host:port, or \"\" for no admin server"},
      {"[node]\nmax_request = \"64mb\"\n",
       "t:2:15: 'max_request' in [node] must be a size such as \"1MiB\", \"64KB\" or \"512\", got "
       "\"64mb\"; did you mean '64MiB'?"},
      {"[node]\nmax_request = \"1\"\n",
       "t:2:15: 'max_request' in [node] must be from 1KiB to 1GiB"},
      {"[node]\nmax_clients = 0\n",
       "t:2:15: 'max_clients' in [node] must be an integer from 1 to 1000000, got integer 0"},
      {"[near]\ncapacity = \"1KiB\"\n", "t:2:12: 'capacity' in [near] must be at least 1MiB"},
      {"[near]\nshared = \"a/b\"\n",
       "t:2:10: 'shared' in [near] names an object in shared memory: up to 100 letters, digits, "
       "'.', '_' and '-'"},
      {"[near]\nshared = \"x\"\nsnapshot = \"y\"\n",
       "t:3:12: 'snapshot' in [near] is for private memory: with 'shared' the near tier outlives "
       "the node anyway; leave one of them out"},
      {"[engine]\nurl = \"memcached://a,b\"\n",
       "t:2:7: engine 'memcached' is not in this version: use \"embedded:\" or "
       "\"redis://host:6379\""},
      {"[engine]\nurl = \"embeded:\"\n",
       "t:2:7: unknown engine 'embeded': use \"embedded:\" or \"redis://host:6379\"; did you mean "
       "'embedded:'?"},
      {"[engine]\nurl = \"x\"\n",
       "t:2:7: 'url' in [engine] has no scheme: use \"embedded:\" or \"redis://host:6379\""},
      {"[engine]\npartitions = 48\n",
       "t:2:14: 'partitions' in [engine] must be a power of two, got 48; did you mean '64'?"},
      {"[engine]\nnamespace = \"a b\"\n",
       "t:2:13: 'namespace' in [engine] must be 1 to 64 letters, digits, '_' or '-'"},
      {"[plain]\npolicy = \"evicts\"\n",
       "t:2:10: 'policy' in [plain] must be 'evict' or 'refuse', got \"evicts\"; did you mean "
       "'evict'?"},
      {"[plain]\nnear = [\"session:\"]\n",
       "t:2:8: 'near' in [plain] needs an engine that tracks (redis:// and its kin); the embedded "
       "one holds every plain key in the near tier anyway"},
      {"[plain]\ntimeout = \"1ms\"\n", "t:2:11: 'timeout' in [plain] must be from 10ms to 1h"},
      {"[plain]\nnear_bound = \"2h\"\n", "t:2:14: 'near_bound' in [plain] must be from 50ms to 1h"},
      {"[audit]\nrate = 0\n",
       "t:2:8: 'rate' in [audit] must be an integer from 1 to 1000, got integer 0"},
      {"[audit]\ndelay = \"2h\"\n", "t:2:9: 'delay' in [audit] must be from 10ms to 1h"},
      {"[audit]\nrecheck = [\"5m\", \"1m\"]\n",
       "t:2:18: '1m' in 'recheck' in [audit] must be a time such as 5m, from 10ms to 1d, and "
       "longer "
       "than the one before it"},
      {"[audit]\nrecheck = []\n",
       "t:2:11: 'recheck' in [audit] must name 1 to 8 ages; to audit nothing: enabled = false"},
      {"[audit]\nexcept = [\"x\"]\n",
       "t:2:11: 'except' in [audit] names a cache that is not declared: 'x'"},
      {"[audit]\nrat = 5\n", "t:2:1: unknown key 'rat' in [audit]; did you mean 'rate'?"},
      {"[source.shop]\npool = 1\n",
       "t:1:1: [source.shop] needs 'url': where the data is, such as \"sqlite:shop.db\""},
      {"[source.shop]\nurl = \"sqlite:\"\n",
       "t:2:7: 'url' in [source.shop] names no file: use \"sqlite:<path>\""},
      {"[source.shop]\nurl = \"sqlite::memory:\"\n",
       "t:2:7: 'url' in [source.shop]: a database in memory belongs to one connection only; use a "
       "file"},
      {"[source.shop]\nurl = \"mariadb://h\"\n",
       "t:2:7: 'url' in [source.shop]: the url names no database; write "
       "mariadb://user:password@host:3306/database?tls=on, or "
       "mariadb://user@/database?socket=/path"},
      {"[source.shop]\nurl = \"mysql://h/d\"\npoll = \"1s\"\n",
       "t:3:8: 'poll' in [source.shop]: MariaDB is not polled; leave it out"},
      {"[source.shop]\nurl = \"mariadb://h/d\"\nquery_log = \"x\"\n",
       "t:3:13: 'query_log' in [source.shop] is for SQLite: MariaDB writes its own, see its "
       "general_log and slow_query_log"},
      {"[source.shop]\nurl = \"mariadb://h/d\"\nfeed = \"triggers\"\n",
       "t:3:8: 'feed' in [source.shop] is for PostgreSQL; leave it out"},
      {"[source.shop]\nurl = \"postgresql://h/d\"\nfeed = \"notify\"\n",
       "t:3:8: 'feed' in [source.shop] must be 'log' or 'triggers', got \"notify\""},
      {"[source.shop]\nurl = \"mariadb://h/d\"\nreplicas = [\"mariadb://i/d\"]\n",
       "t:3:12: 'replicas' in [source.shop] is for PostgreSQL; leave it out"},
      {"[source.shop]\nurl = \"postgresql://h/d\"\nreplicas = [\"redis://i/d\"]\n",
       "t:3:13: 'replicas' in [source.shop]: postgresql://... is needed"},
      {"[source.shop]\nurl = \"postgresql://h/d\"\nreplica_lag = \"0s\"\n",
       "t:3:15: 'replica_lag' in [source.shop] must be from 1ms to 1h"},
      {"[source.shop]\nurl = \"mariadb://h/d\"\nslot_limit = \"1GiB\"\n",
       "t:3:14: 'slot_limit' in [source.shop] is for PostgreSQL's replication slot; leave it out"},
      {"[source.shop]\nurl = \"sqlte:x\"\n",
       "t:2:7: unknown kind of source 'sqlte': use \"sqlite:<path>\", "
       "\"postgresql://<host>/<database>\" or \"mariadb://<host>/<database>\"; did you mean "
       "'sqlite'?"},
      {"[source.shop]\nurl = \"shop.db\"\n",
       "t:2:7: 'url' in [source.shop] has no scheme: use \"sqlite:<path>\", "
       "\"postgresql://<host>/<database>\" or \"mariadb://<host>/<database>\""},
      {"[source.shop]\nurl = \"postgresql://h:x/d\"\n",
       "t:2:7: 'url' in [source.shop]: the url names a port that is no number from 1 to 65535"},
      {"[source.shop]\nurl = \"postgresql://h/d?ssl_mode=require\"\n",
       "t:2:7: 'url' in [source.shop]: libpq does not take the url: invalid URI query parameter; "
       "write postgresql://user:password@host:5432/database?sslmode=require"},
      {"[source.shop]\nurl = \"postgresql://h/d\"\npoll = \"1s\"\n",
       "t:3:8: 'poll' in [source.shop]: PostgreSQL is not polled; leave it out"},
      {"[source.shop]\nurl = \"postgres://h/d\"\nquery_log = \"x\"\n",
       "t:3:13: 'query_log' in [source.shop] is for SQLite: PostgreSQL writes its own, see its "
       "log_statement and log_min_duration_statement"},
      {"[source.shop]\nurl = \"sqlite:x\"\npol = 8\n",
       "t:3:1: unknown key 'pol' in [source.shop]; did you mean 'pool'?"},
      {"[source.shop]\nurl = \"sqlite:x\"\npoll = \"2h\"\n",
       "t:3:8: 'poll' in [source.shop] must be from 1ms to 1h"},
  };
  for (const Wrong& row : rows) EXPECT_THAT(messages(row.text), ElementsAre(row.message));
}

TEST(ConfigErrors, Caches) {
  const Wrong rows[] = {
      {"source = \"shpo\"",
       "t:4:10: there is no [source.shpo]: declared are 'shop'; did you mean 'shop'?"},
      {"remove = \"DELETE FROM product\"",
       "t:4:10: 'remove' in [cache.product] does not use ':id', a parameter of the key "
       "'product:{id:int}': it would be the same for every id"},
      {"remove = \"DELETE FROM product WHERE id = :id AND x = :y\"",
       "t:4:10: unknown placeholder ':y' in 'remove' in [cache.product]: it may use 'id'"},
      {"remove = \"DELETE FROM p WHERE id = :id; DROP TABLE p\"",
       "t:4:10: 'remove' in [cache.product]: "},
      {"store = \"INSERT INTO product(name) VALUES (:name)\"",
       "t:4:9: 'store' in [cache.product] does not use ':id', a parameter of the key "
       "'product:{id:int}': it would be the same for every id"},
      {"store = \"UPDATE p SET a = :a WHERE id = :id\"\nresult = \"array\"",
       "t:4:9: 'store' in [cache.product] writes one row, but result = \"array\" makes an entry of "
       "many: write through a cache of single rows"},
      {"store = \"UPDATE p SET a = :a, v = :value WHERE id = :id\"\nresult = \"value\"",
       "t:4:9: unknown placeholder ':a' in 'store' in [cache.product]: it may use 'value' and "
       "'id'"},
      {"store = \"UPDATE p SET a = 1 WHERE id = :id\"\nresult = \"value\"",
       "t:4:9: 'store' in [cache.product] must use ':value'"},
      {"increment = \"UPDATE p SET n = n + 1 WHERE id = :id\"\nresult = \"value\"",
       "t:4:13: 'increment' in [cache.product] must use ':delta'"},
      {"increment = \"UPDATE p SET n = n + :delta WHERE id = :id\"",
       "t:4:13: 'increment' in [cache.product] needs result = \"value\": the number alone"},
      {"warm = \"SELECT id FROM p LIMIT :m\"",
       "t:4:8: unknown placeholder ':m' in 'warm' in [cache.product]: it may use 'n'"},
      {"write = \"through\"",
       "t:4:9: 'write' in [cache.product] needs 'store', the statement that writes one row (or "
       "'remove', or 'increment')"},
      {"write = \"behind\"",
       "t:4:9: 'write' in [cache.product] needs 'store', the statement that writes one row (or "
       "'remove', or 'increment')"},
      {"write = \"behind\"\nresult = \"array\"\nremove = \"DELETE FROM p WHERE id = :id\"",
       "t:4:9: 'write' in [cache.product] does not go with result = \"array\": what is written is "
       "one row, what is read are several"},
      {"write = \"behind\"\nconsistency = \"strong\"\nstore = \"UPDATE p SET a = :a WHERE id = "
       ":id\"",
       "t:4:9: 'write' in [cache.product] does not go with consistency = \"strong\": the database "
       "has a write only later"},
      {"conflict = \"theirs\"",
       "t:4:12: 'conflict' in [cache.product] needs write = \"behind\": other writes wait for "
       "nothing"},
      {"write = \"behind\"\nconflict = \"theirs\"\nremove = \"DELETE FROM p WHERE id = :id\"",
       "t:5:12: 'conflict' in [cache.product] needs 'depends_on': by it a change made by others is "
       "known to be one of this row"},
      {"write = \"thru\"",
       "t:4:9: 'write' in [cache.product] must be 'none', 'around', 'through' or 'behind', got "
       "\"thru\""},
      {"on_del = \"remove\"",
       "t:4:10: 'on_del' in [cache.product] needs 'remove', the statement that deletes the row"},
      {"result = \"list\"",
       "t:4:10: 'result' in [cache.product] must be 'object', 'array' or 'value', got \"list\""},
      {"ttl = \"5 minutes\"",
       "t:4:7: 'ttl' in [cache.product] must be a duration such as \"5m\", \"100ms\" or \"1h30m\", "
       "got "
       "\"5 minutes\""},
      {"ttl = \"60\"",
       "t:4:7: 'ttl' in [cache.product] must be a duration such as \"5m\", \"100ms\" or \"1h30m\", "
       "got "
       "\"60\"; did you mean '60s'?"},
      {"load_timeout = \"0\"",
       "t:4:16: 'load_timeout' in [cache.product] must be above 0: it bounds how long a reader "
       "waits"},
      {"jitter = 1.5",
       "t:4:10: 'jitter' in [cache.product] must be a number from 0 to 1, got float 1.5"},
      {"jitter = nan",
       "t:4:10: 'jitter' in [cache.product] must be a number from 0 to 1, got float nan"},
      {"refresh_ahead = \"yes\"",
       "t:4:17: 'refresh_ahead' in [cache.product] must be true or false, got \"yes\""},
      {"consistency = \"bounded\"",
       "t:4:15: 'consistency' in [cache.product] must be 'eventual', 'bounded:<time>' or 'strong', "
       "got "
       "\"bounded\"; did you mean 'bounded:1s'?"},
      {"consistency = \"bounded:0\"",
       "t:4:15: 'consistency' in [cache.product] must be bounded:<time> with a time such as 1s, "
       "got "
       "\"bounded:0\""},
      {"consistency = \"stong\"",
       "t:4:15: 'consistency' in [cache.product] must be 'eventual', 'bounded:<time>' or 'strong', "
       "got "
       "\"stong\"; did you mean 'strong'?"},
      {"consistency = \"strong\"\nnear = true",
       "t:5:8: 'near' in [cache.product]: a strong cache has no near tier; leave it out"},
      {"max_value = \"0\"", "t:4:13: 'max_value' in [cache.product] must be from 1 to 512MiB"},
      {"tags = [\"a:{x\"]", "t:4:9: tag 'a:{x': a '{' is not closed; '{{' is a literal brace"},
      {"tags = [\"a:x}\"]", "t:4:9: tag 'a:x}': a '}' opens nowhere; '}}' is a literal brace"},
      {"tags = [\"a:{}\"]", "t:4:9: tag 'a:{}': '' is not the name of a column or key parameter"},
      {"tags = [\"\"]", "t:4:9: tag '': it must not be empty"},
      {"tags = [\"a\", \"a\"]", "t:4:14: tag 'a' is listed twice in 'tags' in [cache.product]"},
      {"tags = [\"a\", 5]",
       "t:4:14: 'tags' in [cache.product] must be an array of strings, got integer 5 in it"},
      {"depends_on = [\"product\"]",
       "t:4:15: dependency 'product': write table(column -> key parameter, ...)"},
      {"depends_on = [\"product(id)\"]",
       "t:4:15: dependency 'product(id)': write table(column -> key parameter, ...)"},
      {"depends_on = [\"product(id -> id,)\"]",
       "t:4:15: dependency 'product(id -> id,)': write table(column -> key parameter, ...)"},
      {"depends_on = [\"product(id -> idd)\"]",
       "t:4:15: dependency 'product(id -> idd)': 'idd' is not a parameter of the key "
       "'product:{id:int}'; did you mean 'id'?"},
      {"depends_on = [\"product(id -> id, x -> id)\"]",
       "t:4:15: dependency 'product(id -> id, x -> id)': key parameter 'id' appears twice"},
      {"depends_on = [\"pro duct(id -> id)\"]",
       "t:4:15: dependency 'pro duct(id -> id)': 'pro duct' is not the name of a table"},
      {"depends_on = [\"p(i d -> id)\"]",
       "t:4:15: dependency 'p(i d -> id)': 'i d' is not the name of a column"},
      {"depends_on = [\"p(id -> id)\", \"p( id->id )\"]",
       "t:4:30: dependency 'p( id->id )' is listed twice"},
  };
  for (const Wrong& row : rows) {
    const auto got = messages(product(row.text));
    ASSERT_EQ(got.size(), 1U) << row.text << ::testing::PrintToString(got);
    EXPECT_THAT(got[0], ::testing::StartsWith(row.message));
  }
}

TEST(ConfigErrors, WhatACacheNeeds) {
  EXPECT_THAT(
      messages("[cache.a]\n"),
      ElementsAre("t:1:1: [cache.a] needs 'key': the pattern of its keys, such as "
                  "\"a:{id:int}\"",
                  "t:1:1: [cache.a] needs 'load': the statement that reads one entry",
                  "t:1:1: [cache.a] needs 'source': declare one, such as [source.shop] with "
                  "its url"));
  EXPECT_THAT(messages(product("") + "[source.b]\nurl = \"sqlite:b\"\n"),
              ElementsAre("t:3:1: [cache.product] needs 'source': one of 'b' or 'shop'"));
  EXPECT_THAT(
      messages(product("", "{id}")),
      ElementsAre("t:5:7: 'key' in [cache.product]: a key pattern must begin with a literal, "
                  "such as 'product:'"));
  EXPECT_THAT(messages(product("", "home")),
              ElementsAre("t:6:8: unknown placeholder ':id' in 'load' in [cache.product]: the key "
                          "'home' has no parameters"));
}

TEST(ConfigErrors, OverlappingPatternsNameEachOther) {
  EXPECT_THAT(messages(product("") + "[cache.a]\nkey = \"product:{a}:x\"\n"
                                     "load = \"SELECT 1 WHERE :a\"\n"),
              ElementsAre("t:8:7: the keys of [cache.a] overlap those of [cache.product] (line 5): "
                          "both begin with 'product:'; give one of them a prefix of its own"));
}

TEST(ConfigErrors, AWrongSourceIsNotMissedByItsCaches) {
  EXPECT_THAT(messages("[source.shop]\nurl = \"http://x\"\n[cache.a]\nsource = \"shop\"\n"
                       "key = \"a:{x}\"\nload = \"SELECT :x\"\n"),
              ElementsAre("t:2:7: source 'http' is not in this version: use \"sqlite:<path>\", "
                          "\"postgresql://<host>/<database>\" or "
                          "\"mariadb://<host>/<database>\""));
}

TEST(ConfigErrors, SqlTellsPlaceholdersFromTheRest) {
  good(product("remove = \"DELETE FROM p WHERE id = :id AND ':no' <> \\\":nor\\\" -- :this\""));
}

TEST(ConfigErrors, StopCountingSomewhere) {
  std::string text = "[node]\n";
  for (int i = 0; i < 500; ++i) text += "x" + std::to_string(i) + " = 1\n";
  EXPECT_EQ(messages(text).size(), 100U);
}

// ---- variables and secrets ----

TEST(Secrets, ComeFromVariablesAndFiles) {
  const Config c = good(
      "[node]\nrequirepass = \"file:${DIR}/pw\"\ndata_dir = \"$${x}${DIR}\"\n"
      "[source.a]\nurl = \"sqlite:${DIR}/a.db\"\n"
      "[source.b]\nurl = \"file:/url\"\npoll = \"${POLL}\"\n",
      outside({{"DIR", "/d"}, {"POLL", "1s"}},
              {{"/d/pw", "hunter2\r\n"}, {"/url", "sqlite:b.db\n"}}));
  EXPECT_EQ(c.node.requirepass, "hunter2");
  EXPECT_EQ(c.node.data_dir, "${x}/d");
  EXPECT_EQ(c.sources.at(0).url, "sqlite:/d/a.db");
  EXPECT_EQ(c.sources.at(1).url, "sqlite:b.db");
  EXPECT_EQ(c.sources.at(1).poll_us, kSecond);
}

TEST(Secrets, MissingOnesAreNamed) {
  EXPECT_THAT(
      messages("[node]\nrequirepass = \"${PW}\"\ndata_dir = \"${}\"\nadmin = \"${a\"\n"),
      ElementsAre("t:2:15: environment variable 'PW' is not set",
                  "t:3:12: '${' is not the name of an environment variable; '$${' is a literal "
                  "'${'",
                  "t:4:9: '${a' is not the name of an environment variable; '$${' is a literal "
                  "'${'"));
  EXPECT_THAT(messages("[node]\nrequirepass = \"file:/pw\"\n"),
              ElementsAre("t:2:15: the secret file '/pw' cannot be used: it cannot be opened"));
  EXPECT_THAT(
      messages("[node]\nrequirepass = \"\"\n"),
      ElementsAre("t:2:15: 'requirepass' in [node] must not be empty: leave it out for none"));
}

TEST(Secrets, AreNotExpandedInStatements) {
  const Config c = good(product("remove = \"DELETE FROM p WHERE id = :id AND x = '${HOME}'\""));
  EXPECT_THAT(c.caches.at(0).remove, HasSubstr("${HOME}"));
}

TEST(Secrets, AreNeverPrinted) {
  const Outside out =
      outside({{"URL", "oracle://app:hunter2@db/x"}, {"E", "redis://:hunter2@h:port"}},
              {{"/url", "hunter2"}});
  for (const char* text : {
           "[node]\nrequirepas = \"hunter2\"\n",
           "[node]\nrequirepass = [\"hunter2\"]\n",
           "node = { requirepass = 5, passwort = \"hunter2\" }\n",
           "[source.a]\nurl = \"oracle://app:hunter2@db/x\"\n",
           "[source.a]\nurl = \"postgresql://app:hunter2@db:port/x\"\n",
           "[source.a]\nurl = \"postgresql://app:hunter2%zz@db/x\"\n",
           "[source.a]\nurl = \"mysql://app:hunt@hunter2@db:port/x\"\n",
           "[source.a]\nurl = \"postgresql://db/x?user=a&password=hunter2&x=y\"\n",
           "[source.a]\nurl = \"${URL}\"\n",
           "[source.a]\nurl = \"file:/url\"\n",
           "[source.a]\nurl = \"mysql://a:hunter2@b\" = 7\n",
           "[engine]\nurl = \"rediss://u:hunter2@h/x/y\"\n",
           "[engine]\nurl = \"${E}\"\n",
       }) {
    const std::string printed = errors(text, out);
    EXPECT_THAT(printed, Not(IsEmpty())) << text;
    EXPECT_THAT(printed, Not(HasSubstr("hunter2"))) << text;
  }
}

TEST(Secrets, DisplayUrlHidesThem) {
  EXPECT_EQ(masked_url("sqlite:shop.db"), "sqlite:shop.db");
  EXPECT_EQ(masked_url("postgresql://app@db/x"), "postgresql://app@db/x");
  EXPECT_EQ(masked_url("postgresql://app:pw@db:5432/x"), "postgresql://app:***@db:5432/x");
  EXPECT_EQ(masked_url("http://h:80/a?x=b@c"), "http://h:80/a?x=b@c");
  EXPECT_EQ(masked_url("x://h/a?password=pw&b=c"), "x://h/a?password=***&b=c");
}

TEST(Nearest, FindsTheWordThatWasMeant) {
  const std::vector<std::string> words = {"ttl", "tags", "near", "stale_if_error", "source"};
  EXPECT_EQ(nearest("tll", words), "ttl");
  EXPECT_EQ(nearest("tgas", words), "tags");
  EXPECT_EQ(nearest("staleiferror", words), "stale_if_error");
  EXPECT_EQ(nearest("sorce", words), "source");
  EXPECT_EQ(nearest("xyz", words), "");
  EXPECT_EQ(nearest("", words), "");
  EXPECT_EQ(nearest(std::string(100'000, 't'), words), "");
}

}  // namespace
}  // namespace larder::config
