// The scalar table, by its two halves: moving and turning planes, and the quantisers.
#pragma once

#include "kernels/cpu/tile_ops.h"

namespace dyna::scalar {

int Load(const std::byte* src, int64_t stride, DType dtype, int d, float* planes);
void Store(const float* planes, int d, std::byte* dst, int64_t stride, DType dtype);
void Rotate(float* planes, const RopeBlock& rope, bool undo);
void Shift(float* planes, int d, const float* value, float sign);
void Transform(const float* m, int ld, int out, int in, const float* bias, const float* x,
               float* y);
void Matvec(const float* m, int ld, int out, int in, const float* bias, const float* x, float* y);
void Hadamard(float* planes, int d);
void Mean(const float* planes, int d, uint64_t rows, float* mean);
float Energy(const float* planes, int d, uint64_t rows, const float* mean);
void Rank64(const float* planes, int d, float* upper);
void SoftmaxReduce(const float* scores, int begin, int end, float* max, float* sum);
void SoftmaxMax(const float* scores, int begin, int end, float lse, float* weight);

QuantiseResult QuantiseK(const float* y, int channels, int run, int width, uint64_t rows,
                         uint16_t* m, std::byte* scales, std::byte* codes, ErrorSums* sums);
void DequantiseK(const uint16_t* m, const std::byte* scales, const std::byte* codes, int channels,
                 int run, int width, float* y);
QuantiseResult QuantiseV(const float* z, int d, int bits, uint64_t rows, std::byte* gains,
                         std::byte* codes, int8_t* v_exp, ErrorSums* sums);
void DequantiseV(const std::byte* gains, const std::byte* codes, int d, int bits, int8_t v_exp,
                 float* z);

}  // namespace dyna::scalar
