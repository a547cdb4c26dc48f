// K of one tile into its bytes, by one thread block: rows (or a wider tile) to matrix operands in
// shared memory, y = A (x - mu) on the tensor cores, and each quad quantises the channels that its
// accumulators hold. Kinds without a basis are the same with the identity, which is exact.
#pragma once

#include "kernels/cuda/operands_k.cuh"

namespace dyna::cuda {

// Operand A of the identity over 16 channels, where k stands for a row's or a plane's channel.
__device__ inline void IdentityOperand(int g, int q, bool planes, uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i & 1), k = (i & 2);
    const int c0 = planes ? PlaneChannel(q, k) : RowChannel(q, k);
    const int c1 = planes ? PlaneChannel(q, k + 1) : RowChannel(q, k + 1);
    a[i] = (row == c0 ? 0x3c00u : 0) | (row == c1 ? 0x3c000000u : 0);
  }
}

// Codes of one octet of channels in 4 slots: byte lists of one channel are one word.
__device__ inline void PackOctet(const std::byte* codes, int width, int slots, uint32_t (&even)[2],
                                 uint32_t (&odd)[2]) {
  // even[i], odd[i]: a byte for each slot, of the even and odd channels, as many as fit.
  uint32_t w[8];
#pragma unroll
  for (int k = 0; k < 8; ++k) w[k] = *reinterpret_cast<const uint32_t*>(codes + 64 * k + 4 * slots);
  if (width == 2) {
    even[0] = w[0] | w[2] << 2 | w[4] << 4 | w[6] << 6;
    odd[0] = w[1] | w[3] << 2 | w[5] << 4 | w[7] << 6;
  } else {
    even[0] = w[0] | w[2] << 4, even[1] = w[4] | w[6] << 4;
    odd[0] = w[1] | w[3] << 4, odd[1] = w[5] | w[7] << 4;
  }
}
// Bytes (a, b, c, d) of 4 slots -> one word for each slot.
__device__ inline uint4 TransposeBytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  const uint32_t ab = __byte_perm(a, b, 0x5140), ab2 = __byte_perm(a, b, 0x7362);
  const uint32_t cd = __byte_perm(c, d, 0x5140), cd2 = __byte_perm(c, d, 0x7362);
  return make_uint4(__byte_perm(ab, cd, 0x5410), __byte_perm(ab, cd, 0x7632),
                    __byte_perm(ab2, cd2, 0x5410), __byte_perm(ab2, cd2, 0x7632));
}

// The planes of the tile from the codes (formats 3). All threads, after a barrier.
__device__ inline void PackPlanes(const CodedTile& tile, const std::byte* codes, int groups) {
  for (int i = threadIdx.x; i < groups * 16; i += kThreads) {
    const int G = i / 16, slots = i % 16;
    const std::byte* from = codes + 1024 * G;
    uint32_t e[2], o[2];
    if (tile.run == 16 && tile.runs[G].width == 2) {
      uint32_t e2[2], o2[2];
      PackOctet(from, 2, slots, e, o);
      PackOctet(from + 512, 2, slots, e2, o2);
      reinterpret_cast<uint4*>(tile.at + tile.runs[G].code_at)[slots] =
          TransposeBytes(e[0], e2[0], o[0], o2[0]);
      continue;
    }
#pragma unroll 1
    for (int octet = 0; octet < 2; ++octet, from += 512) {
      const RunPlace place = tile.runs[tile.run == 16 ? G : 2 * G + octet];
      std::byte* to = tile.at + place.code_at;
      const int in_run = tile.run == 16 ? octet : 0;
      if (place.width == 2) {
        PackOctet(from, 2, slots, e, o);
        const uint32_t low = __byte_perm(e[0], o[0], 0x5140),
                       high = __byte_perm(e[0], o[0], 0x7362);
        reinterpret_cast<uint2*>(to)[slots] = make_uint2(low, high);
      } else if (place.width == 4) {
        PackOctet(from, 4, slots, e, o);
        reinterpret_cast<uint4*>(to)[in_run * 16 + slots] = TransposeBytes(e[0], e[1], o[0], o[1]);
      } else if (place.width == 8) {
        const auto* w = reinterpret_cast<const uint32_t*>(from) + slots;
        reinterpret_cast<uint4*>(to)[in_run * 32 + slots] =
            TransposeBytes(w[0], w[16], w[32], w[48]);
        reinterpret_cast<uint4*>(to)[in_run * 32 + 16 + slots] =
            TransposeBytes(w[64], w[80], w[96], w[112]);
      }
    }
  }
}

