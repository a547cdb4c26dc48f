// Kernels of head_dim 192.
#include "kernels/cuda/decode_kernel.cuh"
#include "kernels/cuda/encode_kernel.cuh"

namespace dyna::cuda {

template bool LaunchCodedEncode<12>(const TileJob*, const TileCounts&, const LaunchNeeds&,
                                    TileResult*, CUstream_st*);
template bool LaunchCodedDecode<12>(const TileJob*, const TileCounts&, const LaunchNeeds&,
                                    CUstream_st*);

}  // namespace dyna::cuda
