// A disk that loses what was not made durable, for tests: SimDisk is what survives, SimStorage is a
// process's view of it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "journal/storage.h"

namespace larder::journal {

class SimDisk {
 public:
  static constexpr std::size_t kSector = 64;  // small, so that frames are torn everywhere

  struct Inode {
    std::string now;      // what a process reads
    std::string durable;  // what is surely there
  };
  using Names = std::map<std::string, std::shared_ptr<Inode>>;

  // The power goes: of what was not made durable any part may be there; of names, too.
  void crash(Random& random) {
    for (const Change& change : pending_)
      if (random.chance(0.5)) apply(durable_names_, change);
    pending_.clear();
    for (auto& [name, inode] : durable_names_) {
      std::string& now = inode->now;
      const std::string& durable = inode->durable;
      std::string left = durable;
      if (now.size() > durable.size() && random.chance(0.8)) {
        left.resize(durable.size() + random.below(now.size() - durable.size() + 1), '\0');
      } else if (now.size() < durable.size() && random.chance(0.5)) {
        left.resize(now.size());
      }
      const std::size_t both = std::min(left.size(), now.size());
      for (std::size_t at = 0; at < both; at += kSector) {
        const std::size_t size = std::min(kSector, both - at);
        const bool changed =
            at + size > durable.size() || now.compare(at, size, durable, at, size) != 0;
        if (changed && random.chance(0.5)) left.replace(at, size, now, at, size);
      }
      now = inode->durable = left;
    }
    names_ = durable_names_;
  }

  // What goes wrong from now on.
  std::int64_t syncs_until_failure = -1;    // the sync after so many fails; -1: none
  std::optional<std::uint64_t> room_bytes;  // that may still be appended
  bool stopped = false;                     // the process is dead: nothing happens any more
  std::int64_t steps_until_stop = -1;       // it dies at the step after so many

  std::string& bytes_of(const std::string& name) { return names_.at(name)->now; }
  void damage(const std::string& name, std::size_t at) {
    Inode& inode = *names_.at(name);
    inode.now[at] = static_cast<char>(inode.now[at] ^ 0x5a);
    inode.durable = inode.now;
  }
  const Names& names() const { return names_; }

 private:
  friend class SimStorage;
  friend class SimFile;

  struct Change {
    std::string name;
    std::shared_ptr<Inode> inode;  // null: removed
  };
  static void apply(Names& names, const Change& change) {
    if (change.inode)
      names[change.name] = change.inode;
    else
      names.erase(change.name);
  }
  void change(std::string name, std::shared_ptr<Inode> inode) {
    pending_.push_back({std::move(name), std::move(inode)});
    apply(names_, pending_.back());
  }
  void sync_names() {
    for (const Change& change : pending_) apply(durable_names_, change);
    pending_.clear();
  }
  // One step of the process.
  Result<void> step() {
    if (!stopped && steps_until_stop >= 0 && steps_until_stop-- == 0) stopped = true;
    if (stopped) return fail(ErrorCode::io, "the process is dead", "sim");
    return {};
  }
  Result<void> sync(Inode& inode) {
    if (syncs_until_failure >= 0 && syncs_until_failure-- == 0)
      return fail(ErrorCode::io, "the disk failed", "sim");
    inode.durable = inode.now;
    return {};
  }
  Result<void> append(Inode& inode, std::string_view bytes) {
    if (room_bytes && bytes.size() > *room_bytes) {
      inode.now.append(bytes.substr(0, *room_bytes));
      room_bytes = 0;
      return fail(ErrorCode::overloaded, "the disk is full", "sim");
    }
    if (room_bytes) *room_bytes -= bytes.size();
    inode.now.append(bytes);
    return {};
  }

  Names names_;
  Names durable_names_;
  std::vector<Change> pending_;
};

class SimFile final : public Storage::File {
 public:
  SimFile(SimDisk& disk, std::shared_ptr<SimDisk::Inode> inode)
      : disk_(disk), inode_(std::move(inode)) {}
  Result<void> append(std::string_view bytes) override {
    Result<void> alive = disk_.step();
    return alive ? disk_.append(*inode_, bytes) : alive;
  }
  Result<void> sync() override {
    Result<void> alive = disk_.step();
    return alive ? disk_.sync(*inode_) : alive;
  }
  Result<void> cut(std::uint64_t size) override {
    Result<void> alive = disk_.step();
    if (alive) inode_->now.resize(size);
    return alive;
  }

 private:
  SimDisk& disk_;
  const std::shared_ptr<SimDisk::Inode> inode_;
};

class SimStorage final : public Storage {
 public:
  explicit SimStorage(SimDisk& disk) : disk_(disk) {}

  Result<std::vector<std::string>> list() override {
    std::vector<std::string> names;
    for (const auto& [name, inode] : disk_.names_) names.push_back(name);
    return names;
  }
  Result<std::string> read(const std::string& name) override { return disk_.bytes_of(name); }
  Result<std::unique_ptr<File>> open(const std::string& name) override {
    return std::make_unique<SimFile>(disk_, disk_.names_.at(name));
  }
  Result<void> replace(const std::string& name, std::string_view bytes) override {
    Result<void> done = disk_.step();
    const auto inode = std::make_shared<SimDisk::Inode>();
    if (done) done = disk_.append(*inode, bytes);
    if (done) done = disk_.step();
    if (done) done = disk_.sync(*inode);
    if (done) done = disk_.step();
    if (!done) return done;
    disk_.change(name, inode);
    done = disk_.step();
    if (done) disk_.sync_names();
    return done;
  }
  Result<void> remove(const std::string& name) override {
    Result<void> alive = disk_.step();
    if (alive) disk_.change(name, nullptr);
    return alive;
  }
  Result<void> sync_names() override {
    Result<void> alive = disk_.step();
    if (alive) disk_.sync_names();
    return alive;
  }

 private:
  SimDisk& disk_;
};

}  // namespace larder::journal
