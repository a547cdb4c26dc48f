#include "daemon/tier/rocks/row_scan.h"

#include <utility>

#include "client/base/log.h"
#include "daemon/tier/block_parts.h"
#include "daemon/tier/rocks/part_frame.h"

namespace dyna {
namespace {

constexpr size_t kBatchRows = 512, kBatchBytes = 4 << 20;

bool Echoes(const record::Row& row, std::string_view key) {
  const auto* meta = std::get_if<record::BlockMeta>(&row);
  return key == (meta != nullptr ? BlockRowKey(meta->key) : RowKeyBytes(KeyOf(row)));
}

}  // namespace

Status ScanRows(Database& database, ScanTotals& totals,
                const std::function<bool(ScanBatch)>& sink) {
  rocksdb::ReadOptions options = database.read_options();
  options.readahead_size = 4 << 20;
  std::unique_ptr<rocksdb::Iterator> it(database.db().NewIterator(options, database.meta()));
  ScanBatch batch;
  size_t bytes = 0, unsupported = 0;
  for (it->SeekToFirst(); it->Valid(); it->Next()) {
    const rocksdb::Slice value = it->value();
    auto row = record::Parse({reinterpret_cast<const uint8_t*>(value.data()), value.size()});
    if (row.ok() && Echoes(*row, it->key().ToStringView())) {
      if (const auto* meta = std::get_if<record::BlockMeta>(&*row)) {
        totals.live_bytes += LiveBytes(*meta, value.size(), kPartFrameBytes);
        ++totals.blocks;
      }
      batch.rows.push_back(std::move(*row));
      bytes += value.size();
    } else if (!row.ok() && row.status().code() == StatusCode::kUnsupported) {
      ++unsupported;
    } else {
      batch.damaged.push_back(it->key().ToString());
    }
    if (batch.rows.size() >= kBatchRows || bytes >= kBatchBytes) {
      if (!sink(std::exchange(batch, {}))) return Status(StatusCode::kCancelled, "scan: stopped");
      bytes = 0;
    }
  }
  if (!it->status().ok()) return FromRocks(it->status(), "scan");
  if (!batch.rows.empty() || !batch.damaged.empty())
    if (!sink(std::move(batch))) return Status(StatusCode::kCancelled, "scan: stopped");
  if (unsupported > 0) LogWarn("{} rows are of a later version and were left alone", unsupported);
  return {};
}

}  // namespace dyna
