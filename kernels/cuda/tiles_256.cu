// Kernels of head_dim 256.
#include "kernels/cuda/decode_kernel.cuh"
#include "kernels/cuda/encode_kernel.cuh"

namespace dyna::cuda {

template bool LaunchEncodeOf<16>(const TileJob*, int, const LaunchNeeds&, TileResult*, CUstream_st*);
template bool LaunchDecodeOf<16>(const TileJob*, int, const LaunchNeeds&, CUstream_st*);

}  // namespace dyna::cuda
