// The demo's load: readers that like some products more than others, and somebody who changes
// prices.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "demo/picture.h"
#include "demo/shop.h"

namespace larder::app {

// Threads that run until stop(). Each reader has a connection of its own and asks for several keys
// at once, as a service with some requests in flight does.
class DemoLoad {
 public:
  DemoLoad(std::string address, std::string database, const ShopSize& size, DemoFigures& figures);
  ~DemoLoad();  // stops

  void start();
  void stop();
  // The first error that a thread met; "" if none.
  std::string failure() const;

 private:
  void read(std::uint64_t seed);
  void change_prices();
  void failed(const std::string& what);

  std::string address_;
  std::string database_;
  ShopSize size_;
  DemoFigures& figures_;
  std::vector<double> popularity_;  // cumulative, Zipf with exponent 1 over the products
  std::atomic<bool> stopping_{false};
  mutable Mutex mutex_;
  std::string failure_ LARDER_GUARDED_BY(mutex_);
  std::vector<std::thread> threads_;
};

}  // namespace larder::app
