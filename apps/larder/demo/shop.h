// The demo's database: a SQLite shop, and somebody who changes prices in it behind Larder's back.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/error.h"

struct sqlite3;
struct sqlite3_stmt;

namespace larder::app {

struct ShopSize {
  std::int64_t products = 100'000;
  std::int64_t users = 10'000;
  std::int64_t reviews = 50'000;
};

// Makes the file anew. `progress` is told how many rows there are so far.
Result<void> make_shop(const std::string& path, const ShopSize& size,
                       const std::function<void(std::int64_t)>& progress);

// A connection of its own, as another program would have. Used by one thread.
class PriceChanger {
 public:
  static Result<std::unique_ptr<PriceChanger>> open(const std::string& path);
  ~PriceChanger();
  PriceChanger(const PriceChanger&) = delete;
  PriceChanger& operator=(const PriceChanger&) = delete;

  // UPDATE product SET price = ... WHERE id = ..., in a transaction of its own; returns after
  // COMMIT.
  Result<void> set_price(std::int64_t product, double price);

 private:
  PriceChanger(sqlite3* database, sqlite3_stmt* update) : database_(database), update_(update) {}
  sqlite3* database_;
  sqlite3_stmt* update_;
};

// The demo's configuration: also what --keep shows.
std::string demo_config(const std::string& database, const std::string& data_dir);

}  // namespace larder::app