__device__ inline void LoadOctet(const uint4* y, int lane, uint32_t (&h)[8]) {
  const uint4 a = y[lane], b = y[32 + lane];
  h[0] = a.x, h[1] = a.y, h[2] = a.z, h[3] = a.w;
  h[4] = b.x, h[5] = b.y, h[6] = b.z, h[7] = b.w;
}

// The groups of 16 channels that a warp has at once: one from each end, as wide runs come first.
struct WarpGroups {
  int first, last;
  // First channel of the u-th octet.
  __device__ int Octet(int u) const { return 16 * (u < 2 ? first : last) + 8 * (u & 1); }
};

// Octets of a warp the exact way, those with a lane in `unsure`; what each lane made of its
// channel.
static __device__ __noinline__ ChannelScale RedoOctets(const TileJob& job, const uint4* y,
                                                       WarpGroups groups, uint32_t unsure,
                                                       Found* found) {
  const int lane = threadIdx.x % 32, q = lane % 4;
  const LaneRows rows = RowsOfLane(job.counted, q);
  ChannelSums mine{};
  int my_width = 0;
#pragma unroll 1
  for (int u = 0; u < 4; ++u) {
    if ((unsure & 0x11111111u << u) == 0) continue;
    const int width = job.tile.runs[groups.Octet(u) / job.tile.run].width;
    uint32_t h[8];
    LoadOctet(y + 64 * u, lane, h);
    uint4 same;  // codes do not depend on how the sums are made
    const ChannelSums sums = CodeChannel<false>(h, width, rows, job.live, q, &same, found);
    if (u == q) {
      mine = sums;
      my_width = width;
    }
  }
  if ((unsure >> lane & 1) == 0) return {};
  return FinishChannel(mine, my_width, rows.rows, found);
}

// One step of k: acc[m] += a[m] b.
template <int kAtOnce>
__device__ inline void StepOfGroups(const uint4* operand, const uint4 (&a)[kAtOnce],
                                    float (&acc)[kAtOnce][8][4]) {
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const uint4 b = operand[w * 32];
#pragma unroll
    for (int m = 0; m < kAtOnce; ++m) {
      const uint32_t words[4] = {a[m].x, a[m].y, a[m].z, a[m].w};
      MmaF16(acc[m][2 * w], words, b.x, b.y);
      MmaF16(acc[m][2 * w + 1], words, b.z, b.w);
    }
  }
}
// acc[m] = A of the m-th group, times all rows. A's part of a step is loaded a step ahead.
template <int kGroups, int kAtOnce>
__device__ inline void ProductOfGroups(const uint4* a_at, const uint4* operand,
                                       const WarpGroups& groups, int lane,
                                       float (&acc)[kAtOnce][8][4]) {
  const uint4* first = a_at + groups.first * kGroups * 32 + lane;
  const uint4* last = a_at + groups.last * kGroups * 32 + lane;
  const auto load = [&](int k, uint4(&a)[kAtOnce]) {
    k = min(k, kGroups - 1);
    a[0] = __ldg(first + 32 * k);
    if constexpr (kAtOnce == 2) a[1] = __ldg(last + 32 * k);
  };
  operand += lane;
  uint4 even[kAtOnce], odd[kAtOnce];
  load(0, even);
#pragma unroll 1
  for (int k = 0; k < kGroups; k += 2) {
    load(k + 1, odd);
    StepOfGroups<kAtOnce>(operand + 128 * k, even, acc);
    if (kGroups % 2 != 0 && k + 1 == kGroups) break;
    load(k + 2, even);
    StepOfGroups<kAtOnce>(operand + 128 * (k + 1), odd, acc);
  }
}

