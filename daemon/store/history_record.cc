#include "daemon/store/history_record.h"

#include <cstring>
#include <utility>

namespace dyna {

std::vector<std::byte> PackHistory(std::span<const BlockHistory> history) {
  std::vector<std::byte> out;
  for (const BlockHistory& h : history) {
    const std::vector<std::byte> one = h.Serialize();
    const auto n = static_cast<uint32_t>(one.size());
    const auto* p = reinterpret_cast<const std::byte*>(&n);
    out.insert(out.end(), p, p + sizeof n);
    out.insert(out.end(), one.begin(), one.end());
  }
  return out;
}

std::vector<BlockHistory> UnpackHistory(std::span<const std::byte> bytes, uint64_t seed) {
  std::vector<BlockHistory> out;
  while (bytes.size() >= sizeof(uint32_t)) {
    uint32_t n = 0;
    std::memcpy(&n, bytes.data(), sizeof n);
    bytes = bytes.subspan(sizeof n);
    if (n > bytes.size()) return {};
    auto one = BlockHistory::Parse(bytes.first(n), seed);
    if (!one.ok()) return {};
    out.push_back(std::move(*one));
    bytes = bytes.subspan(n);
  }
  return out;
}

}  // namespace dyna
