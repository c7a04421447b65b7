// The CUDA bodies behind lightning_attention.h; arguments are already validated.
#pragma once

#include "kernels/lightning_attention/lightning_pass.h"

namespace eyrie {

int64_t LightningWorkspaceCuda(const Tensor& k, const Tensor& v);
void LightningPassCuda(const LightningPass& pass, const Tensor& workspace);
// decay [B, H]: of all tokens together.
void LightningDecaysCuda(const Tensor& rate, const Tensor& positions, const Tensor& decay);

}  // namespace eyrie