template <int kGroups>
__device__ inline void EncodeK(const TileJob& job, void* shared, float* columns, Found* found) {
  constexpr int kD = 16 * kGroups;
  constexpr int kAtOnce = GroupsAtOnce(kD);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const KSpace space = SpaceOfK(shared, kD);
  const bool planes = job.from.at != nullptr;
  const int head_bytes = static_cast<int>(job.tile.runs[0].code_at);
  for (int i = threadIdx.x; i < head_bytes / 16; i += kThreads)
    reinterpret_cast<uint4*>(space.head)[i] = make_uint4(0, 0, 0, 0);
  if (planes) {
    OperandsOfTile<kGroups>(job, space);
  } else {
    if (job.live != ~uint64_t{0} && job.values == 0) CheckDropped(job, kD, found);
    OperandsOfRows<kGroups>(job, space, columns, found);
  }
  __syncthreads();
  const LaneRows rows = RowsOfLane(job.counted, q);
  float energy = 0, error = 0;
  uint32_t identity[4];
  IdentityOperand(g, q, planes, identity);
  for (int first = warp; first < kGroups / kAtOnce; first += 4) {
    const WarpGroups groups{first, kGroups - 1 - first};
    float acc[kAtOnce][8][4] = {};
    if (job.change == Change::kBasis) {
      ProductOfGroups<kGroups, kAtOnce>(reinterpret_cast<const uint4*>(job.cell->a), space.operand,
                                        groups, lane, acc);
    } else {
#pragma unroll
      for (int m = 0; m < kAtOnce; ++m)
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const uint4 b =
              space.operand[((m == 0 ? groups.first : groups.last) * 4 + w) * 32 + lane];
          MmaF16(acc[m][2 * w], identity, b.x, b.y);
          MmaF16(acc[m][2 * w + 1], identity, b.z, b.w);
        }
    }
    // y through memory, so that one copy of the quantiser does for all octets.
    if constexpr (SharesOperands(kD)) __syncthreads();
    uint4* y = space.y + 128 * kAtOnce * warp;
#pragma unroll
    for (int m = 0; m < kAtOnce; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // i: 2 octet + j
        const int e = 2 * (i / 2) + i % 2;
        y[64 * (2 * m + i / 2) + 32 * (i % 2) + lane] =
            make_uint4(PackF16(acc[m][0][e], acc[m][1][e]), PackF16(acc[m][2][e], acc[m][3][e]),
                       PackF16(acc[m][4][e], acc[m][5][e]), PackF16(acc[m][6][e], acc[m][7][e]));
      }
#pragma unroll 1
    for (int u = 0; u < 2 * kAtOnce; ++u) {
      uint32_t h[8];
      LoadOctet(y + 64 * u, lane, h);
      const int c = groups.Octet(u);
      const int width = job.tile.runs[c / job.tile.run].width;
      uint4 codes;
      if (rows.all) {
        CodeOctet<true>(h, width, rows, g, q, &codes, space.sums + c);
      } else {
        CodeOctet<false>(h, width, rows, g, q, &codes, space.sums + c);
      }
      *reinterpret_cast<uint4*>(space.codes + 64 * (c + g) + 16 * q) = codes;
    }
    __syncwarp();
    // The quad's lanes finish a channel each.
    const int c = groups.Octet(q) + g;
    const bool mine = q < 2 * kAtOnce;
    const RunPlace place = job.tile.runs[mine ? c / job.tile.run : 0];
    ChannelScale s;
    const bool sure = !mine || QuickFinish(space.sums[c], place.width, rows.rows, &s);
    const uint32_t unsure = __ballot_sync(0xffffffffu, !sure);
    if (unsure != 0) {
      const ChannelScale exact = RedoOctets(job, y, groups, unsure, found);
      if (!sure) s = exact;
    }
    if (mine) {
      if (s.clear) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          reinterpret_cast<uint4*>(space.codes + 64 * c)[i] = make_uint4(0, 0, 0, 0);
      }
      energy += s.energy;
      error += s.error;
      reinterpret_cast<uint16_t*>(space.head)[c] = s.scale.m_bits;
      std::byte* scale = space.head + place.scale_at;
      const int k = c % job.tile.run;
      if (place.width == 2) scale[k] = static_cast<std::byte>(s.scale.scale_bits);
      if (place.width > 2)
        reinterpret_cast<uint16_t*>(scale)[k] = static_cast<uint16_t>(s.scale.scale_bits);
    }
    __syncwarp();
  }
  energy = WarpSum(energy);
  error = WarpSum(error);
  if (lane == 0) {
    atomicAdd(&found->energy, energy);
    atomicAdd(&found->error, error);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < head_bytes / 16; i += kThreads)
    reinterpret_cast<uint4*>(job.tile.at)[i] = reinterpret_cast<const uint4*>(space.head)[i];
  PackPlanes(job.tile, space.codes, kGroups);
  if (job.measure_x != 0) {  // energy = sum x^2 - n sum of squared means
    const float n = static_cast<float>(rows.rows);
    float less = 0;
    for (int c = threadIdx.x; c < kD; c += kThreads) {
      const float sum =
          (columns[c] + columns[kD + c]) + (columns[2 * kD + c] + columns[3 * kD + c]);
      less += n > 0 ? sum * sum / n : 0.0f;
    }
    less = WarpSum(less);
    if (lane == 0) atomicAdd(&found->x_energy, -less);
  }
}

}  // namespace dyna::cuda
