#include "demo/shop.h"

#include <fmt/format.h>
#include <sqlite3.h>

#include "base/random.h"

namespace larder::app {
namespace {

std::unexpected<Error> failed(sqlite3* database, std::string_view what) {
  return fail(ErrorCode::io, fmt::format("{}: {}", what, sqlite3_errmsg(database)), "sqlite");
}

constexpr const char* kSchema = R"sql(
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE product(id INTEGER PRIMARY KEY, name TEXT NOT NULL, price REAL NOT NULL,
                     category TEXT NOT NULL, description TEXT);
CREATE TABLE user(id INTEGER PRIMARY KEY, name TEXT NOT NULL, city TEXT);
CREATE TABLE review(id INTEGER PRIMARY KEY, product_id INTEGER NOT NULL REFERENCES product,
                    user_id INTEGER NOT NULL REFERENCES user, stars INTEGER NOT NULL, text TEXT);
CREATE INDEX review_product ON review(product_id);
)sql";

constexpr std::string_view kAdjectives[] = {"quiet", "bright", "sturdy", "small", "oak",
                                            "linen", "steel",  "blue",   "warm",  "folding"};
constexpr std::string_view kNouns[] = {"lamp",  "chair",   "kettle", "jar",   "shelf",
                                       "knife", "blanket", "bowl",   "clock", "basket"};
constexpr std::string_view kCategories[] = {"kitchen", "bedroom", "office", "garden", "hall"};
constexpr std::string_view kCities[] = {"Lisbon", "Turku", "Graz", "Ghent", "Porto", "Lyon"};

template <std::size_t N>
std::string_view pick(const std::string_view (&list)[N], Random& random) {
  return list[random.below(N)];
}

class Filler {
 public:
  Filler(sqlite3* database, const char* sql) {
    sqlite3_prepare_v2(database, sql, -1, &statement_, nullptr);
  }
  ~Filler() { sqlite3_finalize(statement_); }
  Filler(const Filler&) = delete;
  Filler& operator=(const Filler&) = delete;
  Filler& operator<<(std::int64_t n) {
    sqlite3_bind_int64(statement_, ++bound_, n);
    return *this;
  }
  Filler& operator<<(double n) {
    sqlite3_bind_double(statement_, ++bound_, n);
    return *this;
  }
  Filler& operator<<(const std::string& text) {
    sqlite3_bind_text(statement_, ++bound_, text.data(), static_cast<int>(text.size()),
                      SQLITE_TRANSIENT);
    return *this;
  }
  bool insert() {
    bound_ = 0;
    const bool done = statement_ && sqlite3_step(statement_) == SQLITE_DONE;
    if (statement_) sqlite3_reset(statement_);
    return done;
  }

