#include "daemon/admin/query_json.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "daemon/admin/status_json.h"

namespace dyna::admin {
namespace {

using nlohmann::json;

std::string Hex(const BlockHash& hash) {
  std::string out;
  for (uint8_t b : hash.bytes) out += fmt::format("{:02x}", b);
  return out;
}

json RowJson(const BlockFact::Row& row) {
  return {{"layer", row.layer},
          {"head_begin", row.head_begin},
          {"kv_heads", row.kv_heads},
          {"bytes", row.bytes},
          {"basis", fmt::format("{:016x}", row.basis)},
          {"nmse", row.nmse},
          {"k_kind", row.k_kind},
          {"v_kind", row.v_kind},
          {"k_bits", row.k_bits},
          {"v_bits", row.v_bits},
          {"importance", row.importance}};
}

}  // namespace

std::string ContextsJson(const std::vector<ContextFact>& contexts) {
  json list = json::array();
  for (const ContextFact& c : contexts) list.push_back(ContextToJson(c));
  return json{{"contexts", std::move(list)}}.dump();
}

std::string BlocksJson(const std::vector<BlockFact>& blocks) {
  json list = json::array();
  for (const BlockFact& b : blocks) {
    json rows = json::array();
    for (const BlockFact::Row& row : b.rows) rows.push_back(RowJson(row));
    list.push_back({{"context", fmt::format("{:016x}", b.context)},
                    {"hash", Hex(b.hash)},
                    {"parent", Hex(b.parent)},
                    {"index", b.index},
                    {"generation", b.generation},
                    {"revision", b.revision},
                    {"tier", TierName(b.tier)},
                    {"quality", QualityName(b.quality)},
                    {"persistent", b.persistent},
                    {"pinned", b.pinned},
                    {"opaque", b.opaque},
                    {"leases", b.leases},
                    {"nmse", b.nmse},
                    {"reuse", b.reuse},
                    {"bytes", b.bytes},
                    {"metadata_bytes", b.charged},
                    {"rows", std::move(rows)}});
  }
  return json{{"blocks", std::move(list)}}.dump();
}

std::string BankJson(const std::vector<record::BlockMeta>& blocks) {
  json list = json::array();
  for (const record::BlockMeta& m : blocks)
    list.push_back({{"context", fmt::format("{:016x}", m.key.context)},
                    {"hash", Hex(m.key.hash)},
                    {"index", m.index},
                    {"generation", m.generation},
                    {"quality", QualityName(m.quality)},
                    {"bytes", record::SegmentBytes(m)},
                    {"history_bytes", m.history_bytes},
                    {"mean_bits", m.mean_bits},
                    {"nmse", m.nmse}});
  return json{{"blocks", std::move(list)}}.dump();
}

}  // namespace dyna::admin
