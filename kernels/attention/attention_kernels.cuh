// The host functions that launch attention's main kernels; attention_cuda.cu chooses among them
// and runs what comes before and after.
#pragma once

#include "kernels/attention/attention_view.cuh"

namespace eyrie {

struct BackwardInputs {
  const RowRecord* records;  // [B, T * H, padded]
  const int2* sights;        // [B, tiles of streamed rows]: first_min and first_max
};

// On the tensor cores; the width divides by 8.
void AttentionForwardMma(const AttentionView<__nv_bfloat16>& view,
                         const ForwardOutputs<__nv_bfloat16>& out);
void AttentionBackwardMma(const AttentionView<__nv_bfloat16>& view, const __nv_bfloat16* dout,
                          const BackwardInputs& in, __nv_bfloat16* dq, const BackwardSums& sums);

// Query rows of a tile that the gradients of keys are computed from, as `sights` has them there.
inline constexpr int kWgmmaStreamedRows = 64;
// On Hopper's warpgroup products, if this GPU and build have them; any width that divides by 8, and
// no parts in the forward pass.
bool AttentionRunsWgmma();
void AttentionForwardWgmma(const AttentionView<__nv_bfloat16>& view,
                           const ForwardOutputs<__nv_bfloat16>& out);
void AttentionBackwardQueriesWgmma(const AttentionView<__nv_bfloat16>& view,
                                   const __nv_bfloat16* dout, const RowRecord* records,
                                   __nv_bfloat16* dq);
void AttentionBackwardKeysWgmma(const AttentionView<__nv_bfloat16>& view, const __nv_bfloat16* dout,
                                const BackwardInputs& in, const BackwardSums& sums);

// In float32 arithmetic.
template <class T>
void AttentionForwardPlain(const AttentionView<T>& view, const ForwardOutputs<T>& out);
template <class T>
void AttentionBackwardPlain(const AttentionView<T>& view, const T* dout, const BackwardInputs& in,
                            T* dq, const BackwardSums& sums);

}  // namespace eyrie
