// The directory of one database: private, locked, and of a known format.
//
//   DIR/LOCK      held with flock by the daemon that uses it; says its pid
//   DIR/FORMAT    one line: what wrote this, in which version
//   DIR/db/       RocksDB's
//
// Spill threads' owner only (start-up).
#pragma once

#include <string>
#include <string_view>

#include "client/base/unique_fd.h"
#include "schemas/status.h"

namespace dyna {

class StoreDir {
 public:
  // Creates DIR (0700) if need be, and locks it. A directory with another FORMAT, or with files and
  // none, is renamed to DIR.set-aside-N and logged, never changed; a new one takes its place.
  // INVALID, readable: another daemon has it, or it belongs to another user.
  static Result<StoreDir> Open(const std::string& path, std::string_view format);

  std::string db_path() const { return path_ + "/db"; }
  // Renames DIR as above because its content cannot be used, and opens a new one in its place.
  Status SetAside(std::string_view why);

 private:
  StoreDir(std::string path, std::string format)
      : path_(std::move(path)), format_(std::move(format)) {}
  Status CreateAndLock();
  Result<bool> FormatMatches() const;  // false: foreign
  Status WriteFormat() const;

  std::string path_, format_;
  UniqueFd lock_;
};

}  // namespace dyna
