// Kernels of head_dim 256.
#include "kernels/cuda/decode_kernel.cuh"
#include "kernels/cuda/encode_kernel.cuh"

namespace dyna::cuda {

template bool LaunchCodedEncode<16>(const TileJob*, const TileCounts&, const LaunchNeeds&,
                                    TileResult*, CUstream_st*);
template bool LaunchCodedDecode<16>(const TileJob*, const TileCounts&, const LaunchNeeds&,
                                    CUstream_st*);

}  // namespace dyna::cuda
