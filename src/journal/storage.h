// The files of one folder, as a log needs them: appended to, made durable, replaced, removed.
//
// An interface so that tests can lose what was not made durable. Everything blocks. Used by one
// thread at a time. Errors: overloaded (the disk is full), io.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace larder::journal {

class Storage {
 public:
  class File {
   public:
    virtual ~File() = default;
    // At its end. After an error a part of them may be there.
    virtual Result<void> append(std::string_view bytes) = 0;
    // Everything that was appended survives the power. After an error nothing is known of any of
    // it, now or later: the system may have dropped what it could not write.
    virtual Result<void> sync() = 0;
    // Takes off what lies behind `size`.
    virtual Result<void> cut(std::uint64_t size) = 0;
  };

  virtual ~Storage() = default;
  // Names of files, sorted.
  virtual Result<std::vector<std::string>> list() = 0;
  virtual Result<std::string> read(const std::string& name) = 0;
  // A file that exists, for appending.
  virtual Result<std::unique_ptr<File>> open(const std::string& name) = 0;
  // The file consists of these bytes, or of what it was before, whatever happens; when it returns,
  // durably of these bytes.
  virtual Result<void> replace(const std::string& name, std::string_view bytes) = 0;
  // Durably so after sync_names(); until then the power may bring it back.
  virtual Result<void> remove(const std::string& name) = 0;
  virtual Result<void> sync_names() = 0;
};

// The folder is made if it is missing, and is this process's alone until the storage ends. Error:
// config, if another process has it; io.
Result<std::unique_ptr<Storage>> open_folder(const std::string& path);

}  // namespace larder::journal