 private:
  sqlite3_stmt* statement_ = nullptr;
  int bound_ = 0;
};

double cents(Random& random) { return static_cast<double>(199 + random.below(19'800)) / 100.0; }

}  // namespace

Result<void> make_shop(const std::string& path, const ShopSize& size,
                       const std::function<void(std::int64_t)>& progress) {
  sqlite3* database = nullptr;
  if (sqlite3_open(path.c_str(), &database) != SQLITE_OK) return failed(database, "making " + path);
  const std::unique_ptr<sqlite3, int (*)(sqlite3*)> owner(database, sqlite3_close);
  if (sqlite3_exec(database, kSchema, nullptr, nullptr, nullptr) != SQLITE_OK ||
      sqlite3_exec(database, "BEGIN", nullptr, nullptr, nullptr) != SQLITE_OK)
    return failed(database, "making the tables of the shop");
  Random random(20);  // the same shop every time
  std::int64_t rows = 0;
  const auto told = [&] {
    if (++rows % 5'000 == 0) progress(rows);
  };
  {
    Filler product(database, "INSERT INTO product VALUES (?, ?, ?, ?, ?)");
    for (std::int64_t id = 1; id <= size.products; ++id, told()) {
      const std::string name =
          fmt::format("{} {}", pick(kAdjectives, random), pick(kNouns, random));
      product << id << name << cents(random) << std::string(pick(kCategories, random))
              << fmt::format("A {} for every day, number {} of our own workshop.", name, id);
      if (!product.insert()) return failed(database, "filling the table product");
    }
    Filler user(database, "INSERT INTO user VALUES (?, ?, ?)");
    for (std::int64_t id = 1; id <= size.users; ++id, told()) {
      user << id << fmt::format("user {}", id) << std::string(pick(kCities, random));
      if (!user.insert()) return failed(database, "filling the table user");
    }
    Filler review(database, "INSERT INTO review VALUES (?, ?, ?, ?, ?)");
    for (std::int64_t id = 1; id <= size.reviews; ++id, told()) {
      review << id
             << static_cast<std::int64_t>(1 +
                                          random.below(static_cast<std::uint64_t>(size.products)))
             << static_cast<std::int64_t>(1 + random.below(static_cast<std::uint64_t>(size.users)))
             << static_cast<std::int64_t>(1 + random.below(5)) << std::string("as described");
      if (!review.insert()) return failed(database, "filling the table review");
    }
  }
  if (sqlite3_exec(database, "COMMIT", nullptr, nullptr, nullptr) != SQLITE_OK)
    return failed(database, "committing the shop");
  return {};
}

Result<std::unique_ptr<PriceChanger>> PriceChanger::open(const std::string& path) {
  sqlite3* database = nullptr;
  sqlite3_stmt* update = nullptr;
  if (sqlite3_open_v2(path.c_str(), &database, SQLITE_OPEN_READWRITE, nullptr) != SQLITE_OK ||
      sqlite3_busy_timeout(database, 5'000) != SQLITE_OK ||
      sqlite3_prepare_v2(database, "UPDATE product SET price = ? WHERE id = ?", -1, &update,
                         nullptr) != SQLITE_OK) {
    Error error = failed(database, "opening " + path).error();
    sqlite3_close(database);
    return std::unexpected(std::move(error));
  }
  return std::unique_ptr<PriceChanger>(new PriceChanger(database, update));
}

PriceChanger::~PriceChanger() {
  sqlite3_finalize(update_);
  sqlite3_close(database_);
}

Result<void> PriceChanger::set_price(std::int64_t product, double price) {
  sqlite3_bind_double(update_, 1, price);
  sqlite3_bind_int64(update_, 2, product);
  const int code = sqlite3_step(update_);
  sqlite3_reset(update_);
  if (code != SQLITE_DONE) return failed(database_, "changing a price");
  return {};
}

std::string demo_config(const std::string& database, const std::string& data_dir) {
  return fmt::format(R"toml([node]
listen   = ["127.0.0.1:0"]
admin    = "127.0.0.1:0"
threads  = 1
data_dir = "{}"

[near]
capacity = "16MiB"              # less than the shop: eviction has work to do

[source.shop]
url  = "sqlite:{}"
pool = 2

[cache.product]
key    = "product:{{id:int}}"
source = "shop"
load   = "SELECT id, name, price, category, description FROM product WHERE id = :id"
store  = """UPDATE product SET name = :name, price = :price, category = :category,
            description = :description WHERE id = :id"""
write  = "through"
ttl    = "5m"
jitter = 0.1
negative_ttl   = "5s"
refresh_ahead  = true
stale_if_error = "1h"
consistency = "bounded:1s"
tags       = ["category:{{category}}"]
depends_on = ["product(id -> id)"]

[cache.user]
key    = "user:{{id:int}}"
source = "shop"
load   = "SELECT id, name, city FROM user WHERE id = :id"
ttl    = "10m"
depends_on = ["user(id -> id)"]

[cache.reviews]
key    = "reviews:{{product:int}}"
source = "shop"
load   = "SELECT stars, text FROM review WHERE product_id = :product"
result = "array"
ttl    = "1m"
depends_on = ["review(product_id -> product)"]
)toml",
                     data_dir, database);
}

}  // namespace larder::app
