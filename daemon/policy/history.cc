#include "daemon/policy/history.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>

#include "daemon/policy/log2_byte.h"

namespace dyna {
namespace {

constexpr int kGroups = 8;  // of a block
constexpr int kGroupTokens = kBlockTokens / kGroups;
constexpr int kOne = 128;  // the byte of r = 1; byte b means 2^((b - 128) / 8)
constexpr size_t kHeaderBytes = 16;
constexpr uint8_t kVersion = 1;
constexpr uint32_t kMaxClock = 1u << 31;

float ValueOf(uint8_t byte) {
  static const std::array<float, 256> kValues = [] {
    std::array<float, 256> values;
    for (int b = 0; b < 256; ++b)
      values[static_cast<size_t>(b)] = static_cast<float>(std::exp2((b - kOne) / double{kEighths}));
    return values;
  }();
  return kValues[byte];
}

// Up or down so that the mean of the value is right; `dice` is uniform.
uint8_t RoundUnbiased(double r, uint64_t dice) {
  const double eighths = kEighths * std::log2(std::max(r, 0x1p-16)) + kOne;
  const int low = std::clamp(static_cast<int>(std::floor(eighths)), 0, 255);
  if (low == 255) return 255;
  const double lo = ValueOf(static_cast<uint8_t>(low));
  const double hi = ValueOf(static_cast<uint8_t>(low + 1));
  const double chance = (r - lo) / (hi - lo);
  return static_cast<uint8_t>(low + (static_cast<double>(dice >> 40) * 0x1p-24 < chance));
}

// Mean of what is covered; NaN where nothing is.
float MeanCovered(const float* x, int n) {
  float sum = 0;
  int covered = 0;
  for (int i = 0; i < n; ++i) {
    if (std::isnan(x[i])) continue;
    sum += x[i];
    ++covered;
  }
  return covered ? sum / static_cast<float>(covered) : std::nanf("");
}

}  // namespace

BlockHistory::BlockHistory(const Shard& shard, HistoryGrain grain, uint64_t seed)
    : shard_(shard),
      grain_(grain),
      seed_(seed),
      clocks_(layers()),
      values_(layers() * heads() * static_cast<size_t>(grain), kOne) {}

size_t BlockHistory::offset(int layer, int head) const {
  return (static_cast<size_t>(layer - shard_.layer_begin) * heads() +
          static_cast<size_t>(head - shard_.head_begin)) *
         static_cast<size_t>(grain_);
}

Status BlockHistory::Fold(const BlockReport& report, const HistoryOptions& options) {
  if (!Covers(report.layer))
    return Invalid("report.layer " + std::to_string(report.layer) + " is not of the block's shard");
  if (report.heads < 0 || report.x.size() != static_cast<size_t>(report.heads) * kBlockTokens)
    return Invalid("report.x has " + std::to_string(report.x.size()) + " values for " +
                   std::to_string(report.heads) + " heads");
  for (size_t i = 0; i < report.x.size(); ++i) {
    if (std::isinf(report.x[i]) || report.x[i] < 0)
      return Invalid("report.x of head " +
                     std::to_string(report.head_begin + static_cast<int>(i) / kBlockTokens) +
                     ", token " + std::to_string(i % kBlockTokens) +
                     " is not a share of attention");
  }

  record::LayerClock& clock = clocks_[static_cast<size_t>(report.layer - shard_.layer_begin)];
  const uint32_t advance = std::clamp(report.advance, 1u, std::max(options.max_advance, 1u));
  const double rho = std::exp2(-1.0 / std::max(options.half_life_tokens, 1.0));
  const double keep = std::pow(rho, advance);
  // Bias correction folded in: the weights of what was and of what is new add up to 1 - rho^(n+dt).
  const double old_weight = keep * (1 - std::pow(rho, clock.tokens));
  const double new_weight = 1 - keep;
  const double step = std::exp2(std::max(options.max_step, 0.0));
  const int grain = static_cast<int>(grain_), per_value = kBlockTokens / grain;

  const int begin = std::max<int>(report.head_begin, shard_.head_begin);
  const int end = std::min<int>(report.head_begin + report.heads, shard_.head_end);
  for (int head = begin; head < end; ++head) {
    const float* x = report.x.data() + static_cast<size_t>(head - report.head_begin) * kBlockTokens;
    uint8_t* value = values_.data() + offset(report.layer, head);
    const uint64_t salt = MixHash(
        seed_, (static_cast<uint64_t>(report.layer) << 32) | (static_cast<uint64_t>(head) << 8));
    for (int i = 0; i < grain; ++i) {
      const float seen = MeanCovered(x + i * per_value, per_value);
      if (std::isnan(seen)) continue;
      const double r = ValueOf(value[i]);
      const double next = (old_weight * r + new_weight * double{seen}) / (old_weight + new_weight);
      value[i] = RoundUnbiased(std::clamp(next, r / step, r * step),
                               MixHash(salt + static_cast<uint64_t>(i), clock.reports));
    }
  }
  clock.tokens = std::min(clock.tokens + advance, kMaxClock);
  if (clock.reports != UINT32_MAX) ++clock.reports;
  return {};
}

void BlockHistory::Groups(int layer, int head, std::span<float, 8> r) const {
  const uint8_t* value = values_.data() + offset(layer, head);
  const int per_group = static_cast<int>(grain_) / kGroups;
  for (int g = 0; g < kGroups; ++g) {
    float sum = 0;
    for (int i = 0; i < per_group; ++i) sum += ValueOf(value[g * per_group + i]);
    r[static_cast<size_t>(g)] = sum / static_cast<float>(per_group);
  }
}

void BlockHistory::Tokens(int layer, int head, std::span<float, 64> r) const {
  const uint8_t* value = values_.data() + offset(layer, head);
  const int per_value = kBlockTokens / static_cast<int>(grain_);
  for (int t = 0; t < kBlockTokens; ++t) r[static_cast<size_t>(t)] = ValueOf(value[t / per_value]);
  static_assert(kGroupTokens == 8);
}

size_t BlockHistory::serialized_bytes() const {
  return kHeaderBytes + clocks_.size() * sizeof(record::LayerClock) + values_.size();
}

std::vector<std::byte> BlockHistory::Serialize() const {
  std::vector<std::byte> out(serialized_bytes());
  const uint16_t bounds[4] = {shard_.layer_begin, shard_.layer_end, shard_.head_begin,
                              shard_.head_end};
  const auto total = static_cast<uint32_t>(out.size());
  out[0] = std::byte{kVersion};
  out[1] = static_cast<std::byte>(grain_);
  std::memcpy(&out[4], bounds, sizeof bounds);
  std::memcpy(&out[12], &total, sizeof total);
  std::byte* at = out.data() + kHeaderBytes;
  for (const record::LayerClock& clock : clocks_) {
    std::memcpy(at, &clock.tokens, 4);
    std::memcpy(at + 4, &clock.reports, 4);
    at += 8;
  }
  std::memcpy(at, values_.data(), values_.size());
  return out;
}

Result<BlockHistory> BlockHistory::Parse(std::span<const std::byte> bytes, uint64_t seed) {
  if (bytes.size() < kHeaderBytes) return Invalid("history: shorter than its header");
  if (bytes[0] != std::byte{kVersion})
    return Unsupported("history.version " + std::to_string(static_cast<int>(bytes[0])));
  const auto grain = static_cast<HistoryGrain>(bytes[1]);
  if (grain != HistoryGrain::kGroup && grain != HistoryGrain::kToken)
    return Invalid("history.grain is neither group nor token");
  if (bytes[2] != std::byte{0} || bytes[3] != std::byte{0})
    return Invalid("history.reserved is not zero");
  uint16_t bounds[4];
  uint32_t total;
  std::memcpy(bounds, &bytes[4], sizeof bounds);
  std::memcpy(&total, &bytes[12], sizeof total);
  const Shard shard{bounds[0], bounds[1], bounds[2], bounds[3]};
  if (shard.layer_begin >= shard.layer_end || shard.layer_end > kMaxLayers ||
      shard.head_begin >= shard.head_end || shard.head_end > kMaxKvHeads)
    return Invalid("history.shard is empty or out of bounds");
  const size_t layers = shard.layer_end - size_t{shard.layer_begin};
  const size_t values =
      layers * (shard.head_end - size_t{shard.head_begin}) * static_cast<size_t>(grain);
  const size_t expected = kHeaderBytes + layers * 8 + values;
  if (total != bytes.size() || total != expected)
    return Invalid("history.bytes: " + std::to_string(bytes.size()) + " instead of " +
                   std::to_string(expected));
  BlockHistory history(shard, grain, seed);
  const std::byte* at = bytes.data() + kHeaderBytes;
  for (record::LayerClock& clock : history.clocks_) {
    std::memcpy(&clock.tokens, at, 4);
    std::memcpy(&clock.reports, at + 4, 4);
    if (clock.tokens > kMaxClock || (clock.tokens == 0) != (clock.reports == 0))
      return Invalid("history.clock contradicts itself");
    at += 8;
  }
  std::memcpy(history.values_.data(), at, values);
  return history;
}

}  // namespace dyna
