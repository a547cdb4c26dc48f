#include "daemon/tier/rocks/write_group.h"

#include <algorithm>
#include <array>
#include <cassert>

#include "client/base/log.h"
#include "daemon/tier/block_parts.h"
#include "daemon/tier/rocks/part_frame.h"

namespace dyna {
namespace {

template <typename... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <typename... F>
Overloaded(F...) -> Overloaded<F...>;

rocksdb::Slice AsSlice(const std::vector<uint8_t>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Status Batched(const rocksdb::Status& status) {
  return status.ok() ? Status() : FromRocks(status, "batch");
}

}  // namespace

std::string WriteOp::Key() const {
  return std::visit(Overloaded{[](const BlockWrite& w) { return BlockRowKey(w.meta.key); },
                               [](const DeleteBlockOp& d) { return BlockRowKey(d.key); },
                               [](const record::Row& r) { return RowKeyBytes(KeyOf(r)); },
                               [](const DeleteRowOp& d) { return RowKeyBytes(d.key); },
                               [](const QuarantinePartOp& q) {
                                 return kBlockRowTag + q.part_key.substr(0, kPartKeyBytes - 9);
                               },
                               [](const QuarantineRowOp& q) { return q.row_key; },
                               [](const FlushOp&) { return std::string(); }},
                    what);
}

Status WriteGroup::Add(const WriteOp& op) {
  assert(Admits(op));
  const GroupDelta before = delta_;
  batch_.SetSavePoint();
  const Status status =
      std::visit(Overloaded{[&](const BlockWrite& w) { return Put(w); },
                            [&](const DeleteBlockOp& d) { return Delete(d.key); },
                            [&](const record::Row& r) { return PutRow(r); },
                            [&](const DeleteRowOp& d) { return DeleteRow(d.key); },
                            [&](const QuarantinePartOp& q) { return Quarantine(q); },
                            [&](const QuarantineRowOp& q) { return Quarantine(q); },
                            [&](const FlushOp&) { return Status(); }},
                 op.what);
  if (status.ok()) {
    batch_.PopSavePoint().PermitUncheckedError();
    keys_.insert(op.Key());
  } else {
    batch_.RollbackToSavePoint().PermitUncheckedError();
    delta_ = before;
  }
  return status;
}

Status WriteGroup::Commit() {
  if (batch_.Count() == 0) return {};
  // Deletions go through on a full disk too: they are what frees it.
  if (delta_.written_bytes > 0) DYNA_RETURN_IF_ERROR(database_.CheckRoom(batch_.GetDataSize()));
  const auto status = database_.db().Write(database_.write_options(), &batch_);
  return status.ok() ? Status() : FromRocks(status, "write");
}

// A row that cannot be read counts as none: its block is lost, and what is left of it is removed.
Result<std::optional<WriteGroup::Stored>> WriteGroup::ReadStored(const record::BlockKey& key) {
  rocksdb::PinnableSlice value;
  const std::string row_key = BlockRowKey(key);
  const auto status =
      database_.db().Get(database_.read_options(), database_.meta(), row_key, &value);
  if (status.IsNotFound()) return std::optional<Stored>();
  if (!status.ok() && !status.IsCorruption()) return FromRocks(status, "read");
  if (status.ok()) {
    auto row = record::Parse({reinterpret_cast<const uint8_t*>(value.data()), value.size()});
    if (row.ok())
      if (auto* meta = std::get_if<record::BlockMeta>(&*row); meta != nullptr && meta->key == key)
        return std::optional<Stored>(Stored{std::move(*meta), value.size()});
  }
  DYNA_RETURN_IF_ERROR(Quarantine(QuarantineRowOp{row_key}));
  return std::optional<Stored>();
}

void WriteGroup::CountRemoved(const Stored& stored) {
  const uint64_t bytes = LiveBytes(stored.meta, stored.row_bytes, kPartFrameBytes);
  delta_.live_bytes -= static_cast<int64_t>(bytes);
  delta_.blocks -= 1;
  delta_.deleted_bytes += bytes;
}

Status WriteGroup::PutPart(const std::string& key, std::span<const std::byte> bytes) {
  const std::string frame = PartFrame(key, bytes);
  const std::array<rocksdb::Slice, 1> keys = {rocksdb::Slice(key)};
  const std::array<rocksdb::Slice, 2> values = {
      rocksdb::Slice(frame),
      rocksdb::Slice(reinterpret_cast<const char*>(bytes.data()), bytes.size())};
  delta_.written_bytes += bytes.size();
  return Batched(batch_.Put(database_.blocks(), rocksdb::SliceParts(keys.data(), 1),
                            rocksdb::SliceParts(values.data(), 2)));
}

Status WriteGroup::Put(const BlockWrite& write) {
  const record::BlockMeta& meta = write.meta;
  DYNA_ASSIGN_OR_RETURN(const std::optional<Stored> stored, ReadStored(meta.key));
  DYNA_RETURN_IF_ERROR(CheckWrite(write, stored ? &stored->meta : nullptr));

  const std::vector<uint8_t> row = record::Serialize(meta);
  const auto added = static_cast<int64_t>(LiveBytes(meta, row.size(), kPartFrameBytes));
  const int64_t live_before = static_cast<int64_t>(limits_.live_bytes) + delta_.live_bytes;
  if (stored) CountRemoved(*stored);
  delta_.live_bytes += added;
  delta_.blocks += 1;
  const int64_t live_after = static_cast<int64_t>(limits_.live_bytes) + delta_.live_bytes;
  if (limits_.budget > 0 && live_after > live_before &&
      live_after > static_cast<int64_t>(limits_.budget))
    return Status(StatusCode::kQuota,
                  "the byte budget of " + std::to_string(limits_.budget) + " bytes is full");

  // The new parts are in the same batch as the end of the old ones: one of the two is on disk.
  if (stored) {
    const std::vector<ListedPart> next = PartsOf(meta);
    for (const ListedPart& part : PartsOf(stored->meta)) {
      const bool kept = stored->meta.generation == meta.generation &&
                        std::any_of(next.begin(), next.end(),
                                    [&](const ListedPart& n) { return n.id == part.id; });
      if (kept) continue;
      DYNA_RETURN_IF_ERROR(Batched(
          batch_.Delete(database_.blocks(), PartKey(meta.key, stored->meta.generation, part.id))));
    }
  }
  for (const PartWrite& part : write.parts)
    DYNA_RETURN_IF_ERROR(PutPart(PartKey(meta.key, meta.generation, part.id), part.bytes));
  ++delta_.writes;
  return Batched(batch_.Put(database_.meta(), BlockRowKey(meta.key), AsSlice(row)));
}

Status WriteGroup::Delete(const record::BlockKey& key) {
  DYNA_ASSIGN_OR_RETURN(const std::optional<Stored> stored, ReadStored(key));
  if (!stored) return {};
  CountRemoved(*stored);
  ++delta_.deletes;
  for (const ListedPart& part : PartsOf(stored->meta))
    DYNA_RETURN_IF_ERROR(
        Batched(batch_.Delete(database_.blocks(), PartKey(key, stored->meta.generation, part.id))));
  return Batched(batch_.Delete(database_.meta(), BlockRowKey(key)));
}

Status WriteGroup::PutRow(const record::Row& row) {
  DYNA_RETURN_IF_ERROR(record::Validate(row));
  const std::vector<uint8_t> bytes = record::Serialize(row);
  if (bytes.size() > record::kMaxRow) return TooLarge("row: above 64 MiB");
  delta_.deleted_bytes += bytes.size();  // the earlier value of such a row becomes garbage
  return Batched(batch_.Put(database_.meta(), RowKeyBytes(KeyOf(row)), AsSlice(bytes)));
}

Status WriteGroup::DeleteRow(const RowKey& key) {
  return Batched(batch_.Delete(database_.meta(), RowKeyBytes(key)));
}

Status WriteGroup::MoveToQuarantine(const std::string& key, const rocksdb::Slice& value) {
  ++delta_.quarantined;
  if (!limits_.keep_damaged || value.empty()) return {};
  return Batched(batch_.Put(database_.quarantine(), key, value));
}

Status WriteGroup::Quarantine(const QuarantinePartOp& op) {
  rocksdb::PinnableSlice value;
  const auto status =
      database_.db().Get(database_.read_options(), database_.blocks(), op.part_key, &value);
  if (status.IsNotFound()) return {};
  if (!status.ok() && !status.IsCorruption()) return FromRocks(status, "read");
  if (status.ok()) {
    std::vector<std::byte> out(value.size() < kPartFrameBytes ? 0 : value.size() - kPartFrameBytes);
    if (OpenPart(op.part_key, value.ToStringView(), out).ok()) return {};  // written anew meanwhile
  }
  LogWarn("a damaged part was quarantined ({} bytes)", value.size());
  DYNA_RETURN_IF_ERROR(MoveToQuarantine(op.part_key, value));
  return Batched(batch_.Delete(database_.blocks(), op.part_key));
}

Status WriteGroup::Quarantine(const QuarantineRowOp& op) {
  rocksdb::PinnableSlice value;
  const auto status =
      database_.db().Get(database_.read_options(), database_.meta(), op.row_key, &value);
  if (status.IsNotFound()) return {};
  if (!status.ok() && !status.IsCorruption()) return FromRocks(status, "read");
  LogWarn("a damaged row was quarantined ({} bytes)", value.size());
  DYNA_RETURN_IF_ERROR(MoveToQuarantine(op.row_key, value));
  if (op.row_key.front() == kBlockRowTag) {
    // Which parts it listed is unknown: all of the block go.
    const std::string begin = op.row_key.substr(1);
    DYNA_RETURN_IF_ERROR(Batched(batch_.DeleteRange(
        database_.blocks(), begin, begin + std::string(kPartKeyBytes - begin.size() + 1, '\xff'))));
  }
  return Batched(batch_.Delete(database_.meta(), op.row_key));
}

}  // namespace dyna
