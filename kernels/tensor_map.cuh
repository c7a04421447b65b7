// Maps of tensors for bulk copies between boxes of them and shared memory (TMA, compute capability
// 9.0), made by a function of the driver that the runtime finds.
#pragma once

#include <cuda.h>

#include "kernels/cuda_math.cuh"

namespace eyrie {

inline constexpr int kMaxMappedDimensions = 4;

// A tensor of bfloat16, all with the innermost dimension first: sizes, bytes between successive
// indices of the dimensions but the first (multiples of 16), and the box that a copy moves. Rows
// of boxes have 32, 64 or 128 bytes and lie in shared memory swizzled as wgmma.cuh says.
struct MappedTensor {
  const void* data;  // aligned to 16 bytes
  int dimensions;
  uint64_t sizes[kMaxMappedDimensions], strides[kMaxMappedDimensions - 1];
  uint32_t box[kMaxMappedDimensions];
};
inline CUtensorMap MakeTensorMap(const MappedTensor& tensor) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const auto encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    EYRIE_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                      cudaEnableDefault, &result));
    if (result != cudaDriverEntryPointSuccess) ThrowFailure("the driver has no tensor maps");
    return reinterpret_cast<Encode>(found);
  }();
  CUtensorMap map;
  const uint32_t steps[kMaxMappedDimensions] = {1, 1, 1, 1}, row = tensor.box[0] * 2;
  const CUtensorMapSwizzle swizzle = row == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : row == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                 : CU_TENSOR_MAP_SWIZZLE_32B;
  const CUresult code =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, static_cast<uint32_t>(tensor.dimensions),
             const_cast<void*>(tensor.data), tensor.sizes, tensor.strides, tensor.box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (code != CUDA_SUCCESS) ThrowFailure("cuTensorMapEncodeTiled: code ", static_cast<int>(code));
  return map;
}

}  // namespace eyrie
