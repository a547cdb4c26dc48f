#include "daemon/tier/rocks/database.h"

#include <rocksdb/filter_policy.h>
#include <rocksdb/sst_file_manager.h>
#include <rocksdb/table.h>

#include <cstdarg>
#include <filesystem>
#include <string>
#include <system_error>

#include "client/base/log.h"

namespace dyna {
namespace {

using Kind = RocksOptions::Kind;

// RocksDB's own text log aborts the process when the disk it is on is full (seen with
// Debian's 7.8.3). It has none: whatever fails comes back to us as a status.
class NoLog final : public rocksdb::Logger {
 public:
  using rocksdb::Logger::Logv;
  void Logv(const char*, va_list) override {}
};

rocksdb::DBOptions DbOptions(const RocksOptions& options) {
  rocksdb::DBOptions o;
  o.create_if_missing = true;
  o.create_missing_column_families = true;
  o.max_open_files = -1;
  o.max_background_jobs = 2;
  o.bytes_per_sync = 1 << 20;
  o.paranoid_checks = true;
  o.avoid_unnecessary_blocking_io = true;
  o.info_log = std::make_shared<NoLog>();
  // Only with it does RocksDB recover by itself when a full disk has room again.
  o.sst_file_manager.reset(rocksdb::NewSstFileManager(rocksdb::Env::Default()));
  if (options.kind == Kind::kSpill) {
    o.atomic_flush = true;  // without a WAL this alone keeps the families consistent
  } else {
    // A torn tail was never acknowledged; a hole before it was, and must be an error.
    o.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
    o.wal_bytes_per_sync = 1 << 20;
    o.max_total_wal_size = 4 * options.write_buffer_bytes;
  }
  return o;
}

rocksdb::ColumnFamilyOptions FamilyOptions(uint64_t write_buffer, uint64_t min_blob,
                                           const std::shared_ptr<rocksdb::Cache>& cache) {
  rocksdb::ColumnFamilyOptions o;
  o.write_buffer_size = write_buffer;
  o.max_write_buffer_number = 3;
  o.compression = rocksdb::kNoCompression;  // the payload is compressed already
  o.target_file_size_base = 4 << 20;
  o.max_bytes_for_level_base = 32 << 20;
  o.level0_slowdown_writes_trigger = 40;
  o.level0_stop_writes_trigger = 80;
  o.enable_blob_files = true;
  o.min_blob_size = min_blob;
  o.blob_file_size = 256u << 20;
  o.blob_compression_type = rocksdb::kNoCompression;
  o.enable_blob_garbage_collection = true;
  o.blob_garbage_collection_age_cutoff = 0.5;
  o.blob_garbage_collection_force_threshold = 0.5;
  rocksdb::BlockBasedTableOptions table;
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  table.cache_index_and_filter_blocks = true;
  table.block_cache = cache;
  o.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return o;
}

std::vector<rocksdb::ColumnFamilyDescriptor> Families(const RocksOptions& options) {
  const auto cache = rocksdb::NewLRUCache(32 << 20);
  // The meta family is read whole at start-up: only bases and learner states are worth a blob
  // there.
  return {{"default", FamilyOptions(4 << 20, 4096, cache)},
          {"meta", FamilyOptions(16 << 20, 64 << 10, cache)},
          {"blocks", FamilyOptions(options.write_buffer_bytes, 4096, cache)}};
}

const char* FormatOf(Kind kind) {
  return kind == Kind::kSpill ? "dynacompress spill 2" : "dynacompress bank 2";
}

}  // namespace

Status FromRocks(const rocksdb::Status& status, std::string_view doing) {
  const std::string what = std::string(doing) + ": " + status.ToString();
  if (status.IsNoSpace() || status.subcode() == rocksdb::Status::SubCode::kSpaceLimit)
    return Status(StatusCode::kQuota, "the disk is full: " + what);
  return Internal(what);
}

Result<std::unique_ptr<Database>> Database::Open(const RocksOptions& options) {
  DYNA_ASSIGN_OR_RETURN(StoreDir dir, StoreDir::Open(options.path, FormatOf(options.kind)));
  std::unique_ptr<Database> database(new Database(std::move(dir), options));
  rocksdb::Status status = database->OpenOnce();
  if (!status.ok() && options.kind == Kind::kSpill &&
      (status.IsCorruption() || status.IsInvalidArgument() || status.IsPathNotFound())) {
    DYNA_RETURN_IF_ERROR(database->dir_.SetAside("it cannot be read: " + status.ToString()));
    status = database->OpenOnce();
  }
  if (!status.ok()) return FromRocks(status, "cannot open " + options.path);
  if (database->fresh_) DYNA_RETURN_IF_ERROR(database->PutSentinel());
  return database;
}

rocksdb::Status Database::OpenOnce() {
  rocksdb::DB* db = nullptr;
  const rocksdb::DBOptions db_options = DbOptions(options_);
  const auto families = Families(options_);
  fresh_ = db_options.env->FileExists(dir_.db_path() + "/CURRENT").IsNotFound();
  const auto status = rocksdb::DB::Open(db_options, dir_.db_path(), families, &families_, &db);
  if (!status.ok()) return status;
  db_.reset(db);
  return status;
}

// A database that was emptied completely keeps its blob files for ever: this row is never deleted.
// Parts are keyed by tenant first, and no key is as short.
Status Database::PutSentinel() {
  const std::string blob(8192, 'D');
  rocksdb::WriteBatch batch;
  auto status = batch.Put(blocks(), "sentinel", blob);
  if (status.ok()) status = db_->Write(write_options(), &batch);
  return status.ok() ? Status() : FromRocks(status, "cannot write to " + options_.path);
}

Database::~Database() {
  if (db_ == nullptr) return;
  // Without a WAL what is in memory would be lost; a clean stop keeps it.
  if (options_.kind == Kind::kSpill) {
    if (const Status status = Flush(); !status.ok())
      LogWarn("{}: not all was kept at stop: {}", options_.path, status.ToString());
  }
  for (auto* family : families_) db_->DestroyColumnFamilyHandle(family);
  db_->Close().PermitUncheckedError();
}

rocksdb::WriteOptions Database::write_options() const {
  rocksdb::WriteOptions o;
  o.sync = options_.kind == Kind::kBank;
  o.disableWAL = options_.kind == Kind::kSpill;
  return o;
}

rocksdb::ReadOptions Database::read_options() const {
  rocksdb::ReadOptions o;
  o.verify_checksums = true;
  o.fill_cache = false;
  return o;
}

Status Database::Flush() {
  const auto status = db_->Flush(rocksdb::FlushOptions(), families_);
  return status.ok() ? Status() : FromRocks(status, "flush");
}

Status Database::Compact() {
  rocksdb::CompactRangeOptions o;
  o.exclusive_manual_compaction = false;
  o.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForceOptimized;
  o.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kForce;
  o.blob_garbage_collection_age_cutoff = 1.0;
  for (auto* family : {meta(), blocks()}) {
    const auto status = db_->CompactRange(o, family, nullptr, nullptr);
    if (!status.ok()) return FromRocks(status, "compaction");
  }
  return {};
}

// RocksDB survives a full disk, but not every of its paths does: it is not led there. A commit
// needs its own bytes, and those in memory will be flushed.
Status Database::CheckRoom(uint64_t bytes) const {
  std::error_code error;
  const auto space = std::filesystem::space(dir_.db_path(), error);
  const uint64_t needed = bytes + 4 * options_.write_buffer_bytes;
  if (error || space.available >= needed) return {};
  return Status(StatusCode::kQuota, "the disk is full: " + std::to_string(space.available) +
                                        " bytes are free, " + std::to_string(needed) + " needed");
}

uint64_t Database::DiskBytes() {
  uint64_t sum = 0, n = 0;
  for (auto* family : families_)
    for (const char* property : {"rocksdb.total-sst-files-size", "rocksdb.total-blob-file-size"})
      if (db_->GetIntProperty(family, property, &n)) sum += n;
  return sum;
}

uint64_t Database::Files() {
  uint64_t sum = 0, n = 0;
  std::string text;
  for (auto* family : families_) {
    if (db_->GetIntProperty(family, "rocksdb.num-blob-files", &n)) sum += n;
    for (int level = 0; level < db_->NumberLevels(family); ++level)
      if (db_->GetProperty(family, "rocksdb.num-files-at-level" + std::to_string(level), &text))
        sum += std::stoull(text);
  }
  return sum;
}

}  // namespace dyna
