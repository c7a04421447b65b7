// The CUDA bodies behind lightning_attention.h; arguments are already validated.
#pragma once

#include "core/round.h"
#include "kernels/cuda_partition.h"
#include "kernels/lightning_attention/lightning_pass.h"

namespace eyrie {

inline bool FitsLightningTensorCores(const Tensor& k, const Tensor& v) {
  return k.dtype == DType::kBF16 && k.dim(3) % 8 == 0 && v.dim(3) % 8 == 0;
}

// The chunks of a pass: so many that their blocks fill an H100, but none shorter than its state's
// two ways through memory are worth. The plain body needs more blocks, and time for each token.
// Depends on shapes alone, and so do the results.
struct LightningChunks {
  LightningChunks(const Tensor& k, const Tensor& v) {
    const bool tensor_cores = FitsLightningTensorCores(k, v);
    const int64_t heads = k.dim(0) * k.dim(2), length = k.dim(1);
    const int64_t blocks = (tensor_cores ? 1 : 4) * kPlannedMultiprocessors;
    const int64_t wanted = std::max<int64_t>(1, blocks / heads);
    const int64_t most = CeilDiv(length, tensor_cores ? 256 : 128);
    const int64_t each = CeilDiv(length, std::min(wanted, most));
    tokens = RoundUp(each, kLightningTile);
    count = CeilDiv(length, tokens);
  }
  int64_t tokens, count;
};

void LightningPassCuda(const LightningPass& pass, const Tensor& workspace);
// decay [B, H]: of all tokens together.
void LightningDecaysCuda(const Tensor& rate, const Tensor& positions, const Tensor& decay);

}  // namespace eyrie
