// One RocksDB database with our column families and options: opens, turns errors into Status.
//
// Any spill thread (RocksDB is thread-safe). Included only in this folder.
#pragma once

#include <rocksdb/db.h>

#include <memory>
#include <string_view>
#include <vector>

#include "daemon/tier/rocks/rocks_store.h"
#include "daemon/tier/rocks/store_dir.h"

namespace dyna {

// QUOTA when the disk is full, INTERNAL otherwise. Never OK for a status that is not.
Status FromRocks(const rocksdb::Status& status, std::string_view doing);

class Database {
 public:
  static Result<std::unique_ptr<Database>> Open(const RocksOptions& options);
  ~Database();

  rocksdb::DB& db() { return *db_; }
  rocksdb::ColumnFamilyHandle* meta() { return families_[1]; }
  rocksdb::ColumnFamilyHandle* blocks() { return families_[2]; }
  rocksdb::ColumnFamilyHandle* quarantine() { return families_[0]; }  // RocksDB demands a `default`
  bool fresh() const { return fresh_; }                               // nothing was in it

  rocksdb::WriteOptions write_options() const;
  rocksdb::ReadOptions read_options() const;
  Status Flush();
  // Gives the disk back what was deleted: blobs live until a compaction rewrites their file.
  Status Compact();
  // QUOTA when the file system has no room for a write of `bytes` and the flushes that follow.
  Status CheckRoom(uint64_t bytes) const;
  uint64_t DiskBytes();
  uint64_t Files();

 private:
  Database(StoreDir dir, RocksOptions options)
      : dir_(std::move(dir)), options_(std::move(options)) {}
  rocksdb::Status OpenOnce();
  Status PutSentinel();

  StoreDir dir_;
  RocksOptions options_;
  std::unique_ptr<rocksdb::DB> db_;
  std::vector<rocksdb::ColumnFamilyHandle*> families_;
  bool fresh_ = false;
};

}  // namespace dyna
